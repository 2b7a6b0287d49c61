//! From a context to a snapshot: here if that is enough, else with PostHog's help.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::Value;

use super::super::{Client, Shared};
use super::problem::FlagsProblem;
use super::snapshot::FeatureFlags;
use crate::context;
use crate::diagnostics::Diagnostic;
use crate::flags::{
    Answer, Evaluated, Failure, FlagCache, FlagContext, FlagValue, InconclusiveReason, LoadedFlags, Moment, Question,
    Waiter, merge,
};
use crate::pipeline::{Pending, Pipeline, pending};
use crate::sys::limits::{NAME_KEPT, beginning};
use crate::sys::reentry;

/// Gets the snapshot: on the caller's thread if no request is needed, else on the delivery's.
pub(super) type Then = Box<dyn FnOnce(FeatureFlags) + Send>;

impl Client {
    /// Evaluates flags for somebody: all of them, or those of [`FlagContext::only_keys`]. This is the way to read several flags, or one
    /// several times, and to have them on events ([`Event::flags`](crate::Event::flags)): one evaluation, whose result does not change
    /// while a request is being served.
    ///
    /// With definitions ([`Config::secret_key`](crate::Config::secret_key)) flags are evaluated here, without a request. PostHog is asked only for
    /// what cannot be decided here, at most once for a call, and what it answers is kept for
    /// [`Config::flag_cache_ttl`](crate::Config::flag_cache_ttl). In an outage what is known stands, however old, and
    /// [`FeatureFlags::problem`] says so; likewise in a logger that hears of the client's own requests, where PostHog is not asked. Never an
    /// error; never longer than
    /// [`Config::flag_request_timeout`](crate::Config::flag_request_timeout). What needs no request is there when the call returns.
    ///
    /// Follows PostHog's specification `evaluate-flags`.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::FlagContext;
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

    /// What is known of flags without asking PostHog: evaluated here, or answered before for the same context and keys (or for all flags),
    /// however long ago. At once, on this thread.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::Event;
    ///
    /// // An event that never waits for anybody, with what is known.
    /// client.capture(Event::new("checkout_shown", "user_1").flags(&client.known_flags("user_1")));
    /// ```
    pub fn known_flags(&self, who: impl Into<FlagContext>) -> FeatureFlags {
        let client = match self.for_flags() {
            Ok(client) => client,
            Err(problem) => return FeatureFlags::nothing(Some(problem)),
        };
        let (shared, pipeline) = (&client.shared, client.shared.pipeline.as_ref());
        match (shared.settle(who.into()), pipeline) {
            (Ok(context), Some(pipeline)) => {
                let here = Here::of(pipeline, &context, shared);
                let is_enough = here.is_all || context.only_locally == Some(true);
                let known = if is_enough { None } else { shared.flags.cache.known(&context) };
                here.snapshot(&known.unwrap_or_default(), context, shared)
            }
            (Err(problem), _) => FeatureFlags::nothing(problem),
            (Ok(_), None) => FeatureFlags::nothing(Some(FlagsProblem::Disabled)),
        }
    }

    /// Evaluates, and asks PostHog if need be; `then` gets what came of it.
    pub(super) fn evaluate(&self, who: FlagContext, then: Then) {
        match self.for_flags() {
            Ok(client) => client.shared.evaluate(who, then),
            Err(problem) => then(FeatureFlags::nothing(Some(problem))),
        }
    }

    /// The client that evaluates flags in this process: this one, or in a forked child the one that takes its place, opened if need be.
    pub(super) fn for_flags(&self) -> Result<Client, FlagsProblem> {
        match &self.shared.pipeline {
            None => Err(FlagsProblem::Disabled),
            Some(pipeline) if pipeline.is_forked() => self.shared.child_or_open(pipeline).ok_or(FlagsProblem::Closed),
            Some(_) => Ok(self.clone()),
        }
    }

    /// The payload that the definitions give a flag of that value.
    pub(super) fn defined_payload(&self, key: &str, value: &FlagValue) -> Option<Value> {
        let client = self.for_flags().ok()?;
        let loaded = client.shared.pipeline.as_ref()?.local_flags()?;
        loaded.flags.payload(key, value.into()).cloned()
    }

    /// In a forked child with the child's own ears, if it has any.
    pub(super) fn record(&self, diagnostic: Diagnostic) {
        if let Ok(client) = self.for_flags() {
            client.shared.diagnostics.record(diagnostic);
        }
    }
}

