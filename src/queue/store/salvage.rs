//! Building a new file, and salvage: reading whatever can be read of a file that cannot be trusted.
//!
//! The untrusted file is only read, and stays as it was found; how is in `trees.rs`. A bad page costs the rows on that
//! page. Each row must pass its own checks; of a torn row the whole records are kept.
//!
//! If pages are lost that say where others are, those are looked for in the whole file. Its free pages are full of rows that
//! were delivered long ago, so the newest are taken, and not many more than are missing.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use redb::Database;

use super::backend::StoreFile;
use super::files::StoreDir;
use super::rows::{CHUNK_HEAD, Chunk, DeadRecord, Ledger, Project, State, page_bytes};
use super::schema::{self, CHUNKS, ChunkRow, DEAD, Meta};
use super::trees::{Place, Sink, Trees, Unreached};
use crate::queue::error::{StoreError, guarded};
use crate::queue::frame;
use crate::sys::crash_point;
use crate::sys::disk::Open;

/// Rows that one transaction writes, so that the memory for a rebuild does not depend on the size of the queue.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// A file that is being built. It has the name of a store only after [`Rebuild::finish`] and an install.
#[derive(Debug)]
pub(super) struct Rebuild {
    db: Database,
    file: StoreFile,
    chunks: Vec<Chunk>,
    dead: Vec<DeadRecord>,
    waiting_bytes: usize,
    /// What was added so far; the ledger has the highest sequence number and what is queued.
    pub(super) found: State,
}

impl Rebuild {
    /// Starts an empty file.
    pub(super) fn begin(place: &StoreDir) -> Result<Self, StoreError> {
        place.disk.remove_file(&place.unfinished())?;
        let file = StoreFile::direct(place.disk.open(&place.unfinished(), Open::CreateNew)?);
        let db = guarded(|| Ok(place.options.builder().create_with_backend(file.clone())?))?;
        let empty = State { dead_bytes: Some(0), ..State::default() };
        Ok(Self { db, file, chunks: Vec::new(), dead: Vec::new(), waiting_bytes: 0, found: empty })
    }

    pub(super) fn push(&mut self, chunk: Chunk) -> Result<(), StoreError> {
        let seqs = frame::frames(&chunk.frames, chunk.salt).map(|(head, _)| head.seq);
        let last_seq = seqs.max().unwrap_or(chunk.key.first_seq);
        let bytes = CHUNK_HEAD.saturating_add(chunk.frames.len());
        self.found.rows += 1;
        self.found.row_bytes = self.found.row_bytes.saturating_add(page_bytes(bytes));
        let ledger = &mut self.found.ledger;
        ledger.queued_events = ledger.queued_events.saturating_add(u64::from(chunk.count));
        ledger.queued_bytes = ledger.queued_bytes.saturating_add(bytes as u64);
        ledger.accepted = ledger.accepted.max(last_seq);
        self.chunks.push(chunk);
        self.count_waiting(bytes)
    }

    pub(super) fn dead_letter(&mut self, dead: DeadRecord) -> Result<(), StoreError> {
        let bytes = schema::dead_len(&dead);
        self.found.dead_bytes = self.found.dead_bytes.map(|before| before.saturating_add(bytes as u64));
        self.found.ledger.accepted = self.found.ledger.accepted.max(dead.seq);
        self.dead.push(dead);
        self.count_waiting(bytes)
    }

    /// Writes the remaining rows and the `meta` rows, closes the file and makes it durable.
    pub(super) fn finish(mut self, project: &Project, mut state: State) -> Result<(), StoreError> {
        self.write_waiting()?;
        (state.rows, state.row_bytes, state.dead_bytes) =
            (self.found.rows, self.found.row_bytes, self.found.dead_bytes);
        let Self { db, file, .. } = self;
        guarded(|| {
            let transaction = schema::begin(&db)?;
            // Every table exists from the start, so a missing table is damage.
            transaction.open_table(CHUNKS)?;
            transaction.open_table(DEAD)?;
            schema::write_identity(&transaction, project)?;
            schema::write_state(&transaction, &state)?;
            transaction.commit()?;
            Ok(db.close()?)
        })?;
        redb::StorageBackend::sync_data(&file)?;
        crash_point::reach("store.built");
        Ok(())
    }

