//! The engine while the queue is held back: nothing goes but what is under way, and nothing is kept from the queue.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::engine_tests::{Rig, queue_of, refusing};
use super::fake::{Reply, Seen};
use super::*;
use crate::report::EndpointStatus;

const LONG: Duration = Duration::from_secs(86_400);

impl Rig {
    fn hold(&self) {
        self.queue.ledger().is_held = true;
        self.handle.look_again();
    }

    fn release_idle(&self) {
        self.queue.ledger().is_held = false;
        self.handle.committed();
    }

    fn requests(&self) -> usize {
        self.endpoint.seen().len()
    }

    /// The numbers of all events sent so far, in the order of sending.
    fn sent(&self) -> Vec<u64> {
        self.endpoint.seen().into_iter().flat_map(|seen| seen.events).collect()
    }

    async fn requested(&self, requests: usize) {
        self.until(|rig| rig.requests() == requests).await;
    }

    async fn keeps_nothing(&self) {
        self.until(|rig| rig.queue.ledger().out.is_empty()).await;
    }
}

/// Takes each request, after a second.
fn slowly(_: &Seen) -> Reply {
    Reply::ok().after(Duration::from_secs(1))
}

fn one_by_one(parts: &mut EngineParts) {
    parts.options.max_batch_events = 1;
}

#[tokio::test(start_paused = true)]
async fn a_failed_request_is_not_repeated_while_opted_out() {
    let rig = Rig::with(
        queue_of(2, 5),
        |_| Reply::new(503, ""),
        |parts| {
            parts.options.protocol = CaptureProtocol::V1;
        },
    );
    rig.requested(1).await;
    rig.hold();
    let begun = Instant::now();
    rig.keeps_nothing().await;
    assert!(begun.elapsed() < Duration::from_millis(100), "before any attempt would be due");
    sleep(LONG).await;
    assert_eq!((rig.requests(), rig.queue.queued().len()), (1, 10));
    rig.endpoint.change(|seen| Reply::results(seen, &["ok"]));
    let begun = Instant::now();
    rig.release_idle();
    rig.drained().await;
    assert!(begun.elapsed() < Duration::from_secs(1), "what it would have waited for is long over");
    let seen = rig.endpoint.seen();
    // One event first, for it has failed before.
    assert_eq!((seen[1].events.len(), seen[1].header("posthog-attempt"), rig.queue.delivered()), (1, "1", 10));
    assert_ne!(seen[0].header("posthog-request-id"), seen[1].header("posthog-request-id"));
}

