//! Cohorts: who is a member, as conditions joined by AND and OR.

use serde_json::Value;

use super::read::{Unreadable, boolean, text};
use super::test::Test;
use super::{Entity, Names};
use crate::flags::InconclusiveReason;

/// Who is a member.
#[derive(Debug)]
pub(crate) struct Cohort {
    pub(crate) members: Group,
    /// Nobody here can tell: something in it, or in a cohort that it is made of, is unreadable or not among the definitions.
    /// Others of its conditions do not help then, for PostHog itself takes such a cohort as an error.
    pub(crate) fault: Option<InconclusiveReason>,
}

#[derive(Debug, Default)]
pub(crate) struct Group {
    /// One of them will do; else all have to hold.
    pub(crate) is_any: bool,
    pub(crate) entries: Box<[Entry]>,
}

#[derive(Debug)]
pub(crate) enum Entry {
    Group(Group),
    Test { test: Test, negated: bool },
}

impl Cohort {
    pub(super) fn compile(raw: &Value, names: &Names) -> Self {
        match Group::compile(raw, names) {
            Ok(members) => Cohort { members, fault: None },
            Err(Unreadable) => Cohort::unreadable(),
        }
    }

    pub(super) fn unreadable() -> Self {
        Cohort { members: Group::default(), fault: Some(InconclusiveReason::Malformed) }
    }
}

impl Group {
    /// Recursion is bounded by what the reader of JSON lets through.
    fn compile(raw: &Value, names: &Names) -> Result<Self, Unreadable> {
        let raw = match raw {
            Value::Array(entries) => return Group::of(false, entries, names),
            Value::Object(raw) => raw,
            _ => return Err(Unreadable),
        };
        let Some(entries) = raw.get("values") else {
            return Group::compile(raw.get("properties").ok_or(Unreadable)?, names);
        };
        let is_any = match text(raw, "type")? {
            None | Some("AND" | "and" | "property") => false,
            Some("OR" | "or") => true,
            Some(_) => return Err(Unreadable),
        };
        let entries = entries.as_array().ok_or(Unreadable)?;
        // In one of nothing is everybody to PostHog's libraries, and nobody to its service: so with `{}`, which has no entries at all.
        if is_any && entries.is_empty() {
            return Err(Unreadable);
        }
        Group::of(is_any, entries, names)
    }

    fn of(is_any: bool, entries: &[Value], names: &Names) -> Result<Self, Unreadable> {
        Ok(Group { is_any, entries: entries.iter().map(|raw| Entry::compile(raw, names)).collect::<Result<_, _>>()? })
    }
}

impl Entry {
    fn compile(raw: &Value, names: &Names) -> Result<Self, Unreadable> {
        let object = raw.as_object().ok_or(Unreadable)?;
        let is_group = object.is_empty()
            || object.contains_key("values")
            || object.contains_key("properties")
            || matches!(text(object, "type")?, Some("AND" | "OR"));
        if is_group {
            return Ok(Entry::Group(Group::compile(raw, names)?));
        }
        let test = match Test::compile(raw, &Entity::Person, names)? {
            // A kind of membership that is new to this version is one that only PostHog can tell.
            Test::Unusable(InconclusiveReason::Malformed) => return Err(Unreadable),
            test => test,
        };
        Ok(Entry::Test { test, negated: boolean(object, "negation")? })
    }
}
