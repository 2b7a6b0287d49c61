//! The active arena: the one that takes records, the lock around it, and how much it may take.
//!
//! **Budget.** What the journal holds must fit into the queue when it is checkpointed, and the queue has bounds. The
//! committer, which knows how full the queue is, sets a [`Budget`]; appends obey it under the lock, so no burst can
//! outrun the bounds. Most appends compare one number: how far the arena may fill before any reason to refuse or to
//! notify the committer can arise is computed in advance ([`Active::recompute_fast_limits`]) whenever one of the limits
//! changes.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::Journal;
use super::arena::{Arena, HEADER_BYTES, Round};
use crate::queue::frame::FRAME_HEAD;
use crate::sys::crash_point;
use crate::sys::sync::{MutexGuard, sleep, spin_loop, try_lock, yield_now};

/// A record that was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) seq: u64,
    /// Records in the active arena, this one included.
    pub(crate) records: u64,
    /// Whether this record made the active arena half full.
    pub(crate) half_full: bool,
}

/// Why a record was not appended.
#[derive(Debug)]
pub(crate) enum AppendError {
    /// No space is left for a record of this class.
    Full,
    /// The budget is used up: see [`Journal::set_budget`].
    Bounded,
    /// The lock could not be had in time.
    Busy,
    Closed,
    /// The files belong to another process: see [`Journal::give_up`].
    Lost,
    /// This is a forked child; the journal belongs to its parent.
    Forked,
    /// The arena's file could not be written.
    Io(io::Error),
}

/// How much may wait to be checkpointed, including what waits already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) events: u64,
    /// Bytes, as computed by [`cost`].
    pub(crate) bytes: u64,
}

/// The largest frame that counts as small, in bytes.
pub(super) const SMALL_FRAME: usize = 4096;

/// An upper bound of the space that a record takes in the store: small records nearly fill a row of 64 KiB, a large one
/// has a row of its own, and rows take pages in powers of two.
pub(crate) fn cost(framed: usize) -> u64 {
    let bytes = framed as u64;
    match framed {
        _ if framed <= SMALL_FRAME => small_cost(bytes),
        ..=8192 => bytes + bytes / 4,
        _ => bytes.saturating_mul(2),
    }
}

/// The cost of small records of `bytes` in total. Frames are whole words, so it equals the sum of their costs.
pub(super) fn small_cost(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 8)
}

/// How many bytes of small records cost at most `cost`.
pub(super) fn small_bytes(cost: u64) -> u64 {
    cost / 9 * 8
}

/// The cost of a record beyond that of small records of the same size.
pub(super) fn extra_cost(framed: usize) -> u64 {
    cost(framed).saturating_sub(small_cost(framed as u64))
}

const FRAME_MIN: u64 = FRAME_HEAD as u64;

/// Keeps its content in cache lines of its own. Every append takes those lines from the other processors; fields that
/// are only read there (the fork generation, the options) must not go with them.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct CachePadded<T>(pub(super) T);

/// The active arena and everything that changes with an append. The order of the fields puts what an append uses into
/// one cache line with the lock.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Active {
    pub(super) arena: Arc<Arena>,
    /// Where the next frame goes.
    pub(super) position: usize,
    pub(super) next_seq: u64,
    pub(super) records: u64,
    /// How far ordinary and priority records may go on the fast path: see
    /// [`recompute_fast_limits`](Active::recompute_fast_limits).
    pub(super) fast_until: [usize; 2],
    pub(super) round: Round,
    /// The cost of this round's large records beyond that of small ones of the same size.
    pub(super) extra_cost: u64,
    /// The cost of all records before this round.
    pub(super) cost_before: u64,
    /// The budget for ordinary and for priority records, counted from the first record ever: the highest sequence number
    /// and the highest total cost that may be taken.
    pub(super) limits: [Budget; 2],
    pub(super) closed: bool,
    /// Whether the files belong to another process.
    pub(super) lost: bool,
    /// The position up to which pages were prepared last.
    pub(super) prefaulted_at: usize,
    /// Set if at open every arena waited to be checkpointed and no further one could be made, or no round could be
    /// begun. The arena is one of the waiting ones and takes nothing; the first one that can begin a round replaces it.
    pub(super) stand_in: bool,
    /// Buffer for one frame, where arenas are written by position.
    pub(super) buffer: Vec<u8>,
}

