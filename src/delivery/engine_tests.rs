//! The engine against a queue and an endpoint in memory, in tokio's paused time: hours pass in milliseconds.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::fake::{FakeEndpoint, FakeQueue, FnObserver, Reply, Seen, chunk_of, malformed_record, options, record};
use super::*;
use crate::report::{Diagnostic, EndpointStatus};
use crate::sys::clock::{Clock, ManualClock};

/// An engine at work between a fake queue and a fake endpoint.
pub(super) struct Rig {
    pub(super) queue: Arc<FakeQueue>,
    pub(super) endpoint: FakeEndpoint,
    pub(super) handle: DeliveryHandle,
    pub(super) notices: Arc<Mutex<Vec<Diagnostic>>>,
    pub(super) reported: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

/// How a flush went.
#[derive(Debug)]
pub(super) struct Flushed {
    pub(super) delivered: u64,
    pub(super) dead_lettered: u64,
    pub(super) endpoint: EndpointStatus,
}

impl Rig {
    /// Starts an engine on what is queued.
    pub(super) fn start(queue: FakeQueue, script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        Self::with(queue, script, |_| ())
    }

    pub(super) fn with(
        queue: FakeQueue,
        script: impl FnMut(&Seen) -> Reply + Send + 'static,
        adjust: impl FnOnce(&mut EngineParts),
    ) -> Self {
        let (queue, endpoint) = (Arc::new(queue), FakeEndpoint::new(script));
        let notices = Arc::new(Mutex::new(Vec::new()));
        let reported = Arc::new(Mutex::new(Vec::new()));
        let (to_notices, to_reported) = (Arc::clone(&notices), Arc::clone(&reported));
        let mut parts = EngineParts {
            options: options(),
            source: Arc::clone(&queue) as Arc<dyn Source>,
            transport: Arc::new(endpoint.clone()),
            clock: Clock::Manual(ManualClock::at(1_000_000_000)),
            report: Arc::new(move |notice| to_notices.lock().unwrap().push(notice)),
            on_delivery: Some(Arc::new(FnObserver(move |delivery: &DeliveryNotice<'_>| {
                let uuids: Vec<_> = delivery.uuids.iter().map(|uuid| uuid.as_u128()).collect();
                to_reported.lock().unwrap().push(format!("{uuids:?} {:?}", delivery.outcome));
            }))),
            next_attempt: None,
            seed: 1,
        };
        adjust(&mut parts);
        let handle = DeliveryHandle::default();
        let task = tokio::spawn(serve(parts, handle.clone()));
        Self { queue, endpoint, handle, notices, reported, task }
    }

    pub(super) fn commit(&self, count: u64) -> u64 {
        let first = self.queue.commit(count);
        self.handle.committed();
        first
    }

    pub(super) async fn flush(&self) -> Flushed {
        let count = || (self.queue.delivered(), self.dead_lettered().len() as u64);
        let before = count();
        let (done, outcome) = oneshot::channel();
        self.handle.flush(Box::new(move |endpoint| done.send(endpoint).unwrap()));
        let endpoint = outcome.await.unwrap();
        Flushed { delivered: count().0 - before.0, dead_lettered: count().1 - before.1, endpoint }
    }

    /// Stops the engine; gives the time that took.
    pub(super) async fn stop(self, within: Duration) -> (Arc<FakeQueue>, Duration) {
        let queue = Arc::clone(&self.queue);
        (queue, self.stopped(within).await.1)
    }

    /// Stops the engine; gives what it found, and the time that took.
    pub(super) async fn stopped(self, within: Duration) -> (EndpointStatus, Duration) {
        let (done, stopped) = oneshot::channel();
        let begun = Instant::now();
        self.handle.stop((begun + within).into_std(), Box::new(move |endpoint| done.send(endpoint).unwrap()));
        let endpoint = stopped.await.unwrap();
        self.task.await.unwrap();
        (endpoint, begun.elapsed())
    }

    /// Waits until nothing is queued.
    pub(super) async fn drained(&self) {
        self.until(|rig| rig.queue.is_empty()).await;
    }

