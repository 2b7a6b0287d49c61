//! The queue as the delivery sees it: our own shard, and the orphan that is being delivered.

use std::sync::atomic::Ordering;

use super::Pipeline;
use crate::delivery::{Ack, ChunkRef, PaceState, Source, SourceError};
use crate::queue::store::{Chunk, ChunkKey, Removal};
use crate::queue::{LANE, Shard};

/// Our own shard's number among those that are delivered.
pub(super) const OWN: u32 = 0;

impl Pipeline {
    /// Holds back what is queued, or lets it go. Only requests that are under way at the moment of the call still go.
    pub(crate) fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
        match self.delivery() {
            // It lets go of what it has in memory, so that this can be evicted like the rest.
            Some(delivery) if held => delivery.look_again(),
            Some(delivery) => delivery.committed(),
            None => {}
        }
    }

    /// Chunks of one shard that are neither busy nor acked.
    fn read_from(
        &self,
        origin: u32,
        shard: &Shard,
        max_bytes: usize,
        busy: &dyn Fn(ChunkRef) -> bool,
    ) -> Result<Vec<(ChunkRef, Chunk)>, SourceError> {
        loop {
            let (after, changes) = self.outbox.resume(origin, busy);
            let read = shard.read(after, max_bytes).map_err(|error| SourceError(error.into()))?;
            let mut salvaged = Vec::new();
            if !read.damaged.is_empty() {
                let removals = read.damaged.into_iter().map(crate::queue::store::DamagedRow::removal).collect();
                salvaged = self.mend(shard, removals)?;
            }
            let end = read.last.is_none() && salvaged.is_empty();
            let Some(chunks) = self.outbox.hand_out(origin, (after, changes), read.last, read.chunks, busy) else {
                continue;
            };
            // What was saved stands where the damaged row stood, behind the cursor by now.
            self.outbox.returned(salvaged.into_iter().map(|key| ChunkRef { origin, key }));
            if end || !chunks.is_empty() {
                return Ok(chunks);
            }
        }
    }

    /// Replaces damaged rows by what can be saved of them; answers where that is.
    fn mend(&self, shard: &Shard, removals: Vec<Removal>) -> Result<Vec<ChunkKey>, SourceError> {
        let salvaged = removals.iter().filter_map(|removal| Some(removal.keep.as_ref()?.key)).collect();
        let events =
            shard.mend(removals, self.options.clock.wall_nanos()).map_err(|error| SourceError(error.into()))?;
        if events > 0 {
            (self.options.report)(super::Notice::Missing { events, after_restart: false });
        }
        Ok(salvaged)
    }
}

impl Source for Pipeline {
    fn read(&self, max_bytes: usize, busy: &dyn Fn(ChunkRef) -> bool) -> Result<Vec<(ChunkRef, Chunk)>, SourceError> {
        // A queue that somebody else has is theirs to send.
        if self.is_held() || self.shard.is_lost() {
            return Ok(Vec::new());
        }
        // A failed read shuts the store; the committer opens it again.
        let own = self.read_from(OWN, &self.shard, max_bytes, busy).inspect_err(|_| self.mailbox.ring(|_| ()))?;
        if !own.is_empty() {
            return Ok(own);
        }
        let adopted = self.adopted_shard();
        let chunks = match &adopted {
            Some((origin, shard)) => self.read_from(*origin, shard, max_bytes, busy).unwrap_or_else(|error| {
                // Somebody else's queue must not stand in the way of ours.
                let why = format!("{error}: {}", error.0);
                (self.options.report)(super::Notice::ShardSkipped { path: shard.dir().clone(), why });
                self.mailbox.ring(|wanted| wanted.abandon = true);
                Vec::new()
            }),
            None => Vec::new(),
        };
        if chunks.is_empty() {
            self.mailbox.ring(|wanted| wanted.adopt = true);
        }
        Ok(chunks)
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    fn stuck(&self, origin: u32) -> bool {
        // Our own is nobody else's to deliver.
        let is_adopted = self.adopted_shard().is_some_and(|(adopted, _)| adopted == origin);
        if is_adopted {
            self.mailbox.ring(|wanted| (wanted.abandon, wanted.adopt) = (true, true));
        }
        is_adopted
    }

    fn newest(&self) -> Vec<ChunkRef> {
        // What other processes left behind may take long, and whoever flushes has not put it there.
        let ledger = self.shard.ledger();
        // No row begins above the newest record: an upper bound serves as well as the row's own number.
        let key = ChunkKey { lane: LANE, first_seq: ledger.accepted };
        (ledger.queued_events > 0).then_some(ChunkRef { origin: OWN, key }).into_iter().collect()
    }

    fn ack(&self, ack: Ack) {
        if self.outbox.ack(ack) {
            self.mailbox.ring(|_| ());
        }
    }

    fn give_back(&self, chunk: ChunkRef) {
        self.outbox.give_back(chunk);
    }

    fn pace(&self, pace: &PaceState) {
        if self.outbox.note_pace(pace) {
            self.mailbox.ring(|_| ());
        }
    }
}
