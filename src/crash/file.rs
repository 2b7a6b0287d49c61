//! The file that last words go into, and the one write that puts them there.
//!
//! Everything a crash needs was prepared when the process was well: the file is open, its room is reserved, and its first record says
//! who writes. [`write`] takes no lock, needs no memory and makes three system calls, so it may run in a panic hook and in a signal
//! handler. What somebody may repair does not go to the end of the file but into a place near its beginning ([`hold`]), and the end of
//! the file is kept for what the process dies of: no number of survived signals and panics, and no child, can fill the file before
//! that. [`rotate`] takes the file away from under the writers: it puts a new one in its place and waits until none of them can
//! still have the old one in hand. For that each writer signs in to one of two counters. One counter would do, but under a storm of
//! panics it might never be seen at zero; of the two, that which new writers do not sign in to any more runs dry.

#![allow(unsafe_code, reason = "a descriptor shared with signal handlers; each block proves itself")]

use std::ffi::CString;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::sys::uio::pwrite;

use super::format::{HEADER, Kind, Writer};
use super::process;
use super::provisional::{Held, Places};
use super::write::{FILE_MOST, room_of_this_process, write_all};

/// Of these, what only the signal that ends the process gets: two records of it.
pub(super) const KEPT_FOR_SIGNALS: u64 = 48 * 1024;
/// Daemons that close what they inherited close low descriptors.
const DESCRIPTOR_LEAST: i32 = 64;
/// How long a rotation waits for writers that are under way. They need microseconds.
const WRITERS_WAIT: Duration = Duration::from_secs(1);

/// What a record is about, and so how much of the file it may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// A panic: the process may survive it, and the next.
    Panic,
    /// A signal that ends the process, or its exit.
    End,
}

impl Share {
    /// The file may be so long when the record is in it, where the process may make one of `room` bytes. Children write into the file of
    /// their parent, and there may be any number of them.
    fn limit(self, is_child: bool, room: u64) -> u64 {
        let kept = room.saturating_mul(KEPT_FOR_SIGNALS) / FILE_MOST;
        match (self, is_child) {
            (Share::Panic, true) => room / 2,
            (Share::Panic, false) | (Share::End, true) => room.saturating_sub(kept),
            (Share::End, false) => room,
        }
    }
}

/// An open file. Never changed after it is published.
pub(super) struct Target {
    /// Takes records at its end, wherever that is by then.
    file: ManuallyDrop<OwnedFd>,
    /// Takes bytes where the places are. `None` if there was no descriptor for it, or there are none.
    fixed: Option<ManuallyDrop<OwnedFd>>,
    device: u64,
    inode: u64,
    path: CString,
    /// Its first record and the empty places, for the case that the file has to be made again.
    beginning: Box<[u8]>,
    /// Where the places begin.
    places_at: u64,
    places: Places,
    /// Bytes given to it so far, by this process.
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
pub(super) fn write(record: &[u8], share: Share) -> bool {
    let written = with_target(|target| target.append(record, share)).unwrap_or(false);
    if !written {
        count_missed();
    }
    written
}

/// What came of [`hold`].
#[cfg(feature = "crash-signals")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holding {
    Held(Held),
    /// Other threads have all places.
    AllTaken,
    /// There are no places, or they cannot be written to.
    Impossible,
}

/// Writes a padded record of that number into a place of the file, as a signal that somebody may repair. Async-signal-safe.
#[cfg(feature = "crash-signals")]
pub(super) fn hold(record: &[u8], thread: i32, number: u64) -> Holding {
    let holding = with_target(|target| {
        if !target.has_places() {
            return Holding::Impossible;
        }
        let Some(place) = target.places.claim(thread) else { return Holding::AllTaken };
        let held = Held { place, number };
        if !target.put(Places::record_at(place), record) {
            target.places.release(place, thread);
            return Holding::Impossible;
        }
        target.places.note(held, process::uptime_nanos());
        Holding::Held(held)
    });
    holding.unwrap_or(Holding::Impossible)
}

/// Notes in the file that the process lived on after what this thread had [held](hold). Async-signal-safe.
#[cfg(feature = "crash-signals")]
pub(super) fn mark_survived(held: Held, thread: i32) {
    with_target(|target| {
        if target.places.holds(held, thread) {
            target.mark_survived(held, thread);
        }
    });
}

/// Whether this thread holds something that the process may be dying of. Async-signal-safe.
#[cfg(feature = "crash-signals")]
pub(super) fn holds_of(thread: i32) -> bool {
    with_target(|target| target.places.has_pending_of(thread)).unwrap_or(false)
}

/// The same of all that was held for longer than `grace`. Whether there is something that was held since.
pub(super) fn settle(grace: Duration) -> bool {
    let grace = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
    let then = process::uptime_nanos().saturating_sub(grace);
    let settled = with_target(|target| {
        target.places.written_by(then).for_each(|(held, owner)| target.mark_survived(held, owner));
        target.places.pending().next().is_some()
    });
    settled.unwrap_or(false)
}

/// Counts a record that nobody will read.
pub(super) fn count_missed() {
    MISSED.fetch_add(1, Ordering::Relaxed);
}

/// Whether there is a file to write to.
pub(super) fn is_armed() -> bool {
    !TARGET.load(Ordering::Acquire).is_null()
}

/// Whether the file holds something to tell.
pub(super) fn holds_words() -> bool {
    holds_records() || with_target(|target| target.places.pending().next().is_some()).unwrap_or(false)
}

