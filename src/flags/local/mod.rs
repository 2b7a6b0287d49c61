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

mod date;
mod definitions;
mod dependencies;
mod parse;
mod property;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use sha1::block_api::compress;
use sha1::{Digest, Sha1};

use self::definitions::{
    Condition, Definitions, Dependency, Enrollment, Entity, Entry, Flag, Group, Holdout, Property, Rules, State, Test,
    Wanted,
};
pub use self::parse::ParseFlagsError;
pub(in crate::flags) use self::property::plain_number;
use super::{Evaluated, FlagContext, FlagValue, InconclusiveReason};
use crate::sys::clock::{Clock, WallNanos};

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

/// Evaluates flags, each as often as it is asked, or once.
struct Pass<'d, 'c> {
    definitions: &'d Definitions,
    context: &'c FlagContext,
    distinct_id: &'c str,
    now: OnceCell<WallNanos>,
    memory: Option<Memory<'d>>,
}

/// What was found out, by place among the definitions.
struct Memory<'d> {
    flags: Vec<Option<Result<LocalValue<'d>, InconclusiveReason>>>,
    cohorts: Vec<Option<Result<bool, InconclusiveReason>>>,
}

/// A flag under evaluation.
#[derive(Clone, Copy)]
struct Case<'d> {
    flag: &'d Flag,
    rules: &'d Rules,
}

/// What a condition says.
#[derive(Clone, Copy)]
enum Verdict<'d> {
    Matches(LocalValue<'d>),
    /// Somebody is meant, and left out by the rollout.
    LeftOut,
    DoesNot,
}

/// What a condition of which this is not known would have made of the flag: a certain value or nothing; `None`: who knows.
type Possible<'d> = Option<LocalValue<'d>>;

/// That conditions were passed of which it is not known whether they match.
struct Doubt<'d> {
    why: InconclusiveReason,
    possible: Possible<'d>,
}

impl<'d, 'c> Pass<'d, 'c> {
    /// `now`: `None` for the machine's clock.
    fn new(
        definitions: &'d Definitions,
        context: &'c FlagContext,
        now: Option<WallNanos>,
    ) -> Result<Self, InconclusiveReason> {
        let distinct_id = context.distinct_id.as_deref().filter(|id| !id.is_empty());
        let distinct_id = distinct_id.ok_or(InconclusiveReason::NoDistinctId)?;
        let now = now.map_or_else(OnceCell::new, OnceCell::from);
        Ok(Self { definitions, context, distinct_id, now, memory: None })
    }

    /// One time for the whole pass. The machine's clock is asked only if it matters: that takes as long as a bucket.
    fn now(&self) -> WallNanos {
        *self.now.get_or_init(|| Clock::System.wall_nanos())
    }

    /// From now on each flag and each cohort is evaluated once.
    fn remember(&mut self) {
        let Definitions { flags, cohorts, .. } = self.definitions;
        self.memory = Some(Memory { flags: vec![None; flags.len()], cohorts: vec![None; cohorts.len()] });
    }

