//! The transactional queue, on redb: what was accepted waits here, for days if need be, until it is acked.
//!
//! It has never heard of the journal, of HTTP or of PostHog. A row is a *chunk*, the contiguous bytes of many records as the journal
//! had them; rows never move between states. One owner per directory: the caller holds the shard's lock.
//!
//! Format (opaque bytes throughout, a version byte of our own first; `rows.rs` has every field):
//!
//! * `chunks`: lane, first sequence number (big-endian) to a head of 40 bytes and the frames. The head has the count, the salt and
//!   two checksums, one of the frames, one of the key and the head itself.
//! * `dead`: sequence number to a record that the server refused, with its reason.
//! * `meta`: `schema`, `identity` (project hash, host, key), `state` (ledger, number of chunks, epochs checkpointed, next attempt), `pages`
//!   (what the chunks and the dead records take) and `flag_definitions` (bytes that the owner wants to find again; a store is whole without them).
//!
//! Operations and their promises:
//!
//! * [`Store::apply`] is one transaction, on the disk when it returns `Ok`. The ledger changes in it with the rows it speaks of, so it
//!   balances after any crash. A commit may fail and have taken effect all the same: every change can be applied twice without harm
//!   (`changes.rs` says how).
//! * [`Store::read`] and the other reads run beside it, on any thread, and leave no transaction open.
//! * Every call into redb is guarded: a panic in it is an error here. After a panic, damage or an I/O error the store is *latched* and
//!   refuses everything until [`Store::reopen`], which trusts nothing in memory. A file whose sync failed is copied and
//!   replaced; a damaged one is kept in `damaged-<time>/` and what can be read of it is copied, row by row.
//! * A file comes into being as `queue.redb.new` and gets its name when it is complete and durable: an empty file, or one without
//!   its `meta` rows, is damage. A file of a newer version or of another project is not changed by a single byte.
//! * A forked child can do nothing with an inherited store: each call says so, and dropping it only leaks it.
//!
//! Limits: one write at a time; a row at most what redb takes (3 GiB); a rebuild needs the queue's size again in free space and
//! 4 MiB of memory; rows are not searched for in free pages; what one plain open does not see of a damaged file shows itself later, as a
//! row that fails its checks or, at the latest, when the last row has gone and the ledger still counts some as queued.

mod backend;
mod changes;
mod chunk;
mod definitions;
mod error;
mod guard;
mod identify;
mod ledger;
mod open;
mod place;
mod reads;
mod rebuild;
mod registry;
mod reserve;
mod rows;
mod salvage;
mod tables;
#[cfg(test)]
mod tests;
mod unlinked;
mod untrusted;
mod upkeep;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use redb::Database;

use crate::sys::clock::WallNanos;
use crate::sys::crash_point;
use crate::sys::disk::{Disk, Home, fork};
use backend::{Condemned, StoreFile};
use guard::guarded;
use open::Opened;
use place::Place;
use registry::Registration;
use reserve::Reserve;
use rows::State;

pub(crate) use changes::{Applied, Changes, Removal};
pub(crate) use chunk::{CHUNK_BYTES_TARGET, Chunk, ChunkKey};
pub(crate) use error::StoreError;
pub(crate) use identify::identify;
pub(crate) use ledger::{Ledger, LedgerDelta};
pub(crate) use open::{OpenReport, StoreOptions};
pub(crate) use place::RESERVE;
pub(crate) use reads::{DamagedRow, DeadRead, Read};
#[cfg(test)]
pub(crate) use upkeep::COMPACT_FROM;
pub(crate) use upkeep::is_worth_compacting;

/// A record that the server refused for good, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadRecord {
    /// Its sequence number.
    pub(crate) seq: u64,
    /// Its lane.
    pub(crate) lane: u8,
    /// The HTTP status, 0 if it never came to a request.
    pub(crate) status: u16,
    /// The server's words; at most 1 KiB is kept.
    pub(crate) reason: String,
    /// When it was first sent.
    pub(crate) first_attempt: WallNanos,
    /// When it was refused.
    pub(crate) last_attempt: WallNanos,
    /// How often it was sent.
    pub(crate) attempts: u32,
    /// The record.
    pub(crate) body: Vec<u8>,
}

/// Whose queue a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Hash of the two below, by the caller's rule.
    pub(crate) project_hash: [u8; 32],
    /// Where the events go.
    pub(crate) host: String,
    /// The project key: public, write-only.
    pub(crate) api_key: String,
}

