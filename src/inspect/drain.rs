//! [`Drain`]: delivers the queues of a project in place of its program.
//!
//! A [`Client`] does all of it: it takes the queues that no process has, one after the other, and delivers them with its
//! own retries, quarantine and dead letters. What is added here is the judgement whether something is left, from the
//! status pages of the queues, which also count what is in queues that are not open yet.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::InspectError;
use super::owned::check_user;
use super::places::{self, QueueDir};
use super::reader::{Content, EventPlace};
use crate::client::Client;
use crate::config::Config;
use crate::queue::{self, Project};
use crate::report::{DeliveryPhase, Diagnostic, StorageMode};
use crate::sys::disk::Disk;

/// How long nothing may be sent although something is left, before the client is told to look again.
const NUDGE_AFTER: Duration = Duration::from_secs(3);

/// The delivery of a project's queues by this process. Dropping it releases the queues; what is not delivered stays in
/// them.
#[derive(Debug)]
pub struct Drain {
    client: Client,
    project: Project,
    project_dir: PathBuf,
    before: Counts,
    nudged_at: Mutex<Instant>,
}

/// How far a [`Drain`] is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DrainProgress {
    /// The host that events are sent to.
    pub host: String,
    /// Events delivered since the drain began.
    pub delivered: u64,
    /// Events that wait in queues which no other process has.
    pub remaining: u64,
    /// Events that PostHog has rejected for good since the drain began.
    pub dead_lettered: u64,
    /// Of the remaining events, those that are skipped for now: PostHog rejected them without evidence that they are at
    /// fault.
    pub quarantined: u64,
    /// What delivery is doing: `idle`, `sending`, `backoff`, `cooldown`, `quarantined` or `paused`.
    pub delivery: &'static str,
    /// Time until the next request, if delivery waits for it.
    pub retry_in_seconds: Option<f64>,
    /// The text of the last failure.
    pub last_error: Option<String>,
    /// Why the queue cannot be read or written, if it cannot.
    pub storage_problem: Option<String>,
    /// Queues that could not be opened, each with the reason.
    pub skipped: Vec<String>,
    /// Queues that other processes have, which deliver them.
    pub owned_by_others: Vec<Holding>,
    /// Whether nothing is left that this process could deliver now: the queues are empty, or all that remains is
    /// quarantined or in queues that cannot be opened.
    pub is_over: bool,
}

/// A queue that another process has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Holding {
    /// The queue.
    pub queue: PathBuf,
    /// The process, if it is known.
    pub pid: Option<u32>,
    /// Events that wait in it.
    pub events: u64,
}

/// The sums of the ledgers of all queues that no other process has.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    delivered: u64,
    dead_lettered: u64,
    queued: u64,
}

/// The queues of a project at a moment.
#[derive(Debug, Default)]
struct Survey {
    counts: Counts,
    others: Vec<Holding>,
    /// Queues that are neither open here nor known to be empty.
    unopened: Vec<PathBuf>,
}

impl QueueDir {
    /// Events that wait in the queue, according to the page that its last owner left. Reads no other file.
    pub fn waiting(&self) -> u64 {
        queue::predecessor(&Disk::of_any_user(), self.path()).queued_events()
    }

    /// Whether the last owner closed the queue with no event in it, dead letters aside; or none has come so far as to make
    /// its files. Reads one page.
    pub fn is_known_empty(&self) -> bool {
        queue::is_known_empty(&Disk::of_any_user(), self.path()) || self.is_unfinished()
    }

    /// Whether there is neither a store nor a journal: its first owner died before it had made them.
    fn is_unfinished(&self) -> bool {
        let names = fs::read_dir(self.path()).map(|names| names.flatten().map(|entry| entry.file_name()).collect());
        let names: Vec<_> = names.unwrap_or_default();
        let holds_events = |name: &std::ffi::OsString| {
            name.to_str().is_none_or(|name| {
                name == "queue.redb"
                    || name == "queue.redb.ready"
                    || name.starts_with("journal-")
                    || name.starts_with("damaged-")
            })
        };
        self.path().is_dir() && !names.iter().any(holds_events)
    }

