//! The fast way in: events are copied into a file mapped into memory, and survive the process from that moment on.
//!
//! Purpose. A commit of a transactional store costs hundreds of microseconds; a copy into the page cache costs tens of nanoseconds
//! and outlives SIGKILL just as well, because the page cache belongs to the kernel. So a record is accepted by copying it here, made
//! safe against a power cut by syncing this file, and checkpointed into the store later, many at a time.
//!
//! Limits
//! * Two arenas to begin with, up to [`ARENAS_MAX`] when a burst fills them faster than they are checkpointed. Each is a file of
//!   `arena_bytes`, every block really written before it is first used.
//! * The last eighth of an arena is for exceptions and identity events: they still fit when ordinary events no longer do.
//! * What waits to be checkpointed may be bounded ([`room`]): nothing is taken that the queue has no room for.
//! * A caller waits at most `lock_wait` for the lock, and does no I/O under it where the arena is mapped.
//! * Creating, syncing, reading and freeing arenas is for one thread, the committer; appending is for any, and so is going on in a
//!   free arena when the active one is full.
//!
//! Format: `docs/format.md`. A page of header ([`arena`]), then frames (`record::frame`) back to back, ended by a zero length word.
//!
//! Operations
//! * *append*: under the lock: refuse when full; write the frame's check words and body, zero the length word after it, and publish
//!   it by storing its own length word last. Killed before that store, the record was never there. How far appends may go before any
//!   reason to refuse can arise is worked out when something changes, so that most ask a single question ([`active`]).
//! * *swap*: another, free arena becomes the active one under a new round: a higher epoch, a fresh salt, the next sequence number.
//!   The old one is sealed and waits to be checkpointed.
//! * *sync*: makes the sealed arenas and the active one durable, in that order, and says up to which sequence number.
//! * *free*: a checkpointed arena is marked free and never replays, whatever the store says.
//! * *replay* (open): arenas that are not free come back as sealed ones, in the order of their epochs. So recovery is a checkpoint like
//!   any other. An arena is read up to its first invalid record; only if sequence numbers show that more must be there is the rest
//!   searched for records that still check.
//!
//! Invariants: sequence numbers are gap-free in the order of appending; a salt is never used twice; a sealed arena is never written
//! to; at most one arena is active; the epoch of a new round is above every epoch seen on disk.

mod active;
pub(crate) mod arena;
#[cfg(feature = "testing")]
mod contents;
mod pool;
pub(crate) mod replay;
mod room;
#[cfg(test)]
mod room_tests;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::record::frame::{self, FRAME_HEAD, FrameHead};
use crate::sys::crash_point;
use crate::sys::disk::{Disk, fork};
use crate::sys::entropy;

use active::{Active, Apart};
use arena::{Arena, HEADER_BYTES, Round};
use pool::Pool;
pub(crate) use pool::{Sealed, SetAside, file_names};
use room::Most;
pub(crate) use room::Room;

/// Arenas of one journal, at most.
pub(crate) const ARENAS_MAX: usize = 4;

/// What a journal is made of.
#[derive(Clone, Debug)]
pub(crate) struct JournalOptions {
    /// Where the arenas lie; `None` keeps them in memory only.
    pub(crate) dir: Option<PathBuf>,
    /// Whether a mapping may be written without risk of a fault (see `disk::FileSystem::may_map`).
    pub(crate) map: bool,
    /// Bytes of one arena.
    pub(crate) arena_bytes: usize,
    /// How long an append may wait for its turn.
    pub(crate) lock_wait: Duration,
}

/// Why the journal could not be opened or extended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// A file could not be created, opened or read.
    #[error("journal file {path:?}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Written by a later version of this library.
    #[error("a newer version of this library wrote journal file {path:?} (format {version})")]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Memory could not be had.
    #[error("no memory for a journal of {}: {source}", crate::sys::wording::bytes(*bytes as u64))]
    Memory {
        /// How much.
        bytes: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A record that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Appended {
    /// Its sequence number.
    pub(crate) seq: u64,
    /// Records in the active arena, this one included.
    pub(crate) records: u64,
    /// Whether this record made the active arena half full.
    pub(crate) half_full: bool,
}

/// A record that was not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    /// No room left for a record of this class.
    Full,
    /// The queue that it would be checkpointed into has no room for it: see [`Journal::allow`].
    Bounded,
    /// The lock could not be had in time.
    Busy,
    /// The journal was closed.
    Closed,
    /// The files are somebody else's: see [`Journal::give_up`].
    Lost,
    /// This is a forked child; the journal belongs to its parent.
    Forked,
    /// The arena's file could not be written.
    Io(io::Error),
}

/// Where records are appended.
#[derive(Debug)]
pub(crate) struct Journal {
    options: JournalOptions,
    generation: u64,
    active: Apart<Mutex<Active>>,
    pool: Pool,
}

