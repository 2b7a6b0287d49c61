//! Opening a store: its file is created, opened, or replaced by one that is rebuilt from its readable rows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::{Database, ReadableDatabase, ReadableTableMetadata};

use super::OpenDatabase;
use super::backend::StoreFile;
use super::files::{Interrupted, QUEUE, StoreDir, StoreOptions};
use super::rows::{Project, State};
use super::salvage::{Rebuild, Salvage, Salvaged};
use super::schema::{self, CHUNKS, DEAD};
use crate::queue::error::{StoreError, guarded, is_of_the_machine};
use crate::sys::clock::WallNanos;
use crate::sys::disk::{Disk, Open};

/// What was found when the store was opened or reopened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenReport {
    /// There was no file; a new one was created.
    pub(crate) fresh: bool,
    /// The path to which a damaged file was moved.
    pub(crate) damaged_file: Option<PathBuf>,
    pub(crate) damage: Option<String>,
    /// What the counts do not say, if something is in the new file that may have been removed before.
    pub(crate) doubt: Option<String>,
    /// A replacement of the store, left by an earlier owner, that cannot be used: its new path, and why. The store is as
    /// it was.
    pub(crate) refused: Option<(PathBuf, String)>,
    /// The file could not be synced and was replaced by a copy.
    pub(crate) replaced: bool,
    /// The number of events that were recovered from the file that was replaced.
    pub(crate) salvaged_events: u64,
    /// Events that the ledger newly counts as damaged, dead letters among them.
    pub(crate) lost_events: u64,
    /// How many sequence numbers the file is behind the status page: an older file was put in its place.
    pub(crate) behind_witness: u64,
}

const BAD_PAGES: &str = "pages of the queue's file are damaged";

/// Opens the store in `place`, whatever state its file is in.
pub(super) fn open(place: &StoreDir, now: WallNanos) -> Result<(OpenDatabase, State, OpenReport), StoreError> {
    let mut report = OpenReport::default();
    // Opening the replacement may be what killed the processes before this one, or what took too long.
    let refuse = || match place.options.untrusted {
        true => Ok(Some("the store is being built anew from its rows, because the queue is not trusted".to_owned())),
        false => objection(place, Some(&place.options.project)),
    };
    match place.finish_interrupted(now, refuse)? {
        Interrupted::Nothing => {}
        Interrupted::Swapped(path) => {
            report.damaged_file = Some(path);
            report.damage = Some("an earlier owner replaced it, and was interrupted".to_owned());
        }
        Interrupted::Refused(path, why) => report.refused = Some((path, why)),
    }
    if place.disk.exists(&place.queue())? {
        let opened = if place.options.untrusted {
            Err(StoreError::damaged("several processes in a row died while they opened it"))
        } else {
            // A replacement is begun only for a file with which something is wrong.
            open_existing(place, place.options.check_integrity || report.refused.is_some())
        };
        match opened {
            Ok((database, state)) => {
                let witnessed = place.options.witness.map_or(0, |witness| witness.accepted);
                report.behind_witness = witnessed.saturating_sub(state.ledger.accepted);
                return Ok((database, state, report));
            }
            Err(error) if error.is_damage() => report.damage = Some(in_full(&error)),
            Err(error) => return Err(error),
        }
        let _ = rebuild_from(place, &mut report)?;
        report.damaged_file = Some(place.install_beside_damaged(now)?);
    } else {
        create(place, &mut report)?;
    }
    let (database, state) = open_existing(place, false)?;
    Ok((database, state, report))
}

/// Replaces a file that could not be synced by a copy, which gets the name only when it is durable. If something was
/// missing, the old file is kept.
pub(super) fn replace(place: &StoreDir, now: WallNanos) -> Result<(OpenDatabase, State, OpenReport), StoreError> {
    let mut report = OpenReport { replaced: true, ..OpenReport::default() };
    let salvaged = rebuild_from(place, &mut report)?;
    if report.lost_events > 0 || salvaged.is_damaged {
        report.damage.get_or_insert_with(|| BAD_PAGES.to_owned());
        report.damaged_file = Some(place.install_beside_damaged(now)?);
    } else {
        place.install()?;
    }
    place.condemned.store(false, Ordering::Release);
    let (database, state) = open_existing(place, false)?;
    Ok((database, state, report))
}

