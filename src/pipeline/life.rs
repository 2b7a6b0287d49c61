//! The run before this one, and what this one leaves for the next to judge by.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use nix::libc::SIGTERM;

use super::{Pipeline, WorkerOptions, lock};
use crate::crash::exit::{Evidence, ExitCause, ExitObserver, FatalRecord, exit_cause, observe_exit};
use crate::crash::termination;
use crate::queue::{Heartbeat, Predecessor, Queue};
use crate::sys::clock::WallNanos;
use crate::sys::disk::OomCount;

/// The OOM counter is a file of the kernel's: read no more often than that.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// The last run that had our shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LastRun {
    pub(crate) end: ExitCause,
    pub(crate) pid: u32,
    pub(crate) started_at: WallNanos,
    /// From its start to its last sign of life.
    pub(crate) alive_for: Duration,
    /// Events that were found queued.
    pub(crate) queued_events: u64,
    /// `None` if the system does not tell.
    pub(crate) machine_restarted: Option<bool>,
}

impl LastRun {
    /// What the page says, and what its crash files said. `None` if there was no run that left a word.
    pub(super) fn of(
        options: &WorkerOptions,
        before: &Predecessor,
        fatal: Option<FatalRecord>,
        queued_events: u64,
    ) -> Option<Self> {
        let life = before.run?;
        let same_boot = life.same_boot;
        let up_since = |up: Duration| options.clock.wall_nanos().checked_sub(i64::try_from(up.as_nanos()).ok()?);
        let evidence = Evidence {
            fatal,
            closed: life.closed,
            exit: life.exit,
            watched_exit: life.heartbeat.watches_exit,
            dying_of: life.dying_of,
            watched_termination: life.heartbeat.watches_termination,
            same_boot,
            seen_at: life.heartbeat.at,
            booted_at: options.disk.uptime().filter(|_| same_boot == Some(false)).and_then(up_since),
            oom: (life.heartbeat.oom, options.disk.oom_count()),
        };
        Some(Self {
            end: exit_cause(&evidence),
            pid: life.pid,
            started_at: life.started_at,
            alive_for: life.heartbeat.alive_for,
            queued_events,
            machine_restarted: same_boot.map(|same| !same),
        })
    }
}

/// Of this run, and of the one before.
#[derive(Debug)]
pub(super) struct Life {
    began: Instant,
    watches_exit: bool,
    oom: Mutex<Option<(Instant, Option<OomCount>)>>,
    last: Option<LastRun>,
}

impl Life {
    /// Begins with a first sign, so that a run that ends at once is judged by what it was.
    pub(super) fn begin(options: &WorkerOptions, shard: &Arc<Queue>, last: Option<LastRun>) -> Self {
        let mark: Weak<Queue> = Arc::downgrade(shard);
        let watches_exit = !shard.is_volatile() && observe_exit(mark);
        let life = Self { began: options.clock.now(), watches_exit, oom: Mutex::new(None), last };
        shard.note_heartbeat(&life.heartbeat(options));
        shard.publish();
        life
    }

    fn heartbeat(&self, options: &WorkerOptions) -> Heartbeat {
        let now = options.clock.now();
        let oom = {
            let mut counted = lock(&self.oom);
            let fresh = counted.filter(|(at, _)| now.saturating_duration_since(*at) < COUNT_EVERY);
            let (at, oom) = fresh.unwrap_or_else(|| (now, options.disk.oom_count()));
            *counted = Some((at, oom));
            oom
        };
        Heartbeat {
            at: options.clock.wall_nanos(),
            alive_for: now.saturating_duration_since(self.began),
            watches_exit: self.watches_exit,
            watches_termination: termination::is_caught(SIGTERM),
            oom,
        }
    }
}

impl Pipeline {
    /// Leaves a sign of life. For a committer that is awake and has something to do: an idle client writes nothing.
    pub(super) fn give_sign(&self) {
        if !self.shard.is_volatile() {
            self.shard.note_heartbeat(&self.life.heartbeat(&self.options));
        }
    }

    /// The run before this one.
    pub(crate) fn last_run(&self) -> Option<&LastRun> {
        self.life.last.as_ref()
    }

    /// The process was asked to end by that signal, and is going to die of it.
    pub(crate) fn mark_dying_of(&self, signal: i32) {
        self.shard.mark_dying_of(signal);
    }
}

impl ExitObserver for Queue {
    fn on_exit(&self, status: Option<i32>) {
        self.mark_exit(status);
    }
}
