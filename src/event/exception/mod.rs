//! Builds `$exception` events from errors, panics and signals.
//!
//! PostHog groups exceptions by `$exception_list`, which has one entry for each error of a chain, outermost first: a
//! type, a message, and a mechanism that says how it was reported. This folder encodes the list on the caller's thread,
//! directly into the event's bytes. It reads no clock and captures no stack. The caller passes the stack, either as
//! addresses ([`Stack`](crate::record::stack)), which get names when the event is sent, or as text that the error had
//! captured itself (`printed.rs`).
//!
//! # Rules
//!
//! - An error is foreign code: its `Display`, `Debug` and `source` may panic, fail, never end, or form a cycle. Each is
//!   called inside `catch_unwind`, with bounded output. A failed call is noted ([`Chain::failed_call`]), and the event
//!   is sent without its result. At most 50 errors of a chain are taken, none twice.
//! - A type is named by its last path segment, without generics. Behind `dyn Error` there is no type name; the Debug
//!   text usually begins with one. If it does not, the type is `Error`.
//! - By default a manual capture has `handled: true`, level `error`, mechanism `generic` and no `$exception_source`.
//!   Only the entry of the outermost error has `handled`. A nested one has mechanism `chained` with source `cause`. If
//!   the stack was captured by the call and not by the error, the exception is `synthetic`.
//! - An invalid option is ignored (`options.rs`): it never costs the other options or the event. Keys that belong to
//!   the library or to PostHog cannot be set as properties; that is ignored, too.
//! - The event has a distinct id only if one is given, or the context has one. Without it PostHog creates no person.
//!
//! # Operations
//!
//! [`Chain::of`] reads an error, [`Chain::describe`] builds its event, and that of a panic or a signal.
//! [`ExceptionOptions`] are a caller's settings, [`AdHocError`] wraps a value that is no error.

mod chain;
mod event;
mod options;
mod printed;
#[cfg(test)]
mod tests;

pub use chain::AdHocError;
#[cfg(any(feature = "log", feature = "tower", feature = "tracing"))]
pub(crate) use chain::print;
pub(crate) use chain::{Chain, ChainEntry, type_of};
pub(crate) use event::ExceptionStack;
pub use options::{CallStack, ExceptionOptions, Level, ParseLevelError};
#[cfg(feature = "anyhow")]
pub(crate) use printed::printed_stack;
#[cfg(feature = "eyre")]
pub(crate) use printed::stack_below;
