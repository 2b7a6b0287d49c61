//! Reports to the program how its previous run ended, and captures that as an event if configured.

use jiff::Timestamp;

use super::crash_reports::steps;
use super::{Client, Shared};
use crate::crash::exit::ExitCause;
use crate::event::{Event, uuids};
use crate::pipeline::PreviousRun;

const NAME: &str = "previous_run_ended";

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
        self.pipeline()?.last_run().cloned()
    }

    /// Records that the process was asked to terminate by that signal and is about to die of it.
    pub(super) fn mark_dying_of(&self, signal: i32) {
        if let Some(pipeline) = self.pipeline() {
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

fn event_of(run: &PreviousRun, own_id: &str) -> Event {
    let mut event = Event::new(NAME, own_id)
        .prop("cause", run.cause.name())
        .prop("pid", run.pid)
        .prop("uptime_seconds", run.alive_for.as_secs_f64())
        .prop("queued_events", run.queued_events);
    // Not the person of the current context, in case the client is created while a request is served.
    event.attribute_to_nobody(own_id);
    let is_clean = matches!(run.cause, ExitCause::Clean | ExitCause::Exited { status: Some(0) });
    if !is_clean && !run.breadcrumbs.is_empty() {
        event.set_prop("$exception_steps", steps(&run.breadcrumbs));
    }
    if let Ok(at) = Timestamp::try_from(run.started_at) {
        event.set_prop("started_at", at.to_string());
    }
    if let Some(restarted) = run.machine_restarted {
        event.set_prop("machine_restarted", restarted);
    }
    match run.cause {
        ExitCause::Signal(signal) => event.prop("signal", signal),
        ExitCause::Exited { status: Some(status) } => event.prop("exit_status", status),
        _ => event,
    }
}

#[cfg(test)]
mod tests {
    use crate::recorder::captured_log::lines_of;
    use crate::{Client, Config};

    #[test]
    fn the_line_of_a_start_counts_what_earlier_runs_left() {
        let dir = tempfile::tempdir().unwrap();
        let config = || Config::new("phc_1").host("http://127.0.0.1:9").queue_dir(dir.path()).min_free_space(0);
        drop(Client::new(config()).unwrap());
        let lines = lines_of(|| {
            let client = Client::new(config().report_previous_run(true)).unwrap();
            assert!(client.previous_run().is_some() && client.stats().accepted == 1);
        });
        assert!(lines.first().is_some_and(|line| line.contains("; 0 events of earlier runs in ")), "{lines:?}");
    }
}
