//! Writing the whole store anew without some of its records, so that their bytes are in no page of the file.
//!
//! Removing a record by a transaction leaves its bytes in a free page, possibly for ever. Here the rows that are kept are
//! copied into a new file, which then replaces the old one. A kill before that leaves the store as it was.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use redb::{Database, ReadableDatabase, ReadableTable};

use super::files::StoreDir;
use super::rows::{Chunk, DeadRecord, State};
use super::salvage::Rebuild;
use super::schema::{self, CHUNKS, ChunkRow, DEAD};
use super::{OpenDatabase, Store, open};
use crate::queue::error::{StoreError, guarded};
use crate::queue::frame;

/// Decides about a record, from its body, and about a dead letter, which is given in addition.
pub(crate) type Keeps<'a> = &'a mut dyn FnMut(&[u8], Option<&DeadRecord>) -> bool;

/// What a rewrite left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// Queued events, now counted as evicted.
    pub(crate) events: u64,
    /// Dead letters. The ledger goes on counting them.
    pub(crate) dead: u64,
    /// Queued events and dead letters that could not be read, now counted as damaged.
    pub(crate) damaged: u64,
}

impl Store {
    /// Replaces the file by a new one without the records that `keeps` rejects. Entries of the owner are left out too.
    /// After an error before the replacement, the store is as it was.
    pub(crate) fn rewrite(&self, keeps: Keeps<'_>) -> Result<Rewritten, StoreError> {
        self.check_process()?;
        let _writer = self.writer();
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        let place = self.place_in_reach()?.ok_or(StoreError::Latched)?;
        let Some(open) = opened.as_ref().filter(|_| !self.is_latched()) else { return Err(StoreError::Latched) };
        let before = self.committed().clone();
        let built = guarded(|| build(place, &open.db, before, keeps));
        let rewritten = built.inspect_err(|error| {
            // It would be removed at the next open; here it also gives its space back.
            let _ = place.disk.remove_file(&place.unfinished());
            self.note(error);
        })?;
        // From here on an error leaves the store closed, with the old file or the new one in its place.
        self.latched.store(true, Ordering::Release);
        opened.take().and_then(OpenDatabase::close);
        place.install()?;
        let (database, state) = open::open_existing(place, false)?;
        *opened = Some(database);
        *self.committed() = state;
        self.latched.store(false, Ordering::Release);
        Ok(rewritten)
    }
}

fn build(place: &StoreDir, db: &Database, mut state: State, keeps: Keeps<'_>) -> Result<Rewritten, StoreError> {
    let (mut rebuild, mut rewritten) = (Rebuild::begin(place)?, Rewritten::default());
    let transaction = db.begin_read()?;
    for row in transaction.open_table(CHUNKS)?.iter()? {
        let (key, value) = row?;
        let Some(key) = schema::parse_chunk_key(key.value()) else { continue };
        // What is missing in a damaged row is charged below, with the rows of which nothing is left.
        let chunk = match schema::parse_chunk(key, value.value()) {
            ChunkRow::Whole(chunk) => Some(chunk),
            ChunkRow::Torn(chunk) => chunk.salvage(),
            ChunkRow::Lost => None,
        };
        let Some((chunk, rejected)) = chunk.map(|chunk| without_rejected(chunk, keeps)) else { continue };
        rewritten.events = rewritten.events.saturating_add(rejected);
        chunk.map_or(Ok(()), |chunk| rebuild.push(chunk))?;
    }
    let mut dead_lost = 0;
    for row in transaction.open_table(DEAD)?.iter()? {
        let (key, value) = row?;
        let Some(dead) = schema::dead_of(key.value(), value.value()) else {
            dead_lost += 1;
            continue;
        };
        if keeps(&dead.body, Some(&dead)) {
            rebuild.dead_letter(dead)?;
        } else {
            rewritten.dead += 1;
        }
    }
    let damaged_before = state.ledger.damaged;
    state.ledger.evicted = state.ledger.evicted.saturating_add(rewritten.events);
    let found = &rebuild.found.ledger;
    state.ledger.recount(found.queued_events, found.queued_bytes, found.accepted);
    state.ledger.lose_dead(dead_lost);
    rewritten.damaged = state.ledger.damaged.saturating_sub(damaged_before);
    rebuild.finish(&place.options.project, state)?;
    Ok(rewritten)
}

/// The chunk without the records that `keeps` rejects, and their number.
fn without_rejected(chunk: Chunk, keeps: Keeps<'_>) -> (Option<Chunk>, u64) {
    let records = frame::frames(&chunk.frames, chunk.salt);
    let rejected: Vec<u64> = records.filter(|(_, body)| !keeps(body, None)).map(|(head, _)| head.seq).collect();
    if rejected.is_empty() {
        return (Some(chunk), 0);
    }
    (chunk.retain(|seq| rejected.binary_search(&seq).is_err()), rejected.len() as u64)
}
