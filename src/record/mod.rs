//! Records: one event as bytes.
//!
//! The bytes that a caller builds are the bytes that lie on disk and are sent; only a few fields are patched in
//! between. A record is a *frame* (`queue::frame`: length, sequence number, checksum) around a *body*. This folder
//! writes bodies, reads them back and turns them into JSON. It does no I/O and reads no clock: the same input gives the
//! same bytes. No other folder uses MessagePack.
//!
//! # The body, version 1
//!
//! A head of 36 bytes, little-endian:
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | 1 | version of the body: 1 |
//! | 1 | 1 | class: 0 ordinary, 1 identity, 2 exception; an unknown class reads as ordinary |
//! | 2 | 2 | flags, see [`Flags`]; unknown flags are ignored |
//! | 4 | 6 | version of the library that *captured* the event: major, minor, patch |
//! | 10 | 2 | reserved: 0 |
//! | 12 | 16 | uuid |
//! | 28 | 8 | time of the event: nanoseconds since the Unix epoch, signed |
//!
//! It is followed by exactly four MessagePack values: `str` name, `str` distinct id, `map` of properties, `map` of
//! groups. The properties always have the five-byte `map32` header, because their number is not known before the event
//! is finished; the count is patched then.
//!
//! # Rules
//!
//! - Keys of properties and groups are strings. A key may occur more than once; **the last occurrence counts**. So a
//!   value is replaced by appending.
//! - A value nests at most [`MAX_DEPTH`](msgpack::MAX_DEPTH) containers. Keys of nested maps are strings, integers or
//!   booleans; JSON shows all of them as strings. Both rules are enforced when a value is written, so that every record
//!   can be sent, and checked again when it is read.
//! - Properties that every event has (`$lib`, `$lib_version`, `$is_server`, and by flag `$geoip_disable` and
//!   `$process_person_profile`) are not stored: `json.rs` adds them unless the caller set the key. Groups overwrite a
//!   property `$groups`.
//! - Bytes that are read back are untrusted: they cause no panic, no unbounded recursion and no unbounded allocation.
//! - A number that neither a 64-bit integer nor a 64-bit float represents exactly is stored as its text, in an
//!   extension value (`msgpack.rs`), and is a number in the JSON.
//! - A stack trace is captured as addresses, in an extension value (`stack.rs`). It becomes JSON when a request body is
//!   built, with the names that a [`Symbols`] implementation finds; frames without a name are sent as addresses.
//!
//! # Operations
//!
//! [`msgpack`] appends and reads MessagePack, [`values`] does so for whatever serde can describe, [`Pairs`] are
//! properties that are encoded once and used for many events, [`View::parse`] checks a body once and then lends its
//! parts, [`json::write_event`] writes one element of PostHog's V0 batch and [`json::write_event_v1`] one of its V1
//! batch.

pub(crate) mod body;
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
