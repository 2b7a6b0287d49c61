//! Refusals (400 and 413) of single events among good ones, and endpoints that refuse everything.

use std::time::Duration;

use super::engine_tests::{Rig, queue_of, refusing};
use super::fake::Reply;
use super::*;
use crate::report::{Diagnostic, EndpointStatus};

#[tokio::test(start_paused = true)]
async fn a_bad_event_among_a_hundred_is_found_and_dead_lettered() {
    for bad in [&[1_u64][..], &[50], &[100], &[3, 4], &[1, 100], &[10, 30, 50, 70, 90]] {
        let bad: &'static [u64] = Box::leak(bad.into());
        let rig = Rig::start(queue_of(4, 25), refusing(bad));
        rig.drained().await;
        assert_eq!((rig.queue.delivered(), rig.dead_lettered()), (100 - bad.len() as u64, bad.to_vec()));
        let dead = rig.queue.ledger().dead_lettered[0].clone();
        assert_eq!((dead.status, dead.reason.as_str()), (400, "event submitted with an empty event name"));
        assert!(dead.attempts > 1 && dead.body == super::fake::record(dead.seq));
        assert!(rig.endpoint.seen().len() < 40 * bad.len());
        assert!(
            rig.reported
                .lock()
                .unwrap()
                .iter()
                .any(|reported| reported.starts_with(&format!("[{}] DeadLettered", dead.seq)))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn bad_events_spread_over_the_queue_cost_a_few_requests_each() {
    for every in [200, 40, 10, 3, 2] {
        let is_bad = move |event: u64| event % every == 1;
        let rig = Rig::start(queue_of(20, 500), move |seen| {
            if seen.events.iter().any(|&event| is_bad(event)) { Reply::bad_event() } else { Reply::ok() }
        });
        let begun = tokio::time::Instant::now();
        rig.drained().await;
        let bad: Vec<_> = (1..=10_000).filter(|&event| is_bad(event)).collect();
        assert_eq!(rig.dead_lettered(), bad);
        let requests = rig.endpoint.seen().len();
        // Requests for each bad event when batches are halved: 18 if one event in 200 is bad, 2.5 if every second one
        // is. That is twice the theoretical minimum.
        assert!(requests < 20 * bad.len(), "{requests} requests for one bad event in {every}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?} for one bad event in {every}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_refuses_everything_dead_letters_nothing() {
    for reply in [
        Reply::bad_event(),
        Reply::new(400, "<html>blocked</html>"),
        Reply::new(413, "<html>too large</html>"),
        Reply::new(413, r#"{"error":"payload_too_large"}"#),
        Reply::new(403, "forbidden"),
    ] {
        let rig = Rig::start(queue_of(20, 100), move |_| reply.clone());
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!((rig.queue.queued().len(), rig.queue.acks()), (2000, 0));
        assert!(rig.endpoint.seen().len() < 1500, "{}", rig.endpoint.seen().len());
        rig.endpoint.change(|_| Reply::ok());
        rig.drained().await;
        assert_eq!(rig.queue.delivered(), 2000);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_bad_event_is_quarantined_until_another_is_accepted() {
    let rig = Rig::start(queue_of(1, 1), refusing(&[1]));
    let outcome = rig.flush().await;
    let reason = "HTTP status 400: event submitted with an empty event name".to_owned();
    assert_eq!((outcome.dead_lettered, outcome.endpoint), (0, EndpointStatus::Refusing { reason }));
    let state = rig.handle.state();
    assert!(matches!(state.phase, Phase::Quarantined { .. }), "{state:?}");
    assert_eq!((state.quarantined, state.consecutive_failures), (1, 0));
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(rig.endpoint.seen().len(), 1, "it is not tried again before there is evidence");
    assert_eq!(rig.noticed(|notice| matches!(notice, Diagnostic::Quarantined { .. })), 1);
    rig.commit(1);
    rig.drained().await;
    assert_eq!((rig.queue.delivered(), rig.dead_lettered()), (1, vec![1]));
    assert_eq!(rig.endpoint.seen().len(), 3);
    rig.until(|rig| rig.handle.state().phase == Phase::Idle).await;
    assert_eq!((rig.handle.state().quarantined, rig.flush().await.endpoint), (0, EndpointStatus::Up));
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_refused_entirely_is_reported_as_refusing() {
    for reply in [Reply::new(400, r#"{"detail":"nope"}"#), Reply::new(413, "<html>too large</html>")] {
        let said = format!("HTTP status {}: {}", reply.status, reply.body);
        let rig = Rig::start(queue_of(1, 3), move |_| reply.clone());
        assert_eq!(rig.flush().await.endpoint, EndpointStatus::Refusing { reason: said.clone() });
        let state = rig.handle.state();
        assert!(matches!(state.phase, Phase::Quarantined { until } if until > 30_000_000_000), "{state:?}");
        assert_eq!((state.quarantined, state.last_error), (3, Some(said.clone())));
        assert_eq!(rig.noticed(|notice| matches!(notice, Diagnostic::Quarantined { .. })), 3);
        // They are tried again and refused again, which is not reported again.
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(rig.endpoint.seen().len() > 8);
        assert_eq!(rig.noticed(|notice| matches!(notice, Diagnostic::Quarantined { .. })), 3);
        assert_eq!(rig.stopped(Duration::from_secs(10)).await.0, EndpointStatus::Refusing { reason: said });
    }
}

#[tokio::test(start_paused = true)]
async fn one_refused_event_does_not_make_the_endpoint_refusing() {
    let rig = Rig::start(queue_of(2, 5), |seen| {
        if seen.events.contains(&7) { Reply::new(413, "<html>413</html>") } else { Reply::ok() }
    });
    rig.until(|rig| rig.queue.queued() == [7]).await;
    assert_eq!(rig.flush().await.endpoint, EndpointStatus::Up);
    assert!(matches!(rig.handle.state().phase, Phase::Quarantined { .. }));
    assert_eq!(rig.handle.state().quarantined, 1);
}

#[tokio::test(start_paused = true)]
async fn a_quarantined_event_is_tried_again_after_a_cooldown() {
    let rig = Rig::start(queue_of(1, 1), refusing(&[1]));
    rig.flush().await;
    rig.endpoint.change(|_| Reply::ok());
    rig.drained().await;
    let seen = rig.endpoint.seen();
    assert!(seen.len() == 2 && seen[1].at >= Duration::from_secs(30));
    assert_eq!((rig.queue.delivered(), rig.dead_lettered().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_does_not_hold_back_others_of_its_chunk() {
    // All but the last event are refused. That the last one is accepted is evidence against the others.
    let rig = Rig::start(queue_of(1, 4), refusing(&[1, 2, 3]));
    rig.drained().await;
    assert_eq!((rig.queue.delivered(), rig.dead_lettered()), (1, vec![1, 2, 3]));
}

#[tokio::test(start_paused = true)]
async fn a_large_body_is_split_until_it_passes() {
    let rig = Rig::start(queue_of(100, 100), |seen| {
        if seen.events.len() > 120 { Reply::new(413, "<html>413</html>") } else { Reply::ok() }
    });
    rig.drained().await;
    assert_eq!((rig.queue.delivered(), rig.dead_lettered().len()), (10_000, 0));
    let refused = rig.endpoint.seen().iter().filter(|seen| seen.events.len() > 120).count();
    assert!(refused < 25, "{refused} of {}", rig.endpoint.seen().len());
}

#[tokio::test(start_paused = true)]
async fn a_body_too_large_for_a_proxy_is_split_whatever_it_answers() {
    for reply in [Reply::new(504, "gateway timeout"), Reply::new(502, ""), Reply::broken()] {
        let rig = Rig::start(
            queue_of(100, 100),
            move |seen| {
                if seen.events.len() > 120 { reply.clone() } else { Reply::ok() }
            },
        );
        let begun = tokio::time::Instant::now();
        rig.drained().await;
        assert_eq!((rig.queue.delivered(), rig.dead_lettered().len()), (10_000, 0));
        assert!(begun.elapsed() < Duration::from_secs(300), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_too_large_for_a_proxy_is_kept_and_others_pass() {
    let rig = Rig::start(queue_of(2, 50), |seen| {
        if seen.events.contains(&7) { Reply::new(413, "<html>413</html>") } else { Reply::ok() }
    });
    rig.until(|rig| rig.queue.queued() == [7]).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    rig.commit(10);
    rig.until(|rig| rig.queue.queued() == [7]).await;
    assert_eq!((rig.queue.delivered(), rig.dead_lettered().len()), (109, 0));
}

#[tokio::test(start_paused = true)]
async fn bad_events_at_the_head_do_not_block_the_queue() {
    let rig = Rig::with(
        queue_of(60, 10),
        |seen| if seen.events.iter().any(|&event| event <= 300) { Reply::bad_event() } else { Reply::ok() },
        |parts| parts.options.max_batch_events = 100,
    );
    rig.until(|rig| rig.queue.delivered() == 300).await;
    assert!(rig.endpoint.seen().last().unwrap().at < Duration::from_secs(120));
    // New events are delivered past the remaining bad ones. Each success shows that the endpoint works, so the bad ones
    // are then dead-lettered.
    for number in 1..=1000 {
        rig.commit(1);
        let begun = tokio::time::Instant::now();
        rig.until(|rig| rig.queue.delivered() >= 300 + number).await;
        assert!(begun.elapsed() < Duration::from_secs(65), "{:?} for event {number}", begun.elapsed());
        if rig.queue.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(rig.dead_lettered(), (1..=300).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_breaks_the_server_does_not_block_others() {
    let rig = Rig::with(
        queue_of(30, 50),
        |seen| if seen.events.contains(&7) { Reply::new(500, "oops") } else { Reply::ok() },
        |parts| parts.options.max_batch_events = 50,
    );
    let begun = tokio::time::Instant::now();
    rig.until(|rig| rig.queue.delivered() == 1499).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(rig.queue.queued(), [7]);
    // In an hour of capture, the event that breaks the server is tried now and then, not after each success.
    let before = rig.endpoint.seen().len();
    for _ in 0..360 {
        rig.commit(1);
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let breaking = rig.endpoint.seen()[before..].iter().filter(|seen| seen.events.contains(&7)).count();
    assert!((3..60).contains(&breaking), "{breaking}");
    rig.endpoint.change(|_| Reply::ok());
    rig.drained().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_during_a_bisection_acks_what_is_decided() {
    let mut requests = 0;
    let rig = Rig::start(queue_of(1, 64), move |seen| {
        requests += 1;
        match requests {
            1..6 if seen.events.contains(&3) => Reply::bad_event(),
            1..6 => Reply::ok(),
            _ => Reply::new(503, ""),
        }
    });
    assert!(matches!(rig.flush().await.endpoint, EndpointStatus::Down { .. }));
    let queued = rig.queue.queued();
    assert!(queued.contains(&3) && queued.len() < 64, "{queued:?}");
    assert_eq!(rig.queue.delivered(), 64 - queued.len() as u64);
    rig.endpoint.change(refusing(&[3]));
    rig.commit(1);
    rig.drained().await;
    assert_eq!((rig.queue.delivered(), rig.dead_lettered()), (64, vec![3]));
    let delivered: usize =
        rig.reported.lock().unwrap().iter().filter(|reported| reported.ends_with("Delivered")).count();
    assert!(delivered > 2);
}

/// A queue that counts the rows that the engine has leased.
#[derive(Default)]
struct Counting {
    queue: super::fake::FakeQueue,
    out: std::sync::Mutex<std::collections::HashSet<ChunkRef>>,
    most: std::sync::atomic::AtomicUsize,
}

impl Source for Counting {
    fn lease(&self, max_bytes: usize, wants: &dyn Fn(ChunkRef) -> bool) -> Result<Vec<Lease>, SourceError> {
        let leases = self.queue.lease(max_bytes, wants)?;
        let mut out = self.out.lock().unwrap();
        out.extend(leases.iter().map(Lease::row));
        self.most.fetch_max(out.len(), std::sync::atomic::Ordering::SeqCst);
        Ok(leases)
    }

    fn lease_newest(&self, wants: &dyn Fn(ChunkRef) -> bool) -> Result<Option<Lease>, SourceError> {
        let newest = self.queue.lease_newest(wants)?;
        self.out.lock().unwrap().extend(newest.as_ref().map(Lease::row));
        Ok(newest)
    }

    fn waiting(&self) -> u64 {
        self.queue.waiting()
    }

    fn is_held(&self) -> bool {
        self.queue.is_held()
    }

    fn newest(&self) -> Option<ChunkRef> {
        self.queue.newest()
    }

    fn ack(&self, ack: Ack) {
        self.out.lock().unwrap().remove(&ack.row);
        self.queue.ack(ack);
    }

    fn stuck(&self, origin: u32) -> bool {
        self.queue.stuck(origin)
    }

    fn release(&self, row: ChunkRef) {
        self.out.lock().unwrap().remove(&row);
        self.queue.release(row);
    }

    fn pace(&self, phase: Phase, next_attempt: Option<WallNanos>) {
        self.queue.pace(phase, next_attempt);
    }
}

#[tokio::test(start_paused = true)]
async fn events_too_large_for_a_proxy_are_never_all_in_memory() {
    let source = Arc::new(Counting::default());
    for seq in 1..=24 {
        let event = crate::event::Event::new(format!("event {seq}"), "somebody").prop("pad", "x".repeat(300 * 1024));
        let record = event.finish(uuid::Uuid::from_u128(seq.into()), 0, 1 << 20).unwrap().body().to_vec();
        source.queue.commit_chunk(super::fake::chunk_of(0, seq, &[record]));
    }
    let is_giant = |event: &u64| event % 2 == 1;
    let script = move |seen: &super::fake::Seen| {
        if seen.events.iter().any(is_giant) { Reply::new(413, "<html>nginx</html>") } else { Reply::ok() }
    };
    let given = Arc::clone(&source) as Arc<dyn Source>;
    let rig = Rig::with(super::fake::FakeQueue::default(), script, |parts| {
        parts.source = given;
    });
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(source.queue.queued().len(), 12);
    source.most.store(0, std::sync::atomic::Ordering::SeqCst);
    // After an outage all large events are due for another attempt at the same time.
    rig.endpoint.change(|_| Reply::new(503, "down"));
    rig.handle.committed();
    tokio::time::sleep(Duration::from_secs(200)).await;
    rig.endpoint.change(script);
    tokio::time::sleep(Duration::from_secs(200)).await;
    let most = source.most.load(std::sync::atomic::Ordering::SeqCst);
    assert!((1..8).contains(&most), "{most} of 12 rows");
}