    fn flag(&mut self, at: usize) -> Result<LocalValue<'d>, InconclusiveReason> {
        if let Some(known) = self.memory.as_ref().and_then(|memory| *memory.flags.get(at)?) {
            return known;
        }
        let value = self.evaluate(self.definitions.flags.get(at).ok_or(InconclusiveReason::UnknownFlag)?);
        if let Some(slot) = self.memory.as_mut().and_then(|memory| memory.flags.get_mut(at)) {
            *slot = Some(value);
        }
        value
    }

    fn evaluate(&mut self, flag: &'d Flag) -> Result<LocalValue<'d>, InconclusiveReason> {
        let rules = match &flag.state {
            State::Unreadable => return Err(InconclusiveReason::Malformed),
            State::Inactive => return Ok(LocalValue::Boolean(false)),
            State::Active(rules) => rules,
        };
        if rules.keeps_experience {
            return Err(InconclusiveReason::ExperienceContinuity);
        }
        if let Some(fault) = flag.fault {
            return Err(fault);
        }
        let case = Case { flag, rules };
        if let Some(enrollment) = &rules.enrollment
            && let Some(is_enrolled) = self.enrolled(case, enrollment)?
        {
            return Ok(LocalValue::Boolean(is_enrolled));
        }
        if let Some(holdout) = &rules.holdout
            && self.is_held_out(case, holdout)?
        {
            return Ok(LocalValue::Variant(&holdout.variant));
        }
        self.by_conditions(case)
    }

    fn by_conditions(&mut self, case: Case<'d>) -> Result<LocalValue<'d>, InconclusiveReason> {
        let mut doubt: Option<Doubt<'d>> = None;
        for condition in &case.rules.conditions {
            match self.verdict(case, condition) {
                Ok(Verdict::Matches(value)) => {
                    return match doubt {
                        Some(Doubt { why, possible }) if possible != Some(value) => Err(why),
                        _ => Ok(value),
                    };
                }
                Ok(Verdict::LeftOut) if case.rules.early_exit => break,
                Ok(Verdict::LeftOut | Verdict::DoesNot) => {}
                Err(why) => match (self.possible(case, condition), &mut doubt) {
                    (Verdict::DoesNot, _) => {}
                    (verdict, None) => doubt = Some(Doubt { why, possible: verdict.value() }),
                    (verdict, Some(doubt)) if doubt.possible != verdict.value() => doubt.possible = None,
                    (_, Some(_)) => {}
                },
            }
        }
        doubt.map_or(Ok(LocalValue::Boolean(false)), |doubt| Err(doubt.why))
    }

    fn verdict(&mut self, case: Case<'d>, condition: &'d Condition) -> Result<Verdict<'d>, InconclusiveReason> {
        if !self.all_hold(&condition.tests)? {
            return Ok(Verdict::DoesNot);
        }
        let id = self.bucketed(case.rules, &condition.of)?;
        if is_left_out(case.flag, condition, id) {
            return Ok(Verdict::LeftOut);
        }
        Ok(Verdict::Matches(value_of(case, condition, id)))
    }

    /// What the condition would say if its tests held.
    fn possible(&self, case: Case<'d>, condition: &'d Condition) -> Verdict<'d> {
        let given = condition.variant.and_then(|variant| case.rules.variants.get(variant));
        match self.bucketed(case.rules, &condition.of) {
            Ok(id) if is_left_out(case.flag, condition, id) => {
                if case.rules.early_exit {
                    Verdict::LeftOut
                } else {
                    Verdict::DoesNot
                }
            }
            Ok(id) => Verdict::Matches(value_of(case, condition, id)),
            // Whoever it is: a rollout could leave them out, and that could end the flag.
            Err(_) if case.rules.early_exit => Verdict::LeftOut,
            Err(_) if case.rules.variants.is_empty() => Verdict::Matches(LocalValue::Boolean(true)),
            Err(_) => given.map_or(Verdict::LeftOut, |given| Verdict::Matches(LocalValue::Variant(&given.key))),
        }
    }

    /// `None`: nobody has asked for it or against it, so the conditions decide.
    fn enrolled(&mut self, case: Case<'d>, enrollment: &'d Enrollment) -> Result<Option<bool>, InconclusiveReason> {
        let given = &self.context.person_properties;
        match enrollment {
            Enrollment::Property(name) => match given.get(&**name) {
                Some(answer) => Ok(Some(*answer == Value::Bool(true) || answer.as_str() == Some("true"))),
                // PostHog may have it.
                None => Err(InconclusiveReason::MissingProperty),
            },
            Enrollment::Condition(condition) => {
                let names = condition.tests.iter().filter_map(|test| match test {
                    Test::Property(property) => Some(&*property.name),
                    _ => None,
                });
                if !names.into_iter().any(|name| given.contains_key(name)) {
                    return Err(InconclusiveReason::MissingProperty);
                }
                Ok(Some(matches!(self.verdict(case, condition)?, Verdict::Matches(_))))
            }
        }
    }

    fn is_held_out(&self, case: Case<'d>, holdout: &Holdout) -> Result<bool, InconclusiveReason> {
        let id = self.bucketed(case.rules, &case.rules.of)?;
        Ok(holdout.share >= 1.0 || holdout_bucket(id) <= holdout.share)
    }

    /// By whose id it is decided who is in a rollout, and who gets which variant.
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

    /// The key of the person's group of a type.
    fn group(&self, name: &str) -> Result<&'c str, InconclusiveReason> {
        let key = self.context.groups.get(name).filter(|key| !key.is_empty());
        key.map(String::as_str).ok_or(InconclusiveReason::MissingGroup)
    }
}

impl<'d> Verdict<'d> {
    fn value(self) -> Possible<'d> {
        match self {
            Verdict::Matches(value) => Some(value),
            Verdict::LeftOut | Verdict::DoesNot => None,
        }
    }
}

fn is_left_out(flag: &Flag, condition: &Condition, id: &str) -> bool {
    condition.share.is_some_and(|share| share < 1.0 && rollout_bucket(&flag.key, id) > share)
}

/// What somebody gets for whom the condition matches.
fn value_of<'d>(case: Case<'d>, condition: &Condition, id: &str) -> LocalValue<'d> {
    let variants = &case.rules.variants;
    if variants.is_empty() {
        return LocalValue::Boolean(true);
    }
    let given = condition.variant.and_then(|at| variants.get(at));
    let variant = given.or_else(|| {
        let bucket = variant_bucket(&case.flag.key, id);
        variants.iter().find(|variant| bucket < variant.upper)
    });
    variant.map_or(LocalValue::Boolean(true), |variant| LocalValue::Variant(&variant.key))
}

/// Properties that need not be given: whom it is about is known. PostHog adds the same.
const DISTINCT_ID: &str = "distinct_id";
const GROUP_KEY: &str = "$group_key";

