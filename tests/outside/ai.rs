//! AI events: one client, with a queue and an endpoint of their own.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use posthog::reports::EndpointStatus;
use posthog::{Client, DropReason, Event, Outcome, Receipt};
use sink::{Answer, State};
use uuid::Uuid;

use crate::apart::apart_to_death;
use crate::fixture::{Fixture, KEY, PATIENCE, Place, accepted, assert_balanced, close_empty, event, eventually, take};
use crate::process::forked;

const LARGEST: usize = 8 * 1024 * 1024;

fn take_ai(client: &Client, name: &str) -> Uuid {
    accepted(&client.capture_ai(event(name)))
}

/// Makes only the AI endpoint fail.
fn ai_is_down(fixture: &Fixture) {
    fixture.sink.refuse_if(|event| event["event"] == "ai", 503, "down");
}

#[test]
fn ai_events_of_a_killed_process_are_delivered_by_the_next() {
    apart_to_death(
        || {
            let fixture = Fixture::new();
            fixture.sink.stop();
            fixture
        },
        |place| {
            let client = place.client();
            take_ai(&client, "ai");
            take(&client, "clicked");
            raise(Signal::SIGKILL).unwrap();
        },
        |fixture| {
            fixture.sink.resume();
            let client = fixture.client();
            assert!(fixture.sink.wait_for(|state| state.unique() == 2, PATIENCE));
            eventually("both lanes are empty", || client.stats().queued_events == 0);
            let ai = client.stats().ai.unwrap();
            assert_eq!((ai.accepted, ai.delivered), (1, 1));
            close_empty(&client);
            assert_eq!(fixture.names(), ["ai", "clicked"]);
            assert!(fixture.client().stats().ai.is_none(), "where nothing is left the lane stays closed");
        },
    );
}

#[test]
fn an_ai_event_may_have_eight_mebibytes_and_no_more() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let capture = |bytes: usize| client.capture_ai(event("ai").prop("$ai_input", "x".repeat(bytes)));
    assert_eq!(capture(LARGEST).outcome(), Outcome::Dropped(DropReason::TooLarge));
    let text = client.diagnostics().iter().map(|diagnostic| format!("{diagnostic:?}")).collect::<String>();
    let size = text.split("takes ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse::<usize>().unwrap();
    let around = size - LARGEST;
    assert_eq!(capture(LARGEST - around + 1).outcome(), Outcome::Dropped(DropReason::TooLarge));
    let uuid = accepted(&capture(LARGEST - around));
    assert_eq!(
        client.capture(event("e").prop("x", "x".repeat(100_000))).outcome(),
        Outcome::Dropped(DropReason::TooLarge)
    );
    fixture.must_have_taken(&[uuid]);
    close_empty(&client);
}

#[test]
fn analytics_flow_while_the_ai_endpoint_is_down() {
    let fixture = Fixture::new();
    ai_is_down(&fixture);
    let client = fixture.client();
    let ai = take_ai(&client, "ai");
    let uuids: Vec<_> = (0..50).map(|_| take(&client, "clicked")).collect();
    let all = |state: &State| uuids.iter().all(|uuid| state.contains(*uuid));
    assert!(fixture.sink.wait_for(all, PATIENCE));
    eventually("the failure of the lane is shown", || client.stats().ai.is_some_and(|ai| ai.last_error.is_some()));
    assert_eq!(client.stats().last_error, None);
    let report = client.flush().wait(PATIENCE).unwrap();
    assert_eq!(report.remaining, 1);
    assert!(
        matches!(&report.endpoint, EndpointStatus::Down { reason, .. } if reason.starts_with("AI events: ")),
        "{report:?}"
    );
    fixture.sink.refuse_none();
    assert!(fixture.sink.wait_for(|state| state.contains(ai), PATIENCE));
    close_empty(&client);
}

#[test]
fn flush_shutdown_and_statistics_are_of_both_lanes() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = Client::new(fixture.config().flush_interval(Duration::from_secs(3600)).flush_at(1_000)).unwrap();
    for _ in 0..2 {
        take(&client, "clicked");
    }
    for _ in 0..3 {
        take_ai(&client, "ai");
    }
    let stats = client.stats();
    assert_eq!((stats.accepted, stats.queued_events, stats.ai.as_ref().unwrap().queued_events), (5, 5, 3));
    assert!(stats.queued_bytes > stats.ai.unwrap().queued_bytes);
    fixture.sink.resume();
    let report = client.flush().wait(PATIENCE).unwrap();
    assert_eq!((report.delivered, report.remaining, report.endpoint), (5, 0, EndpointStatus::Up));
    take(&client, "clicked");
    take_ai(&client, "ai");
    let report = client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    assert_eq!((report.remaining, report.persisted), (0, true));
    // Events of the flush may be committed only now, and are then counted.
    assert!(report.delivered >= 2, "{report:?}");
    assert_balanced(&client);
    assert_eq!(client.stats().delivered, 7);
}

#[test]
fn the_deadline_of_a_shutdown_is_one_for_both_lanes() {
    let fixture = Fixture::new();
    fixture.sink.default_answer(Answer::hang().discarding());
    let client = fixture.client();
    take(&client, "clicked");
    take_ai(&client, "ai");
    let began = Instant::now();
    let report = client.shutdown(Duration::from_secs(4)).wait(PATIENCE).unwrap();
    assert_eq!((report.delivered, report.remaining, report.persisted), (0, 2, true));
    assert!(began.elapsed() < Duration::from_millis(7_900), "one after the other: {:?}", began.elapsed());
}

