//! Local evaluation of feature flags: without a request, against definitions that were loaded before.
//!
//! [`LocalFlags`] is an immutable snapshot of parsed definitions behind an `Arc`. An [`Evaluation`] evaluates its flags
//! for one context at one time. A flag gets the value that PostHog would give it. If that depends on something that
//! only PostHog knows, the result is an [`InconclusiveReason`].
//!
//! * `definitions.rs` parses and compiles [`Definitions`]; `dependencies.rs` rejects cycles.
//! * `property.rs` evaluates one condition on one property, with dates in `date.rs`.
//! * This file evaluates flags, their conditions, and the cohorts and flags that conditions depend on.
//!
//! # Order
//!
//! An inactive flag is off. Otherwise early access enrollment decides, then a holdout, then the conditions in the order
//! of their definition; the first that matches gives the value. (Older SDKs try conditions with a variant override
//! first. PostHog's service and specification do not any more.) A condition matches, does not match, or matches a
//! person whom its rollout excludes; with `early_exit`, the last ends the evaluation. Rollouts and variants are chosen
//! by buckets, from a SHA-1 of the flag's key and the id.
//!
//! # Unknown results
//!
//! If several tests must hold, one that does not hold decides the result, whatever else is unknown; the same is true in
//! cohorts. A condition that is unknown might have given the flag a value. A later condition that matches decides the
//! flag only if it gives the same value. So a boolean flag is on if any condition matches, but a multivariate flag does
//! not get the variant of the second condition if the first might have given another. A condition whose rollout
//! certainly excludes the person cannot have given a value.
//!
//! # Cost
//!
//! Evaluating a flag does not allocate, unless a condition is on the distinct id or the group key, which are converted
//! to JSON values. `dependencies.rs` bounds the depth of dependencies, and so the recursion here. Shared dependencies
//! could still be evaluated exponentially often, so results are remembered for a flag that may cost more than
//! [`MAX_COST_UNREMEMBERED`] tests, and in an evaluation of all flags.

mod date;
mod definitions;
mod dependencies;
mod property;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use sha1::block_api::compress;
use sha1::{Digest, Sha1};

pub use self::definitions::ParseFlagsError;
use self::definitions::{Condition, Definitions, Enrollment, Entity, Flag, Group, Rules, Test};
use self::property::Filter;
pub(in crate::flags) use self::property::in_key_order;
use super::{Evaluated, FlagContext, FlagValue, InconclusiveReason};
use crate::sys::clock::{Clock, WallNanos};

/// The largest number of tests of an evaluation that does not remember results. Remembering allocates a few words per
/// flag.
const MAX_COST_UNREMEMBERED: u32 = 1024;
/// The reason that PostHog's SDKs give for a local value.
const REASON: &str = "Evaluated locally";

/// Definitions of feature flags, for evaluating flags without a request. Parsed from the response of PostHog's
/// `/flags/definitions`.
///
/// A [`Client`](crate::Client) loads and uses definitions by itself. This type is for programs that test their
/// definitions or ship them. Cheap to clone; never changes.
///
/// Bucketing and conditions follow PostHog: a person gets the same value locally and from PostHog. If a flag depends on
/// something that only PostHog knows (members of static cohorts, properties that were not given, persisted values), the
/// result is an [`InconclusiveReason`], never a wrong value.
///
/// ```
/// use posthog::feature_flags::{FlagContext, InconclusiveReason, LocalFlags, LocalValue};
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
/// // The plan of this person was not given. PostHog may know it.
/// assert_eq!(flags.evaluate("new-ui", &FlagContext::new("user_2")), Err(InconclusiveReason::MissingProperty));
/// # Ok::<(), posthog::feature_flags::ParseFlagsError>(())
/// ```
#[derive(Clone)]
pub struct LocalFlags {
    definitions: Arc<Definitions>,
}

/// The value of a flag: like [`FlagValue`], but borrowed from the definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalValue<'a> {
    /// On or off.
    Boolean(bool),
    /// The key of a variant.
    Variant(&'a str),
}

impl LocalFlags {
    /// Parses definitions: the JSON that `/flags/definitions?send_cohorts` returns.
    ///
    /// # Errors
    ///
    /// If this is not JSON, or has no list of flags. A flag in the list that cannot be parsed is
    /// [`InconclusiveReason::Malformed`], is listed in [`unreadable`](Self::unreadable), and does not affect the
    /// others.
    pub fn parse(json: &[u8]) -> Result<Self, ParseFlagsError> {
        Ok(Self { definitions: Arc::new(Definitions::parse(json)?) })
    }

