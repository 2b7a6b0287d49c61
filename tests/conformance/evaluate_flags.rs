//! `evaluate_flags` (EVF): a snapshot, its reads, and flags on events.

use posthog::diagnostics::DiagnosticCategory;
use posthog::feature_flags::{FlagContext, FlagsProblem};
use posthog::{Client, Config, Context, Event};
use serde_json::{Value, json};
use sink::{Answer, FlagRoute};

use crate::fixture::{accepted, event};
use crate::flag_scenario::{definitions, flags, for_all, for_pros, got, keys};
use crate::scenario::{Scenario, has_recorded};

fn three() -> Value {
    json!({"button": "blue", "off": false, "on": true})
}

#[test]
fn evf_01_a_snapshot_takes_one_request_and_its_reads_none() {
    let scenario = Scenario::of_flags(three());
    let flags = scenario.evaluated("user_1");
    scenario.client.reset_feature_flags();
    for _ in 0..3 {
        assert_eq!((flags.is_enabled("on"), flags.get("button")), (true, Some("blue".into())));
        assert_eq!((flags.get("none"), flags.payload("on")), (None, Some(json!({"of": "on"}))));
        assert_eq!((flags.only(["on"]).len(), flags.len()), (1, 3));
    }
    assert_eq!(scenario.asked().len(), 1);
}

#[test]
fn evf_02_a_request_has_everything_known_about_the_person() {
    let scenario = Scenario::of_flags(three());
    let who = FlagContext::new("user_1")
        .device_id("device_1")
        .group("company", "acme")
        .person_property("plan", "pro")
        .group_property("company", "seats", 3)
        .disable_geoip(true)
        .only_keys(["on"]);
    let _flags = scenario.evaluated(who.clone());
    let expected = json!({
        "token": "phc_outside", "distinct_id": "user_1", "device_id": "device_1", "groups": {"company": "acme"},
        "person_properties": {"plan": "pro"}, "group_properties": {"company": {"seats": 3}}, "geoip_disable": true,
        "flag_keys_to_evaluate": ["on"],
    });
    assert_eq!(scenario.asked(), [expected]);
    let _none = scenario.evaluated(who.only_locally(true).person_property("plan", "free"));
    assert_eq!(scenario.asked().len(), 1);
    // Without a distinct id, the context's is used.
    let _flags = Context::new().distinct_id("user_7").enter(|| scenario.evaluated(FlagContext::from_current()));
    assert_eq!(scenario.asked()[1]["distinct_id"], "user_7");
}

#[test]
fn evf_03_local_evaluation_only_sends_no_request() {
    let scenario = Scenario::of_definitions(&[for_all("all"), for_pros("pros")]);
    scenario.answer_flags(Answer::json(&flags(json!({"all": true, "pros": true}))));
    let flags = scenario.evaluated(FlagContext::new("user_1").only_locally(true).only_keys(["all", "pros", "none"]));
    assert_eq!((keys(&flags), scenario.asked().len()), (vec!["all"], 0));
}

#[test]
fn evf_04_keys_limit_the_request_and_the_snapshot() {
    let whole = json!({"a": true, "b": true, "c": true});
    let some = || FlagContext::new("user_1").only_keys(["a", "b"]);
    // From a server that ignores the requested keys.
    let scenario = Scenario::of_flags(whole.clone());
    assert_eq!(keys(&scenario.evaluated(some())), ["a", "b"]);
    assert_eq!(scenario.asked()[0]["flag_keys_to_evaluate"], json!(["a", "b"]));
    // From the cache, which has all flags.
    let cached = Scenario::of_flags(whole.clone());
    assert_eq!(cached.evaluated("user_1").len(), 3);
    assert_eq!((keys(&cached.evaluated(some())), cached.asked().len()), (vec!["a", "b"], 1));
    // From the definitions.
    let local = Scenario::of_definitions(&["a", "b", "c"].map(for_all));
    assert_eq!((keys(&local.evaluated(some())), local.asked().len()), (vec!["a", "b"], 0));
    // From both.
    let both = Scenario::of_definitions(&[for_all("a"), for_pros("b"), for_all("c")]);
    both.answer_flags(Answer::json(&flags(whole)));
    assert_eq!(keys(&both.evaluated(some())), ["a", "b"]);
}

#[test]
fn evf_05_a_key_without_definition_is_requested_once() {
    let scenario = Scenario::of_definitions(&[for_all("ours")]);
    scenario.answer_flags(Answer::json(&flags(json!({"ours": false, "theirs": "blue"}))));
    let flags = scenario.evaluated(FlagContext::new("user_1").only_keys(["ours", "theirs"]));
    assert_eq!((flags.get("ours"), flags.get("theirs")), (Some(true.into()), Some("blue".into())));
    let asked = scenario.asked();
    assert_eq!((asked.len(), &asked[0]["flag_keys_to_evaluate"]), (1, &json!(["ours", "theirs"])));
}

