//! Every knob, with its unit, default, least and most.
//!
//! [`Config`] is a builder by value: setters only remember what they were given, and nothing is looked at before a client is made.
//! Then `check.rs` holds every setting against its bounds in `limits`, all relations between settings included, and turns the lot into
//! the options of the floors below, none of which ever sees a `Config`. A setting that is out of bounds is an error that names it;
//! nothing is silently clamped. `choices.rs` has the settings that are a choice among a few; `env.rs` has what the environment
//! says, and finds the queue directory where none is given.
//!
//! To add a knob: a field and a setter here, its bounds in `limits.rs`, a line in `check.rs`, and a line in the changelog. Its setter's
//! documentation names the unit, the default, and the least and most that are taken.

mod check;
mod choices;
mod env;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::delivery::{Delivery, OnDelivery};
use crate::diagnostics::{Diagnostic, DiagnosticHook};
use crate::event::Event;
use crate::limits;
use crate::worker::Overflow;

pub(crate) use choices::ProxyChoice;
pub use choices::{Compression, Protocol};

/// Looks at each event on the caller's thread before anything of it reaches the disk, and may change or drop it.
pub(crate) type BeforeSend = Arc<dyn Fn(Event) -> Option<Event> + Send + Sync>;

/// The settings of a client.
///
/// ```
/// use std::time::Duration;
/// use posthog::{Config, Overflow};
///
/// let config = Config::new("phc_example")
///     .host("https://eu.i.posthog.com")
///     .queue_dir("/var/lib/mydaemon/posthog")
///     .flush_interval(Duration::from_secs(2))
///     .max_queue_bytes(256 * 1024 * 1024)
///     .overflow(Overflow::DropOldest);
/// # let _ = config;
/// ```
#[derive(Clone)]
#[must_use = "a configuration does nothing by itself: give it to `Client::new` or `init`"]
pub struct Config {
    pub(super) disabled: bool,
    pub(super) api_key: String,
    pub(super) host: String,
    pub(super) queue_dir: Option<PathBuf>,
    pub(super) memory_fallback: bool,
    pub(super) also_deliver: Vec<(String, String)>,
    pub(super) flush_at: usize,
    pub(super) flush_interval: Duration,
    pub(super) sync_interval: Duration,
    pub(super) settle_interval: Duration,
    pub(super) shutdown_timeout: Duration,
    pub(super) journal_bytes: usize,
    pub(super) max_event_bytes: usize,
    pub(super) max_queue_bytes: u64,
    pub(super) max_queue_events: Option<u64>,
    pub(super) max_queue_age: Option<Duration>,
    pub(super) free_space_floor: u64,
    pub(super) overflow: Overflow,
    pub(super) max_batch_events: usize,
    pub(super) max_batch_bytes: usize,
    pub(super) max_in_flight: usize,
    pub(super) max_retries: u32,
    pub(super) retry_backoff: (Duration, Duration),
    pub(super) retry_after_cap: Duration,
    pub(super) first_send_jitter: Duration,
    pub(super) request_timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) proxy: ProxyChoice,
    pub(super) ca_certificates: Vec<Vec<u8>>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) compression: Compression,
    pub(super) protocol: Protocol,
    pub(super) historical_migration: bool,
    pub(super) disable_geoip: bool,
    pub(super) exact_timestamps: bool,
    pub(super) before_send: Vec<BeforeSend>,
    pub(super) on_delivery: Option<OnDelivery>,
    pub(super) on_diagnostic: Option<DiagnosticHook>,
}

