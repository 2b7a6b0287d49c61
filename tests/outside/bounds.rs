//! The bounds of the queue in events and in bytes on the disk: they are exact, and all of the space can be used.

use std::os::unix::fs::MetadataExt;

use posthog::settings::OverflowPolicy;
use posthog::{Client, Config, DropReason, Event, Outcome};

use crate::fixture::{Fixture, PATIENCE, assert_balanced, close_empty, event, eventually, take};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const FULL: Outcome = Outcome::Dropped(DropReason::QueueFull);

/// A server that is down, and a configuration that only sets bounds.
fn down() -> Fixture {
    let fixture = Fixture::new();
    fixture.sink.stop();
    fixture
}

fn plain(fixture: &Fixture) -> Config {
    fixture.config().max_event_bytes(1024 * 1024).journal_bytes(8 * 1024 * 1024)
}

fn of_size(bytes: usize) -> Event {
    event("filling").prop("filling", "x".repeat(bytes))
}

/// Bytes that the store's file takes on the disk.
fn store_bytes(client: &Client) -> u64 {
    let path = client.stats().dir.unwrap().join("queue.redb");
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Captures until events are dropped although everything is checkpointed. Returns the number accepted and the size of
/// the store's file.
fn fill(client: &Client, event_bytes: usize) -> (u64, u64) {
    let (mut accepted, mut in_vain, mut peak) = (0, 0, 0);
    eventually("nothing more is taken", || {
        let before = accepted;
        while client.capture(of_size(event_bytes)).is_accepted() {
            accepted += 1;
        }
        let _ = client.flush().wait(PATIENCE);
        peak = peak.max(store_bytes(client));
        in_vain = if accepted == before { in_vain + 1 } else { 0 };
        in_vain >= 10
    });
    (accepted, peak)
}

#[test]
fn a_bound_in_events_is_exact_however_fast_they_come() {
    let fixture = down();
    let client = Client::new(plain(&fixture).max_queue_events(100)).unwrap();
    let outcomes: Vec<_> = (0..20_000).map(|_| client.capture(event("filling")).outcome()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Accepted).count(), 100);
    assert!(outcomes[100..].iter().all(|outcome| *outcome == FULL));
    let _ = client.flush().wait(PATIENCE);
    assert_eq!((client.capture(event("filling")).outcome(), client.stats().queued_events), (FULL, 100));
    drop(client);
    // Events of an earlier process count from the first capture on.
    let client = Client::new(plain(&fixture).max_queue_events(101)).unwrap();
    take(&client, "filling");
    assert_eq!(client.capture(event("filling")).outcome(), FULL);
    fixture.sink.resume();
    eventually("there is room again", || client.capture(event("filling")).is_accepted());
    close_empty(&client);
}

#[test]
fn the_oldest_make_just_the_room_that_is_needed() {
    let fixture = down();
    let config = plain(&fixture).max_queue_events(100).overflow(OverflowPolicy::DropOldest);
    let client = Client::new(config).unwrap();
    for number in 0..101 {
        eventually("it is taken", || client.capture(event("filling").prop("number", number)).is_accepted());
    }
    eventually("the queue is within its bound", || {
        let _ = client.flush().wait(PATIENCE);
        client.stats().queued_events <= 100
    });
    let stats = client.stats();
    assert!((95..=100).contains(&stats.queued_events) && stats.evicted <= 6, "{stats:?}");
    fixture.sink.resume();
    eventually("it is delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
    close_empty(&client);
    let numbers: Vec<_> =
        fixture.sink.events().iter().filter_map(|event| event.properties["number"].as_u64()).collect();
    assert!((6..101).all(|number| numbers.contains(&number)), "the newest stay: {numbers:?}");
}

#[test]
fn every_bound_in_bytes_can_be_used_and_holds_for_the_file() {
    for (bound, event_bytes) in [(MIB, 1000), (2 * MIB, 1000), (3 * MIB, 20_000), (4 * MIB, 1000), (16 * MIB, 5000)] {
        let fixture = down();
        let client = Client::new(plain(&fixture).max_queue_bytes(bound)).unwrap();
        let (accepted, peak) = fill(&client, event_bytes);
        let used = accepted * event_bytes as u64;
        assert!(used >= bound / 2, "{used} of {bound} bytes were used");
        assert!(peak <= bound + bound / 8 + MIB, "the file took {peak} of {bound} bytes");
        let stats = client.stats();
        assert_eq!((stats.queued_events, stats.evicted), (accepted, 0));
        fixture.sink.resume();
        eventually("there is room again", || client.capture(of_size(event_bytes)).is_accepted());
        close_empty(&client);
    }
}

#[test]
fn a_bound_in_bytes_holds_and_is_used_when_the_oldest_go() {
    for (bound, event_bytes) in [(2 * MIB, 1000), (8 * MIB, 5000)] {
        let fixture = down();
        let config = plain(&fixture).max_queue_bytes(bound).overflow(OverflowPolicy::DropOldest);
        let client = Client::new(config).unwrap();
        let (mut peak, mut accepted) = (0, 0);
        eventually("three times the bound was taken", || {
            for _ in 0..100 {
                accepted += u64::from(client.capture(of_size(event_bytes)).is_accepted());
            }
            peak = peak.max(store_bytes(&client));
            accepted * event_bytes as u64 >= 3 * bound
        });
        eventually("it is within its bound", || {
            let _ = client.flush().wait(PATIENCE);
            client.stats().queued_bytes <= bound
        });
        assert!(client.stats().queued_bytes >= bound / 10 * 9, "{:?}", client.stats());
        // On top comes what is checkpointed at once: at most one arena.
        let at_once = bound.min(8 * MIB);
        assert!(peak <= bound + bound / 8 + at_once + MIB, "the file took {peak} of {bound} bytes");
        assert_balanced(&client);
    }
}
