//! Events that say who somebody is, and what PostHog shall know of a person or a group.

use serde::Serialize;

use super::builder::{Event, Flaw, is_blank};
use super::group::key_text;
use crate::record::Pairs;

const SET: &str = "$set";
const SET_ONCE: &str = "$set_once";
const GROUP_SET: &str = "$group_set";

impl Event {
    /// A `$identify` event: this person exists, and has the properties that [`person_properties`](Self::person_properties) and its like set.
    /// Every one is sent; nothing is remembered of earlier ones.
    ///
    /// ```
    /// use posthog::Event;
    ///
    /// let event = Event::identify("user_1").person_property("plan", "pro").person_property_once("first_seen", "2026-01-01");
    /// assert_eq!(event.name(), "$identify");
    /// ```
    pub fn identify(distinct_id: impl AsRef<str>) -> Self {
        let mut event = Self::described("$identify", distinct_id.as_ref());
        event.merge_into(SET, Pairs::default());
        event
    }

    /// A `$set` event: changes properties of a person, and says nothing else.
    pub fn set_person(distinct_id: impl AsRef<str>) -> Self {
        Self::described("$set", distinct_id.as_ref())
    }

    /// A `$create_alias` event: whoever is `alias` is the person `previous_id`.
    pub fn alias(previous_id: impl AsRef<str>, alias: impl AsRef<str>) -> Self {
        let (previous_id, alias) = (previous_id.as_ref(), alias.as_ref());
        let mut event = Self::described("$create_alias", previous_id);
        event.set("distinct_id", previous_id);
        event.set("alias", alias);
        if is_blank(alias) {
            event.draft.remember(Flaw::EmptyAlias);
        }
        event
    }

    /// A `$groupidentify` event: this group exists, and has the properties that [`group_props`](Self::group_props) set. The key is a
    /// string or a number. Its distinct id is `$<type>_<key>`, unless [`with_distinct_id`](Self::with_distinct_id) gives another.
    pub fn group_identify(group_type: impl AsRef<str>, group_key: impl Serialize) -> Self {
        let group_type = group_type.as_ref();
        let key = key_text(&group_key);
        let mut event = Self::described("$groupidentify", &format!("${group_type}_{}", key.as_deref().unwrap_or("")));
        event.set("$group_type", group_type);
        event.set("$group_key", &group_key);
        event.merge_into(GROUP_SET, Pairs::default());
        if is_blank(group_type) {
            event.draft.remember(Flaw::EmptyGroupType);
        }
        match key {
            Ok(key) if is_blank(&key) => event.draft.remember(Flaw::EmptyGroupKey),
            Ok(_) => {}
            Err(reason) => event.draft.remember_value("$group_key", reason),
        }
        event
    }

    /// Says that somebody else did it: [`set_distinct_id`](Self::set_distinct_id) for an event that is described in one go.
    pub fn with_distinct_id(mut self, distinct_id: impl AsRef<str>) -> Self {
        self.set_distinct_id(distinct_id);
        self
    }

    /// Sets a property of the person (`$set`), with any event.
    ///
    /// ```
    /// use posthog::Event;
    ///
    /// let event = Event::new("upgraded", "user_1").person_property("plan", "pro").person_property("seats", 3);
    /// assert_eq!(event.properties()["$set"], serde_json::json!({"plan": "pro", "seats": 3}));
    /// ```
    pub fn person_property(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        self.merge_one(SET, key.as_ref(), &value);
        self
    }

    /// Sets a property of the person that has none of that name yet (`$set_once`), with any event.
    pub fn person_property_once(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        self.merge_one(SET_ONCE, key.as_ref(), &value);
        self
    }

    /// Sets several properties of the person (`$set`): those of a map, a struct, or a sequence of pairs.
    pub fn person_properties(mut self, props: impl Serialize) -> Self {
        self.merge_all(SET, &props);
        self
    }

    /// Sets several properties of the person, each if there is none of that name yet (`$set_once`).
    pub fn person_props_once(mut self, props: impl Serialize) -> Self {
        self.merge_all(SET_ONCE, &props);
        self
    }

    /// Sets several properties of the group (`$group_set`) that a [`group_identify`](Self::group_identify) is about.
    pub fn group_props(mut self, props: impl Serialize) -> Self {
        self.merge_all(GROUP_SET, &props);
        self
    }

    /// Refused unless it changes a property of the person: it would say nothing.
    pub(crate) fn must_set_something(mut self) -> Self {
        if !self.has(SET) && !self.has(SET_ONCE) {
            self.draft.remember(Flaw::NothingToSet);
        }
        self
    }

    fn merge_one(&mut self, name: &str, key: &str, value: &impl Serialize) {
        match Pairs::one(key, value) {
            Ok(pair) => self.merge_into(name, pair),
            Err(reason) => self.draft.remember_value(key, reason),
        }
    }

    fn merge_all(&mut self, name: &str, props: &impl Serialize) {
        match Pairs::of(props) {
            Ok(pairs) if pairs.is_empty() => {}
            Ok(pairs) => self.merge_into(name, pairs),
            Err(reason) => self.draft.remember_value(name, reason),
        }
    }

    /// Adds to the map that the property of that name is. Kept as a property from the start: hooks read and change it like any other.
    fn merge_into(&mut self, name: &str, newer: Pairs) {
        let mut pairs = self.value_of(name).map(Pairs::in_value).unwrap_or_default();
        pairs.merge(&newer);
        self.remove(name);
        match pairs.append_as_map(&mut self.draft.body, name) {
            Ok(()) => self.draft.property_count = self.draft.property_count.saturating_add(1),
            Err(reason) => self.draft.remember_value(name, reason),
        }
    }
}
