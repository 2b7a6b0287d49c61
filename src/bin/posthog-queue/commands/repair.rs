//! `repair`.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use posthog::inspect::{InspectError, ProblemKind, QueueDir, Repair};
use serde::Serialize;

use super::verify;
use crate::output::{Output, Tone, count, shown, visible};
use crate::target::Target;
use crate::{Failure, Verdict};

/// Builds a new store from everything that can be read of a damaged one, and moves the journal into it. The damaged files
/// are kept as damaged-*. Writes to the queue; needs that no process uses it, and as much free space as its events take.
/// A sound queue is left alone.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Repair a queue in which nothing is damaged too
    #[arg(long)]
    force: bool,
    /// The host of the queue's program, if the queue does not tell any more
    #[arg(long, value_name = "URL", requires = "key")]
    host: Option<String>,
    /// The project key of the queue's program, if the queue does not tell any more
    #[arg(long, value_name = "KEY", requires = "host")]
    key: Option<String>,
    /// Where copies of queues in use are made
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
}

/// One line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    /// Where the repair does not name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    is_repaired: bool,
    #[serde(flatten)]
    repair: Option<&'a Repair>,
}

pub(crate) fn run(args: Args, output: &mut Output) -> Result<Verdict, Failure> {
    let queues = args.target.queues()?;
    if let [queue] = queues.as_slice() {
        return repair(queue, &args, output);
    }
    let mut worst = Verdict::Fine;
    for queue in &queues {
        let verdict = repair(queue, &args, output).unwrap_or_else(|failure| {
            output.failed(failure.as_ref());
            Verdict::CouldNot
        });
        worst = worst.max(verdict);
    }
    Ok(worst)
}

fn repair(queue: &QueueDir, args: &Args, output: &mut Output) -> Result<Verdict, Failure> {
    let verification = verify::verify(queue, &args.scratch, output)?;
    let is_damaged = verification.problems.iter().any(|problem| problem.kind == ProblemKind::Damage);
    if !is_damaged && (!args.force || queue.is_blank()) {
        if output.is_json() {
            output.json(&Line {
                queue: Some(queue.path().to_string_lossy().into_owned()),
                is_repaired: false,
                repair: None,
            })?;
        } else if verification.is_sound {
            output.line(format!("Nothing to repair: {}", shown(queue.path())))?;
        } else {
            verify::print(&verification, output)?;
            output.line("  Nothing is damaged: only what is listed has to be changed.")?;
        }
        return Ok(if verification.is_sound { Verdict::Fine } else { Verdict::Found });
    }
    if let Some(owner) = queue.owner()? {
        return Err(InspectError::Owned { path: queue.path().into(), pid: owner.pid }.into());
    }
    let repair = queue.repair(args.host.as_deref().zip(args.key.as_deref()))?;
    if output.is_json() {
        output.json(&Line { queue: None, is_repaired: true, repair: Some(&repair) })?;
    } else {
        print(&repair, output)?;
    }
    Ok(if repair.lost_events > 0 { Verdict::Found } else { Verdict::Fine })
}

fn print(repair: &Repair, output: &mut Output) -> Result<(), Failure> {
    let word = output.toned(Tone::Good, "Repaired");
    output.line(format!("{word}: {}", shown(&repair.queue)))?;
    output.line(format!(
        "  {} saved, {} kept.",
        count(repair.saved_events, "event"),
        count(repair.dead_letters, "dead letter")
    ))?;
    let lost = match repair.lost_events {
        0 => "No event and no dead letter was lost.".to_owned(),
        lost => output.toned(Tone::Bad, &format!("{} lost, dead letters included.", count(lost, "event"))),
    };
    output.line(format!("  {lost}"))?;
    for note in &repair.notes {
        output.line(format!("  Found: {}", visible(note)))?;
    }
    for path in &repair.kept {
        output.line(format!("  Kept: {}", shown(path)))?;
    }
    if !repair.kept.is_empty() {
        output.line("  Nothing reads the kept files any more; remove them when you do not need them.")?;
    }
    Ok(())
}
