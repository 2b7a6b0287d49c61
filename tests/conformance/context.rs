//! Tracing headers and request contexts (CTX).

use posthog::context::current_distinct_id;
use posthog::diagnostics::{Diagnostic, DiagnosticCategory};
use posthog::feature_flags::{AllFlags, FlagContext};
use posthog::{Context, Event};
use serde_json::{Value, json};

use crate::fixture::{accepted, event, take};
use crate::flag_scenario::got;
use crate::scenario::{Scenario, has_recorded};

const HEADERS: [(&str, &str); 2] = [("x-posthog-distinct-id", "user_1"), ("X-PostHog-Session-Id", "session_7")];

fn anonymous(scenario: &Scenario) -> uuid::Uuid {
    accepted(&scenario.client.capture(Event::new_anon("seen")))
}

#[test]
fn ctx_01_headers_give_events_of_the_request_their_ids() {
    let scenario = Scenario::new();
    Context::from_headers(HEADERS).enter(|| anonymous(&scenario));
    let sent = scenario.sent_one();
    assert_eq!((&sent["distinct_id"], &sent["properties"]["$session_id"]), (&json!("user_1"), &json!("session_7")));
    assert!(sent["properties"].get("$process_person_profile").is_none());
}

#[test]
fn ctx_02_an_events_own_values_take_precedence() {
    let scenario = Scenario::new();
    Context::from_headers(HEADERS).prop("route", "/a").enter(|| {
        let own = Event::new("seen", "user_2").prop("$session_id", "own").prop("route", "/b");
        accepted(&scenario.client.capture(own));
    });
    let sent = scenario.sent_one();
    let properties = &sent["properties"];
    assert_eq!((&sent["distinct_id"], &properties["$session_id"]), (&json!("user_2"), &json!("own")));
    assert_eq!(properties["route"], "/b");
}

#[test]
fn ctx_03_an_event_without_id_gets_a_random_one_and_no_person() {
    let scenario = Scenario::new();
    let session = Context::new().session_id("session_7");
    session.enter(|| {
        anonymous(&scenario);
        accepted(&scenario.client.capture(Event::new_anon("seen").prop("$process_person_profile", true)));
    });
    anonymous(&scenario);
    let sent = scenario.sent();
    let ids: Vec<uuid::Uuid> =
        sent.iter().map(|event| event["distinct_id"].as_str().unwrap().parse().unwrap()).collect();
    assert!(ids.iter().all(|id| id.get_version_num() == 7) && ids[0] != ids[1] && ids[1] != ids[2]);
    let profiles: Vec<_> = sent.iter().map(|event| &event["properties"]["$process_person_profile"]).collect();
    assert_eq!(profiles, [&json!(false), &json!(true), &json!(false)]);
    let sessions: Vec<_> = sent.iter().map(|event| &event["properties"]["$session_id"]).collect();
    assert_eq!(sessions, [&json!("session_7"), &json!("session_7"), &Value::Null]);
}

#[test]
fn ctx_04_flags_without_an_id_are_empty_and_send_no_request() {
    let scenario = Scenario::of_flags(json!({"on": true}));
    let client = &scenario.client;
    for nobody in [FlagContext::from_current(), FlagContext::new(" \t")] {
        assert!(scenario.evaluated(&nobody).is_empty() && client.known_flags(&nobody).is_empty());
        assert!(got(client.reload_feature_flags(&nobody)).is_empty());
        assert!(!got(client.is_feature_enabled("on", &nobody)));
        assert!(got(client.is_feature_enabled_or("on", &nobody, true)));
        assert_eq!(got(client.get_feature_flag("on", &nobody)), None);
        assert_eq!(got(client.get_feature_flag_result("on", &nobody)), None);
        assert_eq!(got(client.get_feature_flag_payload("on", &nobody)), None);
        assert_eq!(got(client.get_feature_flag_payload_of("on", &nobody, true)), None);
        assert!(got(client.get_all_flags(&nobody)).is_empty());
        assert_eq!(got(client.get_all_flags_and_payloads(&nobody)), AllFlags::default());
    }
    assert!(has_recorded(client, DiagnosticCategory::Validation));
    scenario.must_have_queued_nothing();
}

#[test]
fn ctx_05_header_values_are_cleaned_and_cut() {
    let scenario = Scenario::new();
    let long = "x".repeat(2000);
    let headers = [("X-POSTHOG-DISTINCT-ID", " \u{7}  us\u{0}er_1 "), ("X-POSTHOG-SESSION-ID", long.as_str())];
    Context::from_headers(headers).enter(|| anonymous(&scenario));
    Context::from_headers([("X-POSTHOG-DISTINCT-ID", " \r\n")]).enter(|| {
        assert_eq!(current_distinct_id(), None);
        anonymous(&scenario);
    });
    let sent = scenario.sent();
    assert_eq!(
        (&sent[0]["distinct_id"], &sent[0]["properties"]["$session_id"]),
        (&json!("user_1"), &json!("x".repeat(1000)))
    );
    assert_eq!(sent[1]["properties"]["$process_person_profile"], false);
    assert!(!has_recorded(&scenario.client, DiagnosticCategory::Validation));
    Context::from_headers([("X-POSTHOG-SESSION-ID", [0xff, 0xfe])]).enter(|| take(&scenario.client, "tick"));
    let is_reported = |found: &Diagnostic| matches!(found, Diagnostic::InputIgnored { what } if what.contains("X-POSTHOG-SESSION-ID"));
    assert!(scenario.client.diagnostics().iter().any(is_reported));
}

