//! File systems: their kind, their free space, and who besides this process may write to a file or directory.
//!
//! The files of a queue decide what is sent in the program's name, and a program run by root opens, truncates and
//! removes them. So a file that another user owns, or that every user may write, is not used. Write access of a group
//! is the administrator's choice (Kubernetes' `fsGroup` grants it on every volume), and owners on a network file system
//! are those of another machine, so neither is refused.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

/// The kinds of file systems that are treated differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// ext2, ext3 or ext4: a block that was written stays where it is.
    Ext,
    /// In memory: fast, and lost with the machine.
    Memory,
    /// The writable layer of a container: lost with the container, and copy-on-write.
    Overlay,
    /// On another machine; locks may not work.
    Network,
    /// Anything else; treated as copy-on-write.
    Other,
}

impl FileSystem {
    /// Whether a write to a shared mapping of a completely written file can never fault because a block is missing.
    pub(crate) fn may_map(self) -> bool {
        matches!(self, FileSystem::Ext | FileSystem::Memory)
    }
}

#[cfg(target_os = "linux")]
#[allow(clippy::unnecessary_cast, reason = "the type is not the same on every libc, and no conversion takes them all")]
pub(super) fn kind(path: &Path) -> io::Result<FileSystem> {
    use nix::sys::statfs;
    // Not in nix's list; from linux/magic.h and the network file systems' own headers.
    const CIFS: i64 = 0xFF53_4D42;
    const SMB2: i64 = 0xFE53_4D42;
    const CEPH: i64 = 0x00C3_6400;
    const RAMFS: i64 = 0x8584_58F6;
    let found = statfs::statfs(path)?.filesystem_type();
    Ok(match found {
        statfs::EXT4_SUPER_MAGIC => FileSystem::Ext,
        statfs::TMPFS_MAGIC => FileSystem::Memory,
        statfs::OVERLAYFS_SUPER_MAGIC => FileSystem::Overlay,
        statfs::NFS_SUPER_MAGIC | statfs::SMB_SUPER_MAGIC | statfs::AFS_SUPER_MAGIC | statfs::CODA_SUPER_MAGIC => {
            FileSystem::Network
        }
        other => match other.0 as i64 & 0xFFFF_FFFF {
            RAMFS => FileSystem::Memory,
            CIFS | SMB2 | CEPH => FileSystem::Network,
            _ => FileSystem::Other,
        },
    })
}

/// Whether a name that the kernel reports as deleted was really deleted. On network file systems and FUSE it also
/// reports names as deleted that could not be looked up for a while.
#[cfg(target_os = "linux")]
#[allow(clippy::unnecessary_cast, reason = "the type is not the same on every libc, and no conversion takes them all")]
pub(super) fn keeps_names(path: &Path) -> bool {
    // FUSE; not in nix's list.
    const FUSE: i64 = 0x6573_5546;
    let is_fuse = |found: nix::sys::statfs::Statfs| found.filesystem_type().0 as i64 & 0xFFFF_FFFF == FUSE;
    kind(path).is_ok_and(|kind| kind != FileSystem::Network) && !nix::sys::statfs::statfs(path).is_ok_and(is_fuse)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn kind(_path: &Path) -> io::Result<FileSystem> {
    Ok(FileSystem::Other)
}

/// Bytes that an unprivileged process may still write to the file system of `path`, and bytes of the whole.
#[allow(clippy::useless_conversion, reason = "the types are not the same on every libc")]
pub(super) fn space(path: &Path) -> io::Result<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let bytes = |blocks| u64::from(blocks).saturating_mul(u64::from(stat.fragment_size()));
    Ok((bytes(stat.blocks_available()), bytes(stat.blocks())))
}

/// What a name stands for. Only regular files are read and written ([`Disk::open`](super::Disk::open)): a link may lead
/// anywhere, and a pipe or a device may wait for ever.
#[cfg(feature = "inspect")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    File,
    Dir,
    Link,
    Pipe,
    Socket,
    Device,
}

#[cfg(feature = "inspect")]
impl Entry {
    /// What is at the path itself: a link is not followed.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        let kind = std::fs::symlink_metadata(path)?.file_type();
        Ok(match kind {
            kind if kind.is_file() => Self::File,
            kind if kind.is_dir() => Self::Dir,
            kind if kind.is_symlink() => Self::Link,
            kind if kind.is_fifo() => Self::Pipe,
            kind if kind.is_socket() => Self::Socket,
            _ => Self::Device,
        })
    }
}

