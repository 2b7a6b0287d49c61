//! The journal: records are copied into a memory-mapped file and survive the process from that moment on.
//!
//! A commit of a transactional store costs hundreds of microseconds. A copy into the page cache costs tens of
//! nanoseconds and outlives SIGKILL as well, because the page cache belongs to the kernel. So a record is accepted by
//! copying it here, made durable by syncing this file, and checkpointed into the store later, together with many
//! others.
//!
//! Limits
//! * Two arenas at first, up to [`ARENAS_MAX`] when a burst fills them faster than they are checkpointed. Each is a
//!   file of `arena_bytes` whose blocks are all written before it is first used.
//! * The last eighth of an arena is reserved for priority records (class other than 0): they still fit when ordinary
//!   records no longer do.
//! * What the journal holds can be bounded by a [`Budget`], so that it never takes more than the queue has space for.
//! * An append waits at most `lock_wait` for the lock, and does no I/O under it where the arena is mapped.
//! * Creating, syncing, reading and freeing arenas is for one thread, the committer. Appending, and rotating to a free
//!   arena when the active one is full, is for any thread.
//!
//! Format: a header page, then frames (`queue::frame`) back to back, ended by a zero length word. See
//! `docs/format.md`; `docs/queue.md` explains the states of an arena.
//!
//! Invariants: sequence numbers have no gaps; a salt is never used twice; a sealed arena is never written to; at most
//! one arena is active; the epoch of a new round is above every epoch on disk.

mod active;
pub(crate) mod arena;
#[cfg(feature = "inspect")]
pub(crate) mod peek;
mod pool;
pub(crate) mod replay;

use std::io;
use std::sync::Arc;

use crate::queue::error::QueueError;
use crate::queue::frame::{self, FRAME_HEAD, FrameHead};
use crate::sys::crash_point;
use crate::sys::disk::fork;
use crate::sys::entropy;
use crate::sys::sync::Mutex;

use active::{Active, CachePadded};
pub(crate) use active::{AppendError, Appended, Budget};
use arena::{Arena, HEADER_BYTES, Round};
pub(crate) use pool::{ARENAS_MAX, JournalOptions, Pool, SealedArena, file_names};

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    generation: u64,
    active: CachePadded<Mutex<Active>>,
    pool: Pool,
}

impl Journal {
    /// Appends a record. `body_hash` is `frame::hash_body(body)`, computed before the lock is taken. `taken` is called
    /// with the sequence number under the lock, hence in order.
    #[inline]
    pub(crate) fn append(
        &self,
        body: &[u8],
        body_hash: u64,
        class: u8,
        taken: impl FnOnce(u64),
    ) -> Result<Appended, AppendError> {
        if fork::generation() != self.generation {
            return Err(AppendError::Forked);
        }
        let (Some(framed), Ok(body_len)) = (frame::framed_len(body.len()), u32::try_from(body.len())) else {
            return Err(AppendError::Full);
        };
        let mut active = self.lock_within_wait().ok_or(AppendError::Busy)?;
        let active = &mut *active;
        let (end, slow) = match active.fast_end(framed, class) {
            Some(end) => (end, None),
            None => self.place_slowly(active, framed, class).map(|(end, half_full)| (end, Some(half_full)))?,
        };
        let seq = active.next_seq;
        let check = frame::seal(body_hash, active.round.salt, seq, body_len, class);
        let head = FrameHead { body_len, class, seq, check };
        active.arena.write_frame(active.position, end, &head, body, &mut active.buffer).map_err(AppendError::Io)?;

        active.position = end;
        active.next_seq += 1;
        active.records += 1;
        let half_full = slow.is_some_and(|half_full| {
            active.took_slowly(framed);
            half_full
        });
        taken(seq);
        Ok(Appended { seq, records: active.records, half_full })
    }

    /// Makes a free arena the active one and seals the old one, unless the old one is empty or no arena is free.
    /// Committer only: it may create a file.
    pub(crate) fn swap(&self) -> Result<bool, QueueError> {
        {
            let active = self.lock();
            if (active.records == 0 && !active.stand_in) || active.lost {
                return Ok(false);
            }
        }
        let Some(fresh) = self.pool.take_free()? else {
            return Ok(false);
        };
        crash_point::reach("journal.swap.begun");
        let path = fresh.path.clone();
        self.rotate(&mut self.lock(), fresh).map_err(|source| QueueError::JournalFile { path, source })?;
        crash_point::reach("journal.swap.done");
        Ok(true)
    }

    /// Makes `fresh` the active arena and seals the old one. The caller holds the lock.
    fn rotate(&self, active: &mut Active, fresh: Arc<Arena>) -> io::Result<()> {
        let round = Round { epoch: active.round.epoch + 1, salt: entropy::random_u64(), first_seq: active.next_seq };
        if let Err(error) = fresh.begin(&round) {
            self.pool.give_back(fresh);
            return Err(error);
        }
        crash_point::reach("journal.round.begun");
        let old = std::mem::replace(&mut active.arena, fresh);
        if !std::mem::take(&mut active.stand_in) {
            self.pool.push_sealed(SealedArena {
                arena: old,
                round: active.round,
                end: active.position,
                last_seq: Some(active.next_seq - 1),
                records: active.records,
                cost: active.cost_of_round(),
                synced: false,
            });
        }
        active.cost_before = active.cost();
        active.extra_cost = 0;
        active.round = round;
        active.position = HEADER_BYTES;
        active.prefaulted_at = HEADER_BYTES;
        active.records = 0;
        active.recompute_fast_limits();
        Ok(())
    }

