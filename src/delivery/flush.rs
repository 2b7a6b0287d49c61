//! Who waits for a flush, and when it is over.
//!
//! A flush covers the chunks that were committed to our own queue before it: those up to the newest of that moment. It is
//! over when the reading has got beyond these and none of them is in memory any more. New events keep coming, and other processes may
//! have left queues behind; they are not its business.

use super::handle::Done;
use crate::queue::ChunkRef;
use crate::sys::clock::WallNanos;

/// The endpoint, as a flush or a stop found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndpointStatus {
    /// It works.
    Up,
    /// It does not, or the queue cannot be read; the events stay queued.
    Down {
        /// What the last attempt said.
        reason: String,
        /// When the next attempt is due.
        until: Option<WallNanos>,
    },
    /// It answers, and has refused what remains of the queue; nothing that it took since shows that the events are to blame.
    Refusing {
        /// What the last refusal said.
        reason: String,
    },
    /// It refuses the key or the quota; the events stay queued.
    Paused {
        /// 401, 402, 403 or 415.
        status: u16,
        /// In the words of whoever refused.
        reason: String,
        /// When the next attempt is due.
        until: Option<WallNanos>,
    },
    /// The delivery has ended.
    Stopped,
}

struct Waiter {
    /// The newest chunk of each origin, and whether the reading has got beyond it.
    limits: Vec<(ChunkRef, bool)>,
    done: Done,
}

/// All who wait.
#[derive(Default)]
pub(super) struct Flushes {
    waiters: Vec<Waiter>,
    /// A request failed while they waited: the attempts go on at their own pace.
    pub(super) has_met_failure: bool,
}

impl Flushes {
    /// Somebody waits from now on.
    pub(super) fn push(&mut self, newest: Vec<ChunkRef>, done: Done) {
        self.has_met_failure &= !self.waiters.is_empty();
        self.waiters.push(Waiter { limits: newest.into_iter().map(|limit| (limit, false)).collect(), done });
    }

    /// Whether somebody waits who would rather not wait for the time of the next attempt.
    pub(super) fn are_eager(&self) -> bool {
        !self.waiters.is_empty() && !self.has_met_failure
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// A chunk was read.
    pub(super) fn saw(&mut self, chunk: ChunkRef) {
        for (limit, passed) in self.waiters.iter_mut().flat_map(|waiter| &mut waiter.limits) {
            // What others left behind is read when there is nothing more of ours.
            *passed |= (limit.origin == chunk.origin && chunk.key > limit.key) || chunk.origin > limit.origin;
        }
    }

    /// Some of what was read went back to the queue undecided, and will be read again.
    pub(super) fn went_back(&mut self) {
        for (_, passed) in self.waiters.iter_mut().flat_map(|waiter| &mut waiter.limits) {
            *passed = false;
        }
    }

    /// There was nothing more to read.
    pub(super) fn saw_the_end(&mut self) {
        for (_, passed) in self.waiters.iter_mut().flat_map(|waiter| &mut waiter.limits) {
            *passed = true;
        }
    }

    /// Takes out those that are over, given the chunks in memory.
    pub(super) fn take_done(&mut self, loaded: impl Iterator<Item = ChunkRef> + Clone) -> Vec<Done> {
        let is_done = |waiter: &mut Waiter| {
            waiter.limits.iter().all(|&(limit, passed)| {
                let pending = |chunk: ChunkRef| limit.origin == chunk.origin && chunk.key <= limit.key;
                passed && !loaded.clone().any(pending)
            })
        };
        self.waiters.extract_if(.., is_done).map(|waiter| waiter.done).collect()
    }

    /// Takes out all.
    pub(super) fn take_all(&mut self) -> Vec<Done> {
        self.has_met_failure = false;
        self.waiters.drain(..).map(|waiter| waiter.done).collect()
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

    fn flush_up_to(newest: &[ChunkRef]) -> Flushes {
        let mut flushes = Flushes::default();
        flushes.push(newest.to_vec(), Box::new(|_| ()));
        flushes
    }

    #[test]
    fn a_flush_ends_when_the_reading_is_beyond_its_chunks_and_none_is_in_memory() {
        let mut flushes = flush_up_to(&[at(0, 10)]);
        assert!(!done(&mut flushes, &[]), "what is not read yet may be there");
        flushes.saw(at(0, 10));
        assert!(!done(&mut flushes, &[]), "its last chunk does not tell of its end");
        flushes.saw(at(0, 11));
        assert!(!done(&mut flushes, &[at(0, 3)]));
        assert!(done(&mut flushes, &[at(0, 11), at(1, 3)]));
    }

    #[test]
    fn what_another_process_left_behind_is_not_waited_for() {
        let mut flushes = flush_up_to(&[at(0, 10)]);
        flushes.saw(at(1, 1));
        assert!(!done(&mut flushes, &[at(0, 10), at(1, 1)]));
        assert!(done(&mut flushes, &[at(1, 1)]));
    }

    #[test]
    fn every_origin_has_to_be_passed_and_an_empty_read_passes_all() {
        let mut flushes = flush_up_to(&[at(0, 10), at(1, 10)]);
        flushes.saw(at(0, 11));
        assert!(!done(&mut flushes, &[]));
        flushes.saw_the_end();
        assert!(done(&mut flushes, &[]));
    }

    #[test]
    fn a_flush_of_an_empty_queue_is_over_at_once() {
        assert!(done(&mut flush_up_to(&[]), &[at(0, 1)]));
    }
}
