//! Knowing, without a system call, that this process is a forked child.
//!
//! One word lives on a page that the kernel wipes in children (`MADV_WIPEONFORK`), so that even a raw `clone` is noticed. Beside it
//! a handler registered with `pthread_atfork` closes, in the child, the descriptors whose locks must not live on there: a lock taken
//! with `flock` belongs to the open file, and a daemonizing parent would otherwise leave it to a child that never asked for it.
//! Closed, and never unlocked: unlocking through a duplicate would free the parent's lock as well.

#![allow(unsafe_code, reason = "a wiped page and a fork handler; each block proves itself")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use nix::libc;

/// How many forks lie between the process that first asked and this one.
#[inline]
pub(crate) fn generation() -> u64 {
    if marker().load(Ordering::Acquire) != PRESENT {
        notice_fork();
    }
    GENERATION.load(Ordering::Relaxed)
}

static GENERATION: AtomicU64 = AtomicU64::new(0);

/// States of the marker. A wiped page reads as `WIPED`.
const WIPED: u32 = 0;
const NOTICING: u32 = 1;
const PRESENT: u32 = 2;

#[cold]
fn notice_fork() {
    let marker = marker();
    // One thread of the child counts; the others wait for it, a few instructions.
    if marker.compare_exchange(WIPED, NOTICING, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
        marker.store(PRESENT, Ordering::Release);
    }
    while marker.load(Ordering::Acquire) != PRESENT {
        std::hint::spin_loop();
    }
}

/// The word on the wiped page. A pointer and not a lazily locked cell: a fork may fall into the middle of the first call, and a
/// child must never wait for a thread that it does not have.
static MARKER: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

#[inline]
fn marker() -> &'static AtomicU32 {
    // SAFETY: what the pointer was set to is never freed.
    match unsafe { MARKER.load(Ordering::Acquire).as_ref() } {
        Some(marker) => marker,
        None => first_marker(),
    }
}

#[cold]
fn first_marker() -> &'static AtomicU32 {
    // Without the page (an old kernel, another system) the fork handler alone wipes the word.
    static FALLBACK: AtomicU32 = AtomicU32::new(PRESENT);
    let fresh = wiped_page().unwrap_or(&FALLBACK);
    fresh.store(PRESENT, Ordering::Release);
    let fresh_pointer = ptr::from_ref(fresh).cast_mut();
    match MARKER.compare_exchange(ptr::null_mut(), fresh_pointer, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            // SAFETY: the handler is an `extern "C"` function that lives for ever and does only what a forked child may do.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
            fresh
        }
        // Somebody was faster; our page stays behind, once in the life of a process.
        // SAFETY: as in `marker`; a failed exchange found a pointer that is not null.
        Err(earlier) => unsafe { earlier.as_ref() }.unwrap_or(fresh),
    }
}

#[cfg(target_os = "linux")]
fn wiped_page() -> Option<&'static AtomicU32> {
    use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};
    use std::num::NonZeroUsize;

    let length = NonZeroUsize::new(4096)?;
    // SAFETY: a new private mapping at an address of the kernel's choice; never unmapped, so the reference may be 'static.
    let page = unsafe {
        mman::mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE).ok()?
    };
    // SAFETY: the range is exactly the page just mapped.
    unsafe { mman::madvise(page, length.get(), MmapAdvise::MADV_WIPEONFORK).ok()? };
    // SAFETY: the page is mapped for ever, aligned, and only ever reached through this atomic.
    Some(unsafe { AtomicU32::from_ptr(page.cast::<u32>().as_ptr()) })
}

#[cfg(not(target_os = "linux"))]
fn wiped_page() -> Option<&'static AtomicU32> {
    None
}

/// The lock, unless it is held for longer than that. A thread may hold it that does not exist here, because this is a child of the process
/// that has it.
pub(crate) fn lock_within<T>(mutex: &Mutex<T>, most: Duration) -> Option<MutexGuard<'_, T>> {
    let deadline = Instant::now() + most;
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Descriptors to be closed in children: as many as there can be locks in one process by any sane use.
static CLOSED_IN_CHILD: [AtomicI32; 256] = [const { AtomicI32::new(FREE) }; 256];
const FREE: i32 = -1;

/// Keeps a descriptor on the list of those closed in children; takes it off when dropped.
#[derive(Debug)]
pub(crate) struct CloseInChild {
    slot: Option<&'static AtomicI32>,
    generation: u64,
}

/// Puts the descriptor of `file` on the list. The answer must be dropped before the file is.
pub(super) fn close_in_child(file: &File) -> CloseInChild {
    let generation = generation();
    let descriptor = file.as_raw_fd();
    let slot = CLOSED_IN_CHILD
        .iter()
        .find(|slot| slot.compare_exchange(FREE, descriptor, Ordering::AcqRel, Ordering::Relaxed).is_ok());
    CloseInChild { slot, generation }
}

impl Drop for CloseInChild {
    fn drop(&mut self) {
        // In a child the handler has freed the slot already, and somebody else may have it by now.
        if let Some(slot) = self.slot.filter(|_| generation() == self.generation) {
            slot.store(FREE, Ordering::Release);
        }
    }
}

/// Runs in the child, on its only thread, before `fork` returns. Atomics and `close` alone: both are async-signal-safe.
extern "C" fn in_child() {
    for slot in &CLOSED_IN_CHILD {
        let descriptor = slot.swap(FREE, Ordering::AcqRel);
        if descriptor != FREE {
            // SAFETY: the descriptor was inherited and its owner, inherited too, is leaked in a child and never closes it again.
            unsafe { libc::close(descriptor) };
        }
    }
    // Where the page is wiped this is so already; where there is none, this is how the fork is noticed.
    marker().store(WIPED, Ordering::Release);
    notice_fork();
}
