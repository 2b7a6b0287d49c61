//! A crash is reported by the next start, and the process ends as without the client.

use std::path::Path;
use std::sync::Mutex;
use std::thread;

use crash_tests::crash_reports::{ALL, Build, Fixture, HOSTS, Outcome, functions_of};
use serde_json::Value;

/// Number of scenarios run at a time: they mostly wait.
const PARALLEL: usize = 4;

fn dying() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dying"))
}

fn fixture() -> Fixture {
    Fixture::new(dying(), false).expect("a directory")
}

/// Runs the scenario with the client, and returns the exceptions that the next start reports, of which there must be
/// `count`.
fn reported(fixture: &Fixture, scenario: &str, count: usize) -> Vec<Value> {
    fixture.run(scenario, true).expect("it ends");
    let reported = fixture.reported(count).expect("a next start");
    assert_eq!(reported.problems, Vec::<String>::new(), "the next start has no problems");
    assert_eq!(reported.exceptions.len(), count, "{:?}", reported.exceptions);
    reported.exceptions
}

#[test]
fn each_scenario_ends_the_same_way_and_is_reported() {
    let (queue, failures) = (Mutex::new(ALL.iter()), Mutex::new(Vec::new()));
    let next = || queue.lock().expect("no holder of the lock panics").next();
    thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(scenario) = next() {
                    match scenario.check(dying(), Build::default()) {
                        Ok(Outcome::Passed { .. }) => {}
                        Ok(Outcome::Skipped(why)) => eprintln!("skipped: {}: {why}", scenario.name),
                        Err(why) => failures.lock().expect("as above").push(format!("{}: {why}", scenario.name)),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("as above");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Run one after another, because their time is measured.
#[test]
fn each_host_ends_the_same_way_and_only_its_death_is_reported() {
    let mut failures = Vec::new();
    for host in HOSTS {
        match host.check(dying()) {
            Ok(Outcome::Passed { .. }) => {}
            Ok(Outcome::Skipped(why)) => eprintln!("skipped: {}: {why}", host.scenario.name),
            Err(why) => failures.push(format!("{}: {why}", host.scenario.name)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_panic_is_reported_with_its_location_and_its_own_stack() {
    for scenario in ["literal", "unwrap", "any"] {
        let reported = reported(&fixture(), scenario, 1);
        let properties = &reported[0];
        assert!(properties["$exception_panic_file"].as_str().is_some_and(|file| file.ends_with("panics.rs")));
        assert!(properties["$exception_panic_line"].as_u64().is_some_and(|line| line > 10));
        assert_eq!(properties["$exception_source"], "rust.panic_hook");
        assert_eq!(properties["$process_person_profile"], false);
        assert_eq!(properties["crash_process_survived"], false);
        let functions = functions_of(properties);
        assert!(functions.iter().any(|function| function == "dying::panics::play"), "{functions:?}");
        // Frames of the library and of the panic machinery are removed.
        let last = functions.last().map(String::as_str).unwrap_or_default();
        let is_call = ["core::panicking::panic_fmt", "core::result::unwrap_failed", "std::panicking::begin_panic"];
        assert!(is_call.iter().any(|call| last.starts_with(call)), "{functions:?}");
        let mechanism = serde_json::json!({ "type": "panic", "handled": false, "synthetic": false, "exception_id": 0 });
        assert_eq!(properties["$exception_list"][0]["mechanism"], mechanism);
    }
}

#[test]
fn a_signal_is_reported_with_its_source_and_mechanism() {
    for scenario in ["null_read", "overflow", "abort"] {
        let reported = reported(&fixture(), scenario, 1);
        assert_eq!(reported[0]["$exception_source"], "rust.signal_handler", "{scenario}");
        assert_eq!(reported[0]["$exception_list"][0]["mechanism"]["type"], "signal", "{scenario}");
    }
}

#[test]
fn a_long_message_is_truncated_and_its_length_is_reported() {
    let reported = reported(&fixture(), "long", 1);
    assert_eq!(reported[0]["$exception_message"], "\u{e9}".repeat(5_000));
    assert_eq!(reported[0]["crash_message_bytes"], 40_000);
}

#[test]
fn a_process_reports_a_panic_that_it_survives() {
    assert_eq!(reported(&fixture(), "survived", 1)[0]["crash_process_survived"], true);
}

#[test]
fn sixteen_threads_that_panic_at_once_are_all_reported() {
    let reported = reported(&fixture(), "sixteen", 16);
    let mut messages: Vec<_> = reported.iter().filter_map(|reported| reported["$exception_message"].as_str()).collect();
    messages.sort_unstable();
    let mut expected: Vec<_> = (0..16).map(|number| format!("thread {number}")).collect();
    expected.sort();
    assert_eq!(messages, expected);
}

#[test]
fn panics_left_out_of_a_storm_are_counted() {
    let reported = reported(&fixture(), "storm", 16 + 9);
    let missed: u64 = reported.iter().filter_map(|reported| reported["crash_missed_before"].as_u64()).sum();
    // The last one that is recorded is the 8192nd.
    assert_eq!(missed, 8192 - 25);
}

#[test]
fn a_panic_during_cleanup_is_chained_to_the_first() {
    let reported = reported(&fixture(), "drop", 1);
    let list = &reported[0]["$exception_list"];
    assert_eq!((&list[1]["value"], &list[1]["mechanism"]["parent_id"]), (&"first".into(), &0.into()));
}

#[test]
fn a_record_never_goes_into_another_file() {
    let fixture = fixture();
    let ending = fixture.run("closed_descriptors", true).expect("it ends");
    let stranger = std::fs::metadata(fixture.dir().join("stranger")).map(|stranger| stranger.len());
    assert_eq!(stranger.ok(), Some(0), "the process ended with {ending:?}");
}

#[test]
fn a_crash_of_a_forked_child_is_marked_as_such() {
    for scenario in ["forked", "forked_fault"] {
        assert_eq!(reported(&fixture(), scenario, 1)[0]["crash_in_forked_child"], true, "{scenario}");
    }
}

#[test]
fn the_hook_costs_one_write_and_no_allocation() {
    let fixture = fixture();
    let count = |with_client: bool| {
        let mut command = sink::command(env!("CARGO_BIN_EXE_counting"));
        if with_client {
            command.arg(fixture.queue_dir()).arg(fixture.sink.url());
        }
        let output = command.output().expect("a process");
        let text = String::from_utf8(output.stdout).expect("text");
        let numbers: Vec<u64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [allocations, writes] = numbers.as_slice() else { panic!("{text:?} {:?}", output.stderr) };
        (*allocations, *writes)
    };
    let (allocations, writes) = count(false);
    assert_eq!(count(true), (allocations, writes + 1));
    let reported = fixture.reported(1).expect("a next start");
    assert_eq!(reported.exceptions[0]["$exception_message"], "a literal");
}

#[test]
fn a_panic_inside_a_context_belongs_to_its_person() {
    let fixture = fixture();
    let properties = &reported(&fixture, "in_context", 1)[0];
    assert_eq!(properties["$session_id"], "session_7");
    assert_eq!(properties["$current_url"], "https://shop.example/reset");
    assert_eq!(properties["$request_path"], "/reset");
    assert!(!properties.to_string().contains("secret"), "{properties}");
    assert_eq!(properties["$process_person_profile"], Value::Null);
    assert_eq!(fixture.sink.events()[0].distinct_id, "user_7");
}

#[test]
fn a_panic_after_a_context_belongs_to_nobody() {
    let fixture = fixture();
    let properties = &reported(&fixture, "after_context", 1)[0];
    assert_eq!(
        (&properties["$session_id"], &properties["$process_person_profile"]),
        (&Value::Null, &Value::from(false))
    );
    assert_ne!(fixture.sink.events()[0].distinct_id, "user_7");
}
