//! How long a request is waited for while something hangs.
//!
//! A request that hangs holds one of a few slots until its timeout, and a search for the events that make it hang would cost a timeout
//! at each step. So once a request has failed slowly while others passed quickly, those that follow are given up earlier: after a
//! sixteenth of what the slow one took, but never before eight times what the slowest accepted one of late took. What is given up is
//! searched and tried again like anything that failed, and what is quarantined gets twice the time at each further attempt, so that
//! an event that is merely slow gets through in the end.
//!
//! Nor does anybody wait for the first timeout where requests hang in all slots but one, and others that were sent later have passed:
//! what the last slot is used for is given up after two seconds.
//!
//! Only where the endpoint may work: a probe during an outage that is confirmed has all of its timeout.

use std::time::{Duration, Instant};

/// A failure that took at least so long is a slow one.
const SLOW: Duration = Duration::from_secs(1);
/// No request is given up earlier.
const LEAST: Duration = Duration::from_millis(250);
/// The last slot that nothing hangs in is held no longer by one request.
const LAST_SLOT: Duration = Duration::from_secs(2);
/// A slow failure makes us impatient for so many times what it took.
const LASTS: u32 = 4;

/// What requests took of late.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// The slowest acceptance, fading with each further one.
    slowest: Duration,
    /// What the slowest failure took, and until when that counts.
    slow: Option<(Duration, Instant)>,
}

impl Patience {
    /// A request was accepted after so long.
    pub(super) fn accepted(&mut self, took: Duration) {
        self.slowest = took.max(self.slowest / 16 * 15);
    }

    /// A request failed, or was given up, after so long. Says whether that was slow.
    pub(super) fn failed(&mut self, now: Instant, took: Duration) -> bool {
        // What was given up early was slow as well: only nobody has waited for its end.
        let is_slow = took >= SLOW || self.limit(now, 0).is_some_and(|limit| took >= limit);
        if is_slow {
            let slow = self.slow.map_or(took, |(slow, _)| slow.max(took));
            self.slow = Some((slow, now + slow.saturating_mul(LASTS)));
        }
        is_slow
    }

    /// Whether what has been under way for so long, and was overtaken by others, hangs.
    pub(super) fn hangs(&self, age: Duration) -> bool {
        age >= SLOW.max(self.slowest.saturating_mul(8))
    }

    /// How long to wait for a request in the last slot that nothing hangs in.
    pub(super) fn limit_of_last_slot(&self, quarantined: u32) -> Duration {
        LAST_SLOT.max(self.slowest.saturating_mul(8)).saturating_mul(1 << quarantined.min(16))
    }

    /// How long to wait for a request, whose event was quarantined so many times. `None`: as long as it takes.
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
    fn a_timeout_makes_us_impatient_for_a_while_and_a_quick_failure_does_not() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        assert!(!patience.failed(now, Duration::from_millis(20)));
        assert_eq!(patience.limit(now, 0), None);
        assert!(patience.failed(now, TIMEOUT));
        assert_eq!(patience.limit(now, 0), Some(TIMEOUT / 16));
        assert!(patience.failed(now + TIMEOUT, TIMEOUT / 16), "what was given up lasts on");
        let end = now + TIMEOUT * 5;
        assert!(patience.limit(end - SLOW, 0).is_some());
        assert_eq!(patience.limit(end, 0), None);
        assert!(patience.limit(end, 1).is_some(), "what is quarantined never has a whole slot to itself");
    }

    #[test]
    fn nothing_is_given_up_that_is_not_much_slower_than_what_passes() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        patience.failed(now, TIMEOUT);
        patience.accepted(Duration::from_secs(3));
        assert_eq!(patience.limit(now, 0), Some(Duration::from_secs(24)));
        patience.accepted(Duration::from_secs(4));
        assert_eq!(patience.limit(now, 0), None, "no sooner than its timeout");
        (0..100).for_each(|_| patience.accepted(Duration::from_millis(10)));
        assert_eq!(patience.limit(now, 0), Some(TIMEOUT / 16));
    }

    #[test]
    fn what_is_quarantined_has_twice_the_time_at_each_attempt() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        patience.failed(now, TIMEOUT);
        assert_eq!(patience.limit(now, 2), Some(TIMEOUT / 4));
        assert_eq!(patience.limit(now, 4), None, "all of it");
    }
}