#[test]
fn dead_letters_of_a_client_include_those_of_ai_events() {
    let fixture = Fixture::new();
    fixture.sink.refuse_if(|event| event["event"] == "bad", 400, "failed to parse request: bad");
    let client = fixture.client();
    for capture in [Client::capture, Client::capture_ai] as [fn(&Client, Event) -> Receipt; 2] {
        accepted(&capture(&client, event("bad")));
        accepted(&capture(&client, event("good")));
    }
    eventually("both are buried", || {
        // Evidence against the event: the endpoint accepts another one.
        take(&client, "good");
        take_ai(&client, "good");
        let _ = client.flush().wait(PATIENCE);
        client.dead_letters(10).len() == 2
    });
    assert!(client.dead_letters(10).iter().all(|dead| dead.event["event"] == "bad"));
    assert_eq!(client.dead_letters(1).len(), 1);
    close_empty(&client);
}

#[test]
fn an_ai_queue_can_be_opened_before_the_first_event() {
    let fixture = Fixture::new();
    let client = Client::new(fixture.config().open_ai_queue(true)).unwrap();
    assert_eq!(client.stats().ai.unwrap().accepted, 0);
    close_empty(&client);
}

#[test]
fn many_threads_that_capture_the_first_ai_event_open_one_lane() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let uuids: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| take_ai(&client, "ai"))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(client.stats().ai.unwrap().accepted, 8);
    fixture.must_have_taken(&uuids);
    close_empty(&client);
}

#[test]
fn a_client_closed_while_its_ai_queue_opens_drops_events() {
    for _ in 0..3 {
        let fixture = Fixture::new();
        let client = fixture.client();
        let receipt = std::thread::scope(|scope| {
            let first = scope.spawn(|| client.capture_ai(event("ai")));
            let report = client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
            assert!(report.persisted);
            first.join().unwrap()
        });
        assert_eq!(client.capture_ai(event("ai")).outcome(), Outcome::Dropped(DropReason::Closed));
        // Either accepted before the close, and then there for the next process, or dropped.
        drop(client);
        let next = fixture.client();
        if let Some(uuid) = receipt.uuid() {
            assert!(fixture.sink.wait_for(|state| state.contains(uuid), PATIENCE));
        }
        close_empty(&next);
    }
}

#[test]
fn a_forked_child_has_an_ai_queue_of_its_own() {
    crate::apart::apart(
        |place: &Place| {
            let client = place.client();
            take_ai(&client, "parent");
            forked(|| {
                assert!(client.stats().ai.is_none());
                take_ai(&client, "child");
                assert_eq!(client.stats().ai.unwrap().accepted, 1);
                close_empty(&client);
            })
            .must_end_well();
            take_ai(&client, "parent");
            assert_eq!(client.stats().ai.unwrap().accepted, 2);
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["child", "parent", "parent"]),
    );
}

#[test]
fn ai_events_of_an_earlier_key_are_reported_and_adopted() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = fixture.client();
    let uuid = take_ai(&client, "ai");
    drop(client);
    fixture.sink.resume();
    let renewed = || fixture.config_for("phc_renewed");
    let client = Client::new(renewed()).unwrap();
    let stranded = client.stats().orphaned;
    assert_eq!((stranded.queues, stranded.events), (1, 1));
    drop(client);
    let client = Client::new(renewed().adopt_queue(KEY, &fixture.host)).unwrap();
    fixture.must_have_taken(&[uuid]);
    let request = fixture.sink.requests().remove(0);
    assert_eq!((request.api_key.as_str(), request.path.as_str()), ("phc_renewed", "/i/v0/ai/batch/"));
    close_empty(&client);
}

#[test]
fn a_hook_that_captures_while_the_ai_queue_opens_never_waits() {
    let fixture = Fixture::new();
    drop(fixture.client());
    let shard = fixture.shards().remove(0);
    std::fs::write(shard.parent().unwrap().join("ai"), "in the way").unwrap();
    let held: Arc<OnceLock<Client>> = Arc::default();
    let (inside, outcomes) = (Arc::clone(&held), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&outcomes);
    let config = fixture.config().on_diagnostic(move |_| {
        if let Some(client) = inside.get() {
            seen.lock().unwrap().push(client.capture_ai(event("ai")).outcome());
        }
    });
    let client = held.get_or_init(|| Client::new(config).unwrap());
    let began = Instant::now();
    assert_eq!(client.capture_ai(event("ai")).outcome(), Outcome::Dropped(DropReason::Storage));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(outcomes.lock().unwrap().as_slice(), [Outcome::Dropped(DropReason::Storage)]);
    close_empty(client);
}

#[test]
fn a_client_with_both_lanes_has_two_threads() {
    crate::apart::apart(
        |place| {
            let client = place.client();
            take(&client, "clicked");
            assert_eq!(client.flush().wait(PATIENCE).unwrap().remaining, 0);
            eventually("two threads serve one lane", || own_threads() == ["posthog-commit", "posthog-deliver"]);
            take_ai(&client, "ai");
            assert_eq!(client.flush().wait(PATIENCE).unwrap().remaining, 0);
            eventually("the same two serve both", || own_threads() == ["posthog-commit", "posthog-deliver"]);
            close_empty(&client);
            eventually("they end with the client", || own_threads().is_empty());
        },
        |fixture| assert_eq!(fixture.names(), ["ai", "clicked"]),
    );
}

/// The names of the threads in this process that the library has started.
fn own_threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let mut own: Vec<_> =
        names.map(|name| name.trim().to_owned()).filter(|name| name.starts_with("posthog-")).collect();
    own.sort();
    own
}