    fn count_waiting(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes);
        if self.waiting_bytes < BATCH_BYTES { Ok(()) } else { self.write_waiting() }
    }

    /// A row whose key was there before replaces it: damage can show two rows under one key.
    fn write_waiting(&mut self) -> Result<(), StoreError> {
        let Self { db, chunks, dead, found, .. } = self;
        guarded(|| {
            let transaction = db.begin_write()?;
            {
                let mut table = transaction.open_table(CHUNKS)?;
                for chunk in chunks.iter() {
                    let (key, value) = (schema::chunk_key(chunk.key), schema::chunk_value(chunk));
                    let Some(replaced) = table.insert(key.as_slice(), value.as_slice())? else { continue };
                    let replaced = replaced.value();
                    let count = schema::chunk_head(chunk.key, replaced).map_or(0, |head| head.count);
                    found.rows -= 1;
                    found.row_bytes = found.row_bytes.saturating_sub(page_bytes(replaced.len()));
                    let ledger = &mut found.ledger;
                    ledger.queued_events = ledger.queued_events.saturating_sub(count.into());
                    ledger.queued_bytes = ledger.queued_bytes.saturating_sub(replaced.len() as u64);
                }
                let mut table = transaction.open_table(DEAD)?;
                for dead in dead.iter() {
                    table.insert(dead.seq.to_be_bytes().as_slice(), schema::dead_value(dead).as_slice())?;
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

/// An untrusted file, open for reading.
#[derive(Debug)]
pub(super) struct Salvage {
    /// `None` if the file must not be read.
    trees: Option<Trees>,
    /// What the file should contain, if that is known: from its state, or from the status page.
    ledger: Option<Ledger>,
    dead_bytes: Option<u64>,
}

impl Salvage {
    /// Opens the store's file. Fails if that cannot be done at all, which says nothing about its content.
    pub(super) fn open(place: &StoreDir) -> Result<Self, StoreError> {
        let mut salvage = Self { trees: None, ledger: place.options.witness, dead_bytes: None };
        if !place.options.unreadable {
            salvage.trees = Some(Trees::open(place.disk.open(&place.to_read()?, Open::ReadOnly)?)?);
        }
        Ok(salvage)
    }

    /// What can be read of the `meta` rows, of the newest commit, or else of the one before: its state is better than none.
    /// What is in neither is looked for in the whole file.
    pub(super) fn meta(&mut self) -> Result<Meta, StoreError> {
        let Some(trees) = &self.trees else { return Ok(Meta::default()) };
        let mut rows = Vec::new();
        trees.versions(schema::META_NAME, &mut |name, value| {
            rows.push((name.to_vec(), value.to_vec()));
            Ok(())
        })?;
        let mut meta = schema::meta_of(&rows);
        if meta.schema.is_none() || meta.identity.is_none() || meta.state.is_none() {
            let (had_state, mut strays) = (meta.state.is_some(), Vec::new());
            trees.search(&Unreached::everything(), &mut |name, value, _| {
                let is_meta = schema::is_meta(name, value);
                strays.extend(is_meta.then(|| (name.to_vec(), value.to_vec())));
                is_meta
            });
            strays.sort_by_key(|(name, value)| Reverse(schema::age_of_state(name, value)));
            rows.extend(strays);
            meta = schema::meta_of(&rows);
            // The newest state may not be among those that were found.
            if let (Some(state), Some(witness), false) = (&mut meta.state, self.ledger, had_state)
                && (witness.accepted, witness.gone()) > (state.ledger.accepted, state.ledger.gone())
            {
                state.ledger = witness;
            }
        }
        self.expect(&meta);
        Ok(meta)
    }

    /// What the file should contain, for a search.
    pub(super) fn expect(&mut self, meta: &Meta) {
        if let Some(state) = &meta.state {
            (self.ledger, self.dead_bytes) = (Some(state.ledger), state.dead_bytes);
        }
    }

    /// Copies everything that can be read.
    pub(super) fn copy_into(&self, rebuild: &mut Rebuild) -> Result<Salvaged, StoreError> {
        let mut torn_events: u64 = 0;
        let chunks = self.copy_table(Table::Chunks, &mut |key, value| {
            let Some(key) = schema::parse_chunk_key(key) else { return Ok(()) };
            let chunk = match schema::parse_chunk(key, value) {
                ChunkRow::Whole(chunk) => Some(chunk),
                ChunkRow::Torn(torn) => {
                    let saved = torn.salvage();
                    let lost = torn.count.saturating_sub(saved.as_ref().map_or(0, |saved| saved.count));
                    torn_events = torn_events.saturating_add(lost.into());
                    saved
                }
                ChunkRow::Lost => None,
            };
            chunk.map_or(Ok(()), |chunk| rebuild.push(chunk))
        })?;
        let mut dead_letters = 0;
        let dead = self.copy_table(Table::Dead, &mut |key, value| {
            let Some(dead) = schema::dead_of(key, value) else { return Ok(()) };
            dead_letters += 1;
            rebuild.dead_letter(dead)
        })?;
        rebuild.write_waiting()?;
        Ok(Salvaged {
            dead_lost: dead.lost(dead_letters),
            torn_events,
            unsure_events: chunks.unsure,
            has_unsure_dead: dead.unsure > 0,
            is_damaged: chunks.is_damaged() || dead.is_damaged(),
        })
    }

    /// Passes every row of a table that can be read to `sink`, each key once, until that fails. Returns the number of
    /// damaged pages, and whether all of the table was found, damaged or not.
    pub(super) fn copy_table(&self, table: Table, sink: Sink<'_>) -> Result<Copied, StoreError> {
        let Some(trees) = &self.trees else { return Ok(Copied::default()) };
        let (mut found, mut unsure, mut covered) = (0_u64, 0_u64, Covered::default());
        let is_whole = |key: &[u8], value: &[u8]| table.is_whole(key, value);
        let unreached = trees.rows(table.name(), &is_whole, &mut |key, value, is_current| {
            if let Some((first, last, amount)) = table.worth(key, value) {
                // What is left of a row that was reduced has another key. A row of the commit before may be the whole one.
                if !covered.add(first, last) {
                    return Ok(());
                }
                found = found.saturating_add(amount);
                unsure = unsure.saturating_add(if is_current { 0 } else { amount });
            }
            sink(key, value)
        })?;
        let expected = match table {
            Table::Chunks => self.ledger.map(|ledger| ledger.queued_events),
            Table::Dead => self.dead_bytes,
        };
        let missing = expected.map(|expected| expected.saturating_sub(found));
        if !unreached.is_nothing() && missing != Some(0) {
            let mut strays = BTreeMap::new();
            trees.search(&unreached, &mut |key, value, place| {
                let Some((first, last, amount)) = table.worth(key, value) else { return false };
                if covered.overlaps(first, last) {
                    return true;
                }
                let stray = Stray { last, amount, place, is_whole: table.is_whole(key, value) };
                // Of a row that was reduced there may be older copies; and of any row copies that were overwritten in part.
                let entry = strays.entry(first).or_insert(stray);
                if (!stray.is_whole, stray.amount) < (!entry.is_whole, entry.amount) {
                    *entry = stray;
                }
                true
            });
            for stray in chosen(&strays, missing) {
                found = found.saturating_add(stray.amount);
                unsure = unsure.saturating_add(stray.amount);
                trees.row_at(stray.place, sink)?;
            }
        }
        Ok(Copied {
            damaged_pages: unreached.damaged_pages(),
            is_complete: unreached.is_nothing(),
            unsure,
            rows: trees.len(table.name()),
            is_short: expected.is_some_and(|expected| found < expected),
        })
    }
}

/// What [`Salvage::copy_into`] has met.
#[derive(Clone, Copy, Debug)]
pub(super) struct Salvaged {
    /// Dead letters that are lost.
    pub(super) dead_lost: u64,
    /// Events that are missing in rows that were found.
    pub(super) torn_events: u64,
    /// Events, and whether there are dead letters, that the newest commit does not name.
    pub(super) unsure_events: u64,
    pub(super) has_unsure_dead: bool,
    /// Whether a page is not what was written.
    pub(super) is_damaged: bool,
}

/// How a table was read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    pub(super) damaged_pages: u64,
    /// How much of it the newest commit does not name, in events or in bytes of dead letters.
    unsure: u64,
    /// Whether every page of the table is known.
    pub(super) is_complete: bool,
    /// The rows that the table should have.
    rows: Option<u64>,
    /// Whether less was found than the state says.
    is_short: bool,
}

impl Copied {
    fn is_damaged(&self) -> bool {
        self.damaged_pages > 0 || !self.is_complete
    }

    /// The number of rows that are lost if so many were found. Where the file does not tell how many there should be, but
    /// that some are missing, it is one.
    pub(super) fn lost(&self, found: u64) -> u64 {
        self.rows.map_or(u64::from(self.is_short), |rows| rows.saturating_sub(found))
    }
}

/// A table whose rows have checks of their own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Table {
    Chunks,
    Dead,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Self::Chunks => schema::CHUNKS_NAME,
            Self::Dead => schema::DEAD_NAME,
        }
    }

    /// Whether a row passes all of its checks.
    fn is_whole(self, key: &[u8], value: &[u8]) -> bool {
        match self {
            Self::Chunks => schema::parse_chunk_key(key)
                .is_some_and(|key| matches!(schema::parse_chunk(key, value), ChunkRow::Whole(_))),
            Self::Dead => schema::dead_of(key, value).is_some(),
        }
    }

    /// Of a row of this table whose head passes its check: its first and its last sequence number, and what it counts for, which
    /// is events or bytes.
    fn worth(self, key: &[u8], value: &[u8]) -> Option<(u64, u64, u64)> {
        match self {
            Self::Chunks => {
                let key = schema::parse_chunk_key(key)?;
                let count = u64::from(schema::chunk_head(key, value)?.count);
                Some((key.first_seq, key.first_seq.saturating_add(count.saturating_sub(1)), count))
            }
            Self::Dead => {
                let dead = schema::dead_of(key, value)?;
                Some((dead.seq, dead.seq, value.len() as u64))
            }
        }
    }
}

/// The sequence numbers of the rows that were found. Neighbours are one range, so that it stays small.
#[derive(Debug, Default)]
struct Covered {
    /// First and last number of each range.
    ranges: BTreeMap<u64, u64>,
}

impl Covered {
    fn overlaps(&self, first: u64, last: u64) -> bool {
        self.ranges.range(..=last).next_back().is_some_and(|(_, end)| *end >= first)
    }

    /// Adds a range, unless a part of it is there already.
    fn add(&mut self, first: u64, last: u64) -> bool {
        if self.overlaps(first, last) {
            return false;
        }
        let before = self.ranges.range(..first).next_back().map(|(start, end)| (*start, *end));
        let start = before.filter(|(_, end)| end.saturating_add(1) == first).map_or(first, |(start, _)| start);
        let end = last.checked_add(1).and_then(|next| self.ranges.remove(&next)).unwrap_or(last);
        self.ranges.insert(start, end);
        true
    }
}

/// A row that was found by a search.
#[derive(Clone, Copy, Debug)]
struct Stray<P = Place> {
    last: u64,
    amount: u64,
    place: P,
    is_whole: bool,
}

/// The rows, by their first sequence number, that are taken to be what is missing: the newest, because the oldest are
/// delivered first and may have been removed long ago. As they are not always delivered in that order, and an event that
/// is sent twice does less harm than one that is lost, they are twice as many as are missing; if that is not known, all.
fn chosen<P: Copy>(strays: &BTreeMap<u64, Stray<P>>, missing: Option<u64>) -> Vec<Stray<P>> {
    let most = missing.map_or(u64::MAX, |missing| missing.saturating_mul(2));
    let (mut left, mut lowest, mut chosen) = (most, None, Vec::new());
    for (first, stray) in strays.iter().rev() {
        // A row that reaches into the next is an older one, which was reduced to that.
        if left == 0 || lowest.is_some_and(|lowest| stray.last >= lowest) {
            continue;
        }
        left = left.saturating_sub(stray.amount);
        lowest = Some(*first);
        chosen.push(*stray);
    }
    chosen.reverse();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_covered_is_one_range_where_it_can_be() {
        let mut covered = Covered::default();
        assert!(covered.add(10, 19) && covered.add(30, 39) && covered.add(20, 25));
        assert!(!covered.add(5, 10) && !covered.add(26, 30) && !covered.add(0, u64::MAX) && !covered.add(12, 12));
        assert!(covered.add(26, 29) && covered.add(u64::MAX, u64::MAX) && covered.add(0, 9));
        assert_eq!(covered.ranges, [(0, 39), (u64::MAX, u64::MAX)].into());
        assert!(covered.overlaps(39, 50) && !covered.overlaps(40, 50));
    }

    #[test]
    fn of_rows_that_a_search_finds_the_newest_are_missing() {
        let strays: BTreeMap<u64, Stray<u64>> = [(1, 10), (11, 5), (16, 10), (21, 5), (26, 2)]
            .map(|(first, amount)| (first, Stray { last: first + amount - 1, amount, place: first, is_whole: true }))
            .into();
        let firsts = |missing| chosen(&strays, missing).iter().map(|stray| stray.place).collect::<Vec<_>>();
        assert_eq!(firsts(None), [1, 11, 21, 26], "16 to 25 was reduced to 21 to 25");
        assert_eq!(firsts(Some(4)), [11, 21, 26]);
        assert_eq!((firsts(Some(1)), firsts(Some(0))), (vec![26], Vec::new()));
    }
}
