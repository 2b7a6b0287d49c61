//! Rules of a client that can be changed at run time: opt-out, super properties, `before_send` hooks.
//!
//! A capture reads one atomic word that says which rules are in use. Only for hooks and super properties does it take a
//! lock, for as long as it takes to clone an `Arc`. No lock is held while a hook runs, or while replaced hooks are
//! dropped.

use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::Client;
use crate::config::BeforeSend;
use crate::context::Context;
use crate::pipeline::Pipeline;
use crate::record::Pairs;
use crate::report::Diagnostic;
use crate::sys::disk::fork::lock_within;

/// In a forked child a lock may be held by a thread that does not exist there.
const CHILD_WAIT: Duration = Duration::from_secs(1);

const OPTED_OUT: u8 = 1;
const HAS_HOOKS: u8 = 2;
const HAS_SUPER_PROPERTIES: u8 = 4;

/// The rules of a client; see the module documentation.
#[derive(Debug, Default)]
pub(super) struct Rules {
    in_use: AtomicU8,
    changeable: Mutex<Changeable>,
}

#[derive(Clone, Debug, Default)]
struct Changeable {
    before_send: Arc<[BeforeSend]>,
    super_properties: Arc<Pairs>,
}

impl Rules {
    pub(super) fn new(opted_out: bool, before_send: Vec<BeforeSend>, super_properties: Pairs) -> Self {
        let rules = Self::default();
        rules.opt_out(opted_out);
        drop(rules.set_before_send(before_send.into()));
        rules.change_super_properties(|pairs| *pairs = super_properties);
        rules
    }

    /// A copy for a forked child; `None` if another thread of the parent was changing the rules when it forked.
    pub(super) fn for_child(&self) -> Option<Self> {
        let changeable = lock_within(&self.changeable, CHILD_WAIT)?.clone();
        Some(Self { in_use: AtomicU8::new(self.in_use.load(Ordering::Relaxed)), changeable: Mutex::new(changeable) })
    }

    #[inline]
    pub(super) fn is_opted_out(&self) -> bool {
        self.uses(OPTED_OUT)
    }

    /// The hooks, if there are any.
    #[inline]
    pub(super) fn before_send(&self) -> Option<Arc<[BeforeSend]>> {
        self.uses(HAS_HOOKS).then(|| self.look().before_send)
    }

    /// The super properties, if there are any.
    #[inline]
    pub(super) fn super_properties(&self) -> Option<Arc<Pairs>> {
        self.uses(HAS_SUPER_PROPERTIES).then(|| self.look().super_properties)
    }

    /// Applies the opt-out to a pipeline, which then holds back what is queued. Repeated if the rule changes meanwhile,
    /// so that the pipeline ends with the last value.
    pub(super) fn apply_to(&self, pipeline: &Pipeline) {
        loop {
            let opted_out = self.is_opted_out();
            pipeline.hold(opted_out);
            fence(Ordering::SeqCst);
            if self.is_opted_out() == opted_out {
                return;
            }
        }
    }

    pub(super) fn opt_out(&self, opted_out: bool) {
        self.set(OPTED_OUT, opted_out);
    }

    /// Returns the replaced hooks, for the caller to drop without the lock: their destructors are the program's code.
    fn set_before_send(&self, hooks: Arc<[BeforeSend]>) -> Arc<[BeforeSend]> {
        let mut changeable = self.changeable.lock().unwrap_or_else(PoisonError::into_inner);
        self.set(HAS_HOOKS, !hooks.is_empty());
        std::mem::replace(&mut changeable.before_send, hooks)
    }

    fn change_super_properties<T>(&self, change: impl FnOnce(&mut Pairs) -> T) -> T {
        let mut changeable = self.changeable.lock().unwrap_or_else(PoisonError::into_inner);
        let pairs = Arc::make_mut(&mut changeable.super_properties);
        let changed = change(pairs);
        self.set(HAS_SUPER_PROPERTIES, !pairs.is_empty());
        changed
    }

    #[inline]
    fn uses(&self, what: u8) -> bool {
        self.in_use.load(Ordering::Relaxed) & what != 0
    }

    fn set(&self, what: u8, on: bool) {
        if on {
            self.in_use.fetch_or(what, Ordering::SeqCst);
        } else {
            self.in_use.fetch_and(!what, Ordering::SeqCst);
        }
    }

