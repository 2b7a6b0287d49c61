//! [`Client`]: the handle that programs hold.
//!
//! Clones of a [`Client`] are the same client. A capture validates and finishes an event on the caller's thread,
//! appends its bytes to the pipeline's journal, and returns a [`Receipt`]. The client holds no lock while the program's
//! code runs (`before_send`, callbacks for diagnostics), does no I/O of its own, and works with a tokio runtime,
//! another runtime, or none.
//!
//! * `capture.rs`: the calls that capture, from the event to its receipt. `exception.rs`: errors as events, with the
//!   stack of the call, and `exception_limit.rs`: how many of them in which time.
//! * `ai.rs`: the second pipeline, for AI events. Calls about the whole client (flush, shutdown, statistics, dead
//!   letters) go to both pipelines and combine the results.
//! * `flags/`: feature flags.
//! * `rules.rs`: what can be changed at run time: opt-out, super properties, hooks.
//! * `receipt.rs`, `dead_letters.rs`, `previous_run.rs`: what callers get back.
//! * `child.rs`: forked children. The inherited client is never used; the first capture opens a pipeline of the child's
//!   own.
//! * `global.rs`: the process-wide client; `stand_in.rs`: what stands in for it in tests. `crash_setup.rs`, `crash_reports.rs`: its panic hook, crash handler,
//!   breadcrumbs and crash reports. `drain.rs`: its handling of SIGTERM and SIGINT.
//! * `failure.rs`: a failed start as an [`Error`].
//!
//! Dropping the last handle commits the queue and releases it, without sending: the next process that opens the
//! directory sends what is queued. That takes at most a second, and may happen inside a callback or an async task.

mod ai;
mod capture;
mod child;
mod crash_reports;
#[cfg(test)]
mod crash_reports_tests;
mod crash_setup;
mod dead_letters;
mod drain;
mod exception;
mod exception_limit;
mod failure;
pub(crate) mod flags;
mod global;
#[cfg(test)]
mod messages_tests;
mod previous_run;
mod receipt;
mod rules;
#[cfg(test)]
mod rules_tests;
#[cfg(feature = "testing")]
mod stand_in;

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::config::{CaptureProtocol, Config, Settings};
use crate::error::Error;
use crate::flags::Overrides;
use crate::pipeline::{self, Pending, Pipeline, PipelineOptions, abbreviated, ask_all, pending};
#[cfg(feature = "metrics")]
use crate::recorder::facade::{Published, Publisher};
use crate::recorder::{Diagnostics, Started, log_closed, log_started};
use crate::report::{Diagnostic, DropReason, FlushReport, Health, ShutdownReport, Stats};

#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use crash_reports::event_of;
#[cfg(feature = "inspect")]
pub(crate) use crash_reports::{event_to_send, time_of};

use ai::AiLane;
use child::Child;
#[cfg(feature = "crash-signals")]
pub use crash_setup::{install_crash_handler, register_thread, try_install_crash_handler};
pub use crash_setup::{install_panic_hook, try_install_panic_hook};
pub use dead_letters::DeadLetter;
pub use drain::{AfterDrain, DrainOptions, drain_on_terminate};
#[cfg(any(feature = "log", feature = "tracing"))]
pub(crate) use exception::{Site, Unread};
use exception_limit::ExceptionLimit;
use failure::{Place, explain};
use flags::Flags;
pub use flags::{AllFlags, FeatureFlagResult, FeatureFlags, FlagsProblem};
#[cfg(any(feature = "log", feature = "tracing"))]
pub(crate) use global::with as with_process_wide;
pub use global::{
    alias, breadcrumb, capture, capture_ai, capture_exception, capture_exception_with, capture_immediate, client,
    close, evaluate_flags, flush, get_all_flags, get_feature_flag, get_feature_flag_payload, group_identify, identify,
    init, is_feature_enabled, is_feature_enabled_or, is_opted_out, known_flags, opt_in, opt_out, register, set_person,
    set_person_once, shutdown, unregister,
};
#[cfg(feature = "anyhow")]
pub use global::{capture_anyhow, capture_anyhow_with};
#[cfg(feature = "eyre")]
pub use global::{capture_eyre, capture_eyre_with};
pub use receipt::{Outcome, Receipt};
use rules::Rules;
#[cfg(feature = "testing")]
pub(crate) use stand_in::StandIn;

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
/// A client is a handle: clones are the same client. Dropping the last one sends nothing. It stores what was captured
/// and releases the queue, which takes at most a second. To deliver before the program ends, call
/// [`close`](Client::close); the next process that opens the directory sends what is left.
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
    /// Counts by [`DropReason`].
    refusals: Arc<[AtomicU64; DropReason::COUNT]>,
    /// Whether [`Diagnostic::ManualException`] was reported.
    warned_of_exceptions: AtomicBool,
    exception_limit: ExceptionLimit,
    /// In a forked child: the client that replaces this one.
    child: Child,
    /// Whether this is the process-wide client, which keeps breadcrumbs.
    keeps_breadcrumbs: AtomicBool,
    /// Whether crash reports of the process are written to this client's queue directory.
    is_armed: AtomicBool,
    /// Whether the thread that reads crash reports runs.
    reader_runs: AtomicBool,
    /// Whether there may be reports that it has not seen.
    has_new_reports: AtomicBool,
}

