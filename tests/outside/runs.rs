//! How the previous run ended, with real processes that end in each possible way.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, raise};
use posthog::crashes::{ExitCause, PreviousRun};
use posthog::termination::DrainOptions;
use posthog::{Client, Config, drain_on_terminate};

use crate::apart::{Terms, apart, apart_through_main, apart_to_death, apart_until};
use crate::fixture::{Fixture, PATIENCE, Place, close_empty, take};
use crate::process::forked;

/// The process-wide client, which lives as long as the process.
fn begin(place: &Place) -> Client {
    let client = posthog::init(place.config().flush_interval(Duration::from_secs(600)).flush_at(1000)).unwrap();
    take(&client, "tick");
    client
}

fn reported(fixture: &Fixture) -> PreviousRun {
    fixture.client().previous_run().unwrap()
}

fn exited(status: i32) -> ExitCause {
    ExitCause::Exited { status: cfg!(target_env = "gnu").then_some(status) }
}

/// Runs a part in a process of its own, checks how it ended, and what the next client reports of it.
fn must_be_reported<P: FnOnce(&Place)>(part: P, code: Option<i32>, signal: Option<i32>, end: ExitCause) {
    apart_until(
        |status| (status.code(), status.signal()) == (code, signal),
        Fixture::new,
        |_| Terms::default(),
        part,
        |fixture| {
            let client = fixture.client();
            let run = client.previous_run().unwrap();
            assert_eq!((run.cause, run.machine_restarted), (end, Some(false)));
            assert!(run.pid != std::process::id() && run.started_at <= SystemTime::now(), "{run:?}");
            assert!(run.alive_for < PATIENCE, "{run:?}");
        },
    );
}

#[test]
fn a_run_that_exits() {
    must_be_reported(
        |place| {
            begin(place);
        },
        Some(0),
        None,
        exited(0),
    );
}

#[test]
fn a_run_that_exits_with_a_status_of_its_own() {
    let part = |place: &Place| {
        begin(place);
        std::process::exit(3);
    };
    must_be_reported(part, Some(3), None, exited(3));
}

#[test]
fn a_run_that_returns_from_main() {
    apart_through_main(
        |place| {
            begin(place);
        },
        |fixture| assert_eq!(reported(fixture).cause, exited(0)),
    );
}

#[test]
fn a_run_that_closes_its_client_before_it_exits() {
    let part = |place: &Place| {
        close_empty(&begin(place));
        std::process::exit(3);
    };
    must_be_reported(part, Some(3), None, ExitCause::Clean);
}

#[test]
fn a_run_that_is_killed_and_its_queued_events() {
    apart_to_death(
        Fixture::new,
        |place| {
            take(&begin(place), "tick");
            raise(Signal::SIGKILL).unwrap();
        },
        |fixture| {
            let run = reported(fixture);
            assert_eq!((run.cause, run.queued_events), (ExitCause::Killed, 2));
            assert_eq!(reported(fixture).cause, ExitCause::Clean, "of each run once: by now there was another");
        },
    );
}

#[test]
fn a_run_that_dies_of_sigterm_without_a_handler() {
    let part = |place: &Place| {
        begin(place);
        raise(Signal::SIGTERM).unwrap();
    };
    must_be_reported(part, None, Some(15), ExitCause::Killed);
}

#[test]
fn a_run_that_was_drained_at_sigterm() {
    let part = |place: &Place| {
        begin(place);
        drain_on_terminate(DrainOptions::new()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::this(), Signal::SIGTERM).unwrap();
        std::thread::sleep(PATIENCE);
    };
    must_be_reported(part, None, Some(15), ExitCause::Signal(15));
}

#[test]
fn a_child_that_exits_has_not_ended_its_parent() {
    let part = |place: &Place| {
        begin(place);
        forked(|| ()).must_end_well();
        raise(Signal::SIGKILL).unwrap();
    };
    must_be_reported(part, None, Some(9), ExitCause::Killed);
}

