//! Building a new store file: an empty one, or one from what was left of another.

use redb::Database;

use super::backend::StoreFile;
use super::guard::guarded;
use super::place::Place;
use super::rows::{self, State};
use super::tables::{self, CHUNKS, DEAD};
use super::{Chunk, DeadRecord, Identity, StoreError};
use crate::sys::crash_point;
use crate::sys::disk::Open;

/// Rows written by one transaction, so that a rebuild takes memory by this and not by the queue's size.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// A file being built. Until [`Rebuild::finish`] has returned it has no name that anybody would open.
#[derive(Debug)]
pub(super) struct Rebuild {
    db: Database,
    file: StoreFile,
    chunks: Vec<Chunk>,
    dead: Vec<DeadRecord>,
    waiting_bytes: usize,
    totals: Totals,
}

/// What was put into it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) rows: u64,
    pub(super) events: u64,
    pub(super) bytes: u64,
    pub(super) page_bytes: u64,
    pub(super) dead_bytes: u64,
    pub(super) highest_seq: u64,
}

impl Rebuild {
    /// Starts an empty file.
    pub(super) fn begin(place: &Place) -> Result<Self, StoreError> {
        place.disk.remove_file(&place.unfinished())?;
        let file = StoreFile::direct(place.disk.open(&place.unfinished(), Open::CreateNew)?);
        let db = guarded(|| Ok(place.options.builder().create_with_backend(file.clone())?))?;
        Ok(Self { db, file, chunks: Vec::new(), dead: Vec::new(), waiting_bytes: 0, totals: Totals::default() })
    }

    /// Adds a chunk whose highest sequence number is `last_seq`.
    pub(super) fn push(&mut self, chunk: Chunk, last_seq: u64) -> Result<(), StoreError> {
        let bytes = rows::CHUNK_HEAD.saturating_add(chunk.frames.len());
        self.totals.rows += 1;
        self.totals.events = self.totals.events.saturating_add(u64::from(chunk.count));
        self.totals.bytes = self.totals.bytes.saturating_add(bytes as u64);
        self.totals.page_bytes = self.totals.page_bytes.saturating_add(rows::page_bytes(bytes));
        self.totals.highest_seq = self.totals.highest_seq.max(last_seq);
        self.chunks.push(chunk);
        self.made_heavier(bytes)
    }

    /// Adds a dead record.
    pub(super) fn dead_letter(&mut self, dead: DeadRecord) -> Result<(), StoreError> {
        let bytes = rows::dead_len(&dead);
        self.totals.dead_bytes = self.totals.dead_bytes.saturating_add(bytes as u64);
        self.totals.highest_seq = self.totals.highest_seq.max(dead.seq);
        self.dead.push(dead);
        self.made_heavier(bytes)
    }

    /// What was put into it so far.
    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// Writes the last rows and those that make the file a store, closes it and makes it durable.
    pub(super) fn finish(mut self, identity: &Identity, mut state: State) -> Result<(), StoreError> {
        self.write_waiting()?;
        state.rows = self.totals.rows;
        state.row_bytes = self.totals.page_bytes;
        state.dead_bytes = Some(self.totals.dead_bytes);
        let Self { db, file, .. } = self;
        guarded(|| {
            let transaction = tables::begin(&db)?;
            // Every table exists from the start: a table that is missing later is damage.
            transaction.open_table(CHUNKS)?;
            transaction.open_table(DEAD)?;
            tables::write_identity(&transaction, identity)?;
            tables::write_state(&transaction, &state)?;
            transaction.commit()?;
            Ok(db.close()?)
        })?;
        redb::StorageBackend::sync_data(&file)?;
        crash_point::reach("store.built");
        Ok(())
    }

    fn made_heavier(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes);
        if self.waiting_bytes < BATCH_BYTES { Ok(()) } else { self.write_waiting() }
    }

    fn write_waiting(&mut self) -> Result<(), StoreError> {
        guarded(|| {
            let transaction = self.db.begin_write()?;
            {
                let mut table = transaction.open_table(CHUNKS)?;
                for chunk in &self.chunks {
                    table.insert(rows::chunk_key(chunk.key).as_slice(), rows::chunk_value(chunk).as_slice())?;
                }
                let mut table = transaction.open_table(DEAD)?;
                for dead in &self.dead {
                    table.insert(dead.seq.to_be_bytes().as_slice(), rows::dead_value(dead).as_slice())?;
                }
            }
            Ok(transaction.commit()?)
        })?;
        self.chunks.clear();
        self.dead.clear();
        self.waiting_bytes = 0;
        Ok(())
    }
}
