//! A PostHog stand-in on loopback, for tests, examples, benchmarks and crash tests.
//!
//! Purpose: to be the server that a test needs. It takes events as PostHog does, remembers every one of them, misbehaves
//! when told to, and can go away and come back on the same port.
//!
//! Rules, taken from PostHog's capture service:
//! - `POST /batch`, with or without the slash at the end, and `/i/v0/ai/batch/`, which has the same body. JSON, plain or
//!   gzip (told by the header or by gzip's magic number; PostHog sniffs as well). Any other path is 404, any other method 405.
//! - `POST /i/v1/analytics/events`: as V1 wants it, with its headers, under any of its encodings. It is answered with a verdict on each
//!   event ([`Answer::results`]), and only what has a good one is taken. A request that holds a uuid twice is refused whole.
//! - `POST /flags/` (or `/decide/`) and `GET /flags/definitions/` (or `/api/feature_flag/local_evaluation/`): flags, none at first; what
//!   there are is said with [`Sink::flags`], apart from the answers for events.
//! - A request is taken whole or refused whole. One event without a name or distinct id, a body that is no JSON, or one
//!   above [`Sink::size_limit`] refuses all, with PostHog's own words as plain text. A request without a key is 401.
//! - What is taken is answered `{"status":1}`. The same uuid taken twice is a duplicate: kept, and counted.
//! - One rule is stricter than PostHog's: an event without a valid uuid is refused. PostHog would make one up, and a
//!   client that leaves it out loses its de-duplication without hearing of it.
//!
//! Which answer a request gets: the next one of [`Sink::script`], else [`Sink::default_answer`]. Only if that answer takes
//! the events do the rules (size, [`Sink::refuse_if`], validity) have a say: a server that is down refuses nobody's events.
//!
//! Operations: [`Sink::start`], then [`Sink::url`] for the client; [`Sink::wait_for`] for a condition on what has arrived
//! ([`State`]); [`Sink::stop`] and [`Sink::resume`] for an outage. A request is recorded before it is answered, and before
//! [`Answer::delay`], so that a test can act while the client is still waiting.
//!
//! [`command`] starts a process with default signal dispositions, for those who play with the stand-in in a process of their own.
//!
//! Limits: HTTP/1 without TLS, one thread for all connections. Everything is kept in memory until [`Sink::clear`]. Where
//! parsing would be the bottleneck, [`Sink::fast_mode`] counts events and keeps their uuids only. Nothing is printed.

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
    // Bound and never listening: it keeps the port ours while the server is stopped, and connections to it are refused.
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
    /// As [`Sink::start`], and if somebody else listens on `port`.
    pub fn on(port: u16) -> Self {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (reserved, address) =
            server::reserve(wanted).unwrap_or_else(|error| panic!("the sink cannot bind {wanted}: {error}"));
        let shared = Arc::new(Shared::default());
        let sink = Self { address, shared, _port: reserved, server: Mutex::new(None) };
        sink.resume();
        sink
    }

    /// What a client takes as its host, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The port it listens on, or would listen on while stopped.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Goes away: connections break off, new ones are refused. What was recorded stays. Idempotent.
    pub fn stop(&self) {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(server);
    }

    /// Comes back on the same port after [`Sink::stop`]. Does nothing while running.
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

    /// Answers for the next requests, one each, in this order; after them the default. Replaces what is left of an
    /// earlier script.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.rules().script = answers.into_iter().collect();
    }

    /// The answer for every request that the script does not cover; [`Answer::ok`] at first.
    pub fn default_answer(&self, answer: Answer) {
        self.shared.rules().default = answer;
    }

    /// The answer for every request of that kind about flags that no script covers. Definitions with [`Answer::etag`] are sent only to
    /// those who do not have them.
    pub fn flags(&self, route: FlagRoute, answer: Answer) {
        self.shared.rules().flags.of(route).default = answer;
    }

    /// Answers for the next requests of that kind about flags, one each, in this order. Replaces what is left of an earlier script.
    pub fn script_flags(&self, route: FlagRoute, answers: impl IntoIterator<Item = Answer>) {
        self.shared.rules().flags.of(route).script = answers.into_iter().collect();
    }

    /// Refuses a whole request with `status` and `body` if `poison` says so of one event (the event's JSON, as sent).
    /// Replaces an earlier rule. While one is set, events are parsed in [`Sink::fast_mode`] too.
    pub fn refuse_if(&self, poison: impl Fn(&Value) -> bool + Send + Sync + 'static, status: u16, body: &str) {
        self.shared.rules().refuse = Some(state::Refusal::new(poison, Answer::status(status).body(body)));
    }

    /// Takes the rule of [`Sink::refuse_if`] back.
    pub fn refuse_none(&self) {
        self.shared.rules().refuse = None;
    }

    /// Bodies above `bytes`, before or after decompression, get a 413 in PostHog's words. 20 MiB at first, as PostHog's.
    pub fn size_limit(&self, bytes: usize) {
        self.shared.rules().size_limit = bytes;
    }

    /// With `true`, events are found by a scan for `"uuid":"` in compact JSON, are not validated, and leave only their
    /// uuids: [`State::events`] and [`Request::uuids`] stay empty. A property of that name would be counted as an event.
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

    /// Waits until `reached` holds, looking again whenever a request arrives; false if it did not within `timeout`.
    #[must_use = "a test that does not look waits for nothing"]
    pub fn wait_for(&self, reached: impl FnMut(&State) -> bool, timeout: Duration) -> bool {
        self.shared.wait_for(reached, timeout)
    }

    /// Forgets everything recorded. Rules and script stay.
    pub fn clear(&self) {
        self.shared.clear();
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop();
    }
}
