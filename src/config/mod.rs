//! [`Config`]: every setting, with its unit, default and bounds.
//!
//! `Config` is a builder by value. Setters only store what they are given; nothing is checked before a client is
//! created. Then `check.rs` compares every setting with its bounds in `sys/limits` and with the other settings, and
//! builds the options of the layers below, which never see a `Config`. A setting out of bounds is an error that names
//! it; no value is clamped.
//!
//! * This file: the struct and its setters; those for feature flags are in `flags.rs`.
//! * `values.rs`: enums and the `before_send` hook, as values of settings.
//! * `endpoint.rs`: the rules for keys, hosts and headers. `env.rs`: the key, the host and the queue directory from the
//!   environment; `variables.rs`: all other settings that have an environment variable.
//!
//! To add a setting: a field and a setter here, its bounds in `limits`, a check in `check.rs`, and a line in the
//! changelog. The documentation of a setter names the unit, the default and the bounds.

mod check;
mod endpoint;
mod env;
mod flags;
mod values;
mod variables;

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use crate::delivery::{CaptureProtocol, Compression};
use crate::delivery::{DeliveryNotice, OnDelivery};
use crate::event::Event;
use crate::pipeline::OverflowPolicy;
use crate::record::Pairs;
use crate::record::symbols::InAppRules;
use crate::recorder::DiagnosticHook;
use crate::report::Diagnostic;
use crate::sys::limits;
use crate::transport::{ClientIdentity, Proxy};

pub(crate) use check::Settings;
#[cfg(feature = "inspect")]
pub(crate) use endpoint::former_projects;
use flags::FlagOptions;
pub(crate) use flags::FlagSettings;
use values::TraceSource;
pub use values::{BeforeSend, FlagsProtocol, TraceContext};
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use variables::apply_any as apply_any_variables;
#[cfg(test)]
pub(crate) use variables::names as variable_names;

/// The settings of a client.
///
/// ```
/// use std::time::Duration;
/// use posthog::Config;
/// use posthog::settings::OverflowPolicy;
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
    /// Whether it is disabled because the environment has no key.
    pub(super) key_is_missing: bool,
    pub(super) api_key: String,
    pub(super) host: String,
    /// Whether key and host come from the environment, for errors.
    pub(super) is_key_of_env: bool,
    pub(super) is_host_of_env: bool,
    /// Environment variables that could not be used, each as a sentence.
    pub(super) ignored_variables: Vec<String>,
    pub(super) queue_dir: Option<PathBuf>,
    pub(super) memory_fallback: bool,
    pub(super) ai_lane: bool,
    pub(super) report_previous_run: bool,
    pub(super) breadcrumb_events: bool,
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
    /// `None`: the default, or `request_timeout` if that is shorter.
    pub(super) connect_timeout: Option<Duration>,
    pub(super) proxy: Proxy,
    pub(super) ca_certificates: Vec<Vec<u8>>,
    pub(super) client_identity: Option<ClientIdentity>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) compression: Compression,
    pub(super) protocol: CaptureProtocol,
    pub(super) historical_migration: bool,
    pub(super) disable_geoip: bool,
    pub(super) flags: FlagOptions,
    pub(super) exact_timestamps: bool,
    pub(super) opted_out: bool,
    pub(super) super_properties: Vec<Result<Pairs, String>>,
    pub(super) release: Option<(String, String)>,
    pub(super) symbolicate: bool,
    pub(super) source_context: bool,
    pub(super) exception_rate_limit: (u32, Duration),
    pub(super) trace_context: Option<TraceSource>,
    pub(super) in_app: InAppRules,
    pub(super) tracing_hosts: Vec<String>,
    pub(super) before_send: Vec<BeforeSend>,
    pub(super) on_delivery: Option<OnDelivery>,
    pub(super) on_diagnostic: Option<DiagnosticHook>,
}

