//! The time, behind a seam: a test can hold it still, set it back, or move it on.
//!
//! Two clocks, never mixed. *Wall* time is what PostHog is told (event timestamps, `sent_at`) and what is stored; it may jump.
//! *Monotonic* time is what durations are measured with (backoff, deadlines); it never leaves the process.
//!
//! Three sources. The operating system ([`Clock::System`]). A clock for tests of one part, which move it and have the part do what is
//! then due: nobody sleeps by it ([`Clock::Manual`]). And, with the feature `testing`, a clock for a whole client with its threads:
//! who sleeps by it sleeps until it is moved, and it knows when everybody has done what was due (`Clock::Still`, `still.rs`). Without
//! the feature that one does not exist, and costs nothing.
//!
//! Nobody else asks the operating system what time it is, but for waits that are a caller's own (`Pending::wait`, a lock).

mod anchor;
#[cfg(feature = "testing")]
pub(crate) mod still;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(crate) use anchor::{Ages, Anchor};

/// Nanoseconds since the Unix epoch; negative before it.
pub(crate) type WallNanos = i64;

/// Where the time comes from. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    /// The operating system's clocks.
    #[default]
    System,
    /// A clock that moves only when told to.
    #[cfg_attr(not(test), allow(dead_code, reason = "constructed by tests"))]
    Manual(Arc<ManualClock>),
    /// A clock that moves only when told to, and wakes those who sleep by it.
    #[cfg(feature = "testing")]
    Still(Arc<still::StillTime>),
}

impl Clock {
    /// Wall time in nanoseconds, saturating at the ends of what 64 bits hold (1677 and 2262).
    pub(crate) fn wall_nanos(&self) -> WallNanos {
        match self {
            Clock::System => nanos_since_epoch(SystemTime::now()).unwrap_or(i64::MAX),
            Clock::Manual(manual) => manual.wall_nanos(),
            #[cfg(feature = "testing")]
            Clock::Still(still) => still.wall_nanos(),
        }
    }

    /// Monotonic time.
    pub(crate) fn now(&self) -> Instant {
        match self {
            Clock::System => Instant::now(),
            Clock::Manual(manual) => manual.now(),
            #[cfg(feature = "testing")]
            Clock::Still(still) => still.now(),
        }
    }
}

impl Clock {
    /// Waits, as a task of a tokio runtime, until so much time has passed. By a manual clock nobody sleeps, and nobody wakes.
    pub(crate) async fn sleep(&self, time: Duration) {
        match self {
            Clock::System => tokio::time::sleep(time).await,
            Clock::Manual(_) => std::future::pending().await,
            #[cfg(feature = "testing")]
            Clock::Still(still) => still.reached(still.now() + time).await,
        }
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub(crate) struct ManualClock {
    started: Instant,
    elapsed_nanos: AtomicU64,
    wall_nanos: AtomicI64,
}

#[cfg_attr(not(any(test, feature = "testing")), allow(dead_code, reason = "driven by tests"))]
impl ManualClock {
    fn wall_nanos(&self) -> WallNanos {
        self.wall_nanos.load(Ordering::SeqCst)
    }

    fn now(&self) -> Instant {
        self.started + Duration::from_nanos(self.elapsed_nanos.load(Ordering::SeqCst))
    }

    /// A clock that shows `wall_nanos`.
    pub(crate) fn at(wall_nanos: WallNanos) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            elapsed_nanos: AtomicU64::new(0),
            wall_nanos: AtomicI64::new(wall_nanos),
        })
    }

    /// Moves both clocks on.
    pub(crate) fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.elapsed_nanos.fetch_add(nanos, Ordering::SeqCst);
        self.step_wall(i64::try_from(nanos).unwrap_or(i64::MAX));
    }

    /// Moves the wall clock alone, as an administrator or NTP would.
    pub(crate) fn step_wall(&self, by_nanos: i64) {
        self.wall_nanos.fetch_add(by_nanos, Ordering::SeqCst);
    }
}

/// Nanoseconds from the Unix epoch to `time`, or `None` outside 1677 to 2262.
pub(crate) fn nanos_since_epoch(time: SystemTime) -> Option<WallNanos> {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).ok(),
        Err(before) => i64::try_from(before.duration().as_nanos()).ok().map(|nanos| -nanos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_do_not_fit_are_none_and_not_a_panic() {
        assert_eq!(nanos_since_epoch(UNIX_EPOCH), Some(0));
        assert_eq!(nanos_since_epoch(UNIX_EPOCH - Duration::from_nanos(5)), Some(-5));
        assert_eq!(nanos_since_epoch(UNIX_EPOCH + Duration::from_secs(1 << 40)), None);
    }

    #[test]
    fn a_manual_clock_steps_its_wall_without_moving_its_monotonic_time() {
        let manual = ManualClock::at(1_000);
        let clock = Clock::Manual(Arc::clone(&manual));
        let before = clock.now();
        manual.step_wall(-900);
        assert_eq!((clock.wall_nanos(), clock.now()), (100, before));
        manual.advance(Duration::from_nanos(7));
        assert_eq!((clock.wall_nanos(), clock.now() - before), (107, Duration::from_nanos(7)));
    }
}
