//! Exponential backoff with jitter: how long to wait before the next attempt after failures in a row.
//!
//! Many processes may see the same outage end at the same moment, so every wait is random within its limits
//! ([`jitter`]). The limit doubles with each failure up to a maximum ([`doubled`]). [`Backoff`] combines both for
//! retries of requests. No clock and no source of randomness in here: the caller counts failures and passes a
//! generator.

use std::time::Duration;

use rand::{Rng, RngExt};

/// No wait is shorter: an attempt that follows at once meets the same failure.
pub(crate) const SHORTEST: Duration = Duration::from_millis(100);
/// More doublings than this exceed any configurable maximum.
const MOST_DOUBLINGS: u32 = 20;

/// The waits between attempts: a random time from zero to a limit, which doubles from `first` up to `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// The limit after the first failure.
    pub(crate) first: Duration,
    /// The largest limit.
    pub(crate) most: Duration,
}

impl Backoff {
    /// The wait after the `nth` failure in a row, counted from 1; at least 100 ms.
    pub(crate) fn wait(&self, nth: u32, rng: &mut impl Rng) -> Duration {
        jitter(Duration::ZERO, doubled(self.first, nth).min(self.most), rng).max(SHORTEST)
    }
}

/// `first` after the first failure, twice as long after each further one. `nth` is counted from 1; saturates.
pub(crate) fn doubled(first: Duration, nth: u32) -> Duration {
    first.saturating_mul(1 << nth.saturating_sub(1).min(MOST_DOUBLINGS))
}

/// A random time from `least` to `most`, both included; `least` if `most` is shorter.
pub(crate) fn jitter(least: Duration, most: Duration, rng: &mut impl Rng) -> Duration {
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(rng.random_range(nanos(least)..=nanos(most).max(nanos(least))))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_limit_doubles_and_saturates() {
        let limits = [0, 1, 2, 3, 6].map(|nth| doubled(SECOND, nth).as_secs());
        assert_eq!(limits, [1, 1, 2, 4, 32]);
        assert_eq!(doubled(SECOND, u32::MAX), SECOND * (1 << MOST_DOUBLINGS));
        assert_eq!(doubled(Duration::MAX, 9), Duration::MAX);
    }

    #[test]
    fn waits_stay_within_their_limits_and_differ() {
        let (backoff, mut rng) = (Backoff { first: SECOND, most: 8 * SECOND }, StdRng::seed_from_u64(1));
        for (nth, most) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (500, 8)] {
            let waits: Vec<_> = (0..200).map(|_| backoff.wait(nth, &mut rng)).collect();
            assert!(waits.iter().all(|wait| (SHORTEST..=most * SECOND).contains(wait)), "{nth}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait > most * SECOND / 2) && waits.iter().any(|wait| *wait != waits[0]));
        }
    }

    #[test]
    fn jitter_between_limits_in_the_wrong_order_is_the_least() {
        let mut rng = StdRng::seed_from_u64(2);
        assert_eq!(jitter(3 * SECOND, SECOND, &mut rng), 3 * SECOND);
        assert_eq!(jitter(SECOND, SECOND, &mut rng), SECOND);
        assert!(jitter(Duration::ZERO, Duration::MAX, &mut rng) <= Duration::from_nanos(u64::MAX));
    }
}
