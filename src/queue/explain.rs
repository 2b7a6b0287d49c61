//! A failure of the queue's storage in a line for an operator.

use std::error::Error;
use std::io;
use std::path::Path;

use super::advice::advise;
use super::{ClaimError, ShardError};
use crate::queue::journal::JournalError;
use crate::queue::store::StoreError;
use crate::sys::disk::Disk;

impl ShardError {
    /// What failed and what helps.
    pub(crate) fn explain(&self, disk: &Disk) -> String {
        match self.of_system() {
            Some((path, source)) => explain_io(disk, path, source),
            None => chain(self),
        }
    }

    /// The system's error, and where it was met.
    fn of_system(&self) -> Option<(&Path, &io::Error)> {
        match self {
            ShardError::Claim(ClaimError::Io { path, source })
            | ShardError::Io { path, source }
            | ShardError::Journal(JournalError::File { path, source })
            | ShardError::Store { dir: path, source: StoreError::Io(source) | StoreError::NoSpace(source) } => {
                // What we have made up ourselves says it all.
                source.raw_os_error().map(|_| (path.as_path(), source))
            }
            _ => None,
        }
    }
}

/// The error with those below it, each once.
fn chain(error: &ShardError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(link) = next {
        let part = link.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        next = link.source();
    }
    text
}

/// The same for an error that is no [`ShardError`].
pub(crate) fn explain_io(disk: &Disk, path: &Path, source: &io::Error) -> String {
    let at = if path.as_os_str().is_empty() { String::new() } else { format!("{}: ", path.display()) };
    match source.raw_os_error() {
        Some(_) => format!("{at}{source}: {}", advise(disk, source, path, None)),
        None => format!("{at}{source}"),
    }
}
