//! [`Error`]: why a client could not be created.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use crate::pipeline::advice::advise_resource;
use crate::sys::limits::OPEN_TIMEOUT;
use crate::sys::wording::time;

/// Why a client could not be created, or why a process-wide handler could not be installed.
///
/// The variants are what a caller can act on: fix a setting, fix the directory, or continue without the client. The
/// underlying failure is the [`source`](StdError::source) and is not repeated in the text; print the whole chain.
/// Nothing that happens *after* a client was created is an error: a capture returns its outcome in a receipt, and
/// everything else is a [`Diagnostic`](crate::diagnostics::Diagnostic).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of bounds, malformed, or contradicts another.
    #[error("invalid configuration: {field} {why}")]
    Config {
        /// The name of the setting, as in [`Config`](crate::Config).
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The queue directory cannot be used. The text says what to do.
    #[error("cannot use queue directory {path:?}: {why}")]
    QueueDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
        /// The failure of the system, if there was one; not part of the text.
        #[source]
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// The queue directory did not answer in time; a network file system that hangs does this.
    #[error(
        "opening the queue in {path:?} took longer than {}: its file system does not answer, or a large queue is being checked; try again, \
         or choose a directory on a local disk (queue_dir, POSTHOG_QUEUE_DIR)",
        time(OPEN_TIMEOUT)
    )]
    Timeout {
        /// The directory.
        path: PathBuf,
    },
    /// The system could not start a thread, an event loop or an HTTP client.
    #[error("{}", missing_resource(.0))]
    Resources(#[source] io::Error),
    /// [`init`](crate::init) was called before in this process.
    #[error("posthog::init was called before in this process; posthog::client() returns that client")]
    AlreadyInitialized,
    /// A process-wide handler was installed before; it stays in effect.
    #[error("posthog::{0} was called before in this process; the first call stays in effect")]
    AlreadyInstalled(&'static str),
}

impl Error {
    /// Whether a setting is invalid.
    pub fn is_config(&self) -> bool {
        matches!(self, Error::Config { .. })
    }

    /// Whether the queue directory cannot be used.
    pub fn is_queue_dir(&self) -> bool {
        matches!(self, Error::QueueDir { .. } | Error::Timeout { .. })
    }

    /// The error and its sources in one line.
    pub(crate) fn describe(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(link) = next {
            text.push_str(": ");
            text.push_str(&link.to_string());
            next = link.source();
        }
        text
    }

    pub(crate) fn config(field: &'static str, why: impl Into<String>) -> Self {
        Error::Config { field, why: why.into() }
    }
}

/// Why the system gave no thread, descriptor or memory, and what to do.
fn missing_resource(source: &io::Error) -> String {
    match source.kind() {
        // The error of a thread that cannot be started.
        io::ErrorKind::WouldBlock => {
            "the system cannot start another thread for this process; raise the limit (ulimit -u, TasksMax= of systemd, \
                                      pids.max of the container)"
                .to_owned()
        }
        _ if source.raw_os_error().is_some() => advise_resource(source),
        _ => "this is not possible in this process".to_owned(),
    }
}
