//! Answers of V1: each event has a verdict of its own, and a request that failed is sent again as the same request.
//!
//! PostHog knows a V1 request by its id and counts its attempts, so what failed is kept and is the next probe, as one batch and under one id,
//! until it is answered, the cycle of attempts is spent, or the wait is long. V0 knows no such thing: there a failed batch goes back to
//! the queue, where it can be evicted, and newer events join it when it is read again.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::aside::EventId;
use super::batch::{Batch, uuid_of};
use super::engine::{Engine, now};
use super::failure::Failure;
use super::pace::Ticket;
use super::results::{Results, Ruling, Warning};
use super::verdict::Names;
use super::{DeliveryOutcome, Notice};
use crate::queue::ChunkRef;
use crate::transport::RetryAfter;

/// No longer than this are events kept in memory, where nothing can evict them, for the sake of a request's id.
const MOST_WAIT: Duration = Duration::from_secs(60);
/// Of one answer's warnings, so many different ones are told.
const MOST_WARNINGS: usize = 8;

/// The events of one answer, by what becomes of them.
#[derive(Debug, Default)]
struct Sorted {
    taken: Vec<(ChunkRef, usize)>,
    /// The same by name, if anybody listens.
    taken_names: Names,
    /// What is said of how many of them, and the first of these.
    warnings: Vec<(Warning, u64, Uuid)>,
    refused: Vec<(ChunkRef, usize, String)>,
    again: u64,
    /// Why, in the words on the first of them.
    again_reason: String,
}

impl Engine {
    /// PostHog has decided on each event of a batch.
    pub(super) fn judged(
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
            (self.report)(Notice::Warned { uuid, events, details: warning.text() });
        }
        if sorted.refused.is_empty() && sorted.again == 0 {
            return self.accepted(batch, ticket);
        }
        if !sorted.taken.is_empty() {
            self.note_success(&batch, sorted.taken.len());
            for (chunk, position) in sorted.taken {
                self.intake.loaded.mark_delivered(&super::loaded::Slice { chunk, range: position..position + 1 });
            }
            self.tell(&sorted.taken_names, DeliveryOutcome::Delivered);
            self.intake.note_acceptance(now);
        }
        for (chunk, position, reason) in sorted.refused {
            self.dead_letter(chunk, position, status, &reason);
        }
        if sorted.again == 0 {
            self.note_recovery(ticket);
            return self.intake.release(&batch, now);
        }
        self.intake.ack_decided(&mut batch, now);
        let retry_after = retry_after.map(|after| after.wait_at(self.clock.wall_nanos()));
        let reason = sorted.again_reason;
        let text = format!("PostHog asks for {} events again: {reason}", sorted.again);
        let notice = Notice::AskedAgain { events: sorted.again, reason };
        batch.asked_again = true;
        self.failed(batch, ticket, Failure { text, notice, retry_after, unreachable: false, status, pause: None });
    }

    /// PostHog has decided on each event, and the answer was cut after so many bytes: the same request would be answered at the same
    /// length, so the events are sent again in smaller ones. (Those that PostHog has taken have the same uuids, and count once.)
    pub(super) fn answered_at_length(&mut self, batch: Batch, ticket: Ticket, status: u16, read: usize) {
        self.limits.shrink(batch.bytes);
        let text = format!("PostHog's answer to {} event(s) has more than {read} bytes", batch.events);
        if batch.events > 1 {
            self.pace.answered(ticket);
            self.state.last_error = Some(text + "; they are sent again in smaller requests");
            let (first, second) = batch.halves(&mut self.intake.loaded);
            return self.split.push([first, second]);
        }
        let notice = Notice::ServerFailed { status, text: text.clone() };
        self.failed(
            batch,
            ticket,
            Failure { text, notice, retry_after: None, unreachable: false, status, pause: None },
        );
    }

    fn sort(&self, batch: &Batch, results: &Results) -> Sorted {
        let mut sorted = Sorted::default();
        let is_heard = self.is_heard();
        let loaded = &self.intake.loaded;
        let records = batch.slices.iter().flat_map(|slice| loaded.open(slice).map(move |record| (slice.chunk, record)));
        for (chunk, (position, seq, body)) in records {
            let uuid = uuid_of(body);
            match results.of(uuid) {
                Ruling::Taken { warning } => {
                    sorted.taken.push((chunk, position));
                    if is_heard {
                        sorted.taken_names.push(EventId::of(chunk, seq), uuid);
                    }
                    if let Some(warning) = warning {
                        sorted.warn(warning, uuid);
                    }
                }
                Ruling::Refused { reason } => sorted.refused.push((chunk, position, reason)),
                Ruling::Again { reason } => {
                    if sorted.again == 0 {
                        sorted.again_reason = reason;
                    }
                    sorted.again += 1;
                }
            }
        }
        sorted
    }

    /// Whether the next attempt of this cycle is so near that what failed may be kept for it.
    pub(super) fn is_next_attempt_near(&self, now: Instant) -> bool {
        self.pace.next_of_cycle(now).is_some_and(|at| at.saturating_duration_since(now) <= MOST_WAIT)
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
