//! The committer's turns.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::advice::explain_queue;
use super::bounds::Bounds;
use super::due::{Due, Facts, Intervals, Waiting, due};
use super::flags::Keeping;
use super::mailbox::Wanted;
use super::recovery::{RETRY_FIRST, Reach};
use super::source::OWN;
use super::stop::Stopping;
use super::{Notice, Pipeline, lock};
use crate::crash;
use crate::queue::journal::ARENAS_MAX;
use crate::report::PersistError;

/// Whoever awaited a receipt often awaits the next one at once, and falling asleep to be woken costs a third of a sync. Short enough to
/// be no burden where nobody does.
const LINGER: Duration = Duration::from_micros(50);
/// How soon a spare arena is tried again that could not be made: trying writes until the disk is full.
pub(super) const SPARE_AGAIN: Duration = Duration::from_secs(2);

/// The committer's own state; everything shared is in the pipeline.
pub(super) struct Committer {
    pub(super) pipeline: Arc<Pipeline>,
    intervals: Intervals,
    pub(super) waiting: Waiting,
    pub(super) retry_delay: Duration,
    pub(super) bounds: Bounds,
    pub(super) reach: Reach,
    /// Making a spare arena failed: when that is tried again.
    pub(super) spare_after: Option<Instant>,
    /// The same, where records wait for it.
    pub(super) swap_after: Option<Instant>,
    /// Who waited for the last sync.
    gathered: usize,
    /// The last turn answered somebody who awaited a receipt.
    answered: bool,
    pub(super) asked: Wanted,
    pub(super) stopping: Option<Stopping>,
    pub(super) keeping: Keeping,
}

impl Committer {
    pub(super) fn new(pipeline: Arc<Pipeline>) -> Self {
        let options = &pipeline.options;
        let intervals = Intervals {
            flush_at: options.flush_at,
            flush: options.flush_interval,
            sync: options.sync_interval,
            ack: options.ack_interval,
        };
        let bounds = Bounds::new(options);
        Self {
            pipeline,
            intervals,
            waiting: Waiting::default(),
            retry_delay: RETRY_FIRST,
            bounds,
            reach: Reach::default(),
            spare_after: None,
            swap_after: None,
            gathered: 0,
            answered: false,
            asked: Wanted::default(),
            stopping: None,
            keeping: Keeping::default(),
        }
    }

