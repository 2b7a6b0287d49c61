//! Transactions: what one write changes, and the reads that run beside it.
//!
//! A commit can report a failure and have taken effect, so every change can be applied twice: a checkpoint is
//! recognized by its epoch, a removal applies only to the row that it was made for, and a dead record replaces itself.
//!
//! A read opens a transaction and closes it before it returns. A reader therefore never keeps pages from being reused,
//! and never delays a compaction.

use std::ops::Bound;

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table};

use super::Store;
use super::rows::{Chunk, ChunkKey, DeadRecord, State, page_bytes};
use super::schema::{self, CHUNKS, ChunkRow, DEAD};
use crate::queue::error::StoreError;
use crate::sys::clock::WallNanos;

/// The changes of one transaction. All of them are applied, or none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// New rows. They add themselves to the queued events of the ledger.
    pub(crate) insert: Vec<Chunk>,
    /// Rows that are removed or reduced.
    pub(crate) remove: Vec<Removal>,
    /// Records that become dead letters. They are counted by [`Removal::dead_lettered`].
    pub(crate) dead_letter: Vec<DeadRecord>,
    /// The sequence numbers of dead letters to remove. The ledger goes on counting them.
    pub(crate) remove_dead: Vec<u64>,
    /// The epoch of the arena that this transaction checkpoints. If it is not newer than the last, the transaction
    /// fails and changes nothing. Without an epoch, a transaction that counts missing events must not be repeated.
    pub(crate) journal_epoch: Option<u64>,
    /// The new highest sequence number, if it is higher.
    pub(crate) accepted_up_to: u64,
    /// Events that were found damaged before they got into a row.
    pub(crate) damaged: u64,
    /// Events that were lost in a power cut before they got into a row.
    pub(crate) lost_unsynced: u64,
    /// The time before which nothing is sent, if it changes.
    pub(crate) next_attempt: Option<Option<WallNanos>>,
}

/// The removal of a row, or its replacement by a smaller one. `delivered`, `dead_lettered`, `evicted` and the records
/// of `keep` together are all readable records of the row; the others are damaged. If they are more than the row has,
/// another row has this key now, and it stays.
#[derive(Clone, Debug)]
pub(crate) struct Removal {
    pub(crate) key: ChunkKey,
    /// The remaining records, as a row.
    pub(crate) keep: Option<Chunk>,
    /// The number of records that were delivered.
    pub(crate) delivered: u32,
    /// The number of records that became dead letters.
    pub(crate) dead_lettered: u32,
    /// The number of records that were evicted.
    pub(crate) evicted: u32,
}

impl Removal {
    /// Replaces the row by `keep`, or removes it. The store counts all other records in it as damaged.
    pub(crate) fn keeping(key: ChunkKey, keep: Option<Chunk>) -> Self {
        Self { key, keep, delivered: 0, dead_lettered: 0, evicted: 0 }
    }
}

/// Side effects of a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Removals whose row was missing, or was another row. They are repetitions.
    pub(crate) stale_removals: u32,
    /// Events of damaged rows that are newly counted as damaged.
    pub(crate) damaged_events: u64,
}

impl Changes {
    /// Counts accepted events that are nowhere: as damaged if the machine has been up since they were accepted.
    pub(crate) fn count_missing(&mut self, events: u64, same_boot: bool) {
        (self.damaged, self.lost_unsynced) = if same_boot { (events, 0) } else { (0, events) };
    }

    /// Whether the transaction only makes the queue smaller, and may therefore use the reserve.
    pub(super) fn only_acks(&self) -> bool {
        self.insert.is_empty() && !(self.remove.is_empty() && self.remove_dead.is_empty())
    }
}

/// Applies the changes in one transaction and returns the new state. Afterwards the dead records take at most
/// `dead_bytes`.
pub(super) fn commit(
    db: &Database,
    before: &State,
    changes: &Changes,
    dead_bytes: u64,
) -> Result<(State, Applied), StoreError> {
    let mut state = before.clone();
    advance_epoch(&mut state, changes.journal_epoch)?;
    let mut applied = Applied::default();
    let transaction = schema::begin(db)?;
    {
        let mut chunks = transaction.open_table(CHUNKS)?;
        for removal in &changes.remove {
            remove(&mut chunks, removal, &mut state, &mut applied)?;
        }
        for chunk in &changes.insert {
            insert(&mut chunks, chunk, &mut state)?;
        }
        state.rows = chunks.len()?;
        let ledger = &mut state.ledger;
        ledger.accepted = ledger.accepted.max(changes.accepted_up_to);
        ledger.damaged = ledger.damaged.saturating_add(changes.damaged);
        ledger.lost_unsynced = ledger.lost_unsynced.saturating_add(changes.lost_unsynced);
        // Without a row, events that the ledger still counts as queued have vanished from the file.
        if chunks.first()?.is_none() && state.ledger.queued_events > 0 {
            charge_as_damaged(&mut state, &mut applied, u64::MAX);
            state.ledger.queued_bytes = 0;
        }
        if state.rows == 0 {
            state.row_bytes = 0;
        }
    }
    state.dead_bytes = Some(change_dead(&mut transaction.open_table(DEAD)?, changes, state.dead_bytes, dead_bytes)?);
    if let Some(next_attempt) = changes.next_attempt {
        state.next_attempt = next_attempt;
    }
    schema::write_state(&transaction, &state)?;
    transaction.commit()?;
    Ok((state, applied))
}