/// An open store. Usable from several threads at once.
#[derive(Debug)]
pub(crate) struct Store {
    /// `None` in memory.
    place: Option<Place>,
    /// Its directory was deleted: no name in it means anything of ours any more.
    unlinked: AtomicBool,
    options: StoreOptions,
    /// What the dead records may take.
    dead_bytes: AtomicU64,
    /// The fork generation of the process that opened it.
    generation: u64,
    #[cfg(test)]
    identity: Identity,
    /// Held from begin to end by whatever changes the file: there is one at a time. Taken before `opened`, and that before `committed`.
    writer: Mutex<Writer>,
    /// Shared by reads and transactions, exclusive to what needs the database alone. `None` after a reopen that failed.
    opened: RwLock<Option<Open>>,
    /// The state as last committed; held for a moment only.
    committed: Mutex<State>,
    /// Nothing works until reopened.
    latched: AtomicBool,
    /// The file must be checked when reopened.
    suspect: AtomicBool,
    /// The file must be replaced when reopened.
    condemned: Condemned,
    /// `None` in memory, and once closed.
    registration: Mutex<Option<Registration>>,
}

#[derive(Debug)]
struct Open {
    db: Database,
    file: Option<StoreFile>,
}

/// What the store's directory is to it.
#[derive(Debug)]
enum Whereabouts<'a> {
    /// It has none.
    InMemory,
    /// It was deleted: the file goes on without a name.
    Deleted,
    /// It is not where it was, or cannot be looked at: why. The file goes on, and nothing may be done by name.
    OutOfReach(io::Error),
    /// It is where it was.
    Here(&'a Place),
}

#[derive(Debug)]
struct Writer {
    reserve: Reserve,
    /// The wall time last given: names a damaged file that is found without a caller who knows the time.
    opened_at: WallNanos,
}

impl Store {
    /// Opens the store in `dir`, which must exist, and creates, repairs or replaces its file as needed.
    pub(crate) fn open(
        disk: &Disk,
        dir: &Path,
        options: &StoreOptions,
        now: WallNanos,
    ) -> Result<(Self, OpenReport), StoreError> {
        let registration = registry::register(dir, place::QUEUE)?;
        let home = Home::of(dir)?;
        let place = Place { disk: disk.clone(), dir: dir.to_path_buf(), home, options: options.clone() };
        let condemned = Condemned::default();
        let (opened, report) = open::open(&place, &condemned, now)?;
        let writer = Writer { reserve: Reserve::open(&place), opened_at: now };
        Ok((Self::with(opened, Some(place), options.clone(), writer, condemned, Some(registration)), report))
    }

    /// A store that lives and dies with the process, for a declared memory-only mode.
    pub(crate) fn volatile(options: &StoreOptions) -> Result<Self, StoreError> {
        let opened = open::in_memory(options, State { dead_bytes: Some(0), ..State::default() })?;
        let writer = Writer { reserve: Reserve::none(), opened_at: 0 };
        Ok(Self::with(opened, None, options.clone(), writer, Condemned::default(), None))
    }

    fn with(
        opened: Opened,
        place: Option<Place>,
        options: StoreOptions,
        writer: Writer,
        condemned: Condemned,
        registration: Option<Registration>,
    ) -> Self {
        let Opened {
            db,
            file,
            #[cfg(test)]
            identity,
            state,
            ..
        } = opened;
        Self {
            place,
            unlinked: AtomicBool::new(false),
            dead_bytes: AtomicU64::new(options.dead_bytes),
            options,
            generation: fork::generation(),
            #[cfg(test)]
            identity,
            writer: Mutex::new(writer),
            opened: RwLock::new(Some(Open { db, file })),
            committed: Mutex::new(state),
            latched: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            condemned,
            registration: Mutex::new(registration),
        }
    }

    /// Makes the changes in one transaction; when this returns `Ok` they survive a power cut. On a full disk a transaction that only
    /// acks may use up the reserve, and so may one that fills an empty store.
    pub(crate) fn apply(&self, changes: &Changes) -> Result<Applied, StoreError> {
        self.check_process()?;
        let mut writer = self.writer();
        if self.is_for_acks(&writer, changes) {
            return Err(StoreError::NoSpace(io::ErrorKind::StorageFull.into()));
        }
        let mut outcome = self.commit(changes);
        if let (Err(StoreError::NoSpace(_)), Some(place)) = (&outcome, self.place())
            && (changes.only_acks() || self.is_the_only_way_out(changes))
            && writer.reserve.release(place)?
        {
            self.reopen_as(&mut writer)?;
            outcome = self.commit(changes);
        }
        let applied = outcome?;
        crash_point::reach("store.chunk.committed");
        if let Some(place) = self.place() {
            writer.reserve.refill(place);
        }
        Ok(applied)
    }

    /// The ledger as last committed.
    pub(crate) fn ledger(&self) -> Ledger {
        self.committed().ledger
    }

