//! The `$exception` event of an incident.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::context;
use crate::crash::{Context, Incident, Origin, Severity, Step};
use crate::event::Event;
use crate::event::exception::{Crash, Entry, Level};
use crate::record::stack::Stack;

/// Bytes of `$exception_steps`, as JSON.
const STEPS_MOST: usize = 32 * 1024;

/// What it becomes.
pub(crate) fn event_of(incident: &Incident, context: Option<&Context>) -> Event {
    let images = context.map(Context::images).unwrap_or_default();
    let mut entries = Vec::new();
    let mut link = Some(incident);
    while let Some(current) = link {
        entries.push(Entry {
            kind: &current.kind,
            message: &current.message,
            thread: current.facts.tid,
            stack: Stack::locate(&current.frames, &images),
        });
        link = current.during.as_deref();
    }
    let level = if incident.severity == Severity::Fatal { Level::Fatal } else { Level::Error };
    let (mechanism, source) = (mechanism(incident.origin), source(incident.origin));
    let mut event = Crash { entries, mechanism, source, level }.describe().props(facts(incident, context));
    let steps = steps(&incident.facts.steps);
    if !steps.is_empty() {
        event.set("$exception_steps", steps);
    }
    attribute(&mut event, incident);
    event
}

/// The event is about whose request the thread served, as an event would be that it had captured itself. A panic in a clean-up may come
/// after its context was left; the one before it was still inside.
fn attribute(event: &mut Event, incident: &Incident) {
    let links = || std::iter::successors(Some(incident), |link| link.during.as_deref()).map(|link| &link.facts);
    let Some(facts) = links().find(|facts| facts.distinct_id.is_some()).or_else(|| links().next()) else { return };
    if let Some(distinct_id) = &facts.distinct_id {
        event.set_distinct_id(distinct_id);
    }
    let texts = [
        (context::SESSION_ID, &facts.session_id),
        (context::CURRENT_URL, &facts.current_url),
        (context::REQUEST_PATH, &facts.request_path),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            event.set(key, text);
        }
    }
}

/// What the program did before, the oldest first: as much of the newest as fits.
fn steps(steps: &[Step]) -> Vec<Value> {
    let mut told = Vec::new();
    let mut room = STEPS_MOST;
    for step in steps.iter().rev() {
        let at = Timestamp::from_nanosecond(step.at.into()).unwrap_or_default();
        let value = json!({ "$message": step.text, "$timestamp": format!("{at:.3}") });
        // As text, where a control character takes six bytes.
        let Some(left) = room.checked_sub(value.to_string().len()) else { break };
        room = left;
        told.push(value);
    }
    told.reverse();
    told
}

fn mechanism(origin: Origin) -> &'static str {
    match origin {
        Origin::PanicHook => "panic",
        Origin::SignalHandler => "signal",
    }
}

fn source(origin: Origin) -> &'static str {
    match origin {
        Origin::PanicHook => "rust.panic_hook",
        Origin::SignalHandler => "rust.signal_handler",
    }
}

fn facts(incident: &Incident, context: Option<&Context>) -> Map<String, Value> {
    let facts = &incident.facts;
    let mut map = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            map.insert(key.to_owned(), value);
        }
    };
    if let Some((file, line, column)) = &facts.place {
        put("$exception_panic_file", Some(file.as_str().into()));
        put("$exception_panic_line", Some((*line).into()));
        put("$exception_panic_column", Some((*column).into()));
    }
    put("crash_thread_name", facts.thread_name.as_deref().filter(|name| !name.is_empty()).map(Value::from));
    put("crash_pid", facts.pid.map(Value::from));
    put("crash_process_survived", Some((incident.severity == Severity::Survived).into()));
    put("crash_uptime_ms", facts.uptime_nanos.map(|nanos| (nanos / 1_000_000).into()));
    put("crash_message_bytes", facts.message_bytes.map(Value::from));
    put("crash_signal", facts.signal.map(Value::from));
    put("crash_signal_code", facts.signal_code.map(Value::from));
    put("crash_fault_address", facts.fault_address.map(|address| format!("0x{address:x}").into()));
    put("crash_sender_pid", facts.sender_pid.map(Value::from));
    put("crash_sender_uid", facts.sender_uid.map(Value::from));
    put("crash_handler_interrupted", Some(facts.is_nested).filter(|nested| *nested).map(Value::from));
    put("crash_missed_before", Some(facts.missed).filter(|missed| *missed > 0).map(Value::from));
    put("crash_in_forked_child", Some(facts.in_forked_child).filter(|child| *child).map(Value::from));
    if let Some(context) = context {
        put("crash_executable", Some(context.executable.as_str()).filter(|path| !path.is_empty()).map(Value::from));
        put("crash_host_name", Some(context.host_name.as_str()).filter(|name| !name.is_empty()).map(Value::from));
        put(
            "crash_lib_version",
            Some(context.lib_version.as_str()).filter(|version| !version.is_empty()).map(Value::from),
        );
    }
    map
}
