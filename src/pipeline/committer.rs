//! The committer: the thread that syncs journals, commits to stores, and creates and removes files.
//!
//! It gives each lane a turn, in which everything that is due is done: sync the journal, checkpoint it into the store,
//! commit acks, keep the queue within its bounds, and carry out commands from the mailbox. What is due when is decided
//! by a pure function ([`due`]). With nothing pending the thread sleeps without a timer.
//!
//! A lane delays the others by one operation at most. Before every commit, eviction, compaction and new arena of one
//! lane, syncs that are due in the others are made ([`Pipeline::let_others_sync`]); what takes longer (opening a queue,
//! reopening a store) is done on threads of its own.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::advice::explain_queue;
use super::bounds::Bounds;
use super::description::Described;
use super::mailbox::Commands;
use super::recovery::{RETRY_FIRST, Reach};
use super::shared::{Pipeline, lock};
use super::shutdown::Stopping;
use super::source::OWN;
use super::threads::Threads;
use crate::crash;
use crate::queue::journal::ARENAS_MAX;
use crate::queue::{Finding, QueueError};
use crate::report::{Diagnostic, PersistError};

/// How long the thread stays awake after it has answered a waiting caller. A caller that awaited a receipt often awaits
/// the next one at once, and a wake-up costs a third of a sync.
const LINGER: Duration = Duration::from_micros(50);
/// Time until the next attempt to create a spare arena. An attempt writes until the disk is full.
pub(super) const FREE_ARENA_RETRY: Duration = Duration::from_secs(2);

/// Runs the committer thread until the last lane has ended.
pub(super) fn run(threads: &Threads) {
    let mut lanes: Vec<Committer> = Vec::new();
    let _ends = threads.commit.running();
    loop {
        let Some(opened) = threads.opened_lanes(lanes.is_empty()) else {
            #[cfg(feature = "metrics")]
            threads.publish(true, None);
            return;
        };
        if let Some(first) = opened.first() {
            // A disk may hang in the first turn already.
            threads.commit.awake(first.options.clock.now());
        }
        for pipeline in opened {
            // Commands may be there before the lane is served: its opener has answered, and their wake-up is spent.
            let commands = pipeline.mailbox.take();
            let mut lane = Committer::new(pipeline);
            lane.receive(commands);
            lanes.push(lane);
        }
        lanes.retain_mut(|lane| !lane.is_due || lane.guarded_turn().is_continue());
        sleep(threads, &mut lanes);
    }
}

/// Sleeps until something is due in a lane or a mailbox is written to, and gives each lane its commands.
fn sleep(threads: &Threads, lanes: &mut [Committer]) {
    let (mut until, mut has_answered) = (None, false);
    for lane in lanes.iter_mut() {
        lane.next_turn = lane.wake_at();
        lane.describe();
        until = [until, lane.next_turn].into_iter().flatten().min();
        has_answered |= std::mem::take(&mut lane.answered);
    }
    // All lanes have the same clock. Without a lane there is nothing to wait for.
    let Some(clock) = lanes.first().map(|lane| lane.pipeline.options.clock.clone()) else { return };
    if has_answered {
        threads.wake().linger(LINGER);
    }
    #[cfg(feature = "metrics")]
    threads.publish(until.is_none(), Some(clock.now()));
    threads.commit.asleep();
    threads.wake().wait(until, || clock.now());
    let now = clock.now();
    threads.commit.awake(now);
    for lane in lanes {
        // A lane with nothing to do has no turn: the other may be one that syncs for each event.
        lane.is_due = lane.pipeline.mailbox.take_woken() || lane.next_turn.is_some_and(|at| at <= now);
        lane.describe_begin();
        let commands = lane.pipeline.mailbox.take();
        lane.receive(commands);
    }
}

