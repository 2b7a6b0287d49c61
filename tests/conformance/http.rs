//! Requests to the server (HTTP), for captures.

use posthog::Client;
use posthog::diagnostics::DiagnosticCategory;
use posthog::settings::Compression;
use sink::Answer;

use crate::fixture::{Fixture, KEY, PATIENCE, accepted, event, take};
use crate::scenario::{Scenario, has_recorded};

#[test]
fn http_01_a_request_has_the_token_and_the_event_as_json() {
    let scenario = Scenario::new();
    let uuid = take(&scenario.client, "tick");
    scenario.client.flush().wait(PATIENCE).unwrap();
    let request = scenario.fixture.sink.requests().remove(0);
    assert_eq!((request.method.as_str(), request.path.as_str(), request.api_key.as_str()), ("POST", "/batch/", KEY));
    assert_eq!((&request.uuids, request.header("content-type")), (&vec![uuid], Some("application/json")));
}

#[test]
fn http_02_a_success_empties_the_queue() {
    let scenario = Scenario::new();
    take(&scenario.client, "tick");
    let report = scenario.client.flush().wait(PATIENCE).unwrap();
    assert_eq!((report.remaining, scenario.client.stats().queued_events), (0, 0));
}

#[test]
fn http_03_a_503_is_no_error_is_recorded_and_keeps_the_event() {
    let scenario = Scenario::new();
    scenario.fixture.sink.default_answer(Answer::status(503));
    take(&scenario.client, "tick");
    assert_eq!(scenario.client.flush().wait(PATIENCE).unwrap().remaining, 1);
    assert!(has_recorded(&scenario.client, DiagnosticCategory::Delivery));
}

#[test]
fn http_04_hosts_are_joined_safely_and_a_user_agent_is_sent() {
    for (host_end, compression) in [("", Compression::Gzip), ("/", Compression::None), ("//", Compression::Gzip)] {
        let fixture = Fixture::new();
        let config = fixture.config().host(format!("{}{host_end}", fixture.host)).compression(compression);
        let client = Client::new(config).unwrap();
        accepted(&client.capture(event("tick").prop("text", "x".repeat(2000))));
        assert_eq!(client.flush().wait(PATIENCE).unwrap().remaining, 0);
        let request = fixture.sink.requests().remove(0);
        assert_eq!((request.path.as_str(), request.status), ("/batch/", 200));
        let agent = format!("posthog-durable/{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(request.header("user-agent"), Some(agent.as_str()));
        let is_gzip = compression == Compression::Gzip;
        assert_eq!(request.header("content-encoding"), is_gzip.then_some("gzip"));
        assert_eq!(request.wire_bytes < 1000, is_gzip);
    }
}
