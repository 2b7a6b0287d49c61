//! `forget`.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use posthog::inspect::{InspectError, Person, PersonFound, QueueDir};
use serde::Serialize;

use crate::output::{Output, Tone, Unit, are, count, lossy, shown, visible};
use crate::target::Target;
use crate::{Failure, Verdict};

/// Removes a person's events, dead letters, crash records and breadcrumbs from the queues, so that none of their bytes is
/// left in the files. Writes to the queues, which no process may be using; needs as much free space as their events take.
/// Killed at any moment, it loses nothing else, and a repetition completes it.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
What this cannot reach: events that were delivered (delete the person in PostHog),
backups and snapshots, free blocks of the disk, and the files that it names.")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// A distinct id of the person; may be repeated
    #[arg(long = "distinct-id", value_name = "ID", required = true)]
    distinct_ids: Vec<String>,
    /// Also events in which a property or group is an id, such as $anon_distinct_id, alias or $user_id
    #[arg(long)]
    also_properties: bool,
    /// Also events and crash records that contain an id within a longer text, such as a URL
    #[arg(long)]
    also_text: bool,
    /// Only count: changes nothing, and works while a process uses the queue
    #[arg(long)]
    dry_run: bool,
    /// Where copies of queues in use are made
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(serialize_with = "lossy")]
    queue: PathBuf,
    #[serde(flatten)]
    found: &'a PersonFound,
}

pub(crate) fn run(args: Args, output: &mut Output) -> Result<Verdict, Failure> {
    let person = Person::new(args.distinct_ids.iter().cloned())?;
    let person = person.also_properties(args.also_properties).also_text(args.also_text);
    let queues = args.target.queues_and_imports()?;
    if args.dry_run {
        return dry_run(&queues, &person, &args, output);
    }
    // Nobody is asked about what cannot be done.
    for queue in &queues {
        // What is wrong with a lock is said when the queue is opened.
        if let Ok(Some(owner)) = queue.owner() {
            return Err(InspectError::Owned { path: queue.path().into(), pid: owner.pid }.into());
        }
    }
    let (question, mut worst) = question(&queues, &person, &args, output)?;
    if !output.confirm(&question)? {
        output.note("Nothing was changed.");
        return Ok(Verdict::CouldNot);
    }
    for queue in &queues {
        let forgotten = {
            let bar = output.progress("Removing", 0, Unit::Events);
            queue.forget(&person, &|done| bar.at_of(done, done))
        };
        let found = match forgotten {
            Ok(found) => found,
            Err(error) if queues.len() == 1 => return Err(error.into()),
            Err(error) => {
                output.failed(&error);
                worst = Verdict::CouldNot;
                continue;
            }
        };
        print(queue, &found, &args, output)?;
        let is_whole = found.lost_events == 0 && found.notes.is_empty();
        worst = worst.max(if is_complete(&found) && is_whole { Verdict::Fine } else { Verdict::Found });
    }
    Ok(worst)
}

fn dry_run(queues: &[QueueDir], person: &Person, args: &Args, output: &mut Output) -> Result<Verdict, Failure> {
    let mut worst = Verdict::Fine;
    for queue in queues {
        let found = match find(queue, person, args, output) {
            Ok(found) => found,
            Err(error) if queues.len() == 1 => return Err(error.into()),
            Err(error) => {
                output.failed(&error);
                worst = Verdict::CouldNot;
                continue;
            }
        };
        print(queue, &found, args, output)?;
        let is_empty = found.meant(person) == 0 && is_complete(&found);
        worst = worst.max(if is_empty { Verdict::Fine } else { Verdict::Found });
    }
    Ok(worst)
}

fn find(queue: &QueueDir, person: &Person, args: &Args, output: &Output) -> Result<PersonFound, InspectError> {
    let bar = output.progress("Searching", 0, Unit::Events);
    queue.find_person(&args.scratch, person, &|done| bar.at_of(done, done))
}

/// The question, and whether a queue could not be read for it: the others are asked about all the same.
fn question(
    queues: &[QueueDir],
    person: &Person,
    args: &Args,
    output: &mut Output,
) -> Result<(String, Verdict), Failure> {
    let (mut meant, mut unreadable, mut verdict) = (0, 0, Verdict::Fine);
    for queue in queues {
        match find(queue, person, args, output) {
            Ok(found) => {
                meant += found.meant(person);
                unreadable += found.unreadable_events;
            }
            Err(error) if queues.len() == 1 => return Err(error.into()),
            Err(error) => {
                output.failed(&error);
                verdict = Verdict::CouldNot;
            }
        }
    }
    let (records, places) = (count(meant, "record"), count(queues.len() as u64, "queue"));
    let mut question = format!("Remove {records} of this person from {places}, and write the files anew?");
    if unreadable > 0 {
        question.push_str(&format!(
            " {} cannot be read and will be lost as well (`repair` keeps their file).",
            count(unreadable, "event")
        ));
    }
    Ok((question, verdict))
}

/// Whether nothing about the person is known to be left, and everything could be read.
fn is_complete(found: &PersonFound) -> bool {
    found.unreadable_events == 0 && !found.not_reached.iter().any(|file| file.contains_id != Some(false))
}

fn print(queue: &QueueDir, found: &PersonFound, args: &Args, output: &mut Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(&Line { queue: queue.path().into(), found });
    }
    let word = if found.is_removed { output.toned(Tone::Good, "Removed from") } else { "Found in".to_owned() };
    output.line(format!("{word} {}", shown(queue.path())))?;
    let left = if found.is_removed { "left; removed with" } else { "meant only with" };
    let of = |is_meant: bool, option: &str| if is_meant { String::new() } else { format!("({left} {option})") };
    let rows = [
        (found.events, "waiting events of the person", String::new()),
        (found.dead_letters, "dead letters of the person", String::new()),
        (found.crash_records, "crash records of the person", String::new()),
        (found.breadcrumbs, "breadcrumbs that contain an id", String::new()),
        (found.in_properties, "others with an id as a property", of(args.also_properties, "--also-properties")),
        (found.in_text, "others with an id within a text", of(args.also_text, "--also-text")),
    ];
    let rows = rows.into_iter().map(|(count, what, note)| vec![format!("{count:>8}"), what.to_owned(), note]);
    output.table(&[], rows.collect())?;
    if found.unreadable_events > 0 {
        let fate = if found.is_removed { "were removed too" } else { "would be lost" };
        output.line(format!("  {} could not be read and {fate}.", count(found.unreadable_events, "event")))?;
    }
    if found.lost_events > 0 {
        let lost = format!("{} lost to damage before.", are(found.lost_events));
        output.line(format!("  {}", output.toned(Tone::Bad, &lost)))?;
    }
    for note in &found.notes {
        output.line(format!("  Found: {}", visible(note)))?;
    }
    if queue.is_import() {
        output.line("  Note: this is an import that was not finished. If it is repeated,")?;
        output.line("  its file brings the person back: remove the person there too, or remove")?;
        output.line("  this directory to give the import up.")?;
    }
    for file in &found.not_reached {
        let contains = match file.contains_id {
            Some(true) => output.toned(Tone::Bad, "contains an id"),
            Some(false) => "contains no id".to_owned(),
            None => output.toned(Tone::Warning, "could not be searched"),
        };
        output.line(format!("  Not changed: {} ({contains}): {}", shown(&file.path), visible(&file.why)))?;
    }
    if found.is_removed {
        output.line("  Not reached: what was delivered (delete the person in PostHog), backups,")?;
        output.line("  snapshots, and free blocks of the disk.")?;
    }
    Ok(())
}
