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
/// [`health`](Stats::health) judges it, [`to_prometheus`](Stats::to_prometheus) writes it for Prometheus, and it
/// implements [`Serialize`](serde::Serialize): `docs/monitoring.md` has the names and shapes.
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
    /// Bytes that the queued events take of `max_bytes`: the pages of the store, and what the events in the journal may
    /// take there. More than `queued_bytes`, up to twice as much for large events.
    pub used_bytes: u64,
    /// The bound of `used_bytes`: [`Config::max_queue_bytes`](crate::Config::max_queue_bytes), less if the queue is in
    /// memory, and half of it while the queue's file is larger than its bound allows.
    pub max_bytes: u64,
    /// The bound of `queued_events`, if there is one
    /// ([`Config::max_queue_events`](crate::Config::max_queue_events)).
    pub max_events: Option<u64>,
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
    /// Why ordinary events are dropped at the moment, if they are. Of a journal that is full: after the first event was
    /// dropped for it.
    pub rejecting: Option<DropReason>,
    /// Where the queue is kept, and whether that works.
    pub storage: StorageMode,
    /// What the queue is stored on, and so what it outlives. `None` if there is no queue: the client is disabled, or
    /// this is a forked child that has captured nothing yet.
    pub medium: Option<QueueMedium>,
    /// What delivery is doing.
    pub delivery: DeliveryPhase,
    /// The thread that writes to the disk (`posthog-commit`).
    pub commit_thread: ThreadState,
    /// The thread that sends (`posthog-deliver`).
    pub deliver_thread: ThreadState,
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
    /// Why feature flag definitions could not be loaded when that was last tried; `None` if it succeeded, and without a
    /// secret key and a provider.
    pub flag_definitions_failure: Option<String>,
    /// Whether the queue of AI events could not be opened. AI events are dropped meanwhile
    /// ([`DropReason::Storage`]); the first one that is captured a minute later opens it again.
    pub ai_unavailable: bool,
    /// The queue of AI events, if it is open. Its `dropped` is empty: reasons are counted for both queues together.
    pub ai: Option<Box<Stats>>,
    /// The queue of ordinary events alone, if `ai` is there too. Its `dropped` is empty.
    pub analytics: Option<Box<Stats>>,
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

/// What a queue is stored on, and so what it outlives. A directory on another medium than a disk was chosen by the
/// program; [`is_fallback`](Self::is_fallback) tells a queue that is in memory although a disk was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueueMedium {
    /// A file system on a local disk, as far as is known.
    Disk,
    /// A file system in memory (tmpfs, ramfs): lost when the machine restarts.
    MemoryFileSystem,
    /// The layer of a container (overlayfs): lost with the container.
    ContainerLayer,
    /// A network file system: locks and durability depend on its server.
    NetworkFileSystem,
    /// The memory of the process, because no directory can be used
    /// ([`Config::memory_fallback`](crate::Config::memory_fallback)): lost with the process.
    ProcessMemory,
    /// Files that have no name any more, because the directory was deleted: lost with the process.
    DeletedFiles,
}

/// What one of the client's two threads is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ThreadState {
    /// There is no such thread: the client is disabled, or this is a forked child that has captured nothing yet.
    NotStarted,
    /// It waits for something to do.
    Asleep,
    /// It is awake. Work takes milliseconds, and seconds on a slow disk; the time of a thread that is stuck keeps
    /// growing.
    Working {
        /// The time since it was last asleep.
        since: Duration,
    },
    /// Delivery of this queue panicked (a defect of this library) and is started again within five minutes.
    Restarting,
    /// It has ended: the client was closed, or the thread panicked (a defect of this library).
    Ended,
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
    /// Requests are in flight, or the first of a process that found events is about to be sent (within
    /// [`Config::first_send_jitter`](crate::Config::first_send_jitter)).
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

impl StorageMode {
    /// All names.
    pub(crate) const NAMES: [&str; 6] = ["durable", "degraded", "volatile", "closed", "disabled", "forked"];

    /// The name of the variant in snake case, as in metrics: `durable`, `degraded`. It does not change when a text
    /// does.
    pub fn name(&self) -> &'static str {
        match self {
            StorageMode::Durable => "durable",
            StorageMode::Degraded { .. } => "degraded",
            StorageMode::Volatile { .. } => "volatile",
            StorageMode::Closed => "closed",
            StorageMode::Disabled => "disabled",
            StorageMode::Forked => "forked",
        }
    }
}

