//! What a process says of its end reaches PostHog from the next start, and the end is the same as without the client.

#[path = "last_words/stage.rs"]
mod stage;

use std::process::Command;

use stage::{Stage, functions_of, panicked, said};

#[test]
fn a_panic_of_the_main_thread_is_told_as_fatal_by_the_next_start() {
    let messages = [
        ("literal", "a literal"),
        ("formatted", "formatted true"),
        ("unwrap", "what must not fail: \"an error\""),
        ("any", "Box<dyn Any>"),
    ];
    for (scenario, message) in messages {
        let stage = Stage::new();
        assert_eq!(stage.play(scenario), (Some(101), None));
        let told = stage.told(1);
        assert_eq!(said(&told[0]), panicked(message, "fatal"), "{scenario}");
        let properties = &told[0]["properties"];
        assert!(
            properties["$exception_panic_file"].as_str().is_some_and(|file| file.ends_with("dying.rs")),
            "{told:?}"
        );
        assert!(properties["$exception_panic_line"].as_u64().is_some_and(|line| line > 20));
        assert_eq!(properties["$exception_source"], "rust.panic_hook");
        assert_eq!(properties["$process_person_profile"], false);
        assert_eq!(properties["crash_process_survived"], false);
        let functions = functions_of(properties);
        assert!(functions.iter().any(|function| function == "dying::play"), "{functions:?}");
        // Neither our own frames nor those of the way to the hook.
        let last = functions.last().map(String::as_str).unwrap_or_default();
        let is_call = ["core::panicking::panic_fmt", "core::result::unwrap_failed", "std::panicking::begin_panic"];
        assert!(is_call.iter().any(|call| last.starts_with(call)), "{functions:?}");
        let mechanism = serde_json::json!({ "type": "panic", "handled": false, "synthetic": false, "exception_id": 0 });
        assert_eq!(properties["$exception_list"][0]["mechanism"], mechanism);
    }
}

#[test]
fn a_long_message_is_cut_between_characters_and_its_length_is_told() {
    let stage = Stage::new();
    stage.play("long");
    let told = stage.told(1);
    assert_eq!(said(&told[0]).0, "\u{e9}".repeat(5_000));
    assert_eq!(told[0]["properties"]["crash_message_bytes"], 40_000);
}

#[test]
fn a_panic_that_somebody_catches_and_then_a_clean_end_is_no_fatal_one() {
    for (scenario, message) in [("thread", "in a thread"), ("caught", "caught")] {
        let stage = Stage::new();
        assert_eq!(stage.play(scenario), (Some(0), None));
        assert_eq!(said(&stage.told(1)[0]), panicked(message, "error"), "{scenario}");
    }
}

#[test]
fn a_process_that_lives_on_tells_of_its_panic_itself() {
    let stage = Stage::new();
    assert_eq!(stage.play("survived"), (Some(0), None));
    let told = stage.told(1);
    assert_eq!(said(&told[0]), panicked("survived", "error"));
    assert_eq!(told[0]["properties"]["crash_process_survived"], true);
}

#[test]
fn what_no_hook_hears_of_leaves_nothing() {
    for scenario in ["rethrown", "quiet"] {
        let stage = Stage::new();
        assert_eq!(stage.play(scenario), (Some(0), None));
        stage.told(0);
    }
}

#[test]
fn sixteen_threads_that_panic_at_once_are_all_told() {
    let stage = Stage::new();
    stage.play("sixteen");
    let mut messages: Vec<_> = stage.told(16).iter().map(|event| said(event).0).collect();
    messages.sort();
    let mut expected: Vec<_> = (0..16).map(|number| format!("thread {number}")).collect();
    expected.sort();
    assert_eq!(messages, expected);
}

#[test]
fn a_storm_of_panics_is_thinned_out_and_what_is_left_out_is_counted() {
    let stage = Stage::new();
    stage.play("storm");
    let told = stage.told(16 + 9);
    let missed: u64 = told.iter().filter_map(|event| event["properties"]["crash_missed_before"].as_u64()).sum();
    // The last one that is written is the 8192nd.
    assert_eq!(missed, 8192 - 25);
}

#[test]
fn panics_that_abort_end_with_the_same_signal_and_are_told() {
    let aborted = (None, Some(6));
    let stage = Stage::new();
    assert_eq!(stage.play("drop"), aborted);
    let told = stage.told(1);
    assert_eq!(said(&told[0]), panicked("second", "fatal"));
    let list = &told[0]["properties"]["$exception_list"];
    assert_eq!((&list[1]["value"], &list[1]["mechanism"]["parent_id"]), (&"first".into(), &0.into()));

    let stage = Stage::new();
    assert_eq!(stage.play("extern_c"), aborted);
    assert_eq!(said(&stage.told(1)[0]), panicked("in a callback of C", "fatal"));

    let stage = Stage::new();
    assert_eq!(stage.play("previous_hook_panics"), aborted);
    assert_eq!(said(&stage.told(1)[0]), panicked("a literal", "fatal"));

    // The standard library aborts before any hook, and only the signal is left to tell.
    let stage = Stage::new();
    assert_eq!(stage.play("display"), aborted);
    let told = stage.told(1);
    assert_eq!(told[0]["properties"]["$exception_type"], "Panic");
    assert_eq!(said(&told[0]).1, "fatal");
}

