//! Eviction: removing the oldest records because there is no space for them or because they are too old. Priority
//! records (class other than 0) go last.

use std::collections::HashSet;

use super::{Queue, QueueError};
use crate::queue::frame;
use crate::queue::store::{Changes, Chunk, ChunkKey, Removal};
use crate::sys::ages::Ages;
use crate::sys::clock::WallNanos;

/// The most bytes of rows that one transaction reads and rewrites.
const BYTES_PER_TRANSACTION: usize = 4 * 1024 * 1024;
/// The least that is read at once: two rows.
const BYTES_MIN: usize = 128 * 1024;

/// When an eviction has removed enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EvictUntil {
    /// The queue is no larger than this, in bytes and in events, and not much smaller: the newest row that is affected
    /// is cut. Priority records go only when nothing else is left.
    Fits {
        /// Bytes of the pages that rows take.
        bytes: u64,
        events: u64,
    },
    /// The pages of the rows take at most this many bytes, or only priority records are left.
    OrdinaryFit { bytes: u64 },
    /// Nothing was checkpointed longer ago than this.
    NoneOlder {
        /// In nanoseconds.
        age: i64,
        /// How the time of a checkpoint is interpreted.
        ages: Ages,
    },
}

/// How far there is nothing to evict before priority records go as well: rows that contain nothing else, and rows that
/// are leased or acked. Holds until one of these is released. A caller that keeps it saves reading those rows each
/// time.
#[derive(Clone, Debug, Default)]
pub(crate) struct EvictionCursor {
    up_to: Option<ChunkKey>,
    busy: Vec<ChunkKey>,
}

impl Queue {
    /// Evicts records, oldest first, until the goal is reached or nothing is left that may go. Rows for which `busy` is
    /// true are leased or acked, and stay. Returns the number of evicted events.
    pub(crate) fn evict(
        &self,
        until: EvictUntil,
        passed: &mut EvictionCursor,
        busy: &dyn Fn(ChunkKey) -> bool,
        now: WallNanos,
    ) -> Result<u64, QueueError> {
        let passes: &[bool] = match until {
            EvictUntil::Fits { .. } => &[true, false],
            EvictUntil::OrdinaryFit { .. } => &[true],
            EvictUntil::NoneOlder { age, ages }
                if self.oldest().is_some_and(|oldest| ages.is_older(oldest, age, now)) =>
            {
                &[false]
            }
            EvictUntil::NoneOlder { .. } => &[],
        };
        // Rows that are not busy any more were delivered or released.
        passed.busy.retain(|key| busy(*key));
        let mut some_are_busy = !passed.busy.is_empty();
        let mut evicted = 0;
        for &spare_priority in passes {
            if some_are_busy && !spare_priority && passes.len() > 1 {
                // Leased rows go sooner or later. Until then, ordinary records are left, so priority records stay.
                break;
            }
            let mut from_the_start = EvictionCursor::default();
            let passed = if spare_priority { &mut *passed } else { &mut from_the_start };
            let is_busy = |key: ChunkKey| busy(key).then(|| some_are_busy = true).is_some();
            evicted += self.evict_in_one_pass(until, spare_priority, passed, is_busy, now)?;
        }
        if evicted > 0 {
            self.mirror(now);
        }
        Ok(evicted)
    }

    fn evict_in_one_pass(
        &self,
        until: EvictUntil,
        spare_priority: bool,
        passed: &mut EvictionCursor,
        mut busy: impl FnMut(ChunkKey) -> bool,
        now: WallNanos,
    ) -> Result<u64, QueueError> {
        let (mut after, mut events, mut read_bytes) = (passed.up_to, 0, BYTES_MIN);
        let mut nothing_left_behind = true;
        loop {
            let excess = self.excess(until);
            if excess == (0, 0) {
                break;
            }
            let wanted = if matches!(until, EvictUntil::NoneOlder { .. }) { 0 } else { excess.0 };
            read_bytes = read_bytes.max(usize::try_from(wanted).unwrap_or(usize::MAX)).min(BYTES_PER_TRANSACTION);
            let read = self.read(after, read_bytes)?;
            let Some(last) = read.last else { break };
            (after, read_bytes) = (Some(last), read_bytes.saturating_mul(2));
            let mut plan = Plan { until, now, spare_priority, changes: Changes::default(), excess, events: 0 };
            let (mut goes_on, mut behind) = (true, passed.clone());
            for chunk in &read.chunks {
                let is_busy = busy(chunk.key);
                let leaves_some = !is_busy && plan.consider(chunk);
                nothing_left_behind &= !leaves_some;
                if nothing_left_behind {
                    behind.up_to = Some(chunk.key);
                    behind.busy.extend(is_busy.then_some(chunk.key));
                }
                goes_on = is_busy || plan.goes_on(chunk);
                if !goes_on {
                    break;
                }
            }
            if !plan.changes.remove.is_empty() {
                self.in_store(|store| store.apply(&plan.changes))?;
                crate::sys::crash_point::reach("evict.committed");
                events += plan.events;
            }
            *passed = behind;
            if !goes_on {
                break;
            }
        }
        Ok(events)
    }

