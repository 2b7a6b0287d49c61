//! Knobs of delivery: where to, when, how much at once, through which network.

use std::time::Duration;

use super::Config;
use super::choices::{CaptureProtocol, Compression, ProxyChoice};

impl Config {
    /// Where events go: `http://` or `https://`, a host, perhaps a port and the path of a reverse proxy. `https://` may be left out; the
    /// path of an endpoint (`/batch/`) must be. Default `https://us.i.posthog.com`. PostHog's app (`app.posthog.com`, `us.posthog.com`,
    /// `eu.posthog.com`) stands for its ingestion host, as with PostHog's own libraries
    /// ([`Diagnostic::HostReplaced`](crate::Diagnostic::HostReplaced)).
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = host.into();
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

    /// How long [`Client::close`](crate::Client::close) lets delivery go on. Default 10 s, most 1 h.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
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

    /// Time for DNS, TCP and TLS together. Default 10 s, or [`request_timeout`](Self::request_timeout) where that is less; least 50 ms,
    /// most `request_timeout`.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// Goes through this proxy (`http://[user:password@]host[:port]`), whatever the environment says. Default: as curl reads
    /// `https_proxy`, `http_proxy`, `all_proxy` and `no_proxy`, once; `docs/delivery.md` has the rules.
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

    /// Adds a header to every request. May be called several times. Those that make a request what it is (`Content-Type`, `Authorization`,
    /// `Host` and the like, and all that begin with `PostHog-`) are the library's own, and an error.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// How request bodies are compressed. Default [`Compression::Gzip`]; the others but [`Compression::None`] need [`CaptureProtocol::V1`].
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Which endpoint is spoken to. Default [`CaptureProtocol::V0`].
    pub fn protocol(mut self, protocol: CaptureProtocol) -> Self {
        self.protocol = protocol;
        self
    }
}
