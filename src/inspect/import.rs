//! [`import`]: events of a file into a new queue.
//!
//! The file is read into a queue that is not published: a directory `importing` beside the project's shards, which no
//! other process takes for one. When all of the file is durable in it, one rename makes it a shard. So until then nothing
//! is sent, and no other process can move what was imported.
//!
//! **Resuming needs no marker.** The unpublished queue holds what was taken of the file, in its order, and no more. An
//! import that is repeated reads the file from its beginning, compares each event with the one that is stored, and goes on
//! behind the last one. If one differs, the file was changed or is another one, and the import is refused: what is stored
//! would not be what the file says. That is exact wherever the process was killed: a record is in the queue or not.
//! A marker in the store would be behind the journal, and what is between them would be imported twice; and one beside
//! the shards of a daemon would not know which of its events the daemon has appended or sent since. If a power cut cost
//! records that were not synced, or anything in it was damaged, the unpublished queue is removed and filled anew: nothing of
//! it was sent. One that was complete is published all the same, with what can be read of it.
//!
//! **After the file is complete**, its hash is noted in the file `imported` beside the shards, then the queue is
//! published. Whoever imports the same content again finds the hash and imports nothing, also if the process was killed
//! before it could say that it had ended. Where that is not certain, because one of the two was damaged, the content is
//! imported once more: the events keep their uuids, of which PostHog keeps one.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::error::InspectError;
use super::incoming::{self, Seen, Terms};
use super::places::UNPUBLISHED;
use super::places::lossy_option;
use super::staging::{Filling, Group};
use crate::event::Record;
use crate::queue::store::{self, ChunkKey};
use crate::queue::{self, Claim, Finding, frame};
use crate::record::{Flags, Head};
use crate::sys::clock::Clock;
use crate::sys::disk::{Disk, Open};
use crate::sys::wording;

/// The longest line: PostHog takes requests of 20 MiB, so a longer one is no batch that was ever sent.
const LINE_BYTES: usize = 20 * 1024 * 1024;
/// The file with the hashes of imports that were completed.
const COMPLETED: &str = "imported";
/// The number of hashes that are kept.
const COMPLETED_KEPT: usize = 1000;
/// The most bytes that are read of it: more than it ever has.
const COMPLETED_BYTES: u64 = 1024 * 1024;
/// How the names of damaged ones begin that were set aside.
const COMPLETED_DAMAGED: &str = "imported.damaged-";
/// The name in the store's metadata under which a complete queue has its hash.
const COMPLETE: &str = "import";

/// The name under which a queue that is being filled has what there is to say of the one that was in its place before, in
/// lines: see `Import::is_doubtful`.
const DOUBT: &str = "import_doubt";

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
    /// Removes what an unfinished import has stored: of another file, of this one before it was changed, or damaged. An
    /// import that was complete, and was killed before it could publish its queue, is published and not removed.
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
    /// Fields of events and batches that have no place in the queue and were left out, each with how often it was met.
    pub left_out: BTreeMap<String, u64>,
    /// What was found to be damaged, and what that means for the events, in plain words.
    pub notes: Vec<String>,
    /// The queue; `None` if the file contains no event, or was imported before.
    #[serde(serialize_with = "lossy_option")]
    pub queue: Option<PathBuf>,
}

/// Imports events into a new queue of a project: JSON lines, one event each, as
/// [`StoredEvent::to_json`](super::StoredEvent::to_json) writes them, or PostHog's batch object (`{"batch": [..]}`), also
/// one in each line. Uuids, times and properties stay; events without a uuid get one that depends on their text alone.
/// Nothing is sent before all of the file is durable in the queue. From then on a program of the project delivers it.
///
/// An import that was interrupted, also by SIGKILL, is resumed by the same call; no event is lost or doubled. If what was
/// imported differs from the file, it fails until [`ImportOptions::restart`] is set. `progress`
/// gets the number of events imported so far, `bad` each line that is passed over.
///
/// Fails at the first line that is no event unless [`ImportOptions::skip_bad`] is set ([`InspectError::Input`]); what was
/// read before it is kept for the next attempt, with a corrected file or with that option. The same holds for the place
/// from which on a compressed file cannot be read.
pub fn import(
    input: &mut dyn BufRead,
    options: &ImportOptions,
    progress: &mut dyn FnMut(u64),
    bad: &mut dyn FnMut(&BadLine),
) -> Result<Imported, InspectError> {
    let group = Group::of(&options.api_key, &options.host, &options.queue_dir, &options.lane)?;
    let disk = Disk::default();
    group.prepare(&disk)?;
    let unpublished = group.dir.join(UNPUBLISHED);
    import_into(&disk, &group, input, options, progress, bad).map_err(|error| advised(error, &unpublished))
}