#[test]
fn evf_06_missing_keys_are_learnt_from_complete_answers_only() {
    let scenario = Scenario::of_defined(Answer::json(&definitions(&[for_all("ours")])).etag("\"1\""));
    let mut partial = flags(json!({}));
    partial["errorsWhileComputingFlags"] = json!(true);
    let limited = json!({"flags": {}, "quotaLimited": ["feature_flags"]});
    let open = [Answer::status(500), Answer::json(&partial), Answer::json(&limited)];
    scenario.fixture.sink.script_flags(FlagRoute::Values, open);
    // Each for another person, so that the cache is not used.
    let read = |who: &str| got(scenario.client.get_feature_flag("none", who));
    assert!(["a", "b", "c", "d"].iter().all(|who| read(who).is_none()));
    assert_eq!(scenario.asked().len(), 4, "nothing was learnt from the first three answers");
    assert_eq!((read("e"), scenario.asked().len()), (None, 4));
    scenario.load();
    let polls = scenario.fixture.sink.requests();
    assert!(polls.iter().any(|request| request.status == 304), "the definitions are the same");
    assert_eq!((read("f"), scenario.asked().len()), (None, 5));
}

#[test]
fn evf_07_no_id_or_a_disabled_client_gives_an_empty_snapshot() {
    let scenario = Scenario::of_flags(three());
    for nobody in [FlagContext::from_current(), FlagContext::new(" ")] {
        let flags = scenario.evaluated(nobody);
        assert_eq!((flags.is_enabled("on"), flags.get("on"), flags.payload("on")), (false, None, None));
        assert_eq!((flags.len(), flags.problem()), (0, Some(&FlagsProblem::Nobody)));
    }
    scenario.must_have_queued_nothing();
    let disabled = Client::new(Config::disabled()).unwrap();
    let flags = got(disabled.evaluate_flags("user_1"));
    assert_eq!(
        (flags.is_enabled("on"), flags.get("on"), flags.problem()),
        (false, None, Some(&FlagsProblem::Disabled))
    );
}

#[test]
fn evf_08_a_failure_keeps_local_values_without_new_requests() {
    let scenario = Scenario::of_definitions(&[for_all("ours"), for_pros("pros")]);
    scenario.answer_flags(Answer::status(500));
    let flags = scenario.evaluated("user_1");
    assert!(matches!(flags.problem(), Some(FlagsProblem::NoAnswer { .. })));
    scenario.answer_flags(Answer::json(&crate::flag_scenario::flags(json!({"pros": true}))));
    for _ in 0..2 {
        assert_eq!((flags.is_enabled("ours"), flags.get("pros"), flags.is_enabled("pros")), (true, None, false));
    }
    assert_eq!(scenario.asked().len(), 1);
}

#[test]
fn evf_09_a_value_is_a_boolean_or_a_variant_as_in_posthog() {
    let scenario = Scenario::of_flags(three());
    let flags = scenario.evaluated("user_1");
    let enabled = ["on", "off", "button", "none"].map(|key| flags.is_enabled(key));
    assert_eq!(enabled, [true, false, true, false]);
    let values = ["on", "off", "button", "none"].map(|key| flags.get(key));
    assert_eq!(values, [Some(true.into()), Some(false.into()), Some("blue".into()), None]);
    scenario.answer_flags(Answer::json(&json!({"featureFlags": {"empty": ""}})));
    assert!(!scenario.evaluated("user_2").is_enabled("empty"), "an empty variant is not enabled");
}

#[test]
fn evf_10_a_default_is_used_only_for_an_absent_value() {
    let flags = Scenario::of_flags(three()).evaluated("user_1");
    for default in [true, false] {
        assert_eq!(flags.is_enabled_or("none", default), default);
        assert_eq!((flags.is_enabled_or("off", default), flags.is_enabled_or("on", default)), (false, true));
    }
}

#[test]
fn evf_11_a_snapshot_stays_as_it_is_and_its_keys_can_be_listed() {
    let scenario = Scenario::of_definitions(&[for_all("a"), for_all("b")]);
    let flags = scenario.evaluated("user_1");
    scenario.define(Answer::json(&definitions(&[for_all("c")])));
    assert_eq!(keys(&scenario.evaluated("user_1")), ["c"]);
    assert_eq!((keys(&flags), flags.is_enabled("a"), flags.get("c")), (vec!["a", "b"], true, None));
    let remote = Scenario::of_flags(three());
    let flags = remote.evaluated("user_1");
    remote.answer_flags(Answer::json(&crate::flag_scenario::flags(json!({"button": "red"}))));
    assert_eq!(got(remote.client.reload_feature_flags("user_1")).get("button"), Some("red".into()));
    assert_eq!((keys(&flags), flags.get("button")), (vec!["button", "off", "on"], Some("blue".into())));
}

#[test]
fn evf_12_reading_a_payload_is_not_a_read_of_the_value() {
    let scenario = Scenario::of_flags(three());
    let flags = scenario.evaluated("user_1");
    let payloads = ["button", "off", "none"].map(|key| flags.payload(key));
    assert_eq!(payloads, [Some(json!({"of": "button"})), None, None]);
    assert!(flags.only_accessed().is_empty() && scenario.called().is_empty());
    assert_eq!(scenario.asked().len(), 1);
}

