//! Cost of a capture for its caller, and throughput of the pipeline behind it: `cargo bench --bench capture`.
//!
//! Measurements: alone, exceptions, panics, commits, threads, sustained, persisted, breadcrumbs. No server listens, so that delivery
//! does not affect the figures.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use posthog::Client;
use support::spread::{Spread, clock_cost, human, together};
use support::{NOBODY, PATIENCE, capture, checkpoint, config, events, grouped, queue_dir, quiet, row, wanted};

fn main() {
    support::heading();
    let measurements: [(&str, fn()); 8] = [
        ("alone", alone),
        ("exceptions", exceptions),
        ("panics", panics),
        ("commits", commits),
        ("threads", threads),
        ("sustained", sustained),
        ("persisted", persisted),
        ("breadcrumbs", breadcrumbs),
    ];
    for (name, measure) in measurements {
        if wanted(name) {
            measure();
        }
    }
}

fn open(dir: &Path, set: impl FnOnce(posthog::Config) -> posthog::Config) -> Client {
    Client::new(set(config(dir, NOBODY))).expect("a fresh directory can be opened")
}

/// Builds and captures `count` events as fast as possible; returns the time of each, without the cost of reading the
/// clock.
fn burst(client: &Client, count: u64, clock: u64) -> Vec<u64> {
    // Initialized, so that the first access to its pages is not measured.
    let mut took = vec![1; count as usize];
    let mut last = Instant::now();
    for (n, took) in took.iter_mut().enumerate() {
        capture(client, n as u64);
        let now = Instant::now();
        *took = (now.duration_since(last).as_nanos() as u64).saturating_sub(clock);
        last = now;
    }
    took
}

fn alone() {
    const BURSTS: usize = 60;
    let dir = queue_dir();
    let client = open(dir.path(), quiet);
    let clock = clock_cost();
    let turns: Vec<_> = (0..BURSTS)
        .map(|_| {
            // Less than half an arena, so nothing wakes the committer.
            let took = burst(&client, 10_000, clock);
            checkpoint(&client);
            took
        })
        .collect();
    let all = together(&turns);
    let quietest = turns.into_iter().map(Spread::of).min_by_key(Spread::median).unwrap_or_default();
    row("build and capture, one thread", &all.line(), "median <= 250 ns", "posthog-zig 500 ns, posthog-rs 1,330 ns");
    row("the same, quietest burst of 60", &quietest.line(), "", "");
    row("(cost of reading the clock, subtracted above)", &human(clock), "", "");
    let mut means: Vec<f64> = (0..BURSTS * 4).map(|_| 1e9 / rate(&client, 1, 10_000)).collect();
    means.sort_unstable_by(f64::total_cmp);
    let figure =
        format!("mean of the quietest burst {:.1} ns, of the median burst {:.1} ns", means[0], means[BURSTS * 2]);
    row("the same, without reading the clock", &figure, "", "");
}

/// Cost of capturing an error with two causes, with and without a stack trace, a dozen calls below `main`.
fn exceptions() {
    let dir = queue_dir();
    let off = Duration::from_secs(10);
    let client = open(dir.path(), |config| quiet(config).journal_bytes(64 << 20).exception_rate_limit(0, off));
    let clock = clock_cost();
    let error = three_deep();
    let stackless = || posthog::exceptions::ExceptionOptions::new().stack(false);
    let with_stack = || deeper(12, &|| client.capture_exception(&error));
    let without = || client.capture_exception_with(&error, stackless());
    let first = reported(&with_stack, 1, clock);
    row("capture_exception, the first of a process", &human(first[0]), "", "");
    for (what, report) in [
        ("capture_exception, with a stack trace", &with_stack as &dyn Fn() -> posthog::Receipt),
        ("capture_exception, without", &without),
    ] {
        row(what, &together(&[reported(report, 20_000, clock)]).line(), "", "");
        checkpoint(&client);
    }
    limited_exceptions(&error, clock);
}

