//! `capture` (CAP): the content of events, drops, and the order of steps.

use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use posthog::diagnostics::{Diagnostic, DiagnosticCategory};
use posthog::reports::{DeliveryReport, EndpointStatus};
use posthog::settings::BeforeSend;
use posthog::{Client, Config, Context, DropReason, Event, Outcome};
use serde_json::{Value, json};
use sink::Answer;
use uuid::Uuid;

use crate::fixture::{PATIENCE, accepted, assert_balanced, event, eventually, take};
use crate::scenario::{Scenario, has_recorded};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn cap_01_capture_enqueues_exactly_one_event_with_its_envelope() {
    let scenario = Scenario::new();
    let receipt = scenario.client.capture(Event::new("signed_up", "user_1").prop("plan", "pro"));
    let sent = scenario.sent_one();
    let mut keys: Vec<_> = sent.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["distinct_id", "event", "properties", "timestamp", "uuid"]);
    assert_eq!((&sent["event"], &sent["distinct_id"]), (&json!("signed_up"), &json!("user_1")));
    assert_eq!(sent["uuid"], json!(receipt.uuid().unwrap().to_string()));
    assert_eq!((&sent["properties"]["plan"], &sent["properties"]["$lib"]), (&json!("pro"), &json!("posthog-durable")));
}

#[test]
fn cap_02_opted_out_capture_enqueues_nothing_and_sends_nothing() {
    let seen = Arc::new(Mutex::new(0));
    let hook = Arc::clone(&seen);
    let scenario = Scenario::with(|config| {
        config.before_send(move |event| {
            *hook.lock().unwrap() += 1;
            Some(event)
        })
    });
    scenario.client.opt_out();
    assert!(scenario.client.is_opted_out());
    let receipts =
        [scenario.client.capture(event("no")), scenario.client.identify("user_1", ()), scenario.client.alias("a", "b")];
    assert!(receipts.iter().all(|receipt| receipt.outcome() == Outcome::Dropped(DropReason::OptedOut)));
    let immediate = scenario.client.capture_immediate(event("no")).wait(PATIENCE);
    assert_eq!(immediate, Ok(DeliveryReport::Dropped(DropReason::OptedOut)));
    scenario.must_have_queued_nothing();
    assert_eq!(scenario.client.stats().dropped, [(DropReason::OptedOut, 4)]);
    assert_eq!(*seen.lock().unwrap(), 0, "no hook has seen anything");
    scenario.client.opt_in();
    take(&scenario.client, "yes");
    assert_eq!((scenario.client.is_opted_out(), scenario.names()), (false, vec!["yes".to_owned()]));
}

#[test]
fn cap_02_queued_events_are_kept_during_an_opt_out() {
    let scenario = Scenario::new();
    scenario.fixture.sink.stop();
    take(&scenario.client, "before");
    scenario.client.flush().wait(PATIENCE).unwrap();
    scenario.client.opt_out();
    scenario.fixture.sink.resume();
    assert_eq!((scenario.sent().len(), scenario.client.stats().queued_events), (0, 1));
    scenario.client.opt_in();
    eventually("it is sent", || scenario.names() == ["before"]);
    // The same for a client that is opted out from its start.
    scenario.client.opt_out();
    scenario.client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    let again = Client::new(scenario.fixture.config().opted_out(true)).unwrap();
    assert!(again.is_opted_out());
    assert_eq!(again.capture(event("no")).outcome(), Outcome::Dropped(DropReason::OptedOut));
    assert_eq!(again.stats().delivered, 1);
}

#[test]
fn cap_02_an_opt_out_lets_only_the_request_in_flight_finish() {
    let scenario = Scenario::with(|config| config.max_batch_events(1).flush_at(1000).flush_interval(HOUR));
    scenario.fixture.sink.script([Answer::ok().delay(Duration::from_millis(300))]);
    let uuids: Vec<_> = (0..25).map(|_| take(&scenario.client, "tick")).collect();
    let flush = scenario.client.flush();
    assert!(scenario.fixture.sink.wait_for(|state| !state.requests().is_empty(), PATIENCE));
    scenario.client.opt_out();
    // Earlier and new waits resolve: the flush ends with the request in flight.
    for flush in [flush, scenario.client.flush()] {
        let report = flush.wait(PATIENCE).unwrap();
        assert_eq!((report.remaining, report.endpoint), (24, EndpointStatus::Up));
    }
    assert_eq!(scenario.fixture.sink.requests().len(), 1);
    scenario.client.opt_in();
    scenario.fixture.must_have_taken(&uuids);
    eventually("the queue is empty", || scenario.client.stats().queued_events == 0);
    assert_balanced(&scenario.client);
}

