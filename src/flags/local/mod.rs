//! Flags, evaluated here: by definitions that were parsed before, without asking anybody.
//!
//! [`LocalFlags`] is a snapshot that never changes, behind an `Arc`: who loads newer definitions makes another one. [`Pass`] evaluates
//! flags for one context at one time. What it finds out is a value, or why there is none ([`InconclusiveReason`]): a value is what PostHog
//! itself would answer, and where that depends on something that only PostHog knows, there is none.
//!
//! * `bucket.rs`: the SHA-1 of flag and person that rollouts and variants go by.
//! * `pass.rs`: a flag. An inactive one is off; early access, then a holdout, then the conditions in the order in which they are defined;
//!   the first that matches gives the value. (Older libraries try conditions with a variant of their own first. PostHog's service
//!   does not any more, nor does its specification.)
//! * `condition.rs`: a condition, which holds, does not, or holds for somebody whom its rollout leaves out (that ends the flag if it has
//!   `early_exit`); its tests, and the cohorts and flags that they are on.
//!
//! # What is not known
//!
//! Of several tests that must hold, one that does not settles it, whatever else is unknown; so in cohorts. A condition that is unknown
//! leaves a *doubt*: what it would have given. A later condition that matches gives the flag's value only if the doubt is of the same
//! value; so a boolean flag is on if any of its conditions matches, and a flag with variants does not get the variant of the second
//! condition where the first might have given another. A condition whose rollout leaves somebody out for certain raises no doubt.
//!
//! # Work
//!
//! No allocation for a flag without variants or with, unless a condition is on the distinct id or the group's key itself, which have to
//! become values first. What flags depend on has a bounded depth (the definitions see to it), so the recursion here has one. Shared
//! dependencies could still be walked exponentially often: a flag whose walk may be longer than [`LONGEST_WALK`] tests, and a pass over
//! all flags, remember each flag and cohort.

mod bucket;
mod condition;
mod pass;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use self::pass::Pass;
use super::definitions::{Definitions, Flag, State};
use super::{Evaluated, FlagContext, FlagValue, InconclusiveReason, ParseFlagsError};
use crate::sys::clock::WallNanos;

/// Tests of one evaluation up to which nothing is remembered. Remembering is an allocation of a few words for each flag.
const LONGEST_WALK: u32 = 1024;
/// As PostHog's own libraries say it of a value that was evaluated by them.
const REASON: &str = "Evaluated locally";

/// Definitions of feature flags, to evaluate them without asking PostHog: the answer of PostHog's `/flags/definitions`.
///
/// A [`Client`](crate::Client) loads and uses them by itself. This is for programs that test what their definitions say, or bring them
/// along. Cheap to clone; never changes.
///
/// Bucketing and conditions are PostHog's: the same person gets the same value here and there. What only PostHog knows (members of
/// static cohorts, properties that were not given, earlier values) makes a flag [`InconclusiveReason`], never wrong.
///
/// ```
/// use posthog::{FlagContext, InconclusiveReason, LocalFlags, LocalValue};
///
/// let flags = LocalFlags::parse(br#"{"flags": [
///     {"key": "new-ui", "active": true, "filters": {"groups": [
///         {"properties": [{"key": "plan", "type": "person", "operator": "exact", "value": ["pro", "team"]}]}
///     ]}},
///     {"key": "button", "active": true, "filters": {
///         "groups": [{"rollout_percentage": 100}],
///         "multivariate": {"variants": [{"key": "blue", "rollout_percentage": 100}]}
///     }}
/// ]}"#)?;
/// let context = FlagContext::new("user_1").person_property("plan", "pro");
/// assert_eq!(flags.evaluate("new-ui", &context), Ok(LocalValue::Boolean(true)));
/// assert_eq!(flags.evaluate("button", &context), Ok(LocalValue::Variant("blue")));
/// // What plan somebody has, PostHog may know.
/// assert_eq!(flags.evaluate("new-ui", &FlagContext::new("user_2")), Err(InconclusiveReason::MissingProperty));
/// # Ok::<(), posthog::ParseFlagsError>(())
/// ```
#[derive(Clone)]
pub struct LocalFlags {
    definitions: Arc<Definitions>,
}

/// What a flag is for somebody: [`FlagValue`], borrowed from the definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalValue<'a> {
    /// A flag without variants, or one that is off.
    Boolean(bool),
    /// The key of a variant.
    Variant(&'a str),
}

/// All flags that were asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LocalAnswer {
    pub(crate) flags: BTreeMap<String, Evaluated>,
    /// Those that have no value here, by key.
    pub(crate) unresolved: Vec<(String, InconclusiveReason)>,
}

impl LocalFlags {
    /// Reads definitions, in the form of the answer of `/flags/definitions` with `send_cohorts`.
    ///
    /// # Errors
    ///
    /// If this is not JSON, or has no list of flags. A flag of the list that cannot be read is [`InconclusiveReason::Malformed`] and in
    /// [`unreadable`](Self::unreadable), and costs nothing else.
    pub fn parse(json: &[u8]) -> Result<Self, ParseFlagsError> {
        Ok(Self { definitions: Arc::new(Definitions::parse(json)?) })
    }

