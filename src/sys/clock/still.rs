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
