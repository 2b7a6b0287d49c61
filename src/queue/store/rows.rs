//! What the rows of the store hold: chunks of records, dead records, and the state with its ledger.
//!
//! A leaf of plain types. How they are written as bytes is in `schema.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::queue::frame;
use crate::sys::clock::WallNanos;

/// Bytes of a chunk row before its frames.
pub(super) const CHUNK_HEAD: usize = 40;

/// The most bytes of frames in a chunk of several records. A row takes a run of pages, a power of two; with the heads
/// of leaf and row and the key, this fills 64 KiB to 99.7 % (measured). Four bytes more would take twice the space.
pub(crate) const CHUNK_BYTES_TARGET: usize = 64 * 1024 - 64;

/// The place of a chunk in the queue. Keys sort from the oldest chunk to the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChunkKey {
    /// The first byte of the key. This library writes 0; any other value is damage.
    pub(super) prefix: u8,
    /// Sequence number of its first record.
    pub(crate) first_seq: u64,
}

impl ChunkKey {
    /// The key of the chunk that begins with record `first_seq`.
    pub(crate) const fn new(first_seq: u64) -> Self {
        Self { prefix: 0, first_seq }
    }
}

/// A number of records as they were in the journal. One row of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) key: ChunkKey,
    pub(crate) count: u32,
    /// The salt of their check words.
    pub(crate) salt: u64,
    /// When they were checkpointed.
    pub(crate) checkpointed_at: WallNanos,
    /// The records, see [`frame`].
    pub(crate) frames: Arc<[u8]>,
}

impl Chunk {
    /// Bytes of the pages that the row would take with `frames_len` bytes of frames. Without frames there is no row.
    pub(crate) fn page_bytes_with(frames_len: usize) -> u64 {
        if frames_len == 0 { 0 } else { page_bytes(frames_len.saturating_add(CHUNK_HEAD)) }
    }

    /// Bytes of its row's value.
    #[cfg(feature = "inspect")]
    pub(crate) fn row_bytes(&self) -> u64 {
        CHUNK_HEAD.saturating_add(self.frames.len()) as u64
    }

    /// The chunk reduced to the records whose sequence number satisfies `keep`; `None` if there are none.
    pub(crate) fn retain(&self, mut keep: impl FnMut(u64) -> bool) -> Option<Chunk> {
        self.rebuild(
            frame::frames(&self.frames, self.salt)
                .scan(0, |at, (head, body)| {
                    let begin = *at;
                    *at = begin + frame::framed_len(body.len())?;
                    Some((head.seq, begin, *at))
                })
                .filter(|(seq, ..)| keep(*seq)),
        )
    }

    /// The whole records in damaged bytes: those behind a bad record are found again. A misdirected write may have put records
    /// of this row in a second place, or records of another row of the same round here: each counts once, and those that
    /// are outside of the numbers of this row do not count.
    pub(super) fn salvage(&self) -> Option<Chunk> {
        let mut whole = BTreeMap::new();
        let mut at = 0;
        while at < self.frames.len() {
            match frame::parse(&self.frames, at, self.salt) {
                Some((head, _, next)) => {
                    whole.entry(head.seq).or_insert((at, next));
                    at = next;
                }
                None => at = at.saturating_add(frame::FRAME_ALIGN),
            }
        }
        whole.retain(|seq, _| *seq >= self.key.first_seq);
        // A row whose records were decided in part has gaps, and its last number is not known.
        let up_to = self.key.first_seq.saturating_add(u64::from(self.count.max(1)) - 1);
        if whole.range(..=up_to).count() * 2 >= whole.len() {
            whole.retain(|seq, _| *seq <= up_to);
        }
        self.rebuild(whole.into_iter().map(|(seq, (begin, end))| (seq, begin, end)))
    }

    fn rebuild(&self, records: impl Iterator<Item = (u64, usize, usize)>) -> Option<Chunk> {
        let mut frames = Vec::new();
        let mut count: u32 = 0;
        let mut first_seq = None;
        for (seq, begin, end) in records {
            frames.extend_from_slice(self.frames.get(begin..end.min(self.frames.len()))?);
            // The padding of the last record may have been cut off; a record behind it needs it.
            frames.resize(frames.len().next_multiple_of(frame::FRAME_ALIGN), 0);
            count = count.saturating_add(1);
            first_seq.get_or_insert(seq);
        }
        let key = ChunkKey::new(first_seq?);
        Some(Chunk { key, count, salt: self.salt, checkpointed_at: self.checkpointed_at, frames: frames.into() })
    }
}

/// Bytes of the pages that a chunk row takes: a run of pages, their number a power of two.
pub(super) fn page_bytes(value_len: usize) -> u64 {
    const PAGE: usize = 4096;
    // The head of the leaf, and the key.
    const AROUND: usize = 24;
    (value_len.saturating_add(AROUND).div_ceil(PAGE).next_power_of_two() * PAGE) as u64
}

