//! Forks: detects without a system call that this process is a forked child, and closes locks in children.
//!
//! * One word is on a page that the kernel wipes in children (`MADV_WIPEONFORK`), so even a raw `clone` is detected.
//! * A handler registered with `pthread_atfork` closes in the child the descriptors whose locks must not live on there:
//!   a `flock` lock belongs to the open file, so a child of a daemonizing parent would keep it. The descriptor is
//!   closed and not unlocked, because unlocking a duplicate would release the parent's lock too.
//! * Two more handlers keep a fork from happening between the opening of such a file and its registration
//!   ([`without_fork`]).

#![allow(unsafe_code, reason = "a wiped page and fork handlers; each block has a SAFETY comment")]

use std::cell::Cell;
use std::fs::{File, Metadata};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::stat::fstat;

use crate::sys::sync::AtomicU32;

/// The number of forks between the process that called this first and the present one.
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
    // One thread of the child counts the fork; the others wait for the few instructions that this takes.
    if marker.compare_exchange(WIPED, NOTICING, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
        marker.store(PRESENT, Ordering::Release);
    }
    while marker.load(Ordering::Acquire) != PRESENT {
        crate::sys::sync::spin_loop();
    }
}

/// The word on the wiped page. A pointer and not a lazily locked cell: a fork may happen during the first call, and a
/// child must never wait for a thread that it does not have.
static MARKER: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

#[inline]
fn marker() -> &'static AtomicU32 {
    // SAFETY: the memory that the pointer was set to is never freed.
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
            // SAFETY: the handlers are `extern "C"` functions that live for ever. The one that runs in the child makes
            // only async-signal-safe calls.
            unsafe { libc::pthread_atfork(Some(before_fork), Some(in_parent), Some(in_child)) };
            fresh
        }
        // Another thread was faster; the page of this thread is leaked.
        // SAFETY: as in `marker`; a failed exchange found a pointer that is not null.
        Err(earlier) => unsafe { earlier.as_ref() }.unwrap_or(fresh),
    }
}

#[cfg(all(target_os = "linux", not(feature = "__models")))]
fn wiped_page() -> Option<&'static AtomicU32> {
    use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};
    use std::num::NonZeroUsize;

    let length = NonZeroUsize::new(4096)?;
    // SAFETY: a new private mapping at an address of the kernel's choice; never unmapped, so the reference may be
    // 'static.
    let page = unsafe {
        mman::mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE).ok()?
    };
    // SAFETY: the range is exactly the page just mapped.
    unsafe { mman::madvise(page, length.get(), MmapAdvise::MADV_WIPEONFORK).ok()? };
    // SAFETY: the page is mapped for ever, aligned, and only ever reached through this atomic.
    Some(unsafe { AtomicU32::from_ptr(page.cast::<u32>().as_ptr()) })
}

#[cfg(any(not(target_os = "linux"), feature = "__models"))]
fn wiped_page() -> Option<&'static AtomicU32> {
    None
}

/// Locks a mutex; `None` if that takes longer than `most`. In a forked child the mutex may be held by a thread that
/// exists in the parent only.
pub(crate) fn lock_within<T>(mutex: &Mutex<T>, most: Duration) -> Option<MutexGuard<'_, T>> {
    let deadline = Instant::now() + most;
    loop {
        match try_lock(mutex) {
            None if Instant::now() >= deadline => return None,
            None => std::thread::sleep(Duration::from_millis(1)),
            guard => return guard,
        }
    }
}

/// Locks a mutex if no thread holds it.
#[inline]
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Held during a fork, and while a file is opened that a child must not inherit before it is registered.
static GATE: AtomicBool = AtomicBool::new(false);
/// How long a fork waits for an opening of a file, and an opening for a fork: a fork must not hang because a file
/// system does.
const GATE_WAIT: Duration = Duration::from_millis(50);

thread_local! {
    /// Whether this thread is forking and holds the gate.
    static FORKS: Cell<bool> = const { Cell::new(false) };
}