fn import_into(
    disk: &Disk,
    group: &Group,
    input: &mut dyn BufRead,
    options: &ImportOptions,
    progress: &mut dyn FnMut(u64),
    bad: &mut dyn FnMut(&BadLine),
) -> Result<Imported, InspectError> {
    let mut import = Import::begin(disk, group, options)?;
    let mut lines = Lines::of(input);
    while let Some(line) = lines.next()? {
        let number = line.number;
        match line.text.and_then(|text| incoming::events_of(text, &mut import.seen, import.terms)) {
            Err(why) => import.pass_over(BadLine { line: number, element: None, why }, bad)?,
            Ok(events) => {
                for (element, event) in events {
                    match incoming::record_of(event, &mut import.seen, import.terms) {
                        Ok(record) => import.take(record, number)?,
                        Err(why) => import.pass_over(BadLine { line: number, element, why }, bad)?,
                    }
                }
            }
        }
        progress(import.events);
    }
    if let Some(why) = &lines.cut_off {
        import.pass_over_the_rest(lines.number, why)?;
    }
    import.end(&hex(&lines.hash.finalize()))
}

/// The failure with what helps, where it may come from what an earlier attempt has left.
fn advised(error: InspectError, unpublished: &Path) -> InspectError {
    let is_there = |path: &Path| path.starts_with(unpublished);
    let (path, why) = match &error {
        InspectError::Io { path, source } if is_there(path) && is_of_content(source) => (path, source.to_string()),
        InspectError::Queue { path, why } if is_there(path) => (path, why.clone()),
        _ => return error,
    };
    let why = format!(
        "{why}; if this repeats, restart (--restart): that removes what an unfinished import has stored, of which nothing \
         was sent, and imports the file from its beginning"
    );
    InspectError::Queue { path: path.clone(), why }
}

