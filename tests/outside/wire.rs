//! Requests over the network, and the effect of responses.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use posthog::diagnostics::Diagnostic;
use posthog::reports::EndpointStatus;
use posthog::settings::Compression;
use posthog::stats::DeliveryPhase;
use posthog::{Client, Event};
use serde_json::{Value, json};
use sink::Answer;
use uuid::Uuid;

use crate::fixture::{Fixture, PATIENCE, accepted, close_empty, event, eventually, take};

#[derive(serde::Serialize)]
struct Plan {
    name: &'static str,
    seats: Option<u8>,
}

#[test]
fn an_event_arrives_as_it_was_described() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let uuid = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
    let described = Event::new("run_started", "user_1")
        .uuid(uuid)
        .timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_125))
        .prop("text", "gr\u{fc}n \"\\\n\u{1}\u{1f980}")
        .prop("integer", -3)
        .prop("large", u64::MAX)
        .prop("float", 12.75)
        .prop("yes", true)
        .prop("nothing", Value::Null)
        .prop("list", [1, 2, 3])
        .prop("map", BTreeMap::from([("a", json!([{"b": 1}]))]))
        .prop("plan", Plan { name: "pro", seats: None })
        .group("company", "acme")
        .group("team", 7);
    assert_eq!(accepted(&client.capture(described)), uuid);
    close_empty(&client);
    let arrived = fixture.sink.events().remove(0);
    assert_eq!((arrived.uuid, arrived.event.as_str(), arrived.distinct_id.as_str()), (uuid, "run_started", "user_1"));
    assert_eq!(arrived.timestamp, "2023-11-14T22:13:20.125Z");
    let mut properties = arrived.properties;
    let version = properties.as_object_mut().unwrap().remove("$lib_version").unwrap();
    assert_eq!(version.as_str(), Some(env!("CARGO_PKG_VERSION")));
    let wanted = json!({"text": "gr\u{fc}n \"\\\n\u{1}\u{1f980}", "integer": -3, "large": u64::MAX, "float": 12.75,
        "yes": true, "nothing": null, "list": [1, 2, 3], "map": {"a": [{"b": 1}]},
        "plan": {"name": "pro", "seats": null},
        "$groups": {"company": "acme", "team": 7}, "$lib": "posthog-durable", "$is_server": true});
    assert_eq!(properties, wanted);
    let request = fixture.sink.requests().remove(0);
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/batch/"));
    assert_eq!((request.api_key.as_str(), request.query.as_str()), (crate::fixture::KEY, "compression=gzip"));
    let header = |name: &str| request.header(name).unwrap_or_default().to_owned();
    assert_eq!(header("content-encoding"), "gzip");
    assert_eq!(header("content-type"), "application/json");
    assert!(header("user-agent").starts_with("posthog-durable/"));
    assert!(request.sent_at.ends_with('Z'), "{}", request.sent_at);
}

#[test]
fn requests_have_configured_headers_and_may_be_uncompressed() {
    let fixture = Fixture::new();
    let client = Client::new(fixture.config().compression(Compression::None).header("x-tenant", "blue")).unwrap();
    take(&client, "plain");
    close_empty(&client);
    let request = fixture.sink.requests().remove(0);
    assert_eq!((request.header("content-encoding"), request.query.as_str()), (None, ""));
    assert_eq!(request.header("x-tenant"), Some("blue"));
}

#[test]
fn each_attempt_has_its_own_sent_at_and_the_same_body() {
    let fixture = Fixture::new();
    fixture.sink.script([Answer::status(503), Answer::status(503), Answer::close().taking()]);
    let client = fixture.client();
    let uuid = take(&client, "tick");
    assert!(fixture.sink.wait_for(|state| state.requests().len() == 4, PATIENCE));
    close_empty(&client);
    let requests = fixture.sink.requests();
    assert!(requests.iter().all(|request| request.uuids == [uuid]));
    assert!(requests[0].sent_at < requests[1].sent_at && requests[1].sent_at < requests[2].sent_at);
    // The third attempt was accepted without a response, so it is repeated with the same uuid and time. It was sent on
    // a reused connection, which was closed without a response: the repetition belongs to the same attempt.
    assert_eq!(requests[2].sent_at, requests[3].sent_at);
    let arrived = fixture.sink.events();
    assert_eq!((arrived.len(), &arrived[0].timestamp), (2, &arrived[1].timestamp));
    assert_eq!(client.stats().delivered, 1);
}

#[test]
fn statuses_that_do_not_reject_an_event_are_retried() {
    let fixture = Fixture::new();
    let statuses = [500, 502, 503, 504, 429, 408, 404, 405, 301, 302, 304, 418, 451, 520, 204];
    fixture.sink.script(statuses.map(|status| Answer::status(status).discarding()));
    let client = fixture.client();
    let uuids = [take(&client, "one"), take(&client, "two")];
    fixture.must_have_taken(&uuids);
    close_empty(&client);
    assert_eq!(client.stats().delivered, 2);
    let given = fixture.sink.inspect(|state| state.requests().iter().map(|request| request.status).collect::<Vec<_>>());
    assert!(given.starts_with(&statuses), "{given:?}");
    let diagnostics = client.diagnostics();
    assert!(
        diagnostics.iter().any(|diagnostic| matches!(diagnostic, Diagnostic::EndpointFailing { .. })),
        "{diagnostics:?}"
    );
    assert!(
        diagnostics.iter().any(|diagnostic| matches!(diagnostic, Diagnostic::EndpointRecovered { .. })),
        "{diagnostics:?}"
    );
}

