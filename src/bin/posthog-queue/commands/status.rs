//! `status`: what is in the queues, whether it leaves, and if not, why. The text is made in `status_text.rs`.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use clap::Args as ClapArgs;
use nix::sys::signal::{SigSet, Signal};
use posthog::inspect::{InspectError, QueueState, QueueStatus, QueueVerdict};
use serde::Serialize;

use super::status_text;
use crate::output::Output;
use crate::target::Target;
use crate::{Failure, Verdict};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Show the status again and again, every SECONDS (2), until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    watch: Option<u64>,
    /// Do not look twice, a second apart, to find out how fast events come and leave
    #[arg(long)]
    no_rates: bool,
}

/// How long is looked for the rates.
const RATES_FOR: Duration = Duration::from_secs(1);

/// A queue that was looked at.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) path: PathBuf,
    pub(crate) found: Result<Found, InspectError>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Found {
    #[serde(flatten)]
    pub(crate) status: QueueStatus,
    pub(crate) verdict: QueueVerdict,
    /// Events accepted per second, if the queue was looked at twice.
    pub(crate) accepted_per_second: Option<f64>,
    pub(crate) delivered_per_second: Option<f64>,
}

pub(crate) fn run(args: &Args, output: &mut Output) -> Result<Verdict, Failure> {
    if let Some(seconds) = args.watch {
        return watch(args, Duration::from_secs(seconds), output);
    }
    let mut readings = look(args, &[])?;
    let is_alive = |reading: &Reading| reading.found.as_ref().is_ok_and(|found| found.status.owner.is_some());
    if !args.no_rates && readings.iter().any(is_alive) {
        std::thread::sleep(RATES_FOR);
        readings = look(args, &readings)?;
    }
    write(&readings, output)?;
    Ok(verdict(&readings))
}

/// Shows the status until a signal ends it: on a terminal in place, elsewhere one below the other.
fn watch(args: &Args, every: Duration, output: &mut Output) -> Result<Verdict, Failure> {
    let ended = end_signal()?;
    let (mut readings, mut is_first) = (Vec::new(), true);
    loop {
        readings = look(args, &readings)?;
        if output.is_json() {
            write(&readings, output)?;
        } else {
            let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC");
            let mut lines = vec![format!("{now}, every {} s, Ctrl-C ends", every.as_secs())];
            lines.extend(status_text::lines(&readings, output));
            if output.is_screen() {
                output.screen(&lines)?;
            } else {
                if !is_first {
                    output.line("")?;
                }
                lines.iter().try_for_each(|line| output.line(line))?;
            }
            is_first = false;
        }
        output.flush()?;
        if ended.recv_timeout(every) != Err(mpsc::RecvTimeoutError::Timeout) {
            return Ok(verdict(&readings));
        }
    }
}

/// Receives a message when this process is asked to end, so that it does so between two lines.
fn end_signal() -> Result<Receiver<()>, Failure> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Before the thread exists, which inherits this: the signals are taken by its `wait` alone.
    signals.thread_block()?;
    let (send, receive) = mpsc::channel();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let _ = signals.wait();
        let _ = send.send(());
    })?;
    Ok(receive)
}

/// Looks at each queue, and compares it with an earlier look.
fn look(args: &Args, before: &[Reading]) -> Result<Vec<Reading>, Failure> {
    let look_at = |queue: posthog::inspect::QueueDir| {
        let path = queue.path().to_path_buf();
        let earlier = before.iter().find(|reading| reading.path == path);
        let earlier = earlier.and_then(|reading| reading.found.as_ref().ok()).map(|found| &found.status);
        let found = queue.status().map(|status| found(status, earlier));
        Reading { path, found }
    };
    Ok(args.target.queues_and_imports()?.into_iter().map(look_at).collect())
}

fn found(status: QueueStatus, earlier: Option<&QueueStatus>) -> Found {
    let elapsed = earlier.and_then(|earlier| status.read_at.duration_since(earlier.read_at).ok());
    let rate = |count: fn(&QueueStatus) -> u64| {
        let (earlier, elapsed) = (earlier?, elapsed.filter(|elapsed| !elapsed.is_zero())?);
        // Fewer than before: the queue was replaced by another one.
        Some(count(&status).checked_sub(count(earlier))? as f64 / elapsed.as_secs_f64())
    };
    let (accepted, delivered) = (rate(|status| status.accepted), rate(|status| status.delivered));
    Found { verdict: status.verdict(), status, accepted_per_second: accepted, delivered_per_second: delivered }
}

fn write(readings: &[Reading], output: &mut Output) -> Result<(), Failure> {
    if !output.is_json() {
        return status_text::lines(readings, output).iter().try_for_each(|line| output.line(line));
    }
    for reading in readings {
        match &reading.found {
            Ok(found) => output.json(found)?,
            Err(error) => {
                output.json(&serde_json::json!({ "path": reading.path.to_string_lossy(), "error": text_of(error) }))?
            }
        }
    }
    Ok(())
}

/// An error with its sources.
pub(crate) fn text_of(error: &InspectError) -> String {
    let (mut text, mut source) = (error.to_string(), std::error::Error::source(error));
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The exit status: the worst of the queues'.
fn verdict(readings: &[Reading]) -> Verdict {
    let of = |reading: &Reading| match reading.found.as_ref().map(|found| found.verdict.state) {
        Ok(QueueState::Fine | QueueState::Waiting) => Verdict::Fine,
        Ok(QueueState::Unknown) | Err(_) => Verdict::CouldNot,
        Ok(_) => Verdict::Found,
    };
    readings.iter().map(of).max().unwrap_or(Verdict::Fine)
}
