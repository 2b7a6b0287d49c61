//! Buffers for composing records: static memory, so that a panic in a process that is out of memory still has some.

#![allow(unsafe_code, reason = "buffers that are claimed by hand; each block proves itself")]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicI32, Ordering};

/// Maximum length of a record: a message of maximum length, a full stack, names and breadcrumbs.
pub(super) const RECORD_MOST: usize = 24 * 1024;
/// Addresses kept of one stack.
pub(super) const FRAMES_MOST: usize = 128;
/// Threads that can compose a record at once. Another thread waits some microseconds.
const POOLED: usize = 4;
/// How often a thread looks for free buffers before it gives up. Buffers are used for microseconds only, so if none is
/// free after so many attempts, the threads that hold them are probably suspended or dead.
pub(super) const TURNS: u32 = 1000;

const FREE: i32 = 0;

pub(super) struct Buffers {
    pub(super) record: [u8; RECORD_MOST],
    pub(super) frames: [u64; FRAMES_MOST],
}

struct Pooled {
    /// The thread that has claimed the buffers, or [`FREE`].
    owner: AtomicI32,
    buffers: UnsafeCell<Buffers>,
}

// SAFETY: `buffers` is accessed only by the thread that changed `owner` from `FREE` to itself (acquire), until it
// releases it.
unsafe impl Sync for Pooled {}

static POOL: [Pooled; POOLED] = [const {
    Pooled {
        owner: AtomicI32::new(FREE),
        buffers: UnsafeCell::new(Buffers { record: [0; RECORD_MOST], frames: [0; FRAMES_MOST] }),
    }
}; POOLED];

/// Calls `write` with buffers. `None` if none became free within so many `turns`: [`TURNS`], or 1 to not wait.
pub(super) fn with_buffers<T>(thread: i32, turns: u32, write: impl FnOnce(&mut Buffers) -> T) -> Option<T> {
    struct Release(&'static Pooled);
    impl Drop for Release {
        fn drop(&mut self) {
            self.0.owner.store(FREE, Ordering::Release);
        }
    }
    let pooled = Release(claim(thread, turns)?);
    // SAFETY: this thread owns the entry until `Release` is dropped, and the reference does not outlive this call.
    Some(write(unsafe { &mut *pooled.0.buffers.get() }))
}

fn claim(thread: i32, turns: u32) -> Option<&'static Pooled> {
    for _ in 0..turns {
        let free = POOL
            .iter()
            .find(|pooled| pooled.owner.compare_exchange(FREE, thread, Ordering::Acquire, Ordering::Relaxed).is_ok());
        if free.is_some() {
            return free;
        }
        std::thread::yield_now();
    }
    None
}

/// Makes the kernel allocate every page of the buffers. Done when the hook is installed: under a memory limit, the
/// first access to a page may be what the OOM killer kills the process for.
pub(super) fn prefault() {
    for pooled in &POOL {
        if pooled.owner.compare_exchange(FREE, -1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            continue;
        }
        // SAFETY: claimed as in `with_buffers`, by an owner id that no thread has.
        let buffers = unsafe { &mut *pooled.buffers.get() };
        // Volatile, because a compiler that knows the buffers to be zero would remove the writes.
        for byte in buffers.record.iter_mut().step_by(1024) {
            // SAFETY: an exclusive reference to one byte.
            unsafe { std::ptr::write_volatile(byte, 0) };
        }
        for address in buffers.frames.iter_mut().step_by(128) {
            // SAFETY: as above.
            unsafe { std::ptr::write_volatile(address, 0) };
        }
        pooled.owner.store(FREE, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn no_two_threads_ever_share_buffers() {
        static INSIDE: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];
        let refused = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 1..=16 {
                let refused = &refused;
                scope.spawn(move || {
                    for _ in 0..200 {
                        let done = with_buffers(thread, TURNS, |buffers| {
                            buffers.record[0] = thread as u8;
                            let place = std::ptr::from_ref(buffers).addr() / RECORD_MOST % 64;
                            assert_eq!(INSIDE[place].fetch_add(1, Ordering::SeqCst), 0);
                            std::hint::spin_loop();
                            assert_eq!(buffers.record[0], thread as u8);
                            INSIDE[place].fetch_sub(1, Ordering::SeqCst);
                        });
                        refused.fetch_add(usize::from(done.is_none()), Ordering::Relaxed);
                    }
                });
            }
        });
        prefault();
        assert_eq!(refused.into_inner(), 0, "every thread gets buffers");
    }
}
