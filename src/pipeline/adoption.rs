//! Delivering what other processes left behind: one orphaned shard at a time, in place, never copied.
//!
//! The committer looks for orphans and claims them, which is quick. Opening one may mean that a large file is checked or rebuilt, and
//! giving back the room of one may mean that it is compacted: that is done on a thread that lives for this one step (`opening.rs`), for
//! callers wait for the committer's syncs. What comes of it waits in a mailbox until the committer hears that it is there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::advice::explain_queue;
use super::opening::Job;
use super::{Notice, Pipeline, lock};
use crate::crash;
use crate::queue::{
    Claim, ClaimError, Finding, Opened, Project, Queue, QueueError, QueueOptions, claim_orphan, holds_idle_files,
    is_known_empty, shard_dir,
};
use crate::sys::crash_point;
use crate::sys::disk::Disk;

/// The number of the project that the pipeline itself belongs to. Last words of another are not ours to tell.
pub(super) const OWN_PROJECT: usize = 0;
/// In the place of a shard's number: the directory in which all of them lie.
const WHOLE: u32 = u32::MAX;
/// A shard that could not be opened, read or written is left alone for so long.
const AVOID_FOR: Duration = Duration::from_secs(300);
/// A shard that was left empty keeps its room for so long, for the next process to find it ready.
const KEEPS_ROOM_FOR: Duration = Duration::from_secs(3600);

/// Shards that are left alone, by project and number.
pub(super) type AvoidedShards = Mutex<HashMap<(usize, u32), Avoided>>;

/// A shard that failed us, or was just seen to.
#[derive(Debug)]
pub(super) struct Avoided {
    until: Instant,
    /// What was reported: said again only when it changes.
    why: String,
}

/// An orphan that is ours for the time being.
#[derive(Debug)]
pub(super) struct Adopted {
    origin: u32,
    shard: Arc<Queue>,
    place: Place,
}

/// Where an orphan was found: which of the projects, and which shard of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub(super) project: usize,
    pub(super) number: Option<u32>,
}

impl Pipeline {
    /// The orphan that is being delivered.
    pub(super) fn adopted_shard(&self) -> Option<(u32, Arc<Queue>)> {
        lock(&self.adopted).as_ref().map(|adopted| (adopted.origin, Arc::clone(&adopted.shard)))
    }

    /// Lets go of an orphan that is drained, takes one that is open by now, or has the next one opened. Says whether there is something
    /// to deliver now.
    pub(super) fn adopt_next(&self) -> bool {
        let drained = {
            let mut adopted = lock(&self.adopted);
            let drained = adopted.take_if(|current| self.is_drained(current));
            if drained.is_none() && adopted.is_some() {
                return false;
            }
            drained
        };
        if let Some(Adopted { origin, shard, place }) = drained {
            self.leases.lock().let_go(origin);
            self.orphans.begin(self, place, Job::GiveBackRoom(shard));
            return false;
        }
        while !self.mailbox.is_stopping() && !self.orphans.is_busy() {
            match self.orphans.take_done() {
                Some((place, Ok(Some(opened)))) => {
                    if self.adopt(place, opened) {
                        return true;
                    }
                }
                Some((place, Ok(None))) => self.avoid(place),
                Some((place, Err(error))) => self.skip(place, &error),
                None => {
                    let Some((place, options, claim)) = self.find_orphan() else { return false };
                    self.orphans.begin(self, place, Job::Open(Box::new(options), claim));
                }
            }
        }
        false
    }

    /// Lets go of the orphan as it is: what is left in it is left for somebody else.
    pub(super) fn abandon_adopted(&self) {
        // Delivery looks for the adopted shard under the row lock, so that lock is not taken under this one.
        let current = lock(&self.adopted).take();
        if let Some(current) = current {
            self.avoid(current.place);
            self.leases.lock().let_go(current.origin);
            current.shard.close();
        }
    }

    fn is_drained(&self, adopted: &Adopted) -> bool {
        adopted.shard.ledger().queued_events == 0 && self.leases.has_nothing_of(adopted.origin)
    }

    /// Takes an orphan that is open. `false` if there was nothing in it to be delivered.
    fn adopt(&self, place: Place, mut opened: Opened) -> bool {
        crash_point::reach("adoption.opened");
        let is_checkpointed = !opened.findings.iter().any(|finding| matches!(finding, Finding::NotCheckpointed { .. }));
        self.report_findings(opened.findings);
        opened.shard.become_adopted();
        let shard = Arc::new(opened.shard);
        if place.project == OWN_PROJECT {
            self.adopt_crash_reports(&shard.dir().join(crash::DIR));
        }
        if shard.ledger().queued_events == 0 {
            if is_checkpointed {
                self.orphans.begin(self, place, Job::GiveBackRoom(shard));
            } else {
                // What its store did not take is in its journal, and tried again later.
                self.avoid(place);
                shard.close();
            }
            return false;
        }
        // Never the same number twice, so that what is said late about one orphan is not taken for another.
        static ORIGINS: AtomicU32 = AtomicU32::new(1);
        let origin = ORIGINS.fetch_add(1, Ordering::Relaxed).max(1);
        *lock(&self.adopted) = Some(Adopted { origin, shard, place });
        true
    }

