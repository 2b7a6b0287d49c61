//! Requests that are rejected: for a bad event, for their size, for the key or the quota, or by a foreign server.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use posthog::Client;
use posthog::diagnostics::Diagnostic;
use posthog::reports::{DeliveryOutcome, EndpointStatus};
use posthog::stats::DeliveryPhase;
use sink::Answer;
use uuid::Uuid;

use crate::fixture::{Fixture, PATIENCE, accepted, close_empty, event, eventually, take};

const WORDS: &str = "failed to hydrate events: the property is poison";

fn captured(client: &Client, count: usize) -> Vec<Uuid> {
    (0..count).map(|number| accepted(&client.capture(event("fine").prop("number", number)))).collect()
}

/// Flushes until the queue is empty.
fn drain(client: &Client) {
    let began = Instant::now();
    loop {
        let report = client.flush().wait(PATIENCE);
        let stats = client.stats();
        if stats.queued_events == 0 {
            return;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "the queue does not drain: {report:?}, {stats:?}, {:?}",
            client.diagnostics()
        );
    }
}

#[test]
fn one_bad_event_is_dead_lettered_and_the_others_delivered() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    fixture.sink.refuse_if(|event| event["event"] == "poison", 400, WORDS);
    let notices = Arc::new(Mutex::new((Vec::new(), 0)));
    let seen = Arc::clone(&notices);
    let client = Client::new(fixture.config().on_delivery(move |delivery| {
        let mut seen = seen.lock().unwrap();
        match delivery.outcome {
            DeliveryOutcome::DeadLettered { status, reason } => {
                seen.0.push((delivery.uuids.to_vec(), status, reason.to_owned()))
            }
            _ => seen.1 += delivery.uuids.len(),
        }
    }))
    .unwrap();
    let mut uuids = captured(&client, 60);
    let poison = take(&client, "poison");
    uuids.extend(captured(&client, 60));
    fixture.sink.resume();
    drain(&client);
    fixture.must_have_taken(&uuids);
    let stats = client.stats();
    assert_eq!((stats.delivered, stats.dead_lettered), (120, 1), "{stats:?}");
    let (dead_lettered, delivered) = notices.lock().unwrap().clone();
    assert_eq!(dead_lettered, [(vec![poison], 400, WORDS.to_owned())]);
    assert_eq!(delivered, 120);
    let diagnostic = Diagnostic::DeadLettered { uuid: poison, status: 400, reason: WORDS.into() };
    assert!(client.diagnostics().contains(&diagnostic), "{:?}", client.diagnostics());
    close_empty(&client);
}

#[test]
fn a_request_too_large_is_split_until_it_fits() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    fixture.sink.size_limit(64 * 1024);
    let client = fixture.client();
    let filling = |letter: &str| letter.repeat(8 * 1024);
    let uuids: Vec<Uuid> = (0..30).map(|_| accepted(&client.capture(event("large").prop("x", filling("x"))))).collect();
    let giant =
        accepted(&client.capture(event("giant").prop("x", "y".repeat(60_000)).prop("z", "\u{1}".repeat(2_000))));
    fixture.sink.resume();
    drain(&client);
    fixture.must_have_taken(&uuids);
    let stats = client.stats();
    assert_eq!((stats.delivered, stats.dead_lettered), (30, 1), "{stats:?}");
    let dead_lettered =
        |found: &Diagnostic| matches!(found, Diagnostic::DeadLettered { uuid, status: 413, .. } if *uuid == giant);
    assert!(client.diagnostics().iter().any(dead_lettered), "{:?}", client.diagnostics());
    close_empty(&client);
}

fn must_dead_letter_nothing(answer: Answer) {
    let fixture = Fixture::new();
    fixture.sink.default_answer(answer.discarding());
    let client = fixture.client();
    let uuids = captured(&client, 90);
    assert!(fixture.sink.wait_for(|state| state.requests().len() >= 3, PATIENCE));
    eventually("the failure is reported", || client.stats().last_error.is_some());
    let stats = client.stats();
    assert_eq!((stats.dead_lettered, stats.queued_events), (0, 90), "{stats:?}");
    // Quarantine is in memory only and lasts half a minute: the next process tries at once.
    assert_eq!(client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap().remaining, 90);
    drop(client);
    fixture.sink.default_answer(Answer::ok());
    let client = fixture.client();
    drain(&client);
    fixture.must_have_taken(&uuids);
    assert_eq!((client.stats().dead_lettered, client.stats().delivered), (0, 90));
    close_empty(&client);
}

