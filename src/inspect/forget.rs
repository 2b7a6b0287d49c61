//! [`Person`]: finding what a queue contains about a person, and removing it so that none of its bytes is left in the
//! queue's files.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use regex::bytes::Regex;
use serde::Serialize;
use serde_json::Value;

use super::error::InspectError;
use super::owned::OwnedQueue;
use super::places::{QueueDir, lossy};
use super::reader::{Content, EventPlace};
use crate::crash::{self, erase};
use crate::record::{NoSymbols, View, json};
use crate::sys::disk::{Disk, Entry, Open};

/// A person, by distinct ids, and how much that mentions the person is meant as well.
#[derive(Clone, Debug)]
pub struct Person {
    ids: BTreeSet<String>,
    text: Regex,
    /// Whether an id is a number, which a property may contain as a number: then no event is passed over by its text.
    has_number: bool,
    also_properties: bool,
    also_text: bool,
}

/// What a queue contains about a person. Returned by [`QueueDir::find_person`], and by [`QueueDir::forget`] for what it
/// has removed and what is left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PersonFound {
    /// Waiting events of the person: those whose distinct id is one of the ids.
    pub events: u64,
    /// Dead letters of the person.
    pub dead_letters: u64,
    /// Records of crash reports written while a request of the person was served.
    pub crash_records: u64,
    /// Breadcrumbs that contain an id. Always removed.
    pub breadcrumbs: u64,
    /// Other events and dead letters in which a property or a group *is* one of the ids, such as `$anon_distinct_id`,
    /// `alias` or `$user_id`. Removed with [`Person::also_properties`].
    pub in_properties: u64,
    /// Other events, dead letters and crash records that contain an id within a longer text. Removed with
    /// [`Person::also_text`].
    pub in_text: u64,
    /// Whether what was found, as far as it is meant, was removed.
    pub is_removed: bool,
    /// Events and dead letters that could not be read, so that nobody knows whose they are. [`QueueDir::forget`] removes
    /// them.
    pub unreadable_events: u64,
    /// Events that were found to be lost to damage when the queue was opened.
    pub lost_events: u64,
    /// Files below the queue that are not changed, with whether they contain an id: what a repair has kept, crash reports
    /// of living processes, files that are not of this library, and what is no regular file.
    pub not_reached: Vec<NotReached>,
    /// What opening the queue found, in plain words; empty for a sound queue.
    pub notes: Vec<String>,
}

/// A file that [`QueueDir::forget`] does not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NotReached {
    /// The file.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Why it is not changed.
    pub why: String,
    /// Whether the bytes of an id are in it; `None` if it could not be read.
    pub contains_id: Option<bool>,
}

/// What an event has to do with a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Relation {
    Nothing,
    Text,
    Property,
    Own,
}

impl Person {
    /// The person with these distinct ids, at least one. Fails for an empty id.
    pub fn new<I: IntoIterator<Item = T>, T: Into<String>>(distinct_ids: I) -> Result<Self, InspectError> {
        let ids: BTreeSet<String> = distinct_ids.into_iter().map(Into::into).collect();
        if ids.is_empty() || ids.contains("") {
            return Err(InspectError::Input("a person needs a distinct id that is not empty".into()));
        }
        let either: Vec<_> = ids.iter().map(|id| regex::escape(id)).collect();
        let text = Regex::new(&either.join("|"))
            .map_err(|error| InspectError::Input(format!("these are too many or too long distinct ids: {error}")))?;
        let has_number = ids.iter().any(|id| id.parse::<f64>().is_ok());
        Ok(Self { ids, text, has_number, also_properties: false, also_text: false })
    }

    /// Whether events are meant too in which a property or a group is one of the ids.
    pub fn also_properties(mut self, also: bool) -> Self {
        self.also_properties = also;
        self
    }

    /// Whether events and crash records are meant too that contain an id within a longer text, such as an address.
    pub fn also_text(mut self, also: bool) -> Self {
        self.also_text = also;
        self
    }

    fn mentions(&self, bytes: &[u8]) -> bool {
        self.text.is_match(bytes)
    }

    fn is_meant(&self, relation: Relation) -> bool {
        match relation {
            Relation::Nothing => false,
            Relation::Text => self.also_text,
            Relation::Property => self.also_properties,
            Relation::Own => true,
        }
    }

    /// What an event with this body has to do with the person.
    fn relation(&self, body: &[u8]) -> Relation {
        let in_text = self.mentions(body);
        if !in_text && !self.has_number {
            return Relation::Nothing;
        }
        let otherwise = if in_text { Relation::Text } else { Relation::Nothing };
        let Ok(view) = View::parse(body) else { return otherwise };
        if self.ids.contains(view.distinct_id) {
            return Relation::Own;
        }
        let mut text = Vec::new();
        let written = json::write_event(&view, &NoSymbols, &mut text).is_ok();
        let event: Option<Value> = if written { serde_json::from_slice(&text).ok() } else { None };
        if event.is_some_and(|event| self.is_in(&event["properties"])) { Relation::Property } else { otherwise }
    }

