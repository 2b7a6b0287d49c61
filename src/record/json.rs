//! A body as one element of a PostHog batch, streamed: no tree of values is built. The V1 form is in `json_v1.rs`.
//!
//! What serde_json would write, this writes: escapes, shortest floats, `null` for a float JSON has no number for, an array of
//! numbers for bytes, strings for the integer and boolean keys of nested maps.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use serde::Serialize;

use super::decode::{Malformed, Reader, Token, text};
use super::json_stack::write_ext;
use super::symbols::{NoSymbols, Symbols};
use super::{Entries, Flags, LIB_NAME, View};

/// Up to so many keys, comparing each with each is faster than a hash table.
const FEW: usize = 32;

/// Appends `{"uuid":..,"event":..,"distinct_id":..,"properties":{..},"timestamp":".."}`; on an error `out` is as it was.
pub(crate) fn write_event(view: &View<'_>, symbols: &dyn Symbols, out: &mut Vec<u8>) -> Result<(), Malformed> {
    begin_event(view, Said::default(), |_, _| false, symbols, out)?;
    out.push(b'}');
    Ok(())
}

/// Appends an event up to its closing brace. Properties that `lifts` answers true for are left out; of the library's own, those that
/// are `said` already. On an error `out` is as it was.
#[inline]
pub(super) fn begin_event<'a>(
    view: &View<'a>,
    said: Said,
    lifts: impl FnMut(&'a [u8], &'a [u8]) -> bool,
    symbols: &dyn Symbols,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let start = out.len();
    out.extend_from_slice(b"{\"uuid\":\"");
    out.extend_from_slice(view.head.uuid.hyphenated().encode_lower(&mut [0; 36]).as_bytes());
    let written = write_said(view, said, lifts, symbols, out);
    if written.is_err() {
        out.truncate(start);
        return written;
    }
    out.extend_from_slice(b",\"timestamp\":\"");
    write_timestamp(out, view.head.timestamp_nanos);
    out.push(b'"');
    Ok(())
}

/// Appends a JSON object of `entries`, each key once, with its last value.
pub(crate) fn write_entries(entries: Entries<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut object = Object::begin(out);
    each_last(entries, |key, value| object.entry(key, value, &NoSymbols))?;
    object.end();
    Ok(())
}

/// What can be malformed: strings and values.
#[inline]
fn write_said<'a>(
    view: &View<'a>,
    said: Said,
    lifts: impl FnMut(&'a [u8], &'a [u8]) -> bool,
    symbols: &dyn Symbols,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    out.extend_from_slice(b"\",\"event\":");
    write_str(out, view.name.as_bytes())?;
    out.extend_from_slice(b",\"distinct_id\":");
    write_str(out, view.distinct_id.as_bytes())?;
    out.extend_from_slice(b",\"properties\":");
    write_properties(view, said, lifts, symbols, out)
}

/// The caller's properties, and what every event of this library says unless the caller said otherwise.
#[inline]
fn write_properties<'a>(
    view: &View<'a>,
    mut said: Said,
    mut lifts: impl FnMut(&'a [u8], &'a [u8]) -> bool,
    symbols: &dyn Symbols,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let mut object = Object::begin(out);
    each_last(view.properties, |key, value| {
        // Most keys of callers have no dollar: one byte decides.
        if key.first() == Some(&b'$') {
            if (key == b"$groups" && !view.groups.is_empty()) || lifts(key, value) {
                return Ok(());
            }
            said.note(key);
        }
        object.entry(key, value, symbols)
    })?;
    if !view.groups.is_empty() {
        object.name("$groups");
        write_entries(view.groups, object.out)?;
    }
    if !said.lib {
        object.name("$lib");
        write_plain(object.out, LIB_NAME);
    }
    if !said.lib_version {
        object.name("$lib_version");
        write_version(object.out, view.head.lib_version);
    }
    let flags = view.head.flags;
    for (name, value, due) in [
        ("$is_server", &b"true"[..], !said.is_server),
        ("$geoip_disable", b"true", flags.contains(Flags::GEOIP_DISABLE) && !said.geoip_disable),
        ("$process_person_profile", b"false", flags.contains(Flags::PERSONLESS) && !said.person_profile),
    ] {
        if due {
            object.name(name);
            object.out.extend_from_slice(value);
        }
    }
    object.end();
    Ok(())
}

/// Which of the library's own properties are not to be added: the caller has set them himself, or they are said elsewhere.
#[derive(Default)]
pub(super) struct Said {
    pub(super) lib: bool,
    pub(super) lib_version: bool,
    pub(super) is_server: bool,
    pub(super) geoip_disable: bool,
    pub(super) person_profile: bool,
}

impl Said {
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

/// Visits each key once, with the value that counts, at the place of that value.
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

/// An object being written: puts the commas.
pub(super) struct Object<'o> {
    pub(super) out: &'o mut Vec<u8>,
    empty: bool,
}

impl<'o> Object<'o> {
    pub(super) fn begin(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, empty: true }
    }

    /// One of the library's own keys.
    pub(super) fn name(&mut self, name: &str) {
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

    pub(super) fn end(self) {
        self.out.push(b'}');
    }
}

/// Recursion is bounded: whoever hands in a value has had it checked, and `MAX_DEPTH` is part of the check.
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

pub(super) fn write_str(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Malformed> {
    // No early exit: the loop is a few vector instructions, and nearly no string needs an escape. ASCII is UTF-8 by itself.
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

/// Text that needs no escape.
pub(super) fn write_plain(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

pub(super) fn write_quoted(out: &mut Vec<u8>, value: impl Serialize) {
    out.push(b'"');
    write_json(out, value);
    out.push(b'"');
}

/// What serde_json knows how to write. Writing to a `Vec` and serializing these few types cannot fail.
pub(super) fn write_json(out: &mut Vec<u8>, value: impl Serialize) {
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

/// RFC 3339 in UTC, with as many digits of a second as it has.
fn write_timestamp(out: &mut Vec<u8>, nanos: i64) {
    static PRINTER: DateTimePrinter = DateTimePrinter::new();
    // 64 bits of nanoseconds end in 2262, jiff's range in the year 9999: the default is never taken.
    let time = Timestamp::from_nanosecond(nanos.into()).unwrap_or_default();
    let written = PRINTER.print_timestamp(&time, out);
    debug_assert!(written.is_ok());
}
