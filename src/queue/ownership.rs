//! Whether the directory still belongs to the queue, and what is removed from it when the queue is closed empty.
//!
//! A directory can be moved or made inaccessible, taken over by another process, or deleted with all its files while
//! its owner is running. Open files stay open, and the lock on them stays held, wherever the directory is. Therefore,
//! an owner that cannot reach the directory by its path continues to use its open files, reports the problem, and
//! checks again later. It gives the queue up only on proof that another process holds, or has held, the lock of the
//! same directory.

use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::directory::Claim;
use super::status_page::StatusPage;
use super::{Queue, QueueError, journal, store};
use crate::sys::clock::WallNanos;
use crate::sys::disk::{Disk, Name};

/// Deleting a directory takes a while: if only the lock is gone, the other files are checked this many times.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// The state of the queue's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// At its path, and locked by us.
    Held,
    /// Its path does not lead to it, or cannot be examined. The queue is still ours and its open files can be used, but
    /// not by name.
    OutOfReach {
        /// The error that occurred.
        why: String,
    },
    /// It was deleted with all its files.
    Deleted,
    /// Another process owns it, or has owned it meanwhile: nothing in it is ours any more. This is final.
    Lost,
}

impl Queue {
    /// Checks the directory. A lock file that was removed, replaced, or closed by the program is locked again, unless
    /// another process has had it meanwhile.
    pub(crate) fn ownership(&self) -> Ownership {
        if self.is_volatile() {
            return Ownership::Held;
        }
        if self.is_lost() {
            return Ownership::Lost;
        }
        let Some(lock) = self.with_claim(|claim| claim.hold()) else { return Ownership::Held };
        let ownership = match lock {
            Name::Same => return Ownership::Held,
            _ if self.is_deleted() => Ownership::Deleted,
            Name::OutOfReach(error) => Ownership::OutOfReach { why: error.to_string() },
            Name::Other => self.renew_claim(),
        };
        if ownership == Ownership::Lost {
            self.give_up();
        }
        ownership
    }

    /// Whether another process owns the directory.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Continues, after the directory was deleted, with the open files alone. No other process can open them, so the
    /// queue ends with this process. Only the committer calls this.
    pub(crate) fn become_volatile(&self) {
        self.journal.become_unlinked();
        self.store.become_unlinked();
        self.volatile.store(true, Ordering::Release);
    }

    /// Fails without the lock: another process would take our records for damage, and our writes would overwrite its
    /// records.
    pub(super) fn check_claim(&self) -> io::Result<()> {
        match self.ownership() {
            Ownership::Held | Ownership::OutOfReach { .. } => Ok(()),
            Ownership::Deleted => Err(io::Error::other("the queue's directory was deleted")),
            Ownership::Lost => Err(io::Error::other(self.why_lost())),
        }
    }

    /// Describes [`Ownership::Lost`] for an operator.
    pub(crate) fn why_lost(&self) -> String {
        format!(
            "another process has taken over {}, because its lock file was removed or replaced; this process accepts \
             nothing more, and the other one delivers what is queued; restart this process to use a new queue",
            self.dir.display()
        )
    }

    fn renew_claim(&self) -> Ownership {
        // A process that has had the lock meanwhile has left its process id on the status page, and has changed files
        // whose content this process keeps in memory.
        let page = self.dir.join(StatusPage::FILE);
        let renewed = self.with_claim(|claim| claim.renew(|disk| self.status.names_this_owner(disk, &page)));
        match renewed {
            None | Some(Ok(true)) => Ownership::Held,
            Some(Ok(false)) => Ownership::Lost,
            Some(Err(error)) => Ownership::OutOfReach { why: format!("its lock file cannot be locked again: {error}") },
        }
    }

    /// Stops using all files of the queue, because they belong to another process now.
    fn give_up(&self) {
        self.lost.store(true, Ordering::Release);
        self.journal.give_up();
        self.status.release();
        self.store.give_up();
    }

    /// Whether all open files have lost their names. If only the lock has, the others may be about to be deleted.
    fn is_deleted(&self) -> bool {
        if !self.with_claim(|claim| claim.is_unlinked()).unwrap_or(false) {
            return false;
        }
        // If the other files were still there after the first full wait, each later call checks once.
        let looks = if self.files_remain.load(Ordering::Relaxed) { 1 } else { LOOKS };
        for _ in 0..looks {
            if self.journal.is_unlinked() && self.open_store().is_none_or(|store| store.is_unlinked()) {
                return true;
            }
            if self.with_claim(|claim| claim.may_be_replaced()).unwrap_or(true) {
                return false;
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
        self.files_remain.store(true, Ordering::Relaxed);
        false
    }

    /// `None` if the queue has no claim.
    fn with_claim<T>(&self, ask: impl FnOnce(&mut Claim) -> T) -> Option<T> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(ask)
    }

    /// Closes the queue as [`close`](Self::close) does. If it is empty, the store is compacted first, and the arenas
    /// and the reserve are removed while the lock is held, so that no other process can be using them. The directory
    /// and its lock stay, because another process may be about to take them. The store, which has the ledger and the
    /// dead letters, stays too, as do any files of the caller.
    pub(crate) fn close_and_free_space(&self, disk: &Disk) -> Result<(), QueueError> {
        let is_empty = self.ledger().queued_events == 0
            && self.journal.journaled().1 == 0
            && self.journal.oldest_sealed().is_none()
            && matches!(self.ownership(), Ownership::Held)
            && !self.is_volatile();
        if !is_empty {
            self.close();
            return Ok(());
        }
        let compacted = self.compact();
        self.close_files();
        let mut removed = idle_files().try_for_each(|name| disk.remove_file(&self.dir.join(name)));
        removed = removed.and_then(|()| disk.sync_dir(&self.dir));
        self.release();
        compacted?;
        removed.map_err(|source| QueueError::Io { path: self.dir.clone(), source })
    }
}

fn idle_files() -> impl Iterator<Item = String> {
    journal::file_names().chain([store::RESERVE.to_owned()])
}

/// Whether a shard has files that only a running process needs, and was not used since `before`.
pub(crate) fn holds_idle_files(disk: &Disk, dir: &Path, before: WallNanos) -> bool {
    let has_files = idle_files().any(|name| disk.exists(&dir.join(name)).unwrap_or(false));
    has_files && StatusPage::peek(disk, dir).is_some_and(|page| page.active_at < before)
}