    pub(super) async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let timeouts = Instant::now() + Duration::from_secs(86_400);
        let mut pause = Duration::from_millis(5);
        while !condition(self) {
            assert!(Instant::now() < timeouts, "{:?}", self.notices.lock().unwrap());
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    pub(super) fn dead_lettered(&self) -> Vec<u64> {
        let mut seqs: Vec<_> = self.queue.ledger().dead_lettered.iter().map(|dead| dead.seq).collect();
        seqs.sort_unstable();
        seqs
    }

    pub(super) fn noticed(&self, wanted: impl Fn(&Diagnostic) -> bool) -> usize {
        self.notices.lock().unwrap().iter().filter(|notice| wanted(notice)).count()
    }
}

pub(super) fn queue_of(chunks: u64, events: u64) -> FakeQueue {
    let queue = FakeQueue::default();
    (0..chunks).for_each(|_| {
        queue.commit(events);
    });
    queue
}

/// Refuses each batch that holds one of these events.
pub(super) fn refusing(bad: &'static [u64]) -> impl FnMut(&Seen) -> Reply + Send {
    move |seen| if seen.events.iter().any(|event| bad.contains(event)) { Reply::bad_event() } else { Reply::ok() }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[tokio::test(start_paused = true)]
async fn what_is_committed_is_delivered_in_order_and_acked_once() {
    let rig = Rig::start(queue_of(5, 30), |_| Reply::ok());
    rig.drained().await;
    rig.commit(7);
    let outcome = rig.flush().await;
    assert_eq!(outcome.endpoint, EndpointStatus::Up);
    let events: Vec<u64> = rig.endpoint.seen().into_iter().flat_map(|seen| seen.events).collect();
    assert_eq!(events, (1..=157).collect::<Vec<_>>());
    assert_eq!((rig.queue.delivered(), rig.queue.acks()), (157, 6));
    assert!(rig.notices.lock().unwrap().is_empty());
    assert_eq!(rig.reported.lock().unwrap().last().unwrap(), "[151, 152, 153, 154, 155, 156, 157] Delivered");
    assert_eq!(rig.handle.state().phase, Phase::Idle);
}

#[tokio::test(start_paused = true)]
async fn an_idle_engine_has_no_timer() {
    let rig = Rig::start(queue_of(1, 1), |_| Reply::ok());
    rig.drained().await;
    let (done, mut outcome) = oneshot::channel::<()>();
    tokio::spawn(async move {
        tokio::time::sleep(secs(1_000_000)).await;
        drop(done);
    });
    let before = Instant::now();
    // Paused time jumps to the next timer there is; the engine's would come first if it had one, and would be looked at
    // here.
    assert!(outcome.try_recv().is_err());
    assert!(outcome.await.is_err());
    assert_eq!(before.elapsed().as_secs(), 1_000_000);
    assert_eq!(rig.handle.state().phase, Phase::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_flush_ends_under_steady_capture() {
    for status in [200, 503] {
        let rig = Arc::new(Rig::start(queue_of(3, 10), move |_| {
            Reply::new(status, r#"{"status":1}"#).after(Duration::from_millis(50))
        }));
        let capturing = Arc::clone(&rig);
        let capture = tokio::spawn(async move {
            loop {
                capturing.commit(1);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let begun = Instant::now();
        let outcome = rig.flush().await;
        capture.abort();
        assert!(begun.elapsed() < secs(2));
        match status {
            200 => assert!(outcome.endpoint == EndpointStatus::Up && outcome.delivered >= 30, "{outcome:?}"),
            _ => assert!(
                matches!(outcome.endpoint, EndpointStatus::Down { .. }) && outcome.delivered == 0,
                "{outcome:?}"
            ),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_right_after_a_failure_makes_no_request() {
    let rig = Rig::start(queue_of(1, 5), |_| Reply::new(503, ""));
    rig.until(|rig| rig.endpoint.seen().len() == 4).await;
    for _ in 0..5 {
        assert!(matches!(rig.flush().await.endpoint, EndpointStatus::Down { .. }));
    }
    assert_eq!(rig.endpoint.seen().len(), 4);
    tokio::time::sleep(secs(2)).await;
    assert!(matches!(rig.flush().await.endpoint, EndpointStatus::Down { .. }));
    assert_eq!(rig.endpoint.seen().len(), 5);
    tokio::time::sleep(secs(2)).await;
    rig.endpoint.change(|_| Reply::ok());
    let outcome = rig.flush().await;
    assert_eq!((outcome.delivered, outcome.endpoint), (5, EndpointStatus::Up));
}

#[tokio::test(start_paused = true)]
async fn a_flush_during_the_only_request_ends_with_its_failure() {
    let rig = Rig::start(queue_of(1, 1), |_| Reply::new(503, "").after(secs(1)));
    rig.until(|rig| rig.endpoint.seen().len() == 1).await;
    let began = Instant::now();
    assert!(matches!(rig.flush().await.endpoint, EndpointStatus::Down { .. }));
    assert!(began.elapsed() <= secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_four_requests_and_then_a_cooldown() {
    let rig = Rig::start(queue_of(3, 400), |_| Reply::new(503, "transient error, please retry"));
    tokio::time::sleep(secs(15)).await;
    assert_eq!(rig.endpoint.seen().len(), 4);
    assert!(matches!(rig.handle.state().phase, Phase::Cooldown { .. }));
    assert_eq!(rig.noticed(is_cooldown), 1);
    tokio::time::sleep(secs(15)).await;
    assert_eq!(rig.endpoint.seen().len(), 4);
    rig.until(|rig| rig.endpoint.seen().len() == 8).await;
    assert_eq!(rig.queue.queued().len(), 1200);
    rig.until(|rig| rig.handle.state().consecutive_failures == 8).await;
    assert_eq!(rig.handle.state().last_success, None);
    assert!(rig.handle.state().last_error.unwrap().contains("503"));
}

#[tokio::test(start_paused = true)]
async fn recovery_doubles_the_requests_in_flight_up_to_the_limit() {
    let mut failures = 6;
    let rig = Rig::start(queue_of(60, 500), move |_| {
        failures -= i32::from(failures > 0);
        if failures > 0 { Reply::new(0, "refused") } else { Reply::ok().after(Duration::from_millis(50)) }
    });
    rig.drained().await;
    let in_flight: Vec<_> = rig.endpoint.seen().iter().map(|seen| seen.in_flight).collect();
    assert_eq!(in_flight[..8], [1, 1, 1, 1, 1, 1, 1, 2]);
    assert_eq!(in_flight.iter().max(), Some(&4));
    assert_eq!(rig.noticed(|notice| matches!(notice, Diagnostic::EndpointRecovered { .. })), 1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_of_a_year_is_cut_to_an_hour_and_stored() {
    let mut first = true;
    let rig = Rig::start(queue_of(1, 1), move |_| {
        let retry_after = std::mem::take(&mut first).then_some(365 * 86_400);
        Reply { retry_after, ..if retry_after.is_some() { Reply::new(429, "rate limited") } else { Reply::ok() } }
    });
    rig.drained().await;
    let seen = rig.endpoint.seen();
    assert!(seen[1].at >= secs(3600) && seen[1].at <= secs(3632), "{:?}", seen[1].at);
    let reported = rig.queue.ledger().next_attempts.clone();
    assert!(reported.iter().flatten().next().unwrap() >= &3_600_000_000_000 && reported.last() == Some(&None));
}

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_a_retry_after_of_an_earlier_process() {
    let rig = Rig::with(queue_of(1, 1), |_| Reply::ok(), |parts| parts.next_attempt = Some(61_000_000_000));
    let begun = Instant::now();
    assert!(
        matches!(rig.flush().await.endpoint, EndpointStatus::Down { retry_in: Some(wait), .. } if wait == secs(60))
    );
    rig.drained().await;
    assert_eq!(begun.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_pause_probes_with_one_event_at_a_time_and_is_reported_once() {
    for status in [401, 402, 403] {
        let rig = Rig::start(queue_of(3, 25), move |_| Reply::new(status, "<html>no</html>"));
        assert!(matches!(rig.flush().await.endpoint, EndpointStatus::Paused { .. }));
        rig.until(|rig| rig.endpoint.seen().len() == 10).await;
        let seen = rig.endpoint.seen();
        let sizes: Vec<_> = seen.iter().map(|seen| seen.events.len()).collect();
        assert_eq!(sizes, [75, 1, 1, 1, 1, 1, 1, 1, 1, 1], "{status}");
        let probed: std::collections::HashSet<_> = seen[1..].iter().map(|seen| seen.events[0]).collect();
        assert!(probed.len() >= 8, "{probed:?}");
        // Perhaps one of the events was refused and not the key: three others are tried as in an outage.
        assert!(seen[3].at < secs(8) && seen.windows(2).all(|two| two[1].at - two[0].at >= Duration::from_millis(100)));
        assert!(seen[4].at >= secs(30) && seen[4..].windows(2).all(|two| two[1].at - two[0].at >= secs(30)));
        assert_eq!(rig.noticed(|notice| matches!(notice, Diagnostic::Paused { .. })), 1);
        rig.endpoint.change(|_| Reply::ok());
        rig.drained().await;
        assert_eq!((rig.queue.delivered(), rig.dead_lettered().len()), (75, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_captive_portal_delivers_nothing() {
    let rig = Rig::start(queue_of(2, 10), |_| Reply::new(200, "<html>Sign in</html>"));
    assert!(matches!(rig.flush().await.endpoint, EndpointStatus::Down { .. }));
    assert_eq!(rig.noticed(|notice| matches!(notice, Diagnostic::NotPostHog { status: 200, .. })), 1);
    assert_eq!((rig.queue.queued().len(), rig.queue.acks()), (20, 0));
    assert!(rig.reported.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_quota_is_noticed_and_the_events_are_taken() {
    let rig = Rig::start(queue_of(1, 3), |_| Reply::new(200, r#"{"status":1,"quota_limited":["events"]}"#));
    assert_eq!(rig.flush().await.delivered, 3);
    let kinds = vec!["events".to_owned()];
    assert_eq!(rig.notices.lock().unwrap().as_slice(), [Diagnostic::QuotaLimited { kinds }]);
    for _ in 0..10 {
        rig.commit(3);
        assert_eq!(rig.flush().await.delivered, 3);
    }
    assert_eq!(rig.notices.lock().unwrap().len(), 1, "reported once, and not for every request");
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_record_is_dead_lettered_and_the_rest_is_sent() {
    let queue = FakeQueue::default();
    queue.commit_chunk(chunk_of(0, 1, &[malformed_record()]));
    queue.commit_chunk(chunk_of(0, 2, &[record(2), malformed_record(), record(4)]));
    let rig = Rig::start(queue, |_| Reply::ok());
    let outcome = rig.flush().await;
    assert_eq!((outcome.delivered, outcome.dead_lettered, rig.dead_lettered()), (2, 2, vec![1, 3]));
    assert_eq!(rig.queue.ledger().dead_lettered[0].status, 0);
}

#[tokio::test(start_paused = true)]
async fn a_chunk_larger_than_a_batch_is_cut() {
    let queue = queue_of(1, 25);
    queue.commit_chunk(chunk_of(0, 26, &[record(26), record(27)]));
    let rig = Rig::with(queue, |_| Reply::ok(), |parts| parts.options.max_batch_events = 10);
    rig.drained().await;
    let seen = rig.endpoint.seen();
    let sizes: Vec<_> = seen.iter().map(|seen| seen.events.len()).collect();
    assert_eq!(sizes, [10, 10, 7]);
    assert_eq!(rig.queue.acks(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_first_send_of_a_backlog_waits_for_its_turn() {
    let late = Rig::with(queue_of(1, 1), |_| Reply::ok(), |parts| parts.options.pace.first_send_jitter = secs(3600));
    tokio::time::sleep(secs(1)).await;
    assert!(late.endpoint.seen().is_empty());
    assert_eq!(late.handle.state().phase, Phase::Sending, "nothing has failed");
    assert_eq!(late.flush().await.delivered, 1);
    let fresh = Rig::with(queue_of(0, 0), |_| Reply::ok(), |parts| parts.options.pace.first_send_jitter = secs(3600));
    fresh.until(|rig| rig.handle.state().phase == Phase::Idle).await;
    tokio::time::sleep(secs(1)).await;
    fresh.commit(1);
    let begun = Instant::now();
    fresh.drained().await;
    assert!(begun.elapsed() < secs(1));
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_queue_is_reported_and_read_again() {
    let rig = Rig::start(queue_of(0, 0), |_| Reply::ok());
    rig.commit(3);
    rig.queue.ledger().is_broken = true;
    assert!(matches!(rig.flush().await.endpoint, EndpointStatus::Down { .. }));
    tokio::time::sleep(secs(60)).await;
    assert!((2..=20).contains(&rig.noticed(|notice| matches!(notice, Diagnostic::StorageFailing { .. }))));
    rig.queue.ledger().is_broken = false;
    rig.drained().await;
}

#[tokio::test(start_paused = true)]
async fn events_leased_before_a_failed_read_are_sent() {
    let queue = queue_of(2, 10);
    queue.ledger().is_broken_once_read = true;
    let rig = Rig::start(queue, |_| Reply::ok());
    rig.until(|rig| rig.queue.delivered() == 10).await;
    assert_eq!(rig.noticed(|notice| matches!(notice, Diagnostic::StorageFailing { .. })), 1);
    rig.queue.ledger().is_broken = false;
    rig.drained().await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_busy_is_read_when_delivery_is_woken() {
    let queue = queue_of(2, 10);
    queue.ledger().is_busy = true;
    let rig = Rig::start(queue, |_| Reply::ok());
    tokio::time::sleep(secs(60)).await;
    assert!(rig.endpoint.seen().is_empty() && rig.notices.lock().unwrap().is_empty());
    rig.queue.ledger().is_busy = false;
    rig.handle.committed();
    rig.drained().await;
    assert_eq!(rig.endpoint.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wake_up_during_a_request_is_not_spent_on_an_old_error() {
    let queue = queue_of(2, 10);
    queue.ledger().is_busy_once_read = true;
    let rig = Rig::start(queue, |seen| {
        let is_large = seen.body["batch"].as_array().is_some_and(|events| events.len() > 5);
        if is_large { Reply::new(413, "too large").after(secs(1)) } else { Reply::ok() }
    });
    rig.until(|rig| rig.endpoint.seen().len() == 1).await;
    rig.queue.ledger().is_busy = false;
    rig.handle.committed();
    tokio::time::timeout(secs(60), rig.drained()).await.expect("what was refused is sent in smaller requests");
}

#[tokio::test(start_paused = true)]
async fn a_callback_that_panics_is_reported_and_nothing_else() {
    let panicking = FnObserver(|_: &DeliveryNotice<'_>| panic!("the program's own mistake"));
    let rig = Rig::with(queue_of(1, 1), |_| Reply::ok(), |parts| parts.on_delivery = Some(Arc::new(panicking)));
    rig.drained().await;
    assert_eq!(rig.notices.lock().unwrap().as_slice(), [Diagnostic::CallbackPanicked { callback: "on_delivery" }]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_at_once_when_nothing_is_left() {
    let (queue, took) = Rig::start(queue_of(40, 100), |_| Reply::ok()).stop(secs(60)).await;
    assert!(queue.queued().is_empty() && took < secs(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_keeps_requests_in_flight_queued_at_its_deadline() {
    let mut answered = 0;
    let rig = Rig::with(
        queue_of(1, 30),
        move |_| {
            answered += 1;
            if answered == 1 { Reply::ok() } else { Reply::ok().after(secs(1000)) }
        },
        |parts| parts.options.max_batch_events = 10,
    );
    let (queue, took) = rig.stop(secs(3)).await;
    assert_eq!(took, secs(3));
    assert_eq!((queue.delivered(), queue.queued()), (10, (11..=30).collect()));
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_engine_acks_nothing_and_answers_all_waiters() {
    let rig = Rig::start(queue_of(1, 30), |_| Reply::ok().after(secs(1000)));
    rig.until(|rig| rig.endpoint.seen().len() == 1).await;
    let (done, outcome) = oneshot::channel();
    rig.handle.flush(Box::new(move |result| done.send(result).unwrap()));
    rig.handle.abandon();
    assert_eq!(outcome.await.unwrap(), EndpointStatus::Closed);
    assert_eq!((rig.queue.queued().len(), rig.queue.acks()), (30, 0));
    assert_eq!(rig.flush().await.endpoint, EndpointStatus::Closed, "also after the end");
    rig.stop(secs(1)).await;
}

/// Whether delivery fails for a reason that begins so.
pub(super) fn is_failing(diagnostic: &Diagnostic, beginning: &str) -> bool {
    matches!(diagnostic, Diagnostic::EndpointFailing { reason, .. } if reason.starts_with(beginning))
}

pub(super) fn is_cooldown(diagnostic: &Diagnostic) -> bool {
    matches!(diagnostic, Diagnostic::EndpointFailing { reason, .. } if reason.contains("in a row failed; last failure: "))
}
