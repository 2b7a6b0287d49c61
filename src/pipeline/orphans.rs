//! Orphans: shards that other processes left behind are delivered in place, one at a time, and never copied.
//!
//! The committer looks for orphans and claims them, which is quick. Opening an orphan may involve checking or
//! rebuilding a large file, and freeing its disk space may involve compacting that file. Each of these steps runs on
//! a thread of its own (`posthog-orphan`), because callers wait for the committer's syncs. The result waits in a
//! mailbox until the committer takes it.
//!
//! The same threads open the shard that a process takes for itself at the start. If that takes longer than a few
//! seconds, another shard is taken, and the first is delivered as an orphan once it is open.
//!
//! While a shard is being opened, a mark on its status page says so, by which a later process recognizes that the
//! opening killed its predecessor. A process that exits properly meanwhile removes the mark.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::advice::explain_queue;
use super::shared::{Pipeline, lock, storage_failing};
use super::threads;
use crate::crash;
use crate::crash::exit::{ExitObserver, observe_exit};
use crate::queue::{
    Claim, Finding, Opened, OpeningMark, Project, Queue, QueueError, QueueOptions, claim_orphan, holds_idle_files,
    is_known_empty, shard_dir,
};
use crate::report::Diagnostic;
use crate::sys::clock::WallNanos;
use crate::sys::crash_point;
use crate::sys::disk::Disk;

/// The index of the pipeline's own project. Crash reports of other projects are not reported.
pub(super) const OWN_PROJECT: usize = 0;
/// Stands for the directory of all shards where a shard's number is expected.
const ALL_SHARDS: u32 = u32::MAX;
/// How long a shard is skipped after it could not be opened, read or written.
const AVOID_FOR: Duration = Duration::from_secs(300);
/// How long an empty shard keeps its disk space, ready for the next process.
const KEEPS_SPACE_FOR: Duration = Duration::from_secs(3600);

/// Shards that are skipped for a while, by project and number.
pub(super) type AvoidedShards = Mutex<HashMap<(usize, u32), Avoided>>;

/// A shard that is skipped for a while.
#[derive(Debug)]
pub(super) struct Avoided {
    until: Instant,
    /// The reported reason; reported again only when it changes.
    why: String,
}

/// The orphan that is being delivered.
#[derive(Debug)]
pub(super) struct Adopted {
    origin: u32,
    shard: Arc<Queue>,
    place: Place,
}

/// Where an orphan is: the index of its project, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub(super) project: usize,
    pub(super) number: Option<u32>,
}

impl Pipeline {
    /// The orphan that is being delivered, with its origin.
    pub(super) fn adopted_shard(&self) -> Option<(u32, Arc<Queue>)> {
        lock(&self.adopted).as_ref().map(|adopted| (adopted.origin, Arc::clone(&adopted.shard)))
    }

    /// Releases an orphan that is drained, takes one that has been opened, or begins to open the next one. Returns
    /// whether there is something to deliver now.
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
            self.orphans.begin(self, place, Job::FreeSpace(shard));
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

