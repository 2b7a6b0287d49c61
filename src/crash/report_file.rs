//! The report file of this process: crash records are appended to it, and it is rotated away when they are to be read.
//!
//! Everything that a crash needs is prepared while the process is healthy: the file is open, its disk space is
//! allocated, and its first record describes the process. [`write`] takes no lock, allocates nothing and makes three
//! system calls, so that it may run in a panic hook and in a signal handler.
//!
//! A signal that an earlier handler may repair is not appended. Its record goes into one of a few fixed slots near the
//! beginning of the file ([`write_provisional`]), where the next one overwrites it: a managed runtime repairs thousands
//! of faults a second and then dies of one of them. A slot belongs to the thread that wrote to it until that thread
//! returns from the earlier handler. If it never returns, the slot is reused at the thread's next signal, or freed when
//! the reader finds that the process has outlived the grace period. So neither survived signals, nor panics, nor forked
//! children can use up the space that is reserved for the record of the process's end.
//!
//! [`rotate`] installs a new file and then waits until no writer can still hold the old one. Each writer registers in
//! one of two counters. With a single counter, a storm of panics could keep it above zero for ever; of two counters,
//! the one that new writers no longer use drains.

#![allow(unsafe_code, reason = "a descriptor shared with signal handlers; each block proves itself")]

use std::ffi::CString;
use std::io::{self, IoSlice};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::sys::uio::{pwrite, writev};
use nix::unistd;

use super::format::{HEADER, Kind, Writer};
use super::process;

/// Bytes of the file that only the signal that ends the process may use: two records of a signal.
pub(super) const RESERVED_FOR_SIGNALS: u64 = 48 * 1024;
/// The file gets a descriptor of at least this number, since daemons that close inherited descriptors close the low
/// ones.
const DESCRIPTOR_LEAST: i32 = 64;
/// How long a rotation waits for writers that are in the middle of a write. A write takes microseconds.
const WRITERS_WAIT: Duration = Duration::from_secs(1);

/// What a record is about, which decides how much of the file it may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quota {
    /// A panic. The process may survive it and panic again.
    Panic,
    /// A signal that ends the process, or its exit.
    End,
}

impl Quota {
    /// The file may be at most this long with the record in it, if its size is limited to `room` bytes. A forked child
    /// writes to its parent's file, and the number of children is unbounded, so a child gets less.
    fn limit(self, is_child: bool, room: u64) -> u64 {
        let kept = room.saturating_mul(RESERVED_FOR_SIGNALS) / FILE_MOST;
        match (self, is_child) {
            (Quota::Panic, true) => room / 2,
            (Quota::Panic, false) | (Quota::End, true) => room.saturating_sub(kept),
            (Quota::End, false) => room,
        }
    }
}

/// An open report file. Immutable after it is published in [`CURRENT`], atomics aside.
pub(super) struct ReportFile {
    /// Opened with `O_APPEND`: takes records at the current end of the file.
    file: ManuallyDrop<OwnedFd>,
    /// Takes writes to the slots. `None` if the file has no slots, or no descriptor was available.
    fixed: Option<ManuallyDrop<OwnedFd>>,
    device: u64,
    inode: u64,
    path: CString,
    /// The first record and the empty slots, used if the file has to be created again.
    beginning: Box<[u8]>,
    slots_at: u64,
    slots: Slots,
    /// Bytes that this process has written to it.
    written: AtomicU64,
}

static CURRENT: AtomicPtr<ReportFile> = AtomicPtr::new(ptr::null_mut());
/// Which of the two counters in [`WRITERS`] new writers use.
static SIDE: AtomicUsize = AtomicUsize::new(0);
static WRITERS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
/// Records that could not be written. The next record that is written reports the number.
static MISSED: AtomicU64 = AtomicU64::new(0);
/// Serializes rotations. Writers never take it.
static ROTATION: Mutex<()> = Mutex::new(());

/// Appends one record with one system call. Async-signal-safe. Returns `false` and counts the record as missed if no
/// file is open or it has no room.
pub(super) fn write(record: &[u8], quota: Quota) -> bool {
    let written = with_file(|file| file.append(record, quota)).unwrap_or(false);
    if !written {
        count_missed();
    }
    written
}

/// Which record of a signal was written before it is passed on.
#[cfg(feature = "crash-signals")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    /// None, because faults at this site are usually repaired.
    None,
    /// A provisional record, which can be marked as survived.
    Provisional(Provisional),
    /// A final record, or none was possible.
    Final,
}

