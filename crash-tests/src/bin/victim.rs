//! The process that is killed. Captures through the real client, and writes `acknowledged` only after `capture` has
//! returned.
#![allow(clippy::print_stdout, reason = "stdout is how a victim speaks")]

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crash_tests::protocol::{Key, Line, Orders};
use crash_tests::{Ledger, Setup};
use posthog::settings::OverflowPolicy;
use posthog::{Client, Config, Event, Outcome};

const DRAIN_TIMEOUT: Duration = Duration::from_secs(50);
/// About 2,000 events per second and thread, so that a run goes through many states of the pipeline with few events.
const BURST: u32 = 10;
const PAUSE: Duration = Duration::from_millis(5);
const SYNC_INTERVAL: Duration = Duration::from_millis(20);

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: victim HOST QUEUE RUN THREADS EVENTS SETUP";
    let orders = Orders::from_args(std::env::args().skip(1)).ok_or(usage)?;
    let client = Client::new(config(&orders))?;
    say(&Line::Open)?;
    thread::scope(|scope| {
        if orders.setup.rounds {
            scope.spawn(|| measure(&orders.queue));
        }
        let capture = |thread| capture(&client, &orders, thread);
        let threads: Vec<_> = (0..orders.threads).map(|thread| scope.spawn(move || capture(thread))).collect();
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
    let Setup { small_journal, queue_events, .. } = orders.setup;
    if small_journal {
        config = config.journal_bytes(64 * 1024).max_event_bytes(8 * 1024);
    }
    if queue_events > 0 {
        config = config.max_queue_events(queue_events.into()).overflow(OverflowPolicy::DropOldest);
    }
    config
}

fn capture(client: &Client, orders: &Orders, thread: u32) -> io::Result<()> {
    let padding = "x".repeat(orders.setup.padding as usize);
    for n in 0..orders.events {
        let key = Key { run: orders.run, thread, n };
        let mut event = Event::new("tick", "victim").prop("run", key.run).prop("thread", key.thread).prop("n", key.n);
        if !padding.is_empty() {
            event = event.prop("padding", padding.as_str());
        }
        let is_ai = orders.setup.ai && n % 2 == 1;
        let receipt = if is_ai { client.capture_ai(event) } else { client.capture(event) };
        match (receipt.outcome(), receipt.uuid()) {
            (Outcome::Accepted, Some(uuid)) => say(&Line::Acknowledged(key, uuid))?,
            (outcome, _) => say(&Line::Dropped(key, format!("{outcome:?}")))?,
        }
        let awaits = orders.setup.awaits > 0 && n % orders.setup.awaits == orders.setup.awaits - 1;
        if awaits && receipt.persisted().wait(DRAIN_TIMEOUT).is_ok() {
            say(&Line::Persisted(key))?;
        }
        if n % BURST == 0 && !orders.setup.burst {
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Measures what the disk and the machine allow at this moment: again and again waits for a sync interval, as the library
/// does, and then syncs a file of its own beside the queue. Ends with the process.
fn measure(queue: &str) -> io::Result<()> {
    let mut file = File::create(Path::new(queue).with_extension("measure"))?;
    loop {
        say(&Line::Round)?;
        thread::sleep(SYNC_INTERVAL);
        file.write_all(b"round\n")?;
        file.sync_data()?;
    }
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

/// Writes a line with one call. Fails if stdout is closed, which ends this run.
fn say(line: &Line) -> io::Result<()> {
    io::stdout().write_all(format!("{line}\n").as_bytes())
}