    /// Bytes of the pages that the rows take. Of a file that an older version wrote, rather more than less until it has run empty.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.committed().row_bytes
    }

    /// The newest epoch of `lane` that was checkpointed; 0 for none.
    pub(crate) fn journal_epoch(&self, lane: u8) -> u64 {
        self.committed().epochs.get(&lane).copied().unwrap_or(0)
    }

    /// The time before which nothing is sent.
    pub(crate) fn next_attempt(&self) -> Option<WallNanos> {
        self.committed().next_attempt
    }

    /// From the next transaction on dead records take no more than this.
    pub(crate) fn bound_dead(&self, bytes: u64) {
        self.dead_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whose queue it is.
    #[cfg(test)]
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether every call is refused until [`Store::reopen`].
    pub(crate) fn is_latched(&self) -> bool {
        self.latched.load(Ordering::Acquire)
    }

    /// The chunks of a lane after `after`, oldest first, up to `max_bytes` and at least one.
    pub(crate) fn read(&self, lane: u8, after: Option<ChunkKey>, max_bytes: usize) -> Result<Read, StoreError> {
        self.with_database(|db| reads::read(db, lane, after, max_bytes))
    }

    /// The oldest chunk of a lane, but for those to be left out, and when it was checkpointed.
    pub(crate) fn oldest(
        &self,
        lane: u8,
        leave_out: &dyn Fn(ChunkKey) -> bool,
    ) -> Result<Option<(ChunkKey, WallNanos)>, StoreError> {
        self.with_database(|db| reads::oldest(db, lane, leave_out))
    }

    /// Dead records after `after`, oldest first, up to `limit` of them in `max_bytes`, and at least one.
    pub(crate) fn dead(&self, after: Option<u64>, limit: usize, max_bytes: usize) -> Result<DeadRead, StoreError> {
        self.with_database(|db| reads::dead(db, after, limit, max_bytes))
    }

    /// The sequence numbers of all dead records.
    pub(crate) fn dead_seqs(&self) -> Result<Vec<u64>, StoreError> {
        self.with_database(reads::dead_seqs)
    }

    /// Bytes that the file's blocks take on the disk; in memory, bytes of the rows.
    pub(crate) fn file_bytes(&self) -> Result<u64, StoreError> {
        self.check_process()?;
        match self.opened.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(Open { file: Some(file), .. }) => Ok(file.allocated_bytes()?),
            Some(_) => Ok(self.ledger().queued_bytes),
            None => Err(StoreError::Latched),
        }
    }

    /// Where the reserve is gone, the last room there is takes its place: whatever comes in has to wait until there is more.
    fn is_for_acks(&self, writer: &Writer, changes: &Changes) -> bool {
        let Some(place) = self.place().filter(|_| !changes.insert.is_empty()) else { return false };
        writer.reserve.is_missed(place) && !self.is_the_only_way_out(changes)
    }

    /// Where no row is left to be acked, no ack will ever make room: what waits outside has to come in to be delivered. Not if
    /// it would not fit anyway, with as much again for the pages around it.
    fn is_the_only_way_out(&self, changes: &Changes) -> bool {
        let bytes: u64 = changes.insert.iter().map(|chunk| chunk.frames.len() as u64).sum();
        let reserve = self.place().map_or(0, |place| place.options.reserve_bytes);
        self.committed().rows == 0 && bytes.saturating_mul(2) <= reserve
    }

    /// Only under the writer's lock.
    fn commit(&self, changes: &Changes) -> Result<Applied, StoreError> {
        let before = self.committed().clone();
        let dead_bytes = self.dead_bytes.load(Ordering::Relaxed);
        let (after, applied) = self.with_database(|db| changes::commit(db, &before, changes, dead_bytes))?;
        *self.committed() = after;
        Ok(applied)
    }

    /// Calls into the database, and latches the store if that failed.
    fn with_database<T>(&self, call: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.check_process()?;
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = opened.as_ref().filter(|_| !self.is_latched()) else { return Err(StoreError::Latched) };
        guarded(|| call(&open.db)).inspect_err(|error| self.note(error))
    }

    fn note(&self, error: &StoreError) {
        if error.is_damage() {
            self.suspect.store(true, Ordering::Release);
        }
        if error.latches() {
            self.latched.store(true, Ordering::Release);
        }
    }

    /// Where names are ours: not in memory, nor once the directory was deleted, nor while it is out of reach.
    fn place(&self) -> Option<&Place> {
        match self.whereabouts() {
            Whereabouts::Here(place) => Some(place),
            _ => None,
        }
    }

    fn whereabouts(&self) -> Whereabouts<'_> {
        let Some(place) = &self.place else { return Whereabouts::InMemory };
        if self.unlinked.load(Ordering::Acquire) {
            return Whereabouts::Deleted;
        }
        place.home.check().map_or_else(Whereabouts::OutOfReach, |()| Whereabouts::Here(place))
    }

    fn check_process(&self) -> Result<(), StoreError> {
        // Before any lock: a child may have inherited it from a thread that it does not have.
        if fork::generation() == self.generation { Ok(()) } else { Err(StoreError::Forked) }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
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
            let _ = guarded(|| Ok(open.db.close()?));
        } else {
            std::mem::forget(open);
        }
    }
}
