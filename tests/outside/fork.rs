//! Forked children: the inherited queue stays the parent's, and a child's captures go to a queue of its own.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::unistd::{getppid, setsid};
use posthog::reports::{DeliveryReport, EndpointStatus, PersistError};
use posthog::settings::BeforeSend;
use posthog::stats::{HealthCause, StorageMode};
use posthog::{DropReason, Outcome};
use sink::Answer;

use crate::apart::apart;
use crate::fixture::{PATIENCE, accepted, assert_balanced, close_empty, event, eventually, take};
use crate::process::forked;

#[test]
fn a_child_that_drops_the_client_leaves_the_queue_to_its_parent() {
    apart(
        |place| {
            let mut held = Some(place.client());
            take(held.as_ref().unwrap(), "before");
            // The last handle in the child; the parent still has one.
            forked(|| drop(held.take())).must_end_well();
            let client = held.take().unwrap();
            take(&client, "after");
            close_empty(&client);
            // The queue opens undamaged.
            drop(client);
            let client = place.client();
            assert_eq!(client.stats().accepted, 2);
            assert_balanced(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["after", "before"]),
    );
}

#[test]
fn a_child_that_exits_leaves_the_process_wide_client_working() {
    apart(
        |place| {
            let client = posthog::init(place.config()).unwrap();
            for name in ["one", "two", "three"] {
                forked(|| ()).must_end_well();
                posthog::capture(event(name));
                assert!(client.flush().wait(PATIENCE).is_ok());
            }
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["one", "three", "two"]),
    );
}

#[test]
fn what_a_child_captures_goes_through_a_shard_of_its_own() {
    apart(
        |place| {
            let client = place.client();
            take(&client, "parent");
            let parents = client.stats().dir;
            forked(|| {
                take(&client, "child");
                let stats = client.stats();
                assert_eq!((stats.accepted, stats.storage == StorageMode::Durable), (1, true), "{stats:?}");
                assert_ne!(stats.dir, parents);
                assert!(client.capture(event("child")).persisted().wait(PATIENCE).is_ok());
                close_empty(&client);
            })
            .must_end_well();
            take(&client, "parent");
            assert_eq!(client.stats().dir, parents);
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["child", "child", "parent", "parent"]),
    );
}

#[test]
fn a_child_that_has_captured_nothing_has_no_queue() {
    apart(
        |place| {
            let client = place.client();
            take(&client, "parent");
            forked(|| {
                let stats = client.stats();
                assert_eq!((&stats.storage, stats.rejecting, &stats.dir), (&StorageMode::Forked, None, &None));
                let health = client.health();
                assert!(stats.medium.is_none() && health.has(HealthCause::NotOpened) && health.is_ready(), "{health}");
                assert!(!client.is_disabled());
                assert_eq!(client.flush().wait(PATIENCE).unwrap().endpoint, EndpointStatus::Forked);
                take(&client, "child");
                assert_eq!(client.stats().storage, StorageMode::Durable);
                close_empty(&client);
            })
            .must_end_well();
            assert_eq!(client.stats().storage, StorageMode::Durable);
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["child", "parent"]),
    );
}

#[test]
fn a_child_captures_by_the_rules_that_its_parent_had_set() {
    apart(
        |place| {
            let client = place.client();
            client.set_before_send([BeforeSend::new(|event| Some(event.prop("seen", true)))]);
            client.register("release", 7);
            client.opt_out();
            forked(|| {
                assert_eq!(client.capture(event("no")).outcome(), Outcome::Dropped(DropReason::OptedOut));
                client.opt_in();
                take(&client, "child");
                let report = client.capture_immediate(event("child")).wait(PATIENCE);
                assert_eq!(report, Ok(DeliveryReport::Delivered));
                close_empty(&client);
            })
            .must_end_well();
            assert!(client.is_opted_out(), "the parent is still opted out");
            close_empty(&client);
        },
        |fixture| {
            let events = fixture.sink.events();
            let is_marked = |e: &sink::Event| e.properties["seen"] == true && e.properties["release"] == 7;
            assert!(events.len() == 2 && events.iter().all(is_marked), "{events:?}");
        },
    );
}

#[test]
fn what_a_child_leaves_behind_is_delivered_by_its_parent() {
    apart(
        |place| {
            let client = place.client();
            take(&client, "parent");
            // Ends without closing the client, as a program that returns from `main`.
            forked(|| {
                take(&client, "child");
            })
            .must_end_well();
            eventually("the parent adopts its child's shard", || {
                take(&client, "parent");
                let _ = client.flush().wait(PATIENCE);
                // Two shards or three: if the parent locks the shard that the child is creating, in search of orphans,
                // the child creates another.
                place.shards().len() >= 2 && client.stats().adopted_events == 0 && client.stats().queued_events == 0
            });
            close_empty(&client);
        },
        |fixture| {
            let children =
                || fixture.sink.inspect(|state| state.events().iter().filter(|e| e.event == "child").count());
            if children() == 0 {
                close_empty(&fixture.client());
                // One client: a client that is dropped during a request leaves its events to be sent again by the next.
                let client = fixture.client();
                eventually("the next process adopts it", || {
                    take(&client, "next");
                    let _ = client.flush().wait(PATIENCE);
                    children() > 0
                });
                close_empty(&client);
            }
            assert_eq!(children(), 1);
        },
    );
}

#[test]
fn futures_that_a_child_inherits_resolve_as_forked() {
    apart(
        |place| {
            let client = place.client();
            let receipt = client.capture(event("parent"));
            let persisted = receipt.persisted();
            // Whether they have resolved before the fork makes no difference in the child.
            let flush = client.flush();
            let polled = client.flush();
            forked(|| {
                assert_eq!(persisted.wait(PATIENCE), Err(PersistError::Forked));
                assert_eq!(receipt.persisted().wait(PATIENCE), Err(PersistError::Forked));
                assert_eq!(flush.wait(PATIENCE).unwrap().endpoint, EndpointStatus::Forked);
                let mut future = pin!(polled);
                let Poll::Ready(report) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
                    panic!("a task of the child waits for its parent's thread");
                };
                assert_eq!(report.endpoint, EndpointStatus::Forked);
            })
            .must_end_well();
            assert!(persisted.wait(PATIENCE).is_ok());
        },
        |_| (),
    );
}

