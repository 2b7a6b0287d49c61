//! [`QueueReader`]: the content of a queue, without changing it.

use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use uuid::Uuid;

use super::error::InspectError;
use super::places::QueueDir;
use crate::queue::{self, Contents, Facts, Found, QueueError, Reader};
use crate::record::json::write_event;
use crate::record::{Malformed, NoSymbols, View};
use crate::sys::clock::system_time;
use crate::sys::disk::Disk;
use crate::sys::wording::count;

/// The content of a queue.
///
/// A queue without an owner is read in place. One with a living owner is copied first, so the content is that of one
/// moment; the copy ends with the reader, or with the process, even if that is killed. Memory: one row or one arena of the
/// journal.
#[derive(Debug)]
pub struct QueueReader {
    reader: Reader,
    /// With the copy, if there is one, in place of the queue's files.
    disk: Disk,
    is_copy: bool,
    queue: QueueDir,
}

/// An event, as [`QueueReader::events`] passes it.
#[derive(Debug)]
#[non_exhaustive]
pub struct StoredEvent<'a> {
    /// Where the event is.
    pub place: EventPlace,
    /// Its sequence number: events of a queue have ascending numbers in the order in which they were captured.
    pub sequence: u64,
    body: &'a [u8],
}

/// Where an event is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventPlace {
    /// In the journal: accepted, and not yet moved into the store.
    Journal,
    /// In the store, where it waits for delivery.
    Store {
        /// Since when.
        since: SystemTime,
    },
    /// PostHog rejected it for good.
    DeadLetter {
        /// The HTTP status of the rejection; 0 if the event could not be read and was never sent.
        status: u16,
        /// The server's reason.
        reason: String,
        /// The number of requests that contained it.
        attempts: u32,
        /// When it was last rejected.
        last_attempt: SystemTime,
    },
}

/// The parts of an event that filters use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventSummary<'a> {
    /// The name of the event.
    pub event: &'a str,
    /// The person.
    pub distinct_id: &'a str,
    /// The uuid, under which PostHog ignores repetitions.
    pub uuid: Uuid,
    /// The time of the event.
    pub timestamp: SystemTime,
}

/// Something in a queue that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
    /// Events that cannot be saved, where their number is known.
    pub lost_events: Option<u64>,
}

/// Something that a queue contains.
#[derive(Debug)]
#[non_exhaustive]
pub enum Content<'a> {
    /// An event that waits, or a dead letter.
    Event(StoredEvent<'a>),
    /// Something that cannot be read.
    Damage(Damage),
}

