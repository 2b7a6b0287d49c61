//! The search for the events that are to blame in a batch that was refused, or that failed while others passed.
//!
//! Such a batch is cut in two, and each half is sent like any other batch, until a single event is refused. How much of a
//! piece one request holds is learnt: half of what was refused, twice what was accepted. So pieces become as small as bad events are
//! dense, about every second one is accepted, and a bad event costs a few requests, however many there are.
//!
//! Pieces are taken from both ends in turns, and a fresh batch goes between two pieces as long as not too much is being searched: a
//! bad batch never stands before the others, and never waits for ever behind them. A search that finds no acceptance is given up: its
//! chunks are stepped over, for others may be fine; and when others are not, it is an outage. After as many failures in a row without
//! an acceptance it is an outage at once.
//!
//! A failure that took its time (a request that hangs until its timeout) is dear, so what it leaves is cut in eight.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::batch::{Batch, BatchLimits};
use super::loaded::Loaded;

/// A search is given up after so many refusals in a row: thrice the cuts it takes to get from 1000 events to one, and some.
const MANY_REFUSALS: u32 = 32;
/// After so many failures in a row there is one request at a time, of one event.
const LOSING: u32 = 4;
/// Failures so far apart, with nothing to search between them, are those of single events that are tried again, and not in a row.
const FAR_APART: Duration = Duration::from_secs(5);
/// What failed slowly is cut in so many.
const MANY_PARTS: usize = 8;
/// An endpoint that has accepted something is given so many searches to do so again.
const MANY_SEARCHES: u32 = 8;
/// No fresh batch joins while so much, as JSON, is being searched: all of it is in memory.
const MANY_BYTES: usize = 4 * 1024 * 1024;

/// Pieces of refused batches, and how the search for culprits goes.
#[derive(Debug)]
pub(super) struct Split {
    pieces: VecDeque<Batch>,
    turn: u8,
    /// Events of one piece, as far as refusals and acceptances tell.
    size: usize,
    /// Refusals since the last acceptance.
    refusals_in_a_row: u32,
    /// Failures since anything was last accepted or refused, and the last of them.
    failures_in_a_row: u32,
    last_failure: Option<Instant>,
    /// Something failed slowly: pieces do not grow before the search is over.
    is_careful: bool,
    /// Searches that may be given up before it is an outage.
    searches_left: u32,
}

/// What a refusal means for the search.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// It goes on.
    GoesOn,
    /// It leads nowhere; there may be others that are fine.
    GivenUp,
    /// Nothing is accepted any more.
    Outage,
}

/// What to send next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// A piece first, a fresh batch if there is none.
    Piece,
    /// A fresh batch first, a piece if there is none.
    Fresh,
}

impl Default for Split {
    fn default() -> Self {
        Self {
            pieces: VecDeque::new(),
            turn: 0,
            size: usize::MAX,
            refusals_in_a_row: 0,
            failures_in_a_row: 0,
            last_failure: None,
            is_careful: false,
            searches_left: 0,
        }
    }
}

impl Split {
    /// Adds the halves of a refused batch, or a suspect that is to be tried again.
    pub(super) fn push(&mut self, pieces: impl IntoIterator<Item = Batch, IntoIter: DoubleEndedIterator>) {
        for piece in pieces.into_iter().rev() {
            self.pieces.push_front(Batch { is_piece: true, ..piece });
        }
    }

    /// Adds what failed while it was not known whether anything else would pass: it is sent once more as it is.
    pub(super) fn push_whole(&mut self, batch: Batch) {
        self.size = self.size.max(batch.events);
        self.push([batch]);
    }

    /// Whether an event that was quarantined is among the pieces.
    pub(super) fn has_quarantined(&self) -> bool {
        self.pieces.iter().any(|piece| piece.quarantined > 0)
    }

    /// Whose turn it is.
    pub(super) fn turn(&mut self) -> Turn {
        self.turn = self.turn.wrapping_add(1);
        let is_full = self.pieces.iter().map(|piece| piece.bytes).sum::<usize>() >= MANY_BYTES;
        if self.turn.is_multiple_of(2) && !is_full { Turn::Fresh } else { Turn::Piece }
    }

    /// A piece, from either end in turns; the rest of a large one stays where it was.
    pub(super) fn pop(&mut self, limits: &BatchLimits, loaded: &mut Loaded) -> Option<Batch> {
        let is_front = self.turn & 2 == 0;
        let piece = if is_front { self.pieces.pop_front() } else { self.pieces.pop_back() }?;
        let size = self.size.min(limits.events);
        let size = if piece.bytes > limits.bytes { size.min(piece.events / 2).max(1) } else { size };
        if piece.events <= size {
            return Some(piece);
        }
        let (piece, rest) = piece.cut(size, loaded);
        let rest = Batch { is_piece: true, ..rest };
        if is_front {
            self.pieces.push_front(rest)
        } else {
            self.pieces.push_back(rest)
        }
        Some(Batch { is_piece: true, ..piece })
    }

