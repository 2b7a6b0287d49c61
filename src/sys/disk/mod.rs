//! Files, behind a seam of few calls.
//!
//! Everything this library does to a file system goes through here: the arenas of the journal, the backend of the store, locks, the
//! status page, the directories. That buys three things.
//!
//! * **Each call can be made to fail.** A [`Gate`] is asked before every call and told after it. It may let the call through, fail it
//!   with any error, or shorten a write. The tests of disk faults and power cuts are made of nothing else; in production there is no
//!   gate and the question is one branch.
//! * **Each file is opened in the same careful way:** mode 0600 in directories of mode 0700, close-on-exec, never through a symbolic
//!   link, never another user's or one that every user may write (`filesystem.rs`), its device and inode remembered, so that
//!   [`DiskFile::is_same_file`] can tell when somebody put another file in its place. So is its directory ([`Home`]): a name that cannot be
//!   found says something about a file only while that directory is where it was.
//! * **What a fork leaves behind is known in one place.** [`fork::generation`] changes in a forked child; a [`Mapping`] is not even
//!   present there, and [`fork::close_in_child`] makes sure that a lock does not live on in a child that never asked for it.
//!
//! Rules:
//!
//! * A name is durable only when its directory was synced: creation, rename and removal are followed by [`Disk::sync_dir`] by those
//!   who promise durability, never implicitly.
//! * `EINTR` is retried here, a short write is continued here. Every other error goes up unchanged.
//! * A shared mapping may be written only where a write cannot raise SIGBUS ([`FileSystem::may_map`]): once a file's blocks are
//!   really written, ext2/3/4 and tmpfs never need new ones. A copy-on-write file system may, so it gets positioned writes.
//! * `unsafe` lives in two files of this folder, `map.rs` and `fork.rs`, and in `crash`, and nowhere else in the library.

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
pub(crate) use filesystem::{FileSystem, exposed_above};
#[cfg(test)]
pub(crate) use gate::{Call, Gate, Verdict, fail_nth, fail_when};
pub(crate) use gate::{Disk, Op};
pub(crate) use map::{Mapping, store_bytes};

use crate::sys::machine;
pub(crate) use crate::sys::machine::OomCount;

impl Disk {
    /// Opens a file; see [`Open`].
    pub(crate) fn open(&self, path: &Path, how: Open) -> io::Result<DiskFile> {
        DiskFile::open(self, path, how)
    }

    /// Creates a directory of mode 0700 with its parents; existing ones are left as they are.
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.guarded(Op::MakeDir, path, 0, || std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path))
    }

    /// Fails for a directory that is not this process's alone, or for a link to one: see `filesystem.rs`.
    pub(crate) fn vet_dir(&self, path: &Path) -> io::Result<()> {
        filesystem::vet(&std::fs::symlink_metadata(path)?, path)?;
        filesystem::vet(&std::fs::metadata(path)?, path)
    }

    /// Creates a directory and its parents, and makes their names durable where they are new.
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

    /// Removes a file; one that is not there is no error.
    pub(crate) fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.guarded(Op::Remove, path, 0, || match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
    }

    /// The names in a directory, sorted; names that are not UTF-8 are none of ours and left out.
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

    /// Whether something of that name exists, a dangling link included.
    pub(crate) fn exists(&self, path: &Path) -> io::Result<bool> {
        match std::fs::symlink_metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Bytes that an unprivileged process may still write to the file system of `path`.
    pub(crate) fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.guarded(Op::Space, path, 0, || filesystem::free_bytes(path))
    }

    /// Bytes of the whole file system of `path`.
    pub(crate) fn volume_bytes(&self, path: &Path) -> io::Result<u64> {
        self.guarded(Op::Space, path, 0, || filesystem::volume_bytes(path))
    }

    /// The kind of file system that holds `path`.
    pub(crate) fn file_system(&self, path: &Path) -> io::Result<FileSystem> {
        match self.gate.as_ref().and_then(|gate| gate.file_system()) {
            Some(pretended) => Ok(pretended),
            None => filesystem::kind(path),
        }
    }

    /// Differs after each start of the machine; 0 where the system does not tell.
    pub(crate) fn boot_id(&self) -> u128 {
        self.gate.as_ref().and_then(|gate| gate.boot_id()).unwrap_or_else(machine::boot_id)
    }

    /// Time since the start of the machine, if the system tells.
    pub(crate) fn uptime(&self) -> Option<Duration> {
        self.gate.as_ref().and_then(|gate| gate.uptime()).or_else(machine::uptime)
    }

    /// How often the OOM killer was at work in the control group of this process, if the system tells.
    pub(crate) fn oom_count(&self) -> Option<OomCount> {
        self.gate.as_ref().and_then(|gate| gate.oom_count()).or_else(machine::oom_count)
    }
}

/// The directories from `path` up to and including `top`, deepest first: what must be synced for a new name below to be durable.
pub(crate) fn up_to<'a>(path: &'a Path, top: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
    path.ancestors().take_while(move |ancestor| ancestor.starts_with(top)).map(Path::to_path_buf)
}
