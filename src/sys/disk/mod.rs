//! Files and directories, through one type whose every call a test can make fail.
//!
//! All access of this library to a file system goes through [`Disk`]: the arenas of the journal, the backend of the
//! store, locks, the status page, directories. This has three purposes.
//!
//! * **Each call can be made to fail.** A [`Gate`](gate::Gate) is asked before every call and notified after it. It
//!   lets the call through, fails it with any error, or shortens a write. The tests of disk faults and power cuts
//!   consist of gates. In production there is no gate, and the check is one branch.
//! * **Each file is opened with the same care:** mode 0600 in directories of mode 0700, close-on-exec, never through a
//!   symbolic link, never a file that another user owns or that every user may write (`filesystem.rs`). Device and
//!   inode are remembered, so [`DiskFile::is_same_file`] notices when another file has taken its place. The same holds
//!   for its directory ([`Home`]): a missing name says something about a file only while that directory is where it
//!   was.
//! * **The effects of a fork are handled in one place.** [`fork::generation`] changes in a forked child; a [`Mapping`]
//!   does not exist there; and [`fork::close_in_child`] keeps a lock from living on in a child.
//!
//! Rules:
//!
//! * A name is durable only after its directory was synced. Creation, rename and removal never sync by themselves: the
//!   caller that promises durability calls [`Disk::sync_dir`].
//! * `EINTR` is retried here, and a short write is continued here. Every other error is returned unchanged.
//! * A shared mapping is written only if a write cannot raise SIGBUS ([`FileSystem::may_map`]): ext2/3/4 and tmpfs need
//!   no new blocks for a file that was written completely. A copy-on-write file system may need some, so there the
//!   library uses positioned writes.
//! * `unsafe` is used in two files of this folder (`map.rs` and `fork.rs`), in `crash`, and nowhere else in the
//!   library.

mod file;
mod filesystem;
pub(crate) mod fork;
mod gate;
mod map;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use file::{DiskFile, Home, Lock, Name, Open};
#[cfg(feature = "inspect")]
pub(crate) use filesystem::Entry;
pub(crate) use filesystem::{FileSystem, exposed_above};
#[cfg(any(test, feature = "inspect"))]
pub(crate) use gate::{Call, Gate, Verdict};
pub(crate) use gate::{Disk, Op};
#[cfg(test)]
pub(crate) use gate::{fail_nth, fail_when};
pub(crate) use map::{Mapping, store_bytes};

use crate::sys::machine;
pub(crate) use crate::sys::machine::OomCount;

impl Disk {
    /// Creates a directory of mode 0700 with its parents; existing ones are not changed.
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.guarded(Op::MakeDir, path, 0, || std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path))
    }

    /// Fails for a directory, or a link to one, that another user owns or that every user may write: see
    /// `filesystem.rs`.
    pub(crate) fn vet_dir(&self, path: &Path) -> io::Result<()> {
        filesystem::vet(&std::fs::symlink_metadata(path)?, path)?;
        filesystem::vet(&std::fs::metadata(path)?, path)
    }

    /// Creates a directory and its parents, and makes the names of the new ones durable.
    pub(crate) fn make_dir_durable(&self, path: &Path) -> io::Result<()> {
        let mut new = Vec::new();
        for ancestor in path.ancestors().take_while(|ancestor| !ancestor.as_os_str().is_empty()) {
            if self.exists(ancestor)? {
                break;
            }
            new.push(ancestor);
        }
        self.make_dir(path)?;
        for parent in new.into_iter().filter_map(Path::parent) {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            self.sync_dir(parent)?;
        }
        Ok(())
    }

    /// Makes the names in a directory durable.
    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.guarded(Op::SyncDir, path, 0, || std::fs::File::open(path)?.sync_all())
    }

    /// Renames within one file system, replacing the target.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.guarded(Op::Rename, from, 0, || std::fs::rename(from, to))
    }

    /// Removes a file; a missing file is not an error.
    pub(crate) fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.guarded(Op::Remove, path, 0, || match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
    }

    /// The names in a directory, sorted. Names that are not UTF-8 are left out: the library creates none.
    pub(crate) fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.guarded(Op::List, dir, 0, || {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(dir)? {
                names.extend(entry?.file_name().into_string());
            }
            names.sort_unstable();
            Ok(names)
        })
    }

    /// Whether the name exists, even as a dangling link.
    pub(crate) fn exists(&self, path: &Path) -> io::Result<bool> {
        #[cfg(feature = "inspect")]
        if let Some(copied) = self.copied.as_ref().filter(|copied| path.parent() == Some(&copied.dir)) {
            return Ok(copied.files.contains_key(path));
        }
        match std::fs::symlink_metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Bytes that an unprivileged process may still write to the file system of `path`.
    pub(crate) fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        Ok(self.guarded(Op::Space, path, 0, || filesystem::space(path))?.0)
    }

    /// Bytes of the whole file system of `path`.
    pub(crate) fn volume_bytes(&self, path: &Path) -> io::Result<u64> {
        Ok(self.guarded(Op::Space, path, 0, || filesystem::space(path))?.1)
    }

    /// The kind of file system that holds `path`.
    pub(crate) fn file_system(&self, path: &Path) -> io::Result<FileSystem> {
        match self.gate.as_ref().and_then(|gate| gate.file_system()) {
            Some(pretended) => Ok(pretended),
            None => filesystem::kind(path),
        }
    }

    /// An id that changes with each boot; 0 if the system does not provide one.
    pub(crate) fn boot_id(&self) -> u128 {
        self.gate.as_ref().and_then(|gate| gate.boot_id()).unwrap_or_else(machine::boot_id)
    }

    /// Time since boot, if the system provides it.
    pub(crate) fn uptime(&self) -> Option<Duration> {
        self.gate.as_ref().and_then(|gate| gate.uptime()).or_else(machine::uptime)
    }

    /// The kills by the OOM killer in this process's control group, if the system provides them.
    pub(crate) fn oom_count(&self) -> Option<OomCount> {
        self.gate.as_ref().and_then(|gate| gate.oom_count()).or_else(machine::oom_count)
    }
}

/// The directories from `path` up to and including `top`, deepest first: those to sync for a new name in `path` to be
/// durable.
pub(crate) fn up_to<'a>(path: &'a Path, top: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
    path.ancestors().take_while(move |ancestor| ancestor.starts_with(top)).map(Path::to_path_buf)
}
