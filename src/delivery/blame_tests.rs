//! Bad events among good ones, for every kind of failure: how late the good events are delivered, and how many requests
//! that takes. The endpoint fails a request if and only if it contains a bad event. New events keep arriving; time is
//! simulated.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::engine_tests::{Rig, queue_of};
use super::fake::{FakeQueue, Reply};
use super::*;
use crate::report::EndpointStatus;
use crate::transport::{Http, Pending, Request, Response, TransportError};

const TIMEOUT: Duration = Duration::from_secs(30);
const ROUND_TRIP: Duration = Duration::from_millis(50);

/// What happens to a request with a bad event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Status(u16),
    Cut,
    Hang,
}

const FAILURES: [Failure; 12] = [
    Failure::Status(400),
    Failure::Status(401),
    Failure::Status(402),
    Failure::Status(403),
    Failure::Status(406),
    Failure::Status(408),
    Failure::Status(429),
    Failure::Status(500),
    Failure::Status(502),
    Failure::Status(503),
    Failure::Cut,
    Failure::Hang,
];

#[derive(Default)]
struct Seen {
    /// By event, when it was first accepted.
    accepted: HashMap<u64, Instant>,
    /// Requests with a bad event: when they were sent, how many events they had.
    failed: Vec<(Instant, usize)>,
    requests: usize,
    in_flight: usize,
    most_in_flight: usize,
}

/// An endpoint that fails each request that contains a bad event.
struct Endpoint {
    bad: BTreeSet<u64>,
    failure: Failure,
    protocol: CaptureProtocol,
    /// The additional time that a failure takes for each event of the request.
    slower: Duration,
    seen: Arc<Mutex<Seen>>,
}

/// The numbers of the events in a body, without the cost of parsing all of it.
fn numbers(body: &[u8]) -> Vec<u64> {
    let text = std::str::from_utf8(body).unwrap();
    let names = text.split(r#""event":"event "#).skip(1);
    names.map(|rest| rest[..rest.find('"').unwrap()].parse().unwrap()).collect()
}

impl Http for Endpoint {
    fn send(&self, request: Request) -> Pending {
        let events = numbers(&request.body);
        let is_bad = events.iter().any(|event| self.bad.contains(event));
        let (failure, protocol, seen) = (self.failure, self.protocol, Arc::clone(&self.seen));
        let slower = self.slower * u32::try_from(events.len()).unwrap();
        {
            let mut seen = seen.lock().unwrap();
            seen.requests += 1;
            seen.in_flight += 1;
            seen.most_in_flight = seen.most_in_flight.max(seen.in_flight);
            if is_bad {
                seen.failed.push((Instant::now(), events.len()));
            }
        }
        let in_flight = UnderWay(Arc::clone(&seen));
        Box::pin(async move {
            let _under_way = in_flight;
            sleep(if is_bad && failure == Failure::Hang { TIMEOUT } else { ROUND_TRIP }).await;
            if is_bad {
                sleep(slower).await;
                return match failure {
                    Failure::Status(status) => Ok(answer(status, "<html>no</html>".to_owned())),
                    Failure::Cut => Err(TransportError::Other("cut".into())),
                    Failure::Hang => Err(TransportError::Timeout("late".into())),
                };
            }
            let mut seen = seen.lock().unwrap();
            events.iter().for_each(|&event| {
                seen.accepted.entry(event).or_insert_with(Instant::now);
            });
            let verdict = |&event: &u64| (Uuid::from_u128(event.into()).to_string(), json!({"result": "ok"}));
            Ok(match protocol {
                CaptureProtocol::V0 => answer(200, r#"{"status":1}"#.to_owned()),
                CaptureProtocol::V1 => {
                    let results: serde_json::Map<_, _> = events.iter().map(verdict).collect();
                    answer(200, json!({"results": results}).to_string())
                }
            })
        })
    }
}

struct UnderWay(Arc<Mutex<Seen>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.lock().unwrap().in_flight -= 1;
    }
}

fn answer(status: u16, body: String) -> Response {
    Response { status, body: body.into_bytes(), ..Response::default() }
}

/// An engine that delivers the events of `queue` to an [`Endpoint`].
fn rig(queue: FakeQueue, bad: BTreeSet<u64>, failure: Failure, protocol: CaptureProtocol) -> (Rig, Arc<Mutex<Seen>>) {
    rig_with(queue, bad, failure, protocol, Duration::ZERO, 1)
}

fn rig_with(
    queue: FakeQueue,
    bad: BTreeSet<u64>,
    failure: Failure,
    protocol: CaptureProtocol,
    slower: Duration,
    seed: u64,
) -> (Rig, Arc<Mutex<Seen>>) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let endpoint = Endpoint { bad, failure, protocol, slower, seen: Arc::clone(&seen) };
    let rig = Rig::with(
        queue,
        |_| Reply::ok(),
        |parts| {
            parts.transport = Arc::new(endpoint);
            parts.on_delivery = None;
            parts.options.protocol = protocol;
            parts.seed = seed;
        },
    );
    (rig, seen)
}