    /// Releases the orphan as it is: what is left in it is left for another process.
    pub(super) fn abandon_adopted(&self) {
        // Delivery locks `leases` before `adopted`, so `leases` must not be locked while `adopted` is.
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

    /// Takes an orphan that has been opened. Returns false if it has nothing to deliver.
    fn adopt(&self, place: Place, mut opened: Opened) -> bool {
        crash_point::reach("adoption.opened");
        let is_checkpointed = !opened.findings.iter().any(|finding| matches!(finding, Finding::NotCheckpointed { .. }));
        self.report_findings(opened.findings);
        opened.queue.become_adopted();
        let shard = Arc::new(opened.queue);
        if place.project == OWN_PROJECT {
            self.adopt_crash_reports(&shard.dir().join(crash::DIR));
        }
        if shard.ledger().queued_events == 0 {
            if is_checkpointed {
                self.orphans.begin(self, place, Job::FreeSpace(shard));
            } else {
                // Its store did not take what is in its journal; that is tried again later.
                self.avoid(place);
                shard.close();
            }
            return false;
        }
        // Never reused, so that a late result for one orphan is not taken for another.
        static ORIGINS: AtomicU32 = AtomicU32::new(1);
        let origin = ORIGINS.fetch_add(1, Ordering::Relaxed).max(1);
        let (path, events) = (shard.dir().clone(), shard.ledger().queued_events);
        *lock(&self.adopted) = Some(Adopted { origin, shard, place });
        (self.options.report)(Diagnostic::QueueAdopted { path, events });
        true
    }

    /// The next orphan after the last one that was looked at; from the first again if a new search was requested
    /// meanwhile.
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
        let projects = std::iter::once(&self.options.queue.project).chain(&self.options.also);
        for (index, project) in projects.enumerate().skip(after.project) {
            let dir = self.dir_of(project);
            let mut number = if index == after.project { after.number } else { None };
            while !self.mailbox.is_stopping() {
                let is_worth_opening = |number| self.is_worth_opening(&dir, index, number);
                match claim_orphan(&self.options.disk, &dir, number, &is_worth_opening) {
                    Ok(Some(claim)) => {
                        let place = Place { project: index, number: Some(claim.number()) };
                        let options =
                            QueueOptions { project: project.clone(), adopts: true, ..self.options.queue.clone() };
                        return Some((place, options, claim));
                    }
                    Err(QueueError::Shard { number: failed, source }) => {
                        self.skip(Place { project: index, number: Some(failed) }, &source);
                        number = Some(failed);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        self.skip(Place { project: index, number: Some(ALL_SHARDS) }, &error);
                        break;
                    }
                }
            }
        }
        None
    }

    /// Whether a shard should be opened: not if its last owner left it empty and in good order, nor soon after a
    /// failure.
    fn is_worth_opening(&self, project_dir: &Path, project: usize, number: u32) -> bool {
        let now = self.options.clock.now();
        if lock(&self.avoided).get(&(project, number)).is_some_and(|avoided| avoided.until > now) {
            return false;
        }
        let (disk, dir) = (&self.options.disk, shard_dir(project_dir, number));
        let has_crash_reports = || project == OWN_PROJECT && crash::has_unread_reports(disk, &dir.join(crash::DIR));
        let left_before = self.options.clock.wall_nanos().saturating_sub(KEEPS_SPACE_FOR.as_nanos() as i64);
        !is_known_empty(disk, &dir) || has_crash_reports() || holds_idle_files(disk, &dir, left_before)
    }

    /// Skips the orphan for a while, and reports the reason unless it is the last one reported.
    fn skip(&self, place: Place, error: &QueueError) {
        let (Some(number), Some(path)) = (place.number, self.path_of(place)) else { return };
        let why = explain_queue(&self.options.disk, error);
        let avoided = Avoided { until: self.options.clock.now() + AVOID_FOR, why: why.clone() };
        let before = lock(&self.avoided).insert((place.project, number), avoided);
        if before.is_none_or(|before| before.why != why) {
            (self.options.report)(Diagnostic::QueueSkipped { path, why });
        }
    }

    /// Skips an orphan for a while without a report.
    fn avoid(&self, place: Place) {
        let Some(number) = place.number else { return };
        let until = self.options.clock.now() + AVOID_FOR;
        lock(&self.avoided)
            .entry((place.project, number))
            .and_modify(|avoided| avoided.until = until)
            .or_insert(Avoided { until, why: String::new() });
    }

    fn dir_of(&self, project: &Project) -> PathBuf {
        self.options.lane.dir(project, &self.options.queue.queue_dir)
    }

    fn path_of(&self, place: Place) -> Option<PathBuf> {
        let mut projects = std::iter::once(&self.options.queue.project).chain(&self.options.also);
        let dir = self.dir_of(projects.nth(place.project)?);
        place.number.map(|number| if number == ALL_SHARDS { dir.clone() } else { shard_dir(&dir, number) })
    }