#[cfg(feature = "inspect")]
impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Entry::File => "a regular file",
            Entry::Dir => "a directory",
            Entry::Link => "a symbolic link",
            Entry::Pipe => "a pipe",
            Entry::Socket => "a socket",
            Entry::Device => "a device",
        })
    }
}

const ROOT: u32 = 0;
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Who else can change a file or directory that is to be part of a queue, and what helps.
fn exposure(owner: u32, mode: u32, user: u32) -> Option<String> {
    if owner != user && owner != ROOT {
        return Some(format!(
            "it belongs to user {owner}, and this process runs as user {user}: change its owner (chown) or run as that \
             user"
        ));
    }
    let everybody = || format!("every user may write to it (mode {mode:o}): remove that permission (chmod o-w)");
    (mode & OTHERS_WRITE != 0).then(everybody)
}

/// Who else can change the entries of a directory above a queue. A sticky directory (`/tmp`) protects them.
fn exposure_above(owner: u32, group: u32, mode: u32, user: u32, is_queue_dir: bool) -> Option<String> {
    let by_group = || {
        format!(
            "group {group} may write to it (mode {mode:o}), and this process runs as root: remove that permission (chmod \
             g-w) unless it is intended"
        )
    };
    let is_by_group = is_queue_dir && user == ROOT && group != ROOT && mode & (GROUP_WRITES | STICKY) == GROUP_WRITES;
    let unprotected = if mode & STICKY == 0 { mode } else { mode & !OTHERS_WRITE };
    exposure(owner, unprotected, user).or_else(|| is_by_group.then(by_group))
}

/// Fails if another user owns a file or directory of a queue, or every user may write it. `path` is its path.
pub(super) fn vet(metadata: &Metadata, path: &Path) -> io::Result<()> {
    // The mode of a symbolic link has no meaning.
    let mode = if metadata.is_symlink() { 0 } else { metadata.mode() & 0o7777 };
    let Some(exposure) = exposure(metadata.uid(), mode, geteuid().as_raw()) else { return Ok(()) };
    if kind(path).is_ok_and(|kind| kind == FileSystem::Network) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{path:?} is not used: {exposure}")))
}

/// The first of the directories from `queue_dir` up to the root whose entries others can change or replace.
pub(crate) fn exposed_above(queue_dir: &Path) -> io::Result<Option<(PathBuf, String)>> {
    let queue_dir = queue_dir.canonicalize()?;
    let user = geteuid().as_raw();
    for dir in queue_dir.ancestors() {
        let found = std::fs::metadata(dir)?;
        let mode = found.mode() & 0o7777;
        if let Some(exposure) = exposure_above(found.uid(), found.gid(), mode, user, dir == queue_dir) {
            return Ok(Some((dir.to_path_buf(), exposure)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u32 = 1000;
    const OTHER: u32 = 1001;

    #[test]
    fn files_that_others_can_change_are_not_used() {
        for (owner, mode, user, is_exposed) in [
            (USER, 0o700, USER, false),
            (ROOT, 0o700, USER, false),
            (ROOT, 0o700, ROOT, false),
            (USER, 0o2770, USER, false),
            (USER, 0o660, USER, false),
            (OTHER, 0o700, USER, true),
            (USER, 0o700, ROOT, true),
            (USER, 0o702, USER, true),
            (ROOT, 0o1777, ROOT, true),
            (ROOT, 0o602, USER, true),
        ] {
            assert_eq!(exposure(owner, mode, user).is_some(), is_exposed, "{owner} {mode:o} {user}");
        }
    }

    #[test]
    fn above_a_queue_sticky_is_safe_and_groups_matter_to_root() {
        for (owner, group, mode, user, is_queue_dir, is_exposed) in [
            (ROOT, ROOT, 0o1777, USER, false, false),
            (ROOT, ROOT, 0o1777, ROOT, true, false),
            (ROOT, ROOT, 0o777, USER, false, true),
            (OTHER, OTHER, 0o755, USER, false, true),
            (OTHER, OTHER, 0o1755, USER, false, true),
            (ROOT, 43, 0o775, ROOT, false, false),
            (ROOT, 43, 0o775, ROOT, true, true),
            (ROOT, 43, 0o3775, ROOT, true, false),
            (ROOT, ROOT, 0o775, ROOT, true, false),
            (USER, 43, 0o2775, USER, true, false),
        ] {
            let found = exposure_above(owner, group, mode, user, is_queue_dir);
            assert_eq!(found.is_some(), is_exposed, "{owner} {group} {mode:o} {user} {is_queue_dir}");
        }
    }
}
