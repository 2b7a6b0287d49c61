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

mod ambient;
mod headers;
mod outgoing;
mod query;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::Value;

use crate::record::msgpack::Reader;
use crate::record::values::value_as;
use crate::record::{Pairs, json};

pub use ambient::{ScopedFuture, current_distinct_id, current_session_id};
pub(crate) use ambient::{current, with_current};
pub(crate) use outgoing::host_pattern;
pub use query::RequestQuery;

/// The property that says which session an event belongs to.
pub(crate) const SESSION_ID: &str = "$session_id";
/// The property that says where a request went: without its query, unless the program asks for that.
pub(crate) const CURRENT_URL: &str = "$current_url";
/// The property that holds the path of that.
pub(crate) const REQUEST_PATH: &str = "$request_path";

/// What is known of a request while it is served; every event that is captured meanwhile says it too.
///
/// A value: clones are cheap, and changing one does not change another.
///
/// ```
/// use posthog::{Context, current_distinct_id};
///
/// let context = Context::new().distinct_id("user_1").session_id("session_7").prop("route", "/checkout");
/// context.enter(|| {
///     assert_eq!(current_distinct_id().as_deref(), Some("user_1"));
/// });
/// assert_eq!(current_distinct_id(), None);
/// ```
#[derive(Clone, Default)]
#[must_use = "a context does nothing until it is entered"]
pub struct Context {
    state: Arc<State>,
}

#[derive(Clone, Default)]
struct State {
    distinct_id: Option<Box<str>>,
    /// The session id among them.
    properties: Pairs,
    fresh: bool,
    problems: Option<Arc<Problems>>,
}

/// What could not be used.
struct Problems {
    said: Vec<String>,
    told: AtomicBool,
}

impl Context {
    /// Says nothing yet. What surrounds it when it is entered shows through.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says nothing, and what surrounds it does not show through either: for work that merely starts inside of a request.
    pub fn fresh() -> Self {
        Self { state: Arc::new(State { fresh: true, ..State::default() }) }
    }

    /// The current context, with all that it has inherited: to be given to a task or a thread that goes on with the same work.
    ///
    /// ```
    /// use posthog::{Context, current_distinct_id};
    ///
    /// Context::new().distinct_id("user_1").enter(|| {
    ///     let context = Context::current().unwrap_or_default();
    ///     let other = std::thread::spawn(move || context.enter(current_distinct_id));
    ///     assert_eq!(other.join().unwrap().as_deref(), Some("user_1"));
    /// });
    /// ```
    pub fn current() -> Option<Self> {
        ambient::current()
    }

    /// Whose request it is: the distinct id of events that name nobody ([`Event::new_anon`](crate::Event::new_anon)). A blank one is none.
    pub fn distinct_id(mut self, distinct_id: impl AsRef<str>) -> Self {
        let distinct_id = distinct_id.as_ref();
        self.change().distinct_id = (!distinct_id.trim().is_empty()).then(|| distinct_id.into());
        self
    }

    /// The session it belongs to: `$session_id` of every event that has none. A blank one is none.
    pub fn session_id(mut self, session_id: impl AsRef<str>) -> Self {
        let session_id = session_id.as_ref();
        if session_id.trim().is_empty() {
            self.change().properties.remove(SESSION_ID);
            return self;
        }
        self.prop(SESSION_ID, session_id)
    }

    /// A property of every event that does not set it itself. One that cannot be serialized is left out, and the first client that
    /// uses the context records why.
    pub fn prop(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        match Pairs::one(key.as_ref(), &value) {
            Ok(pair) => self.change().properties.merge(&pair),
            Err(reason) => self.remember(format!("property {:?} of a Context was left out: {reason}", key.as_ref())),
        }
        self
    }

    /// The distinct id, if it has one.
    pub(crate) fn known_distinct_id(&self) -> Option<&str> {
        self.state.distinct_id.as_deref()
    }

    /// A property that is text, where it lies: nothing is allocated.
    pub(crate) fn known_text(&self, key: &str) -> Option<&str> {
        Reader::new(self.properties().entries().last(key)?).string().ok()
    }

    /// What every event says.
    pub(crate) fn properties(&self) -> &Pairs {
        &self.state.properties
    }

    /// What could not be used, for the first who asks.
    pub(crate) fn take_problems(&self) -> &[String] {
        match &self.state.problems {
            Some(problems) if !problems.told.swap(true, Ordering::Relaxed) => &problems.said,
            _ => &[],
        }
    }

    /// What it is when it is entered inside of another.
    fn within(&self, outer: Option<Self>) -> Self {
        let Some(outer) = outer.filter(|_| !self.state.fresh) else { return self.clone() };
        let mut inner = outer;
        let state = inner.change();
        state.properties.merge(&self.state.properties);
        if self.state.distinct_id.is_some() {
            state.distinct_id.clone_from(&self.state.distinct_id);
        }
        if self.state.problems.is_some() {
            state.problems.clone_from(&self.state.problems);
        }
        inner
    }

    fn known_session_id(&self) -> Option<String> {
        value_as(self.properties().entries().last(SESSION_ID)?)
    }

    fn change(&mut self) -> &mut State {
        Arc::make_mut(&mut self.state)
    }

    #[cold]
    fn remember(&mut self, problem: String) {
        let state = self.change();
        let mut said = state.problems.as_ref().map(|problems| problems.said.clone()).unwrap_or_default();
        said.push(problem);
        state.problems = Some(Arc::new(Problems { said, told: AtomicBool::new(false) }));
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        let shown = json::write_entries(self.properties().entries(), &mut text);
        let properties: Value = shown.ok().and_then(|()| serde_json::from_slice(&text).ok()).unwrap_or_default();
        f.debug_struct("Context")
            .field("distinct_id", &self.state.distinct_id)
            .field("properties", &format_args!("{properties}"))
            .finish_non_exhaustive()
    }
}
