//! Tests of `posthog::testing`.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helper functions")]

#[path = "testing/log.rs"]
mod log_records;
#[path = "testing/tracing.rs"]
mod tracing_events;

#[path = "testing/responses.rs"]
mod responses;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use posthog::diagnostics::Diagnostic;
use posthog::reports::EndpointStatus;
use posthog::stats::DeliveryPhase;
use posthog::testing::{Answer, Harness, Route, StillClock, queued};
use posthog::{Client, Config, DropReason, Event, Outcome};
use tested_program::{ask, sign_out, sign_up};

const SECOND: Duration = Duration::from_secs(1);

fn harness() -> Harness {
    Harness::new(|config| config).unwrap()
}

#[test]
fn the_uuid_of_a_receipt_can_be_answered_as_json() {
    let receipt = harness().client().capture(Event::new("order_placed", "user_1"));
    let uuid: Option<posthog::Uuid> = receipt.uuid();
    assert_eq!(serde_json::json!({ "event": receipt.uuid() })["event"], uuid.unwrap().to_string());
}

#[test]
fn queued_shows_events_in_order_with_their_route() {
    let harness = harness();
    ask(harness.client(), "user_1", "why?");
    sign_up(harness.client(), "user_1", "pro");
    sign_up(harness.client(), "user_2", "free");
    let queued = harness.queued();
    let seen: Vec<_> = queued.iter().map(|event| (event.route, event.distinct_id.as_str())).collect();
    assert_eq!(seen, [(Route::Analytics, "user_1"), (Route::Analytics, "user_2"), (Route::Ai, "user_1")]);
    assert_eq!((&queued[0].properties["plan"], &queued[0].properties["$is_server"]), (&"pro".into(), &true.into()));
    harness.deliver().unwrap();
    let taken = harness.server().taken();
    for event in &queued {
        let sent = taken.iter().find(|sent| sent["uuid"] == event.uuid.to_string()).unwrap();
        assert_eq!(sent["properties"].as_object(), Some(&event.properties));
        assert_eq!(
            (&sent["event"], &sent["timestamp"]),
            (&event.event.as_str().into(), &event.timestamp.as_str().into())
        );
    }
    assert!(harness.queued().is_empty());
}

#[test]
fn an_event_is_in_the_queue_wherever_it_is_kept() {
    let harness = harness();
    harness.server().always(Route::Analytics, Answer::status(503));
    sign_up(harness.client(), "in the store", "");
    assert_eq!(harness.deliver().unwrap().remaining, 1);
    sign_up(harness.client(), "in the journal", "");
    let who: Vec<_> = harness.queued().into_iter().map(|event| event.distinct_id).collect();
    assert_eq!(who, ["in the store", "in the journal"]);
    assert_eq!(harness.client().stats().queued_events, 2);
}

#[test]
fn a_batch_is_sent_when_its_time_has_come_and_not_before() {
    let harness = Harness::new(|config| config.flush_interval(10 * SECOND)).unwrap();
    sign_up(harness.client(), "user_1", "pro");
    harness.advance(9 * SECOND);
    assert_eq!(harness.server().requests().len(), 0);
    harness.advance(SECOND);
    assert_eq!(harness.server().requests().len(), 1);
}

