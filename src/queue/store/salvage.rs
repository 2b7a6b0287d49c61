//! Building a new file, and salvage: reading whatever can be read of a file that cannot be trusted.
//!
//! The untrusted file is opened read-only and stays as it was found. Each step is guarded. Where a step fails, the rows
//! are read from the other end, and the range between the two failures is halved and tried again, so that one bad page
//! costs the rows on that page. Each row must pass its own checks; of a torn row the whole records are kept. Free pages
//! are not searched: they are full of rows that were delivered long ago.
//!
//! An ordinary open first reads how the file's space is allocated, and fails if that is damaged although every row may
//! be whole. A process that reads beside another process's writer does without. So the file is opened like that:
//! read-only, with every lock granted, because no other process has it. Three things in the header would prevent
//! reading and are corrected in memory: the magic number, which is constant; the mark of an unclean end, which asks for
//! a repair; and, if the slot of the newest commit is bad, which of the two slots is read. The older slot is whole,
//! because its pages are reused only one commit later.

use std::collections::VecDeque;
use std::io;
use std::ops::{Bound, RangeInclusive};

use redb::{
    BackendError, ConcurrencyMode, Database, ReadOnlyDatabase, ReadableDatabase, StorageBackend, TableDefinition,
};

use super::backend::StoreFile;
use super::files::StoreDir;
use super::rows::{CHUNK_HEAD, Chunk, DeadRecord, Project, State, page_bytes};
use super::schema::{self, CHUNKS, ChunkRow, DEAD, Meta};
use crate::queue::error::{StoreError, guarded};
use crate::queue::frame;
use crate::sys::crash_point;
use crate::sys::disk::{DiskFile, Open};

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

    fn write_waiting(&mut self) -> Result<(), StoreError> {
        guarded(|| {
            let transaction = self.db.begin_write()?;
            {
                let mut table = transaction.open_table(CHUNKS)?;
                for chunk in &self.chunks {
                    table.insert(schema::chunk_key(chunk.key).as_slice(), schema::chunk_value(chunk).as_slice())?;
                }
                let mut table = transaction.open_table(DEAD)?;
                for dead in &self.dead {
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

/// After this many failed steps, salvage gives up.
const FAILURES_MAX: u32 = 400;

/// An untrusted file, open for reading.
pub(super) struct Salvage<'a> {
    place: &'a StoreDir,
    /// `None` if the file cannot be opened.
    db: Option<ReadOnlyDatabase>,
    failures: u32,
}

impl<'a> Salvage<'a> {
    /// Opens the store's file. If that fails, nothing can be salvaged.
    pub(super) fn open(place: &'a StoreDir) -> Self {
        let db = if place.options.unreadable { None } else { open_untrusted(place) };
        Self { place, db, failures: 0 }
    }

    /// Whether the file can be opened at all.
    #[cfg(feature = "inspect")]
    pub(super) fn is_open(&self) -> bool {
        self.db.is_some()
    }

    /// What can be read of the `meta` rows.
    pub(super) fn meta(&mut self) -> Meta {
        let Some(db) = &self.db else { return Meta::default() };
        guarded(|| schema::read_meta(db)).unwrap_or_else(|_| {
            self.failed();
            Meta::default()
        })
    }

    pub(super) fn copy_into(&mut self, rebuild: &mut Rebuild) -> Result<(), StoreError> {
        self.copy_table(CHUNKS, 9, &mut |key, value| {
            let Some(key) = schema::parse_chunk_key(key) else { return Ok(()) };
            let chunk = match schema::parse_chunk(key, value) {
                ChunkRow::Whole(chunk) => Some(chunk),
                ChunkRow::Torn(chunk) => chunk.salvage(),
                ChunkRow::Lost => None,
            };
            chunk.map_or(Ok(()), |chunk| rebuild.push(chunk))
        })?;
        // A damaged table of chunks must not cost the dead letters.
        if std::mem::take(&mut self.failures) >= FAILURES_MAX {
            self.db = open_untrusted(self.place);
        }
        self.copy_table(DEAD, 8, &mut |key, value| {
            let seq = key.first_chunk().map(|seq| u64::from_be_bytes(*seq));
            let dead = seq.and_then(|seq| schema::parse_dead(seq, value));
            dead.map_or(Ok(()), |dead| rebuild.dead_letter(dead))
        })
    }

    /// Passes every row of a table that can be read to `sink`, until that fails.
    pub(super) fn copy_table(
        &mut self,
        table: TableDefinition<'_, &'static [u8], &'static [u8]>,
        width: usize,
        sink: Sink<'_>,
    ) -> Result<(), StoreError> {
        let mut ranges = VecDeque::from([0..=(1_u128 << (8 * width)) - 1]);
        while let Some(range) = ranges.pop_front() {
            let Some(rest) = self.copy_range(table, width, range, false, sink)? else { continue };
            let Some(rest) = self.copy_range(table, width, rest, true, sink)? else { continue };
            let (low, high) = (*rest.start(), *rest.end());
            if low < high {
                let middle = low + (high - low) / 2;
                ranges.extend([low..=middle, middle + 1..=high]);
            }
        }
        Ok(())
    }

    /// Reads a range from its start, or backwards from its end, until a step fails. Returns the part that was not reached.
    fn copy_range(
        &mut self,
        table: TableDefinition<'_, &'static [u8], &'static [u8]>,
        width: usize,
        range: RangeInclusive<u128>,
        backwards: bool,
        sink: Sink<'_>,
    ) -> Result<Option<RangeInclusive<u128>>, StoreError> {
        let Some(db) = self.db.as_ref().filter(|_| !range.is_empty()) else { return Ok(None) };
        let (mut low, mut high) = (*range.start(), *range.end());
        let opened = guarded(|| {
            let table = db.begin_read()?.open_table(table)?;
            Ok(table.range(key_bytes(low, width).as_slice()..=key_bytes(high, width).as_slice())?)
        });
        let Ok(mut rows) = opened else {
            self.failed();
            return Ok(Some(low..=high));
        };
        loop {
            let step = guarded(|| {
                let row = if backwards { rows.next_back() } else { rows.next() };
                Ok(row.transpose()?.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
            });
            let Ok(row) = step else { break };
            let Some((key, value)) = row else { return Ok(None) };
            // A damaged tree may contain cycles, so every key must be inside the remaining range.
            let Some(at) = key_number(&key, width).filter(|at| (low..=high).contains(at)) else { break };
            sink(&key, &value)?;
            if low == high {
                return Ok(None);
            }
            match backwards {
                false if at == high => return Ok(None),
                true if at == low => return Ok(None),
                false => low = at + 1,
                true => high = at - 1,
            }
        }
        // A cursor that failed may fail again when it is dropped.
        let _ = guarded(move || {
            drop(rows);
            Ok(())
        });
        self.failed();
        Ok(Some(low..=high))
    }

    /// The number of places that could not be read so far.
    #[cfg(feature = "inspect")]
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure and reopens the file: the failure may have latched the database or poisoned its locks.
    fn failed(&mut self) {
        self.failures += 1;
        self.close();
        if self.failures < FAILURES_MAX {
            self.db = open_untrusted(self.place);
        }
    }

    fn close(&mut self) {
        if let Some(db) = self.db.take() {
            let _ = guarded(|| Ok(db.close()?));
        }
    }
}

impl Drop for Salvage<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

type Sink<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), StoreError>;

/// The key of `width` bytes that sorts as `number` does.
fn key_bytes(number: u128, width: usize) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    bytes[bytes.len().saturating_sub(width)..].to_vec()
}

fn key_number(key: &[u8], width: usize) -> Option<u128> {
    (key.len() == width).then(|| key.iter().fold(0, |number, byte| number << 8 | u128::from(*byte)))
}

/// From the file format of redb, version 3.
const MAGIC: [u8; 9] = *b"redb\x1A\x0A\xA9\x0D\x0A";
const FLAGS_AT: usize = MAGIC.len();
/// Page types: the first byte of a page.
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
const OTHER_SLOT: u8 = 1;
const UNCLEAN: u8 = 2;
const UNFLUSHED: u8 = 8;

/// Opens the store's file for reading, however damaged; `None` if it contains no readable commit.
fn open_untrusted(place: &StoreDir) -> Option<ReadOnlyDatabase> {
    [0, OTHER_SLOT].into_iter().find_map(|flip| {
        guarded(|| {
            let file = place.disk.open(&place.to_read()?, Open::ReadOnly)?;
            let mut builder = place.options.builder();
            builder.set_concurrency_mode(ConcurrencyMode::SingleWriter);
            Ok::<_, StoreError>(builder.open_read_only_with_backend(Untrusted { file, flip })?)
        })
        .ok()
    })
}

#[derive(Debug)]
struct Untrusted {
    file: DiskFile,
    /// The flags of the header that are inverted.
    flip: u8,
}

impl Untrusted {
    fn repair_header(&self, header: &mut [u8]) {
        if let Some(magic) = header.get_mut(..MAGIC.len()) {
            magic.copy_from_slice(&MAGIC);
        }
        if let Some(flags) = header.get_mut(FLAGS_AT) {
            *flags = (*flags & !(UNCLEAN | UNFLUSHED)) ^ self.flip;
        }
    }
}

impl StorageBackend for Untrusted {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(offset, out)?;
        match out.first() {
            _ if offset == 0 => self.repair_header(out),
            Some(&(LEAF | BRANCH)) => {}
            // Only pages of trees are read here. Most damage to a page shows as a wrong type and becomes an error; the
            // database would panic, which kills a program whose panics abort.
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "not a page of a tree")),
        }
        Ok(())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn try_lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}