#[test]
fn a_child_with_a_queue_of_its_own_marks_its_own_exit() {
    apart(
        |place| {
            let runs = (0..5).filter_map(|attempt| {
                let place = Place { host: place.host.clone(), queue: place.queue.join(attempt.to_string()) };
                let client = begin(&place);
                forked(|| {
                    take(&client, "child");
                })
                .must_end_well();
                let parents = client.stats().dir;
                // The parent still holds the first shard, so this client opens the child's, unless the parent looks into
                // that at this moment to adopt it.
                let other = Client::new(place.config()).unwrap();
                assert_ne!(other.stats().dir, parents);
                other.previous_run()
            });
            assert_eq!(runs.map(|run| run.cause).next(), Some(exited(0)));
        },
        |_| (),
    );
}

#[test]
fn a_first_run_and_one_without_a_queue_have_no_previous_run() {
    let fixture = Fixture::new();
    assert_eq!(fixture.client().previous_run(), None);
    assert_eq!(Client::new(Config::disabled()).unwrap().previous_run(), None);
}

/// Changes the status page so that the run belongs to an earlier boot, and gave its last sign of life this long before
/// the current boot.
fn move_to_an_earlier_boot(fixture: &Fixture, before: Duration) {
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let up = Duration::from_secs_f64(uptime.split(' ').next().unwrap().parse().unwrap());
    let seen = (SystemTime::now() - up - before).duration_since(UNIX_EPOCH).unwrap();
    let path = fixture.shards()[0].join("status");
    let mut page = fs::read(&path).unwrap();
    page[25 * 8] ^= 1;
    page[27 * 8..28 * 8].copy_from_slice(&u64::try_from(seen.as_nanos()).unwrap().to_le_bytes());
    fs::write(&path, page).unwrap();
}

fn after_a_restart(fixture: &Fixture, before: Duration) -> ExitCause {
    move_to_an_earlier_boot(fixture, before);
    let run = reported(fixture);
    assert_eq!(run.machine_restarted, Some(true));
    run.cause
}

fn is_killed_while_it_awaits_sigterm(place: &Place) {
    begin(place);
    drain_on_terminate(DrainOptions::new()).unwrap();
    // A sign of life is given when something happens.
    posthog::client().unwrap().flush().wait(PATIENCE).unwrap();
    raise(Signal::SIGKILL).unwrap();
}

#[test]
fn a_run_that_was_active_when_the_machine_stopped() {
    let part = |place: &Place| {
        is_killed_while_it_awaits_sigterm(place);
    };
    apart_to_death(Fixture::new, part, |fixture| {
        assert_eq!(after_a_restart(fixture, Duration::from_secs(60)), ExitCause::PowerLoss);
    });
}

#[test]
fn a_run_that_was_idle_when_the_machine_stopped() {
    let part = |place: &Place| {
        is_killed_while_it_awaits_sigterm(place);
    };
    apart_to_death(Fixture::new, part, |fixture| {
        assert_eq!(after_a_restart(fixture, Duration::from_secs(3600)), ExitCause::Unknown);
    });
}

#[test]
fn a_run_without_a_sigterm_handler_before_a_restart() {
    apart_to_death(
        Fixture::new,
        |place| {
            begin(place).flush().wait(PATIENCE).unwrap();
            raise(Signal::SIGKILL).unwrap();
        },
        |fixture| assert_eq!(after_a_restart(fixture, Duration::from_secs(60)), ExitCause::Unknown),
    );
}

