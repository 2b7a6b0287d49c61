//! Settings of a client's flags that change at run time: properties for every evaluation, resets, and the loaded
//! definitions.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::super::Client;
use crate::flags::{FlagDefinitionsError, FlagDefinitionsState, LocalFlags};
use crate::pipeline::pending::Unanswered;
use crate::pipeline::{Pending, pending};
use crate::report::Diagnostic;

/// Properties for every evaluation.
impl Client {
    /// Adds person properties to every evaluation from now on. A [`FlagContext`](crate::feature_flags::FlagContext)
    /// that has a property of the same name takes precedence.
    ///
    /// Use this for properties of the whole program (its version, its region), or if the program serves a single
    /// person. Properties of one request belong in its context. Takes a map, a struct or a list of pairs. Captures
    /// nothing and sends no request.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// client.set_person_properties_for_flags([("app_version", "3.2")]);
    /// ```
    pub fn set_person_properties_for_flags(&self, properties: impl Serialize) {
        if let Some(properties) = self.properties("person", &properties)
            && let Ok(client) = self.for_flags()
        {
            client.shared.flags.overrides().person.extend(properties);
        }
    }

    /// The properties set with [`set_person_properties_for_flags`](Self::set_person_properties_for_flags).
    pub fn person_properties_for_flags(&self) -> Map<String, Value> {
        self.for_flags().map(|client| client.shared.flags.overrides().person.clone()).unwrap_or_default()
    }

    /// Removes the properties set with [`set_person_properties_for_flags`](Self::set_person_properties_for_flags).
    pub fn reset_person_properties_for_flags(&self) {
        if let Ok(client) = self.for_flags() {
            client.shared.flags.overrides().person.clear();
        }
    }

    /// Adds properties of the group with this type and key to every evaluation from now on. Without a key, they apply
    /// to all groups of the type. Properties of a group take precedence over those of its type, and those of a context
    /// over both. Holds at most 1000 groups; beyond that the least recently used group loses its properties.
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

    /// The properties set with [`set_group_properties_for_flags`](Self::set_group_properties_for_flags) for this type
    /// and key.
    pub fn group_properties_for_flags(&self, group_type: impl AsRef<str>, key: Option<&str>) -> Map<String, Value> {
        let overrides = |client: Client| client.shared.flags.overrides().group(group_type.as_ref(), key);
        self.for_flags().map(overrides).unwrap_or_default()
    }

    /// Removes the properties of all groups, or of the groups of one type.
    pub fn reset_group_properties_for_flags(&self, group_type: Option<&str>) {
        if let Ok(client) = self.for_flags() {
            client.shared.flags.overrides().reset_groups(group_type);
        }
    }

    /// Drops cached responses of PostHog and the properties set for flags. Later evaluations do not use responses to
    /// requests that are in flight now. Snapshots and definitions are kept; see
    /// [`reset_flag_definitions`](Self::reset_flag_definitions).
    pub fn reset_feature_flags(&self) {
        if let Ok(client) = self.for_flags() {
            client.shared.flags.cache.reset();
            client.shared.flags.missing.reset();
            client.shared.flags.overrides().clear();
        }
    }

    /// Converts properties to JSON. Reports a diagnostic if that is not possible.
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
        self.record(Diagnostic::InputIgnored { what: format!("{whose} properties for flags were left out: {why}") });
        None
    }
}

fn pair(pair: Value) -> Option<(String, Value)> {
    match <[Value; 2]>::try_from(pair.as_array()?.clone()).ok()? {
        [Value::String(name), value] => Some((name, value)),
        _ => None,
    }
}

/// Definitions.
impl Client {
    /// Loads the definitions of flags now, or joins the load under way. Resolves when flags are evaluated with the
    /// result.
    ///
    /// The first load begins when the client is made. Wait for this before the first evaluation if that must not send a
    /// request. While the server asks to wait (`Retry-After`), no request is sent and the result is an error.
    ///
    /// # Errors
    ///
    /// [`FlagDefinitionsError`] says why nothing was loaded, and whether earlier definitions are still in use.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// # use std::time::Duration;
    /// if let Err(error) = client.reload_flag_definitions().wait(Duration::from_secs(5)) {
    ///     println!("{error}; flags are evaluated with definitions from {:?} ago", client.flag_definitions_age());
    /// }
    /// ```
    pub fn reload_flag_definitions(&self) -> Pending<Result<(), FlagDefinitionsError>> {
        let Some(pipeline) = self.pipeline() else { return self.answer_without_pipeline() };
        let Some(loader) = pipeline.definitions() else {
            return pending::answered(Err(FlagDefinitionsError::NotConfigured));
        };
        let (promise, pending) = pending::pending();
        loader.reload(Box::new(move |loaded| promise.answer(loaded)));
        pending
    }

    /// Drops the definitions, including those kept for the next process, and loads them again (after `Retry-After`, if
    /// the server asked for that). Until then no flag is evaluated locally; wait for
    /// [`reload_flag_definitions`](Self::reload_flag_definitions) to have the new ones. Snapshots are kept. Does
    /// nothing if neither a secret key nor a provider is set.
    ///
    /// Follows PostHog's specification `flag-definition-loader`.
    pub fn reset_flag_definitions(&self) {
        if let Some(pipeline) = self.pipeline()
            && let Some(loader) = pipeline.definitions()
        {
            loader.reset();
        }
    }

    /// The current definitions, as a snapshot that does not change. `None` if nothing is loaded: neither
    /// [`Config::secret_key`](crate::Config::secret_key) nor a provider is set, no load has succeeded yet, or PostHog
    /// refuses the key. Never waits.
    pub fn local_flags(&self) -> Option<LocalFlags> {
        self.pipeline()?.definitions()?.current().map(|loaded| loaded.flags.clone())
    }

    /// The time since PostHog or the program's provider last confirmed that the definitions are the newest. For
    /// definitions that an earlier process kept, the time since that process fetched them.
    pub fn flag_definitions_age(&self) -> Option<Duration> {
        let pipeline = self.pipeline()?;
        pipeline.definitions()?.age(pipeline.options().clock.wall_nanos())
    }

    /// Whether the definitions are fresh, stale, or kept by an earlier process.
    pub fn flag_definitions_state(&self) -> FlagDefinitionsState {
        let pipeline = self.pipeline();
        let loader = pipeline.as_ref().and_then(|pipeline| pipeline.definitions());
        loader.map_or(FlagDefinitionsState::Missing, |loader| loader.state())
    }
}

impl Unanswered for Result<(), FlagDefinitionsError> {
    fn closed() -> Self {
        Err(FlagDefinitionsError::Closed)
    }

    fn forked() -> Self {
        Err(FlagDefinitionsError::Forked)
    }
}
