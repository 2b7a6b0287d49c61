//! Health in failures of the network, of the program's callbacks and of the AI queue, with simulated time. Failures of
//! the disk are in `src/pipeline/tests/health.rs`.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::{Answer, Harness, Route};
use crate::client::Client;
use crate::config::Config;
use crate::event::Event;
use crate::pipeline::OverflowPolicy;
use crate::report::{DropReason, Health, HealthCause, HealthStatus, QueueMedium, ThreadState};
use crate::transport::{Http, Pending, Request};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn capture(harness: &Harness) {
    assert!(harness.client().capture(Event::new("tick", "user_1")).is_accepted());
}

fn must_be(client: &Client, status: HealthStatus, cause: HealthCause) -> Health {
    let health = client.health();
    assert!(health.status == status && health.has(cause), "{cause} is expected: {health}");
    health
}

fn must_be_ready(harness: &Harness) {
    let health = harness.client().health();
    assert!(health.status == HealthStatus::Ready && health.is_alive(), "{health}");
}

#[test]
fn health_sees_an_outage_and_its_end_but_no_reason_to_restart() {
    let failures = [
        Answer::status(503),
        Answer::status(429),
        Answer::status(404),
        Answer::status(200).body("<html>welcome to our wifi</html>"),
        Answer::unreachable(),
        Answer::timeout(),
        Answer::timeout().taking(),
    ];
    for failure in failures {
        let harness = Harness::new(|config| config).unwrap();
        must_be_ready(&harness);
        harness.server().always(Route::Analytics, failure.clone());
        capture(&harness);
        harness.advance(5 * SECOND);
        let health = must_be(harness.client(), HealthStatus::Degraded, HealthCause::EndpointFailing);
        assert!(health.is_ready() && health.is_alive() && health.last_success.is_none(), "{failure:?}: {health}");
        for _ in 0..12 {
            harness.advance(MINUTE);
        }
        let health = must_be(harness.client(), HealthStatus::Degraded, HealthCause::Late);
        assert!(health.is_alive() && health.oldest_age > Some(10 * MINUTE), "{failure:?}: {health}");
        harness.server().always(Route::Analytics, Answer::ok());
        for _ in 0..6 {
            harness.advance(MINUTE);
        }
        must_be_ready(&harness);
        assert!(harness.client().health().last_success.is_some());
    }
}

#[test]
fn health_sees_a_rejected_key_and_a_used_up_quota() {
    for status in [401, 402, 403, 415] {
        let harness = Harness::new(|config| config).unwrap();
        harness.server().always(Route::Analytics, Answer::status(status));
        capture(&harness);
        harness.advance(5 * SECOND);
        harness.advance(MINUTE);
        let health = must_be(harness.client(), HealthStatus::Degraded, HealthCause::Paused);
        assert!(health.to_string().contains(&status.to_string()) && health.is_alive(), "{health}");
    }
}

#[test]
fn health_sees_that_only_rejected_events_are_left() {
    let harness = Harness::new(|config| config).unwrap();
    let refusal = r#"{"type": "validation_error", "code": "invalid_input", "detail": "the event is bad"}"#;
    harness.server().always(Route::Analytics, Answer::status(400).body(refusal));
    capture(&harness);
    harness.advance(5 * SECOND);
    must_be(harness.client(), HealthStatus::Degraded, HealthCause::Quarantined);
}

#[test]
fn health_sees_a_queue_in_memory() {
    let harness = Harness::new(|config| config.queue_dir("/dev/null/posthog").memory_fallback(true)).unwrap();
    let health = must_be(harness.client(), HealthStatus::Degraded, HealthCause::InMemory);
    assert_eq!(health.medium, Some(QueueMedium::ProcessMemory));
    assert!(health.to_string().contains("/dev/null") && health.is_ready(), "{health}");
}

