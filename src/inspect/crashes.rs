//! [`CrashReport`]: the crash reports in a queue's directory, without reading them for delivery.
//!
//! The library counts each reading of a report in the file's name, and removes the file when its events are durable.
//! Here nothing is counted, renamed or removed, so that looking never changes what the next start of the program does.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use uuid::Uuid;

use super::error::InspectError;
use super::places::{QueueDir, lossy};
use crate::client::{event_to_send, time_of};
use crate::crash::{self, InProcess, Incident, ProcessState, Tag, find_reports};
use crate::record::View;
use crate::record::json::write_event;
use crate::sys::clock::{Clock, WallNanos};
use crate::sys::disk::Disk;
use crate::sys::limits::EVENT_BYTES_DEFAULT;

/// What happens with a crash report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CrashReportState {
    /// The next start of a program on this queue sends it.
    Waiting,
    /// Its process is alive: it survived what the report holds, or is about to die of it. It is sent soon.
    InUse,
    /// Reading it failed or crashed the reader three times, or a part of it cannot be read or sent and the other parts
    /// were sent. It is kept for inspection, and not read again.
    GivenUp,
}

/// A crash report: what one process wrote when it panicked or got a fatal signal. Serializes as its fields.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct CrashReport {
    /// The file.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// What happens with it.
    pub state: CrashReportState,
    /// How often it was read for delivery. After three readings that did not succeed it is given up.
    pub attempts: u32,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes that belong to no readable record.
    pub damaged_bytes: u64,
    /// Why the file could not be read at all.
    pub problem: Option<String>,
    /// The path of the executable, as its process knew it.
    pub executable: Option<String>,
    /// The name of the machine.
    pub host_name: Option<String>,
    /// The release of the program: `$app_version`, or `$release_id` without one.
    pub release: Option<String>,
    /// The version of this library in the program.
    pub lib_version: Option<String>,
    /// What is in it, in the order in which it happened. Empty if the file is damaged.
    pub crashes: Vec<Crash>,
    #[serde(skip)]
    read: Option<crash::CrashReport>,
}

/// A panic or a fatal signal.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Crash {
    /// When it happened, as Unix time; `None` if the report does not say, or says a time in the future.
    pub timestamp_seconds: Option<f64>,
    /// Whether the process died of it.
    pub is_fatal: bool,
    /// The type of the exception: `Panic`, `StackOverflow`, or the name of the signal.
    pub kind: String,
    /// The message of the panic, or the meaning of the signal.
    pub message: String,
    /// The process.
    pub pid: Option<u32>,
    /// The name of the thread.
    pub thread: Option<String>,
    /// The number of the signal; `None` for a panic.
    pub signal: Option<u32>,
}

impl QueueDir {
    /// The crash reports in the queue's directory, the oldest first. Changes nothing, and works beside a living owner.
    /// Reports of living processes that hold no panic are left out.
    ///
    /// Fails if the directory may not be read. A file that may not be read, or is damaged, is in the result.
    pub fn crash_reports(&self) -> Result<Vec<CrashReport>, InspectError> {
        let (disk, dir) = (Disk::of_any_user(), self.path().join(crash::DIR));
        let found = find_reports(&disk, &dir).map_err(|source| InspectError::io(&dir, source))?;
        let now = Clock::default().wall_nanos();
        let mut reports: Vec<_> = found
            .into_iter()
            .filter_map(|found| {
                let state = match (found.is_given_up, found.is_in_use) {
                    (true, _) => CrashReportState::GivenUp,
                    (false, true) => CrashReportState::InUse,
                    (false, false) => CrashReportState::Waiting,
                };
                CrashReport::look(&disk, found.path, state, now)
            })
            .collect();
        reports.sort_by(|a, b| a.began().total_cmp(&b.began()));
        Ok(reports)
    }
}