/// The committer's own state of one lane. What others share is in the [`Pipeline`].
pub(super) struct Committer {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) waiting: Waiting,
    pub(super) retry_delay: Duration,
    pub(super) bounds: Bounds,
    pub(super) reach: Reach,
    /// Receives the result while the store is being opened again.
    pub(super) reopening: Option<Receiver<Result<Vec<Finding>, QueueError>>>,
    /// When to try again to create a spare arena, after a failure.
    pub(super) free_arena_after: Option<Instant>,
    /// The same, while records wait for it.
    pub(super) swap_after: Option<Instant>,
    /// When the next turn is due without a command, as found before the last sleep.
    pub(super) next_turn: Option<Instant>,
    /// Whether the lane gets a turn now.
    pub(super) is_due: bool,
    /// When the lane was last described on the status page, and what made that due.
    pub(super) described: Described,
    /// Number of callers that waited for the last sync.
    gathered: usize,
    /// The last turn answered a caller that awaited a receipt.
    answered: bool,
    pub(super) commands: Commands,
    pub(super) stopping: Option<Stopping>,
    /// When to try again to store flag definitions, after a failure.
    pub(super) keep_again_at: Option<Instant>,
}

impl Committer {
    pub(super) fn new(pipeline: Arc<Pipeline>) -> Self {
        let options = &pipeline.options;
        let bounds = Bounds::new(options);
        Self {
            pipeline,
            waiting: Waiting::default(),
            retry_delay: RETRY_FIRST,
            bounds,
            reach: Reach::default(),
            reopening: None,
            free_arena_after: None,
            swap_after: None,
            next_turn: None,
            is_due: true,
            described: Described::default(),
            gathered: 0,
            answered: false,
            commands: Commands::default(),
            stopping: None,
            keep_again_at: None,
        }
    }

    /// One turn. A panic in it does not end the thread: what was left undone is due again.
    fn guarded_turn(&mut self) -> ControlFlow<()> {
        catch_unwind(AssertUnwindSafe(|| self.turn())).unwrap_or_else(|_| {
            self.pipeline.report_storage_failure("the committer thread panicked (please report this defect)");
            self.failed();
            ControlFlow::Continue(())
        })
    }

    /// One turn: everything that is due, in the order of dependence.
    pub(super) fn turn(&mut self) -> ControlFlow<()> {
        let flow = self.do_what_is_due();
        self.note_catching_up();
        self.pipeline.leases.wake_turned_away();
        flow
    }

