//! exception-event-metadata (EXM) for panics: real processes panic, and the next start of the program reports it. Fatal
//! signals: `crash-tests/tests/native_crash.rs`.

#![allow(clippy::redundant_closure, reason = "a part is known by the test that its closure stands in")]

use std::os::unix::process::ExitStatusExt;

use posthog::{Client, Config, Event};
use serde_json::{Value, json};

use crate::apart::{Terms, apart, apart_until};
use crate::fixture::{Fixture, PATIENCE, Place, eventually};

/// The process-wide client of a program that aborts on a panic, without printing it.
fn begin(place: &Place, ends_by_panics: bool) {
    posthog::init(place.config()).unwrap();
    std::panic::set_hook(Box::new(move |_| {
        if ends_by_panics {
            std::process::abort();
        }
    }));
    posthog::install_panic_hook();
}

/// A caught panic, as in a server that continues, and then a normal exit.
fn survives(place: &Place) {
    begin(place, false);
    let _ = std::thread::spawn(|| panic!("in a worker")).join();
}

fn dies(place: &Place) {
    begin(place, true);
    panic!("the end");
}

/// Runs a part that dies in a process of its own, and then checks what the next start sends. The part is a closure,
/// whose type names its test.
fn after_a_fatal_panic<P: FnOnce(&Place), J: FnOnce(&Fixture)>(part: P, judge: J) {
    apart_until(|status| status.signal() == Some(6), Fixture::new, |_| Terms::default(), part, judge);
}

/// The exception that the next start of the program sends.
fn reported(fixture: &Fixture, set: impl FnOnce(Config) -> Config) -> sink::Event {
    let client = Client::new(set(fixture.config().symbolicate(false))).unwrap();
    let is_it = |event: &&sink::Event| event.event == "$exception";
    assert!(fixture.sink.wait_for(|state| state.events().iter().any(|event| is_it(&event)), PATIENCE));
    client.close().wait(PATIENCE).unwrap();
    let events = fixture.sink.events();
    assert_eq!(events.iter().filter(is_it).count(), 1, "{events:#?}");
    events.iter().find(is_it).unwrap().clone()
}

/// The number of crash report files in the queue directory.
fn report_files(fixture: &Fixture) -> usize {
    fixture.shards().iter().flat_map(|shard| std::fs::read_dir(shard.join("crash")).into_iter().flatten()).count()
}

/// Nanoseconds since 1970.
fn now() -> i128 {
    jiff::Timestamp::now().as_nanosecond()
}

fn mechanism(event: &sink::Event) -> &Value {
    &event.properties["$exception_list"][0]["mechanism"]
}

#[test]
fn exm_07_a_panic_names_its_category_and_its_hook() {
    apart(
        |place| survives(place),
        |fixture| {
            let reported = reported(fixture, |config| config);
            let said = (&mechanism(&reported)["type"], &reported.properties["$exception_source"]);
            assert_eq!(said, (&json!("panic"), &json!("rust.panic_hook")));
        },
    );
}

#[test]
fn exm_09_a_panic_seen_by_the_hook_is_not_handled() {
    apart(
        |place| survives(place),
        |fixture| {
            let expected = json!({"type": "panic", "handled": false, "synthetic": false, "exception_id": 0});
            assert_eq!(mechanism(&reported(fixture, |config| config)), &expected);
        },
    );
}

#[test]
fn exm_18_a_survived_panic_is_an_unhandled_error() {
    apart(
        |place| survives(place),
        |fixture| {
            let reported = reported(fixture, |config| config);
            let said = (&reported.properties["$exception_level"], &mechanism(&reported)["handled"]);
            assert_eq!(said, (&json!("error"), &json!(false)));
            assert_eq!(reported.properties["$exception_message"], "in a worker");
        },
    );
}

#[test]
fn exm_18_a_panic_that_ends_the_process_is_fatal() {
    after_a_fatal_panic(
        |place| dies(place),
        |fixture| {
            let reported = reported(fixture, |config| config);
            let said = (&reported.properties["$exception_level"], &mechanism(&reported)["handled"]);
            assert_eq!(said, (&json!("fatal"), &json!(false)));
        },
    );
}

#[test]
fn exm_19_a_panic_sent_later_keeps_its_time_and_properties() {
    let begun = now();
    after_a_fatal_panic(
        |place| dies(place),
        |fixture| {
            let ended = now();
            let reported = reported(fixture, |config| config.super_property("release", "the next one"));
            let at = reported.timestamp.parse::<jiff::Timestamp>().unwrap().as_nanosecond();
            assert!(begun <= at && at <= ended, "{at} is not between {begun} and {ended}");
            let properties = &reported.properties;
            assert_eq!(properties["$exception_list"][0]["value"], "the end");
            assert_ne!(properties["crash_pid"], std::process::id());
            assert_eq!(properties["$exception_source"], "rust.panic_hook");
            assert!(properties["$exception_panic_file"].as_str().unwrap().ends_with("crash.rs"));
            assert_eq!(properties["$process_person_profile"], false);
            assert_eq!(properties["release"], "the next one", "super properties are added");
        },
    );
}

#[test]
fn exm_19_before_send_can_hide_the_message_of_a_panic() {
    after_a_fatal_panic(
        |place| dies(place),
        |fixture| {
            let hide = |mut event: Event| {
                let is_fatal = event.get::<String>("$exception_level").is_some_and(|level| level == "fatal");
                assert!(is_fatal, "its boundary is known here, too");
                event.set_prop("$exception_message", "kept back");
                Some(event)
            };
            assert_eq!(
                reported(fixture, |config| config.before_send(hide)).properties["$exception_message"],
                "kept back"
            );
        },
    );
}

#[test]
fn exm_19_a_panic_dropped_by_before_send_is_removed() {
    after_a_fatal_panic(
        |place| dies(place),
        |fixture| {
            assert_eq!(report_files(fixture), 1);
            let client = Client::new(fixture.config().before_send(|_| None)).unwrap();
            eventually("all reports are read", || report_files(fixture) == 0);
            client.close().wait(PATIENCE).unwrap();
            assert!(fixture.sink.events().is_empty());
        },
    );
}
