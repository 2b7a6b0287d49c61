//! The snapshot that an evaluation returns, and flags on events.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use serde_json::{Value, json};

use super::super::{Client, Shared};
use super::exposure::Reading;
use crate::event::Event;
use crate::flags::{Answer, Evaluated, Failure, FlagContext, FlagValue};
use crate::record::Pairs;
use crate::report::Diagnostic;
use crate::sys::limits::{NAME_KEPT, beginning};

/// Why a [`FeatureFlags`] snapshot may lack flags, or contain old values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlagsProblem {
    /// There is no distinct id, neither in the [`FlagContext`] nor in the current [`Context`](crate::Context).
    #[error("flags have no values without a distinct id: neither the FlagContext nor the current Context has one")]
    Nobody,
    /// There is no process-wide client: [`init`](crate::init) was not called.
    #[error("posthog::init was not called")]
    NotInitialized,
    /// The client is disabled.
    #[error("the client is disabled")]
    Disabled,
    /// The client is closed, or could not be opened in a forked child.
    #[error("the client is closed")]
    Closed,
    /// PostHog did not respond within [`Config::flag_request_timeout`](crate::Config::flag_request_timeout).
    #[error("PostHog did not respond in time")]
    Timeout,
    /// The request to PostHog failed, or was not sent.
    #[error("PostHog gave no answer: {why}")]
    NoAnswer {
        /// What happened.
        why: String,
    },
    /// PostHog evaluated no flags because the quota is exceeded.
    #[error("PostHog evaluated no flags because the quota is exceeded")]
    QuotaLimited,
    /// PostHog could not evaluate all flags.
    #[error("PostHog could not evaluate all flags")]
    Incomplete,
}

impl FlagsProblem {
    /// The name of the variant in snake case, for labels and logs: `no_answer`, `quota_limited`. It does not change when
    /// a text does.
    pub fn name(&self) -> &'static str {
        match self {
            FlagsProblem::Nobody => "nobody",
            FlagsProblem::NotInitialized => "not_initialized",
            FlagsProblem::Disabled => "disabled",
            FlagsProblem::Closed => "closed",
            FlagsProblem::Timeout => "timeout",
            FlagsProblem::NoAnswer { .. } => "no_answer",
            FlagsProblem::QuotaLimited => "quota_limited",
            FlagsProblem::Incomplete => "incomplete",
        }
    }

    fn of(answer: &Answer) -> Option<Self> {
        match &answer.failure {
            Some(Failure::Timeout) => Some(FlagsProblem::Timeout),
            Some(Failure::Closed) => Some(FlagsProblem::Closed),
            Some(other) => Some(FlagsProblem::NoAnswer { why: other.to_string() }),
            None if answer.is_quota_limited => Some(FlagsProblem::QuotaLimited),
            None if answer.has_errors => Some(FlagsProblem::Incomplete),
            None => None,
        }
    }
}

/// A snapshot of a person's flags, returned by [`Client::evaluate_flags`]. It never changes, sends no requests, and
/// does not keep its client alive. Clones share the snapshot.
///
/// The first read of a value ([`is_enabled`](Self::is_enabled), [`get`](Self::get)) captures `$feature_flag_called`,
/// from which PostHog counts exposures to experiments. [`payload`](Self::payload) and the other methods capture
/// nothing.
///
/// ```
/// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
/// # async fn demo(client: posthog::Client) {
/// use posthog::Event;
///
/// let flags = client.evaluate_flags("user_1").await;
/// if flags.is_enabled("new-checkout") {
///     client.capture(Event::new("checkout_shown", "user_1").flags(&flags.only_accessed()));
/// }
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a snapshot does nothing by itself"]
pub struct FeatureFlags {
    shared: Arc<Contents>,
}

struct Contents {
    flags: BTreeMap<String, Flag>,
    origin: Arc<Origin>,
    /// Whether this was made from another snapshot, which may have flags that this one lacks.
    is_part: bool,
}

