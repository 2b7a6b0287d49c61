//! When the next request may go: a state machine without a clock, a timer, or chance of its own.
//!
//! Several requests may be under way when the endpoint breaks, and all of them fail: that is one outage, not several attempts. So each
//! request checkpoints a [`Ticket`] with the number of the *round* it was sent in; the first failure ends the round, and answers of an
//! ended round change nothing (but a `Retry-After` is always heard).

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

/// No attempt follows a failure faster than this.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// The shortest and the longest wait of what failed alone for the first time.
const QUARANTINE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5));
/// During an outage an event that has not failed waits at most so long for a probe of its own; longer once many have failed.
const NEWCOMER: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(20));
/// That is after so many failures beyond the first cycle of attempts.
const MANY_NEWCOMERS: u32 = 20;
/// A flush that comes this soon after a failure is told of that failure instead of causing another.
const FRESH_FAILURE: Duration = Duration::from_secs(1);

/// Every knob of the pace.
#[derive(Clone, Debug)]
pub(crate) struct PaceOptions {
    /// Requests under way at once.
    pub(crate) max_in_flight: usize,
    /// Attempts after the first within one cycle.
    pub(crate) max_retries: u32,
    /// The longest wait after the first failure; doubles with each further one.
    pub(crate) first_backoff: Duration,
    /// The longest wait within a cycle.
    pub(crate) max_backoff: Duration,
    /// The shortest wait between two cycles; it doubles, with as much again of jitter.
    pub(crate) park: Duration,
    /// The longest wait between two cycles.
    pub(crate) max_park: Duration,
    /// A server may make us wait so long and no longer.
    pub(crate) retry_after_cap: Duration,
    /// A process that finds a backlog waits up to so long before its first request: ten thousand of them may start at once.
    pub(crate) first_send_jitter: Duration,
}

impl Default for PaceOptions {
    fn default() -> Self {
        Self {
            max_in_flight: 4,
            max_retries: 3,
            first_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(30),
            park: Duration::from_secs(30),
            max_park: Duration::from_secs(300),
            retry_after_cap: Duration::from_secs(3600),
            first_send_jitter: Duration::from_secs(1),
        }
    }
}

/// What a request was sent under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    round: u64,
    /// Sent ahead of its time for a flush or a stop: its failure spends nothing.
    forced: bool,
    /// Sent after a stop began.
    of_stop: bool,
}

impl Ticket {
    /// For a request that is sent after a stop began.
    pub(super) fn of_stop(self) -> Self {
        Self { of_stop: true, ..self }
    }

    /// Whether it was sent after a stop began.
    pub(super) fn is_of_stop(self) -> bool {
        self.of_stop
    }
}

/// Whether a request may go now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// Yes.
    Send {
        /// To be handed back with the answer.
        ticket: Ticket,
        /// One event, if possible one that has not failed.
        small: bool,
    },
    /// Not before an answer has come.
    Full,
    /// Not before this time.
    Wait(Instant),
}

/// The endpoint, as far as we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It works.
    Up,
    /// It failed; within a cycle of attempts.
    Backoff { until: Instant },
    /// It failed a whole cycle.
    Cooldown { until: Instant },
    /// It does not want our key, or our events for now.
    Paused { status: u16, until: Instant },
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Pace {
    options: PaceOptions,
    health: Health,
    /// Nothing goes before this time, a flush included.
    hold: Option<Instant>,
    round: u64,
    /// How many requests may be under way; doubles with each acceptance.
    window: usize,
    failures_of_cycle: u32,
    /// Parks and pauses in a row.
    waits: u32,
    consecutive_failures: u32,
    last_failure: Option<Instant>,
}

impl Pace {
    /// Before the first request.
    pub(super) fn new(options: PaceOptions) -> Self {
        Self {
            options,
            health: Health::Up,
            hold: None,
            round: 0,
            window: 1,
            failures_of_cycle: 0,
            waits: 0,
            consecutive_failures: 0,
            last_failure: None,
        }
    }

    /// Takes up a hold of an earlier life; a clock that was set in between cannot stretch it beyond the cap.
    pub(super) fn resume_hold(&mut self, now: Instant, wait: Duration) {
        if !wait.is_zero() {
            self.hold = Some(now + wait.min(self.options.retry_after_cap));
        }
    }

    /// There is a backlog at the start.
    pub(super) fn delay_first_send(&mut self, now: Instant, rng: &mut impl Rng) {
        let wait = jitter(Duration::ZERO, self.options.first_send_jitter, rng);
        if !wait.is_zero() {
            self.health = Health::Backoff { until: now + wait };
        }
    }

