//! The tests of a condition, and the cohorts and flags that they are on.

use serde_json::Value;

use super::LocalValue;
use super::pass::Pass;
use crate::flags::InconclusiveReason;
use crate::flags::definitions::{Dependency, Entity, Entry, Group, Property, Test, Wanted};

/// Properties that need not be given: whom it is about is known. PostHog adds the same.
const DISTINCT_ID: &str = "distinct_id";
const GROUP_KEY: &str = "$group_key";

impl<'d> Pass<'d, '_> {
    /// One that does not hold settles it, also after one that is unknown.
    pub(super) fn all_hold(&mut self, tests: &'d [Test]) -> Result<bool, InconclusiveReason> {
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
