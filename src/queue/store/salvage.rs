//! Reading what can be read from a file that cannot be trusted.
//!
//! The file is opened for reading only (`untrusted.rs`), so it stays as it was found. Each step is guarded; where a step fails, the rows are approached from the
//! other end, and what remains between the two failures is halved and tried again, so that one bad page costs the rows on it.
//! Each row must pass its own checks; of a torn row the whole records are kept. There is no search through free pages: they are full
//! of rows long delivered.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use redb::{ReadOnlyDatabase, ReadableDatabase, TableDefinition};

use super::guard::guarded;
use super::place::Place;
use super::rebuild::Rebuild;
use super::rows::{self, ChunkRow};
use super::tables::{self, CHUNKS, DEAD, Meta};
use super::{Chunk, StoreError, untrusted};
use crate::record::frame;

/// Failed steps after which the rest is given up.
const MOST_FAILURES: u32 = 400;

/// A untrusted file, open for reading.
pub(super) struct Salvage<'a> {
    place: &'a Place,
    /// `None` if it cannot be opened, or not any more.
    db: Option<ReadOnlyDatabase>,
    failures: u32,
}

impl<'a> Salvage<'a> {
    /// Opens the store's file if that is possible; if not, there is nothing to salvage.
    pub(super) fn open(place: &'a Place) -> Self {
        let db = if place.options.unreadable { None } else { untrusted::open(place) };
        Self { place, db, failures: 0 }
    }

    /// What is left of the rows that describe the store.
    pub(super) fn meta(&mut self) -> Meta {
        let Some(db) = &self.db else { return Meta::default() };
        guarded(|| tables::read_meta(db)).unwrap_or_else(|_| {
            self.failed();
            Meta::default()
        })
    }

    /// Copies the rows.
    pub(super) fn copy_into(&mut self, rebuild: &mut Rebuild) -> Result<(), StoreError> {
        self.copy_table(CHUNKS, 9, &mut |key, value| {
            let Some(key) = rows::parse_chunk_key(key) else { return Ok(()) };
            let chunk = match rows::parse_chunk(key, value) {
                ChunkRow::Whole(chunk) => Some(chunk),
                ChunkRow::Torn(chunk) => chunk.salvage(),
                ChunkRow::Lost => None,
            };
            match chunk {
                Some(chunk) => {
                    let last_seq = last_seq(&chunk);
                    rebuild.push(chunk, last_seq)
                }
                None => Ok(()),
            }
        })?;
        self.copy_table(DEAD, 8, &mut |key, value| {
            let seq = key.first_chunk().map(|seq| u64::from_be_bytes(*seq));
            match seq.and_then(|seq| rows::parse_dead(seq, value)) {
                Some(dead) => rebuild.dead_letter(dead),
                None => Ok(()),
            }
        })
    }

    fn copy_table(&mut self, table: Table, width: usize, sink: Sink<'_>) -> Result<(), StoreError> {
        let mut ranges = VecDeque::from([0..=(1_u128 << (8 * width)) - 1]);
        while let Some(range) = ranges.pop_front() {
            let Some(rest) = self.copy_range(table, width, range, Direction::Up, sink)? else { continue };
            let Some(rest) = self.copy_range(table, width, rest, Direction::Down, sink)? else { continue };
            let (low, high) = (*rest.start(), *rest.end());
            if low < high {
                let middle = low + (high - low) / 2;
                ranges.extend([low..=middle, middle + 1..=high]);
            }
        }
        Ok(())
    }

    /// Reads a range from one end until something fails. Returns what it did not reach, if anything.
    fn copy_range(
        &mut self,
        table: Table,
        width: usize,
        range: RangeInclusive<u128>,
        direction: Direction,
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
                let row = match direction {
                    Direction::Up => rows.next(),
                    Direction::Down => rows.next_back(),
                };
                Ok(row.transpose()?.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
            });
            let Ok(row) = step else { break };
            let Some((key, value)) = row else { return Ok(None) };
            // A damaged tree may lead in circles: every key must lie where the last one left off.
            let Some(at) = key_number(&key, width).filter(|at| (low..=high).contains(at)) else { break };
            sink(&key, &value)?;
            if low == high {
                return Ok(None);
            }
            match direction {
                Direction::Up if at == high => return Ok(None),
                Direction::Down if at == low => return Ok(None),
                Direction::Up => low = at + 1,
                Direction::Down => high = at - 1,
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

    /// A failure may have latched the database, or left its locks poisoned: it is opened afresh.
    fn failed(&mut self) {
        self.failures += 1;
        self.close();
        if self.failures < MOST_FAILURES {
            self.db = untrusted::open(self.place);
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

type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;
type Sink<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), StoreError>;

#[derive(Clone, Copy, Debug)]
enum Direction {
    Up,
    Down,
}

/// The key of `width` bytes that sorts as `number` does.
fn key_bytes(number: u128, width: usize) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    bytes[bytes.len().saturating_sub(width)..].to_vec()
}

fn key_number(key: &[u8], width: usize) -> Option<u128> {
    (key.len() == width).then(|| key.iter().fold(0, |number, byte| number << 8 | u128::from(*byte)))
}

fn last_seq(chunk: &Chunk) -> u64 {
    frame::frames(&chunk.frames, chunk.salt).map(|(head, _)| head.seq).max().unwrap_or(chunk.key.first_seq)
}