#[test]
fn cap_03_a_hooks_result_is_enqueued_and_hooks_are_replaceable() {
    let scenario = Scenario::new();
    scenario.client.set_before_send([BeforeSend::new(|event| Some(event.prop("seen", 1)))]);
    take(&scenario.client, "first");
    scenario.client.set_before_send([BeforeSend::new(|_| None)]);
    assert_eq!(scenario.client.capture(event("second")).outcome(), Outcome::Dropped(DropReason::BeforeSend));
    scenario.client.set_before_send([]);
    take(&scenario.client, "third");
    let sent = scenario.sent();
    assert_eq!(sent.iter().map(|event| &event["event"]).collect::<Vec<_>>(), ["first", "third"]);
    assert_eq!([&sent[0]["properties"]["seen"], &sent[1]["properties"]["seen"]], [&json!(1), &Value::Null]);
}

#[test]
fn cap_04_a_panicking_hook_in_immediate_mode_is_recorded() {
    let scenario = Scenario::with(|config| config.before_send(|_| panic!("in the hook")));
    let report = scenario.client.capture_immediate(event("no")).wait(PATIENCE);
    assert_eq!(report, Ok(DeliveryReport::Dropped(DropReason::BeforeSendPanicked)));
    assert!(has_recorded(&scenario.client, DiagnosticCategory::BeforeSend));
    scenario.must_have_queued_nothing();
}

#[test]
fn cap_05_hooks_run_last_on_an_event_that_is_complete() {
    let seen: Arc<Mutex<Vec<Event>>> = Arc::default();
    let hook = Arc::clone(&seen);
    let scenario = Scenario::with(|config| {
        config.super_property("release", 7).before_send(move |event| {
            hook.lock().unwrap().push(event.clone());
            Some(event)
        })
    });
    assert_eq!(scenario.client.capture(Event::new("", "")).outcome(), Outcome::Dropped(DropReason::EmptyName));
    assert!(seen.lock().unwrap().is_empty(), "what is not valid reaches no hook");
    let context = Context::new().distinct_id("user_1").session_id("session_7");
    let uuid = context.enter(|| accepted(&scenario.client.capture(Event::new_anon("seen"))));
    let seen = seen.lock().unwrap()[0].clone();
    assert_eq!((seen.distinct_id(), seen.given_uuid()), ("user_1", Some(uuid)));
    assert_eq!((seen.get("release"), seen.get("$session_id")), (Some(7), Some("session_7".to_owned())));
    let sent = scenario.sent_one();
    let stamped = seen.given_timestamp().unwrap().duration_since(UNIX_EPOCH).unwrap();
    let instant: jiff::Timestamp = sent["timestamp"].as_str().unwrap().parse().unwrap();
    assert_eq!(u128::try_from(instant.as_nanosecond()).unwrap(), stamped.as_nanos());
    scenario.client.opt_out();
    let invalid = scenario.client.capture(Event::new("", "")).outcome();
    assert_eq!(invalid, Outcome::Dropped(DropReason::OptedOut), "before anything is validated");
}

#[test]
fn cap_06_a_blank_name_or_distinct_id_is_dropped_and_recorded() {
    for (event, reason) in [
        (Event::new("", "user_1"), DropReason::EmptyName),
        (Event::new(" \t", "user_1"), DropReason::EmptyName),
        (Event::new("tick", ""), DropReason::EmptyDistinctId),
        (Event::new("tick", " "), DropReason::EmptyDistinctId),
    ] {
        let scenario = Scenario::new();
        // A context does not replace an invalid value of the event.
        let receipt = Context::new().distinct_id("user_2").enter(|| scenario.client.capture(event));
        scenario.must_have_dropped(&receipt, reason, DiagnosticCategory::Validation);
    }
}

#[test]
fn cap_07_the_receipt_has_the_uuid_unless_dropped() {
    let scenario = Scenario::new();
    let uuid = scenario.client.capture(event("tick")).uuid().unwrap();
    assert_eq!(scenario.client.capture(event("")).uuid(), None);
    assert_eq!(scenario.sent_one()["uuid"], json!(uuid.to_string()));
}

#[test]
fn cap_08_every_option_of_an_event_is_sent() {
    let scenario = Scenario::new();
    let uuid = Uuid::from_u128(0x0198_c0de_0000_7000_8000_0000_0000_0abc);
    let described = event("upgraded")
        .timestamp(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123))
        .uuid(uuid)
        .group("company", "acme")
        .group("seat", 7)
        .disable_geoip()
        .person_property("plan", "pro")
        .person_props_once([("first_plan", "free")]);
    assert_eq!(accepted(&scenario.client.capture(described)), uuid);
    let sent = scenario.sent_one();
    assert_eq!((&sent["uuid"], &sent["timestamp"]), (&json!(uuid.to_string()), &json!("2023-11-14T22:13:20.123Z")));
    let properties = &sent["properties"];
    assert_eq!(properties["$groups"], json!({"company": "acme", "seat": 7}));
    assert_eq!(properties["$geoip_disable"], json!(true));
    assert_eq!(
        (&properties["$set"], &properties["$set_once"]),
        (&json!({"plan": "pro"}), &json!({"first_plan": "free"}))
    );
}

