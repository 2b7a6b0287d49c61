//! The client: what callers hold.
//!
//! A [`Client`] is a handle; clones are the same client. It validates and finishes an event on the caller's thread, hands its bytes to
//! the pipeline (`worker`), and answers with a [`Receipt`] that says what became of it. It holds no lock while user code runs
//! (`before_send`, diagnostics hooks), does no I/O of its own, and works in any program: with a tokio runtime, with another one, or
//! with none.
//!
//! * `capture.rs`: the path of an event from `capture` to its receipt, in the order: disabled, forked, opted out, re-entered, identity,
//!   validation, context and super properties, hooks, finish, append.
//! * `ai.rs`: the second pipeline, of AI events: opened by the first of them, or at the start where some were left. All that is asked of
//!   the client as a whole (flush, shutdown, statistics, dead letters) is asked of both.
//! * `exception.rs`: errors as events, with the stack of the call as addresses, which get names when the event is sent.
//! * `identity.rs`: calls about persons and groups, each of which is an event; `immediate.rs`: captures whose caller waits for PostHog.
//! * `flags/`: feature flags: snapshots of them, single ones, and the events that tell which were read.
//! * `rules.rs`: what can be changed on a living client.
//! * `receipt.rs`, `stats.rs`, `dead.rs`: what callers get back.
//! * `child.rs`: in a forked child the inherited client is never touched; the first capture opens a pipeline of its own.
//! * `global.rs`: the process-wide client; `crash_setup.rs`: its panic hook, crash handler and breadcrumbs.
//! * `crash_reports.rs`: the thread that reads crash reports and captures their incidents as events.
//! * `drain.rs`: what SIGTERM and SIGINT do for the process-wide client; `previous_run.rs`: how the run before this one ended.
//! * `notices.rs`: what the worker says, as the public [`Diagnostic`]; `failure.rs`: why a start failed, as the public [`Error`].
//!
//! When the last handle is dropped the queue is committed and let go, without sending: what is queued is sent by the next process
//! that opens the directory. That takes at most a second, and may happen anywhere, inside a callback or an async task too.

mod ai;
mod capture;
mod child;
mod crash_reports;
#[cfg(test)]
mod crash_reports_tests;
mod crash_setup;
mod dead;
mod drain;
mod exception;
mod failure;
pub(crate) mod flags;
mod global;
mod identity;
mod immediate;
#[cfg(test)]
mod messages_reasons_tests;
#[cfg(test)]
mod messages_tests;
mod notices;
mod previous_run;
mod receipt;
mod rules;
#[cfg(test)]
mod rules_tests;
mod stats;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;

use crate::config::{Config, HostReplaced};
use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::error::Error;
use crate::flags::Overrides;
use crate::pipeline::{self, DropReason, FlushReport, Pending, Pipeline, ShutdownReport, WorkerOptions, both, pending};

#[cfg(fuzzing)]
pub(crate) use crash_reports::event_of;

use ai::AiLane;
use child::Child;
#[cfg(feature = "crash-signals")]
pub use crash_setup::{install_crash_handler, register_thread, try_install_crash_handler};
pub use crash_setup::{install_panic_hook, try_install_panic_hook};
pub use dead::DeadLetter;
pub use drain::{AfterDrain, DrainOptions, drain_on_terminate};
use failure::{Place, explain};
use flags::Flags;
pub use flags::{AllFlags, FeatureFlagResult, FeatureFlags, FlagsProblem};
pub use global::{breadcrumb, capture, capture_exception, client, init};
pub use previous_run::PreviousRun;
pub use receipt::{Outcome, Receipt};
use rules::Rules;
pub use stats::{DeliveryPhase, OrphanedQueues, Stats, StorageMode};

/// Captures events and delivers them to PostHog, through a queue that survives the process.
///
/// ```no_run
/// use posthog::{Client, Config, Event};
///
/// let client = Client::new(Config::new("phc_example").queue_dir("/var/lib/mydaemon/posthog"))?;
/// client.capture(Event::new("run_started", "user_1").prop("workspace_id", "ws_abc").prop("spec_count", 3));
/// # Ok::<(), posthog::Error>(())
/// ```
///
/// A handle: clones are the same client. Dropping the last one sends nothing: it stores what was captured, lets the queue go, and waits
/// for that at most a second. To deliver before the program ends, call [`close`](Client::close); what is left, either way, is sent by
/// the next process that opens the directory.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    /// `None` for a disabled client.
    pipeline: Option<Arc<Pipeline>>,
    ai: AiLane,
    settings: Settings,
    rules: Rules,
    flags: Flags,
    diagnostics: Arc<Diagnostics>,
    /// By [`DropReason`].
    refusals: Arc<[AtomicU64; DropReason::COUNT]>,
    /// A hint that is given once.
    warned_of_exceptions: AtomicBool,
    /// In a forked child: the client that took our place.
    child: Child,
    /// The process writes its crash reports where this client reads them.
    is_armed: AtomicBool,
    /// The thread that reads crash reports is running.
    reader_runs: AtomicBool,
    /// There may be reports that it has not seen.
    has_new_reports: AtomicBool,
}

