//! [`Drain`]: delivers the queues of a project in place of its program.
//!
//! A [`Client`] does all of it: it takes the queues that no process has, one after the other, and delivers them with its
//! own retries, quarantine and dead letters. What is added here is the judgement whether something is left: from the stores
//! and journals of queues that are not open yet, and from the status pages of those that a process has.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::InspectError;
use super::owned::check_user;
use super::places::{self, QueueDir, lossy};
use super::reader::Content;
use crate::client::Client;
use crate::config::Config;
use crate::queue::store::Ledger;
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
    /// Each queue when the drain began.
    before: BTreeMap<PathBuf, Seen>,
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
    /// Events that were found to be lost since the drain began: their bytes are damaged, or they are in no file.
    pub lost_events: u64,
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
    /// What was found to be damaged in queues that were opened, in plain words.
    pub notes: Vec<String>,
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
    #[serde(serialize_with = "lossy")]
    pub queue: PathBuf,
    /// The process, if it is known.
    pub pid: Option<u32>,
    /// Events that wait in it.
    pub events: u64,
}

/// The ledger of a queue, or the sum of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    delivered: u64,
    dead_lettered: u64,
    lost: u64,
}

/// A queue at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    counts: Counts,
    /// Events that wait in it.
    queued: u64,
    /// When its last owner took it over.
    started_at: u64,
    /// Whether no process had it. Then all of this stays for as long as no owner takes it over; a process that had it may
    /// have changed the rest before it died.
    was_free: bool,
}

/// The queues of a project at a moment.
#[derive(Debug, Default)]
struct Survey {
    /// Every queue, also those that other processes have.
    seen: BTreeMap<PathBuf, Seen>,
    /// Events that wait in queues that no other process has.
    queued: u64,
    others: Vec<Holding>,
    /// Queues that are neither open here nor known to be empty.
    unopened: Vec<PathBuf>,
}

impl Counts {
    fn of(ledger: &Ledger) -> Self {
        let lost = ledger.damaged.saturating_add(ledger.lost_unsynced);
        Self { delivered: ledger.delivered, dead_lettered: ledger.dead_lettered, lost }
    }
}

impl Seen {
    /// Whether a queue that no process has, with this page, is as it was seen.
    fn is_still(&self, page: &queue::Predecessor) -> bool {
        self.was_free && page.existed && self.started_at == page.started_at
    }
}

impl Survey {
    /// What has happened since an earlier look, in the queues that no other process has now.
    fn since(&self, before: &BTreeMap<PathBuf, Seen>) -> Counts {
        let mut sum = Counts::default();
        for (path, now) in self.seen.iter().map(|(path, seen)| (path, seen.counts)) {
            if self.others.iter().any(|other| other.queue == *path) {
                continue;
            }
            let then = before.get(path).map(|seen| seen.counts).unwrap_or_default();
            let add = |sum: &mut u64, now: u64, then: u64| *sum = sum.saturating_add(now.saturating_sub(then));
            add(&mut sum.delivered, now.delivered, then.delivered);
            add(&mut sum.dead_lettered, now.dead_lettered, then.dead_lettered);
            add(&mut sum.lost, now.lost, then.lost);
        }
        sum
    }

    /// Events in the queues that are not open yet.
    fn unopened_events(&self) -> u64 {
        let queued = self.unopened.iter().filter_map(|path| Some(self.seen.get(path)?.queued));
        queued.fold(0, u64::saturating_add)
    }
}

impl QueueDir {
    /// Events that wait in the queue, according to its store and its journal; while a process has it, or if they cannot be
    /// read, according to its status page.
    pub fn waiting(&self) -> u64 {
        let is_free = self.owner().is_ok_and(|owner| owner.is_none());
        let found = if is_free { self.contents() } else { None };
        found.map_or_else(
            || queue::predecessor(&Disk::of_any_user(), self.path()).queued_events(),
            |found| found.queued_events(),
        )
    }

    /// Whether the last owner closed the queue with no event in it, dead letters aside; or none has come so far as to make
    /// its files ([`is_blank`](Self::is_blank)). Reads the page and the beginning of the store.
    pub fn is_known_empty(&self) -> bool {
        queue::is_known_empty(&Disk::of_any_user(), self.path()) || self.is_blank()
    }

