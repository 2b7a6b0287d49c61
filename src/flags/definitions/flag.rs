//! Flags: for whom they are on, and with which variant and payload.

use std::collections::BTreeMap;

use serde_json::Value;

use super::read::{Object, Unreadable, boolean, field, list, object, share, text};
use super::test::Test;
use super::{Entity, Names};
use crate::flags::InconclusiveReason;

/// A flag, compiled.
#[derive(Debug)]
pub(crate) struct Flag {
    pub(crate) key: Box<str>,
    pub(crate) id: Option<u64>,
    pub(crate) version: Option<u64>,
    pub(crate) has_experiment: Option<bool>,
    pub(crate) state: State,
    /// It depends on itself, or on too much.
    pub(crate) fault: Option<InconclusiveReason>,
    /// How many tests one evaluation may make, those of what it depends on included. `u32::MAX`: that or more.
    pub(crate) walk: u32,
}

#[derive(Debug)]
pub(crate) enum State {
    Unreadable,
    Inactive,
    Active(Box<Rules>),
}

/// What an active flag is, for whom.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) keeps_experience: bool,
    pub(crate) by_device: bool,
    /// Who is meant by a condition and left out by its rollout is not asked about by the next ones.
    pub(crate) early_exit: bool,
    pub(crate) of: Entity,
    pub(crate) enrollment: Option<Enrollment>,
    pub(crate) holdout: Option<Holdout>,
    pub(crate) conditions: Box<[Condition]>,
    pub(crate) variants: Box<[Variant]>,
    /// By `true` or the variant's key.
    pub(crate) payloads: BTreeMap<Box<str>, Value>,
}

/// Early access: who has asked for it has it, whatever the conditions say.
#[derive(Debug)]
pub(crate) enum Enrollment {
    /// The name of the property that says so.
    Property(Box<str>),
    /// The same in older definitions.
    Condition(Condition),
}

/// Who is kept out of experiments.
#[derive(Debug)]
pub(crate) struct Holdout {
    pub(crate) share: f64,
    pub(crate) variant: Box<str>,
}

#[derive(Debug)]
pub(crate) struct Condition {
    pub(crate) of: Entity,
    pub(crate) tests: Box<[Test]>,
    /// `None`: everybody who is meant.
    pub(crate) share: Option<f64>,
    /// The variant that it gives, among the flag's; `None`: the one that the bucket says.
    pub(crate) variant: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) key: Box<str>,
    /// It is for buckets below this one that no variant before it has.
    pub(crate) upper: f64,
}

impl Flag {
    pub(super) fn compile(key: &str, raw: Option<&Object>, names: &Names) -> Self {
        let state = raw.ok_or(Unreadable).and_then(|raw| State::compile(key, raw, names)).unwrap_or(State::Unreadable);
        let number = |name| raw.and_then(|raw| raw.get(name)).and_then(Value::as_u64);
        Flag {
            key: key.into(),
            id: number("id"),
            version: number("version"),
            has_experiment: raw.and_then(|raw| raw.get("has_experiment")).and_then(Value::as_bool),
            state,
            fault: None,
            walk: 0,
        }
    }
}

impl State {
    fn compile(key: &str, raw: &Object, names: &Names) -> Result<Self, Unreadable> {
        // A flag that says nothing of it could be either.
        let is_active = field(raw, "active").and_then(Value::as_bool).ok_or(Unreadable)?;
        if !is_active || boolean(raw, "deleted")? {
            return Ok(State::Inactive);
        }
        let filters = object(raw, "filters")?.ok_or(Unreadable)?;
        let by_device = match text(raw, "bucketing_identifier")?.or(text(filters, "bucketing_identifier")?) {
            None | Some("distinct_id") => false,
            Some("device_id") => true,
            Some(_) => return Err(Unreadable),
        };
        let of = Entity::compile(field(filters, "aggregation_group_type_index"), names)?;
        let variants = variants(filters)?;
        let condition = |raw: &Value| Condition::compile(raw, &of, &variants, names);
        Ok(State::Active(Box::new(Rules {
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
    fn compile(raw: &Value, flags_own: &Entity, variants: &[Variant], names: &Names) -> Result<Self, Unreadable> {
        let raw = raw.as_object().ok_or(Unreadable)?;
        // A condition that says `null` is on persons, also in a flag on groups; only one that says nothing is on what the flag is on.
        let of = match raw.get("aggregation_group_type_index") {
            None => flags_own.clone(),
            Some(Value::Null) => Entity::Person,
            index => Entity::compile(index, names)?,
        };
        let tests = list(raw, "properties")?.iter().map(|raw| Test::compile(raw, &of, names));
        let tests = tests.collect::<Result<_, _>>()?;
        // A variant that the flag does not have (any more) is passed over.
        let given = text(raw, "variant")?;
        let variant = given.and_then(|key| variants.iter().position(|variant| &*variant.key == key));
        Ok(Condition { of, tests, share: share(raw, "rollout_percentage")?, variant })
    }
}

fn enrollment(key: &str, filters: &Object, names: &Names) -> Result<Option<Enrollment>, Unreadable> {
    if boolean(filters, "feature_enrollment")? {
        return Ok(Some(Enrollment::Property(format!("$feature_enrollment/{key}").into())));
    }
    let Some(first) = list(filters, "super_groups")?.first() else { return Ok(None) };
    let condition = Condition::compile(first, &Entity::Person, &[], names)?;
    Ok((!condition.tests.is_empty()).then_some(Enrollment::Condition(condition)))
}

fn holdout(filters: &Object) -> Result<Option<Holdout>, Unreadable> {
    let Some(holdout) = object(filters, "holdout")? else {
        // How PostHog read the form that came before is not what it does now.
        return if list(filters, "holdout_groups")?.is_empty() { Ok(None) } else { Err(Unreadable) };
    };
    let id = field(holdout, "id").and_then(super::read::id_text).ok_or(Unreadable)?;
    let share = share(holdout, "exclusion_percentage")?.ok_or(Unreadable)?.clamp(0.0, 1.0);
    Ok(Some(Holdout { share, variant: format!("holdout-{id}").into() }))
}

fn variants(filters: &Object) -> Result<Box<[Variant]>, Unreadable> {
    let Some(multivariate) = object(filters, "multivariate")? else { return Ok(Box::default()) };
    let mut upper = 0.0;
    let mut variants = Vec::new();
    for raw in list(multivariate, "variants")? {
        let raw = raw.as_object().ok_or(Unreadable)?;
        upper += share(raw, "rollout_percentage")?.ok_or(Unreadable)?;
        variants.push(Variant { key: text(raw, "key")?.ok_or(Unreadable)?.into(), upper });
    }
    Ok(variants.into())
}

/// A payload is JSON in a string; what is not JSON is a text.
fn payloads(filters: &Object) -> Result<BTreeMap<Box<str>, Value>, Unreadable> {
    let Some(payloads) = object(filters, "payloads")? else { return Ok(BTreeMap::new()) };
    let read = |payload: &Value| match payload {
        Value::String(json) => serde_json::from_str(json).unwrap_or_else(|_| payload.clone()),
        other => other.clone(),
    };
    let given = payloads.iter().filter(|(_, payload)| !payload.is_null());
    Ok(given.map(|(key, payload)| (key.as_str().into(), read(payload))).collect())
}
