//! Events: what a program captures.
//!
//! An [`Event`] is built directly into the bytes of the record that it becomes (see `record`): each property is
//! appended as MessagePack when it is set, and finishing the event patches a few fields. So an event needs one buffer,
//! and that buffer is pooled by the thread ([`Record::recycle`]).
//!
//! # Rules
//!
//! - Building never fails and never panics. A value that cannot be encoded is left out, the first such error is
//!   remembered, and [`Event::finish`] refuses the event with it: an event is sent as the caller described it, or not
//!   at all.
//! - An empty or blank name or distinct id is refused: the server would reject the whole batch because of it.
//! - A group's key is a string or a number. Blank types and keys are refused wherever they are given.
//! - A key that is set twice counts once, with its last value.
//! - Uuid and time are those that the caller gave, otherwise those of the moment of capture. They never change
//!   afterwards, however often the event is sent.
//! - What is added at the moment of capture (context, super properties) never replaces what the caller set.
//! - The class of an event, which decides how late it is evicted, follows from its name (`$identify`, `$create_alias`,
//!   `$groupidentify`, `$set`; `$exception`), or is set by its builder. Renaming an event can raise its class but not
//!   lower it.
//! - No I/O and no clock: time and size limit are arguments. The only exception is the seed of `uuids.rs`, which comes
//!   from the operating system once per thread and after every fork.
//!
//! # Files
//!
//! `builder.rs` describes an event, its groups, and events about persons and groups. `edit.rs` reads and changes one,
//! for `before_send` hooks and for what the client adds. `draft.rs` has the buffers and their pool, and makes the record.
//! `uuids.rs` generates uuids. `exception/` makes events from errors.

mod builder;
mod draft;
mod edit;
pub(crate) mod exception;
#[cfg(test)]
mod identity_tests;
#[cfg(test)]
mod tests;
pub(crate) mod uuids;

pub use builder::Event;
pub(crate) use draft::{Record, Refusal};
