//! Helpers for flag scenarios: a server with flags, the requests it received, and the `$feature_flag_called` events.

use std::time::Duration;

use posthog::feature_flags::{FeatureFlags, FlagContext};
use posthog::reports::PendingValue;
use posthog::{Config, Event, Pending};
use serde_json::{Value, json};
use sink::{Answer, FlagRoute};

use crate::fixture::{Fixture, PATIENCE, accepted};
use crate::scenario::Scenario;

/// The result of a `Pending`.
pub(crate) fn got<T: PendingValue>(pending: Pending<T>) -> T::Value
where
    T::Error: std::fmt::Debug,
{
    pending.wait(PATIENCE).unwrap()
}

/// A response with these values. Flags that are on have a payload with their key.
pub(crate) fn flags(values: Value) -> Value {
    let flag = |(key, value): (&String, &Value)| {
        let is_on = *value != false;
        let flag = json!({
            "enabled": is_on,
            "variant": value.as_str(),
            "reason": {"code": "condition_match", "description": "Matched condition set 1"},
            "metadata": {
                "id": 42, "version": 7, "has_experiment": false,
                "payload": is_on.then(|| json!({"of": key}).to_string()),
            },
        });
        (key.clone(), flag)
    };
    let flags: serde_json::Map<_, _> = values.as_object().unwrap().iter().map(flag).collect();
    json!({"flags": flags, "errorsWhileComputingFlags": false, "requestId": "request_1", "evaluatedAt": 1_735_689_600_123_i64})
}

/// The definition of a flag that is on for everyone.
pub(crate) fn for_all(key: &str) -> Value {
    defined(key, json!([{"properties": [], "rollout_percentage": 100}]))
}

/// The definition of a flag that only PostHog can evaluate for a person without the property `plan`.
pub(crate) fn for_pros(key: &str) -> Value {
    let plan = json!({"key": "plan", "type": "person", "operator": "exact", "value": ["pro"]});
    defined(key, json!([{"properties": [plan], "rollout_percentage": 100}]))
}

fn defined(key: &str, conditions: Value) -> Value {
    json!({
        "id": 7, "key": key, "active": true, "version": 3, "has_experiment": false,
        "filters": {"groups": conditions, "payloads": {"true": "[1]"}},
    })
}

/// A document with these definitions.
pub(crate) fn definitions(flags: &[Value]) -> Value {
    json!({"flags": flags, "group_type_mapping": {}, "cohorts": {}})
}

/// Settings for slow test machines: long timeouts and intervals, no retries.
fn unhurried(config: Config) -> Config {
    let hour = Duration::from_secs(3600);
    config.flag_request_timeout(PATIENCE).flag_request_max_retries(0).flag_cache_ttl(hour).flag_poll_interval(hour)
}

impl Scenario {
    /// A scenario in which PostHog returns these values for everyone.
    pub(crate) fn of_flags(values: Value) -> Self {
        Self::of_flags_with(values, |config| config)
    }

    pub(crate) fn of_flags_with(values: Value, set: impl FnOnce(Config) -> Config) -> Self {
        let scenario = Self::with(|config| set(unhurried(config)));
        scenario.answer_flags(Answer::json(&flags(values)));
        scenario
    }

    /// A client that has loaded these definitions. PostHog responds without flags.
    pub(crate) fn of_definitions(flags: &[Value]) -> Self {
        Self::of_defined(Answer::json(&definitions(flags)))
    }

    pub(crate) fn of_defined(definitions: Answer) -> Self {
        let fixture = Fixture::new();
        fixture.sink.flags(FlagRoute::Definitions, definitions);
        let scenario = Self::on(fixture, |config| unhurried(config).secret_key("phs_conformance"));
        scenario.load();
        scenario
    }

    /// Sets PostHog's response to requests for flags.
    pub(crate) fn answer_flags(&self, answer: Answer) {
        self.fixture.sink.flags(FlagRoute::Values, answer);
    }

    /// Replaces the definitions and loads them.
    pub(crate) fn define(&self, definitions: Answer) {
        self.fixture.sink.flags(FlagRoute::Definitions, definitions);
        self.load();
    }

    /// Loads definitions.
    pub(crate) fn load(&self) {
        got(self.client.reload_flag_definitions());
    }

    pub(crate) fn evaluated(&self, who: impl Into<FlagContext>) -> FeatureFlags {
        got(self.client.evaluate_flags(who))
    }

    /// The received requests for flag values, without those for definitions.
    pub(crate) fn asked(&self) -> Vec<Value> {
        let requests = self.fixture.sink.requests().into_iter();
        requests
            .filter(|request| request.path.trim_end_matches('/') == "/flags")
            .map(|request| request.envelope)
            .collect()
    }

    /// The `$feature_flag_called` events that were sent.
    pub(crate) fn called(&self) -> Vec<Value> {
        self.sent().into_iter().filter(|event| event["event"] == "$feature_flag_called").collect()
    }

    /// Keys and values of the `$feature_flag_called` events that were sent, in order.
    pub(crate) fn called_values(&self) -> Vec<(String, Value)> {
        let value = |event: &Value| {
            let said = &event["properties"];
            (said["$feature_flag"].as_str().unwrap().to_owned(), said["$feature_flag_response"].clone())
        };
        self.called().iter().map(value).collect()
    }

    /// The properties of an event that is captured with these flags.
    pub(crate) fn properties_with(&self, flags: &FeatureFlags) -> Value {
        let uuid = accepted(&self.client.capture(Event::new("shown", "user_1").flags(flags))).to_string();
        let sent = self.sent();
        sent.iter().find(|event| event["uuid"] == uuid.as_str()).unwrap()["properties"].clone()
    }
}

/// The keys of a snapshot.
pub(crate) fn keys(flags: &FeatureFlags) -> Vec<&str> {
    flags.keys().collect()
}
