//! One directory and everything in it: lock, status page, journal, store. Who owns it, and how events move from the journal into
//! the store.
//!
//! ```text
//! <queue_dir>/<project>/[ai/]shard-<n>/
//!                                    lock         held with flock by the owner, for life
//!                                    status       one page, readable by anybody (`status.rs`)
//!                                    journal-0..3 the arenas
//!                                    queue.redb   the store        reserve   room for deletes on a full disk
//! ```
//!
//! Purpose. `journal` and `store` have never heard of each other. Here they meet: a record accepted by the journal is *checkpointed* into
//! the store, and only then is its arena free. Neither is opened by anybody else.
//!
//! Rules
//! * The lock alone says who owns a shard; the pid on the status page is information.
//! * A checkpoint is one transaction: rows, ledger and the arena's epoch. Killed before it, the arena is checkpointed again; killed after it, the
//!   epoch says so. Recovery is nothing but the checkpoints that the last owner did not get to.
//! * Sequence numbers are gap-free, so what is missing is counted exactly: `damaged` if the machine has been up all the time,
//!   `lost_unsynced` if it was not.
//! * If a checkpoint fails at open, the arenas stay as they are, the shard starts all the same, and the checkpoint is tried again.
//! * A shard whose directory is out of reach (moved, made inaccessible) lives on in the files that are open, and does nothing by name. One
//!   whose directory was deleted does so too, and dies with the process. One whose directory another process has ends (`deleted.rs`).
//! * Each call into the store is inside a *phase* on the status page. An owner that died in one makes the next open check the file's
//!   integrity; three that died while opening make it set the file aside and salvage it. Where panics abort, reads have a phase as well.
//! * So is the looking up of what addresses mean: an owner that died in it has the next ones send addresses alone, until all is sent.
//! * Before the first receipt resolves, the directories up to `queue_dir` are synced: a file without a durable name is not durable.
//!
//! * How an owner was and how it ended is left on the page for the next one (`life.rs`), by whoever is awake anyway: an idle shard
//!   writes nothing.
//!
//! Operations: [`Shard::open`], [`Shard::append`], [`Shard::sync`], [`Shard::checkpoint`], [`Shard::ack`], [`Shard::evict`],
//! [`Shard::close`]. All but `append` are for one thread at a time.

mod advice;
mod checkpoint;
mod claim;
mod deleted;
mod evict;
mod explain;
pub(crate) mod journal;
mod leases;
mod life;
mod open;
mod opening;
mod orphaned;
mod room;
mod status;
pub(crate) mod store;
#[cfg(test)]
mod tests;
mod words;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::queue::journal::{Appended, Journal, JournalError, Refused, Room};
use crate::queue::store::{Ledger, Store, StoreError};
use crate::sys::clock::WallNanos;
use crate::sys::disk::Disk;

pub(crate) use advice::{advise, advise_resource};
pub(crate) use claim::{
    Claim, ClaimError, Lane, Project, claim, claim_orphan, has_orphan, has_orphan_with_dead, shard_dir, shard_dirs,
};
pub(crate) use deleted::Standing;
pub(crate) use evict::{EvictUntil, Passed};
pub(crate) use explain::explain_io;
pub(crate) use leases::{Ack, ChunkRef, Lease, Leases, OWN, Rows, Totals};
pub(crate) use life::{Life, Sign, build_word};
pub(crate) use open::{Finding, Opened, concerns_all_shards};
pub(crate) use opening::OpeningMark;
pub(crate) use orphaned::{OrphanedQueue, is_known_empty, orphaned};
pub(crate) use room::keeps_room;
pub(crate) use status::Predecessor;
use status::{InPhase, Phase, StatusPage};

/// The lane that rows of the store and commits of the journal are marked with. Always this one: a [`Lane`] has shards of its own.
pub(crate) const LANE: u8 = 0;

/// What waits may take so much where the file is compacted: a backlog gets smaller, and is not moved while it does.
const COMPACT_LIVE_MAX: u64 = 16 * 1024 * 1024;
/// So much of dead letters is moved as well, which stay however long one waits. Nothing can interrupt a compaction: moving 64 MiB took
/// 0.8 s.
const COMPACT_DEAD_MAX: u64 = 128 * 1024 * 1024;

