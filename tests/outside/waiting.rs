//! Flush, close and drop: which events they cover, and that they end in time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use posthog::reports::{EndpointStatus, PersistError, WaitTimeout};
use posthog::stats::StorageMode;
use posthog::{Client, DropReason, Outcome};
use sink::Answer;

use crate::fixture::{Fixture, PATIENCE, close_empty, event, eventually, take};

/// Far longer than a successful wait, far shorter than the timeouts of a failed one.
const SOON: Duration = Duration::from_secs(15);

/// Captures events on its own thread, at least 100 us apart, until it is dropped.
struct Noise {
    goes_on: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Noise {
    fn on(client: &Client) -> Self {
        let goes_on = Arc::new(AtomicBool::new(true));
        let (client, on) = (client.clone(), Arc::clone(&goes_on));
        let thread = thread::spawn(move || {
            while on.load(Ordering::Relaxed) {
                client.capture(event("noise"));
                thread::sleep(Duration::from_micros(100));
            }
        });
        Self { goes_on, thread: Some(thread) }
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

#[test]
fn a_flush_under_steady_capture_with_the_server_down_ends() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = fixture.client();
    // With nothing to send, the state of the endpoint stays unknown.
    take(&client, "first");
    let noise = Noise::on(&client);
    for _ in 0..5 {
        let began = Instant::now();
        let report = client.flush().wait(PATIENCE).unwrap();
        assert!(matches!(report.endpoint, EndpointStatus::Down { .. }), "{report:?}");
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
    drop(noise);
    assert!(client.stats().queued_events > 0);
    client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
}

#[test]
fn a_flush_under_steady_capture_covers_earlier_events() {
    let fixture = Fixture::new();
    fixture.sink.default_answer(Answer::ok().delay(Duration::from_millis(50)));
    let client = fixture.client();
    let noise = Noise::on(&client);
    for number in 0..5 {
        let before: Vec<_> = (0..100).map(|_| take(&client, "before")).collect();
        let began = Instant::now();
        let report = client.flush().wait(PATIENCE).unwrap();
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        assert_eq!(report.endpoint, EndpointStatus::Up, "flush {number}");
        let missing = before.iter().filter(|uuid| !fixture.sink.inspect(|state| state.contains(**uuid))).count();
        assert_eq!(missing, 0, "events accepted before flush {number} that it did not send");
    }
    drop(noise);
    close_empty(&client);
}

#[test]
fn many_flushes_at_once_are_all_answered() {
    let fixture = Fixture::new();
    let client = fixture.client();
    take(&client, "tick");
    let flushes: Vec<_> = (0..200).map(|_| client.flush()).collect();
    for flush in &flushes {
        assert_eq!(flush.wait(PATIENCE).unwrap().endpoint, EndpointStatus::Up);
    }
    assert_eq!(fixture.names(), ["tick"]);
    close_empty(&client);
}

#[test]
fn close_with_a_hanging_server_ends_at_the_timeout() {
    let fixture = Fixture::new();
    fixture.sink.default_answer(Answer::hang().discarding());
    let client = Client::new(fixture.config().shutdown_timeout(Duration::from_millis(700))).unwrap();
    let uuid = take(&client, "tick");
    assert!(fixture.sink.wait_for(|state| !state.requests().is_empty(), PATIENCE));
    let began = Instant::now();
    let report = client.close().wait(PATIENCE).unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(600) && took < Duration::from_secs(8), "{took:?}");
    assert_eq!((report.remaining, report.delivered, report.persisted), (1, 0, true), "{report:?}");
    drop(client);
    fixture.sink.default_answer(Answer::ok());
    let client = fixture.client();
    fixture.must_have_taken(&[uuid]);
    close_empty(&client);
}

#[test]
fn a_second_shutdown_can_only_shorten_the_first() {
    let fixture = Fixture::new();
    fixture.sink.default_answer(Answer::hang().discarding());
    let client = fixture.client();
    take(&client, "tick");
    assert!(fixture.sink.wait_for(|state| !state.requests().is_empty(), PATIENCE));
    let long = client.shutdown(Duration::from_secs(3000));
    assert_eq!(long.wait(Duration::from_millis(50)), Err(WaitTimeout));
    let short = client.shutdown(Duration::from_millis(50)).wait(SOON).unwrap();
    assert_eq!(long.wait(SOON), Ok(short.clone()));
    assert_eq!(client.close().wait(SOON), Ok(short.clone()));
    assert_eq!(client.shutdown(Duration::MAX).wait(SOON), Ok(short));
}

#[test]
fn after_shutdown_every_call_returns_and_captures_are_dropped() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let before = client.capture(event("before"));
    close_empty(&client);
    let late = client.capture(event("late"));
    assert_eq!(late.outcome(), Outcome::Dropped(DropReason::Closed));
    assert_eq!(late.persisted().wait(SOON), Err(PersistError::Dropped));
    // `before` was persisted before the shutdown ended.
    assert_eq!(before.persisted().wait(SOON), Ok(()));
    assert_eq!(client.flush().wait(SOON).unwrap().endpoint, EndpointStatus::Closed);
    let stats = client.stats();
    assert_eq!((stats.storage, stats.dropped), (StorageMode::Closed, vec![(DropReason::Closed, 1)]));
    assert_eq!(fixture.names(), ["before"]);
}

#[test]
fn captures_racing_a_shutdown_are_delivered_or_dropped() {
    let fixture = Fixture::new();
    for _ in 0..5 {
        let client = fixture.client();
        let begun = Arc::new(Barrier::new(4));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (client, begun) = (client.clone(), Arc::clone(&begun));
                thread::spawn(move || {
                    let mut taken = vec![take(&client, "race")];
                    begun.wait();
                    loop {
                        let receipt = client.capture(event("race"));
                        match receipt.outcome() {
                            Outcome::Accepted => taken.extend(receipt.uuid()),
                            // `JournalBusy`, if the thread that holds the lock is not scheduled for a while.
                            Outcome::Dropped(DropReason::JournalFull | DropReason::JournalBusy) => {}
                            Outcome::Dropped(reason) => return (taken, reason),
                        }
                    }
                })
            })
            .collect();
        begun.wait();
        client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
        for thread in threads {
            let (taken, reason) = thread.join().unwrap();
            assert_eq!(reason, DropReason::Closed);
            let missing = taken.iter().filter(|uuid| !fixture.sink.inspect(|state| state.contains(**uuid))).count();
            assert_eq!(missing, 0, "of {} accepted", taken.len());
        }
    }
}

