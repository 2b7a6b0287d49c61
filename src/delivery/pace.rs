//! The pace: decides when the next request may be sent. A state machine without a clock, a timer, or randomness of its
//! own.
//!
//! Several requests may be in flight when the endpoint breaks, and all of them fail: that is one failed attempt, not
//! several. So each request has a [`Ticket`] with the number of the *generation* it was sent in. The first failure ends
//! the generation, and responses to requests of an ended generation change nothing (but a `Retry-After` is always
//! honoured).

use std::time::{Duration, Instant};

use rand::Rng;

use crate::sys::backoff::{Backoff, SHORTEST, doubled, jitter};

/// The shortest wait between two cycles, which doubles up to the second value. Jitter adds up to as much again.
const COOLDOWN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(150));
/// The range of the wait after an event has failed alone for the first time.
const QUARANTINE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5));
/// The longest wait, during an outage, before an event that has not failed is probed: at first, and after
/// [`MANY_FRESH_PROBES`] failures.
const FRESH_PROBE: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(20));
/// The number of failures, beyond the first cycle of attempts, that counts as many.
const MANY_FRESH_PROBES: u32 = 20;
/// The longest time that is added to a `Retry-After`. It is a tenth of it otherwise.
const RETRY_AFTER_SPREAD: Duration = Duration::from_secs(30);
/// A flush within this time of a failure is answered with that failure instead of causing another.
const FRESH_FAILURE: Duration = Duration::from_secs(1);

/// The settings of the pace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PaceOptions {
    /// Maximum number of requests in flight.
    pub(crate) max_in_flight: usize,
    /// Attempts after the first within one cycle.
    pub(crate) max_retries: u32,
    /// The waits within a cycle.
    pub(crate) backoff: Backoff,
    /// The longest `Retry-After` that is honoured.
    pub(crate) retry_after_cap: Duration,
    /// The longest wait before the first request of a process that finds a backlog: many processes may start at once.
    pub(crate) first_send_jitter: Duration,
}

impl Default for PaceOptions {
    fn default() -> Self {
        Self {
            max_in_flight: 4,
            max_retries: 3,
            backoff: Backoff { first: Duration::from_secs(1), most: Duration::from_secs(30) },
            retry_after_cap: Duration::from_secs(3600),
            first_send_jitter: Duration::from_secs(1),
        }
    }
}

/// The circumstances in which a request was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ticket {
    generation: u64,
    /// Sent ahead of its time for a flush or a stop. Its failure is not an attempt of the cycle.
    forced: bool,
    /// Sent after a stop began.
    pub(super) of_stop: bool,
}

/// Whether a request may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    /// Yes.
    Send {
        /// To be returned with the response.
        ticket: Ticket,
        /// One event, if possible one that has not failed.
        small: bool,
    },
    /// Not before a response has arrived.
    Full,
    /// Not before this time.
    Wait(Instant),
}