#[test]
fn events_say_the_time_that_the_clock_shows() {
    let harness = harness();
    harness.clock().set(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
    sign_up(harness.client(), "user_1", "pro");
    harness.advance(Duration::from_millis(1_500));
    sign_up(harness.client(), "user_1", "pro");
    let times: Vec<_> = harness.queued().into_iter().map(|event| event.timestamp).collect();
    assert_eq!(times, ["2001-09-09T01:46:40Z", "2001-09-09T01:46:41.5Z"]);
    harness.deliver().unwrap();
    assert_eq!(harness.server().requests()[0].body["sent_at"], "2001-09-09T01:46:41.5Z");
}

#[test]
fn failures_are_retried_with_backoff_as_the_clock_moves() {
    let harness = Harness::new(|config| config.retry_backoff(SECOND, 30 * SECOND).max_retries(3)).unwrap();
    harness.server().fail_next(Route::Analytics, 2);
    sign_up(harness.client(), "user_1", "pro");
    assert!(matches!(harness.deliver().unwrap().endpoint, EndpointStatus::Down { .. }));
    assert!(matches!(harness.client().stats().delivery, DeliveryPhase::Backoff { .. }));
    // Waits are drawn below one second, then below two.
    harness.advance(SECOND);
    harness.advance(2 * SECOND);
    let requests = harness.server().requests();
    let seen: Vec<_> = requests.iter().map(|request| (request.status, request.attempt)).collect();
    assert_eq!(seen, [(Some(503), 1), (Some(503), 2), (Some(200), 3)]);
    assert_eq!(requests[2].events, requests[0].events);
    assert!(harness.queued().is_empty());
}

#[test]
fn a_retry_after_is_never_broken() {
    let harness = harness();
    harness.server().script(Route::Analytics, [Answer::status(429).retry_after("120")]);
    sign_up(harness.client(), "user_1", "pro");
    harness.deliver();
    harness.advance(Duration::from_millis(119_999));
    harness.deliver();
    assert_eq!(harness.server().requests().len(), 1);
    // The retry is spread over a tenth of the wait, because other clients got the same time.
    harness.advance(12 * SECOND + Duration::from_millis(1));
    assert_eq!(harness.server().requests().len(), 2);
}

#[test]
fn a_delayed_answer_comes_when_the_manual_clock_reaches_it() {
    let harness = harness();
    harness.server().script(Route::Analytics, [Answer::ok().delay(3 * SECOND)]);
    sign_up(harness.client(), "user_1", "pro");
    assert_eq!(harness.deliver(), None);
    assert_eq!((harness.server().requests().len(), harness.queued().len()), (1, 1));
    harness.advance(2 * SECOND);
    assert_eq!(harness.queued().len(), 1);
    harness.advance(SECOND);
    assert!(harness.queued().is_empty());
}

#[test]
fn a_lost_response_is_retried_with_the_same_uuid() {
    let harness = harness();
    harness.server().script(Route::Ai, [Answer::timeout().taking()]);
    ask(harness.client(), "user_1", "why?");
    harness.deliver();
    harness.advance(SECOND);
    let taken = harness.server().taken();
    assert_eq!((taken.len(), &taken[0]), (2, &taken[1]));
    assert_eq!(harness.server().requests()[0].status, None);
}

#[test]
fn a_refused_event_is_found_and_the_rest_is_delivered() {
    let harness = harness();
    harness.server().script(
        Route::Analytics,
        [Answer::status(400).body("failed to parse request"), Answer::status(400).body("failed to parse request")],
    );
    sign_up(harness.client(), "bad", "");
    sign_up(harness.client(), "good", "");
    harness.deliver();
    harness.advance(60 * SECOND);
    harness.deliver();
    assert_eq!(harness.server().taken().len() + harness.client().dead_letters(9).len(), 2);
    assert!(
        harness.client().diagnostics().iter().any(|diagnostic| matches!(diagnostic, Diagnostic::Quarantined { .. }))
    );
}

#[test]
fn a_shutdown_ends_at_its_deadline_by_the_clock() {
    let harness = harness();
    harness.server().always(Route::Analytics, Answer::ok().delay(3600 * SECOND));
    sign_up(harness.client(), "user_1", "pro");
    let closed = harness.client().shutdown(10 * SECOND);
    harness.advance(9 * SECOND);
    assert!(closed.try_get().is_none());
    harness.advance(2 * SECOND);
    let report = closed.try_get().unwrap();
    assert_eq!((report.delivered, report.remaining, report.persisted), (0, 1, true));
}

#[test]
fn the_next_process_sends_what_was_left() {
    let harness = harness();
    sign_up(harness.client(), "user_1", "pro");
    ask(harness.client(), "user_1", "why?");
    let harness = harness.restart(|config| config).unwrap();
    harness.deliver().unwrap();
    assert_eq!(harness.server().taken().len(), 2);
}

#[test]
fn requests_are_recorded_with_everything_that_is_in_them() {
    let harness = Harness::new(|config| config.historical_migration(true)).unwrap();
    sign_up(harness.client(), "user_1", "pro");
    harness.deliver().unwrap();
    let request = harness.server().requests().remove(0);
    assert!(request.url.starts_with("http://posthog.test/batch/"));
    assert_eq!(request.header("content-encoding"), Some("gzip"));
    assert_eq!(
        (&request.body["api_key"], &request.body["historical_migration"]),
        (&"phc_testing".into(), &true.into())
    );
    harness.server().forget();
    assert!(harness.server().requests().is_empty() && harness.server().taken().is_empty());
}

#[test]
fn hooks_and_many_threads_come_to_rest_too() {
    let harness =
        Harness::new(|config| config.before_send(|event| (event.distinct_id() != "nobody").then_some(event))).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    sign_up(harness.client(), "user_1", "pro");
                    sign_up(harness.client(), "nobody", "pro");
                }
            });
        }
    });
    harness.deliver().unwrap();
    // On a machine under load a capture may not get the journal in time.
    let dropped = harness.client().stats().dropped;
    let busy =
        dropped.iter().find_map(|(reason, count)| (*reason == DropReason::JournalBusy).then_some(*count as usize));
    assert_eq!((harness.server().taken().len() + busy.unwrap_or(0), harness.queued().len()), (2_000, 0));
}

