//! What needs the database alone: reopening it after a failure, and compacting it.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use redb::{ReadableDatabase, ReadableTableMetadata};

use super::guard::guarded;
use super::place::Place;
use super::rows::State;
use super::tables::{self, META};
use super::{Open, OpenReport, Store, StoreError, Whereabouts, Writer, open};
use crate::sys::clock::WallNanos;
use crate::sys::crash_point;

/// A file up to this size beyond four times its content is used again as it is. A compaction writes its content about three times, so
/// this way it never writes more than what the file has grown by since the last one.
pub(crate) const COMPACT_FROM: u64 = 4 * 1024 * 1024;

/// Whether a file of that size is worth compacting to `live` bytes of content. Each commit writes the state of the allocator of the
/// whole file, free pages included, so a file that has once been large makes all later commits priority.
pub(crate) fn is_worth_compacting(file_bytes: u64, live: u64) -> bool {
    file_bytes > live.saturating_mul(4).saturating_add(COMPACT_FROM)
}

impl Store {
    /// Closes the file and opens it again, as it is on the disk. A file that could not be synced is replaced by a copy; one that made
    /// the database fail is checked, and set aside if need be. On an error the store stays latched: wait, longer each time.
    pub(crate) fn reopen(&self, now: WallNanos) -> Result<OpenReport, StoreError> {
        self.check_process()?;
        let mut writer = self.writer();
        writer.opened_at = now;
        self.reopen_as(&mut writer)
    }

    pub(super) fn reopen_as(&self, writer: &mut Writer) -> Result<OpenReport, StoreError> {
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        self.latched.store(true, Ordering::Release);
        let file = opened.take().and_then(Open::close);
        let fresh = match self.whereabouts() {
            Whereabouts::InMemory => self.start_over_in_memory(self.committed().clone()),
            Whereabouts::Deleted => self.reopen_unlinked(file, self.committed().clone()),
            Whereabouts::OutOfReach(error) => self.reopen_as_it_is(file).map_err(|_| StoreError::Io(error)),
            Whereabouts::Here(place) => {
                // Before the file is opened by name: it may be the same.
                drop(file);
                let (place, condemned) = (self.as_known_by_now(place), &self.condemned);
                if condemned.load(Ordering::Acquire) {
                    open::replace(&place, condemned, writer.opened_at)
                } else {
                    open::open(&place, condemned, writer.opened_at)
                }
            }
        };
        let (fresh, report) = fresh.inspect_err(|error| self.note(error))?;
        *opened = Some(Open { db: fresh.db, file: fresh.file });
        *self.committed() = fresh.state;
        self.suspect.store(false, Ordering::Release);
        self.latched.store(false, Ordering::Release);
        Ok(report)
    }

    /// Closes the file and gives its name free. Reads and transactions under way are waited for; whoever has the store after that finds
    /// it latched: the directory may be another owner's by then.
    pub(crate) fn close(&self) {
        if self.check_process().is_err() {
            return;
        }
        let _writer = self.writer();
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        self.latched.store(true, Ordering::Release);
        opened.take().and_then(Open::close);
        self.registration.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Closes the file without another write to it, for good: it is somebody else's. Closing a database writes.
    pub(crate) fn give_up(&self) {
        self.condemned.store(true, Ordering::Release);
        self.close();
    }

    /// Gives free space back to the file system, if the content is small enough for that to be quick: dead letters take no more than
    /// `dead_max`, and all else no more than `live_max`. Reads and transactions
    /// wait meanwhile: about half a second for a file of 1 GiB. `false` if there was little to be gained, too much to be moved, or no
    /// room on the disk to move it.
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
        if !is_small || !is_worth_compacting(file_bytes, live) || !self.has_room_to_move(live) {
            return Ok(false);
        }
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = opened.as_mut().filter(|_| !self.is_latched()) else { return Err(StoreError::Latched) };
        let compacted = guarded(|| {
            let compacted = open.db.compact()?;
            crash_point::reach("store.compacting");
            // Compaction commits without quick repair: until this, a kill would cost the next open a walk through the file.
            let transaction = tables::begin(&open.db)?;
            tables::write_state(&transaction, &state)?;
            transaction.commit()?;
            Ok(compacted)
        });
        compacted.inspect_err(|error| self.note(error))
    }

    /// What is moved may come to lie where the file, which is sparse, has no blocks yet.
    fn has_room_to_move(&self, live: u64) -> bool {
        let free = self.place().and_then(|place| place.disk.free_bytes(&place.dir).ok());
        free.is_none_or(|free| free >= live.saturating_mul(2))
    }

    /// What the options said of the previous owner is acked; what this one has seen takes its place.
    fn as_known_by_now(&self, place: &Place) -> Place {
        let mut place = place.clone();
        place.options.untrusted = false;
        place.options.unreadable = false;
        place.options.check_integrity = self.suspect.load(Ordering::Acquire);
        place.options.witness = Some(self.committed().ledger);
        place
    }

    /// Memory that a panic went through is not trusted: what was queued in it is lost, and says so.
    pub(super) fn start_over_in_memory(&self, mut state: State) -> Result<(open::Opened, OpenReport), StoreError> {
        let lost_events = state.ledger.queued_events;
        state.ledger.recount(0, 0, 0);
        state.rows = 0;
        (state.row_bytes, state.dead_bytes) = (0, Some(0));
        let report = OpenReport { fresh: true, lost_events, ..OpenReport::default() };
        Ok((open::in_memory(&self.options, state)?, report))
    }
}
