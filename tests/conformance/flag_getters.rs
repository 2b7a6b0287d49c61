//! The getters of one flag (GFF, GFP, GFR, IFE) and of all flags (GFS, GFA).

use std::collections::BTreeMap;

use posthog::feature_flags::{AllFlags, FlagContext};
use serde_json::{Value, json};
use sink::Answer;

use crate::flag_scenario::{flags, for_all, for_pros, got};
use crate::scenario::Scenario;

fn three() -> Value {
    json!({"button": "blue", "off": false, "on": true})
}

fn silent(distinct_id: &str) -> FlagContext {
    FlagContext::new(distinct_id).send_feature_flag_events(false)
}

#[test]
fn gff_01_a_value_is_a_variant_or_boolean_or_none() {
    let scenario = Scenario::of_flags(three());
    let values = ["button", "on", "off", "none"].map(|key| got(scenario.client.get_feature_flag(key, "user_1")));
    assert_eq!(values, [Some("blue".into()), Some(true.into()), Some(false.into()), None]);
}

#[test]
fn gff_02_a_call_can_be_kept_silent() {
    let scenario = Scenario::of_flags(three());
    assert!(got(scenario.client.get_feature_flag("on", silent("user_1"))).is_some());
    assert!(scenario.called().is_empty());
    assert!(got(scenario.client.get_feature_flag("on", "user_1")).is_some());
    assert_eq!(scenario.called_values(), [("on".to_owned(), json!(true))]);
}

#[test]
fn gff_03_a_value_is_evaluated_locally_if_possible() {
    let scenario = Scenario::of_definitions(&[for_all("all"), for_pros("pros")]);
    assert_eq!(got(scenario.client.get_feature_flag("all", "user_1")), Some(true.into()));
    let pro = FlagContext::new("user_2").person_property("plan", "pro");
    assert_eq!(got(scenario.client.get_feature_flag("pros", pro)), Some(true.into()));
    assert!(scenario.asked().is_empty());
    scenario.answer_flags(Answer::json(&flags(json!({"pros": "blue"}))));
    assert_eq!(got(scenario.client.get_feature_flag("pros", "user_3")), Some("blue".into()));
    assert_eq!((scenario.asked().len(), &scenario.asked()[0]["distinct_id"]), (1, &json!("user_3")));
    let people: Vec<_> = scenario.called().iter().map(|event| event["distinct_id"].clone()).collect();
    assert_eq!(people, ["user_1", "user_2", "user_3"]);
}

#[test]
fn gff_04_options_are_sent_and_a_failure_gives_an_older_value() {
    let scenario = Scenario::of_flags(three());
    let who = FlagContext::new("user_1")
        .device_id("device_1")
        .group("company", "acme")
        .person_property("plan", "pro")
        .group_property("company", "seats", 3)
        .disable_geoip(true);
    assert_eq!(got(scenario.client.get_feature_flag("on", &who)), Some(true.into()));
    let asked = &scenario.asked()[0];
    let said = ["device_id", "groups", "person_properties", "group_properties", "geoip_disable"].map(|key| &asked[key]);
    let company = json!({"company": {"seats": 3}});
    let expected = [&json!("device_1"), &json!({"company": "acme"}), &json!({"plan": "pro"}), &company, &json!(true)];
    assert_eq!(said, expected);
    assert_eq!(got(scenario.client.get_feature_flag("on", FlagContext::new("user_2").only_locally(true))), None);
    assert_eq!(scenario.asked().len(), 1);
    scenario.fixture.sink.stop();
    assert_eq!(got(scenario.client.get_feature_flag("on", who.ask_posthog(true))), Some(true.into()));
    assert_eq!(got(scenario.client.get_feature_flag("on", "user_3")), None);
}

#[test]
fn gfp_01_a_payload_belongs_to_the_value_of_the_person() {
    let scenario = Scenario::of_flags(three());
    assert_eq!(got(scenario.client.get_feature_flag_payload("button", "user_1")), Some(json!({"of": "button"})));
    let local = Scenario::of_definitions(&[for_all("all")]);
    assert_eq!(got(local.client.get_feature_flag_payload("all", "user_1")), Some(json!([1])));
}