impl Config {
    /// Settings for the project with this key (`phc_...`). Everything else has its default.
    pub fn new(api_key: impl Into<String>) -> Self {
        Self {
            disabled: false,
            key_is_missing: false,
            api_key: api_key.into(),
            host: "https://us.i.posthog.com".into(),
            is_key_of_env: false,
            is_host_of_env: false,
            ignored_variables: Vec::new(),
            queue_dir: None,
            memory_fallback: false,
            ai_lane: false,
            report_previous_run: false,
            breadcrumb_events: true,
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
            proxy: Proxy::FromEnv,
            ca_certificates: Vec::new(),
            client_identity: None,
            headers: Vec::new(),
            compression: Compression::default(),
            protocol: CaptureProtocol::default(),
            historical_migration: false,
            disable_geoip: false,
            flags: FlagOptions::default(),
            exact_timestamps: false,
            opted_out: false,
            super_properties: Vec::new(),
            release: None,
            symbolicate: true,
            source_context: false,
            exception_rate_limit: limits::EXCEPTION_RATE_DEFAULT,
            trace_context: None,
            in_app: InAppRules::default(),
            tracing_hosts: Vec::new(),
            before_send: Vec::new(),
            on_delivery: None,
            on_diagnostic: None,
        }
    }

    /// A client that accepts nothing, opens nothing and starts no thread: every capture is `Dropped(Disabled)`. For an
    /// application without a key, so that its call sites need no `Option`.
    pub fn disabled() -> Self {
        Self { disabled: true, ..Self::new("") }
    }

    /// As [`disabled`](Self::disabled), and the client reports that the key is missing.
    pub(crate) fn without_key() -> Self {
        Self { key_is_missing: true, ..Self::disabled() }
    }
}

