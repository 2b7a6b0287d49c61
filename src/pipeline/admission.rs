//! Admission: whether an event is accepted when space runs out, and the explanation when it is not.
//!
//! The committer computes from the bounds of the queue how full it is ([`Limits::standing`]) and publishes that
//! ([`Admission::set`]). A capture reads one atomic; only where the queue is nearly full does it take the slow path,
//! which may wait ([`OverflowPolicy::Block`]).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::shared::{Pipeline, lock};
use crate::delivery::DeliveryHandle;
use crate::queue::journal::Budget;
use crate::report::{Diagnostic, DropReason};
use crate::sys::clock::elapsed;
use crate::sys::limits::LOCK_WAIT;
use crate::sys::reentry;
use crate::sys::wording::{bytes, number, time};

/// What happens to a capture when the queue has reached its bounds.
///
/// A full journal is another matter: events that come faster than they can be moved to the queue fill it
/// ([`Config::journal_bytes`](crate::Config::journal_bytes)), and then a capture is `Dropped(JournalFull)` under each
/// policy except [`Block`](OverflowPolicy::Block).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OverflowPolicy {
    /// The new event is dropped. Accepted events stay.
    #[default]
    DropNewest,
    /// The oldest queued events are evicted, exceptions and identity events last, and counted in `stats().evicted`.
    /// Events that are being sent at the moment stay: if there are no others, the new event is dropped.
    DropOldest,
    /// The caller waits for space, at most this long (up to 1 h); then the new event is dropped. The calling thread is
    /// blocked: do not use it on the workers of an async runtime. A thread of the client itself never waits.
    Block(Duration),
}

/// The bounds of the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes that the rows of the store may take.
    pub(crate) queue_bytes: u64,
    /// Number of events in the queue.
    pub(crate) queue_events: u64,
    /// Age of the oldest event.
    pub(crate) queue_age: Option<Duration>,
    /// Free space of the file system that is left to other programs.
    pub(crate) min_free_space: u64,
    /// What happens to captures beyond the bounds.
    pub(crate) overflow: OverflowPolicy,
}

/// Whether waiting for space may make an append succeed that was refused for this reason.
fn is_for_space(reason: DropReason) -> bool {
    matches!(reason, DropReason::JournalFull | DropReason::QueueFull | DropReason::DiskFull)
}

/// How full the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Level {
    /// All events are accepted.
    #[default]
    Open = 0,
    /// Only exceptions and identity events are accepted.
    Full = 1,
    /// No event is accepted.
    Packed = 2,
    /// No event is accepted, because the file system has less free space than the floor.
    Floor = 3,
}

/// What the queue takes, and what is free.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// Bytes of the pages of the store's rows.
    pub(super) row_bytes: u64,
    /// Events in the store.
    pub(super) queued_events: u64,
    /// Bytes of the store's file.
    pub(super) file_bytes: u64,
    /// Bytes of an arena.
    pub(super) arena_bytes: u64,
    /// What waits in the journal.
    pub(super) waiting: Budget,
    /// What delivery has leased: it cannot be evicted.
    pub(super) under_way: Budget,
    /// Free space of the file system; `None` if it could not be determined.
    pub(super) free_bytes: Option<u64>,
}

/// How full the queue is, and how much the journal may hold: of ordinary events, and of priority ones (exceptions and
/// identity events), for which an eighth more is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) level: Level,
    pub(super) ordinary: Budget,
    pub(super) priority: Budget,
}

/// How much the file may exceed its bound for what is not rows. Beside that it may exceed it by the eighth for priority
/// events and by one checkpoint, whose space delivery may still be reading.
const FILE_SLACK: u64 = 1024 * 1024;

/// Minimum space for dead letters.
const DEAD_BYTES_LEAST: u64 = 1024 * 1024;

/// Below this budget, which is less than a row takes, nothing is checkpointed early.
const ROOM_BYTES_LEAST: u64 = 128 * 1024;

impl Limits {
    /// Bound of the dead letters: an eighth of the queue's bound, in addition to it.
    pub(crate) fn dead_bytes(&self) -> u64 {
        (self.queue_bytes / 8).max(DEAD_BYTES_LEAST)
    }