/// A record that was rejected for good, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadRecord {
    pub(crate) seq: u64,
    /// The status code of the rejection (for HTTP, the response's); 0 if the record was never sent.
    pub(crate) status: u16,
    /// The reason. At most 1 KiB of it is stored.
    pub(crate) reason: String,
    /// When it was first sent.
    pub(crate) first_attempt: WallNanos,
    pub(crate) last_attempt: WallNanos,
    pub(crate) attempts: u32,
    pub(crate) body: Vec<u8>,
}

/// The project that a queue belongs to: where its events go, and under which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Project {
    /// The normalized host.
    pub(crate) host: String,
    /// The public, write-only key.
    pub(crate) api_key: String,
}

impl Project {
    /// The identity of the project, 256 bits.
    pub(crate) fn hash(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        // The separator cannot occur in a host, so no two pairs give the same text.
        hasher.update(self.host.as_bytes());
        hasher.update(b"\n");
        hasher.update(self.api_key.as_bytes());
        hasher.finalize().into()
    }
}

/// Everything small that changes with every transaction. It is one row, so it changes as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) ledger: Ledger,
    /// The number of rows in the chunk table. At open it is compared with the table's own count.
    pub(crate) rows: u64,
    /// Bytes of the pages that the chunk rows take. Stored in a row of its own, which a file of an older version does
    /// not have.
    pub(crate) row_bytes: u64,
    /// Bytes of the dead rows, stored beside `row_bytes`; `None` if they were not counted.
    pub(crate) dead_bytes: Option<u64>,
    /// The epoch of the newest arena that was checkpointed; 0 for none.
    pub(crate) epoch: u64,
    pub(crate) next_attempt: Option<WallNanos>,
}

/// Where every event is that a queue ever accepted. Changed only in the transaction that moves the events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// The highest sequence number ever accepted. Sequence numbers start at 1 and have no gaps.
    pub(crate) accepted: u64,
    pub(crate) delivered: u64,
    /// Rejected for good.
    pub(crate) dead_lettered: u64,
    /// Removed to make room, or because of their age.
    pub(crate) evicted: u64,
    /// Damaged on disk.
    pub(crate) damaged: u64,
    /// Lost in a power cut before they were synced.
    pub(crate) lost_unsynced: u64,
    /// In the rows of the store.
    pub(crate) queued_events: u64,
    /// Bytes of those rows, including their heads.
    pub(crate) queued_bytes: u64,
}

impl Ledger {
    /// The fields in the order in which they are stored.
    pub(crate) fn words(&self) -> [u64; 8] {
        let Self { accepted, delivered, dead_lettered, evicted, damaged, lost_unsynced, queued_events, queued_bytes } =
            *self;
        [accepted, delivered, dead_lettered, evicted, damaged, lost_unsynced, queued_events, queued_bytes]
    }

    /// The inverse of [`words`](Self::words).
    pub(crate) fn of_words(words: [u64; 8]) -> Self {
        let [accepted, delivered, dead_lettered, evicted, damaged, lost_unsynced, queued_events, queued_bytes] = words;
        Self { accepted, delivered, dead_lettered, evicted, damaged, lost_unsynced, queued_events, queued_bytes }
    }

    /// Counts dead letters that could not be read back as damaged. Returns their number.
    pub(super) fn lose_dead(&mut self, dead_letters: u64) -> u64 {
        let lost = dead_letters.min(self.dead_lettered);
        self.dead_lettered -= lost;
        self.damaged = self.damaged.saturating_add(lost);
        lost
    }

    /// Events that are not queued any more. A later ledger counts at least as many.
    pub(super) fn gone(&self) -> u64 {
        let places = [self.delivered, self.dead_lettered, self.evicted, self.damaged, self.lost_unsynced];
        places.into_iter().fold(0, u64::saturating_add)
    }

    /// Accepted events minus those that are accounted for. Always zero unless there is a defect.
    pub(crate) fn imbalance(&self) -> i128 {
        let places =
            [self.delivered, self.queued_events, self.dead_lettered, self.evicted, self.damaged, self.lost_unsynced];
        i128::from(self.accepted) - places.into_iter().map(i128::from).sum::<i128>()
    }

    /// Corrects the ledger after the store was found to contain `events` in `bytes`, with `highest_seq` the highest
    /// number. Missing events count as damaged. Events that are present although they had been accounted for elsewhere
    /// are taken back, from `delivered` first.
    pub(super) fn recount(&mut self, events: u64, bytes: u64, highest_seq: u64) {
        self.accepted = self.accepted.max(highest_seq);
        (self.queued_events, self.queued_bytes) = (events, bytes);
        let imbalance = self.imbalance();
        if imbalance >= 0 {
            self.damaged = self.damaged.saturating_add(u64::try_from(imbalance).unwrap_or(u64::MAX));
            return;
        }
        let mut surplus = u64::try_from(-imbalance).unwrap_or(u64::MAX);
        for counter in [
            &mut self.delivered,
            &mut self.damaged,
            &mut self.evicted,
            &mut self.dead_lettered,
            &mut self.lost_unsynced,
        ] {
            let taken = surplus.min(*counter);
            *counter -= taken;
            surplus -= taken;
        }
        self.accepted = self.accepted.saturating_add(surplus);
    }

