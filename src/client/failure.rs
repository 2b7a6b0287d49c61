//! A start that failed, in terms of what the caller can do.
//!
//! The text says what is wrong and what to do about it, and the source what the system said: whoever prints the whole chain reads
//! neither twice.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::journal::JournalError;
use crate::shard::{ClaimError, ShardError};
use crate::store::StoreError;
use crate::transport::TransportError;
use crate::worker::StartError;

const ANOTHER: &str = "choose a directory on a local disk that this user may write to (queue_dir)";

type Source = Box<dyn StdError + Send + Sync>;

pub(super) fn explain(error: StartError, dir: PathBuf) -> Error {
    match error {
        StartError::Shard(source) => unusable(source, dir),
        StartError::Transport(source) => unreachable_endpoint(source),
        StartError::Thread(source) => Error::Resources(source),
        StartError::Timeout => Error::Timeout { path: dir },
        StartError::Panicked => {
            let why =
                "opening it failed in an unforeseen way, please report this; the queue's files are as they were".into();
            Error::QueueDir { path: dir, why, source: None }
        }
    }
}

/// Each by the setter that is to be mended.
fn unreachable_endpoint(error: TransportError) -> Error {
    match error {
        TransportError::BadProxy { reason } => {
            Error::config("proxy", format!("is not usable: {reason}; give http://[user:password@]host[:port]"))
        }
        TransportError::BadCertificate { number } => {
            Error::config("ca_certificate", format!("number {number} is not a PEM certificate"))
        }
        TransportError::BadHeader { name } => {
            Error::config("header", format!("{name:?} has a name or a value that HTTP does not allow"))
        }
        other => Error::Resources(io::Error::other(other)),
    }
}

fn unusable(error: ShardError, dir: PathBuf) -> Error {
    let (at, source): (PathBuf, Source) = match error {
        ShardError::Claim(ClaimError::Io { path, source })
        | ShardError::Io { path, source }
        | ShardError::Journal(JournalError::File { path, source }) => return refused(&path, source, dir),
        ShardError::Store { dir: at, source: StoreError::Io(source) | StoreError::NoSpace(source) } => {
            return refused(&at, source, dir);
        }
        ShardError::Store { dir: at, source } => (at, source.into()),
        // What these say is said in words for the caller already, and has nothing below it.
        other => return Error::QueueDir { path: dir, why: format!("{other}; {ANOTHER}"), source: None },
    };
    let why = format!("the queue in it cannot be opened{}; {ANOTHER}", below(&dir, &at));
    Error::QueueDir { path: dir, why, source: Some(source) }
}

/// The system refused something at that path.
fn refused(at: &Path, source: io::Error, dir: PathBuf) -> Error {
    let what = match source.kind() {
        // The first is what making a directory says where there is a file.
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => "it is not a directory, or lies below a file",
        io::ErrorKind::PermissionDenied => "this user may not write to it",
        io::ErrorKind::ReadOnlyFilesystem => "its file system is read-only",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "its disk has no room for a queue",
        _ => "it cannot be used",
    };
    let why = format!("{what}{}; {ANOTHER}", below(&dir, at));
    Error::QueueDir { path: dir, why, source: Some(source.into()) }
}

/// Where in the directory it was, if it was not the directory itself.
fn below(dir: &Path, at: &Path) -> String {
    match at.strip_prefix(dir) {
        Ok(rest) if !rest.as_os_str().is_empty() => format!(" (met at {rest:?})"),
        _ => String::new(),
    }
}
