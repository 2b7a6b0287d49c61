//! Properties that count for every evaluation, and forgetting.

use serde::Serialize;
use serde_json::{Map, Value};

use super::super::Client;
use crate::diagnostics::Diagnostic;

impl Client {
    /// Adds properties that every person has in evaluations of flags from now on, unless a context gives another value. For what holds for
    /// the whole program (its version, its region), or where a program serves a single person; what is true of one request is said in its
    /// [`FlagContext`](crate::FlagContext). A map, a struct or a list of pairs; an empty one changes nothing. Captures nothing, and asks nobody.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// client.set_person_properties_for_flags([("app_version", "3.2")]);
    /// ```
    pub fn set_person_properties_for_flags(&self, properties: impl Serialize) {
        if let Some(properties) = self.properties("person", &properties)
            && let Ok(client) = self.for_flags()
        {
            client.shared.flags.overrides().set_person(properties);
        }
    }

    /// What [`set_person_properties_for_flags`](Self::set_person_properties_for_flags) has set.
    pub fn person_properties_for_flags(&self) -> Map<String, Value> {
        self.for_flags().map(|client| client.shared.flags.overrides().person().clone()).unwrap_or_default()
    }

    /// Takes them back.
    pub fn reset_person_properties_for_flags(&self) {
        if let Ok(client) = self.for_flags() {
            client.shared.flags.overrides().reset_person();
        }
    }

    /// Adds properties that the group of that type and key has in evaluations of flags from now on, unless a context gives another value;
    /// without a key, whatever group of that type. Those of a group count more than those of its type. Of at most 1000 groups; then those
    /// of the group go that was used longest ago.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// client.set_group_properties_for_flags("company", Some("acme"), [("tier", "gold")]);
    /// client.set_group_properties_for_flags("region", None, [("zone", "eu")]);
    /// ```
    pub fn set_group_properties_for_flags(
        &self,
        group_type: impl AsRef<str>,
        key: Option<&str>,
        properties: impl Serialize,
    ) {
        if let Some(properties) = self.properties("group", &properties)
            && let Ok(client) = self.for_flags()
        {
            client.shared.flags.overrides().set_group(group_type.as_ref(), key, properties);
        }
    }

    /// What [`set_group_properties_for_flags`](Self::set_group_properties_for_flags) has set for that type and key.
    pub fn group_properties_for_flags(&self, group_type: impl AsRef<str>, key: Option<&str>) -> Map<String, Value> {
        let overrides = |client: Client| client.shared.flags.overrides().group(group_type.as_ref(), key);
        self.for_flags().map(overrides).unwrap_or_default()
    }

    /// Takes those of all groups back, or of all groups of one type.
    pub fn reset_group_properties_for_flags(&self, group_type: Option<&str>) {
        if let Ok(client) = self.for_flags() {
            client.shared.flags.overrides().reset_groups(group_type);
        }
    }

    /// Forgets what PostHog answered, and the properties that were set for flags. Who asks from now on is answered by nothing that was
    /// asked before. Definitions stay ([`reset_flag_definitions`](Self::reset_flag_definitions)), and so do snapshots.
    pub fn reset_feature_flags(&self) {
        if let Ok(client) = self.for_flags() {
            client.shared.flags.cache.reset();
            client.shared.flags.missing.reset();
            client.shared.flags.overrides().clear();
        }
    }

    /// As JSON has them, which is how PostHog gets them.
    fn properties(&self, whose: &str, properties: &impl Serialize) -> Option<Map<String, Value>> {
        let why = match serde_json::to_value(properties) {
            Ok(Value::Object(map)) => return Some(map),
            Ok(Value::Array(pairs)) => match pairs.into_iter().map(pair).collect() {
                Some(map) => return Some(map),
                None => "they are neither a map nor a list of pairs".to_owned(),
            },
            Ok(Value::Null) => return None,
            Ok(_) => "they are neither a map nor a list of pairs".to_owned(),
            Err(error) => error.to_string(),
        };
        self.record(Diagnostic::Invalid { what: format!("{whose} properties for flags were left out: {why}") });
        None
    }
}

fn pair(pair: Value) -> Option<(String, Value)> {
    match <[Value; 2]>::try_from(pair.as_array()?.clone()).ok()? {
        [Value::String(name), value] => Some((name, value)),
        _ => None,
    }
}
