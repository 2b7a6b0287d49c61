//! One open file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use super::{Disk, Mapping, Op, Verdict, owner};

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
    file: File,
    path: PathBuf,
    disk: Disk,
    identity: Identity,
}

/// What stays the same about a file while its name may come to mean another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
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
        owner::vet(&metadata, path)?;
        let identity = Identity { device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { file, path: path.to_path_buf(), disk: disk.clone(), identity })
    }

    /// The name it was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Bytes that its blocks take on the disk; less than its length where it is sparse.
    pub(crate) fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks().saturating_mul(512))
    }

    /// Whether its name still means the file that was opened, and its descriptor too.
    pub(crate) fn is_same_file(&self) -> io::Result<bool> {
        if self.descriptor_is_ours().is_err() {
            return Ok(false);
        }
        match std::fs::symlink_metadata(&self.path) {
            Ok(metadata) => Ok(self.identity == Identity { device: metadata.dev(), inode: metadata.ino() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Fills `out` from `offset`; the end of the file inside it is an error.
    pub(crate) fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let len = out.len() as u64;
        self.disk.guarded(Op::Read, &self.path, len, || self.file.read_exact_at(out, offset))
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

    /// A program may close every descriptor it finds, as daemons do, and open files of its own under the same numbers. Those must not get
    /// our bytes. Looked at before each write; who closes a descriptor between the look and the write cannot be helped by us.
    fn descriptor_is_ours(&self) -> io::Result<()> {
        let metadata = self.file.metadata()?;
        if self.identity == (Identity { device: metadata.dev(), inode: metadata.ino() }) {
            return Ok(());
        }
        Err(io::Error::other("the program has closed the queue's file descriptors"))
    }

    /// Writes `len` zero bytes from the start, so that every block is really there.
    pub(crate) fn write_zeros(&self, len: u64) -> io::Result<()> {
        // A page at a time: a larger write makes the kernel cache the file in larger units, and then one byte written through a
        // mapping makes such a unit dirty as a whole. Measured: 28 times the bytes of a journal at 100 events a second, not 6.
        static ZEROS: [u8; 4096] = [0; 4096];
        let mut offset = 0;
        while offset < len {
            let step = (len - offset).min(ZEROS.len() as u64);
            self.write_all_at(offset, &ZEROS[..step as usize])?;
            offset += step;
        }
        Ok(())
    }

    /// Makes its bytes, and what is needed to find them, durable.
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        self.disk.guarded(Op::Sync, &self.path, 0, || self.file.sync_data())
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

    /// How many names the file has; 0 once it was removed.
    pub(crate) fn link_count(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.nlink())
    }

    /// Has its descriptor closed in every forked child, for as long as the answer lives.
    pub(crate) fn close_in_child(&self) -> super::fork::CloseInChild {
        super::fork::close_in_child(&self.file)
    }
}
