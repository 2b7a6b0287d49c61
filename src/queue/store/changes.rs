//! What one transaction changes, and how it is done.
//!
//! A commit can fail and yet have taken effect, so every change can be made twice: a checkpoint is known by its epochs, a removal applies
//! only to the very row it was made for, a dead record replaces itself.

use redb::{Database, ReadableTable, ReadableTableMetadata, Table};

use super::rows::{self, ChunkRow, State};
use super::tables::{self, CHUNKS, DEAD};
use super::{Chunk, ChunkKey, DeadRecord, LedgerDelta, StoreError};
use crate::sys::clock::WallNanos;

/// What one transaction changes. Everything or nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// New rows; they add themselves to what the ledger says is queued.
    pub(crate) insert: Vec<Chunk>,
    /// Acked rows.
    pub(crate) remove: Vec<Removal>,
    /// Records that go to the dead letters. Count them in [`Removal::buried`], or in the delta if they never had a row.
    pub(crate) dead_letter: Vec<DeadRecord>,
    /// Dead records, by sequence number, that are no longer kept. The ledger goes on counting them as dead_lettered.
    pub(crate) remove_dead: Vec<u64>,
    /// Lanes and the epochs whose arenas this transaction checkpoints. One that is not newer than the lane's last is refused, and nothing
    /// is changed. A transaction with a `ledger` delta should have one, or it must not be repeated.
    pub(crate) journal_epochs: Vec<(u8, u64)>,
    /// What the ledger is told beyond what the rows say.
    pub(crate) ledger: LedgerDelta,
    /// The time before which nothing is sent, if it changes.
    pub(crate) next_attempt: Option<Option<WallNanos>>,
}

/// The end of a row. `delivered`, `buried`, `evicted` and the records of `keep` together are all records of the row that could be read;
/// the rest is damaged. If they are more than the row has, it is not the one meant (any more), and stays.
#[derive(Clone, Debug)]
pub(crate) struct Removal {
    /// The row.
    pub(crate) key: ChunkKey,
    /// The records that stay, in a row of their own.
    pub(crate) keep: Option<Chunk>,
    /// How many were delivered.
    pub(crate) delivered: u32,
    /// How many were dead_lettered.
    pub(crate) dead_lettered: u32,
    /// How many were evicted.
    pub(crate) evicted: u32,
}

/// What a transaction did beyond what it was asked to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Removals whose row was not there, or was another: repeats, or a mistake.
    pub(crate) stale_removals: u32,
    /// Events of damaged rows that are now counted as damaged.
    pub(crate) damaged_events: u64,
}

impl Changes {
    /// Whether the transaction makes the queue smaller: only such a one may use the reserve.
    pub(super) fn only_acks(&self) -> bool {
        self.insert.is_empty() && !(self.remove.is_empty() && self.remove_dead.is_empty())
    }
}

