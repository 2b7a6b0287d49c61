//! Evaluating flags: the calls that return a snapshot, one flag, or all flags.
//!
//! All of them go through `Shared::evaluate`. The getters of a single flag read it from a snapshot of that one flag.
//! The read counts, and captures `$feature_flag_called`, when the result is taken out of its [`Pending`], on the thread
//! that takes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::super::{Client, Shared};
use super::snapshot::{FeatureFlags, FlagsProblem};
use crate::context;
use crate::flags::{
    Answer, Evaluated, Failure, FlagCache, FlagContext, FlagValue, Generation, InconclusiveReason, Waiter, merge,
};
use crate::pipeline::pending::{Unanswered, plain_pending_values};
use crate::pipeline::{Pending, Pipeline, pending};
use crate::report::Diagnostic;
use crate::sys::limits::{NAME_KEPT, beginning};
use crate::sys::reentry;

/// Receives the snapshot: on the caller's thread if no request is needed, else on the delivery thread.
pub(super) type Then = Box<dyn FnOnce(FeatureFlags) + Send>;

/// A flag that has a value.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FeatureFlagResult {
    /// The key of the flag.
    pub key: String,
    /// Whether the flag is on or has a variant.
    pub enabled: bool,
    /// The key of the variant. `None` for a boolean value.
    pub variant: Option<String>,
    /// The payload of the value.
    pub payload: Option<Value>,
}

/// All flags that have a value, and their payloads.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AllFlags {
    /// Values by key.
    pub feature_flags: BTreeMap<String, FlagValue>,
    /// Payloads by key. Flags without a payload are absent.
    pub feature_flag_payloads: BTreeMap<String, Value>,
}

impl Client {
    /// Evaluates all flags for a person, or those of [`FlagContext::only_keys`].
    ///
    /// This is the way to read several flags, to read a flag several times, and to put flags on events
    /// ([`Event::flags`](crate::Event::flags)): it is one evaluation, whose result does not change while a request is
    /// served.
    ///
    /// If definitions are loaded ([`Config::secret_key`](crate::Config::secret_key)), flags are evaluated locally.
    /// PostHog is asked only for flags that cannot be decided locally, with at most one request per call. Its response
    /// is cached for [`Config::flag_cache_ttl`](crate::Config::flag_cache_ttl). During an outage the last known values
    /// stay in use, however old, and [`FeatureFlags::problem`] says so. The same happens inside a logger that handles a
    /// record about the client's own requests: no request is sent there.
    ///
    /// The call never fails and takes at most [`Config::flag_request_timeout`](crate::Config::flag_request_timeout). If
    /// no request is needed, the result is available when the call returns.
    ///
    /// Follows PostHog's specification `evaluate-flags`.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::feature_flags::FlagContext;
    /// use std::time::Duration;
    ///
    /// let who = FlagContext::new("user_1").person_property("plan", "pro").group("company", "acme");
    /// if let Ok(flags) = client.evaluate_flags(who).wait(Duration::from_secs(4)) {
    ///     println!("{} flags, checkout: {:?}", flags.len(), flags.get("new-checkout"));
    /// }
    /// ```
    pub fn evaluate_flags(&self, who: impl Into<FlagContext>) -> Pending<FeatureFlags> {
        let (promise, pending) = pending::pending();
        self.evaluate(who.into(), Box::new(|flags| promise.answer(flags)));
        pending
    }

