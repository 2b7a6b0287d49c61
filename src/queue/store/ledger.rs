//! The ledger: what became of every event that was ever accepted here.

/// Where the events of one shard are. It is changed only in the transaction that moves the events themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// The highest sequence number ever accepted; sequence numbers are gap-free from 1.
    pub(crate) accepted: u64,
    /// Taken by the server.
    pub(crate) delivered: u64,
    /// Refused for good and kept among the dead records.
    pub(crate) dead_lettered: u64,
    /// Given up for want of room, or for their age.
    pub(crate) evicted: u64,
    /// Damaged on disk.
    pub(crate) damaged: u64,
    /// Accepted, and gone with a power cut before they were synced.
    pub(crate) lost_unsynced: u64,
    /// In the rows of the store.
    pub(crate) queued_events: u64,
    /// Bytes of those rows.
    pub(crate) queued_bytes: u64,
}

/// What a transaction adds to the ledger beyond what its rows say by themselves (see [`super::Changes`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LedgerDelta {
    /// The new highest sequence number; a lower one than before changes nothing.
    pub(crate) accepted_up_to: u64,
    /// Delivered without ever having been in a row.
    pub(crate) delivered: u64,
    /// DeadLettered without ever having been in a row.
    pub(crate) dead_lettered: u64,
    /// Evicted without ever having been in a row.
    pub(crate) evicted: u64,
    /// Found damaged before they came into a row.
    pub(crate) damaged: u64,
    /// Sequence numbers that a power cut took.
    pub(crate) lost_unsynced: u64,
}

impl Ledger {
    /// Accepted events less those whose place is known: zero, or something is wrong.
    pub(crate) fn imbalance(&self) -> i128 {
        let places =
            [self.delivered, self.queued_events, self.dead_lettered, self.evicted, self.damaged, self.lost_unsynced];
        i128::from(self.accepted) - places.into_iter().map(i128::from).sum::<i128>()
    }

    pub(super) fn add(&mut self, delta: &LedgerDelta) {
        self.accepted = self.accepted.max(delta.accepted_up_to);
        for (counter, more) in [
            (&mut self.delivered, delta.delivered),
            (&mut self.dead_lettered, delta.dead_lettered),
            (&mut self.evicted, delta.evicted),
            (&mut self.damaged, delta.damaged),
            (&mut self.lost_unsynced, delta.lost_unsynced),
        ] {
            *counter = counter.saturating_add(more);
        }
    }

    /// The ledger after the queue was found to hold `events` in `bytes`, the highest of them `highest_seq`. What is missing is
    /// damaged; what is there although it had been acked is taken back from where it had been put, deliveries first.
    pub(super) fn recount(&mut self, events: u64, bytes: u64, highest_seq: u64) {
        self.accepted = self.accepted.max(highest_seq);
        (self.queued_events, self.queued_bytes) = (events, bytes);
        let imbalance = self.imbalance();
        if imbalance >= 0 {
            self.damaged = self.damaged.saturating_add(u64::try_from(imbalance).unwrap_or(u64::MAX));
            return;
        }
        let mut surplus = u64::try_from(-imbalance).unwrap_or(u64::MAX);
        for counter in [
            &mut self.delivered,
            &mut self.damaged,
            &mut self.evicted,
            &mut self.dead_lettered,
            &mut self.lost_unsynced,
        ] {
            let taken = surplus.min(*counter);
            *counter -= taken;
            surplus -= taken;
        }
        self.accepted = self.accepted.saturating_add(surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recount_always_balances() {
        let before = Ledger { accepted: 10, delivered: 3, dead_lettered: 1, queued_events: 6, ..Ledger::default() };
        assert_eq!(before.imbalance(), 0);
        for found in 0..20 {
            let mut after = before;
            after.recount(found, found * 100, 0);
            assert_eq!((after.imbalance(), after.queued_events), (0, found), "{found} found: {after:?}");
        }
    }

    #[test]
    fn what_a_recount_misses_is_damaged_and_nothing_else_changes() {
        let mut ledger = Ledger { accepted: 10, delivered: 3, dead_lettered: 1, queued_events: 6, ..Ledger::default() };
        ledger.recount(4, 400, 8);
        let expected = Ledger {
            accepted: 10,
            delivered: 3,
            dead_lettered: 1,
            damaged: 2,
            queued_events: 4,
            queued_bytes: 400,
            ..Ledger::default()
        };
        assert_eq!(ledger, expected);
    }
}