impl QueueMedium {
    pub(crate) const ALL: [QueueMedium; 6] = [
        QueueMedium::Disk,
        QueueMedium::MemoryFileSystem,
        QueueMedium::ContainerLayer,
        QueueMedium::NetworkFileSystem,
        QueueMedium::ProcessMemory,
        QueueMedium::DeletedFiles,
    ];

    /// The name of the variant in snake case, as in metrics: `disk`, `process_memory`.
    pub fn name(self) -> &'static str {
        match self {
            QueueMedium::Disk => "disk",
            QueueMedium::MemoryFileSystem => "memory_file_system",
            QueueMedium::ContainerLayer => "container_layer",
            QueueMedium::NetworkFileSystem => "network_file_system",
            QueueMedium::ProcessMemory => "process_memory",
            QueueMedium::DeletedFiles => "deleted_files",
        }
    }

    /// Whether the queue is not in the directory that was configured, and is lost with the process. All other media
    /// were chosen, by the choice of the directory.
    pub fn is_fallback(self) -> bool {
        matches!(self, QueueMedium::ProcessMemory | QueueMedium::DeletedFiles)
    }
}

impl ThreadState {
    /// The name of the variant in snake case, as in metrics: `asleep`, `working`.
    pub fn name(self) -> &'static str {
        match self {
            ThreadState::NotStarted => "not_started",
            ThreadState::Asleep => "asleep",
            ThreadState::Working { .. } => "working",
            ThreadState::Restarting => "restarting",
            ThreadState::Ended => "ended",
        }
    }

    /// The time since the thread was last asleep; zero unless it is working.
    pub fn busy_for(self) -> Duration {
        if let ThreadState::Working { since } = self { since } else { Duration::ZERO }
    }

    /// Whether it serves the queue.
    pub(crate) fn is_up(self) -> bool {
        matches!(self, ThreadState::Asleep | ThreadState::Working { .. })
    }
}

impl DeliveryPhase {
    /// All names.
    pub(crate) const NAMES: [&str; 6] = ["idle", "sending", "backoff", "cooldown", "quarantined", "paused"];

    /// The name of the variant in snake case, as in metrics: `sending`, `paused`. It does not change when a text does.
    pub fn name(&self) -> &'static str {
        match self {
            DeliveryPhase::Idle => "idle",
            DeliveryPhase::Sending => "sending",
            DeliveryPhase::Backoff { .. } => "backoff",
            DeliveryPhase::Cooldown { .. } => "cooldown",
            DeliveryPhase::Quarantined { .. } => "quarantined",
            DeliveryPhase::Paused { .. } => "paused",
        }
    }

    /// Time until the next request, if delivery waits for it.
    pub fn retry_in(&self) -> Option<Duration> {
        match *self {
            DeliveryPhase::Idle | DeliveryPhase::Sending => None,
            DeliveryPhase::Backoff { retry_in }
            | DeliveryPhase::Cooldown { retry_in }
            | DeliveryPhase::Quarantined { retry_in }
            | DeliveryPhase::Paused { retry_in, .. } => Some(retry_in),
        }
    }
}

impl fmt::Display for QueueMedium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QueueMedium::Disk => "a local disk",
            QueueMedium::MemoryFileSystem => "a file system in memory, lost when the machine restarts",
            QueueMedium::ContainerLayer => "a container's own layer, lost with the container",
            QueueMedium::NetworkFileSystem => "a network file system",
            QueueMedium::ProcessMemory => "the memory of this process, lost when it ends",
            QueueMedium::DeletedFiles => "files of a deleted directory, lost when this process ends",
        })
    }
}