    /// The flags that are known without a request: evaluated locally, or from an earlier response for the same context
    /// and keys (or for all flags), however old. Returns at once, on this thread.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::Event;
    ///
    /// // An event with the flags that are known. Nothing waits for a request.
    /// client.capture(Event::new("checkout_shown", "user_1").flags(&client.known_flags("user_1")));
    /// ```
    pub fn known_flags(&self, who: impl Into<FlagContext>) -> FeatureFlags {
        let client = match self.for_flags() {
            Ok(client) => client,
            Err(problem) => return FeatureFlags::empty(Some(problem)),
        };
        let (shared, pipeline) = (&client.shared, client.shared.pipeline.as_ref());
        match (shared.complete(who.into()), pipeline) {
            (Ok(context), Some(pipeline)) => {
                let local = Local::evaluate(pipeline, &context, shared);
                let is_enough = local.is_complete || context.only_locally == Some(true);
                let known = if is_enough { None } else { shared.flags.cache.known(&context) };
                local.snapshot(&known.unwrap_or_default(), context, shared)
            }
            (Err(problem), _) => FeatureFlags::empty(problem),
            (Ok(_), None) => FeatureFlags::empty(Some(FlagsProblem::Disabled)),
        }
    }

    /// Whether a flag is on or has a variant. `false` if it has no value, because it does not exist or cannot be
    /// evaluated now. To evaluate several flags, use [`evaluate_flags`](Self::evaluate_flags).
    ///
    /// Without [`Config::secret_key`](crate::Config::secret_key) a read asks PostHog, unless it was answered within
    /// [`Config::flag_cache_ttl`](crate::Config::flag_cache_ttl). In an outage that takes up to 300 ms if connections are
    /// refused, and up to [`Config::flag_request_timeout`](crate::Config::flag_request_timeout) if PostHog hangs.
    ///
    /// ```
    /// # async fn demo(client: posthog::Client) {
    /// if client.is_feature_enabled("new-checkout", "user_1").await {
    ///     // ...
    /// }
    /// # }
    /// ```
    pub fn is_feature_enabled(&self, key: impl AsRef<str>, who: impl Into<FlagContext>) -> Pending<bool> {
        self.is_feature_enabled_or(key, who, false)
    }

    /// Like [`is_feature_enabled`](Self::is_feature_enabled), and as long in an outage, with the result for a flag that
    /// has no value, for whatever reason: an unknown flag, an outage, a client that is disabled or closed. To evaluate several flags, use
    /// [`evaluate_flags`](Self::evaluate_flags).
    pub fn is_feature_enabled_or(
        &self,
        key: impl AsRef<str>,
        who: impl Into<FlagContext>,
        default: bool,
    ) -> Pending<bool> {
        self.read_one(key.as_ref(), who.into(), default, move |_, flag| {
            flag.map_or(default, |flag| flag.value.is_enabled())
        })
    }

    /// The value of a flag: on, off, or a variant. `None` if it has no value. To read several flags, or a flag and its
    /// payload, use [`evaluate_flags`](Self::evaluate_flags).
    pub fn get_feature_flag(&self, key: impl AsRef<str>, who: impl Into<FlagContext>) -> Pending<Option<FlagValue>> {
        self.read_one(key.as_ref(), who.into(), None, |_, flag| flag.map(|flag| flag.value.clone()))
    }

    /// The value of a flag with its payload. `None` if it has no value. To read several flags, use
    /// [`evaluate_flags`](Self::evaluate_flags).
    pub fn get_feature_flag_result(
        &self,
        key: impl AsRef<str>,
        who: impl Into<FlagContext>,
    ) -> Pending<Option<FeatureFlagResult>> {
        self.read_one(key.as_ref(), who.into(), None, |key, flag| {
            flag.map(|flag| FeatureFlagResult {
                key: key.to_owned(),
                enabled: flag.value.is_enabled(),
                variant: flag.value.variant().map(str::to_owned),
                payload: flag.payload.clone(),
            })
        })
    }

    /// The payload of a flag's value. Captures nothing. To read the value and its payload, use
    /// [`evaluate_flags`](Self::evaluate_flags).
    pub fn get_feature_flag_payload(
        &self,
        key: impl AsRef<str>,
        who: impl Into<FlagContext>,
    ) -> Pending<Option<Value>> {
        let (promise, pending) = pending::pending();
        let key = key.as_ref().to_owned();
        self.evaluate(who.into().only_keys([&key]), Box::new(move |flags| promise.answer(flags.payload(&key))));
        pending
    }

