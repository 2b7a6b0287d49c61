//! The previous run of the program, and what this run leaves so that the next one can tell how it ended.
//!
//! A run is one owner of a shard. The committer records signs of life on the status page while it has work to do, and
//! the exit of the process is recorded by a mark at `exit`. The next owner judges from these, and from the crash
//! reports, how the run ended ([`PreviousRun`]). Crash reports of an orphan's owner are moved to this shard, whose client
//! reports them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime};

use nix::libc::SIGTERM;

use super::options::PipelineOptions;
use super::shared::{Pipeline, lock};
use crate::crash::exit::{ExitCause, ExitObserver, exit_cause, observe_exit};
use crate::crash::termination;
use crate::crash::{self, Breadcrumb};
use crate::queue::{Heartbeat, Predecessor, Queue};
use crate::report::Diagnostic;
use crate::sys::clock::system_time;
use crate::sys::disk::OomCount;

/// Minimum time between two reads of the kernel's OOM counter.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// The previous run that used this client's queue, according to the evidence it left. A run lasts from the creation of
/// a client until that client or its process ends. If several processes share a directory, the previous run may have
/// been one of any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreviousRun {
    /// How the run ended.
    pub cause: ExitCause,
    /// The pid of the run's process. Another process may have it by now. It is the pid of this very process if the
    /// previous run was an earlier client of this process.
    pub pid: u32,
    /// When the client was created, by the wall clock at that time.
    pub started_at: SystemTime,
    /// Time from then to the last sign of life, by the monotonic clock. A run gives a sign when it captures or sends
    /// something, so a run that was idle at its end may have lived longer.
    pub alive_for: Duration,
    /// Events that were in the queue, which this client sends.
    pub queued_events: u64,
    /// Whether the machine has booted since; `None` where the system does not provide it.
    pub machine_restarted: Option<bool>,
    /// The last breadcrumbs of the run, oldest first, at most 30: see [`Client::breadcrumb`](crate::Client::breadcrumb).
    /// Empty if the run had no process-wide client, if its queue was on a file system that the library does not map,
    /// or if the machine stopped before they reached the disk.
    pub breadcrumbs: Vec<Breadcrumb>,
}

impl PreviousRun {
    /// Judges by the status page and by `fatal`, what its crash report says. `None` if no run has left a sign.
    pub(super) fn of(
        options: &PipelineOptions,
        before: &Predecessor,
        fatal: Option<ExitCause>,
        queued_events: u64,
        breadcrumbs: Vec<Breadcrumb>,
    ) -> Option<Self> {
        let life = before.run?;
        let same_boot = life.same_boot;
        let up_since = |up: Duration| options.clock.wall_nanos().checked_sub(i64::try_from(up.as_nanos()).ok()?);
        let booted_at = options.disk.uptime().filter(|_| same_boot == Some(false)).and_then(up_since);
        Some(Self {
            cause: exit_cause(&life, fatal, booted_at, options.disk.oom_count()),
            pid: life.pid,
            started_at: system_time(life.started_at),
            alive_for: life.heartbeat.alive_for,
            queued_events,
            machine_restarted: same_boot.map(|same| !same),
            breadcrumbs,
        })
    }
}

/// This run and the one before it.
#[derive(Debug)]
pub(super) struct Life {
    began: Instant,
    watches_exit: bool,
    oom: Mutex<Option<(Instant, Option<OomCount>)>>,
    last: Option<PreviousRun>,
}

impl Life {
    /// Begins a run with a first sign of life, so that a run that ends at once can be judged too.
    pub(super) fn begin(options: &PipelineOptions, shard: &Arc<Queue>, last: Option<PreviousRun>) -> Self {
        let mark: Weak<Queue> = Arc::downgrade(shard);
        let watches_exit = !shard.is_volatile() && observe_exit(mark);
        let life = Self { began: options.clock.now(), watches_exit, oom: Mutex::new(None), last };
        shard.note_heartbeat(&life.heartbeat(options));
        shard.publish();
        life
    }

    fn heartbeat(&self, options: &PipelineOptions) -> Heartbeat {
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
    /// Records a sign of life. Called when the committer is awake for other work: an idle client writes nothing.
    pub(super) fn record_sign_of_life(&self) {
        if !self.shard.is_volatile() {
            self.shard.note_heartbeat(&self.life.heartbeat(&self.options));
        }
    }

    /// The run before this one.
    pub(crate) fn last_run(&self) -> Option<&PreviousRun> {
        self.life.last.as_ref()
    }

    /// Records that the process received this signal and is about to die of it.
    pub(crate) fn mark_dying_of(&self, signal: i32) {
        self.shard.mark_dying_of(signal);
    }
}

impl ExitObserver for Queue {
    fn on_exit(&self, status: Option<i32>) {
        self.mark_exit(status);
    }
}

impl Pipeline {
    /// The directory of crash reports; `None` if the queue is in memory.
    pub(crate) fn crash_dir(&self) -> Option<PathBuf> {
        (!self.shard.is_volatile()).then(|| self.shard.dir().join(crash::DIR))
    }

    /// Keeps the breadcrumbs of this process in a file of the shard from now on, where the next owner finds them. Where
    /// the library does not map files they stay in memory.
    pub(crate) fn keep_breadcrumbs(&self) -> io::Result<()> {
        let (name, bytes) = (crash::BREADCRUMBS_FILE, crash::BREADCRUMBS_BYTES);
        if let Some(page) = self.shard.open_owner_page(&self.options.disk, name, bytes)? {
            crash::keep_breadcrumbs_in(page, self.shard.started_at());
        }
        Ok(())
    }

    /// Sets the callback for crash reports that were moved here from an orphan.
    pub(crate) fn on_reports_adopted(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.reports_adopted.set(Box::new(call));
    }

    /// Moves the crash reports of an orphan to this shard's directory, so that this client reports them.
    pub(super) fn adopt_crash_reports(&self, from: &Path) {
        let Some(to) = self.crash_dir() else { return };
        match crash::adopt_reports(&self.options.disk, from, &to) {
            Ok(false) => {}
            Ok(true) => {
                if let Some(found) = self.reports_adopted.get() {
                    found();
                }
            }
            Err(error) => {
                let why = format!("its crash reports cannot be moved to this queue ({error}); they are left there");
                (self.options.report)(Diagnostic::QueueSkipped { path: from.to_path_buf(), why });
            }
        }
    }
}
