//! Code shared by the benchmarks.
//!
//! The purpose is comparable figures. Every benchmark captures the same event of eight properties, keeps its queue on
//! the same disk, and prints one line of a Markdown table per figure: the measurement, the figure, the target, and the
//! figure of a peer.
//!
//! Rules
//! - A figure that misses its target is not an error, because the machine may be slow. A condition that makes a figure
//!   invalid panics: an event was dropped, an event did not arrive, a child died.
//! - Figures that are compared are measured in the same run, in alternating rounds. If other programs may disturb a
//!   measurement, the figure of the quietest round is printed too.
//! - The queue is in `$BENCH_DIR`, by default below the target directory. A temporary directory may be in memory.
//! - `cargo bench --bench NAME -- WORD...` runs only the named measurements; `$BENCH_EVENTS` scales the large ones.
//! - A child that has to be killed is the same program, started with the argument `role`.

#![allow(dead_code, reason = "each benchmark uses a part of this module")]
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

pub(crate) mod children;
pub(crate) mod counters;
pub(crate) mod spread;

use std::path::PathBuf;
use std::time::Duration;

use posthog::settings::OverflowPolicy;
use posthog::{Client, Config, Event};

/// Longer than any measurement should take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// The event that all benchmarks and all peers capture.
#[inline]
pub(crate) fn event(n: u64) -> Event {
    Event::new("run_started", "user_clerk_id_1234567890")
        .prop("workspace_id", "ws_abc")
        .prop("spec_count", n)
        .prop("plan", "pro")
        .prop("region", "eu-central-1")
        .prop("duration_ms", 12.75)
        .prop("ok", true)
        .prop("path", "/api/v1/runs/9f2c1/steps/17")
        .prop("agent", "zombied/1.14.2")
}

/// Captures one event, which must be accepted.
#[inline]
pub(crate) fn capture(client: &Client, n: u64) -> posthog::Receipt {
    let receipt = client.capture(event(n));
    assert!(receipt.is_accepted(), "the event was dropped, so the figure is invalid: {:?}", receipt.outcome());
    receipt
}

/// A new directory on the measured disk.
pub(crate) fn queue_dir() -> tempfile::TempDir {
    let parent =
        std::env::var_os("BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    tempfile::tempdir_in(&parent).unwrap_or_else(|error| panic!("no directory in {}: {error}", parent.display()))
}

/// The default settings, with space for large queues.
pub(crate) fn config(dir: &std::path::Path, url: &str) -> Config {
    Config::new("phc_bench")
        .host(url)
        .queue_dir(dir)
        .no_proxy()
        .max_queue_bytes(64 << 30)
        .first_send_jitter(Duration::ZERO)
        .overflow(OverflowPolicy::Block(Duration::from_secs(60)))
}

/// The URL of a server that is down: no process listens on the discard port.
pub(crate) const NOBODY: &str = "http://127.0.0.1:9";

/// Settings with which the threads of a client sleep until a flush, or until half an arena is full.
pub(crate) fn quiet(config: Config) -> Config {
    config
        .flush_at(1_000_000)
        .flush_interval(Duration::from_secs(3600))
        .sync_interval(Duration::from_secs(60))
        .ack_interval(Duration::from_secs(60))
}

/// Checkpoints everything into the store.
pub(crate) fn checkpoint(client: &Client) {
    client.flush().wait(PATIENCE).expect("a flush ends");
}

/// The number of events of a large measurement: `$BENCH_EVENTS`, or `default`.
pub(crate) fn events(default: u64) -> u64 {
    std::env::var("BENCH_EVENTS").ok().and_then(|text| text.replace('_', "").parse().ok()).unwrap_or(default)
}

/// Whether a measurement was named on the command line; true if none was.
pub(crate) fn wanted(name: &str) -> bool {
    let mut named = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).peekable();
    named.peek().is_none() || named.any(|word| name.contains(&word))
}

/// Prints the head of the table.
pub(crate) fn heading() {
    println!("| measurement | figure | target | peer |");
    println!("|---|---|---|---|");
}

/// Prints one line of the table.
pub(crate) fn row(what: &str, figure: &str, target: &str, peer: &str) {
    println!("| {what} | {figure} | {target} | {peer} |");
}

/// A number with a comma between groups of three digits.
pub(crate) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
