//! Days of one daemon, and the hour of an outage of ten thousand daemons, in tokio's paused time. The engine is the
//! real one; the queue and the server are in memory.
//!
//! What is scaled down so that a day takes seconds: a hundredth of the events (one a second instead of 100), in batches
//! of a hundredth (10 events instead of 1,000). The number of requests and all waits are those of the real rate. In a
//! build without optimization a day of a server that answers errors has 3 hours, because each probe looks at all rows,
//! and a herd has 2,000 daemons instead of 10,000, or 200 for an hour.
//!
//! The bounds were set from what was measured with these seeds. A new version of `rand` or `tokio` may draw other numbers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::engine_tests::{Rig, queue_of};
use super::fake::{FakeQueue, Reply};
use crate::transport::{Http, Pending, Request};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// A day of a server that answers errors.
const DAY_OF_ERRORS: Duration = if cfg!(debug_assertions) { Duration::from_secs(3 * 3600) } else { DAY };
/// A round trip.
const TAKES: Duration = Duration::from_millis(50);
/// The longest wait without a `Retry-After`: the last cooldown.
const LONGEST_COOLDOWN: Duration = Duration::from_secs(300);

/// The number of daemons that see a moment together, and of those that live through an hour together.
const HERD: u64 = if cfg!(debug_assertions) { 2_000 } else { 10_000 };
const HERD_OF_AN_HOUR: u64 = if cfg!(debug_assertions) { 200 } else { HERD };
/// Between two checkpoints of a daemon.
const CHECKPOINT: Duration = Duration::from_secs(10);

/// What the server answers at a time since the beginning.
type Mode = fn(Duration) -> Reply;

/// A server that answers by the time alone, and counts. It serves any number of daemons.
struct Server {
    mode: Mode,
    begun: Instant,
    seen: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// The time of each request, whether it was accepted, and the number of its events.
    requests: Vec<(Duration, bool, usize)>,
    /// When each event was accepted first. Numbers of one daemon.
    accepted: HashMap<u64, Duration>,
}

impl Server {
    fn new(mode: Mode) -> Arc<Self> {
        Arc::new(Self { mode, begun: Instant::now(), seen: Mutex::default() })
    }

    /// Requests in each interval of this length.
    fn per(&self, interval: Duration, wanted: impl Fn(bool) -> bool) -> Vec<u64> {
        let seen = self.seen.lock().unwrap();
        let last = seen.requests.iter().map(|request| request.0).max().unwrap_or_default();
        let mut counts = vec![0; (last.as_nanos() / interval.as_nanos()) as usize + 1];
        for &(at, ..) in seen.requests.iter().filter(|request| wanted(request.1)) {
            counts[(at.as_nanos() / interval.as_nanos()) as usize] += 1;
        }
        counts
    }
}

