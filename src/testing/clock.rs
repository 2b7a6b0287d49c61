//! The clock of a client under test.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sys::clock::still::StillTime;
use crate::sys::clock::{Clock, nanos_since_epoch};

/// A clock that stands still until it is moved. Clones are the same clock.
///
/// Moving it wakes the client's threads, which then do what is due; [`Harness::advance`](super::Harness::advance) waits for that too.
#[derive(Clone, Debug)]
pub struct StillClock {
    pub(super) time: Arc<StillTime>,
}

impl StillClock {
    /// A clock that shows `time`; before 1678 or after 2261 it shows the epoch.
    pub fn at(time: SystemTime) -> Self {
        Self { time: StillTime::at(nanos_since_epoch(time).unwrap_or(0)) }
    }

    /// What it shows.
    pub fn now(&self) -> SystemTime {
        let nanos = self.time.wall_nanos();
        let far = Duration::from_nanos(nanos.unsigned_abs());
        if nanos < 0 { UNIX_EPOCH - far } else { UNIX_EPOCH + far }
    }

    /// Moves it on, by as much as passes for whatever is measured by it.
    pub fn advance(&self, by: Duration) {
        self.time.advance(by);
    }

    /// Sets it, forwards or backwards, as an administrator or NTP would: timestamps change, and no time has passed. A time before 1678
    /// or after 2261 changes nothing.
    pub fn set(&self, time: SystemTime) {
        if let Some(nanos) = nanos_since_epoch(time) {
            self.time.set_wall(nanos);
        }
    }

    pub(super) fn as_clock(&self) -> Clock {
        Clock::Still(Arc::clone(&self.time))
    }
}
