//! `drain`: delivers queues that no process has.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use posthog::Config;
use posthog::inspect::{self, Drain, DrainProgress, InspectError, QueueDir};
use serde::Serialize;

use super::status::text_of;
use crate::events::{Scratch, duration, events, number};
use crate::output::{Output, Progress, Tone, Unit, are, count, lossy_each, shown, visible};
use crate::target::{Target, shortened};
use crate::{Failure, Verdict, quoted};

#[derive(Debug, ClapArgs)]
#[command(mut_arg("lane", |lane| lane.help("Only with --host: move only the queues of this lane")), after_help = "\
Delivers whole projects: all their queues that no process has, of both lanes, with the library's own retries, and crash \
reports that wait beside them. Proxy, certificates and other settings are those of the environment (POSTHOG_PROXY, \
POSTHOG_CA_CERTIFICATE). May be stopped at any moment (Ctrl-C) and repeated; no event is lost.

Ends with status 0 when all is delivered, and with 1 when something is left or was lost: dead letters (with --host also \
those of the old project, which are not moved), events that PostHog rejects, queues of other processes, imports that \
run or were not finished, damage, or at --timeout. With --timeout 0s nothing is sent. Without --timeout it also ends when \
PostHog refuses the key or the quota is used up.")]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Move the events to this host first, into a queue of that project below the same directory
    #[arg(long, value_name = "URL", requires = "key")]
    host: Option<String>,
    /// The key of the project there (phc_...)
    #[arg(long, value_name = "KEY", requires = "host")]
    key: Option<String>,
    /// Mark all events as an import of old events (historical_migration)
    #[arg(long)]
    historical: bool,
    /// Stop after this time: 30s, 10min, 2h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    scratch: Scratch,
}

/// How often the queues are looked at.
const EVERY: Duration = Duration::from_millis(100);
/// What is in flight may finish within this time.
const GRACE: Duration = Duration::from_secs(3);

/// Why a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Ended {
    /// Nothing is left.
    Empty,
    /// What is left cannot be delivered now.
    Left,
    /// Another process has the queues.
    Owned,
    Timeout,
    Interrupted,
    /// The key, the quota or the encoding is refused.
    Refused,
}

/// The result for one project.
#[derive(Serialize)]
struct Drained {
    project: String,
    ended: Ended,
    /// Events that were moved here from another project.
    moved: u64,
    /// Events that wait in queues that no process has.
    remaining: u64,
    /// Dead letters in the queues, whenever PostHog rejected them.
    dead_letters: u64,
    /// Of imports that were not finished. Nothing of them is sent.
    #[serde(serialize_with = "lossy_each")]
    unfinished_imports: Vec<PathBuf>,
    /// Of imports that are under way. They are sent when they have ended.
    #[serde(serialize_with = "lossy_each")]
    running_imports: Vec<PathBuf>,
    /// The processes that have the queues, as far as they are known, if that is why nothing was delivered.
    owner_pids: Vec<u32>,
    /// `None` if no queue was opened.
    progress: Option<DrainProgress>,
    #[serde(skip)]
    dir: PathBuf,
    /// Why a queue could not be examined. The others were delivered all the same.
    #[serde(skip)]
    failures: BTreeSet<String>,
}

impl Drained {
    /// Nothing was done yet. All queues are of one project.
    fn of(queues: &[&QueueDir]) -> Self {
        let imports = queues.iter().filter(|queue| queue.is_import());
        let (running, unfinished): (Vec<_>, Vec<_>) =
            imports.partition(|import| import.owner().is_ok_and(|owner| owner.is_some()));
        let paths = |imports: Vec<&&QueueDir>| imports.iter().map(|import| import.path().to_path_buf()).collect();
        let first = queues.first();
        Self {
            project: first.map(|queue| queue.project().to_owned()).unwrap_or_default(),
            ended: Ended::Empty,
            moved: 0,
            remaining: 0,
            dead_letters: 0,
            unfinished_imports: paths(unfinished),
            running_imports: paths(running),
            owner_pids: Vec::new(),
            progress: None,
            dir: first.map(|queue| queue.queue_dir().join(queue.project())).unwrap_or_default(),
            failures: BTreeSet::new(),
        }
    }

    fn has_no_import(&self) -> bool {
        self.unfinished_imports.is_empty() && self.running_imports.is_empty()
    }

    /// Counts the dead letters of the queues that no process has.
    fn count_dead(&mut self, queues: &[&QueueDir], args: &Args) {
        for queue in queues.iter().filter(|queue| !queue.is_import()) {
            let counted = queue.owner().and_then(|owner| match owner {
                Some(_) => Ok(0),
                None => queue.count_dead(&args.scratch.dir()),
            });
            match counted {
                Ok(dead) => self.dead_letters += dead,
                // Another process has just taken it, and counts its dead letters itself.
                Err(InspectError::Owned { .. } | InspectError::Busy { .. }) => {}
                Err(error) => _ = self.failures.insert(text_of(&error)),
            }
        }
    }
}