#[tokio::test(start_paused = true)]
async fn leases_read_ahead_are_released_when_opted_out() {
    let rig = Rig::with(queue_of(3, 10), slowly, one_by_one);
    rig.requested(1).await;
    rig.hold();
    rig.keeps_nothing().await;
    sleep(LONG).await;
    assert_eq!((rig.sent(), rig.queue.delivered(), rig.queue.queued().len()), (vec![1], 1, 29));
    assert_eq!(rig.handle.state().phase, Phase::Idle, "as if there was nothing to send");
    rig.release_idle();
    rig.drained().await;
    let sent = rig.sent();
    assert_eq!((sent.len(), sent.iter().collect::<HashSet<_>>().len(), rig.queue.delivered()), (30, 30, 30));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_encoded_during_an_opt_out_is_not_sent() {
    let queue = queue_of(2, 5);
    queue.ledger().is_held = true;
    let rig = Rig::start(queue, |_| Reply::ok());
    sleep(LONG).await;
    {
        let mut ledger = rig.queue.ledger();
        (ledger.is_held, ledger.is_held_once_read) = (false, true);
    }
    rig.handle.committed();
    rig.until(|rig| rig.queue.ledger().is_held).await;
    rig.keeps_nothing().await;
    assert_eq!((rig.requests(), rig.queue.queued().len()), (0, 10));
    rig.release_idle();
    rig.drained().await;
    assert_eq!((rig.sent().len(), rig.queue.delivered()), (10, 10));
}

#[tokio::test(start_paused = true)]
async fn a_flush_of_a_held_queue_is_over_with_what_is_under_way() {
    let rig = Rig::with(queue_of(3, 10), slowly, one_by_one);
    rig.requested(1).await;
    rig.hold();
    let flushed = rig.flush().await;
    assert_eq!((flushed.delivered, flushed.endpoint), (1, EndpointStatus::Up));
    let begun = Instant::now();
    rig.commit(5);
    let flushed = rig.flush().await;
    assert_eq!((flushed.delivered, flushed.endpoint, begun.elapsed()), (0, EndpointStatus::Up, Duration::ZERO));
    assert_eq!((rig.requests(), rig.queue.queued().len()), (1, 34));
}

#[tokio::test(start_paused = true)]
async fn a_flush_during_an_opt_out_reports_a_failed_request() {
    let rig = Rig::start(queue_of(1, 5), |_| Reply::new(503, "").after(Duration::from_secs(1)));
    rig.requested(1).await;
    let (flushed, ()) = tokio::join!(rig.flush(), async { rig.hold() });
    assert!(matches!(flushed.endpoint, EndpointStatus::Down { .. }), "{flushed:?}");
    sleep(LONG).await;
    assert_eq!(rig.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_opted_out_waits_for_requests_in_flight() {
    let rig = Rig::with(queue_of(3, 10), slowly, one_by_one);
    rig.requested(1).await;
    rig.hold();
    let endpoint = rig.endpoint.clone();
    let (queue, took) = rig.stop(Duration::from_secs(10)).await;
    assert!(took <= Duration::from_secs(1), "{took:?}");
    assert_eq!((endpoint.seen().len(), queue.delivered(), queue.queued().len()), (1, 1, 29));
    assert!(queue.ledger().out.is_empty());

    let rig = Rig::start(queue_of(1, 5), |_| Reply::new(503, ""));
    rig.requested(1).await;
    rig.hold();
    let (queue, took) = rig.stop(Duration::from_secs(10)).await;
    assert_eq!((took, queue.queued().len()), (Duration::ZERO, 5));
}

#[tokio::test(start_paused = true)]
async fn a_bisection_begins_again_after_an_opt_out() {
    let mut refuse = refusing(&[40]);
    let rig = Rig::start(queue_of(1, 64), move |seen| refuse(seen).after(Duration::from_secs(1)));
    rig.requested(3).await;
    rig.hold();
    rig.keeps_nothing().await;
    let (requests, decided) = (rig.requests(), rig.queue.delivered());
    assert!(rig.dead_lettered().is_empty() && rig.queue.queued().len() as u64 == 64 - decided);
    sleep(LONG).await;
    assert_eq!(rig.requests(), requests);
    rig.release_idle();
    rig.drained().await;
    assert_eq!((rig.queue.delivered(), rig.dead_lettered()), (63, vec![40]));
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_outlasts_an_opt_out() {
    let rig = Rig::start(queue_of(1, 5), |_| Reply { retry_after: Some(600), ..Reply::new(429, "") });
    rig.requested(1).await;
    rig.hold();
    sleep(Duration::from_secs(300)).await;
    rig.endpoint.change(|_| Reply::ok());
    rig.release_idle();
    rig.drained().await;
    let seen = rig.endpoint.seen();
    assert!(seen[1].at >= Duration::from_secs(600), "{:?}", seen[1].at);
}

#[tokio::test(start_paused = true)]
async fn decisions_of_a_released_v1_request_are_kept() {
    let rig = Rig::with(
        queue_of(2, 2),
        |seen| Reply::results(seen, &["ok", "retry", "retry", "drop:no"]),
        |parts| parts.options.protocol = CaptureProtocol::V1,
    );
    rig.requested(1).await;
    rig.hold();
    rig.keeps_nothing().await;
    sleep(LONG).await;
    assert_eq!(
        (rig.requests(), rig.queue.delivered(), rig.dead_lettered(), rig.queue.queued()),
        (1, 1, vec![4], vec![2, 3])
    );
    rig.endpoint.change(|seen| Reply::results(seen, &["ok"]));
    rig.release_idle();
    rig.drained().await;
    assert_eq!((rig.sent(), rig.queue.delivered()), (vec![1, 2, 3, 4, 2, 3], 3));
}
