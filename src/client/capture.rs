//! The calls that capture events: everything from the event to its receipt, on the caller's thread.
//!
//! `prepare` does everything that comes before the journal, in the order that PostHog's specification gives: opt-out,
//! identity, validation, context and super properties, hooks. `append` copies the finished record into the journal.
//! Calls about persons and groups build an event and capture it; `capture_immediate` also waits for the delivery of its
//! event.

use std::sync::atomic::Ordering;

use serde::Serialize;
use uuid::Uuid;

use super::receipt::{Outcome, Receipt};
use super::{Client, Shared};
use crate::config::BeforeSend;
use crate::context::{self, Context};
use crate::crash;
use crate::event::{Event, Record, Refusal, uuids};
use crate::pipeline::{Pending, Pipeline, pending};
use crate::report::{DeliveryReport, Diagnostic, DropReason};
use crate::sys::clock::WallNanos;
use crate::sys::limits::{DETAIL_KEPT, NAME_KEPT, beginning};
use crate::sys::reentry;

impl Client {
    /// Captures an event. Never panics, does no I/O, and does not block, unless
    /// [`OverflowPolicy::Block`](crate::settings::OverflowPolicy::Block) says so. The event's bytes are copied into a
    /// memory-mapped journal; when the receipt says [`Accepted`](crate::Outcome::Accepted), the event survives the
    /// process.
    ///
    /// Two cases take longer. While the queue's file system is frozen (`fsfreeze`, a snapshot) or does not respond, one
    /// capture may wait for it, because a write to the mapped memory waits; other threads get
    /// [`JournalBusy`](crate::DropReason::JournalBusy) after 50 ms. The first capture in a forked child opens a queue
    /// of the child's own: file I/O of about 50 ms, and at most 30 s if the disk does not respond. A daemon that forks
    /// should create its client afterwards.
    ///
    /// Not async-signal-safe: do not call it from a signal handler.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::{Event, Outcome};
    ///
    /// let receipt = client.capture(Event::new("run_started", "user_1").prop("spec_count", 3));
    /// if let Outcome::Dropped(reason) = receipt.outcome() {
    ///     eprintln!("not accepted: {reason}");
    /// }
    /// ```
    pub fn capture(&self, event: Event) -> Receipt {
        let Some(pipeline) = &self.shared.pipeline else {
            self.shared.count(DropReason::Disabled);
            return Receipt::dropped(DropReason::Disabled);
        };
        if pipeline.is_forked() {
            return self.capture_in_child(pipeline, event);
        }
        if event.is_exception() {
            self.shared.warn_of_manual_exceptions();
        }
        self.shared.capture(pipeline, event)
    }

    #[cold]
    fn capture_in_child(&self, parent: &Pipeline, event: Event) -> Receipt {
        match self.shared.child_or_open(parent) {
            Some(child) => child.capture(event),
            None => {
                self.shared.count(DropReason::Forked);
                Receipt::dropped(DropReason::Forked)
            }
        }
    }
}

impl Shared {
    pub(super) fn capture(&self, pipeline: &Pipeline, event: Event) -> Receipt {
        match self.prepare(pipeline, event) {
            Ok(prepared) => self.append(pipeline, prepared),
            Err(reason) => Receipt::dropped(reason),
        }
    }

    /// Everything before the journal, in the order that PostHog's specification gives. Counts and reports a drop.
    // Inlined, because a call would cost each capture a copy of the prepared event.
    #[inline(always)]
    pub(super) fn prepare(&self, pipeline: &Pipeline, event: Event) -> Result<Prepared, DropReason> {
        self.prepare_and(pipeline, event, |_| ())
    }

