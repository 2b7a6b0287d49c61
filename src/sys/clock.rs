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

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

#[cfg(feature = "testing")]
pub(crate) mod still {
    //! A clock that stands still, and those who sleep by it.
    //!
    //! A thread that would sleep until some time sleeps until the clock is moved instead, and then looks again. So whatever happens at a
    //! time happens when a test says so, and `settle` tells when it has happened.

    use std::future::poll_fn;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
    use std::task::{Poll, Waker};
    use std::time::{Duration, Instant};

    use super::{ManualClock, WallNanos};

    /// How often it is looked whether everybody sleeps: those who are watched must not have to say so.
    const LOOK: Duration = Duration::from_micros(100);

    /// Somebody who sleeps by the clock.
    pub(crate) trait Sleeper: Send + Sync {
        /// The clock was moved: what is due now?
        fn wake(&self);
        /// How often it was woken so far, by whomever, if it has nothing to do now; `None` while it is at work.
        fn asleep(&self) -> Option<u64>;
    }

    /// See the module.
    pub(crate) struct StillTime {
        time: Arc<ManualClock>,
        sleepers: Mutex<Vec<Weak<dyn Sleeper>>>,
        /// Those who wait for a time as a task does.
        tasks: Mutex<Vec<Waker>>,
    }

    impl StillTime {
        /// A clock that shows `wall_nanos`.
        pub(crate) fn at(wall_nanos: WallNanos) -> Arc<Self> {
            Arc::new(Self { time: ManualClock::at(wall_nanos), sleepers: Mutex::default(), tasks: Mutex::default() })
        }

        pub(crate) fn wall_nanos(&self) -> WallNanos {
            self.time.wall_nanos()
        }

        pub(crate) fn now(&self) -> Instant {
            self.time.now()
        }

        /// Moves both clocks on and wakes everybody.
        pub(crate) fn advance(&self, by: Duration) {
            self.time.advance(by);
            self.wake_all();
        }

        /// Sets the wall clock alone, as an administrator or NTP would.
        pub(crate) fn set_wall(&self, wall_nanos: WallNanos) {
            self.time.step_wall(wall_nanos.saturating_sub(self.time.wall_nanos()));
            self.wake_all();
        }

        /// From now on `sleeper` is woken and watched, for as long as it lives.
        pub(crate) fn watch(&self, sleeper: Weak<dyn Sleeper>) {
            lock(&self.sleepers).push(sleeper);
        }

        /// Waits until everybody sleeps; `false` if they do not within `most` of real time.
        pub(crate) fn settle(&self, most: Duration) -> bool {
            let deadline = Instant::now() + most;
            let mut before = None;
            loop {
                // One after the other is looked at, and may be woken by the next meanwhile. Only if nobody was woken between two looks did
                // all of them sleep at the same time.
                let asleep = self.sleepers().iter().map(|sleeper| sleeper.asleep()).sum::<Option<u64>>();
                if asleep.is_some() && asleep == before {
                    return true;
                }
                if Instant::now() >= deadline {
                    return false;
                }
                before = asleep;
                std::thread::sleep(LOOK);
            }
        }

        /// Waits, as a task, until the clock shows `at`.
        pub(crate) async fn reached(&self, at: Instant) {
            poll_fn(|context| {
                // Before the look: whoever moves the clock after it finds the waker.
                lock(&self.tasks).push(context.waker().clone());
                if self.now() >= at { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }

        fn wake_all(&self) {
            // Tasks first: a sleeper that has been woken is taken to have seen what its tasks were woken for.
            for task in std::mem::take(&mut *lock(&self.tasks)) {
                task.wake();
            }
            for sleeper in self.sleepers() {
                sleeper.wake();
            }
        }

        fn sleepers(&self) -> Vec<Arc<dyn Sleeper>> {
            let mut sleepers = lock(&self.sleepers);
            sleepers.retain(|sleeper| sleeper.strong_count() > 0);
            sleepers.iter().filter_map(Weak::upgrade).collect()
        }
    }

    impl std::fmt::Debug for StillTime {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("StillTime").field("time", &self.time).finish_non_exhaustive()
        }
    }

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
