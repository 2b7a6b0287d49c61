//! How the run before this one ended: for the program, and as an event for those who want one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use super::{Client, Shared};
use crate::crash::cause::ExitCause;
use crate::event::{Event, uuids};
use crate::pipeline::LastRun;

const NAME: &str = "previous_run_ended";

/// The run that had this client's queue before, as far as it left traces: from the making of a client to the end of that, or of its
/// process. Where several processes share a directory, it is that of any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreviousRun {
    /// How it ended.
    pub end: ExitCause,
    /// Its process. The number may be somebody else's by now; where a program opens its queue again, it is its own.
    pub pid: u32,
    /// When it made its client, by the wall clock of that time.
    pub started_at: SystemTime,
    /// From then to its last sign of life, by the monotonic clock. Signs are given when something was captured or sent, so a run that was
    /// idle in the end may have lived longer.
    pub alive_for: Duration,
    /// Events that were found queued, to be sent by this client.
    pub queued_events: u64,
    /// Whether the machine was started anew since; `None` where the system does not tell.
    pub machine_restarted: Option<bool>,
}

impl Client {
    /// How the run before this one ended: see [`PreviousRun`] and [`ExitCause`]. `None` for the first run of a queue, after one of a version
    /// that left no traces, for a queue in memory, and for a disabled client. In a forked child it is that of the child's own queue, once it has one.
    ///
    /// ```no_run
    /// use posthog::{Client, Config, ExitCause};
    ///
    /// let client = Client::new(Config::from_env())?;
    /// if let Some(run) = client.previous_run()
    ///     && !matches!(run.end, ExitCause::Clean | ExitCause::Exited { status: Some(0) })
    /// {
    ///     eprintln!("the last run ({}): {}; {} events were queued", run.pid, run.end, run.queued_events);
    /// }
    /// # Ok::<(), posthog::Error>(())
    /// ```
    pub fn previous_run(&self) -> Option<PreviousRun> {
        let (pipeline, _) = self.pipelines()?;
        pipeline.last_run().map(PreviousRun::from)
    }

    /// The process was asked to end by that signal, and is going to die of it.
    pub(super) fn mark_dying_of(&self, signal: i32) {
        if let Some((pipeline, _)) = self.pipelines() {
            pipeline.mark_dying_of(signal);
        }
    }
}

impl Shared {
    /// Captures the event, if it is wanted and there was a run.
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
    // Not by whoever is served at the moment, should the client be made in the middle of a request.
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
            end: run.end,
            pid: run.pid,
            started_at: started_at.unwrap_or(UNIX_EPOCH),
            alive_for: run.alive_for,
            queued_events: run.queued_events,
            machine_restarted: run.machine_restarted,
        }
    }
}
