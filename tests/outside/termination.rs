//! SIGTERM and SIGINT: the queue is sent, and the process ends as it would have without the library.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use posthog::stats::StorageMode;
use posthog::termination::{AfterDrain, DrainOptions};
use posthog::{Client, DropReason, Error, Outcome, drain_on_terminate};
use sink::Answer;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::apart::{Terms, apart, apart_until};
use crate::fixture::{Fixture, PATIENCE, Place, close_empty, event, eventually, take};
use crate::process::{forked, ignore};

const DAY: Duration = Duration::from_secs(86_400);

/// The process-wide client with `count` queued events, which are not sent for now.
fn with_queued(place: &Place, count: usize) -> Client {
    let client = posthog::init(place.config().flush_interval(Duration::from_secs(600)).flush_at(1000)).unwrap();
    for _ in 0..count {
        take(&client, "tick");
    }
    client
}

/// Sends the signal to the process, as another process would.
fn send_to_self(signal: Signal) {
    kill(Pid::this(), signal).unwrap();
}

fn sleep_until_killed() {
    loop {
        std::thread::sleep(DAY);
    }
}

fn died_of_sigterm(status: &ExitStatus) -> bool {
    status.signal() == Some(15)
}

fn hanging() -> Fixture {
    let fixture = Fixture::new();
    fixture.sink.default_answer(Answer::hang());
    fixture
}

#[test]
fn a_sigterm_delivers_the_queue_and_then_ends_the_process() {
    apart_until(
        died_of_sigterm,
        Fixture::new,
        |_| Terms::default(),
        |place| {
            with_queued(place, 50);
            drain_on_terminate(DrainOptions::new()).unwrap();
            send_to_self(Signal::SIGTERM);
            sleep_until_killed();
        },
        |fixture| {
            assert_eq!(fixture.names().len(), 50);
            assert_eq!(fixture.client().stats().queued_events, 0);
        },
    );
}

#[test]
fn a_sigint_does_the_same_under_its_own_name() {
    apart_until(
        |status| status.signal() == Some(2),
        Fixture::new,
        |_| Terms::default(),
        |place| {
            with_queued(place, 3);
            drain_on_terminate(DrainOptions::new()).unwrap();
            send_to_self(Signal::SIGINT);
            sleep_until_killed();
        },
        |fixture| assert_eq!(fixture.names().len(), 3),
    );
}

#[test]
fn a_hanging_server_delays_the_end_until_the_deadline() {
    let began = Instant::now();
    apart_until(
        died_of_sigterm,
        hanging,
        |_| Terms::default(),
        |place| {
            with_queued(place, 3);
            drain_on_terminate(DrainOptions::new().deadline(Duration::from_secs(1))).unwrap();
            send_to_self(Signal::SIGTERM);
            sleep_until_killed();
        },
        |fixture| {
            let took = began.elapsed();
            assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(20), "{took:?}");
            fixture.sink.default_answer(Answer::ok());
            let client = fixture.client();
            close_empty(&client);
            assert_eq!(fixture.sink.inspect(|state| state.unique()), 3);
        },
    );
}

#[test]
fn a_second_sigterm_kills_at_once() {
    let began = Instant::now();
    apart_until(
        died_of_sigterm,
        hanging,
        |_| Terms::default(),
        |place| {
            let client = with_queued(place, 3);
            drain_on_terminate(DrainOptions::new().deadline(Duration::from_secs(600))).unwrap();
            send_to_self(Signal::SIGTERM);
            let is_closed = |outcome| outcome == Outcome::Dropped(DropReason::Closed);
            eventually("the drain begins", || is_closed(client.capture(event("late")).outcome()));
            send_to_self(Signal::SIGTERM);
            sleep_until_killed();
        },
        |_| assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed()),
    );
}

#[test]
fn with_after_drain_app_each_signal_flushes() {
    apart(
        |place| {
            let client = with_queued(place, 2);
            drain_on_terminate(DrainOptions::new().exit(AfterDrain::App)).unwrap();
            for _ in 0..2 {
                send_to_self(Signal::SIGTERM);
                eventually("what is queued is sent", || client.stats().queued_events == 0);
                take(&client, "after");
            }
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["after", "after", "tick", "tick"]),
    );
}

