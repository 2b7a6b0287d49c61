//! Clocks: wall time and monotonic time, replaceable in tests.
//!
//! *Wall* time is sent to PostHog (event timestamps, `sent_at`) and stored; it may jump. *Monotonic* time measures
//! durations (backoff, deadlines) and never leaves the process. The two are never mixed.
//!
//! There are three sources:
//!
//! * [`Clock::System`]: the operating system.
//! * [`Clock::Manual`]: for tests of one component. The test moves the clock and then calls the component; no thread
//!   sleeps by it.
//! * `Clock::Still` (feature `testing`): for tests of a whole client with its threads. A thread that sleeps by it wakes
//!   when the clock is moved, and the clock knows when all threads have done what was due. See the module `still`.
//!
//! No other module asks the operating system for the time, except for waits of a caller (`Pending::wait`, a lock).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the Unix epoch; negative before it.
pub(crate) type WallNanos = i64;

/// A source of time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    /// The operating system's clocks.
    #[default]
    System,
    /// A clock that moves only when a test moves it.
    #[cfg_attr(not(test), allow(dead_code, reason = "constructed by tests"))]
    Manual(Arc<ManualClock>),
    /// A clock that moves only when a test moves it, and then wakes the threads that sleep by it.
    #[cfg(feature = "testing")]
    Still(Arc<still::StillTime>),
}

impl Clock {
    /// Wall time in nanoseconds, saturating at the limits of 64 bits (1677 and 2262).
    pub(crate) fn wall_nanos(&self) -> WallNanos {
        match self {
            Clock::System => nanos_since_epoch(SystemTime::now()).unwrap_or(i64::MAX),
            Clock::Manual(manual) => manual.wall_nanos(),
            #[cfg(feature = "testing")]
            Clock::Still(still) => still.wall_nanos(),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        match self {
            Clock::System => Instant::now(),
            Clock::Manual(manual) => manual.now(),
            #[cfg(feature = "testing")]
            Clock::Still(still) => still.now(),
        }
    }

    /// Waits for `time`, as a task of a tokio runtime. With a manual clock it never returns.
    pub(crate) async fn sleep(&self, time: Duration) {
        match self {
            Clock::System => tokio::time::sleep(time).await,
            Clock::Manual(_) => std::future::pending().await,
            #[cfg(feature = "testing")]
            Clock::Still(still) => still.reached(still.now() + time).await,
        }
    }

    /// The result of `task`, or `None` after `most`. A result that arrives together with the bound counts.
    pub(crate) async fn within<T>(&self, most: Duration, task: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            result = task => Some(result),
            () = self.sleep(most) => None,
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

    /// Moves both clocks forward.
    pub(crate) fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.elapsed_nanos.fetch_add(nanos, Ordering::SeqCst);
        self.step_wall(i64::try_from(nanos).unwrap_or(i64::MAX));
    }

    /// Moves the wall clock only, as an administrator or NTP would.
    pub(crate) fn step_wall(&self, by_nanos: i64) {
        self.wall_nanos.fetch_add(by_nanos, Ordering::SeqCst);
    }
}

/// The time that is so many nanoseconds after the epoch, or before it.
pub(crate) fn system_time(at: WallNanos) -> SystemTime {
    let distance = Duration::from_nanos(at.unsigned_abs());
    // Neither overflows: a `SystemTime` holds its seconds in 64 bits.
    if at < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

/// The time from one wall time to a later one. Zero if it is not later.
pub(crate) fn elapsed(from: WallNanos, to: WallNanos) -> Duration {
    Duration::from_nanos(u64::try_from(to.saturating_sub(from)).unwrap_or(0))
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
    //! A clock that stands still, and the threads and tasks that sleep by it.
    //!
    //! A thread that would sleep until a time sleeps until the clock is moved, and then checks again what is due. So a
    //! test decides when time passes, and `settle` returns when everything that was due has been done.

    use std::future::poll_fn;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
    use std::task::{Poll, Waker};
    use std::time::{Duration, Instant};

    use super::{ManualClock, WallNanos};

    /// How often `settle` checks whether all sleepers sleep, so that they need not report it.
    const LOOK: Duration = Duration::from_micros(100);

    /// A thread that sleeps by the clock.
    pub(crate) trait Sleeper: Send + Sync {
        /// Called after the clock was moved: do what is due now.
        fn wake(&self);
        /// The number of times it was woken so far, by anything, if it has nothing to do now; `None` while it works.
        fn asleep(&self) -> Option<u64>;
    }

    /// A manual clock with its sleepers; see the module.
    pub(crate) struct StillTime {
        time: Arc<ManualClock>,
        sleepers: Mutex<Vec<Weak<dyn Sleeper>>>,
        /// Wakers of tasks that wait for a time.
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

        /// Moves both clocks forward and wakes all sleepers.
        pub(crate) fn advance(&self, by: Duration) {
            self.time.advance(by);
            self.wake_all();
        }

        /// Sets the wall clock only, as an administrator or NTP would.
        pub(crate) fn set_wall(&self, wall_nanos: WallNanos) {
            self.time.step_wall(wall_nanos.saturating_sub(self.time.wall_nanos()));
            self.wake_all();
        }

        /// Registers `sleeper`, which is woken and watched for as long as it lives.
        pub(crate) fn watch(&self, sleeper: Weak<dyn Sleeper>) {
            lock(&self.sleepers).push(sleeper);
        }

        /// Waits until all sleepers sleep; `false` if they do not within `most` of real time.
        pub(crate) fn settle(&self, most: Duration) -> bool {
            let deadline = Instant::now() + most;
            let mut before = None;
            loop {
                // Sleepers are checked one after the other, and one may be woken by the next meanwhile. Only if none
                // was woken between two checks did all of them sleep at the same time.
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
                // Before the comparison: a thread that moves the clock after it finds the waker.
                lock(&self.tasks).push(context.waker().clone());
                if self.now() >= at { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }

        fn wake_all(&self) {
            // Tasks first: a sleeper that was woken counts as having done what its tasks were woken for.
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
    fn a_manual_clock_steps_its_wall_time_only() {
        let manual = ManualClock::at(1_000);
        let clock = Clock::Manual(Arc::clone(&manual));
        let before = clock.now();
        manual.step_wall(-900);
        assert_eq!((clock.wall_nanos(), clock.now()), (100, before));
        manual.advance(Duration::from_nanos(7));
        assert_eq!((clock.wall_nanos(), clock.now() - before), (107, Duration::from_nanos(7)));
    }
}
