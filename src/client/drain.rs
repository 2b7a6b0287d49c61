//! SIGTERM and SIGINT: delivering what is queued before the process ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::global::client;
use crate::crash::termination::{self, Caught, TERMINATION_SIGNALS, Watch};
use crate::error::Error;
use crate::pipeline::spawn_apart;
use crate::sys::limits::{DRAIN_DEADLINE, DRAIN_DEADLINE_DEFAULT};

/// Time for storing and releasing the queue, after the deadline.
const STORING: Duration = Duration::from_secs(1);

/// What ends the process after [`drain_on_terminate`] has drained the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterDrain {
    /// The library does: the process dies of the signal, as it would have without a handler (status 143 in a shell for
    /// SIGTERM). A second signal kills it at once. As the first process of a container, which a signal does not kill by
    /// default, it exits with that status.
    ReRaise,
    /// The application does. The signal only causes a flush; the client stays open.
    App,
}

/// Options of [`drain_on_terminate`].
///
/// ```
/// use std::time::Duration;
/// use posthog::termination::{AfterDrain, DrainOptions};
///
/// let options = DrainOptions::new().deadline(Duration::from_secs(5)).exit(AfterDrain::App);
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
#[must_use = "options do nothing by themselves: give them to `drain_on_terminate`"]
pub struct DrainOptions {
    deadline: Duration,
    exit: Option<AfterDrain>,
    signals: Vec<i32>,
}

impl DrainOptions {
    /// SIGTERM and SIGINT, three seconds, and [`AfterDrain`] by the disposition that each signal has.
    pub fn new() -> Self {
        Self { deadline: DRAIN_DEADLINE_DEFAULT, exit: None, signals: vec![15, 2] }
    }

    /// How long delivery may take. Default: 3 s, at most 10 minutes. Platforms send SIGKILL after SIGTERM: some after 5
    /// s, others after 10 s (`docker stop`, Cloud Run), 30 s (Kubernetes) or 90 s (systemd). Stay a second below that,
    /// for storing.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// What ends the process. Default, for each signal: [`AfterDrain::ReRaise`] if the signal has its default
    /// disposition when [`drain_on_terminate`] is called, [`AfterDrain::App`] if it has a handler. Set
    /// [`AfterDrain::App`] if the application installs its handler later: otherwise the process dies while that handler
    /// runs.
    pub fn exit(mut self, exit: AfterDrain) -> Self {
        self.exit = Some(exit);
        self
    }

    /// The signals, by number: SIGHUP (1), SIGINT (2), SIGQUIT (3) or SIGTERM (15). Default: SIGTERM and SIGINT. A
    /// signal that is ignored when [`drain_on_terminate`] is called (SIGINT under `nohup` or behind `&`) stays ignored.
    pub fn signals(mut self, signals: impl IntoIterator<Item = i32>) -> Self {
        self.signals = signals.into_iter().collect();
        self
    }

    fn check(&self) -> Result<(), Error> {
        if !DRAIN_DEADLINE.contains(&self.deadline) {
            let why = format!("must be at most {:?}; it is {:?}", DRAIN_DEADLINE.end(), self.deadline);
            return Err(Error::config("deadline", why));
        }
        match self.signals.iter().find(|signal| !TERMINATION_SIGNALS.contains(signal)) {
            Some(other) => {
                Err(Error::config("signals", format!("must be among {TERMINATION_SIGNALS:?}; {other} is not")))
            }
            None if self.signals.is_empty() => Err(Error::config("signals", "must name at least one")),
            None => Ok(()),
        }
    }
}