    /// Works until stopped. A panic of ours ends the turn and not the thread: what it left undone is due again.
    pub(super) fn run(mut self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.turn())) {
                Ok(ControlFlow::Break(())) => return,
                Ok(ControlFlow::Continue(())) => {}
                Err(_) => {
                    self.pipeline.storage_fails("the committer thread panicked (please report this defect)");
                    self.failed();
                }
            }
            self.sleep();
        }
    }

    /// One turn: everything that is due, in the order in which the parts depend on each other.
    pub(super) fn turn(&mut self) -> ControlFlow<()> {
        self.look_after_directory();
        self.begin_stop();
        if std::mem::take(&mut self.asked.abandon) {
            // What was decided of it before is not sent again by its next owner.
            self.ack_adopted();
            self.pipeline.abandon_adopted();
        }
        if self.may_try() {
            self.reopen_if_latched();
        }
        let due = self.due(self.now());
        if due.sync || due.checkpoint || due.ack {
            self.pipeline.give_sign();
            crash::refresh_images();
        }
        if due.sync {
            self.sync();
        }
        if due.checkpoint {
            self.checkpoint();
        } else if due.ack {
            self.ack_own();
        }
        if due.ack {
            self.ack_adopted();
        }
        self.tend_dead();
        self.keep_definitions();
        self.pass_flushes_on();
        // A sync changes nothing that the bounds go by, and whoever awaited it may await the next one already.
        let only_synced = due.sync && !due.checkpoint && !due.ack && !self.asked.look_again;
        let looked_lately = self.bounds.looked_at.is_some_and(|at| self.now() < at + self.intervals.sync);
        if !(only_synced && looked_lately && self.asked.flushed.is_empty()) {
            self.keep_bounds();
            // Whoever hears of the end of a flush finds it committed, and is not turned away for what it has sent.
            self.answer_flushes();
            self.compact_if_mostly_free();
        }
        if std::mem::take(&mut self.asked.adopt) && self.stopping.is_none() && self.pipeline.adopt_next() {
            self.pipeline.committed();
        }
        self.make_spare();
        if due.sync {
            // Last: whoever awaits a receipt does not wait for this.
            self.pipeline.shard.journal().prefault();
        }
        self.end_stop()
    }

    /// Sleeps until something is due or somebody rings.
    fn sleep(&mut self) {
        let until = self.wake_at();
        let pipeline = Arc::clone(&self.pipeline);
        if std::mem::take(&mut self.answered) {
            pipeline.mailbox.linger(LINGER);
        }
        let wanted = pipeline.mailbox.listen(until, || pipeline.options.clock.now());
        self.hear(wanted);
    }

    /// When the next turn is due if nobody rings.
    pub(super) fn wake_at(&mut self) -> Option<Instant> {
        let pipeline = Arc::clone(&self.pipeline);
        // Said before the journal is looked at: a record that comes after the look sees it, and rings.
        pipeline.mailbox.believe_clean(true);
        let due = self.due(self.now());
        // In memory there is nothing to sync: there the next record matters only if nothing waits to be checkpointed.
        let next =
            if pipeline.shard.is_volatile() { self.waiting.journaled_since } else { self.waiting.unsynced_since };
        if next.is_some() {
            pipeline.mailbox.believe_clean(false);
        }
        let now_due = due.sync || due.checkpoint || due.ack;
        let now = now_due.then(|| self.now());
        let until = [due.wake_at, self.bounds.look_again_at, self.reach.again_at, self.stop_deadline(), now];
        until.into_iter().flatten().min()
    }

    pub(super) fn hear(&mut self, wanted: Wanted) {
        let asked = &mut self.asked;
        asked.sync |= wanted.sync;
        asked.look_again |= wanted.look_again;
        asked.adopt |= wanted.adopt;
        asked.abandon |= wanted.abandon;
        asked.delivery_ended = wanted.delivery_ended.or(asked.delivery_ended.take());
        asked.flushes.extend(wanted.flushes);
        asked.flushed.extend(wanted.flushed);
        asked.awaited.extend(wanted.awaited);
        asked.dead.extend(wanted.dead);
        asked.definitions = wanted.definitions.or(asked.definitions.take());
        asked.loading_ended |= wanted.loading_ended;
        asked.stops.extend(wanted.stops);
        asked.stop = [asked.stop, wanted.stop].into_iter().flatten().min();
    }

    fn due(&mut self, now: Instant) -> Due {
        let pipeline = &self.pipeline;
        let journal = pipeline.shard.journal();
        let (_, journaled) = journal.journaled();
        let unsynced = !pipeline.shard.is_volatile() && journal.last_seq() > pipeline.receipts.synced();
        since(&mut self.waiting.unsynced_since, unsynced, now);
        // What was found at open counts no records: nobody has read it yet.
        let sealed = journal.oldest_sealed().is_some();
        since(&mut self.waiting.journaled_since, journaled > 0 || sealed, now);
        since(&mut self.waiting.unacked_since, !pipeline.leases.is_committed(), now);
        *lock(&pipeline.unsynced_since) = self.waiting.unsynced_since;
        let facts = Facts {
            journaled,
            pressing: journal.is_half_full() || sealed || pipeline.is_pressing(),
            unacked_rows: pipeline.leases.pending_rows(),
            awaited: pipeline.receipts.waiting() > 0,
            flushed: !self.asked.flushed.is_empty(),
            all: self.asked.wants_all() || self.stopping.is_some(),
        };
        // Without another arena the active one cannot be sealed. Acks do not wait for that: they are what makes room.
        let stuck = self.swap_after.filter(|after| now < *after && !sealed && !journal.has_free_arena());
        let Some(after) = stuck else { return due(&self.intervals, &self.waiting, &facts, now) };
        let waiting = Waiting { journaled_since: None, ..self.waiting };
        let mut due = due(&self.intervals, &waiting, &facts, now);
        due.wake_at = Some(due.wake_at.map_or(after, |earlier| earlier.min(after)));
        due
    }

    fn sync(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        self.gather();
        self.asked.sync = false;
        let began = self.now();
        match pipeline.shard.sync() {
            Ok(seq) => {
                self.waiting.sync_after = None;
                // What came meanwhile has an interval of its own; otherwise a steady stream would be synced without a pause.
                self.waiting.unsynced_since = Some(began);
                self.answered = pipeline.receipts.waiting() > 0;
                pipeline.receipts.synced_up_to(seq);
            }
            Err(error) => {
                let text = error.to_string();
                self.storage_failed(|pipeline| pipeline.journal_fails(&error));
                pipeline.receipts.fail(&PersistError::Sync(text));
                self.waiting.sync_after = Some(self.now() + self.retry_delay);
                // The journal's file is not to be trusted any more; the store may still be able to take what is in it.
                if self.may_try() {
                    self.checkpoint();
                }
            }
        }
    }

    /// Lets those who were woken by the last sync come back before the next one begins: otherwise the first of them has a sync of its
    /// own, and all others wait for two.
    fn gather(&mut self) {
        let receipts = &self.pipeline.receipts;
        if self.gathered > 1 {
            let until = Instant::now() + Duration::from_micros(20 * self.gathered.min(25) as u64);
            while receipts.waiting() < self.gathered && Instant::now() < until {
                std::thread::yield_now();
            }
        }
        self.gathered = receipts.waiting();
    }

    /// Carries what is sealed, then seals the active arena and checkpoints that too, the acks with the first of them.
    pub(super) fn checkpoint(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        self.reopen_if_latched();
        // What waits already goes first: while the store fails, a swap for each attempt would use up the arenas.
        if !self.checkpoint_sealed() {
            return;
        }
        if let Err(error) = pipeline.shard.journal().swap() {
            // Without another arena nothing can be sealed; what was acked makes room all the same.
            self.ack_own();
            self.storage_failed(|pipeline| pipeline.shard_fails(&error.into()));
            self.swap_after = Some(self.now() + SPARE_AGAIN);
            return;
        }
        self.swap_after = None;
        if !self.checkpoint_sealed() {
            return;
        }
        self.waiting.checkpointed_at = Some(self.now());
        self.waiting.journaled_since = None;
        if pipeline.shard.journal().last_seq() <= pipeline.receipts.synced() {
            self.waiting.unsynced_since = None;
        }
    }

    /// Carries the arenas that wait. `false` if the store failed.
    fn checkpoint_sealed(&mut self) -> bool {
        let pipeline = Arc::clone(&self.pipeline);
        // Callers may seal further arenas meanwhile; those are for the next turn.
        for _ in 0..ARENAS_MAX {
            self.make_room_for_oldest_sealed();
            let rows = pipeline.leases.lock();
            let pending = rows.take_acks(OWN, &pipeline.shard.ledger());
            let now = pipeline.options.clock.wall_nanos();
            match pipeline.shard.checkpoint(&pending.acks, pending.next_attempt, now) {
                Ok(Some(checkpointed)) => {
                    rows.committed(pending);
                    drop(rows);
                    if checkpointed.missing > 0 {
                        // Whoever waits for one of those must not be told that it is safe; who waits for another is told too early
                        // that it may not be.
                        pipeline.receipts.fail(&PersistError::Sync("events in the journal are damaged".into()));
                        let (events, after_restart) = (checkpointed.missing, checkpointed.after_restart);
                        (pipeline.options.report)(Notice::Missing { events, after_restart });
                    }
                    if pipeline.shard.is_volatile() {
                        pipeline.receipts.fail(&PersistError::Volatile);
                    } else {
                        pipeline.receipts.synced_up_to(checkpointed.up_to);
                    }
                    self.worked();
                    pipeline.committed();
                }
                Ok(None) => {
                    rows.put_back(pending);
                    break;
                }
                Err(error) => {
                    rows.put_back(pending);
                    drop(rows);
                    self.store_failed(&error);
                    // A full disk may still take deletes, and they make room; and what is in the store must be readable to be
                    // delivered, whether more can come in or not.
                    self.reopen_if_latched();
                    self.ack_own();
                    return false;
                }
            }
        }
        true
    }

    pub(super) fn ack_own(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        if !pipeline.leases.has_pending(OWN) {
            return;
        }
        self.reopen_if_latched();
        let rows = pipeline.leases.lock();
        let pending = rows.take_acks(OWN, &pipeline.shard.ledger());
        let now = pipeline.options.clock.wall_nanos();
        match pipeline.shard.ack(&pending.acks, pending.next_attempt, now) {
            Ok(_) => {
                rows.committed(pending);
                drop(rows);
                self.worked();
                self.waiting.unacked_since = None;
            }
            Err(error) => {
                rows.put_back(pending);
                drop(rows);
                self.store_failed(&error);
            }
        }
    }

    /// An orphan's acks; if it cannot take them, it is let go and found again later.
    pub(super) fn ack_adopted(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        let Some((origin, shard)) = pipeline.adopted_shard() else { return };
        if !pipeline.leases.has_pending(origin) {
            return;
        }
        let rows = pipeline.leases.lock();
        let pending = rows.take_acks(origin, &shard.ledger());
        let now = pipeline.options.clock.wall_nanos();
        match shard.ack(&pending.acks, None, now) {
            Ok(_) => {
                rows.committed(pending);
                drop(rows);
                self.waiting.unacked_since = None;
                self.asked.adopt |= shard.ledger().queued_events == 0;
            }
            Err(error) => {
                rows.put_back(pending);
                drop(rows);
                let why = explain_queue(&pipeline.options.disk, &error);
                (pipeline.options.report)(Notice::ShardSkipped { path: shard.dir().clone(), why });
                pipeline.abandon_adopted();
            }
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.pipeline.options.clock.now()
    }
}

impl Pipeline {
    /// There is something to send.
    pub(super) fn committed(&self) {
        if let Some(delivery) = self.delivery() {
            delivery.committed();
        }
    }
}

fn since(mark: &mut Option<Instant>, waits: bool, now: Instant) {
    *mark = if waits { Some(mark.unwrap_or(now)) } else { None };
}