/// Whether the failure lies in what is there, and not in what the system can do now.
fn is_of_content(error: &io::Error) -> bool {
    use io::ErrorKind::{OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let kinds = [OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull];
    let codes = [nix::libc::EMFILE, nix::libc::ENFILE].map(Some);
    !kinds.contains(&error.kind()) && !codes.contains(&error.raw_os_error())
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
    terms: Terms<'a>,
    seen: Seen,
    events: u64,
    resumed: u64,
    bad_lines: u64,
    notes: Vec<String>,
    /// Whether a complete import may be noted whose events are not all there.
    is_doubtful: bool,
}

impl<'a> Import<'a> {
    fn begin(disk: &'a Disk, group: &'a Group, options: &'a ImportOptions) -> Result<Self, InspectError> {
        let mut notes = Vec::new();
        let (mut filling, complete) = open_or_restart(disk, group, options, &mut notes)?;
        let is_whole = |filling: &Filling| {
            let ledger = filling.queue().ledger();
            ledger.queued_events == ledger.accepted && !is_salvaged(filling)
        };
        if let Some(hash) = complete {
            // All of it was read; only the last step is missing.
            let is_whole = is_whole(&filling);
            if is_whole {
                note_completed(disk, group, &String::from_utf8_lossy(&hash))?;
            }
            filling.close();
            let shard = publish(disk, group)?;
            if !is_whole {
                notes.push(published_in_part(&shard, "it was damaged, and what could be read of it was saved"));
            }
            filling = open(disk, group)?;
        }
        let is_salvaged = is_salvaged(&filling);
        if is_salvaged && !options.restart {
            notes.push(BEGUN_ANEW.to_owned());
        }
        let doubt = filling.queue().meta(DOUBT);
        if let Some(doubt) = &doubt {
            notes.extend(String::from_utf8_lossy(doubt).lines().map(str::to_owned));
        }
        // Each attempt that finds damage says the same.
        let mut said = HashSet::new();
        notes.retain(|note| said.insert(note.clone()));
        let is_doubtful = is_salvaged || doubt.is_some() || !notes.is_empty();
        if !is_whole(&filling) || options.restart {
            filling = anew(disk, group, filling)?;
        }
        if is_doubtful {
            // This attempt may not be the last.
            let failed = |error| InspectError::queue(filling.dir(), error);
            filling.queue().put_meta(DOUBT, Some(notes.join("\n").as_bytes())).map_err(failed)?;
        }
        let stored = Stored { left: filling.queue().ledger().queued_events, after: None, bodies: VecDeque::new() };
        let terms = Terms {
            api_key: &group.project.api_key,
            max_event_bytes: group.max_event_bytes(),
            now: Clock::default().wall_nanos(),
        };
        let (events, resumed, bad_lines, seen) = (0, 0, 0, Seen::default());
        Ok(Self { disk, group, options, filling, stored, terms, seen, events, resumed, bad_lines, notes, is_doubtful })
    }

    fn take(&mut self, record: Record, line: u64) -> Result<(), InspectError> {
        match self.stored.next(&self.filling)? {
            Some(stored) if is_same(&stored, record.body()) => self.resumed += 1,
            Some(stored) if Head::split(&stored).is_ok_and(|(head, _)| head.uuid == record.uuid) => {
                return Err(self.is_changed(&record, line));
            }
            Some(_) => return Err(self.is_another(&format!("the event in line {line} is not the one that is there"))),
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

    /// Says that the file cannot be read beyond the line of this number; fails unless such places are to be passed over.
    fn pass_over_the_rest(&mut self, line: u64, why: &str) -> Result<(), InspectError> {
        if !self.options.skip_bad {
            let why = format!("the file is incomplete or damaged and cannot be read from here on ({why})");
            return Err(self.stopped_at(&BadLine { line: line + 1, element: None, why }));
        }
        self.notes.push(format!(
            "the file is incomplete or damaged and could not be read beyond line {line} ({why}): what follows is missing; \
             what is before it was imported. If there is a whole file, import that too: the events keep their uuids, of \
             which PostHog keeps one"
        ));
        Ok(())
    }

    fn end(mut self, hash: &str) -> Result<Imported, InspectError> {
        if self.stored.next(&self.filling)?.is_some() {
            return Err(self.is_another("this one ends before the events that are there"));
        }
        let known = completed(self.disk, self.group);
        let is_known = known.hashes.iter().any(|one| one == hash) && !self.is_doubtful && !self.options.again;
        let was_imported = is_known && self.events > 0;
        if let Some(damage) = known.damage.filter(|_| !is_known && !self.options.again && self.events > 0) {
            self.notes.push(format!(
                "the record of finished imports is damaged ({damage}), so it is not known whether this content was imported \
                 before; it was imported now, with the same uuids, of which PostHog keeps one. This is said until the \
                 damaged record is removed"
            ));
        }
        let done = Imported {
            events: if was_imported { 0 } else { self.events },
            resumed: self.resumed,
            bad_lines: self.bad_lines,
            was_imported,
            left_out: self.seen.left_out(),
            notes: self.notes,
            queue: None,
        };
        if self.events == 0 || was_imported {
            let dir = self.filling.dir().to_path_buf();
            remove(&dir)?;
            self.filling.close();
            return Ok(done);
        }
        self.filling.settle()?;
        let failed = |error| InspectError::queue(self.filling.dir(), error);
        self.filling.queue().put_meta(COMPLETE, Some(hash.as_bytes())).map_err(failed)?;
        note_completed(self.disk, self.group, hash)?;
        self.filling.close();
        Ok(Imported { queue: Some(publish(self.disk, self.group)?), ..done })
    }

    fn is_another(&self, why: &str) -> InspectError {
        let dir = self.filling.dir();
        InspectError::Input(format!(
            "an unfinished import of another file, or of this one before it was changed, is in {dir:?}: {why}; repeat that \
             import with its file to finish it, or restart (--restart), which removes what was imported of it"
        ))
    }

    fn is_changed(&self, record: &Record, line: u64) -> InspectError {
        let dir = self.filling.dir();
        InspectError::Input(format!(
            "line {line}: the event {} was changed after an unfinished import had stored it in {dir:?}, and is still there as \
             it was; nothing of it was sent; restart (--restart) to import the file as it is now, or undo the change",
            record.uuid
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

const BEGUN_ANEW: &str = "what an unfinished import had stored was damaged and was removed; nothing of it was sent, and the \
                          file was imported from its beginning";

fn published_in_part(shard: &Path, why: &str) -> String {
    format!(
        "an earlier import was complete and not published yet; its queue is {} now: {why}. If events of it are missing, \
         import its file once more (--again)",
        shard.display()
    )
}

fn claim(disk: &Disk, group: &Group) -> Result<Claim, InspectError> {
    let claimed = queue::claim_unpublished(disk, &group.dir, UNPUBLISHED);
    let claim = claimed.map_err(|error| InspectError::queue(&group.dir, error))?;
    claim.ok_or_else(|| {
        InspectError::Input(format!("another import into {:?} is running; wait until it has ended", group.dir))
    })
}

fn open(disk: &Disk, group: &Group) -> Result<Filling, InspectError> {
    Filling::open(disk, group, claim(disk, group)?)
}

/// Whether something in the queue was damaged, and replaced when it was opened.
fn is_salvaged(filling: &Filling) -> bool {
    filling.findings().iter().any(|found| matches!(found, Finding::Salvaged { .. }))
}

/// Opens the unpublished queue; with the hash of its file if it is complete. If it cannot be opened, a complete one is
/// published as it is, for `repair` or the next start of a program to save what is in it; any other is removed if a
/// restart is asked for. Neither is done while another process may have its lock.
fn open_or_restart(
    disk: &Disk,
    group: &Group,
    options: &ImportOptions,
    notes: &mut Vec<String>,
) -> Result<(Filling, Option<Vec<u8>>), InspectError> {
    let dir = group.dir.join(UNPUBLISHED);
    let claimed = match claim(disk, group) {
        Err(error) if may_be_locked(&dir) => return Err(error),
        claimed => claimed,
    };
    // Before it is opened: what is salvaged then does not have it any more.
    let complete = store::meta_of(disk, &dir, COMPLETE);
    let error = match claimed.and_then(|claim| Filling::open(disk, group, claim)) {
        Ok(filling) => return Ok((filling, complete)),
        Err(InspectError::Input(why)) => return Err(InspectError::Input(why)),
        Err(InspectError::Io { path, source }) if !is_of_content(&source) => {
            return Err(InspectError::Io { path, source });
        }
        Err(error) => error,
    };
    if complete.is_some() {
        let shard = publish(disk, group)?;
        notes.push(published_in_part(&shard, &format!("it could not be opened ({error}); repair it")));
        return Ok((open(disk, group)?, None));
    }
    if !options.restart {
        return Err(error);
    }
    if !may_be_locked(&dir) {
        let is_dir = fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir());
        take_away(&if is_dir { dir.join("lock") } else { dir.clone() })?;
    }
    let claim = claim(disk, group)?;
    remove(&dir)?;
    drop(claim);
    notes.push(BEGUN_ANEW.to_owned());
    Ok((open(disk, group)?, None))
}

/// Whether a process can have the lock of this directory: not if something else stands in its place, or in that of the
/// lock's file.
fn may_be_locked(dir: &Path) -> bool {
    let is = |path: &Path, is: fn(&fs::Metadata) -> bool| fs::symlink_metadata(path).map_or(true, |found| is(&found));
    is(dir, fs::Metadata::is_dir) && is(&dir.join("lock"), fs::Metadata::is_file)
}

/// Removes the content, under the lock, and opens an empty queue.
fn anew(disk: &Disk, group: &Group, filling: Filling) -> Result<Filling, InspectError> {
    remove(filling.dir())?;
    filling.close();
    open(disk, group)
}

/// Removes a queue, whatever is in it.
fn remove(dir: &Path) -> Result<(), InspectError> {
    // The lock last: whoever finds it gone makes a new one.
    let entries = fs::read_dir(dir).map_err(|source| InspectError::io(dir, source))?;
    for entry in entries.flatten().filter(|entry| entry.file_name() != "lock") {
        take_away(&entry.path())?;
    }
    fs::remove_dir_all(dir).map_err(|source| InspectError::io(dir, source))
}

/// Removes a file, or a directory with all that is in it. Links are not followed.
fn take_away(path: &Path) -> Result<(), InspectError> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.or_else(|source| match source.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(InspectError::io(path, source)),
    })
}

fn publish(disk: &Disk, group: &Group) -> Result<PathBuf, InspectError> {
    queue::publish(disk, &group.dir, UNPUBLISHED).map_err(|error| InspectError::queue(&group.dir, error))
}

/// Whether a stored record says what this one does. A time that the event did not have is that of its import, and the
/// version may be that of another library.
fn is_same(stored: &[u8], body: &[u8]) -> bool {
    let (Ok((old, old_content)), Ok((new, content))) = (Head::split(stored), Head::split(body)) else { return false };
    let timestamp_nanos =
        if new.flags.contains(Flags::EXPLICIT_TIMESTAMP) { old.timestamp_nanos } else { new.timestamp_nanos };
    Head { lib_version: new.lib_version, timestamp_nanos, ..old } == new && old_content == content
}

/// The records that an earlier attempt has stored, in their order.
struct Stored {
    left: u64,
    after: Option<ChunkKey>,
    /// Of the rows that were read last.
    bodies: VecDeque<Vec<u8>>,
}

impl Stored {
    fn next(&mut self, filling: &Filling) -> Result<Option<Vec<u8>>, InspectError> {
        if self.left == 0 {
            return Ok(None);
        }
        if self.bodies.is_empty() {
            let failed = |error| InspectError::queue(filling.dir(), error);
            let read = filling.queue().read(self.after, 256 * 1024).map_err(failed)?;
            self.after = read.last;
            for chunk in &read.chunks {
                self.bodies.extend(frame::frames(&chunk.frames, chunk.salt).map(|(_, body)| body.to_vec()));
            }
        }
        self.left -= 1;
        let body = self.bodies.pop_front();
        let why = || "what an earlier attempt imported is damaged".to_owned();
        body.map(Some).ok_or_else(|| InspectError::Queue { path: filling.dir().into(), why: why() })
    }
}

/// A completed import, as a line of the file of hashes.
#[derive(Debug, Serialize, Deserialize)]
struct Completed {
    sha256: String,
}

/// The record of the imports that were completed.
#[derive(Debug, Default)]
struct Completions {
    hashes: Vec<String>,
    /// Why it may not be all of them: this file is damaged, or one that was set aside.
    damage: Option<String>,
    /// Whether the file itself is damaged.
    is_damaged: bool,
}

fn completed(disk: &Disk, group: &Group) -> Completions {
    let path = group.dir.join(COMPLETED);
    let mut record = Completions::default();
    match disk.read(&path, COMPLETED_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => record.damage = Some(format!("{}: {error}", path.display())),
        Ok(bytes) => {
            let mut bad = 0;
            for line in String::from_utf8_lossy(&bytes).lines() {
                match serde_json::from_str::<Completed>(line) {
                    Ok(line) if line.sha256.len() == 64 => record.hashes.push(line.sha256),
                    _ => bad += 1,
                }
            }
            record.damage =
                (bad > 0).then(|| format!("{}: {}", path.display(), wording::count(bad, "unreadable line")));
        }
    }
    record.is_damaged = record.damage.is_some();
    if record.damage.is_none() {
        let names = disk.list(&group.dir).unwrap_or_default();
        let aside = names.iter().find(|name| name.starts_with(COMPLETED_DAMAGED));
        record.damage = aside.map(|name| group.dir.join(name).display().to_string());
    }
    record
}

/// Adds a hash, durably. A damaged record is set aside.
fn note_completed(disk: &Disk, group: &Group, hash: &str) -> Result<(), InspectError> {
    let Completions { mut hashes, is_damaged, .. } = completed(disk, group);
    if !is_damaged && hashes.iter().any(|one| one == hash) {
        return Ok(());
    }
    hashes.retain(|one| one != hash);
    hashes.push(hash.to_owned());
    let from = hashes.len().saturating_sub(COMPLETED_KEPT);
    let mut text = String::new();
    for sha256 in hashes.drain(..).skip(from) {
        text.push_str(&serde_json::to_string(&Completed { sha256 }).unwrap_or_default());
        text.push('\n');
    }
    let (path, unfinished) = (group.dir.join(COMPLETED), group.dir.join(format!("{COMPLETED}.new")));
    take_away(&unfinished)?;
    let write = || {
        let file = disk.open(&unfinished, Open::CreateNew)?;
        file.write_all_at(0, text.as_bytes())?;
        file.sync_data()?;
        if is_damaged {
            disk.rename(&path, &group.dir.join(format!("{COMPLETED_DAMAGED}{}", Uuid::now_v7().simple())))?;
        }
        disk.rename(&unfinished, &path)?;
        disk.sync_dir(&group.dir)
    };
    write().map_err(|source| InspectError::io(&path, source))
}

/// What some tools write at the beginning of a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The lines of a file, without those that are empty. An object in several lines, as tools that make JSON readable write
/// it, is one line if the file contains nothing else.
struct Lines<'a> {
    input: &'a mut dyn BufRead,
    number: u64,
    buffer: Vec<u8>,
    /// What was read behind the first line and is read again, and how much of it was.
    ahead: (Vec<u8>, usize),
    /// Whether a line that is not empty was found.
    has_begun: bool,
    /// Why no more can be read although the file does not end there: it is compressed, and incomplete or damaged.
    cut_off: Option<String>,
    /// Of everything that was read.
    hash: Sha256,
}

struct Line<'a> {
    number: u64,
    /// What it says, or why it is none.
    text: Result<&'a str, String>,
}

impl<'a> Lines<'a> {
    fn of(input: &'a mut dyn BufRead) -> Self {
        let (buffer, ahead) = (Vec::new(), (Vec::new(), 0));
        Self { input, number: 0, buffer, ahead, has_begun: false, cut_off: None, hash: Sha256::new() }
    }

    fn next(&mut self) -> Result<Option<Line<'_>>, InspectError> {
        loop {
            self.buffer.clear();
            if !self.read_line()? {
                return Ok(None);
            }
            self.number += 1;
            let number = self.number;
            if self.number == 1 && self.buffer.starts_with(BYTE_ORDER_MARK) {
                self.buffer.drain(..BYTE_ORDER_MARK.len());
            }
            if self.buffer.len() > LINE_BYTES {
                self.has_begun = true;
                self.skip_line()?;
                return Ok(Some(Line { number, text: Err(format!("it is longer than {LINE_BYTES} bytes")) }));
            }
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        if !self.has_begun {
            self.has_begun = true;
            self.join()?;
        }
        let text = std::str::from_utf8(self.buffer.trim_ascii()).map_err(|_| "it is not UTF-8".to_owned());
        let text = match &self.cut_off {
            // The rest of the file is missing, and with it the end of this line.
            Some(why) if !self.buffer.ends_with(b"\n") && !text.as_deref().is_ok_and(incoming::is_object) => {
                Err(format!("the file is incomplete or damaged and cannot be read further ({why})"))
            }
            _ => text,
        };
        Ok(Some(Line { number: self.number, text }))
    }

    /// Joins an unfinished first line with all that follows, if that is one object. Otherwise the line stays as it is, and
    /// what follows is read as lines of its own: the line may have been cut off.
    fn join(&mut self) -> Result<(), InspectError> {
        let first = self.buffer.len();
        if !std::str::from_utf8(&self.buffer).is_ok_and(incoming::is_unfinished) {
            return Ok(());
        }
        while self.buffer.len() <= LINE_BYTES && self.read_line()? {}
        if !std::str::from_utf8(&self.buffer).is_ok_and(incoming::is_object) {
            self.ahead = (self.buffer.split_off(first), 0);
        }
        Ok(())
    }

    /// Appends a line, or the beginning of one that is too long. `false` at the end.
    fn read_line(&mut self) -> Result<bool, InspectError> {
        let from = self.buffer.len();
        let (ahead, at) = (&self.ahead.0, self.ahead.1);
        if let Some(rest) = ahead.get(at..).filter(|rest| !rest.is_empty()) {
            let line = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1);
            let line = line.min((LINE_BYTES + 1).saturating_sub(from));
            self.buffer.extend_from_slice(rest.get(..line).unwrap_or_default());
            self.ahead.1 += line;
            if self.ahead.1 == self.ahead.0.len() {
                self.ahead = (Vec::new(), 0);
            }
            if self.buffer.ends_with(b"\n") || self.buffer.len() > LINE_BYTES {
                return Ok(true);
            }
            // The rest of the line is in the file.
        }
        let read_from = self.buffer.len();
        let most = if self.cut_off.is_none() { (LINE_BYTES + 1).saturating_sub(read_from) as u64 } else { 0 };
        match Read::take(&mut *self.input, most).read_until(b'\n', &mut self.buffer) {
            Ok(_) => {}
            // The decoder's words. What it gave before stands.
            Err(source) if source.raw_os_error().is_none() => self.cut_off = Some(source.to_string()),
            Err(source) => {
                return Err(InspectError::Input(format!(
                    "the file could not be read: {source}; what was read before is kept and not sent yet"
                )));
            }
        }
        self.hash.update(self.buffer.get(read_from..).unwrap_or_default());
        Ok(self.buffer.len() > from)
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

/// For the fuzz target: the records of a file of any content, as an import makes them.
#[cfg(any(fuzzing, test))]
pub(crate) fn records_of_any(mut content: &[u8], max_event_bytes: usize) -> Vec<Vec<u8>> {
    let terms = Terms { api_key: "phc_1", max_event_bytes, now: 1_700_000_000_000_000_000 };
    let (mut lines, mut seen, mut records) = (Lines::of(&mut content), Seen::default(), Vec::new());
    while let Ok(Some(line)) = lines.next() {
        let events = line.text.and_then(|text| incoming::events_of(text, &mut seen, terms));
        for (_, event) in events.unwrap_or_default() {
            records.extend(incoming::record_of(event, &mut seen, terms).map(|record| record.body().to_vec()));
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::disk::{Call, Op, Verdict, fail_when};

    /// The lengths of the lines that are found, with their numbers.
    fn lines_of(content: &str) -> Vec<(u64, Option<usize>)> {
        let mut input = content.as_bytes();
        let mut lines = Lines::of(&mut input);
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            found.push((line.number, line.text.ok().map(str::len)));
        }
        assert_eq!(hex(&lines.hash.finalize()), hex(&Sha256::digest(content)), "the hash is that of the content");
        found
    }

    /// Imports these events on a disk behind a gate.
    fn import_on(
        queue_dir: &Path,
        events: &str,
        gate: impl Fn(&Call<'_>) -> Option<i32> + Send + Sync + 'static,
    ) -> Result<Imported, InspectError> {
        let fails = move |call: &Call<'_>, _| gate(call).map(|code| Verdict::Fail(io::Error::from_raw_os_error(code)));
        let disk = Disk::gated(fail_when(fails));
        let options = ImportOptions::new("phc_1", "https://us.i.posthog.com", queue_dir);
        let group = Group::of(&options.api_key, &options.host, &options.queue_dir, &options.lane)?;
        group.prepare(&disk)?;
        import_into(&disk, &group, &mut events.as_bytes(), &options, &mut |_| {}, &mut |_| {})
    }

    #[test]
    fn a_complete_import_whose_lock_fails_stays_unpublished() {
        let dir = tempfile::tempdir().unwrap();
        let events = r#"{"event":"a","distinct_id":"u"}"#;
        let is_publishing = |call: &Call<'_>| call.op == Op::Rename && call.path.ends_with(UNPUBLISHED);
        import_on(dir.path(), events, move |call| is_publishing(call).then_some(nix::libc::EIO)).unwrap_err();
        let queues = || super::super::places::queues_and_imports(dir.path()).unwrap();
        for code in [nix::libc::EIO, nix::libc::ENOLCK, nix::libc::ESTALE] {
            import_on(dir.path(), events, move |call| (call.op == Op::Lock).then_some(code)).unwrap_err();
            assert!(queues().iter().all(|queue| queue.is_import()), "published after {code}");
        }
        assert!(import_on(dir.path(), events, |_| None).unwrap().was_imported);
        assert_eq!(queues().iter().map(|queue| queue.is_import()).collect::<Vec<_>>(), [false]);
    }

    #[test]
    fn an_unfinished_first_line_is_joined_only_to_one_object() {
        let pretty = "{\n \"batch\": [\n {}\n]\n}";
        let whole = vec![(1, Some(pretty.len()))];
        assert_eq!(lines_of(pretty), whole);
        assert_eq!(lines_of(&format!("\u{feff}{pretty}\n\n")), whole);
        assert_eq!(lines_of(&format!("\n  \n{pretty}")), [(3, Some(pretty.len()))]);
        assert_eq!(lines_of("{\"a\":1,\n{\"b\":2}\n\n{\"c\":3}"), [(1, Some(7)), (2, Some(7)), (4, Some(7))]);
        assert_eq!(lines_of("{\"a\":1}\n{\"b\":\n2}"), [(1, Some(7)), (2, Some(5)), (3, Some(2))]);
        assert_eq!(lines_of("{\"a\":1,"), [(1, Some(7))]);
        assert_eq!(lines_of("[\n{\"a\":1}\n]"), [(1, Some(1)), (2, Some(7)), (3, Some(1))], "a list is no object");
    }

    #[test]
    fn lines_behind_an_unfinished_one_are_found_in_a_large_file() {
        // Larger than what is joined, which therefore ends within a line.
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(3_000_000));
        let content = format!("{{\"a\":\n{}", format!("{long}\n").repeat(9));
        let expected: Vec<_> = std::iter::once((1, Some(5))).chain((2..11).map(|n| (n, Some(long.len())))).collect();
        assert_eq!(lines_of(&content), expected);
        // The line in which it ends may be too long itself.
        let content = format!("{{\"a\":\n{}\n{{}}\n", "x".repeat(2 * LINE_BYTES));
        assert_eq!(lines_of(&content), [(1, Some(5)), (2, None), (3, Some(2))]);
    }

    /// A decoder that meets its end too early.
    struct Cut<'a>(&'a [u8]);

    impl Read for Cut<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            match self.0.read(out)? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                read => Ok(read),
            }
        }
    }

    #[test]
    fn lines_end_where_the_file_cannot_be_read_any_further() {
        for (content, expected) in [
            ("{\"a\":1}\n{\"b\":", vec![Ok(7), Err(())]),
            ("{\"a\":1}\n{\"b\":2}", vec![Ok(7), Ok(7)]),
            ("{\"a\":1}\n", vec![Ok(7)]),
            ("{\"a\":", vec![Err(())]),
            ("{\n\"a\":", vec![Ok(1), Err(())]),
            ("", vec![]),
        ] {
            let mut input = io::BufReader::with_capacity(3, Cut(content.as_bytes()));
            let mut lines = Lines::of(&mut input);
            let mut found = Vec::new();
            while let Some(line) = lines.next().unwrap() {
                found.push(line.text.map(str::len).map_err(|why| assert!(why.contains("incomplete"), "{why}")));
            }
            assert_eq!(found, expected, "{content:?}");
            assert!(lines.cut_off.is_some() && lines.next().unwrap().is_none());
        }
    }
}
