//! A directory that is taken away from under its owner: moved or made inaccessible, given to somebody else, or deleted with all that is in
//! it.
//!
//! What we have open stays open, and the lock on it stays ours, wherever the directory is. So an owner whose path leads nowhere goes on in
//! its files, says so, and looks again. It gives up only on proof: another process has the lock of the same directory, or has had it.

use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::claim::Hold;
use super::status::StatusPage;
use super::{Claim, Shard};

/// Deleting a directory takes a while: whoever finds its lock gone looks again so often whether the rest follows.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// How a shard stands with its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is where it was, and ours.
    Held,
    /// Its path does not lead to it, or nothing can be seen there. It is ours, and what is open can be used; nothing may be done by name.
    OutOfReach {
        /// What is met.
        why: String,
    },
    /// It was deleted with all that was in it.
    Deleted,
    /// Somebody else has it, or has had it: nothing in it is ours any more. For good.
    Lost,
}

impl Shard {
    /// Looks how the shard stands. A lock that was removed or replaced, or closed by the program, is taken again where nobody else has
    /// had it meanwhile.
    pub(crate) fn standing(&self) -> Standing {
        if self.is_volatile() {
            return Standing::Held;
        }
        if self.is_lost() {
            return Standing::Lost;
        }
        let Some(hold) = self.with_claim(|claim| claim.hold()) else { return Standing::Held };
        let standing = match hold {
            Hold::Holds => return Standing::Held,
            _ if self.is_deleted() => Standing::Deleted,
            Hold::OutOfReach(error) => Standing::OutOfReach { why: error.to_string() },
            Hold::Broken => self.renew_claim(),
        };
        if standing == Standing::Lost {
            self.give_up();
        }
        standing
    }

    /// Whether somebody else has the directory.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// The directory was deleted: the shard goes on in what it has open. That nobody else can have, and it ends with the process.
    /// Committer only.
    pub(crate) fn become_volatile(&self) {
        self.journal.become_unlinked();
        if let Some(store) = self.open_store() {
            store.become_unlinked();
        }
        self.volatile.store(true, Ordering::Release);
    }

    /// Without the lock the directory may be somebody else's, who would take our records for damage and whose records ours would
    /// overwrite: nothing more is taken. Unless there is nothing left that anybody could have.
    pub(super) fn check_claim(&self) -> io::Result<()> {
        match self.standing() {
            Standing::Held | Standing::OutOfReach { .. } => Ok(()),
            Standing::Deleted => Err(io::Error::other("the queue's directory was deleted")),
            Standing::Lost => Err(io::Error::other(self.why_lost())),
        }
    }

    /// For a human, once it is lost.
    pub(crate) fn why_lost(&self) -> String {
        format!(
            "another process has taken over {}, whose lock file was removed or replaced; nothing more is taken, and what is in it is sent by \
             that process; restart this one to use a new queue",
            self.dir.display()
        )
    }

    fn renew_claim(&self) -> Standing {
        // Somebody who has had the lock meanwhile has left a name on the page, and has changed files of which we know another content.
        let page = self.dir.join(StatusPage::FILE);
        let renewed = self.with_claim(|claim| claim.renew(|disk| self.status.is_of_this_life(disk, &page)));
        match renewed {
            None | Some(Ok(true)) => Standing::Held,
            Some(Ok(false)) => Standing::Lost,
            Some(Err(error)) => Standing::OutOfReach { why: format!("its lock file cannot be locked again: {error}") },
        }
    }

    /// Lets go of everything that is somebody else's by now.
    fn give_up(&self) {
        self.lost.store(true, Ordering::Release);
        self.journal.give_up();
        self.status.let_go();
        if let Some(store) = self.open_store() {
            store.give_up();
        }
    }

    /// Whether everything that we have open has lost its name. Where only the lock has, somebody may be about to delete the rest.
    fn is_deleted(&self) -> bool {
        if !self.with_claim(|claim| claim.is_unlinked()).unwrap_or(false) {
            return false;
        }
        // Whoever did not follow within the first of these waits is looked for once at a time.
        let looks = if self.rest_stays.load(Ordering::Relaxed) { 1 } else { LOOKS };
        for _ in 0..looks {
            if self.journal.is_unlinked() && self.open_store().is_none_or(|store| store.is_unlinked()) {
                return true;
            }
            if self.with_claim(|claim| claim.may_be_replaced()).unwrap_or(true) {
                return false;
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
        self.rest_stays.store(true, Ordering::Relaxed);
        false
    }

    /// `None` for a shard that has no claim.
    fn with_claim<T>(&self, ask: impl FnOnce(&mut Claim) -> T) -> Option<T> {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(ask)
    }
}