impl Default for DrainOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Delivers what is queued in the process-wide client at SIGTERM and SIGINT, before the process ends. **By default the
/// process then dies of the signal. A server that ends by itself on a signal (axum's graceful shutdown, hyper, actix)
/// must not use the default: requests would be cut off. See [below](#with-axum-and-other-servers).**
///
/// This is for freshness, and for disks that are lost with the container: on a lasting disk, queued events are safe
/// without it.
///
/// ```no_run
/// use posthog::Config;
/// use posthog::termination::DrainOptions;
///
/// posthog::init(Config::from_env())?;
/// posthog::drain_on_terminate(DrainOptions::new())?;
/// # Ok::<(), posthog::Error>(())
/// ```
///
/// On the first signal, a thread of its own calls [`shutdown`](crate::Client::shutdown) with the deadline; then the
/// process dies of the signal, after at most the deadline and a second. A second signal kills it at once. Where the
/// application has a handler of its own ([`AfterDrain::App`]), the thread calls [`flush`](crate::Client::flush) instead
/// and the client stays open for what the application captures while it ends; the application should call
/// [`close`](crate::Client::close) at the end.
///
/// # With axum and other servers
///
/// A server that waits for the signal itself does not need this function: let it end, and deliver then.
///
/// ```no_run
/// use tokio::signal::unix::{SignalKind, signal};
///
/// async fn terminated() {
///     if let Ok(mut terminate) = signal(SignalKind::terminate()) {
///         terminate.recv().await;
///     }
/// }
///
/// # async fn serve() {
/// // axum::serve(listener, app).with_graceful_shutdown(terminated()).await?;
/// # terminated().await;
/// let report = posthog::close().await; // after the last request was served
/// eprintln!("{} events left on disk", report.remaining);
/// # }
/// ```
///
/// To deliver while the last requests are being served as well, leave the end of the process to the server:
///
/// ```no_run
/// use posthog::termination::{AfterDrain, DrainOptions};
///
/// # fn main() -> Result<(), posthog::Error> {
/// posthog::drain_on_terminate(DrainOptions::new().exit(AfterDrain::App))?;
/// # Ok(())
/// # }
/// ```
///
/// Without that option, the process dies as soon as the queue is drained, which usually takes less time than the
/// requests: tokio installs its handler when `signal` is first polled, which is after this call, so the signal still has
/// its default disposition here, and nothing shows later that somebody waits for it. That is why no default is right
/// for both kinds of program.
///
/// # Signals
///
/// The signal handler only does an atomic exchange and posts a semaphore. Signals are received through `signal-hook`,
/// as in tokio: all handlers that use it receive each signal. A handler that is installed *later* with plain
/// `sigaction` (the crate `ctrlc` does that) replaces this one, and nothing is drained.
///
/// The client is looked up when the signal arrives, so this may be called before [`init`](crate::init); without a
/// client the process dies at once. It covers this process only. A child that is forked later dies of a first signal at
/// once (unless the signal had a handler before), even if the child has a handler of its own that uses `signal-hook`.
/// To drain a child, call this in the child; in a daemon, call it after forking into the background.
///
/// # Errors
///
/// [`Error::Config`] for an invalid deadline or signal; [`Error::AlreadyInstalled`] if it was called before in this
/// process (the first call stays in effect); [`Error::Resources`] if the system cannot start a thread. After an error,
/// signals do what they did before.
pub fn drain_on_terminate(options: DrainOptions) -> Result<(), Error> {
    options.check()?;
    let watch = Watch::claim().ok_or(Error::AlreadyInstalled("drain_on_terminate"))?;
    let is_fatal = options.exit.map(|exit| exit == AfterDrain::ReRaise);
    let started = watch
        .register(&options.signals, is_fatal)
        .and_then(|()| spawn_apart("posthog-drain", move || serve(options.deadline)));
    match started {
        Ok(()) => {
            watch.listen();
            Ok(())
        }
        Err(error) => {
            watch.give_up();
            Err(Error::Resources(error))
        }
    }
}

fn serve(deadline: Duration) {
    loop {
        let caught = termination::wait();
        // Caught, so that a panic here does not keep the process alive after the signal.
        let _ = catch_unwind(AssertUnwindSafe(|| drain(caught, deadline)));
        if caught.is_fatal {
            termination::die_of(caught.signal);
        }
        termination::served();
    }
}

fn drain(caught: Caught, deadline: Duration) {
    let Some(client) = client() else { return };
    if caught.is_fatal {
        client.mark_dying_of(caught.signal);
        let _ = client.shutdown(deadline).wait(deadline.saturating_add(STORING));
    } else {
        let _ = client.flush().wait(deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_cannot_be_are_errors_that_name_them() {
        let refused = |options: DrainOptions| match options.check() {
            Err(Error::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(DrainOptions::new().deadline(Duration::MAX)), "deadline");
        assert_eq!(refused(DrainOptions::new().signals([9])), "signals");
        assert_eq!(refused(DrainOptions::new().signals([11])), "signals");
        assert_eq!(refused(DrainOptions::new().signals([])), "signals");
        assert!(DrainOptions::default().signals([1, 2, 3, 15]).deadline(Duration::ZERO).check().is_ok());
    }
}