    /// The keys of the flags, in the order of their definition.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.definitions.flags.iter().map(|flag| &*flag.key)
    }

    /// The number of flags.
    pub fn len(&self) -> usize {
        self.definitions.flags.len()
    }

    /// Whether there are no flags.
    pub fn is_empty(&self) -> bool {
        self.definitions.flags.is_empty()
    }

    /// The flags that could not be parsed: their keys, or positions in the list (`#3`) if the key could not be parsed
    /// either. At most 100.
    pub fn unreadable(&self) -> &[String] {
        &self.definitions.unreadable
    }

    /// The value of a flag for this context. Dates relative to now are evaluated with the machine's clock.
    ///
    /// Does not allocate, unless a condition is on the distinct id or a group key, or the flag has many dependencies.
    ///
    /// # Errors
    ///
    /// Why the flag cannot be evaluated locally.
    pub fn evaluate(&self, key: &str, context: &FlagContext) -> Result<LocalValue<'_>, InconclusiveReason> {
        let at = self.definitions.find(key).ok_or(InconclusiveReason::UnknownFlag)?;
        let mut evaluation = Evaluation::new(&self.definitions, context, None)?;
        if self.definitions.flags.get(at).is_some_and(|flag| flag.cost > MAX_COST_UNREMEMBERED) {
            evaluation.remember();
        }
        evaluation.flag(at)
    }

    /// The payload that belongs to this value of a flag, whichever value a person has. A payload that is not JSON is a
    /// string.
    pub fn payload(&self, key: &str, value: LocalValue<'_>) -> Option<&Value> {
        payload(self.definitions.flags.get(self.definitions.find(key)?)?, value)
    }

    /// Evaluates all flags, or those that the context names. A flag without a value has the reason.
    pub(crate) fn evaluate_all(
        &self,
        context: &FlagContext,
        now: WallNanos,
    ) -> BTreeMap<String, Result<Evaluated, InconclusiveReason>> {
        let definitions = &*self.definitions;
        let mut evaluation = Evaluation::new(definitions, context, Some(now));
        if let Ok(evaluation) = &mut evaluation {
            evaluation.remember();
        }
        let mut evaluate = |at: Option<usize>| {
            let at = at.ok_or(InconclusiveReason::UnknownFlag)?;
            let value = evaluation.as_mut().map_err(|why| *why)?.flag(at)?;
            definitions.flags.get(at).map(|flag| evaluated(flag, value)).ok_or(InconclusiveReason::UnknownFlag)
        };
        match &context.flag_keys {
            None => definitions
                .flags
                .iter()
                .enumerate()
                .map(|(at, flag)| (flag.key.to_string(), evaluate(Some(at))))
                .collect(),
            Some(keys) => keys.iter().map(|key| (key.clone(), evaluate(definitions.find(key)))).collect(),
        }
    }

    /// Whether PostHog wants the minimal form of `$feature_flag_called` for flags without an experiment.
    pub(crate) fn wants_minimal_events(&self) -> bool {
        self.definitions.wants_minimal_events
    }
}

/// Shows the number of flags only: definitions may be megabytes.
impl fmt::Debug for LocalFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (flags, unreadable) = (self.len(), self.unreadable().len());
        f.debug_struct("LocalFlags").field("flags", &flags).field("unreadable", &unreadable).finish_non_exhaustive()
    }
}

impl LocalValue<'_> {
    /// Whether the flag is on. A variant is on unless its key is empty.
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
    flag.rules.as_ref()?.payloads.get(match value {
        LocalValue::Boolean(true) => "true",
        LocalValue::Boolean(false) => return None,
        LocalValue::Variant(key) => key,
    })
}

/// An evaluation of flags for one context at one time.
struct Evaluation<'d, 'c> {
    definitions: &'d Definitions,
    context: &'c FlagContext,
    distinct_id: &'c str,
    now: OnceCell<WallNanos>,
    /// Remembered results, by position in the definitions. Empty if nothing is remembered.
    flags: Vec<Option<Result<LocalValue<'d>, InconclusiveReason>>>,
    cohorts: Vec<Option<Result<bool, InconclusiveReason>>>,
}

/// The result of a condition.
#[derive(Clone, Copy)]
enum ConditionResult<'d> {
    Matches(LocalValue<'d>),
    /// The tests hold, but the rollout excludes the person.
    Excluded,
    DoesNotMatch,
}

