//! Protocol V1 over the network: requests, results for each event, and every codec.

use std::time::{Duration, Instant};

use posthog::diagnostics::Diagnostic;
use posthog::reports::{DeliveryReport, EndpointStatus};
use posthog::settings::{CaptureProtocol, Compression};
use posthog::stats::DeliveryPhase;
use posthog::{Client, Config};
use serde_json::json;
use sink::{Answer, Request};
use uuid::Uuid;

use crate::fixture::{Fixture, PATIENCE, accepted, close_empty, event, eventually, take};

fn config(fixture: &Fixture) -> Config {
    fixture.config().protocol(CaptureProtocol::V1)
}

fn client(fixture: &Fixture) -> Client {
    Client::new(config(fixture)).unwrap()
}

fn headers(fixture: &Fixture, name: &str) -> Vec<String> {
    let value = |request: &Request| request.header(name).unwrap_or_default().to_owned();
    fixture.sink.inspect(|state| state.requests().iter().map(value).collect())
}

/// Three events that are sent in one request.
fn three(fixture: &Fixture, client: &Client) -> Vec<Uuid> {
    let uuids = ["one", "two", "three"].map(|name| take(client, name));
    assert!(fixture.sink.wait_for(|state| !state.requests().is_empty(), PATIENCE));
    assert_eq!(fixture.sink.requests()[0].uuids, uuids);
    uuids.into()
}

/// A client whose flush interval is long enough that events captured one after the other are sent in one request.
fn patient(fixture: &Fixture) -> Client {
    Client::new(config(fixture).flush_interval(Duration::from_millis(300))).unwrap()
}

