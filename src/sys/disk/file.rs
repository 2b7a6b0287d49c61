//! Open files: what identifies them and their directories, what is done with them, and locks on them.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;

use super::filesystem;
use super::fork::{self, CloseInChild, Identity};
use super::gate::{Disk, Op, Verdict};
use super::map::Mapping;

/// A directory as it was found once. While another directory, or none, has its path, no name in it says anything about our files, and
/// nothing may be created, renamed or removed there: it may be somebody else's.
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

    /// Whether the path leads to the directory; if not, why. That is no verdict on the directory: it may be back at any moment.
    pub(crate) fn check(&self) -> io::Result<()> {
        let metadata = std::fs::metadata(&self.path)?;
        if self.identity == Identity::of(&metadata) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "another directory is in its place"))
    }
}

/// How a file is opened. Always close-on-exec, never through a symbolic link nor another user's, new ones with mode 0600.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// Must exist.
    Existing,
    /// Must exist; only read.
    ReadOnly,
    /// Must not exist.
    CreateNew,
    /// Created if missing.
    EnsureExists,
}

/// An open file that knows its name and its identity.
#[derive(Debug)]
pub(crate) struct DiskFile {
    /// Closed only while its number leads to this file: see [`DiskFile::metadata`].
    file: Arc<File>,
    path: PathBuf,
    disk: Disk,
    identity: Identity,
    /// The directory in which it was opened.
    home: Home,
    /// The descriptor was found to be closed, or somebody else's. From then on it is: the number may come to mean the same file again, opened
    /// by another of us.
    is_gone: AtomicBool,
}

/// What the name of an open file means by now.
#[derive(Debug)]
pub(crate) enum Name {
    /// The file.
    Same,
    /// Another file or none, and the directory is the one in which it was opened.
    Other,
    /// Nothing can be said: the directory is not where it was, or cannot be looked into. Why.
    OutOfReach(io::Error),
}