    fn is_in(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => self.ids.contains(text),
            Value::Number(number) => self.has_number && self.ids.contains(&number.to_string()),
            Value::Array(items) => items.iter().any(|item| self.is_in(item)),
            Value::Object(pairs) => pairs.iter().any(|(key, value)| self.ids.contains(key) || self.is_in(value)),
            Value::Null | Value::Bool(_) => false,
        }
    }
}

impl PersonFound {
    /// Everything that is meant and was found.
    pub fn meant(&self, person: &Person) -> u64 {
        let of = |is_meant: bool, count: u64| if is_meant { count } else { 0 };
        self.events
            + self.dead_letters
            + self.crash_records
            + self.breadcrumbs
            + of(person.also_properties, self.in_properties)
            + of(person.also_text, self.in_text)
    }

    fn count(&mut self, relation: Relation, is_dead: bool) {
        match relation {
            Relation::Nothing => {}
            Relation::Text => self.in_text += 1,
            Relation::Property => self.in_properties += 1,
            Relation::Own if is_dead => self.dead_letters += 1,
            Relation::Own => self.events += 1,
        }
    }
}

impl QueueDir {
    /// Counts what the queue contains about the person. Changes nothing, and works beside a living owner as
    /// [`read`](Self::read) does. `progress` gets the number of events read so far.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn find_person(
        &self,
        scratch: &Path,
        person: &Person,
        progress: &dyn Fn(u64),
    ) -> Result<PersonFound, InspectError> {
        let (mut found, mut read, mut is_damaged) = (PersonFound::default(), 0, false);
        self.read(scratch)?.content(&mut |content| {
            match content {
                Content::Event(event) => {
                    let dead =
                        if let EventPlace::DeadLetter { reason, .. } = &event.place { Some(reason) } else { None };
                    let mut relation = person.relation(event.body());
                    if dead.is_some_and(|reason| person.mentions(reason.as_bytes())) {
                        relation = relation.max(Relation::Text);
                    }
                    found.count(relation, dead.is_some());
                    read += 1;
                    progress(read);
                }
                Content::Damage(damage) => {
                    is_damaged = true;
                    found.unreadable_events += damage.lost_events.unwrap_or(0);
                }
            }
            ControlFlow::Continue(())
        })?;
        if is_damaged {
            // Their number may not be known.
            found.unreadable_events = found.unreadable_events.max(1);
        }
        self.search_files(&Disk::of_any_user(), person, &mut found, false)?;
        Ok(found)
    }

    /// Removes the person from the queue: waiting events, dead letters, crash records and breadcrumbs, in the journal by
    /// overwriting it and in the store by writing it anew without them, so that free space of the files does not contain
    /// them either. Removed events are counted as evicted. Changes nothing else; it is not needed that something was
    /// found, because free space may contain events that were delivered. A kill at any moment loses no other event, and
    /// a repetition completes what was begun. `progress` gets the number of events examined so far.
    ///
    /// What it cannot reach is in [`PersonFound::not_reached`]; backups, snapshots and free blocks of the file system, and
    /// what was delivered to PostHog, are beyond it too.
    ///
    /// # Errors
    ///
    /// [`InspectError::Owned`] while a process has the queue, [`InspectError::OtherUser`] for a user to whom it does not
    /// belong, and if there is too little space for the new store, whose size is that of what waits: then no event was
    /// removed.
    pub fn forget(&self, person: &Person, progress: &dyn Fn(u64)) -> Result<PersonFound, InspectError> {
        let (disk, mut found) = (Disk::default(), PersonFound::default());
        if let Some(owned) = self.own(&disk)? {
            found = self.forget_events(&owned, &disk, person, progress)?;
        }
        found.is_removed = true;
        self.search_files(&disk, person, &mut found, true)?;
        Ok(found)
    }

    fn forget_events(
        &self,
        owned: &OwnedQueue,
        disk: &Disk,
        person: &Person,
        progress: &dyn Fn(u64),
    ) -> Result<PersonFound, InspectError> {
        let failed = |error| InspectError::queue(self.path(), error);
        if !owned.queue.checkpoint_all(owned.now()).map_err(failed)? {
            let why = format!(
                "{}; no event was removed; make space, or repair the queue, and repeat the command",
                owned.notes().join("; ")
            );
            return Err(InspectError::Queue { path: self.path().into(), why });
        }
        let (counted, mut examined) = (RefCell::new(PersonFound::default()), 0);
        let rewritten = owned.queue.rewrite(
            &mut |body, dead| {
                examined += 1;
                progress(examined);
                let mut relation = person.relation(body);
                if dead.is_some_and(|dead| person.mentions(dead.reason.as_bytes())) {
                    relation = relation.max(Relation::Text);
                }
                counted.borrow_mut().count(relation, dead.is_some());
                !person.is_meant(relation)
            },
            owned.now(),
        );
        let rewritten = rewritten.map_err(failed)?;
        owned.queue.scrub_journal(disk).map_err(failed)?;
        let mut found = counted.into_inner();
        found.unreadable_events = rewritten.damaged;
        (found.lost_events, found.notes) = (owned.lost(), owned.notes());
        Ok(found)
    }

    /// Crash reports, breadcrumbs, and the files that are not changed.
    fn search_files(
        &self,
        disk: &Disk,
        person: &Person,
        found: &mut PersonFound,
        removes: bool,
    ) -> Result<(), InspectError> {
        let mentions = |bytes: &[u8]| person.mentions(bytes);
        let wanted = erase::Wanted {
            is_person: &|id| person.ids.contains(id),
            mentions: &mentions,
            also_mentions: person.also_text,
        };
        let dir = self.path().join(crash::DIR);
        let reports =
            erase::search_reports(disk, &dir, &wanted, removes).map_err(|source| InspectError::io(&dir, source))?;
        found.crash_records += reports.records;
        found.in_text += reports.mentions;
        let mut not_reached: Vec<_> = reports.out_of_reach;
        match erase::search_breadcrumbs(disk, self.path(), &mentions, removes) {
            Ok(breadcrumbs) => found.breadcrumbs = breadcrumbs,
            Err(error) => not_reached.push((self.path().join("breadcrumbs"), error.to_string())),
        }
        for entry in fs::read_dir(self.path()).map_err(|source| InspectError::io(self.path(), source))?.flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let why = if name.starts_with("damaged-") {
                "kept by an earlier repair; remove it if it is not needed any more"
            } else if super::verify::is_of_library(&name) {
                continue;
            } else {
                "not a file of this library"
            };
            let is_dir = Entry::at(&path).is_ok_and(|entry| entry == Entry::Dir);
            let inside = if is_dir { files_in(&path) } else { vec![path] };
            not_reached.extend(inside.into_iter().map(|path| (path, why.to_owned())));
        }
        found.not_reached.extend(not_reached.into_iter().map(|(path, why)| {
            let why = match Entry::at(&path) {
                Ok(entry) if entry != Entry::File && !why.contains("regular") => {
                    format!("{why}; it is {entry}, not a regular file")
                }
                _ => why,
            };
            NotReached { contains_id: person.is_in_file(disk, &path), path, why }
        }));
        Ok(())
    }
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// How much of a file is searched at a time.
const PIECE: usize = 1024 * 1024;