/// Where the bad events are.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// Every third event, from the tenth on.
    Spread,
    /// Only bad events for twenty seconds, one after the other; then only good ones.
    First,
    /// All bad events in one chunk, with twenty good events before them and twenty after them.
    Burst,
}

const LAYOUTS: [Layout; 3] = [Layout::First, Layout::Spread, Layout::Burst];

/// The result of one run.
struct Late {
    /// Time from commit to acceptance of each good event, sorted.
    latencies: Vec<Duration>,
    requests: usize,
    failed: usize,
}

impl Late {
    fn most(&self) -> Duration {
        self.latencies.last().copied().unwrap_or_default()
    }
}

/// Commits `rate` events a second for a while, with `bad` bad events placed by `layout`, and measures how long after
/// its commit each good event is accepted.
async fn run((failure, protocol): (Failure, CaptureProtocol), bad: u64, rate: u64, layout: Layout, seed: u64) -> Late {
    let numbers: BTreeSet<u64> = match layout {
        Layout::First => (1..=bad).collect(),
        Layout::Spread => (0..bad).map(|nth| 10 + 3 * nth).collect(),
        Layout::Burst => (1_000_000..1_000_000 + bad).collect(),
    };
    let (rig, seen) = rig_with(FakeQueue::default(), numbers.clone(), failure, protocol, Duration::ZERO, seed);
    let mut committed = HashMap::new();
    let begun = Instant::now();
    let tick = Duration::from_millis(200).max(Duration::from_secs(1) / u32::try_from(rate).unwrap());
    let per_tick = (rate / 5).max(1);
    // Long enough to commit all bad events, and for the outage that a hanging request causes to end.
    let lasts = Duration::from_secs(if rate > 1 { 10 } else { 75 });
    let mut next = 1;
    if matches!(layout, Layout::First) {
        for event in 1..=bad {
            rig.queue.commit_chunk(fake::chunk(0, event, 1));
            rig.handle.committed();
            sleep(Duration::from_secs(20) / u32::try_from(bad).unwrap()).await;
        }
        next += bad;
    }
    let begun = begun.max(Instant::now());
    while begun.elapsed() < lasts {
        rig.queue.commit_chunk(fake::chunk(0, next, per_tick));
        rig.handle.committed();
        committed.extend((next..next + per_tick).map(|event| (event, Instant::now())));
        next += per_tick;
        if matches!(layout, Layout::Burst) && begun.elapsed() < tick {
            rig.queue.commit_chunk(fake::chunk(0, 1_000_000 - 20, bad + 40));
            committed.extend((1_000_000 - 20..1_000_000 + bad + 20).map(|event| (event, Instant::now())));
        }
        sleep(tick).await;
    }
    let good: Vec<_> = committed.iter().filter(|(event, _)| !numbers.contains(event)).collect();
    for _ in 0..200 {
        if seen.lock().unwrap().accepted.len() == good.len() {
            break;
        }
        sleep(Duration::from_secs(1)).await;
    }
    let seen = seen.lock().unwrap();
    let late = |(event, at): &(&u64, &Instant)| {
        seen.accepted.get(*event).map_or(Duration::from_secs(999), |accepted| *accepted - **at)
    };
    let mut latencies: Vec<_> = good.iter().map(late).collect();
    latencies.sort();
    assert!(seen.most_in_flight <= 4, "{} requests in flight", seen.most_in_flight);
    assert!(rig.dead_lettered().is_empty(), "only a refusal by PostHog may dead-letter an event");
    Late { latencies, requests: seen.requests, failed: seen.failed.len() }
}

