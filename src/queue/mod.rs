//! A crash-safe queue: records survive the process from the moment they are appended, and the machine from the next
//! sync.
//!
//! A queue is a directory (a *shard*) that one process owns. It has a journal, which takes records fast, and a store,
//! in which they wait until they are acked. Records are opaque bytes with a class byte. `docs/queue.md` explains the
//! whole, `docs/format.md` every byte on disk.
//!
//! ```text
//! shard-<n>/lock          held with flock by the owner for as long as it has the queue
//!           status        the status page: one page that any process may read (`status_page.rs`)
//!           (others)      files of the caller, of which one may be mapped (`owner_page.rs`)
//!           journal-0..3  the arenas of the journal
//!           queue.redb    the store
//!           reserve       space that is freed so that deletes succeed on a full disk
//! ```
//!
//! `journal` and `store` do not know each other. They meet here: a *checkpoint* moves the records of an arena into the
//! store, and only then is the arena free.
//!
//! Rules
//! * The lock alone decides who owns a shard. The process id on the status page is information.
//! * A checkpoint is one transaction: rows, ledger and the epoch of the arena. After a kill before the commit, the
//!   arena is checkpointed again; after a kill behind it, the epoch shows that it was. Recovery consists of the
//!   checkpoints that the last owner did not get to.
//! * Sequence numbers have no gaps, so missing records are counted exactly: as `damaged` if the machine has been up
//!   since they were appended, else as `lost_unsynced`.
//! * Each call into the store runs in a *phase* that is on the status page, so that the next owner checks the file if
//!   this one dies in it. Where panics abort, reads have a phase too.
//! * Before a first sync is reported, the directories up to `queue_dir` are synced: a file without a durable name is
//!   not durable.
//! * An idle queue writes nothing.
//!
//! Operations: [`Queue::open`], [`Queue::append`], [`Queue::sync`], [`Queue::checkpoint`], [`Queue::ack`],
//! [`Queue::evict`], [`Queue::close`]. `append` may be called on any thread, the others on one thread at a time.

mod checkpoint;
mod directory;
#[cfg(feature = "inspect")]
mod erase;
mod error;
mod evict;
pub(crate) mod frame;
pub(crate) mod journal;
mod leases;
mod owner_page;
mod owner_words;
mod ownership;
mod page_check;
#[cfg(feature = "inspect")]
mod reader;
mod recovery;
mod run;
mod status_page;
pub(crate) mod store;
#[cfg(test)]
mod tests;
#[cfg(feature = "inspect")]
mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::sys::clock::WallNanos;
use crate::sys::disk::Disk;
use journal::{AppendError, Appended, Budget, Journal};
use status_page::{Phase, PhaseGuard, StatusPage};
use store::{Ledger, Store};

pub(crate) use directory::{
    Claim, OrphanedQueue, claim, claim_orphan, has_orphan, has_orphan_with_dead, is_known_empty, orphaned, shard_dir,
    shard_dirs,
};
#[cfg(feature = "inspect")]
pub(crate) use directory::{claim_shard, claim_unpublished, publish, shard_numbers};
pub(crate) use error::{QueueError, StoreError};
pub(crate) use evict::{EvictUntil, EvictionCursor};
pub(crate) use leases::{Ack, ChunkRef, Lease, Leases, OWN, Rows, Totals};
pub(crate) use owner_page::OwnerPage;
pub(crate) use owner_words::{NUMBERS as OWNER_NUMBERS, OwnerWords};
pub(crate) use ownership::{Ownership, holds_idle_files};
#[cfg(feature = "inspect")]
pub(crate) use reader::{Contents, Found, Reader, copy};
pub(crate) use recovery::{Finding, Opened};
pub(crate) use run::{Heartbeat, RunRecord, task_id};
#[cfg(feature = "inspect")]
pub(crate) use status_page::PageContent;
pub(crate) use status_page::{OpeningMark, Predecessor};
pub(crate) use store::Project;
#[cfg(feature = "inspect")]
pub(crate) use verify::{Facts, Page};

