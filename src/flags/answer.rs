//! What is known of flags for one context: the common form of what was evaluated here and what PostHog answered.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// What a flag is for somebody: on, off, or the variant of a flag that has several.
///
/// ```
/// use posthog::FlagValue;
///
/// let value = FlagValue::Variant("blue".into());
/// assert!(value.is_enabled() && value == "blue");
/// assert!(!FlagValue::Boolean(false).is_enabled());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FlagValue {
    /// A flag without variants.
    Boolean(bool),
    /// The key of a variant.
    Variant(String),
}

impl FlagValue {
    /// On, or a variant whose key is not empty.
    pub fn is_enabled(&self) -> bool {
        match self {
            FlagValue::Boolean(on) => *on,
            FlagValue::Variant(key) => !key.is_empty(),
        }
    }

    /// The key of the variant, if it is one.
    pub fn variant(&self) -> Option<&str> {
        match self {
            FlagValue::Boolean(_) => None,
            FlagValue::Variant(key) => Some(key),
        }
    }

    /// What PostHog says a flag is; `None` for what no flag can be.
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

/// `true`, `false`, or the variant's key.
impl fmt::Display for FlagValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlagValue::Boolean(on) => write!(f, "{on}"),
            FlagValue::Variant(key) => f.write_str(key),
        }
    }
}

/// A bool or a string, as in PostHog's properties.
impl Serialize for FlagValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            FlagValue::Boolean(on) => serializer.serialize_bool(*on),
            FlagValue::Variant(key) => serializer.serialize_str(key),
        }
    }
}

/// Why a flag cannot be evaluated here: PostHog has to be asked, for it knows more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum InconclusiveReason {
    /// There is no such flag among the definitions.
    #[error("there is no such flag among the definitions")]
    UnknownFlag,
    /// A condition is on a property that was not given.
    #[error("a property that a condition is on was not given")]
    MissingProperty,
    /// A condition's operator is none of those that this version knows.
    #[error("an operator of a condition is not known")]
    UnknownOperator,
    /// A condition compares with something that its operator cannot compare with.
    #[error("what a condition compares with cannot be used")]
    UnusableCondition,
    /// A property that was given is nothing that the condition's operator can compare.
    #[error("a property that was given cannot be compared")]
    UnusableProperty,
    /// A condition is on a cohort that is not among the definitions: one whose members are a list that PostHog keeps.
    #[error("a cohort of a condition is not among the definitions")]
    UnknownCohort,
    /// A condition is on another flag, which cannot be evaluated here.
    #[error("another flag that a condition is on cannot be evaluated here")]
    UnresolvedDependency,
    /// Flags or cohorts depend on each other in a circle, or too deep.
    #[error("the flags that it depends on form a circle, or too long a chain")]
    TooDeep,
    /// The flag is rolled out by group, and the person's group of that type was not given.
    #[error("the group by which the flag is rolled out was not given")]
    MissingGroup,
    /// The flag is rolled out by device, and no device id was given.
    #[error("the device by which the flag is rolled out was not given")]
    MissingDeviceId,
    /// The flag keeps the value that a person had before it was identified, which only PostHog remembers.
    #[error("the flag keeps earlier values for each person, which only PostHog knows")]
    ExperienceContinuity,
    /// There is no distinct id: neither was one given, nor is a request being served that has one.
    #[error("there is nobody to evaluate the flag for")]
    NoDistinctId,
    /// The definition of the flag cannot be read, or something in it is new to this version.
    #[error("the definition of the flag cannot be read")]
    Malformed,
}

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

/// What was evaluated here with what PostHog answered for the rest. A value of our own is never overwritten, and nothing is in it that
/// was not asked for: an answer may be one for more keys, or of a server that does not know how to answer for some alone.
pub(crate) fn merge(local: BTreeMap<String, Evaluated>, remote: &Answer, keys: Option<&[String]>) -> Answer {
    let mut flags = local;
    for (key, evaluated) in &remote.flags {
        if is_wanted(keys, key) && !flags.contains_key(key) {
            flags.insert(key.clone(), evaluated.clone());
        }
    }
    flags.retain(|key, _| is_wanted(keys, key));
    Answer {
        flags,
        request_id: remote.request_id.clone(),
        evaluated_at: remote.evaluated_at,
        has_errors: remote.has_errors,
        is_quota_limited: remote.is_quota_limited,
        failure: remote.failure.clone(),
        wants_minimal_events: remote.wants_minimal_events,
    }
}

/// Whether a flag is among those that were asked for.
pub(crate) fn is_wanted(keys: Option<&[String]>, key: &str) -> bool {
    keys.is_none_or(|keys| keys.iter().any(|wanted| wanted == key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(pairs: &[(&str, &str)], is_local: bool) -> BTreeMap<String, Evaluated> {
        let evaluated = |variant: &str| Evaluated {
            value: variant.into(),
            payload: None,
            id: None,
            version: None,
            reason: None,
            has_experiment: None,
            is_local,
        };
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
    fn what_was_evaluated_here_is_never_overwritten_and_the_rest_is_posthogs() {
        let remote = Answer { flags: flags(&[("a", "theirs"), ("b", "theirs")], false), ..Answer::default() };
        let merged = merge(flags(&[("a", "ours")], true), &remote, None);
        assert_eq!(shown(&merged), [("a", "ours", true), ("b", "theirs", false)]);
    }

    #[test]
    fn nothing_is_there_that_was_not_asked_for() {
        let remote = Answer { flags: flags(&[("a", "theirs"), ("b", "theirs")], false), ..Answer::default() };
        let keys = ["b".to_owned(), "d".to_owned()];
        let merged = merge(flags(&[("c", "ours"), ("d", "ours")], true), &remote, Some(&keys));
        assert_eq!(shown(&merged), [("b", "theirs", false), ("d", "ours", true)]);
    }

    #[test]
    fn a_failure_keeps_what_was_evaluated_here_and_says_that_it_was_one() {
        let remote = Answer { failure: Some(Failure::Timeout), ..Answer::default() };
        let merged = merge(flags(&[("a", "ours")], true), &remote, None);
        assert_eq!((shown(&merged), &merged.failure), (vec![("a", "ours", true)], &Some(Failure::Timeout)));
    }
}