    /// The keys of the flags, in the order in which they are defined.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.definitions.flags.iter().map(|flag| &*flag.key)
    }

    /// How many flags there are.
    pub fn len(&self) -> usize {
        self.definitions.flags.len()
    }

    /// Whether there is no flag at all.
    pub fn is_empty(&self) -> bool {
        self.definitions.flags.is_empty()
    }

    /// The flags that could not be read: their keys, or places in the list (`#3`) where not even that could be read. At most 100.
    pub fn unreadable(&self) -> &[String] {
        &self.definitions.unreadable
    }

    /// What the flag is for somebody, by what the context says. The machine's clock decides about dates that are relative to now.
    ///
    /// Does not allocate, unless a condition is on the distinct id or on the key of a group, or depends on very much.
    ///
    /// # Errors
    ///
    /// Why that cannot be told here.
    pub fn evaluate(&self, key: &str, context: &FlagContext) -> Result<LocalValue<'_>, InconclusiveReason> {
        let at = self.definitions.find(key).ok_or(InconclusiveReason::UnknownFlag)?;
        let mut pass = Pass::new(&self.definitions, context, None)?;
        if self.definitions.flags.get(at).is_some_and(|flag| flag.walk > LONGEST_WALK) {
            pass.remember();
        }
        pass.flag(at)
    }

    /// What goes along with a value of a flag, which need not be the one that somebody has. A payload that is no JSON is a string.
    pub fn payload(&self, key: &str, value: LocalValue<'_>) -> Option<&Value> {
        payload(self.definitions.flags.get(self.definitions.find(key)?)?, value)
    }

    /// All flags, or those with these keys.
    pub(crate) fn evaluate_all(&self, context: &FlagContext, keys: Option<&[String]>, now: WallNanos) -> LocalAnswer {
        let flags = &self.definitions.flags;
        let asked: BTreeMap<&str, Option<usize>> = match keys {
            None => flags.iter().enumerate().map(|(at, flag)| (&*flag.key, Some(at))).collect(),
            Some(keys) => keys.iter().map(|key| (key.as_str(), self.definitions.find(key))).collect(),
        };
        let mut pass = Pass::new(&self.definitions, context, Some(now));
        if let Ok(pass) = &mut pass {
            pass.remember();
        }
        let mut answer = LocalAnswer::default();
        for (key, at) in asked {
            let value = match (at, &mut pass) {
                (None, _) => Err(InconclusiveReason::UnknownFlag),
                (Some(_), Err(why)) => Err(*why),
                (Some(at), Ok(pass)) => pass.flag(at),
            };
            match (value, at.and_then(|at| flags.get(at))) {
                (Ok(value), Some(flag)) => drop(answer.flags.insert(key.to_owned(), evaluated(flag, value))),
                (Ok(_), None) => {}
                (Err(why), _) => answer.unresolved.push((key.to_owned(), why)),
            }
        }
        answer
    }

    /// PostHog wants `$feature_flag_called` of flags without an experiment in its small form.
    pub(crate) fn wants_minimal_events(&self) -> bool {
        self.definitions.wants_minimal_events
    }
}

/// Definitions may be megabytes: how many flags they are has to do.
impl fmt::Debug for LocalFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (flags, unreadable) = (self.len(), self.unreadable().len());
        f.debug_struct("LocalFlags").field("flags", &flags).field("unreadable", &unreadable).finish_non_exhaustive()
    }
}

impl LocalValue<'_> {
    /// On, or a variant whose key is not empty.
    pub fn is_enabled(&self) -> bool {
        match self {
            LocalValue::Boolean(on) => *on,
            LocalValue::Variant(key) => !key.is_empty(),
        }
    }
}

impl From<LocalValue<'_>> for FlagValue {
    fn from(value: LocalValue<'_>) -> Self {
        match value {
            LocalValue::Boolean(on) => FlagValue::Boolean(on),
            LocalValue::Variant(key) => FlagValue::Variant(key.to_owned()),
        }
    }
}

impl<'a> From<&'a FlagValue> for LocalValue<'a> {
    fn from(value: &'a FlagValue) -> Self {
        match value {
            FlagValue::Boolean(on) => LocalValue::Boolean(*on),
            FlagValue::Variant(key) => LocalValue::Variant(key),
        }
    }
}

fn evaluated(flag: &Flag, value: LocalValue<'_>) -> Evaluated {
    Evaluated {
        value: value.into(),
        payload: payload(flag, value).cloned(),
        id: flag.id,
        version: flag.version,
        reason: Some(REASON.to_owned()),
        has_experiment: flag.has_experiment,
        is_local: true,
    }
}

fn payload<'d>(flag: &'d Flag, value: LocalValue<'_>) -> Option<&'d Value> {
    let State::Active(rules) = &flag.state else { return None };
    rules.payloads.get(match value {
        LocalValue::Boolean(true) => "true",
        LocalValue::Boolean(false) => return None,
        LocalValue::Variant(key) => key,
    })
}

#[cfg(test)]
#[path = "condition_tests.rs"]
mod condition_tests;
#[cfg(test)]
mod tests;
