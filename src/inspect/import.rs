//! [`import`]: events of a file into a new queue.
//!
//! The file is read into a queue that is not published: a directory `importing` beside the project's shards, which no
//! other process takes for one. When all of the file is durable in it, one rename makes it a shard. So until then nothing
//! is sent, and no other process can move what was imported.
//!
//! **Resuming needs no marker.** The unpublished queue holds what was taken of the file, in its order, and no more. An
//! import that is repeated reads the file from its beginning, compares each event with the one that is stored, by its
//! uuid, and goes on behind the last one. That is exact wherever the process was killed: a record is in the queue or not.
//! A marker in the store would be behind the journal, and what is between them would be imported twice; and one beside
//! the shards of a daemon would not know which of its events the daemon has appended or sent since. If a power cut cost
//! records that were not synced, the unpublished queue is removed and filled anew: nothing of it was sent.
//!
//! **After the file is complete**, its hash is noted in the file `imported` beside the shards, then the queue is
//! published. Whoever imports the same content again finds the hash and imports nothing, also if the process was killed
//! before it could say that it had ended.

use std::fs;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::error::InspectError;
use super::incoming::{self, Terms};
use super::places::UNPUBLISHED;
use super::staging::{Filling, Group};
use crate::event::Record;
use crate::queue;
use crate::queue::frame;
use crate::queue::store::ChunkKey;
use crate::record::Head;
use crate::sys::clock::Clock;
use crate::sys::disk::{Disk, Open};

/// The longest line: PostHog takes requests of 20 MiB, so a longer one is no batch that was ever sent.
const LINE_BYTES: usize = 20 * 1024 * 1024;
/// The file with the hashes of imports that were completed.
const COMPLETED: &str = "imported";
/// The number of hashes that are kept.
const COMPLETED_KEPT: usize = 1000;
/// The name in the store's metadata under which a complete queue has its hash.
const COMPLETE: &str = "import";

/// What is imported, and where to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImportOptions {
    /// The key of the project.
    pub api_key: String,
    /// Its host.
    pub host: String,
    /// The directory of queues.
    pub queue_dir: PathBuf,
    /// `analytics`, or `ai` for events of `capture_ai`, which may be larger and have an endpoint of their own.
    pub lane: String,
    /// Lines that are no events are passed over. Otherwise the first one ends the import.
    pub skip_bad: bool,
    /// Imports content that was imported before.
    pub again: bool,
    /// Removes the unfinished import of another file.
    pub restart: bool,
}

impl ImportOptions {
    /// An import of ordinary events that ends at the first line that is none.
    pub fn new(api_key: impl Into<String>, host: impl Into<String>, queue_dir: impl Into<PathBuf>) -> Self {
        Self {
            api_key: api_key.into(),
            host: host.into(),
            queue_dir: queue_dir.into(),
            lane: "analytics".into(),
            skip_bad: false,
            again: false,
            restart: false,
        }
    }
}

/// A line that is no event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BadLine {
    /// The number of the line, from 1.
    pub line: u64,
    /// Of a line with several events (a batch object), which of them, from 1.
    pub element: Option<u64>,
    /// What is wrong.
    pub why: String,
}

/// What [`import`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// Events of the file that are in the new queue.
    pub events: u64,
    /// Those of them that an earlier attempt had imported.
    pub resumed: u64,
    /// Lines that were passed over.
    pub bad_lines: u64,
    /// Whether the same content was imported before. Then nothing was done.
    pub was_imported: bool,
    /// The queue; `None` if the file contains no event, or was imported before.
    pub queue: Option<PathBuf>,
}