#[test]
fn evf_13_a_snapshot_captures_the_first_read_only() {
    let scenario = Scenario::of_flags(three());
    let flags = scenario.evaluated("user_1");
    assert!(scenario.called().is_empty());
    for _ in 0..2 {
        let _read = (flags.is_enabled("on"), flags.get("on"), scenario.evaluated("user_1").is_enabled("on"));
    }
    assert_eq!(scenario.called_values(), [("on".to_owned(), json!(true))]);
}

#[test]
fn evf_14_each_way_to_read_a_value_captures_that_value() {
    let scenario = Scenario::of_flags(three());
    let flags = scenario.evaluated("user_1");
    assert!(flags.is_enabled("button") && !flags.is_enabled_or("off", true));
    assert_eq!(scenario.called_values(), [("button".to_owned(), json!("blue")), ("off".to_owned(), json!(false))]);
}

#[test]
fn evf_15_a_read_of_a_missing_flag_is_captured_as_missing() {
    let scenario = Scenario::of_flags(three());
    let flags = scenario.evaluated("user_1");
    assert!(!flags.only(["on"]).is_enabled("none") && scenario.called().is_empty());
    assert!(!flags.is_enabled("none"));
    let called = scenario.called();
    let said = &called[0]["properties"];
    assert_eq!((&said["$feature_flag"], &said["$feature_flag_error"]), (&json!("none"), &json!("flag_missing")));
    assert_eq!((called.len(), &said["$feature_flag_response"]), (1, &Value::Null));
}

#[test]
fn evf_16_an_event_has_all_flags_and_lists_the_active_ones() {
    let scenario = Scenario::of_flags(three());
    let flags = scenario.evaluated("user_1");
    let said = scenario.properties_with(&flags);
    let values = ["$feature/on", "$feature/off", "$feature/button"].map(|key| &said[key]);
    assert_eq!(values, [&json!(true), &json!(false), &json!("blue")]);
    assert_eq!(said["$active_feature_flags"], json!(["button", "on"]));
    assert_eq!((scenario.asked().len(), scenario.called().len(), flags.only_accessed().len()), (1, 0, 0));
}

#[test]
fn evf_17_only_the_first_snapshot_puts_flags_on_an_event() {
    let scenario = Scenario::of_flags(three());
    accepted(&scenario.client.capture(event("plain")));
    let plain = scenario.sent_one();
    assert!(plain["properties"].as_object().unwrap().keys().all(|key| !key.contains("feature")), "{plain}");
    assert_eq!(scenario.asked().len(), 0, "no capture asks for flags");
    let older = scenario.evaluated("user_1");
    scenario.answer_flags(Answer::json(&flags(json!({"button": "red"}))));
    let _newer = got(scenario.client.reload_feature_flags("user_1"));
    let both = Event::new("both", "user_1").flags(&older).flags(&scenario.client.known_flags("user_1"));
    accepted(&scenario.client.capture(both));
    let both = scenario.sent().pop().unwrap();
    assert_eq!(both["properties"]["$feature/button"], "blue");
    let said = scenario.properties_with(&older.only(["off"]));
    assert_eq!((&said["$feature/off"], said.get("$active_feature_flags")), (&json!(false), None));
}

#[test]
fn evf_18_only_accessed_has_exactly_the_flags_read() {
    let scenario = Scenario::of_flags(three());
    let flags = scenario.evaluated("user_1");
    assert!(flags.only_accessed().is_empty(), "nothing was read yet");
    assert!(scenario.properties_with(&flags.only_accessed()).get("$active_feature_flags").is_none());
    let _read = (flags.is_enabled("off"), flags.get("button"), flags.get("none"), flags.payload("on"));
    assert_eq!(keys(&flags.only_accessed()), ["button", "off"]);
}

#[test]
fn evf_19_only_has_the_named_flags_and_warns_of_others() {
    let scenario = Scenario::of_flags(three());
    let flags = scenario.evaluated("user_1");
    assert!(!has_recorded(&scenario.client, DiagnosticCategory::Validation));
    let part = flags.only(["on", "none"]);
    assert!(has_recorded(&scenario.client, DiagnosticCategory::Validation));
    assert!(part.is_enabled("on"));
    assert_eq!((keys(&part), keys(&part.only_accessed())), (vec!["on"], vec!["on"]));
    assert_eq!((flags.only_accessed().len(), flags.len(), scenario.asked().len()), (0, 3, 1));
}

#[test]
fn evf_20_the_docs_of_each_getter_point_to_evaluate_flags() {
    let source = include_str!("../../src/client/flags/evaluate.rs");
    let mut pages = 0;
    for (before, name) in source.split("    pub fn ").zip(source.split("    pub fn ").skip(1)) {
        let page = before.rsplit("\n\n").next().unwrap();
        let name = name.split(['(', '<']).next().unwrap();
        if !["evaluate_flags", "known_flags", "reload_feature_flags"].contains(&name) {
            pages += 1;
            assert!(page.contains("evaluate_flags"), "{name}: {page}");
        }
    }
    assert_eq!(pages, 8);
}