/// Cost of an exception that the rate limit drops, of a type that is known and of one behind `dyn Error`.
fn limited_exceptions(error: &std::io::Error, clock: u64) {
    let dir = queue_dir();
    let a_day = Duration::from_secs(86_400);
    let client = open(dir.path(), |config| quiet(config).exception_rate_limit(1, a_day));
    let of_a_type = || client.capture_exception(error);
    let unsized_error: &dyn std::error::Error = error;
    let behind_dyn = || client.capture_exception(unsized_error);
    for (what, report) in [
        ("capture_exception, dropped by the rate limit", &of_a_type as &dyn Fn() -> posthog::Receipt),
        ("the same behind dyn Error", &behind_dyn),
    ] {
        let one = |_| {
            let start = Instant::now();
            let _ = std::hint::black_box(report());
            (start.elapsed().as_nanos() as u64).saturating_sub(clock)
        };
        let took: Vec<u64> = (0..20_000).map(one).collect();
        row(what, &together(&[took]).line(), "", "");
    }
}

fn reported(report: &dyn Fn() -> posthog::Receipt, count: usize, clock: u64) -> Vec<u64> {
    let one = |_| {
        let start = Instant::now();
        assert!(report().is_accepted(), "the event was dropped, so the figure is invalid");
        (start.elapsed().as_nanos() as u64).saturating_sub(clock)
    };
    (0..count).map(one).collect()
}

#[inline(never)]
fn deeper(calls: usize, call: &dyn Fn() -> posthog::Receipt) -> posthog::Receipt {
    let receipt = if calls == 0 { call() } else { deeper(std::hint::black_box(calls - 1), call) };
    std::hint::black_box(receipt)
}

fn three_deep() -> std::io::Error {
    use std::io::{Error, ErrorKind};
    let root = Error::new(ErrorKind::InvalidData, "x".parse::<u8>().expect_err("not a number"));
    Error::new(ErrorKind::InvalidInput, Error::new(ErrorKind::NotFound, root))
}

/// Cost that the panic hook adds to a caught panic, when the panic is recorded and when its place has panicked too
/// often.
fn panics() {
    const ROUNDS: usize = 16;
    let clock = clock_cost();
    // The default hook resolves symbols and prints.
    std::panic::set_hook(Box::new(|_| {}));
    let storm = || -> Vec<u64> { (0..10_000).map(|_| caught(PLACES[0], clock)).collect() };
    // The first 16 panics of a place are all recorded.
    let calm = || -> Vec<u64> { (0..ROUNDS).flat_map(|_| PLACES.iter().map(|place| caught(*place, clock))).collect() };
    row("a caught panic, without the library's hook", &Spread::of(calm()).line(), "", "");
    let dir = queue_dir();
    posthog::init(quiet(config(dir.path(), NOBODY))).expect("a fresh directory can be opened");
    posthog::install_panic_hook();
    row("the first of a process, with the hook", &human(caught(PLACES[0], clock)), "", "");
    row("a caught panic, with the hook", &Spread::of(calm()).line(), "", "");
    row("the same, of 10,000 panics at one place", &Spread::of(storm()).line(), "", "");
}

/// Panics at different places.
#[rustfmt::skip]
const PLACES: [fn(); 16] = [
    || panic!("a literal"), || panic!("a literal"), || panic!("a literal"), || panic!("a literal"),
    || panic!("a literal"), || panic!("a literal"), || panic!("a literal"), || panic!("a literal"),
    || panic!("a literal"), || panic!("a literal"), || panic!("a literal"), || panic!("a literal"),
    || panic!("a literal"), || panic!("a literal"), || panic!("a literal"), || panic!("a literal"),
];

fn caught(place: fn(), clock: u64) -> u64 {
    let start = Instant::now();
    assert!(std::panic::catch_unwind(place).is_err(), "the closure panics");
    (start.elapsed().as_nanos() as u64).saturating_sub(clock)
}

/// One event every 10 us, while another thread checkpoints everything every 100 ms.
fn commits() {
    const SECONDS: usize = 15;
    const PER_SECOND: u64 = 100_000;
    let dir = queue_dir();
    let client = open(dir.path(), |config| config);
    let (clock, stop) = (clock_cost(), AtomicBool::new(false));
    let mut checkpoints = 0;
    let turns: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let checkpointer = scope.spawn(|| {
            let mut checkpoints = 0;
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                checkpoint(&client);
                checkpoints += 1;
            }
            checkpoints
        });
        let turns = (0..SECONDS).map(|_| paced(&client, PER_SECOND, clock)).collect();
        stop.store(true, Ordering::Relaxed);
        checkpoints = checkpointer.join().expect("the thread does not panic");
        turns
    });
    let all = together(&turns);
    let quietest = turns.into_iter().map(Spread::of).min_by_key(|turn| turn.quantile(0.999)).unwrap_or_default();
    let what = format!("capture at 100,000/s during {checkpoints} commits in {SECONDS} s");
    row(&what, &all.line(), "p99.9 <= 4 us", "");
    row("the same, quietest second", &quietest.line(), "p99.9 <= 4 us", "");
}