impl fmt::Display for ThreadState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ThreadState::NotStarted => f.write_str("not started"),
            ThreadState::Asleep => f.write_str("asleep"),
            ThreadState::Working { since } => write!(f, "working for {}", time(since)),
            ThreadState::Restarting => f.write_str("restarting after a panic"),
            ThreadState::Ended => f.write_str("ended"),
        }
    }
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
            used_bytes: self.used_bytes.saturating_add(ai.used_bytes),
            max_bytes: self.max_bytes.saturating_add(ai.max_bytes),
            max_events: self.max_events.zip(ai.max_events).map(|(own, ai)| own.saturating_add(ai)),
            oldest_age: self.oldest_age.max(ai.oldest_age),
            unsynced_for: self.unsynced_for.max(ai.unsynced_for),
            file_bytes: self.file_bytes.saturating_add(ai.file_bytes),
            replayed: self.replayed.saturating_add(ai.replayed),
            adopted_events: self.adopted_events.saturating_add(ai.adopted_events),
            failed_attempts: self.failed_attempts.saturating_add(ai.failed_attempts),
            quarantined: self.quarantined.saturating_add(ai.quarantined),
            analytics: Some(Box::new(self.clone())),
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
            used_bytes: 0,
            max_bytes: 0,
            max_events: None,
            oldest_age: None,
            unsynced_for: None,
            file_bytes: 0,
            replayed: 0,
            adopted_events: 0,
            orphaned: OrphanedQueues::default(),
            rejecting,
            storage,
            medium: None,
            delivery: DeliveryPhase::Idle,
            commit_thread: ThreadState::NotStarted,
            deliver_thread: ThreadState::NotStarted,
            consecutive_failures: 0,
            failed_attempts: 0,
            quarantined: 0,
            last_error: None,
            last_success: None,
            dir: None,
            flag_definitions_failure: None,
            ai_unavailable: false,
            ai: None,
            analytics: None,
        }
    }

    /// Adds what the client knows besides its lanes: the number of dropped events for each reason, and whether the
    /// queue of AI events could not be opened.
    pub(crate) fn of_client(self, refusals: Vec<u64>, ai_unavailable: bool) -> Self {
        Self { dropped: dropped(refusals), ai_unavailable, ..self }
    }

    /// Each queue by itself, with its name in metrics: that of ordinary events (`analytics`), and that of AI events
    /// (`ai`) if it is open.
    pub fn lanes(&self) -> impl Iterator<Item = (&'static str, &Stats)> {
        let analytics = self.analytics.as_deref().unwrap_or(self);
        std::iter::once(("analytics", analytics)).chain(self.ai.as_deref().map(|ai| ("ai", ai)))
    }

    /// How full the queue is, from 0 to 1, by bytes (`used_bytes` of `max_bytes`) or by events (`queued_events` of
    /// `max_events`), whichever is more; the fuller one of the two queues if that of AI events is open. Above 1 if
    /// exceptions and identity events take the eighth that is kept for them.
    pub fn fill(&self) -> f64 {
        let part = |taken: u64, most: u64| if most == 0 { 0.0 } else { taken as f64 / most as f64 };
        let of = |lane: &Stats| {
            let events = lane.max_events.map_or(0.0, |most| part(lane.queued_events, most));
            part(lane.used_bytes, lane.max_bytes).max(events)
        };
        self.lanes().map(|(_, lane)| of(lane)).fold(0.0, f64::max)
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

#[cfg(test)]
pub(super) mod fixtures {
    //! Snapshots for the tests of what is computed from them.

    use super::*;

    /// A client that works.
    pub(in crate::report) fn working() -> Stats {
        Stats {
            accepted: 1000,
            delivered: 990,
            queued_events: 3,
            queued_bytes: 600,
            dead_lettered: 2,
            evicted: 1,
            damaged: 1,
            lost_unsynced: 3,
            dropped: vec![(DropReason::TooLarge, 4)],
            used_bytes: 4096,
            max_bytes: 1 << 30,
            max_events: None,
            oldest_age: Some(Duration::from_millis(1500)),
            unsynced_for: Some(Duration::from_millis(20)),
            file_bytes: 1 << 20,
            storage: StorageMode::Durable,
            medium: Some(QueueMedium::Disk),
            delivery: DeliveryPhase::Sending,
            commit_thread: ThreadState::Asleep,
            deliver_thread: ThreadState::Working { since: Duration::from_millis(250) },
            failed_attempts: 7,
            last_error: Some("HTTP status 503".into()),
            last_success: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_500)),
            dir: Some("/var/lib/daemon/posthog/p/shard-0".into()),
            ..Stats::without_queue(StorageMode::Durable, None, Vec::new())
        }
    }

    /// The same with a queue of AI events that is bounded and fuller.
    pub(in crate::report) fn with_ai() -> Stats {
        let ai = Stats {
            accepted: 10,
            delivered: 2,
            queued_events: 8,
            dead_lettered: 0,
            evicted: 0,
            damaged: 0,
            lost_unsynced: 0,
            dropped: Vec::new(),
            max_events: Some(10),
            delivery: DeliveryPhase::Cooldown { retry_in: Duration::from_secs(42) },
            last_success: None,
            ..working()
        };
        working().with_ai(ai)
    }
}