struct Flag {
    evaluated: Evaluated,
    was_read: AtomicBool,
}

/// What a snapshot and the snapshots made from it have in common.
pub(super) struct Origin {
    pub(super) client: Weak<Shared>,
    pub(super) context: FlagContext,
    /// The answer without its flags.
    pub(super) answer: Answer,
    /// Whether the definitions ask for the minimal form of `$feature_flag_called`.
    pub(super) local_wants_minimal_events: bool,
    problem: Option<FlagsProblem>,
}

impl FeatureFlags {
    pub(super) fn new(
        mut answer: Answer,
        context: FlagContext,
        client: Weak<Shared>,
        local_wants_minimal_events: bool,
    ) -> Self {
        #[cfg(feature = "testing")]
        if let Some(shared) = client.upgrade() {
            shared.flags.apply_test_values(&context, &mut answer.flags);
        }
        let flags = std::mem::take(&mut answer.flags);
        let problem = FlagsProblem::of(&answer);
        let origin = Origin { client, context, answer, local_wants_minimal_events, problem };
        let flags =
            flags.into_iter().map(|(key, evaluated)| (key, Flag { evaluated, was_read: AtomicBool::new(false) }));
        Self::with(flags, Arc::new(origin), false)
    }

    /// A snapshot without flags, whose reads capture nothing.
    pub(in crate::client) fn empty(problem: Option<FlagsProblem>) -> Self {
        let origin = Origin {
            client: Weak::new(),
            context: FlagContext::default(),
            answer: Answer::default(),
            local_wants_minimal_events: false,
            problem,
        };
        Self::with([], Arc::new(origin), false)
    }

    fn with(flags: impl IntoIterator<Item = (String, Flag)>, origin: Arc<Origin>, is_part: bool) -> Self {
        Self { shared: Arc::new(Contents { flags: flags.into_iter().collect(), origin, is_part }) }
    }

    /// Whether the flag is on or has a variant. `false` if it has no value.
    pub fn is_enabled(&self, key: impl AsRef<str>) -> bool {
        self.is_enabled_or(key, false)
    }

    /// Whether the flag is on or has a variant. `default` if it has no value.
    pub fn is_enabled_or(&self, key: impl AsRef<str>, default: bool) -> bool {
        self.read(key.as_ref()).map_or(default, |evaluated| evaluated.value.is_enabled())
    }

    /// The value of the flag: on, off, or a variant. `None` if it has no value: the flag does not exist, or
    /// [`problem`](Self::problem) says why.
    pub fn get(&self, key: impl AsRef<str>) -> Option<FlagValue> {
        self.read(key.as_ref()).map(|evaluated| evaluated.value.clone())
    }

    /// The payload of the flag's value. Not a read: captures nothing. A payload that is not JSON is returned as a
    /// string.
    pub fn payload(&self, key: impl AsRef<str>) -> Option<Value> {
        self.peek(key.as_ref())?.payload.clone()
    }

