//! What stays the same about a file or a directory while its name may come to mean another one, or nothing.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

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
