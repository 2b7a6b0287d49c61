//! Replay: finding the records of a round in the bytes of an arena. Pure: bytes in, ranges out.

use std::ops::Range;

use super::arena::Round;
use crate::queue::frame::{self, FRAME_ALIGN};

/// The records found in an arena.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Replay {
    /// The arena's bytes after the header.
    pub(crate) bytes: Vec<u8>,
    /// Runs of valid frames in `bytes`, in the order of their sequence numbers.
    pub(crate) runs: Vec<Run>,
    pub(crate) salt: u64,
}

/// Valid frames without a gap between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Their place in the bytes.
    pub(crate) range: Range<usize>,
    pub(crate) count: u32,
    /// The first one's sequence number.
    pub(crate) first_seq: u64,
    /// The last one's.
    pub(crate) last_seq: u64,
}

impl Replay {
    /// The number of records found.
    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.count)).sum()
    }

    /// The highest sequence number found.
    pub(crate) fn last_seq(&self) -> Option<u64> {
        self.runs.last().map(|run| run.last_seq)
    }

    /// Cuts the runs into pieces of at most `most` bytes, or of one record if that is larger. Records up to
    /// `checkpointed` are left out: they are in the store.
    pub(crate) fn pieces(&self, most: usize, checkpointed: u64) -> Vec<Run> {
        let mut pieces: Vec<Run> = Vec::new();
        for run in &self.runs {
            let mut open: Option<Run> = None;
            let bytes = self.bytes.get(run.range.clone()).unwrap_or_default();
            let mut at = 0;
            while let Some((head, _, next)) = frame::parse(bytes, at, self.salt) {
                // The padding of the last frame may be beyond the bytes that could be read.
                let end = (run.range.start + next).min(run.range.end);
                let record =
                    Run { range: run.range.start + at..end, count: 1, first_seq: head.seq, last_seq: head.seq };
                at = next;
                if head.seq <= checkpointed {
                    continue;
                }
                open = match open {
                    Some(piece) if end - piece.range.start <= most => Some(piece.joined(&record)),
                    full => {
                        pieces.extend(full);
                        Some(record)
                    }
                };
            }
            pieces.extend(open);
        }
        pieces
    }
}

impl Run {
    fn joined(self, next: &Run) -> Run {
        Run { range: self.range.start..next.range.end, count: self.count + next.count, last_seq: next.last_seq, ..self }
    }
}

/// Reads up to the first invalid record. If that is short of `last_seq`, the rest is searched: every aligned place is
/// tried, and a frame counts only if it has the salt of this round and a number that is still missing.
pub(crate) fn replay(bytes: Vec<u8>, round: &Round, last_seq: Option<u64>) -> Replay {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    let mut next_seq = round.first_seq;
    loop {
        let end = read_run(&bytes, at, round.salt, &mut next_seq, &mut runs);
        if last_seq.is_none_or(|last| next_seq > last) {
            break;
        }
        match find_frame(&bytes, end, round.salt, next_seq..=last_seq.unwrap_or(next_seq)) {
            Some((found, seq)) => (at, next_seq) = (found, seq),
            None => break,
        }
    }
    Replay { bytes, runs, salt: round.salt }
}

/// Reads frames from `at` while their numbers are consecutive. Returns where it stopped.
fn read_run(bytes: &[u8], at: usize, salt: u64, next_seq: &mut u64, runs: &mut Vec<Run>) -> usize {
    let (mut end, mut count, first_seq) = (at, 0_u32, *next_seq);
    while let Some((head, _, next)) = frame::parse(bytes, end, salt) {
        if head.seq != *next_seq {
            break;
        }
        *next_seq += 1;
        count += 1;
        end = next;
    }
    if count > 0 {
        // The padding of the last frame may be cut off here too.
        let range = at..end.min(bytes.len());
        runs.push(Run { range, count, first_seq, last_seq: *next_seq - 1 });
    }
    end
}

