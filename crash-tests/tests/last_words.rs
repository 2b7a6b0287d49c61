//! What a process says of its end reaches PostHog from the next start, and the end is the same as without the client.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sink::Sink;

const ENOUGH: Duration = Duration::from_secs(30);

/// How a process ended: exit code, or the signal.
type Ending = (Option<i32>, Option<i32>);

struct Stage {
    sink: Sink,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        Self { sink: Sink::start(), dir: tempfile::tempdir().expect("a directory") }
    }

    /// Plays the scenario without the client and with it; both must end in the same way.
    fn play(&self, scenario: &str) -> Ending {
        let without = self.run(scenario, false);
        // Nothing may be sent by the process itself but what it survives: it has no time for that.
        let with = self.run(scenario, true);
        assert_eq!(with, without, "{scenario}: how the process ends with the client, and without");
        with
    }

    fn run(&self, scenario: &str, with_client: bool) -> Ending {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dying"));
        command.arg(scenario).current_dir(self.dir.path()).stderr(Stdio::null());
        if with_client {
            command.arg(self.queue_dir()).arg(self.sink.url());
        }
        let status = command.status().expect("a process");
        (status.code(), status.signal())
    }

    fn queue_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("queue")
    }

    /// What the next start tells, in the order in which it happened.
    fn told(&self, count: usize) -> Vec<Value> {
        let told = self.told_at_least(count);
        assert_eq!(told.len(), count, "{told:?}");
        told
    }

    fn told_at_least(&self, count: usize) -> Vec<Value> {
        self.told_after(count, 0)
    }

    /// The same, where the process had captured so many events of its own.
    fn told_after(&self, count: usize, captured: usize) -> Vec<Value> {
        let mut reader = self.reader().spawn().expect("a process");
        let arrived = self.sink.wait_for(|state| state.events().len() >= count + captured, ENOUGH);
        eventually_nothing_in(&self.queue_dir());
        drop(reader.stdin.take());
        let output = reader.wait_with_output().expect("it ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "nothing is amiss");
        assert!(arrived, "of {count} only {:?}", self.messages());
        let mut told: Vec<_> = self
            .sink
            .events()
            .iter()
            .filter(|event| event.event == "$exception")
            .map(|event| serde_json::json!({ "timestamp": event.timestamp, "properties": event.properties }))
            .collect();
        told.sort_by_key(|event| event["timestamp"].as_str().map(str::to_owned));
        told
    }

    /// The start after an end.
    fn reader(&self) -> Command {
        let mut reader = Command::new(env!("CARGO_BIN_EXE_dying"));
        reader.arg("read").arg(self.queue_dir()).arg(self.sink.url()).stdin(Stdio::piped()).stdout(Stdio::piped());
        reader
    }

    fn messages(&self) -> Vec<Value> {
        self.sink.events().iter().map(|event| event.properties["$exception_message"].clone()).collect()
    }
}

/// What was told is removed, and the reader has none of its own: it arms no hook.
fn eventually_nothing_in(dir: &Path) {
    let deadline = Instant::now() + ENOUGH;
    while !left_in(dir).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", left_in(dir));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Files of last words with something in them.
fn left_in(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().contains("/crash/") {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// Message, level and the type of the mechanism.
fn said(event: &Value) -> (String, String, String) {
    let properties = &event["properties"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (
        text(&properties["$exception_message"]),
        text(&properties["$exception_level"]),
        text(&properties["$exception_list"][0]["mechanism"]["type"]),
    )
}

fn panicked(message: &str, level: &str) -> (String, String, String) {
    (message.to_owned(), level.to_owned(), "panic".to_owned())
}

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
            properties["$exception_panic_file"].as_str().is_some_and(|file| file.ends_with("panics.rs")),
            "{told:?}"
        );
        assert!(properties["$exception_panic_line"].as_u64().is_some_and(|line| line > 20));
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

/// The names in the stack, that of the entry point first.
fn functions_of(properties: &Value) -> Vec<String> {
    let frames = properties["$exception_list"][0]["stacktrace"]["frames"].as_array().cloned().unwrap_or_default();
    frames.iter().map(|frame| frame["function"].as_str().unwrap_or_default().to_owned()).collect()
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

#[test]
fn what_the_program_did_before_is_told_with_the_panic_or_signal() {
    for scenario in ["steps_panic", "steps_survived", "steps_signal"] {
        let stage = Stage::new();
        stage.play(scenario);
        let told = stage.told_after(1, 1);
        let steps = told[0]["properties"]["$exception_steps"].as_array().cloned().unwrap_or_default();
        let messages: Vec<_> = steps.iter().map(|step| step["$message"].as_str().unwrap_or_default()).collect();
        assert_eq!(messages, ["order_placed", "connected", &"\u{e9}".repeat(112)], "{scenario}: {told:?}");
        let times: Vec<_> = steps.iter().map(|step| step["$timestamp"].as_str().unwrap_or_default()).collect();
        let crashed = told[0]["timestamp"].as_str().unwrap_or_default();
        assert!(times.is_sorted() && times[0].len() == "2026-01-01T00:00:00.000Z".len(), "{times:?}");
        assert!(times[2][..19] <= crashed[..19] && times[0][..10] == crashed[..10], "{times:?} {crashed}");
        assert_eq!(
            steps[0].as_object().map(serde_json::Map::len),
            Some(2),
            "a name and a time, and nothing of the event"
        );
    }
}

#[test]
fn a_library_that_was_loaded_later_has_an_image_and_is_walked_through() {
    let stage = Stage::new();
    assert_eq!(stage.play("loaded_later"), (None, Some(11)));
    let told = stage.told_after(1, 1);
    let images = told[0]["properties"]["$debug_images"].as_array().cloned().unwrap_or_default();
    let is_libm = |image: &&Value| image["code_file"].as_str().is_some_and(|file| file.contains("libm.so"));
    assert!(images.iter().any(|image| is_libm(&image)), "{told:?}");
    let functions = functions_of(&told[0]["properties"]);
    assert!(functions.iter().any(|function| function.starts_with("dying::")), "{functions:?}");
}

#[test]
fn a_death_while_names_are_looked_up_is_not_died_again() {
    let stage = Stage::new();
    stage.play("literal");
    let mut dies = stage.reader().env("POSTHOG_CRASH_POINT", "symbols.asked").spawn().expect("a process");
    // It would end as soon as this is closed, which `wait` does.
    let open = dies.stdin.take();
    assert_eq!(dies.wait().expect("it ends").signal(), Some(9));
    drop(open);
    // It would die again; but it does not come there.
    let reader = stage.reader().env("POSTHOG_CRASH_POINT", "symbols.asked").spawn().expect("a process");
    assert!(stage.sink.wait_for(|state| state.events().len() == 1, ENOUGH));
    let output = reader.wait_with_output().expect("it ends");
    assert!(String::from_utf8_lossy(&output.stdout).contains("died while it looked up names"), "{output:?}");
    let event = &stage.sink.events()[0];
    let frames = event.properties["$exception_list"][0]["stacktrace"]["frames"].as_array().cloned().unwrap_or_default();
    assert!(!frames.is_empty() && event.properties["$debug_images"].is_array());
    assert!(frames.iter().all(|frame| frame["instruction_addr"].is_string() && frame.get("lineno").is_none()));
    // What is queued later has names again.
    stage.play("literal");
    assert!(
        functions_of(&stage.told_after(1, 1)[1]["properties"]).iter().any(|function| function == "dying::panics::play")
    );
}
