//! Captured reads of flags (FFT): `$feature_flag_called`.

use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use posthog::Context;
use posthog::feature_flags::{
    FlagContext, FlagDefinitionProvider, FlagDefinitions, FlagDefinitionsError, ProviderError,
};
use serde_json::{Map, Value, json};
use sink::{Answer, FlagRoute};

use crate::fixture::{Fixture, PATIENCE};
use crate::flag_scenario::{definitions, flags, for_all, got};
use crate::scenario::Scenario;

/// Properties that the minimal form may have, besides [`ORIGIN`] and those of the machine.
const SMALL: &[&str] = &[
    "$feature_flag",
    "$feature_flag_response",
    "$feature_flag_has_experiment",
    "$feature_flag_id",
    "$feature_flag_version",
    "$feature_flag_reason",
    "$feature_flag_request_id",
    "$feature_flag_evaluated_at",
    "$feature_flag_error",
    "locally_evaluated",
    "$groups",
    "$process_person_profile",
    "$session_id",
    "$lib",
    "$lib_version",
    "$is_server",
    "$geoip_disable",
];

/// Properties about the campaign and the release, which the minimal form keeps too.
const ORIGIN: &[&str] = &[
    "$release_id",
    "$referring_domain",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_content",
    "utm_term",
    "gad_source",
    "mc_cid",
    "gclid",
    "fbclid",
];

fn one() -> Scenario {
    Scenario::of_flags(json!({"button": "blue", "on": true}))
}

fn read(scenario: &Scenario, who: impl Into<FlagContext>) {
    assert!(got(scenario.client.is_feature_enabled("on", who)));
}

/// Whether the event lacks the property that only the full form has.
fn is_small(event: &Value) -> bool {
    let key = event["properties"]["$feature_flag"].as_str().unwrap();
    event["properties"].get(format!("$feature/{key}")).is_none()
}

#[test]
fn fft_01_the_first_read_is_captured_with_flag_and_value() {
    let scenario = one();
    assert_eq!(got(scenario.client.get_feature_flag("button", "user_1")), Some("blue".into()));
    let called = scenario.called();
    let said = &called[0]["properties"];
    assert_eq!((called.len(), &called[0]["distinct_id"]), (1, &json!("user_1")));
    assert_eq!((&said["$feature_flag"], &said["$feature_flag_response"]), (&json!("button"), &json!("blue")));
    assert_eq!((&said["$feature/button"], &said["locally_evaluated"]), (&json!("blue"), &json!(false)));
    assert_eq!((&said["$feature_flag_id"], &said["$feature_flag_version"]), (&json!(42), &json!(7)));
    assert_eq!(said["$feature_flag_request_id"], "request_1");
}

#[test]
fn fft_02_the_same_value_for_the_same_person_is_captured_once() {
    let scenario = one();
    for _ in 0..3 {
        read(&scenario, FlagContext::new("user_1").group("company", "acme"));
        assert!(scenario.evaluated(FlagContext::new("user_1").group("company", "acme")).is_enabled("on"));
    }
    assert_eq!(scenario.called().len(), 1);
    read(&scenario, FlagContext::new("user_2").group("company", "acme"));
    assert!(got(scenario.client.is_feature_enabled("button", FlagContext::new("user_1").group("company", "acme"))));
    assert_eq!(scenario.called().len(), 3, "another person, another flag");
}

#[test]
fn fft_03_a_value_that_changed_is_captured_again() {
    let scenario = one();
    for value in ["blue", "red", "red", "blue"] {
        scenario.answer_flags(Answer::json(&flags(json!({"button": value}))));
        let now = got(scenario.client.reload_feature_flags("user_1"));
        assert_eq!(now.get("button"), Some(value.into()));
    }
    let values: Vec<_> = scenario.called_values().into_iter().map(|(_, value)| value).collect();
    assert_eq!(values, ["blue", "red", "blue"]);
}

