//! Decides whether a failed attempt is the fault of its events or of the endpoint.
//!
//! Every kind of failure is judged in the same way: a status that is no verdict, a refusal that is not in PostHog's
//! words, a connection that was cut, a timeout. The events are to blame if a request that was sent later was accepted,
//! if the batch is a piece of a search that goes on, if the request was given up early (`patience.rs`), or if its event
//! is quarantined already. Then the pace does not change, and the batch is cut until each event that fails is alone
//! (`split.rs`) and is quarantined (`aside.rs`).
//!
//! Otherwise the endpoint may be down, and the pace slows down (`pace.rs`). While this is the only batch that failed,
//! the outage is *unconfirmed* and the batch stays in memory. The next probe is one event that has not failed. If there
//! is none, the same batch is sent once more, because most failures are transient, and then one event of it. When a
//! probe of another event fails too, the outage is confirmed and everything goes back to the queue. When a probe
//! passes, the batch is searched.

use std::time::{Duration, Instant};

use super::Notice;
use super::aside::EventId;
use super::batch::{Batch, uuid_of};
use super::engine::{Engine, now};
use super::intake::Wanted;
use super::loaded::Reason;
use super::pace::{Health, Permit, Ticket, backoff, newcomer_time};
use super::{CaptureProtocol, SourceError};

/// Why an attempt failed.
pub(super) struct Failure {
    /// The reason, in one line.
    pub(super) text: String,
    /// What is reported, unless the same was reported in this outage already.
    pub(super) notice: Notice,
    /// The server's `Retry-After`.
    pub(super) retry_after: Option<Duration>,
    /// No connection was made, so the events cannot be the cause.
    pub(super) unreachable: bool,
    /// The answer's status; 0 if there is none.
    pub(super) status: u16,
    /// `Some` if the key, the quota or the encoding is refused; `Some(true)` if the refusal is in PostHog's words.
    pub(super) pause: Option<bool>,
}

/// An unconfirmed outage: so far a single batch has failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    /// No probe is sent ahead of its time before this.
    not_before: Instant,
    /// The batch failed slowly, or for the key or the quota, so it is not sent again as a whole.
    is_dear: bool,
    /// Other probes that were refused for the key or the quota.
    others: u32,
}

