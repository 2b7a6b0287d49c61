//! [`InspectError`]: why a queue could not be inspected or changed.

use std::io;
use std::path::{Path, PathBuf};

use crate::queue::QueueError;

/// Why a queue could not be inspected or changed. The text says what to do; print the whole chain of sources.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// No directory was given, and the environment names none.
    #[error("no queue directory is known: {0}; name one")]
    NoDirectory(String),
    /// The path is neither a queue directory, nor the directory of a project or of a queue.
    #[error(
        "{path:?} contains no queue: it is neither a queue directory (Config::queue_dir) nor a directory below one"
    )]
    NotAQueue {
        /// The path.
        path: PathBuf,
    },
    /// There is no queue yet, but one that an import fills or has left unfinished.
    #[error(
        "{path:?} contains no queue yet, but an import that is not finished ({}): nothing of it is sent before it is; wait while it runs, otherwise repeat the same import, which goes on (--restart begins anew)",
        import.display()
    )]
    UnfinishedImport {
        /// The path that was given.
        path: PathBuf,
        /// The queue that the import fills.
        import: PathBuf,
    },
    /// The files belong to another user.
    #[error("{path:?} may not be read or written by this user; run the command as {}", or_root(user))]
    Permission {
        /// The file or directory.
        path: PathBuf,
        /// The user that owns it, by name or number.
        user: String,
    },
    /// The queue belongs to another user. Files that this user makes in it would keep its program from opening it.
    #[error(
        "{path:?} belongs to {user}, whose program could not open it any more after this user has written to it; nothing was changed; run the command as {user}"
    )]
    OtherUser {
        /// The directory.
        path: PathBuf,
        /// The user that owns it, by name or number.
        user: String,
    },
    /// A living process owns the queue.
    #[error("process {} owns the queue {path:?}; stop it first, or wait until it has ended", pid.map_or("(unknown)".into(), |pid| pid.to_string()))]
    Owned {
        /// The queue.
        path: PathBuf,
        /// The process, if it is known: not where it runs in another container.
        pid: Option<u32>,
    },
    /// The queue of a living owner changed each time it was copied.
    #[error(
        "{path:?} is written to so fast that no consistent copy could be taken; try again when less is captured, or stop its process"
    )]
    Busy {
        /// The queue.
        path: PathBuf,
    },
    /// A newer version of this library wrote the queue, which was not changed.
    #[error("a newer version of this library wrote {path:?} (format {version}); use its posthog-queue")]
    Newer {
        /// The queue.
        path: PathBuf,
        /// The version of the format.
        version: u64,
    },
    /// A file could not be read or written.
    #[error("{path:?} could not be used")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system reported; not part of the text.
        #[source]
        source: io::Error,
    },
    /// Nothing in the queue, nor in another one of its project, says any more whose events it contains.
    #[error(
        "{path:?} does not say any more whose events it contains: its store is missing or damaged; nothing was changed; \
         `repair` and `drain` work with the host and the key of its program (--host, --key)"
    )]
    Nameless {
        /// The queue.
        path: PathBuf,
    },
    /// The queue could not be opened or changed.
    #[error("{path:?}: {why}")]
    Queue {
        /// The queue.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// What was given to the function is not valid: a line of a file that is imported, a key, a time.
    #[error("{0}")]
    Input(String),
}

impl InspectError {
    /// The error for a failure of the system at `path`.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission { path: path.into(), user: owner_of(path) },
            _ => Self::Io { path: path.into(), source },
        }
    }

    /// The error for a directory of another user.
    pub(crate) fn other_user(path: &Path) -> Self {
        Self::OtherUser { path: path.into(), user: owner_of(path) }
    }

    /// The error for a failure of the queue in `path`.
    pub(crate) fn queue(path: &Path, error: QueueError) -> Self {
        match error {
            QueueError::Io { path, source } | QueueError::JournalFile { path, source } => Self::io(&path, source),
            QueueError::Newer { dir, version } => Self::Newer { path: dir, version },
            QueueError::JournalNewer { path, version } => Self::Newer { path, version: u64::from(version) },
            QueueError::Shard { source, .. } => Self::queue(path, *source),
            error => {
                let mut why = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(cause) = source {
                    why = format!("{why}: {cause}");
                    source = cause.source();
                }
                Self::Queue { path: path.into(), why }
            }
        }
    }
}

fn or_root(user: &str) -> String {
    if user == "root" { user.to_owned() } else { format!("{user}, or as root") }
}

/// The user that owns the nearest existing directory of a path, by name if the system knows one.
pub(crate) fn owner_of(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let Some(uid) = path.ancestors().find_map(|path| Some(path.symlink_metadata().ok()?.uid())) else {
        return "its owner".into();
    };
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| format!("user {uid}"), |user| user.name)
}