#[test]
fn a_disabled_client_can_be_tested_too() {
    let harness = Harness::new(|_| Config::disabled()).unwrap();
    sign_up(harness.client(), "user_1", "pro");
    harness.advance(SECOND);
    assert!(harness.queued().is_empty());
}

#[test]
fn queued_reads_any_client_and_a_harness_cleans_up() {
    let dir = {
        let harness = harness();
        harness.client().stats().dir.unwrap()
    };
    assert!(!dir.exists());
    std::fs::create_dir_all(&dir).unwrap();
    let client = Client::new(Config::new("phc_x").host("http://127.0.0.1:9").queue_dir(&dir).no_proxy()).unwrap();
    client.capture(Event::new("kept", "user_1"));
    assert_eq!(queued(&client)[0].event, "kept");
    drop(client);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_clock_shows_what_it_was_set_to() {
    let clock = StillClock::at(SystemTime::UNIX_EPOCH);
    clock.advance(SECOND);
    assert_eq!(clock.now(), SystemTime::UNIX_EPOCH + SECOND);
    clock.set(SystemTime::UNIX_EPOCH - SECOND);
    assert_eq!(clock.now(), SystemTime::UNIX_EPOCH - SECOND);
}

/// The persons of the queued events.
fn persons(harness: &Harness) -> Vec<String> {
    harness.queued().into_iter().map(|event| event.distinct_id).collect()
}

#[test]
fn tests_in_parallel_have_a_process_wide_client_each() {
    let (all_have_one, all_are_done) = (Barrier::new(4), Barrier::new(4));
    std::thread::scope(|scope| {
        for user in ["a", "b", "c", "d"] {
            let (all_have_one, all_are_done) = (&all_have_one, &all_are_done);
            scope.spawn(move || {
                let harness = harness();
                let _global = harness.global_on_this_thread();
                all_have_one.wait();
                sign_out(user);
                all_are_done.wait();
                assert_eq!(persons(&harness), [user]);
            });
        }
    });
}

#[test]
fn the_newest_process_wide_client_of_a_thread_is_used() {
    let (outer, inner) = (harness(), harness());
    let _outer = outer.global_on_this_thread();
    let global = inner.global_on_this_thread();
    sign_out("inner");
    drop(global);
    sign_out("outer");
    assert_eq!((persons(&outer), persons(&inner)), (vec!["outer".to_owned()], vec!["inner".to_owned()]));
    // The client cannot be replaced by the code under test.
    assert!(matches!(posthog::init(Config::disabled()), Err(posthog::Error::AlreadyInitialized)));
}

// One test, because a client on all threads is the client of each test that has none of its own.
#[test]
fn one_test_at_a_time_has_the_client_of_all_threads() {
    let first = harness();
    let global = first.global_on_all_threads();
    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(first.global_on_all_threads())));
    let said = again.unwrap_err().downcast_ref::<String>().cloned().unwrap();
    assert!(said.contains("this thread already has"), "{said}");
    std::thread::spawn(|| sign_out("on another thread")).join().unwrap();
    assert_eq!(persons(&first), ["on another thread"]);
    let (is_over, begun) = (AtomicBool::new(false), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let second = harness();
            begun.wait();
            let _global = second.global_on_all_threads();
            assert!(is_over.load(Ordering::SeqCst), "the first is still there");
            sign_out("of the second");
            assert_eq!(persons(&second), ["of the second"]);
        });
        begun.wait();
        sign_out("of the first");
        is_over.store(true, Ordering::SeqCst);
        drop(global);
    });
    assert_eq!(persons(&first), ["on another thread", "of the first"]);
    let outcome = posthog::capture(Event::new("too late", "user_1")).outcome();
    assert_eq!(outcome, Outcome::Dropped(DropReason::NotInitialized));
}