/// An empty store in memory.
pub(super) fn in_memory(options: &StoreOptions, state: &State) -> Result<OpenDatabase, StoreError> {
    guarded(|| {
        let db = options.builder().create_with_backend(redb::backends::InMemoryBackend::new())?;
        let transaction = schema::begin(&db)?;
        transaction.open_table(CHUNKS)?;
        transaction.open_table(DEAD)?;
        schema::write_state(&transaction, state)?;
        transaction.commit()?;
        Ok(OpenDatabase { db, file: None })
    })
}

fn create(place: &StoreDir, report: &mut OpenReport) -> Result<(), StoreError> {
    report.fresh = true;
    let mut state = State::default();
    if let Some(witness) = place.options.witness {
        // The file is gone, and with it what the status page says it contained.
        state.ledger = witness;
        state.ledger.recount(0, 0, 0);
        report.lost_events = state.ledger.damaged.saturating_sub(witness.damaged);
    }
    Rebuild::begin(place)?.finish(&place.options.project, state)?;
    place.install()
}

/// Builds a finished file from what can be read of the present one, which is not changed.
fn rebuild_from(place: &StoreDir, report: &mut OpenReport) -> Result<Salvaged, StoreError> {
    let mut salvage = Salvage::open(place)?;
    let meta = salvage.meta()?;
    meta.refuse_foreign(&place.options.project)?;
    let mut rebuild = Rebuild::begin(place)?;
    let mut salvaged = salvage.copy_into(&mut rebuild)?;
    // Of a row that is torn they are fewer than its head says.
    salvaged.unsure_events = salvaged.unsure_events.min(rebuild.found.ledger.queued_events);

    // Without its state, the file has no epoch either. An arena that was checkpointed is marked free in the arena
    // itself.
    let mut state =
        meta.state.unwrap_or_else(|| State { ledger: place.options.witness.unwrap_or_default(), ..State::default() });
    let damaged_before = state.ledger.damaged;
    let found = &rebuild.found.ledger;
    state.ledger.recount(found.queued_events, found.queued_bytes, found.accepted);
    report.salvaged_events = found.queued_events;
    report.lost_events = state.ledger.damaged.saturating_sub(damaged_before);
    if salvaged.unsure_events > 0 {
        state.ledger.lose_hidden(salvaged.torn_events.saturating_sub(report.lost_events));
        report.lost_events = state.ledger.damaged.saturating_sub(damaged_before);
    }
    report.lost_events = report.lost_events.saturating_add(state.ledger.lose_dead(salvaged.dead_lost));
    report.doubt = doubt(&salvaged);
    rebuild.finish(&place.options.project, state)?;
    Ok(salvaged)
}

/// What the counts do not say: if something came back that had been removed, as many others may be missing unnoticed.
fn doubt(salvaged: &Salvaged) -> Option<String> {
    let what = match (salvaged.unsure_events, salvaged.has_unsure_dead) {
        (0, false) => return None,
        (0, true) => "some dead letters are".to_owned(),
        (events, false) => format!("{events} of the saved events are"),
        (events, true) => format!("{events} of the saved events and some dead letters are"),
    };
    Some(format!(
        "{what} from pages that the newest state of the file does not name: they may have been delivered or removed before, \
         and as many others may be lost"
    ))
}

pub(super) fn open_existing(place: &StoreDir, check_integrity: bool) -> Result<(OpenDatabase, State), StoreError> {
    let file = place.disk.open(&place.queue(), Open::Existing)?;
    if file.len()? == 0 {
        // The database would initialize an empty file, but a store never has this name before it is complete.
        return Err(StoreError::damaged("the file is empty"));
    }
    let file = StoreFile::held(file, Arc::clone(&place.condemned))?;
    let mut builder = place.options.builder();
    builder.set_check_integrity_on_open(check_integrity);
    let db = guarded(|| Ok(builder.create_with_backend(file.clone())?))?;
    let vetted = guarded(|| vet(&db, &place.options.project));
    let released = vetted.and_then(|state| {
        file.release()?;
        Ok(state)
    });
    match released {
        Ok(state) => Ok(OpenDatabase::with(db, file, state)),
        Err(error) => {
            // What closing would write is held and dropped.
            let _ = guarded(|| Ok(db.close()?));
            Err(error)
        }
    }
}

