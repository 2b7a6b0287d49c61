//! Definitions of feature flags, compiled from the JSON of `/flags/definitions`. References between flags and cohorts
//! are indexes into [`Definitions`].
//!
//! The document is an object with `flags` (a list), `cohorts` (by id), `group_type_mapping` (index to name),
//! `property_matching_version` and `minimal_flag_called_events`. Only a document without a list of flags is rejected.
//! Anything else that cannot be parsed affects only itself: each flag and each cohort is parsed as a document of its
//! own (`RawValue`), so that deep nesting, invalid surrogates or numbers out of range in one do not end the parsing of
//! the others.
//!
//! * A `null` field counts as absent. A field of the wrong type makes the flag or cohort unreadable.
//! * An unknown structure makes the flag or cohort [`Malformed`]. An unknown kind of test or operator makes that test
//!   inconclusive; other conditions of the flag may still decide it. An inactive flag is off even if the rest of it
//!   cannot be parsed.
//! * References to cohorts, flags and group types are resolved to indexes. `dependencies.rs` then checks them for
//!   cycles.
//! * If several flags have the same key, the last one counts.
//!
//! Parsing is a pure function of the bytes, so the bytes are what is kept for the next process.

use std::collections::{BTreeMap, HashMap};

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::dependencies;
use super::property::{Filter, plain_number};
use crate::flags::FlagValue;
use crate::flags::InconclusiveReason::{self, Malformed};

/// The maximum number of unreadable flags that are listed.
const UNREADABLE_NAMES: usize = 100;

/// The document of definitions cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the definitions of the flags cannot be parsed: {why}")]
pub struct ParseFlagsError {
    why: String,
}

/// Everything that is needed to evaluate flags.
#[derive(Debug)]
pub(super) struct Definitions {
    pub(super) flags: Vec<Flag>,
    /// The members of each cohort. `Err`: they are unknown, because the cohort, or a cohort it refers to, is unreadable
    /// or missing. Its other conditions do not decide it then, because PostHog treats such a cohort as an error.
    pub(super) cohorts: Vec<Result<Group, InconclusiveReason>>,
    /// Keys of the flags that could not be parsed, or their positions in the list (`#3`) if the key could not be parsed
    /// either.
    pub(super) unreadable: Vec<String>,
    pub(super) wants_minimal_events: bool,
    pub(super) by_key: HashMap<Box<str>, usize>,
}

/// The entity whose properties a condition compares and whose id decides about its rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entity {
    Person,
    /// The person's group of this type.
    Group(Box<str>),
    /// A group of a type that the definitions do not name.
    UnknownGroup,
}

#[derive(Debug)]
pub(super) struct Flag {
    pub(super) key: Box<str>,
    pub(super) id: Option<u64>,
    pub(super) version: Option<u64>,
    pub(super) has_experiment: Option<bool>,
    /// `None`: the flag is inactive, or could not be parsed (`fault`).
    pub(super) rules: Option<Box<Rules>>,
    /// The flag cannot be evaluated: it could not be parsed, or its dependencies are circular or nested too deep.
    pub(super) fault: Option<InconclusiveReason>,
    /// The largest number of tests that an evaluation may make, including those of dependencies. Saturates.
    pub(super) cost: u32,
}

/// The rules of an active flag.
#[derive(Debug)]
pub(super) struct Rules {
    /// PostHog persists a person's value across identification (experience continuity).
    pub(super) keeps_experience: bool,
    /// Persons are bucketed by device id instead of distinct id.
    pub(super) by_device: bool,
    /// A person whom a condition's rollout excludes gets no value from later conditions.
    pub(super) early_exit: bool,
    /// The entity of conditions that do not name one.
    pub(super) of: Entity,
    pub(super) enrollment: Option<Enrollment>,
    /// The share of persons that is excluded from experiments, and the variant that they get.
    pub(super) holdout: Option<(f64, Box<str>)>,
    pub(super) conditions: Box<[Condition]>,
    pub(super) variants: Box<[Variant]>,
    /// Payloads by the value they belong to: the key of a variant, or `true`.
    pub(super) payloads: BTreeMap<Box<str>, Value>,
}