/// Makes a call during which no fork happens, unless the call takes longer than a fork may wait.
pub(super) fn without_fork<T>(call: impl FnOnce() -> T) -> T {
    struct Passing;
    impl Drop for Passing {
        fn drop(&mut self) {
            GATE.store(false, Ordering::Release);
        }
    }
    // The first call registers the fork handlers.
    generation();
    let _passing = take_gate().then_some(Passing);
    call()
}

fn take_gate() -> bool {
    let deadline = Instant::now() + GATE_WAIT;
    while GATE.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    true
}

/// Runs in the parent before the fork, on the thread that forks; [`in_parent`] runs after it. Uses only atomics, the
/// clock and short sleeps.
extern "C" fn before_fork() {
    FORKS.set(take_gate());
}

extern "C" fn in_parent() {
    if FORKS.replace(false) {
        GATE.store(false, Ordering::Release);
    }
}

/// Device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A descriptor to be closed in children, with the identity of its file: by the time of a fork the program may have
/// closed it and opened a file or socket of its own under that number.
#[derive(Debug)]
struct Slot {
    descriptor: AtomicI32,
    device: AtomicU64,
    inode: AtomicU64,
}

/// The registered descriptors. The number of slots is more than any sensible number of locks in one process.
static CLOSED_IN_CHILD: [Slot; 256] = [const { Slot::new() }; 256];
const FREE: i32 = -1;
const TAKEN: i32 = -2;

impl Slot {
    const fn new() -> Self {
        Self { descriptor: AtomicI32::new(FREE), device: AtomicU64::new(0), inode: AtomicU64::new(0) }
    }

    fn take(&self, descriptor: i32, identity: Identity) -> bool {
        if self.descriptor.compare_exchange(FREE, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        self.device.store(identity.device, Ordering::Relaxed);
        self.inode.store(identity.inode, Ordering::Relaxed);
        self.descriptor.store(descriptor, Ordering::Release);
        true
    }

    /// Frees the slot, and closes the descriptor if it still refers to the same file. Async-signal-safe.
    fn close(&self) {
        let descriptor = self.descriptor.swap(FREE, Ordering::AcqRel);
        if descriptor < 0 {
            return;
        }
        // SAFETY: borrowed for one call, which finds out whether the number is that of an open file at all.
        let found = fstat(unsafe { BorrowedFd::borrow_raw(descriptor) });
        let is_ours = found.is_ok_and(|found| {
            widened(found.st_dev) == self.device.load(Ordering::Relaxed)
                && widened(found.st_ino) == self.inode.load(Ordering::Relaxed)
        });
        if is_ours {
            // SAFETY: the descriptor was inherited and its owner, inherited too, is leaked in a child and never closes
            // it again.
            unsafe { libc::close(descriptor) };
        }
    }
}

/// Device and inode numbers have different widths on different systems.
fn widened(value: impl TryInto<u64>) -> u64 {
    value.try_into().unwrap_or(u64::MAX)
}

/// Keeps a descriptor registered to be closed in children, until dropped.
#[derive(Debug)]
pub(crate) struct CloseInChild {
    slot: Option<&'static Slot>,
    generation: u64,
}

/// Registers the descriptor of `file`. The returned value must be dropped before the file.
pub(super) fn close_in_child(file: &File, identity: Identity) -> CloseInChild {
    let generation = generation();
    let slot = CLOSED_IN_CHILD.iter().find(|slot| slot.take(file.as_raw_fd(), identity));
    CloseInChild { slot, generation }
}

impl CloseInChild {
    /// Whether this is the process that registered it.
    pub(super) fn is_of_this_process(&self) -> bool {
        generation() == self.generation
    }
}

impl Drop for CloseInChild {
    fn drop(&mut self) {
        // In a child the handler has freed the slot already, and it may be in use again.
        if let Some(slot) = self.slot.filter(|_| self.is_of_this_process()) {
            slot.descriptor.store(FREE, Ordering::Release);
        }
    }
}

/// Runs in the child, on its only thread, before `fork` returns. Uses only atomics, `fstat` and `close`, which are
/// async-signal-safe.
extern "C" fn in_child() {
    CLOSED_IN_CHILD.iter().for_each(Slot::close);
    FORKS.set(false);
    GATE.store(false, Ordering::Release);
    // On a wiped page the word is `WIPED` already; without such a page, this store marks the fork.
    marker().store(WIPED, Ordering::Release);
    notice_fork();
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, OwnedFd};