fn find_frame(bytes: &[u8], from: usize, salt: u64, wanted: std::ops::RangeInclusive<u64>) -> Option<(usize, u64)> {
    let mut at = from;
    while at < bytes.len() {
        // Cheap tests first: computing a checksum at a million places would take minutes.
        let seq =
            bytes.get(at + 8..at + 16).and_then(|word| word.first_chunk::<8>()).map(|word| u64::from_le_bytes(*word));
        if let Some(seq) = seq.filter(|seq| wanted.contains(seq))
            && frame::parse(bytes, at, salt).is_some()
        {
            return Some((at, seq));
        }
        at += FRAME_ALIGN;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: Round = Round { epoch: 3, salt: 77, first_seq: 10 };

    /// Frames 10 to 10 + `count`, of 40 bytes each, followed by a zero word.
    fn arena(count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for seq in 10..10 + count {
            frame::append(&mut bytes, b"sixteen bytes!!!", 0, seq, ROUND.salt);
        }
        bytes.extend_from_slice(&[0; 8]);
        bytes
    }

    fn sequences(replay: &Replay) -> Vec<u64> {
        replay.runs.iter().flat_map(|run| run.first_seq..=run.last_seq).collect()
    }

    #[test]
    fn an_arena_is_read_up_to_its_end() {
        let replay = replay(arena(5), &ROUND, None);
        assert_eq!(sequences(&replay), [10, 11, 12, 13, 14]);
        assert_eq!((replay.count(), replay.last_seq()), (5, Some(14)));
    }

    #[test]
    fn records_of_an_earlier_round_do_not_come_back() {
        let mut bytes = arena(2);
        bytes.truncate(80);
        for seq in 12..20 {
            frame::append(&mut bytes, b"sixteen bytes!!!", 0, seq, ROUND.salt + 1);
        }
        assert_eq!(sequences(&replay(bytes.clone(), &ROUND, None)), [10, 11]);
        assert_eq!(sequences(&replay(bytes, &ROUND, Some(19))), [10, 11], "even where more is searched for");
    }

    #[test]
    fn a_hole_ends_the_arena_unless_more_must_be_there() {
        let mut bytes = arena(6);
        bytes[2 * 40 + 30] ^= 1;
        assert_eq!(sequences(&replay(bytes.clone(), &ROUND, None)), [10, 11]);
        let more = replay(bytes, &ROUND, Some(15));
        assert_eq!(sequences(&more), [10, 11, 13, 14, 15]);
        assert_eq!(more.count(), 5);
    }

    #[test]
    fn no_record_comes_back_twice_whatever_is_flipped() {
        let whole = arena(8);
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let seen = sequences(&replay(bytes, &ROUND, Some(17)));
            assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "bit {bit}: {seen:?}");
            assert!(seen.len() >= 7, "bit {bit}: one record at most is lost, not {seen:?}");
        }
    }

    #[test]
    fn a_piece_whose_padding_was_cut_off_still_has_its_records() {
        let mut bytes = arena(3);
        bytes.truncate(3 * 40);
        frame::append(&mut bytes, b"two", 0, 13, ROUND.salt);
        bytes.truncate(bytes.len() - 3);
        let replay = replay(bytes, &ROUND, None);
        let pieces = replay.pieces(1000, 0);
        assert_eq!((pieces.len(), pieces[0].count), (1, 4));
        assert_eq!(frame::frames(&replay.bytes[pieces[0].range.clone()], ROUND.salt).count(), 4);
    }

    #[test]
    fn pieces_cover_each_record_once_and_skip_checkpointed_ones() {
        let replay = replay(arena(9), &ROUND, None);
        for most in [1, 40, 41, 80, 100, 1000] {
            let pieces = replay.pieces(most, 11);
            let seen: Vec<_> = pieces.iter().flat_map(|piece| piece.first_seq..=piece.last_seq).collect();
            assert_eq!(seen, (12..19).collect::<Vec<_>>(), "pieces of {most}");
            for piece in &pieces {
                let inside = frame::frames(&replay.bytes[piece.range.clone()], ROUND.salt).count();
                assert_eq!(inside, piece.count as usize);
                assert!(piece.range.len() <= most.max(40));
            }
        }
    }
}
