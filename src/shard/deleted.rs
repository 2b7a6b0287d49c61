//! A directory that is taken away from under its owner: moved, given to somebody else, or deleted with all that is in it.

use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Claim, Shard};
use crate::disk::Disk;

/// Deleting a directory takes a while: whoever finds its lock gone looks again so often whether the rest follows.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

impl Shard {
    /// Whether the shard's directory still is where it was, with our lock in it.
    pub(crate) fn holds_claim(&self) -> bool {
        self.with_claim(Claim::holds)
    }

    /// Looks whether the directory was deleted. If so the shard goes on in what it has open: that nobody else can have, and it ends with
    /// the process. Says whether this was the moment. Committer only.
    pub(crate) fn notice_deletion(&self) -> bool {
        if self.is_volatile() || self.holds_claim() || !self.is_deleted() {
            return false;
        }
        self.journal.become_nameless();
        if let Some(store) = self.open_store() {
            store.become_nameless();
        }
        self.volatile.store(true, Ordering::Release);
        true
    }

    /// Without the lock the directory may be somebody else's, who would take our records for damage and whose records ours would
    /// overwrite: nothing more is taken. Unless there is nothing left that anybody could have.
    pub(super) fn check_claim(&self) -> io::Result<()> {
        if self.is_volatile() || self.holds_claim() {
            return Ok(());
        }
        if self.is_deleted() {
            return Err(io::Error::other("the queue's directory was deleted"));
        }
        self.journal.close();
        Err(io::Error::other("the lock file of this queue was removed or replaced: restart to use a new queue"))
    }

    /// Whether everything that we have open has lost its name. Where only the lock has, somebody may be about to delete the rest.
    fn is_deleted(&self) -> bool {
        if !self.with_claim(Claim::is_unlinked) {
            return false;
        }
        for _ in 0..LOOKS {
            if self.journal.is_unlinked() && self.open_store().is_none_or(|store| store.is_unlinked()) {
                return true;
            }
            if self.with_claim(|claim| claim.may_be_replaced(&Disk::default())) {
                return false;
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
        false
    }

    /// `true` for a shard that has no claim.
    fn with_claim(&self, ask: impl FnOnce(&Claim) -> bool) -> bool {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_none_or(ask)
    }
}
