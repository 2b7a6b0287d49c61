//! PostHog for daemons: a client whose events survive the process.
//!
//! [`Client::capture`] copies an event into a journal on disk and answers with a [`Receipt`]. If that says [`Outcome::Accepted`], the
//! event survives whatever happens to the process from then on: SIGKILL, abort, a crash. It leaves the queue when PostHog has taken
//! it, or for a reason that [`Stats`] counts. If it says [`Outcome::Dropped`], nothing of the event was kept, and the reason is there.
//!
//! ```no_run
//! use std::time::Duration;
//! use posthog::{Client, Config, Event};
//!
//! let client = Client::new(Config::new("phc_example").queue_dir("/var/lib/mydaemon/posthog"))?;
//! client.capture(Event::new("run_started", "user_1").prop("workspace_id", "ws_abc").prop("spec_count", 3));
//!
//! // When the daemon ends: sends for a while; what is left is sent by the next start.
//! let report = client.shutdown(Duration::from_secs(10)).wait(Duration::from_secs(11))?;
//! println!("{} delivered, {} left on disk", report.delivered, report.remaining);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Three degrees of safety
//!
//! * **Accepted**: on return from `capture`. Survives the process. Costs a copy into a memory-mapped file.
//! * **Persisted**: within [`Config::sync_interval`] (100 ms), or when [`Receipt::persisted`] resolves. Survives a power cut.
//! * **Delivered**: PostHog has taken it; [`Config::on_delivery`] tells, with the uuid that the receipt has.
//!
//! # Threads and tasks
//!
//! A client has two threads of its own and asks nothing of the host: it works with tokio, with another runtime, or with none, and may be
//! made and dropped inside async code. Calls that may take time return a [`Pending`]: `.await` it, or [`wait`](Pending::wait) for it.
//! [`init`], [`client`] and [`capture`] share one client among all parts of a program. A process may fork: the child's first capture
//! opens a queue of its own.
//!
//! # Whose events these are
//!
//! An [`Event`] names its distinct id, or leaves it to the [`Context`] of the request that is being served ([`Event::new_anon`]).
//! [`Client::identify`], [`Client::set_person`], [`Client::alias`] and [`Client::group_identify`] say who somebody is;
//! [`Client::register`] sets properties of every event; [`Client::opt_out`] captures nothing; [`Config::before_send`] sees each event
//! before anything of it reaches the disk.
//!
//! # Errors
//!
//! [`Client::capture_exception`] takes any error, with those beneath it and the stack of the call, for PostHog's error tracking.
//!
//! # Crashes
//!
//! After [`init`], [`install_panic_hook`] has panics told, and with the feature `crash-signals` `install_crash_handler` has fatal signals
//! told: each leaves a record in one write, and the next start of the program sends it, with the time at which it happened. The process
//! ends as it would have ended. [`Client::previous_run`] says how the last run ended, also where nobody could tell; [`drain_on_terminate`]
//! sends what is queued at SIGTERM.
//!
//! # Feature flags
//!
//! [`Client::evaluate_flags`] answers with a snapshot, [`FeatureFlags`], of what is on for somebody ([`FlagContext`]); with
//! [`Config::secret_key`] without a request for each. [`Client::is_feature_enabled`] and its like ask for one flag. Nothing of it is an
//! error, and none waits longer than [`Config::flag_request_timeout`]: in an outage what is known stands, then the default.
//! [`Event::flags`] says on an event what its person had.
//!
//! # What to look at in production
//!
//! [`Client::stats`] says where every event is, how full the queue is, and how storage and delivery are. [`Diagnostic`]s say what went
//! wrong, to a hook and through `tracing` (target `posthog`, at most one line a minute about one thing, with the sum of what it stands
//! for). [`Client::dead_letters`] has the events that PostHog refused for good.
//!
//! # Features
//!
//! None is on by default, and none changes what another means. `brotli` and `zstd` compile in a codec that [`Config::compression`] can
//! then choose; `tower` adds `integrations::tower`, a layer that serves each HTTP request in a [`Context`] of its own; `testing` adds
//! `posthog::testing`, for tests of programs that capture; `anyhow` and `eyre` add calls for their reports; `crash-signals` adds
//! `install_crash_handler`, for Linux. Every knob is a setter of [`Config`], with its unit, default, least and most.

#[cfg(fuzzing)]
#[doc(hidden)]
#[path = "fuzz.rs"]
pub mod __fuzz;
mod client;
mod config;
mod context;
mod crash;
mod delivery;
mod diagnostics;
mod error;
mod event;
mod flags;
pub mod integrations;
mod pipeline;
mod queue;
mod record;
mod sys;
#[cfg(feature = "testing")]
pub mod testing;
mod transport;

pub use client::{
    AfterDrain, AllFlags, Client, DeadLetter, DeliveryPhase, DrainOptions, FeatureFlagResult, FeatureFlags,
    FlagsProblem, OrphanedQueues, Outcome, PreviousRun, Receipt, Stats, StorageMode, breadcrumb, capture,
    capture_exception, client, drain_on_terminate, init, install_panic_hook, try_install_panic_hook,
};
#[cfg(feature = "crash-signals")]
pub use client::{install_crash_handler, register_thread, try_install_crash_handler};
pub use config::{BeforeSend, CaptureProtocol, Compression, Config, FlagsProtocol};
pub use context::{Context, RequestQuery, ScopedFuture, current_distinct_id, current_session_id};
pub use crash::exit::ExitCause;
pub use delivery::{DeliveryNotice, DeliveryOutcome};
pub use diagnostics::{Diagnostic, DiagnosticCategory};
pub use error::Error;
pub use event::Event;
pub use event::exception::{AdHocError, ExceptionOptions, Level, ParseLevelError};
pub use flags::{
    AsyncFlagDefinitionProvider, FlagContext, FlagDefinitionProvider, FlagDefinitions, FlagDefinitionsError,
    FlagDefinitionsState, FlagValue, InconclusiveReason, LocalFlags, LocalValue, ParseFlagsError, ProviderError,
    ProviderFuture,
};
pub use pipeline::{
    DeadLetterError, DeliveryReport, DropReason, EndpointStatus, FlushReport, OverflowPolicy, Pending, PendingFuture,
    PersistError, ShutdownReport, WaitTimeout,
};

/// The version of this library, as it stands in `$lib_version` of each event.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The examples of the readme are compiled with those of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The places at which the crash tests can have a process die.
#[cfg(feature = "__crash_points")]
#[doc(hidden)]
pub fn __crash_point_names() -> &'static [&'static str] {
    sys::crash_point::NAMES
}
