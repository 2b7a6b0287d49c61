//! Acts on a response: accepts, refuses or retries the events of a request, and reports what was decided.
//!
//! V1 decides over each event, and knows a request by its id and its attempts. So what failed is kept as one batch
//! under one id, and is the next probe, until it is answered, the cycle of attempts ends, or the wait is long. In V0 a
//! failed batch goes back to the queue, where it can be evicted, and newer events join it when it is leased again.

use uuid::Uuid;

use super::batch::{Batch, uuid_of};
use super::bisect::Search;
use super::engine::{Engine, now};
use super::loaded::QuarantineReason;
use super::notice::{EventNames, asked_again, refusing_everything};
use super::outage::{Failure, OutageReports};
use super::pace::Ticket;
use super::quarantine::EventId;
use super::response::{EventResult, ResponseKind, Results, Warning, classify, describe, describe_pause};
use super::{DeliveryNotice, DeliveryOutcome};
use crate::queue::ChunkRef;
use crate::queue::store::DeadRecord;
use crate::report::Diagnostic;
use crate::sys::{crash_point, reentry};
use crate::transport::{Response, RetryAfter, TransportError};

/// Maximum number of different warnings that are reported for one response.
const MOST_WARNINGS: usize = 8;

/// The events of a V1 request, by their results.
#[derive(Debug, Default)]
struct Sorted {
    accepted: Vec<(ChunkRef, usize)>,
    /// Their ids, if anything observes them.
    accepted_names: EventNames,
    /// Each warning, the number of its events, and the first of them.
    warnings: Vec<(Warning, u64, Uuid)>,
    refused: Vec<(ChunkRef, usize, String)>,
    retried: u64,
    /// The reason given for the first of them.
    retry_reason: String,
}

