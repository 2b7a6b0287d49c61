//! Sends a batch: encodes it, hands it to the transport, and decides how long to wait for the response.
//!
//! A request that hangs holds one of a few slots until its timeout, and bisecting the batch would cost a timeout at
//! each step. So once a request has failed slowly, the following ones get an *early timeout*, and a request in the last
//! slot in which nothing hangs has two seconds. A request that is given up is bisected and tried again like any that
//! failed, and a quarantined event gets twice the time at each further attempt, so that an event that is merely slow
//! succeeds in the end. A probe during a confirmed outage has its whole timeout.

use std::time::{Duration, Instant};

use super::CaptureProtocol;
use super::batch::Batch;
use super::engine::{Engine, sleep_until};
use super::loaded::QuarantineReason;
use super::pace::Health;
use super::request::{Body, Exchange};
use crate::sys::clock::WallNanos;
use crate::transport::{Pending, RequestLine, Response, TransportError, logged};

/// Maximum size of a body before compression. The server's limit is 20 MiB; estimates may be wrong.
const MOST_JSON_BYTES: usize = 20 * 1024 * 1024 - 64 * 1024;

/// The response, or an error after `limit`.
async fn within(limit: Option<Duration>, now: Instant, request: Pending) -> Result<Response, TransportError> {
    let given_up = || {
        format!("given up after {} ms, because other requests pass much faster", limit.unwrap_or_default().as_millis())
    };
    tokio::select! {
        answer = request => answer,
        () = sleep_until(limit.map(|limit| now + limit)) => Err(TransportError::Timeout(given_up().into())),
    }
}

impl Engine {
    /// Sends a batch. Events that cannot be sent with the others become pieces of their own.
    pub(super) fn send(&mut self, mut batch: Batch, now: Instant) {
        // PostHog's V1 answers by uuid, and refuses a request that holds one twice.
        if self.options.protocol == CaptureProtocol::V1
            && let Some(repetition) = batch.first_repetition(&self.intake.loaded)
        {
            return self.bisection.push(batch.cut(repetition, &mut self.intake.loaded));
        }
        let wall = self.clock.wall_nanos();
        let exchange = batch.exchange.map_or_else(|| Exchange::new(wall, &mut self.rng), Exchange::next);
        let Some(body) = self.encode(&mut batch, &exchange, wall, now) else { return };
        if body.json_bytes > MOST_JSON_BYTES && batch.events > 1 {
            return self.bisection.push(batch.halves(&mut self.intake.loaded));
        }
        if self.source.is_held() {
            // The program may have opted out while the body was compressed.
            return self.intake.release(&batch, now);
        }
        batch.exchange = Some(exchange);
        let mut last = None;
        for chunk in batch.chunks().filter(|&chunk| last.replace(chunk) != Some(chunk)) {
            let tries = self.intake.loaded.tries(chunk);
            tries.attempts = tries.attempts.saturating_add(1);
            tries.first_attempt.get_or_insert(wall);
        }
        let events = body.events;
        let request = self.options.request(&exchange, wall, body);
        let line = RequestLine::of(&request, Some(events));
        self.sends += 1;
        batch.sent = Some((self.sends, now));
        let request = self.transport.send(request);
        let is_believed_up = self.pace.health() == Health::Up || self.outage.is_unconfirmed;
        let limit = self.timeouts.limit(now, batch.quarantined).filter(|_| is_believed_up);
        let last = self.is_last_slot(now).then(|| self.timeouts.limit_of_last_slot(batch.quarantined));
        let limit = limit.into_iter().chain(last).min();
        batch.given_up_after = limit.filter(|_| self.pace.health() == Health::Up);
        let task = self.requests.spawn(logged(line, within(limit, now, request)));
        self.in_flight.insert(task.id(), batch);
    }

    /// Whether requests hang and only one slot is left. A request that hangs in that slot too would block all others.
    pub(super) fn is_last_slot(&self, now: Instant) -> bool {
        let does_any_hang = || self.in_flight.values().any(|batch| self.hangs(batch, now));
        self.pace.health() == Health::Up && self.in_flight.len() + 1 >= self.pace.slots() && does_any_hang()
    }

    /// Whether a request that is under way hangs: it has been under way for long, and one sent later was accepted.
    pub(super) fn hangs(&self, batch: &Batch, now: Instant) -> bool {
        batch.sent.is_some_and(|(number, at)| {
            number < self.newest_accepted && self.timeouts.hangs(now.saturating_duration_since(at))
        })
    }