    /// As [`prepare`](Self::prepare); `change` edits the event after the hooks.
    #[inline(always)]
    pub(super) fn prepare_and(
        &self,
        pipeline: &Pipeline,
        event: Event,
        change: impl FnOnce(&mut Event),
    ) -> Result<Prepared, DropReason> {
        if self.rules.is_opted_out() {
            self.count(DropReason::OptedOut);
            return Err(DropReason::OptedOut);
        }
        let inside = reentry::inside();
        if inside.refuses_captures() {
            // Not recorded as a diagnostic: the hook for diagnostics may be what captures this event.
            self.count(DropReason::Reentrant);
            return Err(DropReason::Reentrant);
        }
        let now_nanos = pipeline.options().clock.wall_nanos();
        let uuid = uuids::next(now_nanos, pipeline.generation());
        let mut event = event;
        let context = context::current();
        if event.is_anonymous() {
            attribute(&mut event, context.as_ref(), &uuids::next(now_nanos, pipeline.generation()));
        }
        if let Err(refusal) = event.check() {
            return Err(self.refuse(&refusal, event.name()));
        }
        if let Some(context) = context {
            self.add_context(&mut event, &context);
        }
        event = self.enrich(event);
        if !inside.before_send
            && let Some(hooks) = self.rules.before_send()
        {
            event = self.run_hooks(&hooks, event.stamped(uuid, now_nanos))?;
            // Checked again: a hook may have made the event invalid.
            if let Err(refusal) = event.check() {
                return Err(self.refuse(&refusal, event.name()));
            }
        }
        change(&mut event);
        match event.finish(uuid, now_nanos, pipeline.options().max_event_bytes) {
            Ok(record) => Ok(Prepared { record, now_nanos }),
            Err(refusal) => Err(self.refuse(&refusal, "")),
        }
    }

    #[inline(always)]
    pub(super) fn append(&self, pipeline: &Pipeline, prepared: Prepared) -> Receipt {
        let Prepared { record, now_nanos } = prepared;
        match pipeline.append(record.body(), record.class as u8) {
            Ok(seq) => {
                if self.is_armed.load(Ordering::Relaxed) && self.settings.breadcrumb_events {
                    crash::record_breadcrumb(record.name(), now_nanos);
                }
                let receipt = Receipt::accepted(record.uuid, seq, pipeline);
                record.recycle();
                receipt
            }
            Err(reason) => self.turn_away(pipeline, reason, &record, now_nanos),
        }
    }

    /// Adds the properties that every event gets, unless the event has them.
    #[inline(always)]
    fn enrich(&self, event: Event) -> Event {
        let mut event = event;
        if self.settings.disable_geoip {
            event = event.disable_geoip();
        }
        if self.settings.exact_timestamps && !event.has("$ignore_sent_at") {
            event.set_prop("$ignore_sent_at", true);
        }
        if let Some(pairs) = self.rules.super_properties() {
            event.add_absent(&pairs);
        }
        if !self.settings.release.is_empty() || event.is_exception() {
            self.add_own_facts(&mut event);
        }
        event
    }

    /// Adds the release, and to an exception the operating system, unless the event is about an earlier process.
    #[inline(never)]
    fn add_own_facts(&self, event: &mut Event) {
        if event.has_process_facts() {
            return;
        }
        event.add_absent(&self.settings.release);
        if event.is_exception() {
            event.add_absent(&self.settings.system);
        }
    }

    #[cold]
    fn add_context(&self, event: &mut Event, context: &Context) {
        event.add_absent(context.properties());
        for problem in context.take_problems() {
            self.diagnostics.record(Diagnostic::InputIgnored { what: problem.clone() });
        }
    }

    fn run_hooks(&self, hooks: &[BeforeSend], event: Event) -> Result<Event, DropReason> {
        let mut event = event;
        for hook in hooks {
            let name = beginning(event.name(), NAME_KEPT).to_owned();
            match reentry::calling_before_send(|| reentry::caught(|| hook.look_at(event))) {
                Some(Some(changed)) => event = changed,
                Some(None) => {
                    self.count(DropReason::BeforeSend);
                    return Err(DropReason::BeforeSend);
                }
                None => {
                    // Data that the hook removes may still be in the event: it must not reach the disk.
                    self.count(DropReason::BeforeSendPanicked);
                    self.diagnostics.record(Diagnostic::CallbackPanicked { callback: "before_send" });
                    self.report_drop(DropReason::BeforeSendPanicked, &name, "a before_send hook panicked on it");
                    return Err(DropReason::BeforeSendPanicked);
                }
            }
        }
        Ok(event)
    }

    #[cold]
    pub(super) fn warn_of_manual_exceptions(&self) {
        if !self.warned_of_exceptions.swap(true, Ordering::Relaxed) {
            self.diagnostics.record(Diagnostic::ManualException);
        }
    }

