//! Flags without definitions, as callers see them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::diagnostics::Diagnostic;
use crate::feature_flags::{FlagContext, FlagsProblem};
use crate::reports::PendingValue;
use crate::testing::{Answer, Harness, QueuedEvent, RecordedRequest, Route, captured_flag_reads};
use crate::{Client, Config, Context, Event, Pending};

const SOON: Duration = Duration::from_secs(30);

fn flag(value: Value) -> Value {
    let variant = value.as_str().map(str::to_owned);
    let enabled = variant.is_some() || value == true;
    json!({
        "enabled": enabled, "variant": variant, "reason": {"code": "condition_match", "description": "Matched condition set 1"},
        "metadata": {"id": 42, "version": 7, "payload": "{\"color\":\"blue\"}", "has_experiment": false},
    })
}

pub(super) fn answer(flags: &[(&str, Value)]) -> Value {
    let flags: serde_json::Map<_, _> =
        flags.iter().map(|(key, value)| ((*key).to_owned(), flag(value.clone()))).collect();
    json!({"flags": flags, "errorsWhileComputingFlags": false, "requestId": "request_1", "evaluatedAt": 1_735_689_600_123_i64})
}

fn posthog(answers: &[Value]) -> Harness {
    let harness = Harness::new(|config| config).unwrap();
    harness.server().script(Route::Flags, answers.iter().map(|answer| Answer::ok().body(answer.to_string())));
    harness
}

pub(super) fn got<T: PendingValue>(pending: Pending<T>) -> T::Value
where
    T::Error: std::fmt::Debug,
{
    pending.wait(SOON).unwrap()
}

pub(super) fn asked(harness: &Harness) -> Vec<RecordedRequest> {
    harness.server().requests().into_iter().filter(|request| request.route == Route::Flags).collect()
}

pub(super) fn captured(harness: &Harness) -> Vec<QueuedEvent> {
    harness.queued().into_iter().filter(|event| event.event == "$feature_flag_called").collect()
}

#[test]
fn a_snapshot_is_one_request_and_its_reads_are_none() {
    let harness = posthog(&[answer(&[("on", json!(true)), ("off", json!(false)), ("button", json!("blue"))])]);
    let flags = got(harness.client().evaluate_flags("user_1"));
    assert!(captured(&harness).is_empty(), "making a snapshot captures nothing");
    assert!(flags.is_enabled("on") && !flags.is_enabled("off") && flags.is_enabled("button"));
    assert!(!flags.is_enabled_or("off", true) && flags.is_enabled_or("none", true) && !flags.is_enabled("none"));
    assert_eq!(flags.get("button"), Some("blue".into()));
    assert_eq!((flags.get("none"), flags.payload("button")), (None, Some(json!({"color": "blue"}))));
    assert_eq!((flags.keys().collect::<Vec<_>>(), flags.len()), (vec!["button", "off", "on"], 3));
    assert_eq!((asked(&harness).len(), flags.problem()), (1, None));
}

