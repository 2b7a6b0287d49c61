//! A stand-in for PostHog on loopback, for tests, examples, benchmarks and crash tests.
//!
//! It accepts events as PostHog does, remembers each of them, fails as a script says, and can stop and resume on the
//! same port.
//!
//! Rules, taken from PostHog's capture service:
//! - `POST /batch`, with or without a trailing slash, and `/i/v0/ai/batch/`, which has the same body: JSON, plain or
//!   gzip (recognized by the header or by gzip's magic number, as PostHog does). Any other path is 404, any other
//!   method 405.
//! - `POST /i/v1/analytics/events` and `/i/v1/ai/events`: a V1 batch with its headers, in any of its encodings. The
//!   response has a result for each event ([`Answer::results`]), and only events with a good result are taken. A request
//!   with a repeated uuid is refused as a whole. The endpoint for AI events drops events without `$ai_` in front of
//!   their name.
//! - `POST /flags/` (or `/decide/`) and `GET /flags/definitions/` (or `/api/feature_flag/local_evaluation/`): flags.
//!   `GET /api/projects/@current/feature_flags/<key>/remote_config`, with a bearer token: the payload of a remote config
//!   flag. There are none until [`Sink::flags`] sets them; they have a script apart from that for events.
//! - A request is taken or refused as a whole. An event without a name or distinct id, a body that is not JSON, or one
//!   larger than [`Sink::size_limit`] refuses the request, with PostHog's own message as plain text. A request without
//!   a key is 401.
//! - A taken request is answered `{"status":1}`. A uuid that is taken twice is a duplicate: it is kept and counted.
//! - One rule is stricter than PostHog's: an event without a valid uuid is refused. PostHog would generate one, and a
//!   client that omits the uuid would lose its de-duplication without noticing.
//!
//! The response to a request is the next one of [`Sink::script`], else [`Sink::default_answer`]. The rules (size,
//! [`Sink::refuse_if`], validity) apply only if that response takes the events: a server that is down refuses no
//! events.
//!
//! Operations: [`Sink::start`], then [`Sink::url`] for the client; [`Sink::wait_for`] waits for a condition on what has
//! arrived ([`State`]); [`Sink::stop`] and [`Sink::resume`] make an outage. A request is recorded before it is
//! answered, and before [`Answer::delay`], so a test can act while the client still waits.
//!
//! [`command`] starts a process with default signal dispositions, for tests that run the library in a child process.
//!
//! Limits: HTTP/1 without TLS, one thread for all connections. Everything is kept in memory until [`Sink::clear`]. If
//! parsing would be the bottleneck, [`Sink::fast_mode`] counts events and keeps only their uuids. Nothing is printed.

mod answer;
mod batch;
mod child;
mod codec;
mod flags;
#[cfg(test)]
mod flags_tests;
mod server;
mod state;
#[cfg(test)]
mod tests;
mod v1;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

pub use answer::Answer;
pub use batch::Event;
pub use child::command;
pub use codec::decode;
pub use flags::FlagRoute;
pub use state::{Request, State};

use server::Server;
use state::Shared;

/// A running stand-in. Stops when dropped.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
    // Bound but not listening: it reserves the port while the server is stopped, and connections are refused.
    _port: tokio::net::TcpSocket,
    server: Mutex<Option<Server>>,
}

impl Sink {
    /// Starts on a port that the system chooses.
    ///
    /// # Panics
    /// If loopback cannot be bound or a thread cannot be started.
    pub fn start() -> Self {
        Self::on(0)
    }

    /// Starts on `port` of loopback; 0 lets the system choose.
    ///
    /// # Panics
    /// As [`Sink::start`], and if another socket listens on `port`.
    pub fn on(port: u16) -> Self {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (reserved, address) =
            server::reserve(wanted).unwrap_or_else(|error| panic!("the sink cannot bind {wanted}: {error}"));
        let shared = Arc::new(Shared::default());
        let sink = Self { address, shared, _port: reserved, server: Mutex::new(None) };
        sink.resume();
        sink
    }

