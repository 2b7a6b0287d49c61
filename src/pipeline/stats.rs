//! The state of a lane for `Client::stats`, and its dead letters.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::shared::{Pipeline, lock};
use super::source::OWN;
use crate::delivery::{DeliveryHandle, Phase};
use crate::queue::ChunkRef;
use crate::queue::store::{DeadRecord, Ledger, Store};
use crate::report::{DeliveryPhase, DropReason, OrphanedQueues, QueueMedium, Stats, StorageMode, ThreadState};
use crate::sys::clock::{WallNanos, elapsed, system_time};

impl Pipeline {
    /// The state at this moment. The client counts the events that are not accepted.
    pub(crate) fn stats(&self) -> Stats {
        let store = self.shard.open_store().filter(|_| !self.is_reopening.load(Ordering::Acquire));
        let journaled = self.shard.journal().journaled();
        let (ledger, accepted) = self.account();
        // Events in the journal are accepted but not in the ledger yet.
        let in_journal = accepted.saturating_sub(ledger.accepted);
        let oldest = match &store {
            _ if ledger.queued_events == 0 => None,
            Some(store) => self.oldest_in(store),
            // While it is opened again, as of the last commit.
            None => self.shard.open_store().and_then(|_| self.shard.oldest_at()),
        };
        let file_bytes = store.as_ref().and_then(|store| store.file_bytes().ok()).unwrap_or(0);
        let (limits, arena_bytes) = (&self.options.limits, self.options.queue.arena_bytes as u64);
        let delivery = self.delivery().map(DeliveryHandle::state).unwrap_or_default();
        let (clock, now) = (&self.options.clock, self.options.clock.wall_nanos());
        Stats {
            accepted: accepted.max(ledger.accepted),
            delivered: ledger.delivered,
            queued_events: ledger.queued_events + in_journal,
            // The journal's bytes were read at another moment: events checkpointed since then are in the ledger.
            queued_bytes: ledger.queued_bytes + if in_journal > 0 { journaled.0 } else { 0 },
            dead_lettered: ledger.dead_lettered,
            evicted: ledger.evicted,
            damaged: ledger.damaged,
            lost_unsynced: ledger.lost_unsynced,
            dropped: Vec::new(),
            used_bytes: self.shard.row_bytes().saturating_add(self.shard.journal().journaled_cost()),
            max_bytes: limits.row_bytes(file_bytes, arena_bytes),
            max_events: Some(limits.queue_events).filter(|most| *most != u64::MAX),
            oldest_age: oldest.map(|checkpointed_at| elapsed(checkpointed_at, now)),
            unsynced_for: lock(&self.unsynced_since).map(|since| clock.now().saturating_duration_since(since)),
            file_bytes,
            replayed: self.replayed.load(Ordering::Relaxed),
            adopted_events: self.adopted_shard().map_or(0, |(_, shard)| shard.ledger().queued_events),
            orphaned: OrphanedQueues {
                queues: self.orphaned.len(),
                events: self.orphaned.iter().map(|queue| queue.events).sum(),
            },
            rejecting: self.rejecting(),
            storage: self.storage(),
            medium: Some(self.medium()),
            delivery: phase(delivery.phase, now),
            commit_thread: self.threads.commit_state(clock.now()),
            deliver_thread: self.deliver_state(clock.now()),
            consecutive_failures: delivery.consecutive_failures,
            failed_attempts: delivery.failed_attempts,
            quarantined: delivery.quarantined,
            last_error: delivery.last_error,
            last_success: delivery.last_success.map(system_time),
            dir: Some(self.shard.dir().clone()).filter(|_| !self.shard.is_volatile()),
            flag_definitions_failure: self.definitions().and_then(|loader| loader.failure()),
            ai_unavailable: false,
            ai: None,
            analytics: None,
        }
    }

    /// When the oldest row that is not acked was checkpointed.
    fn oldest_in(&self, store: &Store) -> Option<WallNanos> {
        let is_acked = |key| self.leases.is_acked(ChunkRef { origin: OWN, key });
        let oldest = match store.oldest(&is_acked) {
            Ok(None) => store.oldest(&|_| false),
            found => found,
        };
        match oldest {
            Ok(found) => found.map(|(_, checkpointed_at)| checkpointed_at),
            // As of the last commit, while the store cannot be read without waiting.
            Err(_) => self.shard.oldest_at(),
        }
    }