#[test]
fn cap_08_an_event_takes_flags_without_asking_for_them() {
    let scenario = Scenario::of_flags(json!({"off": false, "on": true}));
    let flags = scenario.evaluated("user_1");
    let own = Event::new("shown", "user_1").prop("$feature/off", "own").flags(&flags);
    accepted(&scenario.client.capture(own));
    let said = scenario.sent_one()["properties"].take();
    assert_eq!((&said["$feature/on"], &said["$feature/off"]), (&json!(true), &json!("own")));
    // Known values are used too, whether PostHog is reachable or not.
    scenario.fixture.sink.stop();
    let known = scenario.client.known_flags("user_1");
    scenario.fixture.sink.resume();
    assert_eq!((&scenario.properties_with(&known)["$feature/on"], scenario.asked().len()), (&json!(true), 1));
}

#[test]
fn cap_09_a_time_with_an_offset_is_sent_in_utc() {
    let scenario = Scenario::new();
    let instant: jiff::Timestamp = "2026-01-02T03:04:05.123456789+02:00".parse().unwrap();
    let since_1970 = Duration::from_nanos(u64::try_from(instant.as_nanosecond()).unwrap());
    accepted(&scenario.client.capture(event("tick").timestamp(UNIX_EPOCH + since_1970)));
    assert_eq!(scenario.sent_one()["timestamp"], "2026-01-02T01:04:05.123456789Z");
}

#[test]
fn cap_10_uuid_and_time_are_stamped_once_and_stay_over_retries() {
    let scenario = Scenario::new();
    // Accepted, but the response says otherwise: PostHog has to recognize the retry.
    scenario.fixture.sink.script([Answer::status(503).taking(), Answer::status(503).taking()]);
    let uuid = take(&scenario.client, "tick");
    assert_eq!(uuid.get_version_num(), 7);
    eventually("it is delivered", || scenario.client.stats().delivered == 1);
    let attempts = scenario.fixture.sink.events();
    assert_eq!(attempts.len(), 3);
    assert!(attempts.iter().all(|attempt| attempt.uuid == uuid && attempt.timestamp == attempts[0].timestamp));
    assert!(!attempts[0].timestamp.is_empty());
}

#[test]
fn cap_11_the_librarys_own_properties_are_added_if_absent() {
    let scenario = Scenario::new();
    take(&scenario.client, "plain");
    accepted(
        &scenario.client.capture(event("own").prop("$lib", "mine").prop("$lib_version", "9").prop("$is_server", false)),
    );
    let sent = scenario.sent();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(sent[0]["properties"], json!({"$lib": "posthog-durable", "$lib_version": version, "$is_server": true}));
    assert_eq!(sent[1]["properties"], json!({"$lib": "mine", "$lib_version": "9", "$is_server": false}));
    let desktop = Scenario::with(|config| config.is_server(false));
    take(&desktop.client, "plain");
    assert_eq!(desktop.sent_one()["properties"]["$is_server"], false);
}

#[test]
fn cap_12_hints_are_sent_under_the_servers_names() {
    let scenario = Scenario::with(|config| config.disable_geoip(true));
    accepted(&scenario.client.capture(event("tick").group("company", "acme").personless()));
    let properties = &scenario.sent_one()["properties"];
    assert_eq!(properties["$groups"], json!({"company": "acme"}));
    assert_eq!((&properties["$geoip_disable"], &properties["$process_person_profile"]), (&json!(true), &json!(false)));
}

#[test]
fn cap_12_flags_are_sent_under_the_servers_names() {
    let scenario = Scenario::of_flags(json!({"button": "blue", "off": false, "on": true}));
    let said = scenario.properties_with(&scenario.evaluated("user_1"));
    let values = ["$feature/button", "$feature/off", "$feature/on"].map(|key| &said[key]);
    assert_eq!(values, [&json!("blue"), &json!(false), &json!(true)]);
    assert_eq!(said["$active_feature_flags"], json!(["button", "on"]));
}

#[test]
fn cap_14_events_of_concurrent_threads_stay_in_order() {
    let scenario = Scenario::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let client = &scenario.client;
            scope.spawn(move || {
                for n in 0..50 {
                    accepted(&client.capture(event("tick").prop("thread", thread).prop("n", n)));
                }
            });
        }
    });
    let sent = scenario.sent();
    assert_eq!(sent.len(), 200);
    for thread in 0..4 {
        let of_it = sent.iter().filter(|event| event["properties"]["thread"] == thread);
        let order: Vec<_> = of_it.filter_map(|event| event["properties"]["n"].as_u64()).collect();
        assert!(order.is_sorted(), "{order:?}");
    }
}

