//! Knobs of the queue: where it lies, how much it holds, how soon it is durable.

use std::path::PathBuf;
use std::time::Duration;

use super::Config;
use crate::pipeline::OverflowPolicy;

impl Config {
    /// The directory in which queues lie, one for each project, on a local disk that outlives the process. Default:
    /// `$POSTHOG_QUEUE_DIR`, else `$STATE_DIRECTORY/posthog` (its first entry), else `$XDG_STATE_HOME/posthog`, else
    /// `~/.local/state/posthog`; never a temporary directory.
    ///
    /// It should belong to the user of the process, or to root, and nobody else should be able to write to it. The queues that are made in
    /// it are for that user alone: one that another user owns, or every user may write, is not used.
    pub fn queue_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.queue_dir = Some(dir.into());
        self
    }

    /// Works in memory instead of failing when the queue directory cannot be used or does not answer in time, or when none is configured
    /// and the environment names none: bounded, lost with the process, and said so by `stats().storage`, a diagnostic and every receipt.
    /// Default: off.
    pub fn memory_fallback(mut self, fallback: bool) -> Self {
        self.memory_fallback = fallback;
        self
    }

    /// Opens the queue of AI events with the client, and not with the first [`capture_ai`](crate::Client::capture_ai), which would
    /// wait for that. Takes two threads and 32 MiB of disk. Default: off. A queue in which an earlier process left AI events is opened
    /// in any case.
    pub fn open_ai_queue(mut self, on: bool) -> Self {
        self.ai_lane = on;
        self
    }

    /// Also delivers what is left in the queue of an earlier key or host, under the present key and to the present host. May be
    /// called several times.
    pub fn adopt_queue(mut self, api_key: impl Into<String>, host: impl Into<String>) -> Self {
        self.adopt_queue.push((api_key.into(), host.into()));
        self
    }

    /// What a power cut may cost: events are made durable at the latest so long after they were accepted, at once if a receipt's
    /// [`persisted`](crate::Receipt::persisted) is awaited. Default 100 ms, least 1 ms, most 60 s.
    pub fn sync_interval(mut self, interval: Duration) -> Self {
        self.sync_interval = interval;
        self
    }

    /// How long a delivered event may stay in the queue's file. A process killed in this time sends it again, with the same uuid.
    /// Default 1 s, least 10 ms, most 60 s.
    pub fn ack_interval(mut self, interval: Duration) -> Self {
        self.ack_interval = interval;
        self
    }

    /// Bytes of one journal arena; there are two to four of them, mapped into memory, made when they are needed and kept for the next
    /// process. What can be accepted in a burst. Default 8 MiB, least 64 KiB and four times the largest event, most 256 MiB.
    pub fn journal_bytes(mut self, bytes: usize) -> Self {
        self.journal_bytes = bytes;
        self
    }

    /// Bytes of the largest event, encoded; a larger one is `Dropped(TooLarge)`. Default 1 MiB, least 1 KiB, most 16 MiB. AI events may
    /// take 8 MiB, whatever is set here.
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// Bytes that the queued events of this process may take on the disk, what waits in the journal included. Default 1 GiB, least 1 MiB,
    /// most 1 TiB. In a directory held in memory at most 64 MiB, or a tenth of the container's memory. AI events have a queue of their
    /// own, with the same bound for itself, but at least 64 MiB.
    ///
    /// Nearly all of that is events where they are small; a large one may take up to twice its bytes. So one event may have half of the
    /// bound at most, whatever [`max_event_bytes`](Self::max_event_bytes) says: with less than 2 MiB and 8 KiB that is less than its
    /// default.
    ///
    /// The file `queue.redb` may take an eighth more, which is kept for exceptions and identity events; 1 MiB for what is not events; with
    /// [`OverflowPolicy::DropOldest`] what is carried into it at once, one [`journal_bytes`](Self::journal_bytes) at most; and for the dead
    /// letters, which are kept as far as they fit an eighth of this bound (at least 1 MiB), twice their bytes. Its blocks on the disk
    /// (`du`, not `ls -l`) keep to that. In all, a process takes at most
    ///
    /// ```text
    /// max_queue_bytes * 9/8 + 1 MiB     the queue's file
    /// + max_queue_bytes / 4             the dead letters in it, at least 2 MiB
    /// + journal_bytes                   with OverflowPolicy::DropOldest
    /// + journal_bytes * 4               the journal; two of them unless there are bursts
    /// + 1 MiB                           the reserve, for deletes on a full disk
    /// ```
    ///
    /// and for a moment the queue's file twice, where a disk that failed has it copied. Each process, and each forked child that captures,
    /// has a queue of its own with these bounds for itself.
    pub fn max_queue_bytes(mut self, bytes: u64) -> Self {
        self.max_queue_bytes = bytes;
        self
    }

    /// Events that may be queued, in the journal and in the store. Default: no bound but the bytes. Least 1. Exact, with an eighth more for
    /// exceptions and identity events, and counting what was delivered until that is committed ([`ack_interval`](Self::ack_interval)).
    /// With [`OverflowPolicy::DropOldest`] it bounds the store: what came since the last commit, for a second or
    /// [`flush_interval`](Self::flush_interval), is on top of that, and what is under way to PostHog at the moment stays.
    pub fn max_queue_events(mut self, events: u64) -> Self {
        self.max_queue_events = Some(events);
        self
    }

    /// Age at which queued events are given up. Default: never. Least 1 s. Never before a delivery was tried, and not while the wall
    /// clock disagrees with the time that has passed; after it was set, ages count again when it has kept that for six hours. Time that the
    /// machine has slept counts.
    pub fn max_queue_age(mut self, age: Duration) -> Self {
        self.max_queue_age = Some(age);
        self
    }

    /// Bytes of the file system that are left to others: with less than this free, nothing more is accepted. Default 32 MiB, most 1 TiB.
    pub fn min_free_space(mut self, bytes: u64) -> Self {
        self.min_free_space = bytes;
        self
    }

    /// What happens to a capture when the queue has reached its bounds. Default [`OverflowPolicy::DropNewest`]. A wait
    /// of [`OverflowPolicy::Block`] is at most 1 h.
    pub fn overflow(mut self, overflow: OverflowPolicy) -> Self {
        self.overflow = overflow;
        self
    }
}
