//! How much the journal may hold, because what is checkpointed has to fit into a queue with bounds. Set by whoever knows how full that is,
//! and obeyed under the lock: however fast records come, none is taken that the queue has no room for.

use std::sync::Arc;

use super::Journal;
use super::arena::HEADER_BYTES;

/// How much may wait to be checkpointed, all that waits already included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// Records.
    pub(crate) events: u64,
    /// Bytes, as [`weight`] counts them.
    pub(crate) bytes: u64,
}

/// The last that may be taken: a [`Room`] as an append can look at it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) seq: u64,
    pub(super) weight: u64,
}

impl Most {
    pub(super) const ANY: Most = Most { seq: u64::MAX, weight: u64::MAX };
}

/// Bytes of the largest frame that is small.
pub(super) const LIGHT: usize = 4096;

/// What a record takes at most where it is checkpointed to: small ones fill a row of 64 KiB nearly, a large one has a row of its own, and
/// rows take pages in powers of two.
pub(crate) fn weight(framed: usize) -> u64 {
    let bytes = framed as u64;
    match framed {
        _ if framed <= LIGHT => light_weight(bytes),
        ..=8192 => bytes + bytes / 4,
        _ => bytes.saturating_mul(2),
    }
}

/// The weight of small records that take so many bytes together: frames are whole words, so it is the same as the sum of theirs.
pub(super) fn light_weight(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 8)
}

/// How many bytes of small records weigh no more than that.
pub(super) fn light_bytes(weight: u64) -> u64 {
    weight / 9 * 8
}

/// What a record weighs beyond a small one's weight for its bytes.
pub(super) fn heavier(framed: usize) -> u64 {
    weight(framed).saturating_sub(light_weight(framed as u64))
}

impl Journal {
    /// From now on takes no more than `ordinary` records, and `priority` ones. Everything up to `checkpointed_up_to` is checkpointed. Committer only.
    pub(crate) fn allow(&self, checkpointed_up_to: u64, ordinary: Room, priority: Room) {
        let mut active = self.lock();
        let waiting = self.pool.sealed_size().weight.saturating_add(active.weight_of_round());
        let most = |room: Room| Most {
            seq: checkpointed_up_to.saturating_add(room.events),
            weight: active.weight().saturating_add(room.bytes).saturating_sub(waiting),
        };
        active.most = [most(ordinary), most(priority)];
        active.survey();
    }

    /// Bytes and records that wait to be checkpointed, sealed arenas included.
    pub(crate) fn journaled(&self) -> (u64, u64) {
        // The lock first: a caller may seal the active arena, and it would count twice or not at all.
        let active = self.lock();
        let sealed = self.pool.sealed_size();
        (sealed.bytes + (active.position - HEADER_BYTES) as u64, sealed.records + active.records)
    }

    /// What waits to be checkpointed, as the room for it is counted.
    pub(crate) fn journaled_weight(&self) -> u64 {
        let active = self.lock();
        self.pool.sealed_size().weight.saturating_add(active.weight_of_round())
    }

    /// Whether the active arena is half full.
    pub(crate) fn is_half_full(&self) -> bool {
        self.lock().is_half_full()
    }

    /// The sequence number of the newest record; 0 before the first.
    pub(crate) fn last_seq(&self) -> u64 {
        self.lock().next_seq - 1
    }

    /// Whether a swap would find a free arena without creating one.
    pub(crate) fn has_spare(&self) -> bool {
        self.pool.has_free()
    }

    /// Whether no name leads to any arena any more: the directory was deleted.
    pub(crate) fn is_unlinked(&self) -> bool {
        let active = Arc::clone(&self.lock().arena);
        active.is_unlinked() && self.pool.are_unlinked()
    }

    /// Goes on without touching any name: arenas that are needed from now on are in memory. For a journal that is unlinked.
    pub(crate) fn become_unlinked(&self) {
        self.pool.become_unlinked();
    }
}