impl DiskFile {
    pub(super) fn open(disk: &Disk, path: &Path, how: Open) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(how != Open::ReadOnly).mode(0o600);
        // Of a pipe that somebody put there, opening would wait for the other end; a file is not concerned.
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
        let file = disk.guarded(op, path, 0, || options.open(path))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        filesystem::vet(&metadata, path)?;
        let home = Home::of(path.parent().unwrap_or(path))?;
        Ok(Self {
            file: Arc::new(file),
            path: path.to_path_buf(),
            disk: disk.clone(),
            identity: Identity::of(&metadata),
            home,
            is_gone: AtomicBool::new(false),
        })
    }

    /// The name it was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    /// Bytes that its blocks take on the disk; less than its length where it is sparse.
    pub(crate) fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.blocks().saturating_mul(512))
    }

    /// The disk it was opened on.
    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The directory in which it was opened.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// What its name means by now.
    pub(crate) fn name(&self) -> Name {
        match std::fs::symlink_metadata(&self.path) {
            Ok(metadata) if self.identity == Identity::of(&metadata) => Name::Same,
            Err(error) if error.kind() != io::ErrorKind::NotFound => Name::OutOfReach(error),
            // A name in another directory is another name.
            _ => self.home.check().map_or_else(Name::OutOfReach, |()| Name::Other),
        }
    }

    /// Whether its name still means the file that was opened, and its descriptor too.
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

    /// Whether what is written to it can be found again: by its name or, while its directory is out of reach, by whoever brings that back.
    pub(crate) fn can_be_found(&self) -> io::Result<bool> {
        self.descriptor_is_ours()?;
        match self.name() {
            Name::Same => Ok(true),
            Name::Other => Ok(false),
            Name::OutOfReach(_) => Ok(!self.is_unlinked()?),
        }
    }

    /// Fills `out` from `offset`; the end of the file inside it is an error.
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

    /// Whether the descriptor still leads to the file.
    pub(crate) fn descriptor_is_ours(&self) -> io::Result<()> {
        self.metadata().map(drop)
    }

    /// A program may close every descriptor it finds, as daemons do, and open files and sockets of its own under the same numbers. Those must
    /// not get our bytes, nor be read, locked or closed by us. Looked at before each of these; who closes a descriptor between the look and
    /// the call cannot be helped by us.
    fn metadata(&self) -> io::Result<Metadata> {
        if !self.is_gone.load(Ordering::Relaxed) {
            match self.file.metadata() {
                Ok(metadata) if self.identity == Identity::of(&metadata) => return Ok(metadata),
                // The file system's own trouble says nothing about the number.
                Err(error) if error.raw_os_error() != Some(libc::EBADF) => return Err(error),
                _ => self.is_gone.store(true, Ordering::Relaxed),
            }
        }
        Err(io::Error::other("the program has closed the queue's file descriptors"))
    }

    /// Writes zeros wherever the first `len` bytes have no blocks, as in a file that was restored by a program which leaves out zeros. A
    /// write to a mapping would need these blocks, and cannot report that the disk has none.
    pub(crate) fn fill_holes(&self, len: u64) -> io::Result<()> {
        let mut at = 0;
        while let Some(hole) = self.next_hole(at, len)? {
            self.write_zeros_from(hole.start, hole.end)?;
            at = hole.end;
        }
        // Promised is not given: where there is no room for the blocks this is when it shows.
        if at > 0 { self.sync_data() } else { Ok(()) }
    }

    /// The first run without blocks from `from` on.
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
            // None before the end of the file, or a file system that knows of none.
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

    /// Elsewhere nothing is mapped.
    #[cfg(not(target_os = "linux"))]
    fn next_hole(&self, _from: u64, _len: u64) -> io::Result<Option<Range<u64>>> {
        Ok(None)
    }

    /// Writes `len` zero bytes from the start, so that every block is really there.
    pub(crate) fn write_zeros(&self, len: u64) -> io::Result<()> {
        self.write_zeros_from(0, len)
    }

    fn write_zeros_from(&self, from: u64, to: u64) -> io::Result<()> {
        // A page at a time: a larger write makes the kernel cache the file in larger units, and then one byte written through a
        // mapping makes such a unit dirty as a whole. Measured: 28 times the bytes of a journal at 100 events a second, not 6.
        static ZEROS: [u8; 4096] = [0; 4096];
        let mut offset = from;
        while offset < to {
            let step = (to - offset).min(ZEROS.len() as u64);
            self.write_all_at(offset, &ZEROS[..step as usize])?;
            offset += step;
        }
        Ok(())
    }

    /// Makes its bytes, and what is needed to find them, durable.
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        self.disk.guarded(Op::Sync, &self.path, 0, || {
            self.descriptor_is_ours()?;
            self.file.sync_data()
        })
    }

    /// Makes what was written to its first `len` bytes through `mapping` durable.
    pub(crate) fn sync_mapped(&self, mapping: &Mapping, len: usize) -> io::Result<()> {
        self.disk.guarded(Op::Sync, &self.path, 0, || {
            // Elsewhere `msync` does not reach through the disk's own cache.
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

    /// Takes an exclusive lock without waiting; `false` if somebody holds it. It ends with the last descriptor of this open file.
    pub(crate) fn try_lock(&self) -> io::Result<bool> {
        self.disk.guarded(Op::Lock, &self.path, 0, || match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        })
    }

    /// Whether the name that it was opened by was removed. Further names, as backups by hard links make them, are not ours: whoever opens
    /// the queue does not look there.
    pub(crate) fn is_unlinked(&self) -> io::Result<bool> {
        Ok(self.metadata()?.nlink() == 0 || self.lost_one_of_its_names())
    }

    /// Whether it lives on under other names, while the one that it was opened by is gone. A file that was only moved, itself or with
    /// its directory, has the same number of links: the kernel tells them apart by what it says of the descriptor.
    #[cfg(target_os = "linux")]
    fn lost_one_of_its_names(&self) -> bool {
        use std::os::fd::AsRawFd;
        use std::os::unix::ffi::OsStrExt;
        let link = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        let Ok(leads_to) = std::fs::read_link(&link) else { return false };
        // A file may have such a name, and then it is there.
        let is_gone =
            || matches!(std::fs::symlink_metadata(&leads_to), Err(error) if error.kind() == io::ErrorKind::NotFound);
        leads_to.as_os_str().as_bytes().ends_with(b" (deleted)") && is_gone() && filesystem::keeps_names(&link)
    }

    /// Elsewhere nobody says.
    #[cfg(not(target_os = "linux"))]
    fn lost_one_of_its_names(&self) -> bool {
        false
    }

    /// Gives up the lock, for every descriptor of this open file.
    pub(super) fn unlock(&self) -> io::Result<()> {
        self.descriptor_is_ours()?;
        self.file.unlock()
    }

    /// The number of its descriptor.
    #[cfg(test)]
    pub(super) fn number(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&*self.file)
    }

    /// Device and inode.
    #[cfg(test)]
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Has its descriptor closed in every forked child, for as long as the answer lives.
    pub(crate) fn close_in_child(&self) -> CloseInChild {
        fork::close_in_child(&self.file, self.identity)
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        // A number that leads to something of the program's is not ours to close. Where the file system does not answer it is still ours.
        if self.metadata().is_err() && self.is_gone.load(Ordering::Relaxed) {
            // The count never falls to zero, so nobody closes the number.
            std::mem::forget(Arc::clone(&self.file));
        }
    }
}

/// An exclusive lock; given up when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    /// Dropped first: the descriptor must still be open while it is on the list of those closed in children.
    in_child: CloseInChild,
    file: DiskFile,
}

impl Lock {
    /// The locked file.
    pub(crate) fn file(&self) -> &DiskFile {
        &self.file
    }
}

impl Disk {
    /// Opens a file, and locks it unless somebody else has the lock.
    pub(crate) fn open_locked(&self, path: &Path, how: Open) -> io::Result<Option<Lock>> {
        // A child that is forked in between would have the descriptor, and with it the lock as soon as that is taken.
        let opened = fork::without_fork(|| self.open(path, how).map(|file| (file.close_in_child(), file)));
        let (in_child, file) = opened?;
        Ok(file.try_lock()?.then_some(Lock { in_child, file }))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before it is taken off the list: a child that is forked after that has the descriptor, and must not have the lock. In a child the
        // lock is the parent's.
        if self.in_child.is_of_this_process() {
            let _ = self.file.unlock();
        }
    }
}
