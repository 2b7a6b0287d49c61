//! SIGTERM and SIGINT: what is queued is sent, and the process ends as it would have without us.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use posthog::{AfterDrain, Client, DrainOptions, DropReason, Error, Outcome, StorageMode, drain_on_terminate};
use sink::Answer;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::apart::{Terms, apart, apart_until};
use crate::fixture::{Fixture, PATIENCE, Place, close_empty, event, eventually, take};
use crate::process::{forked, ignore};

const DAY: Duration = Duration::from_secs(86_400);

/// The process-wide client with `count` events that nothing sends for the time being.
fn with_queued(place: &Place, count: usize) -> Client {
    let client = posthog::init(place.config().flush_interval(Duration::from_secs(600)).flush_at(1000)).unwrap();
    for _ in 0..count {
        take(&client, "tick");
    }
    client
}

/// The signal goes to the process, as from outside; what happens next is not ours to say.
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
fn a_sigterm_delivers_what_is_queued_and_then_the_process_dies_of_it() {
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
fn a_server_that_hangs_holds_the_end_up_until_the_deadline_and_nothing_is_lost() {
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
fn where_the_application_sees_to_the_end_each_signal_sends_and_the_client_goes_on() {
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
fn a_handler_of_tokios_that_came_first_keeps_the_exit() {
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
fn a_handler_of_tokios_that_comes_later_hears_of_the_signal_too() {
    apart_until(
        |status| status.signal() == Some(2),
        hanging,
        |_| Terms::default(),
        |place| {
            with_queued(place, 2);
            drain_on_terminate(DrainOptions::new().deadline(Duration::from_secs(600))).unwrap();
            Runtime::new().unwrap().block_on(async {
                let heard = tokio::spawn(tokio::signal::ctrl_c());
                // Its handler is there once the task has run; until then a signal would be heard by ours alone.
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
            // Even where the application sees to the end: nobody in the child does.
            drain_on_terminate(DrainOptions::new().exit(AfterDrain::App)).unwrap();
            let child = forked(sleep_until_killed);
            child.tell(Signal::SIGTERM);
            child.must_die_of(Signal::SIGTERM);
            take(&client, "tick");
            assert_eq!(client.stats().queued_events, 2, "nothing was sent for it");
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["tick", "tick"]),
    );
}

#[test]
fn a_child_that_asks_for_it_is_drained_itself() {
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
fn it_may_come_before_the_client_and_comes_once() {
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
fn the_first_process_of_a_container_exits_with_what_a_shell_makes_of_the_signal() {
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
        |_| Terms::default().scripted_by_the_first_process(),
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
