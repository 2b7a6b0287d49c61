//! `export`: events of queues into a file.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use posthog::inspect::{EventState, QueueDir};
use serde::Serialize;

use crate::events::{Choice, events};
use crate::files::{OutFile, check_target, is_standard};
use crate::output::{Output, Unit};
use crate::{Failure, Verdict};

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
A file has the events of one project and one lane, because an import has one: choose with --project and --lane. Until it \
is complete it is called FILE.<id>.part; remove what a killed export has left under such a name.")]
pub(crate) struct Args {
    /// The file, a regular or a new one, outside of queues: JSON lines, one event each in PostHog's batch format;
    /// compressed if its name ends in .gz or .zst; - for standard output
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
    let is_standard = is_standard(&args.file);
    let shown = if is_standard { "standard output".to_owned() } else { crate::output::shown(&args.file) };
    if !is_standard {
        check_target(&args.file)?;
    }
    if !is_standard && args.file.exists() && !output.confirm(&format!("{shown} exists. Replace it?"))? {
        return Err(format!("{shown} exists and was not changed").into());
    }
    let queues = args.choice.target.queues()?;
    let mut filter = args.choice.filter();
    // A dead letter is exported only on request: PostHog has rejected it.
    if filter.states.is_empty() {
        filter.states = vec![EventState::Queued, EventState::Journal];
    }
    // Of dead letters only the walk knows whose they are.
    if filter.states.iter().any(|state| *state != EventState::Dead) {
        let mut filled = queues.iter().filter(|queue| queue.waiting() > 0);
        let first = filled.next();
        if first.is_some_and(|first| filled.any(|queue| group_of(queue) != group_of(first))) {
            return Err(several(&queues, "nothing was written"));
        }
    }
    let total = queues.iter().map(|queue| queue.waiting()).sum();
    let (mut target, mut exported, mut dead) = (OutFile::create(&args.file)?, 0_u64, 0_u64);
    let mut group: Option<(String, &str)> = None;
    let bar = output.progress("Exporting", total, Unit::Events);
    let verdict = args.choice.walk(output, &filter, &mut |_, queue, event| {
        let (project, lane) = group.get_or_insert_with(|| (queue.project().to_owned(), queue.lane()));
        if (project.as_str(), *lane) != group_of(queue) {
            return Err(several(&queues, &format!("{shown} is not complete")));
        }
        target.line(&event.to_json()?)?;
        exported += 1;
        dead += u64::from(event.place.state() == EventState::Dead);
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

/// The project and the lane of a queue.
fn group_of(queue: &QueueDir) -> (&str, &'static str) {
    (queue.project(), queue.lane())
}

/// The failure where events of several projects or lanes would be in one file. An import has one, so some of them would
/// go where they do not belong.
fn several(queues: &[QueueDir], done: &str) -> Failure {
    let mut groups = BTreeMap::new();
    for queue in queues {
        let (waiting, host) = groups.entry(group_of(queue)).or_insert((0, None));
        *waiting += queue.waiting();
        *host = host.take().or_else(|| queue.identity().map(|(host, _)| host));
    }
    let mut text = format!(
        "these queues are of several projects or lanes, and a file has one, because an import has one; {done}; choose one:"
    );
    for ((project, lane), (waiting, host)) in groups {
        let project = project.get(..8).unwrap_or(project);
        let host = host.map(|host| format!(", {host}")).unwrap_or_default();
        text.push_str(&format!(" --project {project} --lane {lane} ({}{host});", events(waiting)));
    }
    text.pop();
    text.into()
}