impl Http for Server {
    fn send(&self, request: Request) -> Pending {
        let at = self.begun.elapsed();
        let reply = (self.mode)(at);
        let body = std::str::from_utf8(&request.body).unwrap();
        let events: Vec<u64> = body.split(r#""event":"event "#).skip(1).map(leading_number).collect();
        let is_accepted = reply.status == 200;
        let mut seen = self.seen.lock().unwrap();
        seen.requests.push((at, is_accepted, events.len()));
        if is_accepted {
            events.iter().for_each(|&event| {
                seen.accepted.entry(event).or_insert(at);
            });
        }
        let max_answer = request.max_answer;
        Box::pin(async move {
            tokio::time::sleep(reply.takes).await;
            reply.give(max_answer)
        })
    }
}

fn leading_number(text: &str) -> u64 {
    text.split('"').next().unwrap().parse().unwrap()
}

fn up() -> Reply {
    Reply::ok().after(TAKES)
}

fn down() -> Reply {
    Reply::new(0, "refused")
}

fn answers(status: u16, body: &str) -> Reply {
    Reply::new(status, body).after(TAKES)
}

/// Up and down in turn, each for this long, beginning with down.
fn in_turns(at: Duration, secs: u64, bad: fn() -> Reply) -> Reply {
    if (at.as_secs() / secs).is_multiple_of(2) { bad() } else { up() }
}

/// Bad until this time.
fn until(end: Duration, at: Duration, bad: fn() -> Reply) -> Reply {
    if at < end { bad() } else { up() }
}

/// A day, and what it may cost.
struct Day {
    name: &'static str,
    mode: Mode,
    /// How long it is. Then the server is up for good, unless it is up in turns.
    length: Duration,
    /// The most requests in an hour of the day.
    per_hour: u64,
    /// The most time from the end of the day, when the server is up for good, to the first acceptance.
    until_first: Duration,
    /// The greatest age of an event when it was accepted, if the server was up at all during the day.
    oldest: Option<Duration>,
}

/// Lives through a day.
async fn live(day: &Day) {
    let server = Server::new(day.mode);
    let own = Arc::clone(&server);
    let rig = Rig::with(
        FakeQueue::default(),
        |_| Reply::ok(),
        |parts| {
            parts.transport = own;
            parts.on_delivery = None;
            parts.options.max_batch_events = 10;
        },
    );
    let mut captured = 0;
    while server.begun.elapsed() < day.length {
        captured = rig.commit(CHECKPOINT.as_secs()) + CHECKPOINT.as_secs() - 1;
        tokio::time::sleep(CHECKPOINT).await;
    }
    rig.drained().await;
    let (ended, seen) = (server.begun.elapsed(), server.seen.lock().unwrap());
    let born = |event: u64| CHECKPOINT * u32::try_from((event - 1) / CHECKPOINT.as_secs()).unwrap();
    let oldest = seen.accepted.iter().map(|(&event, &at)| at.saturating_sub(born(event))).max().unwrap();
    let first =
        seen.accepted.values().filter(|&&at| at >= day.length).min().map_or(Duration::ZERO, |&at| at - day.length);
    let repeated: usize = seen.requests.iter().filter(|request| request.1).map(|request| request.2).sum();
    let accepted = seen.accepted.len() as u64;
    drop(seen);
    // What is sent after the day belongs to no hour of it.
    let whole = (day.length.as_secs() / HOUR.as_secs()) as usize;
    let hours = server.per(HOUR, |_| true);
    let (busiest, refused) = (hours.iter().take(whole).max().unwrap(), server.per(HOUR, |is_accepted| !is_accepted));
    let failures = refused.iter().take(whole).max().unwrap();
    eprintln!(
        "| {} | {busiest} | {failures} | {:.0} s | {:.0} s | {:.0} s |",
        day.name,
        first.as_secs_f64(),
        (ended - day.length).as_secs_f64(),
        oldest.as_secs_f64()
    );
    let dead = rig.dead_lettered().len();
    assert_eq!((accepted, rig.queue.delivered(), dead), (captured, captured, 0), "{}: an event was lost", day.name);
    assert_eq!(repeated as u64, captured, "{}: an event was accepted twice", day.name);
    assert!(*busiest <= day.per_hour, "{}: {busiest} requests in an hour", day.name);
    assert!(first <= day.until_first, "{}: the first acceptance took {first:?}", day.name);
    assert!(day.oldest.is_none_or(|most| oldest <= most), "{}: an event was {oldest:?} old", day.name);
}

const fn day(name: &'static str, mode: Mode, per_hour: u64) -> Day {
    Day { name, mode, length: DAY, per_hour, until_first: LONGEST_COOLDOWN, oldest: None }
}

/// A day of a server that answers errors.
const fn errors(name: &'static str, mode: Mode, per_hour: u64) -> Day {
    Day { length: DAY_OF_ERRORS, ..day(name, mode, per_hour) }
}

/// The same with a `Retry-After`. Such a wait ends a tenth later at most.
const fn asked(name: &'static str, mode: Mode, per_hour: u64, until_first: u64) -> Day {
    Day { until_first: Duration::from_secs(until_first), ..errors(name, mode, per_hour) }
}

const fn flapping(name: &'static str, mode: Mode, per_hour: u64, oldest: u64) -> Day {
    Day { oldest: Some(Duration::from_secs(oldest)), ..day(name, mode, per_hour) }
}

const fn flapping_errors(name: &'static str, mode: Mode, per_hour: u64, oldest: u64) -> Day {
    Day { length: DAY_OF_ERRORS, ..flapping(name, mode, per_hour, oldest) }
}

async fn live_all(days: &[Day]) {
    eprintln!(
        "| a day of | requests in the busiest hour | of these failed | first accepted after | drained after | oldest |"
    );
    for day in days {
        live(day).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_day_of_an_unreachable_server_loses_nothing() {
    live_all(&[
        flapping("up", |_| up(), 370, 2),
        day("no connection", |at| until(DAY, at, down), 90),
        flapping("no connection, 5 min of 10", |at| in_turns(at, 300, down), 500, 900),
        // A probe after a cooldown meets the server half of the time.
        flapping("no connection, 20 s of 40", |at| in_turns(at, 20, down), 800, 1_800),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_day_of_a_server_that_answers_errors_loses_nothing() {
    live_all(&[
        errors("503", |at| until(DAY_OF_ERRORS, at, || answers(503, "")), 400),
        asked("429, Retry-After 60", |at| until(DAY_OF_ERRORS, at, || answers(429, "").retry_after(60)), 61, 67),
        asked("429, Retry-After 3600", |at| until(DAY_OF_ERRORS, at, || answers(429, "").retry_after(3_600)), 2, 3_630),
        flapping_errors("503, 5 min of 10", |at| in_turns(at, 300, || answers(503, "")), 700, 900),
        flapping_errors("503, 20 s of 40", |at| in_turns(at, 20, || answers(503, "")), 1_000, 60),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_day_of_a_server_that_refuses_loses_nothing() {
    const KEY: &str = r#"{"error":"the key is not valid"}"#;
    const LARGE: &str = r#"{"error":"the request is too large"}"#;
    live_all(&[
        errors("401, PostHog's", |at| until(DAY_OF_ERRORS, at, || answers(401, KEY)), 90),
        errors("401, a proxy's", |at| until(DAY_OF_ERRORS, at, || answers(401, "no")), 400),
        // Each cycle is a bisection with at most 32 refusals in a row.
        errors("413, PostHog's", |at| until(DAY_OF_ERRORS, at, || answers(413, LARGE)), 700),
        errors("413, a proxy's", |at| until(DAY_OF_ERRORS, at, || answers(413, "no")), 700),
    ])
    .await;
}

/// Daemons that all see the same outage of an hour, each with a backlog that fits one request.
struct Herd {
    server: Arc<Server>,
    daemons: Vec<Rig>,
}

impl Herd {
    fn of(daemons: u64, mode: Mode, first_send_jitter: Duration) -> Self {
        let server = Server::new(mode);
        let rig = |number| {
            Rig::with(
                queue_of(1, 3),
                |_| Reply::ok(),
                |parts| {
                    parts.transport = Arc::clone(&server) as Arc<dyn Http>;
                    parts.on_delivery = None;
                    parts.seed = number;
                    parts.options.pace.first_send_jitter = first_send_jitter;
                },
            )
        };
        Self { daemons: (0..daemons).map(rig).collect(), server }
    }

    /// Waits until everything is delivered, and returns the requests of each second from `from` on.
    async fn drained(self, from: Duration) -> Vec<u64> {
        for daemon in &self.daemons {
            daemon.drained().await;
        }
        self.server.per(SECOND, |_| true).split_off(from.as_secs() as usize)
    }
}

/// One line of text for each `step` seconds: the busiest second of them.
fn plot(name: &str, per_second: &[u64], step: usize) {
    const WIDTH: u64 = 60;
    let most = per_second.iter().max().copied().unwrap_or(1).max(1);
    eprintln!("\n{name}: requests per second at the server, the busiest second of each {step} s; at most {most}");
    for (line, part) in per_second.chunks(step).enumerate() {
        let here = part.iter().max().copied().unwrap_or_default();
        let bar = "#".repeat((here * WIDTH).div_ceil(most) as usize);
        eprintln!("{:>5} s {here:>6} {bar}", line * step);
    }
}

fn an_hour(at: Duration, bad: fn() -> Reply) -> Reply {
    if at < HOUR { bad() } else { up() }
}

/// Most requests in a second, where on average `expected` come: five standard deviations of independent arrivals more.
fn with_chance(expected: u64) -> u64 {
    expected + 5 * expected.isqrt()
}

#[tokio::test(start_paused = true)]
async fn a_herd_that_kept_running_returns_over_minutes() {
    for (name, mode) in [
        ("no connection for an hour", (|at| an_hour(at, down)) as Mode),
        ("503 for an hour", |at| an_hour(at, || answers(503, ""))),
    ] {
        let herd = Herd::of(HERD_OF_AN_HOUR, mode, SECOND);
        let per_second = herd.drained(HOUR - 60 * SECOND).await;
        plot(&format!("{HERD_OF_AN_HOUR} daemons, {name} (up at 60 s)"), &per_second, 15);
        // The last cooldowns end at a random moment of 150 s, and at most four requests follow each: the attempts of
        // the next cycle, or the probe that passes and what was queued.
        let (before, after) = per_second.split_at(60);
        let most = |part: &[u64]| part.iter().max().copied().unwrap();
        assert!(
            most(before) <= with_chance(4 * HERD_OF_AN_HOUR / 150),
            "{name}: {} in a second of the outage",
            most(before)
        );
        assert!(most(after) <= with_chance(4 * HERD_OF_AN_HOUR / 150), "{name}: {} in a second", most(after));
        assert!(after.len() as u64 <= LONGEST_COOLDOWN.as_secs() + 2, "{name}: {} s", after.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_herd_with_one_retry_after_returns_over_half_a_minute() {
    // A date that is the same for all, as a load balancer gives for a maintenance.
    let until = |at: Duration| match HOUR.checked_sub(at) {
        Some(left) if !left.is_zero() => answers(429, "").retry_after(left.as_secs() + 1),
        _ => up(),
    };
    let per_second = Herd::of(HERD, until, SECOND).drained(HOUR - 10 * SECOND).await;
    plot(&format!("{HERD} daemons with one Retry-After of an hour (at 10 s)"), &per_second, 2);
    let most = per_second.iter().max().copied().unwrap();
    assert!(most <= with_chance(2 * HERD / 30), "{most} in a second");
}

#[tokio::test(start_paused = true)]
async fn a_herd_that_starts_at_once_spreads_over_its_jitter() {
    for jitter in [1, 10, 30] {
        let per_second = Herd::of(HERD, |_| up(), jitter * SECOND).drained(Duration::ZERO).await;
        plot(&format!("{HERD} daemons that start at once, first_send_jitter {jitter} s"), &per_second, 2);
        let most = per_second.iter().max().copied().unwrap();
        assert!(most <= with_chance(HERD / u64::from(jitter)), "{jitter} s: {most} in a second");
    }
}