#[test]
fn a_daemon_that_forks_twice_takes_over_its_ancestors_queue() {
    apart(
        |place| {
            let client = place.client();
            take(&client, "ancestor");
            let ancestors = client.stats().dir.unwrap();
            let ancestor = std::process::id();
            // Only its parent waits for the middle process, and no process waits for the daemon.
            forked(|| {
                let middle = setsid().unwrap();
                let _daemon = forked(|| {
                    let alive = |pid: u32| std::path::Path::new(&format!("/proc/{pid}/stat")).exists();
                    eventually("both ancestors end", || getppid() != middle && !alive(ancestor));
                    take(&client, "daemon");
                    assert_eq!(client.stats().dir.as_ref(), Some(&ancestors), "the ancestor's lock ends with it");
                    close_empty(&client);
                    std::fs::write(place.queue.with_extension("done"), "").unwrap();
                });
            })
            .must_end_well();
            take(&client, "ancestor");
            // Exits with the client alive and its lock held.
            std::process::exit(0);
        },
        |fixture| {
            assert!(fixture.sink.wait_for(|state| state.unique() >= 3, PATIENCE), "{:?}", fixture.names());
            eventually("the daemon is done with the directory", || fixture.queue.with_extension("done").exists());
            assert_eq!(fixture.names().iter().filter(|name| *name == "daemon").count(), 1);
        },
    );
}

#[test]
fn parent_child_and_grandchild_never_give_the_same_uuid() {
    const EACH: usize = 200;
    apart(
        |place| {
            let client = place.client();
            let capture_many = || {
                let uuids: HashSet<_> = (0..EACH).map(|_| take(&client, "tick")).collect();
                assert_eq!(uuids.len(), EACH);
            };
            take(&client, "warm");
            forked(|| {
                forked(|| {
                    capture_many();
                    close_empty(&client);
                })
                .must_end_well();
                capture_many();
                close_empty(&client);
            })
            .must_end_well();
            capture_many();
            close_empty(&client);
        },
        |fixture| {
            let all = 3 * EACH + 1;
            let (unique, duplicates) = fixture.sink.inspect(|state| (state.unique(), state.duplicates()));
            assert_eq!((unique, duplicates), (all as u64, 0));
            // The random bits differ as well: the first bits encode the millisecond, which captures may share.
            let random_bits =
                |state: &sink::State| state.uuids().map(|uuid| uuid.as_u64_pair().1).collect::<HashSet<_>>();
            assert_eq!(fixture.sink.inspect(random_bits).len(), all);
        },
    );
}

#[test]
fn a_child_made_while_other_threads_capture_and_wait_works() {
    const CHILDREN: usize = 12;
    apart(
        |place| {
            let client = place.client();
            let busy = Arc::new(AtomicBool::new(true));
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let (client, busy) = (client.clone(), Arc::clone(&busy));
                    std::thread::spawn(move || {
                        while busy.load(Ordering::Relaxed) {
                            let receipt = client.capture(event("noise"));
                            let _ = receipt.persisted().wait(Duration::from_micros(50));
                            let _ = (client.stats(), client.diagnostics());
                        }
                    })
                })
                .collect();
            for _ in 0..CHILDREN {
                forked(|| {
                    accepted(&client.capture(event("child")));
                    let _ = client.diagnostics();
                    close_empty(&client);
                })
                .must_end_well();
            }
            busy.store(false, Ordering::Relaxed);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
        },
        |fixture| {
            let children = |state: &sink::State| state.events().iter().filter(|e| e.event == "child").count();
            assert_eq!(fixture.sink.inspect(children), CHILDREN);
            fixture.sink.default_answer(Answer::ok());
        },
    );
}
