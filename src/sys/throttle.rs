//! Throttles for what happens often and should be done or reported rarely. What is held back is counted.
//!
//! * [`Throttle`] has one owner and uses monotonic time.
//! * [`SharedThrottle`] is for code that must neither lock nor allocate (the capture path) and uses wall time.
//!
//! Both admit the first occurrence at once and then at most one per interval. An admission says how many occurrences it
//! stands for, itself included, so that a report can give the whole number.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::clock::WallNanos;

/// Admits at most one occurrence per interval.
#[derive(Clone, Debug)]
pub(crate) struct Throttle {
    interval: Duration,
    admitted_at: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    /// A throttle that has admitted nothing yet.
    pub(crate) const fn new(interval: Duration) -> Self {
        Self { interval, admitted_at: None, held_back: 0 }
    }

    /// Counts one occurrence. If it is admitted, returns how many occurrences there were since the last admission.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<u64> {
        let occurred = self.held_back.saturating_add(1);
        if self.admitted_at.is_some_and(|at| now.saturating_duration_since(at) < self.interval) {
            self.held_back = occurred;
            return None;
        }
        (self.admitted_at, self.held_back) = (Some(now), 0);
        Some(occurred)
    }
}

/// A throttle that threads share without a lock. A wall clock that is set back admits a little more often.
#[derive(Debug)]
pub(crate) struct SharedThrottle {
    held_back: AtomicU64,
    /// [`Self::NEVER`] before the first admission.
    admitted_at: AtomicI64,
}

impl SharedThrottle {
    const NEVER: WallNanos = WallNanos::MIN;

    /// A throttle that has admitted nothing yet.
    pub(crate) const fn new() -> Self {
        Self { held_back: AtomicU64::new(0), admitted_at: AtomicI64::new(Self::NEVER) }
    }

    /// Counts one occurrence. If it is admitted, returns how many occurrences there were since the last admission.
    pub(crate) fn admit(&self, now: WallNanos, interval: Duration) -> Option<u64> {
        self.held_back.fetch_add(1, Ordering::Relaxed);
        let last = self.admitted_at.load(Ordering::Relaxed);
        let interval = i64::try_from(interval.as_nanos()).unwrap_or(i64::MAX);
        if last != Self::NEVER && (0..interval).contains(&now.wrapping_sub(last)) {
            return None;
        }
        // Of several threads that come at the same time one admits; the others are counted with it or with the next.
        self.admitted_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        Some(self.take())
    }

    /// Takes the number of occurrences that were counted and not admitted yet.
    pub(crate) fn take(&self) -> u64 {
        self.held_back.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_occurrence_per_interval_is_admitted_and_all_are_counted() {
        let (start, mut throttle) = (Instant::now(), Throttle::new(Duration::from_secs(1)));
        let at = |millis| start + Duration::from_millis(millis);
        let admitted: Vec<_> = (0..3_000).filter_map(|millis| throttle.admit(at(millis))).collect();
        assert_eq!(admitted, [1, 1000, 1000]);
        assert_eq!(throttle.admit(at(9_000)), Some(1000));
    }

    #[test]
    fn shared_between_threads_no_occurrence_is_lost() {
        let throttle = SharedThrottle::new();
        let admitted = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for now in 0..10_000 {
                        let count = throttle.admit(now, Duration::from_nanos(100)).unwrap_or(0);
                        admitted.fetch_add(count, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(admitted.into_inner() + throttle.take(), 40_000);
        assert_eq!(throttle.take(), 0);
    }

    #[test]
    fn a_wall_clock_that_is_set_back_admits_again() {
        let throttle = SharedThrottle::new();
        let second = Duration::from_secs(1);
        assert_eq!(throttle.admit(5_000_000_000, second), Some(1));
        assert_eq!(throttle.admit(5_900_000_000, second), None);
        assert_eq!(throttle.admit(4_000_000_000, second), Some(2));
    }
}
