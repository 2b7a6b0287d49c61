//! Stops while the endpoint fails: how many attempts they make, and how long they take. In tokio's paused time.

use std::time::Duration;

use super::engine_tests::{Rig, queue_of};
use super::fake::{Reply, Seen};
use super::*;
use crate::report::EndpointStatus;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A server that answers `failure` this many times, and then accepts everything.
fn failing(mut failures: u32, failure: Reply) -> impl FnMut(&Seen) -> Reply + Send {
    move |_| {
        if failures == 0 {
            return Reply::ok();
        }
        failures -= 1;
        failure.clone()
    }
}

/// A rig whose first request has failed.
async fn after_a_failure(script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Rig {
    let rig = Rig::start(queue_of(1, 3), script);
    rig.until(|rig| rig.handle.state().failed_attempts > 0).await;
    rig
}

#[tokio::test(start_paused = true)]
async fn a_stop_right_after_a_failure_sends_again_at_once() {
    for failure in [Reply::new(503, ""), Reply::new(0, "refused"), Reply::new(403, "no")] {
        let rig = after_a_failure(failing(1, failure)).await;
        let queue = Arc::clone(&rig.queue);
        let (endpoint, took) = rig.stopped(secs(10)).await;
        assert_eq!((queue.delivered(), endpoint), (3, EndpointStatus::Up));
        assert!(took < Duration::from_millis(50), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_a_cooldown_early() {
    let rig = Rig::start(queue_of(1, 3), failing(4, Reply::new(503, "")));
    rig.until(|rig| matches!(rig.handle.state().phase, Phase::Cooldown { .. })).await;
    let (queue, took) = rig.stop(secs(10)).await;
    assert!(queue.is_empty() && took < Duration::from_millis(50), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_makes_one_cycle_of_attempts_while_the_server_fails() {
    let rig = after_a_failure(|_| Reply::new(503, "busy")).await;
    let (endpoint, queue) = (rig.endpoint.clone(), Arc::clone(&rig.queue));
    let before = endpoint.seen().len();
    let (found, took) = rig.stopped(secs(60)).await;
    assert_eq!((endpoint.seen().len() - before, queue.queued().len()), (4, 3));
    assert!(took >= Duration::from_millis(300) && took < secs(8), "{took:?}");
    assert!(matches!(&found, EndpointStatus::Down { reason, .. } if reason.contains("503")), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_finds_a_server_that_comes_back_between_its_attempts() {
    let rig = after_a_failure(failing(4, Reply::new(503, ""))).await;
    assert!(rig.stop(secs(60)).await.0.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_gives_up_after_two_failed_connections_in_a_row() {
    let rig = after_a_failure(|_| Reply::new(0, "refused")).await;
    let endpoint = rig.endpoint.clone();
    let before = endpoint.seen().len();
    let (queue, took) = rig.stop(secs(60)).await;
    assert_eq!((endpoint.seen().len() - before, queue.queued().len()), (2, 3));
    assert!(took < Duration::from_millis(1100), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_gives_up_at_once_when_the_key_is_refused() {
    let rig = after_a_failure(|_| Reply::new(401, "API key is not valid: no")).await;
    let endpoint = rig.endpoint.clone();
    let before = endpoint.seen().len();
    let (found, took) = rig.stopped(secs(60)).await;
    assert_eq!(endpoint.seen().len() - before, 1);
    assert!(took < Duration::from_millis(50), "{took:?}");
    let reason = "HTTP status 401: API key is not valid: no";
    assert!(matches!(&found, EndpointStatus::Paused { status: 401, reason: said, .. } if said == reason), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_a_retry_after_that_ends_in_time() {
    for (within, delivered, least, most) in [(30, 3, 4_000, 7_000), (3, 0, 0, 50)] {
        let held = Reply { retry_after: Some(5), ..Reply::new(429, "slow down") };
        let rig = after_a_failure(failing(1, held)).await;
        let endpoint = rig.endpoint.clone();
        let before = endpoint.seen().len();
        let (queue, took) = rig.stop(secs(within)).await;
        // After the deadline the first request has one event, and the next one the others.
        assert_eq!((endpoint.seen().len() - before > 0, queue.delivered()), (delivered > 0, delivered));
        assert!((least..=most).contains(&took.as_millis()), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_of_an_empty_queue_does_not_wait_for_a_retry_after() {
    let rig = Rig::with(queue_of(0, 0), |_| Reply::ok(), |parts| parts.next_attempt = Some(20_000_000_000));
    let (_, took) = rig.stop(secs(60)).await;
    assert_eq!(took, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_early_if_no_further_attempt_fits() {
    let rig = after_a_failure(|_| Reply::new(503, "")).await;
    let (queue, took) = rig.stop(Duration::from_millis(50)).await;
    assert!(took < Duration::from_millis(20), "no further attempt fits: {took:?}");
    assert_eq!(queue.queued().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_stop_without_a_response_reports_that() {
    let rig = Rig::start(queue_of(1, 3), |_| Reply::ok().after(secs(1000)));
    let (found, took) = rig.stopped(secs(3)).await;
    assert_eq!(took, secs(3));
    assert!(matches!(&found, EndpointStatus::Down { reason, .. } if reason.contains("no response")), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_under_way_is_no_attempt_of_the_stop() {
    // The request fails after the stop began, and the stop makes two attempts of its own.
    let mut requests = 0;
    let rig = Rig::start(queue_of(1, 3), move |_| {
        requests += 1;
        if requests == 1 { Reply::new(0, "reset").after(secs(1)) } else { Reply::new(0, "refused") }
    });
    rig.until(|rig| rig.endpoint.seen().len() == 1).await;
    let endpoint = rig.endpoint.clone();
    rig.stop(secs(60)).await;
    assert_eq!(endpoint.seen().len(), 3);
}