impl<'d, 'c> Evaluation<'d, 'c> {
    /// `now`: `None` for the machine's clock.
    fn new(
        definitions: &'d Definitions,
        context: &'c FlagContext,
        now: Option<WallNanos>,
    ) -> Result<Self, InconclusiveReason> {
        let distinct_id = context.distinct_id.as_deref().filter(|id| !id.is_empty());
        let distinct_id = distinct_id.ok_or(InconclusiveReason::NoDistinctId)?;
        let now = now.map_or_else(OnceCell::new, OnceCell::from);
        Ok(Self { definitions, context, distinct_id, now, flags: Vec::new(), cohorts: Vec::new() })
    }

    /// The time of the evaluation. The clock is read only if a condition needs it, which takes as long as computing a
    /// bucket.
    fn now(&self) -> WallNanos {
        *self.now.get_or_init(|| Clock::System.wall_nanos())
    }

    /// From now on, evaluates each flag and each cohort once.
    fn remember(&mut self) {
        self.flags = vec![None; self.definitions.flags.len()];
        self.cohorts = vec![None; self.definitions.cohorts.len()];
    }

    fn flag(&mut self, at: usize) -> Result<LocalValue<'d>, InconclusiveReason> {
        if let Some(Some(known)) = self.flags.get(at) {
            return *known;
        }
        let value = self.evaluate(self.definitions.flags.get(at).ok_or(InconclusiveReason::UnknownFlag)?);
        if let Some(slot) = self.flags.get_mut(at) {
            *slot = Some(value);
        }
        value
    }

    fn evaluate(&mut self, flag: &'d Flag) -> Result<LocalValue<'d>, InconclusiveReason> {
        let Some(rules) = &flag.rules else { return flag.fault.map_or(Ok(LocalValue::Boolean(false)), Err) };
        if rules.keeps_experience {
            return Err(InconclusiveReason::ExperienceContinuity);
        }
        if let Some(fault) = flag.fault {
            return Err(fault);
        }
        let key = &*flag.key;
        if let Some(enrollment) = &rules.enrollment {
            return Ok(LocalValue::Boolean(self.is_enrolled(key, rules, enrollment)?));
        }
        if let Some((share, variant)) = &rules.holdout {
            let id = self.bucketed(rules, &rules.of)?;
            if *share >= 1.0 || holdout_bucket(id) <= *share {
                return Ok(LocalValue::Variant(variant));
            }
        }
        self.by_conditions(key, rules)
    }

    fn by_conditions(&mut self, key: &str, rules: &'d Rules) -> Result<LocalValue<'d>, InconclusiveReason> {
        // An earlier condition was unknown and might have given the flag a value: why, and the only value that it might
        // have given (`None` if it might have given several, or ended the evaluation).
        let mut doubt: Option<(InconclusiveReason, Option<LocalValue<'d>>)> = None;
        for condition in &rules.conditions {
            match self.result_of(key, rules, condition) {
                Ok(ConditionResult::Matches(value)) => {
                    return match doubt {
                        Some((why, possible)) if possible != Some(value) => Err(why),
                        _ => Ok(value),
                    };
                }
                Ok(ConditionResult::Excluded) if rules.early_exit => break,
                Ok(ConditionResult::Excluded | ConditionResult::DoesNotMatch) => {}
                Err(why) => {
                    let value = match self.possible(key, rules, condition) {
                        ConditionResult::DoesNotMatch => continue,
                        ConditionResult::Matches(value) => Some(value),
                        ConditionResult::Excluded => None,
                    };
                    let (_, possible) = doubt.get_or_insert((why, value));
                    *possible = possible.filter(|possible| Some(*possible) == value);
                }
            }
        }
        doubt.map_or(Ok(LocalValue::Boolean(false)), |(why, _)| Err(why))
    }

    fn result_of(
        &mut self,
        key: &str,
        rules: &'d Rules,
        condition: &'d Condition,
    ) -> Result<ConditionResult<'d>, InconclusiveReason> {
        if !self.joined(false, condition.tests.iter().map(|test| (test, false)))? {
            return Ok(ConditionResult::DoesNotMatch);
        }
        let id = self.bucketed(rules, &condition.of)?;
        if is_excluded(key, condition, id) {
            return Ok(ConditionResult::Excluded);
        }
        Ok(ConditionResult::Matches(value_of(key, rules, condition, id)))
    }

    /// The result that the condition would have if its tests held.
    fn possible(&self, key: &str, rules: &'d Rules, condition: &'d Condition) -> ConditionResult<'d> {
        let given = condition.variant.and_then(|variant| rules.variants.get(variant));
        match self.bucketed(rules, &condition.of) {
            Ok(id) if !is_excluded(key, condition, id) => ConditionResult::Matches(value_of(key, rules, condition, id)),
            Ok(_) if !rules.early_exit => ConditionResult::DoesNotMatch,
            Ok(_) => ConditionResult::Excluded,
            // The id is unknown, so the rollout might exclude the person, which would end the evaluation.
            Err(_) if rules.early_exit => ConditionResult::Excluded,
            Err(_) if rules.variants.is_empty() => ConditionResult::Matches(LocalValue::Boolean(true)),
            Err(_) => given
                .map_or(ConditionResult::Excluded, |given| ConditionResult::Matches(LocalValue::Variant(&given.key))),
        }
    }

    /// If the person's own choice about early access was not given, PostHog may know it.
    fn is_enrolled(
        &mut self,
        key: &str,
        rules: &'d Rules,
        enrollment: &'d Enrollment,
    ) -> Result<bool, InconclusiveReason> {
        let given = &self.context.person_properties;
        match enrollment {
            Enrollment::Property(name) => {
                let answer = given.get(&**name).ok_or(InconclusiveReason::MissingProperty)?;
                Ok(*answer == Value::Bool(true) || answer.as_str() == Some("true"))
            }
            Enrollment::Condition(condition) => {
                let is_given = |test: &Test| matches!(test, Test::Property { name, .. } if given.contains_key(&**name));
                if !condition.tests.iter().any(is_given) {
                    return Err(InconclusiveReason::MissingProperty);
                }
                Ok(matches!(self.result_of(key, rules, condition)?, ConditionResult::Matches(_)))
            }
        }
    }

    /// The id that decides about rollouts and variants.
    fn bucketed(&self, rules: &Rules, of: &Entity) -> Result<&'c str, InconclusiveReason> {
        match of {
            Entity::Person if rules.by_device => {
                let device_id = self.context.device_id.as_deref().filter(|id| !id.is_empty());
                device_id.ok_or(InconclusiveReason::MissingDeviceId)
            }
            Entity::Person => Ok(self.distinct_id),
            Entity::Group(name) => self.group(name),
            Entity::UnknownGroup => Err(InconclusiveReason::Malformed),
        }
    }

    /// The key of the context's group of this type.
    fn group(&self, name: &str) -> Result<&'c str, InconclusiveReason> {
        let key = self.context.groups.get(name).filter(|key| !key.is_empty());
        key.map(String::as_str).ok_or(InconclusiveReason::MissingGroup)
    }
}