async fn assert_timely(failures: &[Failure], bads: &[u64], rates: &[u64], protocols: &[CaptureProtocol]) {
    let mut worst = String::new();
    for &bad in bads {
        for &rate in rates {
            for layout in LAYOUTS {
                // At a low rate one run has too few good events for a percentile, so it is taken over all runs. The
                // runs differ in their jitter.
                let mut all = Vec::new();
                let cell = format!("{bad} bad, {rate}/s, {layout:?}");
                let runs = failures.iter().flat_map(|f| protocols.iter().map(move |p| (*f, *p))).zip(1..);
                for ((failure, protocol), seed) in runs {
                    let late = run((failure, protocol), bad, rate, layout, seed).await;
                    let (p99, most) = (p99(&late.latencies), late.most());
                    let requests = format!("{} requests, {} failed", late.requests, late.failed);
                    let what = format!("{failure:?}, {protocol:?}, {cell}: p99 {p99:?}, most {most:?}; {requests}");
                    eprintln!("{what}");
                    let is_hang = failure == Failure::Hang;
                    if most > if is_hang { TIMEOUT * 3 } else { Duration::from_secs(30) } {
                        worst = format!("{worst}\n{what}");
                    }
                    all.extend(late.latencies.into_iter().filter(|_| !is_hang));
                }
                all.sort();
                if p99(&all) > Duration::from_secs(10) {
                    worst = format!("{worst}\n{cell}: p99 {:?} of {} events", p99(&all), all.len());
                }
            }
        }
    }
    assert!(worst.is_empty(), "too late: {worst}");
}