/// What [`Journal::open`] found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Highest epoch on disk.
    pub(crate) epoch_max: u64,
    /// The highest sequence number that the beginnings of the rounds on disk prove to be taken.
    pub(crate) taken_up_to: u64,
    /// Files that were none of ours, or damaged, and were renamed out of the way.
    pub(crate) set_aside: Vec<SetAside>,
    journal: Opening,
}

#[derive(Debug)]
struct Opening {
    options: JournalOptions,
    pool: Pool,
}

impl Journal {
    /// Opens what is on disk. Arenas that are not free wait as sealed ones; nothing can be appended before [`Found::start`].
    pub(crate) fn open(disk: &Disk, options: JournalOptions) -> Result<Found, JournalError> {
        let pool = Pool::open(disk, &options)?;
        let (epoch_max, taken_up_to) = pool.highest();
        let set_aside = pool.take_set_aside();
        Ok(Found { epoch_max, taken_up_to, set_aside, journal: Opening { options, pool } })
    }

    /// Takes a record. `body_hash` is `frame::hash_body(body)`, computed before the lock; `taken` is told its number under it, so in
    /// order.
    #[inline]
    pub(crate) fn append(
        &self,
        body: &[u8],
        body_hash: u64,
        class: u8,
        taken: impl FnOnce(u64),
    ) -> Result<Appended, Refused> {
        if fork::generation() != self.generation {
            return Err(Refused::Forked);
        }
        let (Some(framed), Ok(body_len)) = (frame::framed_len(body.len()), u32::try_from(body.len())) else {
            return Err(Refused::Full);
        };
        let mut active = self.lock_in_time().ok_or(Refused::Busy)?;
        let active = &mut *active;
        let (end, unusual) = match active.usual_end(framed, class) {
            Some(end) => (end, None),
            None => self.find_place(active, framed, class).map(|(end, unusual)| (end, Some(unusual)))?,
        };
        let seq = active.next_seq;
        let check = frame::seal(body_hash, active.round.salt, seq, body_len, class);
        let head = FrameHead { body_len, class, seq, check };
        active.arena.write_frame(active.position, end, &head, body, &mut active.buffer).map_err(Refused::Io)?;

        active.position = end;
        active.next_seq += 1;
        active.records += 1;
        let half_full = unusual.is_some_and(|unusual| active.took(&unusual));
        taken(seq);
        Ok(Appended { seq, records: active.records, half_full })
    }

    /// Makes a free arena the active one and seals the old one, unless that is empty or no arena is free. Committer only: it may
    /// create a file.
    pub(crate) fn swap(&self) -> Result<bool, JournalError> {
        {
            let active = self.lock();
            if (active.records == 0 && !active.stand_in) || active.given_up {
                return Ok(false);
            }
        }
        let Some(fresh) = self.pool.take_free(&self.options)? else {
            return Ok(false);
        };
        crash_point::reach("journal.swap.begun");
        let path = fresh.path().to_path_buf();
        self.rotate(&mut self.lock(), fresh).map_err(|source| JournalError::File { path, source })?;
        crash_point::reach("journal.swap.done");
        Ok(true)
    }

    /// Under the lock: `fresh` takes the records from now on, what was active waits to be checkpointed.
    fn rotate(&self, active: &mut Active, fresh: Arc<Arena>) -> io::Result<()> {
        let round = Round { epoch: active.round.epoch + 1, salt: entropy::random_u64(), first_seq: active.next_seq };
        if let Err(error) = fresh.begin(&round) {
            self.pool.give_back(fresh);
            return Err(error);
        }
        crash_point::reach("journal.round.begun");
        let old = std::mem::replace(&mut active.arena, fresh);
        if !std::mem::take(&mut active.stand_in) {
            let weight = active.weight_of_round();
            let last_seq = active.next_seq - 1;
            self.pool.push_sealed(Sealed::complete(
                old,
                active.round,
                active.position,
                last_seq,
                active.records,
                weight,
            ));
        }
        active.weight_before = active.weight();
        active.heavier = 0;
        active.round = round;
        active.position = HEADER_BYTES;
        active.readied_at = HEADER_BYTES;
        active.records = 0;
        active.survey();
        Ok(())
    }

    /// The sealed arena to be checkpointed next.
    pub(crate) fn oldest_sealed(&self) -> Option<Sealed> {
        self.pool.oldest_sealed()
    }

    /// The oldest sealed arena was checkpointed: it never replays again. Committer only.
    pub(crate) fn free_oldest(&self) {
        self.pool.free_oldest();
    }