/// Whether there are records behind its beginning.
pub(super) fn holds_records() -> bool {
    with_target(|target| target.written.load(Ordering::Relaxed) > target.beginning.len() as u64).unwrap_or(false)
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
        let file = high(open_file(&path, OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_APPEND)?);
        let status = fstat(&file)?;
        #[cfg(target_os = "linux")]
        {
            use nix::fcntl::{FallocateFlags, fallocate};
            // Not every file system can; then a full disk takes the last words, as it does without us.
            let _ = fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, FILE_MOST as i64);
        }
        let mut beginning = context.to_vec();
        let mut fixed = None;
        if cfg!(feature = "crash-signals") && room_of_this_process() >= FILE_MOST {
            beginning.extend(Places::empty());
            fixed = open_file(&path, OFlag::empty()).ok().map(high).map(ManuallyDrop::new);
        }
        let target = Self {
            device: widened(status.st_dev),
            inode: widened(status.st_ino),
            file: ManuallyDrop::new(file),
            fixed,
            path,
            beginning: beginning.into(),
            places_at: context.len() as u64,
            places: Places::new(),
            written: AtomicU64::new(0),
        };
        if !target.append(&target.beginning, Share::End) {
            return Err(io::Error::other("the file for crash reports takes no bytes"));
        }
        Ok(target)
    }

    /// One write of all of `record`, to our own file and to no other.
    pub(super) fn append(&self, record: &[u8], share: Share) -> bool {
        let len = record.len() as u64;
        // Past the limit of the process the write would raise a signal that ends it with another status.
        let room = share.limit(process::is_forked_child(), room_of_this_process());
        // Our own count tells threads that write at once from each other; what other processes wrote is in the length of the file.
        let before = self.written.fetch_add(len, Ordering::Relaxed);
        let has_room = |before: u64| before.saturating_add(len) <= room;
        let is_written = has_room(before) && self.append_to_what_is_there(record, has_room);
        if !is_written {
            self.written.fetch_sub(len, Ordering::Relaxed);
        }
        is_written
    }

    fn append_to_what_is_there(&self, record: &[u8], has_room: impl Fn(u64) -> bool) -> bool {
        let is_ours = |status: &FileStat| self.is_identity_of(status) && status.st_nlink > 0;
        if let Some(status) = fstat(&*self.file).ok().filter(is_ours) {
            return has_room(widened(status.st_size)) && write_all(&self.file, &[], record);
        }
        // The application closed or replaced our descriptor, or somebody removed the file. A new one under the same name begins as the
        // first did, unless somebody did this before us.
        let Ok(file) = open_file(&self.path, OFlag::O_CREAT | OFlag::O_APPEND) else { return false };
        match fstat(&file).map(|status| widened(status.st_size)) {
            Ok(0) => has_room(self.beginning.len() as u64) && write_all(&file, &self.beginning, record),
            Ok(size) => has_room(size) && write_all(&file, &[], record),
            Err(_) => false,
        }
    }

    #[cfg(feature = "crash-signals")]
    fn has_places(&self) -> bool {
        self.beginning.len() as u64 > self.places_at
    }

    /// Writes to the places. Only to our own file, and not where the process must not write.
    fn put(&self, at: u64, bytes: &[u8]) -> bool {
        let is_ours = |status: FileStat| self.is_identity_of(&status) && status.st_nlink > 0;
        let Ok(at) = i64::try_from(self.places_at.saturating_add(at)) else { return false };
        if room_of_this_process() < FILE_MOST {
            return false;
        }
        if let Some(fixed) = self.fixed.as_ref().filter(|fixed| fstat(&***fixed).is_ok_and(is_ours)) {
            return pwrite(&**fixed, bytes, at) == Ok(bytes.len());
        }
        // The application closed our descriptor.
        open_file(&self.path, OFlag::empty())
            .is_ok_and(|file| fstat(&file).is_ok_and(is_ours) && pwrite(&file, bytes, at) == Ok(bytes.len()))
    }

    fn mark_survived(&self, held: Held, owner: i32) {
        let mut mark = [0; HEADER];
        if let Some(mark) = Writer::new(&mut mark, Kind::Repaired, 0, held.number).finish() {
            self.put(Places::mark_at(held.place), mark);
        }
        self.places.release(held.place, owner);
    }

    fn is_our_descriptor(&self, descriptor: impl AsFd) -> bool {
        fstat(descriptor).is_ok_and(|status| self.is_identity_of(&status))
    }

    fn is_identity_of(&self, status: &FileStat) -> bool {
        widened(status.st_dev) == self.device && widened(status.st_ino) == self.inode
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // A descriptor that somebody else has by now is not ours to close.
        let (is_file_ours, is_fixed_ours) = (
            self.is_our_descriptor(&*self.file),
            self.fixed.as_ref().is_some_and(|fixed| self.is_our_descriptor(&**fixed)),
        );
        if is_file_ours {
            // SAFETY: dropped here only, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
        if let Some(fixed) = self.fixed.as_mut().filter(|_| is_fixed_ours) {
            // SAFETY: as above.
            unsafe { ManuallyDrop::drop(fixed) };
        }
    }
}

/// The same file by a number that is not among those that daemons close.
fn high(low: OwnedFd) -> OwnedFd {
    match fcntl(&low, FcntlArg::F_DUPFD_CLOEXEC(DESCRIPTOR_LEAST)) {
        // SAFETY: a descriptor that `fcntl` has just made for us.
        Ok(high) => unsafe { OwnedFd::from_raw_fd(high) },
        // A process may not be allowed descriptors so high.
        Err(_) => low,
    }
}

fn open_file(path: &CString, more: OFlag) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | more;
    open(path.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
}

/// These have different widths on different systems.
fn widened(value: impl TryInto<u64>) -> u64 {
    value.try_into().unwrap_or(u64::MAX)
}
