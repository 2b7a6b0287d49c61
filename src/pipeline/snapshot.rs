//! A look at a pipeline, for statistics.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::source::OWN;
use super::{AppendError, Floor, Pipeline, lock};
use crate::delivery::{DeliveryHandle, DeliveryState};
use crate::queue::store::{DeadRecord, Ledger};
use crate::queue::{ChunkRef, OrphanedQueue};

/// Where things stand, for statistics.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) ledger: Ledger,
    /// Accepted by this shard, in all its lives.
    pub(crate) accepted: u64,
    /// The ledger of the shard being adopted right now.
    pub(crate) adopted: Option<Ledger>,
    pub(crate) unsynced_for: Option<Duration>,
    pub(crate) journaled_bytes: u64,
    pub(crate) oldest_at: Option<i64>,
    pub(crate) file_bytes: u64,
    pub(crate) replayed: u64,
    pub(crate) volatile: bool,
    /// Why.
    pub(crate) in_memory: Option<String>,
    pub(crate) problem: Option<String>,
    pub(crate) full: Option<AppendError>,
    /// The file system that has too little room, if that is why.
    pub(crate) floor: Option<Floor>,
    pub(crate) closed: bool,
    pub(crate) delivery: DeliveryState,
    pub(crate) dir: PathBuf,
    pub(crate) orphaned: Vec<OrphanedQueue>,
    /// Wall time of the look.
    pub(crate) now: i64,
}

impl Pipeline {
    /// Where things stand.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let store = self.shard.open_store();
        let journaled = self.shard.journal().journaled();
        let (ledger, accepted) = self.account();
        let oldest = store.as_ref().filter(|_| ledger.queued_events > 0).and_then(|store| {
            let is_acked = |key| self.leases.is_acked(ChunkRef { origin: OWN, key });
            let oldest = store.oldest(&is_acked).ok().flatten();
            oldest.or_else(|| store.oldest(&|_| false).ok().flatten())
        });
        Snapshot {
            ledger,
            accepted,
            adopted: self.adopted_shard().map(|(_, shard)| shard.ledger()),
            unsynced_for: lock(&self.unsynced_since)
                .map(|since| self.options.clock.now().saturating_duration_since(since)),
            journaled_bytes: journaled.0,
            oldest_at: oldest.map(|(_, checkpointed_at)| checkpointed_at),
            file_bytes: store.as_ref().and_then(|store| store.file_bytes().ok()).unwrap_or(0),
            replayed: self.replayed.load(Ordering::Relaxed),
            volatile: self.shard.is_volatile(),
            in_memory: self.in_memory.get().cloned(),
            problem: lock(&self.out_of_reach).clone().or_else(|| self.problem()),
            full: self.admission.append_error(),
            floor: self.floor(),
            closed: self.mailbox.is_stopping(),
            delivery: self.delivery().map(DeliveryHandle::state).unwrap_or_default(),
            dir: self.shard.dir().clone(),
            orphaned: self.orphaned.clone(),
            now: self.options.clock.wall_nanos(),
        }
    }

    /// The ledger of our own shard as of now, and how many events it has accepted: those that the ledger has not heard of yet are in
    /// the journal.
    pub(super) fn account(&self) -> (Ledger, u64) {
        // In this order: what is checkpointed in between counts as in the journal still.
        let ledger = self.leases.ledger(OWN, || self.shard.ledger());
        (ledger, self.shard.accepted())
    }

    /// Up to `limit` records that were refused for good, oldest first.
    pub(crate) fn dead(&self, limit: usize) -> Vec<DeadRecord> {
        let (mut records, mut after) = (Vec::new(), None);
        while records.len() < limit
            && let Ok(read) = self.shard.dead(after, limit - records.len())
            && read.last.is_some()
        {
            after = read.last;
            records.extend(read.records);
        }
        records
    }
}
