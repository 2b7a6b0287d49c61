//! A queue directory and a PostHog stand-in for one process that dies, and the next start, which reports it.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use sink::Sink;
use tempfile::TempDir;

use super::Ending;

/// A process that takes longer hangs.
pub(super) const RUN_MOST: Duration = Duration::from_secs(20);
const ENOUGH: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Size of the small disk: little more than the queue's own files.
const SMALL_DISK: &str = "size=96m";

/// The environment of one scenario.
#[derive(Debug)]
pub struct Fixture {
    /// The server that the next start sends to.
    pub sink: Sink,
    program: PathBuf,
    dir: TempDir,
    is_mounted: bool,
}

/// What the next start reported.
#[derive(Debug)]
pub struct Reported {
    /// The properties of each exception, in the order in which they happened.
    pub exceptions: Vec<Value>,
    /// Diagnostics of the next start, and other problems with it.
    pub problems: Vec<String>,
}

impl Fixture {
    /// For a build of `dying`. Fails with the reason if a small disk is needed and cannot be mounted.
    pub fn new(program: &Path, needs_a_small_disk: bool) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut fixture = Self { sink: Sink::start(), program: program.to_path_buf(), dir, is_mounted: false };
        if needs_a_small_disk {
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs"]).arg(fixture.dir());
            let output = mount.output().map_err(|error| format!("cannot mount a small disk: {error}"))?;
            if !output.status.success() {
                return Err(format!("cannot mount a small disk: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
            fixture.is_mounted = true;
        }
        Ok(fixture)
    }

    /// The working directory of the processes.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The queue of processes with the client.
    pub fn queue_dir(&self) -> PathBuf {
        self.dir().join("queue")
    }

    /// Runs `dying` and returns how it ended. Fails if it hangs.
    pub fn run(&self, scenario: &str, with_client: bool) -> Result<Ending, String> {
        let mut command = sink::command(&self.program);
        command.arg(scenario).current_dir(self.dir());
        if with_client {
            command.arg(self.queue_dir()).arg(self.sink.url());
        }
        self.end(command, with_client, RUN_MOST)
    }

    /// Runs a command and returns how it ended. Fails if it takes longer than `most`.
    pub(super) fn end(&self, mut command: Command, with_client: bool, most: Duration) -> Result<Ending, String> {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child =
            command.spawn().map_err(|error| format!("{}: {error}", command.get_program().to_string_lossy()))?;
        let status = end_of(&mut child, most);
        let _ = std::fs::remove_file(self.dir().join("filler"));
        let status = status
            .ok_or_else(|| format!("the process hangs {} the client", if with_client { "with" } else { "without" }))?;
        match (status.code(), status.signal()) {
            (Some(code), _) => Ok(Ending::Exit(code)),
            (None, signal) => Ok(Ending::Signal(signal.unwrap_or(0))),
        }
    }

    /// The next start, which runs until its standard input ends.
    pub fn reader(&self) -> Command {
        let mut reader = sink::command(&self.program);
        reader.arg("read").arg(self.queue_dir()).arg(self.sink.url()).current_dir(self.dir());
        reader.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        reader
    }

    /// What the next start reports. Waits for `least` exceptions, and then for all reports to be read.
    pub fn reported(&self, least: usize) -> Result<Reported, String> {
        let mut reader = self.reader().spawn().map_err(|error| format!("the next start failed: {error}"))?;
        let is_all_read = eventually(|| left_in(&self.queue_dir()).is_empty());
        // Exceptions that are still missing may be on their way: looking up names in a large executable takes time on a
        // busy machine.
        let patience = if is_all_read { ENOUGH } else { Duration::ZERO };
        let _ = self.sink.wait_for(|state| state.events().len() >= least, patience);
        drop(reader.stdin.take());
        let output = reader.wait_with_output().map_err(|error| format!("the next start failed: {error}"))?;
        let mut problems: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        // This diagnostic is expected for the small disk.
        problems.retain(|diagnostic| !(self.is_mounted && diagnostic.contains("is on a file system in memory")));
        if !is_all_read {
            problems.push(format!("reports that were not read in time: {:?}", left_in(&self.queue_dir())));
        }
        if !output.status.success() {
            problems.push(format!("the next start ended with {}", output.status));
        }
        let mut events = self.sink.events();
        events.retain(|event| event.event == "$exception");
        // A process that ends while it sends leaves the same event to the next one. PostHog keeps one of each uuid.
        let mut known = BTreeSet::new();
        events.retain(|event| known.insert(event.uuid));
        events.sort_by_key(|event| event.timestamp.clone());
        Ok(Reported { exceptions: events.into_iter().map(|event| event.properties).collect(), problems })
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(self.dir()).status();
        }
    }
}

/// The frames of the stack, outermost first.
pub fn frames_of(properties: &Value) -> Vec<Value> {
    properties["$exception_list"][0]["stacktrace"]["frames"].as_array().cloned().unwrap_or_default()
}

/// The function names of the stack.
pub fn functions_of(properties: &Value) -> Vec<String> {
    frames_of(properties).iter().map(|frame| frame["function"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Waits for the end of a process; kills it and returns `None` if it takes too long.
fn end_of(child: &mut Child, most: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + most;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => sleep(LOOK_AGAIN),
            _ => break,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + ENOUGH;
    while !is_so() {
        if Instant::now() >= until {
            return false;
        }
        sleep(LOOK_AGAIN);
    }
    true
}

/// The files in the crash directories. Files that were reported are removed, and the reader has none, because it
/// installs no hook.
pub fn left_in(dir: &Path) -> Vec<String> {
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