    /// The next orphan after the last one that was looked at; from the start again if that was asked for meanwhile.
    fn find_orphan(&self) -> Option<(Place, QueueOptions, Claim)> {
        let (after, again) = self.orphans.resume();
        let found = self.find_orphan_after(after);
        if found.is_some() {
            if again {
                self.orphans.look_again();
            }
            return found;
        }
        if again { self.find_orphan_after(Place::default()) } else { None }
    }

    fn find_orphan_after(&self, after: Place) -> Option<(Place, QueueOptions, Claim)> {
        let projects = std::iter::once(&self.options.project).chain(&self.options.also);
        for (index, project) in projects.enumerate().skip(after.project) {
            let dir = self.dir_of(project);
            let mut number = if index == after.project { after.number } else { None };
            while !self.mailbox.is_stopping() {
                let is_worth = |number| self.is_worth(&dir, index, number);
                match claim_orphan(&self.options.disk, &dir, number, &is_worth) {
                    Ok(Some((number, claim))) => {
                        let place = Place { project: index, number: Some(number) };
                        let options =
                            QueueOptions { project: project.clone(), adopts: true, ..self.options.shard_options() };
                        return Some((place, options, claim));
                    }
                    Err(ClaimError::Shard { number: failed, source }) => {
                        self.skip(Place { project: index, number: Some(failed) }, &QueueError::from(*source));
                        number = Some(failed);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        self.skip(Place { project: index, number: Some(WHOLE) }, &QueueError::from(error));
                        break;
                    }
                }
            }
        }
        None
    }

    /// Whether a shard is worth being opened: not if its last owner left it empty and in good order, nor soon after it failed us.
    fn is_worth(&self, project_dir: &Path, project: usize, number: u32) -> bool {
        let now = self.options.clock.now();
        if lock(&self.avoided).get(&(project, number)).is_some_and(|avoided| avoided.until > now) {
            return false;
        }
        let (disk, dir) = (&self.options.disk, shard_dir(project_dir, number));
        let has_reports = || project == OWN_PROJECT && crash::has_unread_reports(disk, &dir.join(crash::DIR));
        let left_before = self.options.clock.wall_nanos().saturating_sub(KEEPS_ROOM_FOR.as_nanos() as i64);
        !is_known_empty(disk, &dir) || has_reports() || holds_idle_files(disk, &dir, left_before)
    }

    /// Leaves the orphan alone for a while, and says so if it did not fail in the same way before.
    fn skip(&self, place: Place, error: &QueueError) {
        let (Some(number), Some(path)) = (place.number, self.path_of(place)) else { return };
        let why = explain_queue(&self.options.disk, error);
        let avoided = Avoided { until: self.options.clock.now() + AVOID_FOR, why: why.clone() };
        let before = lock(&self.avoided).insert((place.project, number), avoided);
        if before.is_none_or(|before| before.why != why) {
            (self.options.report)(Notice::ShardSkipped { path, why });
        }
    }

    /// Leaves an orphan alone for a while of which there is nothing to be said, or was said already.
    fn avoid(&self, place: Place) {
        let Some(number) = place.number else { return };
        let until = self.options.clock.now() + AVOID_FOR;
        lock(&self.avoided)
            .entry((place.project, number))
            .and_modify(|avoided| avoided.until = until)
            .or_insert(Avoided { until, why: String::new() });
    }

    fn dir_of(&self, project: &Project) -> PathBuf {
        self.options.lane.dir(project, &self.options.queue_dir)
    }

    fn path_of(&self, place: Place) -> Option<PathBuf> {
        let mut projects = std::iter::once(&self.options.project).chain(&self.options.also);
        let dir = self.dir_of(projects.nth(place.project)?);
        place.number.map(|number| if number == WHOLE { dir.clone() } else { shard_dir(&dir, number) })
    }

    pub(super) fn report_findings(&self, findings: Vec<Finding>) {
        for finding in findings {
            (self.options.report)(finding.into());
        }
    }
}

/// Those of our own project that the start has stepped over, and has reported.
pub(super) fn avoided_at_start(skipped: Vec<(u32, String)>, now: Instant) -> AvoidedShards {
    let avoided = |(number, why)| ((OWN_PROJECT, number), Avoided { until: now + AVOID_FOR, why });
    Mutex::new(skipped.into_iter().map(avoided).collect())
}

impl From<Finding> for Notice {
    fn from(finding: Finding) -> Self {
        match finding {
            Finding::Salvaged { path, why, lost } => Notice::Salvaged { path, why, lost },
            Finding::Missing { events, after_restart } => Notice::Missing { events, after_restart },
            Finding::NotCheckpointed { error } => {
                let why = explain_queue(&Disk::default(), &error);
                Notice::Storage { problem: Some(format!("events in the journal could not be stored yet: {why}")) }
            }
            Finding::StoreVerified => Notice::StoreVerified,
            Finding::DiedInTask => Notice::SymbolsUntrusted,
        }
    }
}