/// One second of captures at an even rate.
fn paced(client: &Client, per_second: u64, clock: u64) -> Vec<u64> {
    let start = Instant::now();
    let step = Duration::from_nanos(1_000_000_000 / per_second);
    let mut took = vec![1; per_second as usize];
    for (n, took) in took.iter_mut().enumerate() {
        let due = start + step * n as u32;
        let mut before = Instant::now();
        while before < due {
            std::hint::spin_loop();
            before = Instant::now();
        }
        capture(client, n as u64);
        *took = (before.elapsed().as_nanos() as u64).saturating_sub(clock);
    }
    took
}

/// The rate of one thread and of two threads, in short alternating rounds of which the best count: a round that was
/// disturbed by another program is meaningless.
fn threads() {
    const EVENTS: u64 = 20_000;
    const TURNS: usize = 300;
    let dir = queue_dir();
    let client = open(dir.path(), |config| quiet(config).journal_bytes(64 << 20));
    let turns: Vec<(f64, f64)> = (0..TURNS).map(|_| (rate(&client, 1, EVENTS), rate(&client, 2, EVENTS))).collect();
    let best = |rate: fn(&(f64, f64)) -> f64| turns.iter().map(rate).fold(0.0, f64::max);
    let (one, two) = (best(|turn| turn.0), best(|turn| turn.1));
    let figure = format!("{:.2} x ({}/s to {}/s, best of {TURNS} rounds)", two / one, grouped(two), grouped(one));
    row("two threads together, relative to one thread", &figure, ">= 1.6 x", "");
}

/// Events per second of `threads` threads, from the start of the first to the end of the last.
fn rate(client: &Client, threads: usize, each: u64) -> f64 {
    // Threads spin until all are ready: a sleeping thread would begin when the others have ended.
    let missing = AtomicUsize::new(threads);
    let spans: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let run = || {
            // The first event of a thread allocates its buffers.
            capture(client, 0);
            missing.fetch_sub(1, Ordering::AcqRel);
            while missing.load(Ordering::Acquire) > 0 {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            (0..each).for_each(|n| {
                let _ = capture(client, n);
            });
            (start, Instant::now())
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
    });
    checkpoint(client);
    let start = spans.iter().map(|span| span.0).min();
    let end = spans.iter().map(|span| span.1).max();
    let took = end.zip(start).map_or(0.0, |(end, start)| (end - start).as_secs_f64());
    (threads as u64 * each) as f64 / took
}

fn sustained() {
    let count = events(5_000_000);
    let dir = queue_dir();
    let client = open(dir.path(), |config| config);
    let start = Instant::now();
    let mut last = None;
    for n in 0..count {
        last = Some(capture(&client, n));
    }
    let captured = start.elapsed();
    last.expect("at least one").persisted().wait(PATIENCE).expect("the event is synced");
    checkpoint(&client);
    let took = start.elapsed();
    let stats = client.stats();
    assert_eq!((stats.accepted, stats.dropped_total(), stats.queued_events), (count, 0, count));
    let figure = format!(
        "{}/s ({} events in {took:.1?}, the last accepted after {captured:.1?}; file {:.2} GiB, events {:.2} GiB)",
        grouped(count as f64 / took.as_secs_f64()),
        grouped(count as f64),
        stats.file_bytes as f64 / (1 << 30) as f64,
        stats.queued_bytes as f64 / (1 << 30) as f64,
    );
    row("accepted, checkpointed and synced, one thread", &figure, ">= 500,000/s", "");
}

