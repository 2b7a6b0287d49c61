//! Ages of stored events: whether a wall time that was stored earlier still tells how old an event is.
//!
//! The wall clock may be set and the machine may sleep. An [`Anchor`] compares how far the wall clock has moved with
//! the monotonic time that has passed. While both agree, ages are computed from the wall clock. If they differ,
//!
//! * the machine may have slept: monotonic time excludes sleep, the time since boot includes it. Ages are correct.
//! * or the clock was set. No age is trusted until the difference has been constant for [`STABLE_FOR`]. Then the new
//!   clock is accepted, and events stamped before are judged by the clock of their time. In doubt an event counts as
//!   younger.
//!
//! All clock readings are arguments; nothing here asks the system.

use std::time::{Duration, Instant};

use super::clock::WallNanos;

/// Two clocks that differ by no more than this agree.
const TOLERANCE: Duration = Duration::from_secs(60);
/// A clock that was set is trusted again after this time, which is long enough to notice and correct a mistake.
const STABLE_FOR: Duration = Duration::from_secs(6 * 3600);

/// The readings that later readings are compared with.
#[derive(Debug)]
pub(crate) struct Anchor {
    now: Instant,
    wall: WallNanos,
    uptime: Option<Duration>,
    ages: Ages,
    odd: Option<Odd>,
}

/// A difference between the clocks.
#[derive(Clone, Copy, Debug)]
struct Odd {
    difference: i128,
    /// When it was noticed, and what the wall clock would have shown then.
    since: Instant,
    expected: WallNanos,
}

/// How stored wall times are converted to ages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ages {
    /// A stamp further in the future than the tolerance comes from before the clock was set back, so from before this
    /// time.
    trusted_since: WallNanos,
    /// Stamps up to this time come from before the clock was set forward; the second value is by how much.
    forward: Option<(WallNanos, i64)>,
}

impl Anchor {
    /// Starts comparing with these readings.
    pub(crate) fn new(now: Instant, wall: WallNanos, uptime: Option<Duration>) -> Self {
        Self { now, wall, uptime, ages: Ages { trusted_since: wall, forward: None }, odd: None }
    }

    /// Compares the clocks; `uptime` is called only if they differ. Returns `None` while ages cannot be trusted.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        wall: WallNanos,
        uptime: impl FnOnce() -> Option<Duration>,
    ) -> Option<Ages> {
        let passed = nanos(now.saturating_duration_since(self.now));
        let difference = i128::from(wall) - i128::from(self.wall) - passed;
        if agrees(difference) {
            if self.odd.take().is_some() {
                // The stamps of the meantime are from before now.
                self.ages.trusted_since = wall;
            }
            return Some(self.ages);
        }
        let uptime = uptime();
        if let (Some(then), Some(up)) = (self.uptime, uptime)
            && agrees(i128::from(wall) - i128::from(self.wall) - nanos(up.saturating_sub(then)))
        {
            self.restart(now, wall, Some(up));
            return Some(self.ages);
        }
        match self.odd.filter(|odd| agrees(odd.difference - difference)) {
            None => {
                let expected = i64::try_from(i128::from(self.wall) + passed).unwrap_or(i64::MAX);
                self.odd = Some(Odd { difference, since: now, expected });
                None
            }
            Some(odd) if now.saturating_duration_since(odd.since) < STABLE_FOR => None,
            Some(odd) => {
                if let Some(by) = i64::try_from(odd.difference).ok().filter(|by| *by > 0) {
                    let before = self.ages.forward.map_or(0, |(_, before)| before);
                    self.ages.forward = Some((odd.expected, by.saturating_add(before)));
                }
                self.ages.trusted_since = wall;
                self.restart(now, wall, uptime);
                Some(self.ages)
            }
        }
    }

    fn restart(&mut self, now: Instant, wall: WallNanos, uptime: Option<Duration>) {
        *self = Self { now, wall, uptime, ages: self.ages, odd: None };
    }
}

