//! Compiled definitions of feature flags.
//!
//! Plain data: `parse.rs` builds it from JSON, `dependencies.rs` adds faults and costs, and the evaluator reads it.
//! References between flags and cohorts are indexes into [`Definitions`].

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::property::Filter;
use crate::flags::{FlagValue, InconclusiveReason};

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
    /// By the key of a variant, or `true`.
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
    /// The variant has the buckets below this that earlier variants do not have.
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
    /// Compares the value of another flag. `at` is `None` if the definitions do not contain it, `wanted` if it is a value
    /// that no flag can have. Any variant equals `true`.
    Flag { at: Option<usize>, wanted: Option<FlagValue> },
    /// Conditions within those of a cohort.
    Group(Group),
    /// The test cannot be used, and why.
    Unusable(InconclusiveReason),
}

impl Definitions {
    /// The index of a flag in `flags`.
    pub(super) fn find(&self, key: &str) -> Option<usize> {
        self.by_key.get(key).copied()
    }
}
