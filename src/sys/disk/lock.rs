//! A lock on a file that ends with this process, and does not live on in its children.

use std::io;
use std::path::Path;

use super::fork::{self, CloseInChild};
use super::{Disk, DiskFile, Open};

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
