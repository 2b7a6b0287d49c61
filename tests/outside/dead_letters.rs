//! Dead letters that are queued again or discarded.

use std::time::Duration;

use posthog::reports::DeadLetterError;
use posthog::settings::CaptureProtocol;
use posthog::{Client, Config, Stats};
use sink::Answer;
use uuid::Uuid;

use crate::fixture::{Fixture, PATIENCE, accepted, close_empty, event, eventually, take};

fn config(fixture: &Fixture) -> Config {
    fixture.config().protocol(CaptureProtocol::V1).flush_interval(Duration::from_millis(300))
}

/// Events that PostHog rejects for good, each with a result of its own.
fn refused(fixture: &Fixture, client: &Client, count: usize) -> Vec<Uuid> {
    fixture.sink.script([Answer::results(vec!["drop:a mistake"; count])]);
    let uuids = (0..count).map(|n| accepted(&client.capture(event("tick").prop("n", n)))).collect();
    eventually("they are dead letters", || client.dead_letters(99).len() == count);
    assert_eq!(client.stats().queued_events, 0);
    uuids
}

/// `accepted`, `delivered` and `dead_lettered`; checks that the counters balance.
fn counts(stats: &Stats) -> (u64, u64, u64) {
    assert_eq!(stats.imbalance(), 0, "{stats:?}");
    (stats.accepted, stats.delivered, stats.dead_lettered)
}

#[test]
fn dead_letters_are_retried_with_their_uuids() {
    let fixture = Fixture::new();
    let client = Client::new(config(&fixture)).unwrap();
    let uuids = refused(&fixture, &client, 3);
    let before = client.dead_letters(9);
    fixture.sink.script([Answer::results(["ok", "drop:no mistake", "ok"])]);
    assert_eq!(client.retry_dead_letters().wait(PATIENCE), Ok(3));
    eventually("they are sent", || client.stats().queued_events == 0);
    eventually("the dead letter is written", || client.dead_letters(9).len() == 1);
    let again = client.dead_letters(9).remove(0);
    assert_eq!((&again.event, &*again.reason), (&before[1].event, "no mistake"));
    assert_eq!(counts(&client.stats()), (6, 2, 4));
    let requests = fixture.sink.requests();
    assert_eq!((requests.len(), &requests[1].uuids), (2, &uuids));
    assert_eq!(client.retry_dead_letters().wait(PATIENCE), Ok(1));
    fixture.must_have_taken(&uuids);
    close_empty(&client);
    assert_eq!(counts(&client.stats()), (7, 3, 4));
}

#[test]
fn discarded_dead_letters_of_both_lanes_stay_counted() {
    let fixture = Fixture::new();
    let client = Client::new(config(&fixture).open_ai_queue(true)).unwrap();
    refused(&fixture, &client, 2);
    assert_eq!(client.discard_dead_letters().wait(PATIENCE), Ok(2));
    assert!(client.dead_letters(9).is_empty());
    assert_eq!(counts(&client.stats()), (2, 0, 2));
    assert_eq!(client.discard_dead_letters().wait(PATIENCE), Ok(0));
    assert_eq!(client.retry_dead_letters().wait(PATIENCE), Ok(0));
    close_empty(&client);
    drop(client);
    let next = Client::new(config(&fixture)).unwrap();
    assert!(next.dead_letters(9).is_empty());
    assert_eq!(next.stats().dead_lettered, 2);
}

#[test]
fn as_many_dead_letters_are_queued_again_as_there_is_room_for() {
    let fixture = Fixture::new();
    let client = Client::new(config(&fixture).max_queue_events(10)).unwrap();
    refused(&fixture, &client, 3);
    // When a flush resolves, the space of acked events can be used again.
    client.flush().wait(PATIENCE).unwrap();
    fixture.sink.stop();
    for _ in 0..9 {
        take(&client, "in the way");
    }
    assert_eq!(client.retry_dead_letters().wait(PATIENCE), Ok(1));
    assert_eq!((client.stats().queued_events, client.dead_letters(9).len()), (10, 2));
    fixture.sink.resume();
    eventually("everything is delivered", || client.flush().wait(PATIENCE).is_ok_and(|report| report.remaining == 0));
    client.flush().wait(PATIENCE).unwrap();
    assert_eq!(client.retry_dead_letters().wait(PATIENCE), Ok(2));
    eventually("all are sent", || client.stats().queued_events == 0);
    close_empty(&client);
    assert_eq!(counts(&client.stats()), (15, 12, 3));
}

#[test]
fn retried_dead_letters_survive_the_process_in_the_queue() {
    let fixture = Fixture::new();
    let client = Client::new(config(&fixture)).unwrap();
    let uuids = refused(&fixture, &client, 2);
    fixture.sink.stop();
    assert_eq!(client.retry_dead_letters().wait(PATIENCE), Ok(2));
    assert!(client.dead_letters(9).is_empty());
    drop(client);
    fixture.sink.resume();
    let next = Client::new(config(&fixture)).unwrap();
    fixture.must_have_taken(&uuids);
    close_empty(&next);
}

#[test]
fn a_closed_client_does_nothing_about_dead_letters_and_says_so() {
    let fixture = Fixture::new();
    let client = Client::new(config(&fixture)).unwrap();
    refused(&fixture, &client, 1);
    client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    assert_eq!(client.retry_dead_letters().wait(PATIENCE), Err(DeadLetterError::Closed));
    assert_eq!(client.discard_dead_letters().wait(PATIENCE), Err(DeadLetterError::Closed));
    let disabled = Client::new(Config::disabled()).unwrap();
    assert_eq!(disabled.discard_dead_letters().wait(PATIENCE), Ok(0));
}

#[test]
fn dead_letters_of_ai_events_are_found_by_the_next_process() {
    let fixture = Fixture::new();
    fixture.sink.refuse_if(|event| event["event"] == "bad", 400, "failed to parse request: bad");
    let client = fixture.client();
    for name in ["good", "bad"] {
        accepted(&client.capture_ai(event(name)));
    }
    eventually("it is a dead letter", || {
        accepted(&client.capture_ai(event("good")));
        let _ = client.flush().wait(PATIENCE);
        client.dead_letters(9).len() == 1
    });
    close_empty(&client);
    drop(client);
    fixture.sink.refuse_none();
    let next = fixture.client();
    assert!(next.stats().ai.is_none(), "nothing waits to be sent");
    assert_eq!(next.dead_letters(9).len(), 1);
    assert_eq!(next.retry_dead_letters().wait(PATIENCE), Ok(1));
    eventually("it is sent", || fixture.names().contains(&"bad".to_owned()));
    close_empty(&next);
    drop(next);
    let third = Client::new(fixture.config().opted_out(true)).unwrap();
    assert_eq!(third.discard_dead_letters().wait(PATIENCE), Ok(0));
    drop(third);
}