#[test]
fn fft_04_the_order_of_groups_does_not_change_the_context() {
    let scenario = one();
    read(&scenario, FlagContext::new("user_1").group("company", "acme").group("team", "red"));
    read(&scenario, FlagContext::new("user_1").group("team", "red").group("company", "acme"));
    let called = scenario.called();
    assert_eq!((called.len(), scenario.asked().len()), (1, 1));
    assert_eq!(called[0]["properties"]["$groups"], json!({"company": "acme", "team": "red"}));
}

#[test]
fn fft_05_another_group_is_another_context() {
    let scenario = one();
    for company in ["acme", "other", "acme"] {
        read(&scenario, FlagContext::new("user_1").group("company", company));
    }
    assert_eq!(scenario.called().len(), 2);
}

#[cfg(feature = "testing")]
#[test]
fn fft_06_a_shutdown_drops_captured_reads_and_captures_no_more() {
    let scenario = one();
    let flags = scenario.evaluated("user_1");
    read(&scenario, "user_1");
    assert_eq!(posthog::testing::captured_flag_reads(&scenario.client), 1);
    scenario.client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    assert_eq!(posthog::testing::captured_flag_reads(&scenario.client), 0);
    assert!(flags.is_enabled("button"));
    assert_eq!(posthog::testing::captured_flag_reads(&scenario.client), 0);
    assert_eq!(scenario.fixture.names(), ["$feature_flag_called"]);
}

#[test]
fn fft_07_captured_reads_are_bounded_and_evicted_by_age() {
    let scenario = Scenario::of_flags_with(json!({"on": true}), |config| config.flag_called_cache_size(3));
    let people =
        || scenario.called().iter().map(|event| event["distinct_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    ["a", "b", "c", "a", "d"].iter().for_each(|who| read(&scenario, *who));
    assert_eq!(people(), ["a", "b", "c", "d"]);
    // The three remembered reads are not captured again; the evicted one is.
    ["a", "c", "d", "b"].iter().for_each(|who| read(&scenario, *who));
    assert_eq!(people(), ["a", "b", "c", "d", "b"]);
}

#[test]
fn fft_07_a_value_read_by_threads_at_once_is_captured_once() {
    let scenario = one();
    let snapshot = scenario.evaluated("user_1");
    let together = Barrier::new(8);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                together.wait();
                assert!(snapshot.is_enabled("on"));
            });
        }
    });
    assert_eq!(scenario.called().len(), 1);
}

#[test]
fn fft_08_the_minimal_form_needs_a_flag_without_experiment() {
    for (is_wanted, has_experiment, is_expected) in [
        (json!(true), json!(false), true),
        (json!(true), json!(true), false),
        (json!(true), Value::Null, false),
        (json!(true), json!("false"), false),
        (json!(false), json!(false), false),
        (Value::Null, json!(false), false),
        (json!("true"), json!(false), false),
    ] {
        let mut answer = flags(json!({"on": true}));
        answer["minimalFlagCalledEvents"] = is_wanted.clone();
        answer["flags"]["on"]["metadata"]["has_experiment"] = has_experiment.clone();
        let remote = one();
        remote.answer_flags(Answer::json(&answer));
        read(&remote, "user_1");
        assert_eq!(is_small(&remote.called()[0]), is_expected, "remote: {is_wanted} {has_experiment}");
        let mut defined = definitions(&[for_all("on")]);
        defined["minimal_flag_called_events"] = is_wanted.clone();
        defined["flags"][0]["has_experiment"] = has_experiment.clone();
        let local = Scenario::of_defined(Answer::json(&defined));
        read(&local, "user_1");
        assert_eq!(is_small(&local.called()[0]), is_expected, "local: {is_wanted} {has_experiment}");
    }
}

