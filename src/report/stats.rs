//! [`Stats`]: where every event is, and the state of storage and delivery.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::drop_reason::DropReason;
use crate::sys::wording::{count, time};

/// A snapshot of the queue, returned by [`Client::stats`](crate::Client::stats).
///
/// Counts and sizes are the sums over the queue of ordinary events and the queue of AI events. `storage`, `delivery`
/// and the other states describe the queue of ordinary events; `ai` has those of the AI queue.
///
/// The counters cover the life of the queue, across restarts, and balance:
/// `accepted == delivered + queued_events + dead_lettered + evicted + damaged + lost_unsynced`.
///
/// They belong to the queue in `dir`, not to the process. Where several processes share a directory, a restart may open
/// another queue, with counters of its own, and events that a process delivers for one that is gone are counted in the
/// queue of that process. So treat the counters as resettable, and alarm on their growth. `dropped` starts at zero in
/// each process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Events accepted. A dead letter that is queued again counts once more.
    pub accepted: u64,
    /// Events that PostHog has accepted.
    pub delivered: u64,
    /// Events that wait for delivery, in the journal and in the store.
    pub queued_events: u64,
    /// Bytes of the queued events; 0 if none is queued. The store counts by rows of many events, so delivered events
    /// are included until their ack is committed ([`Config::ack_interval`](crate::Config::ack_interval), 1 s), although
    /// `queued_events` excludes them at once.
    pub queued_bytes: u64,
    /// Events that PostHog rejected for good. They are among the dead letters, unless those were queued again or
    /// discarded.
    pub dead_lettered: u64,
    /// Events deleted undelivered because of the queue's bounds on size, number or age.
    pub evicted: u64,
    /// Events whose bytes were damaged on disk.
    pub damaged: u64,
    /// Events lost in a power cut before they were synced.
    pub lost_unsynced: u64,
    /// Events that were not accepted, by reason, in this process. Reasons that never occurred are left out.
    pub dropped: Vec<(DropReason, u64)>,
    /// How long the oldest queued event has been in the store.
    pub oldest_age: Option<Duration>,
    /// How long the oldest event that would not survive a power cut has waited for its sync.
    pub unsynced_for: Option<Duration>,
    /// Bytes that the store's file takes on the disk, without the journal.
    pub file_bytes: u64,
    /// Events that were replayed from the journal when the queue was opened: accepted by the previous process and not
    /// yet stored.
    pub replayed: u64,
    /// Events in the queue of another process that is being delivered at the moment.
    pub adopted_events: u64,
    /// Queues of other keys or hosts with events in them, as found when the client was created.
    pub orphaned: OrphanedQueues,
    /// Why ordinary events are dropped at the moment, if they are.
    pub rejecting: Option<DropReason>,
    /// Where the queue is kept, and whether that works.
    pub storage: StorageMode,
    /// What delivery is doing.
    pub delivery: DeliveryPhase,
    /// Requests in a row that failed through no fault of an event, since the last success.
    pub consecutive_failures: u32,
    /// Requests that failed through no fault of an event, in this process.
    pub failed_attempts: u64,
    /// Queued events that delivery skips for now: PostHog rejected them without evidence that they are at fault, or
    /// their requests fail while others succeed.
    pub quarantined: u64,
    /// The text of the last failure or rejection. It is kept when delivery works again.
    pub last_error: Option<String>,
    /// When PostHog last accepted an event, in this process.
    pub last_success: Option<SystemTime>,
    /// The directory of the queue; `None` if the queue is in memory.
    pub dir: Option<PathBuf>,
    /// The queue of AI events, if it is open. Its `dropped` is empty: reasons are counted for both queues together.
    pub ai: Option<Box<Stats>>,
}

/// Where the queue is kept, and whether that works.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageMode {
    /// On disk, and storage works.
    Durable,
    /// Storage fails, the queue's directory is out of reach (moved, made inaccessible), or the file system has less
    /// free space than [`Config::min_free_space`](crate::Config::min_free_space). Accepted events are in open files and
    /// survive the process. New events are accepted while those files have space, but not below `min_free_space`, and
    /// not if another process has taken over the directory.
    Degraded {
        /// The text of the failure.
        problem: String,
    },
    /// In memory, because the directory cannot be used ([`Config::memory_fallback`](crate::Config::memory_fallback)),
    /// or in files that have no name any more, because the directory was deleted. Events are accepted and delivered;
    /// those that are queued when the process ends are lost.
    Volatile {
        /// Why the queue is not on disk.
        problem: String,
    },
    /// The client was shut down.
    Closed,
    /// The client is disabled.
    Disabled,
    /// This is a forked child that has captured nothing yet. It has no queue; its first capture opens one. If that
    /// failed, `stats().rejecting` is [`DropReason::Forked`].
    Forked,
}

/// Queues that no process delivers, because their key or host is not this client's. See
/// [`Config::adopt_queue`](crate::Config::adopt_queue).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OrphanedQueues {
    /// Number of queues.
    pub queues: usize,
    /// Events in all of them.
    pub events: u64,
}

