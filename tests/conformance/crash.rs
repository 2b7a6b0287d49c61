//! exception-event-metadata (EXM), where it speaks of panics: real processes panic, and the next start of the program sends what they
//! had to say. Fatal signals: `crash-tests/tests/native_crash.rs`.

#![allow(clippy::redundant_closure, reason = "a part is known by the test that its closure stands in")]

use std::os::unix::process::ExitStatusExt;

use posthog::{Client, Config, Event};
use serde_json::{Value, json};

use crate::apart::{Terms, apart, apart_until};
use crate::fixture::{Fixture, PATIENCE, Place, eventually};

/// The process-wide client of a program that aborts on a panic, and is silent about it.
fn begin(place: &Place, ends_by_panics: bool) {
    posthog::init(place.config()).unwrap();
    std::panic::set_hook(Box::new(move |_| {
        if ends_by_panics {
            std::process::abort();
        }
    }));
    posthog::install_panic_hook();
}

/// One panic that is caught, as a server does it that lives on, and then an exit in good order.
fn survives(place: &Place) {
    begin(place, false);
    let _ = std::thread::spawn(|| panic!("in a worker")).join();
}

fn dies(place: &Place) {
    begin(place, true);
    panic!("the end");
}

/// Has a process of its own die, and then judged what the next one sends. The part is a closure, which names the test it stands in.
fn after_a_fatal_panic<P: FnOnce(&Place), J: FnOnce(&Fixture)>(part: P, judge: J) {
    apart_until(|status| status.signal() == Some(6), Fixture::new, |_| Terms::default(), part, judge);
}

/// What the next start of the program sends of the run before it.
fn told(fixture: &Fixture, set: impl FnOnce(Config) -> Config) -> sink::Event {
    let client = Client::new(set(fixture.config().symbolicate(false))).unwrap();
    let is_it = |event: &&sink::Event| event.event == "$exception";
    assert!(fixture.sink.wait_for(|state| state.events().iter().any(|event| is_it(&event)), PATIENCE));
    client.close().wait(PATIENCE).unwrap();
    let events = fixture.sink.events();
    assert_eq!(events.iter().filter(is_it).count(), 1, "{events:#?}");
    events.iter().find(is_it).unwrap().clone()
}

/// How many files of last words lie in the queue directory.
fn last_words(fixture: &Fixture) -> usize {
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
            let told = told(fixture, |config| config);
            let said = (&mechanism(&told)["type"], &told.properties["$exception_source"]);
            assert_eq!(said, (&json!("panic"), &json!("rust.panic_hook")));
        },
    );
}

#[test]
fn exm_09_that_a_hook_saw_a_panic_does_not_make_it_handled() {
    apart(
        |place| survives(place),
        |fixture| {
            let expected = json!({"type": "panic", "handled": false, "synthetic": false, "exception_id": 0});
            assert_eq!(mechanism(&told(fixture, |config| config)), &expected);
        },
    );
}

#[test]
fn exm_18_a_panic_that_the_process_survives_is_an_error_that_nobody_handled() {
    apart(
        |place| survives(place),
        |fixture| {
            let told = told(fixture, |config| config);
            let said = (&told.properties["$exception_level"], &mechanism(&told)["handled"]);
            assert_eq!(said, (&json!("error"), &json!(false)));
            assert_eq!(told.properties["$exception_message"], "in a worker");
        },
    );
}

#[test]
fn exm_18_a_panic_that_ends_the_process_is_fatal() {
    after_a_fatal_panic(
        |place| dies(place),
        |fixture| {
            let told = told(fixture, |config| config);
            let said = (&told.properties["$exception_level"], &mechanism(&told)["handled"]);
            assert_eq!(said, (&json!("fatal"), &json!(false)));
        },
    );
}

#[test]
fn exm_19_a_panic_that_the_next_start_sends_has_its_own_time_and_what_was_known_where_it_happened() {
    let begun = now();
    after_a_fatal_panic(
        |place| dies(place),
        |fixture| {
            let ended = now();
            let told = told(fixture, |config| config.super_property("release", "the next one"));
            let at = told.timestamp.parse::<jiff::Timestamp>().unwrap().as_nanosecond();
            assert!(begun <= at && at <= ended, "{at} is not between {begun} and {ended}");
            let properties = &told.properties;
            assert_eq!(properties["$exception_list"][0]["value"], "the end");
            assert_ne!(properties["crash_pid"], std::process::id());
            assert_eq!(properties["$exception_source"], "rust.panic_hook");
            assert!(properties["$exception_panic_file"].as_str().unwrap().ends_with("crash.rs"));
            assert_eq!(properties["$process_person_profile"], false);
            assert_eq!(properties["release"], "the next one", "what events of this program say, this one says too");
        },
    );
}

#[test]
fn exm_19_hooks_see_a_panic_before_the_queue_does_and_may_keep_its_message_back() {
    after_a_fatal_panic(
        |place| dies(place),
        |fixture| {
            let hide = |mut event: Event| {
                let is_fatal = event.get::<String>("$exception_level").is_some_and(|level| level == "fatal");
                assert!(is_fatal, "its boundary is known here, too");
                event.set("$exception_message", "kept back");
                Some(event)
            };
            assert_eq!(told(fixture, |config| config.before_send(hide)).properties["$exception_message"], "kept back");
        },
    );
}

#[test]
fn exm_19_a_hook_that_drops_a_panic_has_it_forgotten() {
    after_a_fatal_panic(
        |place| dies(place),
        |fixture| {
            assert_eq!(last_words(fixture), 1);
            let client = Client::new(fixture.config().before_send(|_| None)).unwrap();
            eventually("nothing is left to be told", || last_words(fixture) == 0);
            client.close().wait(PATIENCE).unwrap();
            assert!(fixture.sink.events().is_empty());
        },
    );
}
