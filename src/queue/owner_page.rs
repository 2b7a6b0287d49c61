//! The owner's page: a mapped file in the shard, whose content belongs to the layer above the queue.
//!
//! It is for what has to outlive the process without a system call for each change, as the status page does for the
//! queue itself. The page exists only where mapping is safe. A forked child does not have it, and an owner that has
//! released its shard does not write to it any more, because it may belong to the next owner.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Queue;
use crate::sys::clock::WallNanos;
use crate::sys::crash_point;
use crate::sys::disk::fork;
use crate::sys::disk::{Disk, Mapping, Open};

/// A mapped file of the owner. See the module.
#[derive(Debug)]
pub(crate) struct OwnerPage {
    words: Mapping,
    /// The fork generation in which the file is mapped.
    generation: u64,
    is_released: AtomicBool,
}

impl OwnerPage {
    fn open(disk: &Disk, path: &Path, bytes: usize) -> io::Result<Self> {
        let file = disk.open(path, Open::EnsureExists)?;
        if file.len()? < bytes as u64 {
            // Every block is written, so that no later store into the mapping needs a new one.
            file.write_zeros(0, bytes as u64)?;
        }
        file.fill_holes(bytes as u64)?;
        let words = file.map(bytes)?;
        Ok(Self { words, generation: fork::generation(), is_released: AtomicBool::new(false) })
    }

    /// The words of the page; `None` in a forked child, and once the shard was released.
    #[inline]
    pub(crate) fn words(&self) -> Option<&[AtomicU64]> {
        if self.is_released.load(Ordering::Acquire) || fork::generation() != self.generation {
            return None;
        }
        self.words.words(0, self.words.len())
    }

    /// A thread that has the words already may still finish one change.
    pub(super) fn release(&self) {
        self.is_released.store(true, Ordering::Release);
    }
}

impl Queue {
    /// Maps the file `name` of the shard, and creates it if it is missing. `None` if the file system does not allow
    /// mappings, if the queue is in memory or was released, and if the owner has a page already.
    pub(crate) fn open_owner_page(&self, disk: &Disk, name: &str, bytes: usize) -> io::Result<Option<Arc<OwnerPage>>> {
        if self.is_volatile() || !disk.file_system(&self.dir)?.may_map() || !crash_point::may_map() {
            return Ok(None);
        }
        let mut opened = Ok(None);
        self.while_ours(|status| {
            if status.owner_page.get().is_none() {
                opened = OwnerPage::open(disk, &self.dir.join(name), bytes).map(|page| {
                    let page = Arc::new(page);
                    status.owner_page.set(Arc::clone(&page)).is_ok().then_some(page)
                });
            }
        });
        opened
    }

    /// When this owner took the queue over, as the next one finds it in its run record.
    pub(crate) fn started_at(&self) -> WallNanos {
        self.status.started_at.cast_signed()
    }
}
