//! `export`: events of queues into a file.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde::Serialize;

use crate::events::{Choice, events};
use crate::files::{OutFile, is_standard};
use crate::output::{Output, Unit};
use crate::{Failure, Verdict};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// The file: JSON lines, one event each in PostHog's batch format; compressed if its name ends in .gz or .zst; - for
    /// standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    choice: Choice,
}

#[derive(Serialize)]
struct Exported {
    file: String,
    events: u64,
    dead_letters: u64,
    file_bytes: u64,
}

pub(crate) fn run(args: Args, output: &mut Output) -> Result<Verdict, Failure> {
    let shown = args.file.display().to_string();
    let is_standard = is_standard(&args.file);
    if !is_standard && args.file.exists() && !output.confirm(&format!("{shown} exists. Replace it?"))? {
        return Err(format!("{shown} exists and was not changed").into());
    }
    let queues = args.choice.target.queues()?;
    let total = queues.iter().map(|queue| queue.waiting()).sum();
    let (mut target, mut exported, mut dead) = (OutFile::create(&args.file)?, 0_u64, 0_u64);
    let mut filter = args.choice.filter();
    // A dead letter is exported only on request: PostHog has rejected it.
    if filter.states.is_empty() {
        filter.states = vec![posthog::inspect::EventState::Queued, posthog::inspect::EventState::Journal];
    }
    let bar = output.progress("Exporting", total, Unit::Events);
    let verdict = args.choice.walk(output, &filter, &mut |_, _, event| {
        target.line(&event.to_json()?)?;
        exported += 1;
        dead += u64::from(event.place.state() == posthog::inspect::EventState::Dead);
        bar.at(exported);
        Ok(ControlFlow::Continue(()))
    })?;
    drop(bar);
    if verdict == Verdict::CouldNot {
        return Err(format!("a queue could not be read, so {shown} was not written").into());
    }
    let file_bytes = target.finish()?;
    let exported = Exported { file: shown, events: exported, dead_letters: dead, file_bytes };
    if is_standard {
        // Standard output has the events.
        if !output.is_json() {
            output.note(&format!("Exported {}.", events(exported.events)));
        }
    } else if output.is_json() {
        output.json(&exported)?;
    } else {
        output.line(format!(
            "Exported {} to {}. They are still in their queues.",
            events(exported.events),
            exported.file
        ))?;
    }
    Ok(verdict)
}
