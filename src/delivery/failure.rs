//! An attempt came to nothing: is it the events, or the endpoint?
//!
//! The same question, whatever happened: a status that is no verdict, a refusal in a stranger's words, a connection that was cut, a
//! timeout. The events are to blame if others passed that were sent later, or if this was a piece of a search that goes on, or an event
//! that is quarantined already. Then the endpoint is left at its pace, and the batch is cut until what fails is alone (`split.rs`) and
//! is quarantined (`aside.rs`).
//!
//! Else it may be the endpoint, and the pace slows down (`pace.rs`). While this is the only batch that failed, the outage is
//! *unconfirmed*: the batch stays in memory, and the next probe is one event that has not failed; where there is none, the same batch
//! once more, for most failures pass, and then one event of it. When one of these fails as well, the outage is confirmed and everything
//! goes back to the queue; when one passes, the batch is searched.

use std::time::{Duration, Instant};

use super::Notice;
use super::aside::EventId;
use super::batch::{Batch, uuid_of};
use super::engine::{Engine, now};
use super::intake::Wanted;
use super::loaded::Reason;
use super::pace::{Health, Permit, Ticket, backoff, newcomer_time};
use super::{Protocol, SourceError};

/// Why an attempt came to nothing.
pub(super) struct Failure {
    /// In one line.
    pub(super) text: String,
    /// What is told, if it is news.
    pub(super) notice: Notice,
    /// When the server wants to hear from us again.
    pub(super) retry_after: Option<Duration>,
    /// Nobody was there to talk to, so it has nothing to do with the events.
    pub(super) unreachable: bool,
    /// The answer's status; 0 if there is none.
    pub(super) status: u16,
    /// The key, the quota or the encoding is refused; `true`: in PostHog's words.
    pub(super) pause: Option<bool>,
}

/// The doubt whether an outage is one: so far a single batch has failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    /// Until then nothing is asked ahead of its time.
    not_before: Instant,
    /// It failed slowly, or in a way that the same batch will not be spared: it is not sent again as it is.
    is_dear: bool,
    /// Other probes that were refused for the key or the quota.
    others: u32,
}

