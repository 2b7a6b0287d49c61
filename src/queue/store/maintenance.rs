//! Operations that need the database alone: reopening it after a failure, closing it, and compacting it; and going on
//! with a file whose directory was deleted.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use redb::{Database, ReadableDatabase, ReadableTableMetadata};

use super::backend::StoreFile;
use super::files::StoreDir;
use super::open::{self, OpenReport};
use super::rows::State;
use super::schema::{self, META};
use super::{OpenDatabase, Store};
use crate::queue::error::{StoreError, guarded};
use crate::sys::clock::WallNanos;
use crate::sys::crash_point;

/// A file is compacted once it is larger than four times its content plus this much. A compaction writes the content
/// about three times, so it never writes more than the file has grown since the last one.
pub(crate) const COMPACT_FROM: u64 = 4 * 1024 * 1024;

/// Whether a file of that size should be compacted to `live` bytes of content. Each commit writes the allocator state
/// of the whole file, including free pages, so a file that was once large makes every later commit slow.
pub(crate) fn is_worth_compacting(file_bytes: u64, live: u64) -> bool {
    file_bytes > live.saturating_mul(4).saturating_add(COMPACT_FROM)
}

impl Store {
    /// Closes the file and opens it again as it is on disk. A file that could not be synced is replaced by a copy; one
    /// that made the database fail is checked, and replaced if it is damaged. After an error the store stays latched;
    /// the caller tries again with a growing delay.
    pub(crate) fn reopen(&self, now: WallNanos) -> Result<OpenReport, StoreError> {
        self.check_process()?;
        let _writer = self.writer();
        self.opened_at.store(now, Ordering::Relaxed);
        self.reopen_locked()
    }

    /// The caller holds the writer's lock.
    pub(super) fn reopen_locked(&self) -> Result<OpenReport, StoreError> {
        let now = self.opened_at.load(Ordering::Relaxed);
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        self.latched.store(true, Ordering::Release);
        let file = opened.take().and_then(OpenDatabase::close);
        let fresh = match self.place_in_reach() {
            // A store in memory has no file. What cannot be opened again without a name is lost, and counted.
            Ok(None) => self.reopen_as_it_is(file).or_else(|_| self.start_over_in_memory(self.committed().clone())),
            Err(error) => self.reopen_as_it_is(file).map_err(|_| StoreError::Io(error)),
            Ok(Some(place)) => {
                // Before the file is opened by name, which may lead to the same file.
                drop(file);
                let place = self.as_known_by_now(place);
                if place.condemned.load(Ordering::Acquire) {
                    open::replace(&place, now)
                } else {
                    open::open(&place, now)
                }
            }
        };
        let (database, state, report) = fresh.inspect_err(|error| self.note(error))?;
        *opened = Some(database);
        *self.committed() = state;
        self.needs_check.store(false, Ordering::Release);
        self.latched.store(false, Ordering::Release);
        Ok(report)
    }