/// The most dead records. The oldest are removed first.
const DEAD_MAX: u64 = 1000;

/// Adds and removes dead records. Returns the bytes of all dead rows; `known` is that number before, if it was counted.
fn change_dead(dead: &mut RowTable<'_>, changes: &Changes, known: Option<u64>, most: u64) -> Result<u64, StoreError> {
    let mut bytes = known.map_or_else(|| count_dead(dead), Ok)?;
    for record in &changes.dead_letter {
        let value = schema::dead_value(record);
        bytes = bytes.saturating_add(value.len() as u64);
        let replaced = dead.insert(record.seq.to_be_bytes().as_slice(), value.as_slice())?;
        bytes = bytes.saturating_sub(replaced.map_or(0, |row| row.value().len() as u64));
    }
    for seq in &changes.remove_dead {
        let removed = dead.remove(seq.to_be_bytes().as_slice())?;
        bytes = bytes.saturating_sub(removed.map_or(0, |row| row.value().len() as u64));
    }
    // The ledger goes on counting dead records that are removed here.
    while dead.len()? > DEAD_MAX || (bytes > most && dead.len()? > 1) {
        let removed = dead.pop_first()?;
        bytes = bytes.saturating_sub(removed.map_or(0, |(_, row)| row.value().len() as u64));
    }
    Ok(if dead.is_empty()? { 0 } else { bytes })
}

/// Counts the bytes of a file whose version did not count them.
fn count_dead(dead: &RowTable<'_>) -> Result<u64, StoreError> {
    let mut bytes: u64 = 0;
    for row in dead.iter()? {
        bytes = bytes.saturating_add(row?.1.value().len() as u64);
    }
    Ok(bytes)
}

type RowTable<'txn> = Table<'txn, &'static [u8], &'static [u8]>;

fn advance_epoch(state: &mut State, given: Option<u64>) -> Result<(), StoreError> {
    let Some(given) = given else { return Ok(()) };
    if given <= state.epoch {
        return Err(StoreError::AlreadyCheckpointed { stored: state.epoch, given });
    }
    state.epoch = given;
    Ok(())
}

fn insert(table: &mut RowTable<'_>, chunk: &Chunk, state: &mut State) -> Result<(), StoreError> {
    let (key, value) = (schema::chunk_key(chunk.key), schema::chunk_value(chunk));
    state.row_bytes = state.row_bytes.saturating_add(page_bytes(value.len()));
    let ledger = &mut state.ledger;
    if let Some(replaced) = table.insert(key.as_slice(), value.as_slice())? {
        let count = schema::chunk_head(chunk.key, replaced.value()).map_or(0, |head| head.count);
        state.row_bytes = state.row_bytes.saturating_sub(page_bytes(replaced.value().len()));
        ledger.queued_events = ledger.queued_events.saturating_sub(count.into());
        ledger.queued_bytes = ledger.queued_bytes.saturating_sub(replaced.value().len() as u64);
    }
    ledger.queued_events = ledger.queued_events.saturating_add(chunk.count.into());
    ledger.queued_bytes = ledger.queued_bytes.saturating_add(value.len() as u64);
    Ok(())
}

