//! [`Harness`]: a client with its clock, its server and its directory.

use std::fs::DirBuilder;
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::queue::{QueuedEvent, queued};
use super::server::Server;
use crate::client::{Client, StandIn};
use crate::config::Config;
use crate::error::Error;
use crate::report::FlushReport;
use crate::sys::clock::still::StillTime;
use crate::sys::clock::{Clock, nanos_since_epoch};
use crate::sys::entropy::random_u64;

/// The initial time of the clock: 2025-01-01T00:00:00Z.
const BEGINNING: Duration = Duration::from_secs(1_735_689_600);
/// How long to wait, in real time, until the client is idle. Its threads need milliseconds; a test must end even if
/// they never rest.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client under test with its clock, its server and its queue directory, which is removed at the end. See the
/// [module](crate::testing) for an example.
///
/// Dropping it drops the client without sending. Drop clones of the client before, because their queue directory is
/// removed.
#[derive(Debug)]
pub struct Harness {
    // Dropped in this order: the client releases its queue before the directory is removed.
    client: Client,
    server: Server,
    clock: StillClock,
    directory: Directory,
}

impl Harness {
    /// A client on an empty queue. `configure` gets a configuration with a key, a host, a directory, no proxy and no
    /// `first_send_jitter`; everything else has its default. The clock shows 2025-01-01T00:00:00Z.
    ///
    /// # Errors
    ///
    /// As [`Client::new`]; [`Error::QueueDir`] if no temporary directory can be created.
    pub fn new(configure: impl FnOnce(Config) -> Config) -> Result<Self, Error> {
        let directory = Directory::new().map_err(|source| Error::QueueDir {
            path: std::env::temp_dir(),
            why: "no directory for the test could be created in it".into(),
            source: Some(source.into()),
        })?;
        let clock = StillClock::at(SystemTime::UNIX_EPOCH + BEGINNING);
        let server = Server::new(&clock);
        let client = open(&directory, &clock, &server, configure)?;
        Ok(Self { client, server, clock, directory })
    }

    /// Ends the client without sending, and opens another one on the same queue, with the same clock and server, as the
    /// next process would.
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

    /// The client. Clone it for the code under test. A [`shutdown`](Client::shutdown) while the server fails waits
    /// between its attempts by the manual clock: advance it, or use a deadline of zero.
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

    /// The queued events: see [`queued`].
    pub fn queued(&self) -> Vec<QueuedEvent> {
        queued(&self.client)
    }

