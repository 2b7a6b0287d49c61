//! A queue at its bounds: the overflow policies.

use std::time::{Duration, Instant};

use posthog::diagnostics::Diagnostic;
use posthog::settings::OverflowPolicy;
use posthog::{Client, Config, DropReason, Event, Outcome};
use uuid::Uuid;

use crate::fixture::{Fixture, PATIENCE, close_empty, event, eventually, take};

const FULL: Outcome = Outcome::Dropped(DropReason::QueueFull);

fn bounded(fixture: &Fixture, overflow: OverflowPolicy) -> Config {
    fixture.config().max_queue_events(100).overflow(overflow)
}

/// Captures and flushes until an event is dropped. Returns the accepted events.
fn fill(client: &Client) -> Vec<Uuid> {
    let mut taken = Vec::new();
    eventually("the queue is full", || {
        let receipt = client.capture(event("filling"));
        taken.extend(receipt.uuid());
        let _ = client.flush().wait(PATIENCE);
        receipt.outcome() == FULL
    });
    taken
}

#[test]
fn the_newest_is_dropped_by_default_and_exceptions_last() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = Client::new(bounded(&fixture, OverflowPolicy::default())).unwrap();
    let mut taken = fill(&client);
    assert_eq!(taken.len(), 100);
    for name in ["$exception", "$identify", "$create_alias", "$groupidentify", "$set"] {
        taken.push(take(&client, name));
        let _ = client.flush().wait(PATIENCE);
    }
    assert_eq!(client.capture(event("filling")).outcome(), FULL);
    // They have an eighth more, and are then dropped too.
    eventually("no exception is taken either", || {
        let receipt = client.capture(event("$exception"));
        taken.extend(receipt.uuid());
        let _ = client.flush().wait(PATIENCE);
        receipt.outcome() == FULL
    });
    assert!((110..=115).contains(&taken.len()), "{}", taken.len());
    let stats = client.stats();
    assert_eq!(stats.queued_events, taken.len() as u64);
    assert!(stats.dropped.iter().all(|(reason, _)| *reason == DropReason::QueueFull), "{:?}", stats.dropped);
    let is_named =
        |diagnostic: &Diagnostic| matches!(diagnostic, Diagnostic::Dropped { event, .. } if event == "filling");
    assert!(client.diagnostics().iter().any(is_named), "{:?}", client.diagnostics());
    fixture.sink.resume();
    let _ = client.flush().wait(PATIENCE);
    fixture.must_have_taken(&taken);
    eventually("there is room again", || client.capture(event("filling")).is_accepted());
    close_empty(&client);
}

#[test]
fn the_oldest_make_room_and_exceptions_go_last() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = Client::new(bounded(&fixture, OverflowPolicy::DropOldest)).unwrap();
    let dear = [take(&client, "$exception"), take(&client, "$identify")];
    for number in 0..400 {
        // Dropped only while all queued events are in flight.
        eventually("it is taken", || client.capture(event("filling").prop("number", number)).is_accepted());
        if number % 20 == 0 {
            let _ = client.flush().wait(PATIENCE);
        }
    }
    let _ = client.flush().wait(PATIENCE);
    let stats = client.stats();
    assert!(stats.evicted >= 250 && stats.queued_events <= 125, "{stats:?}");
    assert_eq!((stats.imbalance(), stats.accepted), (0, 402), "{stats:?}");
    let diagnostics = client.diagnostics();
    assert!(
        diagnostics.iter().any(|diagnostic| matches!(diagnostic, Diagnostic::Evicted { for_age: false, .. })),
        "{diagnostics:?}"
    );
    fixture.sink.resume();
    eventually("the rest is delivered", || {
        let _ = client.flush().wait(PATIENCE);
        client.stats().queued_events == 0
    });
    assert!(dear.into_iter().all(|uuid| fixture.sink.inspect(|state| state.contains(uuid))));
    let mut numbers: Vec<_> =
        fixture.sink.events().iter().filter_map(|event| event.properties["number"].as_u64()).collect();
    numbers.sort_unstable();
    assert!(numbers[numbers.len() / 2] >= 200, "mostly later ones: {numbers:?}");
    let stats = client.stats();
    assert_eq!(stats.delivered + stats.evicted, 402, "{stats:?}");
    assert_eq!(fixture.sink.inspect(sink::State::unique), stats.delivered);
    close_empty(&client);
}

