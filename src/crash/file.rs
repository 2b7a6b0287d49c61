//! The file that last words go into, and the one write that puts them there.
//!
//! Everything a crash needs was prepared when the process was well: the file is open, its room is reserved, and its first record says
//! who writes. [`write`] takes no lock, needs no memory and makes three system calls, so it may run in a panic hook and in a signal
//! handler. [`rotate`] takes the file away from under the writers: it puts a new one in its place and waits until none of them can
//! still have the old one in hand. For that each writer signs in to one of two counters. One counter would do, but under a storm of
//! panics it might never be seen at zero; of the two, that which new writers do not sign in to any more runs dry.

#![allow(unsafe_code, reason = "a descriptor shared with signal handlers; each block proves itself")]

use std::ffi::CString;
use std::io::{self, IoSlice};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::sys::uio::writev;
use nix::unistd;

/// Bytes of one file; its room is reserved, so that a full disk does not keep a crash from being told.
pub(super) const FILE_MOST: u64 = 256 * 1024;
/// Daemons that close what they inherited close low descriptors.
const DESCRIPTOR_LEAST: i32 = 64;
/// How long a rotation waits for writers that are under way. They need microseconds.
const WRITERS_WAIT: Duration = Duration::from_secs(1);

/// An open file. Never changed after it is published.
pub(super) struct Target {
    file: ManuallyDrop<OwnedFd>,
    device: u64,
    inode: u64,
    path: CString,
    /// Its first record, for the case that the file has to be made again.
    context: Box<[u8]>,
    /// Bytes given to it so far.
    written: AtomicU64,
}

static TARGET: AtomicPtr<Target> = AtomicPtr::new(ptr::null_mut());
/// Which of the two counters new writers sign in to.
static SIDE: AtomicUsize = AtomicUsize::new(0);
static WRITERS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
/// Records that could not be written; the next that can tells of them.
static MISSED: AtomicU64 = AtomicU64::new(0);
/// Rotations, one after another. No writer ever takes it.
static ROTATION: Mutex<()> = Mutex::new(());

/// Appends one record with one system call. Async-signal-safe. `false`, and counted, if there is no file or no room.
pub(super) fn write(record: &[u8]) -> bool {
    let written = with_target(|target| target.append(record)).unwrap_or(false);
    if !written {
        count_missed();
    }
    written
}

/// Counts a record that nobody will read.
pub(super) fn count_missed() {
    MISSED.fetch_add(1, Ordering::Relaxed);
}

/// Whether there is a file to write to.
pub(super) fn is_armed() -> bool {
    !TARGET.load(Ordering::Acquire).is_null()
}

/// Whether the file holds more than its context.
pub(super) fn holds_words() -> bool {
    with_target(|target| target.written.load(Ordering::Relaxed) > target.context.len() as u64).unwrap_or(false)
}

/// Whether somebody is writing at this moment.
#[cfg(feature = "crash-signals")]
pub(super) fn has_writers() -> bool {
    WRITERS.iter().any(|count| count.load(Ordering::SeqCst) != 0)
}

/// Records that were missed since somebody last asked.
pub(super) fn take_missed() -> u64 {
    MISSED.swap(0, Ordering::Relaxed)
}

/// From now on records go to a new file at `path`, which begins with `context`. The file before it is complete when this returns; its
/// path is the answer, or `None` if there was none, or a writer stands still in the middle of it.
pub(super) fn rotate(path: &Path, context: &[u8]) -> io::Result<Option<PathBuf>> {
    let _alone = ROTATION.lock().unwrap_or_else(PoisonError::into_inner);
    let fresh = Box::into_raw(Box::new(Target::create(path, context)?));
    Ok(retire(TARGET.swap(fresh, Ordering::SeqCst)))
}

fn retire(old: *mut Target) -> Option<PathBuf> {
    if old.is_null() || !writers_are_gone() {
        // A writer that stands still (a stopped thread, a debugger) may go on one day: it keeps what it has.
        return None;
    }
    // SAFETY: made by `Box::into_raw` in `rotate`, unpublished by the swap, and no writer holds it: whoever signed in before the swap
    // has signed out, and whoever signs in later loads the new pointer. Rotations exclude each other.
    let old = unsafe { Box::from_raw(old) };
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(old.path.as_bytes())))
}

/// Waits until all who may have loaded the old pointer have signed out. Twice, because a writer may have read `SIDE` before the first
/// flip and sign in after it.
fn writers_are_gone() -> bool {
    let until = Instant::now() + WRITERS_WAIT;
    for _ in 0..2 {
        let side = SIDE.fetch_xor(1, Ordering::SeqCst) & 1;
        while WRITERS.get(side).is_some_and(|count| count.load(Ordering::SeqCst) != 0) {
            if Instant::now() >= until {
                return false;
            }
            std::thread::yield_now();
        }
    }
    true
}

