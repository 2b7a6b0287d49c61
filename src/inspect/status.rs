//! [`QueueStatus`]: how a queue is, read from its status page and its directory. No lock is taken and nothing is opened
//! for writing, so it works beside a living owner, and for what a dead one has left.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use super::error::InspectError;
use super::places::{QueueDir, lossy};
use crate::crash;
use crate::queue::store::Ledger;
use crate::queue::{self, PageContent, Reader};
use crate::report::{DeliveryPhase, DropReason, LaneState, QueueMedium, Stats, StorageMode, ThreadState};
use crate::sys::clock::{Clock, WallNanos, elapsed, system_time};
use crate::sys::disk::Disk;

/// What is wrong with a store that is expected and is not there.
const MISSING: &str = "its file is missing";
/// The note for people in a project's directory.
const OWNER_NOTE: &str = "owner.txt";
/// More of it is not read.
const OWNER_NOTE_BYTES: u64 = 64 * 1024;

/// How a queue is, at the moment at which it was read. [`verdict`](Self::verdict) judges it.
///
/// What the owner says of itself (`delivery`, `fill_percent`, `rejecting`, `dropped`, `storage`, `medium`) is what it
/// wrote when it last had something to do: at `described_at`. It is `None` or empty until an owner has opened the
/// queue, and of an owner whose version of this library does not write it.
///
/// Serialized, every field is a key of an object, times are Unix time in seconds, and what is not known is `null`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct QueueStatus {
    /// The directory of the queue.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// The name of the project's directory.
    pub project: String,
    /// The host that the events go to, if it is known.
    pub host: Option<String>,
    /// The beginning of the project key, if it is known.
    pub key: Option<String>,
    /// `analytics` or `ai`.
    pub lane: &'static str,
    /// The number of the shard; 0 for the queue of an import.
    pub shard: u32,
    /// Whether this is no shard but the queue of an import that is under way or was not finished: nothing of it is sent.
    pub is_import: bool,
    /// When this was read.
    #[serde(rename = "read_at_timestamp_seconds", serialize_with = "timestamp")]
    pub read_at: SystemTime,
    /// The version of the format, if a newer version of this library wrote the queue. Then nothing else is known of it.
    pub newer_format: Option<u64>,
    /// The process that has the queue open.
    pub owner: Option<QueueOwner>,
    /// The last run of a program that had this queue as its own, also if it is still running.
    pub last_run: Option<LastRun>,
    /// Events accepted, in the life of the queue.
    pub accepted: u64,
    /// Events that PostHog has accepted.
    pub delivered: u64,
    /// Events that wait for delivery.
    pub queued_events: u64,
    /// Those of them that are in the journal only.
    pub journal_events: u64,
    /// Bytes of the queued events in the store.
    pub queued_bytes: u64,
    /// Events that PostHog rejected for good, in the life of the queue.
    pub dead_lettered: u64,
    /// Events deleted undelivered because of the bounds of the queue.
    pub evicted: u64,
    /// Events whose bytes were damaged on disk.
    pub damaged: u64,
    /// Events lost in a power cut before they were synced.
    pub lost_unsynced: u64,
    /// How long the oldest event has been in the store.
    #[serde(rename = "oldest_age_seconds", serialize_with = "seconds")]
    pub oldest_age: Option<Duration>,
    /// How full the queue is in percent, by bytes or events, whichever is more.
    pub fill_percent: Option<u8>,
    /// What delivery is doing.
    pub delivery: Option<DeliveryStatus>,
    /// Why ordinary events are dropped, if they are.
    pub rejecting: Option<DropReason>,
    /// Events that were not accepted in the last run, by reason.
    #[serde(serialize_with = "by_name")]
    pub dropped: Vec<(DropReason, u64)>,
    /// Whether storage works.
    pub storage: Option<StorageMode>,
    /// What the queue is stored on.
    pub medium: Option<QueueMedium>,
    /// When the owner wrote what it says of itself.
    #[serde(rename = "described_at_timestamp_seconds", serialize_with = "maybe_timestamp")]
    pub described_at: Option<SystemTime>,
    /// Crash reports that wait to be sent.
    pub crash_reports: u64,
    /// Crash reports that could not be read and are no longer tried.
    pub given_up_crash_reports: u64,
    /// Damaged files that were set aside.
    pub damaged_files: Vec<DamagedFile>,
    /// Why the store of a queue without an owner cannot be read.
    pub store_problem: Option<String>,
    /// Bytes that the files of the queue take on the disk.
    pub file_bytes: u64,
    /// Bytes that are free on the file system of the queue.
    pub free_bytes: Option<u64>,
    /// Whether words of the status page do not match their check, and its owner does not write them just now.
    #[serde(skip)]
    pub(super) is_page_damaged: bool,
    /// Whether `repair` needs the host and the key of the project.
    #[serde(skip)]
    pub(super) needs_project: bool,
    #[serde(skip)]
    pub(super) state: Option<LaneState>,
    #[serde(skip)]
    pub(super) now: WallNanos,
}

