//! Open files and their directories: identity, reads and writes, syncs, and locks.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::libc;

use super::filesystem;
use super::fork::{self, CloseInChild, Identity};
#[cfg(feature = "inspect")]
use super::gate::Copied;
use super::gate::{Disk, Op, Verdict};
use super::map::Mapping;
#[cfg(feature = "inspect")]
use crate::sys::entropy::random_u64;

/// A directory and its identity when it was opened. While its path leads to another directory, or to none, a name there
/// says nothing about the queue's files, and nothing may be created, renamed or removed there.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    path: PathBuf,
    identity: Identity,
}

impl Home {
    /// The directory at `path`; symbolic links are followed.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let metadata = std::fs::metadata(path)?;
        Ok(Self { path: path.to_path_buf(), identity: Identity::of(&metadata) })
    }

    /// Fails with the reason if the path does not lead to the directory now. It may do so again at any time.
    pub(crate) fn check(&self) -> io::Result<()> {
        let metadata = std::fs::metadata(&self.path)?;
        if self.identity == Identity::of(&metadata) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "another directory is in its place"))
    }
}

/// How a file is opened: always close-on-exec, never through a symbolic link, never another user's file, new ones with
/// mode 0600.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    Existing,
    /// Must exist; read-only.
    ReadOnly,
    /// Must not exist.
    CreateNew,
    /// Created if missing.
    EnsureExists,
}

/// Attempts to lock a file while other processes hold a shared lock, which they take to find out whether it has an owner.
const SHARED_LOCK_ATTEMPTS: u32 = 20;
/// The wait between two such attempts.
const SHARED_LOCK_WAIT: Duration = Duration::from_millis(1);

/// An open file with the name and the identity that it had when it was opened.
#[derive(Debug)]
pub(crate) struct DiskFile {
    /// Closed only if its number still refers to this file: see [`DiskFile::metadata`].
    file: Arc<File>,
    path: PathBuf,
    disk: Disk,
    identity: Identity,
    /// The directory that it was opened in.
    home: Home,
    /// Set once the descriptor was found closed or used for something else. It stays set: the number may later refer to
    /// this file again, opened by another `DiskFile`.
    is_gone: AtomicBool,
}

/// What the name of an open file refers to now.
#[derive(Debug)]
pub(crate) enum Name {
    /// The open file.
    Same,
    /// Another file or none, in the directory that the file was opened in.
    Other,
    /// Unknown, with the reason: the directory is not where it was, or cannot be read.
    OutOfReach(io::Error),
}

impl DiskFile {
    fn of(file: Arc<File>, path: &Path, disk: &Disk) -> io::Result<Self> {
        let (identity, home) = (Identity::of(&file.metadata()?), Home::of(path.parent().unwrap_or(path))?);
        let (path, disk, is_gone) = (path.to_path_buf(), disk.clone(), AtomicBool::new(false));
        Ok(Self { file, path, disk, identity, home, is_gone })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    /// Bytes of its blocks on disk; less than its length if it is sparse.
    pub(crate) fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.blocks().saturating_mul(512))
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The directory that it was opened in.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// What its name refers to now.
    pub(crate) fn name(&self) -> Name {
        match std::fs::symlink_metadata(&self.path) {
            Ok(metadata) if self.identity == Identity::of(&metadata) => Name::Same,
            Err(error) if error.kind() != io::ErrorKind::NotFound => Name::OutOfReach(error),
            // A name in another directory is not this file's name.
            _ => self.home.check().map_or_else(Name::OutOfReach, |()| Name::Other),
        }
    }

    /// Whether both its name and its descriptor still refer to the file that was opened.
    pub(crate) fn is_same_file(&self) -> io::Result<bool> {
        if self.descriptor_is_ours().is_err() {
            return Ok(false);
        }
        match self.name() {
            Name::Same => Ok(true),
            Name::OutOfReach(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Name::Other | Name::OutOfReach(_) => Ok(false),
        }
    }

    /// Whether data written to it can be found again: by its name, or once its directory is reachable again.
    pub(crate) fn can_be_found(&self) -> io::Result<bool> {
        self.descriptor_is_ours()?;
        match self.name() {
            Name::Same => Ok(true),
            Name::Other => Ok(false),
            Name::OutOfReach(_) => Ok(!self.is_unlinked()?),
        }
    }

    /// Fills `out` from `offset`; fails if the file ends before.
    pub(crate) fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let len = out.len() as u64;
        self.disk.guarded(Op::Read, &self.path, len, || {
            self.descriptor_is_ours()?;
            self.file.read_exact_at(out, offset)
        })
    }

