//! Decides whether a failed attempt is the fault of its events or of the endpoint, and what is reported of an outage.
//!
//! Every kind of failure is treated in the same way: a status that is no decision, a refusal that is not PostHog's, a
//! connection that was cut, a timeout. The events are at fault if a request that was sent later was accepted, if the
//! batch is a piece of a bisection that goes on, if the request was given up early (`send.rs`), or if its event is
//! quarantined already. Then the pace does not change, and the batch is bisected (`bisect.rs`) until each event that
//! fails is alone and is quarantined (`quarantine.rs`).
//!
//! Otherwise the endpoint may be down, and the pace slows down (`pace.rs`). While this is the only batch that failed,
//! the outage is *unconfirmed* and the batch stays in memory. The next probe is one event that has not failed. If there
//! is none, the same batch is sent once more, because most failures are transient, and then one event of it. When a
//! probe of another event fails too, the outage is confirmed and everything is released. When a probe passes, the batch
//! is bisected.
//!
//! An outage may last for days, and the ring of diagnostics keeps some hundred. So each kind of failure is reported
//! once between two successes, and cooldowns are reported when their number has doubled.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::batch::{Batch, uuid_of};
use super::engine::{Engine, now};
use super::intake::Wanted;
use super::loaded::QuarantineReason;
use super::notice::cooldown;
use super::pace::{Health, Permit, Ticket, fresh_probe_wait};
use super::quarantine::EventId;
use super::{CaptureProtocol, SourceError};
use crate::report::Diagnostic;

/// A failed batch is kept for its next attempt no longer than this: it cannot be evicted meanwhile.
const MOST_WAIT: Duration = Duration::from_secs(60);

/// Why an attempt failed.
pub(super) struct Failure {
    /// The reason, in one line.
    pub(super) text: String,
    /// What is reported, unless the same kind of failure was reported in this outage already.
    pub(super) diagnostic: Diagnostic,
    /// The server's `Retry-After`.
    pub(super) retry_after: Option<Duration>,
    /// No connection was made, so the events cannot be the cause.
    pub(super) unreachable: bool,
    /// The answer's status; 0 if there is none.
    pub(super) status: u16,
    /// PostHog answered `retry` for some of the events.
    pub(super) asked_again: bool,
}

impl Failure {
    /// `Some` if the key, the quota or the encoding is refused; `Some(true)` if the response is PostHog's.
    fn pause(&self) -> Option<bool> {
        if let Diagnostic::Paused { by_posthog, .. } = self.diagnostic { Some(by_posthog) } else { None }
    }
}

/// An unconfirmed outage: so far a single batch has failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnconfirmedOutage {
    /// No probe is sent ahead of its time before this.
    not_before: Instant,
    /// The batch failed slowly, or for the key or the quota, so it is not sent again as a whole.
    is_costly: bool,
    /// Other probes that were refused for the key or the quota.
    others: u32,
}