fn remove(
    table: &mut RowTable<'_>,
    removal: &Removal,
    state: &mut State,
    applied: &mut Applied,
) -> Result<(), StoreError> {
    let key = schema::chunk_key(removal.key);
    let kept = removal.keep.as_ref().map_or(0, |chunk| u64::from(chunk.count));
    let acked = [removal.delivered, removal.dead_lettered, removal.evicted].into_iter().map(u64::from).sum::<u64>();
    let found =
        table.get(key.as_slice())?.map(|row| (schema::parse_chunk(removal.key, row.value()), row.value().len()));
    let damaged = match &found {
        // The row's checksum matches, and yet some of its records could not be read.
        Some((ChunkRow::Whole(row), _)) if u64::from(row.count) >= acked + kept => u64::from(row.count) - acked - kept,
        None | Some((ChunkRow::Whole(_), _)) => {
            applied.stale_removals += 1;
            return Ok(());
        }
        Some((ChunkRow::Torn(row), _)) => u64::from(row.count).saturating_sub(acked + kept),
        Some((ChunkRow::Lost, _)) => unaccounted(table, removal.key, state)?.saturating_sub(acked + kept),
    };
    table.remove(key.as_slice())?;
    let (bytes, page_bytes) = found.map_or((0, 0), |(_, bytes)| (bytes as u64, page_bytes(bytes)));
    state.row_bytes = state.row_bytes.saturating_sub(page_bytes);
    let ledger = &mut state.ledger;
    ledger.queued_bytes = ledger.queued_bytes.saturating_sub(bytes);
    ledger.queued_events = ledger.queued_events.saturating_sub(acked + kept);
    ledger.delivered = ledger.delivered.saturating_add(removal.delivered.into());
    ledger.dead_lettered = ledger.dead_lettered.saturating_add(removal.dead_lettered.into());
    ledger.evicted = ledger.evicted.saturating_add(removal.evicted.into());
    charge_as_damaged(state, applied, damaged);
    removal.keep.as_ref().map_or(Ok(()), |chunk| insert(table, chunk, state))
}

/// Events that the ledger counts as queued and that can only have been in `unreadable`.
fn unaccounted(table: &RowTable<'_>, unreadable: ChunkKey, state: &State) -> Result<u64, StoreError> {
    let mut elsewhere: u64 = 0;
    for row in table.iter()? {
        let (key, value) = row?;
        let key = schema::parse_chunk_key(key.value()).filter(|key| *key != unreadable);
        let head = key.and_then(|key| schema::chunk_head(key, value.value()));
        elsewhere = elsewhere.saturating_add(head.map_or(0, |head| head.count.into()));
    }
    Ok(state.ledger.queued_events.saturating_sub(elsewhere))
}

fn charge_as_damaged(state: &mut State, applied: &mut Applied, at_most: u64) {
    let events = at_most.min(state.ledger.queued_events);
    state.ledger.queued_events -= events;
    state.ledger.damaged = state.ledger.damaged.saturating_add(events);
    applied.damaged_events = applied.damaged_events.saturating_add(events);
}

/// The result of a read.
#[derive(Debug, Default)]
pub(crate) struct Read {
    /// Whole chunks, oldest first.
    pub(crate) chunks: Vec<Chunk>,
    /// Rows that were met and fail their checks, each with the records in it that are whole as its replacement.
    pub(crate) damaged: Vec<Removal>,
    /// The key to continue after; `None` if nothing was found.
    pub(crate) last: Option<ChunkKey>,
}

/// The result of a read of dead records.
#[derive(Debug, Default)]
pub(crate) struct DeadRead {
    pub(crate) records: Vec<DeadRecord>,
    /// The number of rows that fail their checks.
    pub(crate) damaged: u64,
    /// The sequence number to continue after; `None` if nothing was found.
    pub(crate) last: Option<u64>,
}

impl Store {
    /// The chunks after `after`, oldest first: as many as fit `max_bytes`, but at least one.
    pub(crate) fn read(&self, after: Option<ChunkKey>, max_bytes: usize) -> Result<Read, StoreError> {
        self.read_at_once(|db| {
            let table = db.begin_read()?.open_table(CHUNKS)?;
            let first = schema::chunk_key(ChunkKey::new(0));
            let last = schema::chunk_key(ChunkKey::new(u64::MAX));
            let read_after = after.filter(|after| after.prefix == 0);
            let after = read_after.map(schema::chunk_key);
            let from =
                after.as_ref().map_or(Bound::Included(first.as_slice()), |after| Bound::Excluded(after.as_slice()));
            if after == Some(last) {
                return Ok(Read::default());
            }
            let mut read = Read::default();
            let (mut bytes, mut least) = (0_usize, read_after.map_or(0, |after| after.first_seq.saturating_add(1)));
            for row in table.range::<&[u8]>((from, Bound::Included(last.as_slice())))? {
                let (key, value) = row?;
                let (key, value) = (key.value(), value.value());
                bytes = bytes.saturating_add(value.len());
                if read.last.is_some() && bytes > max_bytes {
                    break;
                }
                let Some(key) = schema::parse_chunk_key(key) else {
                    return Err(StoreError::damaged("a row has a key that this library does not write"));
                };
                // A page that was written over another one, with rows that pass their checks.
                if key.first_seq < least {
                    return Err(StoreError::damaged("the rows are not in the order of their numbers"));
                }
                least = key.first_seq.saturating_add(1);
                read.last = Some(key);
                match schema::parse_chunk(key, value) {
                    ChunkRow::Whole(chunk) => {
                        least = key.first_seq.saturating_add(u64::from(chunk.count.max(1)));
                        read.chunks.push(chunk);
                    }
                    ChunkRow::Torn(chunk) => read.damaged.push(Removal::keeping(key, chunk.salvage())),
                    ChunkRow::Lost => read.damaged.push(Removal::keeping(key, None)),
                }
            }
            if after.is_none() && read.last.is_none() {
                read.damaged = strays(&table)?;
            }
            Ok(read)
        })
    }

