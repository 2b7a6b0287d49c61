//! A directory and a PostHog for processes that die, and the start after each of them.

#![allow(dead_code, unreachable_pub, reason = "part of several test programs, none of which needs all of it")]

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crash_tests::last_words::left_in;
use serde_json::Value;
use sink::Sink;

pub const ENOUGH: Duration = Duration::from_secs(30);

/// How a process ended: exit code, or the signal.
pub type Ending = (Option<i32>, Option<i32>);

pub struct Stage {
    pub sink: Sink,
    pub dir: tempfile::TempDir,
}

impl Stage {
    pub fn new() -> Self {
        Self { sink: Sink::start(), dir: tempfile::tempdir().expect("a directory") }
    }

    /// Plays the scenario without the client and with it; both must end in the same way.
    pub fn play(&self, scenario: &str) -> Ending {
        let without = self.run(scenario, false);
        // Nothing may be sent by the process itself but what it survives: it has no time for that.
        let with = self.run(scenario, true);
        assert_eq!(with, without, "{scenario}: how the process ends with the client, and without");
        with
    }

    pub fn run(&self, scenario: &str, with_client: bool) -> Ending {
        let mut command = sink::command(env!("CARGO_BIN_EXE_dying"));
        command.arg(scenario).current_dir(self.dir.path()).stderr(Stdio::null());
        if with_client {
            command.arg(self.queue_dir()).arg(self.sink.url());
        }
        let status = command.status().expect("a process");
        (status.code(), status.signal())
    }

    pub fn queue_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("queue")
    }

    /// What the next start tells, in the order in which it happened.
    pub fn told(&self, count: usize) -> Vec<Value> {
        let told = self.told_at_least(count);
        assert_eq!(told.len(), count, "{told:?}");
        told
    }

    pub fn told_at_least(&self, count: usize) -> Vec<Value> {
        self.told_after(count, 0)
    }

    /// The same, where the process had captured so many events of its own.
    pub fn told_after(&self, count: usize, captured: usize) -> Vec<Value> {
        let (told, diagnostics) = self.read_by("read", count + captured);
        assert_eq!(diagnostics, "", "nothing is amiss");
        assert!(told.len() >= count, "of {count} only {:?}", self.messages());
        told
    }

    /// What a start of that name tells.
    pub fn told_by(&self, reader: &str, count: usize) -> Vec<Value> {
        let (told, _) = self.read_by(reader, count);
        assert_eq!(told.len(), count, "{told:?}");
        told
    }

    /// What a start tells until everything is told and so many events have arrived, and its diagnostics.
    fn read_by(&self, reader: &str, arrive: usize) -> (Vec<Value>, String) {
        let mut reader = self.reader_as(reader).spawn().expect("a process");
        let _ = self.sink.wait_for(|state| state.events().len() >= arrive, ENOUGH);
        eventually_nothing_in(&self.queue_dir());
        drop(reader.stdin.take());
        let output = reader.wait_with_output().expect("it ends");
        let mut told: Vec<_> = self
            .sink
            .events()
            .iter()
            .filter(|event| event.event == "$exception")
            .map(|event| serde_json::json!({ "timestamp": event.timestamp, "properties": event.properties }))
            .collect();
        told.sort_by_key(|event| event["timestamp"].as_str().map(str::to_owned));
        (told, String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The start after an end.
    pub fn reader(&self) -> Command {
        self.reader_as("read")
    }

    /// One of several kinds.
    pub fn reader_as(&self, kind: &str) -> Command {
        let mut reader = sink::command(env!("CARGO_BIN_EXE_dying"));
        reader.arg(kind).arg(self.queue_dir()).arg(self.sink.url()).stdin(Stdio::piped()).stdout(Stdio::piped());
        reader
    }

    pub fn messages(&self) -> Vec<Value> {
        self.sink.events().iter().map(|event| event.properties["$exception_message"].clone()).collect()
    }
}

/// What was told is removed, and the reader has none of its own: it arms no hook.
pub fn eventually_nothing_in(dir: &Path) {
    let deadline = Instant::now() + ENOUGH;
    while !left_in(dir).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", left_in(dir));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Message, level and the type of the mechanism.
pub fn said(event: &Value) -> (String, String, String) {
    let properties = &event["properties"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (
        text(&properties["$exception_message"]),
        text(&properties["$exception_level"]),
        text(&properties["$exception_list"][0]["mechanism"]["type"]),
    )
}

pub fn panicked(message: &str, level: &str) -> (String, String, String) {
    (message.to_owned(), level.to_owned(), "panic".to_owned())
}
