//! How long until the next load. Pure, but for chance that is given.
//!
//! Ten thousand daemons may have been started by one deployment, and all of them see the same outage end: no two waits are alike.

use std::time::Duration;

use rand::{Rng, RngExt};

/// With nothing to evaluate, a first failure is no reason to wait for a whole interval.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The longest wait after failures, unless the interval is longer.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// The first wait after the key or the quota was refused; neither comes back by itself.
const FIRST_REFUSAL_WAIT: Duration = Duration::from_secs(300);
/// The longest of those.
const MAX_REFUSAL_WAIT: Duration = Duration::from_secs(1800);

/// How a load ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// What is there is the newest.
    Loaded,
    /// It came to nothing; the server may have said when it wants to hear from us again.
    Failed {
        /// How long from now.
        retry_after: Option<Duration>,
    },
    /// The key or the quota was refused.
    Refused,
}

/// Loads that ended alike, in a row.
#[derive(Debug, Default)]
pub(super) struct Pace {
    failures: u32,
    refusals: u32,
}

impl Pace {
    /// Notes how a load ended. `interval` is what is waited where all is well; `has_some`: there is something to evaluate with.
    pub(super) fn wait_after(
        &mut self,
        ended: Ended,
        interval: Duration,
        has_some: bool,
        rng: &mut impl Rng,
    ) -> Duration {
        match ended {
            Ended::Loaded => {
                *self = Self::default();
                between(interval.mul_f64(0.9), interval.mul_f64(1.1), rng)
            }
            Ended::Refused => {
                self.failures = 0;
                self.refusals = self.refusals.saturating_add(1);
                let wait = doubled(FIRST_REFUSAL_WAIT, self.refusals).min(MAX_REFUSAL_WAIT).max(interval);
                between(wait, wait.mul_f64(1.2), rng)
            }
            Ended::Failed { retry_after } => {
                self.failures = self.failures.saturating_add(1);
                let first = if has_some { interval } else { FIRST_BACKOFF.min(interval) };
                let wait = doubled(first, self.failures).min(MAX_BACKOFF.max(interval));
                // Never sooner than asked for, nor all at the same second.
                let asked = retry_after.map_or(Duration::ZERO, |asked| {
                    between(asked, asked.saturating_add((asked / 10).min(Duration::from_secs(10))), rng)
                });
                between(wait / 2, wait, rng).max(asked)
            }
        }
    }
}

/// After the `nth` time in a row, from 1.
fn doubled(first: Duration, nth: u32) -> Duration {
    first.saturating_mul(1 << nth.saturating_sub(1).min(20))
}

fn between(least: Duration, most: Duration, rng: &mut impl Rng) -> Duration {
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(rng.random_range(nanos(least)..=nanos(most).max(nanos(least))))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);
    const FAILED: Ended = Ended::Failed { retry_after: None };

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn within(wait: Duration, least: u64, most: u64) {
        assert!((secs(least)..=secs(most)).contains(&wait), "{wait:?} is not from {least} to {most} s");
    }

    #[test]
    fn polls_are_an_interval_apart_more_or_less_and_not_all_alike() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(1));
        let waits: Vec<_> = (0..50).map(|_| pace.wait_after(Ended::Loaded, INTERVAL, true, &mut rng)).collect();
        waits.iter().for_each(|wait| within(*wait, 27, 33));
        assert!(waits.iter().any(|wait| *wait < secs(29)) && waits.iter().any(|wait| *wait > secs(31)));
    }

    #[test]
    fn failures_double_the_wait_up_to_minutes_and_a_success_forgets_them() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(2));
        for (least, most) in [(15, 30), (30, 60), (60, 120), (120, 240), (150, 300), (150, 300)] {
            within(pace.wait_after(FAILED, INTERVAL, true, &mut rng), least, most);
        }
        within(pace.wait_after(Ended::Loaded, INTERVAL, true, &mut rng), 27, 33);
        within(pace.wait_after(FAILED, INTERVAL, true, &mut rng), 15, 30);
    }

    #[test]
    fn with_nothing_to_evaluate_it_is_tried_again_soon() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(3));
        let waits: Vec<_> = (0..4).map(|_| pace.wait_after(FAILED, INTERVAL, false, &mut rng)).collect();
        for (wait, most) in waits.into_iter().zip([1, 2, 4, 8]) {
            assert!(wait >= secs(most) / 2 && wait <= secs(most), "{wait:?}");
        }
    }

    #[test]
    fn a_long_interval_is_never_shortened_by_what_the_longest_backoff_is() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(4));
        within(pace.wait_after(FAILED, secs(3600), true, &mut rng), 1800, 3600);
        within(pace.wait_after(Ended::Refused, secs(3600), false, &mut rng), 3600, 4320);
    }

    #[test]
    fn retry_after_is_a_least_and_a_refusal_waits_long() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(5));
        let asked = Ended::Failed { retry_after: Some(secs(600)) };
        within(pace.wait_after(asked, INTERVAL, true, &mut rng), 600, 610);
        for (least, most) in [(300, 360), (600, 720), (1200, 1440), (1800, 2160), (1800, 2160)] {
            within(pace.wait_after(Ended::Refused, INTERVAL, false, &mut rng), least, most);
        }
    }
}