#[test]
fn health_sees_a_full_queue_and_the_space_that_delivery_makes() {
    let harness = Harness::new(|config| config.max_queue_events(10).flush_at(1000)).unwrap();
    harness.server().always(Route::Analytics, Answer::status(503));
    (0..10).for_each(|_| capture(&harness));
    harness.advance(5 * SECOND);
    let health = must_be(harness.client(), HealthStatus::Failing, HealthCause::Rejecting);
    assert!(!health.is_ready() && health.is_alive() && health.fill_percent == 100, "{health}");
    harness.server().always(Route::Analytics, Answer::ok());
    harness.advance(MINUTE);
    // Delivered events take their space until their ack is committed.
    harness.advance(SECOND);
    must_be_ready(&harness);
}

#[test]
fn health_sees_what_the_program_has_turned_off_or_closed() {
    let client = Client::new(Config::disabled()).unwrap();
    assert!(must_be(&client, HealthStatus::Degraded, HealthCause::Disabled).is_ready());
    let harness = Harness::new(|config| config).unwrap();
    harness.client().opt_out();
    harness.settle();
    assert!(must_be(harness.client(), HealthStatus::Degraded, HealthCause::OptedOut).is_ready());
    assert_eq!(harness.client().stats().rejecting, Some(DropReason::OptedOut));
    harness.client().opt_in();
    harness.settle();
    must_be_ready(&harness);
    harness.client().shutdown(Duration::ZERO).wait(MINUTE).unwrap();
    let health = must_be(harness.client(), HealthStatus::Failing, HealthCause::Closed);
    assert!(!health.is_ready() && health.is_alive() && health.problems.len() == 1, "{health}");
}

#[test]
fn health_sees_the_ai_endpoint_and_an_ai_queue_that_cannot_open() {
    let harness = Harness::new(|config| config).unwrap();
    harness.server().always(Route::Ai, Answer::status(503));
    assert!(harness.client().capture_ai(Event::new("$ai_trace", "user_1")).is_accepted());
    harness.advance(5 * SECOND);
    let health = must_be(harness.client(), HealthStatus::Degraded, HealthCause::EndpointFailing);
    assert!(health.problems[0].lane == "ai" && health.problems.len() == 1, "{health}");

    let harness = Harness::new(|config| config).unwrap();
    let shard = harness.client().stats().dir.unwrap();
    std::fs::write(shard.parent().unwrap().join("ai"), "not a directory").unwrap();
    assert!(!harness.client().capture_ai(Event::new("$ai_trace", "user_1")).is_accepted());
    must_be(harness.client(), HealthStatus::Degraded, HealthCause::AiUnavailable);
}

#[test]
fn health_after_a_restart_or_a_clock_that_was_set_is_ready() {
    let harness = Harness::new(|config| config).unwrap();
    capture(&harness);
    let harness = harness.restart(|config| config).unwrap();
    harness.advance(5 * SECOND);
    must_be_ready(&harness);
    assert_eq!(harness.client().stats().queued_events, 0, "it was delivered");
    for time in [SystemTime::UNIX_EPOCH, harness.clock().now() + 10_000 * MINUTE] {
        harness.clock().set(time);
        harness.settle();
        must_be_ready(&harness);
        capture(&harness);
        harness.advance(5 * SECOND);
        must_be_ready(&harness);
        assert_eq!(harness.client().stats().queued_events, 0, "it was delivered");
    }
    // Set back while an event is under way: its age is underestimated.
    harness.server().always(Route::Analytics, Answer::ok().delay(10 * SECOND));
    capture(&harness);
    harness.advance(5 * SECOND);
    harness.clock().set(SystemTime::UNIX_EPOCH);
    harness.settle();
    must_be_ready(&harness);
    let health = harness.client().health();
    assert_eq!((harness.client().stats().queued_events, health.oldest_age), (1, Some(Duration::ZERO)), "{health}");
    harness.advance(10 * SECOND);
    must_be_ready(&harness);
}

