//! Giving events up, because there is no room for them or because they are too old. The dear ones go last.

use super::{Shard, ShardError};
use crate::clock::WallNanos;
use crate::record::{Class, frame};
use crate::store::{Changes, Chunk, ChunkKey, Removal};

/// Rows read and rewritten in one transaction.
const BYTES_PER_TRANSACTION: usize = 4 * 1024 * 1024;

/// When enough was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EvictUntil {
    /// The queue is no larger than this, in bytes and in events. Exceptions and identity events go only when nothing else is left.
    Fits {
        /// Bytes of rows.
        bytes: u64,
        /// Events.
        events: u64,
    },
    /// Nothing was carried before this time.
    NoneBefore(WallNanos),
}

/// What was given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Evicted {
    /// Events.
    pub(crate) events: u64,
}

impl Shard {
    /// Evicts, oldest first, until the goal is reached or nothing is left that may go. Rows for which `busy` answers yes are under way
    /// to PostHog and stay.
    pub(crate) fn evict(
        &self,
        until: EvictUntil,
        busy: &dyn Fn(ChunkKey) -> bool,
        now: WallNanos,
    ) -> Result<Evicted, ShardError> {
        let passes: &[bool] = match until {
            EvictUntil::Fits { .. } => &[true, false],
            EvictUntil::NoneBefore(_) => &[false],
        };
        let mut evicted = Evicted::default();
        let mut some_are_busy = false;
        for &spare_dear in passes {
            if some_are_busy && !spare_dear && passes.len() > 1 {
                // Not everything else has gone: what is under way goes sooner or later, and the dear ones go after it.
                break;
            }
            let mut after = None;
            while !self.is_reached(until) {
                let read = self.read(after, BYTES_PER_TRANSACTION)?;
                let Some(last) = read.last else { break };
                after = Some(last);
                let mut plan =
                    Plan { until, spare_dear, changes: Changes::default(), excess: self.excess(until), events: 0 };
                let mut may_go = |chunk: &&Chunk| {
                    let is_busy = busy(chunk.key);
                    some_are_busy |= is_busy;
                    !is_busy
                };
                let goes_on = read.chunks.iter().filter(&mut may_go).all(|chunk| plan.consider(chunk));
                if !plan.changes.remove.is_empty() {
                    self.in_store(|store| store.apply(&plan.changes))?;
                    crate::crash_point::reach("evict.committed");
                    evicted.events += plan.events;
                }
                if !goes_on {
                    break;
                }
            }
        }
        if evicted.events > 0 {
            self.mirror(now);
        }
        Ok(evicted)
    }

    fn is_reached(&self, until: EvictUntil) -> bool {
        match until {
            EvictUntil::Fits { .. } => self.excess(until) == (0, 0),
            EvictUntil::NoneBefore(_) => self.ledger().queued_events == 0,
        }
    }

    /// Bytes and events by which the queue is too large.
    fn excess(&self, until: EvictUntil) -> (u64, u64) {
        let ledger = self.ledger();
        match until {
            EvictUntil::Fits { bytes, events } => {
                (ledger.queued_bytes.saturating_sub(bytes), ledger.queued_events.saturating_sub(events))
            }
            EvictUntil::NoneBefore(_) => (u64::MAX, u64::MAX),
        }
    }
}

struct Plan {
    until: EvictUntil,
    spare_dear: bool,
    changes: Changes,
    excess: (u64, u64),
    events: u64,
}

impl Plan {
    /// Adds one row to what goes. `false` if no further row needs to be looked at.
    fn consider(&mut self, chunk: &Chunk) -> bool {
        if let EvictUntil::NoneBefore(time) = self.until
            && chunk.carried_at >= time
        {
            return false;
        }
        let keep = if self.spare_dear { chunk.retain_dear() } else { None };
        let kept = keep.as_ref().map_or(0, |kept| kept.count);
        let evicted = chunk.count.saturating_sub(kept);
        if evicted > 0 {
            let freed = chunk.frames.len().saturating_sub(keep.as_ref().map_or(0, |kept| kept.frames.len()));
            self.changes.remove.push(Removal { key: chunk.key, keep, delivered: 0, buried: 0, evicted });
            self.events += u64::from(evicted);
            self.excess.0 = self.excess.0.saturating_sub(freed as u64);
            self.excess.1 = self.excess.1.saturating_sub(u64::from(evicted));
        }
        self.excess != (0, 0)
    }
}

trait RetainDear {
    fn retain_dear(&self) -> Option<Chunk>;
}

impl RetainDear for Chunk {
    /// Only its exceptions and identity events.
    fn retain_dear(&self) -> Option<Chunk> {
        let mut dear = std::collections::HashSet::new();
        for (head, _) in frame::frames(&self.frames, self.salt) {
            if head.class != Class::Ordinary as u8 {
                dear.insert(head.seq);
            }
        }
        if dear.is_empty() { None } else { self.retain(|seq| dear.contains(&seq)) }
    }
}
