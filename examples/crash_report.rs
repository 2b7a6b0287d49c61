//! A daemon panics, reads an unmapped address, overflows its stack and is killed, and each time its next start reports
//! the crash.
//!
//! `cargo run -p examples --bin crash_report` takes less than a minute once it is built. The example starts a PostHog
//! stand-in on loopback, and repeatedly itself as the daemon, like a supervisor. All that the daemon does for its crash
//! reports are the calls at the beginning of `live`. Without the library's feature `crash-signals` only the panic would
//! be reported.
#![allow(clippy::print_stdout, reason = "the output of the example")]
#![allow(unsafe_code, reason = "the daemon crashes by reading an unmapped address")]

use std::collections::HashSet;
use std::error::Error;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use posthog::{Config, Event};
use serde_json::Value;
use sink::Sink;

/// Reading the symbols of a debug build takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// A way in which the daemon ends, its description, and whether it is reported.
const ENDS: &[(&str, &str, bool)] = &[
    ("panic", "it panics", true),
    ("segfault", "it reads an unmapped address", true),
    ("overflow", "it overflows its stack", true),
    ("sigkill", "it is killed with SIGKILL, which no process can report", false),
    ("close", "it closes its client and exits", false),
];

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "daemon", end, url, queue] => live(end, url, queue),
        _ => supervise(),
    }
}

// ---- the daemon
// --------------------------------------------------------------------------------------------------------------------

fn live(end: &str, url: &str, queue: &str) -> Result<(), Box<dyn Error>> {
    // This order: the client, then the hooks, after any other crate has set its own.
    let client = posthog::init(Config::new("phc_example").host(url).queue_dir(queue))?;
    posthog::install_panic_hook();
    posthog::install_crash_handler();

    match client.previous_run() {
        Some(run) => println!("the previous run, process {}: {}", run.pid, run.cause),
        None => println!("there was no previous run"),
    }
    // Waits for the supervisor, which shows the report of the previous run first.
    io::stdin().lock().read_line(&mut String::new())?;
    posthog::capture(Event::new("order_taken", "till_7"));
    take_order(end);
    client.close().wait(Duration::from_secs(11))?;
    Ok(())
}

#[inline(never)]
fn take_order(end: &str) {
    match end {
        "panic" => drop(std::hint::black_box(price_of(end.len() + 2))),
        "segfault" => drop(std::hint::black_box(read_register(8))),
        "overflow" => drop(std::hint::black_box(folders_below(1))),
        "sigkill" => drop(nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)),
        _ => {}
    }
}

#[inline(never)]
fn price_of(dish: usize) -> u32 {
    let menu = [7, 9, 12];
    menu[dish]
}

#[inline(never)]
fn read_register(address: usize) -> u32 {
    // SAFETY: this is not sound; it exists to crash the process.
    unsafe { std::ptr::read_volatile(std::hint::black_box(address) as *const u32) }
}

#[inline(never)]
#[allow(unconditional_recursion, reason = "overflows the stack")]
fn folders_below(folder: u64) -> u64 {
    let path = std::hint::black_box([folder; 32]);
    folders_below(path[0] + 1) + std::hint::black_box(path)[1]
}

// ---- its supervisor
// ----------------------------------------------------------------------------------------------------------------

fn supervise() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let queue = tempfile::tempdir()?;
    let sink = Sink::start();
    println!("a PostHog stand-in listens on {}, the queue is in {}", sink.url(), queue.path().display());
    let mut expected = 0;
    for (run, (end, described, is_reported)) in ENDS.iter().enumerate() {
        println!("\n== run {}", run + 1);
        one_run(&sink, queue.path(), end, described, expected)?;
        expected += usize::from(*is_reported);
    }
    println!("\nissues at PostHog: {}, after {:.0?}", issues(&sink).len(), started.elapsed());
    Ok(())
}

/// Starts the daemon, shows what it reports of its previous run, and lets it end.
fn one_run(sink: &Sink, queue: &Path, end: &str, described: &str, expected: usize) -> Result<(), Box<dyn Error>> {
    let mut daemon = sink::command(std::env::current_exe()?);
    daemon.args(["daemon", end, &sink.url()]).arg(queue).env_remove("RUST_BACKTRACE");
    let mut daemon = daemon.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let stdout = daemon.stdout.take().ok_or("the daemon has no stdout")?;
    let mut said = String::new();
    BufReader::new(stdout).read_line(&mut said)?;
    print!("{said}");

    let known = issues(sink).len();
    if expected > known {
        if !sink.wait_for(|state| once_each(state.events()).len() >= expected, PATIENCE) {
            return Err("the issue did not arrive".into());
        }
        issues(sink).iter().skip(known).for_each(show);
    }

    println!("now {described}");
    // Closing stdin lets the daemon continue.
    drop(daemon.stdin.take());
    println!("its parent sees: {}", daemon.wait()?);
    Ok(())
}

/// Removes duplicates. A daemon that dies right after a delivery cannot remove the event from its queue, and the next
/// run sends it again. PostHog keeps one event of each uuid, too.
fn once_each(events: &[sink::Event]) -> Vec<sink::Event> {
    let mut known = HashSet::new();
    let issues = events.iter().filter(|event| event.event == "$exception");
    issues.filter(|event| known.insert(event.uuid)).cloned().collect()
}

fn issues(sink: &Sink) -> Vec<sink::Event> {
    sink.inspect(|state| once_each(state.events()))
}

/// Prints an issue as PostHog shows it: only `in_app` frames, the crash first.
fn show(issue: &sink::Event) {
    let said = |name: &str| issue.properties[name].as_str().unwrap_or_default().to_owned();
    println!("at PostHog: [{}] {}: {}", said("$exception_level"), said("$exception_type"), said("$exception_message"));
    println!("    of {}, from {}", issue.timestamp, said("$exception_source"));
    let frames = issue.properties["$exception_list"][0]["stacktrace"]["frames"].as_array();
    let own = frames.into_iter().flatten().rev().filter(|frame| frame["in_app"] == true);
    let mut lines: Vec<(String, usize)> = Vec::new();
    for frame in own.map(line_of) {
        match lines.last_mut().filter(|(line, _)| *line == frame) {
            Some((_, times)) => *times += 1,
            None => lines.push((frame, 1)),
        }
    }
    for (line, times) in lines {
        let repeated = if times > 1 { format!("   (and {} more)", times - 1) } else { String::new() };
        println!("    {line}{repeated}");
    }
}

fn line_of(frame: &Value) -> String {
    let function = frame["function"].as_str().unwrap_or("?");
    match (frame["filename"].as_str(), frame["lineno"].as_u64()) {
        (Some(file), Some(line)) => {
            let file = file.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/")).unwrap_or(file);
            format!("{function:<34}{file}:{line}")
        }
        _ => function.to_owned(),
    }
}