#[test]
fn gfp_02_an_unknown_flag_has_no_payload() {
    let scenario = Scenario::of_flags(three());
    assert_eq!(got(scenario.client.get_feature_flag_payload("none", "user_1")), None);
    assert_eq!(got(scenario.client.get_feature_flag_payload("off", "user_1")), None, "a known flag without a payload");
}

#[test]
fn gfp_03_reading_a_payload_captures_nothing() {
    let scenario = Scenario::of_flags(three());
    assert!(got(scenario.client.get_feature_flag_payload("on", "user_1")).is_some());
    assert!(got(scenario.client.get_feature_flag_payload_of("on", "user_1", true)).is_some());
    assert!(got(scenario.client.get_feature_flag_payload("none", "user_1")).is_none());
    assert!(scenario.called().is_empty());
}

#[test]
fn gfp_04_a_payload_is_found_by_value_and_may_be_plain_text() {
    let scenario = Scenario::of_flags(three());
    let of = |value: &str| got(scenario.client.get_feature_flag_payload_of("button", "user_1", value));
    assert_eq!((of("blue"), of("red")), (Some(json!({"of": "button"})), None));
    let defined = Scenario::of_definitions(&[for_pros("pros")]);
    assert_eq!(got(defined.client.get_feature_flag_payload_of("pros", "user_1", true)), Some(json!([1])));
    assert!(defined.asked().is_empty(), "the value of this person is not needed");
    let mut broken = flags(json!({"on": true}));
    broken["flags"]["on"]["metadata"]["payload"] = json!("{no json");
    scenario.answer_flags(Answer::json(&broken));
    assert_eq!(got(scenario.client.get_feature_flag_payload("on", "user_2")), Some(json!("{no json")));
}

#[test]
fn gfr_01_a_result_has_key_state_variant_and_payload() {
    let scenario = Scenario::of_flags(three());
    let result = got(scenario.client.get_feature_flag_result("button", "user_1")).unwrap();
    assert_eq!((result.key.as_str(), result.enabled, result.variant.as_deref()), ("button", true, Some("blue")));
    assert_eq!(result.payload, Some(json!({"of": "button"})));
    let on = got(scenario.client.get_feature_flag_result("on", "user_1")).unwrap();
    assert_eq!((on.enabled, on.variant), (true, None));
}

#[test]
fn gfr_02_a_disabled_flag_is_not_enabled_and_has_no_variant() {
    let scenario = Scenario::of_flags(three());
    let off = got(scenario.client.get_feature_flag_result("off", "user_1")).unwrap();
    assert_eq!((off.key.as_str(), off.enabled, off.variant, off.payload), ("off", false, None, None));
}

#[test]
fn gfr_03_an_unknown_flag_has_no_result() {
    let scenario = Scenario::of_flags(three());
    assert_eq!(got(scenario.client.get_feature_flag_result("none", silent("user_1"))), None);
    assert!(got(scenario.client.get_feature_flag_result("on", silent("user_1"))).is_some());
    assert!(scenario.called().is_empty());
    assert!(got(scenario.client.get_feature_flag_result("button", "user_1")).is_some());
    assert_eq!(got(scenario.client.get_feature_flag_result("none", "user_1")), None);
    let expected = [("button".to_owned(), json!("blue")), ("none".to_owned(), Value::Null)];
    assert_eq!(scenario.called_values(), expected);
}

#[test]
fn gfs_01_all_flags_of_a_person_are_values_by_key() {
    let scenario = Scenario::of_flags(three());
    let all = got(scenario.client.get_all_flags(FlagContext::new("user_1").group("company", "acme")));
    let expected = [("button", "blue".into()), ("off", false.into()), ("on", true.into())];
    assert_eq!(all, BTreeMap::from(expected.map(|(key, value)| (key.to_owned(), value))));
    let asked = scenario.asked();
    assert_eq!((&asked[0]["distinct_id"], &asked[0]["groups"]), (&json!("user_1"), &json!({"company": "acme"})));
    assert!(asked[0].get("flag_keys_to_evaluate").is_none());
}

