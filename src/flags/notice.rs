//! What the loader and the requests for values report to an operator.

/// Something about flags that an operator may want to know. Reported when it begins, not each time it is met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// PostHog did not respond to requests for values. At most one a minute.
    Unanswered {
        /// Why the last of them failed.
        why: String,
        /// The number of requests this notice stands for.
        requests: u64,
    },
    /// These flags in a response, or in loaded definitions, cannot be parsed.
    Unreadable {
        /// The first of their keys.
        keys: Vec<String>,
    },
    /// Definitions cannot be loaded. Reported again if the reason changes.
    DefinitionsUnavailable {
        /// In one line.
        why: String,
    },
    /// Definitions can be loaded again.
    DefinitionsRecovered,
    /// The provider failed, or definitions cannot be kept for the next process. Once until the operation has succeeded
    /// again.
    CacheFailed {
        /// `should_fetch`, `read`, `store`, `shutdown` or `keep`.
        operation: &'static str,
        /// In one line.
        why: String,
    },
}