    /// Closes the file and ends its registration, after waiting for reads and transactions. Later calls find the store
    /// latched: the directory may belong to another owner by then.
    pub(crate) fn close(&self) {
        if self.check_process().is_err() {
            return;
        }
        let _writer = self.writer();
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        self.latched.store(true, Ordering::Release);
        opened.take().and_then(OpenDatabase::close);
        self.registration.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Identifies the state of the closed file: see [`seal_of`](super::seal_of). `None` if that is not possible.
    pub(crate) fn seal(&self) -> Option<u64> {
        self.place().and_then(|place| super::seal_of(&place.disk, &place.dir))
    }

    /// Closes the file for good without another write to it, because it belongs to another process. Closing a database
    /// normally writes.
    pub(crate) fn give_up(&self) {
        if let Some(place) = &self.place {
            place.condemned.store(true, Ordering::Release);
        }
        self.close();
    }

    /// Returns free space to the file system if little has to be moved: at most `dead_max` of dead letters, and
    /// `live_max` of everything else. Meanwhile, about half a second for a file of 1 GiB, transactions wait and reads of
    /// chunks fail.
    /// `false` if there is little to gain, too much to move, or no space on the disk to move it to.
    pub(crate) fn compact_if_small(&self, live_max: u64, dead_max: u64) -> Result<bool, StoreError> {
        self.check_process()?;
        let file_bytes = self.file_bytes()?;
        let meta_bytes = self.with_database(|db| {
            let stats = db.begin_read()?.open_table(META)?.stats()?;
            Ok(stats.stored_bytes().saturating_add(stats.metadata_bytes()))
        })?;
        let _writer = self.writer();
        let state = self.committed().clone();
        let (waiting, dead) = (state.row_bytes.saturating_add(meta_bytes), state.dead_bytes.unwrap_or(0));
        let live = waiting.saturating_add(dead);
        let is_small = waiting <= live_max && dead <= dead_max;
        if !is_small || !is_worth_compacting(file_bytes, live) || !self.has_space_to_move(live) {
            return Ok(false);
        }
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = opened.as_mut().filter(|_| !self.is_latched()) else { return Err(StoreError::Latched) };
        let compacted = guarded(|| {
            let compacted = open.db.compact()?;
            crash_point::reach("store.compacting");
            // Compaction commits without quick repair: until this commit, a kill would make the next open walk the
            // whole file.
            let transaction = schema::begin(&open.db)?;
            schema::write_state(&transaction, &state)?;
            transaction.commit()?;
            Ok(compacted)
        });
        compacted.inspect_err(|error| self.note(error))
    }

    /// The file is sparse, so moved pages may need blocks that it does not have yet.
    fn has_space_to_move(&self, live: u64) -> bool {
        let free = self.place().and_then(|place| place.disk.free_bytes(&place.dir).ok());
        free.is_none_or(|free| free >= live.saturating_mul(2))
    }

    /// The options for opening the file again: with what this owner knows in place of what it knew about the last one.
    fn as_known_by_now(&self, place: &StoreDir) -> StoreDir {
        let mut place = place.clone();
        place.options.untrusted = false;
        place.options.unreadable = false;
        place.options.check_integrity = self.needs_check.load(Ordering::Acquire);
        place.options.witness = Some(self.committed().ledger);
        place
    }

    /// A new store in memory: memory that a panic went through is not trusted. The queued events are lost and counted.
    fn start_over_in_memory(&self, mut state: State) -> Result<(OpenDatabase, State, OpenReport), StoreError> {
        let lost_events = state.ledger.queued_events;
        state.ledger.recount(0, 0, 0);
        state.rows = 0;
        (state.row_bytes, state.dead_bytes) = (0, Some(0));
        let report = OpenReport { fresh: true, lost_events, ..OpenReport::default() };
        Ok((open::in_memory(&self.options, &state)?, state, report))
    }

    /// Whether its file has lost its name.
    pub(crate) fn is_unlinked(&self) -> bool {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let file = opened.as_ref().and_then(|open| open.file.as_ref());
        // A file that is not open at the moment cannot be opened again once its name is gone.
        let is_gone = |place: &StoreDir| place.disk.exists(&place.queue()).is_ok_and(|exists| !exists);
        file.map_or_else(|| self.place.as_ref().is_none_or(is_gone), StoreFile::is_unlinked)
    }

    /// Goes on without using names. For a store whose file was deleted.
    pub(crate) fn become_unlinked(&self) {
        self.unlinked.store(true, Ordering::Release);
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = opened.as_ref().and_then(|open| open.file.as_ref()) {
            file.become_unlinked();
        }
        drop(opened);
        // A new queue at the same path, possibly of this process, may use the name.
        self.registration.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Opens the file again without using its name.
    fn reopen_as_it_is(&self, file: Option<StoreFile>) -> Result<(OpenDatabase, State, OpenReport), StoreError> {
        let file = file.ok_or(StoreError::Latched)?;
        guarded(|| {
            let db = self.options.builder().create_with_backend(file.clone())?;
            let state = open::vet(&db, &self.options.project)?;
            let (database, state) = OpenDatabase::with(db, file, state);
            Ok((database, state, OpenReport::default()))
        })
    }
}

impl OpenDatabase {
    pub(super) fn with(db: Database, file: StoreFile, mut state: State) -> (Self, State) {
        // Where the bytes were not counted, no more than the file takes.
        state.row_bytes = state.row_bytes.min(file.allocated_bytes().unwrap_or(u64::MAX));
        (Self { db, file: Some(file) }, state)
    }

    /// Closes the database and returns its file, if there is one.
    pub(super) fn close(self) -> Option<StoreFile> {
        let OpenDatabase { db, file } = self;
        let _ = guarded(|| Ok(db.close()?));
        file
    }
}