/// The store is compacted while the queued rows take at most this much. A larger backlog is not moved; it shrinks as it
/// is delivered.
const COMPACT_LIVE_MAX: u64 = 16 * 1024 * 1024;
/// Dead letters of at most this size are moved as well, because they stay however long one waits. A compaction cannot
/// be interrupted: moving 64 MiB took 0.8 s.
const COMPACT_DEAD_MAX: u64 = 128 * 1024 * 1024;

/// How a queue is opened.
#[derive(Clone, Debug)]
pub(crate) struct QueueOptions {
    /// The project whose events it holds.
    pub(crate) project: Project,
    /// The root of all queues. Directories are made durable up to here.
    pub(crate) queue_dir: PathBuf,
    pub(crate) arena_bytes: usize,
    /// How long an append may wait for the lock.
    pub(crate) lock_wait: Duration,
    /// Cache of the store, in bytes.
    pub(crate) cache_bytes: usize,
    /// Size of the reserve for deletes on a full disk.
    pub(crate) reserve_bytes: u64,
    /// The most that dead letters may take.
    pub(crate) dead_bytes: u64,
    /// Whether this process adopts the queue, that is, has another one of its own.
    pub(crate) adopts: bool,
}

/// An open queue. See the module.
#[derive(Debug)]
pub(crate) struct Queue {
    dir: PathBuf,
    /// `None` for a queue in memory, and after the directory was released.
    claim: Mutex<Option<Claim>>,
    status: StatusPage,
    journal: Journal,
    store: Store,
    /// Whether the store was closed. Its ledger can still be read.
    closed: AtomicBool,
    /// Whether the queue ends with the process: it is in memory, or its directory was deleted.
    volatile: AtomicBool,
    /// Whether another process owns the directory.
    lost: AtomicBool,
    /// Whether the lock file was removed and the other files were not.
    files_remain: AtomicBool,
}

/// What the last owner of a shard left on its status page.
pub(crate) fn predecessor(disk: &Disk, shard_dir: &Path) -> Predecessor {
    StatusPage::peek(disk, shard_dir).unwrap_or_default()
}

/// The project whose records the shard contains, as far as its store can be read. Changes nothing.
#[cfg(feature = "inspect")]
pub(crate) fn project_of(disk: &Disk, shard_dir: &Path) -> Option<Project> {
    store::RowReader::open(disk, shard_dir).ok()?.project().cloned()
}

/// What the shard's status page says. `None` if there is none, or if it is damaged or of another version.
#[cfg(feature = "inspect")]
pub(crate) fn page(disk: &Disk, shard_dir: &Path) -> io::Result<Option<PageContent>> {
    StatusPage::content(disk, shard_dir)
}

/// The version of the shard's status page, if a newer version of this library wrote it.
#[cfg(feature = "inspect")]
pub(crate) fn newer_version(disk: &Disk, shard_dir: &Path) -> io::Result<Option<u64>> {
    StatusPage::newer_version(disk, &shard_dir.join(StatusPage::FILE))
}

impl Queue {
    /// Appends a record. On success it survives the process. May be called on any thread.
    #[inline]
    pub(crate) fn append(&self, body: &[u8], body_hash: u64, class: u8) -> Result<Appended, AppendError> {
        self.journal.append(body, body_hash, class, |seq| self.status.took(seq))
    }

    /// Makes everything that was appended before durable. Returns the highest durable sequence number.
    pub(crate) fn sync(&self) -> io::Result<u64> {
        self.check_claim()?;
        // Where the page is not mapped, it learns here how far the journal has got.
        self.status.publish();
        self.journal.sync()
    }

