//! Bisection: the search for the events that are the cause when a batch is refused, or fails while others pass.
//!
//! Such a batch is cut in two, and each half is sent like any other batch, until a single event is refused. The size of
//! the pieces adapts: half of what was refused, twice what was accepted. So the denser the bad events, the smaller the
//! pieces. About every second piece is accepted, and a bad event costs a few requests, however many there are.
//!
//! Pieces are taken from both ends in turns, and a fresh batch goes between two pieces as long as not too much is being
//! bisected: a bad batch never blocks the others, and is never starved by them. A bisection without any acceptance is
//! given up: its chunks are quarantined, because other chunks may be fine. If they are not, that is an outage. After
//! the same number of failures in a row it is an outage at once.
//!
//! A failure that took long (a request that hangs until its timeout) is costly, so the batch is cut in eight.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::batch::{Batch, BatchLimits};
use super::loaded::Loaded;

/// A bisection is given up after this many refusals in a row: three times the 10 cuts from 1000 events to one, and two.
const MANY_REFUSALS: u32 = 32;
/// After this many failures in a row there is one request at a time, of one event.
const LOSING: u32 = 4;
/// Failures this far apart without a bisection between them are of quarantined events, and are not counted as in a row.
const FAR_APART: Duration = Duration::from_secs(5);
/// A batch that failed slowly is cut into this many pieces.
const MANY_PARTS: usize = 8;
/// Bisections that may be given up in a row, once the endpoint has accepted something, before it is an outage.
const MANY_SEARCHES: u32 = 8;
/// No fresh batch is sent while this much, as JSON, is being bisected: all of it is in memory.
const MANY_BYTES: usize = 4 * 1024 * 1024;

/// The pieces that are to be sent, and how the search goes.
#[derive(Debug)]
pub(super) struct Bisection {
    pieces: VecDeque<Batch>,
    turn: u8,
    /// Number of events of one piece, adapted to refusals and acceptances.
    size: usize,
    /// Refusals since the last acceptance.
    refusals_in_a_row: u32,
    /// Failures since the last acceptance or refusal.
    failures_in_a_row: u32,
    last_failure: Option<Instant>,
    /// A piece failed slowly, so pieces do not grow before the bisection is over.
    is_careful: bool,
    /// Bisections that may be given up before it is an outage.
    searches_left: u32,
}

impl Default for Bisection {
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

impl Bisection {
    /// Adds the pieces of a batch, or a quarantined event that is tried again.
    pub(super) fn push(&mut self, pieces: impl IntoIterator<Item = Batch, IntoIter: DoubleEndedIterator>) {
        for piece in pieces.into_iter().rev() {
            self.pieces.push_front(Batch { is_piece: true, ..piece });
        }
    }

    /// Adds a batch that failed before it was known whether others pass. It is sent once more as a whole.
    pub(super) fn push_whole(&mut self, batch: Batch) {
        self.size = self.size.max(batch.events);
        self.push([batch]);
    }

    /// Whether a quarantined event is among the pieces.
    pub(super) fn has_quarantined(&self) -> bool {
        self.pieces.iter().any(|piece| piece.quarantined > 0)
    }

    /// Whether a piece goes before a fresh batch this time.
    pub(super) fn is_turn_of_a_piece(&mut self) -> bool {
        self.turn = self.turn.wrapping_add(1);
        let is_full = self.pieces.iter().map(|piece| piece.bytes).sum::<usize>() >= MANY_BYTES;
        is_full || !self.turn.is_multiple_of(2)
    }

    /// Takes a piece, from either end in turns. The rest of a large one stays where it was.
    pub(super) fn pop(&mut self, limits: &BatchLimits, loaded: &mut Loaded) -> Option<Batch> {
        let is_front = self.turn & 2 == 0;
        let piece = if is_front { self.pieces.pop_front() } else { self.pieces.pop_back() }?;
        let size = self.size.min(limits.events);
        let size = if piece.bytes > limits.bytes { size.min(piece.events / 2).max(1) } else { size };
        if piece.events <= size {
            return Some(piece);
        }
        let [piece, rest] = piece.cut(size, loaded);
        let rest = Batch { is_piece: true, ..rest };
        if is_front {
            self.pieces.push_front(rest)
        } else {
            self.pieces.push_back(rest)
        }
        Some(Batch { is_piece: true, ..piece })
    }