impl Ages {
    /// Whether an event stamped `stamp` is older than `age` nanoseconds at the wall time `wall`.
    pub(crate) fn is_older(&self, stamp: WallNanos, age: i64, wall: WallNanos) -> bool {
        let tolerance = i64::try_from(TOLERANCE.as_nanos()).unwrap_or(i64::MAX);
        let stamp = match self.forward {
            Some((up_to, by)) if stamp <= up_to => stamp.saturating_add(by),
            _ if stamp > wall.saturating_add(tolerance) => self.trusted_since,
            _ => stamp,
        };
        stamp < wall.saturating_sub(age)
    }
}

fn agrees(difference: i128) -> bool {
    difference.unsigned_abs() <= TOLERANCE.as_nanos()
}

fn nanos(time: Duration) -> i128 {
    i128::try_from(time.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000_000;
    const DAY: i64 = 24 * HOUR;

    /// The clocks of a machine, in hours since boot.
    struct Machine {
        began: Instant,
        anchor: Anchor,
    }

    impl Machine {
        fn new() -> Self {
            let began = Instant::now();
            Self { began, anchor: Anchor::new(began, 100 * DAY, Some(Duration::ZERO)) }
        }

        /// The readings after so many hours awake and asleep, with the clock set by `set_by` hours.
        fn look(&mut self, worked: u64, slept: u64, set_by: i64) -> Option<Ages> {
            let hours = |hours: u64| Duration::from_secs(hours * 3600);
            let wall = 100 * DAY + (worked + slept) as i64 * HOUR + set_by * HOUR;
            self.anchor.look(self.began + hours(worked), wall, || Some(hours(worked + slept)))
        }
    }

    #[test]
    fn sleep_is_time_that_has_passed() {
        let mut machine = Machine::new();
        let ages = machine.look(1, 10, 0).unwrap();
        assert!(ages.is_older(100 * DAY, 10 * HOUR, 100 * DAY + 11 * HOUR));
        assert!(!ages.is_older(100 * DAY, 12 * HOUR, 100 * DAY + 11 * HOUR));
        assert!(machine.look(2, 20, 0).is_some() && machine.look(3, 20, 5).is_none());
    }

    #[test]
    fn a_clock_that_was_set_is_trusted_after_six_hours() {
        for by in [24, -24, 500_000, -500_000] {
            let mut machine = Machine::new();
            assert!([1, 3, 6].into_iter().all(|worked| machine.look(worked, 0, by).is_none()), "{by}");
            // Set once more: the wait starts again.
            assert!([7, 9, 12].into_iter().all(|worked| machine.look(worked, 0, by + 1).is_none()), "{by}");
            let ages = machine.look(13, 0, by + 1).unwrap();
            let now = 100 * DAY + (13 + by + 1) * HOUR;
            // From before the step, by the clock of its time.
            assert!(!ages.is_older(100 * DAY, 13 * HOUR, now), "{by}");
            // From after it.
            assert!(ages.is_older(now - 3 * HOUR, 2 * HOUR, now) && !ages.is_older(now - HOUR, 2 * HOUR, now), "{by}");
            // An event from before the step does not stay for ever: at most as much longer as the clock was set back.
            assert!(ages.is_older(100 * DAY, 13 * HOUR, now + 2 * DAY), "{by}");
        }
    }

    #[test]
    fn a_stamp_of_a_wrong_clock_is_no_older_than_the_error() {
        let mut machine = Machine::new();
        assert!(machine.look(1, 0, 24).is_none());
        let ages = machine.look(2, 0, 0).unwrap();
        let (stamp, now) = (100 * DAY + 25 * HOUR, 100 * DAY + 2 * HOUR);
        assert!(!ages.is_older(stamp, HOUR, now + HOUR / 2));
        assert!(ages.is_older(stamp, HOUR, now + 2 * HOUR));
    }
}