/// The process that has a queue open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct QueueOwner {
    /// Its process id. `None` where it cannot be known: the process runs in another container.
    pub pid: Option<u32>,
    /// When it opened the queue.
    #[serde(rename = "since_timestamp_seconds", serialize_with = "maybe_timestamp")]
    pub since: Option<SystemTime>,
    /// The name of the program's file, if the owner has written it.
    pub program: Option<String>,
    /// The version of this library in it.
    pub library_version: Option<String>,
    /// Whether it only delivers what another process has left here.
    pub adopts: bool,
    /// Whether the process is stopped by a signal or a debugger.
    pub is_stopped: bool,
}

/// A run of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LastRun {
    /// Its process id. Another process may have it by now.
    pub pid: u32,
    /// When it began.
    #[serde(rename = "started_at_timestamp_seconds", serialize_with = "timestamp")]
    pub started_at: SystemTime,
    /// Its last sign of life. An idle program gives none.
    #[serde(rename = "last_seen_timestamp_seconds", serialize_with = "timestamp")]
    pub last_seen: SystemTime,
    /// Whether it closed the queue.
    pub closed: bool,
    /// Whether the machine was restarted since.
    pub machine_restarted: Option<bool>,
}

/// What delivery is doing, or did last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeliveryStatus {
    /// The phase, as of the time at which the status was read.
    pub phase: DeliveryPhase,
    /// When delivery tries again, if it waits for that.
    #[serde(rename = "next_attempt_timestamp_seconds", serialize_with = "maybe_timestamp")]
    pub next_attempt: Option<SystemTime>,
    /// Requests in a row that failed through no fault of an event.
    pub consecutive_failures: u32,
    /// Requests that failed so, in the last run.
    pub failed_attempts: u64,
    /// Events that delivery skips for now.
    pub quarantined: u64,
    /// The text of the last failure or rejection. It is kept when delivery works again.
    pub last_error: Option<String>,
    /// Since when the endpoint has been failing.
    #[serde(rename = "failing_since_timestamp_seconds", serialize_with = "maybe_timestamp")]
    pub failing_since: Option<SystemTime>,
    /// When PostHog last accepted an event, in the last run.
    #[serde(rename = "last_success_timestamp_seconds", serialize_with = "maybe_timestamp")]
    pub last_success: Option<SystemTime>,
}

/// A damaged file that was set aside when it was replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DamagedFile {
    /// The file, or the directory that it was moved to.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Its bytes on the disk.
    pub bytes: u64,
}

impl QueueDir {
    /// How the queue is. Fails if its files may not be read.
    ///
    /// What is in a queue without an owner is taken from its store and its journal: the status page is a mirror of them,
    /// which may lag behind, or be damaged.
    pub fn status(&self) -> Result<QueueStatus, InspectError> {
        let disk = Disk::of_any_user();
        let failed = |source| InspectError::io(self.path(), source);
        let owner = self.owner()?;
        let newer_format = queue::newer_version(&disk, self.path()).map_err(failed)?;
        let page = if newer_format.is_none() { queue::page(&disk, self.path()).map_err(failed)? } else { None };
        let now = Clock::default().wall_nanos();
        let (host, key) = self.shown_identity();
        let mut status = QueueStatus { host, key, newer_format, ..QueueStatus::empty(self, now) };
        status.look_at_files(&disk).map_err(failed)?;
        if let Some(page) = &page {
            status.take_page(page);
        }
        status.owner = owner.map(|owner| {
            let state = status.state.as_ref();
            let run_pid = page.as_ref().and_then(|page| page.last.run).map(|run| run.pid);
            let last_pid = page.as_ref().and_then(|page| u32::try_from(page.last.pid).ok());
            QueueOwner {
                pid: owner.pid,
                since: owner.since,
                program: state.map(|state| state.program.clone()).filter(|name| !name.is_empty()),
                library_version: state.map(|state| state.version.map(|part| part.to_string()).join(".")),
                adopts: last_pid.is_some() && run_pid != last_pid,
                is_stopped: owner.pid.is_some_and(is_stopped),
            }
        });
        if status.owner.is_none() {
            // Nobody is there to drop anything.
            status.rejecting = None;
        }
        if status.owner.is_none() && newer_format.is_none() {
            status.look_into_store(&disk, page.as_ref())?;
            status.needs_project = status.store_problem.is_some() && self.project_by_name().is_none();
        }
        Ok(status)
    }