impl Engine {
    /// Handles a failed attempt: blames the events or the endpoint.
    pub(super) fn failed(&mut self, batch: Batch, ticket: Ticket, failure: Failure) {
        let now = now();
        let took = batch.sent.map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(at));
        let is_slow = !failure.unreachable && self.patience.failed(now, took);
        self.state.last_error = Some(failure.text.clone());
        let is_given_up = batch.given_up_after.is_some_and(|limit| took >= limit);
        if self.are_events_to_blame(&batch, &failure, is_given_up) {
            self.search(batch, &failure, is_slow, now);
        } else {
            self.doubt(batch, ticket, failure, is_slow, now);
        }
    }

    fn are_events_to_blame(&self, batch: &Batch, failure: &Failure, is_given_up: bool) -> bool {
        if failure.unreachable || self.pace.health() != Health::Up || self.split.is_hopeless() {
            return false;
        }
        if batch.quarantined > 0 {
            return true;
        }
        if self.split.is_losing() && self.split.is_empty() && self.under_way.is_empty() && batch.events == 1 {
            // The search has ended and nothing in it passed.
            return false;
        }
        let later_ones_passed = batch.sent.is_some_and(|(number, _)| number < self.newest_accepted);
        later_ones_passed || is_given_up || batch.is_piece || !self.split.is_empty()
    }

    /// Other requests pass, so the batch is cut in two, or its single event is quarantined.
    fn search(&mut self, batch: Batch, failure: &Failure, is_slow: bool, now: Instant) {
        self.pace.asked_to_wait(now, failure.retry_after, &mut self.rng);
        self.split.failed(batch.events, is_slow, now);
        if batch.events > 1 {
            let (first, second) = batch.halves(&mut self.intake.loaded);
            self.split.push([first, second]);
        } else {
            self.quarantine(&batch, failure);
            self.intake.release(&batch, now);
        }
    }

    /// Sets aside an event that failed alone while others passed. It was not refused, so it is tried again, at longer
    /// and longer intervals.
    fn quarantine(&mut self, batch: &Batch, failure: &Failure) {
        let Some((chunk, _, seq, uuid)) = self.first_event(batch) else { return };
        let event = EventId::of(chunk, seq);
        self.intake.aside.suspect_of_failing(event);
        self.intake.loaded.set_aside(chunk, Reason::EventsFail);
        // The first failure may have been chance, so the second is the one that is reported.
        if batch.quarantined == 1 {
            let status = failure.status;
            let said = failure.text.strip_prefix(&format!("HTTP status {status}")).unwrap_or(&failure.text);
            let reason = said.trim_start_matches([':', ' ']).to_owned();
            (self.report)(Notice::Quarantined { uuid, status, reason });
        }
    }

    /// Where the first open event of a batch is: chunk, position, sequence number; and its uuid.
    pub(super) fn first_event(&self, batch: &Batch) -> Option<(crate::queue::ChunkRef, usize, u64, uuid::Uuid)> {
        batch.slices.iter().find_map(|slice| {
            let (position, seq, body) = self.intake.loaded.open(slice).next()?;
            Some((slice.chunk, position, seq, uuid_of(body)))
        })
    }

    /// The endpoint may be down: counts the failure against it, and keeps the batch or returns it to the queue.
    fn doubt(&mut self, mut batch: Batch, ticket: Ticket, failure: Failure, is_slow: bool, now: Instant) {
        let is_first = self.pace.consecutive_failures() == 0;
        let (is_pause, unreachable) = (failure.pause.is_some(), failure.unreachable);
        // PostHog's own word on the key or the quota is not about an event either.
        let is_never_an_event = unreachable || failure.pause == Some(true);
        let is_counted = self.note_failure(ticket, failure, batch.events, now);
        if is_counted && is_first && !unreachable {
            let not_before = now + backoff(&self.options.pace, 1, &mut self.rng);
            self.doubted = Some(Doubt { not_before, is_dear: is_slow || is_pause, others: 0 });
        } else if is_counted && (batch.failures == 0 || unreachable) {
            self.doubted = self.doubted.take().filter(|_| is_pause).and_then(|doubt| self.doubt_on(doubt, now));
        }
        if is_counted {
            self.let_newcomers_wait(now);
            self.newcomers_from = self.newcomers_from.filter(|_| !is_never_an_event);
        }
        batch.failures = batch.failures.saturating_add(1);
        if batch.quarantined > 0 {
            batch.chunks().for_each(|chunk| self.intake.loaded.set_aside(chunk, Reason::EventsFail));
        }
        if !unreachable {
            self.intake.note_failure(&batch);
        }
        if is_counted && self.again.is_none() && self.is_kept(&batch, now) {
            self.again = Some(batch);
        } else {
            self.intake.release(&batch, now);
        }
        if !self.again.as_ref().is_some_and(|again| self.is_kept(again, now)) {
            self.forget_request(now);
        }
        self.step_back(now);
        if let Some(mut again) = self.again.take() {
            // Verdicts on events of this batch are acked before the failure is reported to a flush.
            self.intake.ack_decided(&mut again, now);
            self.again = Some(again);
        }
        self.flushes.has_met_failure = true;
        if !self.can_be_acked_soon(now) {
            self.fail_flushes();
        }
    }

    /// A pause lasts long, so it is confirmed only after as many failed probes as a park needs.
    fn doubt_on(&mut self, doubt: Doubt, now: Instant) -> Option<Doubt> {
        let others = doubt.others.saturating_add(1);
        let not_before = now + backoff(&self.options.pace, others.saturating_add(1), &mut self.rng);
        (others < self.options.pace.max_retries).then_some(Doubt { not_before, others, ..doubt })
    }

    /// Sets when an event that has not failed may be probed ahead of its time: some seconds after this failure.
    pub(super) fn let_newcomers_wait(&mut self, now: Instant) {
        let failures = self.pace.consecutive_failures();
        self.newcomers_from = Some(now + newcomer_time(&self.options.pace, failures, &mut self.rng));
    }

    /// Whether a batch that has just failed stays in memory.
    fn is_kept(&self, batch: &Batch, now: Instant) -> bool {
        let is_soon = match self.pace.health() {
            Health::Backoff { .. } => self.is_next_attempt_near(now),
            Health::Paused { .. } => batch.events > 1,
            Health::Up | Health::Cooldown { .. } => false,
        };
        is_soon && (self.doubted.is_some() || self.is_same_request(batch))
    }

    /// Whether the batch is a V1 request that is sent again under its id rather than in parts.
    fn is_same_request(&self, batch: &Batch) -> bool {
        self.options.protocol() == CaptureProtocol::V1 && (batch.asked_again || batch.events == 1)
    }

    /// Whether one of the next probes can decide if the endpoint is down: there is an event that has not failed, or a
    /// batch that failed and can be sent in parts.
    fn can_be_acked_soon(&mut self, now: Instant) -> bool {
        let has_parts = |again: &Batch| again.events > 1 && !again.asked_again;
        let is_waiting = matches!(self.pace.health(), Health::Cooldown { .. }) || self.pace.active_hold(now).is_some();
        if self.doubted.is_none() || is_waiting || self.source.is_held() {
            return false;
        }
        // What may be there is looked for: a flush that asked for a read while a request was under way has not read.
        self.again.as_ref().is_some_and(has_parts) || self.intake.has_fresh(now, &mut self.flushes).unwrap_or(true)
    }

    /// Ends flushes with the failure once no probe that is due soon can show that the endpoint works.
    pub(super) fn fail_flushes_if_down(&mut self) {
        let is_down = self.flushes.has_met_failure && self.pace.health() != Health::Up;
        if is_down && self.under_way.is_empty() && !self.can_be_acked_soon(now()) {
            self.fail_flushes();
        }
    }

    fn note_failure(&mut self, ticket: Ticket, failure: Failure, events: usize, now: Instant) -> bool {
        let before = self.pace.health();
        let is_counted = match failure.pause {
            Some(_) => {
                self.pause_reason = failure.text.clone();
                self.pace.paused(now, ticket, failure.status, &mut self.rng)
            }
            None => self.pace.failed(now, ticket, failure.retry_after, &mut self.rng),
        };
        if !is_counted {
            // Several requests of one round failed; the first of them was counted and reported.
            return false;
        }
        self.state.failed_attempts += 1;
        if self.episode.is_news(&failure.notice) {
            (self.report)(failure.notice);
        }
        if let Some(stop) = self.stop.as_mut().filter(|_| ticket.is_of_stop()) {
            stop.failed(now, failure.unreachable, &self.options.pace, &mut self.rng);
            if failure.pause == Some(true) && events == 1 {
                // A refused key or quota does not recover within the deadline of a stop.
                stop.give_up();
            }
        }
        if let Health::Cooldown { until } = self.pace.health()
            && before != self.pace.health()
            && self.episode.is_park_told()
        {
            let seconds = until.saturating_duration_since(now).as_secs();
            let attempts = self.pace.consecutive_failures();
            (self.report)(Notice::Cooldown { seconds, attempts, reason: failure.text });
        }
        true
    }

    /// The next probe while it is not known whether the endpoint works: one event that has not failed, if there is any.
    pub(super) fn probe(&mut self, now: Instant) -> Result<Option<Batch>, SourceError> {
        let fresh = self.newcomer(now)?;
        if fresh.is_some() {
            return Ok(fresh);
        }
        if let Some(probe) = self.other_than_a_lone_one(now)?.or_else(|| self.part_of_what_failed()) {
            return Ok(Some(probe));
        }
        let any = self.intake.assemble(&self.limits, Wanted::Any, true, now, &mut self.flushes)?;
        self.take_due();
        Ok(any.or_else(|| self.split.pop(&self.limits, &mut self.intake.loaded)))
    }

    /// An event that has not failed; if possible the newest, which is least related to those that have.
    fn newcomer(&mut self, now: Instant) -> Result<Option<Batch>, SourceError> {
        // Where nobody was there, or the key was refused, no event is suspected: the oldest goes first.
        if self.newcomers_from.is_some() {
            let newest = self.intake.assemble(&self.limits, Wanted::Newest, true, now, &mut self.flushes)?;
            if newest.is_some() {
                return Ok(newest);
            }
        }
        self.intake.assemble(&self.limits, Wanted::Fresh, true, now, &mut self.flushes)
    }

    /// Whether the kept batch is a single event (or none is kept) and another batch that failed went back to the queue.
    fn has_failed_beside_a_lone_one(&self) -> bool {
        match &self.again {
            Some(again) => again.events < 2 && self.intake.has_failed_besides(again),
            None => self.intake.chunks_that_failed() > 1,
        }
    }

    /// One event of such a returned batch. Without it, the single event, which may be the bad one, is the only probe.
    fn other_than_a_lone_one(&mut self, now: Instant) -> Result<Option<Batch>, SourceError> {
        if !self.has_failed_beside_a_lone_one() {
            return Ok(None);
        }
        self.intake.assemble(&self.limits, Wanted::Any, true, now, &mut self.flushes)
    }

    /// The kept batch, whole while it may be sent again as it is, otherwise one event of it.
    fn part_of_what_failed(&mut self) -> Option<Batch> {
        let again = self.again.take()?;
        let is_dear = self.stop.is_some() || self.doubted.is_some_and(|doubt| doubt.is_dear);
        if again.events < 2 || again.asked_again || (again.failures < 2 && !is_dear) {
            return Some(again);
        }
        let place = self.intake.next_place(again.events);
        let (part, rest) = again.take_out(place, &mut self.intake.loaded);
        self.again = Some(rest);
        Some(part)
    }

    /// A probe that is sent ahead of its time during a park or a pause, because only a single batch has failed so far,
    /// or because there is an event that has not failed and all events before it may have been bad.
    pub(super) fn confirmation(&mut self, now: Instant) -> Result<Option<(Batch, Ticket)>, SourceError> {
        if self.confirms_at(now).is_none_or(|at| at > now) || !self.under_way.is_empty() {
            return Ok(None);
        }
        let batch = match self.newcomer(now)? {
            Some(fresh) => Some(fresh),
            None if self.doubted.is_some() => self.other_than_a_lone_one(now)?.or_else(|| self.part_of_what_failed()),
            None => self.part_of_what_failed(),
        };
        Ok(batch.map(|batch| (batch, self.pace.ahead_of_time())))
    }

    /// When such a probe may be sent, if there is something to send.
    pub(super) fn confirms_at(&self, now: Instant) -> Option<Instant> {
        let is_waiting = matches!(self.pace.health(), Health::Cooldown { .. } | Health::Paused { .. });
        let is_free = self.stop.is_none() && self.pace.active_hold(now).is_none();
        let from = match self.doubted {
            Some(doubt) => doubt.not_before,
            None => self.newcomers_from?,
        };
        let has_other = self.doubted.is_some() && self.has_failed_beside_a_lone_one();
        let has_something = self.intake.may_have_fresh() || self.again.is_some() || has_other;
        (is_waiting && is_free && has_something).then_some(from)
    }

    /// The endpoint works, so the kept batch that failed is searched.
    pub(super) fn search_what_failed(&mut self) {
        self.doubted = None;
        if let Some(again) = self.again.take() {
            self.split.push_whole(again);
        }
    }

    /// Quarantined events are tried one at a time: some of them may hang.
    pub(super) fn take_due(&mut self) {
        let is_trying = self.under_way.values().any(|(batch, _)| batch.quarantined > 0);
        if !is_trying && !self.split.has_quarantined() && !self.is_last_slot(now()) {
            self.split.push(self.intake.take_due());
        }
    }

    /// Whether another request must wait: while many fail in a row, one request is under way at a time.
    pub(super) fn is_crowded(&self, permit: Permit, now: Instant) -> bool {
        let is_taken = || self.under_way.values().any(|(batch, _)| !self.hangs(batch, now));
        matches!(permit, Permit::Send { .. }) && self.split.is_losing() && is_taken()
    }

    /// Whether requests hang and only one slot is left. A request that hangs in that slot too would block all others.
    pub(super) fn is_last_slot(&self, now: Instant) -> bool {
        let does_any_hang = || self.under_way.values().any(|(batch, _)| self.hangs(batch, now));
        self.pace.health() == Health::Up && self.under_way.len() + 1 >= self.pace.slots() && does_any_hang()
    }

    /// Whether a request that is under way hangs: it has been under way for long, and one sent later was accepted.
    fn hangs(&self, batch: &Batch, now: Instant) -> bool {
        batch.sent.is_some_and(|(number, at)| {
            number < self.newest_accepted && self.patience.hangs(now.saturating_duration_since(at))
        })
    }

    /// The endpoint is down or sending is held back: everything that is not under way goes back to the queue, and
    /// events that have a verdict are acked.
    pub(super) fn let_go(&mut self, now: Instant) {
        self.forget_request(now);
        self.step_back(now);
    }

    /// Returns the kept batch to the queue. Its events become part of a new request.
    fn forget_request(&mut self, now: Instant) {
        if let Some(batch) = self.again.take() {
            self.intake.note_failure(&batch);
            self.intake.release(&batch, now);
        }
    }

    /// Returns everything to the queue except requests under way and the kept batch.
    fn step_back(&mut self, now: Instant) {
        let pieces: Vec<Batch> = self.split.drain().collect();
        for piece in &pieces {
            self.intake.note_failure(piece);
            self.intake.release(piece, now);
        }
        self.intake.release_ready(now);
        self.flushes.went_back();
    }
}
