//! Kills a daemon with SIGKILL forty times, with an outage of PostHog in between, and shows that no accepted event is
//! lost.
//!
//! `cargo run -p examples --bin kill9` needs nothing but a Rust toolchain and takes about half a minute. It starts a
//! PostHog stand-in on loopback and itself a second time as the daemon. The daemon captures through the real client and
//! acknowledges an event, by its uuid on a pipe, only after `capture` has returned `Accepted`. At the end, every
//! acknowledged uuid must be at the stand-in. Exits with 1 if one is missing or if the client's ledger does not
//! balance.
#![allow(clippy::print_stdout, reason = "the example prints its result, and the daemon acknowledges to its parent")]

use std::collections::HashSet;
use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, ExitCode, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use posthog::{Client, Config, Event, Outcome, Stats};
use rand::rngs::StdRng;
use rand::{RngExt, make_rng};
use sink::{Sink, State};
use uuid::Uuid;

const KILLS: u32 = 40;
/// The stand-in is down during the 15th to the 24th kill.
const OUTAGE: std::ops::Range<u32> = 15..25;
const LIFE_MILLIS: std::ops::Range<u64> = 20..1_000;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);
const CAPTURING_THREADS: usize = 2;
/// Between two short pauses; about 20,000 events a second in all.
const BURST: u32 = 20;
const PAUSE: Duration = Duration::from_millis(2);

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "daemon", url, queue] => run_daemon(&open(url, queue)?),
        [_, "drain", url, queue] => drain(&open(url, queue)?),
        _ => supervise(),
    }
}