    /// Makes every record that was appended before the call durable; says up to which sequence number. After a failure the kernel
    /// may have dropped what it could not write, so the arena is replaced once it is checkpointed. Committer only.
    pub(crate) fn sync(&self) -> io::Result<u64> {
        let (arena, end, last) = {
            let active = self.lock();
            (Arc::clone(&active.arena), active.position + size_of::<u64>(), active.next_seq - 1)
        };
        // Sealed ones first: what is durable must never have a hole before it.
        self.pool.sync_sealed()?;
        arena.sync(end)?;
        Ok(last)
    }

    /// Readies the pages that will be written to before the next call: twice as many as since the last one. Otherwise the caller who
    /// first reaches a page pays for it, several microseconds if the file system has to have its say. Committer only.
    pub(crate) fn prefault(&self) {
        let (arena, from, grown) = {
            let mut active = self.lock();
            let (position, before) = (active.position, active.readied_at);
            active.readied_at = position;
            (Arc::clone(&active.arena), position, position.saturating_sub(before))
        };
        arena.prefault(from, from.saturating_add(grown.saturating_mul(2)));
    }

    /// Makes sure that the next swap finds a free arena, if the limit allows. Committer only: it creates files.
    pub(crate) fn prepare_spare(&self) -> Result<(), JournalError> {
        if self.lock().given_up {
            return Ok(());
        }
        if let Some(spare) = self.pool.take_free(&self.options)? {
            self.pool.give_back(spare);
        }
        Ok(())
    }

    /// Refuses every append from now on.
    pub(crate) fn close(&self) {
        self.lock().close();
    }

    /// Refuses every append from now on and begins no further round: the files are somebody else's.
    pub(crate) fn give_up(&self) {
        self.lock().give_up();
    }

    /// The round that takes records now.
    pub(crate) fn epoch(&self) -> u64 {
        self.lock().round.epoch
    }
}

impl Found {
    /// The sealed arenas that wait to be checkpointed, oldest first.
    #[cfg(test)]
    pub(crate) fn sealed(&self) -> Vec<Sealed> {
        self.journal.pool.all_sealed()
    }

    /// The sealed arena to be checkpointed next.
    pub(crate) fn oldest_sealed(&self) -> Option<Sealed> {
        self.journal.pool.oldest_sealed()
    }

    /// The oldest sealed arena was checkpointed: it never replays again.
    pub(crate) fn free_oldest(&self) {
        self.journal.pool.free_oldest();
    }

    /// The highest sequence number of any record in the sealed arenas.
    pub(crate) fn last_seq_taken(&self) -> u64 {
        self.journal.pool.last_seq_taken()
    }

    /// Tells the sealed arenas which sequence number the last record accepted is known to have had.
    pub(crate) fn expect_up_to(&mut self, seq: u64) {
        self.journal.pool.expect_up_to(seq);
    }

    /// Begins to take records: round `epoch`, first sequence number `next_seq`. Where every arena waits to be checkpointed and no further
    /// one can be made, or the disk has no room for the first block of a round, it takes none until there is an arena that can.
    pub(crate) fn start(self, epoch: u64, next_seq: u64) -> Result<Journal, JournalError> {
        let Opening { options, pool } = self.journal;
        let (arena, mut stand_in) = match (pool.take_free(&options), pool.oldest_sealed()) {
            (Ok(Some(arena)), _) => (arena, false),
            (_, Some(waiting)) => (waiting.arena, true),
            (Err(error), None) => return Err(error),
            (Ok(None), None) => {
                let source = io::Error::new(
                    io::ErrorKind::StorageFull,
                    "there is no file for the journal, and none could be made",
                );
                return Err(JournalError::File { path: options.dir.clone().unwrap_or_default(), source });
            }
        };
        let mut round = Round { epoch, salt: entropy::random_u64(), first_seq: next_seq };
        if !stand_in && let Err(source) = arena.begin(&round) {
            if !matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                return Err(JournalError::File { path: arena.path().to_path_buf(), source });
            }
            // One with holes, on a full disk. What is in the store can be delivered, and makes room.
            pool.give_back(Arc::clone(&arena));
            stand_in = true;
        }
        if stand_in {
            round.epoch = epoch.saturating_sub(1);
        }
        let mut active = Active {
            arena,
            round,
            position: HEADER_BYTES,
            readied_at: HEADER_BYTES,
            next_seq,
            records: 0,
            usual_up_to: [0; 2],
            heavier: 0,
            weight_before: 0,
            most: [Most::ANY; 2],
            closed: false,
            given_up: false,
            stand_in,
            buffer: Vec::new(),
        };
        active.survey();
        Ok(Journal { options, generation: fork::generation(), active: Apart(Mutex::new(active)), pool })
    }
}

/// The least arena that can take an event of `event_bytes`: four of them, and the header.
pub(crate) fn arena_bytes_min(event_bytes: usize) -> usize {
    frame::framed_len(event_bytes).unwrap_or(usize::MAX).saturating_mul(4).saturating_add(HEADER_BYTES + FRAME_HEAD)
}

#[cfg(test)]
mod tests;
