//! Compares the official Rust client (`posthog-rs`) with this library, in one run, with the same event and the same
//! stand-in server: `cargo run --release` in this folder, or `cargo run --release -- flags` for one measurement of
//! captures, loopback, distance, outage, flags. `$OUTAGE_SECONDS` and `$OUTAGE_RATE` (events per second) set another
//! outage than the usual 30 s at 1,000. `cargo run -- chart` measures nothing: it draws the chart of the README from
//! the table in `docs/performance.md`.
//!
//! Both use their default settings unless a row says otherwise. The official client keeps events in memory and sends
//! them uncompressed; this library keeps them on disk and compresses them.

#[path = "../../support/allocations.rs"]
mod allocations;
mod chart;
#[path = "../../support/flag_cases.rs"]
mod flag_cases;
mod flags;
#[allow(dead_code, reason = "the benchmarks without a peer use more of it")]
#[path = "../../support/spread.rs"]
mod spread;

use std::time::{Duration, Instant};

use posthog::settings::OverflowPolicy;
use posthog::{Client, Config};
use posthog_rs::{ClientOptionsBuilder, Event as TheirEvent};
use sink::{Answer, Sink};

const PATIENCE: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() {
    if std::env::args().nth(1).as_deref() == Some("chart") {
        return draw();
    }
    println!("| measurement | posthog-rs 0.30 | this library |");
    println!("|---|---|---|");
    if wanted("captures") {
        captures().await;
    }
    if wanted("loopback") {
        delivered("delivered to loopback", Duration::ZERO, 200_000, 500_000).await;
    }
    if wanted("distance") {
        delivered("delivered with a round trip of 50 ms", Duration::from_millis(50), 20_000, 500_000).await;
    }
    if wanted("outage") {
        outage().await;
    }
    if wanted("flags") {
        flags::flags();
    }
}

/// Draws the chart of the README anew, from the recorded figures.
fn draw() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let table = std::fs::read_to_string(docs.join("performance.md")).expect("the figures are there");
    let svg = chart::draw(&table).expect("the table has the rows of the chart");
    std::fs::write(docs.join("peers.svg"), svg).expect("the chart can be written");
}

/// Whether a measurement was named on the command line; true if none was.
fn wanted(name: &str) -> bool {
    let mut named = std::env::args().skip(1).peekable();
    named.peek().is_none() || named.any(|word| name == word)
}

fn their_event(n: u64) -> TheirEvent {
    let mut event = TheirEvent::new("run_started", "user_clerk_id_1234567890");
    let mut prop = |key: &str, value: serde_json::Value| event.insert_prop(key, value).expect("a plain value");
    prop("workspace_id", "ws_abc".into());
    prop("spec_count", n.into());
    prop("plan", "pro".into());
    prop("region", "eu-central-1".into());
    prop("duration_ms", 12.75.into());
    prop("ok", true.into());
    prop("path", "/api/v1/runs/9f2c1/steps/17".into());
    prop("agent", "zombied/1.14.2".into());
    event
}

fn our_event(n: u64) -> posthog::Event {
    posthog::Event::new("run_started", "user_clerk_id_1234567890")
        .prop("workspace_id", "ws_abc")
        .prop("spec_count", n)
        .prop("plan", "pro")
        .prop("region", "eu-central-1")
        .prop("duration_ms", 12.75)
        .prop("ok", true)
        .prop("path", "/api/v1/runs/9f2c1/steps/17")
        .prop("agent", "zombied/1.14.2")
}

async fn theirs(url: &str, set: impl FnOnce(&mut ClientOptionsBuilder)) -> posthog_rs::Client {
    let mut options = ClientOptionsBuilder::default();
    options.api_key("phc_bench".to_owned()).host(url);
    set(&mut options);
    posthog_rs::client(options.build().expect("the options are complete")).await
}

fn ours(url: &str, dir: &tempfile::TempDir) -> Config {
    Config::new("phc_bench")
        .host(url)
        .queue_dir(dir.path())
        .no_proxy()
        .max_queue_bytes(16 << 30)
        .overflow(OverflowPolicy::Block(Duration::from_secs(60)))
}

