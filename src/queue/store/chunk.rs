//! A chunk: the contiguous bytes of many records, one row of the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::rows;
use crate::record::frame::{self, Parsed};
use crate::sys::clock::WallNanos;

/// The most bytes of frames that a chunk should have. A row takes a run of pages, a power of two; with the leaf's head, the key and the
/// row's own head this fills 64 KiB to 99.7 % (measured). Four bytes more would take twice the space.
pub(crate) const CHUNK_BYTES_TARGET: usize = 64 * 1024 - 64;

/// A chunk's place in the queue: lanes apart, within a lane oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChunkKey {
    /// The lane.
    pub(crate) lane: u8,
    /// Sequence number of its first record.
    pub(crate) first_seq: u64,
}

/// Many records, as they stood in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Where it stands.
    pub(crate) key: ChunkKey,
    /// How many records.
    pub(crate) count: u32,
    /// What their check words are mixed with.
    pub(crate) salt: u64,
    /// When they were checkpointed into the store.
    pub(crate) checkpointed_at: WallNanos,
    /// The records, see [`frame`].
    pub(crate) frames: Arc<[u8]>,
}

impl Chunk {
    /// Bytes of the pages that the row takes with only so many bytes of frames; with none of them there is no row.
    pub(crate) fn page_bytes_with(frames_len: usize) -> u64 {
        if frames_len == 0 { 0 } else { rows::page_bytes(frames_len.saturating_add(rows::CHUNK_HEAD)) }
    }

    /// The chunk with only the records whose sequence number `keep` says yes to; `None` if that is none of them.
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

    /// Every whole record in bytes that are damaged somewhere: what follows a bad record is found again, and what a misdirected write
    /// put in a second place counts once.
    pub(super) fn salvage(&self) -> Option<Chunk> {
        let mut whole = BTreeMap::new();
        let mut at = 0;
        while at < self.frames.len() {
            match frame::parse(&self.frames, at, self.salt) {
                Parsed::Frame { head, next, .. } => {
                    whole.entry(head.seq).or_insert((at, next));
                    at = next;
                }
                Parsed::End | Parsed::Invalid => at = at.saturating_add(frame::FRAME_ALIGN),
            }
        }
        self.rebuild(whole.into_iter().map(|(seq, (begin, end))| (seq, begin, end)))
    }

    fn rebuild(&self, records: impl Iterator<Item = (u64, usize, usize)>) -> Option<Chunk> {
        let mut frames = Vec::new();
        let mut count: u32 = 0;
        let mut first_seq = None;
        for (seq, begin, end) in records {
            frames.extend_from_slice(self.frames.get(begin..end.min(self.frames.len()))?);
            // The last record's padding may have been cut off; the next one needs it.
            frames.resize(frames.len().next_multiple_of(frame::FRAME_ALIGN), 0);
            count = count.saturating_add(1);
            first_seq.get_or_insert(seq);
        }
        let key = ChunkKey { lane: self.key.lane, first_seq: first_seq? };
        Some(Chunk { key, count, salt: self.salt, checkpointed_at: self.checkpointed_at, frames: frames.into() })
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
        let key = ChunkKey { lane: 0, first_seq: seqs[0] };
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
    fn a_record_that_was_written_over_another_is_saved_once_and_in_its_place() {
        let whole = chunk_of(&[1, 2, 3, 4]);
        let each = whole.frames.len() / 4;
        let mut bytes = whole.frames.to_vec();
        bytes.copy_within(3 * each.., each);
        let saved = Chunk { frames: bytes.into(), ..whole }.salvage().unwrap();
        assert_eq!((seqs(&saved), saved.count), (vec![1, 3, 4], 3));
    }

    #[test]
    fn a_record_whose_padding_was_cut_is_still_saved() {
        let whole = chunk_of(&[1, 2]);
        let cut = Chunk { frames: whole.frames[..whole.frames.len() - 1].into(), ..whole.clone() };
        assert_eq!(cut.salvage(), Some(whole));
    }
}
