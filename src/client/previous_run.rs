//! Reports to the program how its previous run ended, and captures that as an event if configured.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use super::{Client, Shared};
use crate::crash::exit::ExitCause;
use crate::event::{Event, uuids};
use crate::pipeline::LastRun;

const NAME: &str = "previous_run_ended";

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
}

impl Client {
    /// How the previous run ended, see [`PreviousRun`] and [`ExitCause`]. `None` for the first run of a queue, if an
    /// older version of this library used it before, for a queue in memory, and for a disabled client. In a forked
    /// child it is the previous run of the child's own queue, once it has one.
    ///
    /// ```no_run
    /// use posthog::{Client, Config};
    /// use posthog::crashes::ExitCause;
    ///
    /// let client = Client::new(Config::from_env())?;
    /// if let Some(run) = client.previous_run()
    ///     && !matches!(run.cause, ExitCause::Clean | ExitCause::Exited { status: Some(0) })
    /// {
    ///     eprintln!("the last run ({}): {}; {} events were queued", run.pid, run.cause, run.queued_events);
    /// }
    /// # Ok::<(), posthog::Error>(())
    /// ```
    pub fn previous_run(&self) -> Option<PreviousRun> {
        let (pipeline, _) = self.pipelines()?;
        pipeline.last_run().map(PreviousRun::from)
    }

    /// Records that the process was asked to terminate by that signal and is about to die of it.
    pub(super) fn mark_dying_of(&self, signal: i32) {
        if let Some((pipeline, _)) = self.pipelines() {
            pipeline.mark_dying_of(signal);
        }
    }
}

impl Shared {
    /// Captures the event, if it is configured and there was a previous run.
    pub(super) fn report_previous_run(&self) {
        let Some(pipeline) = self.pipeline.as_ref().filter(|_| self.settings.report_previous_run) else { return };
        let Some(run) = pipeline.last_run() else { return };
        if !self.rules.is_opted_out() {
            let own_id = uuids::next(pipeline.options().clock.wall_nanos(), pipeline.generation());
            let _ = self.capture(pipeline, event_of(run, &own_id.to_string()));
        }
    }
}

fn event_of(run: &LastRun, own_id: &str) -> Event {
    let mut event = Event::new(NAME, own_id)
        .prop("cause", run.end.name())
        .prop("pid", run.pid)
        .prop("uptime_seconds", run.alive_for.as_secs_f64())
        .prop("queued_events", run.queued_events);
    // Not the person of the current context, in case the client is created while a request is served.
    event.attribute_to_nobody(own_id);
    if let Ok(at) = Timestamp::from_nanosecond(run.started_at.into()) {
        event.set("started_at", at.to_string());
    }
    if let Some(restarted) = run.machine_restarted {
        event.set("machine_restarted", restarted);
    }
    match run.end {
        ExitCause::Signal(signal) => event.prop("signal", signal),
        ExitCause::Exited { status: Some(status) } => event.prop("exit_status", status),
        _ => event,
    }
}

impl From<&LastRun> for PreviousRun {
    fn from(run: &LastRun) -> Self {
        let since_epoch = Duration::from_nanos(run.started_at.unsigned_abs());
        let started_at = match run.started_at {
            0.. => UNIX_EPOCH.checked_add(since_epoch),
            _ => UNIX_EPOCH.checked_sub(since_epoch),
        };
        Self {
            cause: run.end,
            pid: run.pid,
            started_at: started_at.unwrap_or(UNIX_EPOCH),
            alive_for: run.alive_for,
            queued_events: run.queued_events,
            machine_restarted: run.machine_restarted,
        }
    }
}