/// Writes the padded record `number` of a signal that may be repaired into a slot. Async-signal-safe. `None` if the
/// file has no slots, or they cannot be written.
#[cfg(feature = "crash-signals")]
pub(super) fn write_provisional(record: &[u8], thread: i32, number: u64) -> Option<Recorded> {
    with_file(|file| {
        if !file.has_slots() {
            return None;
        }
        // If other threads use all slots, they are inside repairing handlers as well, so this signal is unlikely to be
        // the one that is not repaired.
        let Some(slot) = file.slots.claim(thread) else { return Some(Recorded::Final) };
        let provisional = Provisional { slot, number };
        if !file.put(Slots::record_at(slot), record) {
            file.slots.release(slot, thread);
            return None;
        }
        file.slots.note(provisional, mark_sum(number), process::uptime_nanos());
        Some(Recorded::Provisional(provisional))
    })
    .flatten()
}

/// The checksum of the mark that says that the process survived this record.
fn mark_sum(number: u64) -> u32 {
    Writer::new(&mut [0; HEADER], Kind::Repaired, 0, number).checksum().unwrap_or(0)
}

/// Marks a provisional record of this thread as survived, if it is still in its slot. Async-signal-safe. Runs on the
/// stack of the program's own handler, which may be the eight kilobytes that std gives a thread. So it computes no
/// hash: the checksum of the mark was noted with the record.
#[cfg(feature = "crash-signals")]
pub(super) fn mark_survived(provisional: Provisional, thread: i32) {
    with_file(|file| {
        if let Some(sum) = file.slots.mark_sum_of(provisional, thread) {
            file.mark_survived(provisional, thread, sum);
        }
    });
}

/// Whether a slot has an unmarked record of this thread, of which the process may be dying. Async-signal-safe.
#[cfg(feature = "crash-signals")]
pub(super) fn has_provisional_of(thread: i32) -> bool {
    with_file(|file| file.slots.has_pending_of(thread)).unwrap_or(false)
}

/// Marks all provisional records older than `grace` as survived. Returns whether younger ones remain.
pub(super) fn confirm_survived(grace: Duration) -> bool {
    let grace = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
    let then = process::uptime_nanos().saturating_sub(grace);
    let has_younger = with_file(|file| {
        // The slot may have another record by the time it is marked, so the checksum noted there is not used.
        let old = file.slots.written_by(then);
        old.for_each(|(provisional, owner)| file.mark_survived(provisional, owner, mark_sum(provisional.number)));
        file.slots.pending().next().is_some()
    });
    has_younger.unwrap_or(false)
}

/// Counts a record that will not be read.
pub(super) fn count_missed() {
    MISSED.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn is_armed() -> bool {
    !CURRENT.load(Ordering::Acquire).is_null()
}

/// Whether the file holds appended records or unmarked provisional ones.
pub(super) fn has_anything_to_report() -> bool {
    has_records() || with_file(|file| file.slots.pending().next().is_some()).unwrap_or(false)
}

/// Whether records were appended after the beginning.
pub(super) fn has_records() -> bool {
    with_file(|file| file.written.load(Ordering::Relaxed) > file.beginning.len() as u64).unwrap_or(false)
}

/// Whether a thread is writing at this moment.
#[cfg(feature = "crash-signals")]
pub(super) fn has_writers() -> bool {
    WRITERS.iter().any(|count| count.load(Ordering::SeqCst) != 0)
}

/// Returns the number of missed records and resets it.
pub(super) fn take_missed() -> u64 {
    MISSED.swap(0, Ordering::Relaxed)
}

/// Directs records to a new file at `path` that begins with `context`. Returns the path of the file before it, which is
/// complete when this returns; `None` if there was none, or if a writer is stopped in the middle of a write to it.
pub(super) fn rotate(path: &Path, context: &[u8]) -> io::Result<Option<PathBuf>> {
    let _alone = ROTATION.lock().unwrap_or_else(PoisonError::into_inner);
    let fresh = Box::into_raw(Box::new(ReportFile::create(path, context)?));
    Ok(retire(CURRENT.swap(fresh, Ordering::SeqCst)))
}

fn retire(old: *mut ReportFile) -> Option<PathBuf> {
    if old.is_null() || !writers_are_gone() {
        // A stopped thread (a debugger, SIGSTOP) may continue one day, so the file it writes to is leaked.
        return None;
    }
    // SAFETY: created by `Box::into_raw` in `rotate` and unpublished by the swap. No writer holds it: a writer that
    // registered before the swap has left, and one that registers later loads the new pointer. `ROTATION` serializes
    // rotations.
    let old = unsafe { Box::from_raw(old) };
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(old.path.as_bytes())))
}