    /// The URL for a client's host setting, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The port it listens on, or would listen on while stopped.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Stops: connections break off, new ones are refused. Recorded data is kept. Idempotent.
    pub fn stop(&self) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(server);
    }

    /// Starts again on the same port after [`Sink::stop`]. Does nothing while running.
    ///
    /// # Panics
    /// As [`Sink::on`].
    pub fn resume(&self) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if server.is_none() {
            let started = Server::start(self.address, Arc::clone(&self.shared));
            *server =
                Some(started.unwrap_or_else(|error| panic!("the sink cannot listen on {}: {error}", self.address)));
        }
    }

    /// Sets the responses for the next requests, one each, in this order. Replaces the rest of an earlier script.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.rules().script = answers.into_iter().collect();
    }

    /// Sets the response for requests after the script; initially [`Answer::ok`].
    pub fn default_answer(&self, answer: Answer) {
        self.shared.rules().default = answer;
    }

    /// Sets the response for flag requests of this kind after their script. Definitions with [`Answer::etag`] are sent
    /// only to clients that do not have them.
    pub fn flags(&self, route: FlagRoute, answer: Answer) {
        self.shared.rules().flags.of(route).default = answer;
    }

    /// Sets the responses for the next flag requests of this kind, one each, in this order. Replaces the rest of an
    /// earlier script.
    pub fn script_flags(&self, route: FlagRoute, answers: impl IntoIterator<Item = Answer>) {
        self.shared.rules().flags.of(route).script = answers.into_iter().collect();
    }

    /// Refuses a whole request with `status` and `body` if `poison` returns true for one of its events (as the JSON
    /// that was sent). Replaces an earlier rule. While one is set, events are parsed in [`Sink::fast_mode`] too.
    pub fn refuse_if(&self, poison: impl Fn(&Value) -> bool + Send + Sync + 'static, status: u16, body: &str) {
        self.shared.rules().refuse = Some(state::Refusal::new(poison, Answer::status(status).body(body)));
    }

    /// Removes the rule of [`Sink::refuse_if`].
    pub fn refuse_none(&self) {
        self.shared.rules().refuse = None;
    }

    /// Sets the largest body, before and after decompression; larger ones get a 413. Initially 20 MiB, as in PostHog.
    pub fn size_limit(&self, bytes: usize) {
        self.shared.rules().size_limit = bytes;
    }

    /// With `true`, events are found by a scan for `"uuid":"` in compact JSON and not validated, and only their uuids
    /// are kept: [`State::events`] and [`Request::uuids`] stay empty. A property of that name would be counted as an
    /// event.
    pub fn fast_mode(&self, fast: bool) {
        self.shared.rules().fast = fast;
    }

    /// The events taken so far, in order of arrival, duplicates included.
    pub fn events(&self) -> Vec<Event> {
        self.shared.state().events().to_vec()
    }

    /// The uuids taken so far, each once, sorted.
    pub fn unique(&self) -> Vec<Uuid> {
        let mut uuids: Vec<_> = self.shared.state().uuids().collect();
        uuids.sort_unstable();
        uuids
    }

    /// How many taken events carried a uuid that had been taken before.
    pub fn duplicates(&self) -> u64 {
        self.shared.state().duplicates()
    }

    /// The requests so far, taken or not, in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests().to_vec()
    }

    /// Reads the state at one moment, without copying it.
    pub fn inspect<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.shared.state())
    }

    /// Waits until `reached` returns true, checking again whenever a request arrives; false if it does not within
    /// `timeout`.
    #[must_use = "a test that ignores the result waits for nothing"]
    pub fn wait_for(&self, reached: impl FnMut(&State) -> bool, timeout: Duration) -> bool {
        self.shared.wait_for(reached, timeout)
    }

    /// Discards everything recorded. Rules and scripts are kept.
    pub fn clear(&self) {
        self.shared.clear();
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop();
    }
}
