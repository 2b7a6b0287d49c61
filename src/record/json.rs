//! JSON: a record body as one element of a PostHog batch, in the V0 and the V1 form. Streamed, without a tree of
//! values.
//!
//! The output equals that of serde_json: escapes, shortest floats, `null` for a float that JSON cannot express, an
//! array of numbers for bytes, strings for integer and boolean keys of nested maps.
//!
//! Stack traces and debug images are extension values that become JSON here. The order is PostHog's: the outermost
//! frame first, the place of the crash last; of inlined calls the physical frame first, then its inline members with
//! the same address.

use std::collections::HashMap;
use std::io::Write;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use serde::Serialize;

use super::body::{Entries, Flags, LIB_NAME, View};
use super::msgpack::{Malformed, NUMBER_EXT, Reader, Token, is_number, text};
use super::stack::{DebugImages, IMAGES_EXT, Image, STACK_EXT, Stack};
use super::symbols::{NoSymbols, SourceLines, Symbol, Symbols, is_in_app, is_panic_machinery};

/// Up to this number of keys, comparing each with each is faster than a hash table.
const FEW: usize = 32;

/// Appends `{"uuid":..,"event":..,"distinct_id":..,"properties":{..},"timestamp":".."}`. On an error `out` is
/// unchanged.
pub(crate) fn write_event(view: &View<'_>, symbols: &dyn Symbols, out: &mut Vec<u8>) -> Result<(), Malformed> {
    begin_event(view, Present::default(), |_, _| false, symbols, out)?;
    out.push(b'}');
    Ok(())
}

/// Appends an event up to its closing brace, without the properties for which `lifts` returns true and without those of
/// the library's own that `present` names. On an error `out` is unchanged.
#[inline]
fn begin_event<'a>(
    view: &View<'a>,
    present: Present,
    lifts: impl FnMut(&'a [u8], &'a [u8]) -> bool,
    symbols: &dyn Symbols,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let start = out.len();
    out.extend_from_slice(b"{\"uuid\":\"");
    out.extend_from_slice(view.head.uuid.hyphenated().encode_lower(&mut [0; 36]).as_bytes());
    let written = write_content(view, present, lifts, symbols, out);
    if written.is_err() {
        out.truncate(start);
        return written;
    }
    out.extend_from_slice(b",\"timestamp\":\"");
    write_timestamp(out, view.head.timestamp_nanos);
    out.push(b'"');
    Ok(())
}

/// Appends `entries` as a JSON object, each key once, with its last value.
pub(crate) fn write_entries(entries: Entries<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut object = Object::begin(out);
    each_last(entries, |key, value| object.entry(key, value, &NoSymbols))?;
    object.end();
    Ok(())
}

/// The part of an event that can be malformed: its strings and values.
#[inline]
fn write_content<'a>(
    view: &View<'a>,
    present: Present,
    lifts: impl FnMut(&'a [u8], &'a [u8]) -> bool,
    symbols: &dyn Symbols,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    out.extend_from_slice(b"\",\"event\":");
    write_str(out, view.name.as_bytes())?;
    out.extend_from_slice(b",\"distinct_id\":");
    write_str(out, view.distinct_id.as_bytes())?;
    out.extend_from_slice(b",\"properties\":");
    write_properties(view, present, lifts, symbols, out)
}

