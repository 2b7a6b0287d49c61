//! Where every event is.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::delivery;
use crate::diagnostics::Diagnostic;
use crate::pipeline::{DropReason, Snapshot};

/// A look at the queue. Numbers of events and of bytes are of both lanes together; `mode`, `delivery` and what else tells how things are
/// is of the analytics lane, and `ai` has the other one's. The counters are those of this queue since it was made, across restarts; they balance:
/// `accepted == delivered + queued_events + dead_lettered + evicted + damaged + lost_unsynced`.
///
/// "This queue" is the one that the process got (`dir`). Where several processes share a directory, a restart may get another one, with
/// counters of its own; and what a process delivers for one that is gone is counted in the queue where it lay. So treat the counters as
/// resettable, and alarm on what they grow by; `dropped` begins anew with each process.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Events accepted. A dead letter that is queued again counts once more.
    pub accepted: u64,
    /// Events that PostHog has taken.
    pub delivered: u64,
    /// Events that wait to be delivered, in the journal and in the store.
    pub queued_events: u64,
    /// Bytes of the events that wait. What was delivered or refused counts until that is committed
    /// ([`Config::ack_interval`](crate::Config::ack_interval), 1 s), though `queued_events` does without it already: the store counts
    /// by rows of many events. 0 if no event waits.
    pub queued_bytes: u64,
    /// Events that PostHog refused for good; they lie among the dead letters, unless these were queued again or thrown
    /// away meanwhile.
    pub dead_lettered: u64,
    /// Events given up for want of room or for their age.
    pub evicted: u64,
    /// Events whose bytes were damaged on disk.
    pub damaged: u64,
    /// Events lost with a power cut before they were synced.
    pub lost_unsynced: u64,
    /// Captures that were not accepted, by reason, in this process. Reasons that never occurred are left out.
    pub dropped: Vec<(DropReason, u64)>,
    /// How long the oldest event that waits has been in the store.
    pub oldest_age: Option<Duration>,
    /// How long the oldest event that would not survive a power cut has waited for its sync.
    pub unsynced_for: Option<Duration>,
    /// Bytes that the queue's file takes on the disk, the journal aside.
    pub file_bytes: u64,
    /// Events found in the journal when the queue was opened: those that the last process had accepted and not yet stored.
    pub replayed: u64,
    /// Events of a queue left by another process that is being delivered right now.
    pub adopted_events: u64,
    /// Queues of other keys or hosts with events in them, as they were when the client was made.
    pub orphaned: OrphanedQueues,
    /// Why ordinary events are turned away at the moment, if they are.
    pub rejecting: Option<DropReason>,
    /// How the queue is kept.
    pub storage: StorageMode,
    /// What delivery is doing.
    pub delivery: DeliveryPhase,
    /// Attempts in a row that failed for no fault of an event, since the last success.
    pub consecutive_failures: u32,
    /// Attempts that failed for no fault of an event, in this process.
    pub failed_attempts: u64,
    /// Events among `queued_events` that are stepped over for the time being: refused while nothing shows that they are to blame, or
    /// failing while others pass.
    pub quarantined: u64,
    /// What the last failure or refusal said. It stays when things work again.
    pub last_error: Option<String>,
    /// When PostHog last took something, in this process.
    pub last_success: Option<SystemTime>,
    /// Where the queue lies.
    pub dir: Option<PathBuf>,
    /// The queue of AI events alone, if it is open. Its `dropped` is empty: reasons are counted for both together.
    pub ai: Option<Box<Stats>>,
}

/// How the queue is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageMode {
    /// As promised.
    Durable,
    /// Storage fails, the queue's directory is out of reach (moved, made inaccessible), or the file system has less free than
    /// [`Config::min_free_space`](crate::Config::min_free_space). What was accepted is in the files that are open and survives the
    /// process; new events are taken while these have room, and not below the floor. Where another process has taken the directory over,
    /// none are.
    Degraded {
        /// What is met.
        problem: String,
    },
    /// In memory, because the directory cannot be used ([`Config::memory_fallback`](crate::Config::memory_fallback)), or in files without
    /// names, because it was deleted. Events are taken and delivered; those that are queued when the process ends are lost.
    Volatile {
        /// Why.
        problem: String,
    },
    /// Shut down.
    Closed,
    /// The client is disabled.
    Disabled,
    /// This is a forked child in which nothing was captured yet: it has no queue, and its first capture opens one. If that has failed,
    /// `stats().rejecting` says so.
    Forked,
}