    /// The payload that belongs to a given value of a flag, whichever value the person has. If definitions are loaded,
    /// this needs no evaluation. Otherwise PostHog returns only the payload of the person's own value, and the result
    /// is `None` for any other value. Captures nothing. For the person's own value, use
    /// [`evaluate_flags`](Self::evaluate_flags).
    pub fn get_feature_flag_payload_of(
        &self,
        key: impl AsRef<str>,
        who: impl Into<FlagContext>,
        value: impl Into<FlagValue>,
    ) -> Pending<Option<Value>> {
        let (key, value) = (key.as_ref().to_owned(), value.into());
        let who = who.into().only_keys([&key]);
        #[cfg(feature = "testing")]
        let is_defined = !self.is_set_by_test(&key, &who);
        #[cfg(not(feature = "testing"))]
        let is_defined = true;
        if is_defined && let Some(payload) = self.defined_payload(&key, &value) {
            return pending::answered(Some(payload));
        }
        let (promise, pending) = pending::pending();
        let then = move |flags: FeatureFlags| {
            let flag = flags.peek(&key).filter(|flag| flag.value == value);
            promise.answer(flag.and_then(|flag| flag.payload.clone()));
        };
        self.evaluate(who, Box::new(then));
        pending
    }

    /// All flags that have a value. Empty if nothing is known, partial if not everything is. Captures nothing. To make
    /// decisions with flags, read them from [`evaluate_flags`](Self::evaluate_flags), which reports the reads to
    /// PostHog.
    pub fn get_all_flags(&self, who: impl Into<FlagContext>) -> Pending<BTreeMap<String, FlagValue>> {
        let (promise, pending) = pending::pending();
        self.evaluate(who.into(), Box::new(|flags| promise.answer(all_of(&flags).feature_flags)));
        pending
    }

    /// All flags that have a value, with their payloads. Captures nothing, unlike reads of a snapshot
    /// ([`evaluate_flags`](Self::evaluate_flags)).
    pub fn get_all_flags_and_payloads(&self, who: impl Into<FlagContext>) -> Pending<AllFlags> {
        let (promise, pending) = pending::pending();
        self.evaluate(who.into(), Box::new(|flags| promise.answer(all_of(&flags))));
        pending
    }

    /// Requests a person's flags from PostHog even if they are known, and caches the response.
    pub fn reload_feature_flags(&self, who: impl Into<FlagContext>) -> Pending<FeatureFlags> {
        self.evaluate_flags(who.into().ask_posthog(true))
    }

    /// Reads one flag. The read counts when the result is taken.
    fn read_one<T: Unanswered + 'static>(
        &self,
        key: &str,
        who: FlagContext,
        instead: T,
        read: impl FnOnce(&str, Option<&Evaluated>) -> T + Send + 'static,
    ) -> Pending<T> {
        let (promise, pending) = pending::pending_or(instead);
        let key = key.to_owned();
        let who = who.only_keys([&key]);
        let then = move |flags: FeatureFlags| {
            let answer = read(&key, flags.peek(&key));
            promise.answer_and(answer, move || {
                let _captured = flags.read(&key);
            });
        };
        self.evaluate(who, Box::new(then));
        pending
    }

    fn evaluate(&self, who: FlagContext, then: Then) {
        match self.for_flags() {
            Ok(client) => client.shared.evaluate(who, then),
            Err(problem) => then(FeatureFlags::empty(Some(problem))),
        }
    }

    /// The client that evaluates flags in this process: this one, or in a forked child the child's own, opened if
    /// necessary.
    pub(super) fn for_flags(&self) -> Result<Client, FlagsProblem> {
        match &self.shared.pipeline {
            None => Err(FlagsProblem::Disabled),
            Some(pipeline) if pipeline.is_forked() => self.shared.child_or_open(pipeline).ok_or(FlagsProblem::Closed),
            Some(_) => Ok(self.clone()),
        }
    }

    /// The payload that the loaded definitions give to this value.
    fn defined_payload(&self, key: &str, value: &FlagValue) -> Option<Value> {
        let client = self.for_flags().ok()?;
        let loaded = client.shared.pipeline.as_ref()?.definitions()?.current()?;
        loaded.flags.payload(key, value.into()).cloned()
    }

    /// Records a diagnostic, in a forked child with the child's own client.
    pub(super) fn record(&self, diagnostic: Diagnostic) {
        if let Ok(client) = self.for_flags() {
            client.shared.diagnostics.record(diagnostic);
        }
    }
}

