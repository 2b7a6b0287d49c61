//! A queue directory and a PostHog stand-in for processes that crash, and their next start.

#![allow(dead_code, unreachable_pub, reason = "part of several test programs, none of which needs all of it")]

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crash_tests::crash_reports::left_in;
use serde_json::Value;
use sink::Sink;

pub const ENOUGH: Duration = Duration::from_secs(30);

/// How a process ended: exit status or signal.
pub type Ending = (Option<i32>, Option<i32>);

pub struct Fixture {
    pub sink: Sink,
    pub dir: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        Self { sink: Sink::start(), dir: tempfile::tempdir().expect("a directory") }
    }

    /// Runs the scenario without the client and with it; both must end in the same way.
    pub fn run_both(&self, scenario: &str) -> Ending {
        let without = self.run(scenario, false);
        // A process that dies has no time to send its report; only one that survives sends it itself.
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

    /// The exceptions that the next start reports, in the order in which they happened. There must be `count`.
    pub fn reported(&self, count: usize) -> Vec<Value> {
        let reported = self.reported_at_least(count);
        assert_eq!(reported.len(), count, "{reported:?}");
        reported
    }

    pub fn reported_at_least(&self, count: usize) -> Vec<Value> {
        self.reported_after(count, 0)
    }

    /// At least `count` exceptions that the next start reports, in the order in which they happened. The process that
    /// crashed had captured `captured` events of its own, which arrive as well.
    pub fn reported_after(&self, count: usize, captured: usize) -> Vec<Value> {
        let (reported, diagnostics) = self.read_by("read", count + captured);
        assert_eq!(diagnostics, "", "the next start has no problems");
        assert!(reported.len() >= count, "of {count} only {:?}", self.messages());
        reported
    }

    /// The exceptions that a start of the kind `reader` reports. There must be `count`.
    pub fn reported_by(&self, reader: &str, count: usize) -> Vec<Value> {
        let (reported, _) = self.read_by(reader, count);
        assert_eq!(reported.len(), count, "{reported:?}");
        reported
    }

    /// The exceptions that a start reports, once everything is read and `arrive` events have arrived, and its
    /// diagnostics.
    fn read_by(&self, reader: &str, arrive: usize) -> (Vec<Value>, String) {
        let mut reader = self.reader_as(reader).spawn().expect("a process");
        let _ = self.sink.wait_for(|state| state.events().len() >= arrive, ENOUGH);
        eventually_nothing_in(&self.queue_dir());
        drop(reader.stdin.take());
        let output = reader.wait_with_output().expect("it ends");
        let mut reported: Vec<_> = self
            .sink
            .events()
            .iter()
            .filter(|event| event.event == "$exception")
            .map(|event| serde_json::json!({ "timestamp": event.timestamp, "properties": event.properties }))
            .collect();
        reported.sort_by_key(|event| event["timestamp"].as_str().map(str::to_owned));
        (reported, String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The next start.
    pub fn reader(&self) -> Command {
        self.reader_as("read")
    }

    /// The next start, of one of several kinds.
    pub fn reader_as(&self, kind: &str) -> Command {
        let mut reader = sink::command(env!("CARGO_BIN_EXE_dying"));
        reader.arg(kind).arg(self.queue_dir()).arg(self.sink.url()).stdin(Stdio::piped()).stdout(Stdio::piped());
        reader
    }

    pub fn messages(&self) -> Vec<Value> {
        self.sink.events().iter().map(|event| event.properties["$exception_message"].clone()).collect()
    }
}

/// Waits until the crash directories are empty. The reader has no file of its own, because it installs no hook.
pub fn eventually_nothing_in(dir: &Path) {
    let deadline = Instant::now() + ENOUGH;
    while !left_in(dir).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", left_in(dir));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Message, level, and type of the mechanism.
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