    /// The host and the beginning of the key: from the store, or else from the note for people in the project's
    /// directory.
    fn shown_identity(&self) -> (Option<String>, Option<String>) {
        if let Some((host, key)) = self.identity() {
            return (Some(host), Some(crate::pipeline::abbreviated(&key)));
        }
        let note = Disk::of_any_user().read(&self.project_dir().join(OWNER_NOTE), OWNER_NOTE_BYTES).unwrap_or_default();
        let note = String::from_utf8_lossy(&note);
        let field = |name: &str| {
            let value = note.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
            Some(value.to_owned())
        };
        (field("host "), field("project key "))
    }
}

impl QueueStatus {
    fn empty(queue: &QueueDir, now: WallNanos) -> Self {
        Self {
            path: queue.path().to_path_buf(),
            project: queue.project().to_owned(),
            host: None,
            key: None,
            lane: queue.lane(),
            shard: queue.number(),
            is_import: queue.is_import(),
            read_at: system_time(now),
            newer_format: None,
            owner: None,
            last_run: None,
            accepted: 0,
            delivered: 0,
            queued_events: 0,
            journal_events: 0,
            queued_bytes: 0,
            dead_lettered: 0,
            evicted: 0,
            damaged: 0,
            lost_unsynced: 0,
            oldest_age: None,
            fill_percent: None,
            delivery: None,
            rejecting: None,
            dropped: Vec::new(),
            storage: None,
            medium: None,
            described_at: None,
            crash_reports: 0,
            given_up_crash_reports: 0,
            damaged_files: Vec::new(),
            store_problem: None,
            file_bytes: 0,
            free_bytes: None,
            is_page_damaged: false,
            needs_project: false,
            state: None,
            now,
        }
    }

    /// A queue of that path that nobody has open and that has nothing in it.
    #[cfg(test)]
    pub(super) fn for_test(path: &Path, now: WallNanos) -> Self {
        Self::empty(&QueueDir::at(path).unwrap(), now)
    }

    fn take_page(&mut self, page: &PageContent) {
        let last = &page.last;
        self.is_page_damaged = page.is_damaged;
        if let Some(ledger) = last.ledger {
            self.take_ledger(&ledger);
        }
        self.take_accepted(last.accepted);
        self.oldest_age = last.oldest_at.filter(|_| self.queued_events > 0).map(|at| elapsed(at, self.now));
        self.last_run = last.run.map(|run| LastRun {
            pid: run.pid,
            started_at: system_time(run.started_at),
            last_seen: system_time(run.heartbeat.at),
            closed: run.closed,
            machine_restarted: run.same_boot.map(|same| !same),
        });
        let Some(words) = &page.owner else { return };
        let state = LaneState::of_words(words);
        self.described_at = Some(system_time(state.at));
        self.dropped = DropReason::ALL.into_iter().zip(page.counters.iter().copied()).filter(|(_, n)| *n > 0).collect();
        self.rejecting = state.rejecting;
        self.storage = Some(state.storage.clone());
        self.medium = state.medium;
        self.delivery = Some(DeliveryStatus {
            phase: state.phase.as_of(self.now),
            next_attempt: state.phase.until().map(system_time),
            consecutive_failures: state.consecutive_failures,
            failed_attempts: state.failed_attempts,
            quarantined: state.quarantined,
            last_error: state.last_error.clone(),
            failing_since: state.failing_since.map(system_time),
            last_success: state.last_success.map(system_time),
        });
        self.state = Some(state);
        let fill = self.as_stats().map_or(0.0, |stats| stats.fill());
        self.fill_percent = Some((fill * 100.0).clamp(0.0, 100.0) as u8);
    }

    fn take_ledger(&mut self, ledger: &Ledger) {
        self.accepted = ledger.accepted;
        self.delivered = ledger.delivered;
        self.queued_events = ledger.queued_events;
        self.queued_bytes = ledger.queued_bytes;
        self.dead_lettered = ledger.dead_lettered;
        self.evicted = ledger.evicted;
        self.damaged = ledger.damaged;
        self.lost_unsynced = ledger.lost_unsynced;
    }

    /// What was accepted after the last commit is in the journal.
    fn take_accepted(&mut self, accepted: u64) {
        self.journal_events = accepted.saturating_sub(self.accepted);
        self.queued_events = self.queued_events.saturating_add(self.journal_events);
        self.accepted = self.accepted.max(accepted);
    }

