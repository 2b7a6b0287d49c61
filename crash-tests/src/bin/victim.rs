//! The process that is killed. Captures through the real client, and says `acked` only after `capture` has returned.
#![allow(clippy::print_stdout, reason = "stdout is how a victim speaks")]

use std::error::Error;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use crash_tests::Ledger;
use crash_tests::protocol::{Key, Line, Orders};
use posthog::{Client, Config, Event, Outcome};

const DRAIN_TIMEOUT: Duration = Duration::from_secs(50);
/// About 2,000 events a second and thread: a life is to have many moments, not many events.
const BURST: u32 = 10;
const PAUSE: Duration = Duration::from_millis(5);

fn main() -> Result<(), Box<dyn Error>> {
    let orders = Orders::from_args(std::env::args().skip(1)).ok_or("usage: victim HOST QUEUE LIFE THREADS EVENTS")?;
    let config = Config::new("phc_crash").host(&orders.host).queue_dir(&orders.queue);
    // Short, so that every step of the pipeline happens many times in a short life.
    let client = Client::new(config.flush_at(20).flush_interval(Duration::from_millis(30)))?;
    say(&Line::Open)?;
    thread::scope(|scope| {
        let capture = |thread| capture(&client, &orders, thread);
        let threads: Vec<_> = (0..orders.threads).map(|thread| scope.spawn(move || capture(thread))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect::<io::Result<()>>()
    })?;
    drain(&client)?;
    say(&Line::Ledger(Ledger::of(&client.stats())))?;
    Ok(())
}

fn capture(client: &Client, orders: &Orders, thread: u32) -> io::Result<()> {
    for n in 0..orders.events {
        let key = Key { life: orders.life, thread, n };
        let event = Event::new("tick", "victim").prop("life", key.life).prop("thread", key.thread).prop("n", key.n);
        let receipt = client.capture(event);
        match (receipt.outcome(), receipt.uuid()) {
            (Outcome::Accepted, Some(uuid)) => say(&Line::Acked(key, uuid))?,
            (outcome, _) => say(&Line::Dropped(key, format!("{outcome:?}")))?,
        }
        if n % BURST == 0 {
            thread::sleep(PAUSE);
        }
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

/// One write of less than PIPE_BUF bytes. Fails when nobody listens any more, which ends this life.
fn say(line: &Line) -> io::Result<()> {
    io::stdout().write_all(format!("{line}\n").as_bytes())
}
