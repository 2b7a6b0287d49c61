//! Cost of a large queue, a steady queue and an idle queue: `cargo bench --bench queue`.
//!
//! Measurements: reopen, memory, disk, sizing, idle. `reopen` kills a child with SIGKILL; `memory` measures a child
//! from outside, so that the stand-in server is not included. `$BENCH_SECONDS` is the time for which writes to the disk
//! are counted.

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use posthog::{Client, Config};
use sink::Sink;
use support::children;
use support::counters::{resident, threads, written_by_process, written_to_device};
use support::spread::{Spread, human};
use support::{NOBODY, PATIENCE, capture, checkpoint, config, events, grouped, queue_dir, quiet, row, wanted};

fn main() {
    if let Some(args) = children::role() {
        return play(&args.iter().map(String::as_str).collect::<Vec<_>>());
    }
    support::heading();
    let measurements: [(&str, fn()); 5] =
        [("reopen", reopen), ("memory", memory), ("disk", disk), ("sizing", sizing), ("idle", idle)];
    for (name, measure) in measurements {
        if wanted(name) {
            measure();
        }
    }
}

fn open(config: Config) -> Client {
    Client::new(config).expect("the directory can be opened")
}

/// The program of a child process.
#[allow(clippy::print_stdout, reason = "a child talks to its parent")]
fn play(args: &[&str]) {
    let [role, dir, url, count] = args else { panic!("not a role: {args:?}") };
    let count: u64 = count.parse().expect("a number");
    let client = open(config(Path::new(dir), url));
    match *role {
        // Events in the store, followed by some in the journal only.
        "fill" => {
            (0..count).for_each(|n| {
                let _ = capture(&client, n);
            });
            checkpoint(&client);
            (0..10).for_each(|n| {
                let _ = capture(&client, n);
            });
        }
        "deliver" => drop(client.flush()),
        other => panic!("unknown role: {other}"),
    }
    println!("ready");
    std::thread::sleep(PATIENCE);
}

fn reopen() {
    const TURNS: usize = 7;
    let count = events(1_000_000);
    let dir = queue_dir();
    let (mut after_kill, mut empty) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        let now = if turn == 0 { count } else { 0 };
        let mut child = children::start(&["fill", &dir.path().display().to_string(), NOBODY, &now.to_string()]);
        assert_eq!(child.next_line(), "ready");
        child.kill();
        let start = Instant::now();
        let client = open(config(dir.path(), NOBODY));
        after_kill.push(start.elapsed().as_nanos() as u64);
        assert_eq!(client.stats().accepted, count + 10 * (turn as u64 + 1), "all events are still queued");
        drop(client);
        let fresh = queue_dir();
        let start = Instant::now();
        let client = open(config(fresh.path(), NOBODY));
        empty.push(start.elapsed().as_nanos() as u64);
        drop(client);
    }
    let what = format!("open after SIGKILL, {} events queued", grouped(count as f64));
    let spread = Spread::of(after_kill);
    let figure = format!("median {}, worst of {TURNS} {}", human(spread.median()), human(spread.quantile(1.0)));
    row(&what, &figure, "<= 20 ms", "redb's own repair 402 ms");
    row("create a queue in an empty directory", &format!("median {}", human(Spread::of(empty).median())), "", "");
}

fn memory() {
    let count = events(10_000_000);
    let dir = queue_dir();
    let path = dir.path().display().to_string();
    let sink = Sink::start();
    sink.fast_mode(true);
    sink.stop();
    let start = Instant::now();
    let mut child = children::start(&["fill", &path, &sink.url(), &count.to_string()]);
    let mut filling = Peak::default();
    assert_eq!(child.next_line_watching(|pid| filling.look(pid)), "ready");
    child.kill();
    let what = format!("memory while {} events are queued", grouped(count as f64));
    let figure = format!("{filling} in {:.0?}", start.elapsed());
    row(&what, &figure, "RssAnon <= 24 MiB", "posthog-rs: 10,000 events ~ 20 MB");
    sink.resume();
    let child = children::start(&["deliver", &path, &sink.url(), "0"]);
    let mut delivering = Peak::default();
    let start = Instant::now();
    while !sink.wait_for(|state| state.unique() >= count, Duration::from_millis(20)) {
        assert!(start.elapsed() < PATIENCE, "not all events arrive");
        delivering.look(child.pid());
    }
    let rate = grouped(count as f64 / start.elapsed().as_secs_f64());
    let what = format!("memory while {} queued events are delivered", grouped(count as f64));
    row(&what, &format!("{delivering}, at {rate}/s"), "RssAnon <= 24 MiB", "");
}

/// The largest resident memory seen.
#[derive(Clone, Copy, Debug, Default)]
struct Peak {
    anonymous: u64,
    of_files: u64,
}