    /// Events that are known to be lost, while the counts alone would hide them behind others that came back: those were
    /// delivered, and are not any more.
    pub(super) fn lose_hidden(&mut self, events: u64) {
        let hidden = events.min(self.delivered);
        self.delivered -= hidden;
        self.damaged = self.damaged.saturating_add(hidden);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk_of(seqs: &[u64]) -> Chunk {
        let mut frames = Vec::new();
        for seq in seqs {
            frame::append(&mut frames, format!("the record {seq}").as_bytes(), 0, *seq, 99);
        }
        let key = ChunkKey::new(seqs[0]);
        Chunk { key, count: seqs.len() as u32, salt: 99, checkpointed_at: 5, frames: frames.into() }
    }

    fn seqs(chunk: &Chunk) -> Vec<u64> {
        frame::frames(&chunk.frames, chunk.salt).map(|(head, _)| head.seq).collect()
    }

    #[test]
    fn what_is_retained_can_be_read_and_begins_where_its_key_says() {
        let kept = chunk_of(&[4, 5, 6, 7]).retain(|seq| seq % 2 == 1).unwrap();
        assert_eq!((seqs(&kept), kept.count, kept.key.first_seq), (vec![5, 7], 2, 5));
        assert_eq!(chunk_of(&[4, 5]).retain(|_| false), None);
    }

    #[test]
    fn one_damaged_record_costs_that_record_alone() {
        let whole = chunk_of(&[1, 2, 3, 4]);
        for at in 0..whole.frames.len() {
            let mut bytes = whole.frames.to_vec();
            bytes[at] ^= 0x40;
            let saved = Chunk { frames: bytes.into(), ..whole.clone() }.salvage().unwrap();
            assert!(saved.count >= 3, "byte {at} cost {} records", 4 - saved.count);
            assert_eq!(seqs(&saved).len(), saved.count as usize);
        }
    }

    #[test]
    fn a_record_written_over_another_is_saved_once_in_its_place() {
        let whole = chunk_of(&[1, 2, 3, 4]);
        let each = whole.frames.len() / 4;
        let mut bytes = whole.frames.to_vec();
        bytes.copy_within(3 * each.., each);
        let saved = Chunk { frames: bytes.into(), ..whole }.salvage().unwrap();
        assert_eq!((seqs(&saved), saved.count), (vec![1, 3, 4], 3));
    }

    #[test]
    fn records_of_another_row_are_not_saved_from_this_one() {
        let foreign = chunk_of(&[3, 2, 23, 24, 8, 9]);
        let row = Chunk { key: ChunkKey::new(5), count: 6, ..foreign };
        assert_eq!(seqs(&row.salvage().unwrap()), [8, 9]);
        // Where records in between were delivered, the last number is not known.
        assert_eq!(seqs(&chunk_of(&[5, 30, 40, 50]).salvage().unwrap()), [5, 30, 40, 50]);
    }

    #[test]
    fn what_came_back_does_not_hide_what_is_lost() {
        let mut ledger = Ledger { accepted: 10, delivered: 3, queued_events: 7, ..Ledger::default() };
        ledger.recount(8, 800, 0);
        ledger.lose_hidden(2);
        assert_eq!((ledger.damaged, ledger.delivered, ledger.imbalance()), (2, 0, 0));
    }

    #[test]
    fn a_record_whose_padding_was_cut_is_still_saved() {
        let whole = chunk_of(&[1, 2]);
        let cut = Chunk { frames: whole.frames[..whole.frames.len() - 1].into(), ..whole.clone() };
        assert_eq!(cut.salvage(), Some(whole));
    }

    #[test]
    fn a_recount_always_balances() {
        let before = Ledger { accepted: 10, delivered: 3, dead_lettered: 1, queued_events: 6, ..Ledger::default() };
        assert_eq!(before.imbalance(), 0);
        for found in 0..20 {
            let mut after = before;
            after.recount(found, found * 100, 0);
            assert_eq!((after.imbalance(), after.queued_events), (0, found), "{found} found: {after:?}");
        }
    }

    #[test]
    fn what_a_recount_misses_is_damaged_and_nothing_else_changes() {
        let mut ledger = Ledger { accepted: 10, delivered: 3, dead_lettered: 1, queued_events: 6, ..Ledger::default() };
        ledger.recount(4, 400, 8);
        let expected = Ledger {
            accepted: 10,
            delivered: 3,
            dead_lettered: 1,
            damaged: 2,
            queued_events: 4,
            queued_bytes: 400,
            ..Ledger::default()
        };
        assert_eq!(ledger, expected);
    }
}
