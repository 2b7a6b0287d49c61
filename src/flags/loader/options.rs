//! What a loader is told, and what it tells.

use std::fmt::{self, Debug};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::kept::Restored;
use super::provider::Provider;
use crate::sys::clock::Clock;
use crate::transport::Http;

/// A key that may read a project's definitions. It is sent to PostHog, and neither shown nor stored anywhere.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretKey(String);

impl SecretKey {
    /// A key as the program gave it.
    pub(crate) fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// For the header that it goes into.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// What to load, and how often. There is a loader only where there is a secret key or a provider.
#[derive(Clone, Debug)]
pub(crate) struct LoaderOptions {
    /// Of PostHog, without a slash at the end.
    pub(crate) host: String,
    /// The project's own, public key.
    pub(crate) api_key: String,
    /// Without it there is only what the provider has.
    pub(crate) secret_key: Option<SecretKey>,
    /// From the end of one load to the next.
    pub(crate) interval: Duration,
    /// For one request.
    pub(crate) timeout: Duration,
    /// A server may make us wait so long and no longer.
    pub(crate) retry_after_cap: Duration,
    /// Asked before PostHog is.
    pub(crate) provider: Option<Provider>,
    /// What is loaded is kept for the next process, in so many bytes at most; `None` if it is not.
    pub(crate) keep: Option<usize>,
}

/// Starts a thread on which code of the program may block.
pub(crate) type Spawn = Arc<dyn Fn(Box<dyn FnOnce() + Send>) -> io::Result<()> + Send + Sync>;

/// What a loader works with.
#[derive(Clone)]
pub(crate) struct LoaderParts {
    /// What to load.
    pub(crate) options: LoaderOptions,
    /// The way to PostHog.
    pub(crate) http: Arc<dyn Http>,
    /// The time, by which it sleeps.
    pub(crate) clock: Clock,
    /// What an earlier process left, if anything.
    pub(crate) restored: Option<Restored>,
    /// Where a provider that blocks is asked.
    pub(crate) spawn: Spawn,
    /// Has that kept for the next process, or what was kept forgotten. Does not wait.
    pub(crate) keep: Arc<dyn Fn(Keep) + Send + Sync>,
    /// Hears of everything a human might want to know.
    pub(crate) report: Arc<dyn Fn(Notice) + Send + Sync>,
}

/// What the next process is to find.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// These bytes.
    These(Vec<u8>),
    /// Nothing: what was kept is not to be used any more.
    Nothing,
}

/// Something that happened while definitions were loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// They cannot be loaded. Told when that begins, and when it becomes something else.
    Unavailable {
        /// In one line.
        why: String,
    },
    /// They can be loaded again.
    Recovered,
    /// These flags' definitions cannot be read; told once for each version of the definitions.
    Unreadable {
        /// The first of them.
        keys: Vec<String>,
    },
    /// The provider failed, or what was loaded cannot be kept. Told once until the same has worked again.
    CacheFailed {
        /// `should_fetch`, `read`, `store`, `shutdown` or `keep`.
        operation: &'static str,
        /// In one line.
        why: String,
    },
}
