//! Decides whether a failed attempt is the fault of its events or of the endpoint, and what is probed until that is
//! known.
//!
//! Every kind of failure is treated in the same way: a status that is no decision, a refusal that is not PostHog's, a
//! connection that was cut, a timeout. This file follows a failed attempt in the order of what happens to it:
//!
//! 1. [`Engine::failed`] asks whether the events are at fault. They are if a request that was sent later was accepted,
//!    if the batch is a piece of a bisection that goes on, if the request was given up early (`send.rs`), or if its
//!    event is quarantined already.
//! 2. If they are, the pace does not change. The batch is bisected (`bisect.rs`) until each event that fails is alone
//!    and is quarantined (`quarantine.rs`).
//! 3. Otherwise the endpoint may be down, and the pace slows down (`pace.rs`). While this is the only batch that
//!    failed, the outage is *unconfirmed* and the batch stays in memory; everything else that is not in flight is
//!    released.
//! 4. The next probe is one event that has not failed. If there is none, the same batch is sent once more, because most
//!    failures are transient, and then one event of it. When a probe of another event fails too, the outage is
//!    confirmed, and the batch is released. When a probe passes, the batch is bisected.
//!
//! An outage may last for days, and the ring of diagnostics keeps some hundred. So each kind of failure is reported
//! once between two successes, and cooldowns are reported when their number has doubled.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;

use super::batch::{Batch, uuid_of};
use super::engine::{Engine, now};
use super::intake::Wanted;
use super::loaded::QuarantineReason;
use super::notice::cooldown;
use super::pace::{Health, PaceOptions, fresh_probe_wait};
use super::quarantine::{EventId, NEVER_REFUSED};
use super::{CaptureProtocol, SourceError};
use crate::report::{Backlog, Diagnostic};
use crate::transport::host_and_path;

/// A failed batch is kept for its next attempt no longer than this: it cannot be evicted meanwhile.
const MOST_WAIT: Duration = Duration::from_secs(60);

/// A batch is sent as a whole until it has failed this often, and then in parts.
const WHOLE_ATTEMPTS: u32 = 2;

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

impl Failure {
    /// A failure that may be about the events or the endpoint.
    pub(super) fn new(status: u16, text: String, diagnostic: Diagnostic) -> Self {
        Self { text, diagnostic, retry_after: None, unreachable: false, status, asked_again: false }
    }
}

/// What is known from the failed attempts since the last acceptance, besides the pace.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outage {
    /// A single batch has failed so far.
    pub(super) is_unconfirmed: bool,
    /// An event may be the cause of the last failure.
    may_be_events: bool,
    /// When a probe may be sent ahead of its time, in a cooldown or a pause.
    probe_from: Option<Instant>,
}

impl Outage {
    /// What is known after one more failed attempt: the `nth` in a row, of a batch that has failed before or not.
    fn after(
        self,
        nth: u32,
        is_known_batch: bool,
        failure: &Failure,
        options: &PaceOptions,
        now: Instant,
        rng: &mut StdRng,
    ) -> Self {
        // PostHog's own word on the key or the quota is not about an event.
        let may_be_events = !failure.unreachable && failure.pause() != Some(true);
        // A pause lasts long, so it is confirmed only after as many failed probes as a cooldown needs.
        let confirms = !is_known_batch && (failure.pause().is_none() || nth > options.max_retries);
        let is_unconfirmed = !failure.unreachable && (nth == 1 || (self.is_unconfirmed && !confirms));
        let probe_from = match is_unconfirmed {
            true if nth > 1 && is_known_batch => self.probe_from,
            true => Some(now + options.backoff.wait(nth, rng)),
            false => may_be_events.then(|| now + fresh_probe_wait(options, nth, rng)),
        };
        Self { is_unconfirmed, may_be_events, probe_from }
    }
}

