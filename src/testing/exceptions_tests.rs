//! Exceptions by a clock that stands still: what an error in a loop leaves, and the trace that an exception is part of.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::Harness;
use crate::client::{Client, Outcome, Receipt};
use crate::config::TraceContext;
use crate::event::Event;
use crate::event::exception::{AdHocError, ExceptionOptions};
use crate::report::{Diagnostic, DropReason};
use crate::sys::machine;

const SECOND: Duration = Duration::from_secs(1);

/// A storm that was seen in production.
const STORM: u64 = 871_649;

fn harness() -> Harness {
    Harness::new(|config| config.symbolicate(false)).unwrap()
}

/// Captures an error so many times at one place; returns how many of them were accepted.
fn storm(client: &Client, times: u64) -> u64 {
    let one = |_: &u64| client.capture_exception(&fmt::Error).is_accepted();
    (0..times).filter(one).count() as u64
}

fn taken(harness: &Harness, name: &str) -> Vec<Value> {
    harness.deliver();
    harness.server().taken().into_iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn a_storm_of_errors_leaves_ten_events_and_delays_no_other() {
    let harness = harness();
    let client = harness.client();
    assert_eq!(storm(client, STORM), 10);
    assert!(client.capture(Event::new("tick", "user_1")).is_accepted());
    assert!(client.capture_exception(&AdHocError::new("of another type and place")).is_accepted());
    harness.deliver();
    let events = harness.server().taken();
    assert_eq!((events.len(), harness.server().requests().len()), (12, 1), "all in one request");
    assert_eq!(client.stats().dropped, [(DropReason::RateLimited, STORM - 10)]);

    harness.advance(10 * SECOND);
    assert_eq!(storm(client, 5), 1);
    let last = taken(&harness, "$exception").pop().unwrap();
    assert_eq!(last["properties"]["exception_missed_before"], json!(STORM - 10));
    harness.advance(10 * SECOND);
    assert_eq!(storm(client, 1), 1);
    let last = taken(&harness, "$exception").pop().unwrap();
    assert_eq!(last["properties"]["exception_missed_before"], 4);
    harness.advance(10 * SECOND);
    assert_eq!(storm(client, 1), 1);
    let last = taken(&harness, "$exception").pop().unwrap();
    assert_eq!(last["properties"].get("exception_missed_before"), None);
}

#[test]
fn a_limited_exception_is_reported_with_its_type_and_place() {
    let harness = Harness::new(|config| config.exception_rate_limit(1, 60 * SECOND)).unwrap();
    let line = line!() + 1;
    let [first, second] = [(); 2].map(|()| harness.client().capture_exception(&AdHocError::new("x").kind("DiskSpace")));
    assert_eq!((first.outcome(), second.outcome()), (Outcome::Accepted, Outcome::Dropped(DropReason::RateLimited)));
    let recorded = harness.client().diagnostics();
    let Some(Diagnostic::Dropped { reason: DropReason::RateLimited, event, detail, count: 1 }) = recorded.last() else {
        panic!("{recorded:?}")
    };
    assert_eq!(event, "$exception");
    assert_eq!(
        *detail,
        format!(
            "more than 1 of type DiskSpace were captured at src/testing/exceptions_tests.rs:{line}; one more is sent \
             every 60s, with the number of those dropped before it (exception_missed_before); see \
             Config::exception_rate_limit"
        )
    );
}

#[test]
fn types_places_and_given_keys_have_limits_of_their_own() {
    let harness = Harness::new(|config| config.symbolicate(false).exception_rate_limit(2, 60 * SECOND)).unwrap();
    let client = harness.client();
    let accepted = |capture: &dyn Fn(u8) -> Receipt| (0..5).filter(|n| capture(*n).is_accepted()).count();
    let kinds = ["Full", "Empty"];
    assert_eq!(accepted(&|n| client.capture_exception(&AdHocError::new("x").kind(kinds[usize::from(n % 2)]))), 4);
    assert_eq!(accepted(&|_| client.capture_exception(&AdHocError::new("x").kind("Full"))), 2, "another place");
    let boxed: [Box<dyn std::error::Error>; 2] = [Box::new("".parse::<u8>().unwrap_err()), Box::new(fmt::Error)];
    assert_eq!(accepted(&|n| client.capture_exception(&*boxed[usize::from(n % 2)])), 4, "behind dyn too");
    let of_job = |job: &str| ExceptionOptions::new().rate_limit_key(job);
    assert_eq!(accepted(&|n| client.capture_exception_with(&fmt::Error, of_job(&(n % 2).to_string()))), 4);
    assert_eq!(accepted(&|_| client.capture_exception_with(&fmt::Error, of_job("0"))), 0, "the same job");
}

#[test]
fn the_number_of_missed_ones_survives_a_dropped_exception() {
    let harness = Harness::new(|config| config.symbolicate(false).exception_rate_limit(1, 10 * SECOND)).unwrap();
    let client = harness.client();
    assert_eq!(storm(client, 4), 1);
    harness.advance(10 * SECOND);
    client.set_before_send([crate::settings::BeforeSend::new(|_| None)]);
    assert_eq!(storm(client, 1), 0);
    client.set_before_send([]);
    harness.advance(10 * SECOND);
    assert_eq!(storm(client, 1), 1);
    assert_eq!(taken(&harness, "$exception")[1]["properties"]["exception_missed_before"], 3);
}

#[test]
fn an_error_is_not_read_when_its_exception_is_dropped() {
    /// An error whose message panics.
    struct Unread;
    impl fmt::Debug for Unread {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("read")
        }
    }
    impl fmt::Display for Unread {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("read")
        }
    }
    impl std::error::Error for Unread {}
    let harness = Harness::new(|config| config.symbolicate(false).exception_rate_limit(1, 10 * SECOND)).unwrap();
    let is_noted = || harness.client().diagnostics().iter().filter(|it| it.to_string().contains("Display")).count();
    let capture = || harness.client().capture_exception(&Unread).is_accepted();
    assert!(capture() && is_noted() == 1);
    assert!(!(0..100).any(|_| capture()) && is_noted() == 1);
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// The ids of the exceptions that arrived, in the order of their capture.
fn ids(harness: &Harness) -> Vec<[Value; 2]> {
    let of = |event: Value| ["$trace_id", "$span_id"].map(|key| event["properties"][key].clone());
    taken(harness, "$exception").into_iter().map(of).collect()
}

