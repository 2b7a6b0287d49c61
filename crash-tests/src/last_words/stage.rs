//! A queue directory and a stand-in of PostHog, on which one process dies and the next one tells of it.

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

/// A process that needs longer hangs.
pub(super) const LIFE_MOST: Duration = Duration::from_secs(20);
const ENOUGH: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Of the small disk: the queue's own files and not much more.
const SMALL_DISK: &str = "size=96m";

/// Where a scenario is played.
#[derive(Debug)]
pub struct Stage {
    /// What the next start sends to.
    pub sink: Sink,
    program: PathBuf,
    dir: TempDir,
    is_mounted: bool,
}

/// What the next start told.
#[derive(Debug)]
pub struct Heard {
    /// The properties of each exception, in the order in which they happened.
    pub exceptions: Vec<Value>,
    /// What the reader found amiss.
    pub amiss: Vec<String>,
}

impl Stage {
    /// For a build of `dying`. Fails with the reason if a small disk is needed and cannot be had.
    pub fn new(program: &Path, needs_a_small_disk: bool) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut stage = Self { sink: Sink::start(), program: program.to_path_buf(), dir, is_mounted: false };
        if needs_a_small_disk {
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", SMALL_DISK, "tmpfs"]).arg(stage.dir());
            let output = mount.output().map_err(|error| format!("no small disk: {error}"))?;
            if !output.status.success() {
                return Err(format!("no small disk: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
            stage.is_mounted = true;
        }
        Ok(stage)
    }

    /// Where the processes are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The queue of those that have the client.
    pub fn queue_dir(&self) -> PathBuf {
        self.dir().join("queue")
    }

    /// How the process ends. Fails if it does not.
    pub fn run(&self, scenario: &str, with_client: bool) -> Result<Ending, String> {
        let mut command = sink::command(&self.program);
        command.arg(scenario).current_dir(self.dir());
        if with_client {
            command.arg(self.queue_dir()).arg(self.sink.url());
        }
        self.end(command, with_client, LIFE_MOST)
    }

    /// How the process of that command ends, which takes no longer than `most`.
    pub(super) fn end(&self, mut command: Command, with_client: bool, most: Duration) -> Result<Ending, String> {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child =
            command.spawn().map_err(|error| format!("{}: {error}", command.get_program().to_string_lossy()))?;
        let status = end_of(&mut child, most);
        let _ = std::fs::remove_file(self.dir().join("filler"));
        let status =
            status.ok_or_else(|| format!("hangs {} the client", if with_client { "with" } else { "without" }))?;
        match (status.code(), status.signal()) {
            (Some(code), _) => Ok(Ending::Exit(code)),
            (None, signal) => Ok(Ending::Signal(signal.unwrap_or(0))),
        }
    }

    /// The next start: it goes on until its standard input ends.
    pub fn reader(&self) -> Command {
        let mut reader = sink::command(&self.program);
        reader.arg("read").arg(self.queue_dir()).arg(self.sink.url()).current_dir(self.dir());
        reader.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        reader
    }

    /// What the next start tells: `least` exceptions are waited for, and then whatever else there is.
    pub fn heard(&self, least: usize) -> Result<Heard, String> {
        let mut reader = self.reader().spawn().map_err(|error| format!("the next start: {error}"))?;
        let is_all_read = eventually(|| left_in(&self.queue_dir()).is_empty());
        // What is missing after all has been read may still be on its way: names are looked up in a large executable, and the processors
        // may be busy with others.
        let patience = if is_all_read { ENOUGH } else { Duration::ZERO };
        let _ = self.sink.wait_for(|state| state.events().len() >= least, patience);
        drop(reader.stdin.take());
        let output = reader.wait_with_output().map_err(|error| format!("the next start: {error}"))?;
        let mut amiss: Vec<_> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        // Of the small disk, and true.
        amiss.retain(|diagnostic| !(self.is_mounted && diagnostic.contains("is on a file system in memory")));
        if !is_all_read {
            amiss.push(format!("never read: {:?}", left_in(&self.queue_dir())));
        }
        if !output.status.success() {
            amiss.push(format!("the next start ends with {}", output.status));
        }
        let mut events = self.sink.events();
        events.retain(|event| event.event == "$exception");
        // A process that ends while it sends leaves the next one to send the same again: PostHog keeps one.
        let mut known = BTreeSet::new();
        events.retain(|event| known.insert(event.uuid));
        events.sort_by_key(|event| event.timestamp.clone());
        Ok(Heard { exceptions: events.into_iter().map(|event| event.properties).collect(), amiss })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(self.dir()).status();
        }
    }
}

/// The stack, the entry point first.
pub fn frames_of(properties: &Value) -> Vec<Value> {
    properties["$exception_list"][0]["stacktrace"]["frames"].as_array().cloned().unwrap_or_default()
}

/// The names in it.
pub fn functions_of(properties: &Value) -> Vec<String> {
    frames_of(properties).iter().map(|frame| frame["function"].as_str().unwrap_or_default().to_owned()).collect()
}

/// `None`, and killed, if it does not end.
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

/// Files of last words. What was told is removed, and the reader has none of its own: it arms no hook.
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
