//! What can be changed on a living client: whether it captures, what every event says, which hooks look at it.
//!
//! A capture asks one word whether anything of this is in use. Only then it takes a lock, for as long as it takes to copy a pointer: no
//! lock is held while a hook runs, or while what was replaced is dropped.

use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::Client;
use crate::config::{BeforeSend, Content};
use crate::context::Context;
use crate::diagnostics::Diagnostic;
use crate::pipeline::Pipeline;
use crate::record::Pairs;
use crate::sys::disk::fork::lock_within;

/// In a forked child a lock may be held by a thread that does not exist there.
const CHILD_WAIT: Duration = Duration::from_secs(1);

const OPTED_OUT: u8 = 1;
const HAS_HOOKS: u8 = 2;
const HAS_SUPER_PROPERTIES: u8 = 4;

/// See the file's first lines.
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
    pub(super) fn new(content: &Content) -> Self {
        let rules = Self::default();
        rules.opt_out(content.opted_out);
        drop(rules.set_before_send(content.before_send.clone().into()));
        rules.change_super_properties(|pairs| pairs.merge(&content.super_properties));
        rules
    }

    /// For a forked child; `None` if another thread of the parent was changing them when it forked.
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

    /// What every event says, if there is anything.
    #[inline]
    pub(super) fn super_properties(&self) -> Option<Arc<Pairs>> {
        self.uses(HAS_SUPER_PROPERTIES).then(|| self.look().super_properties)
    }

    /// Has a pipeline hold back what is queued, or not. Others may change the rule meanwhile: whoever comes last sees what holds.
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

    /// Answers with what was replaced, for the caller to drop: that is the program's code.
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
    /// Captures nothing from now on: every capture is `Dropped(OptedOut)`, before any hook sees it. What is queued stays queued and is not
    /// sent until [`opt_in`](Self::opt_in); only requests that are under way at this moment go on. One that fails is not made again, a
    /// flush is over with them, and a shutdown leaves the rest on disk. Not remembered across restarts: a program that must not capture
    /// says so at each start, by [`Config::opted_out`](crate::Config::opted_out).
    pub fn opt_out(&self) {
        self.set_opted_out(true);
    }

    /// Captures again, and sends what is queued. This is how a client begins, unless [`Config::opted_out`](crate::Config::opted_out) says
    /// otherwise.
    pub fn opt_in(&self) {
        self.set_opted_out(false);
    }

    /// Whether it captures nothing because of [`opt_out`](Self::opt_out).
    pub fn is_opted_out(&self) -> bool {
        self.here().shared.rules.is_opted_out()
    }

    /// Sets a property of every event from now on that does not set it itself (a "super property"). Encoded once. One that cannot be
    /// serialized is left out and recorded. Not remembered across restarts. An event that is [`personless`](crate::Event::personless), or
    /// [of nobody](crate::Event::new_anon), or asks for no GeoIP, has said so itself.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// client.register("release", env!("CARGO_PKG_VERSION"));
    /// ```
    pub fn register(&self, key: impl AsRef<str>, value: impl Serialize) {
        let (key, client) = (key.as_ref(), self.here());
        match Pairs::one(key, &value) {
            Ok(pair) => client.shared.rules.change_super_properties(|pairs| pairs.merge(&pair)),
            Err(reason) => {
                let what = format!("super property {key:?} was left out: {reason}");
                client.shared.diagnostics.record(Diagnostic::Invalid { what });
            }
        }
    }

    /// Takes a [`register`](Self::register) or [`Config::super_property`](crate::Config::super_property) back. Tells whether there was one.
    pub fn unregister(&self, key: impl AsRef<str>) -> bool {
        self.here().shared.rules.change_super_properties(|pairs| pairs.remove(key.as_ref()))
    }

    /// Replaces the chain of `before_send` hooks, that of the configuration included. Captures that have begun may still use the old
    /// one. An empty chain lets everything pass.
    pub fn set_before_send(&self, hooks: impl IntoIterator<Item = BeforeSend>) {
        let hooks: Arc<[BeforeSend]> = hooks.into_iter().collect();
        drop(self.here().shared.rules.set_before_send(hooks));
    }

    /// The headers by which a request to `url` tells another service whose request it is part of (`X-POSTHOG-DISTINCT-ID`,
    /// `X-POSTHOG-SESSION-ID`), from the current [`Context`]. None, unless the host is one of
    /// [`Config::tracing_hosts`](crate::Config::tracing_hosts) or below one of them.
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
        let client = self.here();
        client.shared.rules.opt_out(opted_out);
        // Either this sees a lane that is just being opened, or whoever opens it sees the change.
        fence(Ordering::SeqCst);
        if let Some((pipeline, ai)) = client.pipelines() {
            client.shared.rules.apply_to(&pipeline);
            ai.inspect(|ai| client.shared.rules.apply_to(ai));
        }
    }

    /// In a forked child the client that took our place, if there is one already; until then what is set here is what it begins with.
    fn here(&self) -> Client {
        let is_forked = self.shared.pipeline.as_ref().is_some_and(|pipeline| pipeline.is_forked());
        let child = if is_forked { self.shared.child() } else { None };
        child.unwrap_or_else(|| self.clone())
    }
}
