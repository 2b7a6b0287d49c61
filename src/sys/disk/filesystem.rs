//! What kind of file system a directory is on, and how much room it has.

use std::io;
use std::path::Path;

/// The kinds that are treated differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// ext2, ext3 or ext4: once written, a block stays where it is.
    Ext,
    /// Held in memory: fast, and gone with the machine.
    Memory,
    /// A container's writable layer: gone with the container, and copy-on-write underneath.
    Overlay,
    /// On another machine; locks may not be what they seem.
    Network,
    /// Anything else; treated as copy-on-write.
    Other,
}

impl FileSystem {
    /// Whether writing to a shared mapping of a fully written file can be trusted never to fault for want of a block.
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

/// Whether a name that the kernel calls deleted was deleted. Where files lie on another machine, or with another process, it also says
/// so of names that it could not look up for a while.
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

#[allow(clippy::useless_conversion, reason = "the types are not the same on every libc")]
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let (blocks, size) = (stat.blocks_available(), stat.fragment_size());
    Ok(u64::from(blocks).saturating_mul(u64::from(size)))
}

#[allow(clippy::useless_conversion, reason = "the types are not the same on every libc")]
pub(super) fn volume_bytes(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let (blocks, size) = (stat.blocks(), stat.fragment_size());
    Ok(u64::from(blocks).saturating_mul(u64::from(size)))
}