    /// Writes all of `bytes` at `offset`.
    pub(crate) fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut offset, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            match self.write_once(offset, rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    offset = offset.saturating_add(written as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_once(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let allowed = match self.disk.ask(Op::Write, &self.path, bytes.len() as u64) {
            Verdict::Fail(error) => return Err(error),
            Verdict::Short(most) => most.min(bytes.len()),
            Verdict::Go => bytes.len(),
        };
        self.descriptor_is_ours()?;
        self.file.write_at(&bytes[..allowed], offset)
    }

    /// Fails unless the descriptor still refers to the file.
    pub(crate) fn descriptor_is_ours(&self) -> io::Result<()> {
        self.metadata().map(drop)
    }

    /// The metadata of the file, if the descriptor still refers to it.
    ///
    /// A daemon may close every descriptor it finds and open files and sockets of its own under the same numbers. The
    /// library must not read, write, lock or close those, so this is checked before each such call. A descriptor that
    /// is closed between the check and the call cannot be detected.
    fn metadata(&self) -> io::Result<Metadata> {
        if !self.is_gone.load(Ordering::Relaxed) {
            match self.file.metadata() {
                Ok(metadata) if self.identity == Identity::of(&metadata) => return Ok(metadata),
                // An error of the file system says nothing about the descriptor.
                Err(error) if error.raw_os_error() != Some(libc::EBADF) => return Err(error),
                _ => self.is_gone.store(true, Ordering::Relaxed),
            }
        }
        Err(io::Error::other("the program has closed the queue's file descriptors"))
    }

    /// Writes zeros where the first `len` bytes have no blocks, as in a file that a backup program restored as a sparse
    /// file. A write to a mapping would need these blocks and could not report that the disk is full.
    pub(crate) fn fill_holes(&self, len: u64) -> io::Result<()> {
        let mut at = 0;
        while let Some(hole) = self.next_hole(at, len)? {
            self.write_zeros(hole.start, hole.end)?;
            at = hole.end;
        }
        // With delayed allocation a lack of space shows only now.
        if at > 0 { self.sync_data() } else { Ok(()) }
    }

    /// The first range without blocks at or after `from`.
    #[cfg(target_os = "linux")]
    fn next_hole(&self, from: u64, len: u64) -> io::Result<Option<Range<u64>>> {
        use nix::errno::Errno;
        use nix::unistd::{Whence, lseek};
        self.descriptor_is_ours()?;
        let seek = |from: u64, whence| -> nix::Result<u64> {
            let found = lseek(&*self.file, i64::try_from(from).map_err(|_| Errno::EOVERFLOW)?, whence)?;
            u64::try_from(found).map_err(|_| Errno::EOVERFLOW)
        };
        let start = match seek(from, Whence::SeekHole) {
            Ok(start) if start < len => start,
            // No hole before the end of the file, or a file system that does not report holes.
            Ok(_) | Err(Errno::ENXIO | Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let end = match seek(start, Whence::SeekData) {
            Ok(end) => end.min(len),
            Err(Errno::ENXIO) => len,
            Err(error) => return Err(error.into()),
        };
        Ok(Some(start..end))
    }

    /// Files are mapped on Linux only.
    #[cfg(not(target_os = "linux"))]
    fn next_hole(&self, _from: u64, _len: u64) -> io::Result<Option<Range<u64>>> {
        Ok(None)
    }

    /// Writes zero bytes from `from` to `to`, so that every block is allocated.
    pub(crate) fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        // One page at a time: after a larger write the kernel caches the file in larger units, and one byte written
        // through a mapping makes a whole unit dirty. Measured at 100 events a second: 28 times the journal's bytes
        // instead of 6.
        static ZEROS: [u8; 4096] = [0; 4096];
        let mut offset = from;
        while offset < to {
            let step = (to - offset).min(ZEROS.len() as u64);
            self.write_all_at(offset, &ZEROS[..step as usize])?;
            offset += step;
        }
        Ok(())
    }

    /// Makes its bytes, and the metadata needed to find them, durable.
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        self.disk.guarded(Op::Sync, &self.path, 0, || {
            self.descriptor_is_ours()?;
            self.file.sync_data()
        })
    }

    /// Makes data that was written to the first `len` bytes through `mapping` durable.
    pub(crate) fn sync_mapped(&self, mapping: &Mapping, len: usize) -> io::Result<()> {
        self.disk.guarded(Op::Sync, &self.path, 0, || {
            // On other systems `msync` does not flush the disk's own cache.
            if cfg!(target_os = "linux") { mapping.sync(len) } else { self.file.sync_data() }
        })
    }

    /// Sets its length; new bytes read as zeros.
    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.guarded(Op::SetLen, &self.path, len, || {
            self.descriptor_is_ours()?;
            self.file.set_len(len)
        })
    }

    /// Maps its first `len` bytes, shared with every process that maps them. The file must be at least that long.
    pub(crate) fn map(&self, len: usize) -> io::Result<Mapping> {
        self.disk.guarded(Op::Map, &self.path, len as u64, || {
            if self.len()? < len as u64 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Mapping::shared(&self.file, len)
        })
    }

    /// Takes an exclusive lock without waiting; `false` if it is held. The lock ends with the last descriptor of this
    /// open file.
    pub(crate) fn try_lock(&self) -> io::Result<bool> {
        self.disk.guarded(Op::Lock, &self.path, 0, || match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        })
    }

