//! Turns a failed start into a public [`Error`]: its text says what is wrong and what to do, its source what the system
//! said, so that a caller who prints the whole chain reads nothing twice.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::pipeline::advice::{advise, explain_queue};
use crate::pipeline::{PipelineOptions, StartError};
use crate::queue::{QueueError, StoreError};
use crate::sys::disk::Disk;
use crate::transport::TransportError;

const ANOTHER: &str = "choose a directory on a local disk that this user may write to (queue_dir, POSTHOG_QUEUE_DIR)";

/// Bytes of a new queue's files besides the arena and the reserve: the store and the status page.
const REST_BYTES: u64 = 1024 * 1024;

/// Where a queue was to be opened.
pub(super) struct Place {
    dir: PathBuf,
    /// Disk space that a new queue takes at once.
    needed: u64,
    disk: Disk,
}

impl Place {
    pub(super) fn of(options: &PipelineOptions) -> Self {
        let needed =
            (options.queue.arena_bytes as u64).saturating_add(options.queue.reserve_bytes).saturating_add(REST_BYTES);
        Self { dir: options.queue.queue_dir.clone(), needed, disk: options.disk.clone() }
    }
}

pub(super) fn explain(error: StartError, place: &Place) -> Error {
    let path = place.dir.clone();
    match error {
        StartError::Queue(source) => unusable(source, place),
        StartError::Transport(source) => unusable_transport(source),
        StartError::Thread(source) => Error::Resources(source),
        StartError::Timeout => Error::Timeout { path },
        StartError::Panicked => {
            let why = "opening it panicked, which is a defect of this library (please report it); the queue's files are as they were";
            Error::QueueDir { path, why: why.into(), source: None }
        }
    }
}

/// Names the setting to be corrected.
fn unusable_transport(error: TransportError) -> Error {
    match error {
        TransportError::BadProxy { reason } => {
            Error::config("proxy", format!("is not usable: {reason}; give http://[user:password@]host[:port]"))
        }
        TransportError::BadCertificate { number } => {
            Error::config("ca_certificate", format!("number {number} is not a PEM certificate"))
        }
        TransportError::BadIdentity { why } => Error::config("client_identity", format!("cannot be used: {why}")),
        TransportError::BadHeader { name } => {
            Error::config("header", format!("{name:?} has a name or a value that HTTP does not allow"))
        }
        other => Error::Resources(io::Error::other(other)),
    }
}

fn unusable(error: QueueError, place: &Place) -> Error {
    let path = place.dir.clone();
    let (at, source): (PathBuf, Box<dyn StdError + Send + Sync>) = match error {
        QueueError::Io { path: at, source }
        | QueueError::JournalFile { path: at, source }
        | QueueError::Store { dir: at, source: StoreError::Io(source) | StoreError::NoSpace(source) } => {
            let why = advise(&place.disk, &source, &at, Some(place.needed)) + &below(&path, &at);
            return Error::QueueDir { path, why, source: Some(source.into()) };
        }
        QueueError::NoMemory { source, .. } => {
            let why = advise(&place.disk, &source, &path, Some(place.needed));
            return Error::QueueDir { path, why, source: Some(source.into()) };
        }
        QueueError::Store { dir: at, source } => (at, source.into()),
        // Their texts are written for the caller, and they have no source.
        other => {
            return Error::QueueDir {
                path,
                why: format!("{}; {ANOTHER}", explain_queue(&place.disk, &other)),
                source: None,
            };
        }
    };
    let why = format!("the queue in it cannot be opened{}; {ANOTHER}", below(&path, &at));
    Error::QueueDir { path, why, source: Some(source) }
}

/// The path within the directory, if the error was not about the directory itself.
fn below(dir: &Path, at: &Path) -> String {
    match at.strip_prefix(dir) {
        Ok(rest) if !rest.as_os_str().is_empty() => format!(" (met at {rest:?})"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_error_is_explained_by_its_number() {
        let place = Place { dir: "/nowhere/queue".into(), needed: 10 << 20, disk: Disk::default() };
        let said = |code: i32| {
            let source = io::Error::from_raw_os_error(code);
            let at = PathBuf::from("/nowhere/queue/0123/shard-0/journal-0");
            explain(StartError::Queue(QueueError::Io { path: at, source }), &place).describe()
        };
        let full = said(nix_errno::ENOSPC);
        assert!(full.contains("about 10 MiB needed") && full.contains("journal-0"), "{full}");
        for (code, expected) in [
            (nix_errno::ENOMEM, "not enough memory"),
            (nix_errno::EMFILE, "RLIMIT_NOFILE"),
            (nix_errno::EROFS, "read-only"),
        ] {
            let said = said(code);
            assert!(said.contains(expected) && !said.contains("another disk"), "{said}");
        }
    }

    /// The same numbers on all supported systems.
    mod nix_errno {
        pub(super) const ENOMEM: i32 = 12;
        pub(super) const EMFILE: i32 = 24;
        pub(super) const ENOSPC: i32 = 28;
        pub(super) const EROFS: i32 = 30;
    }
}
