//! Reading: each call opens a read transaction and closes it before it returns, so that no reader ever holds pages back from being
//! reused, nor stands in the way of a compaction.

use std::ops::Bound;

use redb::{Database, ReadableDatabase, ReadableTable};

use super::rows::{self, ChunkRow};
use super::tables::{CHUNKS, DEAD};
use super::{Chunk, ChunkKey, DeadRecord, Removal, StoreError};
use crate::sys::clock::WallNanos;

/// A stretch of a lane.
#[derive(Debug, Default)]
pub(crate) struct Read {
    /// Whole chunks, oldest first.
    pub(crate) chunks: Vec<Chunk>,
    /// Damaged rows met on the way.
    pub(crate) damaged: Vec<DamagedRow>,
    /// Where to read on; `None` if nothing was found.
    pub(crate) last: Option<ChunkKey>,
}

/// A row that fails its checks.
#[derive(Debug)]
pub(crate) struct DamagedRow {
    /// The row.
    pub(crate) key: ChunkKey,
    /// How many records it had, if its head still says so.
    #[cfg_attr(not(test), expect(dead_code, reason = "the store counts for itself; tests look"))]
    pub(crate) count: Option<u32>,
    /// The records that are whole.
    pub(crate) salvaged: Option<Chunk>,
}

impl DamagedRow {
    /// Replaces the row by what was saved of it. The store itself counts what was not.
    pub(crate) fn removal(self) -> Removal {
        Removal { key: self.key, keep: self.salvaged, delivered: 0, dead_lettered: 0, evicted: 0 }
    }
}

/// Dead records, and how many more could not be read.
#[derive(Debug, Default)]
pub(crate) struct DeadRead {
    /// Oldest first.
    pub(crate) records: Vec<DeadRecord>,
    /// Rows that fail their checks.
    pub(crate) damaged: u64,
    /// Where to read on; `None` if nothing was found.
    pub(crate) last: Option<u64>,
}

pub(super) fn read(db: &Database, lane: u8, after: Option<ChunkKey>, max_bytes: usize) -> Result<Read, StoreError> {
    let table = db.begin_read()?.open_table(CHUNKS)?;
    let first = rows::chunk_key(ChunkKey { lane, first_seq: 0 });
    let last = rows::chunk_key(ChunkKey { lane, first_seq: u64::MAX });
    let after = after.filter(|after| after.lane == lane).map(rows::chunk_key);
    let from = after.as_ref().map_or(Bound::Included(first.as_slice()), |after| Bound::Excluded(after.as_slice()));
    if after == Some(last) {
        return Ok(Read::default());
    }
    let mut read = Read::default();
    let mut bytes: usize = 0;
    for row in table.range::<&[u8]>((from, Bound::Included(last.as_slice())))? {
        let (key, value) = row?;
        let (key, value) = (key.value(), value.value());
        bytes = bytes.saturating_add(value.len());
        if read.last.is_some() && bytes > max_bytes {
            break;
        }
        let Some(key) = rows::parse_chunk_key(key) else {
            return Err(StoreError::damaged("a row has a key that this library does not write"));
        };
        read.last = Some(key);
        match rows::parse_chunk(key, value) {
            ChunkRow::Whole(chunk) => read.chunks.push(chunk),
            ChunkRow::Torn(chunk) => {
                read.damaged.push(DamagedRow { key, count: Some(chunk.count), salvaged: chunk.salvage() });
            }
            ChunkRow::Lost => read.damaged.push(DamagedRow { key, count: None, salvaged: None }),
        }
    }
    if after.is_none() && read.last.is_none() {
        read.damaged = strays(&table, lane)?;
    }
    Ok(read)
}

/// Damaged rows at the ends of the table. A row under a damaged key belongs to no lane that anybody reads; where a lane seems empty it
/// is looked for, so that a queue does not stay half full for ever.
fn strays(table: &impl ReadableTable<&'static [u8], &'static [u8]>, lane: u8) -> Result<Vec<DamagedRow>, StoreError> {
    let mut strays: Vec<DamagedRow> = Vec::new();
    for (key, value) in [table.first()?, table.last()?].into_iter().flatten() {
        let key = rows::parse_chunk_key(key.value())
            .ok_or_else(|| StoreError::damaged("a row has a key that this library does not write"))?;
        if key.lane == lane {
            return Err(StoreError::damaged("a row is not where its key says"));
        }
        let is_known = strays.iter().any(|stray| stray.key == key);
        if !is_known && rows::chunk_head(key, value.value()).is_none() {
            strays.push(DamagedRow { key, count: None, salvaged: None });
        }
    }
    Ok(strays)
}

pub(super) fn oldest(
    db: &Database,
    lane: u8,
    leave_out: &dyn Fn(ChunkKey) -> bool,
) -> Result<Option<(ChunkKey, WallNanos)>, StoreError> {
    let table = db.begin_read()?.open_table(CHUNKS)?;
    let first = rows::chunk_key(ChunkKey { lane, first_seq: 0 });
    let last = rows::chunk_key(ChunkKey { lane, first_seq: u64::MAX });
    for row in table.range(first.as_slice()..=last.as_slice())? {
        let (key, value) = row?;
        let key = rows::parse_chunk_key(key.value()).filter(|key| !leave_out(*key));
        // A row whose head is gone does not know its age; the next one is hardly younger.
        if let Some((key, head)) = key.and_then(|key| Some((key, rows::chunk_head(key, value.value())?))) {
            return Ok(Some((key, head.checkpointed_at)));
        }
    }
    Ok(None)
}

pub(super) fn dead(db: &Database, after: Option<u64>, limit: usize, max_bytes: usize) -> Result<DeadRead, StoreError> {
    let table = db.begin_read()?.open_table(DEAD)?;
    let after = after.map(u64::to_be_bytes);
    let from = after.as_ref().map_or(Bound::Unbounded, |after| Bound::Excluded(after.as_slice()));
    let (mut read, mut bytes) = (DeadRead::default(), 0_usize);
    for row in table.range::<&[u8]>((from, Bound::Unbounded))?.take(limit) {
        let (key, value) = row?;
        let seq = key.value().first_chunk().map(|seq| u64::from_be_bytes(*seq));
        bytes = bytes.saturating_add(value.value().len());
        if read.last.is_some() && bytes > max_bytes {
            break;
        }
        read.last = seq.or(read.last);
        match seq.and_then(|seq| rows::parse_dead(seq, value.value())) {
            Some(record) => read.records.push(record),
            None => read.damaged += 1,
        }
    }
    Ok(read)
}

pub(super) fn dead_seqs(db: &Database) -> Result<Vec<u64>, StoreError> {
    let table = db.begin_read()?.open_table(DEAD)?;
    let mut seqs = Vec::new();
    for row in table.iter()? {
        seqs.extend(row?.0.value().first_chunk().map(|seq| u64::from_be_bytes(*seq)));
    }
    Ok(seqs)
}
