//! Why a snapshot lacks something.

use crate::flags::{Answer, Failure};

/// Why a [`FeatureFlags`](crate::FeatureFlags) may lack something, or is older than it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlagsProblem {
    /// Neither was a distinct id given, nor is a request being served that has one.
    #[error("there is nobody to evaluate flags for: neither the FlagContext nor the current Context has a distinct id")]
    Nobody,
    /// The client is disabled.
    #[error("the client is disabled")]
    Disabled,
    /// The client is closed, or could not be opened in a forked child.
    #[error("the client is closed")]
    Closed,
    /// PostHog gave no answer in the time that there was.
    #[error("PostHog did not answer in time")]
    Timeout,
    /// PostHog could not be asked, or what came was no answer.
    #[error("PostHog did not answer: {why}")]
    NoAnswer {
        /// What happened.
        why: String,
    },
    /// PostHog evaluates no flags, because the quota is used up.
    #[error("PostHog evaluates no flags, because the quota is used up")]
    QuotaLimited,
    /// PostHog could not evaluate all of them.
    #[error("PostHog could not evaluate all flags")]
    Incomplete,
}

impl FlagsProblem {
    pub(super) fn of(answer: &Answer) -> Option<Self> {
        match &answer.failure {
            Some(Failure::Timeout) => Some(FlagsProblem::Timeout),
            Some(Failure::Closed) => Some(FlagsProblem::Closed),
            Some(other) => Some(FlagsProblem::NoAnswer { why: other.to_string() }),
            None if answer.is_quota_limited => Some(FlagsProblem::QuotaLimited),
            None if answer.has_errors => Some(FlagsProblem::Incomplete),
            None => None,
        }
    }
}
