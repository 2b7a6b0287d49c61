//! Acting on an answer.

use super::aside::EventId;
use super::batch::{Batch, uuid_of};
use super::engine::{Engine, now};
use super::episode::Episode;
use super::failure::Failure;
use super::loaded::Reason;
use super::outcome::{Outcome, describe, describe_pause, judge};
use super::pace::Ticket;
use super::split::Search;
use super::verdict::Names;
use super::{DeliveryNotice, DeliveryOutcome, Notice};
use crate::queue::ChunkRef;
use crate::queue::store::DeadRecord;
use crate::sys::crash_point;
use crate::sys::reentry;
use crate::transport::{Response, TransportError};

impl Engine {
    /// A request has come to its end.
    pub(super) fn answered(&mut self, batch: Batch, ticket: Ticket, result: Result<Response, TransportError>) {
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                if matches!(error, TransportError::Timeout(_) | TransportError::Other(_)) {
                    // Perhaps the link is too slow for so much at once, or somebody on the way breaks off what is too large.
                    self.shrink(&batch);
                }
                let unreachable = error.is_unreachable();
                let text = error.describe();
                let notice = Notice::TransportFailed { reason: text.clone() };
                let failure = Failure { text, notice, retry_after: None, unreachable, status: 0, pause: None };
                return self.failed(batch, ticket, failure);
            }
        };
        crash_point::reach("delivery.sent");
        match judge(&response, self.options.protocol()) {
            Outcome::Delivered { quota_limited } => {
                self.note_quota(quota_limited);
                self.accepted(batch, ticket);
            }
            Outcome::Judged { results, retry_after } => {
                self.judged(batch, ticket, response.status, &results, retry_after);
            }
            Outcome::TooLong => self.answered_at_length(batch, ticket, response.status, response.body.len()),
            Outcome::Refused { status, reason, by_posthog } => self.refused(batch, ticket, status, &reason, by_posthog),
            Outcome::Paused { status, reason, by_posthog } => {
                let text = describe_pause(status, &reason, by_posthog);
                let notice = Notice::Paused { status, reason, by_posthog };
                let pause = Some(by_posthog);
                let failure = Failure { text, notice, retry_after: None, unreachable: false, status, pause };
                self.failed(batch, ticket, failure);
            }
            Outcome::Failed { status, reason, retry_after } => {
                let retry_after = retry_after.map(|after| after.wait_at(self.clock.wall_nanos()));
                let text = describe(status, &reason);
                if matches!(status, 408 | 502 | 504) {
                    // A gateway's way to say that it took too long.
                    self.shrink(&batch);
                }
                let notice = if (200..300).contains(&status) {
                    Notice::NotPostHog { status, snippet: reason }
                } else {
                    Notice::ServerFailed { status, text: text.clone() }
                };
                let failure = Failure { text, notice, retry_after, unreachable: false, status, pause: None };
                self.failed(batch, ticket, failure);
            }
        }
    }

    pub(super) fn accepted(&mut self, batch: Batch, ticket: Ticket) {
        let now = now();
        self.note_recovery(ticket);
        self.note_success(&batch, batch.events);
        if self.is_heard() {
            let mut names = Names::default();
            for slice in &batch.slices {
                let records = self.intake.loaded.open(slice);
                records.for_each(|(_, seq, body)| names.push(EventId::of(slice.chunk, seq), uuid_of(body)));
            }
            self.tell(&names, DeliveryOutcome::Delivered);
        }
        for slice in &batch.slices {
            self.intake.loaded.mark_delivered(slice);
        }
        self.intake.note_acceptance(now);
        self.intake.release(&batch, now);
    }

    /// The endpoint works.
    pub(super) fn note_recovery(&mut self, ticket: Ticket) {
        if self.pace.accepted(ticket) {
            self.episode = Episode::default();
            (self.report)(Notice::Recovered);
        }
    }

    /// What failed on its way may have been too much for it. A piece of a search was cut for another reason.
    fn shrink(&mut self, batch: &Batch) {
        if !batch.is_piece {
            self.limits.shrink(batch.bytes);
        }
    }

    /// PostHog says with each answer that it drops these kinds, as long as it does.
    fn note_quota(&mut self, mut kinds: Vec<String>) {
        kinds.retain(|kind| self.quota_limited.is_news(kind, now()));
        if !kinds.is_empty() {
            (self.report)(Notice::QuotaLimited { kinds });
        }
    }

    /// The endpoint took so many events of a request.
    pub(super) fn note_success(&mut self, batch: &Batch, events: usize) {
        if let Some((number, at)) = batch.sent {
            self.newest_accepted = self.newest_accepted.max(number);
            self.patience.accepted(now().saturating_duration_since(at));
        }
        self.split.accepted(events);
        self.limits.grow();
        self.state.last_success = Some(self.clock.wall_nanos());
        if let Some(stop) = &mut self.stop {
            stop.accepted();
        }
    }

    fn refused(&mut self, mut batch: Batch, ticket: Ticket, status: u16, reason: &str, by_posthog: bool) {
        let now = now();
        self.pace.answered(ticket);
        self.state.last_error = Some(describe(status, reason));
        batch.refused_since.get_or_insert(self.intake.accepted);
        if status == 413 && batch.events > 1 {
            self.limits.shrink(batch.bytes);
        }
        let events = batch.events;
        if events > 1 {
            let (first, second) = batch.halves(&mut self.intake.loaded);
            self.split.push([first, second]);
        } else {
            self.refused_alone(&batch, status, reason, by_posthog);
            self.intake.release(&batch, now);
        }
        let search = self.split.refused(events);
        if search == Search::GoesOn {
            return;
        }
        let pieces: Vec<Batch> = self.split.drain().collect();
        for piece in &pieces {
            piece.chunks().for_each(|chunk| self.intake.loaded.set_aside(chunk, Reason::Whole));
            self.intake.release(piece, now);
        }
        if search == Search::Outage {
            self.state.last_error = Some(format!("every request is refused: {}", describe(status, reason)));
            self.state.failed_attempts += 1;
            if self.episode.is_park_told() {
                (self.report)(Notice::RefusingEverything { status, reason: reason.to_owned() });
            }
            self.pace.refuses_everything(now, &mut self.rng);
            // Whoever is answered a refusal is not told to slow down, so one more would begin the search anew.
            self.newcomers_from = None;
            if let Some(stop) = &mut self.stop {
                stop.give_up();
            }
            self.let_go(now);
            self.fail_flushes();
        }
    }

    /// An event was refused on its own: dead_lettered if there is evidence that it is to blame, else stepped over.
    fn refused_alone(&mut self, batch: &Batch, status: u16, reason: &str, by_posthog: bool) {
        let Some((chunk, position, seq, uuid)) = self.first_event(batch) else { return };
        let event = EventId::of(chunk, seq);
        let since = batch.refused_since.into_iter().chain(self.intake.aside.refused_since(event)).min();
        if by_posthog && since.is_some_and(|since| self.intake.accepted > since) {
            self.dead_letter(chunk, position, status, reason);
        } else {
            let is_news = !self.intake.aside.is_suspect(event);
            self.intake.aside.suspect(event, since.unwrap_or(self.intake.accepted));
            self.intake.loaded.set_aside(chunk, Reason::EventsRefused);
            if is_news {
                (self.report)(Notice::Quarantined { uuid, status, reason: reason.to_owned() });
            }
        }
    }

    /// One event goes to the dead letters.
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
        (self.report)(Notice::DeadLettered { uuid, status, reason: reason.to_owned() });
        let names = Names { ids: vec![EventId::of(chunk, seq)], uuids: vec![uuid] };
        self.tell(&names, DeliveryOutcome::DeadLettered { status, reason });
    }

    pub(super) fn tell(&self, names: &Names, verdict: DeliveryOutcome<'_>) {
        let Some(ear) = &self.on_delivery else { return };
        let delivery = DeliveryNotice { uuids: &names.uuids, verdict };
        if reentry::caught(|| reentry::calling_out(|| ear.hear(&names.ids, &delivery))).is_none() {
            (self.report)(Notice::CallbackPanicked);
        }
    }

    /// Whether anybody would be told of a verdict now.
    pub(super) fn is_heard(&self) -> bool {
        self.on_delivery.as_ref().is_some_and(|ear| ear.is_listening())
    }
}