/// Waits until all writers that may have loaded the old pointer have left. Flips the side twice, because a writer may
/// read `SIDE` before the first flip and register after it.
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

pub(super) fn with_file<T>(call: impl FnOnce(&ReportFile) -> T) -> Option<T> {
    let writers = WRITERS.get(SIDE.load(Ordering::SeqCst) & 1)?;
    writers.fetch_add(1, Ordering::SeqCst);
    let file = CURRENT.load(Ordering::SeqCst);
    // SAFETY: null, or published by `rotate`, which frees it only after this writer has left (the `fetch_sub` below).
    let answer = unsafe { file.as_ref() }.map(call);
    writers.fetch_sub(1, Ordering::SeqCst);
    answer
}

impl ReportFile {
    fn create(path: &Path, context: &[u8]) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let file = high(open_file(&path, OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_APPEND)?);
        let status = fstat(&file)?;
        #[cfg(target_os = "linux")]
        {
            use nix::fcntl::{FallocateFlags, fallocate};
            // Some file systems cannot do it. Then a full disk prevents crash reports.
            let _ = fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, FILE_MOST as i64);
        }
        let mut beginning = context.to_vec();
        let mut fixed = None;
        if cfg!(feature = "crash-signals") && size_limit() >= FILE_MOST {
            beginning.extend(Slots::empty());
            fixed = open_file(&path, OFlag::empty()).ok().map(high).map(ManuallyDrop::new);
        }
        let file = Self {
            device: widened(status.st_dev),
            inode: widened(status.st_ino),
            file: ManuallyDrop::new(file),
            fixed,
            path,
            beginning: beginning.into(),
            slots_at: context.len() as u64,
            slots: Slots::new(),
            written: AtomicU64::new(0),
        };
        if !file.append(&file.beginning, Quota::End) {
            return Err(io::Error::other("nothing can be written to the new crash report file"));
        }
        Ok(file)
    }

    /// Writes all of `record` with one call, to our own file only.
    pub(super) fn append(&self, record: &[u8], quota: Quota) -> bool {
        let len = record.len() as u64;
        // A write past the process's file size limit would raise SIGXFSZ and so change the exit status.
        let room = quota.limit(process::is_forked_child(), size_limit());
        // Our own count separates threads that write at once; the file's length includes what other processes wrote.
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
        // The application closed or replaced our descriptor, or the file was removed. The file is created again under
        // the same name with the same beginning, unless another writer has done so already.
        let Ok(file) = open_file(&self.path, OFlag::O_CREAT | OFlag::O_APPEND) else { return false };
        match fstat(&file).map(|status| widened(status.st_size)) {
            Ok(0) => has_room(self.beginning.len() as u64) && write_all(&file, &self.beginning, record),
            Ok(size) => has_room(size) && write_all(&file, &[], record),
            Err(_) => false,
        }
    }

    #[cfg(feature = "crash-signals")]
    fn has_slots(&self) -> bool {
        self.beginning.len() as u64 > self.slots_at
    }

    /// Writes into the slots, of our own file only, and only if the process may write a file of full size.
    fn put(&self, at: u64, bytes: &[u8]) -> bool {
        let is_ours = |status: FileStat| self.is_identity_of(&status) && status.st_nlink > 0;
        let Ok(at) = i64::try_from(self.slots_at.saturating_add(at)) else { return false };
        if size_limit() < FILE_MOST {
            return false;
        }
        if let Some(fixed) = self.fixed.as_ref().filter(|fixed| fstat(&***fixed).is_ok_and(is_ours)) {
            return pwrite(&**fixed, bytes, at) == Ok(bytes.len());
        }
        // The application closed or replaced our descriptor.
        open_file(&self.path, OFlag::empty())
            .is_ok_and(|file| fstat(&file).is_ok_and(is_ours) && pwrite(&file, bytes, at) == Ok(bytes.len()))
    }

    fn mark_survived(&self, provisional: Provisional, owner: i32, sum: u32) {
        let mut mark = [0; HEADER];
        let mark = Writer::new(&mut mark, Kind::Repaired, 0, provisional.number).finish_with(sum);
        if let Some(mark) = mark {
            self.put(Slots::mark_at(provisional.slot), mark);
        }
        self.slots.release(provisional.slot, owner);
    }

    fn is_our_descriptor(&self, descriptor: impl AsFd) -> bool {
        fstat(descriptor).is_ok_and(|status| self.is_identity_of(&status))
    }

    fn is_identity_of(&self, status: &FileStat) -> bool {
        widened(status.st_dev) == self.device && widened(status.st_ino) == self.inode
    }
}

