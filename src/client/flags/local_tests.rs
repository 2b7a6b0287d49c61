//! Flags with definitions: local values, and what is still requested from PostHog.

use std::time::Duration;

use serde_json::{Value, json};

use super::tests::{answer, asked, captured, got};
use crate::feature_flags::{FlagContext, FlagsProblem};
use crate::testing::{Answer, Harness, Route};

fn definition(key: &str, conditions: &Value) -> Value {
    json!({
        "id": 7, "key": key, "active": true, "version": 3, "has_experiment": false,
        "filters": {"groups": conditions, "payloads": {"true": "[1]"}},
    })
}

/// Two flags that are evaluated locally, and one that is inconclusive without the property `plan`.
fn with_definitions() -> Harness {
    let definitions = json!({"flags": [
        definition("everybody", &json!([{"properties": [], "rollout_percentage": 100}])),
        definition("nobody", &json!([{"properties": [], "rollout_percentage": 0}])),
        definition("pros", &json!([{"properties": [
            {"key": "plan", "type": "person", "operator": "exact", "value": ["pro"]}
        ]}])),
    ], "group_type_mapping": {}, "cohorts": {}, "minimal_flag_called_events": true});
    let harness = Harness::new(|config| config).unwrap();
    harness.server().always(Route::FlagDefinitions, Answer::ok().body(definitions.to_string()));
    let harness = harness.restart(|config| config.secret_key("phs_test")).unwrap();
    got(harness.client().reload_flag_definitions());
    harness
}

#[test]
fn flags_that_are_evaluated_locally_send_no_request() {
    let harness = with_definitions();
    let flags =
        harness.client().evaluate_flags(FlagContext::new("u").person_property("plan", "pro")).try_get().unwrap();
    assert_eq!(["everybody", "nobody", "pros"].map(|key| flags.is_enabled(key)), [true, false, true]);
    assert_eq!((flags.payload("pros"), flags.problem()), (Some(json!([1])), None));
    assert_eq!(harness.client().is_feature_enabled("everybody", "v").try_get(), Some(true));
    let captured = captured(&harness);
    assert_eq!((captured.len(), &captured[0].properties["locally_evaluated"]), (4, &json!(true)));
    assert_eq!(captured[0].properties["$feature_flag_reason"], "Evaluated locally");
    assert!(!captured[0].properties.contains_key("$feature/everybody"), "a minimal event, as the definitions ask for");
    assert!(asked(&harness).is_empty());
}

#[test]
fn a_response_for_inconclusive_flags_keeps_local_values() {
    let harness = with_definitions();
    let theirs = answer(&[("everybody", json!(false)), ("pros", json!(true)), ("other", json!(true))]);
    harness.server().always(Route::Flags, Answer::ok().body(theirs.to_string()));
    let flags = got(harness.client().evaluate_flags(FlagContext::new("u").only_keys(["everybody", "pros"])));
    assert_eq!(flags.keys().collect::<Vec<_>>(), ["everybody", "pros"]);
    assert!(flags.is_enabled("everybody") && flags.is_enabled("pros"));
    let asked = asked(&harness);
    assert_eq!((asked.len(), &asked[0].body["flag_keys_to_evaluate"]), (1, &json!(["everybody", "pros"])));
}

#[test]
fn ask_posthog_returns_local_values_only_after_a_failure() {
    let harness = with_definitions();
    let theirs = answer(&[("everybody", json!(false))]);
    harness.server().script(Route::Flags, [Answer::ok().body(theirs.to_string()), Answer::status(500)]);
    let insisting = || harness.client().is_feature_enabled("everybody", FlagContext::new("u").ask_posthog(true));
    assert!(!got(insisting()));
    assert!(got(insisting()));
    assert_eq!(asked(&harness).len(), 2);
}

#[test]
fn only_locally_returns_local_values_without_a_request() {
    let harness = with_definitions();
    let flags = harness.client().evaluate_flags(FlagContext::new("u").only_locally(true)).try_get().unwrap();
    assert_eq!((flags.keys().collect::<Vec<_>>(), asked(&harness).len()), (vec!["everybody", "nobody"], 0));
}

#[test]
fn in_an_outage_local_values_are_returned() {
    let harness = with_definitions();
    harness.server().always(Route::Flags, Answer::status(500));
    let flags = got(harness.client().evaluate_flags("u"));
    assert!(flags.is_enabled("everybody") && flags.get("pros").is_none());
    assert!(matches!(flags.problem(), Some(FlagsProblem::NoAnswer { .. })) && asked(&harness).len() == 1);
}

#[test]
fn an_unknown_key_is_not_requested_again_until_a_refresh() {
    let harness = with_definitions();
    harness.server().script(Route::Flags, [Answer::status(500), Answer::ok().body(answer(&[]).to_string())]);
    let read = |who: &str| got(harness.client().get_feature_flag("unknown", who));
    assert_eq!(
        (read("a"), read("b"), read("c"), asked(&harness).len()),
        (None, None, None, 2),
        "a failed request does not make a key a missing key"
    );
    harness.advance(Duration::from_secs(40));
    assert_eq!((read("d"), asked(&harness).len()), (None, 3));
}

#[test]
fn a_payload_of_another_value_is_known_from_the_definitions() {
    let harness = with_definitions();
    let payload = harness.client().get_feature_flag_payload_of("nobody", "u", true);
    assert_eq!((payload.try_get().unwrap(), asked(&harness).len()), (Some(json!([1])), 0));
}