/// How a shard is opened.
#[derive(Clone, Debug)]
pub(crate) struct ShardOptions {
    /// Whose events.
    pub(crate) project: Project,
    /// Below which everything lies; directories are made durable up to here.
    pub(crate) queue_dir: PathBuf,
    /// Bytes of one arena.
    pub(crate) arena_bytes: usize,
    /// How long an append may wait for its turn.
    pub(crate) lock_wait: Duration,
    /// Memory for pages of the store.
    pub(crate) cache_bytes: usize,
    /// Room kept for deletes on a full disk.
    pub(crate) reserve_bytes: u64,
    /// What the dead records may take.
    pub(crate) dead_bytes: u64,
    /// It is opened beside one's own, because nobody else has it.
    pub(crate) adopts: bool,
}

/// Why a shard could not be opened, or a step of it failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShardError {
    /// Nobody has said where queues are to lie.
    #[error(
        "no directory is configured: set Config::queue_dir, or POSTHOG_QUEUE_DIR, STATE_DIRECTORY, XDG_STATE_HOME or HOME"
    )]
    Nowhere,
    /// No directory could be claimed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// A directory or the status page.
    #[error("{path:?}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A newer version of this library wrote the shard; it was not touched.
    #[error(
        "a newer version of this library wrote it (format {version}); a program with that version is needed to read it"
    )]
    Newer {
        /// The shard.
        dir: PathBuf,
        /// Its status page's version.
        version: u64,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The store.
    #[error("{source} (in {dir:?})")]
    Store {
        /// The shard.
        dir: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shard {
    dir: PathBuf,
    /// `None` for a shard in memory, and after it was let go.
    claim: Mutex<Option<Claim>>,
    status: StatusPage,
    journal: Journal,
    store: Mutex<Access>,
    /// Dies with the process.
    volatile: AtomicBool,
    /// Somebody else has the directory.
    lost: AtomicBool,
    /// The lock file was removed, and nothing else with it.
    rest_stays: AtomicBool,
}

/// What the last owner of a shard left on its page.
pub(crate) fn predecessor(disk: &Disk, shard_dir: &Path) -> Predecessor {
    StatusPage::peek(disk, &shard_dir.join("status")).ok().flatten().unwrap_or_default()
}

/// The store, or what it said last.
#[derive(Debug)]
enum Access {
    Open(Arc<Store>),
    LetGo(Ledger),
}

impl Shard {
    /// Takes a record; it survives the process from here on. Any thread.
    #[inline]
    pub(crate) fn append(&self, body: &[u8], body_hash: u64, class: u8) -> Result<Appended, Refused> {
        self.journal.append(body, body_hash, class, |seq| self.status.took(seq))
    }

    /// Makes everything appended before durable; says up to which sequence number.
    pub(crate) fn sync(&self) -> io::Result<u64> {
        self.check_claim()?;
        // Where the page is not mapped, this is how often it learns how far the journal goes.
        self.status.publish();
        self.journal.sync()
    }

    /// Lets the journal take so much more than the store holds: see [`Journal::allow`].
    pub(crate) fn allow(&self, ordinary: Room, priority: Room) {
        self.journal.allow(self.ledger().accepted, ordinary, priority);
    }

    /// The journal, for its state.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Whether the shard dies with the process.
    pub(crate) fn is_volatile(&self) -> bool {
        self.volatile.load(Ordering::Acquire)
    }

    /// Where it lies.
    pub(crate) fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// The ledger as last committed.
    pub(crate) fn ledger(&self) -> Ledger {
        match &*self.access() {
            Access::Open(store) => store.ledger(),
            Access::LetGo(last) => *last,
        }
    }

    /// The highest sequence number accepted.
    pub(crate) fn accepted(&self) -> u64 {
        self.journal.last_seq().max(self.ledger().accepted)
    }

    /// When the oldest event in the store was checkpointed, as of the last commit. Reads memory only.
    pub(crate) fn oldest_at(&self) -> Option<WallNanos> {
        self.status.oldest_at()
    }

    /// The store, unless the shard was let go.
    pub(crate) fn open_store(&self) -> Option<Arc<Store>> {
        match &*self.access() {
            Access::Open(store) => Some(Arc::clone(store)),
            Access::LetGo(_) => None,
        }
    }

    /// Bytes of the pages that the store's rows take.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.open_store().map_or(0, |store| store.row_bytes())
    }

    /// The dead records of a shard that takes memory may take no more than this.
    pub(crate) fn bound_dead(&self, bytes: u64) {
        if let Some(store) = self.open_store() {
            store.bound_dead(bytes);
        }
    }

    /// Bytes that the store's file takes on the disk; 0 if that cannot be found out.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.open_store().and_then(|store| store.file_bytes().ok()).unwrap_or(0)
    }

    /// Gives the store's free room back to the file system, if there is some and little is left to be moved.
    pub(crate) fn compact(&self) -> Result<bool, ShardError> {
        self.in_store(|store| store.compact_if_small(COMPACT_LIVE_MAX, COMPACT_DEAD_MAX))
    }

    /// Mirrors what refusals there were, for other processes to read.
    pub(crate) fn mirror_refusals(&self, counts: &[u64]) {
        self.while_ours(|page| page.mirror_refusals(counts));
    }

    /// Marks the page while delivery looks up what addresses of a build mean.
    pub(crate) fn mark_resolving(&self, build: Option<u64>) {
        self.while_ours(|page| page.mark_resolving(build));
    }

    /// Whether an earlier owner died of that.
    pub(crate) fn untrusts_symbols_of(&self, build: u64) -> bool {
        self.status.untrusts_symbols_of(build)
    }

    /// Closes the store and lets the shard go; what is in it stays. Whoever reads it at this moment finishes first.
    pub(crate) fn close(&self) {
        self.close_files();
        self.let_go();
    }

    fn close_files(&self) {
        self.journal.close();
        let last = Access::LetGo(self.ledger());
        if let Access::Open(store) = std::mem::replace(&mut *self.access(), last) {
            // Others may still have it in hand, and must not find it open when the directory is somebody else's.
            store.close();
        }
    }

    fn let_go(&self) {
        self.status.mark_clean_exit();
        self.status.let_go();
        // Last: from here on the directory may be somebody else's.
        let claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(claim);
    }

    fn access(&self) -> MutexGuard<'_, Access> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the status page out where it is not mapped.
    pub(crate) fn publish(&self) {
        self.status.publish();
    }

    /// Calls into the store, inside a phase.
    fn in_store<T>(&self, call: impl FnOnce(&Store) -> Result<T, StoreError>) -> Result<T, ShardError> {
        let store = self.open_store().ok_or_else(|| self.failed(StoreError::Latched))?;
        self.check_claim().map_err(|source| ShardError::Io { path: self.dir.clone(), source })?;
        let _phase = self.status.enter(Phase::Store);
        call(&store).map_err(|source| self.failed(source))
    }

    /// A phase for a read, where that can be what the process dies of. Else reads need none: they come from another thread, and a death in
    /// one leaves the file as it was. The database panics at a damaged page; where panics abort there is no net, and without this mark the
    /// next process would walk into the same page, and the one after it.
    fn enter_reading(&self) -> Option<InPhase<'_>> {
        cfg!(panic = "abort").then(|| self.status.enter(Phase::Store))
    }

    fn failed(&self, source: StoreError) -> ShardError {
        ShardError::Store { dir: self.dir.clone(), source }
    }

    fn mirror(&self, now: WallNanos) {
        let Some(store) = self.open_store() else { return };
        let _phase = self.enter_reading();
        let oldest = store.oldest(LANE, &|_| false).ok().flatten().map(|(_, checkpointed_at)| checkpointed_at);
        self.status.mirror(&store.ledger(), self.journal.epoch(), oldest, now);
    }
}
