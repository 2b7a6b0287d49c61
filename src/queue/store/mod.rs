//! The store: a transactional table of records on redb, in which they wait, for days if necessary, until they are
//! acked.
//!
//! It does not know the journal. A row is a *chunk*: the bytes of many records as they were in the journal. Rows do not
//! move between states. One process uses a directory at a time: the caller holds the shard's lock.
//!
//! The tables are in `schema.rs` and `docs/format.md`.
//!
//! Guarantees
//! * [`Store::apply`] is one transaction, which is durable when it returns `Ok`. The ledger changes with the rows that
//!   it counts, so it balances after any crash. A commit can report a failure and have taken effect, so every change
//!   can be applied twice (`transaction.rs`).
//! * Reads run beside a transaction, on any thread, and leave no transaction open. Reads of chunks do not wait while
//!   the database is needed alone (to reopen, compact or close it), which takes as long as the disk does: they fail
//!   with [`StoreError::Busy`].
//! * Every call into redb is guarded: a panic becomes an error. After a panic, damage or an I/O error the store is
//!   *latched*: every call fails until [`Store::reopen`], which trusts nothing in memory. A file whose sync failed is
//!   replaced by a copy. A damaged file is kept in `damaged-<time>/`, and what can be read of it is copied row by row.
//! * A file is built as `queue.redb.new` and gets its name when it is complete and durable. So an empty file, or one
//!   without its `meta` rows, is damaged. A file of a newer version or of another project is never changed.
//! * In a forked child every call fails, and dropping an inherited store leaks it.
//!
//! Limits: one write at a time; a row of at most 3 GiB; a rebuild needs as much free space as the queue and 4 MiB of
//! memory, and about a hundred bytes for each row on a page that was lost. Damage that opening does not detect shows later, as a row that fails
//! its checks, or at the latest when the last row is removed and the ledger still counts some.

mod backend;
mod files;
mod maintenance;
mod open;
#[cfg(feature = "inspect")]
mod rewrite;
#[cfg(feature = "inspect")]
mod row_reader;
mod rows;
mod salvage;
mod schema;
#[cfg(test)]
mod tests;
mod transaction;
mod trees;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, TryLockError};

use redb::Database;

use crate::queue::error::{StoreError, guarded};
use crate::sys::clock::WallNanos;
use crate::sys::crash_point;
use crate::sys::disk::{Disk, Home, fork};
use backend::StoreFile;
use files::{Registration, Reserve, StoreDir};
#[cfg(not(feature = "inspect"))]
use rows::State;

#[cfg(feature = "inspect")]
pub(crate) use files::HEADER_BYTES;
#[cfg(feature = "inspect")]
pub(crate) use files::QUEUE;
pub(crate) use files::{RESERVE, StoreOptions, seal_of};
#[cfg(test)]
pub(crate) use maintenance::COMPACT_FROM;
pub(crate) use maintenance::is_worth_compacting;
#[cfg(feature = "inspect")]
pub(crate) use open::meta_of;
pub(crate) use open::{OpenReport, identify};
#[cfg(feature = "inspect")]
pub(crate) use rewrite::{Keeps, Rewritten};
#[cfg(feature = "inspect")]
pub(crate) use row_reader::{Row, RowReader};
#[cfg(feature = "inspect")]
pub(crate) use rows::State;
pub(crate) use rows::{CHUNK_BYTES_TARGET, Chunk, ChunkKey, DeadRecord, Ledger, Project};
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use schema::read_any as read_any_row;
pub(crate) use transaction::{Applied, Changes, DeadRead, Read, Removal};

/// An open store. Usable from several threads at once.
#[derive(Debug)]
pub(crate) struct Store {
    /// `None` in memory.
    place: Option<StoreDir>,
    /// Whether the directory was deleted: names in it are no longer ours.
    unlinked: AtomicBool,
    options: StoreOptions,
    /// The most that dead records may take.
    dead_bytes: AtomicU64,
    /// The fork generation of the process that opened it.
    generation: u64,
    /// Held by every change of the file from begin to end: there is one at a time. Locked before `opened`, which is
    /// locked before `committed`.
    writer: Mutex<Reserve>,
    /// The wall time last given by a caller. It names a damaged file that is found where the time is not known.
    opened_at: AtomicI64,
    /// Shared by reads and transactions; exclusive for what needs the database alone. `None` after a reopen that
    /// failed.
    opened: RwLock<Option<OpenDatabase>>,
    /// The last result of [`file_bytes`](Self::file_bytes).
    known_file_bytes: AtomicU64,
    /// The state as of the last commit. Locked for a moment only.
    committed: Mutex<State>,
    /// Whether every call fails until the store is reopened.
    latched: AtomicBool,
    /// Whether the file must be checked when it is reopened.
    needs_check: AtomicBool,
    /// `None` in memory, and after closing.
    registration: Mutex<Option<Registration>>,
}