impl Drop for ReportFile {
    fn drop(&mut self) {
        // A descriptor number that now refers to another file is not ours to close.
        let (is_file_ours, is_fixed_ours) = (
            self.is_our_descriptor(&*self.file),
            self.fixed.as_ref().is_some_and(|fixed| self.is_our_descriptor(&**fixed)),
        );
        if is_file_ours {
            // SAFETY: dropped only here, and not used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
        if let Some(fixed) = self.fixed.as_mut().filter(|_| is_fixed_ours) {
            // SAFETY: as above.
            unsafe { ManuallyDrop::drop(fixed) };
        }
    }
}

/// Duplicates the descriptor to a number at or above [`DESCRIPTOR_LEAST`].
fn high(low: OwnedFd) -> OwnedFd {
    match fcntl(&low, FcntlArg::F_DUPFD_CLOEXEC(DESCRIPTOR_LEAST)) {
        // SAFETY: a new descriptor from `fcntl`, owned by nobody else.
        Ok(high) => unsafe { OwnedFd::from_raw_fd(high) },
        // The process's limit may not allow numbers this high.
        Err(_) => low,
    }
}

fn open_file(path: &CString, more: OFlag) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | more;
    open(path.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
}

/// Converts to `u64`; the fields of `stat` have different widths on different systems.
fn widened(value: impl TryInto<u64>) -> u64 {
    value.try_into().unwrap_or(u64::MAX)
}

/// Threads that can be inside earlier handlers at once, each with a slot.
const SLOTS: usize = 8;
/// Bytes of a record in a slot. Breadcrumbs fill what is left of it.
pub(super) const PROVISIONAL_BYTES: usize = 6 * 1024;
/// A slot is a mark, followed by a record.
const SLOT_BYTES: usize = HEADER + PROVISIONAL_BYTES;

const FREE: i32 = 0;

#[derive(Debug)]
struct Slot {
    /// The thread that owns the slot, or [`FREE`].
    owner: AtomicI32,
    /// Number of the record in the slot while the process may be dying of it; otherwise 0.
    number: AtomicU64,
    /// When the record was written, in [`process::uptime_nanos`].
    written_at: AtomicU64,
    /// Checksum of the mark that says that the process survived the record.
    #[cfg_attr(not(feature = "crash-signals"), allow(dead_code, reason = "read by the signal handler only"))]
    mark_sum: AtomicU32,
}

/// The state of the slots of one file, in memory.
#[derive(Debug)]
pub(super) struct Slots([Slot; SLOTS]);

/// A record in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Provisional {
    pub(super) slot: usize,
    pub(super) number: u64,
}

impl Slots {
    pub(super) const fn new() -> Self {
        Self(
            [const {
                Slot {
                    owner: AtomicI32::new(FREE),
                    number: AtomicU64::new(0),
                    written_at: AtomicU64::new(0),
                    mark_sum: AtomicU32::new(0),
                }
            }; SLOTS],
        )
    }

    /// The initial bytes of the slots: marks of no record, and reserved space.
    pub(super) fn empty() -> Vec<u8> {
        let mut bytes = vec![0; SLOTS * SLOT_BYTES];
        for slot in bytes.chunks_exact_mut(SLOT_BYTES) {
            let (mark, record) = slot.split_at_mut(HEADER);
            Writer::new(mark, Kind::Repaired, 0, 0).finish();
            Writer::padded(record, Kind::Reserved, 0, 0).finish();
        }
        bytes
    }

    /// Offset of a slot's mark from the first slot.
    pub(super) fn mark_at(slot: usize) -> u64 {
        (slot * SLOT_BYTES) as u64
    }

    /// Offset of a slot's record from the first slot.
    #[cfg(feature = "crash-signals")]
    pub(super) fn record_at(slot: usize) -> u64 {
        (slot * SLOT_BYTES + HEADER) as u64
    }