    /// Encodes the batch. Records that cannot be read are dead-lettered. `None` if no event is left, or if an
    /// allocation failed: then the chunks are quarantined.
    fn encode(&mut self, batch: &mut Batch, exchange: &Exchange, wall: WallNanos, now: Instant) -> Option<Body> {
        let records = || batch.records(&self.intake.loaded);
        let bodies = records().map(|(.., body)| body);
        // Writing to memory fails only if an allocation does.
        let written = self.options.body(self.options.compression, exchange, wall, bodies).ok();
        self.options.symbols.rest();
        let malformed = written.iter().flat_map(|body| &body.malformed);
        let culprits: Vec<_> =
            malformed.filter_map(|(index, error)| Some((records().nth(*index)?.0, error.to_string()))).collect();
        batch.events = batch.events.saturating_sub(culprits.len());
        for (slice, error) in culprits {
            self.dead_letter(&slice, 0, &format!("its record is damaged: {error}"));
        }
        if written.is_none() {
            // Leased again at once, they would fail again at once.
            batch.chunks().for_each(|chunk| self.intake.loaded.quarantine(chunk, QuarantineReason::Whole));
        }
        if batch.events == 0 || written.is_none() {
            self.intake.release(batch, now);
            return None;
        }
        written
    }
}

/// A failure that took at least this long is a slow one.
const SLOW: Duration = Duration::from_secs(1);
/// The shortest early timeout.
const LEAST: Duration = Duration::from_millis(250);
/// The timeout of a request in the last slot in which nothing hangs.
const LAST_SLOT: Duration = Duration::from_secs(2);
/// A slow failure causes early timeouts for this many times as long as it took.
const LASTS: u32 = 4;

/// The durations of recent requests, and the timeouts that follow from them.
#[derive(Debug, Default)]
pub(super) struct RequestTimeouts {
    /// The duration of the slowest acceptance, which decays with each further one.
    slowest: Duration,
    /// The duration of the slowest failure, and until when it counts.
    slow: Option<(Duration, Instant)>,
}

impl RequestTimeouts {
    /// A request was accepted after this time.
    pub(super) fn accepted(&mut self, took: Duration) {
        self.slowest = took.max(self.slowest / 16 * 15);
    }

    /// A request failed, or was given up, after this time. Returns whether it was slow.
    pub(super) fn failed(&mut self, now: Instant, took: Duration) -> bool {
        // A request that was given up early counts as slow.
        let is_slow = took >= SLOW || self.limit(now, 0).is_some_and(|limit| took >= limit);
        if is_slow {
            let slow = self.slow.map_or(took, |(slow, _)| slow.max(took));
            self.slow = Some((slow, now + slow.saturating_mul(LASTS)));
        }
        is_slow
    }

    /// Whether a request of this age, which later ones have overtaken, hangs.
    pub(super) fn hangs(&self, age: Duration) -> bool {
        age >= SLOW.max(self.slowest.saturating_mul(8))
    }

    /// The timeout of a request in the last slot in which nothing hangs.
    pub(super) fn limit_of_last_slot(&self, quarantined: u32) -> Duration {
        LAST_SLOT.max(self.slowest.saturating_mul(8)).saturating_mul(1 << quarantined.min(16))
    }

    /// The early timeout of a request whose event was quarantined this often. `None`: the transport's own.
    pub(super) fn limit(&self, now: Instant, quarantined: u32) -> Option<Duration> {
        let (slow, until) = self.slow?;
        if now >= until && quarantined == 0 {
            return None;
        }
        let least = (slow / 16).max(self.slowest.saturating_mul(8)).max(LEAST);
        let limit = least.saturating_mul(1 << quarantined.min(16));
        Some(limit).filter(|&limit| limit < slow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[test]
    fn a_slow_failure_causes_early_timeouts_for_a_while() {
        let (mut timeouts, now) = (RequestTimeouts::default(), Instant::now());
        assert!(!timeouts.failed(now, Duration::from_millis(20)));
        assert_eq!(timeouts.limit(now, 0), None);
        assert!(timeouts.failed(now, TIMEOUT));
        assert_eq!(timeouts.limit(now, 0), Some(TIMEOUT / 16));
        assert!(timeouts.failed(now + TIMEOUT, TIMEOUT / 16), "a request given up early counts as slow");
        let end = now + TIMEOUT * 5;
        assert!(timeouts.limit(end - SLOW, 0).is_some());
        assert_eq!(timeouts.limit(end, 0), None);
        assert!(timeouts.limit(end, 1).is_some(), "a quarantined event still has one");
    }

    #[test]
    fn only_requests_much_slower_than_accepted_ones_are_given_up() {
        let (mut timeouts, now) = (RequestTimeouts::default(), Instant::now());
        timeouts.failed(now, TIMEOUT);
        timeouts.accepted(Duration::from_secs(3));
        assert_eq!(timeouts.limit(now, 0), Some(Duration::from_secs(24)));
        timeouts.accepted(Duration::from_secs(4));
        assert_eq!(timeouts.limit(now, 0), None, "it would be longer than the slow failure");
        (0..100).for_each(|_| timeouts.accepted(Duration::from_millis(10)));
        assert_eq!(timeouts.limit(now, 0), Some(TIMEOUT / 16));
    }

    #[test]
    fn what_is_quarantined_has_twice_the_time_at_each_attempt() {
        let (mut timeouts, now) = (RequestTimeouts::default(), Instant::now());
        timeouts.failed(now, TIMEOUT);
        assert_eq!(timeouts.limit(now, 2), Some(TIMEOUT / 4));
        assert_eq!(timeouts.limit(now, 4), None, "the whole timeout");
    }
}