#[test]
fn the_first_read_of_a_value_is_captured_with_its_metadata() {
    let harness = posthog(&[answer(&[("button", json!("blue"))])]);
    let who = FlagContext::new("user_1").group("company", "acme").disable_geoip(true);
    let flags = got(harness.client().evaluate_flags(who));
    for _ in 0..2 {
        assert!(flags.is_enabled("button") && flags.get("button").is_some());
    }
    let captured = captured(&harness);
    assert_eq!((captured.len(), captured[0].distinct_id.as_str()), (1, "user_1"));
    let expected = json!({
        "$feature_flag": "button", "$feature_flag_response": "blue", "$feature/button": "blue", "locally_evaluated": false,
        "$feature_flag_has_experiment": false, "$feature_flag_payload": {"color": "blue"}, "$feature_flag_id": 42,
        "$feature_flag_version": 7, "$feature_flag_reason": "Matched condition set 1",
        "$feature_flag_request_id": "request_1", "$feature_flag_evaluated_at": 1_735_689_600_123_i64,
        "$groups": {"company": "acme"}, "$geoip_disable": true,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(captured[0].properties.get(key), Some(value), "{key}");
    }
    assert!(!captured[0].properties.contains_key("$feature_flag_error"));
}

#[test]
fn a_missing_flag_is_captured_but_not_by_a_partial_snapshot() {
    let harness = posthog(&[answer(&[("on", json!(true))])]);
    let flags = got(harness.client().evaluate_flags("user_1"));
    let part = flags.only(["on", "none"]);
    assert_eq!((part.get("none"), captured(&harness).len()), (None, 0));
    let is_warned =
        |diagnostic: &Diagnostic| matches!(diagnostic, Diagnostic::InputIgnored { what } if what.contains("none"));
    assert!(harness.client().diagnostics().iter().any(is_warned));
    assert_eq!(flags.get("none"), None);
    let captured = captured(&harness);
    let shown = ["$feature_flag_response", "$feature_flag_error"].map(|key| captured[0].properties[key].clone());
    assert_eq!(shown, [Value::Null, json!("flag_missing")]);
}

#[test]
fn parts_of_a_snapshot_are_what_was_named_and_what_was_read() {
    let harness = posthog(&[answer(&[("a", json!(true)), ("b", json!(true)), ("c", json!(true))])]);
    let flags = got(harness.client().evaluate_flags("user_1"));
    let _silent = flags.payload("c");
    assert!(flags.only_accessed().is_empty());
    assert!(flags.only(["b"]).is_enabled("b") && flags.only_accessed().is_empty(), "read in the part");
    assert!(flags.is_enabled("a"));
    assert_eq!(flags.only_accessed().keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(flags.only(["c", "a"]).only_accessed().keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn flags_of_a_snapshot_do_not_replace_properties_of_an_event() {
    let harness = posthog(&[answer(&[("on", json!(true)), ("off", json!(false)), ("button", json!("blue"))])]);
    let flags = got(harness.client().evaluate_flags("user_1"));
    harness.client().capture(Event::new("shown", "user_1").prop("$feature/off", "mine").flags(&flags));
    let event = harness.queued().remove(0);
    let said =
        ["$feature/on", "$feature/off", "$feature/button", "$active_feature_flags"].map(|key| &event.properties[key]);
    assert_eq!(said, [&json!(true), &json!("mine"), &json!("blue"), &json!(["button", "on"])]);
    assert_eq!((asked(&harness).len(), captured(&harness).len()), (1, 0));
}

#[test]
fn no_id_no_keys_or_a_disabled_client_send_nothing() {
    let harness = posthog(&[]);
    let client = harness.client();
    let nobody = got(client.evaluate_flags(FlagContext::from_current()));
    assert_eq!((nobody.is_enabled("f"), nobody.problem()), (false, Some(&FlagsProblem::Nobody)));
    assert!(got(client.is_feature_enabled_or("f", " ", true)));
    assert!(got(client.evaluate_flags(FlagContext::new("u").only_keys([""; 0]))).is_empty());
    let is_warned = |diagnostic: &&Diagnostic| matches!(diagnostic, Diagnostic::InputIgnored { what } if what.contains("distinct id"));
    assert_eq!(client.diagnostics().iter().filter(is_warned).count(), 1);
    assert_eq!((asked(&harness).len(), harness.queued().len()), (0, 0));
    let disabled = Client::new(Config::disabled()).unwrap();
    assert_eq!(got(disabled.evaluate_flags("u")).problem(), Some(&FlagsProblem::Disabled));
    assert!(got(disabled.is_feature_enabled_or("f", "u", true)));
}

#[test]
fn within_a_request_flags_are_those_of_its_person() {
    let harness = posthog(&[answer(&[("on", json!(true))])]);
    let is_on = Context::new()
        .distinct_id("user_7")
        .enter(|| got(harness.client().is_feature_enabled("on", FlagContext::from_current())));
    assert_eq!((is_on, asked(&harness)[0].body["distinct_id"].as_str()), (true, Some("user_7")));
    assert_eq!(captured(&harness)[0].distinct_id, "user_7");
}

#[test]
fn a_getter_captures_when_its_result_is_taken() {
    let harness = posthog(&[answer(&[("on", json!(true))])]);
    let is_on = harness.client().is_feature_enabled("on", "user_1");
    harness.settle();
    assert_eq!((captured(&harness).len(), is_on.try_get(), captured(&harness).len()), (0, Some(true), 1));
    assert_eq!((is_on.try_get(), captured(&harness).len()), (Some(true), 1));
    drop(harness.client().is_feature_enabled("on", "user_1"));
    assert_eq!(asked(&harness)[0].body["flag_keys_to_evaluate"], json!(["on"]));
    assert_eq!(asked(&harness).len(), 1, "and the second is in the cache");
}

#[test]
fn getters_return_what_is_known_or_nothing() {
    let harness = posthog(&[answer(&[("on", json!(true)), ("off", json!(false)), ("button", json!("blue"))])]);
    let client = harness.client();
    let all = got(client.get_all_flags_and_payloads("u"));
    assert_eq!((all.feature_flags["button"].clone(), all.feature_flag_payloads.len()), ("blue".into(), 3));
    assert_eq!(got(client.get_all_flags("u")), all.feature_flags);
    let result = got(client.get_feature_flag_result("button", "u")).unwrap();
    assert_eq!(
        (result.enabled, result.variant.as_deref(), result.payload),
        (true, Some("blue"), Some(json!({"color": "blue"})))
    );
    let off = got(client.get_feature_flag_result("off", "u")).unwrap();
    assert_eq!((off.enabled, off.variant), (false, None));
    assert_eq!(
        (got(client.get_feature_flag_result("none", "u")), got(client.get_feature_flag("none", "u"))),
        (None, None)
    );
    assert_eq!(got(client.get_feature_flag_payload_of("button", "u", "blue")), Some(json!({"color": "blue"})));
    assert_eq!(got(client.get_feature_flag_payload_of("button", "u", "red")), None);
    assert_eq!(got(client.get_feature_flag_payload("none", "u")), None);
    assert_eq!((asked(&harness).len(), captured(&harness).len()), (1, 3), "one answer for all, and the three reads");
}

#[test]
fn a_failure_returns_the_default_or_the_known_value() {
    let harness = posthog(&[answer(&[("on", json!(true))])]);
    let client = harness.client();
    assert!(got(client.is_feature_enabled("on", "u")));
    harness.server().always(Route::Flags, Answer::status(500));
    harness.advance(Duration::from_secs(61));
    let flags = got(client.evaluate_flags(FlagContext::new("u").only_keys(["on"])));
    assert!(flags.is_enabled("on") && matches!(flags.problem(), Some(FlagsProblem::NoAnswer { .. })));
    assert!(got(client.is_feature_enabled_or("on", "user_9", true)));
    assert!(!got(client.is_feature_enabled_or("on", "user_9", false)));
    let captured = captured(&harness);
    assert_eq!(
        (captured.len(), &captured[0].properties["$feature_flag_error"]),
        (1, &json!("api_error_500,flag_missing"))
    );
    assert!(
        client.known_flags(FlagContext::new("u").only_keys(["on"])).is_enabled("on")
            && client.known_flags("v").is_empty()
    );
}

#[test]
fn overrides_go_into_the_question_until_they_are_taken_back() {
    let harness = posthog(&[]);
    let client = harness.client();
    client.set_person_properties_for_flags([("plan", "free"), ("app", "3.2")]);
    client.set_person_properties_for_flags(());
    client.set_group_properties_for_flags("company", Some("acme"), json!({"tier": "gold"}));
    client.set_group_properties_for_flags("company", None, "nonsense");
    let who = FlagContext::new("u").group("company", "acme").person_property("plan", "pro");
    let _ = got(client.reload_feature_flags(&who));
    let body = &asked(&harness)[0].body;
    assert_eq!(body["person_properties"], json!({"plan": "pro", "app": "3.2"}));
    assert_eq!(body["group_properties"], json!({"company": {"tier": "gold"}}));
    assert_eq!(client.person_properties_for_flags()["plan"], "free");
    client.reset_person_properties_for_flags();
    client.reset_group_properties_for_flags(None);
    let _ = got(client.reload_feature_flags("u"));
    let body = &asked(&harness)[1].body;
    assert_eq!((&body["person_properties"], &body["group_properties"]), (&json!({}), &json!({})));
    assert!(harness.queued().is_empty());
}

#[test]
fn nothing_is_captured_if_context_client_or_program_opt_out() {
    let harness = Harness::new(|config| config.send_feature_flag_events(false)).unwrap();
    harness.server().always(Route::Flags, Answer::ok().body(answer(&[("on", json!(true))]).to_string()));
    assert!(got(harness.client().is_feature_enabled("on", "u")));
    assert!(harness.queued().is_empty());
    let harness = harness.restart(|config| config).unwrap();
    let silent = FlagContext::new("u").send_feature_flag_events(false);
    assert!(got(harness.client().is_feature_enabled("on", silent)) && harness.queued().is_empty());
    harness.client().opt_out();
    assert!(got(harness.client().is_feature_enabled("on", "u")) && harness.queued().is_empty());
    harness.client().opt_in();
    assert!(got(harness.client().is_feature_enabled("on", "u")));
    assert_eq!((captured(&harness).len(), captured_flag_reads(harness.client())), (1, 1));
    drop(harness.client().shutdown(Duration::ZERO).wait(SOON));
    assert_eq!(captured_flag_reads(harness.client()), 0);
}

#[test]
fn the_small_form_is_what_is_left_after_everybody_had_his_say() {
    let harness = Harness::new(|config| {
        config.super_property("release", "1.2").super_property("utm_source", "ads").before_send(|mut event| {
            event.set_prop("hooked", true);
            Some(event)
        })
    })
    .unwrap();
    let mut minimal = answer(&[("plain", json!(true)), ("tested", json!(true))]);
    minimal["minimalFlagCalledEvents"] = json!(true);
    minimal["flags"]["tested"]["metadata"]["has_experiment"] = json!(true);
    harness.server().always(Route::Flags, Answer::ok().body(minimal.to_string()));
    let flags = got(harness.client().evaluate_flags(FlagContext::new("u").group("company", "acme")));
    Context::new().session_id("s").prop("route", "/").enter(|| flags.is_enabled("plain") && flags.is_enabled("tested"));
    let captured = captured(&harness);
    let has = |at: usize, key: &str| captured[at].properties.contains_key(key);
    for key in ["$feature_flag", "$feature_flag_id", "$groups", "$session_id", "$lib", "$is_server", "utm_source"] {
        assert!(has(0, key) && has(1, key), "{key}");
    }
    for key in ["release", "hooked", "route", "$feature/plain", "$feature_flag_payload"] {
        assert!(!has(0, key), "{key}");
    }
    assert!(["release", "hooked", "route", "$feature/tested"].iter().all(|key| has(1, key)));
}

#[test]
fn a_snapshot_and_a_call_under_way_keep_no_client_alive() {
    let harness = posthog(&[answer(&[("on", json!(true))])]);
    let flags = got(harness.client().evaluate_flags("u"));
    harness.server().always(Route::Flags, Answer::ok().delay(Duration::from_secs(1)));
    let waiting = harness.client().is_feature_enabled_or("on", "v", true);
    drop(harness);
    assert_eq!((got(waiting), flags.is_enabled("on")), (true, true));
}