/// Appends the caller's properties, and the library's own unless the caller set them.
#[inline]
fn write_properties<'a>(
    view: &View<'a>,
    mut present: Present,
    mut lifts: impl FnMut(&'a [u8], &'a [u8]) -> bool,
    symbols: &dyn Symbols,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let mut object = Object::begin(out);
    each_last(view.properties, |key, value| {
        // Few keys of callers begin with a dollar sign, so one byte decides for most.
        if key.first() == Some(&b'$') {
            if (key == b"$groups" && !view.groups.is_empty()) || lifts(key, value) {
                return Ok(());
            }
            present.note(key);
        }
        object.entry(key, value, symbols)
    })?;
    if !view.groups.is_empty() {
        object.name("$groups");
        write_entries(view.groups, object.out)?;
    }
    if !present.lib {
        object.name("$lib");
        write_plain(object.out, LIB_NAME);
    }
    if !present.lib_version {
        object.name("$lib_version");
        write_version(object.out, view.head.lib_version);
    }
    let flags = view.head.flags;
    for (name, value, due) in [
        ("$is_server", &b"true"[..], !present.is_server),
        ("$geoip_disable", b"true", flags.contains(Flags::GEOIP_DISABLE) && !present.geoip_disable),
        ("$process_person_profile", b"false", flags.contains(Flags::PERSONLESS) && !present.person_profile),
    ] {
        if due {
            object.name(name);
            object.out.extend_from_slice(value);
        }
    }
    object.end();
    Ok(())
}

/// The library's own properties that must not be added: the caller has set them, or they are sent elsewhere.
#[derive(Default)]
struct Present {
    lib: bool,
    lib_version: bool,
    is_server: bool,
    geoip_disable: bool,
    person_profile: bool,
}

impl Present {
    fn note(&mut self, key: &[u8]) {
        match key {
            b"$lib" => self.lib = true,
            b"$lib_version" => self.lib_version = true,
            b"$is_server" => self.is_server = true,
            b"$geoip_disable" => self.geoip_disable = true,
            b"$process_person_profile" => self.person_profile = true,
            _ => {}
        }
    }
}

/// Visits each key once, with its last value, at the position of that value.
fn each_last<'a>(
    entries: Entries<'a>,
    mut visit: impl FnMut(&'a [u8], &'a [u8]) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    if entries.len() as usize > FEW {
        let last: HashMap<&[u8], usize> = entries.enumerate().map(|(at, (key, _))| (key, at)).collect();
        let counts = |&(at, (key, _)): &(usize, (&[u8], _))| last.get(key) == Some(&at);
        return entries.enumerate().filter(counts).try_for_each(|(_, (key, value))| visit(key, value));
    }
    let mut few = [(&[][..], &[][..]); FEW];
    let mut count = 0;
    for (slot, entry) in few.iter_mut().zip(entries) {
        *slot = entry;
        count += 1;
    }
    let mut left = few.get(..count).unwrap_or_default();
    while let Some(((key, value), later)) = left.split_first() {
        if !later.iter().any(|(other, _)| other == key) {
            visit(key, value)?;
        }
        left = later;
    }
    Ok(())
}

/// A JSON object that is being written; adds the commas.
struct Object<'o> {
    out: &'o mut Vec<u8>,
    empty: bool,
}

impl<'o> Object<'o> {
    fn begin(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, empty: true }
    }

    /// Appends a key that needs no escape.
    fn name(&mut self, name: &str) {
        self.separate();
        write_plain(self.out, name);
        self.out.push(b':');
    }

    fn entry(&mut self, key: &[u8], value: &[u8], symbols: &dyn Symbols) -> Result<(), Malformed> {
        self.separate();
        write_str(self.out, key)?;
        self.out.push(b':');
        write_value(&mut Reader::new(value), symbols, self.out)
    }

    fn separate(&mut self) {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
    }

    fn end(self) {
        self.out.push(b'}');
    }
}