/// What delivery is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryPhase {
    /// There is nothing to send: the queue is empty, its events wait for their batch
    /// ([`Config::flush_at`](crate::Config::flush_at), [`Config::flush_interval`](crate::Config::flush_interval)), or
    /// the client has opted out.
    Idle,
    /// Requests are in flight.
    Sending,
    /// The last request failed.
    Backoff {
        /// Time until the next request.
        retry_in: Duration,
    },
    /// As many requests in a row as [`Config::max_retries`](crate::Config::max_retries) allows have failed.
    Cooldown {
        /// Time until the next request.
        retry_in: Duration,
    },
    /// All remaining events are quarantined (`stats().quarantined`). They are tried again when PostHog accepts another
    /// event, and after this time.
    Quarantined {
        /// Time until the next request.
        retry_in: Duration,
    },
    /// The key, the quota or the encoding was rejected.
    Paused {
        /// 401, 402, 403 or 415.
        status: u16,
        /// Time until the next request.
        retry_in: Duration,
    },
}

impl fmt::Display for StorageMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageMode::Durable => f.write_str("durable"),
            StorageMode::Degraded { problem } => write!(f, "degraded: {problem}"),
            StorageMode::Volatile { problem } => write!(f, "in memory only: {problem}"),
            StorageMode::Closed => f.write_str("closed"),
            StorageMode::Disabled => f.write_str("disabled"),
            StorageMode::Forked => f.write_str("no queue in this forked process yet"),
        }
    }
}

impl fmt::Display for OrphanedQueues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", count(self.events, "event"), count(self.queues as u64, "orphaned queue"))
    }
}

impl fmt::Display for DeliveryPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            DeliveryPhase::Idle => f.write_str("idle"),
            DeliveryPhase::Sending => f.write_str("sending"),
            DeliveryPhase::Backoff { retry_in } => write!(f, "backoff: next attempt in {}", time(retry_in)),
            DeliveryPhase::Cooldown { retry_in } => write!(f, "cooldown: next attempt in {}", time(retry_in)),
            DeliveryPhase::Quarantined { retry_in } => {
                write!(f, "all remaining events are quarantined: next attempt in {}", time(retry_in))
            }
            DeliveryPhase::Paused { status, retry_in } => {
                write!(f, "paused (HTTP status {status}): next attempt in {}", time(retry_in))
            }
        }
    }
}

impl Stats {
    /// The sums of both lanes, and the states of this one.
    pub(crate) fn with_ai(self, ai: Stats) -> Self {
        Self {
            accepted: self.accepted.saturating_add(ai.accepted),
            delivered: self.delivered.saturating_add(ai.delivered),
            queued_events: self.queued_events.saturating_add(ai.queued_events),
            queued_bytes: self.queued_bytes.saturating_add(ai.queued_bytes),
            dead_lettered: self.dead_lettered.saturating_add(ai.dead_lettered),
            evicted: self.evicted.saturating_add(ai.evicted),
            damaged: self.damaged.saturating_add(ai.damaged),
            lost_unsynced: self.lost_unsynced.saturating_add(ai.lost_unsynced),
            oldest_age: self.oldest_age.max(ai.oldest_age),
            unsynced_for: self.unsynced_for.max(ai.unsynced_for),
            file_bytes: self.file_bytes.saturating_add(ai.file_bytes),
            replayed: self.replayed.saturating_add(ai.replayed),
            adopted_events: self.adopted_events.saturating_add(ai.adopted_events),
            failed_attempts: self.failed_attempts.saturating_add(ai.failed_attempts),
            quarantined: self.quarantined.saturating_add(ai.quarantined),
            ai: Some(Box::new(ai)),
            ..self
        }
    }

    pub(crate) fn disabled(refusals: Vec<u64>) -> Self {
        Self::without_queue(StorageMode::Disabled, Some(DropReason::Disabled), refusals)
    }

    /// The statistics of a forked child that has no queue yet, or could not open one.
    pub(crate) fn forked(refusals: Vec<u64>, has_failed: bool) -> Self {
        Self::without_queue(StorageMode::Forked, has_failed.then_some(DropReason::Forked), refusals)
    }

    fn without_queue(storage: StorageMode, rejecting: Option<DropReason>, refusals: Vec<u64>) -> Self {
        Self {
            accepted: 0,
            delivered: 0,
            queued_events: 0,
            queued_bytes: 0,
            dead_lettered: 0,
            evicted: 0,
            damaged: 0,
            lost_unsynced: 0,
            dropped: dropped(refusals),
            oldest_age: None,
            unsynced_for: None,
            file_bytes: 0,
            replayed: 0,
            adopted_events: 0,
            orphaned: OrphanedQueues::default(),
            rejecting,
            storage,
            delivery: DeliveryPhase::Idle,
            consecutive_failures: 0,
            failed_attempts: 0,
            quarantined: 0,
            last_error: None,
            last_success: None,
            dir: None,
            ai: None,
        }
    }

    /// Events that were not accepted, for any reason, in this process.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(|(_, count)| count).sum()
    }

    /// `accepted` minus the other side of the balance. Anything but zero is a defect of this library.
    pub fn imbalance(&self) -> i128 {
        let places =
            [self.delivered, self.queued_events, self.dead_lettered, self.evicted, self.damaged, self.lost_unsynced];
        i128::from(self.accepted) - places.into_iter().map(i128::from).sum::<i128>()
    }
}

/// The reasons that occurred, given the number of events for each.
pub(crate) fn dropped(refusals: Vec<u64>) -> Vec<(DropReason, u64)> {
    DropReason::ALL.into_iter().zip(refusals).filter(|(_, count)| *count > 0).collect()
}