/// When to stop.
struct Until {
    deadline: Option<Instant>,
    stop: Arc<AtomicBool>,
}

impl Until {
    fn new(timeout: Option<Duration>) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // The second one ends the process at once, which loses nothing either.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))?;
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        Ok(Self { deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)), stop })
    }

    fn reached(&self) -> Option<Ended> {
        if self.stop.load(Ordering::Relaxed) {
            return Some(Ended::Interrupted);
        }
        self.deadline.filter(|deadline| Instant::now() >= *deadline).map(|_| Ended::Timeout)
    }
}

pub(crate) fn run(args: Args, output: &mut Output) -> Result<Verdict, Failure> {
    let until = Until::new(args.timeout)?;
    let mut queues = args.target.queues_and_imports()?;
    let (mut verdict, mut moved) = (Verdict::Fine, 0);
    match (&args.host, &args.key) {
        (Some(host), Some(key)) => {
            let dir = queues.first().map(|queue| queue.queue_dir().to_path_buf()).unwrap_or_default();
            (verdict, moved) = move_all(&queues, key, host, &until, output)?;
            let project = inspect::project_name(key, host)?;
            queues.retain(|queue| queue.project() != project);
            for old in by_project(&queues) {
                verdict = verdict.max(report_old(&old, &args, output)?);
            }
            queues = inspect::queues_and_imports(&dir)?;
            queues.retain(|queue| queue.project() == project);
        }
        _ if args.target.has_lane() => {
            return Err(
                "drain delivers both lanes of a project: --lane chooses only what is moved, with --host and --key; \
                        leave it out"
                    .into(),
            );
        }
        _ => {}
    }
    let projects = by_project(&queues);
    let several = projects.len() > 1;
    for project in &projects {
        let drained = match drain(project, &args, &until, output) {
            Ok(drained) => Drained { moved, ..drained },
            Err(error) if several => {
                output.failed(error.as_ref());
                verdict = Verdict::CouldNot;
                continue;
            }
            Err(error) => return Err(error),
        };
        verdict = verdict.max(report(&drained, output)?);
        if drained.ended == Ended::Interrupted {
            break;
        }
    }
    if projects.is_empty() && verdict == Verdict::Fine {
        output.note("Nothing to deliver: the queues are empty.");
    }
    Ok(verdict)
}

fn by_project(queues: &[QueueDir]) -> Vec<Vec<&QueueDir>> {
    queues.chunk_by(|a, b| a.project() == b.project()).map(|of_one| of_one.iter().collect()).collect()
}

/// What is left in a project whose events were moved to another one.
fn report_old(queues: &[&QueueDir], args: &Args, output: &mut Output) -> Result<Verdict, Failure> {
    let mut old = Drained { ended: Ended::Left, ..Drained::of(queues) };
    old.count_dead(queues, args);
    let is_empty = old.dead_letters == 0 && old.has_no_import() && old.failures.is_empty();
    if is_empty { Ok(Verdict::Fine) } else { report(&old, output) }
}

/// Moves the events of all queues without an owner to another project. Returns how many it moved.
fn move_all(
    queues: &[QueueDir],
    key: &str,
    host: &str,
    until: &Until,
    output: &mut Output,
) -> Result<(Verdict, u64), Failure> {
    let project = inspect::project_name(key, host)?;
    let is_meant = |queue: &&QueueDir| queue.project() != project && !queue.is_import() && !queue.is_known_empty();
    let from: Vec<_> = queues.iter().filter(is_meant).collect();
    let several = from.len() > 1;
    let (mut verdict, mut total) = (Verdict::Fine, 0);
    let waiting = from.iter().map(|queue| queue.waiting()).sum();
    let projects = from.iter().map(|queue| queue.project()).collect::<BTreeSet<_>>().len();
    let of = if projects == 1 { "1 project".to_owned() } else { format!("{projects} projects") };
    let question = format!("Move {} of {of} to the project at {host} and deliver them there?", events(waiting));
    if !from.is_empty() && !output.confirm(&question)? {
        return Err("nothing was changed".into());
    }
    let bar = output.progress("Moving", waiting, Unit::Events);
    for queue in from {
        if until.reached().is_some() {
            break;
        }
        let before = total;
        let moved = inspect::move_to(queue, key, host, &mut |events| {
            bar.at(before + events);
            until.reached().is_none()
        });
        let moved = match moved {
            Ok(moved) => moved,
            Err(InspectError::Owned { pid, .. }) => {
                let pid = pid.map(|pid| format!("process {pid}")).unwrap_or("a process".into());
                bar.note(&format!("Not moved: {} belongs to {pid}; stop it first.", shown(queue.path())));
                verdict = verdict.max(Verdict::Found);
                continue;
            }
            // The directory is another user's, and so are the others.
            Err(error) if !several || matches!(error, InspectError::OtherUser { .. }) => return Err(error.into()),
            Err(error) => {
                bar.note(&format!("Not moved: {}", text_of(&error)));
                verdict = Verdict::CouldNot;
                continue;
            }
        };
        total += moved.events;
        if moved.damaged > 0 {
            let path = shown(queue.path());
            bar.note(&format!("Lost: {} of {path} could not be read or are in no file.", events(moved.damaged)));
        }
        for note in &moved.notes {
            bar.note(&format!("Found: {note}"));
        }
        if moved.damaged > 0 || !moved.notes.is_empty() {
            verdict = verdict.max(Verdict::Found);
        }
    }
    drop(bar);
    if total > 0 && !output.is_json() {
        output.line(format!("Moved {} to the project at {host}.", events(total)))?;
    }
    Ok((verdict, total))
}