fn traced(source: impl Fn() -> Option<TraceContext> + Send + Sync + 'static) -> Harness {
    Harness::new(|config| config.symbolicate(false).trace_context(source)).unwrap()
}

#[test]
fn an_exception_has_the_trace_of_the_thread_that_captures_it() {
    thread_local! {
        static SPAN_OF_THREAD: Cell<Option<u64>> = const { Cell::new(None) };
    }
    let harness = traced(|| Some(TraceContext::new(TRACE, format_args!("{:016x}", SPAN_OF_THREAD.get()?))));
    let client = harness.client();
    client.capture_exception(&fmt::Error);
    std::thread::scope(|scope| {
        for span in [7, 0] {
            let captured = scope.spawn(move || {
                SPAN_OF_THREAD.set(Some(span));
                client.capture_exception(&fmt::Error);
            });
            captured.join().unwrap();
        }
    });
    client.capture(Event::new("no_exception", "user_1"));
    let none = [Value::Null, Value::Null];
    assert_eq!(ids(&harness), [none.clone(), [json!(TRACE), json!("0000000000000007")], none]);
    assert_eq!(taken(&harness, "no_exception")[0]["properties"].get("$trace_id"), None);
}

#[test]
fn a_trace_that_the_program_gives_is_kept_as_it_is() {
    let harness = traced(|| Some(TraceContext::new(TRACE, SPAN)));
    let given = ExceptionOptions::new().prop("$trace_id", "mine");
    harness.client().capture_exception_with(&fmt::Error, given);
    assert_eq!(ids(&harness), [[json!("mine"), Value::Null]], "never one id of each");
}

