//! Rate of delivering a backlog: `cargo bench --bench delivery --features brotli,zstd`. Without a feature its rows are
//! omitted.
//!
//! Measurements: loopback, v1, round-trip. The stand-in server is a thread of this process and decompresses requests.
//! The load of its thread and of the delivery thread is printed, because a thread that is always busy determines the
//! figure. For the round trip the server waits 50 ms before each response; this does not include TCP's slow start on a
//! long line.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use posthog::Client;
use posthog::settings::{CaptureProtocol, Compression};
use sink::{Answer, Sink, State};
use support::counters::threads;
use support::{PATIENCE, capture, checkpoint, config, events, grouped, queue_dir, row, wanted};

fn main() {
    support::heading();
    if wanted("loopback") {
        for compression in [Compression::Gzip, Compression::None] {
            let run = deliver(events(1_000_000), CaptureProtocol::V0, compression, Duration::ZERO);
            let packed = if compression == Compression::Gzip { "compressed" } else { "uncompressed" };
            row(
                &format!("delivered to loopback, {packed}"),
                &run,
                ">= 240,000/s",
                "posthog-rs 119,670/s, uncompressed",
            );
        }
    }
    if wanted("v1") {
        for compression in codecs() {
            let run = deliver(events(1_000_000), CaptureProtocol::V1, compression, Duration::ZERO);
            row(&format!("delivered to loopback by V1, {compression:?}"), &run, "", "");
        }
    }
    if wanted("round-trip") {
        let run = deliver(events(1_000_000), CaptureProtocol::V0, Compression::Gzip, Duration::from_millis(50));
        row("delivered with a round trip of 50 ms", &run, ">= 50,000/s", "posthog-rs 1,892/s");
    }
}

/// The codecs that this program was built with.
fn codecs() -> Vec<Compression> {
    let codecs = [
        Compression::None,
        Compression::Gzip,
        Compression::Deflate,
        #[cfg(feature = "brotli")]
        Compression::Brotli,
        #[cfg(feature = "zstd")]
        Compression::Zstd,
    ];
    codecs.to_vec()
}

/// Queues `count` events while no server listens, then delivers them; three times, of which the best counts.
fn deliver(count: u64, protocol: CaptureProtocol, compression: Compression, round_trip: Duration) -> String {
    let runs = (0..3).map(|_| deliver_once(count, protocol, compression, round_trip));
    runs.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, figure)| figure).unwrap_or_default()
}

fn deliver_once(
    count: u64,
    protocol: CaptureProtocol,
    compression: Compression,
    round_trip: Duration,
) -> (f64, String) {
    let dir = queue_dir();
    let sink = Sink::start();
    sink.fast_mode(true);
    sink.default_answer(Answer::ok().delay(round_trip));
    sink.stop();
    fill(dir.path(), &sink.url(), count);
    sink.resume();
    let start = Instant::now();
    let config = config(dir.path(), &sink.url()).protocol(protocol).compression(compression);
    let client = Client::new(config).expect("the queue can be opened");
    // The queue remembers the outage and the time of the next attempt; a flush does not wait for it.
    drop(client.flush());
    assert!(sink.wait_for(|state| state.taken() > 0, PATIENCE), "no event arrives");
    let (first, before) = (Instant::now(), threads(""));
    let taken = sink.inspect(State::taken);
    assert!(sink.wait_for(|state| state.unique() >= count, PATIENCE), "not all events arrive: {:?}", client.stats());
    let (took, after) = (first.elapsed(), threads(""));
    let rate = (count - taken) as f64 / took.as_secs_f64();
    let busy = |name: &str| {
        let seconds = |threads: &std::collections::BTreeMap<String, support::counters::Thread>| {
            threads.get(name).map_or(0.0, |thread| thread.busy)
        };
        (seconds(&after) - seconds(&before)) / took.as_secs_f64() * 100.0
    };
    let (wire, requests) = sink.inspect(|state| {
        (state.requests().iter().map(|request| request.wire_bytes).sum::<usize>(), state.requests().len())
    });
    let figure = format!(
        "{}/s ({} in {requests} requests, {:.0} bytes each on the wire, first after {:.0?}; delivery thread {:.0} % busy, \
         committer {:.0} %, sink {:.0} %; {} duplicates)",
        grouped(rate),
        grouped(count as f64),
        wire as f64 / count as f64,
        first - start,
        busy("posthog-deliver"),
        busy("posthog-commit"),
        busy("sink"),
        sink.duplicates(),
    );
    (rate, figure)
}

fn fill(dir: &Path, url: &str, count: u64) {
    let client = Client::new(config(dir, url)).expect("a fresh directory can be opened");
    (0..count).for_each(|n| {
        let _ = capture(&client, n);
    });
    checkpoint(&client);
}