#[test]
fn a_tokio_handler_installed_first_keeps_control_of_the_exit() {
    apart(
        |place| {
            let client = with_queued(place, 2);
            Runtime::new().unwrap().block_on(async {
                let mut terminate = signal(SignalKind::terminate()).unwrap();
                drain_on_terminate(DrainOptions::new()).unwrap();
                for _ in 0..2 {
                    send_to_self(Signal::SIGTERM);
                    terminate.recv().await.unwrap();
                }
            });
            eventually("what is queued is sent", || client.stats().queued_events == 0);
            assert_eq!(client.stats().storage, StorageMode::Durable);
        },
        |fixture| assert_eq!(fixture.names(), ["tick", "tick"]),
    );
}

#[test]
fn a_tokio_handler_installed_later_receives_the_signal_too() {
    apart_until(
        |status| status.signal() == Some(2),
        hanging,
        |_| Terms::default(),
        |place| {
            with_queued(place, 2);
            drain_on_terminate(DrainOptions::new().deadline(Duration::from_secs(600))).unwrap();
            Runtime::new().unwrap().block_on(async {
                let heard = tokio::spawn(tokio::signal::ctrl_c());
                // Its handler is installed once the task has run; until then only the library would receive the signal.
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::from_millis(200)).await;
                send_to_self(Signal::SIGINT);
                heard.await.unwrap().unwrap();
                send_to_self(Signal::SIGINT);
            });
            sleep_until_killed();
        },
        |_| (),
    );
}

#[test]
fn a_child_dies_of_sigterm_at_once_and_its_parent_goes_on() {
    apart(
        |place| {
            let client = with_queued(place, 1);
            // Even with `AfterDrain::App`: the application's thread does not exist in the child.
            drain_on_terminate(DrainOptions::new().exit(AfterDrain::App)).unwrap();
            let child = forked(sleep_until_killed);
            child.send(Signal::SIGTERM);
            child.must_die_of(Signal::SIGTERM);
            take(&client, "tick");
            assert_eq!(client.stats().queued_events, 2, "nothing was sent for it");
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["tick", "tick"]),
    );
}

#[test]
fn a_child_that_calls_it_is_drained_too() {
    apart(
        |place| {
            let client = with_queued(place, 0);
            drain_on_terminate(DrainOptions::new()).unwrap();
            let child = forked(|| {
                take(&client, "child");
                drain_on_terminate(DrainOptions::new()).unwrap();
                raise(Signal::SIGTERM).unwrap();
                sleep_until_killed();
            });
            child.must_die_of(Signal::SIGTERM);
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["child"]),
    );
}

#[test]
fn it_may_be_called_before_init_and_only_once() {
    apart_until(
        died_of_sigterm,
        Fixture::new,
        |_| Terms::default(),
        |place| {
            assert!(matches!(drain_on_terminate(DrainOptions::new().signals([9])), Err(Error::Config { .. })));
            drain_on_terminate(DrainOptions::new()).unwrap();
            assert!(matches!(drain_on_terminate(DrainOptions::new()), Err(Error::AlreadyInstalled(_))));
            with_queued(place, 1);
            send_to_self(Signal::SIGTERM);
            sleep_until_killed();
        },
        |fixture| assert_eq!(fixture.names(), ["tick"]),
    );
}

#[test]
fn without_a_client_the_process_dies_at_once() {
    apart_until(
        died_of_sigterm,
        Fixture::new,
        |_| Terms::default(),
        |_| {
            drain_on_terminate(DrainOptions::new().deadline(Duration::from_secs(600))).unwrap();
            send_to_self(Signal::SIGTERM);
            sleep_until_killed();
        },
        |_| (),
    );
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    apart(
        |place| {
            ignore(Signal::SIGINT);
            let client = with_queued(place, 1);
            drain_on_terminate(DrainOptions::new()).unwrap();
            send_to_self(Signal::SIGINT);
            assert!(client.capture(event("tick")).is_accepted());
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["tick", "tick"]),
    );
}

#[test]
fn process_1_of_a_container_exits_with_the_shells_status() {
    let is_part = Pid::this().as_raw() == 1;
    let can =
        || Command::new("unshare").args(["--pid", "--fork", "true"]).output().is_ok_and(|run| run.status.success());
    if !is_part && !can() {
        eprintln!("skipped: no namespace can be made here");
        return;
    }
    apart_until(
        |status| status.code() == Some(143),
        Fixture::new,
        |_| Terms::default().run_as_the_first_process(),
        |place| {
            assert!(is_part);
            with_queued(place, 1);
            drain_on_terminate(DrainOptions::new()).unwrap();
            send_to_self(Signal::SIGTERM);
            sleep_until_killed();
        },
        |fixture| assert_eq!(fixture.names(), ["tick"]),
    );
}
