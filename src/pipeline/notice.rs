//! Notices: what a pipeline reports to the client, which makes diagnostics of it.

use std::path::PathBuf;

use super::admission::Floor;
use crate::delivery;
use crate::queue::OrphanedQueue;
use crate::report::Diagnostic;

/// Something that happened in a lane and that an operator may have to know.
#[derive(Debug)]
pub(crate) enum Notice {
    /// From the delivery engine.
    Delivery(delivery::Notice),
    /// About feature flags.
    Flags(Diagnostic),
    /// A warning about this machine's network settings.
    Network(String),
    /// A damaged file was replaced.
    Salvaged {
        /// Where the damaged file is kept.
        path: PathBuf,
        /// What was wrong with it.
        why: String,
        /// Number of events that could not be recovered.
        lost: u64,
    },
    /// Accepted events are missing from the queue.
    Missing {
        /// How many.
        events: u64,
        /// They were lost in a power cut before they were synced; otherwise the files were damaged.
        after_restart: bool,
    },
    /// The last owner died inside the store, so its file was checked, and it is sound.
    StoreVerified,
    /// The last owner died while it looked up symbols; stack frames of that build are sent without names.
    SymbolsUntrusted,
    /// Storage fails, or works again.
    Storage {
        /// What fails; `None` when storage works again.
        problem: Option<String>,
    },
    /// The file system has less free space than the floor: no events are accepted.
    Floor(Floor),
    /// The queue is in memory, or in files that were deleted: it is lost at the end of the process.
    InMemory {
        /// Where the queue should be.
        path: PathBuf,
        /// Why it is not there.
        problem: String,
    },
    /// A queue in memory was closed with events in it.
    LostInMemory {
        /// How many.
        events: u64,
    },
    /// Events were evicted.
    Evicted {
        /// How many.
        events: u64,
        /// Because of their age; otherwise because of the bounds of the queue.
        for_age: bool,
    },
    /// The queue's directory does not outlive the machine or the container.
    Ephemeral {
        /// The directory.
        path: PathBuf,
        /// The kind of file system.
        what: &'static str,
    },
    /// Other users may change or replace the queue's directory.
    Exposed {
        /// The directory that they may write to: the queue's own, or one above it.
        path: PathBuf,
        /// What permits it.
        why: String,
    },
    /// A queue of another project has events that are not delivered.
    OrphanedQueue(OrphanedQueue),
    /// Further queues of other projects, beyond those that are reported one by one.
    MoreOrphanedQueues {
        /// The directory of all of them.
        path: PathBuf,
        /// Number of queues.
        queues: u64,
        /// Events in them.
        events: u64,
        /// Bytes in them.
        bytes: u64,
    },
    /// A shutdown that had time for delivery left events in the queue.
    LeftOnDisk {
        /// How many.
        events: u64,
        /// Where they are stored.
        path: PathBuf,
        /// What prevented their delivery.
        why: String,
    },
    /// A shard was skipped: its format is newer, or it cannot be opened.
    ShardSkipped {
        /// Its directory.
        path: PathBuf,
        /// The failure.
        why: String,
    },
    /// The pipeline has ended: this is its last notice.
    Ended,
}
