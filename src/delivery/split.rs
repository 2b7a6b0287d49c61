//! The search for what is unacceptable in a refused batch.
//!
//! A refused batch is cut in two, and each half is sent like any other batch, until a single event is refused. Two directions are
//! searched in turns: deep (the newest, smallest piece: it leads to a culprit, or to an acceptance, in few steps even where bad
//! events are dense) and wide (the oldest, largest piece: it sets most of the good events free where bad ones are rare). Between two
//! pieces a fresh batch may go, so a bad batch never stands before the others.

use std::collections::VecDeque;

use super::batch::Batch;

/// So many refusals without one acceptance are an outage. Twice the cuts it takes to get from 1000 events to one, and some.
const MANY_REFUSALS: u32 = 32;

/// Pieces of refused batches, and how the search for culprits goes.
#[derive(Debug, Default)]
pub(super) struct Split {
    pieces: VecDeque<Batch>,
    turn: u8,
    refusals_in_a_row: u32,
}

/// What to send next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// A piece first, a fresh batch if there is none.
    Piece,
    /// A fresh batch first, a piece if there is none.
    Fresh,
}

impl Split {
    /// Adds the halves of a refused batch, or a suspect that is to be tried again.
    pub(super) fn push(&mut self, pieces: impl IntoIterator<Item = Batch, IntoIter: DoubleEndedIterator>) {
        for piece in pieces.into_iter().rev() {
            self.pieces.push_front(piece);
        }
    }

    /// Whose turn it is.
    pub(super) fn turn(&mut self) -> Turn {
        self.turn = self.turn.wrapping_add(1);
        if self.turn.is_multiple_of(2) { Turn::Fresh } else { Turn::Piece }
    }

    /// A piece, from either end in turns.
    pub(super) fn pop(&mut self) -> Option<Batch> {
        if self.turn & 2 == 0 { self.pieces.pop_front() } else { self.pieces.pop_back() }
    }

    /// Whether there is any.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Gives up the search.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Batch> + '_ {
        self.pieces.drain(..)
    }

    /// A request was refused. Says whether that is one too many.
    pub(super) fn refused(&mut self) -> bool {
        self.refusals_in_a_row += 1;
        let too_many = self.refusals_in_a_row >= MANY_REFUSALS;
        if too_many {
            self.refusals_in_a_row = 0;
        }
        too_many
    }

    /// A request was accepted.
    pub(super) fn accepted(&mut self) {
        self.refusals_in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(events: usize) -> Batch {
        Batch { events, ..Batch::default() }
    }

    #[test]
    fn the_search_goes_deep_and_wide_in_turns_and_lets_fresh_batches_between() {
        let mut split = Split::default();
        split.push([piece(1), piece(2), piece(3), piece(4)]);
        let mut order = Vec::new();
        for _ in 0..4 {
            assert_eq!(split.turn(), Turn::Piece);
            order.push(split.pop().unwrap().events);
            assert_eq!(split.turn(), Turn::Fresh);
        }
        assert_eq!(order, [1, 4, 2, 3]);
        assert!(split.is_empty());
    }

    #[test]
    fn an_acceptance_between_refusals_keeps_the_search_going() {
        let mut split = Split::default();
        for _ in 0..10 {
            assert!((1..MANY_REFUSALS).all(|_| !split.refused()));
            split.accepted();
        }
        assert!((1..MANY_REFUSALS).all(|_| !split.refused()) && split.refused());
    }
}
