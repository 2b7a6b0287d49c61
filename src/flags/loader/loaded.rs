//! What callers see of the loader: the definitions that are evaluated with, and why there are none.

use super::super::LocalFlags;
use crate::sys::clock::WallNanos;

/// The definitions that flags are evaluated with at the moment. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct LoadedFlags {
    /// Ready to be evaluated.
    pub(crate) flags: LocalFlags,
    /// When PostHog, or the provider, last said that these are the newest.
    pub(crate) fetched_at: WallNanos,
    /// An earlier process fetched them, and nobody has said since that they are the newest.
    pub(crate) is_restored: bool,
}

/// How the definitions of flags are. See [`Client::flag_definitions_state`](crate::Client::flag_definitions_state).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlagDefinitionsState {
    /// There are none: no flag is evaluated here.
    Missing,
    /// They are those that an earlier process fetched, and have not been confirmed yet.
    Restored,
    /// The last attempt to load them worked.
    Fresh,
    /// The last attempt to load them failed: they are those of an earlier one.
    Stale,
}

/// Why definitions of flags were not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlagDefinitionsError {
    /// There is neither a secret key ([`Config::secret_key`](crate::Config::secret_key)) nor a provider, so there is nobody to load from.
    #[error("feature flag definitions are not loaded: there is neither a Config::secret_key nor a provider")]
    NotConfigured,
    /// No answer, or none that is of use. Definitions that were there already stay.
    #[error("feature flag definitions cannot be loaded: {0}; those loaded before stay in use")]
    Unavailable(String),
    /// PostHog refuses the secret key (401, 403) or the quota is used up (402). Definitions that were there are no longer used.
    #[error(
        "PostHog refuses feature flag definitions (HTTP status {status}: {why}); those loaded before are not used any more; check \
         Config::secret_key and the quota"
    )]
    Refused {
        /// The HTTP status.
        status: u16,
        /// In PostHog's words.
        why: String,
    },
    /// What came is no document of definitions. Those that were there already stay.
    #[error("feature flag definitions cannot be read: {0}; those loaded before stay in use")]
    Unreadable(String),
    /// The provider has none, or failed. Definitions that were there already stay.
    #[error("the provider of feature flag definitions has none: {0}")]
    Provider(String),
    /// The client is closed.
    #[error("the client is closed")]
    Closed,
    /// This process is a forked child that has captured nothing yet, or it waits for what its parent had asked.
    #[error("this forked process has no client of its own before its first capture")]
    Forked,
}
