//! The fixture of a test: a queue directory, a stand-in for PostHog, and settings with short intervals.

use std::fs::Permissions;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use posthog::{Client, Config, Event, Receipt};
use sink::Sink;
use tempfile::TempDir;
use uuid::Uuid;

/// A generous timeout, for machines under load.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// The key of all clients, except in tests of keys.
pub(crate) const KEY: &str = "phc_outside";

/// A copy of `posthog-queue` in `folder`, which everybody may use: the build directory may be one that only root may enter.
pub(crate) fn tool_for_everybody(folder: &Path) -> PathBuf {
    std::fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    let program = folder.join("posthog-queue");
    // By another process: a child that is forked here while the copy is open for writing would keep it busy.
    let copied = sink::command("cp").arg(env!("CARGO_BIN_EXE_posthog-queue")).arg(&program).status();
    assert!(copied.unwrap().success());
    program
}

/// The server and the queue directory of a client. Also passed to child processes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) host: String,
    pub(crate) queue: PathBuf,
}

/// A place, with the stand-in server and a temporary directory, which is removed on drop.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) sink: Sink,
    place: Place,
    folder: TempDir,
}

impl Place {
    /// Small arenas and short intervals.
    pub(crate) fn config(&self) -> Config {
        self.config_for(KEY)
    }

    /// The same for another key.
    pub(crate) fn config_for(&self, key: &str) -> Config {
        Config::new(key)
            .host(&self.host)
            .queue_dir(&self.queue)
            .no_proxy()
            .max_event_bytes(64 * 1024)
            .journal_bytes(512 * 1024)
            .flush_interval(Duration::from_millis(20))
            .ack_interval(Duration::from_millis(10))
            .first_send_jitter(Duration::ZERO)
            .retry_backoff(Duration::from_millis(100), Duration::from_millis(200))
            .max_retries(100)
            .min_free_space(0)
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.config()).unwrap()
    }

    /// The directories of the shards of all projects, sorted.
    pub(crate) fn shards(&self) -> Vec<PathBuf> {
        let mut shards = Vec::new();
        for project in std::fs::read_dir(&self.queue).unwrap() {
            let project = project.unwrap().path();
            let inside = std::fs::read_dir(project).unwrap().map(|entry| entry.unwrap().path());
            shards.extend(inside.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("shard-")));
        }
        shards.sort();
        shards
    }
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let sink = Sink::start();
        let folder = tempfile::Builder::new().prefix("posthog-outside-").tempdir().unwrap();
        let place = Place { host: sink.url(), queue: folder.path().join("queue") };
        Self { sink, place, folder }
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The names of the events taken, sorted, duplicates included.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.sink.events().into_iter().map(|event| event.event).collect();
        names.sort();
        names
    }

    /// Waits until the server has taken all of `uuids`, and asserts that it took each once and no other event.
    pub(crate) fn must_have_taken(&self, uuids: &[Uuid]) {
        let all = |state: &sink::State| uuids.iter().all(|uuid| state.contains(*uuid));
        if !self.sink.wait_for(all, PATIENCE) {
            let missing = uuids.iter().filter(|uuid| !self.sink.inspect(|state| state.contains(**uuid))).count();
            panic!("{missing} of {} events have not arrived", uuids.len());
        }
        let (unique, duplicates) = self.sink.inspect(|state| (state.unique(), state.duplicates()));
        assert_eq!((unique, duplicates), (uuids.len() as u64, 0), "unique and duplicates at the server");
    }
}

impl Deref for Fixture {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// An event of that name.
pub(crate) fn event(name: &str) -> Event {
    Event::new(name, "user_1")
}

/// Captures an event, and panics unless it is accepted.
pub(crate) fn take(client: &Client, name: &str) -> Uuid {
    accepted(&client.capture(event(name)))
}

/// The uuid of an accepted event.
pub(crate) fn accepted(receipt: &Receipt) -> Uuid {
    receipt.uuid().unwrap_or_else(|| panic!("not accepted: {:?}", receipt.outcome()))
}

/// Polls until a condition holds, and panics after [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "this did not happen in time: {what}");
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Shuts the client down, and asserts that nothing is left and the ledger balances.
pub(crate) fn close_empty(client: &Client) {
    let report = client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    assert_eq!((report.remaining, report.persisted), (0, true), "{report:?}");
    assert_balanced(client);
}

pub(crate) fn assert_balanced(client: &Client) {
    let stats = client.stats();
    assert_eq!(stats.imbalance(), 0, "{stats:?}");
    assert_eq!((stats.damaged, stats.lost_unsynced), (0, 0), "{stats:?} {:?}", client.diagnostics());
}