    fn look_at_files(&mut self, disk: &Disk) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let bytes = bytes_of(&entry.path());
            self.file_bytes = self.file_bytes.saturating_add(bytes);
            if entry.file_name().as_encoded_bytes().starts_with(b"damaged-") {
                self.damaged_files.push(DamagedFile { path: entry.path(), bytes });
            }
        }
        self.damaged_files.sort_by(|a, b| a.path.cmp(&b.path));
        self.free_bytes = disk.free_bytes(&self.path).ok();
        let reports = self.path.join(crash::DIR);
        (self.crash_reports, self.given_up_crash_reports) = crash::count_reports(disk, &reports);
        Ok(())
    }

    /// Takes from the store and the journal what is in the queue. What they do not say, because the store cannot be read,
    /// is left as the page says it.
    fn look_into_store(&mut self, disk: &Disk, page: Option<&PageContent>) -> Result<(), InspectError> {
        let reader = match Reader::open(disk, &self.path, false) {
            Ok(reader) => reader,
            Err(error) => match InspectError::queue(&self.path, error) {
                InspectError::Newer { version, .. } => {
                    self.newer_format = Some(version);
                    return Ok(());
                }
                error => return Err(error),
            },
        };
        let found = reader.contents(disk).map_err(|error| InspectError::queue(&self.path, error))?;
        let of_page = page.and_then(|page| page.last.ledger);
        if let Some(ledger) = found.ledger {
            self.take_ledger(&ledger);
            if of_page != Some(ledger) {
                self.oldest_age = None;
            }
        } else {
            let problem =
                if reader.has_store() { "the rows that describe its content cannot be read" } else { MISSING };
            let is_expected =
                reader.has_store() || found.journal_events > 0 || of_page.is_some_and(|of| of.accepted > 0);
            self.store_problem = is_expected.then(|| problem.to_owned());
            self.take_ledger(&of_page.unwrap_or_default());
        }
        self.take_accepted(self.accepted.saturating_add(found.journal_events));
        Ok(())
    }

    /// The same in the form of the owner's own statistics, so that both are judged by the same rules.
    pub(super) fn as_stats(&self) -> Option<Stats> {
        let state = self.state.as_ref()?;
        let waiting = Stats::disabled(Vec::new());
        Some(Stats {
            accepted: self.accepted,
            delivered: self.delivered,
            queued_events: self.queued_events,
            queued_bytes: self.queued_bytes,
            dead_lettered: self.dead_lettered,
            evicted: self.evicted,
            damaged: self.damaged,
            lost_unsynced: self.lost_unsynced,
            dropped: self.dropped.clone(),
            used_bytes: state.used_bytes,
            max_bytes: state.max_bytes,
            max_events: state.max_events,
            oldest_age: self.oldest_age,
            file_bytes: state.file_bytes,
            replayed: state.replayed,
            adopted_events: state.adopted_events,
            rejecting: self.rejecting,
            storage: state.storage.clone(),
            medium: state.medium,
            delivery: state.phase.as_of(self.now),
            commit_thread: ThreadState::Asleep,
            deliver_thread: if state.restarts { ThreadState::Restarting } else { ThreadState::Asleep },
            consecutive_failures: state.consecutive_failures,
            failed_attempts: state.failed_attempts,
            quarantined: state.quarantined,
            last_error: state.last_error.clone(),
            last_success: state.last_success.map(system_time),
            dir: Some(self.path.clone()),
            ..waiting
        })
    }
}

/// Bytes on the disk of a file, or of a directory with what is directly in it. A file that is gone has none.
fn bytes_of(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let own = metadata.blocks().saturating_mul(512);
    let inside = if metadata.is_dir() { fs::read_dir(path).ok() } else { None };
    let files = inside.into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
    files.fold(own, |sum, file| sum.saturating_add(file.blocks().saturating_mul(512)))
}

/// Whether a process is stopped, by a signal or a debugger. False where the system does not say.
fn is_stopped(pid: u32) -> bool {
    // "4711 (any (name)) T 1 ..."
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = text.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, Some('T' | 't'))
}

fn timestamp<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    maybe_timestamp(&Some(*at), serializer)
}

fn maybe_timestamp<S: Serializer>(at: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    let since = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.map(|since| since.as_secs_f64()).serialize(serializer)
}

fn seconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}

fn by_name<S: Serializer>(dropped: &[(DropReason, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    let counts: BTreeMap<_, _> = dropped.iter().map(|(reason, count)| (reason.name(), count)).collect();
    counts.serialize(serializer)
}