/// What the client's own part has to know.
#[derive(Clone)]
struct Settings {
    ai_lane: bool,
    report_previous_run: bool,
    disable_geoip: bool,
    exact_timestamps: bool,
    shutdown_timeout: Duration,
    tracing_hosts: Arc<[String]>,
}

impl Client {
    /// Opens the queue and starts delivering. What an earlier process left in it is sent too.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a setting that is out of bounds; [`Error::QueueDir`] and [`Error::Timeout`] where the
    /// directory cannot be used (see [`Config::memory_fallback`]); [`Error::Resources`] where the system has no thread for us.
    pub fn new(config: Config) -> Result<Self, Error> {
        Self::surrounded_by(config, |_| ())
    }

    /// A client whose clock, disk and network are as `edit` says.
    pub(crate) fn surrounded_by(config: Config, edit: impl FnOnce(&mut WorkerOptions)) -> Result<Self, Error> {
        let mut checked = config.check()?;
        if let Some(options) = &mut checked.worker {
            edit(options);
        }
        let clock = checked.worker.as_ref().map(|options| options.clock.clone()).unwrap_or_default();
        let diagnostics = Arc::new(Diagnostics::new(checked.on_diagnostic, clock.clone()));
        if checked.key_is_missing {
            diagnostics.record(Diagnostic::KeyMissing);
        }
        if let Some(HostReplaced { given, used }) = checked.host_replaced {
            diagnostics.record(Diagnostic::HostReplaced { given, used });
        }
        let settings = Settings {
            ai_lane: checked.ai_lane,
            report_previous_run: checked.report_previous_run,
            disable_geoip: checked.content.disable_geoip,
            exact_timestamps: checked.content.exact_timestamps,
            shutdown_timeout: checked.shutdown_timeout,
            tracing_hosts: checked.content.tracing_hosts.clone().into(),
        };
        let flags = Flags::new(&checked.flags, clock, Overrides::default());
        Self::start(checked.worker, settings, (Rules::new(&checked.content), flags), diagnostics, None)
    }

    fn start(
        options: Option<WorkerOptions>,
        settings: Settings,
        (rules, flags): (Rules, Flags),
        diagnostics: Arc<Diagnostics>,
        parent: Option<&Pipeline>,
    ) -> Result<Self, Error> {
        let pipeline = match options {
            None => None,
            Some(mut options) => {
                let place = Place::of(&options);
                let heard = Arc::clone(&diagnostics);
                options.report = Arc::new(move |notice| notices::hear(&heard, notice, |diagnostic| diagnostic));
                let pipeline = pipeline::start(options, parent).map_err(|error| explain(error, &place))?;
                receipt::register(&pipeline);
                notices::remind(&diagnostics, &pipeline);
                Some(pipeline)
            }
        };
        let shared = Shared {
            pipeline,
            ai: AiLane::default(),
            settings,
            rules,
            flags,
            diagnostics,
            refusals: Arc::new([const { AtomicU64::new(0) }; DropReason::COUNT]),
            warned_of_exceptions: AtomicBool::new(false),
            child: Child::default(),
            is_armed: AtomicBool::new(false),
            reader_runs: AtomicBool::new(false),
            has_new_reports: AtomicBool::new(false),
        };
        // A child that captures no AI events has no use for the lane: often it lives for a moment only.
        shared.open_ai_at_start(parent.is_none());
        let shared = Arc::new(shared);
        shared.report_previous_run();
        shared.read_crash_reports();
        Ok(Self { shared })
    }

    /// Sends what is queued now. Resolves when every event accepted before the call was tried once, or the endpoint is found down, and what
    /// came of that is committed: from then on dead letters, statistics and the room in the queue are as the report says. The report tells
    /// what remains, and why. A flush ends a long pause early, but never breaks a `Retry-After`; and a failure less than a second old
    /// counts as its answer, without another attempt: whoever flushes in a loop does not hammer a server that is down. Nothing is lost by
    /// a flush that cannot send.
    ///
    /// In a forked child that has captured nothing there is nothing to send: [`EndpointStatus::Forked`](crate::EndpointStatus::Forked).
    pub fn flush(&self) -> Pending<FlushReport> {
        match self.pipelines() {
            Some((pipeline, None)) => pipeline.flush(),
            Some((pipeline, Some(ai))) => both(pipeline.flush(), ai.flush(), FlushReport::with_ai),
            None => self.answer_without_pipeline(),
        }
    }