/// Queues that nobody delivers, because their key or host is not this client's; see
/// [`Config::adopt_queue`](crate::Config::adopt_queue).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OrphanedQueues {
    /// How many.
    pub queues: usize,
    /// Events in all of them.
    pub events: u64,
}

/// What delivery is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryPhase {
    /// Nothing to send: the queue is empty, what is in it still waits for its batch ([`Config::flush_at`](crate::Config::flush_at),
    /// [`Config::flush_interval`](crate::Config::flush_interval)), or the program has opted out.
    Idle,
    /// Sending.
    Sending,
    /// The last attempt failed.
    Backoff {
        /// Time until the next.
        retry_in: Duration,
    },
    /// A whole cycle of attempts failed.
    Cooldown {
        /// Time until the next.
        retry_in: Duration,
    },
    /// All that there is to send was refused, or fails while other events pass, and is stepped over: `stats().quarantined` events. They are
    /// tried again when PostHog takes another event, and after this time.
    Quarantined {
        /// Time until the next attempt.
        retry_in: Duration,
    },
    /// The key or the quota is refused.
    Paused {
        /// 401, 402, 403 or 415.
        status: u16,
        /// Time until the next attempt.
        retry_in: Duration,
    },
}

impl Stats {
    pub(super) fn of(snapshot: &Snapshot, refusals: Vec<u64>) -> Self {
        let ledger = &snapshot.ledger;
        // What is in the journal is accepted and not in the ledger yet.
        let in_journal = snapshot.accepted.saturating_sub(ledger.accepted);
        let now = snapshot.now;
        let age = |at: i64| Duration::from_nanos(u64::try_from(now.saturating_sub(at)).unwrap_or(0));
        Self {
            accepted: snapshot.accepted.max(ledger.accepted),
            delivered: ledger.delivered,
            queued_events: ledger.queued_events + in_journal,
            // The look at the journal's bytes was another moment: what has been carried since is in the ledger.
            queued_bytes: ledger.queued_bytes + if in_journal > 0 { snapshot.journaled_bytes } else { 0 },
            dead_lettered: ledger.dead_lettered,
            evicted: ledger.evicted,
            damaged: ledger.damaged,
            lost_unsynced: ledger.lost_unsynced,
            dropped: dropped(refusals),
            oldest_age: snapshot.oldest_at.map(age),
            unsynced_for: snapshot.unsynced_for,
            file_bytes: snapshot.file_bytes,
            replayed: snapshot.replayed,
            adopted_events: snapshot.adopted.map_or(0, |ledger| ledger.queued_events),
            orphaned: OrphanedQueues {
                queues: snapshot.orphaned.len(),
                events: snapshot.orphaned.iter().map(|queue| queue.events).sum(),
            },
            rejecting: snapshot.full.map(DropReason::from),
            storage: mode(snapshot),
            delivery: phase(snapshot.delivery.phase, now),
            consecutive_failures: snapshot.delivery.consecutive_failures,
            failed_attempts: snapshot.delivery.failed_attempts,
            quarantined: snapshot.delivery.quarantined,
            last_error: snapshot.delivery.last_error.clone(),
            last_success: snapshot.delivery.last_success.and_then(system_time),
            dir: Some(snapshot.dir.clone()).filter(|_| !snapshot.volatile),
            ai: None,
        }
    }

