//! Every knob, with its unit, default, least and most.
//!
//! [`Config`] is a builder by value: setters only remember what they were given, and nothing is looked at before a client is made.
//! Then `check.rs` holds every setting against its bounds in `limits`, all relations between settings included, and turns the lot into
//! the options of the floors below, none of which ever sees a `Config`. A setting that is out of bounds is an error that names it;
//! nothing is silently clamped. The setters are in `queue.rs`, `sending.rs`, `content.rs` and `flags.rs`; `choices.rs` has the settings that are a
//! choice among a few; `hooks.rs` has the `before_send` hook as a value; `endpoint.rs` has the rules for key, host and headers;
//! `env.rs` has what the environment says, and finds the queue directory.
//!
//! To add a knob: a field here, a setter beside its like, its bounds in `limits.rs`, a line in `check.rs`, and a line in the changelog. Its setter's
//! documentation names the unit, the default, and the least and most that are taken.

mod check;
mod choices;
mod content;
mod endpoint;
mod env;
mod flags;
mod hooks;
mod queue;
mod sending;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::delivery::OnDelivery;
use crate::diagnostics::DiagnosticHook;
use crate::pipeline::OverflowPolicy;
use crate::record::Pairs;
use crate::sys::limits;

pub(crate) use choices::ProxyChoice;
pub use choices::{CaptureProtocol, Compression, FlagsProtocol};
pub(crate) use content::Content;
pub(crate) use endpoint::HostReplaced;
use flags::FlagOptions;
pub(crate) use flags::FlagSettings;
pub use hooks::BeforeSend;

/// The settings of a client.
///
/// ```
/// use std::time::Duration;
/// use posthog::{Config, OverflowPolicy};
///
/// let config = Config::new("phc_example")
///     .host("https://eu.i.posthog.com")
///     .queue_dir("/var/lib/mydaemon/posthog")
///     .flush_interval(Duration::from_secs(2))
///     .max_queue_bytes(256 * 1024 * 1024)
///     .overflow(OverflowPolicy::DropOldest);
/// # let _ = config;
/// ```
#[derive(Clone)]
#[must_use = "a configuration does nothing by itself: give it to `Client::new` or `init`"]
pub struct Config {
    pub(super) disabled: bool,
    /// Disabled because the environment has no key.
    pub(super) key_is_missing: bool,
    pub(super) api_key: String,
    pub(super) host: String,
    pub(super) queue_dir: Option<PathBuf>,
    pub(super) memory_fallback: bool,
    pub(super) ai_lane: bool,
    pub(super) report_previous_run: bool,
    pub(super) adopt_queue: Vec<(String, String)>,
    pub(super) flush_at: usize,
    pub(super) flush_interval: Duration,
    pub(super) sync_interval: Duration,
    pub(super) ack_interval: Duration,
    pub(super) shutdown_timeout: Duration,
    pub(super) journal_bytes: usize,
    pub(super) max_event_bytes: usize,
    pub(super) max_queue_bytes: u64,
    pub(super) max_queue_events: Option<u64>,
    pub(super) max_queue_age: Option<Duration>,
    pub(super) min_free_space: u64,
    pub(super) overflow: OverflowPolicy,
    pub(super) max_batch_events: usize,
    pub(super) max_batch_bytes: usize,
    pub(super) max_in_flight: usize,
    pub(super) max_retries: u32,
    pub(super) retry_backoff: (Duration, Duration),
    pub(super) retry_after_cap: Duration,
    pub(super) first_send_jitter: Duration,
    pub(super) request_timeout: Duration,
    /// `None` gives way to a shorter `request_timeout`.
    pub(super) connect_timeout: Option<Duration>,
    pub(super) proxy: ProxyChoice,
    pub(super) ca_certificates: Vec<Vec<u8>>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) compression: Compression,
    pub(super) protocol: CaptureProtocol,
    pub(super) historical_migration: bool,
    pub(super) disable_geoip: bool,
    pub(super) flags: FlagOptions,
    pub(super) exact_timestamps: bool,
    pub(super) opted_out: bool,
    pub(super) super_properties: Vec<Result<Pairs, String>>,
    pub(super) symbolicate: bool,
    pub(super) source_context: bool,
    pub(super) tracing_hosts: Vec<String>,
    pub(super) before_send: Vec<BeforeSend>,
    pub(super) on_delivery: Option<OnDelivery>,
    pub(super) on_diagnostic: Option<DiagnosticHook>,
}

