//! For whom flags are evaluated: the context that a caller gives, and the properties that a client adds to every
//! context.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use lru::LruCache;
use serde::Serialize;
use serde_json::{Map, Value};

/// The person to evaluate flags for, with groups and properties, and options of the evaluation.
///
/// Every call that takes a context also takes a distinct id, as `&str` or `String`.
///
/// ```
/// use posthog::feature_flags::FlagContext;
///
/// let context = FlagContext::new("user_1")
///     .person_property("plan", "pro")
///     .group("company", "acme")
///     .group_property("company", "tier", "gold");
/// # let _ = context;
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct FlagContext {
    /// `None`: the distinct id of the current [`Context`](crate::Context).
    pub(crate) distinct_id: Option<String>,
    pub(crate) device_id: Option<String>,
    pub(crate) groups: BTreeMap<String, String>,
    pub(crate) person_properties: Map<String, Value>,
    /// By group type.
    pub(crate) group_properties: BTreeMap<String, Map<String, Value>>,
    /// `None`: all flags.
    pub(crate) flag_keys: Option<Vec<String>>,
    /// `None`: as configured.
    pub(crate) only_locally: Option<bool>,
    /// `None`: as configured.
    pub(crate) disable_geoip: Option<bool>,
    /// Request the values from PostHog even if they are known.
    pub(crate) is_remote: bool,
    /// Reads capture no `$feature_flag_called`.
    pub(crate) is_silent: bool,
    /// Names of properties whose values could not be serialized.
    pub(crate) unserializable: Vec<String>,
}

impl FlagContext {
    /// A context for the person with this distinct id.
    pub fn new(distinct_id: impl Into<String>) -> Self {
        Self { distinct_id: Some(distinct_id.into()), ..Self::default() }
    }

    /// A context for the person of the current [`Context`](crate::Context), such as the request being served. Without a
    /// current context that has a distinct id, no flag has a value.
    pub fn from_current() -> Self {
        Self::default()
    }

    /// Sets the device id, for flags that are rolled out by device.
    pub fn device_id(mut self, device_id: impl Into<String>) -> Self {
        self.device_id = Some(device_id.into());
        self
    }

    /// Adds a group of the person.
    pub fn group(mut self, group_type: impl Into<String>, key: impl Into<String>) -> Self {
        self.groups.insert(group_type.into(), key.into());
        self
    }

    /// Adds a property of the person. Takes precedence over
    /// [`Client::set_person_properties_for_flags`](crate::Client::set_person_properties_for_flags).
    pub fn person_property(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        let name = name.into();
        match serde_json::to_value(value) {
            Ok(value) => drop(self.person_properties.insert(name, value)),
            Err(_) => self.unserializable.push(name),
        }
        self
    }

    /// Adds a property of the person's group of this type.
    pub fn group_property(
        mut self,
        group_type: impl Into<String>,
        name: impl Into<String>,
        value: impl Serialize,
    ) -> Self {
        let name = name.into();
        match serde_json::to_value(value) {
            Ok(value) => drop(self.group_properties.entry(group_type.into()).or_default().insert(name, value)),
            Err(_) => self.unserializable.push(name),
        }
        self
    }

    /// Evaluates only these flags. An empty list evaluates none. Default: all flags.
    pub fn only_keys<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.flag_keys = Some(keys.into_iter().map(Into::into).collect());
        self
    }

    /// Never sends a request: a flag that cannot be evaluated locally has no value. Default:
    /// [`Config::only_evaluate_flags_locally`](crate::Config::only_evaluate_flags_locally).
    pub fn only_locally(mut self, only: bool) -> Self {
        self.only_locally = Some(only);
        self
    }

    /// Requests the values from PostHog even if the flags can be evaluated locally or are cached. Default: off.
    pub fn ask_posthog(mut self, on: bool) -> Self {
        self.is_remote = on;
        self
    }

    /// Whether PostHog skips the GeoIP lookup of this machine's address. Default:
    /// [`Config::disable_geoip`](crate::Config::disable_geoip).
    pub fn disable_geoip(mut self, on: bool) -> Self {
        self.disable_geoip = Some(on);
        self
    }

    /// Whether the first read of a flag's value captures `$feature_flag_called`, from which PostHog counts exposures to
    /// experiments. Default: on.
    pub fn send_feature_flag_events(mut self, on: bool) -> Self {
        self.is_silent = !on;
        self
    }
}

impl From<&str> for FlagContext {
    fn from(distinct_id: &str) -> Self {
        Self::new(distinct_id)
    }
}

impl From<String> for FlagContext {
    fn from(distinct_id: String) -> Self {
        Self::new(distinct_id)
    }
}

impl From<&String> for FlagContext {
    fn from(distinct_id: &String) -> Self {
        Self::new(distinct_id.as_str())
    }
}

/// Clones the context, so that a caller can evaluate flags for the same context repeatedly.
impl From<&FlagContext> for FlagContext {
    fn from(context: &FlagContext) -> Self {
        context.clone()
    }
}