    #[cold]
    fn refuse(&self, refusal: &Refusal, name: &str) -> DropReason {
        let (reason, name) = match refusal {
            Refusal::EmptyName => (DropReason::EmptyName, name),
            Refusal::EmptyDistinctId => (DropReason::EmptyDistinctId, name),
            Refusal::EmptyAlias => (DropReason::EmptyAlias, name),
            Refusal::EmptyGroupType => (DropReason::EmptyGroupType, name),
            Refusal::EmptyGroupKey => (DropReason::EmptyGroupKey, name),
            Refusal::NothingToSet => (DropReason::NothingToSet, name),
            Refusal::Unserializable { .. } => (DropReason::Unserializable, name),
            Refusal::TimestampOutOfRange => (DropReason::TimestampOutOfRange, name),
            Refusal::TooLarge { name, .. } => (DropReason::TooLarge, &**name),
        };
        self.count(reason);
        self.report_drop(reason, name, &refusal.describe());
        reason
    }

    #[cold]
    fn turn_away(&self, pipeline: &Pipeline, reason: DropReason, record: &Record, now_nanos: WallNanos) -> Receipt {
        self.count(reason);
        let detail = || match pipeline.low_disk_space().filter(|_| reason == DropReason::DiskFull) {
            Some(diagnostic) => diagnostic.to_string(),
            None => pipeline.circumstances().explain(reason),
        };
        self.diagnostics.record_drop(reason, record.name(), detail, now_nanos);
        Receipt::dropped(reason)
    }

