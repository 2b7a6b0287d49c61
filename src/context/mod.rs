//! Request contexts: distinct id, session id and properties that apply to every event captured while a request is
//! served.
//!
//! A [`Context`] is current for a while: for a closure ([`Context::enter`]) or for a future ([`Context::scope`]). The
//! client reads the current context when it captures. It follows PostHog's specification of tracing headers and request
//! contexts.
//!
//! # Rules
//!
//! * The current context belongs to the thread. While a scoped future is polled or dropped, its own context is current
//!   instead, also if it panics. So requests that share a thread are isolated and nothing is left behind. There is no
//!   guard that could be held across an `await`.
//! * A context that is entered inherits the current context (a future at its first poll), and its own values win.
//!   [`Context::fresh`] inherits nothing.
//! * [`Context::update`] changes the current context until it is left, for a program that learns the user in the middle
//!   of a request. A [`Context`] is a value; changing one never changes another.
//! * A context never replaces what an event sets itself. It is no authentication: clients choose their headers.
//! * Values from headers are cleaned: control characters and surrounding blanks are removed, at most 1000 characters
//!   are kept, and an empty value counts as absent.
//! * A query may contain a password or a token, so `$current_url` is sent without it unless the program names the
//!   parameters that it wants ([`RequestQuery`]).
//! * An unusable value is reported later, since no client may exist when it is set: the context remembers the problem,
//!   and the first client that uses the context records it.
//! * No lock: contexts are shared between threads as values only, and a forked child keeps the contexts of its thread.

mod request;
mod scope;
#[cfg(test)]
mod tests;

pub use request::RequestQuery;
pub(crate) use request::host_pattern;
pub(crate) use scope::{CURRENT_URL, REQUEST_PATH, SESSION_ID, current, with_current};
pub use scope::{Context, ScopedFuture, current_distinct_id, current_session_id};
