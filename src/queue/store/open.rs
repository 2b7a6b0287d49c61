//! Opening a store: its file is created, opened, or replaced by one that is rebuilt from its readable rows.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use redb::{Database, ReadableDatabase, ReadableTableMetadata};

use super::backend::{Condemned, StoreFile};
use super::files::{QUEUE, StoreDir, StoreOptions};
use super::rows::{Identity, State};
use super::salvage::{Rebuild, Salvage};
use super::schema::{self, CHUNKS, DEAD};
use crate::queue::error::{StoreError, guarded};
use crate::sys::clock::WallNanos;
use crate::sys::disk::{Disk, Open};

/// What was found when the store was opened or reopened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenReport {
    /// There was no file; a new one was created.
    pub(crate) fresh: bool,
    /// The path to which a damaged file was moved.
    pub(crate) damaged_file: Option<PathBuf>,
    /// What was wrong with it.
    pub(crate) damage: Option<String>,
    /// The file could not be synced and was replaced by a copy.
    pub(crate) replaced: bool,
    /// The number of chunks that were recovered from the file that was replaced.
    pub(crate) salvaged_chunks: u64,
    /// The number of events in them.
    pub(crate) salvaged_events: u64,
    /// Events that the ledger newly counts as damaged.
    pub(crate) lost_events: u64,
    /// Neither the file nor the status page had the ledger: everything that was not found counts as damaged, delivered
    /// events too.
    pub(crate) ledger_unknown: bool,
    /// How many sequence numbers the file is behind the status page: an older file was put in its place.
    pub(crate) behind_witness: u64,
}

/// An open database with its state.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) db: Database,
    /// `None` in memory.
    pub(super) file: Option<StoreFile>,
    #[cfg_attr(not(test), expect(dead_code, reason = "read by tests"))]
    pub(super) identity: Identity,
    pub(super) state: State,
}

/// Opens the store in `place`, whatever state its file is in.
pub(super) fn open(
    place: &StoreDir,
    condemned: &Condemned,
    now: WallNanos,
) -> Result<(Opened, OpenReport), StoreError> {
    let mut report = OpenReport { damaged_file: place.finish_interrupted(now)?, ..OpenReport::default() };
    if !place.disk.exists(&place.queue())? {
        create(place, &mut report)?;
        return Ok((open_existing(place, false, condemned)?, report));
    }
    let opened = if place.options.untrusted {
        Err(StoreError::damaged("several processes in a row died while they opened it"))
    } else {
        open_existing(place, place.options.check_integrity, condemned)
    };
    match opened {
        Ok(opened) => {
            let witnessed = place.options.witness.map_or(0, |witness| witness.accepted);
            report.behind_witness = witnessed.saturating_sub(opened.state.ledger.accepted);
            Ok((opened, report))
        }
        Err(error) if error.is_damage() => {
            report.damage = Some(in_full(&error));
            rebuild_from(place, &mut report)?;
            report.damaged_file = Some(place.install_beside_damaged(now)?);
            Ok((open_existing(place, false, condemned)?, report))
        }
        Err(error) => Err(error),
    }
}

/// Replaces a file that could not be synced by a copy, which gets the name only when it is durable. If something was
/// missing, the old file is kept.
pub(super) fn replace(
    place: &StoreDir,
    condemned: &Condemned,
    now: WallNanos,
) -> Result<(Opened, OpenReport), StoreError> {
    let mut report = OpenReport { replaced: true, ..OpenReport::default() };
    rebuild_from(place, &mut report)?;
    if report.lost_events > 0 {
        report.damaged_file = Some(place.install_beside_damaged(now)?);
    } else {
        place.install()?;
    }
    condemned.store(false, Ordering::Release);
    Ok((open_existing(place, false, condemned)?, report))
}