impl CrashReport {
    /// `None` if there is nothing in it to report.
    fn look(disk: &Disk, path: PathBuf, state: CrashReportState, now: WallNanos) -> Option<Self> {
        let process_state = match state {
            CrashReportState::InUse => ProcessState::Alive,
            CrashReportState::Waiting | CrashReportState::GivenUp => ProcessState::Gone,
        };
        let bytes = path.metadata().map_or(0, |file| file.len());
        let empty = |problem| Self {
            path: path.clone(),
            state,
            attempts: 0,
            bytes,
            damaged_bytes: 0,
            problem,
            executable: None,
            host_name: None,
            release: None,
            lib_version: None,
            crashes: Vec::new(),
            read: None,
        };
        let read = match crash::CrashReport::look(disk, &path, process_state) {
            Ok(read) => read,
            // It was sent and removed, or counted and renamed, since it was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(source) => {
                let why = source.to_string();
                return Some(empty(Some(format!("{}: {why}", InspectError::io(&path, source)))));
            }
        };
        // A living process may be writing its record just now.
        if read.incidents.is_empty() && (read.damaged_bytes == 0 || state == CrashReportState::InUse) {
            return None;
        }
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let process = read.process.as_ref();
        let release = read.incidents.first().and_then(|incident| {
            let event = event_to_send(&read, incident, now);
            event.get("$app_version").or_else(|| event.get("$release_id"))
        });
        Some(Self {
            attempts: read.attempt,
            damaged_bytes: read.damaged_bytes as u64,
            executable: process.and_then(|process| text(&process.executable)),
            host_name: process.and_then(|process| text(&process.host_name)),
            lib_version: process.and_then(|process| text(&process.lib_version)),
            release,
            crashes: read.incidents.iter().map(|incident| Crash::of(incident, now)).collect(),
            read: Some(read),
            ..empty(None)
        })
    }

    fn began(&self) -> f64 {
        self.crashes.first().and_then(|crash| crash.timestamp_seconds).unwrap_or(0.0)
    }

    /// The name of the file.
    pub fn name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The exceptions as they are sent, one for each of [`crashes`](Self::crashes): objects as PostHog's batch endpoint
    /// takes them, each in one line. What only the program knows is missing: super properties, and what its hooks
    /// change.
    ///
    /// Frames have names where the file of their image is on this machine with the same build id and has symbols. The
    /// files may be large: the first call may take a second.
    pub fn exceptions(&self) -> Result<Vec<String>, InspectError> {
        let Some(read) = &self.read else { return Ok(Vec::new()) };
        let symbols = InProcess::of_any_process();
        let now = Clock::default().wall_nanos();
        let write = |incident: &Incident| {
            let mut event = event_to_send(read, incident, now);
            if event.is_anonymous() {
                event.attribute_to_nobody(&event.given_uuid().unwrap_or_default().to_string());
            }
            let unreadable = |why: String| InspectError::Input(format!("{:?} cannot be shown: {why}", self.path));
            let record = event.finish(Uuid::nil(), now, EVENT_BYTES_DEFAULT);
            let record = record.map_err(|refusal| unreadable(refusal.describe()))?;
            let mut text = Vec::new();
            let view = View::parse(record.body()).map_err(|error| unreadable(error.to_string()))?;
            write_event(&view, &symbols, &mut text).map_err(|error| unreadable(error.to_string()))?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        read.incidents.iter().map(write).collect()
    }
}

impl Crash {
    fn of(incident: &Incident, now: WallNanos) -> Self {
        let record = &incident.record;
        let number = |tag| record.number(tag).and_then(|number| u32::try_from(number).ok());
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        Self {
            timestamp_seconds: time_of(incident, now).map(seconds),
            is_fatal: incident.is_fatal,
            kind: incident.kind.clone(),
            message: incident.message.clone(),
            pid: number(Tag::Pid),
            thread: record.text(Tag::ThreadName).filter(|name| !name.is_empty()),
            signal: number(Tag::Signal).filter(|_| incident.is_signal()),
        }
    }
}