#[test]
fn a_blocked_capture_waits_for_room_and_no_longer_than_it_may() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let wait = Duration::from_millis(300);
    let client = Client::new(bounded(&fixture, OverflowPolicy::Block(wait))).unwrap();
    fill(&client);
    let began = Instant::now();
    assert_eq!(client.capture(event("late")).outcome(), FULL);
    let took = began.elapsed();
    assert!(took >= wait && took < Duration::from_secs(10), "{took:?}");
    client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    drop(client);
    let client = Client::new(bounded(&fixture, OverflowPolicy::Block(PATIENCE))).unwrap();
    std::thread::scope(|scope| {
        let blocked = scope.spawn(|| (0..20).all(|_| client.capture(event("patient")).is_accepted()));
        fixture.sink.resume();
        assert!(blocked.join().unwrap());
    });
    close_empty(&client);
    assert_eq!(fixture.names().iter().filter(|name| *name == "patient").count(), 20);
}

#[test]
fn a_shutdown_ends_the_wait_of_a_blocked_capture() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = Client::new(bounded(&fixture, OverflowPolicy::Block(PATIENCE * 10))).unwrap();
    for _ in 0..100 {
        take(&client, "filling");
    }
    let _ = client.flush().wait(PATIENCE);
    std::thread::scope(|scope| {
        let blocked = scope.spawn(|| {
            loop {
                if let Outcome::Dropped(reason) = client.capture(event("blocked")).outcome() {
                    return reason;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
        assert_eq!(blocked.join().unwrap(), DropReason::Closed);
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    });
}

#[test]
fn a_bound_in_bytes_holds_for_the_file() {
    const MIB: u64 = 1024 * 1024;
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = Client::new(fixture.config().max_queue_bytes(2 * MIB)).unwrap();
    let filling = "x".repeat(4000);
    let mut taken = Vec::new();
    eventually("the queue is full", || {
        let receipt = client.capture(Event::new("large", "user_1").prop("filling", &filling));
        taken.extend(receipt.uuid());
        if taken.len().is_multiple_of(20) {
            let _ = client.flush().wait(PATIENCE);
        }
        receipt.outcome() == FULL
    });
    let stats = client.stats();
    assert!(stats.file_bytes <= 4 * MIB && stats.queued_bytes >= MIB / 2, "{stats:?}");
    fixture.sink.resume();
    let _ = client.flush().wait(PATIENCE);
    fixture.must_have_taken(&taken);
    eventually("there is room again", || client.capture(event("tick")).is_accepted());
    close_empty(&client);
}

#[test]
fn age_gives_up_only_what_was_tried() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = Client::new(fixture.config().max_queue_age(Duration::from_secs(1))).unwrap();
    for _ in 0..10 {
        take(&client, "old");
    }
    let _ = client.flush().wait(PATIENCE);
    eventually("the old ones are given up", || {
        take(&client, "young");
        let _ = client.flush().wait(PATIENCE);
        client.stats().evicted >= 10
    });
    let diagnostics = client.diagnostics();
    assert!(
        diagnostics.iter().any(|diagnostic| matches!(diagnostic, Diagnostic::Evicted { for_age: true, .. })),
        "{diagnostics:?}"
    );
    assert_eq!(client.stats().imbalance(), 0);
    client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
}

#[test]
fn a_burst_beyond_the_journal_is_dropped_as_journal_full() {
    let fixture = Fixture::new();
    let client = Client::new(fixture.config().max_event_bytes(4 * 1024).journal_bytes(64 * 1024)).unwrap();
    let filling = "x".repeat(3000);
    let mut taken = Vec::new();
    let mut refused = 0;
    while refused < 50 && taken.len() < 20_000 {
        let receipt = client.capture(event("burst").prop("filling", &filling));
        match receipt.outcome() {
            Outcome::Accepted => taken.extend(receipt.uuid()),
            Outcome::Dropped(reason) => {
                assert_eq!(reason, DropReason::JournalFull);
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 50);
    eventually("it takes again", || client.capture(event("$exception")).uuid().map(|uuid| taken.push(uuid)).is_some());
    close_empty(&client);
    fixture.must_have_taken(&taken);
}