#[derive(Debug)]
struct OpenDatabase {
    db: Database,
    file: Option<StoreFile>,
}

impl Store {
    /// Opens the store in `dir`, which must exist. Creates, repairs or replaces its file as needed.
    pub(crate) fn open(
        disk: &Disk,
        dir: &Path,
        options: &StoreOptions,
        now: WallNanos,
    ) -> Result<(Self, OpenReport), StoreError> {
        let registration = Registration::of(dir)?;
        let (disk, dir, home) = (disk.clone(), dir.to_path_buf(), Home::of(dir)?);
        let place = StoreDir { disk, dir, home, options: options.clone(), condemned: Arc::default() };
        let (database, state, report) = open::open(&place, now)?;
        let reserve = Reserve::open(&place);
        Ok((Self::with(database, state, reserve, options, Some((place, registration)), now), report))
    }

    /// A store in memory, which ends with the process.
    pub(crate) fn volatile(options: &StoreOptions) -> Result<Self, StoreError> {
        let state = State { dead_bytes: Some(0), ..State::default() };
        let database = open::in_memory(options, &state)?;
        Ok(Self::with(database, state, Reserve::none(), options, None, 0))
    }

    fn with(
        database: OpenDatabase,
        state: State,
        reserve: Reserve,
        options: &StoreOptions,
        files: Option<(StoreDir, Registration)>,
        now: WallNanos,
    ) -> Self {
        let (place, registration) = files.unzip();
        Self {
            place,
            unlinked: AtomicBool::new(false),
            dead_bytes: AtomicU64::new(options.dead_bytes),
            options: options.clone(),
            generation: fork::generation(),
            writer: Mutex::new(reserve),
            opened_at: AtomicI64::new(now),
            opened: RwLock::new(Some(database)),
            known_file_bytes: AtomicU64::new(0),
            committed: Mutex::new(state),
            latched: AtomicBool::new(false),
            needs_check: AtomicBool::new(false),
            registration: Mutex::new(registration),
        }
    }

    /// Applies the changes in one transaction. After `Ok` they survive a power cut. On a full disk a transaction that
    /// only acks may use the reserve, and so may one that fills an empty store.
    pub(crate) fn apply(&self, changes: &Changes) -> Result<Applied, StoreError> {
        self.check_process()?;
        let mut reserve = self.writer();
        if self.is_for_acks(&reserve, changes) {
            return Err(StoreError::NoSpace(io::ErrorKind::StorageFull.into()));
        }
        let mut outcome = self.commit(changes);
        if let (Err(StoreError::NoSpace(_)), Some(place)) = (&outcome, self.place())
            && (changes.only_acks() || self.is_the_only_way_out(changes))
            && reserve.release(place)?
        {
            self.reopen_locked()?;
            outcome = self.commit(changes);
        }
        let applied = outcome?;
        crash_point::reach("store.chunk.committed");
        if let Some(place) = self.place() {
            reserve.refill(place);
        }
        Ok(applied)
    }

    /// Stores `content` in the `meta` table under `name`, which must not be one of the store's own rows, or removes it;
    /// in a transaction of its own. Fails at once if the disk has no space left but for acks.
    pub(crate) fn put_meta(&self, name: &str, content: Option<&[u8]>) -> Result<(), StoreError> {
        self.check_process()?;
        let reserve = self.writer();
        if content.is_some() && self.place().is_some_and(|place| reserve.is_needed(place)) {
            return Err(StoreError::NoSpace(io::ErrorKind::StorageFull.into()));
        }
        self.with_database(|db| {
            let transaction = schema::begin(db)?;
            schema::write_meta(&transaction, name, content)?;
            Ok(transaction.commit()?)
        })?;
        Ok(())
    }

    /// What [`put_meta`](Self::put_meta) stored under `name`. `None` also if it cannot be read, which does not count as
    /// damage of the store.
    pub(crate) fn meta(&self, name: &str) -> Option<Vec<u8>> {
        self.check_process().ok()?;
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let open = opened.as_ref().filter(|_| !self.is_latched())?;
        guarded(|| schema::read_entry(&open.db, name)).ok()?
    }

    /// The ledger as last committed.
    pub(crate) fn ledger(&self) -> Ledger {
        self.committed().ledger
    }

