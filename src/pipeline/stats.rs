//! Snapshots of a lane: the figures behind `Client::stats`, and the dead letters.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::shared::{Pipeline, lock};
use super::source::OWN;
use crate::delivery::{DeliveryHandle, DeliveryState};
use crate::queue::store::{DeadRecord, Ledger};
use crate::queue::{ChunkRef, OrphanedQueue};
use crate::report::{Diagnostic, DropReason};

/// The state of a lane at one moment, for statistics.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) ledger: Ledger,
    /// Events accepted by this shard since it was created.
    pub(crate) accepted: u64,
    /// The ledger of the orphan that is being delivered.
    pub(crate) adopted: Option<Ledger>,
    pub(crate) unsynced_for: Option<Duration>,
    pub(crate) journaled_bytes: u64,
    pub(crate) oldest_at: Option<i64>,
    pub(crate) file_bytes: u64,
    pub(crate) replayed: u64,
    pub(crate) volatile: bool,
    /// Why the queue is in memory.
    pub(crate) in_memory: Option<String>,
    pub(crate) problem: Option<String>,
    pub(crate) full: Option<DropReason>,
    /// [`Diagnostic::LowDiskSpace`], while events are refused for that.
    pub(crate) low_disk_space: Option<Diagnostic>,
    pub(crate) closed: bool,
    pub(crate) delivery: DeliveryState,
    pub(crate) dir: PathBuf,
    pub(crate) orphaned: Vec<OrphanedQueue>,
    /// Wall time of the snapshot.
    pub(crate) now: i64,
}

impl Pipeline {
    /// The state at this moment.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let store = self.shard.open_store().filter(|_| !self.is_reopening.load(Ordering::Acquire));
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
            full: self.admission.refusal(),
            low_disk_space: self.low_disk_space(),
            closed: self.mailbox.is_stopping(),
            delivery: self.delivery().map(DeliveryHandle::state).unwrap_or_default(),
            dir: self.shard.dir().clone(),
            orphaned: self.orphaned.clone(),
            now: self.options.clock.wall_nanos(),
        }
    }

    /// The ledger of the lane's own shard, and the number of events it has accepted. The difference to the ledger's own
    /// count is in the journal.
    pub(super) fn account(&self) -> (Ledger, u64) {
        // In this order: events that are checkpointed in between still count as in the journal.
        let ledger = self.leases.ledger(OWN, || self.shard.ledger());
        (ledger, self.shard.accepted())
    }

    /// Up to `limit` dead letters, oldest first.
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

/// What tests see of a lane: its records, and whether its threads have anything left to do.
#[cfg(feature = "testing")]
pub(super) mod testing {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Weak};

    use crate::pipeline::shared::Pipeline;
    use crate::pipeline::source::OWN;
    use crate::queue::ChunkRef;
    use crate::queue::frame;
    use crate::sys::clock::Clock;
    use crate::sys::clock::still::Sleeper;

    /// Bytes of one read from the store.
    const READ_BYTES: usize = 1024 * 1024;

    /// Registers the lane with a clock that stands still, which wakes it when it is moved.
    pub(in crate::pipeline) fn watch(pipeline: &Arc<Pipeline>) {
        if let Clock::Still(still) = &pipeline.options.clock {
            let sleeper: Weak<Pipeline> = Arc::downgrade(pipeline);
            still.watch(sleeper);
        }
    }

    impl Pipeline {
        /// The records of the lane's own shard that are neither delivered nor given up, oldest first.
        pub(crate) fn contents(&self) -> Vec<Vec<u8>> {
            // The journal first: a record that is checkpointed meanwhile is found in the store as well, and counted
            // once.
            let mut records: BTreeMap<u64, Vec<u8>> =
                self.shard.journal().contents().unwrap_or_default().into_iter().collect();
            let checkpointed = self.shard.ledger().accepted;
            let mut open = BTreeMap::new();
            let mut after = None;
            while let Ok(read) = self.shard.read(after, READ_BYTES) {
                for chunk in read.chunks {
                    let is_open = self.leases.still_open(ChunkRef { origin: OWN, key: chunk.key });
                    let frames = frame::frames(&chunk.frames, chunk.salt);
                    open.extend(
                        frames.filter(|(head, _)| is_open(head.seq)).map(|(head, body)| (head.seq, body.to_vec())),
                    );
                }
                if read.last.is_none() {
                    break;
                }
                after = read.last;
            }
            // Records that were checkpointed before the store was read are in what was read, or gone.
            records.retain(|seq, _| *seq > checkpointed);
            records.extend(open);
            records.into_values().collect()
        }
    }

    impl Sleeper for Pipeline {
        fn wake(&self) {
            self.mailbox.wake();
            if let Some(delivery) = self.delivery() {
                delivery.look_again();
            }
        }

        fn asleep(&self) -> Option<u64> {
            if self.finished.get().is_some() {
                return Some(0);
            }
            if !self.orphans.is_idle() {
                return None;
            }
            // Before the delivery, on whose thread the loader runs: it has acted on its commands when that sleeps.
            let loading = self.definitions().map_or(Some(0), |loader| loader.asleep())?;
            Some(self.mailbox.asleep()? + loading + self.delivery()?.asleep()?)
        }
    }
}
