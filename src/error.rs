//! What a caller can do something about.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use crate::pipeline::advice::advise_resource;
use crate::sys::limits::OPEN_TIMEOUT;
use crate::sys::wording::time;

/// Why a client could not be made, or something process-wide could not be installed.
///
/// # Design
///
/// The variants are what a caller can act upon: mend the configuration, mend the directory, upgrade, or give up. Whatever lies
/// underneath is the [`source`](StdError::source), and is not said twice: print the whole chain. Nothing that happens *after* a client was made is an error: a capture says what
/// became of it in its receipt, and everything else is a [`Diagnostic`](crate::Diagnostic).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its bounds, malformed, or contradicts another.
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
        /// What the system said, if it said anything; not repeated in the text.
        #[source]
        source: Option<Box<dyn StdError + Send + Sync>>,
    },
    /// The queue directory did not answer in time; a network file system that hangs does this.
    #[error(
        "opening the queue in {path:?} took longer than {}: its file system does not answer, or a large queue is being checked; try again, \
         or choose a directory on a local disk (queue_dir)",
        time(OPEN_TIMEOUT)
    )]
    Timeout {
        /// The directory.
        path: PathBuf,
    },
    /// The system gave us no thread, or no event loop, or no HTTP client.
    #[error("{}", lacking(.0))]
    Resources(#[source] io::Error),
    /// [`init`](crate::init) was called before, in this process.
    #[error("posthog::init was called before in this process; posthog::client() has that client")]
    AlreadyInitialised,
    /// Something process-wide was installed before, in this process; it stays as it was.
    #[error("posthog::{0} was called before in this process, and stays as it was set up then")]
    AlreadyInstalled(&'static str),
}

impl Error {
    /// Whether the configuration is to blame.
    pub fn is_config(&self) -> bool {
        matches!(self, Error::Config { .. })
    }

    /// Whether the queue directory is to blame.
    pub fn is_queue_dir(&self) -> bool {
        matches!(self, Error::QueueDir { .. } | Error::Timeout { .. })
    }

    /// The whole chain in one line.
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

/// What a thread, a descriptor or memory could not be had for.
fn lacking(source: &io::Error) -> String {
    match source.kind() {
        // What starting a thread says.
        io::ErrorKind::WouldBlock => {
            "the system gives this process no further thread; raise the limit (ulimit -u, TasksMax= of systemd, \
                                      pids.max of the container)"
                .to_owned()
        }
        _ if source.raw_os_error().is_some() => advise_resource(source),
        _ => "not possible in this process".to_owned(),
    }
}