    /// Whether there are no pieces.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Ends the bisection and returns its pieces.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Batch> + '_ {
        (self.refusals_in_a_row, self.failures_in_a_row) = (0, 0);
        self.pieces.drain(..)
    }

    /// A request with this many events failed while others passed.
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

    /// Whether so many requests have failed in a row that only one is sent at a time.
    pub(super) fn is_losing(&self) -> bool {
        self.failures_in_a_row >= LOSING
    }

    /// Whether one more failure in a row is an outage.
    pub(super) fn is_hopeless(&self) -> bool {
        self.failures_in_a_row + 1 >= MANY_REFUSALS
    }

    /// A request with this many events was refused. Returns whether the bisection is to be given up.
    pub(super) fn refused(&mut self, events: usize) -> bool {
        self.size = self.size.min(events / 2).max(1);
        // An endpoint that refuses is not down.
        self.failures_in_a_row = 0;
        self.refusals_in_a_row = self.refusals_in_a_row.saturating_add(1);
        self.refusals_in_a_row >= MANY_REFUSALS
    }

    /// The bisection is given up. Returns whether other chunks may be fine; if not, every request is refused.
    pub(super) fn give_up(&mut self) -> bool {
        self.refusals_in_a_row = 0;
        let left = self.searches_left.checked_sub(1);
        self.searches_left = left.unwrap_or_default();
        left.is_some()
    }

    /// A request with this many events was accepted.
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
    fn pieces_alternate_between_both_ends_and_with_fresh_batches() {
        let (mut bisection, mut loaded) = (Bisection::default(), Loaded::default());
        bisection.push(pieces(&mut loaded, &[1, 2, 3, 4]));
        let mut order = Vec::new();
        for _ in 0..4 {
            assert!(bisection.is_turn_of_a_piece());
            order.push(bisection.pop(&BatchLimits::new(1000, 4 << 20), &mut loaded).unwrap().events);
            assert!(!bisection.is_turn_of_a_piece());
        }
        assert_eq!(order, [1, 4, 2, 3]);
        assert!(bisection.is_empty());
    }

    #[test]
    fn no_fresh_batch_is_sent_while_many_bytes_are_bisected() {
        let mut bisection = Bisection::default();
        bisection.push([MANY_BYTES / 2, MANY_BYTES / 2].map(|bytes| Batch { bytes, events: 1, ..Batch::default() }));
        assert!((0..4).all(|_| bisection.is_turn_of_a_piece()));
        bisection.pop(&BatchLimits::new(1000, 4 << 20), &mut Loaded::default());
        assert!((0..2).any(|_| !bisection.is_turn_of_a_piece()));
    }

    #[test]
    fn a_piece_is_half_a_refused_or_twice_an_accepted_request() {
        let (mut bisection, mut loaded) = (Bisection::default(), Loaded::default());
        bisection.push(pieces(&mut loaded, &[300, 300]));
        let mut size_after = |change: &dyn Fn(&mut Bisection)| {
            change(&mut bisection);
            bisection.is_turn_of_a_piece();
            bisection.pop(&BatchLimits::new(1000, 4 << 20), &mut loaded).unwrap().events
        };
        let refused = |events| {
            move |bisection: &mut Bisection| {
                bisection.refused(events);
            }
        };
        let accepted = |events| move |bisection: &mut Bisection| bisection.accepted(events);
        assert_eq!(size_after(&refused(64)), 32);
        assert_eq!(size_after(&refused(64)), 32, "two requests of one size that fail halve it once");
        assert_eq!(size_after(&accepted(8)), 32);
        assert_eq!(size_after(&accepted(32)), 64);
        assert_eq!(size_after(&refused(1)), 1);
        let rest: usize = (0..2).map(|_| size_after(&accepted(1000))).sum();
        assert_eq!(rest, 600 - 32 - 32 - 32 - 64 - 1, "what was cut off stays");
    }

    #[test]
    fn bisections_without_acceptance_end_in_an_outage() {
        let mut bisection = Bisection::default();
        let may_others_be_fine = |bisection: &mut Bisection| {
            assert!((1..MANY_REFUSALS).all(|_| !bisection.refused(1)));
            assert!(bisection.refused(1));
            bisection.give_up()
        };
        assert!(!may_others_be_fine(&mut bisection), "never accepted anything");
        for _ in 0..2 {
            bisection.accepted(1);
            assert!((0..MANY_SEARCHES).all(|_| may_others_be_fine(&mut bisection)));
        }
        assert!(!may_others_be_fine(&mut bisection));
    }
}