#[test]
fn ctx_06_what_the_application_knows_replaces_what_headers_say() {
    let scenario = Scenario::new();
    Context::from_headers(HEADERS).enter(|| {
        assert!(Context::update(|context| context.distinct_id("authenticated")));
        assert_eq!(current_distinct_id().as_deref(), Some("authenticated"));
        anonymous(&scenario);
    });
    assert_eq!(scenario.sent_one()["distinct_id"], "authenticated");
}

#[test]
fn ctx_07_concurrent_requests_are_isolated() {
    let scenario = Scenario::new();
    let serve = |id: &'static str| {
        let client = scenario.client.clone();
        Context::from_headers([("x-posthog-distinct-id", id)]).scope(async move {
            for _ in 0..20 {
                accepted(&client.capture(Event::new_anon("seen").prop("of", id)));
                tokio::task::yield_now().await;
            }
        })
    };
    for runtime in [tokio::runtime::Builder::new_current_thread(), tokio::runtime::Builder::new_multi_thread()] {
        let mut runtime = runtime;
        runtime.build().unwrap().block_on(async {
            let requests = ["a", "b", "c"].map(|id| tokio::spawn(serve(id)));
            for request in requests {
                request.await.unwrap();
            }
        });
    }
    let sent = scenario.sent();
    assert_eq!(sent.len(), 120);
    assert!(sent.iter().all(|event| event["distinct_id"] == event["properties"]["of"]), "{sent:#?}");
}

#[test]
fn ctx_08_events_have_request_properties_only_inside_it() {
    let scenario = Scenario::new();
    let headers = [("User-Agent", "curl/8"), ("X-Forwarded-For", "203.0.113.9, 10.0.0.1")];
    Context::from_request("POST", "https://example.org/cart?item=7", headers)
        .enter(|| take(&scenario.client, "inside"));
    take(&scenario.client, "outside");
    let sent = scenario.sent();
    let facts = ["$current_url", "$request_method", "$request_path", "$user_agent", "$ip"];
    let expected = ["https://example.org/cart", "POST", "/cart", "curl/8", "203.0.113.9"];
    assert_eq!(facts.map(|fact| sent[0]["properties"][fact].clone()), expected.map(Value::from));
    assert!(facts.iter().all(|fact| sent[1]["properties"].get(*fact).is_none()));
}

#[test]
fn ctx_09_outside_a_context_there_is_no_distinct_id() {
    assert_eq!(current_distinct_id(), None);
    Context::new().enter(|| assert_eq!(current_distinct_id(), None));
    Context::new().distinct_id("user_1").enter(|| assert_eq!(current_distinct_id().as_deref(), Some("user_1")));
    assert_eq!(current_distinct_id(), None);
}

#[test]
fn ctx_10_headers_go_out_to_listed_hosts_only() {
    let scenario = Scenario::with(|config| config.tracing_hosts(["example.com"]));
    Context::from_headers(HEADERS).enter(|| {
        let expected =
            [("X-POSTHOG-DISTINCT-ID", "user_1".to_owned()), ("X-POSTHOG-SESSION-ID", "session_7".to_owned())];
        assert_eq!(scenario.client.tracing_headers("https://api.example.com/x"), expected);
        assert_eq!(scenario.client.tracing_headers("https://example.com.evil.org/x"), []);
    });
    assert_eq!(scenario.client.tracing_headers("https://example.com"), []);
    accepted(&scenario.client.capture(event("tick")));
}

#[test]
fn ctx_03_super_properties_keep_anonymous_events_personless() {
    let scenario = Scenario::with(|config| config.super_property("$process_person_profile", true));
    scenario.client.register("$geoip_disable", false);
    anonymous(&scenario);
    Context::new().prop("$process_person_profile", true).enter(|| anonymous(&scenario));
    accepted(&scenario.client.capture(event("seen").personless().disable_geoip()));
    accepted(&scenario.client.capture(event("seen")));
    let sent = scenario.sent();
    let said = |key: &str| sent.iter().map(|event| event["properties"][key].clone()).collect::<Vec<_>>();
    assert_eq!(said("$process_person_profile"), [false, false, false, true].map(Value::from));
    assert_eq!(said("$geoip_disable"), [false, false, true, false].map(Value::from));
}