    /// Claims a slot for this thread: the one it still owns, if it left an earlier handler by a jump, or a free one.
    #[cfg(feature = "crash-signals")]
    pub(super) fn claim(&self, thread: i32) -> Option<usize> {
        let own = self.0.iter().position(|slot| slot.owner.load(Ordering::Acquire) == thread);
        own.or_else(|| {
            self.0.iter().position(|slot| {
                slot.owner.compare_exchange(FREE, thread, Ordering::Acquire, Ordering::Relaxed).is_ok()
            })
        })
    }

    /// Notes that the record in the slot is complete, and the checksum of its mark.
    #[cfg(feature = "crash-signals")]
    pub(super) fn note(&self, provisional: Provisional, mark_sum: u32, now: u64) {
        if let Some(slot) = self.0.get(provisional.slot) {
            slot.mark_sum.store(mark_sum, Ordering::Relaxed);
            slot.written_at.store(now, Ordering::Relaxed);
            slot.number.store(provisional.number, Ordering::Release);
        }
    }

    /// Frees the slot if the thread owns it: the signal was survived, or nothing was written.
    pub(super) fn release(&self, at: usize, thread: i32) {
        if let Some(slot) = self.0.get(at).filter(|slot| slot.owner.load(Ordering::Acquire) == thread) {
            slot.number.store(0, Ordering::Relaxed);
            slot.owner.store(FREE, Ordering::Release);
        }
    }

    /// The checksum noted with this record of this thread, if it is still in the slot.
    #[cfg(feature = "crash-signals")]
    fn mark_sum_of(&self, provisional: Provisional, thread: i32) -> Option<u32> {
        let slot = self.0.get(provisional.slot)?;
        let is_held =
            slot.owner.load(Ordering::Acquire) == thread && slot.number.load(Ordering::Acquire) == provisional.number;
        is_held.then(|| slot.mark_sum.load(Ordering::Relaxed))
    }

    /// The records of which the process may be dying.
    pub(super) fn pending(&self) -> impl Iterator<Item = Provisional> {
        self.0.iter().zip(0..).filter_map(|(slot, at)| {
            let number = slot.number.load(Ordering::Acquire);
            (number != 0).then_some(Provisional { slot: at, number })
        })
    }

    /// Whether one of them belongs to this thread.
    #[cfg(feature = "crash-signals")]
    pub(super) fn has_pending_of(&self, thread: i32) -> bool {
        let is_pending = |slot: &Slot| slot.number.load(Ordering::Acquire) != 0;
        self.0.iter().any(|slot| slot.owner.load(Ordering::Acquire) == thread && is_pending(slot))
    }

    /// The pending records, with their owners, that were written at or before `then`.
    pub(super) fn written_by(&self, then: u64) -> impl Iterator<Item = (Provisional, i32)> {
        self.pending().filter_map(move |provisional| {
            let slot = self.0.get(provisional.slot)?;
            let owner = slot.owner.load(Ordering::Acquire);
            (slot.written_at.load(Ordering::Relaxed) <= then).then_some((provisional, owner))
        })
    }
}

/// Maximum length of a report file. The disk space is allocated at creation, so that a full disk does not prevent a
/// crash report.
pub(super) const FILE_MOST: u64 = 256 * 1024;

/// The maximum length that this process may write: [`FILE_MOST`] or its file size limit.
pub(super) fn size_limit() -> u64 {
    getrlimit(Resource::RLIMIT_FSIZE).map_or(FILE_MOST, |(soft, _)| FILE_MOST.min(soft))
}

/// Writes both parts, with one call except after a short write (a full disk without allocated space). A record that
/// stays incomplete is skipped by the reader.
pub(super) fn write_all(file: &OwnedFd, first: &[u8], then: &[u8]) -> bool {
    let write = || write_whole(file, first, then);
    // If the process has a file size limit, other writers to the file may have reached it since the check.
    if size_limit() < FILE_MOST { without_sigxfsz(write) } else { write() }
}