    /// Stops taking events, makes everything durable, delivers for at most `most`, and lets the queue go. Resolves when that is done;
    /// what is left stays on disk, and the report says why. A second call waits for the first, and can only shorten it.
    ///
    /// As long as something is queued it makes attempts of its own, the first at once whatever pause is running: up to 1 +
    /// [`Config::max_retries`], with the usual backoff between them, as far as they fit into `most`. It ends earlier when nobody answers the
    /// connection twice in a row, when the key or quota is refused, or when everything is. A `Retry-After` is waited for if it ends in
    /// time, and never broken. With nothing to send it ends at once.
    ///
    /// Storing and letting go come on top of `most`: give [`wait`](Pending::wait) a second more. A wait that ends early, and a
    /// [`Pending`] that is dropped, cancel nothing: the shutdown goes on. It is for good, for every handle; a client that was made by
    /// [`init`] cannot be replaced by another in this process.
    pub fn shutdown(&self, most: Duration) -> Pending<ShutdownReport> {
        let Some((pipeline, _)) = self.pipelines() else { return self.answer_without_pipeline() };
        pipeline.mirror_refusals(&self.shared.refusal_counts());
        let closed = pipeline.shutdown(most);
        self.close_flags();
        // Looked for afterwards: one that is opened at this moment either is seen here, or sees that we are closing.
        fence(Ordering::SeqCst);
        match self.pipelines() {
            Some((_, Some(ai))) => both(closed, ai.shutdown(most), ShutdownReport::with_ai),
            _ => closed,
        }
    }

    /// [`shutdown`](Client::shutdown) with [`Config::shutdown_timeout`] (10 s): wait for it with `.wait(Duration::from_secs(11))`, or
    /// `.await` it.
    pub fn close(&self) -> Pending<ShutdownReport> {
        self.shutdown(self.shared.settings.shutdown_timeout)
    }

    /// Where every event is, how full the queue is, how delivery and storage are. For how long the counters count, see [`Stats`].
    pub fn stats(&self) -> Stats {
        match self.pipelines() {
            Some((pipeline, ai)) => {
                let counts = self.shared.refusal_counts();
                pipeline.mirror_refusals(&counts);
                Stats::of(&pipeline.snapshot(), counts).with_ai(ai.map(|ai| Stats::of(&ai.snapshot(), Vec::new())))
            }
            None if self.is_disabled() => Stats::disabled(self.shared.refusal_counts()),
            None => Stats::forked(self.shared.refusal_counts(), self.shared.has_failed_child()),
        }
    }

    /// The newest diagnostics, oldest first; at most 128 are kept.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        match &self.shared.pipeline {
            Some(pipeline) if pipeline.is_forked() => {
                self.shared.child().map(|child| child.diagnostics()).unwrap_or_default()
            }
            _ => self.shared.diagnostics.recent(),
        }
    }

    /// Whether the client takes nothing because it was made with [`Config::disabled`], or by [`Config::from_env`] without a key.
    pub fn is_disabled(&self) -> bool {
        self.shared.pipeline.is_none()
    }

    /// What nobody is there to answer: the client is disabled, or this is a forked child that has captured nothing yet.
    fn answer_without_pipeline<T: pending::Unanswered>(&self) -> Pending<T> {
        pending::answered(if self.is_disabled() { T::closed() } else { T::forked() })
    }

    /// The pipeline of this process and, if it is open, that of its AI events: our own, or in a forked child those that took their place,
    /// if there are some already.
    pub(crate) fn pipelines(&self) -> Option<(Arc<Pipeline>, Option<Arc<Pipeline>>)> {
        let own = self.shared.pipeline.as_ref()?;
        if own.is_forked() {
            return self.shared.child()?.pipelines();
        }
        Some((Arc::clone(own), self.shared.ai.get().cloned()))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(pipeline) = self.pipeline.take() else { return };
        let ai = self.ai.take();
        if pipeline.is_forked() {
            // The parent's: its threads, mappings, locks and database are not ours to end.
            std::mem::forget((pipeline, ai));
        } else {
            pipeline.mirror_refusals(&self.refusal_counts());
            pipeline::release(std::iter::once(&pipeline).chain(&ai).map(Arc::as_ref));
            // What was refused since then.
            self.diagnostics.log_all();
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("pipeline", &self.shared.pipeline).finish_non_exhaustive()
    }
}