/// Early access: the person's own choice takes precedence over the conditions.
#[derive(Debug)]
pub(super) enum Enrollment {
    /// The name of the property that contains the choice.
    Property(Box<str>),
    /// A condition on that property, in older definitions.
    Condition(Condition),
}

/// A condition matches if all tests hold and the rollout includes the entity.
#[derive(Debug)]
pub(super) struct Condition {
    pub(super) of: Entity,
    pub(super) tests: Box<[Test]>,
    /// The share of the rollout. `None`: everyone.
    pub(super) share: Option<f64>,
    /// Index of the variant that the condition gives. `None`: the bucket selects it.
    pub(super) variant: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Variant {
    pub(super) key: Box<str>,
    /// The exclusive upper bound of the variant's buckets. They begin at the bound of the variant before it.
    pub(super) upper: f64,
}

/// Conditions of a cohort, joined by AND or OR.
#[derive(Debug)]
pub(super) struct Group {
    /// Joined by OR.
    pub(super) is_any: bool,
    /// Each with whether it is negated.
    pub(super) entries: Box<[(Test, bool)]>,
}

/// A test of a condition or a cohort.
#[derive(Debug)]
pub(super) enum Test {
    /// Compares a property.
    Property { name: Box<str>, of: Entity, filter: Filter },
    /// Membership in a cohort. `at` is `None` if the definitions do not contain it.
    Cohort { at: Option<usize>, is_not: bool },
    /// Compares the value of another flag. `at` is `None` if the definitions do not contain it, and `wanted` if it is a
    /// value that no flag can have. Any variant equals `true`.
    Flag { at: Option<usize>, wanted: Option<FlagValue> },
    /// Conditions within those of a cohort.
    Group(Group),
    /// The test cannot be used, and why.
    Unusable(InconclusiveReason),
}

/// What definitions refer to, by name or id.
struct Names {
    flags: HashMap<Box<str>, usize>,
    ids: HashMap<u64, usize>,
    cohorts: HashMap<String, usize>,
    groups: BTreeMap<String, String>,
    /// Version one of the matching (`property_matching_version`).
    compares_truth: bool,
}

impl Definitions {
    /// The index of a flag in `flags`.
    pub(super) fn find(&self, key: &str) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    pub(super) fn parse(json: &[u8]) -> Result<Self, ParseFlagsError> {
        let unreadable = |error: serde_json::Error| ParseFlagsError { why: error.to_string() };
        let parts: HashMap<String, &RawValue> = serde_json::from_slice(json).map_err(unreadable)?;
        let flags = parts.get("flags").ok_or(ParseFlagsError { why: "there is no list of flags".to_owned() })?;
        let flags: Vec<&RawValue> = serde_json::from_str(flags.get()).map_err(unreadable)?;
        let cohorts: BTreeMap<String, &RawValue> = part(&parts, "cohorts").unwrap_or_default();
        let (flags, mut unreadable) = distinct(&flags);
        let names = Names::new(&flags, &cohorts, &parts);

        let mut flags: Vec<_> = flags.iter().map(|(key, raw)| Flag::compile(key, raw.as_ref(), &names)).collect();
        let mut cohorts: Vec<_> = cohorts
            .values()
            .map(|raw| Group::compile(&serde_json::from_str::<Value>(raw.get()).map_err(|_| Malformed)?, &names))
            .collect();
        dependencies::follow(&mut flags, &mut cohorts);

        let names_of_unreadable = flags.iter().filter(|flag| flag.fault == Some(Malformed));
        unreadable.extend(names_of_unreadable.map(|flag| flag.key.to_string()));
        unreadable.truncate(UNREADABLE_NAMES);
        let wants_minimal_events = part(&parts, "minimal_flag_called_events").unwrap_or(false);
        Ok(Self { flags, cohorts, unreadable, wants_minimal_events, by_key: names.flags })
    }
}

impl Entity {
    fn compile(index: Option<&Value>, names: &Names) -> Result<Self, InconclusiveReason> {
        match index {
            None => Ok(Entity::Person),
            Some(index @ Value::Number(_)) => Ok(names.group(index)),
            Some(_) => Err(Malformed),
        }
    }
}

impl Names {
    fn new(
        flags: &[(String, Option<Object>)],
        cohorts: &BTreeMap<String, &RawValue>,
        parts: &HashMap<String, &RawValue>,
    ) -> Self {
        let id = |raw: &Option<Object>| raw.as_ref()?.get("id")?.as_u64();
        let groups: BTreeMap<String, Value> = part(parts, "group_type_mapping").unwrap_or_default();
        let name = |(index, name): (String, Value)| Some((index, name.as_str()?.to_owned()));
        Self {
            flags: flags.iter().enumerate().map(|(at, (key, _))| (key.as_str().into(), at)).collect(),
            ids: flags.iter().enumerate().filter_map(|(at, (_, raw))| Some((id(raw)?, at))).collect(),
            cohorts: cohorts.keys().enumerate().map(|(at, id)| (id.clone(), at)).collect(),
            groups: groups.into_iter().filter_map(name).collect(),
            compares_truth: part(parts, "property_matching_version") != Some(2_i64),
        }
    }