    /// Why ordinary events are dropped at the moment.
    pub(super) fn rejecting(&self) -> Option<DropReason> {
        let is_lost = || self.shard.is_lost().then_some(DropReason::Storage);
        let is_full = || self.is_journal_full().then_some(DropReason::JournalFull);
        let is_held = || self.held.load(Ordering::SeqCst).then_some(DropReason::OptedOut);
        // A capture asks in this order too: opted out comes before a queue that is full.
        let refusal = self.admission.refusal();
        if refusal == Some(DropReason::Closed) {
            refusal
        } else {
            is_held().or(refusal).or_else(is_lost).or_else(is_full)
        }
    }

    /// Whether the journal refused an event for want of space, and nothing was moved out of it since.
    fn is_journal_full(&self) -> bool {
        self.admission.journal_was_full.load(Ordering::Relaxed) && !self.shard.journal().has_free_arena()
    }

    /// What the queue is stored on: the medium of its directory, unless it is in memory.
    pub(super) fn medium(&self) -> QueueMedium {
        if self.medium != QueueMedium::ProcessMemory && self.shard.is_volatile() {
            QueueMedium::DeletedFiles
        } else {
            self.medium
        }
    }

    /// The state of the delivery thread, which all lanes share; `Restarting` while only this lane's engine restarts.
    fn deliver_state(&self, now: Instant) -> ThreadState {
        match self.threads.deliver_state(now) {
            state if state.is_up() && self.delivery().is_some_and(DeliveryHandle::is_restarting) => {
                ThreadState::Restarting
            }
            state => state,
        }
    }

    /// Number of queued events, those of an adopted queue included: as of the last commit, plus what is in the journal.
    /// Takes no lock that a commit holds.
    pub(crate) fn queued_as_committed(&self) -> u64 {
        let ledger = self.shard.ledger();
        let in_journal = self.shard.accepted().saturating_sub(ledger.accepted);
        let adopted = self.adopted_shard().map_or(0, |(_, shard)| shard.ledger().queued_events);
        ledger.queued_events.saturating_add(in_journal).saturating_add(adopted)
    }

    pub(super) fn storage(&self) -> StorageMode {
        let low_space = || self.low_disk_space().map(|diagnostic| diagnostic.to_string());
        match (self.current_problem().or_else(low_space), self.shard.is_volatile(), self.mailbox.is_stopping()) {
            (_, _, true) => StorageMode::Closed,
            (_, true, _) => StorageMode::Volatile { problem: self.in_memory.get().cloned().unwrap_or_default() },
            (Some(problem), ..) => StorageMode::Degraded { problem },
            (None, ..) => StorageMode::Durable,
        }
    }

    /// Why storage fails, or why the queue's directory cannot be reached.
    pub(super) fn current_problem(&self) -> Option<String> {
        lock(&self.out_of_reach).clone().or_else(|| self.problem())
    }

    /// The ledger of the lane's own shard, and the number of events it has accepted. Those that the ledger
    /// does not count yet are in the journal.
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

fn phase(phase: Phase, now: WallNanos) -> DeliveryPhase {
    match phase {
        Phase::Idle => DeliveryPhase::Idle,
        Phase::Sending => DeliveryPhase::Sending,
        Phase::Backoff { until } => DeliveryPhase::Backoff { retry_in: elapsed(now, until) },
        Phase::Cooldown { until } => DeliveryPhase::Cooldown { retry_in: elapsed(now, until) },
        Phase::Quarantined { until } => DeliveryPhase::Quarantined { retry_in: elapsed(now, until) },
        Phase::Paused { status, until } => DeliveryPhase::Paused { status, retry_in: elapsed(now, until) },
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
            loop {
                let read = match self.shard.read(after, READ_BYTES) {
                    Ok(read) => read,
                    // The store is compacted at this moment, or opened again.
                    Err(error) if error.is_busy() => {
                        std::thread::yield_now();
                        continue;
                    }
                    Err(_) => break,
                };
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
            // A record that was checkpointed before the store was read is among `open`, or it is decided already.
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
            // The loader is asked before the delivery: it runs on the delivery thread, so it has acted on the commands
            // that it has seen once that thread sleeps.
            let loading = self.definitions().map_or(Some(0), |loader| loader.asleep())?;
            Some(self.mailbox.asleep()? + loading + self.delivery()?.asleep()?)
        }
    }
}
