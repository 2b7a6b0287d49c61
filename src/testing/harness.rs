//! A client, and everything around it.

use std::time::{Duration, SystemTime};

use super::clock::StillClock;
use super::directory::Directory;
use super::queue::{QueuedEvent, queued};
use super::server::Server;
use crate::client::Client;
use crate::config::Config;
use crate::error::Error;
use crate::pipeline::FlushReport;

/// What the clock shows at first: 2025-01-01T00:00:00Z.
const BEGINNING: Duration = Duration::from_secs(1_735_689_600);
/// In real time. The client's threads need milliseconds; if they never come to rest, a test must end all the same.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client under test with its clock, its server and its queue directory, which is removed in the end. See the
/// [module](crate::testing) for an example.
///
/// Dropping it drops the client without sending. Clones of the client should be gone by then: their queue's directory goes.
#[derive(Debug)]
pub struct Harness {
    // In this order: the client lets its queue go before the directory goes.
    client: Client,
    server: Server,
    clock: StillClock,
    directory: Directory,
}

impl Harness {
    /// A client on an empty queue. `configure` gets a configuration with a key, a host, a directory, no proxy and no
    /// `first_send_jitter`; everything else is at its default. The clock shows 2025-01-01T00:00:00Z.
    ///
    /// # Errors
    ///
    /// As [`Client::new`]; [`Error::QueueDir`] if there is no temporary directory to be had.
    pub fn new(configure: impl FnOnce(Config) -> Config) -> Result<Self, Error> {
        let directory = Directory::new().map_err(|source| Error::QueueDir {
            path: std::env::temp_dir(),
            why: "no directory for this test could be made in it".into(),
            source: Some(source.into()),
        })?;
        let clock = StillClock::at(SystemTime::UNIX_EPOCH + BEGINNING);
        let server = Server::new(&clock);
        let client = open(&directory, &clock, &server, configure)?;
        Ok(Self { client, server, clock, directory })
    }

    /// Ends the client without sending, and opens another one on the same queue, with the same clock and server: the next process.
    ///
    /// # Errors
    ///
    /// As [`Harness::new`].
    pub fn restart(self, configure: impl FnOnce(Config) -> Config) -> Result<Self, Error> {
        let Self { client, server, clock, directory } = self;
        drop(client);
        let client = open(&directory, &clock, &server, configure)?;
        Ok(Self { client, server, clock, directory })
    }

    /// The client. Clone it for whoever is to capture. A [`shutdown`](Client::shutdown) while the server fails waits between its attempts by
    /// the clock that stands still: advance that, or give the shutdown a deadline of zero.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The clock.
    pub fn clock(&self) -> &StillClock {
        &self.clock
    }

    /// The events that wait. As [`queued`].
    pub fn queued(&self) -> Vec<QueuedEvent> {
        queued(&self.client)
    }

    /// Moves the clock on, and returns when the client has done what was due by then. What it does comes at the new time: to see what
    /// happens in between, advance in steps.
    ///
    /// # Panics
    ///
    /// As [`settle`](Harness::settle).
    pub fn advance(&self, by: Duration) {
        self.settle();
        self.clock.advance(by);
        self.settle();
    }

    /// One cycle of delivery by hand: a [`flush`](Client::flush), and what follows from it. The report is `None` if the flush has not
    /// ended, because an answer waits for the clock to be moved ([`Answer::delay`](super::Answer::delay)).
    ///
    /// A flush sends early what only waits for its time, never breaks a `Retry-After`, and is answered without sending within a second
    /// of a failure: advance the clock by that.
    ///
    /// # Panics
    ///
    /// As [`settle`](Harness::settle).
    pub fn deliver(&self) -> Option<FlushReport> {
        self.settle();
        let report = self.client.flush();
        self.settle();
        report.try_get()
    }

    /// Returns when the client has nothing left to do before the clock is moved, an event is captured, or something is asked of it.
    ///
    /// # Panics
    ///
    /// If it does not come to rest within a minute: because somebody else keeps capturing, a hook of the program never returns, or
    /// this is called inside such a hook.
    pub fn settle(&self) {
        assert!(self.clock.time.settle(PATIENCE), "the client does not come to rest: {:?}", self.client.stats());
    }
}

fn open(
    directory: &Directory,
    clock: &StillClock,
    server: &Server,
    configure: impl FnOnce(Config) -> Config,
) -> Result<Client, Error> {
    let config = Config::new("phc_testing")
        .host("http://posthog.test")
        .queue_dir(directory.path())
        .no_proxy()
        .first_send_jitter(Duration::ZERO)
        .min_free_space(0);
    Client::surrounded_by(configure(config), |options| {
        options.clock = clock.as_clock();
        options.network = Some(std::sync::Arc::new(server.clone()));
    })
}
