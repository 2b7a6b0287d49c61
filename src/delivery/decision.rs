//! Acts on a response: accepts, refuses or retries the events of a request, and reports what was decided.
//!
//! V1 decides over each event, and knows a request by its id and its attempts. So what failed is kept as one batch
//! under one id, and is the next probe, until it is answered, the cycle of attempts ends, or the wait is long. In V0 a
//! failed batch goes back to the queue, where it can be evicted, and newer events join it when it is leased again.

use std::collections::HashMap;
use std::time::Duration;

use uuid::Uuid;

use super::batch::{Batch, uuid_of};
use super::engine::{Engine, now};
use super::loaded::{QuarantineReason, Slice};
use super::notice::{asked_again, failing, refusing_everything};
use super::outage::{Failure, Outage, OutageReports};
use super::quarantine::EventId;
use super::response::{EventResult, ResponseKind, classify, describe, describe_pause, reason};
use super::{DeliveryNotice, DeliveryOutcome};
use crate::queue::store::DeadRecord;
use crate::report::{Backlog, Diagnostic};
use crate::sys::{crash_point, reentry};
use crate::transport::{Response, TransportError};

/// Maximum number of different warnings that are reported for one response.
const MOST_WARNINGS: usize = 8;

impl Engine {
    /// Handles the end of a request.
    pub(super) fn on_response(&mut self, batch: Batch, result: Result<Response, TransportError>) {
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                if matches!(error, TransportError::Timeout(_) | TransportError::Other(_)) {
                    // The link may be too slow for this size, or a proxy may cut requests that are too large.
                    self.shrink(&batch);
                }
                let unreachable = error.is_unreachable();
                let text = error.describe();
                let diagnostic = failing(text.clone());
                return self.failed(batch, Failure { unreachable, ..Failure::new(0, text, diagnostic) });
            }
        };
        crash_point::reach("delivery.sent");
        let status = response.status;
        let retry_after = response.retry_after.map(|after| after.wait_at(self.clock.wall_nanos()));
        match classify(&response, self.options.protocol) {
            ResponseKind::Delivered { quota_limited } => {
                self.note_quota(quota_limited);
                self.accepted(&batch);
            }
            ResponseKind::PerEvent(results) => self.decided_per_event(batch, status, &results, retry_after),
            ResponseKind::TooLong => self.answered_at_length(batch, status, response.body.len()),
            ResponseKind::Refused { by_posthog } => self.refused(batch, status, &reason(&response.body), by_posthog),
            ResponseKind::Paused { by_posthog } => {
                let reason = reason(&response.body);
                let text = describe_pause(status, &reason, by_posthog);
                let diagnostic = Diagnostic::Paused { status, reason, by_posthog, backlog: Backlog::default() };
                self.failed(batch, Failure::new(status, text, diagnostic));
            }
            ResponseKind::Failed => {
                let reason = reason(&response.body);
                let text = describe(status, &reason);
                if matches!(status, 408 | 502 | 504) {
                    // A gateway's timeout.
                    self.shrink(&batch);
                }
                let diagnostic = if (200..300).contains(&status) {
                    Diagnostic::NotPostHog { status, snippet: reason, backlog: Backlog::default() }
                } else {
                    failing(text.clone())
                };
                self.failed(batch, Failure { retry_after, ..Failure::new(status, text, diagnostic) });
            }
        }
    }

    /// PostHog has accepted all events of a request.
    fn accepted(&mut self, batch: &Batch) {
        let now = now();
        self.note_recovery(batch);
        self.note_success(batch, batch.events);
        let events = batch.records(&self.intake.loaded);
        self.notify(
            events.map(|(slice, seq, body)| (EventId::of(slice.chunk, seq), uuid_of(body))),
            DeliveryOutcome::Delivered,
        );
        for slice in &batch.slices {
            self.intake.loaded.mark_delivered(slice);
        }
        self.intake.note_acceptance(now);
        self.intake.release(batch, now);
    }

    /// The endpoint works: ends an outage.
    fn note_recovery(&mut self, batch: &Batch) {
        if self.pace.accepted(batch.ticket) {
            self.outage_reports = OutageReports::default();
            let began = self.state.failing_since.take();
            let after = began.map_or(Duration::ZERO, |began| self.clock.now().saturating_duration_since(began));
            self.report_outage(Diagnostic::EndpointRecovered { after, backlog: Backlog::default() }, now());
        }
    }

    /// Lowers the limit on bytes, because the batch may have been too large. A piece was cut for another reason.
    fn shrink(&mut self, batch: &Batch) {
        if !batch.is_piece {
            self.limits.shrink(batch.bytes);
        }
    }

    /// Reports kinds of events that PostHog drops. It says so with each response, for as long as it does.
    fn note_quota(&mut self, mut kinds: Vec<String>) {
        kinds.retain(|kind| self.quota_limited.is_news(kind, now()));
        if !kinds.is_empty() {
            (self.report)(Diagnostic::QuotaLimited { kinds });
        }
    }

    /// The endpoint accepted this many events of a request.
    fn note_success(&mut self, batch: &Batch, events: usize) {
        if let Some((number, at)) = batch.sent {
            self.newest_accepted = self.newest_accepted.max(number);
            self.timeouts.accepted(now().saturating_duration_since(at));
        }
        self.bisection.accepted(events);
        self.limits.grow();
        self.state.last_success = Some(self.clock.wall_nanos());
        if let Some(stop) = &mut self.stop {
            stop.accepted();
        }
    }

    fn refused(&mut self, mut batch: Batch, status: u16, reason: &str, by_posthog: bool) {
        let now = now();
        self.pace.responded(batch.ticket);
        self.state.last_error = Some(describe(status, reason));
        batch.refused_since.get_or_insert(self.intake.accepted);
        if status == 413 && batch.events > 1 {
            self.limits.shrink(batch.bytes);
        }
        let events = batch.events;
        if events > 1 {
            self.bisection.push(batch.halves(&mut self.intake.loaded));
        } else {
            self.refused_alone(&batch, status, reason, by_posthog);
            self.intake.release(&batch, now);
        }
        if !self.bisection.refused(events) {
            return;
        }
        let may_others_be_fine = self.bisection.give_up();
        for piece in self.bisection.drain() {
            piece.chunks().for_each(|chunk| self.intake.loaded.quarantine(chunk, QuarantineReason::Whole));
            self.intake.release(&piece, now);
        }
        if !may_others_be_fine {
            self.state.last_error = Some(format!("every request is refused: {}", describe(status, reason)));
            self.state.failed_attempts += 1;
            self.state.failing_since.get_or_insert(self.clock.now());
            self.pace.refuses_everything(now, &mut self.rng);
            if self.outage_reports.is_cooldown_reported() {
                self.report_outage(refusing_everything(status, reason), now);
            }
            // A probe that is refused does not slow down the pace, so one more would begin the bisection again.
            self.outage = Outage::default();
            if let Some(stop) = &mut self.stop {
                stop.gave_up = true;
            }
            self.release_idle(now);
            self.fail_flushes();
        }
    }

    /// An event was refused alone: it is dead-lettered if there is evidence against it, otherwise quarantined.
    fn refused_alone(&mut self, batch: &Batch, status: u16, reason: &str, by_posthog: bool) {
        let Some((slice, seq, body)) = batch.records(&self.intake.loaded).next() else { return };
        let (event, uuid) = (EventId::of(slice.chunk, seq), uuid_of(body));
        let since = batch.refused_since.into_iter().chain(self.intake.quarantine.refused_since(event)).min();
        if by_posthog && since.is_some_and(|since| self.intake.accepted > since) {
            self.dead_letter(&slice, status, reason);
        } else {
            let is_news = !self.intake.quarantine.has_event(event);
            self.intake.quarantine.quarantine_event(event, since.unwrap_or(self.intake.accepted));
            self.intake.loaded.quarantine(slice.chunk, QuarantineReason::EventsRefused);
            if is_news {
                (self.report)(Diagnostic::Quarantined { uuid, status, reason: reason.to_owned() });
            }
        }
    }

    /// Moves the one event of a slice to the dead letters.
    pub(super) fn dead_letter(&mut self, slice: &Slice, status: u16, reason: &str) {
        let found = self.intake.loaded.open(slice).next().map(|(_, seq, body)| (seq, body.to_vec()));
        let Some((seq, body)) = found else { return };
        let tries = self.intake.loaded.tries_of(slice.chunk);
        let last_attempt = self.clock.wall_nanos();
        let uuid = uuid_of(&body);
        let dead = DeadRecord {
            seq,
            status,
            reason: reason.to_owned(),
            first_attempt: tries.first_attempt.unwrap_or(last_attempt),
            last_attempt,
            attempts: tries.attempts,
            body,
        };
        self.intake.loaded.mark_dead_lettered(slice, dead);
        (self.report)(Diagnostic::DeadLettered { uuid, status, reason: reason.to_owned() });
        let event = (EventId::of(slice.chunk, seq), uuid);
        self.notify([event].into_iter(), DeliveryOutcome::DeadLettered { status, reason });
    }

    fn notify(&self, events: impl Iterator<Item = (EventId, Uuid)>, outcome: DeliveryOutcome<'_>) {
        let Some(observer) = self.on_delivery.as_ref().filter(|observer| observer.is_listening()) else { return };
        let (ids, uuids): (Vec<_>, Vec<_>) = events.unzip();
        let delivery = DeliveryNotice { uuids: &uuids, outcome };
        if reentry::caught(|| reentry::calling_out(|| observer.notify(&ids, &delivery))).is_none() {
            (self.report)(Diagnostic::CallbackPanicked { callback: "on_delivery" });
        }
    }

    /// PostHog has decided over each event of a batch.
    fn decided_per_event(
        &mut self,
        mut batch: Batch,
        status: u16,
        results: &HashMap<Uuid, EventResult>,
        retry_after: Option<Duration>,
    ) {
        let now = now();
        let (mut accepted, mut refused, mut retried) = (Vec::new(), Vec::new(), Vec::new());
        let mut warnings: Vec<(&EventResult, u64, Uuid)> = Vec::new();
        for (slice, seq, body) in batch.records(&self.intake.loaded) {
            let uuid = uuid_of(body);
            match results.get(&uuid).unwrap_or(&EventResult::Missing) {
                EventResult::Refused { reason } => refused.push((slice, reason)),
                EventResult::Retry { reason } => retried.push(reason),
                result => {
                    let event = (EventId::of(slice.chunk, seq), uuid);
                    accepted.push((slice, event));
                    if *result == EventResult::Accepted {
                        continue;
                    }
                    let known = warnings.iter().position(|(known, ..)| known.is_like(result));
                    if let Some((_, events, _)) = known.and_then(|known| warnings.get_mut(known)) {
                        *events += 1;
                    } else if warnings.len() < MOST_WARNINGS {
                        warnings.push((result, 1, uuid));
                    }
                }
            }
        }
        for (warning, events, uuid) in warnings {
            if let Some(details) = warning.warning() {
                (self.report)(Diagnostic::DeliveryWarning { uuid, events, details });
            }
        }
        if refused.is_empty() && retried.is_empty() {
            return self.accepted(&batch);
        }
        if !accepted.is_empty() {
            self.note_success(&batch, accepted.len());
            accepted.iter().for_each(|(slice, _)| self.intake.loaded.mark_delivered(slice));
            self.notify(accepted.into_iter().map(|(_, event)| event), DeliveryOutcome::Delivered);
            self.intake.note_acceptance(now);
        }
        for (slice, reason) in refused {
            self.dead_letter(&slice, status, reason);
        }
        let Some(&reason) = retried.first() else {
            self.note_recovery(&batch);
            return self.intake.release(&batch, now);
        };
        self.intake.ack_decided(&mut batch, now);
        batch.asked_again = true;
        let (events, reason) = (retried.len() as u64, reason.clone());
        let text = format!("PostHog asks for {events} events again: {reason}");
        let diagnostic = asked_again(events, &reason);
        self.failed(batch, Failure { retry_after, asked_again: true, ..Failure::new(status, text, diagnostic) });
    }

    /// PostHog has decided over each event, but the response is too long to be read. The same request would get the
    /// same response, so the events are sent again in smaller ones. (PostHog keeps one of two events with the same
    /// uuid.)
    fn answered_at_length(&mut self, batch: Batch, status: u16, read: usize) {
        self.limits.shrink(batch.bytes);
        let text = format!("PostHog's answer to {} event(s) has more than {read} bytes", batch.events);
        if batch.events > 1 {
            self.pace.responded(batch.ticket);
            self.state.last_error = Some(text + "; they are sent again in smaller requests");
            return self.bisection.push(batch.halves(&mut self.intake.loaded));
        }
        let diagnostic = failing(text.clone());
        self.failed(batch, Failure::new(status, text, diagnostic));
    }
}