#[test]
fn gfs_02_reading_all_flags_captures_nothing() {
    let scenario = Scenario::of_flags(three());
    assert_eq!(got(scenario.client.get_all_flags("user_1")).len(), 3);
    assert!(scenario.called().is_empty());
}

#[test]
fn gfs_03_a_failure_keeps_known_flags_and_keys_limit_them() {
    let scenario = Scenario::of_definitions(&[for_all("ours"), for_pros("pros")]);
    scenario.answer_flags(Answer::status(500));
    let known = |who: FlagContext| got(scenario.client.get_all_flags(who)).into_keys().collect::<Vec<_>>();
    assert_eq!(known(FlagContext::new("user_1")), ["ours"]);
    scenario.answer_flags(Answer::json(&flags(json!({"pros": true, "more": true}))));
    assert_eq!(known(FlagContext::new("user_2").only_keys(["pros", "none"])), ["pros"]);
    let limited = Scenario::of_flags(three());
    let mut without_quota = flags(three());
    without_quota["quotaLimited"] = json!(["feature_flags"]);
    limited.answer_flags(Answer::json(&without_quota));
    assert!(got(limited.client.get_all_flags("user_1")).is_empty());
}

#[test]
fn gfa_01_one_call_has_values_and_payloads() {
    let scenario = Scenario::of_flags(three());
    let all = got(scenario.client.get_all_flags_and_payloads("user_1"));
    assert_eq!(all.feature_flags, got(scenario.client.get_all_flags("user_1")));
    let payloads = ["button", "on"].map(|key| (key.to_owned(), json!({"of": key})));
    assert_eq!(all.feature_flag_payloads, BTreeMap::from(payloads));
    assert_eq!((scenario.asked().len(), scenario.called().len()), (1, 0));
}

#[test]
fn gfa_02_both_are_empty_where_nothing_is_known() {
    let scenario = Scenario::of_flags(json!({}));
    assert_eq!(got(scenario.client.get_all_flags_and_payloads("user_1")), AllFlags::default());
    scenario.answer_flags(Answer::status(500));
    assert_eq!(got(scenario.client.get_all_flags_and_payloads("user_2")), AllFlags::default());
}

#[test]
fn ife_01_on_is_true_or_a_variant() {
    let scenario = Scenario::of_flags(three());
    let enabled = ["on", "off", "button"].map(|key| got(scenario.client.is_feature_enabled(key, "user_1")));
    assert_eq!(enabled, [true, false, true]);
}

#[test]
fn ife_02_without_a_value_the_default_is_returned() {
    let scenario = Scenario::of_flags(three());
    let failing = Scenario::of_flags(three());
    failing.answer_flags(Answer::status(500));
    for default in [true, false] {
        let unloaded = FlagContext::new("user_2").only_locally(true);
        assert_eq!(got(scenario.client.is_feature_enabled_or("on", unloaded, default)), default, "nothing is loaded");
        assert_eq!(got(scenario.client.is_feature_enabled_or("none", "user_1", default)), default, "no such flag");
        assert_eq!(got(failing.client.is_feature_enabled_or("on", "user_1", default)), default, "no answer");
    }
}

#[test]
fn ife_03_a_known_value_takes_precedence_over_the_default() {
    let scenario = Scenario::of_flags(three());
    for default in [true, false] {
        let values =
            ["on", "off", "button"].map(|key| got(scenario.client.is_feature_enabled_or(key, "user_1", default)));
        assert_eq!(values, [true, false, true]);
    }
}

#[test]
fn ife_04_a_call_can_be_kept_silent() {
    let scenario = Scenario::of_flags(three());
    assert!(got(scenario.client.is_feature_enabled("on", silent("user_1"))));
    assert!(scenario.called().is_empty());
    assert!(got(scenario.client.is_feature_enabled("on", "user_1")));
    assert_eq!(scenario.called().len(), 1);
}

#[test]
fn ife_05_without_a_default_a_flag_without_value_is_off() {
    let scenario = Scenario::of_flags(three());
    assert!(!got(scenario.client.is_feature_enabled("none", "user_1")));
    scenario.answer_flags(Answer::status(500));
    assert!(!got(scenario.client.is_feature_enabled("on", "user_2")));
}
