//! `dead list`, `dead retry`, `dead discard`.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args as ClapArgs, Subcommand};
use posthog::inspect::{DeadChange, DeadFilter, DeadGroup, DeadLetters, InspectError, QueueDir};
use serde::Serialize;

use crate::output::{Output, Tone, are, count, lossy, shown, visible};
use crate::target::Target;
use crate::{Failure, Verdict};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Shows why events were rejected: grouped by status and reason. Changes nothing
    List(Chosen),
    /// Queues dead letters again, with their uuids and times, for example after PostHog or the project was fixed. Writes
    /// to the queue, which no process may be using
    Retry(Chosen),
    /// Removes dead letters for good. Writes to the queue, which no process may be using
    Discard(Chosen),
}

/// Which dead letters; without an option all of them.
#[derive(Debug, ClapArgs)]
struct Chosen {
    #[command(flatten)]
    target: Target,
    /// Only those with this HTTP status
    #[arg(long, value_name = "N")]
    status: Option<u16>,
    /// Only those whose reason contains this text
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only events of this name
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// Where copies of queues in use are made
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
}

impl Chosen {
    fn filter(&self) -> DeadFilter {
        let mut filter = DeadFilter::default();
        (filter.status, filter.reason, filter.event) = (self.status, self.reason.clone(), self.event.clone());
        filter
    }
}

pub(crate) fn run(args: Args, output: &mut Output) -> Result<Verdict, Failure> {
    match args.action {
        Action::List(chosen) => list(&chosen, output),
        Action::Retry(chosen) => retry(&chosen, output),
        Action::Discard(chosen) => discard(&chosen, output),
    }
}

#[derive(Serialize)]
struct GroupLine<'a> {
    #[serde(serialize_with = "lossy")]
    queue: PathBuf,
    #[serde(flatten)]
    group: &'a DeadGroup,
}

#[derive(Serialize)]
struct ChangeLine<'a> {
    #[serde(serialize_with = "lossy")]
    queue: PathBuf,
    action: &'static str,
    #[serde(flatten)]
    change: &'a DeadChange,
}

fn list(chosen: &Chosen, output: &mut Output) -> Result<Verdict, Failure> {
    let mut worst = Verdict::Fine;
    for queue in chosen.target.queues()? {
        let found = match queue.dead_letters(&chosen.scratch, &chosen.filter()) {
            Ok(found) => found,
            Err(error) => {
                output.failed(&error);
                worst = Verdict::CouldNot;
                continue;
            }
        };
        if !(found.groups.is_empty() && found.damage.is_empty()) {
            worst = worst.max(Verdict::Found);
        }
        if output.is_json() {
            for group in &found.groups {
                output.json(&GroupLine { queue: queue.path().into(), group })?;
            }
        } else {
            print(&queue, &found, output)?;
        }
        for damage in &found.damage {
            output.note(&format!("Damaged: {damage}"));
        }
    }
    Ok(worst)
}

fn print(queue: &QueueDir, found: &DeadLetters, output: &mut Output) -> Result<(), Failure> {
    let total: u64 = found.groups.iter().map(|group| group.events).sum();
    if total == 0 {
        return output.line(format!("No dead letters: {}", shown(queue.path())));
    }
    let verdict = output.toned(Tone::Warning, &count(total, "dead letter"));
    output.line(format!("{verdict}: {}", shown(queue.path())))?;
    for group in &found.groups {
        output.line("")?;
        let status = if group.status == 0 { "never sent".into() } else { format!("status {}", group.status) };
        output.line(format!("  {}, {status}: {}", count(group.events, "event"), visible(&group.reason)))?;
        let (first, last) = (time(group.first_rejected_at), time(group.last_rejected_at));
        let when = if first == last { first } else { format!("{first} to {last}") };
        let mut rows = vec![vec!["  rejected".to_owned(), when]];
        let names = group.by_event.iter().map(|(name, events)| format!("{} ({events})", visible(name)));
        rows.push(vec!["  events".into(), names.collect::<Vec<_>>().join(", ")]);
        rows.extend(group.example_uuid.map(|uuid| vec!["  example".into(), uuid.to_string()]));
        output.table(&[], rows)?;
    }
    output.line("")?;
    output.line("  To queue them again: posthog-queue dead retry. To remove them: dead discard.")
}

/// RFC 3339, to the second.
fn time(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| "?".into(), |at| format!("{at:.0}"))
}

fn retry(chosen: &Chosen, output: &mut Output) -> Result<Verdict, Failure> {
    change(chosen, output, "retry", "queued again", QueueDir::retry_dead)
}

fn discard(chosen: &Chosen, output: &mut Output) -> Result<Verdict, Failure> {
    let (mut meant, mut is_known) = (0, true);
    for queue in chosen.target.queues()? {
        match queue.dead_letters(&chosen.scratch, &chosen.filter()) {
            Ok(found) => meant += found.groups.iter().map(|group| group.events).sum::<u64>(),
            // It is named when it is opened.
            Err(_) => is_known = false,
        }
    }
    let more = if is_known { "" } else { ", and those of queues that cannot be read now" };
    let question = format!("Remove {}{more} for good?", count(meant, "dead letter"));
    if (meant > 0 || !is_known) && !output.confirm(&question)? {
        output.note("Nothing was changed.");
        return Ok(Verdict::CouldNot);
    }
    change(chosen, output, "discard", "removed", QueueDir::discard_dead)
}

fn change(
    chosen: &Chosen,
    output: &mut Output,
    action: &'static str,
    done: &str,
    call: impl Fn(&QueueDir, &DeadFilter) -> Result<DeadChange, InspectError>,
) -> Result<Verdict, Failure> {
    let queues = chosen.target.queues()?;
    let (mut worst, filter) = (Verdict::Fine, chosen.filter());
    for queue in &queues {
        let change = match call(queue, &filter) {
            Ok(change) => change,
            Err(error) if queues.len() == 1 => return Err(error.into()),
            Err(error) => {
                output.failed(&error);
                worst = Verdict::CouldNot;
                continue;
            }
        };
        let is_whole = change.left == 0 && change.lost_events == 0 && change.notes.is_empty();
        worst = worst.max(if is_whole { Verdict::Fine } else { Verdict::Found });
        if output.is_json() {
            output.json(&ChangeLine { queue: queue.path().into(), action, change: &change })?;
            continue;
        }
        output.line(format!("{} {done}: {}", count(change.events, "dead letter"), shown(queue.path())))?;
        if change.left > 0 {
            output.line(format!(
                "  {} left: they cannot be read (see `verify`), or did not fit.",
                count(change.left, "dead letter")
            ))?;
        }
        if change.lost_events > 0 {
            output.line(format!(
                "  {}",
                output.toned(Tone::Bad, &format!("{} lost to damage.", are(change.lost_events)))
            ))?;
        }
        for note in &change.notes {
            output.line(format!("  Found: {}", visible(note)))?;
        }
    }
    Ok(worst)
}
