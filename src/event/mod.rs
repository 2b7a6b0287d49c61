//! What a user captures.
//!
//! An [`Event`] is built straight into the bytes of the record it becomes (see `record`): each property is appended as MessagePack
//! when it is named, and finishing the event patches a few fields. So an event costs one buffer, and that one comes from, and goes
//! back to, a spare kept by the thread ([`Record::recycle`]).
//!
//! # Rules
//!
//! - Building never fails and never panics. What cannot be encoded is left out, the first such flaw is remembered, and
//!   [`Event::finish`] refuses the event with it: an event is sent as the caller described it, or not at all.
//! - An empty or blank name or distinct id is refused: the server answers either with an error for the whole batch.
//! - A group's key is a string or a number; blank types and keys are refused wherever they are given.
//! - A key set twice counts once, with its last value.
//! - The uuid and the time are the caller's if he gave them, else those of the [`Stamp`]: the moment of capture. They are never
//!   changed after that, however often the event is sent.
//! - What is added at the moment of capture (context, super properties) never replaces what the caller said.
//! - How priority an event is follows from its name (`$identify`, `$create_alias`, `$groupidentify`, `$set`; `$exception`), or is said
//!   by whoever builds it; a later change of the name may make it dearer, never cheaper.
//! - No I/O and no clock: the time and the bound on the size come from the caller. The one exception is the seed of `uuids`, which
//!   the operating system gives, once per thread and after every fork.
//!
//! # Operations
//!
//! `builder.rs` describes an event, `group.rs` the groups it belongs to, `identity.rs` those that say who somebody is, `edit.rs` reads
//! and changes one (for `before_send`), `enrich.rs` adds what the moment of capture knows, `finish.rs` makes the record, `uuids.rs`
//! draws uuids, `spare.rs` keeps the buffers. `exception/` makes an event of an error.

mod builder;
mod draft;
mod edit;
pub(crate) mod exception;
mod finish;
#[cfg(test)]
mod identity_tests;
#[cfg(test)]
mod tests;
pub(crate) mod uuids;

pub use builder::Event;
pub(crate) use draft::Refusal;
pub(crate) use finish::{Record, Stamp};
