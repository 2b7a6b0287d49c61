//! Opening: create, open, or set aside and rebuild.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use redb::{Builder, Database, ReadableDatabase, ReadableTableMetadata};

use super::backend::{Condemned, StoreFile};
use super::guard::guarded;
use super::place::Place;
use super::rebuild::Rebuild;
use super::rows::State;
use super::salvage::Salvage;
use super::tables::{self, CHUNKS, DEAD};
use super::{Identity, Ledger, StoreError};
use crate::sys::clock::WallNanos;
use crate::sys::disk::Open;

/// No cache is larger than this, whatever the options say.
const CACHE_MOST: usize = 8 * 1024 * 1024;

/// How a store is opened.
#[derive(Clone, Debug)]
pub(crate) struct StoreOptions {
    /// Whose queue it is; a file of another project is refused.
    pub(crate) identity: Identity,
    /// Memory for pages; at most 8 MiB.
    pub(crate) cache_bytes: usize,
    /// Size of the reserve that lets acks through on a full disk; 0 for none.
    pub(crate) reserve_bytes: u64,
    /// What the dead records may take, in bytes; the oldest make room. The last one stays, however large.
    pub(crate) dead_bytes: u64,
    /// Verify every page first: after the previous owner died inside a call into the store.
    pub(crate) check_integrity: bool,
    /// Do not even try to open the file, but build a new one from its rows: whatever killed the previous owners there would kill
    /// this one too.
    pub(crate) untrusted: bool,
    /// Do not read the rows either: that has killed owners too. The file is kept aside as it is.
    pub(crate) unreadable: bool,
    /// The ledger as the status page last mirrored it after a commit of this store, if known.
    pub(crate) witness: Option<Ledger>,
}

impl StoreOptions {
    /// The database's own options.
    pub(super) fn builder(&self) -> Builder {
        let mut builder = Database::builder();
        builder.set_cache_size(self.cache_bytes.min(CACHE_MOST));
        builder
    }
}

/// What was found at open, or at reopen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenReport {
    /// There was no file, and one was made.
    pub(crate) fresh: bool,
    /// Where the damaged file went, and why it was set aside.
    pub(crate) damaged_file: Option<PathBuf>,
    /// Why, in words.
    pub(crate) damage: Option<String>,
    /// The file could not be synced, and was replaced by a copy.
    pub(crate) replaced: bool,
    /// Chunks found in the file that was set aside or replaced.
    pub(crate) salvaged_chunks: u64,
    /// Events in them.
    pub(crate) salvaged_events: u64,
    /// Events the ledger newly counts as damaged.
    pub(crate) lost_events: u64,
    /// Neither the file nor the status page knew the ledger: everything not found counts as damaged, delivered events too.
    pub(crate) ledger_unknown: bool,
    /// Sequence numbers that the status page had seen checkpointed and the file has not: somebody put an older file in its place.
    pub(crate) behind_witness: u64,
}

/// A store's file, open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) db: Database,
    /// `None` in memory.
    pub(super) file: Option<StoreFile>,
    #[cfg_attr(not(test), expect(dead_code, reason = "read by tests"))]
    pub(super) identity: Identity,
    pub(super) state: State,
}

/// Opens the store of `place`, whatever state it is in.
pub(super) fn open(place: &Place, condemned: &Condemned, now: WallNanos) -> Result<(Opened, OpenReport), StoreError> {
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

/// Copies a file that could not be synced into a new one, which takes its place only when it is durable. Was something missing, the
/// old file is kept beside it.
pub(super) fn replace(
    place: &Place,
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
        let transaction = tables::begin(&db)?;
        transaction.open_table(CHUNKS)?;
        transaction.open_table(DEAD)?;
        tables::write_state(&transaction, &state)?;
        transaction.commit()?;
        Ok(Opened { db, file: None, identity: options.identity.clone(), state })
    })
}

