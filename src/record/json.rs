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

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use serde::Serialize;

use super::body::{Entries, Flags, LIB_NAME, View};
use super::msgpack::{Malformed, NUMBER_EXT, Reader, Token, is_number, text};
use super::stack::{IMAGES_EXT, Image, STACK_EXT, Stack, decode_images};
use super::symbols::{NoSymbols, Symbol, Symbols, converting_frames, is_panic_machinery, module_of};

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

/// The part of an event that can be malformed: its strings, and its properties with the library's own unless the caller
/// set them.
#[inline]
fn write_content<'a>(
    view: &View<'a>,
    mut present: Present,
    mut lifts: impl FnMut(&'a [u8], &'a [u8]) -> bool,
    symbols: &dyn Symbols,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    out.extend_from_slice(b"\",\"event\":");
    write_str(out, view.name.as_bytes())?;
    out.extend_from_slice(b",\"distinct_id\":");
    write_str(out, view.distinct_id.as_bytes())?;
    out.extend_from_slice(b",\"properties\":");
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

    /// Appends a key that needs no escape, and a value by serde_json.
    fn field(&mut self, name: &str, value: impl Serialize) {
        self.name(name);
        write_json(self.out, value);
    }

    fn address(&mut self, name: &str, address: u64) {
        self.field(name, format_args!("{address:#x}"));
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
    // V1 sends `$process_person_profile` as an option instead.
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
                options.field(name, value);
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
        IMAGES_EXT => decode_images(content).map(|images| write_images(&images, out)),
        NUMBER_EXT => is_number(content).then(|| out.extend_from_slice(content)),
        _ => None,
    };
    if written.is_none() {
        out.extend_from_slice(b"null");
    }
}

fn write_stack(stack: &Stack<'_>, symbols: &dyn Symbols, out: &mut Vec<u8>) {
    let mut known: Vec<_> = stack
        .frames()
        .map(|(address, image)| {
            (address, image, image.map(|image| symbols.resolve(image, address)).unwrap_or_default())
        })
        .collect();
    let is_machinery = |symbols: &[Symbol]| symbols.iter().any(|symbol| is_panic_machinery(&symbol.function));
    let machinery = known.iter().take(MACHINERY_FRAMES).rposition(|(.., symbols)| is_machinery(symbols));
    known.drain(..machinery.map_or(0, |last| last + 1));
    // What panics inside of a conversion is the conversion. An error that is captured there occurred in its caller.
    let converting = if machinery.is_some() { 0 } else { converting_of(&known, symbols) };
    let mut left: usize = known.iter().map(|(.., symbols)| symbols.len().max(1)).sum();
    out.extend_from_slice(b"{\"type\":\"raw\",\"frames\":[");
    let mut is_first = true;
    for (address, image, known) in known.iter().rev() {
        let unknown = known.is_empty().then_some(None);
        for (depth, symbol) in known.iter().map(Some).chain(unknown).enumerate() {
            if !std::mem::replace(&mut is_first, false) {
                out.push(b',');
            }
            left = left.saturating_sub(1);
            write_frame(*address, *image, symbol, (depth > 0, left < converting), symbols, out);
        }
    }
    out.extend_from_slice(b"]}");
}

/// The number of frames at the innermost end that only convert an error.
fn converting_of(known: &[(u64, Option<&Image<'_>>, Vec<Symbol>)], symbols: &dyn Symbols) -> usize {
    converting_frames(known.iter().flat_map(|(_, image, known)| {
        let in_executable = image.is_some_and(|image| image.is_main);
        // An address without a name is as good as a frame of the program.
        let unknown = known.is_empty().then_some(("", true));
        let named = known.iter().rev().map(move |Symbol { function, file, .. }| {
            (function.as_str(), symbols.is_in_app(function, file.as_deref(), in_executable))
        });
        named.chain(unknown)
    }))
}

/// Appends a frame. Without a symbol it is named by its offset in its image, which is the same after a restart, so that
/// PostHog can group by it.
fn write_frame(
    address: u64,
    image: Option<&Image<'_>>,
    symbol: Option<&Symbol>,
    (is_inline, is_converting): (bool, bool),
    symbols: &dyn Symbols,
    out: &mut Vec<u8>,
) {
    let in_executable = image.is_some_and(|image| image.is_main);
    let (file, line) = symbol.map_or((None, None), |symbol| (symbol.file.as_deref(), symbol.line));
    let in_app = !is_converting
        && symbol.map_or(in_executable, |symbol| symbols.is_in_app(&symbol.function, file, in_executable));
    let function = match (symbol, image) {
        (Some(symbol), _) => Some(symbol.function.clone()).filter(|function| !function.is_empty()),
        (None, Some(image)) => Some(format!("{}+{:#x}", image.file_name(), address.wrapping_sub(image.address))),
        (None, None) => None,
    };
    let mut frame = Object::begin(out);
    frame.field("platform", "native");
    frame.field("lang", "rust");
    frame.field("synthetic", false);
    frame.address("instruction_addr", address);
    if let Some(image) = image {
        frame.address("image_addr", image.address);
    }
    if let Some(function) = function {
        frame.field("function", function);
    }
    if let Some(file) = file {
        // The module is left out where the file is unknown: PostHog would make a file name of the module and the
        // image's address, which changes with each process, and group by that name.
        if let Some(module) = symbol.and_then(|symbol| module_of(&symbol.function)) {
            frame.field("module", module);
        }
        frame.field("filename", file);
    }
    if let Some(line) = line {
        frame.field("lineno", line);
    }
    frame.field("in_app", in_app);
    frame.field("client_resolved", symbol.is_some());
    if is_inline {
        frame.field("inline", true);
    }
    let place = file.zip(line).filter(|_| in_app);
    if let Some(lines) = place.and_then(|(file, line)| symbols.source(file, line)) {
        frame.field("pre_context", &lines.before);
        frame.field("context_line", &lines.line);
        frame.field("post_context", &lines.after);
    }
    frame.end();
}

fn write_images(images: &[Image<'_>], out: &mut Vec<u8>) {
    out.push(b'[');
    let known = images.iter().filter_map(|image| Some((image, image.debug_id()?)));
    for (at, (image, debug_id)) in known.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        let mut object = Object::begin(out);
        object.field("type", "elf");
        object.field("arch", ARCH);
        object.field("debug_id", format_args!("{}", debug_id.hyphenated()));
        object.address("image_addr", image.address);
        object.address("image_vmaddr", image.vmaddr);
        object.field("image_size", image.size);
        object.field("code_file", image.path);
        object.end();
    }
    out.push(b']');
}