    /// By key, or by PostHog's database id.
    fn flag(&self, name: &str) -> Option<usize> {
        self.flags.get(name).or_else(|| self.ids.get(&name.parse().ok()?)).copied()
    }

    fn group(&self, index: &Value) -> Entity {
        let name = id_text(index).and_then(|index| self.groups.get(&index));
        name.map_or(Entity::UnknownGroup, |name| Entity::Group(name.as_str().into()))
    }
}

/// A member of the document. `None` if it is absent or cannot be parsed.
fn part<'j, T: serde::Deserialize<'j>>(parts: &HashMap<String, &'j RawValue>, name: &str) -> Option<T> {
    serde_json::from_str(parts.get(name)?.get()).ok()
}

/// The flags by key, each with its definition if that can be parsed, and list positions of the flags without a key.
fn distinct(raw: &[&RawValue]) -> (Vec<(String, Option<Object>)>, Vec<String>) {
    let mut flags: Vec<(String, Option<Object>)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut without_key = Vec::new();
    for (place, raw) in raw.iter().enumerate() {
        let object = serde_json::from_str::<Object>(raw.get()).ok();
        let Some(key) = key_of(object.as_ref(), raw) else {
            // Bounds the memory for a malicious list of millions of zeros.
            if without_key.len() < UNREADABLE_NAMES {
                without_key.push(format!("#{place}"));
            }
            continue;
        };
        match places.get(&key) {
            Some(&at) => flags[at].1 = object,
            None => {
                places.insert(key.clone(), flags.len());
                flags.push((key, object));
            }
        }
    }
    (flags, without_key)
}

/// Finds the key even if the rest of the flag cannot be parsed.
fn key_of(object: Option<&Object>, raw: &RawValue) -> Option<String> {
    if let Some(object) = object {
        return object.get("key")?.as_str().map(str::to_owned);
    }
    let fields: HashMap<String, &RawValue> = serde_json::from_str(raw.get()).ok()?;
    serde_json::from_str(fields.get("key")?.get()).ok()
}

impl Flag {
    fn compile(key: &str, raw: Option<&Object>, names: &Names) -> Self {
        let rules = raw.ok_or(Malformed).and_then(|raw| Rules::compile(key, raw, names));
        let fault = rules.as_ref().err().copied();
        let number = |name| raw.and_then(|raw| raw.get(name)).and_then(Value::as_u64);
        Flag {
            key: key.into(),
            id: number("id"),
            version: number("version"),
            has_experiment: raw.and_then(|raw| raw.get("has_experiment")).and_then(Value::as_bool),
            rules: rules.unwrap_or_default(),
            fault,
            cost: 0,
        }
    }
}

impl Rules {
    /// `None`: the flag is inactive.
    fn compile(key: &str, raw: &Object, names: &Names) -> Result<Option<Box<Self>>, InconclusiveReason> {
        // Without this field the flag could be active or inactive.
        let is_active = field(raw, "active").and_then(Value::as_bool).ok_or(Malformed)?;
        if !is_active || boolean(raw, "deleted")? {
            return Ok(None);
        }
        let filters = object(raw, "filters")?.ok_or(Malformed)?;
        let by_device = match text(raw, "bucketing_identifier")?.or(text(filters, "bucketing_identifier")?) {
            None | Some("distinct_id") => false,
            Some("device_id") => true,
            Some(_) => return Err(Malformed),
        };
        let of = Entity::compile(field(filters, "aggregation_group_type_index"), names)?;
        let variants = variants(filters)?;
        let condition = |raw: &Value| Condition::compile(raw, &of, &variants, names);
        Ok(Some(Box::new(Rules {
            keeps_experience: boolean(raw, "ensure_experience_continuity")?,
            by_device,
            early_exit: boolean(filters, "early_exit")?,
            enrollment: enrollment(key, filters, names)?,
            holdout: holdout(filters)?,
            conditions: list(filters, "groups")?.iter().map(condition).collect::<Result<_, _>>()?,
            payloads: payloads(filters)?,
            of,
            variants,
        })))
    }
}

impl Condition {
    fn compile(
        raw: &Value,
        flags_own: &Entity,
        variants: &[Variant],
        names: &Names,
    ) -> Result<Self, InconclusiveReason> {
        let raw = raw.as_object().ok_or(Malformed)?;
        // In a flag on groups, `null` means a condition on persons. Only an absent field inherits the entity of the
        // flag.
        let of = match raw.get("aggregation_group_type_index") {
            None => flags_own.clone(),
            Some(Value::Null) => Entity::Person,
            index => Entity::compile(index, names)?,
        };
        let tests = list(raw, "properties")?.iter().map(|raw| Test::compile(raw, &of, names));
        let tests = tests.collect::<Result<_, _>>()?;
        // A variant that the flag no longer has is ignored.
        let given = text(raw, "variant")?;
        let variant = given.and_then(|key| variants.iter().position(|variant| &*variant.key == key));
        Ok(Condition { of, tests, share: share(raw, "rollout_percentage")?, variant })
    }
}

fn enrollment(key: &str, filters: &Object, names: &Names) -> Result<Option<Enrollment>, InconclusiveReason> {
    if boolean(filters, "feature_enrollment")? {
        return Ok(Some(Enrollment::Property(format!("$feature_enrollment/{key}").into())));
    }
    let Some(first) = list(filters, "super_groups")?.first() else { return Ok(None) };
    let condition = Condition::compile(first, &Entity::Person, &[], names)?;
    Ok((!condition.tests.is_empty()).then_some(Enrollment::Condition(condition)))
}

fn holdout(filters: &Object) -> Result<Option<(f64, Box<str>)>, InconclusiveReason> {
    let Some(holdout) = object(filters, "holdout")? else {
        // PostHog reads this older format differently from how it did when the format was current.
        return if list(filters, "holdout_groups")?.is_empty() { Ok(None) } else { Err(Malformed) };
    };
    let id = field(holdout, "id").and_then(id_text).ok_or(Malformed)?;
    let share = share(holdout, "exclusion_percentage")?.ok_or(Malformed)?.clamp(0.0, 1.0);
    Ok(Some((share, format!("holdout-{id}").into())))
}

fn variants(filters: &Object) -> Result<Box<[Variant]>, InconclusiveReason> {
    let Some(multivariate) = object(filters, "multivariate")? else { return Ok(Box::default()) };
    let mut upper = 0.0;
    let mut variants = Vec::new();
    for raw in list(multivariate, "variants")? {
        let raw = raw.as_object().ok_or(Malformed)?;
        upper += share(raw, "rollout_percentage")?.ok_or(Malformed)?;
        variants.push(Variant { key: text(raw, "key")?.ok_or(Malformed)?.into(), upper });
    }
    Ok(variants.into())
}

/// A payload is JSON in a string. A string that is not JSON is kept as it is.
fn payloads(filters: &Object) -> Result<BTreeMap<Box<str>, Value>, InconclusiveReason> {
    let Some(payloads) = object(filters, "payloads")? else { return Ok(BTreeMap::new()) };
    let read = |payload: &Value| match payload {
        Value::String(json) => serde_json::from_str(json).unwrap_or_else(|_| payload.clone()),
        other => other.clone(),
    };
    let given = payloads.iter().filter(|(_, payload)| !payload.is_null());
    Ok(given.map(|(key, payload)| (key.as_str().into(), read(payload))).collect())
}

impl Group {
    /// The recursion is bounded by the JSON parser's limit on nesting.
    fn compile(raw: &Value, names: &Names) -> Result<Self, InconclusiveReason> {
        let raw = match raw {
            Value::Array(entries) => return Group::of(false, entries, names),
            Value::Object(raw) => raw,
            _ => return Err(Malformed),
        };
        let Some(entries) = raw.get("values") else {
            return Group::compile(raw.get("properties").ok_or(Malformed)?, names);
        };
        let is_any = match text(raw, "type")? {
            None | Some("AND" | "and" | "property") => false,
            Some("OR" | "or") => true,
            Some(_) => return Err(Malformed),
        };
        let entries = entries.as_array().ok_or(Malformed)?;
        // An empty OR has all people as members in PostHog's SDKs and none in its service. So has `{}`.
        if is_any && entries.is_empty() {
            return Err(Malformed);
        }
        Group::of(is_any, entries, names)
    }