    /// The sealed arena to be checkpointed next.
    pub(crate) fn oldest_sealed(&self) -> Option<SealedArena> {
        self.pool.oldest_sealed()
    }

    /// Frees the oldest sealed arena, which was checkpointed: it never replays again. Committer only.
    pub(crate) fn free_oldest(&self) {
        self.pool.free_oldest();
    }

    /// Makes every record that was appended before the call durable, and returns the highest durable sequence number.
    /// After a failure the kernel may have dropped what it could not write, so the arena is replaced once it is
    /// checkpointed. Committer only.
    pub(crate) fn sync(&self) -> io::Result<u64> {
        let (arena, end, last) = {
            let active = self.lock();
            (Arc::clone(&active.arena), active.position + size_of::<u64>(), active.next_seq - 1)
        };
        // Sealed arenas first: what is durable must never have a gap before it.
        self.pool.sync_sealed()?;
        arena.sync(end)?;
        Ok(last)
    }

    /// Prepares the pages that will be written before the next call: twice as many as since the last one. Otherwise the
    /// first append to a page pays for it, with several microseconds on some file systems. Committer only.
    pub(crate) fn prefault(&self) {
        let (arena, from, grown) = {
            let mut active = self.lock();
            let (position, before) = (active.position, active.prefaulted_at);
            active.prefaulted_at = position;
            (Arc::clone(&active.arena), position, position.saturating_sub(before))
        };
        arena.prefault(from, from.saturating_add(grown.saturating_mul(2)));
    }

    /// Makes sure that the next swap finds a free arena, if the limit allows. Committer only: it may create a file.
    pub(crate) fn prepare_free_arena(&self) -> Result<(), QueueError> {
        if self.lock().lost {
            return Ok(());
        }
        if let Some(spare) = self.pool.take_free()? {
            self.pool.give_back(spare);
        }
        Ok(())
    }

    /// Rejects every further append.
    pub(crate) fn close(&self) {
        self.lock().close();
    }

    /// Rejects every further append and begins no further round: the files belong to another process.
    pub(crate) fn give_up(&self) {
        self.lock().give_up();
    }

    /// The records that wait to be checkpointed, by sequence number. A record may come twice while the committer is
    /// working, but none is missed that is not in the store by the time this returns.
    #[cfg(feature = "testing")]
    pub(crate) fn contents(&self) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let active = {
            let active = self.lock();
            if active.stand_in {
                None
            } else {
                // Read under the lock, because the arena could be reused meanwhile.
                Some(replay::replay(active.arena.read_frames(active.position)?, &active.round, None))
            }
        };
        let sealed = self.pool.all_sealed();
        let sealed = sealed.iter().map(|sealed| sealed.replay()).collect::<io::Result<Vec<_>>>()?;
        Ok(sealed.iter().chain(&active).flat_map(records).collect())
    }

    /// The epoch of the active arena's round.
    pub(crate) fn epoch(&self) -> u64 {
        self.lock().round.epoch
    }
}

impl Pool {
    /// Starts the journal with round `epoch` and sequence number `next_seq`. If every arena waits to be checkpointed
    /// and no further one can be made, or the disk is too full for the first block of a round, it takes no records
    /// until an arena becomes usable.
    pub(crate) fn start(self, epoch: u64, next_seq: u64) -> Result<Journal, QueueError> {
        let (arena, mut stand_in) = match (self.take_free(), self.oldest_sealed()) {
            (Ok(Some(arena)), _) => (arena, false),
            (_, Some(waiting)) => (waiting.arena, true),
            (Err(error), None) => return Err(error),
            (Ok(None), None) => {
                let source = io::Error::new(
                    io::ErrorKind::StorageFull,
                    "there is no file for the journal, and none could be made",
                );
                return Err(QueueError::JournalFile { path: self.options.dir.clone().unwrap_or_default(), source });
            }
        };
        let mut round = Round { epoch, salt: entropy::random_u64(), first_seq: next_seq };
        if !stand_in && let Err(source) = arena.begin(&round) {
            if !matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                return Err(QueueError::JournalFile { path: arena.path.clone(), source });
            }
            // A file with holes on a full disk. The store can still be delivered, which frees space.
            self.give_back(Arc::clone(&arena));
            stand_in = true;
        }
        if stand_in {
            round.epoch = epoch.saturating_sub(1);
        }
        let mut active = Active {
            arena,
            round,
            position: HEADER_BYTES,
            prefaulted_at: HEADER_BYTES,
            next_seq,
            records: 0,
            fast_until: [0; 2],
            extra_cost: 0,
            cost_before: 0,
            limits: [Budget::UNLIMITED; 2],
            closed: false,
            lost: false,
            stand_in,
            buffer: Vec::new(),
        };
        active.recompute_fast_limits();
        Ok(Journal { generation: fork::generation(), active: CachePadded(Mutex::new(active)), pool: self })
    }
}

#[cfg(feature = "testing")]
fn records(replay: &replay::Replay) -> impl Iterator<Item = (u64, Vec<u8>)> {
    let runs = replay.runs.iter().filter_map(|run| replay.bytes.get(run.range.clone()));
    runs.flat_map(|bytes| frame::frames(bytes, replay.salt).map(|(head, body)| (head.seq, body.to_vec())))
}

/// The smallest arena that takes a record of `event_bytes`: four such records and the header.
pub(crate) fn arena_bytes_min(event_bytes: usize) -> usize {
    frame::framed_len(event_bytes).unwrap_or(usize::MAX).saturating_mul(4).saturating_add(HEADER_BYTES + FRAME_HEAD)
}

#[cfg(test)]
mod budget_tests;
#[cfg(test)]
mod tests;