/// Makes the changes in one transaction. Returns the state as it then is.
/// The dead records then take no more than `dead_bytes`.
pub(super) fn commit(
    db: &Database,
    before: &State,
    changes: &Changes,
    dead_bytes: u64,
) -> Result<(State, Applied), StoreError> {
    let mut state = before.clone();
    advance_epochs(&mut state, &changes.journal_epochs)?;
    let mut applied = Applied::default();
    let transaction = tables::begin(db)?;
    {
        let mut chunks = transaction.open_table(CHUNKS)?;
        for removal in &changes.remove {
            remove(&mut chunks, removal, &mut state, &mut applied)?;
        }
        for chunk in &changes.insert {
            insert(&mut chunks, chunk, &mut state)?;
        }
        state.rows = chunks.len()?;
        state.ledger.add(&changes.ledger);
        // When the last row has gone, whatever the ledger still counts as queued has vanished from the file.
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
    tables::write_state(&transaction, &state)?;
    transaction.commit()?;
    Ok((state, applied))
}

/// Dead records kept, if they take no more bytes than they may; the oldest make room. Whoever wants them for longer reads them out.
const DEAD_MAX: u64 = 1000;

/// Buries and removes_dead. Returns the bytes of all dead rows, which were `known` before unless nobody had counted.
fn change_dead(dead: &mut RowTable<'_>, changes: &Changes, known: Option<u64>, most: u64) -> Result<u64, StoreError> {
    let mut bytes = match known {
        Some(known) => known,
        None => count_dead(dead)?,
    };
    for record in &changes.dead_letter {
        let value = rows::dead_value(record);
        bytes = bytes.saturating_add(value.len() as u64);
        let replaced = dead.insert(record.seq.to_be_bytes().as_slice(), value.as_slice())?;
        bytes = bytes.saturating_sub(replaced.map_or(0, |row| row.value().len() as u64));
    }
    for seq in &changes.remove_dead {
        let removed = dead.remove(seq.to_be_bytes().as_slice())?;
        bytes = bytes.saturating_sub(removed.map_or(0, |row| row.value().len() as u64));
    }
    // The ledger goes on counting those that make room.
    while dead.len()? > DEAD_MAX || (bytes > most && dead.len()? > 1) {
        let removed = dead.pop_first()?;
        bytes = bytes.saturating_sub(removed.map_or(0, |(_, row)| row.value().len() as u64));
    }
    Ok(if dead.is_empty()? { 0 } else { bytes })
}

/// Of a file that a version wrote which did not count.
fn count_dead(dead: &RowTable<'_>) -> Result<u64, StoreError> {
    let mut bytes: u64 = 0;
    for row in dead.iter()? {
        bytes = bytes.saturating_add(row?.1.value().len() as u64);
    }
    Ok(bytes)
}

type RowTable<'txn> = Table<'txn, &'static [u8], &'static [u8]>;

fn advance_epochs(state: &mut State, epochs: &[(u8, u64)]) -> Result<(), StoreError> {
    for &(lane, given) in epochs {
        let stored = state.epochs.get(&lane).copied().unwrap_or(0);
        if given <= stored {
            return Err(StoreError::AlreadyCarried { lane, stored, given });
        }
        state.epochs.insert(lane, given);
    }
    Ok(())
}

fn insert(table: &mut RowTable<'_>, chunk: &Chunk, state: &mut State) -> Result<(), StoreError> {
    let (key, value) = (rows::chunk_key(chunk.key), rows::chunk_value(chunk));
    state.row_bytes = state.row_bytes.saturating_add(rows::page_bytes(value.len()));
    let ledger = &mut state.ledger;
    if let Some(replaced) = table.insert(key.as_slice(), value.as_slice())? {
        let count = rows::chunk_head(chunk.key, replaced.value()).map_or(0, |head| head.count);
        state.row_bytes = state.row_bytes.saturating_sub(rows::page_bytes(replaced.value().len()));
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
    let key = rows::chunk_key(removal.key);
    let kept = removal.keep.as_ref().map_or(0, |chunk| u64::from(chunk.count));
    let acked = [removal.delivered, removal.dead_lettered, removal.evicted].into_iter().map(u64::from).sum::<u64>();
    let found = table.get(key.as_slice())?.map(|row| (rows::parse_chunk(removal.key, row.value()), row.value().len()));
    let damaged = match &found {
        // More than what is accounted for: records in it that could not be read, though the row's checksum holds.
        Some((ChunkRow::Whole(row), _)) if u64::from(row.count) >= acked + kept => u64::from(row.count) - acked - kept,
        None | Some((ChunkRow::Whole(_), _)) => {
            applied.stale_removals += 1;
            return Ok(());
        }
        Some((ChunkRow::Torn(row), _)) => u64::from(row.count).saturating_sub(acked + kept),
        Some((ChunkRow::Lost, _)) => unaccounted(table, removal.key, state)?.saturating_sub(acked + kept),
    };
    table.remove(key.as_slice())?;
    let (bytes, page_bytes) = found.map_or((0, 0), |(_, bytes)| (bytes as u64, rows::page_bytes(bytes)));
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

/// Events that the ledger counts as queued and no row but `unreadable` can have.
fn unaccounted(table: &RowTable<'_>, unreadable: ChunkKey, state: &State) -> Result<u64, StoreError> {
    let mut elsewhere: u64 = 0;
    for row in table.iter()? {
        let (key, value) = row?;
        let key = rows::parse_chunk_key(key.value()).filter(|key| *key != unreadable);
        let head = key.and_then(|key| rows::chunk_head(key, value.value()));
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