#[test]
fn a_proxy_that_answers_400_to_everything_makes_no_dead_letters() {
    must_dead_letter_nothing(Answer::status(400).body("<html><h1>Bad Request</h1></html>"));
}

#[test]
fn a_server_that_rejects_everything_dead_letters_nothing() {
    must_dead_letter_nothing(Answer::status(400).body(WORDS));
}

#[test]
fn a_foreign_server_with_a_small_limit_makes_no_dead_letters() {
    must_dead_letter_nothing(Answer::status(413).body("<html>Request Entity Too Large</html>"));
}

fn pauses_and_resumes(status: u16, body: &str) {
    let fixture = Fixture::new();
    fixture.sink.default_answer(Answer::status(status).body(body));
    let client = fixture.client();
    let uuids = captured(&client, 90);
    let paused =
        |client: &Client| matches!(client.stats().delivery, DeliveryPhase::Paused { status: s, .. } if s == status);
    eventually("sending pauses", || paused(&client));
    eventually("flushes probe", || {
        let endpoint = client.flush().wait(PATIENCE).unwrap().endpoint;
        assert!(matches!(endpoint, EndpointStatus::Paused { status: s, .. } if s == status), "{endpoint:?}");
        fixture.sink.inspect(|state| state.requests().len() >= 3)
    });
    assert!(paused(&client));
    // The first request may have any size; the probes after it are small.
    let probes = fixture.sink.inspect(|state| state.requests()[1..].iter().map(|r| r.event_count).collect::<Vec<_>>());
    assert!(probes.iter().all(|events| *events <= 10), "{probes:?}");
    let paused =
        client.diagnostics().into_iter().filter(|diagnostic| matches!(diagnostic, Diagnostic::Paused { .. })).count();
    assert_eq!(paused, 1, "reported once per pause");
    assert_eq!((client.stats().dead_lettered, client.stats().queued_events), (0, 90));
    fixture.sink.default_answer(Answer::ok());
    drain(&client);
    fixture.must_have_taken(&uuids);
    let has_recovered = |diagnostic: &Diagnostic| matches!(diagnostic, Diagnostic::EndpointRecovered { .. });
    assert!(client.diagnostics().iter().any(has_recovered));
    close_empty(&client);
}

#[test]
fn a_revoked_key_pauses_until_it_is_good_again() {
    pauses_and_resumes(401, r#"{"type":"authentication_error","code":"invalid_api_key","detail":"wrong key"}"#);
}

#[test]
fn an_exhausted_quota_pauses_until_there_is_one_again() {
    pauses_and_resumes(402, "quota exceeded");
}

#[test]
fn a_proxy_with_403_pauses_and_dead_letters_nothing() {
    pauses_and_resumes(403, "<html>Forbidden by policy</html>");
}

#[test]
fn a_bad_event_alone_in_the_queue_waits_for_evidence() {
    let fixture = Fixture::new();
    fixture.sink.refuse_if(|event| event["event"] == "poison", 400, WORDS);
    let client = fixture.client();
    let poison = take(&client, "poison");
    let suspected =
        |diagnostic: &Diagnostic| matches!(diagnostic, Diagnostic::Quarantined { uuid, .. } if *uuid == poison);
    eventually("it is quarantined", || client.diagnostics().iter().any(suspected));
    assert_eq!((client.stats().dead_lettered, client.stats().queued_events), (0, 1));
    let fine = captured(&client, 1);
    eventually("another is accepted and it is dead-lettered", || {
        let _ = client.flush().wait(PATIENCE);
        client.stats().dead_lettered == 1
    });
    fixture.must_have_taken(&fine);
    drain(&client);
    assert!(client.shutdown(Duration::from_secs(5)).wait(PATIENCE).is_ok());
}