#[test]
fn cap_15_an_immediate_capture_runs_hooks_and_has_a_result() {
    let scenario = Scenario::with(|config| config.before_send(|event| Some(event.prop("seen", true))));
    let report = scenario.client.capture_immediate(event("tick")).wait(PATIENCE);
    assert_eq!(report, Ok(DeliveryReport::Delivered));
    assert_eq!(scenario.sent_one()["properties"]["seen"], true);
    scenario.fixture.sink.default_answer(Answer::status(503));
    let report = scenario.client.capture_immediate(event("later")).wait(PATIENCE).unwrap();
    let DeliveryReport::Queued { endpoint: EndpointStatus::Down { reason, .. } } = &report else {
        panic!("{report:?}")
    };
    assert!(reason.contains("503"), "{reason}");
    assert_eq!(scenario.client.stats().queued_events, 1);
    scenario.fixture.sink.default_answer(Answer::ok());
    eventually("it is delivered later", || scenario.client.stats().delivered == 2);
}

#[test]
fn cap_15_a_rejected_immediate_capture_has_the_reason() {
    const WORDS: &str = "failed to hydrate events: poison";
    let scenario = Scenario::with(|config| config.flush_at(1000).flush_interval(Duration::from_secs(3600)));
    scenario.fixture.sink.refuse_if(|event| event["event"] == "poison", 400, WORDS);
    // Another event of the same request is accepted, so the event is at fault and not the server.
    for _ in 0..3 {
        take(&scenario.client, "fine");
    }
    let report = scenario.client.capture_immediate(event("poison")).wait(PATIENCE);
    assert_eq!(report, Ok(DeliveryReport::DeadLettered { status: 400, reason: WORDS.into() }));
    eventually("it is a dead letter", || scenario.client.dead_letters(9).len() == 1);
    assert_eq!(scenario.client.dead_letters(9)[0].event["event"], "poison");
}

#[test]
fn cap_15_closed_and_disabled_clients_resolve_too() {
    let scenario = Scenario::new();
    scenario.client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    let report = scenario.client.capture_immediate(event("late")).wait(PATIENCE);
    assert_eq!(report, Ok(DeliveryReport::Dropped(DropReason::Closed)));
    let disabled = Client::new(Config::disabled()).unwrap();
    let report = disabled.capture_immediate(event("no")).wait(PATIENCE);
    assert_eq!(report, Ok(DeliveryReport::Dropped(DropReason::Disabled)));
}

#[test]
fn cap_16_events_of_a_failed_flush_are_sent_first_by_the_next() {
    let scenario = Scenario::new();
    scenario.fixture.sink.stop();
    take(&scenario.client, "first");
    scenario.client.flush().wait(PATIENCE).unwrap();
    take(&scenario.client, "second");
    scenario.fixture.sink.resume();
    eventually("both are sent", || scenario.sent().len() == 2);
    assert_eq!(scenario.names(), ["first", "second"]);
}

#[test]
fn cap_17_a_manual_exception_is_sent_and_reported_once() {
    let scenario = Scenario::new();
    take(&scenario.client, "$exception");
    take(&scenario.client, "$exception");
    let diagnostics = scenario.client.diagnostics();
    assert_eq!(
        diagnostics.iter().filter(|diagnostic| **diagnostic == Diagnostic::ManualException).count(),
        1,
        "{diagnostics:?}"
    );
    assert_eq!(scenario.names(), ["$exception", "$exception"]);
}

#[test]
fn reg_01_registered_properties_are_on_every_event() {
    let scenario = Scenario::with(|config| config.super_property("release", 1).super_property("region", "eu"));
    scenario.client.register("release", 2);
    accepted(&scenario.client.capture(event("a").prop("region", "us")));
    assert!(scenario.client.unregister("region") && !scenario.client.unregister("region"));
    Context::new().prop("release", 3).enter(|| take(&scenario.client, "b"));
    let sent = scenario.sent();
    let said = |at: usize| (&sent[at]["properties"]["release"], &sent[at]["properties"]["region"]);
    assert_eq!(said(0), (&json!(2), &json!("us")));
    assert_eq!(said(1), (&json!(3), &Value::Null), "a context is nearer to the event than the program");
    scenario.client.register("bad", std::collections::BTreeMap::from([(None::<u8>, 1)]));
    let invalid =
        |diagnostic: &Diagnostic| matches!(diagnostic, Diagnostic::InputIgnored { what } if what.contains("\"bad\""));
    assert!(scenario.client.diagnostics().iter().any(invalid));
}