type Walk<'a> = &'a dyn Fn(&Reader, Pass<'_>) -> Result<ControlFlow<()>, QueueError>;
type Pass<'a> = &'a mut dyn FnMut(Found<'_>) -> ControlFlow<()>;

impl QueueDir {
    /// Opens the queue for reading. Changes nothing in it, and works beside a living owner: then the files are copied
    /// first, into files without names on the file system of `scratch`, which needs as much space as the queue takes.
    /// Nothing is left there when the process ends, however it ends.
    ///
    /// Fails if the files may not be read, if a newer version wrote them, if there is too little space for the copy
    /// ([`InspectError::Io`]), or if the owner writes faster than they can be copied ([`InspectError::Busy`]).
    pub fn read(&self, scratch: &Path) -> Result<QueueReader, InspectError> {
        self.read_with(scratch, &|_| {})
    }

    /// What the store and the journal say is in a queue that no process has. `None` if they cannot be read.
    pub(super) fn contents(&self) -> Option<Contents> {
        let disk = Disk::of_any_user();
        let found = Reader::open(&disk, self.path(), false).ok()?.contents(&disk).ok()?;
        // A missing store is no empty one, unless there never was one.
        (found.ledger.is_some() || self.is_blank()).then_some(found)
    }

    /// Like [`read`](Self::read); `progress` gets the number of bytes that were copied.
    pub fn read_with(&self, scratch: &Path, progress: &dyn Fn(u64)) -> Result<QueueReader, InspectError> {
        let disk = Disk::of_any_user();
        let failed = |error| InspectError::queue(self.path(), error);
        let is_copy = self.owner()?.is_some();
        let disk = if is_copy {
            check_space(&disk, self.path(), scratch)?;
            let copy = queue::copy(&disk, self.path(), scratch, progress).map_err(failed)?;
            copy.ok_or_else(|| InspectError::Busy { path: self.path().into() })?
        } else {
            disk
        };
        let reader = Reader::open(&disk, self.path(), is_copy).map_err(failed)?;
        Ok(QueueReader { reader, disk, is_copy, queue: self.clone() })
    }
}

fn check_space(disk: &Disk, queue: &Path, scratch: &Path) -> Result<(), InspectError> {
    let entries = fs::read_dir(queue).map_err(|source| InspectError::io(queue, source))?;
    let sizes = entries.flatten().filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file);
    let needed: u64 = sizes.map(|file| file.len()).sum();
    let free = disk.free_bytes(scratch).map_err(|source| InspectError::io(scratch, source))?;
    if needed <= free {
        return Ok(());
    }
    let why = format!("a copy of the queue needs up to {needed} bytes there, and {free} are free");
    let source = std::io::Error::new(std::io::ErrorKind::StorageFull, why);
    Err(InspectError::Io { path: scratch.into(), source })
}

impl QueueReader {
    /// Whether this reads a copy, because a living process owns the queue.
    pub fn is_copy(&self) -> bool {
        self.is_copy
    }

    /// Passes everything in the queue to `each`, until that breaks: the waiting events, the oldest first, then the dead
    /// letters, and in between what is damaged. Fails at the end if a process has opened the queue meanwhile: then what
    /// was passed may be wrong, and the next attempt reads a copy.
    pub fn content(&self, each: &mut dyn FnMut(Content<'_>) -> ControlFlow<()>) -> Result<(), InspectError> {
        self.walk(each, &|reader, pass| reader.walk(&self.disk, pass))
    }

    /// Passes the dead letters alone to `each`, until that breaks. Otherwise like [`content`](Self::content).
    pub fn dead_letters(&self, each: &mut dyn FnMut(Content<'_>) -> ControlFlow<()>) -> Result<(), InspectError> {
        self.walk(each, &|reader, pass| reader.walk_dead(pass))
    }

    fn walk(&self, each: &mut dyn FnMut(Content<'_>) -> ControlFlow<()>, walk: Walk<'_>) -> Result<(), InspectError> {
        let mut pass = |found: Found<'_>| match found {
            Found::Record { seq, body, checkpointed_at } => {
                let place =
                    checkpointed_at.map_or(EventPlace::Journal, |at| EventPlace::Store { since: system_time(at) });
                each(Content::Event(StoredEvent { place, sequence: seq, body }))
            }
            Found::Dead(dead) => {
                let place = EventPlace::DeadLetter {
                    status: dead.status,
                    reason: dead.reason.clone(),
                    attempts: dead.attempts,
                    last_attempt: system_time(dead.last_attempt),
                };
                each(Content::Event(StoredEvent { place, sequence: dead.seq, body: &dead.body }))
            }
            Found::Bad(bad) => each(Content::Damage(Damage { path: bad.path, what: bad.why, lost_events: bad.lost })),
        };
        let _ = walk(&self.reader, &mut pass).map_err(|error| InspectError::queue(self.queue.path(), error))?;
        self.check_unowned()
    }

    /// Checks everything: see [`QueueDir::verify`].
    pub(crate) fn verify(&self, progress: &dyn Fn(u64)) -> Result<Facts, InspectError> {
        let facts = self.reader.verify(&self.disk, progress);
        let facts = facts.map_err(|error| InspectError::queue(self.queue.path(), error))?;
        self.check_unowned().map(|()| facts)
    }

    /// Fails if a process has opened the queue while it was read in place.
    fn check_unowned(&self) -> Result<(), InspectError> {
        match self.queue.owner()?.filter(|_| !self.is_copy) {
            // Its first act may have been to change what was being read.
            Some(owner) => Err(InspectError::Owned { path: self.queue.path().into(), pid: owner.pid }),
            None => Ok(()),
        }
    }
}

impl StoredEvent<'_> {
    /// The parts that filters use. Fails if the record's content is damaged although its checksum is right, which a defect
    /// of the program that wrote it may cause.
    pub fn summary(&self) -> Result<EventSummary<'_>, InspectError> {
        let view = self.view()?;
        Ok(EventSummary {
            event: view.name,
            distinct_id: view.distinct_id,
            uuid: view.head.uuid,
            timestamp: system_time(view.head.timestamp_nanos),
        })
    }

    /// The event as PostHog's batch endpoint takes it: an object with `uuid`, `event`, `distinct_id`, `properties` and
    /// `timestamp`, in one line. Addresses of stacks have no names.
    pub fn to_json(&self) -> Result<String, InspectError> {
        let mut text = Vec::new();
        write_event(&self.view()?, &NoSymbols, &mut text).map_err(|error| self.malformed(error))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Bytes of the record, without its frame.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// The record as the queue stores it: see `docs/format.md`.
    pub(crate) fn body(&self) -> &[u8] {
        self.body
    }

    fn view(&self) -> Result<View<'_>, InspectError> {
        View::parse(self.body).map_err(|error| self.malformed(error))
    }

    fn malformed(&self, error: Malformed) -> InspectError {
        InspectError::Input(format!("event {} cannot be read: {error}", self.sequence))
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)?;
        match self.lost_events {
            Some(lost) if lost > 0 => write!(f, " ({} lost)", count(lost, "event")),
            _ => Ok(()),
        }
    }
}