/// The queue: where it is, how much it holds, how soon it is durable.
impl Config {
    /// The directory of the queues, one for each project. It must be on a local disk that outlives the process.
    /// Default: `$POSTHOG_QUEUE_DIR`, else `$STATE_DIRECTORY/posthog` (its first entry), else
    /// `$XDG_STATE_HOME/posthog`, else `~/.local/state/posthog`; never a temporary directory.
    ///
    /// It should belong to the user of the process or to root, and no other user should be able to write to it. Queues
    /// in it are created for that user alone: a queue that another user owns, or that every user may write to, is not
    /// used.
    pub fn queue_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.queue_dir = Some(dir.into());
        self
    }

    /// Whether the client works in memory, instead of failing, when the queue directory cannot be used, does not
    /// respond in time, or is not configured at all. Events in memory are bounded as on disk and are lost with the
    /// process; `stats().storage`, a diagnostic and every receipt say so. Default: off.
    pub fn memory_fallback(mut self, fallback: bool) -> Self {
        self.memory_fallback = fallback;
        self
    }

    /// Whether the queue of AI events is opened together with the client. Otherwise the first
    /// [`capture_ai`](crate::Client::capture_ai) opens it, and waits for that. It takes 32 MiB of disk. Default: off. A
    /// queue in which an earlier process left AI events is opened in any case.
    pub fn open_ai_queue(mut self, on: bool) -> Self {
        self.ai_lane = on;
        self
    }

    /// Also delivers the queue of an earlier key or host, under the present key and to the present host. May be called
    /// several times.
    pub fn adopt_queue(mut self, api_key: impl Into<String>, host: impl Into<String>) -> Self {
        self.adopt_queue.push((api_key.into(), host.into()));
        self
    }

    /// How soon after a capture an event is durable against power cuts, at the latest: the most that a power cut can
    /// cost. It is synced at once if [`persisted`](crate::Receipt::persisted) is awaited. Default 100 ms, from 1 ms to
    /// 60 s.
    pub fn sync_interval(mut self, interval: Duration) -> Self {
        self.sync_interval = interval;
        self
    }

    /// How long a delivered event may stay in the queue's file, at most. A process that is killed in this time sends it
    /// again, with the same uuid. Default 1 s, from 10 ms to 60 s.
    pub fn ack_interval(mut self, interval: Duration) -> Self {
        self.ack_interval = interval;
        self
    }

    /// Bytes of one journal arena: the size of a burst that can be accepted at once. There are two to four arenas,
    /// mapped into memory, created when they are needed and kept for the next process. Default 8 MiB, from 64 KiB and
    /// four times the largest event, to 256 MiB.
    pub fn journal_bytes(mut self, bytes: usize) -> Self {
        self.journal_bytes = bytes;
        self
    }

    /// Bytes of the largest event, encoded. A larger one is `Dropped(TooLarge)`. Default 1 MiB, from 1 KiB to 16 MiB.
    /// AI events may take 8 MiB in any case.
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// Bytes that the queued events of this process may take on the disk, including those in the journal. Default 1
    /// GiB, from 1 MiB to 1 TiB. In a directory that is in memory, at most 64 MiB or a tenth of the container's memory.
    /// The queue of AI events has the same bound for itself, but at least 64 MiB.
    ///
    /// Small events use nearly all of it; a large one may take up to twice its bytes. So one event may take at most
    /// half of the bound, whatever [`max_event_bytes`](Self::max_event_bytes) is: with less than 2 MiB and 8 KiB that
    /// is less than its default.
    ///
    /// The file `queue.redb` may take more: an eighth, kept for exceptions and identity events; 1 MiB for data other
    /// than events; with [`OverflowPolicy::DropOldest`], what is checkpointed into it at once, at most one
    /// [`journal_bytes`](Self::journal_bytes); and the dead letters, which are kept as far as they fit an eighth of
    /// this bound (at least 1 MiB), at twice their bytes. Its blocks on the disk (`du`, not `ls -l`) stay within that.
    /// In all, a process takes at most
    ///
    /// ```text
    /// max_queue_bytes * 9/8 + 1 MiB     the queue's file
    /// + max_queue_bytes / 4             the dead letters in it, at least 2 MiB
    /// + journal_bytes                   with OverflowPolicy::DropOldest
    /// + journal_bytes * 4               the journal; two of them unless there are bursts
    /// + 1 MiB                           the reserve, for deletes on a full disk
    /// ```
    ///
    /// and for a moment the queue's file twice, if it is copied because its disk failed. Each process, and each forked
    /// child that captures, has a queue of its own with these bounds.
    pub fn max_queue_bytes(mut self, bytes: u64) -> Self {
        self.max_queue_bytes = bytes;
        self
    }

    /// Number of events that may be queued, in the journal and in the store. Default: bounded by bytes only. Minimum:
    /// one event. The bound is exact, with an eighth more for exceptions and identity events; delivered events count
    /// until their ack is committed ([`ack_interval`](Self::ack_interval)). With [`OverflowPolicy::DropOldest`] it
    /// bounds the store: events since the last commit (a second, or [`flush_interval`](Self::flush_interval)) come on
    /// top, and events that are in flight stay.
    pub fn max_queue_events(mut self, events: u64) -> Self {
        self.max_queue_events = Some(events);
        self
    }

    /// Age at which queued events are deleted undelivered. Default: never. At least 1 s. An event is never deleted
    /// before a delivery was tried, nor while the wall clock disagrees with the time that has passed; after the clock
    /// was set, ages count again once it has been steady for six hours. Time that the machine has slept counts.
    pub fn max_queue_age(mut self, age: Duration) -> Self {
        self.max_queue_age = Some(age);
        self
    }

    /// Free space of the file system that is left to other programs, in bytes: with less, events are
    /// `Dropped(DiskFull)`. Default 32 MiB, at most 1 TiB.
    pub fn min_free_space(mut self, bytes: u64) -> Self {
        self.min_free_space = bytes;
        self
    }

    /// What happens to a capture when the queue has reached its bounds. Default [`OverflowPolicy::DropNewest`].
    /// [`OverflowPolicy::Block`] waits for at most 1 h.
    pub fn overflow(mut self, overflow: OverflowPolicy) -> Self {
        self.overflow = overflow;
        self
    }
}

