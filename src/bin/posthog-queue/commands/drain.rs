//! `drain`: delivers queues that no process has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use posthog::Config;
use posthog::inspect::{self, Drain, DrainProgress, InspectError, QueueDir};
use serde::Serialize;

use crate::events::{Scratch, duration, events, number};
use crate::output::{Output, Progress, Tone, Unit};
use crate::target::Target;
use crate::{Failure, Verdict};

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Delivers whole projects: all their queues that no process has, of both lanes, with the library's own retries, and crash \
reports that wait beside them. Proxy, certificates and other settings are those of the environment (POSTHOG_PROXY, \
POSTHOG_CA_CERTIFICATE). May be stopped at any moment (Ctrl-C) and repeated; no event is lost.

Ends with status 0 when all is delivered, and with 1 when something is left: dead letters, events that PostHog rejects, \
queues of other processes, or at --timeout. Without --timeout it also ends when PostHog refuses the key or the quota is \
used up.")]
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
    /// Dead letters in the queues, whenever PostHog rejected them.
    dead_letters: u64,
    /// `None` if no queue was opened.
    progress: Option<DrainProgress>,
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
    let mut queues = args.target.queues()?;
    let (mut verdict, mut moved) = (Verdict::Fine, 0);
    match (&args.host, &args.key) {
        (Some(host), Some(key)) => {
            let dir = queues.first().map(|queue| queue.queue_dir().to_path_buf()).unwrap_or_default();
            (verdict, moved) = move_all(&queues, key, host, &until, output)?;
            let project = inspect::project_name(key, host)?;
            queues = inspect::queues(&dir)?.into_iter().filter(|queue| queue.project() == project).collect();
        }
        _ if args.target.has_lane() => {
            return Err("drain delivers both lanes of a project; leave out --lane".into());
        }
        _ => {}
    }
    let mut projects: Vec<Vec<QueueDir>> = Vec::new();
    for queue in queues {
        match projects.last_mut().filter(|of| of.first().is_some_and(|first| first.project() == queue.project())) {
            Some(of) => of.push(queue),
            None => projects.push(vec![queue]),
        }
    }
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

/// Moves the events of all queues without an owner to another project. Returns how many it moved.
fn move_all(
    queues: &[QueueDir],
    key: &str,
    host: &str,
    until: &Until,
    output: &mut Output,
) -> Result<(Verdict, u64), Failure> {
    let project = inspect::project_name(key, host)?;
    let from: Vec<_> = queues.iter().filter(|queue| queue.project() != project && !queue.is_known_empty()).collect();
    let (mut verdict, mut total) = (Verdict::Fine, 0);
    let waiting = from.iter().map(|queue| queue.waiting()).sum();
    let projects = from.iter().map(|queue| queue.project()).collect::<std::collections::BTreeSet<_>>().len();
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
        if let Some(owner) = queue.owner()? {
            let pid = owner.pid.map(|pid| format!("process {pid}")).unwrap_or("a process".into());
            bar.note(&format!("Not moved: {} belongs to {pid}; stop it first.", queue.path().display()));
            verdict = Verdict::Found;
            continue;
        }
        let before = total;
        let moved = inspect::move_to(queue, key, host, &mut |events| {
            bar.at(before + events);
            until.reached().is_none()
        });
        let moved = moved?;
        total += moved.events;
        if moved.damaged > 0 {
            bar.note(&format!("Damaged: {} of {} could not be read.", events(moved.damaged), queue.path().display()));
            verdict = Verdict::Found;
        }
    }
    drop(bar);
    if total > 0 && !output.is_json() {
        output.line(format!("Moved {} to the project at {host}.", events(total)))?;
    }
    Ok((verdict, total))
}

fn drain(queues: &[QueueDir], args: &Args, until: &Until, output: &Output) -> Result<Drained, Failure> {
    let project = queues.first().map(|queue| queue.project().to_owned()).unwrap_or_default();
    let mut drained = Drained { project, ended: Ended::Empty, moved: 0, dead_letters: 0, progress: None };
    let mut free = None;
    for queue in queues.iter().filter(|queue| !queue.is_known_empty()) {
        match queue.owner()? {
            Some(_) => drained.ended = Ended::Owned,
            None => free = free.or(Some(queue)),
        }
    }
    if let Some(queue) = free {
        let settings = Config::new("").with_env().historical_migration(args.historical);
        let drain = Drain::begin(queue, settings)?;
        let first = drain.progress()?;
        let bar = output.progress("Delivering", first.delivered + first.remaining, Unit::Events);
        drained.ended = deliver(&drain, until, args.timeout.is_some(), &bar)?;
        let progress = drain.end(GRACE)?;
        if progress.remaining == 0 && progress.skipped.is_empty() {
            drained.ended = if progress.owned_by_others.is_empty() { Ended::Empty } else { Ended::Left };
        }
        drained.progress = Some(progress);
    }
    if drained.progress.as_ref().is_none_or(|progress| progress.remaining <= progress.quarantined) {
        for queue in queues {
            match queue.owner()?.map_or_else(|| queue.count_dead(&args.scratch.dir()), |_| Ok(0)) {
                Ok(dead) => drained.dead_letters += dead,
                // Another process has just taken it, and counts its dead letters itself.
                Err(InspectError::Owned { .. } | InspectError::Busy { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
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
    let (delivered, remaining) = drained.progress.as_ref().map_or((0, 0), |found| (found.delivered, found.remaining));
    let others = drained.progress.as_ref().map(|found| found.owned_by_others.as_slice()).unwrap_or_default();
    let waits_elsewhere = others.iter().any(|other| other.events > 0);
    let is_fine = drained.ended != Ended::Owned && remaining == 0 && drained.dead_letters == 0 && !waits_elsewhere;
    let verdict = if is_fine { Verdict::Fine } else { Verdict::Found };
    if output.is_json() {
        output.json(drained)?;
        return Ok(verdict);
    }
    let host = drained.progress.as_ref().map(|found| format!(" to {}", found.host)).unwrap_or_default();
    let left = match drained.ended {
        Ended::Owned => "Not delivered: another process has the queues of".to_owned(),
        _ if remaining == 0 && drained.progress.is_none() => "Nothing to deliver in".to_owned(),
        _ if remaining == 0 => format!("Delivered {}{host}; nothing is left in", events(delivered)),
        _ => format!("Delivered {}{host}; {} left in", events(delivered), are(remaining)),
    };
    let line = format!("{left} project {}.", drained.project.get(..8).unwrap_or_default());
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
    if let Some(found) = &drained.progress {
        if found.quarantined > 0 {
            output.line(format!(
                "{} of them PostHog rejects without evidence that they are at fault: {}",
                number(found.quarantined),
                found.last_error.as_deref().unwrap_or("no reason is known")
            ))?;
        }
        for skipped in &found.skipped {
            output.line(format!("Not opened: {skipped}"))?;
        }
        for other in others {
            let pid = other.pid.map(|pid| format!("process {pid}")).unwrap_or("another process".into());
            output.line(format!("{} are left to {pid}: {}", events(other.events), other.queue.display()))?;
        }
    }
    if drained.dead_letters > 0 {
        output.line(format!(
            "{} dead letters: PostHog rejected them for good (list --state dead).",
            number(drained.dead_letters)
        ))?;
    }
    Ok(verdict)
}

fn are(count: u64) -> String {
    format!("{} {}", events(count), if count == 1 { "is" } else { "are" })
}