impl Config {
    /// Settings for the project of that key (`phc_...`), everything else at its default.
    pub fn new(api_key: impl Into<String>) -> Self {
        Self {
            disabled: false,
            api_key: api_key.into(),
            host: "https://us.i.posthog.com".into(),
            queue_dir: None,
            memory_fallback: false,
            also_deliver: Vec::new(),
            flush_at: limits::FLUSH_AT_DEFAULT,
            flush_interval: limits::FLUSH_INTERVAL_DEFAULT,
            sync_interval: limits::SYNC_INTERVAL_DEFAULT,
            settle_interval: limits::SETTLE_INTERVAL_DEFAULT,
            shutdown_timeout: limits::SHUTDOWN_TIMEOUT_DEFAULT,
            journal_bytes: limits::JOURNAL_BYTES_DEFAULT,
            max_event_bytes: limits::EVENT_BYTES_DEFAULT,
            max_queue_bytes: limits::QUEUE_BYTES_DEFAULT,
            max_queue_events: None,
            max_queue_age: None,
            free_space_floor: limits::FREE_SPACE_FLOOR_DEFAULT,
            overflow: Overflow::default(),
            max_batch_events: limits::MAX_BATCH_EVENTS_DEFAULT,
            max_batch_bytes: limits::MAX_BATCH_BYTES_DEFAULT,
            max_in_flight: limits::MAX_IN_FLIGHT_DEFAULT,
            max_retries: limits::MAX_RETRIES_DEFAULT,
            retry_backoff: limits::RETRY_BACKOFF_DEFAULT,
            retry_after_cap: limits::RETRY_AFTER_CAP_DEFAULT,
            first_send_jitter: Duration::from_secs(1),
            request_timeout: limits::REQUEST_TIMEOUT_DEFAULT,
            connect_timeout: limits::CONNECT_TIMEOUT_DEFAULT,
            proxy: ProxyChoice::FromEnv,
            ca_certificates: Vec::new(),
            headers: Vec::new(),
            compression: Compression::default(),
            protocol: Protocol::default(),
            historical_migration: false,
            disable_geoip: false,
            exact_timestamps: false,
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

    /// Where events go: `http://` or `https://`, a host, perhaps a port and the path of a reverse proxy. `https://` may be left out.
    /// Default `https://us.i.posthog.com`.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
        self
    }

    /// The directory in which queues lie, one for each project, on a local disk that outlives the process. Default:
    /// `$POSTHOG_QUEUE_DIR`, else `$STATE_DIRECTORY/posthog` (its first entry), else `$XDG_STATE_HOME/posthog`, else
    /// `~/.local/state/posthog`; never a temporary directory.
    pub fn queue_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.queue_dir = Some(dir.into());
        self
    }

    /// Works in memory when the queue directory cannot be used, instead of failing: bounded, lost with the process, and said so by
    /// `stats().mode`, a diagnostic and every receipt. Default: off.
    pub fn memory_fallback(mut self, fallback: bool) -> Self {
        self.memory_fallback = fallback;
        self
    }

    /// Also delivers what is left in the queue of an earlier key or host, under the present key and to the present host. May be
    /// called several times.
    pub fn also_deliver(mut self, api_key: impl Into<String>, host: impl Into<String>) -> Self {
        self.also_deliver.push((api_key.into(), host.into()));
        self
    }

    /// Events that make a batch due, whatever their age. Default 20, least 1, most 1,000,000. Batches are carried at most about once a
    /// second, and what has gathered by then is sent together.
    pub fn flush_at(mut self, events: usize) -> Self {
        self.flush_at = events;
        self
    }

    /// Age of the oldest waiting event that makes a batch due. Default 5 s, least 10 ms, most 1 h.
    pub fn flush_interval(mut self, interval: Duration) -> Self {
        self.flush_interval = interval;
        self
    }

    /// What a power cut may cost: events are made durable at the latest so long after they were accepted, at once if a receipt's
    /// [`persisted`](crate::Receipt::persisted) is awaited. Default 100 ms, least 1 ms, most 60 s.
    pub fn sync_interval(mut self, interval: Duration) -> Self {
        self.sync_interval = interval;
        self
    }

    /// How long a delivered event may stay in the queue's file. A process killed in this time sends it again, with the same uuid.
    /// Default 1 s, least 10 ms, most 60 s.
    pub fn settle_interval(mut self, interval: Duration) -> Self {
        self.settle_interval = interval;
        self
    }

    /// How long [`Client::close`](crate::Client::close) lets delivery go on. Default 10 s, most 1 h.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Bytes of one journal arena; there are two to four of them, mapped into memory. What can be accepted in a burst. Default 8 MiB,
    /// least 64 KiB and four times the largest event, most 256 MiB.
    pub fn journal_bytes(mut self, bytes: usize) -> Self {
        self.journal_bytes = bytes;
        self
    }