fn create(place: &Place, report: &mut OpenReport) -> Result<(), StoreError> {
    report.fresh = true;
    let mut state = State::default();
    if let Some(witness) = place.options.witness {
        // A file that is gone held what the status page says it held.
        state.ledger = witness;
        state.ledger.recount(0, 0, 0);
        report.lost_events = state.ledger.damaged.saturating_sub(witness.damaged);
    }
    Rebuild::begin(place)?.finish(&place.options.identity, state)?;
    place.install()
}

/// Builds a finished file from what can be read of the present one, and leaves the latter as it is.
fn rebuild_from(place: &Place, report: &mut OpenReport) -> Result<(), StoreError> {
    let mut salvage = Salvage::open(place);
    let meta = salvage.meta();
    meta.refuse_foreign(&place.options.identity.project_hash)?;
    let mut rebuild = Rebuild::begin(place)?;
    salvage.copy_into(&mut rebuild)?;
    let found = rebuild.totals();

    report.ledger_unknown = meta.state.is_none() && place.options.witness.is_none();
    // Without its state the file does not know its epochs either. An arena that was checkpointed is marked free by itself.
    let mut state =
        meta.state.unwrap_or_else(|| State { ledger: place.options.witness.unwrap_or_default(), ..State::default() });
    let damaged_before = state.ledger.damaged;
    state.ledger.recount(found.events, found.bytes, found.highest_seq);
    report.salvaged_chunks = found.rows;
    report.salvaged_events = found.events;
    report.lost_events = state.ledger.damaged.saturating_sub(damaged_before);
    rebuild.finish(&place.options.identity, state)
}

fn open_existing(place: &Place, check_integrity: bool, condemned: &Condemned) -> Result<Opened, StoreError> {
    let (db, file) = open_held(place, Open::Existing, check_integrity, condemned)?;
    let vetted = guarded(|| vet(&db, &place.options.identity.project_hash));
    let released = vetted.and_then(|(identity, state)| {
        file.release()?;
        Ok((identity, state))
    });
    match released {
        Ok((identity, state)) => Ok(Opened::new(db, file, identity, state)),
        Err(error) => {
            // What closing would write is held, and gone with it.
            let _ = guarded(|| Ok(db.close()?));
            Err(error)
        }
    }
}

/// A database that its owner had open before.
pub(super) fn opened(db: Database, file: StoreFile, project_hash: &[u8; 32]) -> Result<Opened, StoreError> {
    let (identity, state) = vet(&db, project_hash)?;
    Ok(Opened::new(db, file, identity, state))
}

impl Opened {
    fn new(db: Database, file: StoreFile, identity: Identity, mut state: State) -> Self {
        // No more than the file has, where nobody has counted.
        state.row_bytes = state.row_bytes.min(file.allocated_bytes().unwrap_or(u64::MAX));
        Self { db, file: Some(file), identity, state }
    }
}

fn open_held(
    place: &Place,
    how: Open,
    check_integrity: bool,
    condemned: &Condemned,
) -> Result<(Database, StoreFile), StoreError> {
    let file = place.disk.open(&place.queue(), how)?;
    if file.len()? == 0 {
        // The database would make itself at home; but a store never appears under this name before it is complete.
        return Err(StoreError::damaged("the file is empty"));
    }
    let backend = StoreFile::held(file, Condemned::clone(condemned))?;
    let mut builder = place.options.builder();
    builder.set_check_integrity_on_open(check_integrity);
    let db = guarded(|| Ok(builder.create_with_backend(backend.clone())?))?;
    Ok((db, backend))
}

fn vet(db: &Database, project_hash: &[u8; 32]) -> Result<(Identity, State), StoreError> {
    let meta = tables::read_meta(db)?;
    meta.refuse_foreign(project_hash)?;
    let (identity, state) = meta.complete()?;
    let transaction = db.begin_read()?;
    transaction.open_table(DEAD)?;
    if transaction.open_table(CHUNKS)?.len()? != state.rows {
        return Err(StoreError::damaged("it holds fewer or more rows than were written"));
    }
    Ok((identity, state))
}

/// An error with what caused it.
fn in_full(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