/// Delivery: where to, when, how much at once, through which network.
impl Config {
    /// Where events are sent: `http://` or `https://`, a host, and optionally a port and the path of a reverse proxy.
    /// `https://` may be left out; the path of an endpoint (`/batch/`) must be. Default `https://us.i.posthog.com`.
    /// PostHog's app (`app.posthog.com`, `us.posthog.com`, `eu.posthog.com`) is replaced by its ingestion host, as in
    /// PostHog's own libraries ([`Diagnostic::HostReplaced`](crate::diagnostics::Diagnostic::HostReplaced)).
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
        self.is_host_of_env = false;
        self
    }

    /// Number of events that makes a batch due, whatever their age. Default 20, from 1 to 1,000,000. Events are
    /// checkpointed at most about once a second, and those that have gathered by then are sent together.
    pub fn flush_at(mut self, events: usize) -> Self {
        self.flush_at = events;
        self
    }

    /// Age of the oldest waiting event that makes a batch due. Default 5 s, from 10 ms to 1 h.
    pub fn flush_interval(mut self, interval: Duration) -> Self {
        self.flush_interval = interval;
        self
    }

    /// How long [`Client::close`](crate::Client::close) delivers. Default 10 s, at most 1 h.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Events in one request. Default 1000, from 1 to 100,000.
    pub fn max_batch_events(mut self, events: usize) -> Self {
        self.max_batch_events = events;
        self
    }

    /// Bytes of JSON in one request, before compression. Default 4 MiB, from 16 KiB to 19 MiB (PostHog accepts 20).
    pub fn max_batch_bytes(mut self, bytes: usize) -> Self {
        self.max_batch_bytes = bytes;
        self
    }

    /// Requests in flight at the same time. Default 4, from 1 to 64.
    pub fn max_in_flight(mut self, requests: usize) -> Self {
        self.max_in_flight = requests;
        self
    }

    /// Requests that are retried before a cooldown of at least 30 s. No event is ever dropped because of the number of
    /// attempts. Default 3, at most 100.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = retries;
        self
    }

    /// The longest wait after a first failure, and after any failure. In between it doubles, and the actual wait is
    /// drawn at random below it. Default 1 s and 30 s, from 100 ms to 10 min.
    pub fn retry_backoff(mut self, first: Duration, most: Duration) -> Self {
        self.retry_backoff = (first, most);
        self
    }

    /// The longest `Retry-After` of a server that is respected. Default 1 h, from 1 s to 24 h.
    pub fn retry_after_cap(mut self, cap: Duration) -> Self {
        self.retry_after_cap = cap;
        self
    }

    /// A process that starts with queued events waits a random time up to this before it sends, because thousands of
    /// processes may start at once. Default 1 s, at most 10 min; zero sends at once.
    pub fn first_send_jitter(mut self, jitter: Duration) -> Self {
        self.first_send_jitter = jitter;
        self
    }

    /// Time for one request, including the connection. Default 30 s, from 50 ms to 10 min.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Time for DNS, TCP and TLS together. Default 10 s, or [`request_timeout`](Self::request_timeout) if that is less;
    /// from 50 ms to `request_timeout`.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// Uses this proxy (`http://[user:password@]host[:port]`), whatever the environment says. Default: `https_proxy`,
    /// `http_proxy`, `all_proxy` and `no_proxy` of the environment, read once, as curl reads them; see
    /// `docs/delivery.md`.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Proxy::Url(url.into());
        self
    }

    /// Connects directly, whatever the environment says.
    pub fn no_proxy(mut self) -> Self {
        self.proxy = Proxy::None;
        self
    }

    /// Trusts a certificate authority (PEM, one or more certificates) in addition to those of the machine. May be
    /// called several times.
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_certificates.push(pem.into());
        self
    }

    /// The certificate that this client presents to an endpoint that asks for one (mutual TLS), and its private key, as
    /// PEM texts. The first certificate is the client's own; those of its issuers follow. The key is in PKCS#8, PKCS#1 or
    /// SEC1 form, without a passphrase. Used for all requests, including those for flags and those through a proxy. An
    /// identity that cannot be used is an error when the client is created. Default: none.
    ///
    /// The texts stay in use as long as the client. Certificates that are renewed need
    /// [`client_identity_files`](Self::client_identity_files). The later of the two calls counts.
    pub fn client_identity(mut self, certificates: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.client_identity = Some(ClientIdentity::Pem { certificates: certificates.into(), key: key.into() });
        self
    }

    /// As [`client_identity`](Self::client_identity), from two files, which may be the same file. They are read when the
    /// client is created, and again whenever a connection is made, so that renewed certificates are used without a
    /// restart. Connections that exist keep their certificate until they are closed (after 30 s without a request). If
    /// the files cannot be used later, for example because only one of them has been replaced yet, the last good
    /// identity stays in use; if the endpoint then refuses it, the reported failure says so.
    ///
    /// ```
    /// use posthog::Config;
    ///
    /// let config = Config::new("phc_example")
    ///     .host("https://posthog.internal.example.com")
    ///     .client_identity_files("/etc/mydaemon/client.crt", "/etc/mydaemon/client.key");
    /// # let _ = config;
    /// ```
    pub fn client_identity_files(mut self, certificates: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.client_identity = Some(ClientIdentity::Files { certificates: certificates.into(), key: key.into() });
        self
    }

    /// Adds a header to every request. May be called several times. Headers that the library sets itself
    /// (`Content-Type`, `Authorization`, `Host` and the like, and all that begin with `PostHog-`) are an error.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// How request bodies are compressed. Default [`Compression::Gzip`]. The others, except [`Compression::None`], need
    /// [`CaptureProtocol::V1`].
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// The protocol of the capture endpoint. Default [`CaptureProtocol::V0`].
    pub fn protocol(mut self, protocol: CaptureProtocol) -> Self {
        self.protocol = protocol;
        self
    }
}

