//! exception-event-metadata (EXM) for fatal signals, and the exact shape of such an event.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Map, Value, json};
use sink::{Event, Sink};

const ENOUGH: Duration = Duration::from_secs(60);

/// The event of a process that read an unmapped address, and the times between which that happened.
fn reported() -> (Event, [i128; 2]) {
    let (sink, queue) = (Sink::start(), tempfile::tempdir().expect("a directory"));
    let start = |scenario: &str| {
        let mut command = sink::command(env!("CARGO_BIN_EXE_dying"));
        command.arg(scenario).arg(queue.path()).arg(sink.url()).stdin(Stdio::piped()).stderr(Stdio::null());
        command.spawn().expect("a process")
    };
    let begun = now();
    assert_eq!(start("null_read").wait().expect("an end").signal(), Some(11));
    let ended = now();
    let mut reader = start("read");
    assert!(sink.wait_for(|state| !state.events().is_empty(), ENOUGH), "nothing was reported");
    drop(reader.stdin.take());
    reader.wait().expect("an end");
    (sink.events().remove(0), [begun, ended])
}

/// Nanoseconds since 1970.
fn now() -> i128 {
    jiff::Timestamp::now().as_nanosecond()
}

#[test]
fn exm_07_exm_09_exm_18_a_signal_is_fatal_and_unhandled() {
    let (event, _) = reported();
    let mechanism = json!({"type": "signal", "handled": false, "synthetic": false, "exception_id": 0});
    assert_eq!(event.properties["$exception_list"][0]["mechanism"], mechanism);
    let said = (&event.properties["$exception_level"], &event.properties["$exception_source"]);
    assert_eq!(said, (&json!("fatal"), &json!("rust.signal_handler")));
}

#[test]
fn exm_19_a_signal_has_the_shape_of_a_native_crash_and_its_time() {
    let (event, [begun, ended]) = reported();
    let at = event.timestamp.parse::<jiff::Timestamp>().expect("a time").as_nanosecond();
    assert!(begun <= at && at <= ended, "{at} is not between {begun} and {ended}");
    assert_eq!(event.event, "$exception");

    let properties = &event.properties;
    let golden: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_str(include_str!("native_crash.json")).expect("the golden shape");
    let must_fit = |part: &str, value: &Value| fit(part, &golden[part], value.as_object().expect("an object"));
    must_fit("properties", properties);
    let list = properties["$exception_list"].as_array().expect("a list");
    assert_eq!(list.len(), 1);
    must_fit("entry", &list[0]);
    must_fit("mechanism", &list[0]["mechanism"]);
    must_fit("stacktrace", &list[0]["stacktrace"]);
    let frames = list[0]["stacktrace"]["frames"].as_array().expect("frames");
    let images = properties["$debug_images"].as_array().expect("images");
    assert!(frames.len() > 3 && !images.is_empty(), "{properties:#}");
    frames.iter().for_each(|frame| must_fit("frame", frame));
    images.iter().for_each(|image| must_fit("debug_image", image));
}

/// Each key is known and has its type; each known key is there, except those marked with `?`.
fn fit(part: &str, golden: &BTreeMap<String, String>, value: &Map<String, Value>) {
    for (key, value) in value {
        let expected = golden.get(key).unwrap_or_else(|| panic!("{part} has an unknown {key}: {value}"));
        assert_eq!(expected.trim_end_matches('?'), type_of(value), "{part}, {key}: {value}");
    }
    for (key, _) in golden.iter().filter(|(_, kind)| !kind.ends_with('?')) {
        assert!(value.contains_key(key), "{part} lacks {key}: {value:#?}");
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