impl Client {
    /// Opens the queue and starts delivery, including what an earlier process left in the queue.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a setting that is out of bounds; [`Error::QueueDir`] and [`Error::Timeout`] if the
    /// directory cannot be used (see [`Config::memory_fallback`]); [`Error::Resources`] if the system cannot start a
    /// thread.
    pub fn new(config: Config) -> Result<Self, Error> {
        Self::surrounded_by(config, |_| ())
    }

    /// A client whose clock, disk and network `edit` may replace.
    pub(crate) fn surrounded_by(config: Config, edit: impl FnOnce(&mut PipelineOptions)) -> Result<Self, Error> {
        let mut checked = config.check()?;
        if let Some(options) = &mut checked.pipeline {
            edit(options);
        }
        let clock = checked.pipeline.as_ref().map(|options| options.clock.clone()).unwrap_or_default();
        let diagnostics = Arc::new(Diagnostics::new(checked.on_diagnostic, clock.clone()));
        checked.diagnostics.into_iter().for_each(|diagnostic| diagnostics.record(diagnostic));
        let rules = Rules::new(checked.opted_out, checked.before_send, checked.super_properties);
        let flags = Flags::new(&checked.flags, clock, Overrides::default());
        Self::start(checked.pipeline, checked.settings, (rules, flags), diagnostics, None)
    }

    fn start(
        options: Option<PipelineOptions>,
        settings: Settings,
        (rules, flags): (Rules, Flags),
        diagnostics: Arc<Diagnostics>,
        parent: Option<&Pipeline>,
    ) -> Result<Self, Error> {
        let pipeline = match options {
            None => None,
            Some(mut options) => {
                let place = Place::of(&options);
                let (recorder, ending) = (Arc::clone(&diagnostics), Arc::clone(&diagnostics));
                options.report = Arc::new(move |diagnostic| recorder.record(diagnostic));
                let is_child = parent.is_some();
                options.ended = Arc::new(move |report, dir| {
                    ending.log_all();
                    // Not in a forked child, as for the start.
                    if !is_child {
                        log_closed(report, dir);
                    }
                });
                let pipeline = pipeline::start(options, parent).map_err(|error| explain(error, &place))?;
                receipt::register(&pipeline);
                schedule_log(&diagnostics, &pipeline);
                Some(pipeline)
            }
        };
        let refusals = Arc::new([const { AtomicU64::new(0) }; DropReason::COUNT]);
        let ai = AiLane::default();
        if let Some(pipeline) = &pipeline {
            let refusals: Arc<[AtomicU64; DropReason::COUNT]> = Arc::clone(&refusals);
            pipeline.count_drops_by(move || refusals.iter().map(|count| count.load(Ordering::Relaxed)).collect());
        }
        #[cfg(feature = "metrics")]
        if let Some(pipeline) = &pipeline {
            publish_metrics(pipeline, &diagnostics, (&refusals, &ai));
        }
        let exception_limit = ExceptionLimit::new(settings.exception_rate_limit);
        let shared = Shared {
            pipeline,
            ai,
            settings,
            rules,
            flags,
            diagnostics,
            refusals,
            warned_of_exceptions: AtomicBool::new(false),
            exception_limit,
            child: Child::default(),
            keeps_breadcrumbs: AtomicBool::new(false),
            is_armed: AtomicBool::new(false),
            reader_runs: AtomicBool::new(false),
            has_new_reports: AtomicBool::new(false),
        };
        // A forked child often lives for a moment only: its AI pipeline is opened by its first AI event.
        shared.open_ai_at_start(parent.is_none());
        let shared = Arc::new(shared);
        if parent.is_none() {
            // Before this run has captured anything of its own.
            shared.log_started();
        }
        shared.report_previous_run();
        shared.read_crash_reports();
        Ok(Self { shared })
    }