/// The state of the endpoint, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It works.
    Up,
    /// It failed, within a cycle of attempts.
    Backoff { until: Instant },
    /// It failed a whole cycle.
    Cooldown { until: Instant },
    /// It refuses the key or the encoding, or a quota is used up.
    Paused { status: u16, until: Instant },
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Pace {
    options: PaceOptions,
    health: Health,
    /// The `Retry-After` deadline. Nothing is sent before it, not even for a flush.
    retry_after_until: Option<Instant>,
    generation: u64,
    /// How many requests may be in flight. Doubles with each acceptance.
    window: usize,
    failures_of_cycle: u32,
    /// Number of cooldowns and pauses in a row.
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
            retry_after_until: None,
            generation: 0,
            window: 1,
            failures_of_cycle: 0,
            waits: 0,
            consecutive_failures: 0,
            last_failure: None,
        }
    }

    /// Resumes the `Retry-After` deadline of an earlier process. A clock that was set meanwhile cannot move it beyond
    /// the cap.
    pub(super) fn resume_retry_after(&mut self, now: Instant, wait: Duration) {
        if !wait.is_zero() {
            self.retry_after_until = Some(now + wait.min(self.options.retry_after_cap));
        }
    }

    /// Delays the first request of a process that finds a backlog, by a random time up to `first_send_jitter`.
    pub(super) fn delay_first_send(&mut self, now: Instant, rng: &mut impl Rng) {
        let wait = jitter(Duration::ZERO, self.options.first_send_jitter, rng);
        if !wait.is_zero() {
            self.health = Health::Backoff { until: now + wait };
        }
    }

    /// Whether a request may be sent. `eager`: a flush or a stop wants it now.
    pub(super) fn permit(&self, now: Instant, in_flight: usize, eager: bool) -> Permit {
        if let Some(retry_after_until) = self.retry_after_deadline(now) {
            return Permit::Wait(retry_after_until);
        }
        let send = |small, forced| Permit::Send {
            ticket: Ticket { generation: self.generation, forced, of_stop: false },
            small,
        };
        let until = match self.health {
            Health::Up if in_flight < self.slots() => return send(false, false),
            Health::Up => return Permit::Full,
            Health::Backoff { until } | Health::Cooldown { until } | Health::Paused { until, .. } => until,
        };
        // The wait before the first request of a backlog does not follow a failure.
        let small = self.consecutive_failures > 0;
        // A probe is sent alone: not before all requests from before the failure have ended.
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

    /// The endpoint accepted a request. Returns whether that ended an outage.
    pub(super) fn accepted(&mut self, ticket: Ticket) -> bool {
        if ticket.generation != self.generation {
            return false;
        }
        self.responded(ticket);
        self.window = self.window.saturating_mul(2).min(self.options.max_in_flight.max(1));
        self.waits = 0;
        std::mem::take(&mut self.consecutive_failures) > 0
    }

    /// The endpoint responded, but did not accept the request: no reason to wait, and no proof that an outage is over.
    /// A `Retry-After` deadline stays: the request may have been in flight when the server asked for it.
    pub(super) fn responded(&mut self, ticket: Ticket) {
        if ticket.generation == self.generation {
            self.health = Health::Up;
            self.failures_of_cycle = 0;
        }
    }

    /// A request failed. Returns `false` if it was sent before a failure that was counted already.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        ticket: Ticket,
        retry_after: Option<Duration>,
        rng: &mut impl Rng,
    ) -> bool {
        let asked = self.asked_to_wait(now, retry_after, rng);
        if !self.ends_generation(now, ticket) {
            return false;
        }
        if ticket.forced {
            return true;
        }
        self.failures_of_cycle = self.failures_of_cycle.saturating_add(1);
        if self.failures_of_cycle > self.options.max_retries {
            self.cooldown(now, rng);
        } else {
            let wait = self.options.backoff.wait(self.failures_of_cycle, rng);
            self.health = Health::Backoff { until: asked.unwrap_or(now + wait) };
        }
        true
    }

    /// Honours a `Retry-After`, whatever the response was about.
    pub(super) fn asked_to_wait(
        &mut self,
        now: Instant,
        retry_after: Option<Duration>,
        rng: &mut impl Rng,
    ) -> Option<Instant> {
        let wait = retry_after.filter(|wait| !wait.is_zero())?.min(self.options.retry_after_cap);
        // Other clients were given the same second, and must not all return in it.
        let spread = jitter(Duration::ZERO, (wait / 10).min(RETRY_AFTER_SPREAD), rng);
        let until = now + wait + spread;
        self.retry_after_until = self.retry_after_until.max(Some(until));
        Some(until)
    }

    /// The key or the encoding was refused, or a quota is used up. Returns `false` if the request was sent before a
    /// failure that was counted already.
    pub(super) fn paused(&mut self, now: Instant, ticket: Ticket, status: u16, rng: &mut impl Rng) -> bool {
        if !self.ends_generation(now, ticket) {
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

    /// Every request is refused: an outage that looks like refusals.
    pub(super) fn refuses_everything(&mut self, now: Instant, rng: &mut impl Rng) {
        self.generation += 1;
        self.window = 1;
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        self.last_failure = Some(now);
        self.cooldown(now, rng);
    }

    /// The ticket of a probe ahead of its time, which shows whether the events or the endpoint are at fault.
    pub(super) fn ahead_of_time(&self) -> Ticket {
        Ticket { generation: self.generation, forced: true, of_stop: false }
    }

    /// The state of the endpoint, as far as it is known.
    pub(super) fn health(&self) -> Health {
        self.health
    }

    /// How many requests may be in flight while the endpoint works.
    pub(super) fn slots(&self) -> usize {
        self.window.min(self.options.max_in_flight.max(1))
    }

    /// When the next request may be sent; `None` while the endpoint works and no `Retry-After` deadline is set.
    pub(super) fn waits_until(&self, now: Instant) -> Option<Instant> {
        let until = match self.health {
            Health::Up => None,
            Health::Backoff { until } | Health::Cooldown { until } | Health::Paused { until, .. } => Some(until),
        };
        until.max(self.retry_after_deadline(now))
    }

    /// Whether a flush sends no request: a `Retry-After` deadline forbids it, or a request has just failed.
    pub(super) fn flush_is_futile(&self, now: Instant) -> bool {
        let fresh = self.last_failure.is_some_and(|at| now.saturating_duration_since(at) < FRESH_FAILURE);
        self.retry_after_deadline(now).is_some() || (self.health != Health::Up && fresh)
    }

    /// The `Retry-After` deadline, if it has not passed.
    pub(super) fn retry_after_deadline(&self, now: Instant) -> Option<Instant> {
        self.retry_after_until.filter(|&retry_after_until| now < retry_after_until)
    }

    /// Failed attempts since the last success.
    pub(super) fn consecutive_failures(&self) -> u32 {
        self.consecutive_failures
    }

    /// Ends the generation of `ticket`. Returns `false` if it has ended already: then the failure changes nothing more.
    fn ends_generation(&mut self, now: Instant, ticket: Ticket) -> bool {
        if ticket.generation != self.generation {
            return false;
        }
        self.generation += 1;
        self.window = 1;
        self.last_failure = Some(now);
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        true
    }

    fn cooldown(&mut self, now: Instant, rng: &mut impl Rng) {
        self.failures_of_cycle = 0;
        let until = self.wait_until(now, rng);
        self.health = Health::Cooldown { until };
    }

    fn wait_until(&mut self, now: Instant, rng: &mut impl Rng) -> Instant {
        self.waits = self.waits.saturating_add(1);
        now + cooldown_time(self.waits, rng)
    }
}

/// The `nth` wait in a row between two cycles, from 1: 30-60 s, 60-120 s, and so on up to 150-300 s.
pub(super) fn cooldown_time(nth: u32, rng: &mut impl Rng) -> Duration {
    let shortest = doubled(COOLDOWN.0, nth).min(COOLDOWN.1);
    jitter(shortest, shortest * 2, rng)
}

/// The wait after `failures` failures in a row before an event that has not failed is probed ahead of time. With the
/// default options it is 1-2 s until the 8th failure, 2-4 s until the 13th, 4-8 s until the 23rd, and then 10-20 s.
pub(super) fn fresh_probe_wait(options: &PaceOptions, failures: u32, rng: &mut impl Rng) -> Duration {
    let beyond = failures.saturating_sub(options.max_retries.saturating_add(1));
    let most = if beyond < MANY_FRESH_PROBES { FRESH_PROBE.0 } else { FRESH_PROBE.1 };
    let growing = doubled(options.backoff.first.saturating_mul(2), beyond / 5 + 1);
    let longest = growing.min(most).min(options.backoff.most);
    jitter(longest / 2, longest, rng).max(SHORTEST)
}

/// The wait after an event has failed alone for the `nth` time: 2-5 s, because that may have been chance, and then as
/// long as between two cycles.
pub(super) fn quarantine_time(nth: u32, rng: &mut impl Rng) -> Duration {
    match nth {
        0 | 1 => jitter(QUARANTINE.0, QUARANTINE.1, rng),
        _ => cooldown_time(nth - 1, rng),
    }
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;