fn drain(queues: &[&QueueDir], args: &Args, until: &Until, output: &Output) -> Result<Drained, Failure> {
    let mut drained = Drained::of(queues);
    let mut free = Vec::new();
    for queue in queues.iter().filter(|queue| !queue.is_import() && !queue.is_known_empty()) {
        match queue.owner() {
            Ok(Some(owner)) => {
                drained.ended = Ended::Owned;
                drained.owner_pids.extend(owner.pid);
            }
            Ok(None) => free.push(queue),
            Err(error) => _ = drained.failures.insert(text_of(&error)),
        }
    }
    drained.owner_pids.sort_unstable();
    drained.owner_pids.dedup();
    if let Some(queue) = free.first() {
        if let Some(ended) = until.reached() {
            drained.ended = ended;
            drained.remaining = free.iter().map(|queue| queue.waiting()).fold(0, u64::saturating_add);
            return Ok(drained);
        }
        let settings = Config::new("").with_env().historical_migration(args.historical);
        let drain = match (&args.host, &args.key) {
            (Some(host), Some(key)) => Drain::begin_for(queue, key, host, settings)?,
            _ => Drain::begin(queue, settings)?,
        };
        let first = drain.progress()?;
        let bar = output.progress("Delivering", first.delivered + first.remaining, Unit::Events);
        drained.ended = deliver(&drain, until, args.timeout.is_some(), &bar)?;
        let progress = drain.end(GRACE)?;
        if progress.remaining == 0 && progress.skipped.is_empty() {
            drained.ended = if progress.owned_by_others.is_empty() { Ended::Empty } else { Ended::Left };
        }
        drained.remaining = progress.remaining;
        drained.progress = Some(progress);
    }
    if drained.progress.as_ref().is_none_or(|progress| progress.remaining <= progress.quarantined) {
        drained.count_dead(queues, args);
    }
    Ok(drained)
}

/// Watches a drain until it ends.
fn deliver(drain: &Drain, until: &Until, waits_for_refusals: bool, bar: &Progress) -> Result<Ended, Failure> {
    let mut said = None;
    loop {
        let progress = drain.progress()?;
        bar.of(progress.delivered + progress.dead_lettered + progress.remaining);
        bar.at(progress.delivered + progress.dead_lettered);
        let state = state_line(&progress);
        let kind = (progress.delivery, progress.last_error.clone());
        if let Some(state) = state.filter(|_| said.as_ref() != Some(&kind)) {
            bar.note(&state);
            said = Some(kind);
        }
        if progress.is_over {
            return Ok(Ended::Left);
        }
        if progress.delivery == "paused" && !waits_for_refusals {
            return Ok(Ended::Refused);
        }
        if let Some(ended) = until.reached() {
            return Ok(ended);
        }
        std::thread::sleep(EVERY);
    }
}

/// Why nothing is delivered at the moment, if that is so.
fn state_line(progress: &DrainProgress) -> Option<String> {
    if let Some(problem) = &progress.storage_problem {
        return Some(format!("The queue: {problem}"));
    }
    let retry = progress.retry_in_seconds?;
    let what = match progress.delivery {
        "paused" => "PostHog refuses the key, the quota or the encoding",
        "quarantined" => "All remaining events were rejected",
        _ => "No events leave",
    };
    let said = progress.last_error.as_deref().unwrap_or("no reason is known");
    Some(format!("{what}: {said}. Next attempt in {retry:.0} s."))
}

