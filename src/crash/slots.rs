//! Room for records that are being written: reserved when the program is loaded, so that a panic in a process without a free byte of
//! memory still has some.

#![allow(unsafe_code, reason = "buffers that are claimed by hand; each block proves itself")]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI32, Ordering};

/// The longest record: a message at its bound, a full stack, names, and what the program did before.
pub(super) const RECORD_MOST: usize = 24 * 1024;
/// Addresses kept of one stack.
pub(super) const FRAMES_MOST: usize = 128;
/// Threads that write at once; the next ones wait some microseconds.
const SLOTS: usize = 4;
/// A slot is held for microseconds: who has not got one after so many turns has met threads that were stopped in the middle.
const TURNS: u32 = 1000;

const FREE: i32 = 0;

/// Buffers of one writer.
pub(super) struct Room {
    pub(super) record: [u8; RECORD_MOST],
    pub(super) frames: [u64; FRAMES_MOST],
}

struct Slot {
    /// The thread that has it.
    owner: AtomicI32,
    room: UnsafeCell<Room>,
}

// SAFETY: `room` is reached by the thread alone that took `owner` from `FREE` (acquire) to itself, until it gives it back (release).
unsafe impl Sync for Slot {}

static ROOMS: [Slot; SLOTS] = [const {
    Slot {
        owner: AtomicI32::new(FREE),
        room: UnsafeCell::new(Room { record: [0; RECORD_MOST], frames: [0; FRAMES_MOST] }),
    }
}; SLOTS];

/// Lends a room to `write`. `None` if none came free in a bounded time.
pub(super) fn with_room<T>(thread: i32, write: impl FnOnce(&mut Room) -> T) -> Option<T> {
    lend(claim(thread, TURNS)?, write)
}

/// As [`with_room`], without waiting.
#[cfg(feature = "crash-signals")]
pub(super) fn with_free_room<T>(thread: i32, write: impl FnOnce(&mut Room) -> T) -> Option<T> {
    lend(claim(thread, 1)?, write)
}

fn lend<T>(slot: &'static Slot, write: impl FnOnce(&mut Room) -> T) -> Option<T> {
    struct GiveBack(&'static Slot);
    impl Drop for GiveBack {
        fn drop(&mut self) {
            self.0.owner.store(FREE, Ordering::Release);
        }
    }
    let slot = GiveBack(slot);
    // SAFETY: the slot is ours alone until `GiveBack` is dropped, and the reference does not outlive this call.
    Some(write(unsafe { &mut *slot.0.room.get() }))
}

fn claim(thread: i32, turns: u32) -> Option<&'static Slot> {
    for _ in 0..turns {
        let free = ROOMS
            .iter()
            .find(|slot| slot.owner.compare_exchange(FREE, thread, Ordering::Acquire, Ordering::Relaxed).is_ok());
        if free.is_some() {
            return free;
        }
        std::thread::yield_now();
    }
    None
}

/// Gives every page of the rooms real memory. Done at a quiet moment: under a memory limit, the first touch of a page can be the one
/// for which the kernel kills the process.
pub(super) fn touch() {
    for slot in &ROOMS {
        if slot.owner.compare_exchange(FREE, -1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            continue;
        }
        // SAFETY: claimed as in `with_room`, by an owner that no thread has.
        let room = unsafe { &mut *slot.room.get() };
        // Volatile, or a compiler that knows the buffers to be zero would leave it out.
        for byte in room.record.iter_mut().step_by(1024) {
            // SAFETY: an exclusive reference.
            unsafe { std::ptr::write_volatile(byte, 0) };
        }
        for address in room.frames.iter_mut().step_by(128) {
            // SAFETY: as above.
            unsafe { std::ptr::write_volatile(address, 0) };
        }
        slot.owner.store(FREE, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn no_two_threads_are_ever_in_the_same_room() {
        static INSIDE: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];
        let refused = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 1..=16 {
                let refused = &refused;
                scope.spawn(move || {
                    for _ in 0..200 {
                        let done = with_room(thread, |room| {
                            room.record[0] = thread as u8;
                            let place = std::ptr::from_ref(room).addr() / RECORD_MOST % 64;
                            assert_eq!(INSIDE[place].fetch_add(1, Ordering::SeqCst), 0);
                            std::hint::spin_loop();
                            assert_eq!(room.record[0], thread as u8);
                            INSIDE[place].fetch_sub(1, Ordering::SeqCst);
                        });
                        refused.fetch_add(usize::from(done.is_none()), Ordering::Relaxed);
                    }
                });
            }
        });
        touch();
        assert_eq!(refused.into_inner(), 0, "each comes to its turn");
    }
}