impl Shared {
    fn evaluate(self: &Arc<Self>, who: FlagContext, then: Then) {
        let Some(pipeline) = &self.pipeline else { return then(FeatureFlags::nothing(Some(FlagsProblem::Disabled))) };
        let context = match self.settle(who) {
            Ok(context) => context,
            Err(problem) => return then(FeatureFlags::nothing(problem)),
        };
        let here = Here::of(pipeline, &context, self);
        let is_enough = here.is_all && !context.is_remote;
        if is_enough || context.only_locally == Some(true) {
            return then(here.snapshot(&Answer::default(), context, self));
        }
        if reentry::inside().refuses_captures() {
            // A logger that evaluates flags hears of our own requests, on threads of ours: each would be the cause of the next.
            let known = self.flags.cache.known(&context).map(|known| Answer::clone(&known)).unwrap_or_default();
            return then(here.snapshot(&Answer { failure: Some(Failure::Reentrant), ..known }, context, self));
        }
        let (client, is_remote) = (Arc::downgrade(self), context.is_remote);
        let (question, unknown, moment) = (question(&context), here.unknown.clone(), here.moment);
        let asked = context.clone();
        let waiter: Waiter = Box::new(move |answer| {
            // Who insists on PostHog gets ours only if there is no answer.
            let ours = if is_remote && answer.failure.is_none() { BTreeMap::new() } else { here.flags };
            let merged = merge(ours, answer, context.flag_keys.as_deref());
            then(FeatureFlags::new(merged, context, client, here.wants_minimal_events));
        });
        let cache = &self.flags.cache;
        let flight = match is_remote {
            true => Some(FlagCache::ask_anew(cache, &asked, waiter)),
            false => FlagCache::ask(cache, &asked, waiter),
        };
        let Some(flight) = flight else { return };
        let missing = Arc::clone(&self.flags.missing);
        let landing = move |result: Result<Answer, _>| {
            if let (Ok(answer), Some(moment)) = (&result, moment) {
                let is_whole = !answer.has_errors && !answer.is_quota_limited;
                let absent = unknown.iter().filter(|key| is_whole && !answer.flags.contains_key(*key));
                absent.for_each(|key| missing.add(moment, key));
            }
            flight.land(result);
        };
        pipeline.ask_flags(question, Box::new(landing));
    }

    /// The context with everything in it that PostHog would be told. An error for one that has no flags: without a problem, if none
    /// were asked for.
    fn settle(&self, who: FlagContext) -> Result<FlagContext, Option<FlagsProblem>> {
        let mut context = who;
        for name in context.unserializable.drain(..) {
            let what = format!(
                "property {:?} of a FlagContext was left out: it cannot be serialized",
                beginning(&name, NAME_KEPT)
            );
            self.diagnostics.record(Diagnostic::Invalid { what });
        }
        if context.distinct_id.is_none() {
            context.distinct_id = context::current_distinct_id();
        }
        if context.distinct_id.as_deref().is_none_or(|distinct_id| distinct_id.trim().is_empty()) {
            if !self.flags.told_of_nobody.swap(true, Ordering::Relaxed) {
                let what = "flags were evaluated for nobody and have no values: give the FlagContext a distinct id, or enter a Context that has one".to_owned();
                self.diagnostics.record(Diagnostic::Invalid { what });
            }
            return Err(Some(FlagsProblem::Nobody));
        }
        if context.flag_keys.as_ref().is_some_and(Vec::is_empty) {
            return Err(None);
        }
        // Who insists on PostHog in one call means it; who says that nobody is to be asked in that call does, too.
        let by_default = self.flags.settings.only_locally && !context.is_remote;
        context.only_locally.get_or_insert(by_default);
        context.disable_geoip.get_or_insert(self.settings.disable_geoip);
        self.flags.overrides().apply_to(&mut context);
        Ok(context)
    }
}

/// What was evaluated here.
#[derive(Default)]
struct Here {
    flags: BTreeMap<String, Evaluated>,
    /// Nothing is left open.
    is_all: bool,
    /// Keys that are not among the definitions.
    unknown: Vec<String>,
    /// When that was so; `None` without definitions.
    moment: Option<Moment>,
    wants_minimal_events: bool,
}

impl Here {
    fn of(pipeline: &Pipeline, context: &FlagContext, shared: &Shared) -> Self {
        // Asked first: what is learnt of older definitions must not be taken for knowledge of newer ones.
        let moment = shared.flags.missing.moment(pipeline.flags_generation());
        let Some(LoadedFlags { flags: definitions, .. }) = pipeline.local_flags() else { return Self::default() };
        let now = pipeline.options().clock.wall_nanos();
        let found = definitions.evaluate_all(context, context.flag_keys.as_deref(), now);
        let mut unresolved = found.unresolved;
        // Where PostHog is asked in any case, it is asked for these too, and may have learnt of them.
        unresolved
            .retain(|(key, why)| *why != InconclusiveReason::UnknownFlag || !shared.flags.missing.has(moment, key));
        let is_unknown = |(key, why): &(String, _)| (*why == InconclusiveReason::UnknownFlag).then(|| key.clone());
        Self {
            flags: found.flags,
            is_all: unresolved.is_empty(),
            unknown: unresolved.iter().filter_map(is_unknown).collect(),
            moment: Some(moment),
            wants_minimal_events: definitions.wants_minimal_events(),
        }
    }

    fn snapshot(self, remote: &Answer, context: FlagContext, shared: &Arc<Shared>) -> FeatureFlags {
        let merged = merge(self.flags, remote, context.flag_keys.as_deref());
        FeatureFlags::new(merged, context, Arc::downgrade(shared), self.wants_minimal_events)
    }
}

fn question(context: &FlagContext) -> Question {
    Question {
        distinct_id: context.distinct_id.clone().unwrap_or_default(),
        device_id: context.device_id.clone(),
        groups: context.groups.clone(),
        person_properties: context.person_properties.clone(),
        group_properties: context.group_properties.clone(),
        disable_geoip: context.disable_geoip == Some(true),
        flag_keys: context.flag_keys.clone(),
        insists: context.is_remote,
    }
}
