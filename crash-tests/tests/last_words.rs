//! What a process says of its end reaches PostHog from the next start, and the end is the same as without the client.

use std::path::Path;
use std::sync::Mutex;
use std::thread;

use crash_tests::last_words::{ALL, Build, HOSTS, Held, Stage, functions_of};
use serde_json::Value;

/// Scenarios wait more than they work: so many are played at a time.
const STAGES: usize = 4;

fn dying() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dying"))
}

fn stage() -> Stage {
    Stage::new(dying(), false).expect("a directory")
}

/// Plays the scenario with the client, and says what the next start tells: so many exceptions.
fn told(stage: &Stage, scenario: &str, count: usize) -> Vec<Value> {
    stage.run(scenario, true).expect("it ends");
    let heard = stage.heard(count).expect("a next start");
    assert_eq!(heard.amiss, Vec::<String>::new(), "nothing is amiss");
    assert_eq!(heard.exceptions.len(), count, "{:?}", heard.exceptions);
    heard.exceptions
}

#[test]
fn each_scenario_ends_as_without_the_client_and_the_next_start_tells_of_it() {
    let (plays, failures) = (Mutex::new(ALL.iter()), Mutex::new(Vec::new()));
    let next = || plays.lock().expect("nobody panics here").next();
    thread::scope(|scope| {
        for _ in 0..STAGES {
            scope.spawn(|| {
                while let Some(scenario) = next() {
                    match scenario.hold(dying(), Build::default()) {
                        Ok(Held::Yes { .. }) => {}
                        Ok(Held::NotHere(why)) => eprintln!("skipped: {}: {why}", scenario.name),
                        Err(why) => failures.lock().expect("as above").push(format!("{}: {why}", scenario.name)),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("as above");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// One after another: their time is measured.
#[test]
fn each_host_with_handlers_of_its_own_ends_as_without_the_client_and_only_what_it_dies_of_is_told() {
    let mut failures = Vec::new();
    for host in HOSTS {
        match host.hold(dying()) {
            Ok(Held::Yes { .. }) => {}
            Ok(Held::NotHere(why)) => eprintln!("skipped: {}: {why}", host.scenario.name),
            Err(why) => failures.push(format!("{}: {why}", host.scenario.name)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_panic_is_told_with_its_place_and_its_stack_alone() {
    for scenario in ["literal", "unwrap", "any"] {
        let told = told(&stage(), scenario, 1);
        let properties = &told[0];
        assert!(properties["$exception_panic_file"].as_str().is_some_and(|file| file.ends_with("panics.rs")));
        assert!(properties["$exception_panic_line"].as_u64().is_some_and(|line| line > 10));
        assert_eq!(properties["$exception_source"], "rust.panic_hook");
        assert_eq!(properties["$process_person_profile"], false);
        assert_eq!(properties["crash_process_survived"], false);
        let functions = functions_of(properties);
        assert!(functions.iter().any(|function| function == "dying::panics::play"), "{functions:?}");
        // Neither our own frames nor those of the way to the hook.
        let last = functions.last().map(String::as_str).unwrap_or_default();
        let is_call = ["core::panicking::panic_fmt", "core::result::unwrap_failed", "std::panicking::begin_panic"];
        assert!(is_call.iter().any(|call| last.starts_with(call)), "{functions:?}");
        let mechanism = serde_json::json!({ "type": "panic", "handled": false, "synthetic": false, "exception_id": 0 });
        assert_eq!(properties["$exception_list"][0]["mechanism"], mechanism);
    }
}

#[test]
fn a_signal_is_told_with_its_source_and_its_mechanism() {
    for scenario in ["null_read", "overflow", "abort"] {
        let told = told(&stage(), scenario, 1);
        assert_eq!(told[0]["$exception_source"], "rust.signal_handler", "{scenario}");
        assert_eq!(told[0]["$exception_list"][0]["mechanism"]["type"], "signal", "{scenario}");
    }
}

#[test]
fn a_long_message_is_cut_between_characters_and_its_length_is_told() {
    let told = told(&stage(), "long", 1);
    assert_eq!(told[0]["$exception_message"], "\u{e9}".repeat(5_000));
    assert_eq!(told[0]["crash_message_bytes"], 40_000);
}

#[test]
fn a_process_that_lives_on_tells_of_its_panic_itself() {
    assert_eq!(told(&stage(), "survived", 1)[0]["crash_process_survived"], true);
}

#[test]
fn sixteen_threads_that_panic_at_once_are_all_told() {
    let told = told(&stage(), "sixteen", 16);
    let mut messages: Vec<_> = told.iter().filter_map(|told| told["$exception_message"].as_str()).collect();
    messages.sort_unstable();
    let mut expected: Vec<_> = (0..16).map(|number| format!("thread {number}")).collect();
    expected.sort();
    assert_eq!(messages, expected);
}

#[test]
fn what_a_storm_of_panics_leaves_out_is_counted() {
    let told = told(&stage(), "storm", 16 + 9);
    let missed: u64 = told.iter().filter_map(|told| told["crash_missed_before"].as_u64()).sum();
    // The last one that is written is the 8192nd.
    assert_eq!(missed, 8192 - 25);
}

#[test]
fn a_panic_during_the_clean_up_after_another_is_chained_to_it() {
    let told = told(&stage(), "drop", 1);
    let list = &told[0]["$exception_list"];
    assert_eq!((&list[1]["value"], &list[1]["mechanism"]["parent_id"]), (&"first".into(), &0.into()));
}

#[test]
fn words_without_a_descriptor_do_not_go_into_a_strangers_file() {
    let stage = stage();
    stage.run("closed_descriptors", true).expect("it ends");
    let stranger = std::fs::metadata(stage.dir().join("stranger")).expect("it was opened");
    assert_eq!(stranger.len(), 0);
}

#[test]
fn a_forked_child_is_told_as_one() {
    for scenario in ["forked", "forked_fault"] {
        assert_eq!(told(&stage(), scenario, 1)[0]["crash_in_forked_child"], true, "{scenario}");
    }
}

#[test]
fn the_first_panic_costs_no_allocation_and_one_write_more_than_without_the_hook() {
    let stage = stage();
    let count = |with_client: bool| {
        let mut command = sink::command(env!("CARGO_BIN_EXE_counting"));
        if with_client {
            command.arg(stage.queue_dir()).arg(stage.sink.url());
        }
        let output = command.output().expect("a process");
        let text = String::from_utf8(output.stdout).expect("text");
        let numbers: Vec<u64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [allocations, writes] = numbers.as_slice() else { panic!("{text:?} {:?}", output.stderr) };
        (*allocations, *writes)
    };
    let (allocations, writes) = count(false);
    assert_eq!(count(true), (allocations, writes + 1));
    let heard = stage.heard(1).expect("a next start");
    assert_eq!(heard.exceptions[0]["$exception_message"], "a literal");
}

#[test]
fn a_panic_inside_of_a_context_is_told_of_whom_it_was_about() {
    let stage = stage();
    let properties = &told(&stage, "in_context", 1)[0];
    assert_eq!(properties["$session_id"], "session_7");
    assert_eq!(properties["$current_url"], "https://shop.example/reset");
    assert_eq!(properties["$request_path"], "/reset");
    assert!(!properties.to_string().contains("secret"), "{properties}");
    assert_eq!(properties["$process_person_profile"], Value::Null);
    assert_eq!(stage.sink.events()[0].distinct_id, "user_7");
}

#[test]
fn a_panic_after_a_context_was_left_is_nobodys() {
    let stage = stage();
    let properties = &told(&stage, "after_context", 1)[0];
    assert_eq!(
        (&properties["$session_id"], &properties["$process_person_profile"]),
        (&Value::Null, &Value::from(false))
    );
    assert_ne!(stage.sink.events()[0].distinct_id, "user_7");
}
