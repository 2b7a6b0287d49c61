//! A PostHog client for long-running daemons, whose events survive the process.
//!
//! [`Client::capture`] copies an event into a journal on disk and returns a [`Receipt`]. Once the receipt says
//! [`Outcome::Accepted`], the event survives SIGKILL, an abort or a crash of the process. It leaves the queue when
//! PostHog has accepted it, or for a reason that [`Stats`] counts. [`Outcome::Dropped`] means that nothing of the event
//! was kept, and names the reason.
//!
//! ```no_run
//! use std::time::Duration;
//! use posthog::{Client, Config, Event};
//!
//! let client = Client::new(Config::new("phc_example").queue_dir("/var/lib/mydaemon/posthog"))?;
//! client.capture(Event::new("run_started", "user_1").prop("workspace_id", "ws_abc").prop("spec_count", 3));
//!
//! // When the daemon ends: deliver for up to ten seconds. The next start delivers the rest.
//! let report = client.shutdown(Duration::from_secs(10)).wait(Duration::from_secs(11))?;
//! println!("{} delivered, {} left on disk", report.delivered, report.remaining);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Levels of durability
//!
//! * **Accepted**: when `capture` returns. Survives the process. Costs a copy into a memory-mapped file.
//! * **Persisted**: within [`Config::sync_interval`] (100 ms), or when [`Receipt::persisted`] resolves. Survives a
//!   power cut.
//! * **Delivered**: PostHog has accepted the event. [`Config::on_delivery`] reports it, with the uuid that the receipt
//!   has.
//!
//! # Threads and async
//!
//! A client runs two threads of its own and needs nothing from the program: it works with tokio, with another runtime,
//! or with none, and may be created and dropped inside async code. Calls that take time return a [`Pending`]: `.await`
//! it, or [`wait`](Pending::wait) for it. After a fork, the child's first capture opens a queue of the child's own.
//!
//! # The process-wide client
//!
//! [`init`] creates a client that all parts of a program share. Its everyday calls are functions of this crate:
//! [`capture`], [`identify`], [`capture_exception`], [`is_feature_enabled`], [`register`], [`flush`], [`close`] and more;
//! [`client`] returns it for all others. Before `init`, events are `Dropped(NotInitialized)`, flags have no value, and
//! the other calls do nothing, as the documentation of each says.
//!
//! # Where to find things
//!
//! | subject | start at | types |
//! |---|---|---|
//! | events, persons and groups | [`Event`], [`Client::identify`], [`Client::group_identify`] | the crate root |
//! | settings | [`Config`]: every setter names its unit, default and bounds | [`settings`] |
//! | the request that is being served | [`Context`], [`Event::new_anon`] | [`context`], [`integrations`] |
//! | errors | [`capture_exception`], [`Client::capture_exception_with`] | [`exceptions`] |
//! | panics, fatal signals, the previous run | [`install_panic_hook`], [`Client::previous_run`] | [`crashes`] |
//! | SIGTERM and SIGINT | [`drain_on_terminate`] | [`termination`] |
//! | feature flags | [`Client::evaluate_flags`], [`Client::is_feature_enabled`] | [`feature_flags`] |
//! | what a call resolved to | [`Client::flush`], [`Client::shutdown`], [`Client::dead_letters`] | [`reports`] |
//! | the state of the queue, health, metrics | [`Client::stats`], [`Client::health`] | [`stats`] |
//! | problems in production | [`Client::diagnostics`], [`Config::on_diagnostic`] | [`diagnostics`] |
//! | tests of programs that capture | the feature `testing` | `posthog::testing` |
//!
//! [`Config::before_send`] sees each event before any of it reaches the disk, [`Client::register`] sets properties of
//! every event, and [`Client::opt_out`] stops capturing.
//!
//! # Logging
//!
//! Problems that no return value reports are logged through `tracing` under the target `posthog`: at most one line a
//! minute about one subject, with the sum of the events that it stands for. Each line says what happened, what the
//! library does now, and what the operator can do, and has its facts as fields too: `kind`, and where they apply `host`,
//! `waiting` (events), `next_attempt_ms`, `outage_ms`, `events`, `held_back`, `status`, `path` and `uuid`.
//!
//! Figures are those of the moment of the line. Lines that are held back for the minute are added up, so their sum covers
//! that time (`in the last 60 s`); one about an outage is logged without the number of waiting events, and not at all
//! once the outage has ended. An outage is logged when it begins, when a whole cycle of attempts has failed (from then on
//! minutes pass between attempts), and when it ends: `events are delivered again to .., after 4 min of failures`.
//!
//! A client that starts logs one line at level `INFO` (`kind = "started"`: host, beginning of the key, directory, events
//! of earlier runs, protocol, proxy), so does one that begins to deliver a queue that another process left
//! (`queue_adopted`), and each queue that is closed with nothing left in it (`closed`: delivered, remaining).
//! At level `DEBUG` there is a line for each request (`kind = "request"`: method, path, status, events, bytes,
//! duration). No line contains a key, a password or the content of an event.
//!
//! # Cargo features
//!
//! None is on by default.
//!
//! * `anyhow`, `eyre`: capture reports of these crates (`Client::capture_anyhow`, `Client::capture_eyre`).
//! * `brotli`, `zstd`: more codecs for [`Config::compression`].
//! * `crash-signals`: `install_crash_handler`, which reports fatal signals, on Linux.
//! * `inspect`: `posthog::inspect`, which reads, checks, repairs and moves queues, also those of other programs. `cli`
//!   makes the command `posthog-queue` of it.
//! * `metrics`: publishes [`Stats`] through the facade of the crate `metrics`, under the names of
//!   [`Stats::to_prometheus`].
//! * `log`: `integrations::log`, a logger around another logger: errors become exceptions, other records breadcrumbs.
//! * `testing`: `posthog::testing`, a client between a manual clock, a scripted server and a temporary directory.
//! * `tower`: `integrations::tower`, a layer that serves each HTTP request in a [`Context`] of its own, and one that
//!   captures responses with a status of 500 to 599.
//! * `tracing`: `integrations::tracing`, a layer for `tracing-subscriber`: errors become exceptions, other events
//!   breadcrumbs.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(all(any(fuzzing, test), feature = "inspect"))]
#[doc(hidden)]
#[path = "fuzz/mod.rs"]
pub mod __fuzz;
mod client;
mod config;
pub mod context;
mod crash;
mod delivery;
mod error;
mod event;
mod flags;
#[cfg(feature = "inspect")]
#[cfg_attr(docsrs, doc(cfg(feature = "inspect")))]
pub mod inspect;
pub mod integrations;
mod pipeline;
mod queue;
mod record;
mod recorder;
mod report;
mod sys;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
mod transport;