/// The content of events, and the callbacks of the program.
impl Config {
    /// Marks all events as an import of old events. Default: off.
    pub fn historical_migration(mut self, on: bool) -> Self {
        self.historical_migration = on;
        self
    }

    /// Asks PostHog not to look up the location of the sending machine (`$geoip_disable`). Default: off.
    pub fn disable_geoip(mut self, on: bool) -> Self {
        self.disable_geoip = on;
        self
    }

    /// Asks PostHog to use timestamps as they are (`$ignore_sent_at`), instead of correcting them by the difference
    /// between its clock and this machine's. Then a retry never lands on another day than the first attempt, where
    /// PostHog's de-duplication ends; but a wrong clock gives wrong times. Default: off.
    pub fn exact_timestamps(mut self, on: bool) -> Self {
        self.exact_timestamps = on;
        self
    }

    /// Whether events come from a server, which is PostHog's default: the property `$is_server` of every event that
    /// does not have it. Default: on.
    pub fn is_server(self, on: bool) -> Self {
        // Events are those of a server by default, so only the opposite needs a property.
        if on { self } else { self.super_property("$is_server", false) }
    }

    /// Sets a property of every event that has it neither itself nor from its [`Context`](crate::Context). Encoded
    /// once. At run time: [`Client::register`](crate::Client::register).
    pub fn super_property(mut self, key: impl AsRef<str>, value: impl Serialize) -> Self {
        let pair =
            Pairs::one(key.as_ref(), &value).map_err(|reason| format!("the value of {:?}: {reason}", key.as_ref()));
        self.super_properties.push(pair);
        self
    }

    /// The release of the program, for all events that have no other: its name (`$app_namespace`) and its version
    /// (`$app_version`), each of at most 256 bytes. PostHog's error tracking shows by them in which release an
    /// exception occurred, if there is a release of the same name and version; `posthog-cli` creates it
    /// (`--release-name`, `--release-version`). Default: none.
    ///
    /// A release that was created at deployment is named by its id instead: if the environment has `POSTHOG_RELEASE_ID`
    /// when the client is created, all events have it as `$release_id`, and PostHog prefers it. A crash report has the
    /// release of the process that crashed.
    ///
    /// ```
    /// let config = posthog::Config::new("phc_example").release(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    /// # let _ = config;
    /// ```
    pub fn release(mut self, name: impl Into<String>, version: impl Into<String>) -> Self {
        self.release = Some((name.into(), version.into()));
        self
    }

    /// Whether the addresses of stacks are resolved to names before they are sent, as far as the build that sends has
    /// symbols. It happens on the delivery thread and takes 50 to 300 ms for the first stack of a place, depending on
    /// the size of the executable, and nothing for the next. Not done if the executable is larger than 1 GiB, has no
    /// build id, or belongs to the forked child of a process that had a client. PostHog resolves what this library does
    /// not, if symbols were uploaded; addresses and build ids are always sent. Default: on.
    pub fn symbolicate(mut self, on: bool) -> Self {
        self.symbolicate = on;
        self
    }

    /// Whether frames of the program's own code are sent with their line of source and five lines around it, read when
    /// the event is sent from the path in the debug information. That works on the machine that built the program.
    /// PostHog itself shows uploaded sources only (`posthog-cli symbol-sets upload --include-source`) and does not read
    /// these; they are for other readers of the events.
    /// Needs [`symbolicate`](Self::symbolicate). Default: off, because it sends source code to PostHog and looks for
    /// files that a production machine does not have.
    pub fn source_context(mut self, on: bool) -> Self {
        self.source_context = on;
        self
    }

    /// Frames that are the program's own (`in_app`) although the library takes them for those of a library: all whose
    /// source path (`/build/vendor/ours/`) or function path (`our_crate::`) begins with one of these. PostHog shows and
    /// groups exceptions by the frames that are the program's own. May be called several times. Default: none, see
    /// `docs/crashes.md` for the rules that apply otherwise.
    ///
    /// The paths are those of the debug information. A frame without a name and a file matches nothing.
    pub fn in_app_include<P: Into<String>>(mut self, prefixes: impl IntoIterator<Item = P>) -> Self {
        self.in_app.included.extend(prefixes.into_iter().map(Into::into));
        self
    }

