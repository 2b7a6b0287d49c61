//! Delivering what other processes left behind: one orphaned shard at a time, in place, never copied.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Notice, Pipeline, lock};
use crate::crash;
use crate::crash_point;
use crate::shard::{
    ClaimError, Finding, Project, Shard, ShardError, ShardOptions, claim_orphan, is_known_empty, shard_dir,
};

/// The number of the project that the pipeline itself belongs to. Last words of another are not ours to tell.
const OWN_PROJECT: usize = 0;
/// A shard that could not be opened, read or written is left alone for so long.
const AVOID_FOR: Duration = Duration::from_secs(300);

/// An orphan that is ours for the time being.
#[derive(Debug)]
pub(super) struct Adopted {
    origin: u32,
    shard: Arc<Shard>,
    place: Place,
}

/// Where an orphan was found: which of the projects, and which shard of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Place {
    project: usize,
    number: Option<u32>,
}

impl Pipeline {
    /// The orphan that is being delivered.
    pub(super) fn adopted_shard(&self) -> Option<(u32, Arc<Shard>)> {
        lock(&self.adopted).as_ref().map(|adopted| (adopted.origin, Arc::clone(&adopted.shard)))
    }

    /// Lets go of an orphan that is drained and looks for the next one. Says whether there is something to deliver now.
    pub(super) fn adopt_next(&self) -> bool {
        let mut after = Place::default();
        {
            let mut adopted = lock(&self.adopted);
            if let Some(current) = adopted.take_if(|current| self.is_drained(current)) {
                after = current.place;
                self.outbox.let_go(current.origin);
                current.shard.close();
            } else if adopted.is_some() {
                return false;
            }
        }
        let found = self.find_orphan(after);
        let something = found.is_some();
        *lock(&self.adopted) = found;
        something
    }

    /// Lets go of the orphan as it is: what is left in it is left for somebody else.
    pub(super) fn abandon_adopted(&self) {
        if let Some(current) = lock(&self.adopted).take() {
            self.avoid(current.place);
            self.outbox.let_go(current.origin);
            current.shard.close();
        }
    }

    fn is_drained(&self, adopted: &Adopted) -> bool {
        adopted.shard.ledger().queued_events == 0 && self.outbox.has_nothing_of(adopted.origin)
    }

    fn find_orphan(&self, after: Place) -> Option<Adopted> {
        let projects = std::iter::once(&self.options.project).chain(&self.options.also);
        for (index, project) in projects.enumerate().skip(after.project) {
            let mut number = if index == after.project { after.number } else { None };
            while !self.bell.is_stopping() {
                match self.try_orphan(project, Place { project: index, number }) {
                    Ok(Step::Found(adopted)) => return Some(adopted),
                    Ok(Step::Empty(tried)) => number = Some(tried),
                    Ok(Step::NoMore) | Err(_) => break,
                }
            }
        }
        None
    }

    fn try_orphan(&self, project: &Project, after: Place) -> Result<Step, ClaimError> {
        let dir = project.lane_dir(&self.options.queue_dir, self.options.lane);
        let Some((number, claim)) =
            claim_orphan(&self.options.disk, &dir, after.number, &|number| self.is_worth(&dir, after.project, number))?
        else {
            return Ok(Step::NoMore);
        };
        let options = ShardOptions { project: project.clone(), adopts: true, ..self.options.shard_options() };
        let opened = match Shard::open(&self.options.disk, &options, claim, self.options.clock.wall_nanos()) {
            Ok(opened) => opened,
            Err(error) => {
                self.skip(&dir, number, &error);
                self.avoid(Place { number: Some(number), ..after });
                return Ok(Step::Empty(number));
            }
        };
        crash_point::reach("adoption.opened");
        self.report_findings(opened.findings);
        let shard = Arc::new(opened.shard);
        if after.project == OWN_PROJECT {
            self.bring_last_words(&shard.dir().join(crash::DIR));
        }
        if shard.ledger().queued_events == 0 {
            shard.close();
            return Ok(Step::Empty(number));
        }
        // Never the same number twice, so that what is said late about one orphan is not taken for another.
        static ORIGINS: AtomicU32 = AtomicU32::new(1);
        let origin = ORIGINS.fetch_add(1, Ordering::Relaxed).max(1);
        let place = Place { number: Some(number), ..after };
        Ok(Step::Found(Adopted { origin, shard, place }))
    }

    /// Whether a shard is worth being opened: not if its last owner left it empty and in good order, nor soon after it failed us.
    fn is_worth(&self, project_dir: &Path, project: usize, number: u32) -> bool {
        let now = self.options.clock.now();
        if lock(&self.avoided).get(&(project, number)).is_some_and(|until| *until > now) {
            return false;
        }
        let dir = shard_dir(project_dir, number);
        let has_words = || project == OWN_PROJECT && crash::has_left_behind(&self.options.disk, &dir.join(crash::DIR));
        !is_known_empty(&self.options.disk, &dir) || has_words()
    }

    fn avoid(&self, place: Place) {
        if let Some(number) = place.number {
            lock(&self.avoided).insert((place.project, number), self.options.clock.now() + AVOID_FOR);
        }
    }

    fn skip(&self, project_dir: &Path, number: u32, error: &ShardError) {
        let path = shard_dir(project_dir, number);
        (self.options.report)(Notice::ShardSkipped { path, why: error.to_string() });
    }

    pub(super) fn report_findings(&self, findings: Vec<Finding>) {
        for finding in findings {
            (self.options.report)(finding.into());
        }
    }
}

enum Step {
    Found(Adopted),
    Empty(u32),
    NoMore,
}

impl From<Finding> for Notice {
    fn from(finding: Finding) -> Self {
        match finding {
            Finding::SetAside { path, why, lost } => Notice::SetAside { path, why, lost },
            Finding::Missing { events, after_restart } => Notice::Missing { events, after_restart },
            Finding::NotCarried { error } => Notice::Storage { problem: Some(error.to_string()) },
            Finding::Checked => Notice::Checked,
            Finding::DiedResolving => Notice::SymbolsDistrusted,
        }
    }
}