impl Engine {
    /// Handles a failed attempt: blames the events or the endpoint.
    pub(super) fn failed(&mut self, batch: Batch, ticket: Ticket, failure: Failure) {
        let now = now();
        let took = batch.sent.map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(at));
        let is_slow = !failure.unreachable && self.timeouts.failed(now, took);
        self.state.last_error = Some(failure.text.clone());
        let is_given_up = batch.given_up_after.is_some_and(|limit| took >= limit);
        if self.are_events_to_blame(&batch, &failure, is_given_up) {
            self.search(batch, &failure, is_slow, now);
        } else {
            self.count_against_endpoint(batch, ticket, failure, is_slow, now);
        }
    }

    fn are_events_to_blame(&self, batch: &Batch, failure: &Failure, is_given_up: bool) -> bool {
        if failure.unreachable || self.pace.health() != Health::Up || self.bisection.is_hopeless() {
            return false;
        }
        if batch.quarantined > 0 {
            return true;
        }
        if self.bisection.is_losing() && self.bisection.is_empty() && self.in_flight.is_empty() && batch.events == 1 {
            // The search has ended and nothing in it passed.
            return false;
        }
        let later_ones_passed = batch.sent.is_some_and(|(number, _)| number < self.newest_accepted);
        later_ones_passed || is_given_up || batch.is_piece || !self.bisection.is_empty()
    }

    /// Other requests pass, so the batch is cut in two, or its single event is quarantined.
    fn search(&mut self, batch: Batch, failure: &Failure, is_slow: bool, now: Instant) {
        self.pace.asked_to_wait(now, failure.retry_after, &mut self.rng);
        self.bisection.failed(batch.events, is_slow, now);
        if batch.events > 1 {
            let (first, second) = batch.halves(&mut self.intake.loaded);
            self.bisection.push([first, second]);
        } else {
            self.quarantine(&batch, failure);
            self.intake.release(&batch, now);
        }
    }

    /// Quarantines an event that failed alone while others passed. It was not refused, so it is tried again, at longer
    /// and longer intervals.
    fn quarantine(&mut self, batch: &Batch, failure: &Failure) {
        let Some((chunk, _, seq, uuid)) = self.first_event(batch) else { return };
        let event = EventId::of(chunk, seq);
        self.intake.quarantine.quarantine_failed_event(event);
        self.intake.loaded.quarantine(chunk, QuarantineReason::EventsFail);
        // The first failure may have been chance, so the second is the one that is reported.
        if batch.quarantined == 1 {
            let status = failure.status;
            let said = failure.text.strip_prefix(&format!("HTTP status {status}")).unwrap_or(&failure.text);
            let reason = said.trim_start_matches([':', ' ']).to_owned();
            (self.report)(Diagnostic::Quarantined { uuid, status, reason });
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
    fn count_against_endpoint(
        &mut self,
        mut batch: Batch,
        ticket: Ticket,
        failure: Failure,
        is_slow: bool,
        now: Instant,
    ) {
        let is_first = self.pace.consecutive_failures() == 0;
        let (is_pause, unreachable) = (failure.pause().is_some(), failure.unreachable);
        // PostHog's own word on the key or the quota is not about an event either.
        let is_never_an_event = unreachable || failure.pause() == Some(true);
        let is_counted = self.note_failure(ticket, failure, batch.events, now);
        if is_counted && is_first && !unreachable {
            let not_before = now + self.options.pace.backoff.wait(1, &mut self.rng);
            self.unconfirmed = Some(UnconfirmedOutage { not_before, is_costly: is_slow || is_pause, others: 0 });
        } else if is_counted && (batch.failures == 0 || unreachable) {
            self.unconfirmed =
                self.unconfirmed.take().filter(|_| is_pause).and_then(|outage| self.keep_unconfirmed(outage, now));
        }
        if is_counted {
            self.delay_fresh_probe(now);
            self.fresh_probe_from = self.fresh_probe_from.filter(|_| !is_never_an_event);
        }
        batch.failures = batch.failures.saturating_add(1);
        if batch.quarantined > 0 {
            batch.chunks().for_each(|chunk| self.intake.loaded.quarantine(chunk, QuarantineReason::EventsFail));
        }
        if !unreachable {
            self.intake.note_failure(&batch);
        }
        if is_counted && self.kept.is_none() && self.is_kept(&batch, now) {
            self.kept = Some(batch);
        } else {
            self.intake.release(&batch, now);
        }
        if !self.kept.as_ref().is_some_and(|again| self.is_kept(again, now)) {
            self.release_kept(now);
        }
        self.release_queued(now);
        if let Some(mut again) = self.kept.take() {
            // What is decided of this batch is acked before the failure is reported to a flush.
            self.intake.ack_decided(&mut again, now);
            self.kept = Some(again);
        }
        self.flushes.has_met_failure = true;
        if !self.can_be_acked_soon(now) {
            self.fail_flushes();
        }
    }

    /// A pause lasts long, so it is confirmed only after as many failed probes as a cooldown needs.
    fn keep_unconfirmed(&mut self, outage: UnconfirmedOutage, now: Instant) -> Option<UnconfirmedOutage> {
        let others = outage.others.saturating_add(1);
        let not_before = now + self.options.pace.backoff.wait(others.saturating_add(1), &mut self.rng);
        (others < self.options.pace.max_retries).then_some(UnconfirmedOutage { not_before, others, ..outage })
    }

    /// Sets when an event that has not failed may be probed ahead of its time: some seconds after this failure.
    pub(super) fn delay_fresh_probe(&mut self, now: Instant) {
        let failures = self.pace.consecutive_failures();
        self.fresh_probe_from = Some(now + fresh_probe_wait(&self.options.pace, failures, &mut self.rng));
    }

    /// Whether a batch that has just failed stays in memory.
    fn is_kept(&self, batch: &Batch, now: Instant) -> bool {
        let is_soon = match self.pace.health() {
            Health::Backoff { .. } => self.pace.waits_until(now).is_some_and(|at| at <= now + MOST_WAIT),
            Health::Paused { .. } => batch.events > 1,
            Health::Up | Health::Cooldown { .. } => false,
        };
        is_soon && (self.unconfirmed.is_some() || self.is_same_request(batch))
    }

    /// Whether the batch is a V1 request that is sent again under its id rather than in parts.
    fn is_same_request(&self, batch: &Batch) -> bool {
        self.options.protocol == CaptureProtocol::V1 && (batch.asked_again || batch.events == 1)
    }

    /// Whether one of the next probes can decide if the endpoint is down: there is an event that has not failed, or a
    /// batch that failed and can be sent in parts.
    fn can_be_acked_soon(&mut self, now: Instant) -> bool {
        let has_parts = |again: &Batch| again.events > 1 && !again.asked_again;
        let is_waiting =
            matches!(self.pace.health(), Health::Cooldown { .. }) || self.pace.retry_after_deadline(now).is_some();
        if self.unconfirmed.is_none() || is_waiting || self.source.is_held() {
            return false;
        }
        // What may be there is looked for: a flush that asked for a read while a request was under way has not read.
        self.kept.as_ref().is_some_and(has_parts) || self.intake.has_fresh(now, &mut self.flushes).unwrap_or(true)
    }

    /// Ends flushes with the failure once no probe that is due soon can show that the endpoint works.
    pub(super) fn fail_flushes_if_down(&mut self) {
        let is_down = self.flushes.has_met_failure && self.pace.health() != Health::Up;
        if is_down && self.in_flight.is_empty() && !self.can_be_acked_soon(now()) {
            self.fail_flushes();
        }
    }

    fn note_failure(&mut self, ticket: Ticket, failure: Failure, events: usize, now: Instant) -> bool {
        let before = self.pace.health();
        let is_counted = match failure.pause() {
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
        self.state.failing_since.get_or_insert(self.clock.now());
        if self.outage_reports.is_news(&failure) {
            (self.report)(failure.diagnostic.clone());
        }
        if let Some(stop) = self.stop.as_mut().filter(|_| ticket.is_of_stop()) {
            stop.failed(now, failure.unreachable, &self.options.pace, &mut self.rng);
            if failure.pause() == Some(true) && events == 1 {
                // A refused key or quota does not recover within the deadline of a stop.
                stop.give_up();
            }
        }
        if let Health::Cooldown { until } = self.pace.health()
            && before != self.pace.health()
            && self.outage_reports.is_cooldown_reported()
        {
            let lasts = Duration::from_secs(until.saturating_duration_since(now).as_secs());
            let attempts = self.pace.consecutive_failures();
            (self.report)(cooldown(lasts, attempts, &failure.text));
        }
        true
    }

    /// The next probe while it is not known whether the endpoint works: one event that has not failed, if there is any.
    pub(super) fn probe(&mut self, now: Instant) -> Result<Option<Batch>, SourceError> {
        let fresh = self.fresh_probe(now)?;
        if fresh.is_some() {
            return Ok(fresh);
        }
        if let Some(probe) = self.other_than_a_lone_one(now)?.or_else(|| self.part_of_what_failed()) {
            return Ok(Some(probe));
        }
        let any = self.intake.assemble(&self.limits, Wanted::Any, true, now, &mut self.flushes)?;
        self.take_due();
        Ok(any.or_else(|| self.bisection.pop(&self.limits, &mut self.intake.loaded)))
    }

    /// An event that has not failed; if possible the newest, which is least related to those that have.
    fn fresh_probe(&mut self, now: Instant) -> Result<Option<Batch>, SourceError> {
        // Where no connection was possible, or the key was refused, no event is the cause: the oldest goes first.
        if self.fresh_probe_from.is_some() {
            let newest = self.intake.assemble(&self.limits, Wanted::Newest, true, now, &mut self.flushes)?;
            if newest.is_some() {
                return Ok(newest);
            }
        }
        self.intake.assemble(&self.limits, Wanted::Fresh, true, now, &mut self.flushes)
    }

    /// Whether the kept batch is a single event (or none is kept) and another batch that failed went back to the queue.
    fn has_failed_beside_a_lone_one(&self) -> bool {
        match &self.kept {
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
        let again = self.kept.take()?;
        let is_costly = self.stop.is_some() || self.unconfirmed.is_some_and(|outage| outage.is_costly);
        if again.events < 2 || again.asked_again || (again.failures < 2 && !is_costly) {
            return Some(again);
        }
        let place = self.intake.next_place(again.events);
        let (part, rest) = again.take_out(place, &mut self.intake.loaded);
        self.kept = Some(rest);
        Some(part)
    }

    /// A probe that is sent ahead of its time during a cooldown or a pause, because only a single batch has failed so
    /// far, or because there is an event that has not failed and all events before it may have been bad.
    pub(super) fn confirmation(&mut self, now: Instant) -> Result<Option<(Batch, Ticket)>, SourceError> {
        if self.confirms_at(now).is_none_or(|at| at > now) || !self.in_flight.is_empty() {
            return Ok(None);
        }
        let batch = match self.fresh_probe(now)? {
            Some(fresh) => Some(fresh),
            None if self.unconfirmed.is_some() => {
                self.other_than_a_lone_one(now)?.or_else(|| self.part_of_what_failed())
            }
            None => self.part_of_what_failed(),
        };
        Ok(batch.map(|batch| (batch, self.pace.ahead_of_time())))
    }

    /// When such a probe may be sent, if there is something to send.
    pub(super) fn confirms_at(&self, now: Instant) -> Option<Instant> {
        let is_waiting = matches!(self.pace.health(), Health::Cooldown { .. } | Health::Paused { .. });
        let is_free = self.stop.is_none() && self.pace.retry_after_deadline(now).is_none();
        let from = match self.unconfirmed {
            Some(outage) => outage.not_before,
            None => self.fresh_probe_from?,
        };
        let has_other = self.unconfirmed.is_some() && self.has_failed_beside_a_lone_one();
        let has_something = self.intake.may_have_fresh() || self.kept.is_some() || has_other;
        (is_waiting && is_free && has_something).then_some(from)
    }

    /// The endpoint works, so the kept batch that failed is searched.
    pub(super) fn bisect_kept(&mut self) {
        self.unconfirmed = None;
        if let Some(again) = self.kept.take() {
            self.bisection.push_whole(again);
        }
    }

    /// Quarantined events are tried one at a time: some of them may hang.
    pub(super) fn take_due(&mut self) {
        let is_trying = self.in_flight.values().any(|(batch, _)| batch.quarantined > 0);
        if !is_trying && !self.bisection.has_quarantined() && !self.is_last_slot(now()) {
            self.bisection.push(self.intake.take_due());
        }
    }

    /// Whether another request must wait: while many fail in a row, one request is under way at a time.
    pub(super) fn is_crowded(&self, permit: Permit, now: Instant) -> bool {
        let is_taken = || self.in_flight.values().any(|(batch, _)| !self.hangs(batch, now));
        matches!(permit, Permit::Send { .. }) && self.bisection.is_losing() && is_taken()
    }

    /// Whether requests hang and only one slot is left. A request that hangs in that slot too would block all others.
    pub(super) fn is_last_slot(&self, now: Instant) -> bool {
        let does_any_hang = || self.in_flight.values().any(|(batch, _)| self.hangs(batch, now));
        self.pace.health() == Health::Up && self.in_flight.len() + 1 >= self.pace.slots() && does_any_hang()
    }

    /// Whether a request that is under way hangs: it has been under way for long, and one sent later was accepted.
    fn hangs(&self, batch: &Batch, now: Instant) -> bool {
        batch.sent.is_some_and(|(number, at)| {
            number < self.newest_accepted && self.timeouts.hangs(now.saturating_duration_since(at))
        })
    }

    /// The endpoint is down or the program has opted out: acks what is decided and releases everything that is not in
    /// flight.
    pub(super) fn release_idle(&mut self, now: Instant) {
        self.release_kept(now);
        self.release_queued(now);
    }

    /// Returns the kept batch to the queue. Its events become part of a new request.
    fn release_kept(&mut self, now: Instant) {
        if let Some(batch) = self.kept.take() {
            self.intake.note_failure(&batch);
            self.intake.release(&batch, now);
        }
    }

    /// Returns everything to the queue except requests under way and the kept batch.
    fn release_queued(&mut self, now: Instant) {
        let pieces: Vec<Batch> = self.bisection.drain().collect();
        for piece in &pieces {
            self.intake.note_failure(piece);
            self.intake.release(piece, now);
        }
        self.intake.release_ready(now);
        self.flushes.went_back();
    }
}

/// What was reported of an outage.
#[derive(Debug, Default)]
pub(super) struct OutageReports {
    kinds: Vec<(&'static str, bool, bool)>,
    cooldowns: u32,
}

impl OutageReports {
    /// Whether a failure is the first of its kind. Records it.
    pub(super) fn is_news(&mut self, failure: &Failure) -> bool {
        // No response, an error and a request for a retry are three kinds, with the same kind of diagnostic.
        let kind = (failure.diagnostic.kind(), failure.status == 0, failure.asked_again);
        let is_news = !self.kinds.contains(&kind);
        if is_news {
            self.kinds.push(kind);
        }
        is_news
    }

    /// Counts a cooldown. Returns whether it is the first, second, fourth, eighth and so on.
    pub(super) fn is_cooldown_reported(&mut self) -> bool {
        self.cooldowns = self.cooldowns.saturating_add(1);
        self.cooldowns.is_power_of_two()
    }
}

/// A text that was not mentioned for this long is reported again.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Maximum number of remembered texts.
const MAX_MENTIONED: usize = 64;

/// Texts that a server repeats with one response after the other, and that are reported once for as long as it does.
/// Not every response has them: that depends on the events of the request.
#[derive(Debug, Default)]
pub(super) struct RecentMentions {
    last: HashMap<String, Instant>,
}

impl RecentMentions {
    /// Whether a text was not mentioned recently. Records it.
    pub(super) fn is_news(&mut self, what: &str, now: Instant) -> bool {
        self.last.retain(|_, at| now.saturating_duration_since(*at) < FORGOTTEN);
        if self.last.len() >= MAX_MENTIONED && !self.last.contains_key(what) {
            return false;
        }
        self.last.insert(what.to_owned(), now).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_text_is_reported_once_and_after_an_hour_without() {
        let (mut mentions, now) = (RecentMentions::default(), Instant::now());
        let minutes = |minutes: u64| now + Duration::from_secs(60 * minutes);
        let reported: Vec<_> = (0..300).filter(|&minute| mentions.is_news("events", minutes(minute))).collect();
        assert_eq!(reported, [0]);
        assert!(mentions.is_news("exceptions", minutes(299)) && !mentions.is_news("events", minutes(300)));
        assert!(mentions.is_news("events", minutes(360)));
        (0..1000).for_each(|nth| assert!(mentions.is_news(&nth.to_string(), minutes(360)) == (nth < 63)));
    }

    fn failed(status: u16) -> Failure {
        let diagnostic = Diagnostic::EndpointFailing { reason: String::new() };
        Failure { text: String::new(), diagnostic, retry_after: None, unreachable: false, status, asked_again: false }
    }

    #[test]
    fn each_kind_of_failure_is_news_once_in_an_episode() {
        let mut outage_reports = OutageReports::default();
        let news = [failed(503), failed(502), failed(0), failed(503)];
        assert_eq!(news.map(|failure| outage_reports.is_news(&failure)), [true, false, true, false]);
        assert!(OutageReports::default().is_news(&failed(503)));
    }

    #[test]
    fn of_a_day_of_parks_nine_are_told() {
        let mut outage_reports = OutageReports::default();
        assert_eq!((0..400).filter(|_| outage_reports.is_cooldown_reported()).count(), 9);
    }
}