fn report(drained: &Drained, output: &mut Output) -> Result<Verdict, Failure> {
    let (found, remaining) = (drained.progress.as_ref(), drained.remaining);
    let is_whole = found.is_none_or(|found| {
        let waits_elsewhere = found.owned_by_others.iter().any(|other| other.events > 0);
        !waits_elsewhere && found.lost_events == 0 && found.notes.is_empty() && found.skipped.is_empty()
    });
    let is_empty = remaining == 0 && drained.dead_letters == 0 && drained.has_no_import();
    // One that was ended while nothing was left had a queue that it could not look into yet.
    let is_done = !matches!(drained.ended, Ended::Owned | Ended::Timeout | Ended::Interrupted);
    let is_fine = is_done && is_empty && is_whole;
    for failure in &drained.failures {
        output.note(&format!("posthog-queue: {failure}"));
    }
    let verdict = match (drained.failures.is_empty(), is_fine) {
        (false, _) => Verdict::CouldNot,
        (true, true) => Verdict::Fine,
        (true, false) => Verdict::Found,
    };
    if output.is_json() {
        output.json(drained)?;
        return Ok(verdict);
    }
    let host = found.map(|found| format!(" to {}", visible(&found.host))).unwrap_or_default();
    let delivered = events(found.map_or(0, |found| found.delivered));
    let left = match drained.ended {
        Ended::Owned => format!("Not delivered: {} the queues of", holders(&drained.owner_pids)),
        Ended::Left if found.is_none() => "Not moved: something is left in".to_owned(),
        _ if remaining == 0 && found.is_none() => "Nothing to deliver in".to_owned(),
        _ if remaining == 0 && is_fine => format!("Delivered {delivered}{host}; nothing is left in"),
        _ if remaining == 0 && found.is_some_and(|found| !found.skipped.is_empty()) => {
            format!("Delivered {delivered}{host}; no event waits any more in the queues that could be opened of")
        }
        _ if remaining == 0 => format!("Delivered {delivered}{host}; no event waits any more in"),
        _ => format!("Delivered {delivered}{host}; {} left in", are(remaining)),
    };
    let line = format!("{left} project {}.", shortened(&drained.project));
    output.line(output.toned(if is_fine { Tone::Good } else { Tone::Warning }, &line))?;
    let why = match drained.ended {
        Ended::Timeout => "Stopped at the time limit; the same command goes on.",
        Ended::Interrupted => "Stopped on request; the same command goes on.",
        Ended::Refused => "PostHog refuses the key, the quota or the encoding; see the message above.",
        _ => "",
    };
    if remaining > 0 && !why.is_empty() {
        output.line(why)?;
    }
    if let Some(found) = found {
        report_progress(found, output)?;
    }
    report_rest(drained, output)?;
    Ok(verdict)
}

/// Who has the queues.
fn holders(pids: &[u32]) -> String {
    match pids {
        [] => "another process has".to_owned(),
        [pid] => format!("process {pid} has"),
        pids => format!("processes {} have", pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// What was lost, and what could not be delivered.
fn report_progress(found: &DrainProgress, output: &mut Output) -> Result<(), Failure> {
    if found.lost_events > 0 {
        let lost = format!("{} lost: the bytes are damaged, or in no file.", are(found.lost_events));
        output.line(output.toned(Tone::Bad, &lost))?;
    }
    for note in &found.notes {
        output.line(format!("Found: {}", visible(note)))?;
    }
    if found.quarantined > 0 {
        output.line(format!(
            "{} of them PostHog rejects without evidence that they are at fault: {}",
            number(found.quarantined),
            visible(found.last_error.as_deref().unwrap_or("no reason is known"))
        ))?;
    }
    for skipped in &found.skipped {
        output.line(format!("Not opened: {}", visible(skipped)))?;
    }
    for other in &found.owned_by_others {
        let pid = other.pid.map(|pid| format!("process {pid}")).unwrap_or("another process".into());
        output.line(format!("{} left to {pid}: {}", are(other.events), shown(&other.queue)))?;
    }
    Ok(())
}

/// What is left that is never delivered by itself, and what to do about it.
fn report_rest(drained: &Drained, output: &mut Output) -> Result<(), Failure> {
    if drained.dead_letters > 0 {
        let dead = count(drained.dead_letters, "dead letter");
        let again = if drained.dead_letters == 1 { "it" } else { "them" };
        output.line(format!("{dead} left, which PostHog rejected for good. To see why:"))?;
        output.command(&format!("dead list {}", quoted(drained.dir.as_os_str())))?;
        output
            .line(format!("To send {again}: dead retry, then this command again. To remove {again}: dead discard."))?;
    }
    for import in &drained.unfinished_imports {
        output.line(format!(
            "Not sent: an import was not finished. Repeat it, or remove {} to give it up.",
            quoted(import.as_os_str())
        ))?;
    }
    for import in &drained.running_imports {
        output.line(format!(
            "Not sent yet: an import into {} is under way. Run this command again when it has ended.",
            quoted(import.as_os_str())
        ))?;
    }
    Ok(())
}