    /// Makes the client the process-wide one for this thread, until the guard is dropped: `posthog::capture` and the
    /// other free functions, and [`posthog::client`](crate::client()), use it here. Threads that run other tests are not
    /// affected, so tests may run in parallel. Code under test that runs on threads of its own is not affected either;
    /// for that, use [`global_on_all_threads`](Self::global_on_all_threads). A task of a runtime with one thread
    /// (`#[tokio::test]`) runs on the thread of its test.
    ///
    /// A later guard on the same thread takes precedence until it is dropped. Breadcrumbs, the panic hook and the crash
    /// handler stay with the client of [`init`](crate::init()).
    ///
    /// ```
    /// use posthog::Event;
    /// use posthog::testing::Harness;
    ///
    /// // The code under test.
    /// fn sign_out(user: &str) {
    ///     posthog::capture(Event::new("signed_out", user));
    /// }
    ///
    /// # fn main() -> Result<(), posthog::Error> {
    /// let harness = Harness::new(|config| config)?;
    /// let _global = harness.global_on_this_thread();
    /// sign_out("user_1");
    /// assert_eq!(harness.queued()[0].event, "signed_out");
    /// # Ok(())
    /// # }
    /// ```
    pub fn global_on_this_thread(&self) -> GlobalClient<'_> {
        GlobalClient { _stand_in: StandIn::on_this_thread(&self.client), _harness: PhantomData }
    }

    /// Makes the client the process-wide one for all threads that have none of their own
    /// ([`global_on_this_thread`](Self::global_on_this_thread)), until the guard is dropped. There is one at a time in a
    /// process: a second test waits here until the guard of the first is dropped. Tests that run in parallel in the same
    /// process and use the free functions without a guard reach this client as well.
    ///
    /// # Panics
    ///
    /// If this thread already has such a guard, or if another one is kept for ten minutes.
    pub fn global_on_all_threads(&self) -> GlobalClient<'_> {
        match StandIn::on_all_threads(&self.client) {
            Ok(stand_in) => GlobalClient { _stand_in: stand_in, _harness: PhantomData },
            Err(why) => panic!("the client under test cannot become the process-wide one: {why}"),
        }
    }

    /// Moves the clock, and returns when the client has done what was due. All of that happens at the new time; to see
    /// the steps in between, advance in steps.
    ///
    /// # Panics
    ///
    /// As [`settle`](Harness::settle).
    pub fn advance(&self, by: Duration) {
        self.settle();
        self.clock.advance(by);
        self.settle();
    }

    /// A [`flush`](Client::flush), and everything that follows from it. `None` if the flush has not ended, because a
    /// response waits for the clock ([`Answer::delay`](super::Answer::delay)).
    ///
    /// A flush sends early what only waits for its time, respects `Retry-After`, and ends without a request within a
    /// second of a failure: advance the clock by that.
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

    /// Returns when the client has nothing left to do until the clock is moved, an event is captured, or a call is
    /// made.
    ///
    /// # Panics
    ///
    /// If the client is not idle within a minute: another thread keeps capturing, a callback of the program never
    /// returns, or this is called inside such a callback.
    pub fn settle(&self) {
        assert!(
            self.clock.time.settle(PATIENCE),
            "the client under test is still busy after a minute; does another thread keep capturing, or does a callback never return? {:?}",
            self.client.stats()
        );
    }
}

/// The client of a [`Harness`] as the process-wide client, until this is dropped.
#[derive(Debug)]
#[must_use = "the client is the process-wide one only until this is dropped: bind it to a name, such as `_global`"]
pub struct GlobalClient<'h> {
    _stand_in: StandIn,
    /// The directory of the client's queue is removed with its harness.
    _harness: PhantomData<&'h Harness>,
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

/// A clock that stands still until it is moved. Clones are the same clock.
///
/// Moving it wakes the client's threads, which then do what is due; [`Harness::advance`] also waits for that.
#[derive(Clone, Debug)]
pub struct StillClock {
    pub(super) time: Arc<StillTime>,
}

impl StillClock {
    /// A clock that shows `time`; before 1678 or after 2261, the Unix epoch.
    pub fn at(time: SystemTime) -> Self {
        Self { time: StillTime::at(nanos_since_epoch(time).unwrap_or(0)) }
    }

    /// The time it shows.
    pub fn now(&self) -> SystemTime {
        let nanos = self.time.wall_nanos();
        let far = Duration::from_nanos(nanos.unsigned_abs());
        if nanos < 0 { UNIX_EPOCH - far } else { UNIX_EPOCH + far }
    }

    /// Moves it forward, as time passes.
    pub fn advance(&self, by: Duration) {
        self.time.advance(by);
    }

    /// Sets the wall clock, forwards or backwards, as an administrator or NTP would: timestamps change, and no time
    /// passes. A time before 1678 or after 2261 is ignored.
    pub fn set(&self, time: SystemTime) {
        if let Some(nanos) = nanos_since_epoch(time) {
            self.time.set_wall(nanos);
        }
    }

    pub(super) fn as_clock(&self) -> Clock {
        Clock::Still(Arc::clone(&self.time))
    }
}

/// A directory for one test, removed when dropped.
#[derive(Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn new() -> io::Result<Self> {
        let name = format!("posthog-testing-{}-{:016x}", std::process::id(), random_u64());
        let path = std::env::temp_dir().join(name);
        // Fails if the directory exists, so it is never another program's.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The number of flag reads that the client remembers as captured with `$feature_flag_called`: combinations of person,
/// groups and flag. Zero after the client is closed.
pub fn captured_flag_reads(client: &Client) -> usize {
    client.captured_flag_reads()
}