    /// The keys of all flags that have a value, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.shared.flags.keys().map(String::as_str)
    }

    /// The number of flags that have a value.
    pub fn len(&self) -> usize {
        self.shared.flags.len()
    }

    /// Whether no flag has a value.
    pub fn is_empty(&self) -> bool {
        self.shared.flags.is_empty()
    }

    /// A snapshot of these flags only, for an event that is to carry no others. Reads of the new snapshot do not
    /// count as reads of this one. A key that has no value here is left out and reported as a diagnostic.
    pub fn only<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = K>) -> Self {
        let mut kept = Vec::new();
        for key in keys {
            match self.shared.flags.get(key.as_ref()) {
                Some(flag) => kept.push((key.as_ref().to_owned(), flag.copy())),
                None => self.report_absent(key.as_ref()),
            }
        }
        Self::with(kept, Arc::clone(&self.shared.origin), true)
    }

    /// A snapshot of the flags that were read so far, through this snapshot or a clone of it.
    pub fn only_accessed(&self) -> Self {
        let read = self.shared.flags.iter().filter(|(_, flag)| flag.was_read.load(Ordering::Relaxed));
        Self::with(read.map(|(key, flag)| (key.clone(), flag.copy())), Arc::clone(&self.shared.origin), true)
    }

    /// Why flags may be missing, or old. `None` if the snapshot is complete and current.
    pub fn problem(&self) -> Option<&FlagsProblem> {
        self.shared.origin.problem.as_ref()
    }

    /// Every flag and its value. Not a read.
    pub(super) fn values(&self) -> impl Iterator<Item = (&str, &Evaluated)> {
        self.shared.flags.iter().map(|(key, flag)| (key.as_str(), &flag.evaluated))
    }

    /// What is known of a flag. Not a read.
    pub(super) fn peek(&self, key: &str) -> Option<&Evaluated> {
        self.shared.flags.get(key).map(|flag| &flag.evaluated)
    }

    /// What is known of a flag. Counts as a read of its value.
    pub(super) fn read(&self, key: &str) -> Option<&Evaluated> {
        let flag = self.shared.flags.get(key);
        if let Some(flag) = flag {
            flag.was_read.store(true, Ordering::Relaxed);
        }
        let evaluated = flag.map(|flag| &flag.evaluated);
        if evaluated.is_some() || !self.shared.is_part {
            Reading { key, evaluated, origin: &self.shared.origin }.capture();
        }
        evaluated
    }

    fn report_absent(&self, key: &str) {
        if let Some(shared) = self.shared.origin.client.upgrade() {
            let what = format!(
                "flag {:?} was selected from a snapshot that has no value for it, and was left out: request it when the \
                 snapshot is made",
                beginning(key, NAME_KEPT)
            );
            Client { shared }.record(Diagnostic::InputIgnored { what });
        }
    }
}

impl Flag {
    /// A copy for another snapshot. It starts with the current `was_read`; later reads of one do not affect the other.
    fn copy(&self) -> Self {
        Self { evaluated: self.evaluated.clone(), was_read: AtomicBool::new(self.was_read.load(Ordering::Relaxed)) }
    }
}

impl fmt::Debug for FeatureFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Values<'a>(&'a FeatureFlags);
        impl fmt::Debug for Values<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_map().entries(self.0.values().map(|(key, flag)| (key, &flag.value))).finish()
            }
        }
        f.debug_struct("FeatureFlags")
            .field("values", &Values(self))
            .field("problem", &self.problem())
            .finish_non_exhaustive()
    }
}

impl Event {
    /// Adds the flags of the person: `$feature/<key>` for each flag of the snapshot, and `$active_feature_flags` with
    /// the keys of those that are on. Properties that the event already has are kept. Sends no request and does not
    /// count as a read. To add fewer flags, use [`only_accessed`](FeatureFlags::only_accessed) or
    /// [`only`](FeatureFlags::only).
    ///
    /// This corresponds to `send_feature_flags` of other PostHog libraries, without a request inside a capture. Without
    /// a snapshot, use [`Client::known_flags`](crate::Client::known_flags).
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::Event;
    /// use std::time::Duration;
    ///
    /// let flags = client.evaluate_flags("user_1").wait(Duration::from_secs(4)).unwrap();
    /// client.capture(Event::new("checkout_shown", "user_1").flags(&flags));
    /// ```
    pub fn flags(mut self, flags: &FeatureFlags) -> Self {
        if flags.is_empty() {
            return self;
        }
        let mut properties: BTreeMap<String, Value> =
            flags.values().map(|(key, flag)| (format!("$feature/{key}"), json!(flag.value))).collect();
        let active: Vec<&str> =
            flags.values().filter(|(_, flag)| flag.value.is_enabled()).map(|(key, _)| key).collect();
        if !active.is_empty() {
            properties.insert("$active_feature_flags".to_owned(), json!(active));
        }
        // Cannot fail: the map contains only strings and booleans.
        if let Ok(pairs) = Pairs::of(&properties) {
            self.add_absent(&pairs);
        }
        self
    }
}