    use super::super::{Disk, Open};
    use super::*;

    /// The file that a descriptor refers to.
    fn target(descriptor: i32) -> String {
        std::fs::read_link(format!("/proc/self/fd/{descriptor}"))
            .map_or_else(|e| e.to_string(), |p| p.display().to_string())
    }

    /// Replaces a descriptor by a socket, as a daemon does that closes all descriptors and opens its own.
    fn replaced(descriptor: i32) -> String {
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        // SAFETY: the descriptor belongs to a file of this test and is closed by no other code.
        assert_eq!(unsafe { libc::dup2(socket.as_raw_fd(), descriptor) }, descriptor);
        target(descriptor)
    }

    fn close(descriptor: i32) {
        // SAFETY: the tests put their own socket or file under this number with `dup2`; it has no other owner.
        drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    }

    #[test]
    fn a_reused_descriptor_is_not_closed_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = Disk::default().open(&dir.path().join("file"), Open::CreateNew).unwrap();
        let descriptor = file.number();
        let socket = replaced(descriptor);
        assert!(file.write_all_at(0, b"ours").is_err() && file.sync_data().is_err() && file.len().is_err());
        assert!(file.read_exact_at(0, &mut [0; 1]).is_err());
        drop(file);
        assert_eq!(target(descriptor), socket, "the socket is still open");
        close(descriptor);
    }

    #[test]
    fn a_descriptor_once_found_replaced_is_never_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let first = Disk::default().open(&path, Open::CreateNew).unwrap();
        let descriptor = first.number();
        replaced(descriptor);
        assert!(first.descriptor_is_ours().is_err());
        let again = File::open(&path).unwrap();
        // SAFETY: as in `replaced`.
        assert_eq!(unsafe { libc::dup2(again.as_raw_fd(), descriptor) }, descriptor);
        drop(first);
        assert_eq!(target(descriptor), path.display().to_string());
        close(descriptor);
    }

    #[test]
    fn a_child_closes_the_registered_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = Disk::default().open(&dir.path().join("file"), Open::CreateNew).unwrap();
        let (slot, descriptor) = (Slot::new(), file.number());
        assert!(slot.take(descriptor, file.identity()) && !slot.take(descriptor, file.identity()));
        let socket = replaced(descriptor);
        slot.close();
        assert_eq!(target(descriptor), socket, "the socket is still open");
        close(descriptor);
        drop(file);
        let file = Disk::default().open(&dir.path().join("other"), Open::CreateNew).unwrap();
        assert!(slot.take(file.number(), file.identity()));
        slot.close();
        assert!(file.descriptor_is_ours().is_err(), "closed");
    }

    #[test]
    fn no_fork_happens_between_opening_and_registering_a_file() {
        let (began, fork) = (Instant::now(), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            without_fork(|| {
                // A real fork would copy the other tests, so the handlers are called directly.
                scope.spawn(|| {
                    fork.wait();
                    before_fork();
                    assert!(FORKS.get() && began.elapsed() >= Duration::from_millis(20), "the fork waits for the gate");
                    in_parent();
                });
                fork.wait();
                std::thread::sleep(Duration::from_millis(20));
            });
        });
        without_fork(|| without_fork(|| ()));
    }

    /// The first calls in a child, by several threads, under every order that shuttle tries.
    #[cfg(feature = "__models")]
    mod models {
        use super::*;

        #[test]
        fn a_fork_is_counted_once_whichever_thread_notices_it() {
            let _alone = crate::sys::sync::alone();
            shuttle::check_dfs(
                || {
                    let before = generation();
                    marker().store(WIPED, Ordering::SeqCst);
                    let threads: Vec<_> = (0..3).map(|_| shuttle::thread::spawn(generation)).collect();
                    let seen: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
                    assert_eq!(seen, [before + 1; 3]);
                },
                Some(20_000),
            );
        }
    }
}
