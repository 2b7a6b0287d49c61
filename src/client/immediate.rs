//! Captures whose caller waits for PostHog's word.

use super::receipt::Outcome;
use super::{Client, Shared};
use crate::event::Event;
use crate::pipeline::{DeliveryReport, DropReason, Pending, Pipeline, pending};

impl Client {
    /// Takes an event as [`capture`](Self::capture) does (durable first, hooks and all), sends it at once with what is queued before it, and
    /// resolves with what became of it: PostHog has taken it, has refused it for good, or could not be asked now. In the last case the
    /// event stays queued and is sent later. Never an error: whoever stops waiting loses nothing.
    ///
    /// For programs that end soon, and for the rare event whose fate matters now: each is a commit and a request of its own, unless
    /// several come at once. At most 10,000 are waited for at a time.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::{DeliveryReport, Event};
    /// use std::time::Duration;
    ///
    /// match client.capture_immediate(Event::new("deployed", "ci")).wait(Duration::from_secs(5)) {
    ///     Ok(DeliveryReport::Delivered) => {}
    ///     Ok(other) => eprintln!("not yet: {other:?}"),
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
}

impl Client {
    /// [`capture_immediate`](Self::capture_immediate) for AI events, as [`capture_ai`](Self::capture_ai) is [`capture`](Self::capture) for
    /// them.
    pub fn capture_ai_immediate(&self, event: Event) -> Pending<DeliveryReport> {
        let shared = &self.shared;
        let reason = match &shared.pipeline {
            None => DropReason::Disabled,
            Some(analytics) if analytics.is_forked() => match shared.child_or_open(analytics) {
                Some(child) => return child.capture_ai_immediate(event),
                None => DropReason::Forked,
            },
            Some(_) if shared.rules.is_opted_out() => DropReason::OptedOut,
            Some(analytics) => match shared.ai_or_open(analytics) {
                Ok(ai) => return shared.capture_immediate(&ai, event),
                Err(reason) => reason,
            },
        };
        shared.count(reason);
        dropped(reason)
    }
}

impl Shared {
    fn capture_immediate(&self, pipeline: &Pipeline, event: Event) -> Pending<DeliveryReport> {
        if event.is_exception() {
            self.warn_of_handmade_exceptions();
        }
        let prepared = match self.prepare(pipeline, event) {
            Ok(prepared) => prepared,
            Err(reason) => return dropped(reason),
        };
        // Waited for before it can be sent: its verdict might come before this thread goes on.
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
