//! Definitions of flags, as PostHog gives them to those who evaluate flags themselves: read with patience, compiled once, never changed.
//!
//! The answer of `/flags/definitions` is an object of `flags` (a list), `cohorts` (by id), `group_type_mapping` (index to name),
//! `property_matching_version` and `minimal_flag_called_events`. Only an answer without a list of flags is refused: whatever else cannot
//! be read costs no more than itself. Each flag and each cohort is a document of its own for the reader of JSON (`RawValue`), so that
//! nothing in one (nesting without end, half a surrogate pair, a number out of bounds) ends the reading of the others.
//!
//! * `read.rs` reads fields: null is absent, another kind of value is unreadable.
//! * `flag.rs` compiles a flag, `cohort.rs` a cohort, `test.rs` one entry of either. A structure that we do not know makes the flag
//!   [`State::Unreadable`]; a kind of entry or an operator that we do not know makes that entry inconclusive, and the flag's other
//!   conditions may do without it. What PostHog says of a thing for certain (an inactive flag) holds whatever else is unreadable.
//! * References (to cohorts, flags, group types) become indexes here. `graph.rs` then follows them, without recursion: what is in a
//!   circle or too deep gets a fault, at which an evaluation stops; a cohort gets the faults of those that it is made of; and each flag
//!   learns how much work it may be (`walk`), by which the evaluator decides whether to remember what it has found out.
//!
//! The last of several flags with one key is the one that counts. Parsing is a pure function of the bytes: who keeps those keeps all.

mod cohort;
mod flag;
mod graph;
mod read;
mod test;

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;
use serde_json::value::RawValue;

pub(crate) use cohort::{Cohort, Entry, Group};
pub(crate) use flag::{Condition, Enrollment, Flag, Holdout, Rules, State};
pub(crate) use test::{Dependency, Property, Test, Wanted};

use self::read::{Object, Unreadable, id_text};
use super::MatchingVersion;

/// Names of unreadable flags that are told.
const UNREADABLE_NAMES: usize = 100;

/// Why definitions could not be read at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the definitions of the flags cannot be read: {why}")]
pub struct ParseFlagsError {
    why: String,
}

/// All that is needed to evaluate flags.
#[derive(Debug)]
pub(crate) struct Definitions {
    pub(crate) flags: Vec<Flag>,
    pub(crate) cohorts: Vec<Cohort>,
    /// Keys of flags that could not be read, or places in the list if not even that could be. The first hundred.
    pub(crate) unreadable: Vec<String>,
    pub(crate) wants_minimal_events: bool,
    by_key: HashMap<Box<str>, usize>,
}

/// Whose properties are compared, and whose id decides about a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entity {
    Person,
    /// The person's group of a type.
    Group(Box<str>),
    /// Of a type that the definitions do not name.
    UnknownGroup,
}

/// What a definition may refer to.
struct Names {
    flags: HashMap<Box<str>, usize>,
    ids: HashMap<u64, usize>,
    cohorts: HashMap<String, usize>,
    groups: BTreeMap<String, String>,
    version: MatchingVersion,
}

impl Definitions {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, ParseFlagsError> {
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
            .map(|raw| match serde_json::from_str::<Value>(raw.get()) {
                Ok(raw) => Cohort::compile(&raw, &names),
                Err(_) => Cohort::unreadable(),
            })
            .collect();
        graph::follow(&mut flags, &mut cohorts);

        let names_of_unreadable = flags.iter().filter(|flag| matches!(flag.state, State::Unreadable));
        unreadable.extend(names_of_unreadable.map(|flag| flag.key.to_string()));
        unreadable.truncate(UNREADABLE_NAMES);
        let wants_minimal_events = part(&parts, "minimal_flag_called_events").unwrap_or(false);
        Ok(Self { flags, cohorts, unreadable, wants_minimal_events, by_key: names.flags })
    }

    pub(crate) fn find(&self, key: &str) -> Option<usize> {
        self.by_key.get(key).copied()
    }
}

impl Entity {
    fn compile(index: Option<&Value>, names: &Names) -> Result<Self, Unreadable> {
        match index {
            None => Ok(Entity::Person),
            Some(index @ Value::Number(_)) => Ok(names.group(index)),
            Some(_) => Err(Unreadable),
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
            version: match part(parts, "property_matching_version") {
                Some(2_i64) => MatchingVersion::Two,
                _ => MatchingVersion::One,
            },
        }
    }

    /// By key, or by the id that PostHog's own database refers to.
    fn flag(&self, name: &str) -> Option<usize> {
        self.flags.get(name).or_else(|| self.ids.get(&name.parse().ok()?)).copied()
    }

    fn group(&self, index: &Value) -> Entity {
        let name = id_text(index).and_then(|index| self.groups.get(&index));
        name.map_or(Entity::UnknownGroup, |name| Entity::Group(name.as_str().into()))
    }
}

/// A part that is absent or unreadable is `None`.
fn part<'j, T: serde::Deserialize<'j>>(parts: &HashMap<String, &'j RawValue>, name: &str) -> Option<T> {
    serde_json::from_str(parts.get(name)?.get()).ok()
}

/// The flags by key, each with its definition if that can be read; and the places in the list of those without a key.
fn distinct(raw: &[&RawValue]) -> (Vec<(String, Option<Object>)>, Vec<String>) {
    let mut flags: Vec<(String, Option<Object>)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut without_key = Vec::new();
    for (place, raw) in raw.iter().enumerate() {
        let object = serde_json::from_str::<Object>(raw.get()).ok();
        let Some(key) = key_of(object.as_ref(), raw) else {
            // A list of millions of zeros is no reason for as many names.
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

/// Also of a flag that cannot be read otherwise: for this alone the rest is not looked into.
fn key_of(object: Option<&Object>, raw: &RawValue) -> Option<String> {
    if let Some(object) = object {
        return object.get("key")?.as_str().map(str::to_owned);
    }
    let fields: HashMap<String, &RawValue> = serde_json::from_str(raw.get()).ok()?;
    serde_json::from_str(fields.get("key")?.get()).ok()
}

#[cfg(test)]
mod tests;
