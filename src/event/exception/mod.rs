//! From an error to a `$exception` event.
//!
//! What PostHog groups exceptions by is `$exception_list`: one entry for each error of a chain, the outermost first, each with a type,
//! a message and a mechanism that says how it came to be reported. This folder builds it, on the caller's thread, straight into the
//! event's bytes. It reads no clock and captures no stack: the caller hands one in, as addresses ([`Stack`](crate::record::stack)), which
//! get names when the event is sent, or as text that an error brought along (`printed.rs`).
//!
//! # Rules
//!
//! - An error is somebody else's code: its `Display`, `Debug` and `source` may panic, fail, never end, or lead in a circle. Each is
//!   called inside `catch_unwind`, with its output bounded; what went wrong is told ([`Chain::broken`]), and there is an event all the
//!   same. At most 50 errors of a chain are taken, none twice (`chain.rs`).
//! - A type is named by its last path segment, without generics (`type_name.rs`). Behind `dyn Error` there is no type name: its Debug
//!   text usually begins with one. Where it does not, the type is `Error`.
//! - A manual capture is handled, of level `error`, mechanism `generic`, from no source. Only the outermost error says `handled`; a
//!   nested one is `chained`, by `cause`. A stack that was captured here and not where the error arose makes it `synthetic`.
//! - What a caller overrides and cannot be used is as if it was not said (`options.rs`): one bad field never costs the others, nor the
//!   event. Keys that are the library's or PostHog's own cannot be set as properties; that is ignored without a word.
//! - Under a distinct id only if one is given, or the context has one; else PostHog makes no person of it.
//!
//! # Operations
//!
//! [`Crash::describe`] makes the event of a panic or a signal, from what was read of it. [`Chain::of`] asks an error for all it has to say, [`Chain::describe`] makes the event, [`ExceptionOptions`] is what callers say
//! besides, [`AdHocError`] is an error made of what is none.

mod chain;
mod crash;
mod level;
mod options;
mod printed;
mod report;
#[cfg(test)]
mod tests;
mod thrown;
mod type_name;

pub(crate) use chain::Chain;
pub(crate) use crash::{Crash, Entry};
pub use level::{Level, ParseLevelError};
pub use options::ExceptionOptions;
pub(crate) use printed::Printed;
pub(crate) use report::Trace;
pub use thrown::AdHocError;