#[test]
fn fft_09_the_minimal_form_has_only_the_listed_properties() {
    let scenario = Scenario::of_flags_with(json!({}), |config| {
        let config = config.super_property("$referrer", "https://a.test").super_property("release", "1.2");
        let config = config.before_send(|event| Some(event.prop("hooked", true)));
        ORIGIN.iter().fold(config, |config, name| config.super_property(*name, "here"))
    });
    let mut answer = flags(json!({"on": true, "tested": true}));
    answer["minimalFlagCalledEvents"] = json!(true);
    answer["flags"]["tested"]["metadata"]["has_experiment"] = json!(true);
    scenario.answer_flags(Answer::json(&answer));
    let who = FlagContext::new("user_1").group("company", "acme").disable_geoip(true);
    let snapshot = scenario.evaluated(who);
    Context::new().session_id("session_7").prop("route", "/").enter(|| {
        assert!(snapshot.is_enabled("on") && snapshot.is_enabled("tested"));
    });
    let called = scenario.called();
    let said: Vec<&Map<String, Value>> = called.iter().map(|event| event["properties"].as_object().unwrap()).collect();
    let machine = ["$os", "$os_version", "$os_distro"];
    let may: Vec<&str> = SMALL.iter().chain(ORIGIN).chain(&machine).copied().collect();
    let other: Vec<&String> = said[0].keys().filter(|name| !may.contains(&name.as_str())).collect();
    assert!(other.is_empty(), "{other:?}");
    let without = ["$feature_flag_error", "$process_person_profile"];
    for name in SMALL.iter().chain(ORIGIN).filter(|name| !without.contains(name)) {
        assert!(said[0].contains_key(*name), "{name} of {:?}", said[0]);
    }
    for name in ["$referrer", "release", "hooked", "route", "$feature/tested", "$feature_flag_payload"] {
        assert!(said[1].contains_key(name), "{name} of {:?}", said[1]);
    }
}

/// A provider from which one process reads what another has stored.
#[derive(Clone, Default)]
struct Cabinet(Arc<Mutex<Option<FlagDefinitions>>>);

impl FlagDefinitionProvider for Cabinet {
    fn should_fetch(&self) -> Result<bool, ProviderError> {
        Ok(true)
    }

    fn read(&self) -> Result<Option<FlagDefinitions>, ProviderError> {
        Ok(self.0.lock().unwrap().clone())
    }

    fn store(&self, definitions: &FlagDefinitions) -> Result<(), ProviderError> {
        *self.0.lock().unwrap() = Some(definitions.clone());
        Ok(())
    }
}

/// A flag without an experiment, in definitions that ask for the minimal form.
fn small() -> Answer {
    let mut defined = definitions(&[for_all("on")]);
    defined["minimal_flag_called_events"] = json!(true);
    Answer::json(&defined)
}

#[test]
fn fft_10_the_requested_form_lives_as_long_as_definitions() {
    let scenario = Scenario::of_defined(small().etag("\"1\""));
    read(&scenario, "loaded");
    scenario.load();
    assert!(scenario.fixture.sink.requests().iter().any(|request| request.status == 304));
    read(&scenario, "unchanged");
    scenario.define(small().etag("\"2\""));
    read(&scenario, "loaded anew");
    scenario.fixture.sink.flags(FlagRoute::Definitions, Answer::status(503));
    let reloaded = scenario.client.reload_flag_definitions().wait(PATIENCE);
    assert!(matches!(reloaded, Err(FlagDefinitionsError::Unavailable(_))), "{reloaded:?}");
    read(&scenario, "in an outage");
    assert_eq!((scenario.called().len(), scenario.called().iter().all(is_small)), (4, true));
    // The next process, with the kept definitions.
    scenario.client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    let Scenario { fixture, client, .. } = scenario;
    drop(client);
    let again = Scenario::on(fixture, |config| config.secret_key("phs_conformance"));
    read(&again, "restored");
    assert!(is_small(&again.called()[0]) && again.asked().is_empty());
}

#[test]
fn fft_10_the_requested_form_passes_through_a_provider() {
    let (cabinet, fixture) = (Cabinet::default(), Fixture::new());
    fixture.sink.flags(FlagRoute::Definitions, small());
    let stored = cabinet.clone();
    let first = Scenario::on(fixture, |config| config.secret_key("phs_conformance").flag_definitions_provider(stored));
    first.load();
    let second = Scenario::with(|config| config.flag_definitions_provider(cabinet));
    second.load();
    read(&second, "user_1");
    assert!(is_small(&second.called()[0]) && second.asked().is_empty());
}
