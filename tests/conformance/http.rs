//! The way to the server (HTTP), as far as it is about capturing.

use posthog::{Client, Compression, DiagnosticCategory};
use sink::Answer;

use crate::scene::{Scene, has_recorded};
use crate::stage::{KEY, PATIENCE, Stage, accepted, event, take};

#[test]
fn http_01_a_request_reaches_the_endpoint_with_the_token_and_the_event_as_json() {
    let scene = Scene::new();
    let uuid = take(&scene.client, "tick");
    scene.client.flush().wait(PATIENCE).unwrap();
    let request = scene.stage.sink.requests().remove(0);
    assert_eq!((request.method.as_str(), request.path.as_str(), request.api_key.as_str()), ("POST", "/batch/", KEY));
    assert_eq!((&request.uuids, request.header("content-type")), (&vec![uuid], Some("application/json")));
}

#[test]
fn http_02_a_success_empties_the_queue() {
    let scene = Scene::new();
    take(&scene.client, "tick");
    let report = scene.client.flush().wait(PATIENCE).unwrap();
    assert_eq!((report.remaining, scene.client.stats().queued_events), (0, 0));
}

#[test]
fn http_03_a_503_throws_nothing_is_recorded_and_the_event_stays() {
    let scene = Scene::new();
    scene.stage.sink.default_answer(Answer::status(503));
    take(&scene.client, "tick");
    assert_eq!(scene.client.flush().wait(PATIENCE).unwrap().remaining, 1);
    assert!(has_recorded(&scene.client, DiagnosticCategory::Delivery));
}

#[test]
fn http_04_hosts_are_joined_safely_and_requests_say_who_they_are_from() {
    for (host_end, compression) in [("", Compression::Gzip), ("/", Compression::None), ("//", Compression::Gzip)] {
        let stage = Stage::new();
        let config = stage.config().host(format!("{}{host_end}", stage.host)).compression(compression);
        let client = Client::new(config).unwrap();
        accepted(&client.capture(event("tick").prop("text", "x".repeat(2000))));
        assert_eq!(client.flush().wait(PATIENCE).unwrap().remaining, 0);
        let request = stage.sink.requests().remove(0);
        assert_eq!((request.path.as_str(), request.status), ("/batch/", 200));
        let agent = format!("posthog-durable/{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(request.header("user-agent"), Some(agent.as_str()));
        let is_gzip = compression == Compression::Gzip;
        assert_eq!(request.header("content-encoding"), is_gzip.then_some("gzip"));
        assert_eq!(request.wire_bytes < 1000, is_gzip);
    }
}
