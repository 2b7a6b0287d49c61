//! Giving events up, because there is no room for them or because they are too old. The dear ones go last.

use std::collections::HashSet;

use super::{Shard, ShardError};
use crate::clock::WallNanos;
use crate::record::{Class, frame};
use crate::store::{Changes, Chunk, ChunkKey, Removal};

/// Rows read and rewritten in one transaction.
const BYTES_PER_TRANSACTION: usize = 4 * 1024 * 1024;

/// When enough was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EvictUntil {
    /// The queue is no larger than this, in bytes and in events, and not much smaller: the newest row that goes is cut. Exceptions and
    /// identity events go only when nothing else is left.
    Fits {
        /// Bytes of the pages that rows take.
        bytes: u64,
        /// Events.
        events: u64,
    },
    /// The pages of the rows take no more than so many bytes, or only exceptions and identity events are left.
    OrdinaryFit {
        /// Bytes.
        bytes: u64,
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
            EvictUntil::OrdinaryFit { .. } => &[true],
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
            EvictUntil::Fits { .. } | EvictUntil::OrdinaryFit { .. } => self.excess(until) == (0, 0),
            EvictUntil::NoneBefore(_) => self.ledger().queued_events == 0,
        }
    }

    /// Bytes and events by which the queue is too large.
    fn excess(&self, until: EvictUntil) -> (u64, u64) {
        let ledger = self.ledger();
        match until {
            EvictUntil::Fits { bytes, events } => {
                (self.row_bytes().saturating_sub(bytes), ledger.queued_events.saturating_sub(events))
            }
            EvictUntil::OrdinaryFit { bytes } => (self.row_bytes().saturating_sub(bytes), 0),
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
    /// Adds one row, or the older part of it, to what goes. `false` if no further row needs to be looked at.
    fn consider(&mut self, chunk: &Chunk) -> bool {
        if let EvictUntil::NoneBefore(time) = self.until
            && chunk.carried_at >= time
        {
            return false;
        }
        let kept = self.kept(chunk);
        let keep = if kept.is_empty() { None } else { chunk.retain(|seq| kept.contains(&seq)) };
        let evicted = chunk.count.saturating_sub(keep.as_ref().map_or(0, |kept| kept.count));
        if evicted > 0 {
            let left = keep.as_ref().map_or(0, |kept| kept.frames.len());
            let freed = Chunk::page_bytes_with(chunk.frames.len()).saturating_sub(Chunk::page_bytes_with(left));
            self.changes.remove.push(Removal { key: chunk.key, keep, delivered: 0, buried: 0, evicted });
            self.events += u64::from(evicted);
            self.excess.0 = self.excess.0.saturating_sub(freed);
            self.excess.1 = self.excess.1.saturating_sub(u64::from(evicted));
        }
        self.excess != (0, 0)
    }

    /// The records of a row that stay: all but the oldest that may go, as many of them as it takes to be rid of the excess.
    fn kept(&self, chunk: &Chunk) -> HashSet<u64> {
        let before = Chunk::page_bytes_with(chunk.frames.len());
        let (mut left, mut gone) = (chunk.frames.len(), 0);
        let mut kept = HashSet::new();
        for (head, body) in frame::frames(&chunk.frames, chunk.salt) {
            let freed = before.saturating_sub(Chunk::page_bytes_with(left));
            let is_enough = freed >= self.excess.0 && gone >= self.excess.1;
            let is_spared = self.spare_dear && head.class != Class::Ordinary as u8;
            if is_enough || is_spared {
                kept.insert(head.seq);
            } else {
                left = left.saturating_sub(frame::framed_len(body.len()).unwrap_or(0));
                gone += 1;
            }
        }
        kept
    }
}