    /// Sends what is queued now.
    ///
    /// Resolves when every event accepted before the call was tried once, or the endpoint turns out to be down, and the
    /// result is committed: dead letters, statistics and free space in the queue then agree with the report. The report
    /// says how many events remain, and why.
    ///
    /// A flush ends a long backoff early, but respects `Retry-After`. A failure less than a second old counts as its
    /// result without another request, so that a program that flushes in a loop does not hammer a server that is down.
    /// A flush that cannot send loses nothing.
    ///
    /// In a forked child that has captured nothing there is nothing to send:
    /// [`EndpointStatus::Forked`](crate::reports::EndpointStatus::Forked).
    pub fn flush(&self) -> Pending<FlushReport> {
        match self.lanes() {
            Some(lanes) => ask_all(&lanes, FlushReport::with_ai, Pipeline::flush),
            None => self.answer_without_pipeline(),
        }
    }

    /// Closes the client: stops accepting events, makes everything durable, delivers for at most `timeout`, and
    /// releases the queue. Resolves when that is done. Events that remain stay on disk, and the report says why. A
    /// second call waits for the first, and can only shorten it.
    ///
    /// While events are queued, the shutdown sends up to 1 + [`Config::max_retries`] times, the first time at once
    /// whatever backoff is running, with the usual backoff in between, as far as `timeout` allows. It ends earlier when
    /// no connection can be made twice in a row, when the key or quota is rejected, or when all events are. A
    /// `Retry-After` is waited for if it ends in time. With nothing to send the shutdown ends at once.
    ///
    /// Storing and releasing come on top of `timeout`: give [`wait`](Pending::wait) a second more. A wait that times
    /// out, or a [`Pending`] that is dropped, does not cancel the shutdown. It is final, for all handles; a client that
    /// was created by [`init`] cannot be replaced in this process.
    pub fn shutdown(&self, timeout: Duration) -> Pending<ShutdownReport> {
        let Some(pipeline) = self.pipeline() else { return self.answer_without_pipeline() };
        pipeline.mirror_refusals(&self.shared.refusal_counts());
        pipeline.close_intake();
        // Looked up after closing: a lane that is being opened is either seen here, or sees that the client is closing.
        fence(Ordering::SeqCst);
        let Some(lanes) = self.lanes() else { return self.answer_without_pipeline() };
        let shut_down = |lane: &Pipeline, promise| lane.begin_shutdown(timeout, promise);
        let closed = ask_all(&lanes, ShutdownReport::with_ai, shut_down);
        self.close_flags();
        closed
    }

    /// [`shutdown`](Client::shutdown) with [`Config::shutdown_timeout`] (10 s). Wait for it with
    /// `.wait(Duration::from_secs(11))`, or `.await` it.
    pub fn close(&self) -> Pending<ShutdownReport> {
        self.shutdown(self.shared.settings.shutdown_timeout)
    }

    /// The state of the queue, of delivery and of storage. See [`Stats`] for what the counters cover.
    pub fn stats(&self) -> Stats {
        let counts = self.shared.refusal_counts();
        let lanes = self.lanes().unwrap_or_default();
        lanes.first().inspect(|analytics| analytics.mirror_refusals(&counts));
        match lanes.iter().map(|lane| lane.stats()).reduce(Stats::with_ai) {
            Some(stats) => stats.of_client(counts, self.shared.ai.has_failed.load(Ordering::Acquire)),
            None if self.is_disabled() => Stats::disabled(counts),
            None => Stats::forked(counts, self.shared.has_failed_child()),
        }
    }

    /// How the client is: [`Stats::health`] of [`stats`](Client::stats).
    pub fn health(&self) -> Health {
        self.stats().health()
    }