#[test]
fn the_last_client_may_be_dropped_inside_on_delivery() {
    let fixture = Fixture::new();
    let held: Arc<Mutex<Option<Client>>> = Arc::default();
    let (sender, receiver) = mpsc::channel();
    let inside = Arc::clone(&held);
    let client = Client::new(fixture.config().on_delivery(move |_| {
        let last = inside.lock().unwrap().take();
        let began = Instant::now();
        // The flush needs this thread, so a wait on this thread returns at once.
        let flush = last.as_ref().map(|client| client.flush().wait(PATIENCE));
        drop(last);
        let _ = sender.send((flush, began.elapsed()));
    }))
    .unwrap();
    *held.lock().unwrap() = Some(client.clone());
    take(&client, "tick");
    drop(client);
    let (flush, took) = receiver.recv_timeout(PATIENCE).unwrap();
    assert_eq!(flush, Some(Err(WaitTimeout)));
    assert!(took < SOON, "{took:?}");
    // The lock of the shard was released, and the delivered event was acked.
    eventually("the shard is free again", || {
        let next = fixture.client();
        next.stats().dir.is_some_and(|dir| dir.ends_with("shard-0")) && next.stats().queued_events == 0
    });
    assert_eq!(fixture.names(), ["tick"]);
}

#[test]
fn the_last_client_may_be_dropped_inside_a_diagnostic_hook() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let held: Arc<Mutex<Option<Client>>> = Arc::default();
    let (sender, receiver) = mpsc::channel();
    let inside = Arc::clone(&held);
    let client = Client::new(fixture.config().on_diagnostic(move |_| {
        let last = inside.lock().unwrap().take();
        drop(last);
        let _ = sender.send(());
    }))
    .unwrap();
    let uuid = take(&client, "tick");
    *held.lock().unwrap() = Some(client.clone());
    drop(client);
    receiver.recv_timeout(PATIENCE).unwrap();
    fixture.sink.resume();
    eventually("the next client delivers", || {
        let next = fixture.client();
        let _ = next.flush().wait(PATIENCE);
        fixture.sink.inspect(|state| state.contains(uuid))
    });
}

#[test]
fn a_client_dropped_while_offline_loses_nothing() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let mut uuids = Vec::new();
    for _ in 0..4 {
        let client = fixture.client();
        uuids.extend((0..25).map(|_| take(&client, "offline")));
        let began = Instant::now();
        drop(client);
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
    fixture.sink.resume();
    let client = fixture.client();
    assert_eq!(client.stats().accepted, 100);
    let _ = client.flush().wait(PATIENCE);
    fixture.must_have_taken(&uuids);
    close_empty(&client);
}

#[test]
fn persisted_resolves_for_all_threads_that_wait_together() {
    let fixture = Fixture::new();
    let client = fixture.client();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(client.capture(event("tick")).persisted().wait(PATIENCE), Ok(()));
                }
            });
        }
    });
    assert_eq!(client.stats().accepted, 320);
    close_empty(&client);
}
