//! The search for what is unacceptable in a refused batch.
//!
//! A refused batch is cut in two, and each half is sent like any other batch, until a single event is refused. Two directions are
//! searched in turns: deep (the newest, smallest piece: it leads to a culprit, or to an acceptance, in few steps even where bad
//! events are dense) and wide (the oldest, largest piece: it sets most of the good events free where bad ones are rare). Between two
//! pieces a fresh batch may go, so a bad batch never stands before the others. A search that finds no acceptance is given up: its
//! chunks are stepped over, for others may be fine; and when others are not, it is an outage.

use std::collections::VecDeque;

use super::batch::Batch;

/// A search is given up after so many refusals in a row: thrice the cuts it takes to get from 1000 events to one, and some.
const MANY_REFUSALS: u32 = 32;
/// An endpoint that has accepted something is given so many searches to do so again.
const MANY_SEARCHES: u32 = 8;

/// Pieces of refused batches, and how the search for culprits goes.
#[derive(Debug, Default)]
pub(super) struct Split {
    pieces: VecDeque<Batch>,
    turn: u8,
    refusals_in_a_row: u32,
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

    /// A request was refused.
    pub(super) fn refused(&mut self) -> Search {
        self.refusals_in_a_row += 1;
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

    /// A request was accepted.
    pub(super) fn accepted(&mut self) {
        self.refusals_in_a_row = 0;
        self.searches_left = MANY_SEARCHES;
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
    fn searches_are_given_up_and_then_it_is_an_outage_unless_something_is_accepted() {
        let mut split = Split::default();
        let search = |split: &mut Split| {
            assert!((1..MANY_REFUSALS).all(|_| split.refused() == Search::GoesOn));
            split.refused()
        };
        assert_eq!(search(&mut split), Search::Outage, "never accepted anything");
        for _ in 0..2 {
            split.accepted();
            assert!((0..MANY_SEARCHES).all(|_| search(&mut split) == Search::GivenUp));
        }
        assert_eq!(search(&mut split), Search::Outage);
    }
}