/// Runs `write` with SIGXFSZ blocked and discards the signal that a write past the file size limit raises, since its
/// default action ends the process.
#[cfg(target_os = "linux")]
fn without_sigxfsz(write: impl FnOnce() -> bool) -> bool {
    use nix::libc;
    use nix::sys::signal::{SigSet, SigmaskHow, Signal};

    let (mut it, mut before) = (SigSet::empty(), SigSet::empty());
    it.add(Signal::SIGXFSZ);
    if nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&it), Some(&mut before)).is_err() {
        return false;
    }
    let is_written = write();
    if !is_written && !before.contains(Signal::SIGXFSZ) {
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: consumes a pending signal, if there is one; both structures are ours.
        unsafe { libc::sigtimedwait(it.as_ref(), std::ptr::null_mut(), &at_once) };
    }
    let _ = nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    is_written
}

#[cfg(not(target_os = "linux"))]
fn without_sigxfsz(write: impl FnOnce() -> bool) -> bool {
    write()
}

fn write_whole(file: &OwnedFd, first: &[u8], then: &[u8]) -> bool {
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

static READER: AtomicPtr<Thread> = AtomicPtr::new(ptr::null_mut());
static HAS_WRITTEN: AtomicBool = AtomicBool::new(false);

/// Sets the thread that is unparked after each record, until another one is set. Each call leaks one handle, which a
/// writer may be using.
pub(crate) fn set_reader(reader: Thread) {
    READER.store(Box::into_raw(Box::new(reader)), Ordering::Release);
}

/// Parks until a record was written. Uses no timer.
pub(crate) fn wait_until_written() {
    while !take_written() {
        std::thread::park();
    }
}

/// Whether a record was written since the last call.
pub(crate) fn take_written() -> bool {
    HAS_WRITTEN.swap(false, Ordering::SeqCst)
}

/// Makes the next [`take_written`] return true, without waking the reader.
pub(super) fn note_written() {
    HAS_WRITTEN.store(true, Ordering::SeqCst);
}

/// Makes the reader look for new records. Async-signal-safe: an atomic store and, if the thread sleeps, one system
/// call.
pub(crate) fn wake_reader() {
    HAS_WRITTEN.store(true, Ordering::SeqCst);
    // SAFETY: null, or leaked by `set_reader` and so valid for ever.
    if let Some(reader) = unsafe { READER.load(Ordering::Acquire).as_ref() } {
        reader.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::{Tag, scan};
    use super::*;

    #[test]
    fn empty_slots_are_valid_records() {
        let scanned = scan(&Slots::empty());
        assert_eq!((scanned.records.len(), scanned.damaged_bytes), (2 * SLOTS, 0));
    }

    #[test]
    fn a_padded_record_always_has_the_length_of_its_slot() {
        for fields in 0..20 {
            let mut buffer = [7; 300];
            let mut writer = Writer::padded(&mut buffer, Kind::Signal, 0, 1);
            (0..fields).for_each(|value| writer.number(Tag::Pid, value));
            let record = writer.finish().unwrap();
            let scanned = scan(record);
            assert_eq!((record.len(), scanned.records.len(), scanned.damaged_bytes), (300, 1, 0), "{fields}");
        }
    }

    #[cfg(feature = "crash-signals")]
    #[test]
    fn a_thread_has_one_slot_and_keeps_it_until_released() {
        let slots = Slots::new();
        let all: Vec<_> = (1..=9).filter_map(|thread| slots.claim(thread)).collect();
        assert_eq!(all, (0..SLOTS).collect::<Vec<_>>());
        assert_eq!(slots.claim(2), Some(1));
        slots.release(1, 3);
        assert_eq!(slots.claim(9), None, "thread 3 does not own the slot");
        slots.release(1, 2);
        assert_eq!(slots.claim(9), Some(1));
    }

    #[cfg(feature = "crash-signals")]
    #[test]
    fn old_provisional_records_are_survived_and_young_ones_pending() {
        let slots = Slots::new();
        for (thread, at) in [(1, 10), (2, 20)] {
            let slot = slots.claim(thread).unwrap();
            slots.note(Provisional { slot, number: thread as u64 + 100 }, 0, at);
        }
        let survived: Vec<_> = slots.written_by(15).collect();
        assert_eq!(survived, [(Provisional { slot: 0, number: 101 }, 1)]);
        slots.release(0, 1);
        assert_eq!(slots.pending().collect::<Vec<_>>(), [Provisional { slot: 1, number: 102 }]);
        assert!(slots.has_pending_of(2) && !slots.has_pending_of(1));
        let is_held = |number| slots.mark_sum_of(Provisional { slot: 1, number }, 2).is_some();
        assert!(is_held(102) && !is_held(9));
    }
}