/// An empty store in memory.
pub(super) fn in_memory(options: &StoreOptions, state: State) -> Result<Opened, StoreError> {
    guarded(|| {
        let db = options.builder().create_with_backend(redb::backends::InMemoryBackend::new())?;
        let transaction = schema::begin(&db)?;
        transaction.open_table(CHUNKS)?;
        transaction.open_table(DEAD)?;
        schema::write_state(&transaction, &state)?;
        transaction.commit()?;
        Ok(Opened { db, file: None, identity: options.identity.clone(), state })
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
    Rebuild::begin(place)?.finish(&place.options.identity, state)?;
    place.install()
}

/// Builds a finished file from what can be read of the present one, which is not changed.
fn rebuild_from(place: &StoreDir, report: &mut OpenReport) -> Result<(), StoreError> {
    let mut salvage = Salvage::open(place);
    let meta = salvage.meta();
    meta.refuse_foreign(&place.options.identity.project_hash)?;
    let mut rebuild = Rebuild::begin(place)?;
    salvage.copy_into(&mut rebuild)?;
    let found = rebuild.totals();

    report.ledger_unknown = meta.state.is_none() && place.options.witness.is_none();
    // Without its state, the file has no epoch either. An arena that was checkpointed is marked free in the arena
    // itself.
    let mut state =
        meta.state.unwrap_or_else(|| State { ledger: place.options.witness.unwrap_or_default(), ..State::default() });
    let damaged_before = state.ledger.damaged;
    state.ledger.recount(found.events, found.bytes, found.highest_seq);
    report.salvaged_chunks = found.rows;
    report.salvaged_events = found.events;
    report.lost_events = state.ledger.damaged.saturating_sub(damaged_before);
    rebuild.finish(&place.options.identity, state)
}

fn open_existing(place: &StoreDir, check_integrity: bool, condemned: &Condemned) -> Result<Opened, StoreError> {
    let (db, file) = open_held(place, Open::Existing, check_integrity, condemned)?;
    let vetted = guarded(|| vet(&db, &place.options.identity.project_hash));
    let released = vetted.and_then(|(identity, state)| {
        file.release()?;
        Ok((identity, state))
    });
    match released {
        Ok((identity, state)) => Ok(Opened::new(db, file, identity, state)),
        Err(error) => {
            // What closing would write is held and dropped.
            let _ = guarded(|| Ok(db.close()?));
            Err(error)
        }
    }
}

/// For a database that this process had open before.
pub(super) fn opened(db: Database, file: StoreFile, project_hash: &[u8; 32]) -> Result<Opened, StoreError> {
    let (identity, state) = vet(&db, project_hash)?;
    Ok(Opened::new(db, file, identity, state))
}

impl Opened {
    fn new(db: Database, file: StoreFile, identity: Identity, mut state: State) -> Self {
        // Where the bytes were not counted, no more than the file takes.
        state.row_bytes = state.row_bytes.min(file.allocated_bytes().unwrap_or(u64::MAX));
        Self { db, file: Some(file), identity, state }
    }
}

fn open_held(
    place: &StoreDir,
    how: Open,
    check_integrity: bool,
    condemned: &Condemned,
) -> Result<(Database, StoreFile), StoreError> {
    let file = place.disk.open(&place.queue(), how)?;
    if file.len()? == 0 {
        // The database would initialize an empty file, but a store never has this name before it is complete.
        return Err(StoreError::damaged("the file is empty"));
    }
    let backend = StoreFile::held(file, Condemned::clone(condemned))?;
    let mut builder = place.options.builder();
    builder.set_check_integrity_on_open(check_integrity);
    let db = guarded(|| Ok(builder.create_with_backend(backend.clone())?))?;
    Ok((db, backend))
}

fn vet(db: &Database, project_hash: &[u8; 32]) -> Result<(Identity, State), StoreError> {
    let meta = schema::read_meta(db)?;
    meta.refuse_foreign(project_hash)?;
    let (identity, state) = meta.complete()?;
    let transaction = db.begin_read()?;
    transaction.open_table(DEAD)?;
    if transaction.open_table(CHUNKS)?.len()? != state.rows {
        return Err(StoreError::damaged("it holds fewer or more rows than were written"));
    }
    Ok((identity, state))
}

/// An error followed by its causes.
fn in_full(error: &StoreError) -> String {
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
pub(crate) fn identify(disk: &Disk, dir: &Path) -> Option<Identity> {
    let file = disk.open(&dir.join(QUEUE), Open::Existing).ok()?;
    if file.len().ok()? == 0 {
        return None;
    }
    let backend = StoreFile::held(file, Condemned::default()).ok()?;
    let identity = guarded(|| {
        let db = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?;
        Ok(schema::read_meta(&db)?.identity)
    });
    identity.ok()?
}