impl Person {
    /// Whether the bytes of an id are in the file; `None` if it cannot be read, or is no regular file.
    fn is_in_file(&self, disk: &Disk, path: &Path) -> Option<bool> {
        let longest = self.ids.iter().map(String::len).max().unwrap_or(0);
        let file = disk.open(path, Open::ReadOnly).ok()?;
        let (mut window, mut at) = (Vec::new(), 0);
        loop {
            // An id may begin in one piece and end in the next.
            window.drain(..window.len().saturating_sub(longest));
            let piece = usize::try_from(file.len().ok()?.saturating_sub(at)).unwrap_or(PIECE).min(PIECE);
            let kept = window.len();
            window.resize(kept + piece, 0);
            file.read_exact_at(at, window.get_mut(kept..)?).ok()?;
            at += piece as u64;
            if self.mentions(&window) {
                return Some(true);
            }
            if piece == 0 {
                return Some(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_as_a_value_and_within_a_longer_text() {
        let person = Person::new(["alice", "4711"]).unwrap();
        let is_in = |value: Value| person.is_in(&value);
        assert!(is_in(serde_json::json!({"$anon_distinct_id": "alice"})));
        assert!(is_in(serde_json::json!({"a": [{"b": 4711}]})) && is_in(serde_json::json!({"$groups": {"x": "4711"}})));
        assert!(!is_in(serde_json::json!({"url": "https://h/?u=alice", "n": 47})));
        assert!(person.mentions(b"..malice..") && !person.mentions(b"bob"));
        assert!(Person::new(["a", ""]).is_err() && Person::new(Vec::<String>::new()).is_err());
    }

    #[test]
    fn an_id_across_two_pieces_of_a_file_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![b'.'; PIECE - 2];
        bytes.extend_from_slice(b"alice and more");
        fs::write(file.path(), bytes).unwrap();
        assert_eq!(Person::new(["alice"]).unwrap().is_in_file(&Disk::default(), file.path()), Some(true));
        assert_eq!(Person::new(["aliceb"]).unwrap().is_in_file(&Disk::default(), file.path()), Some(false));
        assert_eq!(Person::new(["alice"]).unwrap().is_in_file(&Disk::default(), Path::new("/nowhere")), None);
    }
}