    fn do_what_is_due(&mut self) -> ControlFlow<()> {
        if self.reopening.is_some() && !self.reopen_if_latched() {
            // The store must not be touched. The journal is synced all the same, and a shutdown keeps its deadline.
            self.begin_stop();
            if self.due(self.now()).sync {
                self.sync();
            }
            return self.end_stop();
        }
        self.check_directory();
        self.begin_stop();
        if std::mem::take(&mut self.commands.abandon) {
            // Acks of this orphan are committed first, so that its next owner does not send the events again.
            self.ack_adopted();
            self.pipeline.abandon_adopted();
        }
        if self.may_try() && !self.reopen_if_latched() {
            return ControlFlow::Continue(());
        }
        let due = self.due(self.now());
        if due.sync || due.checkpoint || due.ack {
            self.pipeline.record_sign_of_life();
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
        self.handle_dead_letters();
        self.keep_definitions();
        if self.reopening.is_some() {
            return ControlFlow::Continue(());
        }
        self.begin_flushes();
        // A sync changes nothing that the bounds depend on, and the caller that awaited it may await the next one
        // already.
        let only_synced = due.sync && !due.checkpoint && !due.ack && !self.commands.check_bounds;
        let checked_lately =
            self.bounds.checked_at.is_some_and(|at| self.now() < at + self.pipeline.options.intervals.sync);
        if !(only_synced && checked_lately && self.commands.flushed.is_empty()) {
            self.keep_bounds();
            // Flushes are answered after the bounds are checked: the caller finds the results committed and the freed
            // space usable.
            self.answer_flushes();
            self.compact_if_mostly_free();
        }
        if std::mem::take(&mut self.commands.adopt) && self.stopping.is_none() && self.pipeline.adopt_next() {
            self.pipeline.committed();
        }
        self.create_free_arena();
        if due.sync {
            // Last, so that no caller that awaits a receipt waits for it.
            self.pipeline.shard.journal().prefault();
        }
        self.end_stop()
    }

    /// When the next turn is due without a command.
    pub(super) fn wake_at(&mut self) -> Option<Instant> {
        let pipeline = Arc::clone(&self.pipeline);
        // Set before the look at the journal: a record that is appended after the look finds the flag and wakes the
        // committer.
        pipeline.mailbox.believe_clean(true);
        let due = self.due(self.now());
        // In memory there is nothing to sync. There the next record matters only if none waits to be checkpointed.
        let next =
            if pipeline.shard.is_volatile() { self.waiting.journaled_since } else { self.waiting.unsynced_since };
        if next.is_some() {
            pipeline.mailbox.believe_clean(false);
        }
        let now_due = due.sync || due.checkpoint || due.ack;
        let now = now_due.then(|| self.now());
        if self.reopening.is_some() {
            // The thread that reopens the store wakes the committer when it is done.
            return [due.wake_at, self.stop_deadline(), now].into_iter().flatten().min();
        }
        let until = [due.wake_at, self.bounds.check_again_at, self.reach.again_at, self.stop_deadline(), now];
        until.into_iter().flatten().min()
    }

    pub(super) fn receive(&mut self, new: Commands) {
        let commands = &mut self.commands;
        commands.sync |= new.sync;
        commands.check_bounds |= new.check_bounds;
        commands.adopt |= new.adopt;
        commands.abandon |= new.abandon;
        commands.delivery_ended = new.delivery_ended.or(commands.delivery_ended.take());
        commands.flushes.extend(new.flushes);
        commands.flushed.extend(new.flushed);
        commands.awaited.extend(new.awaited);
        commands.dead.extend(new.dead);
        commands.definitions = new.definitions.or(commands.definitions.take());
        commands.loading_ended |= new.loading_ended;
        commands.stops.extend(new.stops);
        commands.stop = [commands.stop, new.stop].into_iter().flatten().min();
    }

    fn due(&mut self, now: Instant) -> Due {
        let pipeline = &self.pipeline;
        let journal = pipeline.shard.journal();
        let (_, journaled) = journal.journaled();
        let unsynced = !pipeline.shard.is_volatile() && journal.last_seq() > pipeline.receipts.synced();
        since(&mut self.waiting.unsynced_since, unsynced, now);
        // Arenas found at opening count no records, since nothing has read them yet.
        let sealed = journal.oldest_sealed().is_some();
        since(&mut self.waiting.journaled_since, journaled > 0 || sealed, now);
        since(&mut self.waiting.unacked_since, !pipeline.leases.is_committed(), now);
        *lock(&pipeline.unsynced_since) = self.waiting.unsynced_since;
        let facts = Facts {
            journaled,
            pressing: journal.is_half_full() || sealed || pipeline.is_pressing(),
            unacked_rows: pipeline.leases.pending_rows(),
            awaited: pipeline.receipts.waiting() > 0,
            flushed: !self.commands.flushed.is_empty(),
            all: self.commands.wants_all() || self.stopping.is_some(),
        };
        // Without a free arena the active one cannot be sealed. Acks do not wait for that: they free space.
        if self.reopening.is_some() {
            let waiting = Waiting { journaled_since: None, unacked_since: None, ..self.waiting };
            return due(&pipeline.options.intervals, &waiting, &facts, now);
        }
        let stuck = self.swap_after.filter(|after| now < *after && !sealed && !journal.has_free_arena());
        let Some(after) = stuck else { return due(&pipeline.options.intervals, &self.waiting, &facts, now) };
        let waiting = Waiting { journaled_since: None, ..self.waiting };
        let mut due = due(&pipeline.options.intervals, &waiting, &facts, now);
        due.wake_at = Some(due.wake_at.map_or(after, |earlier| earlier.min(after)));
        due
    }

    fn sync(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        self.gather();
        self.commands.sync = false;
        let began = self.now();
        let synced = lock(&pipeline.sync_failure).take().map_or_else(|| pipeline.shard.sync(), Err);
        match synced {
            Ok(seq) => {
                self.waiting.sync_after = None;
                // Records that were appended during the sync have an interval of their own. Otherwise a steady stream
                // would be synced without a pause.
                self.waiting.unsynced_since = Some(began);
                self.answered = pipeline.receipts.waiting() > 0;
                pipeline.receipts.synced_up_to(seq);
            }
            Err(error) => {
                let text = error.to_string();
                self.storage_failed(|pipeline| pipeline.report_journal_failure(&error));
                pipeline.receipts.fail(&PersistError::Sync(text));
                self.waiting.sync_after = Some(self.now() + self.retry_delay);
                // The journal's file cannot be trusted any more; the store may still be able to take its records.
                if self.may_try() {
                    self.checkpoint();
                }
            }
        }
    }

    /// Waits briefly for the callers that the last sync woke. Otherwise the first of them gets a sync of its own, and
    /// all others wait for two.
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

    /// Checkpoints the sealed arenas, then seals the active one and checkpoints it too. Acks are committed with the
    /// first.
    pub(super) fn checkpoint(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        if !self.reopen_if_latched() {
            return;
        }
        // Sealed arenas first: while the store fails, a swap for each attempt would use up the arenas.
        if !self.checkpoint_sealed() {
            return;
        }
        if let Err(error) = pipeline.shard.journal().swap() {
            // Nothing can be sealed without another arena, but acks free space all the same.
            self.ack_own();
            self.storage_failed(|pipeline| pipeline.report_shard_failure(&error));
            self.swap_after = Some(self.now() + FREE_ARENA_RETRY);
            return;
        }
        self.swap_after = None;
        if !self.checkpoint_sealed() {
            return;
        }
        pipeline.admission.journal_was_full.store(false, Ordering::Relaxed);
        self.waiting.checkpointed_at = Some(self.now());
        self.waiting.journaled_since = None;
        if pipeline.shard.journal().last_seq() <= pipeline.receipts.synced() {
            self.waiting.unsynced_since = None;
        }
    }

    /// Checkpoints the sealed arenas. Returns false if the store failed.
    fn checkpoint_sealed(&mut self) -> bool {
        let pipeline = Arc::clone(&self.pipeline);
        // Arenas that callers seal meanwhile are left for the next turn.
        for _ in 0..ARENAS_MAX {
            pipeline.let_others_sync();
            self.make_room_for_oldest_sealed();
            let pending = pipeline.leases.take_acks(OWN, &pipeline.shard.ledger());
            let now = pipeline.options.clock.wall_nanos();
            match pipeline.shard.checkpoint(&pending.acks, pending.next_attempt, now) {
                Ok(Some(checkpointed)) => {
                    pipeline.leases.lock().committed(pending);
                    if checkpointed.missing > 0 {
                        // Callers that wait for a damaged event must not get the result that it is durable. All waiting
                        // callers get the error, since it is not known which events are damaged.
                        pipeline.receipts.fail(&PersistError::Sync("events in the journal are damaged".into()));
                        let (events, after_restart) = (checkpointed.missing, checkpointed.after_restart);
                        (pipeline.options.report)(Diagnostic::EventsLost { events, after_restart });
                    }
                    if pipeline.shard.is_volatile() {
                        pipeline.receipts.fail(&PersistError::Volatile);
                    } else {
                        pipeline.receipts.synced_up_to(checkpointed.up_to);
                    }
                    self.succeeded();
                    pipeline.committed();
                }
                Ok(None) => {
                    pipeline.leases.put_back(pending);
                    break;
                }
                Err(error) => {
                    pipeline.leases.put_back(pending);
                    self.store_failed(&error);
                    // On a full disk, deletes may still succeed and free space. And the store must be readable for
                    // delivery even if nothing more can be added.
                    if self.reopen_if_latched() {
                        self.ack_own();
                    }
                    return false;
                }
            }
        }
        true
    }

    pub(super) fn ack_own(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        if !pipeline.leases.has_pending(OWN) || !self.reopen_if_latched() {
            return;
        }
        pipeline.let_others_sync();
        let pending = pipeline.leases.take_acks(OWN, &pipeline.shard.ledger());
        let now = pipeline.options.clock.wall_nanos();
        match pipeline.shard.ack(&pending.acks, pending.next_attempt, now) {
            Ok(_) => {
                pipeline.leases.lock().committed(pending);
                self.succeeded();
                self.waiting.unacked_since = None;
            }
            Err(error) => {
                pipeline.leases.put_back(pending);
                self.store_failed(&error);
            }
        }
    }

    /// Commits acks of the orphan. If that fails, the orphan is released and found again later.
    pub(super) fn ack_adopted(&mut self) {
        let pipeline = Arc::clone(&self.pipeline);
        let Some((origin, shard)) = pipeline.adopted_shard() else { return };
        if !pipeline.leases.has_pending(origin) {
            return;
        }
        pipeline.let_others_sync();
        let pending = pipeline.leases.take_acks(origin, &shard.ledger());
        let now = pipeline.options.clock.wall_nanos();
        match shard.ack(&pending.acks, None, now) {
            Ok(_) => {
                pipeline.leases.lock().committed(pending);
                self.waiting.unacked_since = None;
                self.commands.adopt |= shard.ledger().queued_events == 0;
            }
            Err(error) => {
                pipeline.leases.put_back(pending);
                let why = explain_queue(&pipeline.options.disk, &error);
                (pipeline.options.report)(Diagnostic::QueueSkipped { path: shard.dir().clone(), why });
                pipeline.abandon_adopted();
                // Delivery found the end of this orphan already, and does not ask for the next one again.
                self.commands.adopt = true;
            }
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.pipeline.options.clock.now()
    }
}

impl Pipeline {
    /// Makes the syncs that are due in the other lanes. Called before an operation of this lane that may take long.
    pub(super) fn let_others_sync(&self) {
        for lane in self.threads.lanes() {
            if lane.id != self.id {
                lane.sync_if_due();
            }
        }
    }

    /// Syncs the journal if a receipt is awaited or the interval has passed. Runs on the committer thread. An error is
    /// kept for the lane's own turn.
    fn sync_if_due(&self) {
        let is_clean = self.shard.is_volatile() || self.shard.journal().last_seq() <= self.receipts.synced();
        if is_clean || self.finished.get().is_some() || lock(&self.sync_failure).is_some() {
            return;
        }
        let now = self.options.clock.now();
        // Not set yet for records that were appended during the last operation, because the lane has had no turn since.
        let since = *lock(&self.unsynced_since).get_or_insert(now);
        // While storage fails the lane's own turns decide when it is tried again.
        let is_time = since + self.options.intervals.sync <= now && lock(&self.problem).is_none();
        if self.receipts.waiting() > 0 || is_time {
            match self.shard.sync() {
                Ok(seq) => {
                    self.receipts.synced_up_to(seq);
                    *lock(&self.unsynced_since) = (self.shard.journal().last_seq() > seq).then_some(now);
                }
                Err(error) => *lock(&self.sync_failure) = Some(error),
            }
        }
    }

    /// Wakes delivery because there are new rows.
    pub(super) fn committed(&self) {
        if let Some(delivery) = self.delivery() {
            delivery.committed();
        }
    }
}

fn since(mark: &mut Option<Instant>, waits: bool, now: Instant) {
    *mark = if waits { Some(mark.unwrap_or(now)) } else { None };
}

/// Minimum time between two checkpoints of a batch, whatever `flush_at` and `flush_interval` say. Each costs two syncs
/// and tens of kilobytes of writes.
pub(super) const CHECKPOINT_SPACING: Duration = Duration::from_secs(1);

/// Number of acked rows that are committed without waiting for `ack_interval`. It bounds what is sent again after a
/// kill while a backlog drains.
pub(super) const ACK_ROWS: usize = 16;

/// When something is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intervals {
    /// Number of events that make a batch due.
    pub(crate) flush_at: u64,
    /// Age of the oldest journaled event that makes a batch due.
    pub(crate) flush: Duration,
    /// Age of the oldest unsynced event that makes a sync due.
    pub(crate) sync: Duration,
    /// Age of the oldest uncommitted ack that makes a transaction of its own due.
    pub(crate) ack: Duration,
}

/// Since when things wait. `None`: nothing of the kind waits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiting {
    /// The oldest record that is not synced.
    pub(super) unsynced_since: Option<Instant>,
    /// The oldest record that is not checkpointed.
    pub(super) journaled_since: Option<Instant>,
    /// The oldest ack that is not committed.
    pub(super) unacked_since: Option<Instant>,
    /// The last checkpoint.
    pub(super) checkpointed_at: Option<Instant>,
    /// After a failed sync: time of the next one, unless a caller awaits it.
    pub(super) sync_after: Option<Instant>,
    /// After a failure of the store: time of the next attempt.
    pub(super) retry_at: Option<Instant>,
}

