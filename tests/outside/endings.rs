//! The end of flushes and clients: what a shutdown still tries, and that what a report says is already true.

use std::time::{Duration, Instant};

use posthog::Client;
use posthog::diagnostics::Diagnostic;
use posthog::reports::EndpointStatus;
use posthog::stats::DeliveryPhase;
use sink::Answer;

use crate::fixture::{Fixture, PATIENCE, accepted, close_empty, event, eventually, take};

/// Far less than a backoff or a cooldown takes.
const AT_ONCE: Duration = Duration::from_secs(4);

fn after_a_failure(fixture: &Fixture) -> Client {
    let client = Client::new(fixture.config().retry_backoff(Duration::from_secs(30), Duration::from_secs(30))).unwrap();
    take(&client, "tick");
    eventually("an attempt fails", || client.stats().failed_attempts == 1);
    client
}

fn take_many(client: &Client, count: usize, name: &str) {
    for _ in 0..count {
        take(client, name);
    }
}

#[test]
fn a_shutdown_after_a_failure_delivers_to_a_recovered_server() {
    for is_there in [true, false] {
        let fixture = Fixture::new();
        match is_there {
            true => fixture.sink.script([Answer::status(503)]),
            false => fixture.sink.stop(),
        }
        let client = after_a_failure(&fixture);
        fixture.sink.resume();
        let began = Instant::now();
        let report = client.shutdown(Duration::from_secs(20)).wait(PATIENCE).unwrap();
        assert_eq!((report.delivered, report.remaining, report.endpoint), (1, 0, EndpointStatus::Up));
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    }
}

#[test]
fn a_shutdown_without_a_server_ends_early_and_says_why() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = Client::new(fixture.config()).unwrap();
    take(&client, "tick");
    let began = Instant::now();
    let report = client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    assert!(
        matches!(&report.endpoint, EndpointStatus::Down { reason, .. } if reason.contains("connect")),
        "{report:?}"
    );
    assert_eq!((report.delivered, report.remaining, report.persisted), (0, 1, true));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[test]
fn a_shutdown_does_not_count_what_a_flush_has_delivered() {
    let fixture = Fixture::new();
    let client = fixture.client();
    take_many(&client, 50, "tick");
    assert_eq!(client.flush().wait(PATIENCE).unwrap().delivered, 50);
    let report = client.close().wait(PATIENCE).unwrap();
    assert_eq!((report.delivered, report.remaining, report.endpoint), (0, 0, EndpointStatus::Up));
}

#[test]
fn an_endpoint_that_refuses_everything_does_not_look_healthy() {
    for answer in [Answer::status(400).body(r#"{"detail":"nope"}"#), Answer::status(413).body("<html>413</html>")] {
        let fixture = Fixture::new();
        fixture.sink.default_answer(answer.discarding());
        let client = fixture.client();
        take_many(&client, 3, "tick");
        let report = client.flush().wait(PATIENCE).unwrap();
        assert!(
            matches!(&report.endpoint, EndpointStatus::Refusing { reason } if reason.contains("HTTP status 4")),
            "{report:?}"
        );
        assert_eq!((report.delivered, report.remaining), (0, 3));
        let stats = client.stats();
        assert!(matches!(stats.delivery, DeliveryPhase::Quarantined { .. }) && stats.last_error.is_some(), "{stats:?}");
        assert_eq!((stats.quarantined, stats.queued_events), (3, 3));
        let report = client.close().wait(PATIENCE).unwrap();
        assert!(matches!(report.endpoint, EndpointStatus::Refusing { .. }) && report.remaining == 3, "{report:?}");
    }
}

#[test]
fn acks_of_a_flush_are_committed_when_it_resolves() {
    let fixture = Fixture::new();
    fixture.sink.refuse_if(|event| event["event"] == "poison", 400, "failed to hydrate events: poison");
    let client = Client::new(fixture.config().flush_interval(Duration::from_secs(600))).unwrap();
    take_many(&client, 5, "fine");
    take(&client, "poison");
    let report = client.flush().wait(PATIENCE).unwrap();
    assert_eq!((report.delivered, report.dead_lettered, report.remaining), (5, 1, 0));
    assert_eq!(client.dead_letters(10).len(), 1);
    let stats = client.stats();
    assert_eq!((stats.queued_bytes, stats.oldest_age, stats.delivery), (0, None, DeliveryPhase::Idle), "{stats:?}");
    close_empty(&client);
}

#[test]
fn the_queue_has_space_again_when_a_flush_resolves() {
    let fixture = Fixture::new();
    let config = fixture.config().max_queue_events(10).flush_interval(Duration::from_secs(600)).flush_at(1000);
    let client = Client::new(config).unwrap();
    for _ in 0..5 {
        eventually("the queue is full", || !client.capture(event("tick")).is_accepted());
        assert_eq!(client.flush().wait(PATIENCE).unwrap().remaining, 0);
        assert_eq!(client.stats().rejecting, None);
        accepted(&client.capture(event("next")));
        client.flush().wait(PATIENCE).unwrap();
    }
    close_empty(&client);
}

#[test]
fn statistics_agree_with_the_endpoint_status_of_a_flush() {
    for _ in 0..20 {
        let fixture = Fixture::new();
        fixture.sink.default_answer(Answer::status(401).body("API key is not valid: test"));
        let client = fixture.client();
        take(&client, "tick");
        let report = client.flush().wait(PATIENCE).unwrap();
        assert!(
            matches!(&report.endpoint, EndpointStatus::Paused { status: 401, reason, .. } if reason.contains("not valid")),
            "{report:?}"
        );
        assert!(matches!(client.stats().delivery, DeliveryPhase::Paused { status: 401, .. }), "{:?}", client.stats());
        client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    }
}

#[test]
fn a_refusal_says_who_refused_and_what_to_check() {
    for (status, body, expected) in [
        (403, "<html>Cloudflare</html>", "its response is not PostHog's"),
        (404, "<html>no such page</html>", "check Config::host"),
        (200, "<html>welcome</html>", "check Config::host"),
    ] {
        let fixture = Fixture::new();
        fixture.sink.default_answer(Answer::status(status).body(body).discarding());
        let client = fixture.client();
        take(&client, "tick");
        let said = match client.flush().wait(PATIENCE).unwrap().endpoint {
            EndpointStatus::Down { reason, .. } | EndpointStatus::Paused { reason, .. } => reason,
            other => panic!("{other:?}"),
        };
        assert!(said.contains("check Config::host") && said.contains(body), "{said}");
        let reported: Vec<String> = client.diagnostics().iter().map(Diagnostic::to_string).collect();
        assert!(
            reported.iter().any(|reported| reported.contains(expected) && !reported.contains("PostHog rejects")),
            "{reported:?}"
        );
        client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    }
}