/// Imports events into a new queue of a project: JSON lines, one event each, as
/// [`StoredEvent::to_json`](super::StoredEvent::to_json) writes them, or PostHog's batch object (`{"batch": [..]}`), also
/// one in each line. Uuids, times and properties stay; events without a uuid get one that depends on their text and place.
/// Nothing is sent before all of the file is durable in the queue. From then on a program of the project delivers it.
///
/// An import that was interrupted, also by SIGKILL, is resumed by the same call; no event is lost or doubled. `progress`
/// gets the number of events imported so far, `bad` each line that is passed over.
///
/// Fails at the first line that is no event unless [`ImportOptions::skip_bad`] is set ([`InspectError::Input`]); what was
/// read before it is kept for the next attempt, with a corrected file or with that option.
pub fn import(
    input: &mut dyn BufRead,
    options: &ImportOptions,
    progress: &mut dyn FnMut(u64),
    bad: &mut dyn FnMut(&BadLine),
) -> Result<Imported, InspectError> {
    let group = Group::of(&options.api_key, &options.host, &options.queue_dir, &options.lane)?;
    let disk = Disk::default();
    group.prepare(&disk)?;
    let mut import = Import::begin(&disk, &group, options)?;
    let mut lines = Lines { input, number: 0, buffer: Vec::new(), hash: Sha256::new() };
    while let Some(line) = lines.next()? {
        let number = line.number;
        let text = match line.text {
            Ok(text) => text,
            Err(why) => {
                import.pass_over(BadLine { line: number, element: None, why }, bad)?;
                continue;
            }
        };
        // An event may have a property of that name, but not at the top.
        let batch = if text.contains("\"batch\"") { incoming::batch_of(text) } else { None };
        let elements = match &batch {
            None => vec![(None, text)],
            Some(batch) => batch.iter().zip(1..).map(|(element, at)| (Some(at), element.get())).collect(),
        };
        for (element, text) in elements {
            match incoming::record_of(text, (number << 20) + element.unwrap_or(0), import.terms) {
                Ok(record) => import.take(record)?,
                Err(why) => import.pass_over(BadLine { line: number, element, why }, bad)?,
            }
        }
        progress(import.events);
    }
    import.end(&hex(&lines.hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An import that is under way.
struct Import<'a> {
    disk: &'a Disk,
    group: &'a Group,
    options: &'a ImportOptions,
    filling: Filling,
    /// What an earlier attempt has stored.
    stored: Stored,
    terms: Terms,
    events: u64,
    resumed: u64,
    bad_lines: u64,
}

impl<'a> Import<'a> {
    fn begin(disk: &'a Disk, group: &'a Group, options: &'a ImportOptions) -> Result<Self, InspectError> {
        let mut filling = open(disk, group)?;
        if let Some(hash) = filling.queue().meta(COMPLETE) {
            // All of it was read; only the last step is missing.
            note_completed(disk, group, &String::from_utf8_lossy(&hash))?;
            filling.close();
            publish(disk, group)?;
            filling = open(disk, group)?;
        }
        let ledger = filling.queue().ledger();
        let is_whole = ledger.queued_events == ledger.accepted;
        if !is_whole || options.restart {
            filling = anew(disk, group, filling)?;
        }
        let stored = Stored { left: filling.queue().ledger().queued_events, after: None, uuids: Vec::new() };
        let terms = Terms { max_event_bytes: group.max_event_bytes(), now: Clock::default().wall_nanos() };
        Ok(Self { disk, group, options, filling, stored, terms, events: 0, resumed: 0, bad_lines: 0 })
    }

    fn take(&mut self, record: Record) -> Result<(), InspectError> {
        match self.stored.next(&self.filling)? {
            Some(uuid) if uuid == record.uuid => self.resumed += 1,
            Some(_) => return Err(self.is_another()),
            None => self.filling.append(record.body(), record.class as u8)?,
        }
        self.events += 1;
        record.recycle();
        Ok(())
    }

    /// Reports a line that is no event and is passed over; fails if such lines are not to be.
    fn pass_over(&mut self, line: BadLine, bad: &mut dyn FnMut(&BadLine)) -> Result<(), InspectError> {
        if !self.options.skip_bad {
            return Err(self.stopped_at(&line));
        }
        self.bad_lines += 1;
        bad(&line);
        Ok(())
    }

    fn end(mut self, hash: &str) -> Result<Imported, InspectError> {
        if self.stored.next(&self.filling)?.is_some() {
            return Err(self.is_another());
        }
        let done = |queue, was_imported| Imported {
            events: if was_imported { 0 } else { self.events },
            resumed: self.resumed,
            bad_lines: self.bad_lines,
            was_imported,
            queue,
        };
        if self.events == 0 || (!self.options.again && completed(self.disk, self.group).iter().any(|one| one == hash)) {
            let done = done(None, self.events > 0);
            let dir = self.filling.dir().to_path_buf();
            remove(&dir)?;
            self.filling.close();
            return Ok(done);
        }
        self.filling.settle()?;
        let failed = |error| InspectError::queue(self.filling.dir(), error);
        self.filling.queue().put_meta(COMPLETE, Some(hash.as_bytes())).map_err(failed)?;
        note_completed(self.disk, self.group, hash)?;
        let done = done(None, false);
        self.filling.close();
        Ok(Imported { queue: Some(publish(self.disk, self.group)?), ..done })
    }

    fn is_another(&self) -> InspectError {
        let dir = self.filling.dir();
        InspectError::Input(format!(
            "an unfinished import of another file is in {dir:?}: event {} of this file is not the one that was imported then; \
             repeat that import to finish it, or restart (--restart), which removes what was imported of it",
            self.events + 1
        ))
    }

    /// Keeps what was read and says how to go on.
    fn stopped_at(&self, bad: &BadLine) -> InspectError {
        let (line, why) = (bad.line, &bad.why);
        let element = bad.element.map(|at| format!(", event {at}")).unwrap_or_default();
        let kept = match self.filling.settle() {
            Ok(()) => format!("the {} events before it are kept and not sent yet", self.events),
            Err(error) => format!("the {} events before it could not be made durable ({error})", self.events),
        };
        InspectError::Input(format!(
            "line {line}{element} is no event: {why}; nothing after it was imported, {kept}; correct the line or pass over \
             such lines (--skip-bad), and repeat the import"
        ))
    }
}

fn open(disk: &Disk, group: &Group) -> Result<Filling, InspectError> {
    let claimed = queue::claim_unpublished(disk, &group.dir, UNPUBLISHED);
    let claim = claimed.map_err(|error| InspectError::queue(&group.dir, error))?;
    let claim = claim.ok_or_else(|| {
        InspectError::Input(format!("another import into {:?} is running; wait until it has ended", group.dir))
    })?;
    Filling::open(disk, group, claim)
}

/// Removes the content, under the lock, and opens an empty queue.
fn anew(disk: &Disk, group: &Group, filling: Filling) -> Result<Filling, InspectError> {
    remove(filling.dir())?;
    filling.close();
    open(disk, group)
}

fn remove(dir: &Path) -> Result<(), InspectError> {
    // The lock last: whoever finds it gone makes a new one.
    let entries = fs::read_dir(dir).map_err(|source| InspectError::io(dir, source))?;
    for entry in entries.flatten().filter(|entry| entry.file_name() != "lock") {
        fs::remove_file(entry.path()).map_err(|source| InspectError::io(&entry.path(), source))?;
    }
    fs::remove_dir_all(dir).map_err(|source| InspectError::io(dir, source))
}

fn publish(disk: &Disk, group: &Group) -> Result<PathBuf, InspectError> {
    queue::publish(disk, &group.dir, UNPUBLISHED).map_err(|error| InspectError::queue(&group.dir, error))
}

/// The uuids of the records that an earlier attempt has stored, in their order.
struct Stored {
    left: u64,
    after: Option<ChunkKey>,
    /// Of the rows that were read last, from the last to the first.
    uuids: Vec<Uuid>,
}

impl Stored {
    fn next(&mut self, filling: &Filling) -> Result<Option<Uuid>, InspectError> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.uuids.is_empty() {
            let failed = |error| InspectError::queue(filling.dir(), error);
            let read = filling.queue().read(self.after, 256 * 1024).map_err(failed)?;
            self.after = read.last;
            for chunk in &read.chunks {
                let heads = frame::frames(&chunk.frames, chunk.salt).filter_map(|(_, body)| Head::split(body).ok());
                self.uuids.extend(heads.map(|(head, _)| head.uuid));
            }
            self.uuids.reverse();
        }
        self.left -= 1;
        let why = || "what an earlier attempt imported is damaged; restart (--restart)".to_owned();
        let uuid = self.uuids.pop().ok_or_else(|| InspectError::Queue { path: filling.dir().into(), why: why() })?;
        Ok(Some(uuid))
    }
}

/// A completed import, as a line of the file of hashes.
#[derive(Debug, Serialize, Deserialize)]
struct Completed {
    sha256: String,
}

/// The hashes of the imports that were completed. A file that cannot be read has none.
fn completed(disk: &Disk, group: &Group) -> Vec<String> {
    let read = || -> std::io::Result<String> {
        let file = disk.open(&group.dir.join(COMPLETED), Open::ReadOnly)?;
        let mut bytes = vec![0; usize::try_from(file.len()?.min(1024 * 1024)).unwrap_or(0)];
        file.read_exact_at(0, &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok().map(|line: Completed| line.sha256)).collect()
}

/// Adds a hash, durably.
fn note_completed(disk: &Disk, group: &Group, hash: &str) -> Result<(), InspectError> {
    let mut hashes = completed(disk, group);
    if hashes.iter().any(|one| one == hash) {
        return Ok(());
    }
    hashes.push(hash.to_owned());
    let from = hashes.len().saturating_sub(COMPLETED_KEPT);
    let mut text = String::new();
    for sha256 in hashes.drain(..).skip(from) {
        text.push_str(&serde_json::to_string(&Completed { sha256 }).unwrap_or_default());
        text.push('\n');
    }
    let (path, unfinished) = (group.dir.join(COMPLETED), group.dir.join(format!("{COMPLETED}.new")));
    let write = || {
        disk.remove_file(&unfinished)?;
        let file = disk.open(&unfinished, Open::CreateNew)?;
        file.write_all_at(0, text.as_bytes())?;
        file.sync_data()?;
        disk.rename(&unfinished, &path)?;
        disk.sync_dir(&group.dir)
    };
    write().map_err(|source| InspectError::io(&path, source))
}

/// The lines of a file, without those that are empty.
struct Lines<'a> {
    input: &'a mut dyn BufRead,
    number: u64,
    buffer: Vec<u8>,
    /// Of everything that was read.
    hash: Sha256,
}

struct Line<'a> {
    number: u64,
    /// What it says, or why it is none.
    text: Result<&'a str, String>,
}

