//! What a test sees of a pipeline (feature `testing`): the records in it, and whether its threads have anything left to do.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::Pipeline;
use super::source::OWN;
use crate::queue::ChunkRef;
use crate::queue::frame;
use crate::sys::clock::Clock;
use crate::sys::clock::still::Sleeper;

/// One read of the store.
const READ_BYTES: usize = 1024 * 1024;

/// A clock that stands still has to know whom to wake.
pub(super) fn watch(pipeline: &Arc<Pipeline>) {
    if let Clock::Still(still) = &pipeline.options.clock {
        let sleeper: Weak<Pipeline> = Arc::downgrade(pipeline);
        still.watch(sleeper);
    }
}

impl Pipeline {
    /// The records of our own shard that were accepted and neither delivered nor given up, oldest first.
    pub(crate) fn contents(&self) -> Vec<Vec<u8>> {
        // The journal first: what is checkpointed meanwhile is found in the store as well, and counted once.
        let mut records: BTreeMap<u64, Vec<u8>> =
            self.shard.journal().contents().unwrap_or_default().into_iter().collect();
        let checkpointed = self.shard.ledger().accepted;
        let mut open = BTreeMap::new();
        let mut after = None;
        while let Ok(read) = self.shard.read(after, READ_BYTES) {
            for chunk in read.chunks {
                let is_open = self.leases.still_open(ChunkRef { origin: OWN, key: chunk.key });
                let frames = frame::frames(&chunk.frames, chunk.salt);
                open.extend(frames.filter(|(head, _)| is_open(head.seq)).map(|(head, body)| (head.seq, body.to_vec())));
            }
            if read.last.is_none() {
                break;
            }
            after = read.last;
        }
        // What was checkpointed before the store was read is where the store says, or gone.
        records.retain(|seq, _| *seq > checkpointed);
        records.extend(open);
        records.into_values().collect()
    }
}

impl Sleeper for Pipeline {
    fn wake(&self) {
        self.mailbox.ring(|_| ());
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
        // Before the delivery, whose thread it runs on: what it has heard is done when that sleeps.
        let loading = self.definitions().map_or(Some(0), |loader| loader.asleep())?;
        Some(self.mailbox.asleep()? + loading + self.delivery()?.asleep()?)
    }
}