fn is_excluded(key: &str, condition: &Condition, id: &str) -> bool {
    condition.share.is_some_and(|share| share < 1.0 && rollout_bucket(key, id) > share)
}

/// The value that a matching condition gives.
fn value_of<'d>(key: &str, rules: &'d Rules, condition: &Condition, id: &str) -> LocalValue<'d> {
    let variants = &rules.variants;
    if variants.is_empty() {
        return LocalValue::Boolean(true);
    }
    let variant = condition.variant.and_then(|at| variants.get(at)).or_else(|| {
        let bucket = variant_bucket(key, id);
        variants.iter().find(|variant| bucket < variant.upper)
    });
    variant.map_or(LocalValue::Boolean(true), |variant| LocalValue::Variant(&variant.key))
}

/// Properties that need not be given, because the context contains them. PostHog adds the same.
const DISTINCT_ID: &str = "distinct_id";
const GROUP_KEY: &str = "$group_key";

impl<'d> Evaluation<'d, '_> {
    fn holds(&mut self, test: &'d Test) -> Result<bool, InconclusiveReason> {
        match test {
            Test::Property { name, of, filter } => self.property(name, of, filter),
            Test::Cohort { at: None, .. } => Err(InconclusiveReason::UnknownCohort),
            Test::Cohort { at: Some(at), is_not } => Ok(self.is_member(*at)? != *is_not),
            Test::Flag { at, wanted } => self.dependency(*at, wanted.as_ref()),
            Test::Group(group) => self.is_in(group),
            Test::Unusable(why) => Err(*why),
        }
    }

    fn property(&self, name: &str, of: &Entity, filter: &Filter) -> Result<bool, InconclusiveReason> {
        let (given, own) = match of {
            Entity::Person => (Some(&self.context.person_properties), (DISTINCT_ID, self.distinct_id)),
            Entity::Group(group) => (self.context.group_properties.get(&**group), (GROUP_KEY, self.group(group)?)),
            Entity::UnknownGroup => return Err(InconclusiveReason::Malformed),
        };
        let property = given.and_then(|given| given.get(name));
        if property.is_none() && own.0 == name {
            return filter.matches(Some(&Value::String(own.1.to_owned())), || self.now());
        }
        filter.matches(property, || self.now())
    }

    fn dependency(&mut self, at: Option<usize>, wanted: Option<&FlagValue>) -> Result<bool, InconclusiveReason> {
        let at = at.ok_or(InconclusiveReason::UnresolvedDependency)?;
        let value = self.flag(at).map_err(|why| match why {
            InconclusiveReason::TooDeep => why,
            _ => InconclusiveReason::UnresolvedDependency,
        })?;
        Ok(match wanted {
            Some(FlagValue::Boolean(true)) => value != LocalValue::Boolean(false),
            wanted => wanted.map(LocalValue::from) == Some(value),
        })
    }

    fn is_member(&mut self, at: usize) -> Result<bool, InconclusiveReason> {
        if let Some(Some(known)) = self.cohorts.get(at) {
            return *known;
        }
        let cohort = self.definitions.cohorts.get(at).ok_or(InconclusiveReason::UnknownCohort)?;
        let is_member = cohort.as_ref().map_err(|fault| *fault).and_then(|members| self.is_in(members));
        if let Some(slot) = self.cohorts.get_mut(at) {
            *slot = Some(is_member);
        }
        is_member
    }

    fn is_in(&mut self, group: &'d Group) -> Result<bool, InconclusiveReason> {
        self.joined(group.is_any, group.entries.iter().map(|(test, is_negated)| (test, *is_negated)))
    }

    /// Tests joined by OR (`is_any`) or AND, each with whether it is negated. A test that decides the result does so
    /// even if others are unknown.
    fn joined(
        &mut self,
        is_any: bool,
        tests: impl Iterator<Item = (&'d Test, bool)>,
    ) -> Result<bool, InconclusiveReason> {
        let mut unknown = None;
        for (test, is_negated) in tests {
            match self.holds(test).map(|holds| holds != is_negated) {
                Ok(holds) if holds == is_any => return Ok(holds),
                Ok(_) => {}
                Err(why) => unknown = unknown.or(Some(why)),
            }
        }
        unknown.map_or(Ok(!is_any), Err)
    }
}