impl Budget {
    pub(super) const UNLIMITED: Self = Self { events: u64::MAX, bytes: u64::MAX };
}

impl Active {
    /// The end of a frame of that size, if it passes the fast path. Most appends need nothing else.
    #[inline]
    pub(super) fn fast_end(&self, framed: usize, class: u8) -> Option<usize> {
        let end = self.position.checked_add(framed)?;
        (framed <= SMALL_FRAME && end <= self.fast_until[usize::from(class != 0)]).then_some(end)
    }

    /// Sets how far records may go on the fast path: only so far that no check could fail for any record in between,
    /// and no notification is due. Must be called whenever something changes other than by small records.
    pub(super) fn recompute_fast_limits(&mut self) {
        for class in 0..2_u8 {
            let most = self.limits[usize::from(class)];
            let events = most.events.saturating_add(1).saturating_sub(self.next_seq);
            let cost = most.bytes.saturating_sub(self.cost());
            let bytes = events.saturating_mul(FRAME_MIN).min(small_bytes(cost));
            let bounded = self.position.saturating_add(usize::try_from(bytes).unwrap_or(usize::MAX));
            let half = if self.is_half_full() { usize::MAX } else { self.half() - 1 };
            let takes_none = self.closed || self.lost || self.stand_in;
            self.fast_until[usize::from(class)] =
                if takes_none { 0 } else { self.end_for(class).min(bounded).min(half) };
        }
    }

    /// Checks whether the record may be taken at all.
    fn admit(&self, framed: usize, class: u8) -> Result<(), AppendError> {
        if self.closed {
            return Err(AppendError::Closed);
        }
        if self.lost {
            return Err(AppendError::Lost);
        }
        let most = self.limits[usize::from(class != 0)];
        if self.next_seq > most.events || self.cost().saturating_add(cost(framed)) > most.bytes {
            return Err(AppendError::Bounded);
        }
        Ok(())
    }

    /// The end of a frame of that size, if it fits into this arena.
    fn end_of(&self, framed: usize, class: u8) -> Option<usize> {
        let end = self.position.checked_add(framed)?;
        (!self.stand_in && end <= self.end_for(class)).then_some(end)
    }

    /// Where frames of that class must end. Space is kept for the length word that ends the arena.
    fn end_for(&self, class: u8) -> usize {
        let len = self.arena.len();
        if class == 0 { len - len / 8 - size_of::<u64>() } else { len - size_of::<u64>() }
    }

    /// Accounts for a record that did not pass the fast path.
    #[cold]
    pub(super) fn took_slowly(&mut self, framed: usize) {
        self.extra_cost = self.extra_cost.saturating_add(extra_cost(framed));
        self.recompute_fast_limits();
    }

    pub(super) fn is_half_full(&self) -> bool {
        self.position >= self.half()
    }

    fn half(&self) -> usize {
        self.arena.len() / 2
    }

    /// The cost of all records so far.
    pub(super) fn cost(&self) -> u64 {
        self.cost_before.saturating_add(self.cost_of_round())
    }

    /// The cost of the records in this arena.
    pub(super) fn cost_of_round(&self) -> u64 {
        small_cost((self.position - HEADER_BYTES) as u64).saturating_add(self.extra_cost)
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
        self.recompute_fast_limits();
    }

    pub(super) fn give_up(&mut self) {
        self.lost = true;
        self.recompute_fast_limits();
    }
}

impl Journal {
    /// [`Journal::close`], unless the lock is held for longer than `lock_wait`: on a file system that hangs.
    pub(crate) fn close_within_lock_wait(&self) {
        if let Some(mut active) = self.lock_within_wait() {
            active.close();
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Active> {
        self.active.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock within `lock_wait`. Its holder may be a stopped thread, or one that waits for a page of a frozen
    /// file system, and `append` must not wait with it.
    #[inline]
    pub(super) fn lock_within_wait(&self) -> Option<MutexGuard<'_, Active>> {
        try_lock(&self.active.0).or_else(|| self.lock_slowly())
    }

    #[cold]
    fn lock_slowly(&self) -> Option<MutexGuard<'_, Active>> {
        for _ in 0..64 {
            spin_loop();
            if let Some(guard) = try_lock(&self.active.0) {
                return Some(guard);
            }
        }
        let deadline = Instant::now() + self.pool.options.lock_wait;
        let mut pause = Duration::ZERO;
        loop {
            match try_lock(&self.active.0) {
                Some(guard) => return Some(guard),
                None if Instant::now() >= deadline => return None,
                None if pause < Duration::from_micros(20) => {
                    // The holder needs the processor more than this thread: usually it is a few instructions from the
                    // end.
                    yield_now();
                    pause += Duration::from_micros(1);
                }
                None => {
                    sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(1));
                }
            }
        }
    }

