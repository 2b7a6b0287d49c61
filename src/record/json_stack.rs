//! Stacks and debug images as JSON: what becomes of the extension values when a body is built.
//!
//! The order is PostHog's: outermost frame first, the place of the crash last; of what is inlined the physical frame first, then its
//! inline members with the same address.

use std::io::Write;

use super::json::{Object, write_json, write_plain};
use super::number::{NUMBER_EXT, is_number};
use super::stack::{DebugImages, IMAGES_EXT, Image, STACK_EXT, Stack};
use super::symbols::{SourceLines, Symbol, Symbols, is_in_app, is_panic_machinery};

/// What PostHog calls the architecture that this build is for.
const ARCH: &str = if cfg!(target_arch = "x86_64") {
    "x86_64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else if cfg!(target_arch = "x86") {
    "x86"
} else {
    "unknown"
};

/// How many frames the standard library has between a panic and its hook, at the most.
const MACHINERY_FRAMES: usize = 12;

/// Appends an extension value: a stack, debug images, a number, or null for anything else.
pub(super) fn write_ext(kind: i8, content: &[u8], symbols: &dyn Symbols, out: &mut Vec<u8>) {
    let written = match kind {
        STACK_EXT => Stack::decode(content).map(|stack| write_stack(&stack, symbols, out)),
        IMAGES_EXT => DebugImages::decode(content).map(|images| write_images(&images, out)),
        NUMBER_EXT => is_number(content).then(|| out.extend_from_slice(content)),
        _ => None,
    };
    if written.is_none() {
        out.extend_from_slice(b"null");
    }
}

fn write_stack(stack: &Stack<'_>, symbols: &dyn Symbols, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":\"raw\",\"frames\":[");
    let mut frames = Frames { out, symbols, empty: true };
    let mut known: Vec<_> = stack
        .frames()
        .map(|(address, image)| {
            (address, image, image.map(|image| symbols.resolve(image, address)).unwrap_or_default())
        })
        .collect();
    let is_machinery = |symbols: &[Symbol]| symbols.iter().any(|symbol| is_panic_machinery(&symbol.function));
    if let Some(last) = known.iter().take(MACHINERY_FRAMES).rposition(|(.., symbols)| is_machinery(symbols)) {
        known.drain(..=last);
    }
    for (address, image, known) in known.into_iter().rev() {
        if known.is_empty() {
            frames.write_unlinked(address, image);
        }
        for (depth, symbol) in known.iter().enumerate() {
            frames.write_named(address, image, symbol, depth > 0);
        }
    }
    out.extend_from_slice(b"]}");
}

struct Frames<'o> {
    out: &'o mut Vec<u8>,
    symbols: &'o dyn Symbols,
    empty: bool,
}

impl Frames<'_> {
    /// Its place in its image is its name: it stays the same over restarts, so that PostHog can group by it.
    fn write_unlinked(&mut self, address: u64, image: Option<&Image<'_>>) {
        let mut frame = self.begin(address, image);
        if let Some(image) = image {
            let name = format!("{}+{:#x}", image.file_name(), address.wrapping_sub(image.address));
            frame.name("function");
            write_json(frame.out, name);
        }
        write_flag(&mut frame, "in_app", image.is_some_and(|image| image.is_main));
        write_flag(&mut frame, "client_resolved", false);
        frame.end();
    }

    fn write_named(&mut self, address: u64, image: Option<&Image<'_>>, symbol: &Symbol, is_inline: bool) {
        let in_executable = image.is_some_and(|image| image.is_main);
        let file = symbol.file.as_deref();
        let in_app = is_in_app(&symbol.function, file, in_executable);
        let place = file.zip(symbol.line);
        let lines = place.filter(|_| in_app).and_then(|(file, line)| self.symbols.source(file, line));
        let mut frame = self.begin(address, image);
        if !symbol.function.is_empty() {
            frame.name("function");
            write_json(frame.out, &symbol.function);
        }
        if let Some(file) = file {
            frame.name("filename");
            write_json(frame.out, file);
        }
        if let Some(line) = symbol.line {
            frame.name("lineno");
            write_json(frame.out, line);
        }
        write_flag(&mut frame, "in_app", in_app);
        write_flag(&mut frame, "client_resolved", true);
        if is_inline {
            write_flag(&mut frame, "inline", true);
        }
        if let Some(lines) = lines {
            write_source(&mut frame, &lines);
        }
        frame.end();
    }

    /// What every frame has.
    fn begin(&mut self, address: u64, image: Option<&Image<'_>>) -> Object<'_> {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        let mut frame = Object::begin(self.out);
        for (name, value) in [("platform", "native"), ("lang", "rust")] {
            frame.name(name);
            write_plain(frame.out, value);
        }
        write_flag(&mut frame, "synthetic", false);
        write_address(&mut frame, "instruction_addr", address);
        if let Some(image) = image {
            write_address(&mut frame, "image_addr", image.address);
        }
        frame
    }
}

fn write_source(frame: &mut Object<'_>, lines: &SourceLines) {
    frame.name("pre_context");
    write_json(frame.out, &lines.before);
    frame.name("context_line");
    write_json(frame.out, &lines.line);
    frame.name("post_context");
    write_json(frame.out, &lines.after);
}

fn write_images(images: &DebugImages<'_>, out: &mut Vec<u8>) {
    out.push(b'[');
    let known = images.iter().filter_map(|image| Some((image, image.debug_id()?)));
    for (at, (image, debug_id)) in known.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        let mut object = Object::begin(out);
        for (name, value) in [("type", "elf"), ("arch", ARCH)] {
            object.name(name);
            write_plain(object.out, value);
        }
        object.name("debug_id");
        write_plain(object.out, debug_id.hyphenated().encode_lower(&mut [0; 36]));
        write_address(&mut object, "image_addr", image.address);
        write_address(&mut object, "image_vmaddr", image.vmaddr);
        object.name("image_size");
        write_json(object.out, image.size);
        object.name("code_file");
        write_json(object.out, image.path);
        object.end();
    }
    out.push(b']');
}

fn write_flag(object: &mut Object<'_>, name: &str, value: bool) {
    object.name(name);
    write_json(object.out, value);
}

fn write_address(object: &mut Object<'_>, name: &str, address: u64) {
    object.name(name);
    // Writing to a `Vec` cannot fail.
    let _written = write!(object.out, "\"{address:#x}\"");
}
