//! What a crash is told with: what the program did before it, libraries that came later, and names, unless somebody died of those.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use crash_tests::last_words::{Stage, frames_of, functions_of};
use serde_json::Value;

const ENOUGH: Duration = Duration::from_secs(30);
/// A place of the library's own at which a process can be told to die.
const DIES: (&str, &str) = ("POSTHOG_CRASH_POINT", "symbols.asked");

fn stage() -> Stage {
    Stage::new(Path::new(env!("CARGO_BIN_EXE_dying")), false).expect("a directory")
}

fn told(stage: &Stage, scenario: &str) -> Value {
    stage.run(scenario, true).expect("it ends");
    let heard = stage.heard(1).expect("a next start");
    assert_eq!(heard.amiss, Vec::<String>::new(), "nothing is amiss");
    let [told] = heard.exceptions.as_slice() else { panic!("{:?}", heard.exceptions) };
    told.clone()
}

#[test]
fn what_the_program_did_before_is_told_with_the_panic_or_signal() {
    for scenario in ["steps_panic", "steps_survived", "steps_signal"] {
        let stage = stage();
        let told = told(&stage, scenario);
        let steps = told["$exception_steps"].as_array().cloned().unwrap_or_default();
        let messages: Vec<_> = steps.iter().map(|step| step["$message"].as_str().unwrap_or_default()).collect();
        assert_eq!(messages, ["order_placed", "connected", &"\u{e9}".repeat(112)], "{scenario}: {told}");
        let times: Vec<_> = steps.iter().map(|step| step["$timestamp"].as_str().unwrap_or_default()).collect();
        let events = stage.sink.events();
        let crashed = &events.iter().find(|event| event.event == "$exception").expect("it was told").timestamp;
        assert!(times.is_sorted() && times[0].len() == "2026-01-01T00:00:00.000Z".len(), "{times:?}");
        assert!(times[2][..19] <= crashed[..19], "{times:?} {crashed}");
        let fields = steps[0].as_object().map(serde_json::Map::len);
        assert_eq!(fields, Some(2), "a name and a time, and nothing of the event");
    }
}

#[test]
fn a_library_that_was_loaded_later_has_an_image_and_is_walked_through() {
    let told = told(&stage(), "loaded_later");
    let images = told["$debug_images"].as_array().cloned().unwrap_or_default();
    let is_libm = |image: &Value| image["code_file"].as_str().is_some_and(|file| file.contains("libm.so"));
    assert!(images.iter().any(is_libm), "{told}");
    let functions = functions_of(&told);
    assert!(functions.iter().any(|function| function.starts_with("dying::")), "{functions:?}");
}

#[test]
fn a_death_while_names_are_looked_up_is_not_died_again() {
    let stage = stage();
    stage.run("literal", true).expect("it ends");
    let mut dies = stage.reader().env(DIES.0, DIES.1).spawn().expect("a process");
    // It would end as soon as this is closed, which `wait` does.
    let open = dies.stdin.take();
    assert_eq!(dies.wait().expect("it ends").signal(), Some(9));
    drop(open);
    // It would die again; but it does not come there.
    let reader = stage.reader().env(DIES.0, DIES.1).spawn().expect("a process");
    assert!(stage.sink.wait_for(|state| state.events().len() == 1, ENOUGH));
    let output = reader.wait_with_output().expect("it ends");
    assert!(String::from_utf8_lossy(&output.stdout).contains("died while it looked up names"), "{output:?}");
    let told = &stage.sink.events()[0].properties;
    let frames = frames_of(told);
    assert!(!frames.is_empty() && told["$debug_images"].is_array());
    assert!(frames.iter().all(|frame| frame["instruction_addr"].is_string() && frame.get("lineno").is_none()));
    // What is queued later has names again.
    stage.run("literal", true).expect("it ends");
    let heard = stage.heard(2).expect("a next start");
    let functions = heard.exceptions.last().map(functions_of).unwrap_or_default();
    assert!(functions.iter().any(|function| function == "dying::panics::play"), "{functions:?}");
}