    /// Whether there is any.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Gives up the search.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Batch> + '_ {
        (self.refusals_in_a_row, self.failures_in_a_row) = (0, 0);
        self.pieces.drain(..)
    }

    /// A request with so many events failed, while others passed.
    pub(super) fn failed(&mut self, events: usize, slowly: bool, now: Instant) {
        let is_alone = self.last_failure.is_some_and(|at| now.saturating_duration_since(at) > FAR_APART);
        if is_alone && self.pieces.is_empty() {
            self.failures_in_a_row = 0;
        }
        self.last_failure = Some(now);
        let parts = if slowly { MANY_PARTS } else { 2 };
        self.is_careful |= slowly;
        self.size = self.size.min(events / parts).max(1);
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
    }

    /// Whether so much has failed in a row that one request at a time is enough.
    pub(super) fn is_losing(&self) -> bool {
        self.failures_in_a_row >= LOSING
    }

    /// Whether one more failure in a row is an outage, whatever passed before.
    pub(super) fn is_hopeless(&self) -> bool {
        self.failures_in_a_row + 1 >= MANY_REFUSALS
    }

    /// A request with so many events was refused.
    pub(super) fn refused(&mut self, events: usize) -> Search {
        self.size = self.size.min(events / 2).max(1);
        // Whoever refuses is there.
        self.failures_in_a_row = 0;
        self.refusals_in_a_row = self.refusals_in_a_row.saturating_add(1);
        if self.refusals_in_a_row < MANY_REFUSALS {
            return Search::GoesOn;
        }
        self.refusals_in_a_row = 0;
        match self.searches_left.checked_sub(1) {
            Some(left) => {
                self.searches_left = left;
                Search::GivenUp
            }
            None => Search::Outage,
        }
    }

    /// A request with so many events was accepted.
    pub(super) fn accepted(&mut self, events: usize) {
        self.is_careful &= !self.pieces.is_empty();
        if !self.is_careful {
            self.size = self.size.max(events.saturating_mul(2));
        }
        (self.refusals_in_a_row, self.failures_in_a_row) = (0, 0);
        self.searches_left = MANY_SEARCHES;
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::chunk;
    use super::*;

    fn pieces(loaded: &mut Loaded, counts: &[u64]) -> Vec<Batch> {
        let first_seqs = counts.iter().scan(1, |next, &count| Some(std::mem::replace(next, *next + count)));
        let chunks: Vec<_> = first_seqs.zip(counts).map(|(first, &count)| chunk(0, first, count)).collect();
        let slices: Vec<_> = chunks.into_iter().map(|lease| loaded.insert(lease)).collect();
        slices.into_iter().map(|slice| Batch::of(slice, loaded)).collect()
    }

    #[test]
    fn pieces_go_from_both_ends_in_turns_and_let_fresh_batches_between() {
        let (mut split, mut loaded) = (Split::default(), Loaded::default());
        split.push(pieces(&mut loaded, &[1, 2, 3, 4]));
        let mut order = Vec::new();
        for _ in 0..4 {
            assert_eq!(split.turn(), Turn::Piece);
            order.push(split.pop(&BatchLimits::new(1000, 4 << 20), &mut loaded).unwrap().events);
            assert_eq!(split.turn(), Turn::Fresh);
        }
        assert_eq!(order, [1, 4, 2, 3]);
        assert!(split.is_empty());
    }

    #[test]
    fn no_fresh_batch_joins_a_search_of_many_events() {
        let mut split = Split::default();
        split.push([MANY_BYTES / 2, MANY_BYTES / 2].map(|bytes| Batch { bytes, events: 1, ..Batch::default() }));
        assert!((0..4).all(|_| split.turn() == Turn::Piece));
        split.pop(&BatchLimits::new(1000, 4 << 20), &mut Loaded::default());
        assert!((0..2).any(|_| split.turn() == Turn::Fresh));
    }

    #[test]
    fn a_piece_holds_half_of_what_was_refused_and_twice_what_was_accepted() {
        let (mut split, mut loaded) = (Split::default(), Loaded::default());
        split.push(pieces(&mut loaded, &[300, 300]));
        let mut size_after = |change: &dyn Fn(&mut Split)| {
            change(&mut split);
            split.turn();
            split.pop(&BatchLimits::new(1000, 4 << 20), &mut loaded).unwrap().events
        };
        let refused = |events| {
            move |split: &mut Split| {
                split.refused(events);
            }
        };
        let accepted = |events| move |split: &mut Split| split.accepted(events);
        assert_eq!(size_after(&refused(64)), 32);
        assert_eq!(size_after(&refused(64)), 32, "two under way together say the same");
        assert_eq!(size_after(&accepted(8)), 32);
        assert_eq!(size_after(&accepted(32)), 64);
        assert_eq!(size_after(&refused(1)), 1);
        let rest: usize = (0..2).map(|_| size_after(&accepted(1000))).sum();
        assert_eq!(rest, 600 - 32 - 32 - 32 - 64 - 1, "what was cut off stays");
    }

    #[test]
    fn searches_are_given_up_and_then_it_is_an_outage_unless_something_is_accepted() {
        let mut split = Split::default();
        let search = |split: &mut Split| {
            assert!((1..MANY_REFUSALS).all(|_| split.refused(1) == Search::GoesOn));
            split.refused(1)
        };
        assert_eq!(search(&mut split), Search::Outage, "never accepted anything");
        for _ in 0..2 {
            split.accepted(1);
            assert!((0..MANY_SEARCHES).all(|_| search(&mut split) == Search::GivenUp));
        }
        assert_eq!(search(&mut split), Search::Outage);
    }
}
