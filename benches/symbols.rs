//! The memory cost of the first handled error: `cargo bench --bench symbols`. With full debug information, as in a
//! large program: `CARGO_PROFILE_BENCH_DEBUG=full cargo bench --bench symbols`.
//!
//! A child process captures an error, and the names of its stack are looked up in the child's own executable, which
//! contains all dependencies of this library. The parent measures the child from outside.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use posthog::Client;
use sink::Sink;
use support::children;
use support::counters::resident;
use support::{PATIENCE, capture, config, queue_dir, row};

/// Time until a change is visible in the kernel's figures.
const SETTLED: Duration = Duration::from_millis(500);

fn main() {
    if let Some(args) = children::role() {
        return play(&args.iter().map(String::as_str).collect::<Vec<_>>());
    }
    support::heading();
    let (dir, sink) = (queue_dir(), Sink::start());
    let mut child = children::start(&["error", &dir.path().display().to_string(), &sink.url()]);
    assert_eq!(child.next_line(), "ready");
    let (before, files_before) = resident(child.pid());
    let (mut peak, mut peak_of_files) = (before, files_before);
    let took = child.next_line_watching(|pid| {
        let (anonymous, of_files) = resident(pid);
        (peak, peak_of_files) = (peak.max(anonymous), peak_of_files.max(of_files));
    });
    std::thread::sleep(SETTLED);
    let (after, _) = resident(child.pid());
    let (named, frames) = frames(&sink);
    let mib = |kib: u64| kib as f64 / 1024.0;
    let executable = std::env::current_exe().and_then(std::fs::metadata).map_or(0, |file| file.len() / 1024);
    let figure = format!(
        "RssAnon {:.1} MiB before, {:.1} MiB peak, {:.1} MiB after; RssFile {:.1} MiB peak; {took} ms; {named} of {frames} \
         frames have lines; an executable of {:.0} MiB",
        mib(before),
        mib(peak),
        mib(after),
        mib(peak_of_files),
        mib(executable)
    );
    row("memory for the first handled error", &figure, "at most 24 MiB more at the peak, 8 MiB afterwards", "");
}

/// The number of frames that have a line, and the number of all frames.
fn frames(sink: &Sink) -> (usize, usize) {
    let events = sink.events();
    let error = events.iter().find(|event| event.event == "$exception").expect("the error has arrived");
    let frames = error.properties["$exception_list"][0]["stacktrace"]["frames"].as_array().cloned().unwrap_or_default();
    (frames.iter().filter(|frame| frame["lineno"].is_u64()).count(), frames.len())
}

/// The child process.
#[allow(clippy::print_stdout, reason = "a child talks to its parent")]
fn play(args: &[&str]) {
    let ["error", dir, url] = args else { panic!("unknown role of a child process: {args:?}") };
    let client = Client::new(config(Path::new(dir), url)).expect("the directory can be opened");
    let _ = capture(&client, 0);
    client.flush().wait(PATIENCE).expect("a flush ends");
    std::thread::sleep(SETTLED);
    println!("ready");
    std::thread::sleep(SETTLED);
    let began = Instant::now();
    let error = std::io::Error::other("disk on fire");
    let _ = client.capture_exception(&error);
    client.flush().wait(PATIENCE).expect("a flush ends");
    println!("{}", began.elapsed().as_millis());
    std::thread::sleep(PATIENCE);
}