impl Lines<'_> {
    fn next(&mut self) -> Result<Option<Line<'_>>, InspectError> {
        loop {
            self.buffer.clear();
            if !self.read_line()? {
                return Ok(None);
            }
            self.number += 1;
            let number = self.number;
            if self.buffer.len() > LINE_BYTES {
                self.skip_line()?;
                return Ok(Some(Line { number, text: Err(format!("it is longer than {LINE_BYTES} bytes")) }));
            }
            if self.number == 1 && is_unfinished(&self.buffer) {
                // One object in several lines, as tools that make JSON readable write it.
                while self.buffer.len() <= LINE_BYTES && self.read_line()? {}
            }
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        let text = std::str::from_utf8(self.buffer.trim_ascii()).map_err(|_| "it is not UTF-8".to_owned());
        Ok(Some(Line { number: self.number, text }))
    }

    /// Appends a line, or the beginning of one that is too long. `false` at the end.
    fn read_line(&mut self) -> Result<bool, InspectError> {
        let from = self.buffer.len();
        let most = (LINE_BYTES + 1).saturating_sub(from) as u64;
        let read = Read::take(&mut *self.input, most).read_until(b'\n', &mut self.buffer);
        let read = read.map_err(|source| {
            InspectError::Input(format!(
                "the file could not be read: {source}; what was read before is kept and not sent yet"
            ))
        })?;
        self.hash.update(self.buffer.get(from..).unwrap_or_default());
        Ok(read > 0)
    }

    fn skip_line(&mut self) -> Result<(), InspectError> {
        while self.buffer.last() != Some(&b'\n') {
            self.buffer.clear();
            if !self.read_line()? {
                break;
            }
        }
        Ok(())
    }
}

fn is_unfinished(line: &[u8]) -> bool {
    std::str::from_utf8(line).is_ok_and(|text| !text.trim().is_empty() && incoming::is_unfinished(text))
}
