//! Flushes and stops: what they wait for, and when they are over.
//!
//! A flush covers the chunks that were committed to this process's own queue before it: those up to the newest at that
//! moment. It is over when all of these were leased and none of them is in memory any more. It does not wait for later
//! events, nor for queues of other processes.
//!
//! A stop has a deadline, by which the caller says how much time the events are worth; where the disk does not persist,
//! they have no other chance. So a stop makes attempts of its own: the first at once, whatever backoff or cooldown is
//! running, the others after the waits of a cycle of attempts. It gives up when a whole cycle has failed, when no
//! connection was possible twice in a row, when the key is refused, or when the next attempt would be too late.

use std::time::Instant;

use rand::Rng;

use super::handle::Done;
use super::pace::PaceOptions;
use crate::queue::ChunkRef;

struct Waiter {
    /// The newest chunk that it covers.
    newest: Option<ChunkRef>,
    /// All chunks up to that one were leased.
    is_passed: bool,
    done: Done,
}

/// The flushes under way.
#[derive(Default)]
pub(super) struct Flushes {
    waiters: Vec<Waiter>,
    /// A request failed meanwhile, so the next attempts are not brought forward.
    pub(super) has_met_failure: bool,
}

impl Flushes {
    /// Begins a flush that covers everything up to `newest`.
    pub(super) fn push(&mut self, newest: Option<ChunkRef>, done: Done) {
        self.has_met_failure &= !self.waiters.is_empty();
        self.waiters.push(Waiter { newest, is_passed: false, done });
    }

    /// Whether a flush wants the next attempt at once.
    pub(super) fn are_eager(&self) -> bool {
        !self.waiters.is_empty() && !self.has_met_failure
    }

    /// Whether no flush is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// A chunk was leased.
    pub(super) fn saw(&mut self, chunk: ChunkRef) {
        for waiter in &mut self.waiters {
            // Adopted queues have higher origins, and are read when nothing is left in this process's own.
            waiter.is_passed |= waiter.newest.is_some_and(|newest| chunk > newest);
        }
    }

    /// Chunks were released without a decision, and will be leased again.
    pub(super) fn went_back(&mut self) {
        self.waiters.iter_mut().for_each(|waiter| waiter.is_passed = false);
    }

    /// The whole queue was read.
    pub(super) fn saw_the_end(&mut self) {
        self.waiters.iter_mut().for_each(|waiter| waiter.is_passed = true);
    }

    /// Takes the flushes that are over, given the leased chunks.
    pub(super) fn take_done(&mut self, leased: impl Iterator<Item = ChunkRef> + Clone) -> Vec<Done> {
        let is_done = |waiter: &mut Waiter| match waiter.newest {
            Some(newest) => waiter.is_passed && !leased.clone().any(|chunk| chunk <= newest),
            None => true,
        };
        self.waiters.extract_if(.., is_done).map(|waiter| waiter.done).collect()
    }

    /// Takes all flushes.
    pub(super) fn take_all(&mut self) -> Vec<Done> {
        self.has_met_failure = false;
        self.waiters.drain(..).map(|waiter| waiter.done).collect()
    }
}

/// A stop under way.
#[derive(Debug)]
pub(super) struct Stop {
    /// When it ends at the latest.
    pub(super) deadline: Instant,
    /// Number of accepted requests when it began.
    pub(super) accepted_before: u64,
    /// Number of its attempts in a row that failed.
    failures: u32,
    /// No connection was possible at the last of them.
    unreachable: bool,
    not_before: Option<Instant>,
    /// There will be no further attempt.
    pub(super) gave_up: bool,
}

impl Stop {
    /// Begins a stop. `accepted_before` is the number of accepted requests.
    pub(super) fn new(deadline: Instant, accepted_before: u64) -> Self {
        Self { deadline, accepted_before, failures: 0, unreachable: false, not_before: None, gave_up: false }
    }

    /// One of its attempts failed.
    pub(super) fn failed(&mut self, now: Instant, unreachable: bool, options: &PaceOptions, rng: &mut impl Rng) {
        self.failures = self.failures.saturating_add(1);
        self.gave_up |= self.failures > options.max_retries || (unreachable && self.unreachable);
        self.unreachable = unreachable;
        self.not_before = Some(now + options.backoff.wait(self.failures, rng));
    }

    /// An attempt succeeded.
    pub(super) fn accepted(&mut self) {
        (self.failures, self.unreachable, self.not_before) = (0, false, None);
    }

    /// Until when it waits between two attempts.
    pub(super) fn waits_until(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|&at| now < at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::store::ChunkKey;

    fn at(origin: u32, first_seq: u64) -> ChunkRef {
        ChunkRef { origin, key: ChunkKey::new(first_seq) }
    }

    fn done(flushes: &mut Flushes, loaded: &[ChunkRef]) -> bool {
        !flushes.take_done(loaded.iter().copied()).is_empty()
    }

    fn flush_up_to(newest: Option<ChunkRef>) -> Flushes {
        let mut flushes = Flushes::default();
        flushes.push(newest, Box::new(|_| ()));
        flushes
    }

    #[test]
    fn a_flush_ends_when_its_chunks_were_leased_and_none_is_left() {
        let mut flushes = flush_up_to(Some(at(0, 10)));
        assert!(!done(&mut flushes, &[]), "what is not read yet may be there");
        flushes.saw(at(0, 10));
        assert!(!done(&mut flushes, &[]), "its last chunk does not tell of its end");
        flushes.saw(at(0, 11));
        assert!(!done(&mut flushes, &[at(0, 3)]));
        assert!(done(&mut flushes, &[at(0, 11), at(1, 3)]));
    }

    #[test]
    fn what_another_process_left_behind_is_not_waited_for() {
        let mut flushes = flush_up_to(Some(at(0, 10)));
        flushes.saw(at(1, 1));
        assert!(!done(&mut flushes, &[at(0, 10), at(1, 1)]));
        assert!(done(&mut flushes, &[at(1, 1)]));
    }

    #[test]
    fn a_flush_ends_when_the_whole_queue_was_read_before_anything_goes_back() {
        let mut flushes = flush_up_to(Some(at(0, 10)));
        flushes.saw_the_end();
        flushes.went_back();
        assert!(!done(&mut flushes, &[]));
        flushes.saw_the_end();
        assert!(done(&mut flushes, &[]));
    }

    #[test]
    fn a_flush_of_an_empty_queue_is_over_at_once() {
        assert!(done(&mut flush_up_to(None), &[at(0, 1)]));
    }
}