    fn of(is_any: bool, entries: &[Value], names: &Names) -> Result<Self, InconclusiveReason> {
        Ok(Group { is_any, entries: entries.iter().map(|raw| entry(raw, names)).collect::<Result<_, _>>()? })
    }
}

/// A test of a cohort, and whether it is negated.
fn entry(raw: &Value, names: &Names) -> Result<(Test, bool), InconclusiveReason> {
    let object = raw.as_object().ok_or(Malformed)?;
    let is_group = object.is_empty()
        || object.contains_key("values")
        || object.contains_key("properties")
        || matches!(text(object, "type")?, Some("AND" | "OR"));
    if is_group {
        return Ok((Test::Group(Group::compile(raw, names)?), false));
    }
    match Test::compile(raw, &Entity::Person, names)? {
        // An unknown kind of membership can only be decided by PostHog.
        Test::Unusable(Malformed) => Err(Malformed),
        test => Ok((test, boolean(object, "negation")?)),
    }
}

impl Test {
    /// `of` is the entity of the property if the test does not name one. An unknown kind of test is inconclusive, not
    /// unreadable: another condition may decide the flag.
    fn compile(raw: &Value, of: &Entity, names: &Names) -> Result<Test, InconclusiveReason> {
        let raw = raw.as_object().ok_or(Malformed)?;
        match text(raw, "type")? {
            Some("cohort") => cohort(raw, names),
            Some("flag") => dependency(raw, names),
            None => property(raw, of.clone(), names),
            Some("person" | "property") => property(raw, Entity::Person, names),
            Some("group") => property(raw, group(raw, of, names), names),
            Some(_) => Ok(Test::Unusable(Malformed)),
        }
    }
}

/// A test on a group property names the group type. In an older format it inherits the entity of its condition.
fn group(raw: &Object, of: &Entity, names: &Names) -> Entity {
    match field(raw, "group_type_index") {
        Some(index) => names.group(index),
        None => match of {
            Entity::Person => Entity::UnknownGroup,
            group => group.clone(),
        },
    }
}

fn property(raw: &Object, of: Entity, names: &Names) -> Result<Test, InconclusiveReason> {
    let name = text(raw, "key")?.ok_or(Malformed)?;
    let operator = text(raw, "operator")?;
    let value = raw.get("value").unwrap_or(&Value::Null);
    let filter = Filter::compile(operator, value, names.compares_truth);
    Ok(Test::Property { name: name.into(), of, filter })
}

fn cohort(raw: &Object, names: &Names) -> Result<Test, InconclusiveReason> {
    let id = field(raw, "value").and_then(id_text).ok_or(Malformed)?;
    let is_not = match text(raw, "operator")? {
        None | Some("in") => false,
        Some("not_in") => true,
        // This includes `exact`: the service then finds no members, and PostHog's SDKs find them.
        Some(_) => return Ok(Test::Unusable(InconclusiveReason::UnknownOperator)),
    };
    Ok(Test::Cohort { at: names.cohorts.get(id.as_str()).copied(), is_not })
}

fn dependency(raw: &Object, names: &Names) -> Result<Test, InconclusiveReason> {
    let key = field(raw, "key").and_then(id_text).ok_or(Malformed)?;
    if text(raw, "operator")? != Some("flag_evaluates_to") {
        return Ok(Test::Unusable(InconclusiveReason::UnknownOperator));
    }
    // PostHog lists transitive dependencies, which are computed here instead. An empty list marks a cycle.
    match field(raw, "dependency_chain") {
        None => {}
        Some(Value::Array(chain)) if !chain.is_empty() => {}
        Some(Value::Array(_)) => return Ok(Test::Unusable(InconclusiveReason::TooDeep)),
        Some(_) => return Err(Malformed),
    }
    Ok(Test::Flag { at: names.flag(&key), wanted: raw.get("value").and_then(FlagValue::from_json) })
}

type Object = Map<String, Value>;

/// A field that is neither absent nor null. The functions below return [`Malformed`] for a field of the wrong type.
fn field<'v>(object: &'v Object, name: &str) -> Option<&'v Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// `false` if the field is absent.
fn boolean(object: &Object, name: &str) -> Result<bool, InconclusiveReason> {
    field(object, name).map_or(Ok(false), |value| value.as_bool().ok_or(Malformed))
}

fn text<'v>(object: &'v Object, name: &str) -> Result<Option<&'v str>, InconclusiveReason> {
    field(object, name).map(|value| value.as_str().ok_or(Malformed)).transpose()
}

/// A percentage as a fraction. Not rounded: PostHog supports tenths of a percent.
fn share(object: &Object, name: &str) -> Result<Option<f64>, InconclusiveReason> {
    field(object, name).map(|value| value.as_f64().map(|percent| percent / 100.0).ok_or(Malformed)).transpose()
}

fn object<'v>(object: &'v Object, name: &str) -> Result<Option<&'v Object>, InconclusiveReason> {
    field(object, name).map(|value| value.as_object().ok_or(Malformed)).transpose()
}

/// Empty if the field is absent.
fn list<'v>(object: &'v Object, name: &str) -> Result<&'v [Value], InconclusiveReason> {
    field(object, name).map_or(Ok(&[]), |value| value.as_array().map(Vec::as_slice).ok_or(Malformed))
}

/// An id, which may be a number or a string, as a string.
fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(plain_number(number).to_string()),
        _ => None,
    }
}

#[cfg(test)]
#[path = "definitions_tests.rs"]
mod tests;
