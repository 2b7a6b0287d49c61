//! The bounds of the queue, as the committer keeps them: eviction, compaction, spare arenas, and how much the journal
//! may accept.
//!
//! The bounds are checked in each turn. The journal gets a budget, so that nothing is accepted that the store will have
//! no space for. Where the policy is to drop the oldest events, they are evicted before an arena is checkpointed and,
//! if that was not enough, after it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::OverflowPolicy;
use super::admission::{Level, Limits, Usage};
use super::committer::{Committer, FREE_ARENA_RETRY};
use super::options::PipelineOptions;
use super::shared::Pipeline;
use super::source::OWN;
use crate::queue::journal::Budget;
use crate::queue::store::{ChunkKey, is_worth_compacting};
use crate::queue::{ChunkRef, EvictUntil, EvictionCursor};
use crate::report::Diagnostic;
use crate::sys::ages::Anchor;
use crate::sys::throttle::Throttle;

/// How often the bounds are checked again for callers that were refused, if nothing else happens.
const CHECK_AGAIN: Duration = Duration::from_secs(1);
/// Minimum time between two compactions.
pub(super) const COMPACT_SPACING: Duration = Duration::from_secs(60);

/// What the committer remembers from one check of the bounds to the next.
#[derive(Debug)]
pub(super) struct Bounds {
    /// When to check again although nothing has happened.
    pub(super) check_again_at: Option<Instant>,
    pub(super) checked_at: Option<Instant>,
    /// Compactions, successful or not.
    compactions: Throttle,
    /// Tells whether ages can be trusted after changes of the system clock.
    anchor: Anchor,
    /// How far an eviction has looked in vain. Valid as long as no row was released since.
    passed: (EvictionCursor, u64),
}

impl Bounds {
    pub(super) fn new(options: &PipelineOptions) -> Self {
        let clock = &options.clock;
        Self {
            check_again_at: None,
            checked_at: None,
            compactions: Throttle::new(COMPACT_SPACING),
            anchor: Anchor::new(clock.now(), clock.wall_nanos(), options.disk.uptime()),
            passed: (EvictionCursor::default(), 0),
        }
    }
}

