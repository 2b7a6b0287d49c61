//! Results of an evaluation: the value of a flag, why a flag has no value, and what is known of all requested flags.
//!
//! [`Answer`] is the common form of a local evaluation and of a response from PostHog; [`merge`] combines the two.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// The value of a flag for a person: on, off, or a variant of a multivariate flag.
///
/// ```
/// use posthog::feature_flags::FlagValue;
///
/// let value = FlagValue::Variant("blue".into());
/// assert!(value.is_enabled() && value == "blue");
/// assert!(!FlagValue::Boolean(false).is_enabled());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FlagValue {
    /// On or off.
    Boolean(bool),
    /// The key of a variant.
    Variant(String),
}

impl FlagValue {
    /// Whether the flag is on. A variant is on unless its key is empty.
    pub fn is_enabled(&self) -> bool {
        match self {
            FlagValue::Boolean(on) => *on,
            FlagValue::Variant(key) => !key.is_empty(),
        }
    }

    /// The key of the variant. `None` for a boolean value.
    pub fn variant(&self) -> Option<&str> {
        match self {
            FlagValue::Boolean(_) => None,
            FlagValue::Variant(key) => Some(key),
        }
    }

    /// Converts a value from PostHog's JSON. `None` if a flag cannot have this value.
    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(on) => Some(FlagValue::Boolean(*on)),
            Value::String(key) => Some(FlagValue::Variant(key.clone())),
            _ => None,
        }
    }
}

impl From<bool> for FlagValue {
    fn from(on: bool) -> Self {
        FlagValue::Boolean(on)
    }
}

impl From<&str> for FlagValue {
    fn from(key: &str) -> Self {
        FlagValue::Variant(key.to_owned())
    }
}

impl From<String> for FlagValue {
    fn from(key: String) -> Self {
        FlagValue::Variant(key)
    }
}

impl PartialEq<bool> for FlagValue {
    fn eq(&self, other: &bool) -> bool {
        matches!(self, FlagValue::Boolean(on) if on == other)
    }
}

impl PartialEq<str> for FlagValue {
    fn eq(&self, other: &str) -> bool {
        self.variant() == Some(other)
    }
}

impl PartialEq<&str> for FlagValue {
    fn eq(&self, other: &&str) -> bool {
        self.variant() == Some(*other)
    }
}

/// `true`, `false`, or the key of the variant.
impl fmt::Display for FlagValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlagValue::Boolean(on) => write!(f, "{on}"),
            FlagValue::Variant(key) => f.write_str(key),
        }
    }
}

/// A boolean or a string, as in PostHog's event properties.
impl Serialize for FlagValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            FlagValue::Boolean(on) => serializer.serialize_bool(*on),
            FlagValue::Variant(key) => serializer.serialize_str(key),
        }
    }
}

/// Why a flag cannot be evaluated locally. PostHog, which has more data, has to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum InconclusiveReason {
    /// The definitions do not contain the flag.
    #[error("the definitions do not contain this flag")]
    UnknownFlag,
    /// A condition depends on a property that was not given.
    #[error("a condition depends on a property that was not given")]
    MissingProperty,
    /// A condition uses an operator that this version of the library does not know.
    #[error("a condition uses an unknown operator")]
    UnknownOperator,
    /// The value in a condition cannot be used with the condition's operator.
    #[error("the value in a condition cannot be used with its operator")]
    UnusableCondition,
    /// A given property has a value that the condition's operator cannot compare.
    #[error("a given property cannot be compared by the operator of a condition")]
    UnusableProperty,
    /// A condition depends on a cohort that the definitions do not contain, such as a static cohort.
    #[error("a condition depends on a cohort that the definitions do not contain")]
    UnknownCohort,
    /// A condition depends on another flag that cannot be evaluated locally.
    #[error("a condition depends on another flag that cannot be evaluated locally")]
    UnresolvedDependency,
    /// The flag's dependencies on flags and cohorts are circular or nested too deep.
    #[error("the flag's dependencies are circular or nested too deep")]
    TooDeep,
    /// The flag is rolled out by group, and the person's group of that type was not given.
    #[error("the flag is rolled out by a group that was not given")]
    MissingGroup,
    /// The flag is rolled out by device, and no device id was given.
    #[error("the flag is rolled out by device and no device id was given")]
    MissingDeviceId,
    /// The flag persists a person's value across identification, and only PostHog stores these values.
    #[error("the flag persists values across identification, which only PostHog stores")]
    ExperienceContinuity,
    /// There is no distinct id, neither in the [`FlagContext`](crate::feature_flags::FlagContext) nor in the current
    /// [`Context`](crate::Context).
    #[error("there is no distinct id to evaluate the flag for")]
    NoDistinctId,
    /// The definition of the flag cannot be parsed, or contains something this version of the library does not know.
    #[error("the definition of the flag cannot be parsed")]
    Malformed,
}

/// What is known of one flag.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Evaluated {
    pub(crate) value: FlagValue,
    /// The payload of `value`.
    pub(crate) payload: Option<Value>,
    pub(crate) id: Option<u64>,
    pub(crate) version: Option<u64>,
    pub(crate) reason: Option<String>,
    pub(crate) has_experiment: Option<bool>,
    /// Evaluated locally rather than by PostHog.
    pub(crate) is_local: bool,
}

impl Evaluated {
    /// A flag of which only the value is known.
    pub(crate) fn of(value: FlagValue) -> Self {
        Self { value, payload: None, id: None, version: None, reason: None, has_experiment: None, is_local: false }
    }
}