    /// Takes a shared lock without waiting; `false` if another process holds an exclusive one.
    fn try_lock_shared(&self) -> io::Result<bool> {
        self.disk.guarded(Op::Lock, &self.path, 0, || match self.file.try_lock_shared() {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        })
    }

    /// [`try_lock`](Self::try_lock) that waits for processes that only ask who holds the lock ([`Disk::is_locked`]).
    fn try_lock_for_good(&self) -> io::Result<bool> {
        if self.try_lock()? {
            return Ok(true);
        }
        for _ in 0..SHARED_LOCK_ATTEMPTS {
            // An owner's lock is exclusive. If a shared lock can be had, the other process only asks for the owner.
            if !self.try_lock_shared()? {
                return Ok(false);
            }
            let is_locked = self.try_lock();
            if !matches!(is_locked, Ok(true)) {
                // On some systems the shared lock outlives a failed attempt, and two who try would wait for each other.
                self.file.unlock()?;
            }
            if is_locked? {
                return Ok(true);
            }
            std::thread::sleep(SHARED_LOCK_WAIT);
        }
        Ok(false)
    }

    /// Whether the name that it was opened by was removed. Further names, such as hard links of a backup, do not count:
    /// nobody opens the queue by them.
    pub(crate) fn is_unlinked(&self) -> io::Result<bool> {
        Ok(self.metadata()?.nlink() == 0 || self.lost_one_of_its_names())
    }

    /// Whether the file has other names while the one that it was opened by is gone. A file that was moved, by itself
    /// or with its directory, has the same number of links; the kernel's name for the descriptor shows the difference.
    #[cfg(target_os = "linux")]
    fn lost_one_of_its_names(&self) -> bool {
        use std::os::fd::AsRawFd;
        use std::os::unix::ffi::OsStrExt;
        let link = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        let Ok(leads_to) = std::fs::read_link(&link) else { return false };
        // A file may really have a name with this ending; then it exists.
        let is_gone =
            || matches!(std::fs::symlink_metadata(&leads_to), Err(error) if error.kind() == io::ErrorKind::NotFound);
        leads_to.as_os_str().as_bytes().ends_with(b" (deleted)") && is_gone() && filesystem::keeps_names(&link)
    }

    /// Unknown on other systems.
    #[cfg(not(target_os = "linux"))]
    fn lost_one_of_its_names(&self) -> bool {
        false
    }

    /// Gives up the lock, for every descriptor of this open file.
    pub(super) fn unlock(&self) -> io::Result<()> {
        self.descriptor_is_ours()?;
        self.file.unlock()
    }

    #[cfg(test)]
    pub(super) fn number(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&*self.file)
    }

    /// Device and inode.
    #[cfg(test)]
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Has its descriptor closed in every forked child while the returned value lives.
    pub(crate) fn close_in_child(&self) -> CloseInChild {
        fork::close_in_child(&self.file, self.identity)
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        // A number that refers to something else must not be closed. An error of the file system does not mean that it
        // does.
        if self.metadata().is_err() && self.is_gone.load(Ordering::Relaxed) {
            // The count never falls to zero, so the number is never closed.
            std::mem::forget(Arc::clone(&self.file));
        }
    }
}

/// An exclusive lock on a file; released when dropped. It ends with this process and does not live on in forked
/// children.
#[derive(Debug)]
pub(crate) struct Lock {
    /// Dropped first: the descriptor must be open while it is on the list of those to be closed in children.
    in_child: CloseInChild,
    file: DiskFile,
}

