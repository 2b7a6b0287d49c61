//! A stop: how long it goes on trying.
//!
//! Its deadline is the caller's choice of how much time the events are worth, and where nobody keeps the disk they have no other
//! chance. So a stop makes attempts of its own: the first at once, whatever backoff or park is running, the others after the waits of
//! a cycle. It gives up when a whole cycle has failed, when nobody was there to talk to twice in a row, when the key is refused, or
//! when the next attempt, after a hold for instance, would not come before the deadline.

use std::time::Instant;

use rand::Rng;

use super::pace::{PaceOptions, backoff};

/// A stop under way.
#[derive(Debug)]
pub(super) struct Stop {
    /// When it ends at the latest.
    pub(super) deadline: Instant,
    /// Acceptances counted when it began.
    accepted_before: u64,
    /// Attempts of its own that failed, since the last that did not.
    failures: u32,
    /// There was nobody to talk to at the last of them.
    unreachable: bool,
    not_before: Option<Instant>,
    gave_up: bool,
}

impl Stop {
    /// Begins one, after so many acceptances.
    pub(super) fn new(deadline: Instant, accepted_before: u64) -> Self {
        Self { deadline, accepted_before, failures: 0, unreachable: false, not_before: None, gave_up: false }
    }

    /// An attempt of its own failed.
    pub(super) fn failed(&mut self, now: Instant, unreachable: bool, options: &PaceOptions, rng: &mut impl Rng) {
        self.failures = self.failures.saturating_add(1);
        self.gave_up |= self.failures > options.max_retries || (unreachable && self.unreachable);
        self.unreachable = unreachable;
        self.not_before = Some(now + backoff(options, self.failures, rng));
    }

    /// An attempt succeeded.
    pub(super) fn accepted(&mut self) {
        (self.failures, self.unreachable, self.not_before) = (0, false, None);
    }

    /// A further attempt is of no use.
    pub(super) fn give_up(&mut self) {
        self.gave_up = true;
    }

    /// Whether there will be no further attempt.
    pub(super) fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// Until when it waits between two attempts.
    pub(super) fn waits_until(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|&at| now < at)
    }

    /// Whether nothing was accepted since it began, given the count of acceptances.
    pub(super) fn has_had_no_success(&self, accepted: u64) -> bool {
        accepted == self.accepted_before
    }
}

#[cfg(test)]
#[path = "stop_tests.rs"]
mod tests;