/// Appends a checked value. The check limits its depth, and with it the recursion, to `MAX_DEPTH`.
pub(super) fn write_value(reader: &mut Reader<'_>, symbols: &dyn Symbols, out: &mut Vec<u8>) -> Result<(), Malformed> {
    match reader.token()? {
        Token::Ext(kind, content) => write_ext(kind, content, symbols, out),
        Token::Nil => out.extend_from_slice(b"null"),
        Token::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
        Token::Unsigned(value) => write_json(out, value),
        Token::Signed(value) => write_json(out, value),
        Token::F32(value) => write_json(out, value),
        Token::F64(value) => write_json(out, value),
        Token::Str(bytes) => return write_str(out, bytes),
        Token::Bin(bytes) => write_json(out, bytes),
        Token::Array(len) => {
            out.push(b'[');
            for at in 0..len {
                if at > 0 {
                    out.push(b',');
                }
                write_value(reader, symbols, out)?;
            }
            out.push(b']');
        }
        Token::Map(len) => {
            let mut object = Object::begin(out);
            for _ in 0..len {
                object.separate();
                write_key(reader, object.out)?;
                write_value(reader, symbols, object.out)?;
            }
            object.end();
        }
    }
    Ok(())
}

fn write_key(reader: &mut Reader<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
    match reader.token()? {
        Token::Str(bytes) => write_str(out, bytes)?,
        Token::Unsigned(value) => write_quoted(out, value),
        Token::Signed(value) => write_quoted(out, value),
        Token::Bool(value) => write_quoted(out, value),
        _ => return Err(Malformed::MapKey),
    }
    out.push(b':');
    Ok(())
}

fn write_str(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Malformed> {
    // No early exit: the loop compiles to a few vector instructions, and few strings need an escape. ASCII is valid
    // UTF-8.
    let plain = |byte: u8| (0x20..0x80).contains(&byte) & (byte != b'"') & (byte != b'\\');
    if bytes.iter().fold(true, |all, &byte| all & plain(byte)) {
        out.push(b'"');
        out.extend_from_slice(bytes);
        out.push(b'"');
    } else {
        write_json(out, text(bytes)?);
    }
    Ok(())
}

/// Appends a string that needs no escape.
fn write_plain(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

fn write_quoted(out: &mut Vec<u8>, value: impl Serialize) {
    out.push(b'"');
    write_json(out, value);
    out.push(b'"');
}

/// Appends a value by serde_json. Writing to a `Vec` and serializing these few types cannot fail.
fn write_json(out: &mut Vec<u8>, value: impl Serialize) {
    let written = serde_json::to_writer(out, &value);
    debug_assert!(written.is_ok());
}

fn write_version(out: &mut Vec<u8>, [major, minor, patch]: [u16; 3]) {
    out.push(b'"');
    write_json(out, major);
    out.push(b'.');
    write_json(out, minor);
    out.push(b'.');
    write_json(out, patch);
    out.push(b'"');
}

/// Appends a time as RFC 3339 in UTC, with as many fractional digits as it has.
fn write_timestamp(out: &mut Vec<u8>, nanos: i64) {
    static PRINTER: DateTimePrinter = DateTimePrinter::new();
    // 64 bits of nanoseconds end in 2262, jiff's range in the year 9999, so the default is never used.
    let time = Timestamp::from_nanosecond(nanos.into()).unwrap_or_default();
    let written = PRINTER.print_timestamp(&time, out);
    debug_assert!(written.is_ok());
}

/// Appends an event as [`write_event`] does, followed by `"options":{..}` and, if they are known, `"session_id"` and
/// `"window_id"`. The properties that these are made from are left out; one of the wrong type is not sent at all,
/// because PostHog drops an event with an option that it cannot read. On an error `out` is unchanged.
pub(crate) fn write_event_v1(view: &View<'_>, symbols: &dyn Symbols, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let start = out.len();
    let mut lifted = Lifted::default();
    // V1 has it as an option instead.
    let present = Present { person_profile: true, ..Present::default() };
    begin_event(view, present, |key, value| lifted.take(key, value), symbols, out)?;
    let is_personless = view.head.flags.contains(Flags::PERSONLESS);
    let written = lifted.write(is_personless, out);
    match written {
        Ok(()) => out.push(b'}'),
        Err(_) => out.truncate(start),
    }
    written
}

/// The values that V1 expects outside of the properties, as MessagePack.
#[derive(Default)]
struct Lifted<'a> {
    cookieless_mode: Option<&'a [u8]>,
    ignore_sent_at: Option<&'a [u8]>,
    process_person_profile: Option<&'a [u8]>,
    product_tour_id: Option<&'a [u8]>,
    session_id: Option<&'a [u8]>,
    window_id: Option<&'a [u8]>,
}

impl<'a> Lifted<'a> {
    /// Takes the property if it is one of these; returns whether it is.
    fn take(&mut self, key: &[u8], value: &'a [u8]) -> bool {
        let place = match key {
            b"$cookieless_mode" => &mut self.cookieless_mode,
            b"$ignore_sent_at" => &mut self.ignore_sent_at,
            b"$process_person_profile" => &mut self.process_person_profile,
            b"$product_tour_id" => &mut self.product_tour_id,
            b"$session_id" => &mut self.session_id,
            b"$window_id" => &mut self.window_id,
            _ => return false,
        };
        *place = Some(value);
        true
    }

    fn write(&self, is_personless: bool, out: &mut Vec<u8>) -> Result<(), Malformed> {
        out.extend_from_slice(b",\"options\":");
        let mut options = Object::begin(out);
        let person_profile = boolean(self.process_person_profile).or(is_personless.then_some(false));
        for (name, value) in [
            ("cookieless_mode", boolean(self.cookieless_mode)),
            ("disable_skew_correction", boolean(self.ignore_sent_at)),
            ("process_person_profile", person_profile),
        ] {
            if let Some(value) = value {
                options.name(name);
                write_json(options.out, value);
            }
        }
        if let Some(tour @ Token::Str(_)) = token(self.product_tour_id) {
            options.name("product_tour_id");
            write_id(tour, options.out)?;
        }
        options.end();
        for (name, value) in [(&b",\"session_id\":"[..], self.session_id), (b",\"window_id\":", self.window_id)] {
            if let Some(id) = token(value).filter(|&id| is_id(id)) {
                out.extend_from_slice(name);
                write_id(id, out)?;
            }
        }
        Ok(())
    }
}

fn token(value: Option<&[u8]>) -> Option<Token<'_>> {
    Reader::new(value?).token().ok()
}

