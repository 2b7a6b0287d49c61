//! Keeping the queue within its bounds: looked at by the committer in each turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::{Level, Limits, Usage};
use super::committer::{Committer, SPARE_AGAIN};
use super::source::OWN;
use super::{Notice, OverflowPolicy, Pipeline, WorkerOptions};
use crate::queue::journal::Budget as Room;
use crate::queue::store::{ChunkKey, is_worth_compacting};
use crate::queue::{ChunkRef, EvictUntil, EvictionCursor};
use crate::sys::ages::Anchor;

/// How often the bounds are looked at again on behalf of callers that were turned away, if nothing else has happened.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Compactions are at least so far apart.
pub(super) const COMPACT_SPACING: Duration = Duration::from_secs(60);

/// What the committer remembers from one look at the bounds to the next.
#[derive(Debug)]
pub(super) struct Bounds {
    /// When they are looked at again though nothing has happened.
    pub(super) look_again_at: Option<Instant>,
    pub(super) looked_at: Option<Instant>,
    /// When the store was last compacted, or could not be.
    compacted_at: Option<Instant>,
    /// Whether ages are to be believed.
    anchor: Anchor,
    /// Where an eviction has something to look for, as long as no row has become free since.
    passed: (EvictionCursor, u64),
}

impl Bounds {
    pub(super) fn new(options: &WorkerOptions) -> Self {
        let clock = &options.clock;
        Self {
            look_again_at: None,
            looked_at: None,
            compacted_at: None,
            anchor: Anchor::new(clock.now(), clock.wall_nanos(), options.disk.uptime()),
            passed: (EvictionCursor::default(), 0),
        }
    }
}

impl Committer {
    /// Looks at the bounds; makes room if that is the rule.
    pub(super) fn keep_bounds(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        let limits = &pipeline.options.limits;
        if limits.overflow == OverflowPolicy::DropOldest {
            let bytes = pipeline.row_bytes_bound();
            self.evict(EvictUntil::Fits { bytes, events: limits.queue_events }, false);
        }
        if let Some(age) = limits.queue_age {
            let (clock, disk) = (&pipeline.options.clock, &pipeline.options.disk);
            let ages = self.bounds.anchor.look(clock.now(), clock.wall_nanos(), || disk.uptime());
            if let Some(ages) = ages.filter(|_| pipeline.leases.was_attempted()) {
                let age = i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
                self.evict(EvictUntil::NoneOlder { age, ages }, true);
            }
        }
        let now = self.now();
        let bounds = &mut self.bounds;
        let is_time = bounds.look_again_at.take_if(|at| *at <= now).is_some();
        pipeline.admit(is_time);
        bounds.looked_at = Some(now);
        self.asked.look_again = false;
        bounds.look_again_at = pipeline.admission.is_asked().then(|| bounds.look_again_at.unwrap_or(now + LOOK_AGAIN));
    }

    /// Before an arena is checkpointed: where the oldest make room, they make it first, because a file does not shrink.
    pub(super) fn make_room_for_oldest_sealed(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        let limits = &pipeline.options.limits;
        let Some(sealed) = pipeline.shard.journal().oldest_sealed() else { return };
        let bound = pipeline.row_bytes_bound();
        let fits = pipeline.shard.row_bytes().saturating_add(sealed.cost()) <= bound;
        if limits.overflow == OverflowPolicy::DropOldest && !fits {
            // That was an upper bound. What is given up for good is worth another look.
            let incoming = pipeline.shard.page_bytes_of(&sealed);
            self.evict(EvictUntil::OrdinaryFit { bytes: bound.saturating_sub(incoming) }, false);
        }
    }

    /// Gives the file's room back to the file system once little of it is used, whether events go on coming or not. Not while stopping,
    /// because it cannot be cut short.
    pub(super) fn compact_if_mostly_free(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        let shard = &pipeline.shard;
        let is_time = self.bounds.compacted_at.is_none_or(|last| self.now() >= last + COMPACT_SPACING);
        let may = self.stopping.is_none() && self.waiting.retry_at.is_none() && !shard.is_volatile();
        if !(may && is_time && is_worth_compacting(shard.file_bytes(), shard.row_bytes())) {
            return;
        }
        self.bounds.compacted_at = Some(self.now());
        if let Err(error) = shard.compact() {
            self.store_failed(&error);
        }
    }

