//! One event as bytes: what a caller builds is, but for a few patched fields, what lies on the disk and what is sent.
//!
//! A record is a *frame* (`frame.rs`: length, sequence number, checksum) around a *body*. This folder writes bodies, reads them
//! back, and turns them into JSON. It does no I/O and reads no clock: same input, same bytes. It is the only place that knows
//! MessagePack.
//!
//! # The body, version 1
//!
//! A head of 36 bytes, little-endian:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 1 | version of the body: 1 |
//! | 1 | 1 | class: 0 ordinary, 1 identity, 2 exception; an unknown one reads as ordinary |
//! | 2 | 2 | flags, see [`Flags`]; unknown ones are ignored |
//! | 4 | 6 | version of the library that *captured* the event: major, minor, patch |
//! | 10 | 2 | reserved: 0 |
//! | 12 | 16 | uuid |
//! | 28 | 8 | time of the event: nanoseconds since the Unix epoch, signed |
//!
//! then four MessagePack values: `str` name, `str` distinct id, `map` of properties, `map` of groups; and nothing after them.
//! The properties always have the five-byte `map32` header, whose count is patched when the event is finished: nobody has to know
//! in advance how many there will be.
//!
//! # Rules
//!
//! - Keys of properties and groups are strings. A key may come again: **the last one counts**. Appending is how a value is replaced.
//! - A value nests at most [`MAX_DEPTH`] containers; keys of nested maps are strings, integers or booleans, which JSON sees as
//!   strings. Both are refused when written, so that no record exists that cannot be sent, and checked again when read.
//! - What every event says anyway (`$lib`, `$lib_version`, `$is_server`, and by flag `$geoip_disable` and
//!   `$process_person_profile`) is not stored: `json` adds it unless the caller used the key himself. Groups overwrite a
//!   property `$groups`.
//! - What is read back is foreign input: nothing here panics, recurses or allocates without bound on it.
//! - A number that neither 64 bits of an integer nor of a float hold exactly is stored as its text, in an extension value (`number.rs`),
//!   and is the same number of the JSON.
//! - A stack is captured as addresses, in an extension value (`stack.rs`). It becomes JSON when a body is built (`json_stack.rs`), with
//!   the names that somebody behind the [`Symbols`] seam knows for them, and without any where nobody does.
//!
//! # Operations
//!
//! [`encode`] appends MessagePack to a `Vec`, [`serialize`] does so for whatever serde can describe, [`Pairs`] are properties that are
//! encoded once and used for many events, [`View::parse`] checks a body once and then lends its parts, [`json::write_event`] writes one
//! element of PostHog's V0 batch, and [`json::write_event_v1`] one of its V1 batch: the same text, but for the properties that V1
//! wants beside the properties.

pub(crate) mod body;
pub(crate) mod frame;
#[cfg(test)]
mod hostile_tests;
pub(crate) mod json;
#[cfg(test)]
mod json_tests;
pub(crate) mod msgpack;
mod pairs;
pub(crate) mod stack;
#[cfg(test)]
mod stack_tests;
pub(crate) mod symbols;
pub(crate) mod values;
#[cfg(test)]
mod values_tests;

pub(crate) use body::{Class, Entries, Flags, HEAD_LEN, Head, LIB_NAME, LIB_VERSION, View};
#[cfg(test)]
pub(crate) use msgpack::MAX_DEPTH;
pub(crate) use msgpack::{Malformed, NUMBER_EXT};
pub(crate) use pairs::Pairs;
pub(crate) use symbols::{NoSymbols, Symbols};
pub(crate) use values::Unencodable;