    /// The newest diagnostics, oldest first. At most 128 are kept.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        match &self.shared.pipeline {
            Some(pipeline) if pipeline.is_forked() => {
                self.shared.child().map(|child| child.diagnostics()).unwrap_or_default()
            }
            _ => self.shared.diagnostics.recent(),
        }
    }

    /// Whether the client drops everything because it was created with [`Config::disabled`], or by [`Config::from_env`]
    /// without a key.
    pub fn is_disabled(&self) -> bool {
        self.shared.pipeline.is_none()
    }

    /// The result of a call when there is no pipeline: the client is disabled, or this is a forked child that has
    /// captured nothing yet.
    fn answer_without_pipeline<T: pending::Unanswered>(&self) -> Pending<T> {
        pending::answered(if self.is_disabled() { T::closed() } else { T::forked() })
    }

    /// The lanes of this process that are open, the analytics lane first. In a forked child those of the child, if they
    /// exist.
    pub(crate) fn lanes(&self) -> Option<Vec<Arc<Pipeline>>> {
        let own = self.shared.pipeline.as_ref()?;
        if own.is_forked() {
            return self.shared.child()?.lanes();
        }
        Some(std::iter::once(own).chain(self.shared.ai.get()).cloned().collect())
    }

    /// The analytics lane of this process.
    pub(crate) fn pipeline(&self) -> Option<Arc<Pipeline>> {
        self.lanes()?.into_iter().next()
    }
}

impl Shared {
    /// Logs where events go and what was found. Not in a forked child, where a lock of the log subscriber may be held
    /// by a thread that does not exist there.
    fn log_started(&self) {
        let Some(pipeline) = &self.pipeline else { return };
        let options = pipeline.options();
        let project = &options.queue.project;
        log_started(&Started {
            host: &project.host,
            key: abbreviated(&project.api_key),
            queue_dir: pipeline.dir().map(|dir| dir.as_path()),
            queued_events: pipeline.queued_as_committed(),
            protocol: match options.delivery.protocol {
                CaptureProtocol::V0 => "v0",
                CaptureProtocol::V1 => "v1",
            },
            proxy: pipeline.proxy(),
        });
    }
}

/// Has the pipeline's delivery thread log the lines that are held back, when they are due.
fn schedule_log(diagnostics: &Arc<Diagnostics>, pipeline: &Arc<Pipeline>) {
    let (recorder, pipeline) = (Arc::downgrade(diagnostics), Arc::downgrade(pipeline));
    diagnostics.schedule_by(move |after| {
        let recorder = Weak::clone(&recorder);
        let call = move || {
            if let Some(diagnostics) = recorder.upgrade() {
                diagnostics.log_due();
            }
        };
        pipeline.upgrade().is_some_and(|pipeline| pipeline.call_after(after, call))
    });
}

/// Has the committer publish the client's statistics through the facade `metrics`, if the program has a recorder.
#[cfg(feature = "metrics")]
fn publish_metrics(
    pipeline: &Pipeline,
    diagnostics: &Arc<Diagnostics>,
    (refusals, ai): (&Arc<[AtomicU64; DropReason::COUNT]>, &AiLane),
) {
    let (publisher, diagnostics) = (Publisher::default(), Arc::clone(diagnostics));
    let (refusals, ai_failed) = (Arc::clone(refusals), Arc::clone(&ai.has_failed));
    pipeline.publish_by(Box::new(move |collect| {
        let Some(stats) = Publisher::is_wanted().then(collect).flatten() else { return };
        let counts = refusals.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let stats = stats.of_client(counts, ai_failed.load(Ordering::Acquire));
        if publisher.publish(&stats) == Published::FirstPanic {
            diagnostics.record(Diagnostic::CallbackPanicked { callback: "metrics recorder" });
        }
    }));
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(pipeline) = self.pipeline.take() else { return };
        let ai = self.ai.take();
        if pipeline.is_forked() {
            // Threads, mappings, locks and database belong to the parent process.
            std::mem::forget((pipeline, ai));
        } else {
            pipeline.mirror_refusals(&self.refusal_counts());
            pipeline::release(std::iter::once(&pipeline).chain(&ai).map(Arc::as_ref));
            // Drops since the pipeline's last report.
            self.diagnostics.log_all();
        }
    }
}

// A panic of the program, caught while it used a client, leaves the client usable: its locks recover from poisoning, no
// lock is held while code of the program runs, and its callbacks are called inside of `catch_unwind`.
impl UnwindSafe for Shared {}
impl RefUnwindSafe for Shared {}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("pipeline", &self.shared.pipeline).finish_non_exhaustive()
    }
}