/// The parent: kills the daemon, compares, and prints the table.
fn supervise() -> Result<ExitCode, Box<dyn Error>> {
    let started = Instant::now();
    let queue = tempfile::tempdir()?;
    let sink = Sink::start();
    sink.fast_mode(true);
    println!("a stand-in for PostHog listens on {}, the queue is in {}", sink.url(), queue.path().display());

    let acknowledged = kill_repeatedly(&sink, queue.path())?;
    println!("the last daemon sends what is left");
    let ledger = drain_and_report(&sink, queue.path())?;

    let lost = sink.inspect(|state| acknowledged.iter().filter(|uuid| !state.contains(**uuid)).count());
    let (unique, duplicates) = sink.inspect(|state| (state.unique(), state.duplicates()));
    // The disk is intact and the power stays on, so every accepted event must be delivered.
    let balanced = ledger.balances() && ledger.delivered == ledger.accepted && ledger.delivered == unique;
    let row = |name: &str, count: u64, meaning: &str| println!("  {name:<20}{count:>9}   {meaning}");
    println!();
    row("kills", u64::from(KILLS), "SIGKILL at a random moment");
    row("accepted", acknowledged.len() as u64, "acknowledged to the parent after `capture` returned");
    row("accepted, by ledger", ledger.accepted, "above that: killed before it could acknowledge");
    row("delivered", ledger.delivered, "by the client's ledger");
    row("unique at the sink", unique, "different uuids");
    row("duplicates", duplicates, "sent again with the same uuid: PostHog keeps one");
    row("lost", lost as u64, "acknowledged and not at the sink");
    println!();
    if !balanced {
        println!("the ledger does not balance: {ledger:?}");
    }
    println!("{} after {:.0?}", if lost == 0 && balanced { "nothing lost" } else { "FAILED" }, started.elapsed());
    Ok(if lost == 0 && balanced { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the uuids that the daemons acknowledged.
fn kill_repeatedly(sink: &Sink, queue: &Path) -> Result<HashSet<Uuid>, Box<dyn Error>> {
    let mut random: StdRng = make_rng();
    let mut acknowledged = HashSet::new();
    for kill in 1..=KILLS {
        if kill == OUTAGE.start {
            sink.stop();
        } else if kill == OUTAGE.end {
            sink.resume();
        }
        let (mut daemon, acks) = spawn("daemon", sink, queue)?;
        let acks = collect(acks);
        thread::sleep(Duration::from_millis(random.random_range(LIFE_MILLIS)));
        if let Some(status) = daemon.try_wait()? {
            return Err(format!("the daemon ended by itself: {status}").into());
        }
        daemon.kill()?;
        daemon.wait()?;
        acknowledged.extend(acks.join().map_err(|_| "the reader of acknowledgements panicked")?);
        if kill % 4 == 0 {
            let note = if OUTAGE.contains(&kill) { "  (sink is down)" } else { "" };
            let (accepted, arrived) = (acknowledged.len(), sink.inspect(State::unique));
            println!("kill {kill:>2} of {KILLS}   accepted {accepted:>8}   at the sink {arrived:>8}{note}");
        }
    }
    Ok(acknowledged)
}

/// Starts this program in another role.
fn spawn(role: &str, sink: &Sink, queue: &Path) -> io::Result<(Child, ChildStdout)> {
    let mut command = sink::command(std::env::current_exe()?);
    let mut child = command.arg(role).arg(sink.url()).arg(queue).stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().ok_or_else(|| io::Error::other("the daemon has no stdout"))?;
    Ok((child, stdout))
}

/// Reads acknowledgements until the daemon is dead, so that it never waits for a full pipe.
fn collect(acks: ChildStdout) -> JoinHandle<Vec<Uuid>> {
    thread::spawn(move || {
        let lines = BufReader::new(acks).lines().map_while(Result::ok);
        lines.filter_map(|line| line.parse().ok()).collect()
    })
}

/// A last daemon that captures nothing, delivers what is left, and reports the ledger.
fn drain_and_report(sink: &Sink, queue: &Path) -> Result<Ledger, Box<dyn Error>> {
    let (mut daemon, stdout) = spawn("drain", sink, queue)?;
    let report = io::read_to_string(stdout)?;
    daemon.wait()?;
    Ledger::parse(&report).ok_or_else(|| format!("the last daemon reported no ledger, but {report:?}").into())
}

fn open(url: &str, queue: &str) -> Result<Client, posthog::Error> {
    Client::new(Config::new("phc_example").host(url).queue_dir(queue).flush_interval(Duration::from_millis(200)))
}

/// Captures until it is killed, or until nobody reads its acknowledgements any more.
fn run_daemon(client: &Client) -> Result<ExitCode, Box<dyn Error>> {
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..CAPTURING_THREADS).map(|thread| scope.spawn(move || capture(client, thread))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect::<io::Result<()>>()
    })?;
    Ok(ExitCode::FAILURE)
}

fn capture(client: &Client, thread: usize) -> io::Result<()> {
    for n in 0_u32.. {
        let receipt = client.capture(Event::new("tick", "daemon-1").prop("thread", thread).prop("n", n));
        if let (Outcome::Accepted, Some(uuid)) = (receipt.outcome(), receipt.uuid()) {
            // One write of less than PIPE_BUF bytes: whole or not at all, also for a process that is killed in it.
            io::stdout().write_all(format!("{uuid}\n").as_bytes())?;
        }
        if n % BURST == 0 {
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}

fn drain(client: &Client) -> Result<ExitCode, Box<dyn Error>> {
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    while client.stats().queued_events > 0 && Instant::now() < deadline {
        client.flush().wait(DRAIN_TIMEOUT)?;
        // A flush that finds the server down returns at once.
        thread::sleep(PAUSE);
    }
    client.shutdown(DRAIN_TIMEOUT).wait(DRAIN_TIMEOUT)?;
    println!("{}", Ledger::of(&client.stats()));
    Ok(ExitCode::SUCCESS)
}

/// Where the events went, as the client counts them across all its lives.
#[derive(Debug)]
struct Ledger {
    accepted: u64,
    delivered: u64,
    queued: u64,
    dead_lettered: u64,
    evicted: u64,
    damaged: u64,
    lost_unsynced: u64,
}

impl Ledger {
    fn of(stats: &Stats) -> Self {
        Self {
            accepted: stats.accepted,
            delivered: stats.delivered,
            queued: stats.queued_events,
            dead_lettered: stats.dead_lettered,
            evicted: stats.evicted,
            damaged: stats.damaged,
            lost_unsynced: stats.lost_unsynced,
        }
    }

    fn balances(&self) -> bool {
        let gone = self.delivered + self.dead_lettered + self.evicted + self.damaged + self.lost_unsynced;
        self.accepted == gone + self.queued
    }

    fn parse(line: &str) -> Option<Self> {
        let numbers: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let [accepted, delivered, queued, dead_lettered, evicted, damaged, lost_unsynced] = numbers[..] else {
            return None;
        };
        Some(Self { accepted, delivered, queued, dead_lettered, evicted, damaged, lost_unsynced })
    }
}

impl std::fmt::Display for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { accepted, delivered, queued, dead_lettered, evicted, damaged, lost_unsynced } = self;
        write!(f, "{accepted} {delivered} {queued} {dead_lettered} {evicted} {damaged} {lost_unsynced}")
    }
}