impl Engine {
    /// Handles a failed attempt: blames the events or the endpoint.
    pub(super) fn failed(&mut self, batch: Batch, failure: Failure) {
        let now = now();
        let took = batch.sent.map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(at));
        let is_slow = !failure.unreachable && self.timeouts.failed(now, took);
        self.state.last_error = Some(failure.text.clone());
        if self.are_events_to_blame(&batch, &failure, took) {
            self.search(batch, &failure, is_slow, now);
        } else {
            self.count_against_endpoint(batch, failure, is_slow, now);
        }
    }

    fn are_events_to_blame(&self, batch: &Batch, failure: &Failure, took: Duration) -> bool {
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
        let is_given_up = batch.given_up_after.is_some_and(|limit| took >= limit);
        later_ones_passed || is_given_up || batch.is_piece || !self.bisection.is_empty()
    }

    /// Other requests pass, so the batch is cut in two, or its single event is quarantined.
    fn search(&mut self, batch: Batch, failure: &Failure, is_slow: bool, now: Instant) {
        self.pace.asked_to_wait(now, failure.retry_after, &mut self.rng);
        self.bisection.failed(batch.events, is_slow, now);
        if batch.events > 1 {
            self.bisection.push(batch.halves(&mut self.intake.loaded));
        } else {
            self.quarantine(&batch, failure);
            self.intake.release(&batch, now);
        }
    }

    /// Quarantines an event that failed alone while others passed. It was not refused, so it is tried again, at longer
    /// and longer intervals.
    fn quarantine(&mut self, batch: &Batch, failure: &Failure) {
        let Some((slice, seq, body)) = batch.records(&self.intake.loaded).next() else { return };
        let uuid = uuid_of(body);
        self.intake.quarantine.quarantine_event(EventId::of(slice.chunk, seq), NEVER_REFUSED);
        self.intake.loaded.quarantine(slice.chunk, QuarantineReason::EventsFail);
        // The first failure may have been chance, so the second is the one that is reported.
        if batch.quarantined == 1 {
            let status = failure.status;
            let said = failure.text.strip_prefix(&format!("HTTP status {status}")).unwrap_or(&failure.text);
            let reason = said.trim_start_matches([':', ' ']).to_owned();
            (self.report)(Diagnostic::Quarantined { uuid, status, reason });
        }
    }

    /// The endpoint may be down: slows down the pace, and keeps the batch or returns it to the queue.
    fn count_against_endpoint(&mut self, mut batch: Batch, failure: Failure, is_slow: bool, now: Instant) {
        let is_counted = self.slow_down(&batch, &failure, now);
        if is_counted {
            let (nth, is_known_batch) = (self.pace.consecutive_failures(), batch.failures > 0);
            let (options, rng) = (&self.options.pace, &mut self.rng);
            self.outage = self.outage.after(nth, is_known_batch, &failure, options, now, rng);
        }
        // One that failed slowly, or for the key or the quota, is not sent once more as a whole.
        let is_costly = is_slow || failure.pause().is_some();
        batch.failures = batch.failures.saturating_add(if is_costly { WHOLE_ATTEMPTS } else { 1 });
        if batch.quarantined > 0 {
            batch.chunks().for_each(|chunk| self.intake.loaded.quarantine(chunk, QuarantineReason::EventsFail));
        }
        if !failure.unreachable {
            self.intake.note_failure(&batch);
        }
        if is_counted && self.kept.is_none() && self.is_kept(&batch, now) {
            self.kept = Some(batch);
        } else {
            self.intake.release(&batch, now);
        }
        if !self.kept.as_ref().is_some_and(|kept| self.is_kept(kept, now)) {
            self.release_kept(now);
        }
        self.release_queued(now);
        if let Some(kept) = &mut self.kept {
            // What is decided of this batch is acked before the failure is reported to a flush.
            self.intake.ack_decided(kept, now);
        }
        self.intake.flushes.has_met_failure = true;
        if !self.can_be_acked_soon(now) {
            self.fail_flushes();
        }
    }

    /// Counts a failed attempt in the pace and in a stop, and reports it. Returns `false` if the attempt changes
    /// nothing: several requests of one generation failed, and the first of them was counted and reported.
    fn slow_down(&mut self, batch: &Batch, failure: &Failure, now: Instant) -> bool {
        let (before, ticket) = (self.pace.health(), batch.ticket);
        let is_counted = match failure.pause() {
            Some(_) => {
                self.pause_reason = failure.text.clone();
                self.pace.paused(now, ticket, failure.status, &mut self.rng)
            }
            None => self.pace.failed(now, ticket, failure.retry_after, &mut self.rng),
        };
        if !is_counted {
            return false;
        }
        self.state.failed_attempts += 1;
        self.state.failing_since.get_or_insert(self.clock.now());
        if self.outage_reports.is_news(failure) {
            self.report_outage(failure.diagnostic.clone(), now);
        }
        if let Some(stop) = self.stop.as_mut().filter(|_| ticket.of_stop) {
            stop.failed(now, failure.unreachable, &self.options.pace, &mut self.rng);
            // A refused key or quota does not recover within the deadline of a stop.
            stop.gave_up |= failure.pause() == Some(true) && batch.events == 1;
        }
        if matches!(self.pace.health(), Health::Cooldown { .. })
            && before != self.pace.health()
            && self.outage_reports.is_cooldown_reported()
        {
            self.report_outage(cooldown(self.pace.consecutive_failures(), &failure.text), now);
        }
        true
    }

    /// Reports a diagnostic about an outage, or its end, with what waits for the endpoint.
    pub(super) fn report_outage(&self, diagnostic: Diagnostic, now: Instant) {
        let (host, _) = host_and_path(&self.options.url);
        let next_attempt = self.pace.waits_until(now).map(|at| at.saturating_duration_since(now));
        let is_cooldown = matches!(self.pace.health(), Health::Cooldown { .. });
        let backlog = Backlog { host: host.to_owned(), events: self.source.waiting(), next_attempt, is_cooldown };
        (self.report)(diagnostic.with_backlog(backlog));
    }

    /// Whether a batch that has failed stays in memory.
    fn is_kept(&self, batch: &Batch, now: Instant) -> bool {
        let is_soon = match self.pace.health() {
            Health::Backoff { .. } => self.pace.waits_until(now).is_some_and(|at| at <= now + MOST_WAIT),
            Health::Paused { .. } => batch.events > 1,
            Health::Up | Health::Cooldown { .. } => false,
        };
        // A V1 request that is sent again under its id rather than in parts.
        let is_same_request = self.options.protocol == CaptureProtocol::V1 && (batch.asked_again || batch.events == 1);
        is_soon && (self.outage.is_unconfirmed || is_same_request)
    }

    /// Whether one of the next probes can decide if the endpoint is down: there is an event that has not failed, or a
    /// batch that failed and can be sent in parts.
    fn can_be_acked_soon(&mut self, now: Instant) -> bool {
        let has_parts = |kept: &Batch| kept.events > 1 && !kept.asked_again;
        let is_waiting =
            matches!(self.pace.health(), Health::Cooldown { .. }) || self.pace.retry_after_deadline(now).is_some();
        if !self.outage.is_unconfirmed || is_waiting || self.source.is_held() {
            return false;
        }
        // What may be there is looked for: a flush that asked for a read while a request was under way has not read.
        self.kept.as_ref().is_some_and(has_parts) || self.intake.has_fresh(now).unwrap_or(true)
    }

    /// Ends flushes with the failure once no probe that is due soon can show that the endpoint works.
    pub(super) fn fail_flushes_if_down(&mut self) {
        let is_down = self.intake.flushes.has_met_failure && self.pace.health() != Health::Up;
        if is_down && self.in_flight.is_empty() && !self.can_be_acked_soon(now()) {
            self.fail_flushes();
        }
    }

    /// The next probe while it is not known whether the endpoint works.
    pub(super) fn probe(&mut self, now: Instant) -> Result<Option<Batch>, SourceError> {
        let telling = self.telling_probe(now, true)?;
        if telling.is_some() {
            return Ok(telling);
        }
        let any = self.intake.assemble(&self.limits, 1, Wanted::Any, now)?;
        self.take_due();
        Ok(any.or_else(|| self.bisection.pop(&self.limits, &mut self.intake.loaded)))
    }

    /// A probe that is sent ahead of its time during a cooldown or a pause, because only a single batch has failed so
    /// far, or because there is an event that has not failed and all events before it may have been bad.
    pub(super) fn probe_ahead_of_time(&mut self, now: Instant) -> Result<Option<Batch>, SourceError> {
        if self.probes_ahead_from(now).is_none_or(|at| at > now) || !self.in_flight.is_empty() {
            return Ok(None);
        }
        let probe = self.telling_probe(now, self.outage.is_unconfirmed)?;
        Ok(probe.map(|batch| Batch { ticket: self.pace.ahead_of_time(), ..batch }))
    }

    /// When such a probe may be sent, if there is something to send.
    pub(super) fn probes_ahead_from(&self, now: Instant) -> Option<Instant> {
        let is_waiting = matches!(self.pace.health(), Health::Cooldown { .. } | Health::Paused { .. });
        let is_free = self.stop.is_none() && self.pace.retry_after_deadline(now).is_none();
        let has_other = self.outage.is_unconfirmed && self.has_failed_beside_a_lone_one();
        let has_something = self.intake.fresh || self.kept.is_some() || has_other;
        self.outage.probe_from.filter(|_| is_waiting && is_free && has_something)
    }

    /// A probe whose result shows whether the events or the endpoint fail: an event that has not failed, if there is
    /// any; otherwise one of another batch that failed, if `takes_failed`; otherwise the kept batch or an event of it.
    fn telling_probe(&mut self, now: Instant, takes_failed: bool) -> Result<Option<Batch>, SourceError> {
        // The newest is least related to those that failed. Where no event is the cause, the oldest goes first.
        if self.outage.may_be_events
            && let Some(newest) = self.intake.assemble(&self.limits, 1, Wanted::Newest, now)?
        {
            return Ok(Some(newest));
        }
        if let Some(fresh) = self.intake.assemble(&self.limits, 1, Wanted::Fresh, now)? {
            return Ok(Some(fresh));
        }
        // Without it, the single event that is kept, which may be the bad one, is the only probe.
        if takes_failed
            && self.has_failed_beside_a_lone_one()
            && let Some(other) = self.intake.assemble(&self.limits, 1, Wanted::Any, now)?
        {
            return Ok(Some(other));
        }
        Ok(self.part_of_kept())
    }

    /// Whether the kept batch is a single event (or none is kept) and another batch that failed went back to the queue.
    fn has_failed_beside_a_lone_one(&self) -> bool {
        match &self.kept {
            Some(kept) => kept.events < 2 && self.intake.has_failed_besides(kept),
            None => self.intake.chunks_that_failed() > 1,
        }
    }

    /// The kept batch, whole while it may be sent again as it is, otherwise one event of it, each time another.
    fn part_of_kept(&mut self) -> Option<Batch> {
        let kept = self.kept.take()?;
        let failures = kept.failures;
        if kept.events < 2 || kept.asked_again || (failures < WHOLE_ATTEMPTS && self.stop.is_none()) {
            return Some(kept);
        }
        let place = self.intake.next_place(kept.events);
        let (part, rest) = kept.take_out(place, &mut self.intake.loaded);
        self.kept = Some(Batch { failures, ..rest });
        Some(part)
    }

    /// The endpoint works, so the kept batch that failed is searched.
    pub(super) fn bisect_kept(&mut self) {
        self.outage = Outage::default();
        if let Some(kept) = self.kept.take() {
            self.bisection.push_whole(kept);
        }
    }

    /// The endpoint is down or the program has opted out: acks what is decided and releases everything that is not in
    /// flight.
    pub(super) fn release_idle(&mut self, now: Instant) {
        self.release_kept(now);
        self.release_queued(now);
    }

    /// Returns the kept batch to the queue. Its events become part of a new request.
    fn release_kept(&mut self, now: Instant) {
        if let Some(kept) = self.kept.take() {
            self.intake.note_failure(&kept);
            self.intake.release(&kept, now);
        }
    }

    /// Returns everything to the queue except requests under way and the kept batch.
    fn release_queued(&mut self, now: Instant) {
        for piece in self.bisection.drain() {
            self.intake.note_failure(&piece);
            self.intake.release(&piece, now);
        }
        self.intake.release_ready(now);
        self.intake.flushes.went_back();
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
    use rand::SeedableRng;

    use super::super::notice::failing;
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
        Failure::new(status, String::new(), failing(String::new()))
    }

    /// The outage after failures in a row: why each failed, and whether it was of the first batch again.
    fn after(failures: &[(Failure, bool)]) -> Outage {
        let (options, now, mut rng) = (PaceOptions::default(), Instant::now(), StdRng::seed_from_u64(1));
        (1..).zip(failures).fold(Outage::default(), |outage, (nth, (failure, is_known_batch))| {
            outage.after(nth, *is_known_batch, failure, &options, now, &mut rng)
        })
    }

    #[test]
    fn an_outage_is_confirmed_by_another_batch_or_no_connection() {
        let busy = || failed(503);
        let refuses_key = |by_posthog| {
            let diagnostic =
                Diagnostic::Paused { status: 401, reason: String::new(), by_posthog, backlog: Backlog::default() };
            Failure::new(401, String::new(), diagnostic)
        };
        let unreachable = || Failure { unreachable: true, ..busy() };
        let is_unconfirmed = |failures: &[_]| after(failures).is_unconfirmed;
        assert!(is_unconfirmed(&[(busy(), false)]));
        assert!(is_unconfirmed(&[(busy(), false), (busy(), true), (busy(), true), (busy(), true)]));
        assert!(!is_unconfirmed(&[(busy(), false), (busy(), true), (busy(), false)]));
        assert!(
            !is_unconfirmed(&[(unreachable(), false)]) && !is_unconfirmed(&[(busy(), false), (unreachable(), true)])
        );
        assert!(is_unconfirmed(&[(refuses_key(true), false), (refuses_key(true), false), (refuses_key(true), false)]));
        let four = [(); 4].map(|()| (refuses_key(false), false));
        assert!(!is_unconfirmed(&four) && after(&four).probe_from.is_some());
        let four = [(); 4].map(|()| (refuses_key(true), false));
        assert!(after(&four).probe_from.is_none(), "no event is the cause of what PostHog itself says of the key");
    }

    #[test]
    fn each_kind_of_failure_is_news_once_in_an_outage() {
        let mut outage_reports = OutageReports::default();
        let news = [failed(503), failed(502), failed(0), failed(503)];
        assert_eq!(news.map(|failure| outage_reports.is_news(&failure)), [true, false, true, false]);
        assert!(OutageReports::default().is_news(&failed(503)));
    }

    #[test]
    fn of_a_day_of_cooldowns_nine_are_reported() {
        let mut outage_reports = OutageReports::default();
        assert_eq!((0..400).filter(|_| outage_reports.is_cooldown_reported()).count(), 9);
    }
}