#[test]
fn a_login_page_instead_of_posthog_is_no_delivery() {
    let fixture = Fixture::new();
    fixture.sink.script([Answer::status(200).body("<html>Please log in</html>").discarding()]);
    let client = fixture.client();
    let uuid = take(&client, "tick");
    fixture.must_have_taken(&[uuid]);
    close_empty(&client);
    let portal = |found: &Diagnostic| matches!(found, Diagnostic::NotPostHog { status: 200, snippet, .. } if snippet.contains("log in"));
    assert!(client.diagnostics().iter().any(portal), "{:?}", client.diagnostics());
}

#[test]
fn a_retry_after_of_a_year_waits_for_an_hour_at_most() {
    const YEAR: u64 = 365 * 24 * 3600;
    let fixture = Fixture::new();
    fixture.sink.script([Answer::status(503).retry_after(YEAR)]);
    let client = fixture.client();
    take(&client, "tick");
    assert!(fixture.sink.wait_for(|state| state.requests().len() == 1, PATIENCE));
    let within_the_hour = |wait: Duration| wait > Duration::from_secs(3000) && wait <= Duration::from_secs(3602);
    eventually(
        "the wait is shown",
        || matches!(client.stats().delivery, DeliveryPhase::Backoff { retry_in } if within_the_hour(retry_in)),
    );
    let is_held = |client: &Client| match client.flush().wait(PATIENCE).unwrap().endpoint {
        EndpointStatus::Down { retry_in: Some(retry_in), .. } => within_the_hour(retry_in),
        _ => false,
    };
    assert!(is_held(&client));
    assert_eq!(client.close().wait(PATIENCE).unwrap().remaining, 1);
    drop(client);
    let client = fixture.client();
    assert!(is_held(&client), "{:?}", client.flush().wait(PATIENCE));
    drop(client);
    assert_eq!(fixture.sink.requests().len(), 1);
    // A lower cap ends the wait sooner, also for a deadline from an earlier process.
    let client = Client::new(fixture.config().retry_after_cap(Duration::from_secs(1))).unwrap();
    assert!(fixture.sink.wait_for(|state| state.unique() == 1, PATIENCE));
    close_empty(&client);
}

#[test]
fn no_request_is_sent_before_retry_after_has_passed() {
    let fixture = Fixture::new();
    fixture.sink.script([Answer::status(429).retry_after(1)]);
    let client = fixture.client();
    let uuid = take(&client, "tick");
    fixture.must_have_taken(&[uuid]);
    let requests = fixture.sink.requests();
    assert!(requests[1].arrived - requests[0].arrived >= Duration::from_secs(1));
    close_empty(&client);
}

#[test]
fn an_outage_loses_no_event_and_duplicates_none() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let mut uuids: Vec<Uuid> = (0..50).map(|_| take(&client, "before")).collect();
    fixture.must_have_taken(&uuids);
    fixture.sink.stop();
    uuids.extend((0..1000).map(|_| take(&client, "during")));
    eventually("the outage is noticed", || client.stats().consecutive_failures > 0);
    fixture.sink.resume();
    uuids.extend((0..50).map(|_| take(&client, "after")));
    let _ = client.flush().wait(PATIENCE);
    fixture.must_have_taken(&uuids);
    close_empty(&client);
    assert_eq!(client.stats().delivered, uuids.len() as u64);
}

#[test]
fn a_quota_that_posthog_enforces_is_reported() {
    let fixture = Fixture::new();
    fixture.sink.script([Answer::ok().body(r#"{"status":1,"quota_limited":["events","recordings"]}"#)]);
    let client = fixture.client();
    take(&client, "tick");
    let limited = Diagnostic::QuotaLimited { kinds: vec!["events".into(), "recordings".into()] };
    eventually("the diagnostic", || client.diagnostics().contains(&limited));
    close_empty(&client);
}

#[test]
fn large_events_travel_in_requests_within_the_limit() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = Client::new(fixture.config().max_batch_bytes(64 * 1024).compression(Compression::None)).unwrap();
    let filling = "x".repeat(8 * 1024);
    let uuids: Vec<Uuid> =
        (0..40).map(|_| accepted(&client.capture(event("large").prop("filling", &filling)))).collect();
    fixture.sink.resume();
    let _ = client.flush().wait(PATIENCE);
    fixture.must_have_taken(&uuids);
    close_empty(&client);
    let largest = fixture.sink.inspect(|state| state.requests().iter().map(|request| request.wire_bytes).max());
    assert!(largest.unwrap() <= 80 * 1024, "{largest:?}");
}