    /// Bound of the store's rows. A file does not shrink by itself, and its free pages may be too scattered to be used:
    /// where it exceeds its bound, half of the bound is allowed until it is compacted. Dead letters have a bound of
    /// their own; their pages take at most twice that.
    pub(super) fn row_bytes(&self, file_bytes: u64, arena_bytes: u64) -> u64 {
        let at_once = arena_bytes.min(self.queue_bytes);
        let dead = self.dead_bytes().saturating_mul(2);
        let most =
            eighth_more(self.queue_bytes).saturating_add(at_once).saturating_add(dead).saturating_add(FILE_SLACK);
        if file_bytes > most { self.queue_bytes / 2 } else { self.queue_bytes }
    }

    /// Computes how full the queue is.
    pub(super) fn standing(&self, usage: &Usage) -> Standing {
        let bound = Budget { events: self.queue_events, bytes: self.row_bytes(usage.file_bytes, usage.arena_bytes) };
        let taken = Budget { events: usage.queued_events, bytes: usage.row_bytes };
        let more = Budget { events: eighth_more(bound.events), bytes: eighth_more(bound.bytes) };
        let (ordinary, priority) = match self.overflow {
            OverflowPolicy::DropOldest if usage.under_way.events < bound.events => {
                // A checkpoint evicts what is older. So the number of events is not bounded, and their bytes by what
                // can be evicted.
                let room = less(bound, usage.under_way);
                let any = Budget { events: u64::MAX, ..room };
                (any, any)
            }
            _ => (less(bound, taken), less(more, taken)),
        };
        let has_room = |room: Budget| usage.waiting.events < room.events && usage.waiting.bytes < room.bytes;
        let level = match (has_room(ordinary), has_room(priority)) {
            _ if usage.free_bytes.is_some_and(|free| free < self.min_free_space) => Level::Floor,
            (true, _) => Level::Open,
            (false, true) => Level::Full,
            (false, false) => Level::Packed,
        };
        Standing { level, ordinary, priority }
    }
}

impl Standing {
    /// Whether what waits uses half of the budget for ordinary events. The sooner it is checkpointed, the sooner its
    /// real size is known and the sooner it is sent. Not where hardly any budget is left, or each event would have a
    /// commit of its own.
    pub(super) fn is_pressing(&self, waiting: Budget) -> bool {
        let half_used = |waiting: u64, room: u64, least: u64| room >= least && waiting >= room.div_ceil(2);
        half_used(waiting.events, self.ordinary.events, 2)
            || half_used(waiting.bytes, self.ordinary.bytes, ROOM_BYTES_LEAST)
    }
}

fn less(room: Budget, taken: Budget) -> Budget {
    Budget { events: room.events.saturating_sub(taken.events), bytes: room.bytes.saturating_sub(taken.bytes) }
}

fn eighth_more(limit: u64) -> u64 {
    limit.saturating_add(limit / 8)
}

/// The bounds as callers see them. Set by the committer.
#[derive(Debug)]
pub(super) struct Admission {
    level: AtomicU8,
    /// No event is accepted any more, and no caller may go on waiting.
    closed: AtomicBool,
    /// A refused caller has asked the committer to check the bounds again.
    is_check_requested: AtomicBool,
    /// It was reported that the file system is below its floor.
    pub(super) floor_is_reported: AtomicBool,
    /// The journal refused an event for want of space since the last checkpoint.
    pub(super) journal_was_full: AtomicBool,
    changes: Mutex<u64>,
    changed: Condvar,
    /// The last result, and what waited in the journal at that time.
    found: Mutex<(Standing, Budget)>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            level: AtomicU8::new(Level::Open as u8),
            closed: AtomicBool::new(false),
            is_check_requested: AtomicBool::new(false),
            floor_is_reported: AtomicBool::new(false),
            journal_was_full: AtomicBool::new(false),
            changes: Mutex::new(0),
            changed: Condvar::new(),
            found: Mutex::default(),
        }
    }
}

