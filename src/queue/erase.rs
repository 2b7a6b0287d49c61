//! What an operator's commands do with a queue that they own: empty the journal, and remove records so that no byte of
//! them is left in the files.

use super::journal::arena::HEADER_BYTES;
use super::journal::{self, AppendError};
use super::store::{DeadRecord, Keeps, Rewritten};
use super::{Queue, QueueError, frame};
use crate::sys::clock::WallNanos;
use crate::sys::disk::{Disk, Open};

impl Queue {
    /// Moves everything from the journal into the store. `false` if something could not be moved, as after a failure
    /// that recovery has reported.
    pub(crate) fn checkpoint_all(&self, now: WallNanos) -> Result<bool, QueueError> {
        loop {
            // Where every arena was full, the first checkpoint frees one.
            self.journal.swap()?;
            if self.checkpoint(&[], None, now)?.is_none() {
                break;
            }
        }
        Ok(self.journal.oldest_sealed().is_none())
    }

    /// Appends these records again, as new ones, and moves them into the store. Returns those that are there now; the
    /// others did not fit.
    pub(crate) fn queue_again(&self, records: &[(DeadRecord, u8)], now: WallNanos) -> Result<Vec<u64>, QueueError> {
        let mut queued = Vec::new();
        for (record, class) in records {
            let append = || self.append(&record.body, frame::hash_body(&record.body), *class);
            let appended = match append() {
                Err(AppendError::Full) => {
                    self.checkpoint_all(now)?;
                    append()
                }
                other => other,
            };
            match appended {
                Ok(_) => queued.push(record.seq),
                Err(AppendError::Io(source)) => return Err(QueueError::Io { path: self.dir.clone(), source }),
                Err(_) => {}
            }
        }
        // Only what is in the store may be removed elsewhere.
        Ok(if self.checkpoint_all(now)? { queued } else { Vec::new() })
    }

    /// Replaces the store's file by one without the records that `keeps` rejects. See [`super::store::Store::rewrite`].
    pub(crate) fn rewrite(&self, keeps: Keeps<'_>, now: WallNanos) -> Result<Rewritten, QueueError> {
        let rewritten = self.in_store(|store| store.rewrite(keeps))?;
        self.mirror(now);
        Ok(rewritten)
    }

    /// Overwrites the records that are left in the arenas. All of them must be in the store.
    pub(crate) fn scrub_journal(&self, disk: &Disk) -> Result<(), QueueError> {
        for name in journal::file_names() {
            let path = self.dir.join(name);
            let failed = |source| QueueError::JournalFile { path: path.clone(), source };
            if !disk.exists(&path).map_err(failed)? {
                continue;
            }
            let file = disk.open(&path, Open::Existing).map_err(failed)?;
            let len = file.len().map_err(failed)?;
            file.write_zeros(HEADER_BYTES as u64, len).and_then(|()| file.sync_data()).map_err(failed)?;
        }
        Ok(())
    }
}