/// A callback of the program that does not return before it may.
struct Stuck {
    is_inside: Sender<()>,
    may_return: Mutex<Receiver<()>>,
}

fn stuck() -> (Arc<Stuck>, Receiver<()>, Sender<()>) {
    let ((is_inside, inside), (let_go, may_return)) = (mpsc::channel(), mpsc::channel());
    (Arc::new(Stuck { is_inside, may_return: Mutex::new(may_return) }), inside, let_go)
}

impl Stuck {
    fn call(&self) {
        self.is_inside.send(()).unwrap();
        // Ends with an error when the test ends, also when it fails.
        let _ = self.may_return.lock().unwrap().recv();
    }
}

/// Advances the clock until the callback has been called, and then far enough for a thread that is inside to be stuck.
fn must_be_seen_as_stuck(harness: &Harness, inside: &Receiver<()>, let_go: Sender<()>) {
    while inside.recv_timeout(Duration::from_millis(10)).is_err() {
        harness.clock().advance(SECOND);
    }
    harness.clock().advance(61 * SECOND);
    let health = must_be(harness.client(), HealthStatus::Failing, HealthCause::ThreadStuck);
    assert!(health.is_alive() && !health.is_ready(), "{health}");
    harness.clock().advance(5 * MINUTE);
    let health = must_be(harness.client(), HealthStatus::Failing, HealthCause::ThreadStuck);
    assert!(!health.is_alive(), "{health}");
    drop(let_go);
    harness.settle();
    assert!(!harness.client().health().has(HealthCause::ThreadStuck), "{}", harness.client().health());
    assert!(harness.client().health().is_alive());
    let stats = harness.client().stats();
    assert_eq!((stats.commit_thread, stats.deliver_thread), (ThreadState::Asleep, ThreadState::Asleep));
}

#[test]
fn health_sees_a_delivery_thread_that_does_not_come_back() {
    let (stuck, inside, let_go) = stuck();
    let harness = Harness::new(|config| config.flush_at(1).on_delivery(move |_| stuck.call())).unwrap();
    capture(&harness);
    must_be_seen_as_stuck(&harness, &inside, let_go);
}

#[test]
fn health_sees_a_commit_thread_that_does_not_come_back() {
    let (stuck, inside, let_go) = stuck();
    let blocks = move |diagnostic: &crate::report::Diagnostic| {
        if diagnostic.kind() == "evicted" {
            stuck.call();
        }
    };
    let configure =
        |config: Config| config.max_queue_events(1).overflow(OverflowPolicy::DropOldest).on_diagnostic(blocks);
    let harness = Harness::new(configure).unwrap();
    harness.server().always(Route::Analytics, Answer::status(503));
    (0..5).for_each(|_| capture(&harness));
    must_be_seen_as_stuck(&harness, &inside, let_go);
}

/// A network whose calls panic, on the task of the engine.
struct Panicking;

impl Http for Panicking {
    fn send(&self, _: Request) -> Pending {
        panic!("a defect")
    }
}

#[test]
fn health_sees_that_delivery_panicked_and_is_started_again() {
    let directory = super::harness::Directory::new().unwrap();
    let config = Config::new("phc_testing").host("http://posthog.test").queue_dir(directory.path()).flush_at(1);
    let client = Client::surrounded_by(config.first_send_jitter(Duration::ZERO).min_free_space(0), |options| {
        options.network = Some(Arc::new(Panicking));
    });
    let client = client.unwrap();
    assert!(client.capture(Event::new("tick", "user_1")).is_accepted());
    let deadline = Instant::now() + MINUTE;
    while !client.health().has(HealthCause::DeliveryRestarting) {
        assert!(Instant::now() < deadline, "{}", client.health());
        std::thread::sleep(Duration::from_millis(1));
    }
    must_be(&client, HealthStatus::Degraded, HealthCause::DeliveryRestarting);
}