    pub(super) fn with_ai(self, ai: Option<Stats>) -> Self {
        let Some(ai) = ai else { return self };
        Self {
            accepted: self.accepted.saturating_add(ai.accepted),
            delivered: self.delivered.saturating_add(ai.delivered),
            queued_events: self.queued_events.saturating_add(ai.queued_events),
            queued_bytes: self.queued_bytes.saturating_add(ai.queued_bytes),
            dead_lettered: self.dead_lettered.saturating_add(ai.dead_lettered),
            evicted: self.evicted.saturating_add(ai.evicted),
            damaged: self.damaged.saturating_add(ai.damaged),
            lost_unsynced: self.lost_unsynced.saturating_add(ai.lost_unsynced),
            oldest_age: self.oldest_age.max(ai.oldest_age),
            unsynced_for: self.unsynced_for.max(ai.unsynced_for),
            file_bytes: self.file_bytes.saturating_add(ai.file_bytes),
            replayed: self.replayed.saturating_add(ai.replayed),
            adopted_events: self.adopted_events.saturating_add(ai.adopted_events),
            failed_attempts: self.failed_attempts.saturating_add(ai.failed_attempts),
            quarantined: self.quarantined.saturating_add(ai.quarantined),
            ai: Some(Box::new(ai)),
            ..self
        }
    }

    pub(super) fn disabled(refusals: Vec<u64>) -> Self {
        Self::without_queue(StorageMode::Disabled, Some(DropReason::Disabled), refusals)
    }

    /// Of a forked child that has no queue, or could not have one.
    pub(super) fn forked(refusals: Vec<u64>, has_failed: bool) -> Self {
        Self::without_queue(StorageMode::Forked, has_failed.then_some(DropReason::Forked), refusals)
    }

    fn without_queue(mode: StorageMode, refusing: Option<DropReason>, refusals: Vec<u64>) -> Self {
        Self {
            accepted: 0,
            delivered: 0,
            queued_events: 0,
            queued_bytes: 0,
            dead_lettered: 0,
            evicted: 0,
            damaged: 0,
            lost_unsynced: 0,
            dropped: dropped(refusals),
            oldest_age: None,
            unsynced_for: None,
            file_bytes: 0,
            replayed: 0,
            adopted_events: 0,
            orphaned: OrphanedQueues::default(),
            rejecting: refusing,
            storage: mode,
            delivery: DeliveryPhase::Idle,
            consecutive_failures: 0,
            failed_attempts: 0,
            quarantined: 0,
            last_error: None,
            last_success: None,
            dir: None,
            ai: None,
        }
    }

    /// Captures that were not accepted, whatever the reason, in this process.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(|(_, count)| count).sum()
    }

    /// Accepted events less those whose place is known: zero, or something is wrong with us.
    pub fn imbalance(&self) -> i128 {
        let places =
            [self.delivered, self.queued_events, self.dead_lettered, self.evicted, self.damaged, self.lost_unsynced];
        i128::from(self.accepted) - places.into_iter().map(i128::from).sum::<i128>()
    }
}

fn dropped(refusals: Vec<u64>) -> Vec<(DropReason, u64)> {
    DropReason::ALL.into_iter().zip(refusals).filter(|(_, count)| *count > 0).collect()
}

fn mode(snapshot: &Snapshot) -> StorageMode {
    let floor = || snapshot.floor.clone().map(|floor| Diagnostic::from(floor).to_string());
    match (snapshot.problem.clone().or_else(floor), snapshot.volatile, snapshot.closed) {
        (_, _, true) => StorageMode::Closed,
        (_, true, _) => StorageMode::Volatile { problem: snapshot.in_memory.clone().unwrap_or_default() },
        (Some(problem), ..) => StorageMode::Degraded { problem },
        (None, ..) => StorageMode::Durable,
    }
}

fn phase(phase: delivery::Phase, now: i64) -> DeliveryPhase {
    let retry_in = |until: i64| Duration::from_nanos(u64::try_from(until.saturating_sub(now)).unwrap_or(0));
    match phase {
        delivery::Phase::Idle => DeliveryPhase::Idle,
        delivery::Phase::Sending => DeliveryPhase::Sending,
        delivery::Phase::Backoff { until } => DeliveryPhase::Backoff { retry_in: retry_in(until) },
        delivery::Phase::Cooldown { until } => DeliveryPhase::Cooldown { retry_in: retry_in(until) },
        delivery::Phase::Quarantined { until } => DeliveryPhase::Quarantined { retry_in: retry_in(until) },
        delivery::Phase::Paused { status, until } => DeliveryPhase::Paused { status, retry_in: retry_in(until) },
    }
}

fn system_time(at: i64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_nanos(u64::try_from(at).ok()?))
}
