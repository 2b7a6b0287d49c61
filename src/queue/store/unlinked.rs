//! A store whose directory was deleted goes on without a name: its file lives as long as it is open, and ends with the process.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::backend::StoreFile;
use super::guard::guarded;
use super::place::Place;
use super::rows::State;
use super::{Open, OpenReport, Store, StoreError, open};

impl Store {
    /// Whether no name leads to its file any more.
    pub(crate) fn is_unlinked(&self) -> bool {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let file = opened.as_ref().and_then(|open| open.file.as_ref());
        // One that is not open at the moment cannot be opened again if its name is gone.
        let is_gone = |place: &Place| place.disk.exists(&place.queue()).is_ok_and(|exists| !exists);
        file.map_or_else(|| self.place.as_ref().is_none_or(is_gone), StoreFile::is_unlinked)
    }

    /// Goes on without touching any name. For a store that is unlinked.
    pub(crate) fn become_unlinked(&self) {
        self.unlinked.store(true, Ordering::Release);
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = opened.as_ref().and_then(|open| open.file.as_ref()) {
            file.become_unlinked();
        }
        drop(opened);
        // Whoever makes a new queue there, in this process too, may have the name.
        self.registration.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Opens the file again that has no name, and begins anew in memory where that fails. What is lost then is counted.
    pub(super) fn reopen_unlinked(
        &self,
        file: Option<StoreFile>,
        state: State,
    ) -> Result<(open::Opened, OpenReport), StoreError> {
        self.reopen_as_it_is(file).or_else(|_| self.start_over_in_memory(state))
    }

    /// Opens the file again without touching any name.
    pub(super) fn reopen_as_it_is(&self, file: Option<StoreFile>) -> Result<(open::Opened, OpenReport), StoreError> {
        let file = file.ok_or(StoreError::Latched)?;
        let opened = guarded(|| {
            let db = self.options.builder().create_with_backend(file.clone())?;
            open::opened(db, file, &self.options.identity.project_hash)
        })?;
        Ok((opened, OpenReport::default()))
    }
}

impl Open {
    /// Closes the database. What stays is the file, if it has one.
    pub(super) fn close(self) -> Option<StoreFile> {
        let Open { db, file } = self;
        let _ = guarded(|| Ok(db.close()?));
        file
    }
}
