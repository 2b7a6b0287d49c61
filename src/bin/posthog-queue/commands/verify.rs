//! `verify`.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use posthog::inspect::{Problem, ProblemKind, QueueDir, Verification};

use crate::output::{Output, Tone, Unit, are, count, shown, visible};
use crate::target::Target;
use crate::{Failure, Verdict};

/// Checks every checksum and every row of the store, the balance of its ledger, the rounds of the journal, dead letters,
/// crash reports, and the owners and modes of the files. Changes nothing. Of a queue in use, a copy is checked.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Where copies of queues in use are made
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
}

pub(crate) fn run(args: Args, output: &mut Output) -> Result<Verdict, Failure> {
    let mut worst = Verdict::Fine;
    for queue in args.target.queues_and_imports()? {
        let verdict = match verify(&queue, &args.scratch, output) {
            Ok(verification) => {
                print(&verification, output)?;
                if verification.is_sound { Verdict::Fine } else { Verdict::Found }
            }
            // The other queues are checked all the same.
            Err(failure) => {
                output.failed(failure.as_ref());
                Verdict::CouldNot
            }
        };
        worst = worst.max(verdict);
    }
    Ok(worst)
}

/// Verifies one queue, with a progress bar.
pub(super) fn verify(queue: &QueueDir, scratch: &std::path::Path, output: &Output) -> Result<Verification, Failure> {
    let bar = output.progress("Checking", 0, Unit::Events);
    Ok(queue.verify(scratch, &|done, total| bar.at_of(done, total))?)
}

/// Prints the verdict about one queue, and what is wrong with it.
pub(super) fn print(verification: &Verification, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(verification);
    }
    let is_damaged = verification.problems.iter().any(|problem| problem.kind == ProblemKind::Damage);
    let (tone, word) = match (verification.is_sound, is_damaged) {
        (true, _) => (Tone::Good, "Sound"),
        (false, true) => (Tone::Bad, "Damaged"),
        (false, false) => (Tone::Warning, "Unusable"),
    };
    let word = output.toned(tone, word);
    let copy = if verification.is_copy { " (in use; a copy was checked)" } else { "" };
    output.line(format!("{word}: {}{copy}", shown(&verification.queue)))?;
    let can_be = match (is_damaged, verification.waiting_events) {
        (true, _) => "can be saved",
        (false, 1) => "waits",
        (false, _) => "wait",
    };
    output.line(format!(
        "  {} {can_be}, {} of them in the journal.\n  {}, {}.",
        count(verification.waiting_events, "event"),
        verification.journal_events,
        count(verification.dead_letters, "dead letter"),
        count(verification.crash_records, "crash record"),
    ))?;
    if is_damaged {
        let lost = match verification.lost_events {
            0 => "No event is known to be lost.".to_owned(),
            lost => output.toned(Tone::Bad, &format!("{} lost.", are(lost))),
        };
        output.line(format!("  {lost}"))?;
    }
    if is_damaged && !verification.is_import {
        output.line("  To save what can be read (the next start of the program does the same):")?;
        let project = if verification.needs_project { "--host URL --key KEY " } else { "" };
        output.command(&format!("repair {project}{}", crate::quoted(verification.queue.as_os_str())))?;
        if verification.needs_project {
            output.line("  Nothing says any more whose events these are: URL and KEY are those of the program.")?;
        }
    }
    if !verification.problems.is_empty() {
        output.line("")?;
        let rows = verification.problems.iter().map(|problem| row(problem, verification)).collect();
        output.table(&["  FILE", "WHAT IS WRONG", "LOST"], rows)?;
    }
    if verification.more_problems > 0 {
        output.line(format!("  and {} more", count(verification.more_problems, "problem")))?;
    }
    for note in &verification.notes {
        output.line(format!("  Note: {}", visible(note)))?;
    }
    Ok(())
}

fn row(problem: &Problem, verification: &Verification) -> Vec<String> {
    let name = match problem.path.strip_prefix(&verification.queue) {
        Ok(below) if below.as_os_str().is_empty() => "(directory)".into(),
        Ok(below) => shown(below),
        Err(_) => shown(&problem.path),
    };
    let lost = problem.lost_events.map_or("?".into(), |lost| lost.to_string());
    let lost = if problem.kind == ProblemKind::Permissions { String::new() } else { lost };
    vec![format!("  {name}"), problem.what.clone(), lost]
}
