//! The arena that takes records, and the lock around it.

use std::sync::{Arc, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::arena::{Arena, HEADER_BYTES, Round};
use super::room::{self, Most};
use super::{Journal, Refused};
use crate::record::frame::FRAME_HEAD;
use crate::sys::crash_point;

/// No record takes less.
const LEAST_FRAMED: u64 = FRAME_HEAD as u64;

/// In cache lines that nothing else lies in: every append takes them away from the other processors, and what is only read there (the
/// fork generation, the options) must not go with them.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Apart<T>(pub(super) T);

/// The arena that takes records, and all that changes with each. In this order, so that what an append touches lies in one cache line
/// with the lock.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Active {
    pub(super) arena: Arc<Arena>,
    /// Where the next frame goes.
    pub(super) position: usize,
    pub(super) next_seq: u64,
    pub(super) records: u64,
    /// How far ordinary records, and the others, may go without a question being asked: see [`survey`](Active::survey).
    pub(super) usual_up_to: [usize; 2],
    pub(super) round: Round,
    /// What this round's large records weigh beyond what small ones of their length would, see [`weight`](room::weight).
    pub(super) heavier: u64,
    /// The weight of all records that were taken before this round.
    pub(super) weight_before: u64,
    /// How far ordinary records may go, and the others.
    pub(super) most: [Most; 2],
    pub(super) closed: bool,
    /// The files are somebody else's.
    pub(super) given_up: bool,
    /// Where `position` was when the pages behind it were last readied.
    pub(super) readied_at: usize,
    /// At open every arena waited to be checkpointed and no further one could be made, or no round could be begun: the arena is one of those,
    /// and takes nothing. The first one in which a round can be begun becomes the active one.
    pub(super) stand_in: bool,
    /// For arenas that are written and not mapped: one frame, assembled.
    pub(super) buffer: Vec<u8>,
}

/// A record that needed a second look before it was taken.
#[derive(Debug)]
pub(super) struct Unusual {
    framed: usize,
    /// Another arena was begun for it.
    rotated: bool,
    was_half_full: bool,
}

impl Active {
    /// Where a frame of that size would end, if nothing speaks against it. That is the only thing most appends ask.
    #[inline]
    pub(super) fn usual_end(&self, framed: usize, class: u8) -> Option<usize> {
        let end = self.position.checked_add(framed)?;
        (framed <= room::LIGHT && end <= self.usual_up_to[usize::from(class != 0)]).then_some(end)
    }

    /// Sets how far records may go without a question: no further than the next one of these answers may change, whatever the records
    /// are like. To be called whenever one of them has changed in another way than by small records that were taken.
    pub(super) fn survey(&mut self) {
        for class in 0..2_u8 {
            let most = self.most[usize::from(class)];
            let events = most.seq.saturating_add(1).saturating_sub(self.next_seq);
            let weight = most.weight.saturating_sub(self.weight());
            let bytes = events.saturating_mul(LEAST_FRAMED).min(room::light_bytes(weight));
            let bounded = self.position.saturating_add(usize::try_from(bytes).unwrap_or(usize::MAX));
            let half = if self.is_half_full() { usize::MAX } else { self.half() - 1 };
            let takes_none = self.closed || self.given_up || self.stand_in;
            self.usual_up_to[usize::from(class)] = if takes_none { 0 } else { self.room(class).min(bounded).min(half) };
        }
    }

    /// Asks all questions: whether a record may be taken at all.
    fn admit(&self, framed: usize, class: u8) -> Result<(), Refused> {
        if self.closed {
            return Err(Refused::Closed);
        }
        if self.given_up {
            return Err(Refused::Lost);
        }
        let most = self.most[usize::from(class != 0)];
        if self.next_seq > most.seq || self.weight().saturating_add(room::weight(framed)) > most.weight {
            return Err(Refused::Bounded);
        }
        Ok(())
    }

    /// Where a frame of that size would end, if it may still go into this arena.
    fn end_of(&self, framed: usize, class: u8) -> Option<usize> {
        let end = self.position.checked_add(framed)?;
        (!self.stand_in && end <= self.room(class)).then_some(end)
    }