/// Groups that have properties of their own. Beyond this number the least recently used group loses its properties.
const MAX_GROUPS: NonZeroUsize = NonZeroUsize::new(1000).expect("not zero");

/// Properties that a client adds to every context. What a context says itself takes precedence.
#[derive(Clone, Debug)]
pub(crate) struct Overrides {
    pub(crate) person: Map<String, Value>,
    /// By group type and key. Without a key: for all groups of the type.
    groups: LruCache<(String, Option<String>), Map<String, Value>>,
}

impl Default for Overrides {
    fn default() -> Self {
        Self { person: Map::new(), groups: LruCache::sparse(MAX_GROUPS) }
    }
}

impl Overrides {
    /// Adds group properties. An empty map adds no entry.
    pub(crate) fn set_group(&mut self, group_type: &str, key: Option<&str>, properties: Map<String, Value>) {
        if !properties.is_empty() {
            self.groups.get_or_insert_mut(place(group_type, key), Map::new).extend(properties);
        }
    }

    /// Removes the properties of all groups, or of the groups of one type.
    pub(crate) fn reset_groups(&mut self, group_type: Option<&str>) {
        self.groups.retain(|(of, _), _| group_type.is_some_and(|group_type| group_type != of));
    }

    pub(crate) fn group(&self, group_type: &str, key: Option<&str>) -> Map<String, Value> {
        self.groups.peek(&place(group_type, key)).cloned().unwrap_or_default()
    }

    pub(crate) fn clear(&mut self) {
        self.person.clear();
        self.reset_groups(None);
    }

    /// Adds the properties that `context` lacks. Those of a group take precedence over those of its type.
    pub(crate) fn apply_to(&mut self, context: &mut FlagContext) {
        add_absent(&mut context.person_properties, &self.person);
        if self.groups.is_empty() {
            return;
        }
        for (group_type, key) in &context.groups {
            if let Some(properties) = self.groups.get(&place(group_type, Some(key))) {
                add_absent(context.group_properties.entry(group_type.clone()).or_default(), properties);
            }
        }
        for ((group_type, _), properties) in self.groups.iter().filter(|((_, key), _)| key.is_none()) {
            add_absent(context.group_properties.entry(group_type.clone()).or_default(), properties);
        }
    }
}

fn place(group_type: &str, key: Option<&str>) -> (String, Option<String>) {
    (group_type.to_owned(), key.map(str::to_owned))
}

fn add_absent(map: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (name, value) in more {
        if !map.contains_key(name) {
            map.insert(name.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn they_add_up_and_what_the_call_says_counts_more() {
        let mut overrides = Overrides::default();
        overrides.person.extend(map(json!({"plan": "free", "seats": 1})));
        overrides.person.extend(map(json!({"plan": "pro", "beta": true})));
        assert_eq!(overrides.person, map(json!({"plan": "pro", "seats": 1, "beta": true})));
        let mut context = FlagContext::new("u").person_property("seats", 9);
        overrides.apply_to(&mut context);
        assert_eq!(context.person_properties, map(json!({"plan": "pro", "seats": 9, "beta": true})));
        overrides.person.clear();
        let mut context = FlagContext::new("u");
        overrides.apply_to(&mut context);
        assert_eq!(context, FlagContext::new("u"));
    }

    #[test]
    fn properties_of_a_group_precede_those_of_its_type() {
        let mut overrides = Overrides::default();
        overrides.set_group("company", None, map(json!({"tier": "any", "size": 1})));
        overrides.set_group("company", Some("acme"), map(json!({"tier": "gold"})));
        let applied = |overrides: &mut Overrides, key: &str| {
            let mut context = FlagContext::new("u").group("company", key).group_property("company", "size", 2);
            overrides.apply_to(&mut context);
            context.group_properties.remove("company").unwrap_or_default()
        };
        assert_eq!(applied(&mut overrides, "acme"), map(json!({"tier": "gold", "size": 2})));
        assert_eq!(applied(&mut overrides, "other"), map(json!({"tier": "any", "size": 2})));
        assert_eq!(overrides.group("company", Some("acme")), map(json!({"tier": "gold"})));
        assert!(overrides.group("company", Some("other")).is_empty());
    }

    #[test]
    fn a_reset_takes_back_one_type_or_all() {
        let mut overrides = Overrides::default();
        overrides.set_group("company", Some("a"), map(json!({"x": 1})));
        overrides.set_group("team", None, map(json!({"x": 1})));
        overrides.reset_groups(Some("company"));
        assert!(overrides.group("company", Some("a")).is_empty() && !overrides.group("team", None).is_empty());
        overrides.reset_groups(None);
        assert_eq!(overrides.groups.len(), 0);
    }

    #[test]
    fn nothing_to_set_sets_nothing_and_groups_are_bounded() {
        let mut overrides = Overrides::default();
        overrides.set_group("company", Some("a"), Map::new());
        assert_eq!(overrides.groups.len(), 0);
        for number in 0..MAX_GROUPS.get() + 5 {
            overrides.set_group("company", Some(&number.to_string()), map(json!({"x": number})));
        }
        assert_eq!(overrides.groups.len(), MAX_GROUPS.get());
    }
}