    /// Whether a request may go. `eager`: somebody waits for a flush or a stop.
    pub(super) fn permit(&self, now: Instant, in_flight: usize, eager: bool) -> Permit {
        if let Some(hold) = self.active_hold(now) {
            return Permit::Wait(hold);
        }
        let send = |small, forced| Permit::Send { ticket: Ticket { round: self.round, forced, of_stop: false }, small };
        let until = match self.health {
            Health::Up if in_flight < self.slots() => return send(false, false),
            Health::Up => return Permit::Full,
            Health::Backoff { until } | Health::Cooldown { until } | Health::Paused { until, .. } => until,
        };
        // The wait before the first request of a backlog is none after a failure.
        let small = self.consecutive_failures > 0;
        // A probe goes alone, also without what is still under way from before the failure.
        if in_flight > 0 {
            Permit::Full
        } else if now >= until {
            send(small, false)
        } else if eager {
            send(small, true)
        } else {
            Permit::Wait(until)
        }
    }

    /// The endpoint accepted a request. Says whether that ended an outage.
    pub(super) fn accepted(&mut self, ticket: Ticket) -> bool {
        if ticket.round != self.round {
            return false;
        }
        self.answered(ticket);
        self.window = self.window.saturating_mul(2).min(self.options.max_in_flight.max(1));
        self.waits = 0;
        std::mem::take(&mut self.consecutive_failures) > 0
    }

    /// The endpoint works, though it did not like the request: no reason to wait, and no proof that the trouble is over. A hold stays: the
    /// request may have been under way already when the server asked to be left alone.
    pub(super) fn answered(&mut self, ticket: Ticket) {
        if ticket.round == self.round {
            self.health = Health::Up;
            self.failures_of_cycle = 0;
        }
    }

    /// A request failed. False if that is no news: it was sent before a failure that is known.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        ticket: Ticket,
        retry_after: Option<Duration>,
        rng: &mut impl Rng,
    ) -> bool {
        let asked = self.asked_to_wait(now, retry_after, rng);
        if !self.ends_round(now, ticket) {
            return false;
        }
        if ticket.forced {
            return true;
        }
        self.failures_of_cycle = self.failures_of_cycle.saturating_add(1);
        if self.failures_of_cycle > self.options.max_retries {
            self.park(now, rng);
        } else {
            let wait = backoff(&self.options, self.failures_of_cycle, rng);
            self.health = Health::Backoff { until: asked.unwrap_or(now + wait) };
        }
        true
    }

    /// The server wants to be left alone for a while, whatever the answer was about.
    pub(super) fn asked_to_wait(
        &mut self,
        now: Instant,
        retry_after: Option<Duration>,
        rng: &mut impl Rng,
    ) -> Option<Instant> {
        retry_after.filter(|wait| !wait.is_zero()).map(|wait| self.hold_back(now, wait, rng))
    }

    /// The key or the quota was refused. False if that is no news, as for `failed`.
    pub(super) fn paused(&mut self, now: Instant, ticket: Ticket, status: u16, rng: &mut impl Rng) -> bool {
        if !self.ends_round(now, ticket) {
            return false;
        }
        let until = match self.health {
            Health::Backoff { until } | Health::Cooldown { until } | Health::Paused { until, .. } if ticket.forced => {
                until
            }
            _ => self.wait_until(now, rng),
        };
        self.health = Health::Paused { status, until };
        true
    }

    /// Nothing that was sent is acceptable: an outage that looks like refusals.
    pub(super) fn refuses_everything(&mut self, now: Instant, rng: &mut impl Rng) {
        self.round += 1;
        self.window = 1;
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        self.last_failure = Some(now);
        self.park(now, rng);
    }

    /// The ticket of a request that goes ahead of its time to find out whether the events or the endpoint are to blame.
    pub(super) fn ahead_of_time(&self) -> Ticket {
        Ticket { round: self.round, forced: true, of_stop: false }
    }

    /// The endpoint, as far as we know.
    pub(super) fn health(&self) -> Health {
        self.health
    }

    /// How many requests may be under way while the endpoint works.
    pub(super) fn slots(&self) -> usize {
        self.window.min(self.options.max_in_flight.max(1))
    }

    /// When the next request of this cycle of attempts may go; `None` outside a cycle.
    pub(super) fn next_of_cycle(&self, now: Instant) -> Option<Instant> {
        match self.health {
            Health::Backoff { until } => Some(self.active_hold(now).map_or(until, |hold| hold.max(until))),
            _ => None,
        }
    }

    /// Whether something keeps us from sending at full speed.
    #[cfg(test)]
    pub(super) fn is_down(&self, now: Instant) -> bool {
        self.health != Health::Up || self.active_hold(now).is_some()
    }

    /// Whether a flush should rather not ask: it may not, or the answer is known.
    pub(super) fn flush_is_futile(&self, now: Instant) -> bool {
        let fresh = self.last_failure.is_some_and(|at| now.saturating_duration_since(at) < FRESH_FAILURE);
        self.active_hold(now).is_some() || (self.health != Health::Up && fresh)
    }

    /// The server's own wish, if it still stands.
    pub(super) fn active_hold(&self, now: Instant) -> Option<Instant> {
        self.hold.filter(|&hold| now < hold)
    }

    /// Outages counted since the last success.
    pub(super) fn consecutive_failures(&self) -> u32 {
        self.consecutive_failures
    }

    /// Ends the round of `ticket`. False if that has ended already: then the request's failure changes nothing more.
    fn ends_round(&mut self, now: Instant, ticket: Ticket) -> bool {
        if ticket.round != self.round {
            return false;
        }
        self.round += 1;
        self.window = 1;
        self.last_failure = Some(now);
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        true
    }

    fn hold_back(&mut self, now: Instant, wait: Duration, rng: &mut impl Rng) -> Instant {
        let wait = wait.min(self.options.retry_after_cap);
        // Whoever was told the same second as we does not come back in the same millisecond.
        let spread = jitter(Duration::ZERO, (wait / 10).min(Duration::from_secs(1)), rng);
        let hold = now + wait + spread;
        self.hold = self.hold.max(Some(hold));
        hold
    }

    fn park(&mut self, now: Instant, rng: &mut impl Rng) {
        self.failures_of_cycle = 0;
        let until = self.wait_until(now, rng);
        self.health = Health::Cooldown { until };
    }

    fn wait_until(&mut self, now: Instant, rng: &mut impl Rng) -> Instant {
        self.waits = self.waits.saturating_add(1);
        now + park_time(&self.options, self.waits, rng)
    }
}

