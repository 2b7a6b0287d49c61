//! Errors of the queue, and the guard that turns a panic of the database into one of them.
//!
//! A leaf: every other file of the queue uses it, and it uses none of them.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// Why a queue could not be opened, or an operation on it failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("no directory is configured")]
    NoDirectory,
    /// A directory, a lock or the status page could not be used.
    #[error("{path:?}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// A directory belongs to another user, or every user may write to it.
    #[error("{0}")]
    Exposed(io::Error),
    /// The file system granted the same lock twice, or does not support locks.
    #[error("the file system of {path:?} has no working file locks")]
    NoLocks { path: PathBuf },
    /// Every shard that the directory may hold is held by a process.
    #[error("all {most} queues that {path:?} may hold are in use by other processes")]
    TooMany { path: PathBuf, most: u32 },
    /// The shard of this number cannot be claimed for a reason of its own. Others may still be claimed.
    #[error("{source}")]
    Shard { number: u32, source: Box<QueueError> },
    /// A newer version of this library wrote the queue. It was not changed.
    #[error(
        "a newer version of this library wrote it (format {version}); a program with that version is needed to read it"
    )]
    Newer { dir: PathBuf, version: u64 },
    /// An arena of the journal could not be created, opened or read.
    #[error("journal file {path:?}: {source}")]
    JournalFile { path: PathBuf, source: io::Error },
    /// A newer version of this library wrote the arena.
    #[error("a newer version of this library wrote journal file {path:?} (format {version})")]
    JournalNewer { path: PathBuf, version: u32 },
    /// Memory for an arena could not be allocated.
    #[error("no memory for a journal of {}: {source}", crate::sys::wording::bytes(*bytes as u64))]
    NoMemory { bytes: usize, source: io::Error },
    /// A call into the store of the queue in `dir` failed.
    #[error("{source} (in {dir:?})")]
    Store { dir: PathBuf, source: StoreError },
}

impl QueueError {
    /// Whether the store could not be read at once, because another thread needs the database alone at this moment.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Store { source: StoreError::Busy, .. })
    }

    /// Whether every other shard would fail in the same way: the disk is full or read-only, locks do not work, or the
    /// process has no memory or file descriptor left.
    pub(crate) fn concerns_all_shards(&self) -> bool {
        match self {
            Self::Io { source, .. }
            | Self::JournalFile { source, .. }
            | Self::Store { source: StoreError::Io(source), .. } => is_of_the_machine(source),
            Self::Store { source, .. } => matches!(source, StoreError::NoSpace(_) | StoreError::Forked),
            Self::NoDirectory | Self::NoLocks { .. } | Self::TooMany { .. } | Self::NoMemory { .. } => true,
            Self::Exposed(_) | Self::Shard { .. } | Self::Newer { .. } | Self::JournalNewer { .. } => false,
        }
    }
}

/// Whether an error is about the disk or the process, rather than the file or directory at which it occurred.
pub(super) fn is_of_the_machine(error: &io::Error) -> bool {
    use io::ErrorKind::{OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | OutOfMemory)
        || matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE))
}