impl Shared {
    fn evaluate(self: &Arc<Self>, who: FlagContext, then: Then) {
        let Some(pipeline) = &self.pipeline else { return then(FeatureFlags::empty(Some(FlagsProblem::Disabled))) };
        let context = match self.complete(who) {
            Ok(context) => context,
            Err(problem) => return then(FeatureFlags::empty(problem)),
        };
        #[cfg(feature = "testing")]
        if self.flags.are_set_by_test(&context) {
            return then(FeatureFlags::new(Answer::default(), context, Arc::downgrade(self), false));
        }
        let local = Local::evaluate(pipeline, &context, self);
        let is_enough = local.is_complete && !context.is_remote;
        if is_enough || context.only_locally == Some(true) {
            return then(local.snapshot(&Answer::default(), context, self));
        }
        if reentry::inside().refuses_captures() {
            // A logger that evaluates flags also handles records about the client's own requests, so each request would
            // cause the next one.
            let known = self.flags.cache.known(&context).map(|known| Answer::clone(&known)).unwrap_or_default();
            return then(local.snapshot(&Answer { failure: Some(Failure::Reentrant), ..known }, context, self));
        }
        self.request(pipeline, context, local, then);
    }

    /// Requests undecided flags from PostHog, through the cache.
    fn request(self: &Arc<Self>, pipeline: &Pipeline, context: FlagContext, local: Local, then: Then) {
        let (client, is_remote) = (Arc::downgrade(self), context.is_remote);
        let (unknown, generation) = (local.unknown, local.generation);
        let requested = context.clone();
        let waiter: Waiter = Box::new(move |answer| {
            // A caller that requested PostHog's values gets local ones only if the request failed.
            let ours = if is_remote && answer.failure.is_none() { BTreeMap::new() } else { local.flags };
            let merged = merge(ours, answer, context.flag_keys.as_deref());
            then(FeatureFlags::new(merged, context, client, local.wants_minimal_events));
        });
        let cache = &self.flags.cache;
        let in_flight = match is_remote {
            true => Some(FlagCache::request_anew(cache, &requested, waiter)),
            false => FlagCache::request(cache, &requested, waiter),
        };
        let Some(in_flight) = in_flight else { return };
        let missing = Arc::clone(&self.flags.missing);
        let finish = move |result: Result<Answer, _>| {
            if let (Ok(answer), Some(generation)) = (&result, generation) {
                let is_complete = !answer.has_errors && !answer.is_quota_limited;
                let absent = unknown.iter().filter(|key| is_complete && !answer.flags.contains_key(*key));
                absent.for_each(|key| missing.insert(generation, key));
            }
            in_flight.finish(result);
        };
        pipeline.request_flags(requested, Box::new(finish));
    }