#[test]
fn a_hook_that_is_installed_again_tells_once_also_after_another_took_its_place() {
    for (scenario, message) in [("reinstalled", "once"), ("displaced", "after somebody else")] {
        let stage = Stage::new();
        assert_eq!(stage.play(scenario), (Some(101), None));
        assert_eq!(said(&stage.told(1)[0]).0, message);
    }
}

#[test]
fn closed_descriptors_neither_lose_the_words_nor_put_them_into_a_strangers_file() {
    let stage = Stage::new();
    stage.play("closed_descriptors");
    assert_eq!(said(&stage.told(1)[0]).0, "without descriptors");
    let stranger = std::fs::metadata(stage.dir.path().join("stranger")).expect("it was opened");
    assert_eq!(stranger.len(), 0);
}

#[test]
fn a_limit_on_files_keeps_words_back_and_ends_nobody() {
    let stage = Stage::new();
    assert_eq!(stage.play("small_files"), (Some(101), None));
    stage.told(0);
}

#[test]
fn a_forked_child_is_told_as_one() {
    let stage = Stage::new();
    assert_eq!(stage.play("forked"), (Some(0), None));
    let told = stage.told(1);
    assert_eq!(said(&told[0]).0, "in a forked child");
    assert_eq!(told[0]["properties"]["crash_in_forked_child"], true);
}

#[test]
fn the_first_panic_costs_no_allocation_and_one_write_more_than_without_the_hook() {
    let stage = Stage::new();
    let count = |with_client: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_counting"));
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
    assert_eq!(said(&stage.told(1)[0]).0, "a literal");
}

/// Scenario, signal it ends by, type of the exception, frames at the least.
const SIGNALS: &[(&str, i32, &str, usize)] = &[
    ("null_read", 11, "SIGSEGV", 3),
    ("null_write", 11, "SIGSEGV", 3),
    ("null_call", 11, "SIGSEGV", 3),
    ("wild_call", 11, "SIGSEGV", 3),
    ("illegal", 4, "SIGILL", 3),
    ("trap", 5, "SIGTRAP", 3),
    ("division", 8, "SIGFPE", 3),
    ("bus", 7, "SIGBUS", 3),
    ("overflow", 6, "StackOverflow", 60),
    ("overflow_thread", 6, "StackOverflow", 30),
    ("overflow_registered", 11, "StackOverflow", 60),
    ("abort", 6, "SIGABRT", 3),
    ("c_abort", 6, "SIGABRT", 3),
    ("out_of_memory", 6, "SIGABRT", 3),
    ("eight_at_once", 11, "SIGSEGV", 1),
];

#[test]
fn a_fatal_signal_is_told_by_the_next_start_and_ends_the_process_as_it_would_have() {
    for (scenario, signal, kind, frames) in SIGNALS {
        let stage = Stage::new();
        assert_eq!(stage.play(scenario), (None, Some(*signal)), "{scenario}");
        let told = stage.told_at_least(1);
        let properties = &told.last().expect("one")["properties"];
        assert_eq!(properties["$exception_type"], *kind, "{scenario}: {properties}");
        assert_eq!(properties["$exception_level"], "fatal", "{scenario}");
        assert_eq!(properties["$exception_source"], "rust.signal_handler", "{scenario}");
        assert_eq!(properties["$exception_list"][0]["mechanism"]["type"], "signal", "{scenario}");
        let functions = functions_of(properties);
        assert!(functions.len() >= *frames, "{scenario}: {functions:?}");
        assert!(functions.iter().any(|function| function.contains("dying::")), "{scenario}: {functions:?}");
    }
}

#[test]
fn an_overflow_on_a_thread_that_nobody_prepared_ends_as_it_would_have_without_a_word() {
    let stage = Stage::new();
    assert_eq!(stage.play("overflow_foreign"), (None, Some(11)));
    stage.told(0);
}

#[test]
fn a_panic_that_was_caught_long_before_an_abort_is_not_taken_for_its_cause() {
    let stage = Stage::new();
    assert_eq!(stage.play("catch_then_abort"), (None, Some(6)));
    let told = stage.told(2);
    assert_eq!(said(&told[0]), panicked("caught long ago", "error"));
    assert_eq!(told[1]["properties"]["$exception_type"], "SIGABRT");
}

#[test]
fn faults_that_another_handler_repairs_are_not_told_and_the_process_lives() {
    let stage = Stage::new();
    assert_eq!(stage.play("repaired"), (Some(0), None));
    stage.told(0);
}

#[test]
fn a_signal_from_outside_that_the_process_survives_is_not_told() {
    // The standard library's handler takes the first one for a fault that will come again.
    let stage = Stage::new();
    assert_eq!(stage.play("raised"), (Some(0), None));
    stage.told(0);
}