    pub(super) fn report_findings(&self, findings: Vec<Finding>) {
        for finding in findings {
            (self.options.report)(finding.into());
        }
    }
}

/// The shards of the own project that were skipped, and reported, at the start.
pub(super) fn avoided_at_start(skipped: Vec<(u32, String)>, now: Instant) -> AvoidedShards {
    let avoided = |(number, why)| ((OWN_PROJECT, number), Avoided { until: now + AVOID_FOR, why });
    Mutex::new(skipped.into_iter().map(avoided).collect())
}

impl From<Finding> for Diagnostic {
    fn from(finding: Finding) -> Self {
        match finding {
            Finding::Salvaged { path, why, lost, doubt } => {
                let why = [Some(why), doubt].into_iter().flatten().collect::<Vec<_>>().join("; ");
                Diagnostic::QueueSalvaged { path, why, lost }
            }
            Finding::Missing { events, after_restart } => Diagnostic::EventsLost { events, after_restart },
            Finding::NotCheckpointed { error } => {
                let why = explain_queue(&Disk::default(), &error);
                storage_failing(&format!("events in the journal could not be stored yet: {why}"))
            }
            Finding::StoreVerified => Diagnostic::StoreVerified,
            Finding::DiedInTask => Diagnostic::SymbolsUntrusted,
        }
    }
}

/// A step that may take long.
#[derive(Debug)]
pub(super) enum Job {
    /// Open a claimed shard.
    Open(Box<QueueOptions>, Claim),
    /// Release an empty shard and free its disk space.
    FreeSpace(Arc<Queue>),
}

/// The result of a step: the shard, if one was opened.
pub(super) type Done = Result<Option<Opened>, QueueError>;

/// The search for orphans, shared by the committer and the threads of the steps. It exists before the pipeline does.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    state: Mutex<State>,
    done: Condvar,
    /// The pipeline to wake.
    pipeline: OnceLock<Weak<Pipeline>>,
}

#[derive(Debug, Default)]
struct State {
    /// A step of the search is being carried out.
    is_busy: bool,
    /// Another search was requested meanwhile.
    again: bool,
    /// Where the search continues.
    after: Place,
    mailbox: VecDeque<(Place, Done)>,
    /// Shards that are being opened.
    marks: Vec<Weak<OpeningMark>>,
    /// Nothing takes results from the mailbox any more.
    has_ended: bool,
}

impl Orphans {
    /// Sets the pipeline to wake.
    pub(super) fn wake(&self, pipeline: Weak<Pipeline>) {
        let _ = self.pipeline.set(pipeline);
    }

    /// Opens a shard that the process wants for itself. `None` if that takes longer than `most`: the opening continues,
    /// and the shard is an orphan from then on. The outer error: no thread could be started.
    pub(super) fn open_in_time(
        self: &Arc<Self>,
        disk: &Disk,
        options: QueueOptions,
        claim: Claim,
        now: WallNanos,
        most: Duration,
    ) -> io::Result<Option<Done>> {
        let place = Place { project: OWN_PROJECT, number: Some(claim.number()) };
        self.start(disk, now, place, Job::Open(Box::new(options), claim), false)?;
        let is_done = |state: &State| state.mailbox.iter().position(|(at, _)| *at == place);
        let waiting = |state: &mut State| is_done(state).is_none();
        let (mut state, _) =
            self.done.wait_timeout_while(lock(&self.state), most, waiting).unwrap_or_else(PoisonError::into_inner);
        let done = is_done(&state).and_then(|at| state.mailbox.remove(at));
        Ok(done.map(|(_, done)| done))
    }

    /// Begins a step of the search, whose result will be in the mailbox. Called by the committer only.
    pub(super) fn begin(self: &Arc<Self>, pipeline: &Pipeline, place: Place, job: Job) {
        {
            let mut state = lock(&self.state);
            state.is_busy = true;
            state.after = place;
        }
        let options = &pipeline.options;
        if let Err(source) = self.start(&options.disk, options.clock.wall_nanos(), place, job, true) {
            // The job, and the claim in it, was dropped with the thread.
            self.finish(place, Err(QueueError::Io { path: "(a thread)".into(), source }), true);
        }
    }