#[test]
fn http_01_a_v1_request_has_the_token_and_the_event() {
    let fixture = Fixture::new();
    let client = Client::new(config(&fixture).historical_migration(true)).unwrap();
    let uuid = take(&client, "tick");
    close_empty(&client);
    let request = fixture.sink.requests().remove(0);
    assert_eq!((request.path.as_str(), request.query.as_str()), ("/i/v1/analytics/events", ""));
    assert_eq!((request.api_key.as_str(), request.uuids), (crate::fixture::KEY, vec![uuid]));
    let header = |name: &str| headers(&fixture, name).remove(0);
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("content-encoding"), "gzip");
    assert_eq!(header("posthog-sdk-info"), concat!("posthog-durable/", env!("CARGO_PKG_VERSION")));
    assert_eq!(header("posthog-attempt"), "1");
    assert!(header("user-agent").starts_with("posthog-durable/"));
    assert!(Uuid::parse_str(&header("posthog-request-id")).is_ok());
    assert!(header("posthog-request-timestamp").ends_with('Z'));
    let envelope = request.envelope.as_object().unwrap();
    assert_eq!(envelope.keys().collect::<Vec<_>>(), ["batch", "created_at", "historical_migration"]);
    assert!(envelope["created_at"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn options_stand_beside_the_properties_and_not_among_them() {
    let fixture = Fixture::new();
    let client = Client::new(config(&fixture).exact_timestamps(true)).unwrap();
    let described = event("tick")
        .prop("plan", "pro")
        .prop("$cookieless_mode", false)
        .prop("$product_tour_id", "tour-1")
        .prop("$session_id", 7)
        .prop("$window_id", "w-1")
        .personless();
    accepted(&client.capture(described));
    accepted(&client.capture(event("tock").prop("$ignore_sent_at", "mistyped").prop("$session_id", json!(null))));
    close_empty(&client);
    let (first, second) = (fixture.sink.events().remove(0), fixture.sink.events().remove(1));
    let options = json!({"cookieless_mode": false, "disable_skew_correction": true, "process_person_profile": false,
        "product_tour_id": "tour-1"});
    assert_eq!(first.others, json!({"options": options, "session_id": "7", "window_id": "w-1"}));
    let mut names: Vec<_> = first.properties.as_object().unwrap().keys().cloned().collect();
    names.sort();
    assert_eq!(names, ["$is_server", "$lib", "$lib_version", "plan"]);
    assert_eq!(second.others, json!({"options": {}}));
}

#[test]
fn events_arrive_unchanged_with_each_compiled_codec() {
    let compiled = [
        (Compression::None, None),
        (Compression::Gzip, Some("gzip")),
        (Compression::Deflate, Some("deflate")),
        #[cfg(feature = "brotli")]
        (Compression::Brotli, Some("br")),
        #[cfg(feature = "zstd")]
        (Compression::Zstd, Some("zstd")),
    ];
    for (codec, encoding) in compiled {
        let fixture = Fixture::new();
        let client = Client::new(config(&fixture).compression(codec)).unwrap();
        let filling = "filling ".repeat(500);
        let uuids: Vec<Uuid> = (0..40).map(|_| accepted(&client.capture(event("f").prop("f", &filling)))).collect();
        fixture.must_have_taken(&uuids);
        close_empty(&client);
        let requests = fixture.sink.requests();
        assert!(requests.iter().all(|request| request.header("content-encoding") == encoding), "{codec:?}");
        assert!(requests.iter().all(|request| request.query.is_empty()), "{codec:?}");
        let bytes: usize = requests.iter().map(|request| request.wire_bytes).sum();
        assert_eq!(bytes < 40 * 4000 / 4, encoding.is_some(), "{bytes} bytes with {codec:?}");
        assert!(fixture.sink.events().iter().all(|event| event.properties["f"] == filling.as_str()));
    }
}

#[test]
fn http_02_results_empty_the_queue_and_drops_are_dead_letters() {
    let fixture = Fixture::new();
    fixture.sink.script([Answer::results(["ok", "drop:event_name_too_long", "warning:person_processing_disabled"])]);
    let client = patient(&fixture);
    let uuids = three(&fixture, &client);
    eventually("all three are settled", || client.stats().delivered == 2 && client.stats().dead_lettered == 1);
    eventually("the dead letter is written", || client.dead_letters(9).len() == 1);
    let dead = client.dead_letters(9).remove(0);
    assert_eq!((dead.status, dead.reason.as_str()), (200, "event_name_too_long"));
    assert_eq!(dead.event["uuid"], uuids[1].to_string());
    let diagnostics = client.diagnostics();
    let dead_lettered = Diagnostic::DeadLettered { uuid: uuids[1], status: 200, reason: "event_name_too_long".into() };
    let warned =
        Diagnostic::DeliveryWarning { uuid: uuids[2], events: 1, details: "person_processing_disabled".into() };
    assert!(diagnostics.contains(&dead_lettered) && diagnostics.contains(&warned), "{diagnostics:?}");
    close_empty(&client);
    assert_eq!(fixture.sink.requests().len(), 1);
}

#[test]
fn missing_and_unknown_results_count_as_accepted() {
    let fixture = Fixture::new();
    fixture.sink.script([Answer::results(["missing", "ok", "later:busy"])]);
    let client = patient(&fixture);
    let uuids = three(&fixture, &client);
    eventually("all three are settled", || client.stats().delivered == 3);
    assert!(client.dead_letters(9).is_empty());
    for (uuid, beginning) in [(uuids[0], "no result in the response"), (uuids[2], r#"unknown result "later": busy, "#)]
    {
        let is_reported = |diagnostic: &Diagnostic| {
            matches!(diagnostic, Diagnostic::DeliveryWarning { uuid: first, events: 1, details }
                if *first == uuid && details.starts_with(beginning))
        };
        assert_eq!(client.diagnostics().iter().filter(|diagnostic| is_reported(diagnostic)).count(), 1, "{beginning}");
    }
    close_empty(&client);
    assert_eq!(fixture.sink.requests().len(), 1, "neither is tried again");
}

#[test]
fn rtq_04_a_partial_retry_keeps_the_request_id() {
    let fixture = Fixture::new();
    fixture.sink.script([Answer::results(["ok", "retry:not_persisted", "retry"]), Answer::results(["ok", "retry"])]);
    let client = patient(&fixture);
    let uuids = three(&fixture, &client);
    // Captured while that request is in flight: another request.
    let later = take(&client, "later");
    fixture.must_have_taken(&[&uuids[..], &[later]].concat());
    close_empty(&client);
    assert_eq!((client.stats().delivered, client.stats().dead_lettered), (4, 0));
    let requests = fixture.sink.requests();
    let carried: Vec<_> = requests.iter().map(|request| request.uuids.clone()).collect();
    assert_eq!(carried, [uuids.clone(), uuids[1..].to_vec(), uuids[2..].to_vec(), vec![later]]);
    let ids = headers(&fixture, "posthog-request-id");
    assert!(ids[0] == ids[1] && ids[1] == ids[2] && ids[2] != ids[3], "{ids:?}");
    assert_eq!(headers(&fixture, "posthog-attempt"), ["1", "2", "3", "1"]);
    let times = headers(&fixture, "posthog-request-timestamp");
    assert!(times.is_sorted_by(|one, other| one < other), "{times:?}");
    let created: Vec<_> = requests.iter().map(|request| request.envelope["created_at"].clone()).collect();
    assert!(created[0] == created[1] && created[1] == created[2] && created[2] != created[3], "{created:?}");
}

#[test]
fn rtq_01_a_failing_request_is_retried_then_in_cooldown() {
    let fixture = Fixture::new();
    fixture.sink.default_answer(Answer::status(503));
    let client = Client::new(config(&fixture).max_retries(3)).unwrap();
    let uuid = take(&client, "tick");
    let is_parked = || matches!(client.stats().delivery, DeliveryPhase::Cooldown { retry_in } if retry_in > Duration::from_secs(28));
    eventually("the cycle is over", is_parked);
    let requests = fixture.sink.requests();
    assert!(requests.len() == 4 && requests.iter().all(|request| request.uuids == [uuid]));
    let ids = headers(&fixture, "posthog-request-id");
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(headers(&fixture, "posthog-attempt"), ["1", "2", "3", "4"]);
    assert_eq!(client.stats().queued_events, 1);
    // RTQ-02: a later success delivers it, as another request.
    fixture.sink.default_answer(Answer::ok());
    eventually("a flush finds the server up", || client.flush().wait(PATIENCE).unwrap().endpoint == EndpointStatus::Up);
    fixture.must_have_taken(&[uuid]);
    assert_eq!(headers(&fixture, "posthog-attempt")[4], "1");
    assert_ne!(headers(&fixture, "posthog-request-id")[4], ids[0]);
    close_empty(&client);
}

#[test]
fn rtq_05_retry_after_is_honoured_with_results_and_with_429() {
    let fixture = Fixture::new();
    fixture.sink.script([Answer::results(["retry"]).retry_after(1), Answer::status(429).retry_after(1)]);
    let client = client(&fixture);
    let uuid = take(&client, "tick");
    fixture.must_have_taken(&[uuid]);
    let at: Vec<Instant> = fixture.sink.requests().into_iter().map(|request| request.arrived).collect();
    assert!(at[1] - at[0] >= Duration::from_secs(1) && at[2] - at[1] >= Duration::from_secs(1));
    assert_eq!(headers(&fixture, "posthog-attempt"), ["1", "2", "3"]);
    close_empty(&client);
}

#[test]
fn a_response_that_is_not_of_v1_loses_nothing() {
    let fixture = Fixture::new();
    let answers = ["<html>Please log in</html>", r#"{"status":1}"#, r#"{"results":{"0198"#, r#"{"results":[]}"#, ""];
    fixture.sink.script(answers.map(|body| Answer::status(200).body(body).discarding()));
    let client = client(&fixture);
    let uuid = take(&client, "tick");
    fixture.must_have_taken(&[uuid]);
    close_empty(&client);
    assert_eq!((client.stats().delivered, client.stats().dead_lettered), (1, 0));
    let portals = client
        .diagnostics()
        .into_iter()
        .filter(|diagnostic| matches!(diagnostic, Diagnostic::NotPostHog { status: 200, .. }));
    assert_eq!(
        (portals.count(), client.stats().failed_attempts),
        (1, answers.len() as u64),
        "reported once, and counted"
    );
}

#[test]
fn a_large_answer_is_read_to_its_end() {
    let fixture = Fixture::new();
    let details = format!("warning:{}", "w".repeat(200));
    fixture.sink.default_answer(Answer::results([details.as_str()]));
    fixture.sink.stop();
    let client = client(&fixture);
    let uuids: Vec<Uuid> = (0..1000).map(|_| take(&client, "tick")).collect();
    eventually("they are queued", || client.stats().queued_events == 1000);
    fixture.sink.resume();
    eventually("a flush finds the server up", || client.flush().wait(PATIENCE).unwrap().endpoint == EndpointStatus::Up);
    fixture.must_have_taken(&uuids);
    let most = fixture.sink.inspect(|state| state.requests().iter().map(|request| request.event_count).max());
    assert!(most > Some(400), "the answer to {most:?} events is more than 64 KiB");
    close_empty(&client);
}

#[test]
fn events_with_equal_uuids_are_sent_in_separate_requests() {
    let fixture = Fixture::new();
    let client = patient(&fixture);
    let uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
    for _ in 0..3 {
        accepted(&client.capture(event("tick").uuid(uuid)));
    }
    eventually("all three are delivered", || client.stats().delivered == 3);
    assert!(fixture.sink.requests().iter().all(|request| request.uuids == [uuid]));
    assert_eq!((client.stats().dead_lettered, fixture.sink.requests().len()), (0, 3));
    assert!(client.shutdown(PATIENCE).wait(PATIENCE).is_ok());
}

#[test]
fn events_queued_under_one_protocol_are_sent_by_the_other() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let v0 = fixture.client();
    let mut uuids = vec![take(&v0, "first")];
    v0.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    drop(v0);
    let v1 = client(&fixture);
    uuids.push(take(&v1, "second"));
    fixture.sink.resume();
    eventually("a flush finds the server up", || v1.flush().wait(PATIENCE).unwrap().endpoint == EndpointStatus::Up);
    fixture.must_have_taken(&uuids);
    assert!(fixture.sink.requests().iter().all(|request| request.path == "/i/v1/analytics/events"));
    close_empty(&v1);
}

#[test]
fn parallel_captures_with_one_uuid_get_their_own_results() {
    let fixture = Fixture::new();
    fixture.sink.script([Answer::results(["drop:the first"]), Answer::results(["ok"])]);
    let client = patient(&fixture);
    let uuid = Uuid::from_u128(7);
    let waiting = ["one", "two"].map(|name| client.capture_immediate(event(name).uuid(uuid)));
    let mut reports = waiting.map(|report| report.wait(PATIENCE).unwrap());
    reports.sort_by_key(|report| *report == DeliveryReport::Delivered);
    let dead_lettered = DeliveryReport::DeadLettered { status: 200, reason: "the first".into() };
    assert_eq!(reports, [dead_lettered, DeliveryReport::Delivered]);
    assert_eq!(fixture.sink.requests().len(), 2);
    close_empty(&client);
}