impl Lock {
    pub(crate) fn file(&self) -> &DiskFile {
        &self.file
    }
}

impl Disk {
    /// Opens a file; see [`Open`].
    pub(crate) fn open(&self, path: &Path, how: Open) -> io::Result<DiskFile> {
        #[cfg(feature = "inspect")]
        if let Some(copied) = self.copied.as_ref().filter(|copied| path.parent() == Some(&copied.dir)) {
            let copy = copied.files.get(path).filter(|_| how == Open::ReadOnly).ok_or(io::ErrorKind::NotFound)?;
            return DiskFile::of(Arc::clone(copy), path, self);
        }
        let mut options = OpenOptions::new();
        options.read(true).write(how != Open::ReadOnly).mode(0o600);
        // Without O_NONBLOCK, opening a pipe would wait for its other end. Regular files ignore the flag.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK);
        let op = match how {
            Open::Existing | Open::ReadOnly => Op::Open,
            Open::CreateNew => {
                options.create_new(true);
                Op::Create
            }
            Open::EnsureExists => {
                options.create(true);
                Op::Create
            }
        };
        // The path is part of the error: the error of a queue names its directory alone.
        let no_file =
            || io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a regular file", path.display()));
        let file = self.guarded(op, path, 0, || options.open(path)).map_err(|error| match error.kind() {
            io::ErrorKind::IsADirectory => no_file(),
            _ => error,
        })?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(no_file());
        }
        if !(self.reads_any_user && how == Open::ReadOnly) {
            filesystem::vet(&metadata, path)?;
        }
        DiskFile::of(Arc::new(file), path, self)
    }

    /// Creates a file in `dir` that has no name, so that it ends with the process. (A kill before the name is removed leaves
    /// an empty file.)
    #[cfg(feature = "inspect")]
    pub(crate) fn create_unnamed(&self, dir: &Path) -> io::Result<DiskFile> {
        let path = dir.join(format!("posthog-copy-{:016x}", random_u64()));
        let file = self.open(&path, Open::CreateNew)?;
        self.remove_file(&path)?;
        Ok(file)
    }

    /// This disk with the directory `dir` as `files` have it: what is opened or looked for there is one of them.
    #[cfg(feature = "inspect")]
    pub(crate) fn with_copies(&self, dir: &Path, files: Vec<(PathBuf, DiskFile)>) -> Self {
        let files = files.into_iter().map(|(path, file)| (path, Arc::clone(&file.file))).collect();
        Self { copied: Some(Arc::new(Copied { dir: dir.to_path_buf(), files })), ..self.clone() }
    }

    /// The bytes of a file, at most so many.
    pub(crate) fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let file = self.open(path, Open::ReadOnly)?;
        let mut bytes = vec![0; usize::try_from(file.len()?.min(most)).unwrap_or(0)];
        file.read_exact_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Opens a file and locks it; `None` if the lock is held.
    pub(crate) fn open_locked(&self, path: &Path, how: Open) -> io::Result<Option<Lock>> {
        let lock = self.open_to_lock(path, how)?;
        Ok(lock.file.try_lock_for_good()?.then_some(lock))
    }

    /// Whether a process holds the lock of a file.
    ///
    /// The system cannot be asked that: `F_GETLK` and `F_OFD_GETLK` see only locks of `fcntl`, and its list of locks
    /// (`/proc/locks`) leaves out those of other containers. So a shared lock is taken for a moment, for which
    /// [`open_locked`](Self::open_locked) waits, so that nobody takes it for an owner.
    #[cfg(feature = "inspect")]
    pub(crate) fn is_locked(&self, path: &Path) -> io::Result<bool> {
        Ok(!self.open_to_lock(path, Open::ReadOnly)?.file.try_lock_shared()?)
    }

    /// Not locked yet.
    fn open_to_lock(&self, path: &Path, how: Open) -> io::Result<Lock> {
        // A child forked between the two would inherit the descriptor, and with it the lock as soon as that is taken.
        let opened = fork::without_fork(|| self.open(path, how).map(|file| (file.close_in_child(), file)));
        let (in_child, file) = opened?;
        Ok(Lock { in_child, file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before it is removed from the list: a child forked after that inherits the descriptor and must not hold the
        // lock. In a child the lock belongs to the parent.
        if self.in_child.is_of_this_process() {
            let _ = self.file.unlock();
        }
    }
}
