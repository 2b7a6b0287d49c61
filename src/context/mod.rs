//! Who and what a request is about: known once, on every event that is captured while it is served.
//!
//! A [`Context`] holds a distinct id, a session id and properties. It is entered for a while, by a closure ([`Context::enter`]) or by a
//! future ([`Context::scope`]), and is what the client asks for when it captures. It follows PostHog's specification of tracing headers
//! and request contexts.
//!
//! # Rules
//!
//! * The current context belongs to the thread, and while a scoped future is polled to that future: it is put in place before each
//!   poll and taken away after it, in a panic too, and the same when the future is dropped. So requests that share a thread are isolated,
//!   and nothing is left behind. There is no guard to hold across an `await`.
//! * A context that is entered inherits what is current at that moment (a future: at its first poll), and its own values win.
//!   [`Context::fresh`] inherits nothing.
//! * [`Context::update`] changes the current context in place, until it is left: for an application that learns who somebody is in the
//!   middle of a request. A [`Context`] in hand is a value; changing one never changes another.
//! * A context never replaces what an event says itself, and is never taken for authentication: headers say what they like.
//! * Values from headers are cleaned: control characters go, blanks around go, 1000 characters stay, nothing left is nothing said.
//! * A query may hold a password or a token, so `$current_url` is sent without it unless the program names what it wants
//!   ([`RequestQuery`]).
//! * Nobody hears of a value that cannot be used when it is set, since there may be no client: the context remembers the problem, and
//!   the first client that uses it records it.
//! * No lock: a context is shared between threads as a value only, and a forked child finds its own thread's as it was.
//!
//! # Operations
//!
//! `ambient.rs` makes contexts current, `headers.rs` reads them from requests, `query.rs` says what of a URL is sent, `outgoing.rs` passes them on to other services.

mod request;
mod scope;
#[cfg(test)]
mod tests;

pub use request::RequestQuery;
pub(crate) use request::host_pattern;
pub(crate) use scope::{CURRENT_URL, REQUEST_PATH, SESSION_ID, current, with_current};
pub use scope::{Context, ScopedFuture, current_distinct_id, current_session_id};