    /// Whether no step can begin: one is being carried out, and another search is requested to follow it; or adoption
    /// has ended.
    pub(super) fn is_busy(&self) -> bool {
        let mut state = lock(&self.state);
        state.again |= state.is_busy;
        state.is_busy || state.has_ended
    }

    /// Takes a result from the mailbox.
    pub(super) fn take_done(&self) -> Option<(Place, Done)> {
        lock(&self.state).mailbox.pop_front()
    }

    /// Where the search continues, and whether another one was requested since it began there.
    pub(super) fn resume(&self) -> (Place, bool) {
        let mut state = lock(&self.state);
        (std::mem::take(&mut state.after), std::mem::take(&mut state.again))
    }

    /// Requests another search after this one.
    pub(super) fn look_again(&self) {
        lock(&self.state).again = true;
    }

    /// Ends the adoption of orphans. Shards that are open, or will be, are released.
    pub(super) fn end(&self) {
        let (mailbox, marks) = {
            let mut state = lock(&self.state);
            state.has_ended = true;
            (std::mem::take(&mut state.mailbox), std::mem::take(&mut state.marks))
        };
        marks.iter().filter_map(Weak::upgrade).for_each(|mark| mark.give_up());
        mailbox.into_iter().for_each(|(_, done)| release(done));
    }

    /// Whether a step of the search is being carried out.
    #[cfg(test)]
    pub(super) fn is_at_work(&self) -> bool {
        lock(&self.state).is_busy
    }

    /// Whether adoption has ended, or no step is being carried out and the mailbox is empty.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        state.has_ended || !state.is_busy && state.mailbox.is_empty()
    }

    fn start(self: &Arc<Self>, disk: &Disk, now: WallNanos, place: Place, job: Job, is_search: bool) -> io::Result<()> {
        let (orphans, disk) = (Arc::clone(self), disk.clone());
        threads::spawn("posthog-orphan", move || {
            let done = catch_unwind(AssertUnwindSafe(|| orphans.work(&disk, now, job)));
            let panicked = |_| Err(panicked(&place));
            orphans.finish(place, done.unwrap_or_else(panicked), is_search);
        })
    }

    fn work(&self, disk: &Disk, now: WallNanos, job: Job) -> Done {
        match job {
            Job::Open(options, claim) => {
                let mark = OpeningMark::of(disk, claim.dir()).map(Arc::new);
                if let Some(mark) = &mark {
                    let _ = observe_exit(Arc::downgrade(mark) as Weak<dyn ExitObserver>);
                    let mut state = lock(&self.state);
                    state.marks.retain(|mark| mark.strong_count() > 0);
                    state.marks.push(Arc::downgrade(mark));
                }
                Queue::open(disk, &options, claim, now).map(Some)
            }
            Job::FreeSpace(shard) => shard.close_and_free_space(disk).map(|()| None),
        }
    }

    fn finish(&self, place: Place, done: Done, is_search: bool) {
        let mut state = lock(&self.state);
        if is_search {
            state.is_busy = false;
        }
        if state.has_ended {
            drop(state);
            return release(done);
        }
        state.mailbox.push_back((place, done));
        drop(state);
        self.done.notify_all();
        // A pipeline that is still being started looks into the mailbox afterwards.
        if let Some(pipeline) = self.pipeline.get().and_then(Weak::upgrade) {
            pipeline.mailbox.send(|commands| commands.adopt = true);
        }
    }
}

fn release(done: Done) {
    if let Ok(Some(opened)) = done {
        opened.queue.close();
    }
}

fn panicked(place: &Place) -> QueueError {
    let path = format!("shard-{}", place.number.unwrap_or(0)).into();
    QueueError::Io { path, source: io::Error::other("opening or compacting it panicked, please report this") }
}

impl ExitObserver for OpeningMark {
    fn on_exit(&self, _status: Option<i32>) {
        self.give_up();
    }
}
