//! [`OwnedQueue`]: a queue that this process owns for as long as it changes it.

use std::sync::Arc;
use std::time::Duration;

use super::error::InspectError;
use super::places::QueueDir;
use crate::queue::{self, Finding, Opened, Queue, QueueOptions};
use crate::sys::clock::{Clock, WallNanos};
use crate::sys::disk::Disk;
use crate::sys::limits;

/// A queue without another owner, opened by this process. Opening recovers it as the next start of its program would: what
/// is in the journal is moved into the store, and a damaged file is renamed and salvaged. Other processes find the queue
/// in use until this is dropped.
#[derive(Debug)]
pub(crate) struct OwnedQueue {
    pub(crate) queue: Arc<Queue>,
    /// What recovery found, in the order in which it was found.
    pub(crate) findings: Vec<Finding>,
    /// Events that were in the journal.
    pub(crate) replayed: u64,
    clock: Clock,
}

impl QueueDir {
    /// Opens the queue to change it. Fails while a living process owns it.
    pub(crate) fn own(&self) -> Result<OwnedQueue, InspectError> {
        let failed = |error| InspectError::queue(self.path(), error);
        let (disk, clock) = (Disk::default(), Clock::default());
        let project = self.project_of_store().ok_or_else(|| InspectError::Queue {
            path: self.path().into(),
            why: "its store does not say whose events it contains; repair it first".into(),
        })?;
        let claim = queue::claim_shard(&disk, self.group_dir(), self.number()).map_err(failed)?;
        let Some(claim) = claim else {
            let pid = self.owner()?.and_then(|owner| owner.pid);
            return Err(InspectError::Owned { path: self.path().into(), pid });
        };
        let is_ai = self.lane() == "ai";
        let options = QueueOptions {
            project,
            queue_dir: self.queue_dir().to_path_buf(),
            arena_bytes: if is_ai { limits::AI_JOURNAL_BYTES } else { limits::JOURNAL_BYTES_DEFAULT },
            lock_wait: Duration::from_secs(1),
            cache_bytes: limits::STORE_CACHE_BYTES,
            reserve_bytes: limits::RESERVE_BYTES,
            // Nothing may be evicted here: the bounds are the program's.
            dead_bytes: u64::MAX,
            // The page goes on describing the last run of the program.
            adopts: true,
        };
        let Opened { queue, replayed, findings, .. } =
            Queue::open(&disk, &options, claim, clock.wall_nanos()).map_err(failed)?;
        Ok(OwnedQueue { queue: Arc::new(queue), findings, replayed, clock })
    }
}

impl OwnedQueue {
    /// The time.
    pub(crate) fn now(&self) -> WallNanos {
        self.clock.wall_nanos()
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        self.queue.close();
    }
}
