//! What a crash report contains, which process sends it, and when it is not sent.

#[path = "reporting/fixture.rs"]
mod fixture;

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

use crash_tests::crash_reports::{functions_of, left_in};
use fixture::{ENOUGH, Fixture, panicked, said};
use serde_json::Value;

#[test]
fn a_crash_is_reported_with_its_breadcrumbs() {
    for scenario in ["steps_panic", "steps_survived", "steps_signal"] {
        let fixture = Fixture::new();
        fixture.run_both(scenario);
        let reported = fixture.reported_after(1, 1);
        let steps = reported[0]["properties"]["$exception_steps"].as_array().cloned().unwrap_or_default();
        let messages: Vec<_> = steps.iter().map(|step| step["$message"].as_str().unwrap_or_default()).collect();
        assert_eq!(messages, ["order_placed", "connected", &"\u{e9}".repeat(112)], "{scenario}: {reported:?}");
        let times: Vec<_> = steps.iter().map(|step| step["$timestamp"].as_str().unwrap_or_default()).collect();
        let crashed = reported[0]["timestamp"].as_str().unwrap_or_default();
        assert!(times.is_sorted() && times[0].len() == "2026-01-01T00:00:00.000Z".len(), "{times:?}");
        assert!(times[2][..19] <= crashed[..19] && times[0][..10] == crashed[..10], "{times:?} {crashed}");
        assert_eq!(steps[0].as_object().map(serde_json::Map::len), Some(2), "a step has a name and a time only");
    }
}

#[test]
fn a_survived_panic_is_sent_despite_many_earlier_reports() {
    let fixture = Fixture::new();
    // So many reports that they are still being read when the hook is installed.
    fixture.run("storm", true);
    assert_eq!(fixture.run("lives_until_reported", true), (Some(0), None));
    assert!(fixture.messages().iter().any(|message| message == "survived"), "sent by the process that survived");
}

#[test]
fn a_library_loaded_later_has_an_image_and_is_unwound() {
    let fixture = Fixture::new();
    assert_eq!(fixture.run_both("loaded_later"), (None, Some(11)));
    let reported = fixture.reported_after(1, 1);
    let images = reported[0]["properties"]["$debug_images"].as_array().cloned().unwrap_or_default();
    let is_libm = |image: &&Value| image["code_file"].as_str().is_some_and(|file| file.contains("libm.so"));
    assert!(images.iter().any(|image| is_libm(&image)), "{reported:?}");
    let functions = functions_of(&reported[0]["properties"]);
    assert!(functions.iter().any(|function| function.starts_with("dying::")), "{functions:?}");
}

#[test]
fn a_before_send_that_crashes_is_called_three_times_at_most() {
    let fixture = Fixture::new();
    fixture.run("literal", true);
    let endings: Vec<_> = (0..5).map(|_| fixture.run("telling_segfaults", true)).collect();
    let (died, lived) = ((None, Some(11)), (Some(0), None));
    assert_eq!(endings, [died, died, died, lived, lived]);
    let left = left_in(&fixture.queue_dir());
    // The one that is given up, and those of the three processes that crashed while they read it.
    assert!(left.iter().filter(|path| path.ends_with(".bad")).count() == 4 && left.len() <= 5, "{left:?}");
}

#[test]
fn a_child_with_a_queue_keeps_its_parents_report_file() {
    assert_eq!(Fixture::new().run("forked_room", true), (Some(0), None));
}

#[test]
fn a_crash_during_symbol_lookup_happens_only_once() {
    let fixture = Fixture::new();
    fixture.run_both("literal");
    let mut dies = fixture.reader().env("POSTHOG_CRASH_POINT", "symbols.asked").spawn().expect("a process");
    // The process ends when its stdin is closed, which `wait` would do too early.
    let open = dies.stdin.take();
    assert_eq!(dies.wait().expect("it ends").signal(), Some(9));
    drop(open);
    // Started without the crash point: symbols of other builds, such as a library, are still looked up, and the crash
    // point would end this process as well.
    let reader = fixture.reader().spawn().expect("a process");
    assert!(fixture.sink.wait_for(|state| state.events().len() == 1, ENOUGH));
    let output = reader.wait_with_output().expect("it ends");
    assert!(String::from_utf8_lossy(&output.stdout).contains("died while it resolved the symbols"), "{output:?}");
    let event = &fixture.sink.events()[0];
    let frames = event.properties["$exception_list"][0]["stacktrace"]["frames"].as_array().cloned().unwrap_or_default();
    assert!(!frames.is_empty() && event.properties["$debug_images"].is_array());
    // The innermost frame is the program's; libc is another build, whose symbols are looked up.
    let image = frames.last().map(|frame| &frame["image_addr"]);
    let is_bare = |frame: &&Value| frame["instruction_addr"].is_string() && frame.get("lineno").is_none();
    let of_program: Vec<_> = frames.iter().filter(|frame| Some(&frame["image_addr"]) == image).collect();
    assert!(of_program.iter().all(is_bare), "{frames:?}");
    // Later events of the same build have no symbols either.
    fixture.run_both("literal");
    let functions = functions_of(&fixture.reported_after(1, 1)[1]["properties"]);
    assert!(functions.iter().all(|function| function != "dying::panics::play"), "{functions:?}");
}

