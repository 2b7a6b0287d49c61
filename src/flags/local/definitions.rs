//! Definitions of feature flags, compiled.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::property::Filter;
use crate::flags::InconclusiveReason;

/// All that is needed to evaluate flags.
#[derive(Debug)]
pub(super) struct Definitions {
    pub(super) flags: Vec<Flag>,
    pub(super) cohorts: Vec<Cohort>,
    /// Keys of flags that could not be read, or places in the list if not even that could be. The first hundred.
    pub(super) unreadable: Vec<String>,
    pub(super) wants_minimal_events: bool,
    pub(super) by_key: HashMap<Box<str>, usize>,
}

/// Whose properties are compared, and whose id decides about a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entity {
    Person,
    /// The person's group of a type.
    Group(Box<str>),
    /// Of a type that the definitions do not name.
    UnknownGroup,
}

/// A flag, compiled.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) key: Box<str>,
    pub(super) id: Option<u64>,
    pub(super) version: Option<u64>,
    pub(super) has_experiment: Option<bool>,
    pub(super) state: State,
    /// It depends on itself, or on too much.
    pub(super) fault: Option<InconclusiveReason>,
    /// How many tests one evaluation may make, those of what it depends on included. `u32::MAX`: that or more.
    pub(super) walk: u32,
}

#[derive(Debug)]
pub(super) enum State {
    Unreadable,
    Inactive,
    Active(Box<Rules>),
}

/// What an active flag is, for whom.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) keeps_experience: bool,
    pub(super) by_device: bool,
    /// Who is meant by a condition and left out by its rollout is not asked about by the next ones.
    pub(super) early_exit: bool,
    pub(super) of: Entity,
    pub(super) enrollment: Option<Enrollment>,
    pub(super) holdout: Option<Holdout>,
    pub(super) conditions: Box<[Condition]>,
    pub(super) variants: Box<[Variant]>,
    /// By `true` or the variant's key.
    pub(super) payloads: BTreeMap<Box<str>, Value>,
}

/// Early access: who has asked for it has it, whatever the conditions say.
#[derive(Debug)]
pub(super) enum Enrollment {
    /// The name of the property that says so.
    Property(Box<str>),
    /// The same in older definitions.
    Condition(Condition),
}

/// Who is kept out of experiments.
#[derive(Debug)]
pub(super) struct Holdout {
    pub(super) share: f64,
    pub(super) variant: Box<str>,
}

#[derive(Debug)]
pub(super) struct Condition {
    pub(super) of: Entity,
    pub(super) tests: Box<[Test]>,
    /// `None`: everybody who is meant.
    pub(super) share: Option<f64>,
    /// The variant that it gives, among the flag's; `None`: the one that the bucket says.
    pub(super) variant: Option<usize>,
}

#[derive(Debug)]
pub(super) struct Variant {
    pub(super) key: Box<str>,
    /// It is for buckets below this one that no variant before it has.
    pub(super) upper: f64,
}

/// Who is a member.
#[derive(Debug)]
pub(super) struct Cohort {
    pub(super) members: Group,
    /// Nobody here can tell: something in it, or in a cohort that it is made of, is unreadable or not among the definitions.
    /// Others of its conditions do not help then, for PostHog itself takes such a cohort as an error.
    pub(super) fault: Option<InconclusiveReason>,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    /// One of them will do; else all have to hold.
    pub(super) is_any: bool,
    pub(super) entries: Box<[Entry]>,
}

#[derive(Debug)]
pub(super) enum Entry {
    Group(Group),
    Test { test: Test, negated: bool },
}

/// Something that holds or does not.
#[derive(Debug)]
pub(super) enum Test {
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
pub(super) struct Property {
    pub(super) name: Box<str>,
    pub(super) of: Entity,
    pub(super) filter: Filter,
}

/// Whether another flag has a value.
#[derive(Debug)]
pub(super) struct Dependency {
    /// `None`: it is not among the definitions.
    pub(super) at: Option<usize>,
    /// `None`: nothing that a flag can be.
    pub(super) wanted: Option<Wanted>,
}

/// A value that a flag may have.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// On, or any variant.
    On,
    Off,
    Variant(Box<str>),
}

impl Definitions {
    /// The place of a flag in `flags`.
    pub(super) fn find(&self, key: &str) -> Option<usize> {
        self.by_key.get(key).copied()
    }
}
