//! What is known of flags for one context: the common form of what was evaluated here and what PostHog answered.

use std::collections::BTreeMap;

use serde_json::Value;

use super::FlagValue;

/// What is known of one flag.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Evaluated {
    pub(crate) value: FlagValue,
    /// Of that value.
    pub(crate) payload: Option<Value>,
    pub(crate) id: Option<u64>,
    pub(crate) version: Option<u64>,
    pub(crate) reason: Option<String>,
    pub(crate) has_experiment: Option<bool>,
    /// Evaluated here; else by PostHog.
    pub(crate) is_local: bool,
}

/// What is known of the flags that were asked for. What is not in `flags` has no value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) flags: BTreeMap<String, Evaluated>,
    /// PostHog's, if it was asked.
    pub(crate) request_id: Option<String>,
    /// Milliseconds since 1970.
    pub(crate) evaluated_at: Option<i64>,
    /// PostHog could not evaluate all of them.
    pub(crate) has_errors: bool,
    /// PostHog evaluates none, for want of quota.
    pub(crate) is_quota_limited: bool,
    /// PostHog was asked and gave no answer: what is here is older, or was evaluated here.
    pub(crate) failure: Option<Failure>,
    /// `$feature_flag_called` of flags without an experiment is wanted in its small form.
    pub(crate) wants_minimal_events: bool,
}

/// Why PostHog gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// In all the time that there was.
    #[error("no answer in time")]
    Timeout,
    /// Nobody was reached.
    #[error("no connection: {0}")]
    Connection(String),
    /// An answer that is none.
    #[error("HTTP status {status}{}{why}", if why.is_empty() { "" } else { ": " })]
    Status {
        /// The HTTP status.
        status: u16,
        /// The beginning of what was said.
        why: String,
    },
    /// Something that is not an answer to this question.
    #[error("its answer cannot be read: {0}")]
    Unreadable(String),
    /// Not even asked.
    #[error("too many requests for flags are under way already")]
    Busy,
    /// Not asked: the question comes of a line that a package below us has logged, of a request of ours.
    #[error(
        "it is not asked from a log line about a request of the client's own, for that request would be the cause of the next"
    )]
    Reentrant,
    /// The client is closed or forked.
    #[error("the client is closed")]
    Closed,
}

impl Failure {
    /// As `$feature_flag_error` names it, in the words of PostHog's own libraries.
    pub(crate) fn name(&self) -> String {
        match self {
            Failure::Timeout => "timeout".to_owned(),
            Failure::Connection(_) => "connection_error".to_owned(),
            Failure::Status { status, .. } => format!("api_error_{status}"),
            Failure::Unreadable(_) | Failure::Busy | Failure::Reentrant | Failure::Closed => "unknown_error".to_owned(),
        }
    }
}