    /// When the oldest row was checkpointed.
    pub(super) fn oldest(&self) -> Option<WallNanos> {
        Some(self.open_store()?.oldest(&|_| false).ok()??.1)
    }

    /// The bytes and events by which the queue is too large; no limit while any record may be too old.
    fn excess(&self, until: EvictUntil) -> (u64, u64) {
        let ledger = self.ledger();
        match until {
            EvictUntil::Fits { bytes, events } => {
                (self.row_bytes().saturating_sub(bytes), ledger.queued_events.saturating_sub(events))
            }
            EvictUntil::OrdinaryFit { bytes } => (self.row_bytes().saturating_sub(bytes), 0),
            EvictUntil::NoneOlder { .. } if ledger.queued_events == 0 => (0, 0),
            EvictUntil::NoneOlder { .. } => (u64::MAX, u64::MAX),
        }
    }
}

struct Plan {
    until: EvictUntil,
    now: WallNanos,
    spare_priority: bool,
    changes: Changes,
    excess: (u64, u64),
    events: u64,
}

impl Plan {
    /// Adds one row, or the older part of it, to the changes. Returns whether the row keeps something that may go
    /// later.
    fn consider(&mut self, chunk: &Chunk) -> bool {
        if self.is_young(chunk) {
            return true;
        }
        let (kept, leaves_some) = self.kept(chunk);
        let keep = if kept.is_empty() { None } else { chunk.retain(|seq| kept.contains(&seq)) };
        let evicted = chunk.count.saturating_sub(keep.as_ref().map_or(0, |kept| kept.count));
        if evicted > 0 {
            let left = keep.as_ref().map_or(0, |kept| kept.frames.len());
            let freed = Chunk::page_bytes_with(chunk.frames.len()).saturating_sub(Chunk::page_bytes_with(left));
            self.changes.remove.push(Removal { evicted, ..Removal::keeping(chunk.key, keep) });
            self.events += u64::from(evicted);
            self.excess.0 = self.excess.0.saturating_sub(freed);
            self.excess.1 = self.excess.1.saturating_sub(u64::from(evicted));
        }
        leaves_some
    }

    /// Whether a further row needs to be considered after this one.
    fn goes_on(&self, chunk: &Chunk) -> bool {
        self.excess != (0, 0) && !self.is_young(chunk)
    }

    fn is_young(&self, chunk: &Chunk) -> bool {
        matches!(self.until, EvictUntil::NoneOlder { age, ages } if !ages.is_older(chunk.checkpointed_at, age, self.now))
    }

    /// The records of a row that stay: all but the oldest that may go, as many of them as the excess requires. Also
    /// whether some of those that stay are not priority records.
    fn kept(&self, chunk: &Chunk) -> (HashSet<u64>, bool) {
        let before = Chunk::page_bytes_with(chunk.frames.len());
        let (mut left, mut gone) = (chunk.frames.len(), 0);
        let (mut kept, mut leaves_some) = (HashSet::new(), false);
        for (head, body) in frame::frames(&chunk.frames, chunk.salt) {
            let freed = before.saturating_sub(Chunk::page_bytes_with(left));
            let is_enough = freed >= self.excess.0 && gone >= self.excess.1;
            let is_spared = self.spare_priority && head.class != frame::ORDINARY;
            if is_enough || is_spared {
                kept.insert(head.seq);
                leaves_some |= !is_spared;
            } else {
                left = left.saturating_sub(frame::framed_len(body.len()).unwrap_or(0));
                gone += 1;
            }
        }
        (kept, leaves_some)
    }
}