    /// Also while the store fails: then the journal is all the room there is.
    pub(super) fn make_spare(&mut self) {
        let journal = self.pipeline.shard.journal();
        let is_time = self.spare_after.is_none_or(|after| self.now() >= after);
        if self.stopping.is_some() || !is_time || journal.has_free_arena() {
            return;
        }
        // Never out of the last room: the store needs that, to take in what waits and to get rid of what was delivered.
        if !self.pipeline.has_room_for_spare() || journal.prepare_free_arena().is_err() {
            // Bursts are refused a little earlier, that is all.
            self.spare_after = Some(self.now() + SPARE_AGAIN);
        }
    }

    fn evict(&mut self, until: EvictUntil, for_age: bool) {
        let pipeline = Arc::clone(&self.pipeline);
        if self.waiting.retry_at.is_some() {
            // While the store fails there is nothing to be gained.
            return;
        }
        let rows = pipeline.leases.lock();
        let is_out = |key: ChunkKey| rows.is_out(ChunkRef { origin: OWN, key });
        // Read before: a row that is released during the eviction is looked at the next time.
        let releases = pipeline.leases.releases();
        let (passed, as_of) = &mut self.bounds.passed;
        if std::mem::replace(as_of, releases) != releases {
            *passed = EvictionCursor::default();
        }
        let evicted = pipeline.shard.evict(until, passed, &is_out, pipeline.options.clock.wall_nanos());
        drop(rows);
        match evicted {
            Ok(evicted) if evicted.events > 0 => {
                (pipeline.options.report)(Notice::Evicted { events: evicted.events, for_age });
            }
            Ok(_) => {}
            Err(error) => self.store_failed(&error),
        }
    }
}

impl Pipeline {
    /// Whether a further arena leaves twice its size free above the floor.
    pub(super) fn has_room_for_spare(&self) -> bool {
        let least =
            (self.options.arena_bytes as u64).saturating_mul(3).saturating_add(self.options.limits.min_free_space);
        self.shard.is_volatile() || self.options.disk.free_bytes(self.shard.dir()).is_ok_and(|free| free >= least)
    }

    /// Says who is let in from now on.
    pub(super) fn admit(&self, time: bool) {
        let usage = self.usage();
        let standing = self.options.limits.standing(&usage);
        self.shard.set_budget(standing.ordinary, standing.priority);
        self.admission.set(standing, usage.waiting, time);
        self.tell_of_floor(usage.free_bytes);
    }

    /// Whether what waits in the journal should be checkpointed because little more may come.
    pub(super) fn is_pressing(&self) -> bool {
        self.admission.standing().is_pressing(self.waiting())
    }

    /// Whether older events would have to go for one of that size.
    pub(super) fn would_evict(&self, bytes: usize) -> bool {
        let limits = &self.options.limits;
        if limits.overflow != OverflowPolicy::DropOldest {
            return false;
        }
        let mut usage = self.usage();
        usage.waiting.bytes = usage.waiting.bytes.saturating_add(bytes as u64);
        Limits { overflow: OverflowPolicy::DropNewest, ..*limits }.standing(&usage).level != Level::Open
    }

    fn row_bytes_bound(&self) -> u64 {
        self.options.limits.row_bytes(self.shard.file_bytes(), self.options.arena_bytes as u64)
    }

    fn waiting(&self) -> Room {
        let journal = self.shard.journal();
        Room { events: journal.journaled().1, bytes: journal.journaled_cost() }
    }

    fn usage(&self) -> Usage {
        // The path of a directory that is out of reach may be on another file system.
        let is_told = !self.shard.is_volatile() && !self.is_out_of_reach();
        let free_bytes = if is_told { self.options.disk.free_bytes(self.shard.dir()).ok() } else { None };
        Usage {
            row_bytes: self.shard.row_bytes(),
            queued_events: self.shard.ledger().queued_events,
            file_bytes: self.shard.file_bytes(),
            arena_bytes: self.options.arena_bytes as u64,
            waiting: self.waiting(),
            under_way: self.leases.leased(),
            free_bytes,
        }
    }
}
