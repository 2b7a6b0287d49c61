//! What an outage costs, and what is reported of it.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::oneshot;

use super::engine_tests::{Rig, is_cooldown, is_failing, queue_of};
use super::fake::Reply;
use super::*;
use crate::report::{Diagnostic, EndpointStatus};

#[tokio::test(start_paused = true)]
async fn an_outage_of_a_week_reports_each_kind_of_failure_once() {
    let mut answers = 0;
    let rig = Rig::start(queue_of(1, 3), move |_| {
        answers += 1;
        if answers % 3 == 0 { Reply::new(0, "refused") } else { Reply::new(503, "busy") }
    });
    tokio::time::sleep(Duration::from_secs(7 * 86_400)).await;
    assert!(rig.endpoint.seen().len() > 8_000);
    assert_eq!(rig.noticed(|notice| is_failing(notice, "HTTP status 503")), 1);
    assert_eq!(rig.noticed(|notice| !is_cooldown(notice) && !is_failing(notice, "HTTP status")), 1);
    let cooldowns = rig.noticed(is_cooldown);
    assert!((8..=14).contains(&cooldowns) && rig.notices.lock().unwrap().len() == cooldowns + 2, "{cooldowns}");
    let first = rig.notices.lock().unwrap().iter().find(|notice| is_cooldown(notice)).map(Diagnostic::to_string);
    let first = first.unwrap();
    assert!(
        first.contains("4 attempts in a row failed") && first.ends_with("last failure: HTTP status 503: busy"),
        "{first}"
    );
    let state = rig.handle.state();
    assert_eq!(state.failed_attempts, u64::from(state.consecutive_failures));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_reported_with_what_waits_and_until_when() {
    for (reply, at_least) in [(503, 0), (401, 30)] {
        let rig = Rig::start(queue_of(2, 3), move |_| Reply::new(reply, r#"{"error":"no"}"#));
        rig.until(|rig| rig.noticed(|_| true) > 0).await;
        let backlog = match &rig.notices.lock().unwrap()[0] {
            Diagnostic::EndpointFailing { backlog, .. } | Diagnostic::Paused { backlog, .. } => backlog.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!((&*backlog.host, backlog.events), ("http://fake", 6));
        assert!(backlog.next_attempt.is_some_and(|wait| wait.as_secs() >= at_least), "{backlog:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_outage_is_reported_again() {
    let rig = Rig::start(queue_of(1, 3), |_| Reply::new(503, ""));
    for outage in 1..=3 {
        rig.until(|rig| rig.handle.state().consecutive_failures >= 2).await;
        assert_eq!(rig.noticed(|notice| is_failing(notice, "HTTP status 503")), outage);
        rig.endpoint.change(|_| Reply::ok());
        rig.drained().await;
        assert_eq!(rig.noticed(|notice| matches!(notice, Diagnostic::EndpointRecovered { .. })), outage);
        rig.endpoint.change(|_| Reply::new(503, ""));
        rig.commit(3);
    }
    assert!(rig.handle.state().failed_attempts >= 2 * 3);
}

#[tokio::test(start_paused = true)]
async fn statistics_after_a_flush_agree_with_its_report() {
    let is_paused = |phase: Phase| matches!(phase, Phase::Paused { status: 401, .. });
    let is_backoff = |phase: Phase| matches!(phase, Phase::Backoff { .. });
    let is_idle = |phase: Phase| phase == Phase::Idle;
    let cases: [(u16, &dyn Fn(Phase) -> bool); 3] = [(401, &is_paused), (503, &is_backoff), (200, &is_idle)];
    for (status, is_expected) in cases {
        let rig = Rig::start(queue_of(1, 3), move |_| Reply::new(status, r#"{"status":1}"#));
        let (done, phase) = oneshot::channel();
        let handle = rig.handle.clone();
        rig.handle.flush(Box::new(move |_| done.send(handle.state().phase).unwrap()));
        let phase = phase.await.unwrap();
        assert!(is_expected(phase), "{status}: {phase:?}");
    }
}

/// Counts notifications, and observes nothing.
#[derive(Default)]
struct NotListening(Mutex<usize>);

impl DeliveryObserver for NotListening {
    fn is_listening(&self) -> bool {
        false
    }

    fn notify(&self, _ids: &[EventId], delivery: &DeliveryNotice<'_>) {
        *self.0.lock().unwrap() += delivery.uuids.len();
    }
}

#[tokio::test(start_paused = true)]
async fn uuids_are_not_gathered_without_an_observer() {
    for protocol in [CaptureProtocol::V0, CaptureProtocol::V1] {
        let observer = Arc::new(NotListening::default());
        let own = Arc::clone(&observer);
        let rig = Rig::with(
            queue_of(1, 30),
            |seen| match seen.url.contains("fake/batch") {
                true => Reply::results(seen, &["ok", "retry", "ok"]),
                false => Reply::ok(),
            },
            |parts| {
                parts.on_delivery = Some(own);
                parts.options.protocol = protocol;
            },
        );
        rig.drained().await;
        assert_eq!(*observer.0.lock().unwrap(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_does_not_wait_for_what_another_process_left_behind() {
    let queue = queue_of(1, 10);
    (0..200).for_each(|nth| queue.commit_chunk(super::fake::chunk(1, 1000 + 10 * nth, 10)));
    let slow = |_: &super::fake::Seen| Reply::ok().after(Duration::from_secs(1));
    let rig = Rig::with(queue, slow, |parts| parts.options.max_batch_events = 10);
    let begun = tokio::time::Instant::now();
    let flushed = rig.flush().await;
    assert!(begun.elapsed() <= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(flushed.endpoint == EndpointStatus::Up && rig.queue.queued().iter().all(|&event| event >= 1000));
    rig.drained().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_one_small_probe_at_a_time() {
    // Each with the most requests in 15 s, and in 2 min. Without a connection no event is the cause.
    let failures = [
        (Reply::new(503, ""), 14, 40),
        (Reply::broken(), 14, 40),
        (Reply::new(0, "refused"), 4, 12),
        (Reply::new(403, ""), 14, 40),
        (Reply::new(403, r#"{"error":"no"}"#), 4, 8),
    ];
    for (failure, most_at_first, most) in failures {
        let rig = Rig::start(queue_of(20, 50), |_| Reply::ok());
        rig.drained().await;
        let before = rig.endpoint.seen().len();
        let reply = failure.clone();
        rig.endpoint.change(move |_| reply.clone().after(Duration::from_millis(50)));
        for _ in 0..600 {
            rig.commit(3);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let seen = rig.endpoint.seen().split_off(before);
        let begun = seen[0].at;
        assert!(seen.iter().all(|seen| seen.in_flight == 1), "{failure:?}");
        // Where the first probe comes before any other event, it is the same three once more.
        assert!(seen[1].events.len() <= 3 && seen[2..].iter().all(|seen| seen.events.len() == 1), "{failure:?}");
        let first = seen.iter().filter(|seen| seen.at - begun < Duration::from_secs(15)).count();
        eprintln!("{failure:?}: {first} requests in 15 s, {} in two minutes", seen.len());
        assert!(
            (4..=most_at_first).contains(&first) && seen.len() <= most,
            "{failure:?}: {first} in 15 s, {} in all",
            seen.len()
        );
        rig.endpoint.change(|_| Reply::ok());
        rig.drained().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_outage_costs_a_few_hundred_probes() {
    for (failure, has_traffic, most) in [
        (Reply::new(503, ""), true, 400),
        (Reply::broken(), true, 400),
        (Reply::new(403, ""), true, 400),
        (Reply::new(0, "refused"), true, 90),
        (Reply::new(503, ""), false, 90),
    ] {
        let reply = failure.clone();
        let rig = Rig::start(queue_of(1, 3), move |_| reply.clone());
        for _ in 0..1800 {
            if has_traffic {
                rig.commit(1);
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let requests = rig.endpoint.seen().len();
        eprintln!("{failure:?}: {requests} requests in an hour, traffic: {has_traffic}");
        assert!(requests <= most, "{failure:?}: {requests}");
    }
}
