//! What crashes are told with, by whom, and what keeps them from being told.

#[path = "telling/stage.rs"]
mod stage;

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

use crash_tests::last_words::{functions_of, left_in};
use serde_json::Value;
use stage::{ENOUGH, Stage, panicked, said};

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
fn what_an_earlier_process_left_does_not_keep_this_one_from_telling_what_it_survives() {
    let stage = Stage::new();
    // So much that it is still being read when the hook is installed.
    stage.run("storm", true);
    assert_eq!(stage.run("lives_until_told", true), (Some(0), None));
    assert!(stage.messages().iter().any(|message| message == "survived"), "before any other start");
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
fn a_hook_that_dies_of_what_it_is_shown_does_so_three_times_and_not_for_ever() {
    let stage = Stage::new();
    stage.run("literal", true);
    let endings: Vec<_> = (0..5).map(|_| stage.run("telling_segfaults", true)).collect();
    let (died, lived) = ((None, Some(11)), (Some(0), None));
    assert_eq!(endings, [died, died, died, lived, lived]);
    let left = left_in(&stage.queue_dir());
    assert!(left.iter().filter(|path| path.ends_with(".bad")).count() == 1 && left.len() <= 2, "{left:?}");
}

#[test]
fn a_child_with_a_queue_of_its_own_leaves_its_parents_file_where_it_is() {
    assert_eq!(Stage::new().run("forked_room", true), (Some(0), None));
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
    // Of another build, a library's, names are still looked up: that would be another death.
    let reader = stage.reader().spawn().expect("a process");
    assert!(stage.sink.wait_for(|state| state.events().len() == 1, ENOUGH));
    let output = reader.wait_with_output().expect("it ends");
    assert!(String::from_utf8_lossy(&output.stdout).contains("died while it looked up names"), "{output:?}");
    let event = &stage.sink.events()[0];
    let frames = event.properties["$exception_list"][0]["stacktrace"]["frames"].as_array().cloned().unwrap_or_default();
    assert!(!frames.is_empty() && event.properties["$debug_images"].is_array());
    // The innermost frame is the program's; libc is another build, and its names are looked up.
    let image = frames.last().map(|frame| &frame["image_addr"]);
    let is_bare = |frame: &&Value| frame["instruction_addr"].is_string() && frame.get("lineno").is_none();
    let of_program: Vec<_> = frames.iter().filter(|frame| Some(&frame["image_addr"]) == image).collect();
    assert!(of_program.iter().all(is_bare), "{frames:?}");
    // Nor is it tried again for what is queued later by the same build.
    stage.play("literal");
    let functions = functions_of(&stage.told_after(1, 1)[1]["properties"]);
    assert!(functions.iter().all(|function| function != "dying::panics::play"), "{functions:?}");
}

#[test]
fn before_send_sees_a_crash_and_can_change_it_or_keep_it_from_being_told() {
    let stage = Stage::new();
    stage.play("literal");
    let told = stage.told_by("read_scrubbing", 1);
    assert_eq!(said(&told[0]), panicked("scrubbed", "fatal"));
    assert_eq!(told[0]["properties"]["seen_by_hook"], "a literal");
    for reader in ["read_refusing", "read_opted_out"] {
        let stage = Stage::new();
        stage.play("literal");
        assert!(!left_in(&stage.queue_dir()).is_empty());
        assert!(stage.told_by(reader, 0).is_empty(), "{reader}");
        // And not later either.
        assert!(stage.told_by("read", 0).is_empty(), "{reader}");
    }
}

#[test]
fn a_queue_that_is_full_keeps_the_words_for_the_next_start() {
    let stage = Stage::new();
    stage.sink.stop();
    stage.run("filling", true);
    stage.play("literal");
    // The process that filled it may have left a file with nothing in it.
    let len = |path: &String| std::fs::metadata(path).map_or(0, |file| file.len());
    let words = left_in(&stage.queue_dir()).into_iter().max_by_key(len).expect("a file");
    let renamed_at = || std::fs::metadata(&words).map(|file| (file.ctime(), file.ctime_nsec())).ok();
    let before = renamed_at();
    let mut reader = stage.reader_as("read_full").spawn().expect("a process");
    eventually(|| renamed_at().is_some_and(|at| Some(at) != before), "it was begun to be read, and put back");
    drop(reader.stdin.take());
    let output = reader.wait_with_output().expect("it ends");
    assert!(String::from_utf8_lossy(&output.stdout).contains("crash report"), "{output:?}");
    stage.sink.resume();
    let told = stage.told_after(1, 10);
    assert_eq!(said(&told[0]), panicked("a literal", "fatal"));
}

#[test]
fn words_of_another_shard_are_told_by_a_process_that_lives_already() {
    let stage = Stage::new();
    let mut reader = stage.reader().spawn().expect("a process");
    let own = stage.queue_dir();
    eventually(|| shards_of(&own) == 1, "the first shard is taken");
    stage.run("steps_panic", true);
    assert_eq!(shards_of(&own), 2);
    // Whose own queue has run empty looks for those of others.
    std::io::Write::write_all(&mut reader.stdin.as_ref().expect("it is open"), b"!").expect("it reads");
    assert!(stage.sink.wait_for(|state| state.events().iter().any(|event| event.event == "$exception"), ENOUGH));
    eventually(|| left_in(&own).is_empty(), "nothing is left");
    drop(reader.stdin.take());
    reader.wait().expect("it ends");
    let told = stage.told_after(1, 2);
    assert_eq!(said(&told[0]), panicked("after steps", "fatal"));
}

#[test]
fn a_forked_child_that_captures_tells_its_panic_in_a_queue_of_its_own() {
    let stage = Stage::new();
    assert_eq!(stage.play("forked_queue"), (Some(0), None));
    let told = stage.told_after(1, 1);
    assert_eq!(said(&told[0]), panicked("in a child with a queue", "fatal"));
    let properties = &told[0]["properties"];
    assert!(properties.get("crash_in_forked_child").is_none(), "it is a process of its own: {properties}");
    let steps = properties["$exception_steps"].as_array().cloned().unwrap_or_default();
    let messages: Vec<_> = steps.iter().map(|step| step["$message"].as_str().unwrap_or_default()).collect();
    assert_eq!(messages, ["before the fork", "of_the_child"]);
}

#[test]
fn a_panic_of_a_hook_while_a_crash_is_told_is_no_crash_to_be_told() {
    let stage = Stage::new();
    // It ends with the number of crashes that its hook has seen.
    assert_eq!(stage.run("telling_panics", true), (Some(1), None));
}

fn eventually(holds: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + ENOUGH;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// How many shards have a store.
fn shards_of(queue_dir: &std::path::Path) -> usize {
    let projects = std::fs::read_dir(queue_dir).into_iter().flatten().flatten();
    let shards = projects.flat_map(|project| std::fs::read_dir(project.path()).into_iter().flatten().flatten());
    shards.filter(|shard| shard.path().join("queue.redb").exists()).count()
}