    /// Bytes of the pages that the rows take. For a file of an older version this is an overestimate until the store
    /// has been empty.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.committed().row_bytes
    }

    /// The epoch of the newest arena that was checkpointed; 0 for none.
    pub(crate) fn journal_epoch(&self) -> u64 {
        self.committed().epoch
    }

    /// The time before which nothing is sent, as last set in [`Changes::next_attempt`].
    pub(crate) fn next_attempt(&self) -> Option<WallNanos> {
        self.committed().next_attempt
    }

    /// From the next transaction on, dead records take no more than this.
    pub(crate) fn bound_dead(&self, bytes: u64) {
        self.dead_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether every call fails until [`Store::reopen`].
    pub(crate) fn is_latched(&self) -> bool {
        self.latched.load(Ordering::Acquire)
    }

    /// Bytes that the file's blocks take on disk; in memory, the bytes of the rows. What was found last, while the
    /// database is being reopened, compacted or closed.
    pub(crate) fn file_bytes(&self) -> Result<u64, StoreError> {
        self.check_process()?;
        let Some(opened) = self.opened_at_once() else { return Ok(self.known_file_bytes.load(Ordering::Relaxed)) };
        let bytes = match opened.as_ref() {
            Some(OpenDatabase { file: Some(file), .. }) => file.allocated_bytes()?,
            Some(_) => self.ledger().queued_bytes,
            None => return Err(StoreError::Latched),
        };
        self.known_file_bytes.store(bytes, Ordering::Relaxed);
        Ok(bytes)
    }

    /// Whether reads fail with [`StoreError::Busy`] at this moment.
    pub(crate) fn is_busy(&self) -> bool {
        self.opened_at_once().is_none()
    }

    /// Ends the registration, as if another process had the store: for tests that simulate several processes.
    #[cfg(test)]
    pub(crate) fn unregister(&self) {
        self.registration.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Whether the last space of the disk must be left to acks, because the reserve is gone. New rows wait until there
    /// is more.
    fn is_for_acks(&self, reserve: &Reserve, changes: &Changes) -> bool {
        let Some(place) = self.place().filter(|_| !changes.insert.is_empty()) else { return false };
        reserve.is_needed(place) && !self.is_the_only_way_out(changes)
    }

    /// Whether inserting is the only way to free space: with no row left to ack, nothing will free any, and what waits
    /// in the journal must be inserted to be delivered. Not if it would not fit anyway, with as much again for the
    /// pages around it.
    fn is_the_only_way_out(&self, changes: &Changes) -> bool {
        let bytes: u64 = changes.insert.iter().map(|chunk| chunk.frames.len() as u64).sum();
        let reserve = self.place().map_or(0, |place| place.options.reserve_bytes);
        self.committed().rows == 0 && bytes.saturating_mul(2) <= reserve
    }

    /// The caller holds the writer's lock.
    fn commit(&self, changes: &Changes) -> Result<Applied, StoreError> {
        let before = self.committed().clone();
        let dead_bytes = self.dead_bytes.load(Ordering::Relaxed);
        let (after, applied) = self.with_database(|db| transaction::commit(db, &before, changes, dead_bytes))?;
        *self.committed() = after;
        Ok(applied)
    }

    /// Calls into the database, and latches the store if that fails.
    fn with_database<T>(&self, call: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.check_process()?;
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        self.call(opened.as_ref(), call)
    }

    /// As [`with_database`](Self::with_database), for threads that must not wait for the disk any longer than their read
    /// takes.
    fn read_at_once<T>(&self, call: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.check_process()?;
        let opened = self.opened_at_once().ok_or(StoreError::Busy)?;
        self.call(opened.as_ref(), call)
    }

    fn call<T>(
        &self,
        opened: Option<&OpenDatabase>,
        call: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Some(open) = opened.filter(|_| !self.is_latched()) else { return Err(StoreError::Latched) };
        guarded(|| call(&open.db)).inspect_err(|error| self.note(error))
    }

    /// `None` while another thread needs the database alone, or waits for that.
    fn opened_at_once(&self) -> Option<RwLockReadGuard<'_, Option<OpenDatabase>>> {
        match self.opened.try_read() {
            Ok(opened) => Some(opened),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn note(&self, error: &StoreError) {
        if error.is_damage() {
            self.needs_check.store(true, Ordering::Release);
        }
        if error.latches() {
            self.latched.store(true, Ordering::Release);
        }
    }

    /// The directory, while names in it are ours: not in memory, nor if it was deleted or is out of reach.
    fn place(&self) -> Option<&StoreDir> {
        self.place_in_reach().ok().flatten()
    }

    /// The directory; `None` in memory, or if it was deleted. Fails if it is not at its path or cannot be examined: then
    /// the file is used, but nothing is done by name.
    fn place_in_reach(&self) -> io::Result<Option<&StoreDir>> {
        match self.place.as_ref().filter(|_| !self.unlinked.load(Ordering::Acquire)) {
            Some(place) => place.home.check().map(|()| Some(place)),
            None => Ok(None),
        }
    }

    fn check_process(&self) -> Result<(), StoreError> {
        // Before any lock is taken: a child may have inherited it locked by a thread that it does not have.
        if fork::generation() == self.generation { Ok(()) } else { Err(StoreError::Forked) }
    }

    fn writer(&self) -> MutexGuard<'_, Reserve> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn committed(&self) -> MutexGuard<'_, State> {
        self.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let Some(open) = self.opened.get_mut().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if fork::generation() == self.generation {
            // Nothing depends on a clean close: a file that could not be closed is opened as after a crash.
            open.close();
        } else {
            std::mem::forget(open);
        }
    }
}
