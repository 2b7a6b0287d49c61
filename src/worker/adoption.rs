//! Delivering what other processes left behind: one orphaned shard at a time, in place, never copied.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Notice, Pipeline, lock};
use crate::crash;
use crate::crash_point;
use crate::shard::{ClaimError, Finding, Project, Shard, ShardOptions, claim_orphan, is_known_empty, shard_dir};

/// The number of the project that the pipeline itself belongs to. Last words of another are not ours to tell.
const OWN_PROJECT: usize = 0;
/// A shard that could not be opened, read or written is left alone for so long.
const AVOID_FOR: Duration = Duration::from_secs(300);

/// What is known of the shards of others.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    adopted: Mutex<Option<Adopted>>,
    /// By project and number.
    avoided: Mutex<HashMap<(usize, u32), Avoided>>,
}

/// A shard that failed us.
#[derive(Debug)]
struct Avoided {
    until: Instant,
    /// What was reported: said again only when it changes.
    why: String,
}

/// A shard of our own project that could not be had at the start, and was reported then.
#[derive(Debug)]
pub(super) struct Skipped {
    pub(super) number: u32,
    pub(super) why: String,
}

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

impl Orphans {
    /// Beside a shard of our own, for which these were stepped over.
    pub(super) fn beside(skipped: Vec<Skipped>, now: Instant) -> Self {
        let avoided = skipped.into_iter().map(|Skipped { number, why }| {
            let avoided = Avoided { until: now + AVOID_FOR, why };
            ((OWN_PROJECT, number), avoided)
        });
        Self { adopted: Mutex::new(None), avoided: Mutex::new(avoided.collect()) }
    }
}

impl Pipeline {
    /// The orphan that is being delivered.
    pub(super) fn adopted_shard(&self) -> Option<(u32, Arc<Shard>)> {
        lock(&self.orphans.adopted).as_ref().map(|adopted| (adopted.origin, Arc::clone(&adopted.shard)))
    }

    /// Lets go of an orphan that is drained and looks for the next one. Says whether there is something to deliver now.
    pub(super) fn adopt_next(&self) -> bool {
        let mut after = Place::default();
        {
            let mut adopted = lock(&self.orphans.adopted);
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
        *lock(&self.orphans.adopted) = found;
        something
    }

    /// Lets go of the orphan as it is: what is left in it is left for somebody else.
    pub(super) fn abandon_adopted(&self) {
        if let Some(current) = lock(&self.orphans.adopted).take() {
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
        let is_worth = |number| self.is_worth(&dir, after.project, number);
        let (number, claim) = match claim_orphan(&self.options.disk, &dir, after.number, &is_worth) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Step::NoMore),
            Err(ClaimError::Shard { number, source }) => {
                self.skip(&dir, Place { number: Some(number), ..after }, &*source);
                return Ok(Step::Empty(number));
            }
            Err(error) => return Err(error),
        };
        let place = Place { number: Some(number), ..after };
        let options = ShardOptions { project: project.clone(), adopts: true, ..self.options.shard_options() };
        let opened = match Shard::open(&self.options.disk, &options, claim, self.options.clock.wall_nanos()) {
            Ok(opened) => opened,
            Err(error) => {
                self.skip(&dir, place, &error);
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
        Ok(Step::Found(Adopted { origin, shard, place }))
    }

    /// Whether a shard is worth being opened: not if its last owner left it empty and in good order, nor soon after it failed us.
    fn is_worth(&self, project_dir: &Path, project: usize, number: u32) -> bool {
        let now = self.options.clock.now();
        if lock(&self.orphans.avoided).get(&(project, number)).is_some_and(|avoided| avoided.until > now) {
            return false;
        }
        let dir = shard_dir(project_dir, number);
        let has_words = || project == OWN_PROJECT && crash::has_left_behind(&self.options.disk, &dir.join(crash::DIR));
        !is_known_empty(&self.options.disk, &dir) || has_words()
    }

    /// Leaves the orphan alone for a while, and says so if it did not fail in the same way before.
    fn skip(&self, project_dir: &Path, place: Place, error: &dyn Error) {
        let Some(number) = place.number else { return };
        let why = reason(error);
        let avoided = Avoided { until: self.options.clock.now() + AVOID_FOR, why: why.clone() };
        let before = lock(&self.orphans.avoided).insert((place.project, number), avoided);
        if before.is_none_or(|before| before.why != why) {
            (self.options.report)(Notice::ShardSkipped { path: shard_dir(project_dir, number), why });
        }
    }

    /// Leaves an orphan alone for a while that was opened and failed later, of which was spoken then.
    fn avoid(&self, place: Place) {
        let Some(number) = place.number else { return };
        let avoided = Avoided { until: self.options.clock.now() + AVOID_FOR, why: String::new() };
        lock(&self.orphans.avoided).insert((place.project, number), avoided);
    }

    pub(super) fn report_findings(&self, findings: Vec<Finding>) {
        for finding in findings {
            (self.options.report)(finding.into());
        }
    }
}

/// An error with what caused it, each said once.
pub(super) fn reason(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
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