fn queue_dir() -> tempfile::TempDir {
    // A temporary directory may be in memory.
    let parent = std::env::var_os("BENCH_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    tempfile::tempdir_in(parent).expect("a directory can be made")
}

fn median(mut took: Vec<u128>) -> u128 {
    took.sort_unstable();
    took.get(took.len() / 2).copied().unwrap_or(0)
}

/// In alternating rounds of 5,000 events, while nothing is sent.
async fn captures() {
    const TURNS: usize = 20;
    const EACH: u64 = 5_000;
    let sink = Sink::start();
    sink.fast_mode(true);
    let peer = theirs(&sink.url(), |options| {
        options.flush_at(1_000_000).max_queue_size(1_000_000).flush_interval_ms(3_600_000);
    })
    .await;
    let dir = queue_dir();
    let quiet = Duration::from_secs(3600);
    let config =
        ours(&sink.url(), &dir).flush_at(1_000_000).flush_interval(quiet).sync_interval(Duration::from_secs(60));
    let client = Client::new(config).expect("a fresh directory");
    let (mut peers, mut own) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        peers.extend(each(EACH, |n| peer.capture(their_event(n))));
        own.extend(each(EACH, |n| assert!(client.capture(our_event(n)).is_accepted())));
        peer.flush().await;
        client.flush().await;
    }
    let line = |took: Vec<u128>| format!("{} ns", median(took));
    println!("| build and capture, median | {}, in memory | {}, survives SIGKILL |", line(peers), line(own));
}

fn each(count: u64, mut capture: impl FnMut(u64)) -> Vec<u128> {
    let mut last = Instant::now();
    let one = |n| {
        capture(n);
        let now = Instant::now();
        let took = now.duration_since(last).as_nanos();
        last = now;
        took
    };
    (0..count).map(one).collect()
}

/// From the first capture to the last arrival.
async fn delivered(what: &str, round_trip: Duration, their_count: u64, our_count: u64) {
    let sink = Sink::start();
    sink.fast_mode(true);
    sink.default_answer(Answer::ok().delay(round_trip));
    let peer = theirs(&sink.url(), |options| {
        options.max_queue_size(1_000_000);
    })
    .await;
    let start = Instant::now();
    (0..their_count).for_each(|n| peer.capture(their_event(n)));
    peer.flush().await;
    assert!(
        sink.wait_for(|state| state.unique() >= their_count, PATIENCE),
        "events of the official client are missing"
    );
    let their_rate = their_count as f64 / start.elapsed().as_secs_f64();
    peer.shutdown().await;
    sink.clear();

    let dir = queue_dir();
    let client = Client::new(ours(&sink.url(), &dir)).expect("a fresh directory");
    let start = Instant::now();
    (0..our_count).for_each(|n| assert!(client.capture(our_event(n)).is_accepted()));
    drop(client.flush());
    assert!(sink.wait_for(|state| state.unique() >= our_count, PATIENCE), "events of this library are missing");
    let our_rate = our_count as f64 / start.elapsed().as_secs_f64();
    println!("| {what} | {their_rate:.0}/s | {our_rate:.0}/s, {:.1} x |", our_rate / their_rate);
}

/// A number from the environment.
fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// 30 s without a server at 1,000 events per second, both with default settings; then the server is back.
async fn outage() {
    let (seconds, rate) = (number("OUTAGE_SECONDS", 30), number("OUTAGE_RATE", 1_000).max(1));
    let count = seconds * rate;
    let (their_sink, our_sink) = (Sink::start(), Sink::start());
    let peer = theirs(&their_sink.url(), |_| {}).await;
    let dir = queue_dir();
    let client = Client::new(Config::new("phc_bench").host(our_sink.url()).queue_dir(dir.path()).no_proxy())
        .expect("a fresh directory");
    their_sink.stop();
    our_sink.stop();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX));
    for n in 0..count {
        tick.tick().await;
        peer.capture(their_event(n));
        assert!(client.capture(our_event(n)).is_accepted());
    }
    their_sink.resume();
    our_sink.resume();
    peer.flush().await;
    peer.shutdown().await;
    let deadline = Instant::now() + PATIENCE;
    while client.stats().queued_events > 0 && Instant::now() < deadline {
        client.flush().await;
    }
    let lost = |sink: &Sink| count - sink.inspect(|state| state.unique());
    let length = if seconds % 60 == 0 { format!("{} min", seconds / 60) } else { format!("{seconds} s") };
    println!("| lost of {count} events in an outage of {length} | {} | {} |", lost(&their_sink), lost(&our_sink));
}
