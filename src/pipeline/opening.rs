//! Shards that are opened, and whose room is given back, on threads of their own.
//!
//! Both may take minutes where a large file is checked, rebuilt or compacted on a slow disk. So a shard that is to be our own is given
//! some seconds at the start: if it is not open by then, another one is taken, and the first is delivered as an orphan once it is open.
//! Later the orphans are opened here, one at a time. What is done waits in a mailbox for the committer.
//!
//! A process that ends in good order meanwhile has not died of what it was opening, and takes back the mark that would say so.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use super::adoption::{OWN_PROJECT, Place};
use super::{Pipeline, lock, threads};
use crate::crash::exit::{ExitObserver, observe_exit};
use crate::queue::{Claim, Opened, OpeningMark, Queue, QueueError, QueueOptions};
use crate::sys::clock::WallNanos;
use crate::sys::disk::Disk;

/// One step, which may take long.
#[derive(Debug)]
pub(super) enum Job {
    /// Opens a shard that was claimed.
    Open(Box<QueueOptions>, Claim),
    /// Lets go of a shard that is empty, and gives back the room that it takes.
    GiveBackRoom(Arc<Queue>),
}

/// What came of it: a shard, if one was opened.
pub(super) type Done = Result<Option<Opened>, QueueError>;

/// What the committer and these threads share. It is there before the pipeline is.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    state: Mutex<State>,
    done: Condvar,
    /// Whom to wake.
    pipeline: OnceLock<Weak<Pipeline>>,
}

#[derive(Debug, Default)]
struct State {
    /// A step of the search is under way.
    is_busy: bool,
    /// The search was asked for again meanwhile.
    again: bool,
    /// Where it goes on.
    after: Place,
    mailbox: VecDeque<(Place, Done)>,
    /// Shards that are being opened.
    marks: Vec<Weak<OpeningMark>>,
    /// Nobody looks into the mailbox any more.
    has_ended: bool,
}

impl Orphans {
    /// Who is woken from now on.
    pub(super) fn wake(&self, pipeline: Weak<Pipeline>) {
        let _ = self.pipeline.set(pipeline);
    }

    /// Opens a shard that is to be our own. `None` if that takes longer than `most`: it is an orphan from then on, whose opening goes on.
    /// The outer error says that there is no thread.
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

    /// Begins a step of the search; what comes of it will lie in the mailbox. From the committer alone.
    pub(super) fn begin(self: &Arc<Self>, pipeline: &Pipeline, place: Place, job: Job) {
        {
            let mut state = lock(&self.state);
            state.is_busy = true;
            state.after = place;
        }
        let options = &pipeline.options;
        if let Err(source) = self.start(&options.disk, options.clock.wall_nanos(), place, job, true) {
            // What the job was about was let go with it.
            self.finish(place, Err(QueueError::Io { path: "(a thread)".into(), source }), true);
        }
    }

    /// Whether a step of the search is under way: then what is asked for now is looked at after it.
    pub(super) fn is_busy(&self) -> bool {
        let mut state = lock(&self.state);
        state.again |= state.is_busy;
        state.is_busy || state.has_ended
    }

    /// Takes what is done out of the mailbox.
    pub(super) fn take_done(&self) -> Option<(Place, Done)> {
        lock(&self.state).mailbox.pop_front()
    }

    /// Where the search goes on, and whether it was asked for again since it began there.
    pub(super) fn resume(&self) -> (Place, bool) {
        let mut state = lock(&self.state);
        (std::mem::take(&mut state.after), std::mem::take(&mut state.again))
    }

    /// The search begins again when it comes to its end.
    pub(super) fn look_again(&self) {
        lock(&self.state).again = true;
    }

    /// Nothing more is adopted. What is open is let go, and so is what will be.
    pub(super) fn end(&self) {
        let (mailbox, marks) = {
            let mut state = lock(&self.state);
            state.has_ended = true;
            (std::mem::take(&mut state.mailbox), std::mem::take(&mut state.marks))
        };
        marks.iter().filter_map(Weak::upgrade).for_each(|mark| mark.give_up());
        mailbox.into_iter().for_each(|(_, done)| let_go(done));
    }

    /// Whether a step of the search is under way.
    #[cfg(test)]
    pub(super) fn is_at_work(&self) -> bool {
        lock(&self.state).is_busy
    }

    /// Whether no step is under way, and nothing is in the mailbox.
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
            Job::GiveBackRoom(shard) => shard.close_and_free_space(disk).map(|()| None),
        }
    }

    fn finish(&self, place: Place, done: Done, is_search: bool) {
        let mut state = lock(&self.state);
        if is_search {
            state.is_busy = false;
        }
        if state.has_ended {
            drop(state);
            return let_go(done);
        }
        state.mailbox.push_back((place, done));
        drop(state);
        self.done.notify_all();
        // As long as there is none it is starting, and looks into the mailbox afterwards.
        if let Some(pipeline) = self.pipeline.get().and_then(Weak::upgrade) {
            pipeline.mailbox.ring(|wanted| wanted.adopt = true);
        }
    }
}

fn let_go(done: Done) {
    if let Ok(Some(opened)) = done {
        opened.shard.close();
    }
}

fn panicked(place: &Place) -> QueueError {
    let path = format!("shard-{}", place.number.unwrap_or(0)).into();
    QueueError::Io { path, source: io::Error::other("opening it panicked, please report this") }
}

impl ExitObserver for OpeningMark {
    fn on_exit(&self, _status: Option<i32>) {
        self.give_up();
    }
}
