//! What the worker has to tell.

use std::path::PathBuf;

use super::Floor;
use crate::delivery;
use crate::flags;
use crate::queue::OrphanedQueue;

/// Something that happened on one of our threads.
#[derive(Debug)]
pub(crate) enum Notice {
    /// During delivery.
    Delivery(delivery::Notice),
    /// About feature flags.
    Flags(flags::Notice),
    /// Something about this machine's network setup.
    Network(String),
    /// A file was set aside.
    Salvaged {
        /// Its new name.
        path: PathBuf,
        /// What was wrong.
        why: String,
        /// Events that could not be saved.
        lost: u64,
    },
    /// Accepted events that are nowhere.
    Missing {
        /// How many.
        events: u64,
        /// Lost with a power cut, before they were synced.
        after_restart: bool,
    },
    /// The last owner died inside the store; its file was checked.
    StoreVerified,
    /// The last owner died while it looked up names; this one does not.
    SymbolsUntrusted,
    /// Storage fails, or works again.
    Storage {
        /// What fails; `None` when it works again.
        problem: Option<String>,
    },
    /// The file system has so little free that nothing is taken.
    Floor(Floor),
    /// The queue is in memory, or in files that nobody will find: it ends with the process.
    InMemory {
        /// Where it should be.
        path: PathBuf,
        /// Why it is not.
        problem: String,
    },
    /// A queue in memory ends with events in it.
    LostInMemory {
        /// How many.
        events: u64,
    },
    /// Events were given up for room or age.
    Evicted {
        /// How many.
        events: u64,
        /// For their age; else for room.
        for_age: bool,
    },
    /// The queue directory does not outlive the machine or the container.
    Ephemeral {
        /// Which.
        path: PathBuf,
        /// What it is on.
        what: &'static str,
    },
    /// Other users may change or replace the directory of the queue.
    Exposed {
        /// The directory that they may write, it or one above it.
        path: PathBuf,
        /// How.
        why: String,
    },
    /// Another project's queue has events that nobody delivers.
    OrphanedQueue(OrphanedQueue),
    /// And so have others besides those that are told one by one.
    MoreStranded {
        /// Where all of them lie.
        path: PathBuf,
        /// How many there are.
        queues: u64,
        /// Events in them.
        events: u64,
        /// Bytes in them.
        bytes: u64,
    },
    /// A stop that had time did not deliver everything.
    LeftOnDisk {
        /// Events that are still queued.
        events: u64,
        /// Where they lie.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A shard was left alone: it is of a newer format, or cannot be opened.
    ShardSkipped {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Nothing more comes: the pipeline has ended.
    Ended,
}