fn boolean(value: Option<&[u8]>) -> Option<bool> {
    match token(value)? {
        Token::Bool(value) => Some(value),
        _ => None,
    }
}

/// Whether a value can be an id: text, or a number, since some programs number their sessions.
fn is_id(token: Token<'_>) -> bool {
    match token {
        Token::Str(_) | Token::Unsigned(_) | Token::Signed(_) | Token::Ext(NUMBER_EXT, _) => true,
        Token::F32(value) => value.is_finite(),
        Token::F64(value) => value.is_finite(),
        _ => false,
    }
}

fn write_id(token: Token<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
    match token {
        Token::Str(bytes) => return write_str(out, bytes),
        Token::Unsigned(value) => write_quoted(out, value),
        Token::Signed(value) => write_quoted(out, value),
        Token::F32(value) => write_quoted(out, value),
        Token::F64(value) => write_quoted(out, value),
        Token::Ext(NUMBER_EXT, digits) => write_plain(out, text(digits)?),
        _ => return Err(Malformed::Type),
    }
    Ok(())
}

/// PostHog's name for the architecture of this build.
const ARCH: &str = if cfg!(target_arch = "x86_64") {
    "x86_64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else if cfg!(target_arch = "x86") {
    "x86"
} else {
    "unknown"
};

/// The most frames of the standard library between a panic and its hook.
const MACHINERY_FRAMES: usize = 12;

/// Appends an extension value: a stack trace, debug images or a number; `null` for anything else.
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
    /// A frame without a symbol. It is named by its offset in its image, which is the same after a restart, so that
    /// PostHog can group by it.
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

    /// Begins a frame with the fields that every frame has.
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