    /// Bytes of the largest event, encoded; a larger one is `Dropped(TooLarge)`. Default 1 MiB, least 1 KiB, most 16 MiB.
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.max_event_bytes = bytes;
        self
    }

    /// Bytes that the queue's file may take, the journal aside. It then holds between half and all of that in events. Default 1 GiB,
    /// least 1 MiB, most 1 TiB. In a directory held in memory at most 64 MiB, or a tenth of the container's memory.
    pub fn max_queue_bytes(mut self, bytes: u64) -> Self {
        self.max_queue_bytes = bytes;
        self
    }

    /// Events that may be queued. Default: no bound but the bytes. Least 1.
    pub fn max_queue_events(mut self, events: u64) -> Self {
        self.max_queue_events = Some(events);
        self
    }

    /// Age at which queued events are given up. Default: never. Least 1 s. Never before a delivery was tried, and not while the wall
    /// clock disagrees with the time that has passed.
    pub fn max_queue_age(mut self, age: Duration) -> Self {
        self.max_queue_age = Some(age);
        self
    }

    /// Bytes of the file system that are left to others: with less than this free, nothing more is accepted. Default 32 MiB.
    pub fn free_space_floor(mut self, bytes: u64) -> Self {
        self.free_space_floor = bytes;
        self
    }

    /// What happens to a capture when the queue has reached its bounds. Default [`Overflow::DropNewest`].
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Events in one request. Default 1000, least 1, most 100,000.
    pub fn max_batch_events(mut self, events: usize) -> Self {
        self.max_batch_events = events;
        self
    }

    /// Bytes of JSON in one request, before compression. Default 4 MiB, least 16 KiB, most 19 MiB (PostHog takes 20).
    pub fn max_batch_bytes(mut self, bytes: usize) -> Self {
        self.max_batch_bytes = bytes;
        self
    }

    /// Requests under way at once. Default 4, least 1, most 64.
    pub fn max_in_flight(mut self, requests: usize) -> Self {
        self.max_in_flight = requests;
        self
    }

    /// Attempts after the first before the endpoint is left alone for a while (at least 30 s). Nothing is ever dropped for having been
    /// tried too often. Default 3, most 100.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = retries;
        self
    }

    /// The longest wait after a first failure, and after any; between them it doubles, and the actual wait is drawn at random below
    /// it. Default 1 s and 30 s, least 100 ms, most 10 min.
    pub fn retry_backoff(mut self, first: Duration, most: Duration) -> Self {
        self.retry_backoff = (first, most);
        self
    }

    /// A server's `Retry-After` is honoured, up to this. Default 1 h, least 1 s, most 24 h.
    pub fn retry_after_cap(mut self, cap: Duration) -> Self {
        self.retry_after_cap = cap;
        self
    }

    /// A process that starts with a backlog waits a random time up to this before it sends: ten thousand of them may start at once.
    /// Default 1 s, most 10 min; zero sends at once.
    pub fn first_send_jitter(mut self, jitter: Duration) -> Self {
        self.first_send_jitter = jitter;
        self
    }

    /// Time for one request, connecting included. Default 30 s, least 50 ms, most 10 min.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Time for DNS, TCP and TLS together. Default 10 s, least 50 ms, most 10 min.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Goes through this proxy (`http://[user:password@]host[:port]`), whatever the environment says. Default: `HTTPS_PROXY`,
    /// `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, read once.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = ProxyChoice::Url(url.into());
        self
    }

    /// Goes directly, whatever the environment says.
    pub fn no_proxy(mut self) -> Self {
        self.proxy = ProxyChoice::None;
        self
    }

    /// Trusts this certificate authority (PEM, one or more certificates) beside those of the machine. May be called several times.
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_certificates.push(pem.into());
        self
    }

    /// Adds a header to every request. May be called several times.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// How request bodies are compressed. Default [`Compression::Gzip`].
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Which endpoint is spoken to. Default [`Protocol::V0`].
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Marks everything as an import of old events. Default: off.
    pub fn historical_migration(mut self, on: bool) -> Self {
        self.historical_migration = on;
        self
    }

    /// Asks PostHog not to look up where the sending machine is (`$geoip_disable`). Default: off.
    pub fn disable_geoip(mut self, on: bool) -> Self {
        self.disable_geoip = on;
        self
    }

    /// Has PostHog take timestamps as they are (`$ignore_sent_at`) instead of correcting them by the difference between its clock and
    /// ours. Then a retry can never land on another day than the first attempt, which is where PostHog's de-duplication ends; but a
    /// machine whose clock is wrong has wrong times. Default: off.
    pub fn exact_timestamps(mut self, on: bool) -> Self {
        self.exact_timestamps = on;
        self
    }

    /// Adds a hook that sees each event on the caller's thread before anything of it reaches the disk. It returns the event, changed or
    /// not, or `None` to drop it. Hooks run in the order in which they were added. A hook that panics drops the event; in a program
    /// built with `panic = "abort"` it takes the process down, with nothing accepted lost.
    pub fn before_send(mut self, hook: impl Fn(Event) -> Option<Event> + Send + Sync + 'static) -> Self {
        self.before_send.push(Arc::new(hook));
        self
    }

    /// Is told what became of events, on the delivery thread: it must be quick. A panic in it is caught and recorded.
    pub fn on_delivery(mut self, hook: impl Fn(&Delivery<'_>) + Send + Sync + 'static) -> Self {
        self.on_delivery = Some(Arc::new(hook));
        self
    }

    /// Is told of each [`Diagnostic`], on whatever thread it arises: it must be quick.
    pub fn on_diagnostic(mut self, hook: impl Fn(&Diagnostic) + Send + Sync + 'static) -> Self {
        self.on_diagnostic = Some(Arc::new(hook));
        self
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys, proxy passwords and headers stay out of logs.
        f.debug_struct("Config")
            .field("disabled", &self.disabled)
            .field("host", &self.host)
            .field("queue_dir", &self.queue_dir)
            .field("overflow", &self.overflow)
            .finish_non_exhaustive()
    }
}