    fn look(&self) -> Changeable {
        self.changeable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Client {
    /// Stops capturing: every capture is `Dropped(OptedOut)` before any hook sees it. Queued events stay queued and are
    /// not sent until [`opt_in`](Self::opt_in). Requests that are in flight are completed, but not retried; a flush
    /// ends with them, and a shutdown leaves the rest on disk. The opt-out is not stored: a program that must not
    /// capture sets [`Config::opted_out`](crate::Config::opted_out) at each start.
    pub fn opt_out(&self) {
        self.set_opted_out(true);
    }

    /// Captures again, and sends what is queued. A new client has opted in, unless
    /// [`Config::opted_out`](crate::Config::opted_out) is set.
    pub fn opt_in(&self) {
        self.set_opted_out(false);
    }

    /// Whether the client has opted out.
    pub fn is_opted_out(&self) -> bool {
        self.current().shared.rules.is_opted_out()
    }

    /// Sets a property of every future event that does not have it (a "super property"). It is encoded once. A value
    /// that cannot be serialized is left out and reported ([`Diagnostic::InputIgnored`]). Super properties are not
    /// stored across restarts. They do not override an event that is [`personless`](crate::Event::personless) or
    /// [anonymous](crate::Event::new_anon), or that disables GeoIP.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// client.register("release", env!("CARGO_PKG_VERSION"));
    /// ```
    pub fn register(&self, key: impl AsRef<str>, value: impl Serialize) {
        let (key, client) = (key.as_ref(), self.current());
        match Pairs::one(key, &value) {
            Ok(pair) => client.shared.rules.change_super_properties(|pairs| pairs.merge(&pair)),
            Err(reason) => {
                let what = format!("super property {key:?} was left out: {reason}");
                client.shared.diagnostics.record(Diagnostic::InputIgnored { what });
            }
        }
    }

    /// Removes a super property, whether from [`register`](Self::register) or from
    /// [`Config::super_property`](crate::Config::super_property). Returns whether it existed.
    pub fn unregister(&self, key: impl AsRef<str>) -> bool {
        self.current().shared.rules.change_super_properties(|pairs| pairs.remove(key.as_ref()))
    }

    /// Replaces the chain of `before_send` hooks, including those of the configuration. A capture that has begun may
    /// still use the old chain. An empty chain lets every event pass.
    pub fn set_before_send(&self, hooks: impl IntoIterator<Item = BeforeSend>) {
        let hooks: Arc<[BeforeSend]> = hooks.into_iter().collect();
        drop(self.current().shared.rules.set_before_send(hooks));
    }

    /// The headers to add to a request to `url`, which pass the distinct id and the session id of the current
    /// [`Context`] to that service (`X-POSTHOG-DISTINCT-ID`, `X-POSTHOG-SESSION-ID`). Empty without a context, and
    /// unless the host is one of [`Config::tracing_hosts`](crate::Config::tracing_hosts) or a subdomain of one.
    ///
    /// ```
    /// use posthog::{Client, Config, Context};
    ///
    /// let client = Client::new(Config::disabled().tracing_hosts(["example.com"])).unwrap();
    /// Context::new().session_id("session_7").enter(|| {
    ///     let headers = client.tracing_headers("https://api.example.com/cart");
    ///     assert_eq!(headers, [("X-POSTHOG-SESSION-ID", "session_7".to_owned())]);
    ///     assert!(client.tracing_headers("https://example.org/").is_empty());
    /// });
    /// ```
    pub fn tracing_headers(&self, url: &str) -> Vec<(&'static str, String)> {
        match Context::current() {
            Some(context) => context.headers_for(url, &self.shared.settings.tracing_hosts),
            None => Vec::new(),
        }
    }

    pub(super) fn set_opted_out(&self, opted_out: bool) {
        let client = self.current();
        client.shared.rules.opt_out(opted_out);
        // If another thread opens the AI pipeline meanwhile, either this thread sees the pipeline below, or the other
        // thread sees the change.
        fence(Ordering::SeqCst);
        client.lanes().unwrap_or_default().iter().for_each(|lane| client.shared.rules.apply_to(lane));
    }

    /// The client that a change applies to: in a forked child the client that replaces this one, once it is open,
    /// otherwise this one. The child's client copies the rules of this one when it opens.
    fn current(&self) -> Client {
        let is_forked = self.shared.pipeline.as_ref().is_some_and(|pipeline| pipeline.is_forked());
        let child = if is_forked { self.shared.child() } else { None };
        child.unwrap_or_else(|| self.clone())
    }
}
