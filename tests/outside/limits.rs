//! Resource limits of a process: file size, descriptors, threads.

use std::fs::{self, File};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use posthog::stats::StorageMode;
use posthog::{Client, DropReason, Error, Outcome};
use sink::Answer;

use crate::apart::{Terms, apart, apart_on};
use crate::fixture::{Fixture, PATIENCE, accepted, close_empty, event, eventually, take};

/// Sets the soft limit, which can be raised again up to the hard limit.
fn limit(resource: Resource, most: u64) {
    let (_, hard) = getrlimit(resource).unwrap();
    setrlimit(resource, most.min(hard), hard).unwrap();
}

fn unlimit(resource: Resource) {
    let (_, hard) = getrlimit(resource).unwrap();
    setrlimit(resource, hard, hard).unwrap();
}

/// Holds all file descriptors of the process but a given number, until dropped.
struct Descriptors(Vec<File>);

impl Descriptors {
    fn all_but(left: usize) -> Self {
        limit(Resource::RLIMIT_NOFILE, 256);
        let mut held: Vec<File> = Vec::new();
        let mut in_vain = 0;
        // Repeated until other threads return no more descriptors.
        eventually("no descriptor is left", || {
            let before = held.len();
            held.extend(std::iter::from_fn(|| File::open("/dev/null").ok()));
            in_vain = if held.len() == before { in_vain + 1 } else { 0 };
            in_vain > 20
        });
        held.truncate(held.len() - left);
        Self(held)
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        self.0.clear();
        unlimit(Resource::RLIMIT_NOFILE);
    }
}

#[test]
fn a_limit_on_file_sizes_does_not_kill_the_process() {
    let down = || {
        let fixture = Fixture::new();
        fixture.sink.default_answer(Answer::status(503));
        fixture
    };
    apart_on(
        down,
        |_| Terms::default(),
        |place| {
            // Enough for the arenas, but not for a growing store.
            limit(Resource::RLIMIT_FSIZE, 1024 * 1024);
            let client = place.client();
            let filling = "x".repeat(1000);
            let mut taken = 0;
            let mut reasons = Vec::new();
            for number in 0..6000 {
                match client.capture(event("tick").prop("filling", &filling)).outcome() {
                    Outcome::Accepted => taken += 1,
                    Outcome::Dropped(reason) => reasons.push(reason),
                }
                if number % 100 == 0 {
                    let _ = client.flush().wait(PATIENCE);
                }
            }
            assert!(taken > 500 && !reasons.is_empty(), "{taken} {}", reasons.len());
            assert!(reasons.iter().all(|reason| *reason == DropReason::JournalFull), "{:?}", reasons[0]);
            eventually("storage is degraded", || matches!(client.stats().storage, StorageMode::Degraded { .. }));
            assert_eq!(client.stats().queued_events, taken);
            unlimit(Resource::RLIMIT_FSIZE);
            eventually("storage works again", || client.stats().storage == StorageMode::Durable);
            assert_eq!(client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap().remaining, taken);
        },
        |fixture| {
            fixture.sink.default_answer(Answer::ok());
            let client = fixture.client();
            let taken = client.stats().accepted;
            eventually("all events are delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
            assert_eq!(fixture.sink.inspect(sink::State::unique), taken);
            close_empty(&client);
        },
    );
}

#[test]
fn a_limit_below_the_size_of_an_arena_is_a_clear_error() {
    apart(
        |place| {
            for most in [0, 1, 4096, 100_000] {
                limit(Resource::RLIMIT_FSIZE, most);
                let error = Client::new(place.config()).map(drop).unwrap_err();
                assert!(error.is_queue_dir(), "{most}: {error:?}");
                unlimit(Resource::RLIMIT_FSIZE);
            }
            let client = place.client();
            take(&client, "tick");
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["tick"]),
    );
}

#[test]
fn a_start_that_runs_out_of_descriptors_is_an_error() {
    apart(
        |place| {
            let mut errors = 0;
            let opened = (0..60).any(|more| {
                let held = Descriptors::all_but(more);
                let made = Client::new(place.config());
                drop(held);
                match made {
                    Ok(client) => {
                        close_empty(&client);
                        true
                    }
                    Err(error) => {
                        let known = error.is_queue_dir() || matches!(error, Error::Resources(_));
                        assert!(known, "{more} descriptors: {error:?}");
                        errors += 1;
                        false
                    }
                }
            });
            assert!(opened && errors > 3, "{errors}");
            let client = place.client();
            assert!(client.stats().dir.unwrap().ends_with("shard-0"), "a failed start has left something locked");
            take(&client, "tick");
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["tick"]),
    );
}

#[test]
fn captures_continue_without_descriptors_and_are_delivered() {
    apart(
        |place| {
            let client = place.client();
            let held = Descriptors::all_but(0);
            let uuids: Vec<_> = (0..500).map(|_| accepted(&client.capture(event("tick")))).collect();
            let receipt = client.capture(event("tick"));
            assert_eq!(receipt.persisted().wait(PATIENCE), Ok(()));
            let report = client.flush().wait(PATIENCE).unwrap();
            assert_eq!(report.remaining, uuids.len() as u64 + 1, "{report:?}");
            drop(held);
            eventually("all events are delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.sink.inspect(|state| (state.unique(), state.duplicates())), (501, 0)),
    );
}

#[test]
fn a_failed_thread_start_is_an_error_or_delays_delivery() {
    apart_on(
        || {
            let fixture = Fixture::new();
            use std::os::unix::fs::PermissionsExt;
            for path in [fixture.folder().to_path_buf(), fixture.queue.clone()] {
                fs::create_dir_all(&path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
            }
            fixture
        },
        |_| Terms::default().run_as_nobody(),
        |place| {
            // Resolving the name `localhost` takes one more thread.
            let config = || place.config().host(place.host.replace("127.0.0.1", "localhost"));
            let mut errors = 0;
            for most in 0..200 {
                limit(Resource::RLIMIT_NPROC, most);
                let made = Client::new(config());
                if let Err(error) = &made {
                    assert!(matches!(error, Error::Resources(_)), "{most}: {error:?}");
                    errors += 1;
                }
                let Ok(client) = made else { continue };
                let receipt = client.capture(event("tick"));
                assert!(receipt.is_accepted());
                let report = client.flush().wait(PATIENCE).unwrap();
                unlimit(Resource::RLIMIT_NPROC);
                eventually("all events are delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
                close_empty(&client);
                if report.delivered == 1 {
                    break;
                }
            }
            // Not asserted, because the other processes of this user count as well.
            eprintln!("{errors} starts failed for want of threads");
        },
        |fixture| assert!(fixture.sink.inspect(sink::State::duplicates) == 0),
    );
}