    /// The newest chunk. `None` also if its row fails its checks: [`read`](Self::read) repairs it.
    pub(crate) fn newest(&self) -> Result<Option<Chunk>, StoreError> {
        self.read_at_once(|db| {
            let table = db.begin_read()?.open_table(CHUNKS)?;
            let first = schema::chunk_key(ChunkKey::new(0));
            let last = schema::chunk_key(ChunkKey::new(u64::MAX));
            let Some(row) = table.range(first.as_slice()..=last.as_slice())?.next_back() else { return Ok(None) };
            let (key, value) = row?;
            let row = schema::parse_chunk_key(key.value()).map(|key| schema::parse_chunk(key, value.value()));
            Ok(if let Some(ChunkRow::Whole(chunk)) = row { Some(chunk) } else { None })
        })
    }

    /// The oldest chunk for which `leave_out` is false, and when it was checkpointed.
    pub(crate) fn oldest(
        &self,
        leave_out: &dyn Fn(ChunkKey) -> bool,
    ) -> Result<Option<(ChunkKey, WallNanos)>, StoreError> {
        self.read_at_once(|db| {
            let table = db.begin_read()?.open_table(CHUNKS)?;
            let first = schema::chunk_key(ChunkKey::new(0));
            let last = schema::chunk_key(ChunkKey::new(u64::MAX));
            for row in table.range(first.as_slice()..=last.as_slice())? {
                let (key, value) = row?;
                let key = schema::parse_chunk_key(key.value()).filter(|key| !leave_out(*key));
                // A row with an invalid head has no age; the next one is hardly younger.
                if let Some((key, head)) = key.and_then(|key| Some((key, schema::chunk_head(key, value.value())?))) {
                    return Ok(Some((key, head.checkpointed_at)));
                }
            }
            Ok(None)
        })
    }

    /// Dead records after `after`, oldest first: at most `limit` of them and `max_bytes`, but at least one.
    pub(crate) fn dead(&self, after: Option<u64>, limit: usize, max_bytes: usize) -> Result<DeadRead, StoreError> {
        self.with_database(|db| {
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
                match seq.and_then(|seq| schema::parse_dead(seq, value.value())) {
                    Some(record) => read.records.push(record),
                    None => read.damaged += 1,
                }
            }
            Ok(read)
        })
    }

    /// The sequence numbers of all dead records.
    pub(crate) fn dead_seqs(&self) -> Result<Vec<u64>, StoreError> {
        self.with_database(|db| {
            let table = db.begin_read()?.open_table(DEAD)?;
            let mut seqs = Vec::new();
            for row in table.iter()? {
                seqs.extend(row?.0.value().first_chunk().map(|seq| u64::from_be_bytes(*seq)));
            }
            Ok(seqs)
        })
    }
}

/// Rows at the ends of the table whose key has a damaged prefix, so that no read finds them. They are looked for when
/// the queue seems empty, so that it does not keep them for ever.
fn strays(table: &impl ReadableTable<&'static [u8], &'static [u8]>) -> Result<Vec<Removal>, StoreError> {
    let mut strays: Vec<Removal> = Vec::new();
    for (key, value) in [table.first()?, table.last()?].into_iter().flatten() {
        let key = schema::parse_chunk_key(key.value())
            .ok_or_else(|| StoreError::damaged("a row has a key that this library does not write"))?;
        if key.prefix == 0 {
            return Err(StoreError::damaged("a row is not where its key says"));
        }
        let is_known = strays.iter().any(|stray| stray.key == key);
        if !is_known && schema::chunk_head(key, value.value()).is_none() {
            strays.push(Removal::keeping(key, None));
        }
    }
    Ok(strays)
}