/// Why the finished file of an interrupted replacement must not replace the store, which is still there. Every page of it
/// is verified; nothing is written. `project` is that of the queue; without it, the file may belong to any.
pub(super) fn objection(place: &StoreDir, project: Option<&Project>) -> Result<Option<String>, StoreError> {
    if place.options.unreadable {
        return Ok(Some("several processes in a row died while they opened the queue".to_owned()));
    }
    let replacement = match state_of_whole(place, &place.ready(), project) {
        Ok(state) => state,
        // A full disk, or a process without a free descriptor, says nothing about this file.
        Err(error @ (StoreError::NoSpace(_) | StoreError::Forked)) => return Err(error),
        Err(StoreError::Io(error)) if is_of_the_machine(&error) => return Err(StoreError::Io(error)),
        Err(error) => return Ok(Some(in_full(&error))),
    };
    // The replacement was built from the store, so its epoch and its highest sequence number are not below the store's,
    // unless it is a file of an earlier time. Its other counts may be lower: salvage queues events again that it finds.
    let known = |state: &State| [state.epoch, state.ledger.accepted];
    let store = Salvage::open(place)?.meta()?.state;
    let is_older = store.is_some_and(|store| known(&replacement).iter().zip(known(&store)).any(|(own, of)| *own < of));
    Ok(is_older.then(|| "it is older than the store that it was to replace".to_owned()))
}

/// The state of the file at `path`, of which every page is verified. What the database would write stays in memory.
pub(super) fn state_of_whole(place: &StoreDir, path: &Path, project: Option<&Project>) -> Result<State, StoreError> {
    let file = place.disk.open(path, Open::ReadOnly)?;
    if file.len()? == 0 {
        return Err(StoreError::damaged("the file is empty"));
    }
    let file = StoreFile::held(file, Arc::default())?;
    let mut builder = place.options.builder();
    builder.set_check_integrity_on_open(true);
    let db = guarded(|| Ok(builder.create_with_backend(file)?))?;
    let vetted = guarded(|| {
        let meta = schema::read_meta(&db)?;
        let own = meta.identity.as_ref().map(|(own, _)| own);
        let project = project.or(own).ok_or_else(|| {
            StoreError::damaged("the row that says whose events the file contains is missing or damaged")
        })?;
        vet(&db, project)
    });
    let _ = guarded(|| Ok(db.close()?));
    vetted
}

/// Checks that the file is a complete store of this project, and returns its state.
pub(super) fn vet(db: &Database, project: &Project) -> Result<State, StoreError> {
    let meta = schema::read_meta(db)?;
    meta.refuse_foreign(project)?;
    let state = meta.complete()?;
    let transaction = db.begin_read()?;
    transaction.open_table(DEAD)?;
    if transaction.open_table(CHUNKS)?.len()? != state.rows {
        return Err(StoreError::damaged("it holds fewer or more rows than were written"));
    }
    Ok(state)
}

/// An error followed by its causes.
pub(super) fn in_full(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Cache for the few pages that are read.
const CACHE_BYTES: usize = 64 * 1024;

/// The project of the store in `dir`, if it can be read. Does not change the file: what the database would write stays
/// in memory. While the owner has the store open, the result may be `None`.
pub(crate) fn identify(disk: &Disk, dir: &Path) -> Option<Project> {
    let identity = without_opening(disk, dir, |db| Ok(schema::read_meta(db)?.identity))?;
    identity.map(|(project, _)| project)
}

/// What `Store::put_meta` stored under `name` in the store in `dir`; otherwise like [`identify`].
#[cfg(feature = "inspect")]
pub(crate) fn meta_of(disk: &Disk, dir: &Path, name: &str) -> Option<Vec<u8>> {
    without_opening(disk, dir, |db| schema::read_entry(db, name)).flatten()
}

fn without_opening<T>(disk: &Disk, dir: &Path, read: impl Fn(&Database) -> Result<T, StoreError>) -> Option<T> {
    let file = disk.open(&dir.join(QUEUE), Open::Existing).ok()?;
    if file.len().ok()? == 0 {
        return None;
    }
    let backend = StoreFile::held(file, Arc::default()).ok()?;
    let found = guarded(|| read(&Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?));
    found.ok()
}
