//! The process that is killed. Captures through the real client, and writes `acknowledged` only after `capture` has
//! returned.
#![allow(unsafe_code, reason = "`fork`, with its proof")]

use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crash_tests::protocol::{Child, Key, Line, Orders};
use crash_tests::{Ledger, Setup};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, alarm, fork};
use posthog::settings::OverflowPolicy;
use posthog::{Client, Config, Event, Outcome, Receipt};

const DRAIN_TIMEOUT: Duration = Duration::from_secs(50);
/// About 2,000 events per second and thread, so that a run goes through many states of the pipeline with few events.
const BURST: u32 = 10;
const PAUSE: Duration = Duration::from_millis(5);
const SYNC_INTERVAL: Duration = Duration::from_millis(20);
/// Seconds after which a forked child that has not ended is killed by the kernel.
const CHILD_SECONDS: u32 = 60;
/// Events that a forked child captures. The threads of the children are numbered from this.
const CHILD_EVENTS: u32 = 5;
const FIRST_CHILD: u32 = 1_000;
/// So that ten rounds have more syncs than the library makes in one turn of its committer, on a disk that is so loaded
/// that only syncs take time: a full journal is four commits, and a new arena comes with syncs of its own.
const SYNCS_PER_ROUND: u32 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: victim HOST QUEUE RUN THREADS EVENTS SETUP";
    let orders = Orders::from_args(std::env::args().skip(1)).ok_or(usage)?;
    let client = Client::new(config(&orders))?;
    say(&Line::Open)?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        if orders.setup.rounds {
            scope.spawn(|| measure(&orders.queue));
        }
        let capture = |thread| capture(&client, &orders, thread, &is_over);
        let threads: Vec<_> = (0..orders.threads).map(|thread| scope.spawn(move || capture(thread))).collect();
        if orders.setup.per_second > 0 {
            let obeyed = obey(&client, &orders);
            is_over.store(true, Ordering::SeqCst);
            obeyed?;
        }
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect::<io::Result<()>>()
    })?;
    // The end of stdin asks the victim to end. Until then the client delivers what other processes left.
    io::stdin().read_to_end(&mut Vec::new())?;
    drain(&client)?;
    say(&Line::Ledger(Ledger::of(&client.stats())))?;
    Ok(())
}

/// All intervals are short, so that each step of the pipeline happens many times in a short run.
fn config(orders: &Orders) -> Config {
    let millis = Duration::from_millis;
    let mut config = Config::new("phc_crash")
        .host(&orders.host)
        .queue_dir(&orders.queue)
        .flush_at(20)
        .flush_interval(millis(30))
        .sync_interval(SYNC_INTERVAL)
        .ack_interval(millis(40))
        .first_send_jitter(Duration::ZERO)
        .retry_backoff(millis(100), millis(200))
        .max_retries(100);
    let Setup { small_journal, queue_events, per_second, .. } = orders.setup;
    if per_second > 0 {
        // The disk of a soak is small, and is to be full, not nearly full. What hangs is given up after seconds.
        config = config.min_free_space(0).request_timeout(millis(5_000));
    }
    if small_journal {
        config = config.journal_bytes(64 * 1024).max_event_bytes(8 * 1024);
    }
    if queue_events > 0 {
        config = config.max_queue_events(queue_events.into()).overflow(OverflowPolicy::DropOldest);
    }
    config
}