/// What waits at this moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// Number of records that are not checkpointed.
    pub(super) journaled: u64,
    /// An arena is half full, or sealed arenas wait.
    pub(super) pressing: bool,
    /// Number of rows that are acked and not committed.
    pub(super) unacked_rows: usize,
    /// A caller awaits a receipt.
    pub(super) awaited: bool,
    /// A flush or a shutdown needs everything checkpointed.
    pub(super) all: bool,
    /// A flush has completed: its acks are committed before it is answered.
    pub(super) flushed: bool,
}

/// What is due now, and when to decide again without a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) sync: bool,
    pub(super) checkpoint: bool,
    pub(super) ack: bool,
    /// `None`: no timer is needed.
    pub(super) wake_at: Option<Instant>,
}

/// Decides what is due.
pub(super) fn due(intervals: &Intervals, waiting: &Waiting, facts: &Facts, now: Instant) -> Due {
    let mut due = Due::default();
    let mut at = |time: Option<Instant>| {
        let Some(time) = time else { return false };
        if time <= now {
            return true;
        }
        due.wake_at = Some(due.wake_at.map_or(time, |earlier| earlier.min(time)));
        false
    };
    let sync_at = waiting.unsynced_since.map(|since| (since + intervals.sync).max(waiting.sync_after.unwrap_or(since)));
    let sync = sync_at.is_some() && (facts.awaited || at(sync_at));

    let may = waiting.retry_at.is_none() || at(waiting.retry_at);
    let (mut checkpoint, mut ack) = (false, false);
    if may {
        if let Some(since) = waiting.journaled_since {
            let spaced = waiting.checkpointed_at.map_or(now, |checkpointed_at| checkpointed_at + CHECKPOINT_SPACING);
            let batch_at = if facts.journaled >= intervals.flush_at { now } else { since + intervals.flush };
            checkpoint = facts.pressing || facts.all || at(Some(batch_at.max(spaced)));
        }
        if let Some(since) = waiting.unacked_since {
            ack = facts.all || facts.flushed || facts.unacked_rows >= ACK_ROWS || at(Some(since + intervals.ack));
        }
    }
    Due { sync, checkpoint, ack, wake_at: due.wake_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVALS: Intervals = Intervals {
        flush_at: 20,
        flush: Duration::from_secs(5),
        sync: Duration::from_millis(100),
        ack: Duration::from_secs(1),
    };

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn nothing_pending_means_no_timer() {
        let now = Instant::now();
        let waiting = Waiting { checkpointed_at: Some(now), ..Waiting::default() };
        assert_eq!(due(&INTERVALS, &waiting, &Facts::default(), now), Due::default());
    }

    #[test]
    fn a_record_is_synced_after_the_interval_or_when_awaited() {
        let now = Instant::now();
        let waiting = Waiting { unsynced_since: Some(now), journaled_since: Some(now), ..Waiting::default() };
        let facts = Facts { journaled: 1, ..Facts::default() };
        let early = due(&INTERVALS, &waiting, &facts, now);
        assert_eq!(early, Due { wake_at: Some(now + ms(100)), ..Due::default() });
        assert!(due(&INTERVALS, &waiting, &Facts { awaited: true, ..facts }, now).sync);
        assert!(due(&INTERVALS, &waiting, &facts, now + ms(100)).sync);
    }

    #[test]
    fn a_full_batch_is_checkpointed_at_once_but_once_a_second() {
        let now = Instant::now();
        let waiting = Waiting { journaled_since: Some(now), ..Waiting::default() };
        let facts = Facts { journaled: 20, ..Facts::default() };
        assert!(due(&INTERVALS, &waiting, &facts, now).checkpoint);
        let again = Waiting { checkpointed_at: Some(now - ms(300)), ..waiting };
        let later = due(&INTERVALS, &again, &facts, now);
        assert_eq!(later, Due { wake_at: Some(now + ms(700)), ..Due::default() });
        assert!(due(&INTERVALS, &again, &Facts { pressing: true, ..facts }, now).checkpoint);
        assert!(due(&INTERVALS, &again, &Facts { all: true, ..facts }, now).checkpoint);
    }

    #[test]
    fn a_single_event_is_checkpointed_after_the_flush_interval() {
        let now = Instant::now();
        let waiting = Waiting { journaled_since: Some(now), ..Waiting::default() };
        let facts = Facts { journaled: 1, ..Facts::default() };
        assert_eq!(due(&INTERVALS, &waiting, &facts, now).wake_at, Some(now + ms(5000)));
        assert!(due(&INTERVALS, &waiting, &facts, now + ms(5000)).checkpoint);
    }

    #[test]
    fn acks_wait_for_a_checkpoint_unless_many_have_gathered() {
        let now = Instant::now();
        let waiting = Waiting { unacked_since: Some(now), ..Waiting::default() };
        let few = Facts { unacked_rows: ACK_ROWS - 1, ..Facts::default() };
        assert_eq!(due(&INTERVALS, &waiting, &few, now), Due { wake_at: Some(now + ms(1000)), ..Due::default() });
        assert!(due(&INTERVALS, &waiting, &few, now + ms(1000)).ack);
        assert!(due(&INTERVALS, &waiting, &Facts { unacked_rows: ACK_ROWS, ..few }, now).ack);
        assert!(due(&INTERVALS, &waiting, &Facts { flushed: true, ..few }, now).ack);
    }

    #[test]
    fn after_a_failure_the_store_waits_and_syncs_go_on() {
        let now = Instant::now();
        let waiting = Waiting {
            unsynced_since: Some(now - ms(100)),
            journaled_since: Some(now - ms(9000)),
            unacked_since: Some(now - ms(9000)),
            retry_at: Some(now + ms(400)),
            ..Waiting::default()
        };
        let facts = Facts { journaled: 99, pressing: true, all: true, ..Facts::default() };
        let due = due(&INTERVALS, &waiting, &facts, now);
        assert_eq!(due, Due { sync: true, wake_at: Some(now + ms(400)), ..Due::default() });
    }
}