#[test]
fn a_trace_function_that_panics_costs_only_the_ids() {
    let harness = traced(|| panic!("no trace today"));
    assert!(harness.client().capture_exception(&fmt::Error).is_accepted());
    assert_eq!(ids(&harness), [[Value::Null, Value::Null]]);
    let recorded = harness.client().diagnostics();
    assert!(recorded.contains(&Diagnostic::CallbackPanicked { callback: "trace_context" }), "{recorded:?}");
}

#[test]
fn a_trace_function_that_captures_an_exception_ends() {
    let own: Arc<Mutex<Option<Client>>> = Arc::default();
    let (inside, calls) = (Arc::clone(&own), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&calls);
    let harness = traced(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        // Unlocked again before the capture, which calls this function once more.
        let client = inside.lock().unwrap().clone()?;
        client.capture_exception(&fmt::Error);
        Some(TraceContext::new(TRACE, SPAN))
    });
    *own.lock().unwrap() = Some(harness.client().clone());
    assert!(harness.client().capture_exception(&fmt::Error).is_accepted());
    assert_eq!((calls.load(Ordering::SeqCst), ids(&harness).len()), (2, 2), "the third is refused as reentrant");
    assert_eq!(harness.client().stats().dropped, [(DropReason::Reentrant, 1)]);
    // Or the client would keep itself alive.
    own.lock().unwrap().take();
}

#[test]
fn the_trace_is_not_asked_for_an_exception_that_is_dropped() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let harness = traced(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        None
    });
    assert_eq!((storm(harness.client(), 1000), calls.load(Ordering::SeqCst)), (10, 10));
}

#[test]
fn every_event_names_the_release_unless_it_has_another() {
    let harness = Harness::new(|config| config.symbolicate(false).release("checkout", "1.4.0")).unwrap();
    let client = harness.client();
    client.capture(Event::new("plain", "user_1"));
    client.capture(Event::new("explicit", "user_1").prop("$app_version", "2"));
    client.identify("user_1", [("plan", "pro")]);
    client.capture_exception(&fmt::Error);
    client.register("$app_version", "3");
    client.capture(Event::new("registered", "user_1"));
    client.set_before_send([crate::settings::BeforeSend::new(|mut event| {
        event.remove("$app_version");
        Some(event)
    })]);
    client.capture(Event::new("removed", "user_1"));
    harness.deliver();
    let events = harness.server().taken();
    let version = |name: &str| {
        let event = events.iter().find(|event| event["event"] == name).unwrap();
        (event["properties"]["$app_namespace"].clone(), event["properties"]["$app_version"].clone())
    };
    for (name, expected) in [
        ("plain", json!("1.4.0")),
        ("explicit", json!("2")),
        ("$identify", json!("1.4.0")),
        ("$exception", json!("1.4.0")),
        ("registered", json!("3")),
        ("removed", Value::Null),
    ] {
        assert_eq!(version(name), (json!("checkout"), expected), "{name}");
    }
    let set = &events.iter().find(|event| event["event"] == "$identify").unwrap()["properties"]["$set"];
    assert_eq!(set, &json!({"plan": "pro"}), "a release is no property of a person");
}

#[test]
fn an_exception_names_the_operating_system_and_other_events_do_not() {
    let harness = harness();
    harness.client().capture_exception(&fmt::Error);
    let given = ExceptionOptions::new().prop("$os", "Plan 9");
    harness.client().capture_exception_with(&fmt::Error, given);
    harness.client().capture(Event::new("plain", "user_1"));
    harness.deliver();
    let events = harness.server().taken();
    let os = |at: usize| events[at]["properties"].get("$os");
    let own = machine::system();
    assert_eq!((os(0), os(1), os(2)), (Some(&json!(own.name)), Some(&json!("Plan 9")), None));
    assert_eq!(events[0]["properties"].get("$os_version"), own.version.as_ref().map(|text| json!(text)).as_ref());
}