    /// The number of dead letters in the queue. Reads all of it. `scratch`: see [`read`](Self::read).
    pub fn count_dead(&self, scratch: &Path) -> Result<u64, InspectError> {
        let mut dead = 0;
        self.read(scratch)?.content(&mut |content| {
            if let Content::Event(event) = content {
                dead += u64::from(matches!(event.place, EventPlace::DeadLetter { .. }));
            }
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(dead)
    }
}

impl Drain {
    /// Begins to deliver all queues of the project of `queue` that no process has, of both lanes, to their own host with
    /// their own key. Crash reports that wait beside them are sent too. `settings` has everything else, for example
    /// `Config::new("").with_env()` for the proxy and the certificates that the program uses.
    pub fn begin(queue: &QueueDir, settings: Config) -> Result<Self, InspectError> {
        let project_dir = queue.project_dir();
        let project = project_of(&project_dir, queue)?;
        if project.dir_name() != queue.project() {
            return Err(InspectError::Queue {
                path: project_dir,
                why: format!(
                    "it contains events for {}, whose directory has another name ({}): was it renamed? Rename it to that",
                    project.host,
                    project.dir_name()
                ),
            });
        }
        check_user(&project_dir)?;
        let before = survey(&project_dir)?.counts;
        let config = settings.delivering(&project, queue.queue_dir());
        let client = Client::new(config)
            .map_err(|error| InspectError::Queue { path: project_dir.clone(), why: error.to_string() })?;
        Ok(Self { client, project, project_dir, before, nudged_at: Mutex::new(Instant::now()) })
    }

    /// How far it is.
    pub fn progress(&self) -> Result<DrainProgress, InspectError> {
        // Before the survey: an event that is delivered in between counts as remaining for one more look.
        let stats = self.client.stats();
        let survey = survey(&self.project_dir)?;
        let lanes = [stats.analytics.as_deref(), stats.ai.as_deref()];
        let lanes: Vec<_> = if stats.ai.is_some() { lanes.into_iter().flatten().collect() } else { vec![&stats] };
        // The lane that has something to say: one that waits for the endpoint, or else one that sends.
        let telling = lanes.iter().max_by_key(|lane| match lane.delivery {
            DeliveryPhase::Idle => 0,
            DeliveryPhase::Sending => 1,
            DeliveryPhase::Quarantined { .. } => 2,
            _ => 3,
        });
        let delivery = telling.map_or(DeliveryPhase::Idle, |lane| lane.delivery);
        let problem = lanes.iter().find_map(|lane| match &lane.storage {
            StorageMode::Degraded { problem } | StorageMode::Volatile { problem } => Some(problem.clone()),
            _ => None,
        });
        let mut skipped = Vec::new();
        for diagnostic in self.client.diagnostics() {
            if let Diagnostic::QueueSkipped { path, why } = diagnostic
                && survey.unopened.contains(&path)
            {
                skipped.push(format!("{}: {why}", path.display()));
            }
        }
        skipped.sort();
        skipped.dedup();
        let remaining = survey.counts.queued;
        let waits = survey.unopened.len() > skipped.len();
        let in_unopened = survey.unopened.iter().map(|dir| queued_in(dir)).fold(0, u64::saturating_add);
        let is_over = !waits && remaining.saturating_sub(in_unopened) <= stats.quarantined;
        if !is_over && delivery == DeliveryPhase::Idle {
            self.nudge();
        }
        Ok(DrainProgress {
            host: self.project.host.clone(),
            delivered: survey.counts.delivered.saturating_sub(self.before.delivered),
            remaining,
            dead_lettered: survey.counts.dead_lettered.saturating_sub(self.before.dead_lettered),
            quarantined: stats.quarantined.min(remaining),
            delivery: delivery.name(),
            retry_in_seconds: delivery.retry_in().map(|time| time.as_secs_f64()),
            last_error: telling.and_then(|lane| lane.last_error.clone()),
            storage_problem: problem,
            skipped,
            owned_by_others: survey.others,
            is_over,
        })
    }

    /// Ends the drain: what is in flight may finish within `grace`, and the queues are released. Returns how far it came.
    pub fn end(self, grace: Duration) -> Result<DrainProgress, InspectError> {
        let progress = self.progress()?;
        // With nothing to send it ends at once. A crash report may have become an event just now.
        let closed = self.client.shutdown(grace);
        let _ = closed.wait(grace.saturating_add(Duration::from_secs(10)));
        let survey = survey(&self.project_dir)?;
        Ok(DrainProgress {
            delivered: survey.counts.delivered.saturating_sub(self.before.delivered),
            remaining: survey.counts.queued,
            dead_lettered: survey.counts.dead_lettered.saturating_sub(self.before.dead_lettered),
            quarantined: progress.quarantined.min(survey.counts.queued),
            ..progress
        })
    }

    /// Makes the client look for queues again, if that was not done lately.
    fn nudge(&self) {
        let mut at = self.nudged_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if at.elapsed() >= NUDGE_AFTER {
            *at = Instant::now();
            drop(self.client.flush());
        }
    }
}

/// The project, from the store of the queue or of another one beside it.
fn project_of(project_dir: &Path, queue: &QueueDir) -> Result<Project, InspectError> {
    let all = places::queues(project_dir)?;
    let mut found = std::iter::once(queue).chain(&all).filter_map(QueueDir::project_of_store);
    found.next().ok_or_else(|| InspectError::Queue {
        path: project_dir.to_path_buf(),
        why: "no store in it says where its events are sent; give the host and the key".into(),
    })
}

fn queued_in(dir: &Path) -> u64 {
    queue::predecessor(&Disk::default(), dir).queued_events()
}

fn survey(project_dir: &Path) -> Result<Survey, InspectError> {
    let (disk, own, mut survey) = (Disk::default(), std::process::id(), Survey::default());
    for queue in places::queues(project_dir)? {
        let page = queue::predecessor(&disk, queue.path());
        let owner = queue.owner()?;
        if let Some(owner) = owner.filter(|owner| owner.pid != Some(own) && !is_ours(&page, own)) {
            let (queue, events) = (queue.path().to_path_buf(), page.queued_events());
            survey.others.push(Holding { queue, pid: owner.pid, events });
            continue;
        }
        let ledger = page.ledger.unwrap_or_default();
        survey.counts.queued = survey.counts.queued.saturating_add(page.queued_events());
        survey.counts.delivered = survey.counts.delivered.saturating_add(ledger.delivered);
        survey.counts.dead_lettered = survey.counts.dead_lettered.saturating_add(ledger.dead_lettered);
        if owner.is_none() && !queue.is_known_empty() {
            survey.unopened.push(queue.path().to_path_buf());
        }
    }
    Ok(survey)
}

/// Whether the page says that this process has the queue, where the system does not say who holds the lock.
fn is_ours(page: &queue::Predecessor, own: u32) -> bool {
    page.pid == u64::from(own)
}