/// The largest number of fifteen hexadecimal digits.
const MAX_BUCKET: u64 = 0xfff_ffff_ffff_ffff;
const DROPPED_BITS: u32 = u64::BITS - 4 * 15;

/// SHA-1 processes blocks. The last block ends with a marker and the length in bits.
const BLOCK: usize = 64;
const END_MARKER: u8 = 0x80;
const LENGTH_AT: usize = BLOCK - size_of::<u64>();
const INITIAL_STATE: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];

/// The bucket of a rollout. A person whose bucket is above the rollout's share is not included.
fn rollout_bucket(key: &str, id: &str) -> f64 {
    bucket(&[key, ".", id])
}

/// The bucket that selects a variant.
fn variant_bucket(key: &str, id: &str) -> f64 {
    bucket(&[key, ".", id, "variant"])
}

/// The bucket of a holdout, which several flags can share.
fn holdout_bucket(id: &str) -> f64 {
    bucket(&["holdout-", id])
}

/// The first fifteen hexadecimal digits of a SHA-1, divided by the largest such number. The same in every PostHog SDK.
fn bucket(parts: &[&str]) -> f64 {
    let start = hash_one_block(parts).unwrap_or_else(|| hash_any_length(parts));
    let digits = start >> DROPPED_BITS;
    digits as f64 / MAX_BUCKET as f64
}

/// The first eight bytes of the hash of a text that fits into one block, as most do. Faster than the general case,
/// which buffers the block.
fn hash_one_block(parts: &[&str]) -> Option<u64> {
    let mut block = [0; BLOCK];
    let mut len = 0_usize;
    for part in parts {
        let end = len.checked_add(part.len()).filter(|end| *end < LENGTH_AT)?;
        block.get_mut(len..end)?.copy_from_slice(part.as_bytes());
        len = end;
    }
    *block.get_mut(len)? = END_MARKER;
    block.get_mut(LENGTH_AT..)?.copy_from_slice(&(8 * len as u64).to_be_bytes());
    let mut state = INITIAL_STATE;
    compress(&mut state, &[block]);
    let [first, second, ..] = state;
    Some(u64::from(first) << u32::BITS | u64::from(second))
}

fn hash_any_length(parts: &[&str]) -> u64 {
    let mut hash = Sha1::new();
    parts.iter().for_each(|part| hash.update(part.as_bytes()));
    let digest: [u8; 20] = hash.finalize().into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests;