/// The 99th percentile. `latencies` must be sorted.
fn p99(latencies: &[Duration]) -> Duration {
    latencies.get(latencies.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default()
}

const BOTH: [CaptureProtocol; 2] = [CaptureProtocol::V0, CaptureProtocol::V1];

#[tokio::test(start_paused = true)]
async fn good_events_at_a_low_rate_are_in_time_for_any_failure() {
    assert_timely(&FAILURES, &[1, 20], &[1, 5], &BOTH).await;
}

#[tokio::test(start_paused = true)]
async fn good_events_at_a_high_rate_are_in_time_for_any_failure() {
    assert_timely(&FAILURES, &[3, 20], &[200], &[CaptureProtocol::V0]).await;
    assert_timely(&[Failure::Status(503), Failure::Cut, Failure::Hang], &[20], &[200], &[CaptureProtocol::V1]).await;
    assert_timely(
        &[Failure::Status(403), Failure::Status(503), Failure::Cut, Failure::Hang],
        &[20],
        &[1000],
        &[CaptureProtocol::V0],
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_delivers_the_good_events_around_a_bad_one() {
    for failure in FAILURES {
        for protocol in BOTH {
            for bad in [1, 17, 50] {
                let (rig, seen) = rig(queue_of(1, 50), BTreeSet::from([bad]), failure, protocol);
                let begun = Instant::now();
                let flushed = rig.flush().await;
                let (accepted, took) = (seen.lock().unwrap().accepted.len(), begun.elapsed());
                assert_eq!((accepted, flushed.endpoint), (49, EndpointStatus::Up), "{failure:?} {protocol:?} {bad}");
                let most = if failure == Failure::Hang { TIMEOUT * 2 } else { Duration::from_secs(6) };
                assert!(took < most, "{failure:?} {protocol:?} {bad}: {took:?}");
                rig.until(|rig| rig.queue.queued() == [bad]).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_delivers_the_good_events_around_a_bad_one() {
    for failure in FAILURES {
        for protocol in BOTH {
            for has_failed_before in [false, true] {
                let (rig, seen) = rig(queue_of(1, 50), BTreeSet::from([17]), failure, protocol);
                if has_failed_before {
                    rig.until(|_| !seen.lock().unwrap().failed.is_empty()).await;
                    sleep(ROUND_TRIP * 2).await;
                }
                let within = if failure == Failure::Hang { TIMEOUT * 3 } else { Duration::from_secs(10) };
                let (queue, took) = rig.stop(within).await;
                assert_eq!(queue.queued(), [17], "{failure:?} {protocol:?} {has_failed_before}, {took:?}");
            }
        }
    }
}

/// Two requests in flight at the same time, each with a bad event. The smaller one fails first.
async fn two_that_fail_together(failure: Failure, protocol: CaptureProtocol) -> (Rig, Arc<Mutex<Seen>>) {
    let slower = Duration::from_millis(4);
    let (rig, seen) = rig_with(FakeQueue::default(), BTreeSet::from([101, 200]), failure, protocol, slower, 1);
    // After accepted events, the engine allows more than one request at a time.
    for event in [300, 301] {
        rig.queue.commit_chunk(fake::chunk(0, event, 1));
        rig.handle.committed();
        sleep(Duration::from_secs(1)).await;
    }
    rig.queue.commit_chunk(fake::chunk(0, 1, 101));
    rig.handle.committed();
    sleep(ROUND_TRIP * 2).await;
    rig.queue.commit_chunk(fake::chunk(0, 200, 1));
    rig.handle.committed();
    sleep(ROUND_TRIP).await;
    (rig, seen)
}

#[tokio::test(start_paused = true)]
async fn two_batches_that_fail_together_are_both_bisected() {
    for failure in FAILURES.into_iter().filter(|failure| *failure != Failure::Hang) {
        for protocol in BOTH {
            let (_rig, seen) = two_that_fail_together(failure, protocol).await;
            let begun = Instant::now();
            while seen.lock().unwrap().accepted.len() < 102 {
                let seen = seen.lock().unwrap().accepted.len();
                assert!(begun.elapsed() < Duration::from_secs(30), "{failure:?} {protocol:?}: {seen}");
                sleep(ROUND_TRIP).await;
            }
            let (rig, _) = two_that_fail_together(failure, protocol).await;
            let (queue, took) = rig.stop(Duration::from_secs(10)).await;
            assert_eq!(queue.queued(), [101, 200], "{failure:?} {protocol:?}, {took:?}");
        }
    }
}

/// The number of requests until all good events are delivered, if `bad` of a thousand events are bad.
async fn cost(failure: Failure, bad: u64) -> usize {
    let bad: BTreeSet<u64> = (0..bad).map(|nth| 1 + nth * 1000 / bad + 13).collect();
    let (rig, seen) = rig(queue_of(4, 250), bad.clone(), failure, CaptureProtocol::V0);
    rig.until(|_| seen.lock().unwrap().accepted.len() == 1000 - bad.len()).await;
    let requests = seen.lock().unwrap().requests;
    eprintln!("{failure:?}: {requests} requests for {} bad events in a thousand", bad.len());
    requests
}

#[tokio::test(start_paused = true)]
async fn a_bisection_takes_under_60_requests_per_bad_event() {
    assert!(cost(Failure::Status(500), 1).await < 40);
    assert!(cost(Failure::Status(500), 20).await < 20 * 20);
    // A batch that hangs is split into eight parts, and the parts do not grow again: more requests in all, but fewer
    // that hang.
    assert!(cost(Failure::Hang, 1).await < 60);
    assert!(cost(Failure::Hang, 20).await < 60 * 20);
}
