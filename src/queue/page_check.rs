//! The check of the status page: which of its words are believed.
//!
//! Recovery and an operator's tool decide by these words: a count of accepted records that is too high makes events lost
//! that never were, a ledger of zeros makes a full queue empty. So a page that was changed by anything but its owner must
//! not be believed, and a death of the owner between two words must cost nothing.
//!
//! * The ledger, the epoch, the oldest time and the deaths have one check, which is written after them.
//! * The count of accepted records changes with each record, too often for that. It is there twice, the second time
//!   inverted, in the same line of the cache, and the smaller one is believed: one that is too small costs nothing,
//!   because recovery reads the journal as far as its records are whole.
//! * An owner that closes the queue adds a hash of the beginning of its store, which every commit changes. So the page
//!   of another queue, or of another day, does not make anyone pass over events.
//!
//! An older library leaves these words as it finds them. So each owner that knows them repeats its start time in front of
//! them, as in the run record, and otherwise the page is taken as it is.

use std::sync::atomic::{Ordering, compiler_fence};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::status_page::{StatusPage, Word};

/// Whether the words of a page are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// An older library wrote them, without a check.
    Unchecked,
    Whole,
    /// They were changed by something else than their owner, or it died while it wrote them, or is writing them now.
    Damaged,
}

/// The words of the check, in its order.
const CHECKED: [Word; 12] = [
    Word::Deaths,
    Word::Epoch,
    Word::Delivered,
    Word::DeadLettered,
    Word::Evicted,
    Word::Damaged,
    Word::LostUnsynced,
    Word::QueuedEvents,
    Word::QueuedBytes,
    Word::CheckpointedUpTo,
    Word::OldestAt,
    Word::ClosedStore,
];

impl StatusPage {
    /// Which words are believed.
    pub(super) fn trust(&self) -> Trust {
        if !self.has_check() {
            return Trust::Unchecked;
        }
        if self.get(Word::Check) == self.check() && self.count_is_whole() { Trust::Whole } else { Trust::Damaged }
    }

    /// Whether the page's owner knows the words of the check.
    pub(super) fn has_check(&self) -> bool {
        self.get(Word::CheckKept) != 0 && self.get(Word::CheckKept) == self.get(Word::StartedAt)
    }

    /// The count of accepted records, as far as it is believed. While the queue is open, the word of the clean exit has it
    /// inverted.
    pub(super) fn believed_accepted(&self, trust: Trust) -> u64 {
        let accepted = self.get(Word::Accepted);
        match (trust, self.get(Word::CleanExit)) {
            (Trust::Unchecked, _) | (Trust::Whole, 1) => accepted,
            // The store and the journal, which are closed, say it.
            (Trust::Damaged, 1) => 0,
            (_, inverted) => accepted.min(!inverted),
        }
    }

    /// Whether both counts of accepted records agree. The owner may have died between them.
    fn count_is_whole(&self) -> bool {
        let (accepted, inverted) = (self.get(Word::Accepted), self.get(Word::CleanExit));
        // Of a closed queue, the check has it.
        inverted == 1 || accepted.wrapping_sub(!inverted) <= 1
    }

    /// Whether only the counts of accepted records disagree with each other.
    pub(super) fn is_counting(&self) -> bool {
        self.has_check() && self.get(Word::Check) == self.check() && !self.count_is_whole()
    }

    /// Puts the count of accepted records into both of its words.
    pub(super) fn set_accepted(&self, accepted: u64) {
        self.set(Word::Accepted, accepted);
        self.set(Word::CleanExit, !accepted);
    }

    /// The check of the words that are there now, under their present owner. Called after each change of them.
    pub(super) fn seal(&self) {
        let check = self.check();
        compiler_fence(Ordering::Release);
        self.set(Word::Check, check);
    }

    fn check(&self) -> u64 {
        let is_closed = self.get(Word::CleanExit) == 1;
        let words = CHECKED.into_iter().chain(is_closed.then_some(Word::Accepted));
        self.hash(&mut words.map(|word| self.get(word)))
    }

    /// A hash of words that another owner's words do not have; never 0.
    pub(super) fn hash(&self, words: &mut dyn Iterator<Item = u64>) -> u64 {
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        xxh3_64_with_seed(&bytes, self.get(Word::StartedAt)).max(1)
    }

    /// What is written to a file in place of the words: threads append while they are copied, and a count that was copied
    /// before the other would look damaged for as long as nothing more is written.
    pub(super) fn settled(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let place = |word: Word| word as usize * size_of::<u64>();
        let word_at = |bytes: &[u8], word| {
            let found = bytes.get(place(word)..).and_then(|rest| rest.first_chunk::<8>());
            found.map_or(0, |word| u64::from_le_bytes(*word))
        };
        if word_at(&bytes, Word::CleanExit) != 1 {
            let inverted = !word_at(&bytes, Word::Accepted);
            if let Some(target) = bytes.get_mut(place(Word::CleanExit)..place(Word::CleanExit) + size_of::<u64>()) {
                target.copy_from_slice(&inverted.to_le_bytes());
            }
        }
        bytes
    }

    /// A copy whose counts were read at two moments: the first one is as good as the other.
    pub(super) fn settle(self) -> Self {
        if let Some(word) = self.word(Word::CleanExit as usize) {
            word.store(!self.get(Word::Accepted), Ordering::Relaxed);
        }
        self
    }
}