    /// Finds the place of a record that does not pass the fast path: a large one, the first of an arena's second half,
    /// or one near a limit. Returns its end, and whether it makes the arena half full or caused a rotation.
    #[cold]
    pub(super) fn place_slowly(
        &self,
        active: &mut Active,
        framed: usize,
        class: u8,
    ) -> Result<(usize, bool), AppendError> {
        active.admit(framed, class)?;
        let was_half_full = active.is_half_full();
        match active.end_of(framed, class) {
            Some(end) => Ok((end, !was_half_full && end >= active.half())),
            None => Ok((self.rotate_for(active, framed, class)?, true)),
        }
    }

    /// The active arena is full: rotates to a free one if there is one. This may happen on a caller's thread while the
    /// committer is busy with the arena before. It does no I/O where arenas are mapped, and never creates a file.
    #[cold]
    fn rotate_for(&self, active: &mut Active, framed: usize, class: u8) -> Result<usize, AppendError> {
        // A record that does not fit an empty arena would only push out what is in this one.
        let fits = framed <= active.arena.len() - active.arena.len() / 8 - HEADER_BYTES - size_of::<u64>();
        let fresh = if fits && (active.records > 0 || active.stand_in) { self.pool.pop_free() } else { None };
        self.rotate(active, fresh.ok_or(AppendError::Full)?).map_err(AppendError::Io)?;
        crash_point::reach("journal.rotated");
        active.end_of(framed, class).ok_or(AppendError::Full)
    }

    /// Sets what the journal may hold of ordinary and of priority records. Everything up to `checkpointed_up_to` is in
    /// the store. Committer only.
    pub(crate) fn set_budget(&self, checkpointed_up_to: u64, ordinary: Budget, priority: Budget) {
        let mut active = self.lock();
        let waiting = self.pool.sealed_size().2.saturating_add(active.cost_of_round());
        let most = |room: Budget| Budget {
            events: checkpointed_up_to.saturating_add(room.events),
            bytes: active.cost().saturating_add(room.bytes).saturating_sub(waiting),
        };
        active.limits = [most(ordinary), most(priority)];
        active.recompute_fast_limits();
    }

    /// Bytes and records that wait to be checkpointed, including sealed arenas.
    pub(crate) fn journaled(&self) -> (u64, u64) {
        // The lock first: otherwise an append may seal the active arena, and it would count twice or not at all.
        let active = self.lock();
        let (bytes, records, _) = self.pool.sealed_size();
        (bytes + (active.position - HEADER_BYTES) as u64, records + active.records)
    }

    /// The cost of everything that waits to be checkpointed.
    pub(crate) fn journaled_cost(&self) -> u64 {
        let active = self.lock();
        self.pool.sealed_size().2.saturating_add(active.cost_of_round())
    }

    /// Whether the active arena is half full.
    pub(crate) fn is_half_full(&self) -> bool {
        self.lock().is_half_full()
    }

    /// The sequence number of the newest record; 0 before the first.
    pub(crate) fn last_seq(&self) -> u64 {
        self.lock().next_seq - 1
    }

    /// Whether a swap would find a free arena without creating one.
    pub(crate) fn has_free_arena(&self) -> bool {
        self.pool.has_free()
    }

    /// Whether all arenas have lost their names: the directory was deleted.
    pub(crate) fn is_unlinked(&self) -> bool {
        let active = Arc::clone(&self.lock().arena);
        active.is_unlinked() && self.pool.are_unlinked()
    }

    /// Goes on without using names: further arenas are in memory. For a journal whose directory was deleted.
    pub(crate) fn become_unlinked(&self) {
        self.pool.become_unlinked();
    }
}