/// The wait after the `nth` failure in a row, from 1.
pub(super) fn backoff(options: &PaceOptions, nth: u32, rng: &mut impl Rng) -> Duration {
    let doublings = nth.saturating_sub(1).min(20);
    let longest = options.first_backoff.saturating_mul(1 << doublings).min(options.max_backoff);
    jitter(Duration::ZERO, longest, rng).max(MIN_BACKOFF)
}

/// The `nth` wait in a row between two cycles, from 1: 30-60 s, 60-120 s, and so on up to 150-300 s.
pub(super) fn park_time(options: &PaceOptions, nth: u32, rng: &mut impl Rng) -> Duration {
    let doubled = options.park.saturating_mul(1 << nth.saturating_sub(1).min(20));
    let shortest = doubled.min(options.max_park / 2).max(options.park);
    jitter(shortest, (shortest * 2).min(options.max_park).max(shortest), rng)
}

/// After a failure: the wait until an event that has not failed is a reason to ask ahead of time, given all failures in a row. Within
/// a cycle the backoffs are shorter; then 1-2 s some times, 2-4 s, 4-8 s for a minute, and from then on 10-20 s.
pub(super) fn newcomer_time(options: &PaceOptions, failures: u32, rng: &mut impl Rng) -> Duration {
    let beyond = failures.saturating_sub(options.max_retries.saturating_add(1));
    let most = if beyond < MANY_NEWCOMERS { NEWCOMER.0 } else { NEWCOMER.1 };
    let growing = options.first_backoff.saturating_mul(2).saturating_mul(1 << (beyond / 5).min(20));
    let longest = growing.min(most).min(options.max_backoff);
    jitter(longest / 2, longest, rng).max(MIN_BACKOFF)
}

/// The wait of what failed alone while others passed, which it did `nth` times: 2-5 s, for it may have failed by chance, and then as
/// long as between two cycles.
pub(super) fn quarantine_time(options: &PaceOptions, nth: u32, rng: &mut impl Rng) -> Duration {
    match nth {
        0 | 1 => jitter(QUARANTINE.0, QUARANTINE.1, rng).min(options.max_park),
        _ => park_time(options, nth - 1, rng),
    }
}

fn jitter(least: Duration, most: Duration, rng: &mut impl Rng) -> Duration {
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(rng.random_range(nanos(least)..=nanos(most).max(nanos(least))))
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;