    /// How far frames may go in this arena. Room is kept for the length word that ends it.
    fn room(&self, class: u8) -> usize {
        let len = self.arena.len();
        if class == 0 { len - len / 8 - size_of::<u64>() } else { len - size_of::<u64>() }
    }

    /// A record was taken that needed a second look; says whether it made the arena half full, or another one wait to be checkpointed.
    #[cold]
    pub(super) fn took(&mut self, record: &Unusual) -> bool {
        self.heavier = self.heavier.saturating_add(room::heavier(record.framed));
        self.survey();
        record.rotated || (!record.was_half_full && self.is_half_full())
    }

    pub(super) fn is_half_full(&self) -> bool {
        self.position >= self.half()
    }

    fn half(&self) -> usize {
        self.arena.len() / 2
    }

    /// Of all records taken so far.
    pub(super) fn weight(&self) -> u64 {
        self.weight_before.saturating_add(self.weight_of_round())
    }

    /// Of those in this arena.
    pub(super) fn weight_of_round(&self) -> u64 {
        room::light_weight((self.position - HEADER_BYTES) as u64).saturating_add(self.heavier)
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
        self.survey();
    }

    pub(super) fn give_up(&mut self) {
        self.given_up = true;
        self.survey();
    }
}

impl Journal {
    /// [`Journal::close`], unless somebody holds the journal for longer than an append may wait: on a file system that hangs.
    pub(crate) fn close_in_time(&self) {
        if let Some(mut active) = self.lock_in_time() {
            active.close();
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Active> {
        self.active.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, if it can be had within `lock_wait`: its holder may be a thread that is stopped, or that waits for a page of a
    /// frozen file system, and a caller of `capture` must not wait with it.
    #[inline]
    pub(super) fn lock_in_time(&self) -> Option<MutexGuard<'_, Active>> {
        match self.active.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => self.lock_after_others(),
        }
    }

    #[cold]
    fn lock_after_others(&self) -> Option<MutexGuard<'_, Active>> {
        for _ in 0..64 {
            std::hint::spin_loop();
            match self.active.0.try_lock() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.lock_slowly()
    }

    #[cold]
    fn lock_slowly(&self) -> Option<MutexGuard<'_, Active>> {
        let deadline = Instant::now() + self.options.lock_wait;
        let mut pause = Duration::ZERO;
        loop {
            match self.active.0.try_lock() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return None,
                Err(TryLockError::WouldBlock) if pause < Duration::from_micros(20) => {
                    // The holder needs the processor more than we do: usually it is a few instructions from the end.
                    std::thread::yield_now();
                    pause += Duration::from_micros(1);
                }
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(1));
                }
            }
        }
    }

    /// Where a record goes that is not a usual one: large, or the first of an arena's second half, or near a bound.
    #[cold]
    pub(super) fn find_place(
        &self,
        active: &mut Active,
        framed: usize,
        class: u8,
    ) -> Result<(usize, Unusual), Refused> {
        active.admit(framed, class)?;
        let was_half_full = active.is_half_full();
        let (end, rotated) = match active.end_of(framed, class) {
            Some(end) => (end, false),
            None => (self.make_room(active, framed, class)?, true),
        };
        Ok((end, Unusual { framed, rotated, was_half_full }))
    }

    /// The active arena is full: goes on in a free one if there is one. This may happen on a caller's thread, while the committer is
    /// busy with the arena before; it takes no I/O where arenas are mapped, and never creates a file.
    #[cold]
    fn make_room(&self, active: &mut Active, framed: usize, class: u8) -> Result<usize, Refused> {
        // An event that does not fit an empty arena would only push out what is in this one.
        let fits = framed <= active.arena.len() - active.arena.len() / 8 - HEADER_BYTES - size_of::<u64>();
        let fresh = if fits && (active.records > 0 || active.stand_in) { self.pool.pop_free() } else { None };
        self.rotate(active, fresh.ok_or(Refused::Full)?).map_err(Refused::Io)?;
        crash_point::reach("journal.rotated");
        active.end_of(framed, class).ok_or(Refused::Full)
    }
}