    pub(super) fn count(&self, reason: DropReason) {
        if let Some(count) = self.refusals.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn refusal_counts(&self) -> Vec<u64> {
        self.refusals.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    fn report_drop(&self, reason: DropReason, event: &str, detail: &str) {
        // Diagnostics are kept in memory, so their texts are bounded.
        let event = beginning(event, NAME_KEPT).to_owned();
        let detail = beginning(detail, DETAIL_KEPT).to_owned();
        self.diagnostics.record(Diagnostic::Dropped { reason, event, detail, count: 1 });
    }
}

/// An event that is ready for the journal.
pub(super) struct Prepared {
    pub(super) record: Record,
    now_nanos: WallNanos,
}

/// Gives an anonymous event the distinct id of the context, or a fresh one.
#[cold]
fn attribute(event: &mut Event, context: Option<&Context>, fresh: &Uuid) {
    match context.and_then(Context::known_distinct_id) {
        Some(distinct_id) => event.set_distinct_id(distinct_id),
        None => event.attribute_to_nobody(&fresh.to_string()),
    }
}

impl Client {
    /// Captures `$identify`: this person exists and has these properties (`$set`). `props` is a map, a struct, or a
    /// sequence of pairs; `()` for none. Every call captures an event, also if nothing has changed. A blank id is
    /// `Dropped(EmptyDistinctId)`.
    ///
    /// [`Event::identify`] has more options:
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::Event;
    ///
    /// client.identify("user_1", [("plan", "pro")]);
    /// client.identify("user_1", ());
    /// let event = Event::identify("user_1").person_property("plan", "pro").person_property_once("source", "ads");
    /// client.capture(event.disable_geoip());
    /// ```
    pub fn identify(&self, distinct_id: impl AsRef<str>, props: impl Serialize) -> Receipt {
        self.capture(Event::identify(distinct_id).person_properties(props))
    }

    /// Sets properties of a person (a `$set` event). Without a property, the event is `Dropped(NothingToSet)`.
    /// [`Event::set_person`] has more options.
    pub fn set_person(&self, distinct_id: impl AsRef<str>, props: impl Serialize) -> Receipt {
        self.capture(Event::set_person(distinct_id).person_properties(props).must_set_something())
    }

    /// Sets those properties that the person does not have yet (a `$set` event with `$set_once`). Without a
    /// property, the event is `Dropped(NothingToSet)`.
    pub fn set_person_once(&self, distinct_id: impl AsRef<str>, props: impl Serialize) -> Receipt {
        self.capture(Event::set_person(distinct_id).person_props_once(props).must_set_something())
    }

    /// Removes properties of a person (a `$set` event with `$unset`). Properties that the person does not have are
    /// ignored. Without a key, the event is `Dropped(NothingToSet)`. To remove properties with another event:
    /// [`Event::unset_person_property`].
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// client.unset_person("user_1", ["trial_ends", "coupon"]);
    /// ```
    pub fn unset_person<K: AsRef<str>>(
        &self,
        distinct_id: impl AsRef<str>,
        keys: impl IntoIterator<Item = K>,
    ) -> Receipt {
        self.capture(Event::set_person(distinct_id).unset_person_properties(keys).must_set_something())
    }

    /// Captures `$create_alias`: `alias` and `previous_id` are the same person. A blank `previous_id` is
    /// `Dropped(EmptyDistinctId)`, a blank `alias` is `Dropped(EmptyAlias)`. [`Event::alias`] has more options.
    pub fn alias(&self, previous_id: impl AsRef<str>, alias: impl AsRef<str>) -> Receipt {
        self.capture(Event::alias(previous_id, alias))
    }

    /// Captures `$groupidentify`: this group exists and has these properties (`$group_set`). The key is a string or a
    /// number. Later events are not put into the group; [`Event::group`] does that. A blank type is
    /// `Dropped(EmptyGroupType)`, a blank key is `Dropped(EmptyGroupKey)`. [`Event::group_identify`] has more options.
    pub fn group_identify(
        &self,
        group_type: impl AsRef<str>,
        group_key: impl Serialize,
        props: impl Serialize,
    ) -> Receipt {
        self.capture(Event::group_identify(group_type, group_key).group_props(props))
    }
}

impl Client {
    /// Captures an event as [`capture`](Self::capture) does, sends it at once together with what is queued before it,
    /// and resolves with the result: PostHog has accepted it, has rejected it for good, or could not be reached, in
    /// which case the event stays queued and is sent later. Dropping the [`Pending`] loses nothing.
    ///
    /// For programs that end soon, and for the rare event whose delivery matters now: each call costs a commit and a
    /// request, unless several come together. At most 10,000 calls wait at a time; a further one resolves at once with
    /// [`DeliveryReport::Queued`].
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::Event;
    /// use posthog::reports::DeliveryReport;
    /// use std::time::Duration;
    ///
    /// match client.capture_immediate(Event::new("deployed", "ci")).wait(Duration::from_secs(5)) {
    ///     Ok(DeliveryReport::Delivered) => {}
    ///     Ok(other) => eprintln!("not delivered yet: {other}"),
    ///     Err(timeout) => eprintln!("{timeout}"),
    /// }
    /// ```
    pub fn capture_immediate(&self, event: Event) -> Pending<DeliveryReport> {
        let Some(pipeline) = &self.shared.pipeline else {
            self.shared.count(DropReason::Disabled);
            return dropped(DropReason::Disabled);
        };
        if !pipeline.is_forked() {
            return self.shared.capture_immediate(pipeline, event);
        }
        match self.shared.child_or_open(pipeline) {
            Some(child) => child.capture_immediate(event),
            None => {
                self.shared.count(DropReason::Forked);
                dropped(DropReason::Forked)
            }
        }
    }

    /// [`capture_immediate`](Self::capture_immediate) for AI events: see [`capture_ai`](Self::capture_ai).
    pub fn capture_ai_immediate(&self, event: Event) -> Pending<DeliveryReport> {
        match self.ai_lane() {
            Ok((client, ai)) => client.shared.capture_immediate(&ai, event),
            Err(reason) => dropped(reason),
        }
    }
}

impl Shared {
    fn capture_immediate(&self, pipeline: &Pipeline, event: Event) -> Pending<DeliveryReport> {
        if event.is_exception() {
            self.warn_of_manual_exceptions();
        }
        let prepared = match self.prepare(pipeline, event) {
            Ok(prepared) => prepared,
            Err(reason) => return dropped(reason),
        };
        // Registered before the append: the result may arrive before this thread continues.
        let (awaited, verdict) = pipeline.outcome_of(prepared.record.uuid);
        let receipt = self.append(pipeline, prepared);
        match receipt.outcome() {
            Outcome::Accepted => {
                pipeline.send_now(awaited, receipt.seq());
                verdict
            }
            Outcome::Dropped(reason) => {
                pipeline.forget_outcome_of(&awaited);
                dropped(reason)
            }
        }
    }
}

fn dropped(reason: DropReason) -> Pending<DeliveryReport> {
    pending::answered(DeliveryReport::Dropped(reason))
}
