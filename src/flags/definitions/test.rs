//! One entry of a condition or a cohort: on a property, a cohort, or another flag.

use serde_json::Value;

use super::read::{Object, Unreadable, field, id_text, text};
use super::{Entity, Names};
use crate::flags::{Filter, InconclusiveReason};

/// Something that holds or does not.
#[derive(Debug)]
pub(crate) enum Test {
    Property(Property),
    /// Whether somebody is a member of a cohort; `None` for one that is not among the definitions.
    Cohort {
        at: Option<usize>,
        is_not: bool,
    },
    Flag(Dependency),
    Unusable(InconclusiveReason),
}

#[derive(Debug)]
pub(crate) struct Property {
    pub(crate) name: Box<str>,
    pub(crate) of: Entity,
    pub(crate) filter: Filter,
}

/// Whether another flag has a value.
#[derive(Debug)]
pub(crate) struct Dependency {
    /// `None`: it is not among the definitions.
    pub(crate) at: Option<usize>,
    /// `None`: nothing that a flag can be.
    pub(crate) wanted: Option<Wanted>,
}

/// A value that a flag may have.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// On, or any variant.
    On,
    Off,
    Variant(Box<str>),
}

impl Test {
    /// `of`: whose property it is if it does not say so. What is new to this version is inconclusive, not unreadable: another
    /// condition may do without it.
    pub(super) fn compile(raw: &Value, of: &Entity, names: &Names) -> Result<Test, Unreadable> {
        let raw = raw.as_object().ok_or(Unreadable)?;
        match text(raw, "type")? {
            Some("cohort") => cohort(raw, names),
            Some("flag") => dependency(raw, names),
            None => property(raw, of.clone(), names),
            Some("person" | "property") => property(raw, Entity::Person, names),
            Some("group") => property(raw, group(raw, of, names), names),
            Some(_) => Ok(Test::Unusable(InconclusiveReason::Malformed)),
        }
    }
}

/// A filter on a group's property names the group type; older ones leave it to the condition that they stand in.
fn group(raw: &Object, of: &Entity, names: &Names) -> Entity {
    match field(raw, "group_type_index") {
        Some(index) => names.group(index),
        None => match of {
            Entity::Person => Entity::UnknownGroup,
            group => group.clone(),
        },
    }
}

fn property(raw: &Object, of: Entity, names: &Names) -> Result<Test, Unreadable> {
    let name = text(raw, "key")?.ok_or(Unreadable)?;
    let operator = text(raw, "operator")?;
    let value = raw.get("value").unwrap_or(&Value::Null);
    let filter = Filter::compile(operator, value, names.version);
    Ok(Test::Property(Property { name: name.into(), of, filter }))
}

fn cohort(raw: &Object, names: &Names) -> Result<Test, Unreadable> {
    let id = field(raw, "value").and_then(id_text).ok_or(Unreadable)?;
    let is_not = match text(raw, "operator")? {
        None | Some("in") => false,
        Some("not_in") => true,
        // Also `exact`, by which the service finds nobody, and its libraries find the members.
        Some(_) => return Ok(Test::Unusable(InconclusiveReason::UnknownOperator)),
    };
    Ok(Test::Cohort { at: names.cohorts.get(id.as_str()).copied(), is_not })
}

fn dependency(raw: &Object, names: &Names) -> Result<Test, Unreadable> {
    let key = field(raw, "key").and_then(id_text).ok_or(Unreadable)?;
    if text(raw, "operator")? != Some("flag_evaluates_to") {
        return Ok(Test::Unusable(InconclusiveReason::UnknownOperator));
    }
    // PostHog lists what the flag depends on in turn, which we find out ourselves; of a circle it lists nothing.
    match field(raw, "dependency_chain") {
        None => {}
        Some(Value::Array(chain)) if !chain.is_empty() => {}
        Some(Value::Array(_)) => return Ok(Test::Unusable(InconclusiveReason::TooDeep)),
        Some(_) => return Err(Unreadable),
    }
    let wanted = match raw.get("value") {
        Some(Value::Bool(true)) => Some(Wanted::On),
        Some(Value::Bool(false)) => Some(Wanted::Off),
        Some(Value::String(variant)) => Some(Wanted::Variant(variant.as_str().into())),
        // No flag is equal to anything else, says PostHog.
        _ => None,
    };
    Ok(Test::Flag(Dependency { at: names.flag(&key), wanted }))
}