/// What is known of the requested flags. A flag that `flags` does not contain has no value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) flags: BTreeMap<String, Evaluated>,
    /// The id of PostHog's response, if there was one.
    pub(crate) request_id: Option<String>,
    /// When PostHog evaluated the flags, in milliseconds since 1970.
    pub(crate) evaluated_at: Option<i64>,
    /// PostHog could not evaluate all flags, or some of them cannot be read.
    pub(crate) has_errors: bool,
    /// The first keys of flags in PostHog's response that cannot be read, shortened if they are long.
    pub(crate) unreadable: Vec<String>,
    /// PostHog evaluated no flags because the quota is exceeded.
    pub(crate) is_quota_limited: bool,
    /// Why the request to PostHog failed. The values are then older ones or were evaluated locally.
    pub(crate) failure: Option<Failure>,
    /// PostHog wants the minimal form of `$feature_flag_called` for flags without an experiment.
    pub(crate) wants_minimal_events: bool,
}

/// Why a request for flag values failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// No response within the timeout.
    #[error("no response in time")]
    Timeout,
    /// No connection to the server.
    #[error("no connection: {0}")]
    Connection(String),
    /// The server responded with an error status.
    #[error("HTTP status {status}{}{why}", if why.is_empty() { "" } else { ": " })]
    Status {
        /// The HTTP status.
        status: u16,
        /// The beginning of the body.
        why: String,
    },
    /// The response does not answer the request.
    #[error("the response cannot be read: {0}")]
    Unreadable(String),
    /// Too many requests are open.
    #[error("too many requests for flags are open already")]
    Busy,
    /// The evaluation was made by a logger that handles a record about one of the client's own requests.
    #[error(
        "no request is sent from inside a log record about one of the client's own requests, because it would cause the \
         next record"
    )]
    Reentrant,
    /// The client is closed, or the process is a forked child.
    #[error("the client is closed")]
    Closed,
}

impl Failure {
    /// The value of `$feature_flag_error`, named as in PostHog's SDKs.
    pub(crate) fn name(&self) -> String {
        match self {
            Failure::Timeout => "timeout".to_owned(),
            Failure::Connection(_) => "connection_error".to_owned(),
            Failure::Status { status, .. } => format!("api_error_{status}"),
            Failure::Unreadable(_) | Failure::Busy | Failure::Reentrant | Failure::Closed => "unknown_error".to_owned(),
        }
    }
}

/// Combines a local evaluation with PostHog's answer. A local value takes precedence. The result contains only
/// requested flags: a cached answer may be for more keys, and an older server ignores the list of keys.
pub(crate) fn merge(local: BTreeMap<String, Evaluated>, remote: &Answer, keys: Option<&[String]>) -> Answer {
    let mut flags = local;
    for (key, evaluated) in &remote.flags {
        if is_requested(keys, key) && !flags.contains_key(key) {
            flags.insert(key.clone(), evaluated.clone());
        }
    }
    flags.retain(|key, _| is_requested(keys, key));
    Answer {
        flags,
        request_id: remote.request_id.clone(),
        evaluated_at: remote.evaluated_at,
        has_errors: remote.has_errors,
        unreadable: Vec::new(),
        is_quota_limited: remote.is_quota_limited,
        failure: remote.failure.clone(),
        wants_minimal_events: remote.wants_minimal_events,
    }
}

/// Whether `key` is among the requested keys. `None` requests all flags.
pub(crate) fn is_requested(keys: Option<&[String]>, key: &str) -> bool {
    keys.is_none_or(|keys| keys.iter().any(|requested| requested == key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(pairs: &[(&str, &str)], is_local: bool) -> BTreeMap<String, Evaluated> {
        let evaluated = |variant: &str| Evaluated { is_local, ..Evaluated::of(variant.into()) };
        pairs.iter().map(|(key, variant)| ((*key).to_owned(), evaluated(variant))).collect()
    }

    fn shown(answer: &Answer) -> Vec<(&str, &str, bool)> {
        answer
            .flags
            .iter()
            .map(|(key, flag)| (key.as_str(), flag.value.variant().unwrap_or_default(), flag.is_local))
            .collect()
    }

    #[test]
    fn a_local_value_takes_precedence_over_posthogs() {
        let remote = Answer { flags: flags(&[("a", "theirs"), ("b", "theirs")], false), ..Answer::default() };
        let merged = merge(flags(&[("a", "ours")], true), &remote, None);
        assert_eq!(shown(&merged), [("a", "ours", true), ("b", "theirs", false)]);
    }

    #[test]
    fn a_merge_contains_only_requested_flags() {
        let remote = Answer { flags: flags(&[("a", "theirs"), ("b", "theirs")], false), ..Answer::default() };
        let keys = ["b".to_owned(), "d".to_owned()];
        let merged = merge(flags(&[("c", "ours"), ("d", "ours")], true), &remote, Some(&keys));
        assert_eq!(shown(&merged), [("b", "theirs", false), ("d", "ours", true)]);
    }

    #[test]
    fn a_failure_keeps_local_values_and_is_reported() {
        let remote = Answer { failure: Some(Failure::Timeout), ..Answer::default() };
        let merged = merge(flags(&[("a", "ours")], true), &remote, None);
        assert_eq!((shown(&merged), &merged.failure), (vec![("a", "ours", true)], &Some(Failure::Timeout)));
    }
}