    /// Frames that are not the program's own, as [`in_app_include`](Self::in_app_include), which this overrides:
    /// generated code, or a crate of the workspace that calls all others. May be called several times.
    ///
    /// ```
    /// let config = posthog::Config::new("phc_example").in_app_exclude(["our_framework::", "src/generated/"]);
    /// # let _ = config;
    /// ```
    pub fn in_app_exclude<P: Into<String>>(mut self, prefixes: impl IntoIterator<Item = P>) -> Self {
        self.in_app.excluded.extend(prefixes.into_iter().map(Into::into));
        self
    }

    /// How many captured exceptions of one type and place may come at once, and the time after which one more may (a
    /// token bucket for each). Further ones are [`Dropped(RateLimited)`](crate::DropReason::RateLimited), and the next
    /// one that passes has the number of those before it in the property `exception_missed_before`. Default 10 and 10
    /// s, as in PostHog's own libraries; 0 turns the limit off. At most 100,000; from 1 ms to 24 h.
    ///
    /// The type is that of the outermost error, the place is the source line that calls
    /// [`capture_exception`](crate::Client::capture_exception) (or
    /// [`rate_limit_key`](crate::exceptions::ExceptionOptions::rate_limit_key)). The last 1024 of them are remembered.
    /// The limit is checked before the error is read and the stack is captured, so a dropped exception costs next to
    /// nothing. Panics and crashes are not limited by this setting; those of one place have a limit of their own.
    pub fn exception_rate_limit(mut self, burst: u32, refill: Duration) -> Self {
        self.exception_rate_limit = (burst, refill);
        self
    }

    /// Starts opted out: see [`Client::opt_out`](crate::Client::opt_out). Default: off.
    pub fn opted_out(mut self, opted_out: bool) -> Self {
        self.opted_out = opted_out;
        self
    }

    /// Captures an event `previous_run_ended` when the client opens the queue of an earlier run: how that run ended,
    /// how long it ran, and how many events it left. Properties: `cause`
    /// ([`ExitCause::name`](crate::crashes::ExitCause::name)), `signal` or `exit_status` if there is one, `pid`,
    /// `started_at`, `uptime_seconds`, `queued_events`, and `machine_restarted` if that is known; see
    /// [`PreviousRun`](crate::crashes::PreviousRun). The event has a distinct id of its own, and PostHog creates no
    /// person for it. It passes hooks and gets super properties as any event, on the thread that creates the client.
    /// Default: off.
    pub fn report_previous_run(mut self, on: bool) -> Self {
        self.report_previous_run = on;
        self
    }

    /// Whether names of captured events become breadcrumbs, while a panic hook or crash handler is installed: see
    /// [`Client::breadcrumb`](crate::Client::breadcrumb). Turn it off in a program that captures so many events that
    /// they displace the breadcrumbs of its log lines. Default: on.
    pub fn breadcrumb_events(mut self, on: bool) -> Self {
        self.breadcrumb_events = on;
        self
    }

    /// Hosts whose requests may carry the context's distinct id and session id (see
    /// [`Client::tracing_headers`](crate::Client::tracing_headers)): names such as `api.example.com`, without scheme,
    /// port or path. Subdomains are included. Default: none. May be called several times.
    pub fn tracing_hosts<H: Into<String>>(mut self, hosts: impl IntoIterator<Item = H>) -> Self {
        self.tracing_hosts.extend(hosts.into_iter().map(Into::into));
        self
    }

    /// Adds a hook that sees each event on the caller's thread before any of it reaches the disk. It returns the event,
    /// changed or not, or `None` to drop it. Hooks run in the order in which they were added, on all events except
    /// those that a hook itself captures. A hook that panics drops the event; in a program built with `panic = "abort"`
    /// it ends the process, and no accepted event is lost. At run time:
    /// [`Client::set_before_send`](crate::Client::set_before_send).
    pub fn before_send(mut self, hook: impl Fn(Event) -> Option<Event> + Send + Sync + 'static) -> Self {
        self.before_send.push(BeforeSend::new(hook));
        self
    }