#[cfg(feature = "crash-signals")]
#[cfg_attr(docsrs, doc(cfg(feature = "crash-signals")))]
pub use client::install_crash_handler;
pub use client::{
    Client, Outcome, Receipt, alias, breadcrumb, capture, capture_ai, capture_exception, capture_exception_with,
    capture_immediate, client, close, drain_on_terminate, evaluate_flags, flush, get_all_flags, get_feature_flag,
    get_feature_flag_payload, group_identify, identify, init, install_panic_hook, is_feature_enabled,
    is_feature_enabled_or, is_opted_out, known_flags, opt_in, opt_out, register, set_person, set_person_once, shutdown,
    unregister,
};
#[cfg(feature = "anyhow")]
#[cfg_attr(docsrs, doc(cfg(feature = "anyhow")))]
pub use client::{capture_anyhow, capture_anyhow_with};
#[cfg(feature = "eyre")]
#[cfg_attr(docsrs, doc(cfg(feature = "eyre")))]
pub use client::{capture_eyre, capture_eyre_with};
pub use config::Config;
pub use context::Context;
pub use error::Error;
pub use event::Event;
pub use pipeline::Pending;
pub use report::{DropReason, Stats};
/// The type of an event's uuid, as in [`Receipt::uuid`] and [`reports::DeliveryNotice`]. It implements `Serialize`.
#[doc(no_inline)]
pub use uuid::Uuid;

pub mod feature_flags {
    //! Feature flags: evaluation, local definitions, and what is returned when PostHog cannot be reached.
    //!
    //! [`Client::evaluate_flags`](crate::Client::evaluate_flags) resolves to a snapshot, [`FeatureFlags`], of the flags
    //! of the person that a [`FlagContext`] describes.
    //! [`Client::is_feature_enabled`](crate::Client::is_feature_enabled) and its siblings look up one flag. With
    //! [`Config::secret_key`](crate::Config::secret_key) flags are evaluated in this process, without a request. No
    //! lookup fails, and none waits longer than [`Config::flag_request_timeout`](crate::Config::flag_request_timeout):
    //! in an outage the last known values apply, then the default. [`Event::flags`](crate::Event::flags) records on an
    //! event which flags its person had.