impl<'d> Pass<'d, '_> {
    /// One that does not hold settles it, also after one that is unknown.
    fn all_hold(&mut self, tests: &'d [Test]) -> Result<bool, InconclusiveReason> {
        let mut unknown = None;
        for test in tests {
            match self.holds(test) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(why) => unknown = unknown.or(Some(why)),
            }
        }
        unknown.map_or(Ok(true), Err)
    }

    fn holds(&mut self, test: &'d Test) -> Result<bool, InconclusiveReason> {
        match test {
            Test::Property(property) => self.property(property),
            Test::Cohort { at: None, .. } => Err(InconclusiveReason::UnknownCohort),
            Test::Cohort { at: Some(at), is_not } => Ok(self.is_member(*at)? != *is_not),
            Test::Flag(dependency) => self.dependency(dependency),
            Test::Unusable(why) => Err(*why),
        }
    }

    fn property(&self, Property { name, of, filter }: &Property) -> Result<bool, InconclusiveReason> {
        let (given, own) = match of {
            Entity::Person => (Some(&self.context.person_properties), (DISTINCT_ID, self.distinct_id)),
            Entity::Group(group) => (self.context.group_properties.get(&**group), (GROUP_KEY, self.group(group)?)),
            Entity::UnknownGroup => return Err(InconclusiveReason::Malformed),
        };
        let property = given.and_then(|given| given.get(&**name));
        if property.is_none() && own.0 == &**name {
            return filter.matches(Some(&Value::String(own.1.to_owned())), || self.now());
        }
        filter.matches(property, || self.now())
    }

    fn dependency(&mut self, Dependency { at, wanted }: &'d Dependency) -> Result<bool, InconclusiveReason> {
        let at = at.ok_or(InconclusiveReason::UnresolvedDependency)?;
        let value = self.flag(at).map_err(|why| match why {
            InconclusiveReason::TooDeep => why,
            _ => InconclusiveReason::UnresolvedDependency,
        })?;
        Ok(wanted.as_ref().is_some_and(|wanted| is(value, wanted)))
    }

    fn is_member(&mut self, at: usize) -> Result<bool, InconclusiveReason> {
        if let Some(known) = self.memory.as_ref().and_then(|memory| *memory.cohorts.get(at)?) {
            return known;
        }
        let cohort = self.definitions.cohorts.get(at).ok_or(InconclusiveReason::UnknownCohort)?;
        let is_member = match cohort.fault {
            Some(fault) => Err(fault),
            None => self.is_in(&cohort.members),
        };
        if let Some(slot) = self.memory.as_mut().and_then(|memory| memory.cohorts.get_mut(at)) {
            *slot = Some(is_member);
        }
        is_member
    }

    fn is_in(&mut self, group: &'d Group) -> Result<bool, InconclusiveReason> {
        let mut unknown = None;
        for entry in &group.entries {
            let holds = match entry {
                Entry::Group(group) => self.is_in(group),
                Entry::Test { test, negated } => self.holds(test).map(|holds| holds != *negated),
            };
            match holds {
                Ok(holds) if holds == group.is_any => return Ok(holds),
                Ok(_) => {}
                Err(why) => unknown = unknown.or(Some(why)),
            }
        }
        unknown.map_or(Ok(!group.is_any), Err)
    }
}

fn is(value: LocalValue<'_>, wanted: &Wanted) -> bool {
    match wanted {
        Wanted::On => value != LocalValue::Boolean(false),
        Wanted::Off => value == LocalValue::Boolean(false),
        Wanted::Variant(key) => value == LocalValue::Variant(key),
    }
}

/// The largest number of fifteen hexadecimal digits.
const MOST: u64 = 0xfff_ffff_ffff_ffff;
const DROPPED_BITS: u32 = u64::BITS - 4 * 15;

/// SHA-1 works on blocks; the last one ends with a mark and the length in bits.
const BLOCK: usize = 64;
const MARK: u8 = 0x80;
const LENGTH: usize = BLOCK - size_of::<u64>();
const START: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];

/// Of a rollout: who is above the share is left out.
fn rollout_bucket(key: &str, id: &str) -> f64 {
    bucket(&[key, ".", id])
}

/// Of the flag's variants.
fn variant_bucket(key: &str, id: &str) -> f64 {
    bucket(&[key, ".", id, "variant"])
}

/// Of a holdout, which is one for all flags that have it.
fn holdout_bucket(id: &str) -> f64 {
    bucket(&["holdout-", id])
}

/// The first fifteen hexadecimal digits of a SHA-1, as a share of the largest such number.
fn bucket(parts: &[&str]) -> f64 {
    let start = hash_one_block(parts).unwrap_or_else(|| hash_any_length(parts));
    let digits = start >> DROPPED_BITS;
    digits as f64 / MOST as f64
}

/// What the hash of a text that fits into one block, as most do, starts with. Quicker than the other way, which gathers the block in a
/// buffer of its own.
fn hash_one_block(parts: &[&str]) -> Option<u64> {
    let mut block = [0; BLOCK];
    let mut len = 0_usize;
    for part in parts {
        let end = len.checked_add(part.len()).filter(|end| *end < LENGTH)?;
        block.get_mut(len..end)?.copy_from_slice(part.as_bytes());
        len = end;
    }
    *block.get_mut(len)? = MARK;
    block.get_mut(LENGTH..)?.copy_from_slice(&(8 * len as u64).to_be_bytes());
    let mut state = START;
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