    /// Sets how much more the journal may take: see [`Journal::set_budget`].
    pub(crate) fn set_budget(&self, ordinary: Budget, priority: Budget) {
        self.journal.set_budget(self.ledger().accepted, ordinary, priority);
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Whether the queue ends with the process.
    pub(crate) fn is_volatile(&self) -> bool {
        self.volatile.load(Ordering::Acquire)
    }

    pub(crate) fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// The ledger as last committed.
    pub(crate) fn ledger(&self) -> Ledger {
        self.store.ledger()
    }

    /// The highest sequence number that was appended.
    pub(crate) fn accepted(&self) -> u64 {
        self.journal.last_seq().max(self.ledger().accepted)
    }

    /// When the oldest record in the store was checkpointed, as of the last commit. Reads memory only.
    pub(crate) fn oldest_at(&self) -> Option<WallNanos> {
        self.status.oldest_at()
    }

    /// The store, unless the queue was closed.
    pub(crate) fn open_store(&self) -> Option<&Store> {
        (!self.closed.load(Ordering::Acquire)).then_some(&self.store)
    }

    /// Whether a read of the store would fail because another thread needs the database alone at this moment.
    pub(crate) fn is_busy(&self) -> bool {
        self.open_store().is_some_and(Store::is_busy)
    }

    /// Bytes of the pages that the rows of the store take.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.open_store().map_or(0, |store| store.row_bytes())
    }

    /// From the next transaction on, dead letters take no more than this.
    pub(crate) fn bound_dead(&self, bytes: u64) {
        self.store.bound_dead(bytes);
    }

    /// Bytes that the store's file takes on disk; 0 if that cannot be determined.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.open_store().and_then(|store| store.file_bytes().ok()).unwrap_or(0)
    }

    /// Returns free space of the store's file to the file system, if there is some and little data has to be moved.
    pub(crate) fn compact(&self) -> Result<bool, QueueError> {
        self.in_store(|store| store.compact_if_small(COMPACT_LIVE_MAX, COMPACT_DEAD_MAX))
    }

    /// Copies counters of the caller to the status page, for other processes to read.
    pub(crate) fn mirror_counters(&self, counts: &[u64]) {
        self.while_ours(|page| page.mirror_counters(counts));
    }

    /// Marks the status page while a risky task is running, so that the next owner knows if this one dies of it.
    pub(crate) fn mark_task(&self, build: Option<u64>) {
        self.while_ours(|page| page.mark_task(build));
    }

    /// Whether an earlier owner died of that task.
    pub(crate) fn is_fatal_task(&self, build: u64) -> bool {
        self.status.is_fatal_task(build)
    }

    /// Closes the files and releases the directory. The content stays. Waits for reads that are under way.
    pub(crate) fn close(&self) {
        self.close_files();
        self.release();
    }

    fn close_files(&self) {
        self.journal.close();
        // Calls of other threads that are under way end first: none may find the store open once the directory belongs to
        // another process.
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.store.close();
        }
    }

    fn release(&self) {
        self.status.mark_clean_exit(self.store.seal());
        self.status.release();
        // Last: from here on the directory may belong to another process.
        let claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(claim);
    }

    /// Writes the status page to its file where it is not mapped.
    pub(crate) fn publish(&self) {
        self.status.publish();
    }

    /// Calls into the store in a phase.
    fn in_store<T>(&self, call: impl FnOnce(&Store) -> Result<T, StoreError>) -> Result<T, QueueError> {
        let store = self.open_store().ok_or_else(|| self.failed(StoreError::Latched))?;
        self.check_claim().map_err(|source| QueueError::Io { path: self.dir.clone(), source })?;
        let _phase = self.status.enter(Phase::Store);
        call(store).map_err(|source| self.failed(source))
    }

    fn read_store<T>(&self, call: impl FnOnce(&Store) -> Result<T, StoreError>) -> Result<T, QueueError> {
        let store = self.open_store().ok_or_else(|| self.failed(StoreError::Latched))?;
        let _phase = self.enter_reading();
        call(store).map_err(|source| self.failed(source))
    }

    /// A phase for a read, only where panics abort. The database panics at a damaged page; without the mark the next
    /// process would read the same page and die too. Where panics unwind, a read needs no phase: the panic is caught,
    /// and a read leaves the file as it was.
    fn enter_reading(&self) -> Option<PhaseGuard<'_>> {
        cfg!(panic = "abort").then(|| self.status.enter(Phase::Store))
    }

    fn failed(&self, source: StoreError) -> QueueError {
        QueueError::Store { dir: self.dir.clone(), source }
    }

    fn mirror(&self, now: WallNanos) {
        if self.open_store().is_some() {
            let _phase = self.enter_reading();
            self.status.mirror(&self.ledger(), self.journal.epoch(), self.oldest(), now);
        }
    }
}
