//! Values of flags that a test has set (`posthog::testing`). They precede definitions and PostHog's values.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use serde_json::Value;

use super::super::Client;
use super::Flags;
use crate::context;
use crate::flags::{Evaluated, FlagContext, FlagValue};

/// The value of `$feature_flag_reason` for such a flag.
const REASON: &str = "overridden by a test";

/// Values by key.
type Values = BTreeMap<String, Evaluated>;

/// The values for everyone, and for persons by distinct id, which precede those for everyone.
#[derive(Debug, Default)]
pub(super) struct TestValues {
    everyone: Values,
    persons: BTreeMap<String, Values>,
}

impl TestValues {
    fn of(&self, distinct_id: &str, key: &str) -> Option<&Evaluated> {
        let own = self.persons.get(distinct_id).and_then(|values| values.get(key));
        own.or_else(|| self.everyone.get(key))
    }

    /// Every flag that has a value for this person.
    fn all(&self, distinct_id: &str) -> Values {
        let own = self.persons.get(distinct_id).cloned().unwrap_or_default();
        self.everyone.clone().into_iter().chain(own).collect()
    }
}

impl Flags {
    /// Whether a test has set all flags that are requested by name.
    pub(super) fn are_set_by_test(&self, context: &FlagContext) -> bool {
        let (values, who) = (self.test_values(), person(context));
        context.flag_keys.as_ref().is_some_and(|keys| keys.iter().all(|key| values.of(who, key).is_some()))
    }

    /// Replaces the values of requested flags by those that a test has set.
    pub(super) fn apply_test_values(&self, context: &FlagContext, flags: &mut Values) {
        let is_requested = |key: &String| context.flag_keys.as_ref().is_none_or(|keys| keys.contains(key));
        let set = self.test_values().all(person(context));
        flags.extend(set.into_iter().filter(|(key, _)| is_requested(key)));
    }

    fn test_values(&self) -> MutexGuard<'_, TestValues> {
        self.test_values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn person(context: &FlagContext) -> &str {
    context.distinct_id.as_deref().unwrap_or_default()
}

impl Client {
    /// Sets the value of a flag for a person, or for everyone.
    pub(crate) fn set_test_value(&self, who: Option<String>, key: String, value: FlagValue, payload: Option<Value>) {
        let value = Evaluated { payload, reason: Some(REASON.to_owned()), is_local: true, ..Evaluated::of(value) };
        let mut values = self.shared.flags.test_values();
        match who {
            Some(who) => values.persons.entry(who).or_default().insert(key, value),
            None => values.everyone.insert(key, value),
        };
    }

    /// Removes the values of a flag, or all.
    pub(crate) fn clear_test_values(&self, key: Option<&str>) {
        let mut values = self.shared.flags.test_values();
        let stays = |other: &String| key.is_some_and(|key| key != other);
        values.everyone.retain(|other, _| stays(other));
        values.persons.values_mut().for_each(|own| own.retain(|other, _| stays(other)));
    }

    /// Whether a test has set the flag for this person.
    pub(super) fn is_set_by_test(&self, key: &str, who: &FlagContext) -> bool {
        let who = who.distinct_id.clone().or_else(context::current_distinct_id).unwrap_or_default();
        self.shared.flags.test_values().of(&who, key).is_some()
    }
}
