//! SIGTERM and SIGINT: what is queued is sent before the process ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::global::client;
use crate::crash::termination::{self, Caught, TERMINATION_SIGNALS, Watch};
use crate::error::Error;
use crate::pipeline::spawn_apart;
use crate::sys::limits::{DRAIN_DEADLINE, DRAIN_DEADLINE_DEFAULT};

/// Storing and letting the queue go come on top of the deadline.
const STORING: Duration = Duration::from_secs(1);

/// What ends the process after [`drain_on_terminate`] has done its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AfterDrain {
    /// We do: the process dies of the signal, as it would have without us (143 in a shell for SIGTERM). A second signal kills at once.
    /// As the first process of a container, which no signal kills by default, it exits with that number.
    ReRaise,
    /// The application does, when and as it likes. The signal is only a reason to send what is queued; the client goes on.
    App,
}

/// How [`drain_on_terminate`] works.
///
/// ```
/// use std::time::Duration;
/// use posthog::{DrainOptions, AfterDrain};
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
    /// SIGTERM and SIGINT, three seconds, and the exit left to whom the signal belonged before.
    pub fn new() -> Self {
        Self { deadline: DRAIN_DEADLINE_DEFAULT, exit: None, signals: vec![15, 2] }
    }

    /// How long sending may take. Default: 3 s, at most 10 minutes. Platforms that send SIGKILL after SIGTERM do so after 5 s (some), 10 s
    /// (`docker stop`, Cloud Run), 30 s (Kubernetes) or 90 s (systemd): stay below that, by a second for storing.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// What ends the process. Default, for each signal by itself: [`AfterDrain::ReRaise`] if it has its default disposition when
    /// [`drain_on_terminate`] is called, [`AfterDrain::App`] if somebody has a handler for it. Say it where the application's handler comes
    /// later: an [`AfterDrain::ReRaise`] would end the process in the middle of what that does.
    pub fn exit(mut self, exit: AfterDrain) -> Self {
        self.exit = Some(exit);
        self
    }

    /// Which signals, by number: among SIGHUP (1), SIGINT (2), SIGQUIT (3) and SIGTERM (15). Default: SIGTERM and SIGINT. One that is
    /// ignored when [`drain_on_terminate`] is called (SIGINT under `nohup` or behind `&`) stays ignored.
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

/// Has SIGTERM and SIGINT send what is queued in the process-wide client before the process ends. For freshness, and for disks that go
/// with the container: what is queued is safe on a disk without it.
///
/// ```no_run
/// use posthog::{Config, DrainOptions};
///
/// posthog::init(Config::from_env())?;
/// posthog::drain_on_terminate(DrainOptions::new())?;
/// # Ok::<(), posthog::Error>(())
/// ```
///
/// On the first signal a thread of its own calls [`shutdown`](crate::Client::shutdown) with the deadline, and then the process dies of
/// the signal: its parent sees what it would have seen without us, after at most the deadline and a second. A second signal kills at
/// once. Where the application has a handler of its own ([`AfterDrain::App`]) the thread calls [`flush`](crate::Client::flush) instead, and
/// nothing else: the client goes on, so that what the application captures while it ends is taken, and the application should end with
/// [`close`](crate::Client::close).
///
/// In signal context no more happens than an atomic exchange and the post of a semaphore. Signals are received through `signal-hook`, as
/// tokio receives them: both hear of each signal, whichever was first. A handler that is installed *later* with plain `sigaction` (the
/// crate `ctrlc` does so) replaces this one, and then nothing is drained.
///
/// Which client that is, is looked up when the signal comes: this may be called before [`init`](crate::init), and without a client the
/// process dies of the signal at once. It is for this process. A child that is forked later dies of a first signal at once (unless the
/// signal had a handler before), also where the child has a handler of its own that goes through `signal-hook`; to have a child drained
/// call this in the child, and in a daemon after it has forked into the background.
///
/// # Errors
///
/// [`Error::Config`] for a deadline or a signal that is not possible; [`Error::AlreadyInstalled`] if it was called before in this
/// process (the first call stays as it is); [`Error::Resources`] where the system has no thread for us. Signals then do what they did.
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
        // Whatever happens in it: a process that was told to die dies.
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