#[test]
fn before_send_can_change_or_drop_a_crash() {
    let fixture = Fixture::new();
    fixture.run_both("literal");
    let reported = fixture.reported_by("read_scrubbing", 1);
    assert_eq!(said(&reported[0]), panicked("scrubbed", "fatal"));
    assert_eq!(reported[0]["properties"]["seen_by_hook"], "a literal");
    for reader in ["read_refusing", "read_opted_out"] {
        let fixture = Fixture::new();
        fixture.run_both("literal");
        assert!(!left_in(&fixture.queue_dir()).is_empty());
        assert!(fixture.reported_by(reader, 0).is_empty(), "{reader}");
        // Not by a later start either.
        assert!(fixture.reported_by("read", 0).is_empty(), "{reader}");
    }
}

#[test]
fn a_full_queue_keeps_the_report_for_the_next_start() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    fixture.run("filling", true);
    fixture.run_both("literal");
    // The process that filled the queue may have left a file without records.
    let len = |path: &String| std::fs::metadata(path).map_or(0, |file| file.len());
    let report = left_in(&fixture.queue_dir()).into_iter().max_by_key(len).expect("a file");
    let renamed_at = || std::fs::metadata(&report).map(|file| (file.ctime(), file.ctime_nsec())).ok();
    let before = renamed_at();
    let mut reader = fixture.reader_as("read_full").spawn().expect("a process");
    eventually(|| renamed_at().is_some_and(|at| Some(at) != before), "a reading begins and is undone");
    drop(reader.stdin.take());
    let output = reader.wait_with_output().expect("it ends");
    assert!(String::from_utf8_lossy(&output.stdout).contains("crash report"), "{output:?}");
    fixture.sink.resume();
    let reported = fixture.reported_after(1, 10);
    assert_eq!(said(&reported[0]), panicked("a literal", "fatal"));
}

#[test]
fn a_running_process_sends_reports_of_another_shard() {
    let fixture = Fixture::new();
    let mut reader = fixture.reader().spawn().expect("a process");
    let own = fixture.queue_dir();
    eventually(|| shards_of(&own) == 1, "the first shard is taken");
    fixture.run("steps_panic", true);
    assert_eq!(shards_of(&own), 2);
    // A process whose own queue is empty looks for orphaned shards.
    std::io::Write::write_all(&mut reader.stdin.as_ref().expect("it is open"), b"!").expect("it reads");
    assert!(fixture.sink.wait_for(|state| state.events().iter().any(|event| event.event == "$exception"), ENOUGH));
    eventually(|| left_in(&own).is_empty(), "nothing is left");
    drop(reader.stdin.take());
    reader.wait().expect("it ends");
    let reported = fixture.reported_after(1, 2);
    assert_eq!(said(&reported[0]), panicked("after steps", "fatal"));
}

#[test]
fn a_child_that_captures_reports_its_panic_in_its_own_queue() {
    let fixture = Fixture::new();
    assert_eq!(fixture.run_both("forked_queue"), (Some(0), None));
    let reported = fixture.reported_after(1, 1);
    assert_eq!(said(&reported[0]), panicked("in a child with a queue", "fatal"));
    let properties = &reported[0]["properties"];
    assert!(properties.get("crash_in_forked_child").is_none(), "a child with a queue is not marked: {properties}");
    let steps = properties["$exception_steps"].as_array().cloned().unwrap_or_default();
    let messages: Vec<_> = steps.iter().map(|step| step["$message"].as_str().unwrap_or_default()).collect();
    assert_eq!(messages, ["before the fork", "of_the_child"]);
}

#[test]
fn a_panic_of_before_send_during_reporting_is_not_reported() {
    let fixture = Fixture::new();
    // Its exit status is the number of crashes that `before_send` was called for.
    assert_eq!(fixture.run("telling_panics", true), (Some(1), None));
}

fn eventually(holds: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + ENOUGH;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// The number of shards with a store.
fn shards_of(queue_dir: &std::path::Path) -> usize {
    let projects = std::fs::read_dir(queue_dir).into_iter().flatten().flatten();
    let shards = projects.flat_map(|project| std::fs::read_dir(project.path()).into_iter().flatten().flatten());
    shards.filter(|shard| shard.path().join("queue.redb").exists()).count()
}