fn capture(client: &Client, orders: &Orders, thread: u32, is_over: &AtomicBool) -> io::Result<()> {
    let padding = "x".repeat(orders.setup.padding as usize);
    for n in (0..orders.events).take_while(|_| !is_over.load(Ordering::SeqCst)) {
        let is_ai = orders.setup.ai && n % 2 == 1;
        let key = Key { run: orders.run, thread, n };
        let receipt = capture_one(client, key, &padding, is_ai)?;
        let awaits = orders.setup.awaits > 0 && n % orders.setup.awaits == orders.setup.awaits - 1;
        if awaits && receipt.persisted().wait(DRAIN_TIMEOUT).is_ok() {
            say(&Line::Persisted(key))?;
        }
        if let Some(between) = Duration::from_secs(1).checked_div(orders.setup.per_second) {
            thread::sleep(between);
        } else if n % BURST == 0 && !orders.setup.burst {
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Measures what the disk and the machine allow at this moment: again and again waits for a sync interval, as the
/// library does, and then syncs a file of its own beside the queue a few times. Ends with the process.
fn measure(queue: &str) -> io::Result<()> {
    let mut file = File::create(Path::new(queue).with_extension("measure"))?;
    loop {
        say(&Line::Round)?;
        thread::sleep(SYNC_INTERVAL);
        for _ in 0..SYNCS_PER_ROUND {
            file.write_all(b"round\n")?;
            file.sync_data()?;
        }
    }
}

fn capture_one(client: &Client, key: Key, padding: &str, is_ai: bool) -> io::Result<Receipt> {
    let mut event = Event::new("tick", "victim").prop("run", key.run).prop("thread", key.thread).prop("n", key.n);
    if !padding.is_empty() {
        event = event.prop("padding", padding);
    }
    let receipt = if is_ai { client.capture_ai(event) } else { client.capture(event) };
    match (receipt.outcome(), receipt.uuid()) {
        (Outcome::Accepted, Some(uuid)) => say(&Line::Acknowledged(key, uuid)),
        (outcome, _) => say(&Line::Dropped(key, format!("{outcome:?}"))),
    }?;
    Ok(receipt)
}

/// Forks as the lines of stdin ask for it, until stdin ends.
fn obey(client: &Client, orders: &Orders) -> io::Result<()> {
    let asked = io::stdin().lock().lines().map_while(Result::ok).filter_map(|line| Child::parse(&line));
    for (number, child) in (FIRST_CHILD..).zip(asked) {
        // SAFETY: the child uses the client, which allows it; `say`, which takes no lock; and the allocator, which
        // glibc makes usable in children. Its other threads are gone, and none of their locks is taken here.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => match waitpid(child, None)? {
                WaitStatus::Exited(_, 0) => say(&Line::ChildEnded)?,
                status => return Err(io::Error::other(format!("a forked child ended with {status:?}"))),
            },
            ForkResult::Child => {
                alarm::set(CHILD_SECONDS);
                exit(if be_a_child(client, orders, number, child).is_ok() { 0 } else { 1 });
            }
        }
    }
    Ok(())
}

fn be_a_child(client: &Client, orders: &Orders, thread: u32, child: Child) -> Result<(), Box<dyn Error>> {
    if child != Child::Exits {
        let key = |n| Key { run: orders.run, thread, n };
        (0..CHILD_EVENTS).try_for_each(|n| capture_one(client, key(n), "", false).map(drop))?;
    }
    if child == Child::Closes {
        client.shutdown(PAUSE * 20).wait(DRAIN_TIMEOUT)?;
    }
    Ok(())
}

fn drain(client: &Client) -> Result<(), Box<dyn Error>> {
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    while client.stats().queued_events > 0 && Instant::now() < deadline {
        client.flush().wait(DRAIN_TIMEOUT)?;
        // A flush that finds the server down returns at once.
        thread::sleep(PAUSE);
    }
    client.shutdown(DRAIN_TIMEOUT).wait(DRAIN_TIMEOUT)?;
    Ok(())
}

/// Writes a line with one call. Fails if stdout is closed, which ends this run. Takes no lock, which another thread
/// might hold while this one forks.
fn say(line: &Line) -> io::Result<()> {
    // A line is shorter than PIPE_BUF, so it is written whole or not at all.
    nix::unistd::write(io::stdout(), format!("{line}\n").as_bytes())?;
    Ok(())
}
