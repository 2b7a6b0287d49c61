//! From an event to its receipt, on the caller's thread.

use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::receipt::Receipt;
use super::{Client, Shared};
use crate::config::BeforeSend;
use crate::context::{self, Context};
use crate::crash;
use crate::diagnostics::Diagnostic;
use crate::event::{Event, Record, Refusal, Stamp, uuids};
use crate::pipeline::{AppendError, DropReason, Pipeline};
use crate::sys::clock::WallNanos;
use crate::sys::limits::{DETAIL_KEPT, NAME_KEPT, beginning};
use crate::sys::reentry;

impl Client {
    /// Takes an event. Never blocks (unless [`OverflowPolicy::Block`](crate::OverflowPolicy::Block) says so, and then for no longer than that),
    /// never panics, and does no I/O: the event's bytes are copied into a mapped journal, and when the receipt says
    /// [`Accepted`](crate::Outcome::Accepted) it survives the process, whatever happens to that.
    ///
    /// Two exceptions. While the file system of the queue is frozen (`fsfreeze`, a snapshot) or does not answer, one capture may wait for it:
    /// the store to the mapped file does. Other threads are told [`JournalBusy`](crate::DropReason::JournalBusy) after 50 ms.
    ///
    /// And the first capture in a forked child opens a queue of the child's own, which is file I/O of some 50 ms, and at most
    /// 30 s where the disk does not answer. A daemon that forks makes its client afterwards.
    ///
    /// Not async-signal-safe: do not call it from a signal handler.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::Event;
    /// let receipt = client.capture(Event::new("run_started", "user_1").prop("spec_count", 3));
    /// if let posthog::Outcome::Dropped(reason) = receipt.outcome() {
    ///     eprintln!("not taken: {reason}");
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
            self.shared.warn_of_handmade_exceptions();
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

    /// Everything that comes before the journal, in the order that PostHog's specification gives: opt-out, identity, validation, what is
    /// added, hooks. What is refused is counted and told.
    // Always: as a call of its own it would cost each capture a copy of the prepared event, and more.
    #[inline(always)]
    pub(super) fn prepare(&self, pipeline: &Pipeline, event: Event) -> Result<Prepared, DropReason> {
        self.prepare_and(pipeline, event, |_| ())
    }

    /// The same; `change` has the last word, after the hooks.
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
            // No diagnostic: telling somebody is how we came here.
            self.count(DropReason::Reentrant);
            return Err(DropReason::Reentrant);
        }
        let now_nanos = pipeline.options().clock.wall_nanos();
        let stamp = Stamp { uuid: uuids::next(now_nanos, pipeline.generation()), now_nanos };
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
            event = self.run_hooks(&hooks, event.stamped(&stamp))?;
            // Hooks may have spoilt it; asked here, while it still has its name.
            if let Err(refusal) = event.check() {
                return Err(self.refuse(&refusal, event.name()));
            }
        }
        change(&mut event);
        match event.finish(&stamp, pipeline.options().max_event_bytes) {
            Ok(record) => Ok(Prepared { record, now_nanos }),
            Err(refusal) => Err(self.refuse(&refusal, "")),
        }
    }

    #[inline(always)]
    pub(super) fn append(&self, pipeline: &Pipeline, prepared: Prepared) -> Receipt {
        let Prepared { record, now_nanos } = prepared;
        match pipeline.append(record.body(), record.class as u8) {
            Ok(seq) => {
                if self.is_armed.load(Ordering::Relaxed) {
                    crash::record_breadcrumb(record.name(), now_nanos);
                }
                let receipt = Receipt::accepted(record.uuid, seq, pipeline);
                record.recycle();
                receipt
            }
            Err(append_error) => self.turn_away(pipeline, append_error, &record, now_nanos),
        }
    }

    /// What every event says; the caller's own word counts.
    #[inline(always)]
    fn enrich(&self, event: Event) -> Event {
        let mut event = event;
        if self.settings.disable_geoip {
            event = event.disable_geoip();
        }
        if self.settings.exact_timestamps && !event.has("$ignore_sent_at") {
            event.set("$ignore_sent_at", true);
        }
        if let Some(pairs) = self.rules.super_properties() {
            event.add_absent(&pairs);
        }
        event
    }

    #[cold]
    fn add_context(&self, event: &mut Event, context: &Context) {
        event.add_absent(context.properties());
        for problem in context.take_problems() {
            self.diagnostics.record(Diagnostic::Invalid { what: problem.clone() });
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
                    // What the hook was to remove may still be in it: it must not reach the disk.
                    self.count(DropReason::BeforeSendPanicked);
                    self.diagnostics.record(Diagnostic::CallbackPanicked { callback: "before_send" });
                    self.tell(
                        DropReason::BeforeSendPanicked,
                        &name,
                        "a before_send hook panicked while it looked at it",
                        1,
                    );
                    return Err(DropReason::BeforeSendPanicked);
                }
            }
        }
        Ok(event)
    }

    #[cold]
    pub(super) fn warn_of_handmade_exceptions(&self) {
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
        self.tell(reason, name, &refusal.describe(), 1);
        reason
    }

    #[cold]
    fn turn_away(
        &self,
        pipeline: &Pipeline,
        append_error: AppendError,
        record: &Record,
        now_nanos: WallNanos,
    ) -> Receipt {
        let reason = DropReason::from(append_error);
        self.count(reason);
        let detail = || match pipeline.floor().filter(|_| reason == DropReason::DiskFull) {
            Some(floor) => Diagnostic::from(floor).to_string(),
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

    fn tell(&self, reason: DropReason, event: &str, detail: &str, count: u64) {
        // Diagnostics are kept: a program that captures nonsense must not fill its memory with them.
        let event = beginning(event, NAME_KEPT).to_owned();
        let detail = beginning(detail, DETAIL_KEPT).to_owned();
        self.diagnostics.record(Diagnostic::Dropped { reason, event, detail, count });
    }
}

/// An event that is ready for the journal.
pub(super) struct Prepared {
    pub(super) record: Record,
    now_nanos: WallNanos,
}

/// Finds out whose an event is that does not say it.
#[cold]
fn attribute(event: &mut Event, context: Option<&Context>, fresh: &Uuid) {
    match context.and_then(Context::known_distinct_id) {
        Some(distinct_id) => event.set_distinct_id(distinct_id),
        None => event.attribute_to_nobody(&fresh.to_string()),
    }
}

impl From<AppendError> for DropReason {
    fn from(append_error: AppendError) -> Self {
        match append_error {
            AppendError::Closed => DropReason::Closed,
            AppendError::Forked => DropReason::Forked,
            AppendError::JournalBusy => DropReason::JournalBusy,
            AppendError::JournalFull => DropReason::JournalFull,
            AppendError::QueueFull => DropReason::QueueFull,
            AppendError::DiskFull => DropReason::DiskFull,
            AppendError::Storage => DropReason::Storage,
        }
    }
}