/// Why a call into the store failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// This process has the store open already.
    #[error("{} is open in this process already", path.display())]
    AlreadyOpen { path: PathBuf },
    /// A newer version of this library wrote the file. It was not changed.
    #[error("a newer version of this library wrote it (schema {found}, this one reads up to {known})")]
    Newer { found: u32, known: u32 },
    /// The file belongs to another project. It was not changed.
    #[error("the file belongs to another project key or host")]
    OtherProject,
    /// This process is a forked child of the one that opened the store.
    #[error("the file belongs to the process that this one was forked from")]
    Forked,
    /// An earlier call failed. Every call fails until the store is reopened.
    #[error("the queue's file is closed after a failure, and opened again after a delay")]
    Latched,
    /// The database is being reopened, compacted or closed, and the call does not wait for that.
    #[error("the queue's file is being opened again or compacted")]
    Busy,
    /// The file system is full, or the quota is used up.
    #[error("the disk or the quota has no room for the queue's file")]
    NoSpace(#[source] io::Error),
    /// The disk reported an error.
    #[error("the queue's file could not be read or written")]
    Io(#[source] io::Error),
    /// The content of the file is not what was written.
    #[error("the queue's file is damaged; it is renamed when it is opened again, and what can be read of it is kept")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database panicked.
    #[error("the database panicked ({message}); its file is checked when it is opened again")]
    Panicked { message: String },
    /// The arena is in the store already: the checkpoint is repeated after a crash, or after a commit that reported a
    /// failure and took effect.
    #[error("the arena of epoch {given} was stored before (up to {stored})")]
    AlreadyCheckpointed { stored: u64, given: u64 },
    /// A single row is larger than the database takes.
    #[error("a row of {bytes} bytes is larger than the database takes")]
    TooLarge { bytes: usize },
}

impl StoreError {
    /// Damage that the store detected itself.
    pub(super) fn damaged(what: &str) -> Self {
        Self::Damaged(what.into())
    }

    /// Whether the file must be checked, and perhaps replaced, before it is trusted again.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::Panicked { .. })
    }

    /// Whether the database refuses every call after this error.
    pub(super) fn latches(&self) -> bool {
        matches!(self, Self::NoSpace(_) | Self::Io(_) | Self::Damaged(_) | Self::Panicked { .. } | Self::Latched)
    }

    fn from_redb(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(error) => error.into(),
            redb::Error::PreviousIo | redb::Error::DatabaseClosed => Self::Latched,
            redb::Error::ValueTooLarge(bytes) => Self::TooLarge { bytes },
            redb::Error::LockPoisoned(at) => Self::Panicked { message: format!("lock poisoned at {at}") },
            // Tables of other types or names, a foreign format, an inconsistent tree: the file is not as this library
            // wrote it.
            other => Self::Damaged(Box::new(other)),
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace(error),
            // The database reports a foreign file as invalid data; a truncated file ends unexpectedly.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::Damaged(Box::new(error)),
            _ => Self::Io(error),
        }
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::from_redb(error.into())
            }
        })*
    };
}

from_redb!(CommitError, CompactionError, DatabaseError, SetDurabilityError, StorageError, TableError, TransactionError);

/// Runs a call that may panic, and turns a panic into an error. Afterwards nothing that the call touched may be used,
/// except to be closed.
pub(super) fn guarded<T>(call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // State left by a panic is never read: the caller latches the store, and a latched store only closes its database.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
        let message = match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => payload.downcast_ref::<&str>().copied().unwrap_or("no message").to_owned(),
        };
        Err(StoreError::Panicked { message })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_full_quota_are_no_space() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let error = StoreError::from(redb::StorageError::Io(kind.into()));
            assert!(matches!(error, StoreError::NoSpace(_)), "{kind}: {error:?}");
        }
    }

    #[test]
    fn a_failing_disk_is_not_mistaken_for_damage() {
        let error = StoreError::from(io::Error::other("bad sector"));
        assert!(!error.is_damage() && error.latches());
    }

    #[test]
    fn a_file_cut_short_and_a_foreign_file_are_damage() {
        assert!(StoreError::from(io::Error::from(io::ErrorKind::UnexpectedEof)).is_damage());
        assert!(StoreError::from(io::Error::new(io::ErrorKind::InvalidData, "magic")).is_damage());
        assert!(StoreError::from(redb::TableError::TableDoesNotExist("meta".into())).is_damage());
    }

    #[test]
    fn a_panic_becomes_an_error_with_its_message() {
        for text in ["from a literal", "from a String"] {
            let outcome: Result<(), _> = guarded(|| {
                if text.ends_with("String") {
                    std::panic::panic_any(text.to_owned())
                } else {
                    std::panic::panic_any(text)
                }
            });
            assert!(matches!(outcome, Err(StoreError::Panicked { message }) if message == text));
        }
    }
}