    /// A function that returns the trace of the calling thread. It is called for each captured exception, on the thread
    /// that captures it, and the exception gets the ids as `$trace_id` and `$span_id`, by which PostHog links it to logs
    /// and spans. An exception that has one of these properties already keeps what it has. `None`: there is no trace.
    /// Not called for exceptions that are dropped before they are read, and not for panics and crashes. It must be
    /// quick. A panic in it is caught and reported, and the exception is sent without the ids. Default: none.
    ///
    /// With OpenTelemetry, also where `tracing-opentelemetry` (0.32 and later) makes its spans from those of `tracing`:
    ///
    // Not compiled here: it needs a package of OpenTelemetry. The same code runs in
    // `an_exception_has_the_ids_of_its_opentelemetry_span` (tests/tested_program).
    /// ```ignore
    /// use opentelemetry::trace::TraceContextExt;
    /// use posthog::exceptions::TraceContext;
    ///
    /// let config = posthog::Config::from_env().trace_context(|| {
    ///     let context = opentelemetry::Context::current();
    ///     let span = context.span();
    ///     let ids = span.span_context();
    ///     ids.is_valid().then(|| TraceContext::new(ids.trace_id(), ids.span_id()))
    /// });
    /// ```
    ///
    /// `tracing::Span::current()` is not the way: for an exception that the layer of the feature `tracing` makes of a line,
    /// the function is called while that line is dispatched, and then there may be no current span.
    pub fn trace_context(mut self, source: impl Fn() -> Option<TraceContext> + Send + Sync + 'static) -> Self {
        self.trace_context = Some(TraceSource::new(source));
        self
    }

    /// A callback for the result of delivery. It runs on the delivery thread and must be quick. A panic in it is caught
    /// and reported.
    pub fn on_delivery(mut self, hook: impl Fn(&DeliveryNotice<'_>) + Send + Sync + 'static) -> Self {
        self.on_delivery = Some(Arc::new(hook));
        self
    }

    /// A callback for each [`Diagnostic`], on the thread that records it. It must be quick. Events captured inside it
    /// pass the [`before_send`](Self::before_send) hooks as all events do; events captured while diagnostics of *those*
    /// are reported are [`Dropped(Reentrant)`](crate::DropReason::Reentrant), so that there is no endless loop.
    pub fn on_diagnostic(mut self, hook: impl Fn(&Diagnostic) + Send + Sync + 'static) -> Self {
        self.on_diagnostic = Some(Arc::new(hook));
        self
    }
}

/// For commands of an operator, who delivers a queue in place of its program.
#[cfg(feature = "inspect")]
impl Config {
    /// The project that this key and host name, as a client would understand them.
    pub(crate) fn project_of(api_key: &str, host: &str) -> Result<crate::queue::Project, crate::error::Error> {
        endpoint::project(api_key, host).map(|(project, _)| project)
    }

    /// These settings for delivering the queues of this project and nothing else: events are sent at once, none is
    /// deleted because of its age, and none of another project is sent.
    pub(crate) fn delivering(self, project: &crate::queue::Project, queue_dir: &std::path::Path) -> Self {
        Self {
            disabled: false,
            key_is_missing: false,
            api_key: project.api_key.clone(),
            host: project.host.clone(),
            is_key_of_env: false,
            is_host_of_env: false,
            queue_dir: Some(queue_dir.to_path_buf()),
            memory_fallback: false,
            report_previous_run: false,
            adopt_queue: Vec::new(),
            flush_at: 1,
            flush_interval: Duration::from_millis(100),
            ack_interval: Duration::from_millis(200),
            max_queue_age: None,
            overflow: OverflowPolicy::DropNewest,
            first_send_jitter: Duration::ZERO,
            flags: FlagOptions::default(),
            opted_out: false,
            ..self
        }
    }
}

// Setters only store, and callbacks of the program are called inside of `catch_unwind`.
impl UnwindSafe for Config {}
impl RefUnwindSafe for Config {}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The directory that a client created now would use.
        let place = self.place().map_or_else(|error| error.to_string(), |dir| format!("{dir:?}"));
        // Keys, proxy passwords and headers must not reach logs.
        f.debug_struct("Config")
            .field("disabled", &self.disabled)
            .field("host", &self.host)
            .field("queue_dir", &format_args!("{place}"))
            .field("overflow", &self.overflow)
            .finish_non_exhaustive()
    }
}