    pub use crate::client::{AllFlags, FeatureFlagResult, FeatureFlags, FlagsProblem};
    pub use crate::config::FlagsProtocol;
    pub use crate::flags::{
        AsyncFlagDefinitionProvider, FlagContext, FlagDefinitionProvider, FlagDefinitions, FlagDefinitionsError,
        FlagDefinitionsState, FlagValue, InconclusiveReason, LocalFlags, LocalValue, ParseFlagsError, ProviderError,
        ProviderFuture, RemoteConfigError,
    };
}

pub mod exceptions {
    //! Errors for PostHog's error tracking.
    //!
    //! [`Client::capture_exception`](crate::Client::capture_exception) takes any error, with its sources and the stack
    //! of the call. [`ExceptionOptions`] adds a person, a severity, properties or a fingerprint; [`AdHocError`] wraps a
    //! value that does not implement [`Error`](std::error::Error).

    #[doc(no_inline)]
    pub use crate::client::{capture_exception, capture_exception_with};
    pub use crate::config::TraceContext;
    pub use crate::event::exception::{AdHocError, CallStack, ExceptionOptions, Level, ParseLevelError};
}

pub mod crashes {
    //! Panics and fatal signals, and how the previous run of the program ended.
    //!
    //! After [`init`](crate::init), [`install_panic_hook`] has each panic leave a record beside the queue in one write,
    //! and with the feature `crash-signals`, `install_crash_handler` does the same for fatal signals. The next start of
    //! the program sends the record as an exception, with the time at which the crash happened. The process ends as it
    //! would have ended without them. [`Client::previous_run`](crate::Client::previous_run) says how the last run
    //! ended, also where it left no record.

    #[doc(no_inline)]
    pub use crate::client::breadcrumb;
    #[cfg(feature = "crash-signals")]
    #[cfg_attr(docsrs, doc(cfg(feature = "crash-signals")))]
    pub use crate::client::{install_crash_handler, register_thread, try_install_crash_handler};
    pub use crate::client::{install_panic_hook, try_install_panic_hook};
    pub use crate::crash::Breadcrumb;
    pub use crate::crash::exit::ExitCause;
    pub use crate::pipeline::PreviousRun;
}

pub mod stats {
    //! The state of the queue, of storage and of delivery: what [`Client::stats`](crate::Client::stats) returns, and
    //! how [`Client::health`](crate::Client::health) judges it.

    #[doc(no_inline)]
    pub use crate::report::Stats;
    pub use crate::report::{
        DeliveryPhase, Health, HealthCause, HealthProblem, HealthStatus, OrphanedQueues, QueueMedium, StorageMode,
        ThreadState,
    };
}

pub mod diagnostics {
    //! Problems that no return value reports.
    //!
    //! Each [`Diagnostic`] is kept in a ring of 128 ([`Client::diagnostics`](crate::Client::diagnostics)), passed to
    //! the program's callback ([`Config::on_diagnostic`](crate::Config::on_diagnostic)), and logged through `tracing`
    //! at a bounded rate.

    pub use crate::report::{Backlog, Diagnostic, DiagnosticCategory};
}

pub mod reports {
    //! The results of calls and callbacks about delivery: what was delivered, what remains, and why.

    pub use crate::client::DeadLetter;
    pub use crate::delivery::{DeliveryNotice, DeliveryOutcome};
    pub use crate::pipeline::PendingValue;
    #[doc(no_inline)]
    pub use crate::report::DropReason;
    pub use crate::report::{
        DeadLetterError, DeliveryReport, EndpointStatus, FlushReport, PersistError, ShutdownReport, WaitTimeout,
    };
}

pub mod settings {
    //! Values of settings: see the setters of [`Config`](crate::Config).

    pub use crate::config::{BeforeSend, CaptureProtocol, Compression};
    pub use crate::pipeline::OverflowPolicy;
}

pub mod termination {
    //! SIGTERM and SIGINT: delivering what is queued before the process ends. A server with a graceful shutdown of its
    //! own (axum) sets [`AfterDrain::App`], or does without: see [`drain_on_terminate`].

    #[doc(no_inline)]
    pub use crate::client::drain_on_terminate;
    pub use crate::client::{AfterDrain, DrainOptions};
}

/// The version of this library, as in the property `$lib_version` of each event.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Compiles the examples of the readme together with those of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The same for its continuation.
#[cfg(doctest)]
#[doc = include_str!("../docs/usage.md")]
struct Usage;

/// The points at which the crash tests can kill a process.
#[cfg(feature = "__crash_points")]
#[doc(hidden)]
pub fn __crash_point_names() -> &'static [&'static str] {
    sys::crash_point::NAMES
}
