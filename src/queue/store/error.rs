//! What can go wrong in the store, and what to do about it.

use std::io;
use std::path::PathBuf;

/// Why a call into the store failed. Every variant but [`StoreError::Latched`] names its cause; what to do next stands in the text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// This process has the file open already.
    #[error("{} is open in this process already", path.display())]
    AlreadyOpen {
        /// The file.
        path: PathBuf,
    },
    /// A newer version of this library wrote the file; it was not touched.
    #[error("a newer version of this library wrote it (schema {found}, this one reads up to {known})")]
    Newer {
        /// The version found.
        found: u32,
        /// The highest version this library reads.
        known: u32,
    },
    /// The file belongs to another key or host; it was not touched.
    #[error("the file belongs to another project key or host")]
    OtherProject,
    /// This process is a forked child of the one that opened the store.
    #[error("the file belongs to the process that this one was forked from")]
    Forked,
    /// An earlier call failed; nothing works until the store is reopened.
    #[error("the queue's file is closed after a failure, and opened again after a delay")]
    Latched,
    /// The file system is full, or the quota is used up.
    #[error("the disk or the quota has no room for the queue's file")]
    NoSpace(#[source] io::Error),
    /// The disk failed.
    #[error("the queue's file could not be read or written")]
    Io(#[source] io::Error),
    /// The file is not what was written.
    #[error("the queue's file is damaged; it is renamed when it is opened again, and what can be read of it is kept")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database panicked.
    #[error("the database panicked ({message}); its file is checked when it is opened again")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// The arena was checkpointed before: a repeat after a crash, or after a commit whose failure was reported and yet took effect.
    #[error("the arena of epoch {given} (lane {lane}) was stored before (up to {stored})")]
    AlreadyCarried {
        /// The lane.
        lane: u8,
        /// The newest epoch in the store.
        stored: u64,
        /// The epoch that was to be checkpointed.
        given: u64,
    },
    /// A single row is larger than the database takes.
    #[error("a row of {bytes} bytes is larger than the database takes")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

impl StoreError {
    /// Damage found by ourselves.
    pub(super) fn damaged(what: &str) -> Self {
        Self::Damaged(what.into())
    }

    /// Whether the file must be checked, and perhaps set aside, before anything in it is trusted again.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::Panicked { .. })
    }

    /// Whether the database refuses every call after this one.
    pub(super) fn latches(&self) -> bool {
        matches!(self, Self::NoSpace(_) | Self::Io(_) | Self::Damaged(_) | Self::Panicked { .. } | Self::Latched)
    }

    fn from_redb(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(error) => error.into(),
            redb::Error::PreviousIo | redb::Error::DatabaseClosed => Self::Latched,
            redb::Error::ValueTooLarge(bytes) => Self::TooLarge { bytes },
            redb::Error::LockPoisoned(at) => Self::Panicked { message: format!("lock poisoned at {at}") },
            // Tables of other types or other names, a foreign format, a tree that contradicts itself: none of it is ours.
            other => Self::Damaged(Box::new(other)),
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace(error),
            // How the database says "not mine", and how a file that was cut short shows itself.
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
}