impl Engine {
    /// Handles the end of a request.
    pub(super) fn on_response(&mut self, batch: Batch, ticket: Ticket, result: Result<Response, TransportError>) {
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                if matches!(error, TransportError::Timeout(_) | TransportError::Other(_)) {
                    // The link may be too slow for this size, or a proxy may cut requests that are too large.
                    self.shrink(&batch);
                }
                let unreachable = error.is_unreachable();
                let text = error.describe();
                let diagnostic = Diagnostic::EndpointFailing { reason: text.clone() };
                let failure =
                    Failure { text, diagnostic, retry_after: None, unreachable, status: 0, asked_again: false };
                return self.failed(batch, ticket, failure);
            }
        };
        crash_point::reach("delivery.sent");
        match classify(&response, self.options.protocol) {
            ResponseKind::Delivered { quota_limited } => {
                self.note_quota(quota_limited);
                self.accepted(batch, ticket);
            }
            ResponseKind::PerEvent { results, retry_after } => {
                self.decided_per_event(batch, ticket, response.status, &results, retry_after);
            }
            ResponseKind::TooLong => self.answered_at_length(batch, ticket, response.status, response.body.len()),
            ResponseKind::Refused { status, reason, by_posthog } => {
                self.refused(batch, ticket, status, &reason, by_posthog)
            }
            ResponseKind::Paused { status, reason, by_posthog } => {
                let text = describe_pause(status, &reason, by_posthog);
                let diagnostic = Diagnostic::Paused { status, reason, by_posthog };
                let failure =
                    Failure { text, diagnostic, retry_after: None, unreachable: false, status, asked_again: false };
                self.failed(batch, ticket, failure);
            }
            ResponseKind::Failed { status, reason, retry_after } => {
                let retry_after = retry_after.map(|after| after.wait_at(self.clock.wall_nanos()));
                let text = describe(status, &reason);
                if matches!(status, 408 | 502 | 504) {
                    // A gateway's timeout.
                    self.shrink(&batch);
                }
                let diagnostic = if (200..300).contains(&status) {
                    Diagnostic::NotPostHog { status, snippet: reason }
                } else {
                    Diagnostic::EndpointFailing { reason: text.clone() }
                };
                let failure = Failure { text, diagnostic, retry_after, unreachable: false, status, asked_again: false };
                self.failed(batch, ticket, failure);
            }
        }
    }

    pub(super) fn accepted(&mut self, batch: Batch, ticket: Ticket) {
        let now = now();
        self.note_recovery(ticket);
        self.note_success(&batch, batch.events);
        if self.is_observed() {
            let mut names = EventNames::default();
            for slice in &batch.slices {
                let records = self.intake.loaded.open(slice);
                records.for_each(|(_, seq, body)| names.push(EventId::of(slice.chunk, seq), uuid_of(body)));
            }
            self.notify(&names, DeliveryOutcome::Delivered);
        }
        for slice in &batch.slices {
            self.intake.loaded.mark_delivered(slice);
        }
        self.intake.note_acceptance(now);
        self.intake.release(&batch, now);
    }

    /// The endpoint works: ends an outage.
    pub(super) fn note_recovery(&mut self, ticket: Ticket) {
        if self.pace.accepted(ticket) {
            self.outage_reports = OutageReports::default();
            self.state.failing_since = None;
            (self.report)(Diagnostic::EndpointRecovered);
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
    pub(super) fn note_success(&mut self, batch: &Batch, events: usize) {
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

    fn refused(&mut self, mut batch: Batch, ticket: Ticket, status: u16, reason: &str, by_posthog: bool) {
        let now = now();
        self.pace.responded(ticket);
        self.state.last_error = Some(describe(status, reason));
        batch.refused_since.get_or_insert(self.intake.accepted);
        if status == 413 && batch.events > 1 {
            self.limits.shrink(batch.bytes);
        }
        let events = batch.events;
        if events > 1 {
            let (first, second) = batch.halves(&mut self.intake.loaded);
            self.bisection.push([first, second]);
        } else {
            self.refused_alone(&batch, status, reason, by_posthog);
            self.intake.release(&batch, now);
        }
        let search = self.bisection.refused(events);
        if search == Search::GoesOn {
            return;
        }
        let pieces: Vec<Batch> = self.bisection.drain().collect();
        for piece in &pieces {
            piece.chunks().for_each(|chunk| self.intake.loaded.quarantine(chunk, QuarantineReason::Whole));
            self.intake.release(piece, now);
        }
        if search == Search::Outage {
            self.state.last_error = Some(format!("every request is refused: {}", describe(status, reason)));
            self.state.failed_attempts += 1;
            self.state.failing_since.get_or_insert(self.clock.now());
            if self.outage_reports.is_cooldown_reported() {
                (self.report)(refusing_everything(status, reason));
            }
            self.pace.refuses_everything(now, &mut self.rng);
            // A probe that is refused does not slow down the pace, so one more would begin the bisection again.
            self.fresh_probe_from = None;
            if let Some(stop) = &mut self.stop {
                stop.give_up();
            }
            self.release_idle(now);
            self.fail_flushes();
        }
    }

    /// An event was refused alone: it is dead-lettered if there is evidence against it, otherwise quarantined.
    fn refused_alone(&mut self, batch: &Batch, status: u16, reason: &str, by_posthog: bool) {
        let Some((chunk, position, seq, uuid)) = self.first_event(batch) else { return };
        let event = EventId::of(chunk, seq);
        let since = batch.refused_since.into_iter().chain(self.intake.quarantine.refused_since(event)).min();
        if by_posthog && since.is_some_and(|since| self.intake.accepted > since) {
            self.dead_letter(chunk, position, status, reason);
        } else {
            let is_news = !self.intake.quarantine.has_event(event);
            self.intake.quarantine.quarantine_event(event, since.unwrap_or(self.intake.accepted));
            self.intake.loaded.quarantine(chunk, QuarantineReason::EventsRefused);
            if is_news {
                (self.report)(Diagnostic::Quarantined { uuid, status, reason: reason.to_owned() });
            }
        }
    }

    /// Moves one event to the dead letters.
    pub(super) fn dead_letter(&mut self, chunk: ChunkRef, position: usize, status: u16, reason: &str) {
        let slice = super::loaded::Slice { chunk, range: position..position.saturating_add(1) };
        let found = self.intake.loaded.open(&slice).next().map(|(_, seq, body)| (seq, body.to_vec()));
        let Some((seq, body)) = found else { return };
        let tries = *self.intake.loaded.tries(chunk);
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
        self.intake.loaded.mark_dead_lettered(chunk, position, dead);
        (self.report)(Diagnostic::DeadLettered { uuid, status, reason: reason.to_owned() });
        let names = EventNames { ids: vec![EventId::of(chunk, seq)], uuids: vec![uuid] };
        self.notify(&names, DeliveryOutcome::DeadLettered { status, reason });
    }

    pub(super) fn notify(&self, names: &EventNames, outcome: DeliveryOutcome<'_>) {
        let Some(observer) = &self.on_delivery else { return };
        let delivery = DeliveryNotice { uuids: &names.uuids, outcome };
        if reentry::caught(|| reentry::calling_out(|| observer.notify(&names.ids, &delivery))).is_none() {
            (self.report)(Diagnostic::CallbackPanicked { callback: "on_delivery" });
        }
    }

    /// Whether anything observes decided events.
    pub(super) fn is_observed(&self) -> bool {
        self.on_delivery.as_ref().is_some_and(|observer| observer.is_listening())
    }

    /// PostHog has decided over each event of a batch.
    pub(super) fn decided_per_event(
        &mut self,
        mut batch: Batch,
        ticket: Ticket,
        status: u16,
        results: &Results,
        retry_after: Option<RetryAfter>,
    ) {
        let now = now();
        let sorted = self.sort(&batch, results);
        for (warning, events, uuid) in sorted.warnings {
            (self.report)(Diagnostic::DeliveryWarning { uuid, events, details: warning.text() });
        }
        if sorted.refused.is_empty() && sorted.retried == 0 {
            return self.accepted(batch, ticket);
        }
        if !sorted.accepted.is_empty() {
            self.note_success(&batch, sorted.accepted.len());
            for (chunk, position) in sorted.accepted {
                self.intake.loaded.mark_delivered(&super::loaded::Slice { chunk, range: position..position + 1 });
            }
            self.notify(&sorted.accepted_names, DeliveryOutcome::Delivered);
            self.intake.note_acceptance(now);
        }
        for (chunk, position, reason) in sorted.refused {
            self.dead_letter(chunk, position, status, &reason);
        }
        if sorted.retried == 0 {
            self.note_recovery(ticket);
            return self.intake.release(&batch, now);
        }
        self.intake.ack_decided(&mut batch, now);
        let retry_after = retry_after.map(|after| after.wait_at(self.clock.wall_nanos()));
        let reason = sorted.retry_reason;
        let text = format!("PostHog asks for {} events again: {reason}", sorted.retried);
        let diagnostic = asked_again(sorted.retried, &reason);
        batch.asked_again = true;
        self.failed(
            batch,
            ticket,
            Failure { text, diagnostic, retry_after, unreachable: false, status, asked_again: true },
        );
    }

    /// PostHog has decided over each event, but the response is too long to be read. The same request would get the
    /// same response, so the events are sent again in smaller ones. (PostHog keeps one of two events with the same
    /// uuid.)
    pub(super) fn answered_at_length(&mut self, batch: Batch, ticket: Ticket, status: u16, read: usize) {
        self.limits.shrink(batch.bytes);
        let text = format!("PostHog's answer to {} event(s) has more than {read} bytes", batch.events);
        if batch.events > 1 {
            self.pace.responded(ticket);
            self.state.last_error = Some(text + "; they are sent again in smaller requests");
            let (first, second) = batch.halves(&mut self.intake.loaded);
            return self.bisection.push([first, second]);
        }
        let diagnostic = Diagnostic::EndpointFailing { reason: text.clone() };
        self.failed(
            batch,
            ticket,
            Failure { text, diagnostic, retry_after: None, unreachable: false, status, asked_again: false },
        );
    }

    fn sort(&self, batch: &Batch, results: &Results) -> Sorted {
        let mut sorted = Sorted::default();
        let is_observed = self.is_observed();
        let loaded = &self.intake.loaded;
        let records = batch.slices.iter().flat_map(|slice| loaded.open(slice).map(move |record| (slice.chunk, record)));
        for (chunk, (position, seq, body)) in records {
            let uuid = uuid_of(body);
            match results.of(uuid) {
                EventResult::Accepted { warning } => {
                    sorted.accepted.push((chunk, position));
                    if is_observed {
                        sorted.accepted_names.push(EventId::of(chunk, seq), uuid);
                    }
                    if let Some(warning) = warning {
                        sorted.warn(warning, uuid);
                    }
                }
                EventResult::Refused { reason } => sorted.refused.push((chunk, position, reason)),
                EventResult::Retry { reason } => {
                    if sorted.retried == 0 {
                        sorted.retry_reason = reason;
                    }
                    sorted.retried += 1;
                }
            }
        }
        sorted
    }
}

impl Sorted {
    fn warn(&mut self, warning: Warning, uuid: Uuid) {
        let known = self.warnings.iter().position(|(known, ..)| known.is_like(&warning));
        if let Some((_, events, _)) = known.and_then(|known| self.warnings.get_mut(known)) {
            *events += 1;
        } else if self.warnings.len() < MOST_WARNINGS {
            self.warnings.push((warning, 1, uuid));
        }
    }
}
