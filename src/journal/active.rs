//! The arena that takes records, and the lock around it.

use std::sync::{Arc, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::Journal;
use super::arena::{Arena, Round};
use super::room::Most;

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
    /// Of all records taken so far, see [`weight`](super::room::weight).
    pub(super) weight: u64,
    /// Of those taken before this round.
    pub(super) weight_before: u64,
    /// How far ordinary records may go, and the others.
    pub(super) most: [Most; 2],
    pub(super) closed: bool,
    pub(super) round: Round,
    /// Where `position` was when the pages behind it were last readied.
    pub(super) readied_at: usize,
    /// At open every arena waited to be carried and no further one could be made: the arena is one of those, and takes nothing. The
    /// first one that is carried becomes the active one.
    pub(super) stand_in: bool,
    /// For arenas that are written and not mapped: one frame, assembled.
    pub(super) buffer: Vec<u8>,
}

impl Active {
    /// Where a frame of that size would end, if it may still go into this arena.
    #[inline]
    pub(super) fn end_of(&self, framed: usize, class: u8) -> Option<usize> {
        if self.stand_in {
            return None;
        }
        let len = self.arena.len();
        // Room is kept for the length word that ends the arena.
        let room = if class == 0 { len - len / 8 } else { len } - size_of::<u64>();
        self.position.checked_add(framed).filter(|end| *end <= room)
    }
}

impl Journal {
    /// [`Journal::close`], unless somebody holds the journal for longer than an append may wait: on a file system that hangs.
    pub(crate) fn close_in_time(&self) {
        if let Some(mut active) = self.lock_in_time() {
            active.closed = true;
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Active> {
        self.active.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, if it can be had within `lock_wait`: its holder may be a thread that is stopped, or that waits for a page of a
    /// frozen file system, and a caller of `capture` must not wait with it.
    #[inline]
    pub(super) fn lock_in_time(&self) -> Option<MutexGuard<'_, Active>> {
        for _ in 0..64 {
            match self.active.0.try_lock() {
                Ok(guard) => return Some(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
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
}