impl Committer {
    /// Checks the bounds, and evicts where the policy says so.
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
        let is_time = bounds.check_again_at.take_if(|at| *at <= now).is_some();
        pipeline.admit(is_time);
        bounds.checked_at = Some(now);
        self.commands.check_bounds = false;
        bounds.check_again_at =
            pipeline.admission.is_check_requested().then(|| bounds.check_again_at.unwrap_or(now + CHECK_AGAIN));
    }

    /// Before an arena is checkpointed: evicts the oldest events if their space is needed, because a file does not
    /// shrink.
    pub(super) fn make_room_for_oldest_sealed(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        let limits = &pipeline.options.limits;
        let Some(sealed) = pipeline.shard.journal().oldest_sealed() else { return };
        let bound = pipeline.row_bytes_bound();
        let fits = pipeline.shard.row_bytes().saturating_add(sealed.cost) <= bound;
        if limits.overflow == OverflowPolicy::DropOldest && !fits {
            // The cost of the arena was an upper bound. Before events are lost, the exact size is worth computing.
            let incoming = pipeline.shard.page_bytes_of(&sealed);
            self.evict(EvictUntil::OrdinaryFit { bytes: bound.saturating_sub(incoming) }, false);
        }
    }

    /// Compacts the store's file once little of it is used, whether events keep coming or not. Not during a shutdown,
    /// because a compaction cannot be interrupted.
    pub(super) fn compact_if_mostly_free(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        let shard = &pipeline.shard;
        let may = self.stopping.is_none() && self.waiting.retry_at.is_none() && !shard.is_volatile();
        let is_due = may && is_worth_compacting(shard.file_bytes(), shard.row_bytes());
        let now = self.now();
        if !is_due || self.bounds.compactions.admit(now).is_none() {
            return;
        }
        pipeline.let_others_sync();
        if let Err(error) = shard.compact() {
            self.store_failed(&error);
        }
    }

    /// Creates a spare arena. Also while the store fails: then the journal is all the space there is.
    pub(super) fn create_free_arena(&mut self) {
        let journal = self.pipeline.shard.journal();
        let is_time = self.free_arena_after.is_none_or(|after| self.now() >= after);
        if self.stopping.is_some() || !is_time || journal.has_free_arena() {
            return;
        }
        self.pipeline.let_others_sync();
        // The last free space is left to the store, which needs it to take in records and to delete delivered ones.
        if !self.pipeline.has_space_for_arena() || journal.prepare_free_arena().is_err() {
            // The only consequence is that bursts are refused earlier.
            self.free_arena_after = Some(self.now() + FREE_ARENA_RETRY);
        }
    }

    fn evict(&mut self, until: EvictUntil, for_age: bool) {
        let pipeline = Arc::clone(&self.pipeline);
        if self.waiting.retry_at.is_some() {
            // While the store fails, an eviction would fail too.
            return;
        }
        pipeline.let_others_sync();
        let rows = pipeline.leases.lock();
        let is_out = |key: ChunkKey| rows.is_out(ChunkRef { origin: OWN, key });
        // Read before the eviction: rows that are released meanwhile are considered in the next one.
        let releases = pipeline.leases.releases();
        let (passed, as_of) = &mut self.bounds.passed;
        if std::mem::replace(as_of, releases) != releases {
            *passed = EvictionCursor::default();
        }
        let evicted = pipeline.shard.evict(until, passed, &is_out, pipeline.options.clock.wall_nanos());
        drop(rows);
        match evicted {
            Ok(0) => {}
            Ok(events) => (pipeline.options.report)(Diagnostic::Evicted { events, for_age }),
            Err(error) => self.store_failed(&error),
        }
    }
}

impl Pipeline {
    /// Whether another arena would leave twice its size free above the floor.
    pub(super) fn has_space_for_arena(&self) -> bool {
        let least = (self.options.queue.arena_bytes as u64)
            .saturating_mul(3)
            .saturating_add(self.options.limits.min_free_space);
        self.shard.is_volatile() || self.options.disk.free_bytes(self.shard.dir()).is_ok_and(|free| free >= least)
    }

    /// Decides who is admitted from now on.
    pub(super) fn admit(&self, time: bool) {
        let usage = self.usage();
        let standing = self.options.limits.standing(&usage);
        self.shard.set_budget(standing.ordinary, standing.priority);
        self.admission.set(standing, usage.waiting, time);
        self.report_floor(usage.free_bytes);
    }

    /// Whether the journal should be checkpointed because little of its budget is left.
    pub(super) fn is_pressing(&self) -> bool {
        self.admission.standing().is_pressing(self.waiting())
    }

    /// Whether a record of this size would evict older events.
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
        self.options.limits.row_bytes(self.shard.file_bytes(), self.options.queue.arena_bytes as u64)
    }

    fn waiting(&self) -> Budget {
        let journal = self.shard.journal();
        Budget { events: journal.journaled().1, bytes: journal.journaled_cost() }
    }

    fn usage(&self) -> Usage {
        // The path of a directory that is out of reach may lead to another file system.
        let is_told = !self.shard.is_volatile() && !self.is_out_of_reach();
        let free_bytes = if is_told { self.options.disk.free_bytes(self.shard.dir()).ok() } else { None };
        Usage {
            row_bytes: self.shard.row_bytes(),
            queued_events: self.shard.ledger().queued_events,
            file_bytes: self.shard.file_bytes(),
            arena_bytes: self.options.queue.arena_bytes as u64,
            waiting: self.waiting(),
            under_way: self.leases.leased(),
            free_bytes,
        }
    }
}