    /// The number of dead letters in the queue, also of those that cannot be read, as far as it is known. Reads all of
    /// them. `scratch`: see [`read`](Self::read).
    pub fn count_dead(&self, scratch: &Path) -> Result<u64, InspectError> {
        let mut dead = 0;
        self.read(scratch)?.dead_letters(&mut |content| {
            dead += match content {
                Content::Event(_) => 1,
                Content::Damage(damage) => damage.lost_events.unwrap_or(0),
            };
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
        let project = project_of(&queue.project_dir(), queue)?;
        Self::begin_as(queue, project, settings)
    }

    /// As [`begin`](Self::begin), with the host and the key of the queues, which their directory has as its name. They are
    /// needed if the project cannot be read from any store.
    pub fn begin_for(queue: &QueueDir, api_key: &str, host: &str, settings: Config) -> Result<Self, InspectError> {
        Self::begin_as(queue, queue.project_told(Some((host, api_key)))?, settings)
    }

    fn begin_as(queue: &QueueDir, project: Project, settings: Config) -> Result<Self, InspectError> {
        let project_dir = queue.project_dir();
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
        let before = survey(&project_dir, &BTreeMap::new(), &[])?.seen;
        let config = settings.delivering(&project, queue.queue_dir());
        let client = Client::new(config)
            .map_err(|error| InspectError::Queue { path: project_dir.clone(), why: error.to_string() })?;
        Ok(Self { client, project, project_dir, before, nudged_at: Mutex::new(Instant::now()) })
    }

    /// How far it is.
    pub fn progress(&self) -> Result<DrainProgress, InspectError> {
        // Before the survey: an event that is delivered, or a queue that is opened, in between counts as remaining for one
        // more look.
        let (stats, open) = (self.client.stats(), self.open_dirs());
        let survey = survey(&self.project_dir, &self.before, &open)?;
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
        let (skipped, notes) = self.found(&survey);
        let since = survey.since(&self.before);
        let remaining = survey.queued;
        let waits = survey.unopened.len() > skipped.len();
        let is_over = !waits && remaining.saturating_sub(survey.unopened_events()) <= stats.quarantined;
        if !is_over && delivery == DeliveryPhase::Idle {
            self.nudge();
        }
        Ok(DrainProgress {
            host: self.project.host.clone(),
            delivered: since.delivered,
            remaining,
            dead_lettered: since.dead_lettered,
            lost_events: since.lost,
            quarantined: stats.quarantined.min(remaining),
            delivery: delivery.name(),
            retry_in_seconds: delivery.retry_in().map(|time| time.as_secs_f64()),
            last_error: telling.and_then(|lane| lane.last_error.clone()),
            storage_problem: problem,
            skipped,
            notes,
            owned_by_others: survey.others,
            is_over,
        })
    }

    /// Queues that could not be opened, and what was found in those that were: as far as the client still remembers it. The
    /// counts do not depend on that.
    fn found(&self, survey: &Survey) -> (Vec<String>, Vec<String>) {
        let (mut skipped, mut notes) = (Vec::new(), Vec::new());
        for diagnostic in self.client.diagnostics() {
            match diagnostic {
                Diagnostic::QueueSkipped { path, why } if survey.unopened.contains(&path) => {
                    skipped.push(format!("{}: {why}", path.display()));
                }
                found @ (Diagnostic::QueueSalvaged { .. } | Diagnostic::EventsLost { .. }) => {
                    notes.push(found.to_string());
                }
                _ => {}
            }
        }
        for texts in [&mut skipped, &mut notes] {
            texts.sort();
            texts.dedup();
        }
        (skipped, notes)
    }

    /// Ends the drain: nothing more is sent unless everything was, what is in flight may finish within `grace`, and the
    /// queues are released. Returns how far it came.
    pub fn end(self, grace: Duration) -> Result<DrainProgress, InspectError> {
        let progress = self.progress()?;
        if !progress.is_over {
            self.client.lanes().unwrap_or_default().iter().for_each(|lane| lane.hold(true));
        }
        // With nothing to send it ends at once. A crash report may have become an event just now.
        let closed = self.client.shutdown(grace);
        let _ = closed.wait(grace.saturating_add(Duration::from_secs(10)));
        let survey = survey(&self.project_dir, &self.before, &self.open_dirs())?;
        let (since, (_, notes)) = (survey.since(&self.before), self.found(&survey));
        Ok(DrainProgress {
            delivered: since.delivered,
            remaining: survey.queued,
            dead_lettered: since.dead_lettered,
            lost_events: since.lost,
            quarantined: progress.quarantined.min(survey.queued),
            notes,
            ..progress
        })
    }

    /// The directories of the queues that the client has open. While it opens one, the page says nothing of it yet, or what
    /// was true of another.
    fn open_dirs(&self) -> Vec<PathBuf> {
        let lanes = self.client.lanes().unwrap_or_default();
        lanes.iter().flat_map(|lane| lane.open_dirs()).map(|dir| canonical(&dir)).collect()
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
    found.next().ok_or_else(|| InspectError::Nameless { path: queue.path().to_path_buf() })
}

fn canonical(dir: &Path) -> PathBuf {
    dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf())
}

/// `open` are the directories of the queues that this process has open.
fn survey(project_dir: &Path, before: &BTreeMap<PathBuf, Seen>, open: &[PathBuf]) -> Result<Survey, InspectError> {
    let (disk, own, mut survey) = (Disk::default(), std::process::id(), Survey::default());
    for queue in places::queues(project_dir)? {
        let (path, page) = (queue.path().to_path_buf(), queue::predecessor(&disk, queue.path()));
        let Ok(owner) = queue.owner() else {
            // The client skips it too, and says why.
            survey.unopened.push(path);
            continue;
        };
        let other = owner.filter(|owner| owner.pid != Some(own) && !is_ours(&page, own));
        let is_empty = owner.is_none() && queue.is_known_empty();
        let seen = if owner.is_some() || is_empty { seen_on(&page, &queue) } else { seen_in(&page, &queue, before) };
        survey.seen.insert(path.clone(), seen);
        if let Some(other) = other {
            survey.others.push(Holding { queue: path, pid: other.pid, events: seen.queued });
            continue;
        }
        survey.queued = survey.queued.saturating_add(seen.queued);
        let is_known = if owner.is_some() { open.contains(&canonical(&path)) } else { is_empty };
        if !is_known {
            survey.unopened.push(path);
        }
    }
    Ok(survey)
}

/// Whether the page has a ledger: one that was made anew says nothing until the queue is open.
fn says_ledger(page: &queue::Predecessor) -> bool {
    page.ledger.is_some_and(|ledger| ledger != Ledger::default())
}

/// A queue that a process has, or that is known to be empty, on its page; from its store while the page does not say it.
/// Nothing is known of a store that cannot be read.
fn seen_on(page: &queue::Predecessor, queue: &QueueDir) -> Seen {
    let read = || queue::Reader::open(&Disk::default(), queue.path(), false).ok()?.state().map(|state| state.ledger);
    let of_store = if says_ledger(page) { None } else { read() };
    let counts = Counts::of(&page.ledger.filter(|_| of_store.is_none()).or(of_store).unwrap_or_default());
    let queued = of_store.map_or_else(|| page.queued_events(), |ledger| ledger.queued_events);
    Seen { counts, queued, started_at: page.started_at, was_free: false }
}

/// A queue that no process has, from its store and its journal, which are read only once.
fn seen_in(page: &queue::Predecessor, queue: &QueueDir, before: &BTreeMap<PathBuf, Seen>) -> Seen {
    let unchanged = before.get(queue.path()).filter(|seen| seen.is_still(page));
    unchanged.copied().unwrap_or_else(|| match queue.contents() {
        Some(found) => Seen {
            counts: Counts::of(&found.ledger.unwrap_or_default()),
            queued: found.queued_events(),
            started_at: page.started_at,
            was_free: true,
        },
        None => seen_on(page, queue),
    })
}

/// Whether the page says that this process has the queue, where the system does not say who holds the lock.
fn is_ours(page: &queue::Predecessor, own: u32) -> bool {
    page.pid == u64::from(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_owner_had_is_read_again_when_it_is_gone() {
        let page = queue::Predecessor { existed: true, started_at: 7, ..Default::default() };
        let free = Seen { started_at: 7, was_free: true, ..Seen::default() };
        assert!(free.is_still(&page));
        assert!(!Seen { was_free: false, ..free }.is_still(&page), "its owner may have written more before it died");
        assert!(!free.is_still(&queue::Predecessor { started_at: 8, ..page }));
    }
}