/// In alternating rounds: a bare sync of a few bytes, a capture whose receipt is awaited, and 64 tasks that do so
/// together.
fn persisted() {
    const TURNS: usize = 10;
    let dir = queue_dir();
    let bare_file = preallocated(&dir.path().join("bare"));
    let client = open(dir.path(), |config| config);
    let (mut bare, mut one) = (Vec::new(), Vec::new());
    let (mut alone, mut together_64) = (0.0_f64, 0.0_f64);
    for turn in 0..TURNS {
        bare.push(bare_syncs(&bare_file, turn, 300));
        one.push((0..300).map(|n| awaited(&client, n)).collect::<Vec<u64>>());
        alone = alone.max(tasks(&client, 1));
        together_64 = together_64.max(tasks(&client, 64));
    }
    let best = |turns: &[Vec<u64>]| turns.iter().cloned().map(|t| Spread::of(t).median()).min().unwrap_or(0);
    let (all_bare, all_one) = (together(&bare), together(&one));
    row("a bare fdatasync of a preallocated file", &all_bare.line(), "", "");
    row("capture and await `persisted`", &all_one.line(), "", "");
    let ratio = |one: u64, bare: u64| one as f64 / bare as f64;
    let figure = format!(
        "{:.2} x by medians, {:.2} x by the quietest rounds ({} to {})",
        ratio(all_one.median(), all_bare.median()),
        ratio(best(&one), best(&bare)),
        human(best(&one)),
        human(best(&bare)),
    );
    row("the same, relative to the bare fdatasync", &figure, "<= 1.5 x", "");
    let figure = format!("{:.1} x ({}/s to {}/s)", together_64 / alone, grouped(together_64), grouped(alone));
    row("64 tasks awaiting together, relative to one task", &figure, ">= 30 x", "");
}

fn preallocated(path: &Path) -> std::fs::File {
    std::fs::write(path, vec![0; 8 << 20]).expect("8 MiB can be written");
    let file = std::fs::File::options().write(true).open(path).expect("it was just written");
    file.sync_all().expect("the disk works");
    file
}

fn bare_syncs(file: &std::fs::File, turn: usize, count: usize) -> Vec<u64> {
    use std::os::unix::fs::FileExt;
    let one = |n: usize| {
        let start = Instant::now();
        file.write_all_at(&[7; 272], ((turn * count + n) * 272) as u64).expect("inside the file");
        file.sync_data().expect("the disk works");
        start.elapsed().as_nanos() as u64
    };
    (0..count).map(one).collect()
}

fn awaited(client: &Client, n: u64) -> u64 {
    let start = Instant::now();
    capture(client, n).persisted().wait(PATIENCE).expect("the event is synced");
    start.elapsed().as_nanos() as u64
}

/// Captures per second of `tasks` tasks, each of which awaits its receipt before the next capture.
fn tasks(client: &Client, tasks: usize) -> f64 {
    const SPAN: Duration = Duration::from_millis(500);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let start = Instant::now();
        let running: Vec<_> = (0..tasks)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move {
                    let mut done = 0_u64;
                    while start.elapsed() < SPAN {
                        capture(&client, done).persisted().await.expect("the disk works");
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let mut done = 0;
        for task in running {
            done += task.await.expect("no task panics");
        }
        done as f64 / start.elapsed().as_secs_f64()
    })
}

/// Cost of a breadcrumb: added by a call, by an event of `tracing`, and by an event that becomes nothing.
fn breadcrumbs() {
    use tracing_subscriber::layer::SubscriberExt;

    let dir = queue_dir();
    if posthog::client().is_none() {
        posthog::init(quiet(config(dir.path(), NOBODY))).expect("a fresh directory can be opened");
    }
    let subscriber = tracing_subscriber::registry().with(posthog::integrations::tracing::layer());
    tracing::subscriber::set_global_default(subscriber).expect("no other measurement has one");
    let clock = clock_cost();
    let measured = |add: &dyn Fn(usize)| {
        let one = |n| {
            let start = Instant::now();
            add(n);
            (start.elapsed().as_nanos() as u64).saturating_sub(clock)
        };
        Spread::of((0..200_000).map(one).collect()).line()
    };
    let user = "user_clerk_id_1234567890";
    for (what, add, target) in [
        ("posthog::breadcrumb of 40 bytes", &(|_| posthog::breadcrumb(USUAL_TEXT)) as &dyn Fn(usize), ""),
        ("info! that becomes a breadcrumb, a message", &|_| tracing::info!("connected to the database"), "<= 300 ns"),
        ("the same with two fields", &|rows| tracing::info!(rows, user, "read the cart"), "<= 300 ns"),
        ("the same with an interpolated message", &|n| tracing::info!("read cart {n} of {user}"), "<= 300 ns"),
        ("debug!, which is ignored", &|rows| tracing::debug!(rows, user, "read the cart"), ""),
    ] {
        row(what, &measured(add), target, "");
    }
}

const USUAL_TEXT: &str = "read the cart of user_clerk_id_123456789";