impl Config {
    /// Settings for the project of that key (`phc_...`), everything else at its default.
    pub fn new(api_key: impl Into<String>) -> Self {
        Self {
            disabled: false,
            key_is_missing: false,
            api_key: api_key.into(),
            host: "https://us.i.posthog.com".into(),
            queue_dir: None,
            memory_fallback: false,
            ai_lane: false,
            report_previous_run: false,
            adopt_queue: Vec::new(),
            flush_at: limits::FLUSH_AT_DEFAULT,
            flush_interval: limits::FLUSH_INTERVAL_DEFAULT,
            sync_interval: limits::SYNC_INTERVAL_DEFAULT,
            ack_interval: limits::ACK_INTERVAL_DEFAULT,
            shutdown_timeout: limits::SHUTDOWN_TIMEOUT_DEFAULT,
            journal_bytes: limits::JOURNAL_BYTES_DEFAULT,
            max_event_bytes: limits::EVENT_BYTES_DEFAULT,
            max_queue_bytes: limits::QUEUE_BYTES_DEFAULT,
            max_queue_events: None,
            max_queue_age: None,
            min_free_space: limits::MIN_FREE_SPACE_DEFAULT,
            overflow: OverflowPolicy::default(),
            max_batch_events: limits::MAX_BATCH_EVENTS_DEFAULT,
            max_batch_bytes: limits::MAX_BATCH_BYTES_DEFAULT,
            max_in_flight: limits::MAX_IN_FLIGHT_DEFAULT,
            max_retries: limits::MAX_RETRIES_DEFAULT,
            retry_backoff: limits::RETRY_BACKOFF_DEFAULT,
            retry_after_cap: limits::RETRY_AFTER_CAP_DEFAULT,
            first_send_jitter: Duration::from_secs(1),
            request_timeout: limits::REQUEST_TIMEOUT_DEFAULT,
            connect_timeout: None,
            proxy: ProxyChoice::FromEnv,
            ca_certificates: Vec::new(),
            headers: Vec::new(),
            compression: Compression::default(),
            protocol: CaptureProtocol::default(),
            historical_migration: false,
            disable_geoip: false,
            flags: FlagOptions::default(),
            exact_timestamps: false,
            opted_out: false,
            super_properties: Vec::new(),
            symbolicate: true,
            source_context: false,
            tracing_hosts: Vec::new(),
            before_send: Vec::new(),
            on_delivery: None,
            on_diagnostic: None,
        }
    }

    /// A client that takes nothing, opens nothing and starts no thread: every capture is `Dropped(Disabled)`. For an application
    /// without a key, so that its call sites need no `Option`.
    pub fn disabled() -> Self {
        Self { disabled: true, ..Self::new("") }
    }

    /// The same, and it says that it is not what was meant.
    pub(crate) fn without_key() -> Self {
        Self { key_is_missing: true, ..Self::disabled() }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As a client that is made now would choose it.
        let place = self.place().map_or_else(|error| error.to_string(), |dir| format!("{dir:?}"));
        // Keys, proxy passwords and headers stay out of logs.
        f.debug_struct("Config")
            .field("disabled", &self.disabled)
            .field("host", &self.host)
            .field("queue_dir", &format_args!("{place}"))
            .field("overflow", &self.overflow)
            .finish_non_exhaustive()
    }
}