    /// Adds the defaults and overrides to a context. `Err`: no flag has a value, and why (`None` if no flags were
    /// requested).
    fn complete(&self, who: FlagContext) -> Result<FlagContext, Option<FlagsProblem>> {
        let mut context = who;
        for name in context.unserializable.drain(..) {
            let what = format!(
                "property {:?} of a FlagContext was left out: it cannot be serialized",
                beginning(&name, NAME_KEPT)
            );
            self.diagnostics.record(Diagnostic::InputIgnored { what });
        }
        if context.distinct_id.is_none() {
            context.distinct_id = context::current_distinct_id();
        }
        if context.distinct_id.as_deref().is_none_or(|distinct_id| distinct_id.trim().is_empty()) {
            if !self.flags.reported_nobody.swap(true, Ordering::Relaxed) {
                let what = "flags were evaluated without a distinct id and have no values: give the FlagContext a \
                            distinct id, or enter a Context that has one"
                    .to_owned();
                self.diagnostics.record(Diagnostic::InputIgnored { what });
            }
            return Err(Some(FlagsProblem::Nobody));
        }
        if context.flag_keys.as_ref().is_some_and(Vec::is_empty) {
            return Err(None);
        }
        // `ask_posthog` of a call takes precedence over the configuration, and so does `only_locally`.
        let by_default = self.flags.settings.only_locally && !context.is_remote;
        context.only_locally.get_or_insert(by_default);
        context.disable_geoip.get_or_insert(self.settings.disable_geoip);
        self.flags.overrides().apply_to(&mut context);
        Ok(context)
    }
}

/// The result of a local evaluation.
#[derive(Default)]
struct Local {
    flags: BTreeMap<String, Evaluated>,
    /// All requested flags are decided.
    is_complete: bool,
    /// Requested keys that the definitions do not contain.
    unknown: Vec<String>,
    /// The generation of `unknown`. `None` without definitions.
    generation: Option<Generation>,
    wants_minimal_events: bool,
}

impl Local {
    fn evaluate(pipeline: &Pipeline, context: &FlagContext, shared: &Shared) -> Self {
        let Some(loader) = pipeline.definitions() else { return Self::default() };
        // Read before the definitions: an older generation with newer definitions is harmless, the opposite is not.
        let generation = shared.flags.missing.generation(loader.generation());
        let Some(loaded) = loader.current() else { return Self::default() };
        let now = pipeline.options().clock.wall_nanos();
        let mut local = Self {
            is_complete: true,
            generation: Some(generation),
            wants_minimal_events: loaded.flags.wants_minimal_events(),
            ..Self::default()
        };
        for (key, result) in loaded.flags.evaluate_all(context, now) {
            match result {
                Ok(flag) => drop(local.flags.insert(key, flag)),
                // If a request is made for other flags anyway, it includes these: they may exist by now.
                Err(InconclusiveReason::UnknownFlag) if shared.flags.missing.contains(generation, &key) => {}
                Err(why) => {
                    local.is_complete = false;
                    if why == InconclusiveReason::UnknownFlag {
                        local.unknown.push(key);
                    }
                }
            }
        }
        local
    }

    fn snapshot(self, remote: &Answer, context: FlagContext, shared: &Arc<Shared>) -> FeatureFlags {
        let merged = merge(self.flags, remote, context.flag_keys.as_deref());
        FeatureFlags::new(merged, context, Arc::downgrade(shared), self.wants_minimal_events)
    }
}

fn all_of(flags: &FeatureFlags) -> AllFlags {
    let mut all = AllFlags::default();
    for (key, flag) in flags.values() {
        all.feature_flags.insert(key.to_owned(), flag.value.clone());
        if let Some(payload) = &flag.payload {
            all.feature_flag_payloads.insert(key.to_owned(), payload.clone());
        }
    }
    all
}

plain_pending_values!(
    FeatureFlags,
    bool,
    Option<FlagValue>,
    Option<Value>,
    Option<FeatureFlagResult>,
    BTreeMap<String, FlagValue>,
    AllFlags
);

impl Unanswered for FeatureFlags {
    fn closed() -> Self {
        FeatureFlags::empty(Some(FlagsProblem::Closed))
    }
}

/// Results that are their default if the client is closed.
macro_rules! without_value {
    ($($answer:ty),*) => {
        $(impl Unanswered for $answer {
            fn closed() -> Self {
                Self::default()
            }
        })*
    };
}

without_value!(
    bool,
    Option<FlagValue>,
    Option<Value>,
    Option<FeatureFlagResult>,
    BTreeMap<String, FlagValue>,
    AllFlags
);