impl Peak {
    fn look(&mut self, pid: u32) {
        let (anonymous, of_files) = resident(pid);
        self.anonymous = self.anonymous.max(anonymous);
        self.of_files = self.of_files.max(of_files);
    }
}

impl std::fmt::Display for Peak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |kib: u64| kib as f64 / 1024.0;
        write!(f, "RssAnon {:.1} MiB, RssFile {:.1} MiB at most", mib(self.anonymous), mib(self.of_files))
    }
}

/// Default settings, a server that accepts everything, 100 events per second.
fn disk() {
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let dir = queue_dir();
    let sink = Sink::start();
    sink.fast_mode(true);
    let client = open(config(dir.path(), &sink.url()));
    steady(&client, 5);
    let (process, device) = (written_by_process(), written_to_device(dir.path()));
    steady(&client, seconds);
    let process = (written_by_process() - process) as f64;
    let device = written_to_device(dir.path()).zip(device).map(|(after, before)| (after - before) as f64);
    let payload = event_bytes() * 100.0 * seconds as f64;
    let figure_of = |written: f64| {
        let per_day = written / seconds as f64 * 86_400.0 / 1e9;
        format!(
            "{:.2} x the events' bytes ({:.0} KB/s, extrapolated {per_day:.1} GB per day)",
            written / payload,
            written / seconds as f64 / 1e3
        )
    };
    let what = format!("written at 100 events/s, {seconds} s, {:.0} bytes per event", event_bytes());
    row(&what, &figure_of(process), "<= 8 x", "a checkpoint every 100 ms: 36 to 260 GB a day");
    if let Some(device) = device {
        row("the same by the device's counter, including writes of other programs", &figure_of(device), "<= 8 x", "");
    }
}

/// Captures 100 events per second.
fn steady(client: &Client, seconds: u32) {
    let start = Instant::now();
    for n in 0..seconds * 100 {
        let due = start + Duration::from_millis(10) * n;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        {
            let _ = capture(client, u64::from(n));
        };
    }
}

/// Disk space that one event takes during an outage, as `du` counts it. It depends on the number of events that are
/// checkpointed together (`Config::flush_at` and `flush_interval`; at most once a second), because small rows fill
/// their pages less. The rate is not played out in time: that many events are captured, then checkpointed.
fn sizing() {
    let count = events(100_000);
    for (rate, together) in [(1, 5), (10, 20), (100, 100), (1_000, 1_000)] {
        let dir = queue_dir();
        let client = open(quiet(config(dir.path(), NOBODY)));
        let file = client.stats().dir.expect("the queue is on disk").join("queue.redb");
        let on_disk = || std::fs::metadata(&file).map_or(0, |found| found.blocks() * 512);
        let empty = on_disk();
        for first in (0..count).step_by(together) {
            (first..first + together as u64).for_each(|n| {
                let _ = capture(&client, n);
            });
            checkpoint(&client);
        }
        let stats = client.stats();
        let bytes = on_disk().saturating_sub(empty) as f64 / stats.queued_events as f64;
        let what = format!("disk space for events of an outage, {rate} per second, {together} in a row");
        let hour = bytes * f64::from(rate) * 3600.0 / 1e6;
        let content = stats.queued_bytes as f64 / stats.queued_events as f64;
        row(
            &what,
            &format!("{bytes:.0} bytes per event ({content:.0} without empty space), {hour:.1} MB an hour"),
            "",
            "",
        );
    }
}

/// Bytes of one event in the queue.
fn event_bytes() -> f64 {
    let dir = queue_dir();
    let client = open(quiet(config(dir.path(), NOBODY)));
    (0..1000).for_each(|n| {
        let _ = capture(&client, n);
    });
    client.stats().queued_bytes as f64 / 1000.0
}

/// An idle client, after some events were delivered and nothing is pending.
fn idle() {
    const SPAN: Duration = Duration::from_secs(10);
    let dir = queue_dir();
    let sink = Sink::start();
    let client = open(config(dir.path(), &sink.url()));
    (0..100).for_each(|n| {
        let _ = capture(&client, n);
    });
    checkpoint(&client);
    assert!(sink.wait_for(|state| state.unique() == 100, PATIENCE), "not all events arrive");
    // Longer than the intervals for acks and syncs.
    std::thread::sleep(Duration::from_secs(3));
    let (before, written) = (threads("posthog-"), written_by_process());
    std::thread::sleep(SPAN);
    let (after, written) = (threads("posthog-"), written_by_process() - written);
    let wakes = after.iter().map(|(name, now)| {
        let sleeps = now.sleeps - before.get(name).map_or(0, |then| then.sleeps);
        format!("{name} {sleeps}")
    });
    let figure = format!("wake-ups in 10 s: {}; {written} bytes written", wakes.collect::<Vec<_>>().join(", "));
    row("idle client", &figure, "0 and 0", "");
}