pub(super) fn with_target<T>(call: impl FnOnce(&Target) -> T) -> Option<T> {
    let writers = WRITERS.get(SIDE.load(Ordering::SeqCst) & 1)?;
    writers.fetch_add(1, Ordering::SeqCst);
    let target = TARGET.load(Ordering::SeqCst);
    // SAFETY: null, or published by `rotate` and not freed before we sign out below.
    let answer = unsafe { target.as_ref() }.map(call);
    writers.fetch_sub(1, Ordering::SeqCst);
    answer
}

impl Target {
    fn create(path: &Path, context: &[u8]) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let low = open_file(&path, OFlag::O_EXCL)?;
        let file = match fcntl(&low, FcntlArg::F_DUPFD_CLOEXEC(DESCRIPTOR_LEAST)) {
            // SAFETY: a descriptor that `fcntl` has just made for us.
            Ok(high) => unsafe { OwnedFd::from_raw_fd(high) },
            // A process may not be allowed descriptors so high.
            Err(_) => low,
        };
        let status = fstat(&file)?;
        #[cfg(target_os = "linux")]
        {
            use nix::fcntl::{FallocateFlags, fallocate};
            // Not every file system can; then a full disk takes the last words, as it does without us.
            let _ = fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, FILE_MOST as i64);
        }
        let target = Self {
            device: widened(status.st_dev),
            inode: widened(status.st_ino),
            file: ManuallyDrop::new(file),
            path,
            context: context.into(),
            written: AtomicU64::new(0),
        };
        if !target.append(context) {
            return Err(io::Error::other("the file for crash reports takes no bytes"));
        }
        Ok(target)
    }

    /// One write of all of `record`, to our own file and to no other.
    pub(super) fn append(&self, record: &[u8]) -> bool {
        let len = record.len() as u64;
        let before = self.written.fetch_add(len, Ordering::Relaxed);
        let room = FILE_MOST.min(getrlimit(Resource::RLIMIT_FSIZE).map_or(FILE_MOST, |(soft, _)| soft));
        if before.saturating_add(len) > room {
            // Past the limit of the process the write would raise a signal that ends it with another status.
            self.written.fetch_sub(len, Ordering::Relaxed);
            return false;
        }
        if self.is_still_ours() {
            return write_all(&self.file, &[], record);
        }
        // The application closed or replaced our descriptor, or somebody removed the file. A new one under the same name begins with
        // the context, unless somebody did this before us.
        let Ok(file) = open_file(&self.path, OFlag::empty()) else { return false };
        let is_new = fstat(&file).is_ok_and(|status| status.st_size == 0);
        write_all(&file, if is_new { &self.context } else { &[] }, record)
    }

    /// Whether the descriptor leads to our file, and a reader can find that. A stranger's file must never get our bytes.
    fn is_still_ours(&self) -> bool {
        fstat(&*self.file).is_ok_and(|status| self.is_identity_of(&status) && status.st_nlink > 0)
    }

    fn is_our_descriptor(&self) -> bool {
        fstat(&*self.file).is_ok_and(|status| self.is_identity_of(&status))
    }

    fn is_identity_of(&self, status: &FileStat) -> bool {
        widened(status.st_dev) == self.device && widened(status.st_ino) == self.inode
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // A descriptor that somebody else has by now is not ours to close.
        if self.is_our_descriptor() {
            // SAFETY: dropped here only, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}

fn open_file(path: &CString, more: OFlag) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_APPEND | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | more;
    open(path.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
}

/// One call in all but rare cases: a short write (a full disk without reserved room) is topped up once, and if that fails the reader
/// passes over the torn record.
fn write_all(file: &OwnedFd, first: &[u8], then: &[u8]) -> bool {
    let (mut first, mut then) = (first, then);
    for _ in 0..4 {
        let written = match first {
            [] => unistd::write(file, then),
            _ => writev(file, &[IoSlice::new(first), IoSlice::new(then)]),
        };
        match written {
            Ok(written) => {
                let of_first = written.min(first.len());
                first = first.get(of_first..).unwrap_or_default();
                then = then.get(written.saturating_sub(of_first)..).unwrap_or_default();
                if first.is_empty() && then.is_empty() {
                    return true;
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
    false
}

/// These have different widths on different systems.
fn widened(value: impl TryInto<u64>) -> u64 {
    value.try_into().unwrap_or(u64::MAX)
}