impl Engine {
    /// An attempt came to nothing.
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
            // The search has come to its end without anything that passed.
            return false;
        }
        let later_ones_passed = batch.sent.is_some_and(|(number, _)| number < self.newest_accepted);
        later_ones_passed || is_given_up || batch.is_piece || !self.split.is_empty()
    }

    /// Others pass: the batch is cut, and an event that fails alone is quarantined.
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

    /// An event failed on its own while others passed. That is no refusal: it is tried again, ever more rarely.
    fn quarantine(&mut self, batch: &Batch, failure: &Failure) {
        let Some((chunk, _, seq, uuid)) = self.first_event(batch) else { return };
        let event = EventId::of(chunk, seq);
        self.intake.aside.suspect_of_failing(event);
        self.intake.loaded.set_aside(chunk, Reason::EventsFail);
        // The first time may have been chance.
        if batch.quarantined == 1 {
            let status = failure.status;
            let said = failure.text.strip_prefix(&format!("HTTP status {status}")).unwrap_or(&failure.text);
            let reason = said.trim_start_matches([':', ' ']).to_owned();
            (self.report)(Notice::Suspected { uuid, status, reason });
        }
    }

    /// Where the first open event of a batch is: chunk, position, sequence number; and its uuid.
    pub(super) fn first_event(&self, batch: &Batch) -> Option<(super::ChunkRef, usize, u64, uuid::Uuid)> {
        batch.slices.iter().find_map(|slice| {
            let (position, seq, body) = self.intake.loaded.open(slice).next()?;
            Some((slice.chunk, position, seq, uuid_of(body)))
        })
    }

    /// Perhaps the endpoint is down.
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
        self.intake.note_failure(&batch);
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
            // Whoever is told of the failure finds settled what is decided.
            self.intake.settle_decided(&mut again, now);
            self.again = Some(again);
        }
        self.flushes.has_met_failure = true;
        if !self.can_be_settled_soon(now) {
            self.fail_flushes();
        }
    }

    /// A pause lasts long, so it takes as many probes as an outage to be one.
    fn doubt_on(&mut self, doubt: Doubt, now: Instant) -> Option<Doubt> {
        let others = doubt.others.saturating_add(1);
        let not_before = now + backoff(&self.options.pace, others.saturating_add(1), &mut self.rng);
        (others < self.options.pace.max_retries).then_some(Doubt { not_before, others, ..doubt })
    }

    /// An event that has not failed is probed ahead of its time, but not so soon after a failure.
    pub(super) fn let_newcomers_wait(&mut self, now: Instant) {
        let failures = self.pace.consecutive_failures();
        self.newcomers_from = Some(now + newcomer_time(&self.options.pace, failures, &mut self.rng));
    }

    /// Whether a batch that has just failed stays in memory.
    fn is_kept(&self, batch: &Batch, now: Instant) -> bool {
        let is_soon = match self.pace.health() {
            Health::Backoff { .. } => self.is_next_attempt_near(now),
            Health::Paused { .. } => batch.events > 1,
            Health::Up | Health::Parked { .. } => false,
        };
        is_soon && (self.doubted.is_some() || self.is_same_request(batch))
    }

    /// V1 knows it, and a smaller one would not do.
    fn is_same_request(&self, batch: &Batch) -> bool {
        self.options.protocol(batch.lane()) == Protocol::V1 && (batch.asked_again || batch.events == 1)
    }

    /// Whether one of the next probes will show if it is the endpoint: something that has not failed, or a part of what has.
    fn can_be_settled_soon(&self, now: Instant) -> bool {
        let has_parts = |again: &Batch| again.events > 1 && !again.asked_again;
        let is_waiting = matches!(self.pace.health(), Health::Parked { .. }) || self.pace.active_hold(now).is_some();
        let may_settle = self.intake.may_have_fresh() || self.again.as_ref().is_some_and(has_parts);
        self.doubted.is_some() && !is_waiting && may_settle && !self.source.is_held()
    }

    /// A flush waits while it is open whether the endpoint is down, and no longer.
    pub(super) fn fail_flushes_if_down(&mut self) {
        let is_down = self.flushes.has_met_failure && self.pace.health() != Health::Up;
        if is_down && self.under_way.is_empty() && !self.can_be_settled_soon(now()) {
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
            // One of several that were under way together: what there is to say was said of the first.
            return false;
        }
        self.state.failed_attempts += 1;
        if self.episode.is_news(&failure.notice) {
            (self.report)(failure.notice);
        }
        if let Some(stop) = self.stop.as_mut().filter(|_| ticket.is_of_stop()) {
            stop.failed(now, failure.unreachable, &self.options.pace, &mut self.rng);
            if failure.pause == Some(true) && events == 1 {
                // Neither a key nor a quota comes back within the deadline of a stop.
                stop.give_up();
            }
        }
        if let Health::Parked { until } = self.pace.health()
            && before != self.pace.health()
            && self.episode.is_park_told()
        {
            let seconds = until.saturating_duration_since(now).as_secs();
            let attempts = self.pace.consecutive_failures();
            (self.report)(Notice::Parked { seconds, attempts, reason: failure.text });
        }
        true
    }

    /// What to send while it is open whether the endpoint works: one event that has not failed, if there is any.
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

    /// An event that has not failed; if possible the newest, which has the least to do with what has.
    fn newcomer(&mut self, now: Instant) -> Result<Option<Batch>, SourceError> {
        match self.intake.assemble(&self.limits, Wanted::Newest, true, now, &mut self.flushes)? {
            Some(newest) => Ok(Some(newest)),
            None => self.intake.assemble(&self.limits, Wanted::Fresh, true, now, &mut self.flushes),
        }
    }

    /// Whether a batch has failed that was under way beside a single event, and went back to the queue.
    fn has_failed_beside_a_lone_one(&self) -> bool {
        match &self.again {
            Some(again) => again.events < 2 && self.intake.has_failed_besides(again),
            None => self.intake.chunks_that_failed() > 1,
        }
    }

    /// One event of such a batch: the single event may be the bad one, and would be the only probe otherwise.
    fn other_than_a_lone_one(&mut self, now: Instant) -> Result<Option<Batch>, SourceError> {
        if !self.has_failed_beside_a_lone_one() {
            return Ok(None);
        }
        self.intake.assemble(&self.limits, Wanted::Any, true, now, &mut self.flushes)
    }

    /// What failed, once more as it is, or one event of it.
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

    /// A request that goes ahead of its time, in a park or a pause, because so far only a single batch has failed, or because an event
    /// has not failed yet: perhaps all that came before it was bad.
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

    /// From when on such a request may go, if there is something to send.
    pub(super) fn confirms_at(&self, now: Instant) -> Option<Instant> {
        let is_waiting = matches!(self.pace.health(), Health::Parked { .. } | Health::Paused { .. });
        let is_free = self.stop.is_none() && self.pace.active_hold(now).is_none();
        let from = match self.doubted {
            Some(doubt) => doubt.not_before,
            None => self.newcomers_from?,
        };
        let has_other = self.doubted.is_some() && self.has_failed_beside_a_lone_one();
        let has_something = self.intake.may_have_fresh() || self.again.is_some() || has_other;
        (is_waiting && is_free && has_something).then_some(from)
    }

    /// The endpoint works, so what failed before is searched.
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

    /// While much fails in a row there is one request at a time, also if something passed before.
    pub(super) fn is_crowded(&self, permit: Permit, now: Instant) -> bool {
        let is_taken = || self.under_way.values().any(|(batch, _)| !self.hangs(batch, now));
        matches!(permit, Permit::Send { .. }) && self.split.is_losing() && is_taken()
    }

    /// Whether requests hang, and only one more may be under way: whatever hangs there too would hold up all the rest.
    pub(super) fn is_last_slot(&self, now: Instant) -> bool {
        let does_any_hang = || self.under_way.values().any(|(batch, _)| self.hangs(batch, now));
        self.pace.health() == Health::Up && self.under_way.len() + 1 >= self.pace.slots() && does_any_hang()
    }

    /// Whether a request that is under way hangs: others that were sent later were answered, and long ago.
    fn hangs(&self, batch: &Batch, now: Instant) -> bool {
        batch.sent.is_some_and(|(number, at)| {
            number < self.newest_accepted && self.patience.hangs(now.saturating_duration_since(at))
        })
    }

    /// The endpoint is down, or sending is held back: what is not under way goes back to the queue, which settles what is decided of it.
    pub(super) fn let_go(&mut self, now: Instant) {
        self.forget_request(now);
        self.step_back(now);
    }

    /// What failed and was kept goes back to the queue, and will be part of another request.
    fn forget_request(&mut self, now: Instant) {
        if let Some(batch) = self.again.take() {
            self.intake.note_failure(&batch);
            self.intake.release(&batch, now);
        }
    }

    /// All goes back but what is under way, and what failed and is kept.
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