#[test]
fn an_event_reports_the_previous_run_if_configured() {
    apart_until(
        |status| status.code() == Some(3),
        Fixture::new,
        |_| Terms::default(),
        |place| {
            begin(place);
            std::process::exit(3);
        },
        |fixture| {
            let client = Client::new(fixture.config().report_previous_run(true).super_property("release", 7)).unwrap();
            close_empty(&client);
            let events = fixture.sink.events();
            let reported = events.iter().find(|event| event.event == "previous_run_ended").unwrap();
            let property = |name: &str| &reported.properties[name];
            assert_eq!((property("cause"), property("queued_events")), (&"exited".into(), &1.into()));
            assert_eq!((property("machine_restarted"), property("release")), (&false.into(), &7.into()));
            assert_eq!(property("$process_person_profile"), &serde_json::Value::from(false));
            assert!(property("uptime_seconds").as_f64().is_some_and(|seconds| seconds < 60.0), "{reported:?}");
            assert!(property("started_at").as_str().is_some_and(|at| at.starts_with("20")), "{reported:?}");
            assert_eq!(property("exit_status").as_i64(), cfg!(target_env = "gnu").then_some(3));
            // Not for the first run of a queue, and not unless it is configured.
            assert_eq!(fixture.names(), ["previous_run_ended", "tick"]);
            close_empty(&fixture.client());
            assert_eq!(fixture.names().len(), 2);
        },
    );
}

fn texts(run: &PreviousRun) -> Vec<&str> {
    run.breadcrumbs.iter().map(|breadcrumb| breadcrumb.text.as_str()).collect()
}

/// Whether the library maps files in this directory. Elsewhere breadcrumbs are in memory only.
fn is_mapped(dir: &Path) -> bool {
    use nix::sys::statfs::{EXT4_SUPER_MAGIC, TMPFS_MAGIC, statfs};
    [EXT4_SUPER_MAGIC, TMPFS_MAGIC].contains(&statfs(dir).unwrap().filesystem_type())
}

#[test]
fn breadcrumbs_of_a_killed_run_are_in_the_next() {
    apart_to_death(
        Fixture::new,
        |place| {
            begin(place);
            for step in 0..40 {
                posthog::breadcrumb(format!("step {step}"));
            }
            // A child must not write into its parent's file.
            forked(|| posthog::breadcrumb("of the child")).must_end_well();
            raise(Signal::SIGKILL).unwrap();
        },
        |fixture| {
            let last = if is_mapped(&fixture.shards()[0]) { 10..40 } else { 0..0 };
            let expected: Vec<String> = last.map(|step| format!("step {step}")).collect();
            let client = Client::new(fixture.config().report_previous_run(true)).unwrap();
            let run = client.previous_run().unwrap();
            assert_eq!((run.cause, texts(&run)), (ExitCause::Killed, expected.iter().map(String::as_str).collect()));
            assert!(run.breadcrumbs.is_sorted_by_key(|breadcrumb| breadcrumb.at), "{run:?}");
            assert!(run.breadcrumbs.iter().all(|breadcrumb| breadcrumb.at >= run.started_at), "{run:?}");
            close_empty(&client);
            let events = fixture.sink.events();
            let reported = events.iter().find(|event| event.event == "previous_run_ended").unwrap();
            let steps = reported.properties["$exception_steps"].as_array();
            assert_eq!(steps.map_or(0, Vec::len), expected.len());
            // That client was not the process-wide one, and left none of its own.
            assert_eq!(texts(&self::reported(fixture)), Vec::<&str>::new());
        },
    );
}

#[test]
fn breadcrumbs_after_a_close_are_not_in_the_next_run() {
    apart(
        |place| {
            let client = begin(place);
            posthog::breadcrumb("while it was open");
            close_empty(&client);
            // The shard may belong to another process by now.
            let next = Client::new(place.config()).unwrap();
            posthog::breadcrumb("after that");
            let expected = if is_mapped(&next.stats().dir.unwrap()) { vec!["while it was open"] } else { vec![] };
            assert_eq!(texts(&next.previous_run().unwrap()), expected);
            drop(next);
            let next = place.client().previous_run().unwrap();
            assert_eq!((next.cause, texts(&next)), (ExitCause::Clean, vec![]));
        },
        |_| (),
    );
}