impl Admission {
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.level.load(Ordering::Relaxed) == Level::Open as u8
    }

    /// Why ordinary events are refused.
    pub(super) fn refusal(&self) -> Option<DropReason> {
        self.refusal_for(0)
    }

    fn refusal_for(&self, class: u8) -> Option<DropReason> {
        if self.closed.load(Ordering::Acquire) {
            return Some(DropReason::Closed);
        }
        match self.level.load(Ordering::Relaxed) {
            level if level == Level::Open as u8 => None,
            level if level == Level::Full as u8 && class != 0 => None,
            level if level == Level::Floor as u8 => Some(DropReason::DiskFull),
            _ => Some(DropReason::QueueFull),
        }
    }

    /// Sets the level and wakes the callers that wait for space. Refused callers may ask for another check if this one
    /// found something new, or if `time` is set; otherwise a flood of captures would keep the committer busy with
    /// checks.
    pub(super) fn set(&self, standing: Standing, waiting: Budget, time: bool) {
        let found = (standing, waiting);
        let news = std::mem::replace(&mut *lock(&self.found), found) != found;
        self.level.store(standing.level as u8, Ordering::Relaxed);
        if news || time {
            self.is_check_requested.store(false, Ordering::Relaxed);
        }
        *lock(&self.changes) += 1;
        self.changed.notify_all();
    }

    /// Whether a caller was refused that may not ask for another check yet.
    pub(super) fn is_check_requested(&self) -> bool {
        self.is_check_requested.load(Ordering::Relaxed)
    }

    /// The last result.
    pub(super) fn standing(&self) -> Standing {
        lock(&self.found).0
    }

    /// Whether the number of events, and not their bytes, fills the queue.
    pub(super) fn is_full_of_events(&self) -> bool {
        let (standing, waiting) = *lock(&self.found);
        waiting.events >= standing.ordinary.events
    }

    /// Ends all waiting for good: the bounds are not checked any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        *lock(&self.changes) += 1;
        self.changed.notify_all();
    }

    fn changes(&self) -> u64 {
        *lock(&self.changes)
    }

    /// Waits for the committer's next check; false if there was none in time.
    fn wait(&self, seen: u64, until: Instant) -> bool {
        let mut changes = lock(&self.changes);
        while *changes == seen {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            changes = self.changed.wait_timeout(changes, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Pipeline {
    /// Whether the caller of a capture waits for space.
    #[cold]
    pub(super) fn may_block(&self) -> bool {
        matches!(self.options.limits.overflow, OverflowPolicy::Block(_)) && !reentry::on_our_thread()
    }

    /// The slow path of an append: the journal was full or busy, or the queue has reached its bounds.
    #[cold]
    pub(super) fn append_without_room(&self, body: &[u8], hash: u64, class: u8) -> Result<u64, DropReason> {
        let until = match self.options.limits.overflow {
            OverflowPolicy::Block(most) if self.may_block() => Instant::now().checked_add(most),
            _ => None,
        };
        loop {
            let seen = self.admission.changes();
            let refused = match self.admission.refusal_for(class) {
                Some(reason) => reason,
                None => match self.shard.append(body, hash, class) {
                    Ok(appended) => return Ok(self.appended(appended)),
                    Err(refused) => self.refused(refused),
                },
            };
            if is_for_space(refused) && !self.admission.is_check_requested.swap(true, Ordering::Relaxed) {
                self.mailbox.send(|commands| commands.check_bounds = true);
            }
            let again = match refused {
                // The append has waited for the lock already.
                DropReason::JournalBusy => until.is_some_and(|until| Instant::now() < until),
                refused => is_for_space(refused) && until.is_some_and(|until| self.admission.wait(seen, until)),
            };
            if !again {
                return Err(refused);
            }
        }
    }
}

/// The bound of a queue in memory: 64 MiB, or a tenth of what the process may have.
pub(super) fn memory_queue_bytes() -> u64 {
    const MOST: u64 = 64 * 1024 * 1024;
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = limits.iter().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    limit.map_or(MOST, |limit| MOST.min(limit / 10))
}

impl Pipeline {
    /// [`Diagnostic::LowDiskSpace`], while events are refused because the file system has too little free space.
    pub(crate) fn low_disk_space(&self) -> Option<Diagnostic> {
        if self.admission.refusal() != Some(DropReason::DiskFull) {
            return None;
        }
        let (disk, path) = (&self.options.disk, self.shard.dir());
        Some(Diagnostic::LowDiskSpace {
            path: path.clone(),
            free_bytes: disk.free_bytes(path).unwrap_or(0),
            floor_bytes: self.options.limits.min_free_space,
            volume_bytes: disk.volume_bytes(path).ok(),
        })
    }

    /// Reports once when the floor is reached, and once when an eighth more than the floor is free again, so that free
    /// space that hovers about the floor is not reported each time.
    pub(super) fn report_floor(&self, free: Option<u64>) {
        let is_told = &self.admission.floor_is_reported;
        match self.low_disk_space() {
            Some(diagnostic) if !is_told.swap(true, Ordering::Relaxed) => (self.options.report)(diagnostic),
            None if is_told.load(Ordering::Relaxed) => {
                let floor = self.options.limits.min_free_space;
                if free.is_none_or(|free| free >= floor.saturating_add(floor / 8)) {
                    is_told.store(false, Ordering::Relaxed);
                    (self.options.report)(Diagnostic::StorageRecovered);
                }
            }
            _ => {}
        }
    }
}

/// The state of the queue when an event is refused. Collected without I/O, since it is collected on the caller's
/// thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circumstances {
    /// The queue's directory.
    pub(crate) dir: PathBuf,
    pub(crate) journal_bytes: u64,
    pub(crate) max_queue_bytes: u64,
    /// Set if the number of events has reached its bound.
    pub(crate) max_queue_events: Option<u64>,
    pub(crate) min_free_space: u64,
    /// Why storage fails.
    pub(crate) problem: Option<String>,
    /// How long the oldest event has been in the store.
    pub(crate) oldest: Option<Duration>,
    /// The endpoint, if it fails.
    pub(crate) outage: Option<Outage>,
}

/// An endpoint that fails.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outage {
    pub(crate) host: String,
    pub(crate) lasts: Duration,
    /// The message of the last attempt.
    pub(crate) said: String,
}

/// Longest part of a server's message that is shown. It may be a page of HTML.
const SAID_MOST: usize = 100;

impl Circumstances {
    /// Explains to an operator why an event was refused for `reason`.
    pub(crate) fn explain(&self, reason: DropReason) -> String {
        match reason {
            DropReason::QueueFull => {
                let bound = match self.max_queue_events {
                    Some(events) => format!("max_queue_events = {}", number(events)),
                    None => format!("max_queue_bytes = {}", bytes(self.max_queue_bytes)),
                };
                format!("queue is full ({bound}); {}", self.backlog())
            }
            DropReason::JournalFull => {
                let full = format!("journal is full (journal_bytes = {})", bytes(self.journal_bytes));
                match &self.problem {
                    Some(problem) => format!("{full}, and cannot be moved to the queue: {problem}"),
                    None => format!(
                        "{full}: events come faster than they can be stored; raise Config::journal_bytes (POSTHOG_JOURNAL_BYTES)"
                    ),
                }
            }
            DropReason::JournalBusy => format!(
                "the journal's lock was not free within {}: the thread that holds it was stopped, or the machine is overloaded",
                time(LOCK_WAIT)
            ),
            DropReason::DiskFull => format!(
                "the file system of {} has less free than min_free_space ({}); free some space, or lower Config::min_free_space (POSTHOG_MIN_FREE_SPACE)",
                self.dir.display(),
                bytes(self.min_free_space)
            ),
            DropReason::Storage => match &self.problem {
                Some(problem) => format!("the journal in {} could not be written: {problem}", self.dir.display()),
                None => format!("the journal in {} could not be written", self.dir.display()),
            },
            other => other.to_string(),
        }
    }

    /// Why the queue does not get shorter.
    fn backlog(&self) -> String {
        let oldest = self.oldest.map(|age| format!("oldest event is {} old", time(age)));
        match (&self.outage, oldest) {
            (Some(outage), oldest) => {
                let oldest = oldest.map_or(String::new(), |oldest| oldest + ", ");
                let said = crate::sys::limits::beginning(&outage.said, SAID_MOST);
                format!("{oldest}endpoint {} has failed for {} ({said})", outage.host, time(outage.lasts))
            }
            (None, Some(oldest)) => format!("{oldest}; events come faster than they are delivered, raise the bound"),
            (None, None) => "events come faster than they are delivered, raise the bound".to_owned(),
        }
    }
}

impl Pipeline {
    /// The state of the queue at this moment.
    pub(crate) fn circumstances(&self) -> Circumstances {
        let limits = &self.options.limits;
        let delivery = self.delivery().map(DeliveryHandle::state).unwrap_or_default();
        Circumstances {
            dir: self.shard.dir().clone(),
            journal_bytes: self.options.queue.arena_bytes as u64,
            max_queue_bytes: limits.queue_bytes,
            max_queue_events: Some(limits.queue_events).filter(|_| self.admission.is_full_of_events()),
            min_free_space: limits.min_free_space,
            problem: self.current_problem(),
            oldest: self.shard.oldest_at().map(|at| elapsed(at, self.options.clock.wall_nanos())),
            outage: delivery.failing_since.map(|since| Outage {
                host: self.options.queue.project.host.clone(),
                lasts: self.options.clock.now().saturating_duration_since(since),
                said: delivery.last_error.unwrap_or_default(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn limits() -> Limits {
        Limits {
            queue_bytes: 100 * MIB,
            queue_events: 1000,
            queue_age: None,
            min_free_space: 10 * MIB,
            overflow: OverflowPolicy::DropNewest,
        }
    }

    #[test]
    fn rows_may_take_half_the_bound_where_the_file_exceeds_it() {
        let full = Usage { row_bytes: 100 * MIB, file_bytes: 101 * MIB, ..Usage::default() };
        assert_eq!(limits().standing(&full).level, Level::Full);
        assert_eq!(limits().standing(&Usage { row_bytes: 99 * MIB, ..full }).ordinary.bytes, MIB);
        assert_eq!(limits().standing(&Usage { row_bytes: 112 * MIB + MIB / 2, ..full }).level, Level::Packed);
        let grown = Usage { row_bytes: 49 * MIB, file_bytes: 146 * MIB, arena_bytes: 8 * MIB, ..Usage::default() };
        assert_eq!(limits().standing(&grown).ordinary.bytes, 51 * MIB);
        let grown = Usage { file_bytes: 146 * MIB, arena_bytes: 4 * MIB, ..grown };
        assert_eq!(limits().standing(&grown).ordinary.bytes, MIB);
    }

    #[test]
    fn what_waits_in_the_journal_counts() {
        let usage = Usage { queued_events: 900, waiting: Budget { events: 99, bytes: 0 }, ..Usage::default() };
        assert_eq!(limits().standing(&usage).level, Level::Open);
        let waiting = Budget { events: 100, bytes: 0 };
        assert_eq!(limits().standing(&Usage { waiting, ..usage }).level, Level::Full);
        let waiting = Budget { events: 1, bytes: 101 * MIB };
        assert_eq!(limits().standing(&Usage { waiting, ..usage }).level, Level::Full);
    }

    #[test]
    fn events_are_bounded_with_an_eighth_more_for_the_priority_ones() {
        for (events, expected) in [(999, Level::Open), (1000, Level::Full), (1125, Level::Packed)] {
            assert_eq!(limits().standing(&Usage { queued_events: events, ..Usage::default() }).level, expected);
        }
    }

    #[test]
    fn under_drop_oldest_only_leased_rows_refuse_new_events() {
        let limits = Limits { overflow: OverflowPolicy::DropOldest, ..limits() };
        let usage = Usage { queued_events: 1000, row_bytes: 100 * MIB, ..Usage::default() };
        let room = limits.standing(&usage).ordinary;
        assert_eq!(room, Budget { events: u64::MAX, bytes: 100 * MIB });
        let under_way = Budget { events: 999, bytes: 60 * MIB };
        assert_eq!(limits.standing(&Usage { under_way, ..usage }).ordinary.bytes, 40 * MIB);
        let under_way = Budget { events: 1000, bytes: 60 * MIB };
        assert_eq!(limits.standing(&Usage { under_way, ..usage }).level, Level::Full);
    }

    #[test]
    fn the_free_space_floor_stops_everybody() {
        let usage = Usage { free_bytes: Some(9 * MIB), ..Usage::default() };
        assert_eq!(limits().standing(&usage).level, Level::Floor);
        assert_eq!(limits().standing(&Usage { free_bytes: None, ..usage }).level, Level::Open);
    }
}
