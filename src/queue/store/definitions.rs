//! Definitions of flags, kept for the next owner beside the queue. To the store they are bytes.

use std::io;

use super::guard::guarded;
use super::{Store, StoreError, tables};

impl Store {
    /// Keeps these bytes, or forgets what was kept, in a transaction of its own. On a disk where there is no room but for acks
    /// nothing is tried.
    pub(crate) fn keep_definitions(&self, content: Option<&[u8]>) -> Result<(), StoreError> {
        self.check_process()?;
        let writer = self.writer();
        if content.is_some() && self.place().is_some_and(|place| writer.reserve.is_missed(place)) {
            return Err(StoreError::NoSpace(io::ErrorKind::StorageFull.into()));
        }
        self.with_database(|db| {
            let transaction = tables::begin(db)?;
            tables::write_definitions(&transaction, content)?;
            Ok(transaction.commit()?)
        })?;
        Ok(())
    }

    /// What was kept; `None` also if it cannot be read, which is no damage of the queue.
    pub(crate) fn kept_definitions(&self) -> Option<Vec<u8>> {
        self.check_process().ok()?;
        let opened = self.opened.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let open = opened.as_ref().filter(|_| !self.is_latched())?;
        guarded(|| tables::read_definitions(&open.db)).ok()?
    }
}
