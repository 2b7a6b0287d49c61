//! Who is let in when room runs out.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Pipeline, lock};
use crate::queue::journal::Budget as Room;
use crate::sys::reentry;

/// What happens to a capture when the queue has reached its bounds.
///
/// That is one kind of fullness. A burst that comes faster than events can be moved from the journal to the queue fills the journal
/// ([`Config::journal_bytes`](crate::Config::journal_bytes)), and then a capture is `Dropped(JournalFull)` under each of these but
/// [`Block`](OverflowPolicy::Block).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OverflowPolicy {
    /// The new event is dropped. What was accepted stays.
    #[default]
    DropNewest,
    /// The oldest queued events make room; exceptions and identity events last. They were accepted, and `stats().evicted` counts them.
    /// What is under way to PostHog at the moment stays: where that is all there is, the new event is dropped.
    DropOldest,
    /// The caller waits for room, so long at most (1 h is the most that is allowed); then the new event is dropped. It is the thread that
    /// waits: not for the workers of an async runtime, whose other tasks would wait too. Never on a thread of the client itself.
    Block(Duration),
}

/// Bounds of the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes that the rows of the store may take.
    pub(crate) queue_bytes: u64,
    /// Events.
    pub(crate) queue_events: u64,
    /// Age of the oldest.
    pub(crate) queue_age: Option<Duration>,
    /// Bytes of the file system that are left alone.
    pub(crate) min_free_space: u64,
    /// What happens beyond them.
    pub(crate) overflow: OverflowPolicy,
}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AppendError {
    /// The client was closed.
    Closed,
    /// A forked child has to start a pipeline of its own.
    Forked,
    /// The journal's lock could not be had in time.
    JournalBusy,
    /// Events come faster than they can be checkpointed, or cannot be checkpointed at all.
    JournalFull,
    /// The queue has reached its bounds.
    QueueFull,
    /// The file system has reached its floor.
    DiskFull,
    /// The journal's file could not be written.
    Storage,
}

impl AppendError {
    /// Whether waiting may help.
    fn is_for_room(self) -> bool {
        matches!(self, AppendError::JournalFull | AppendError::QueueFull | AppendError::DiskFull)
    }
}

/// How full the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Level {
    /// Everybody is welcome.
    #[default]
    Open = 0,
    /// Only exceptions and identity events.
    Full = 1,
    /// Nobody.
    Packed = 2,
    /// The file system has no room to spare: nobody.
    Floor = 3,
}

/// What there is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// Bytes of the pages that the store's rows take.
    pub(super) row_bytes: u64,
    /// Events in the store.
    pub(super) queued_events: u64,
    /// Bytes of the store's file.
    pub(super) file_bytes: u64,
    /// Bytes of an arena.
    pub(super) arena_bytes: u64,
    /// What waits in the journal.
    pub(super) waiting: Room,
    /// What is with the delivery: it cannot make room.
    pub(super) under_way: Room,
    /// `None` if it could not be found out.
    pub(super) free_bytes: Option<u64>,
}

/// How full the queue is, and how much the journal may hold: of ordinary events, and of exceptions and identity events, for which an
/// eighth more is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) level: Level,
    pub(super) ordinary: Room,
    pub(super) priority: Room,
}

/// Beyond its bound the file may take the eighth for the priority ones, what is checkpointed at once (what makes room for it may still be read by
/// the delivery), and so much for what is not rows.
const FILE_SLACK: u64 = 1024 * 1024;

/// Dead records may always take so much.
const DEAD_BYTES_LEAST: u64 = 1024 * 1024;

/// With less room than a row takes, nothing is hurried.
const ROOM_BYTES_LEAST: u64 = 128 * 1024;

impl Limits {
    /// What dead records may take, beside what is queued: an eighth of its bound.
    pub(super) fn dead_bytes(&self) -> u64 {
        (self.queue_bytes / 8).max(DEAD_BYTES_LEAST)
    }

    /// What the store's rows may take. A file does not shrink by itself, and free room in it may be too scattered to be used: where it
    /// has grown beyond its bound all the same, half of that has to do until it is compacted. Dead records have a bound of their own;
    /// the pages that they take are twice as large at most.
    pub(super) fn row_bytes(&self, file_bytes: u64, arena_bytes: u64) -> u64 {
        let at_once = arena_bytes.min(self.queue_bytes);
        let dead = self.dead_bytes().saturating_mul(2);
        let most =
            eighth_more(self.queue_bytes).saturating_add(at_once).saturating_add(dead).saturating_add(FILE_SLACK);
        if file_bytes > most { self.queue_bytes / 2 } else { self.queue_bytes }
    }

    /// Decides.
    pub(super) fn standing(&self, usage: &Usage) -> Standing {
        let bound = Room { events: self.queue_events, bytes: self.row_bytes(usage.file_bytes, usage.arena_bytes) };
        let taken = Room { events: usage.queued_events, bytes: usage.row_bytes };
        let more = Room { events: eighth_more(bound.events), bytes: eighth_more(bound.bytes) };
        let (ordinary, priority) = match self.overflow {
            OverflowPolicy::DropOldest if usage.under_way.events < bound.events => {
                // What is checkpointed pushes out what is older. So there is no bound on how much of it may come, but for its bytes: no more
                // than can be pushed out.
                let room = less(bound, usage.under_way);
                let any = Room { events: u64::MAX, ..room };
                (any, any)
            }
            _ => (less(bound, taken), less(more, taken)),
        };
        let has_room = |room: Room| usage.waiting.events < room.events && usage.waiting.bytes < room.bytes;
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
    /// Whether half of the room for ordinary events is used by what waits: the sooner that is checkpointed, the sooner it is known how much
    /// room it really takes, and the sooner it is sent. Not where hardly any room is left, or each event would have a commit of its own.
    pub(super) fn is_pressing(&self, waiting: Room) -> bool {
        let half_used = |waiting: u64, room: u64, least: u64| room >= least && waiting >= room.div_ceil(2);
        half_used(waiting.events, self.ordinary.events, 2)
            || half_used(waiting.bytes, self.ordinary.bytes, ROOM_BYTES_LEAST)
    }
}

fn less(room: Room, taken: Room) -> Room {
    Room { events: room.events.saturating_sub(taken.events), bytes: room.bytes.saturating_sub(taken.bytes) }
}

fn eighth_more(limit: u64) -> u64 {
    limit.saturating_add(limit / 8)
}

/// The bounds, as callers see them. Looked at by the committer after each commit.
#[derive(Debug)]
pub(super) struct Admission {
    level: AtomicU8,
    /// Nobody is let in any more, and nobody may go on waiting.
    closed: AtomicBool,
    /// A caller was turned away since the committer last looked: it is asked once to look again.
    asked: AtomicBool,
    /// It was told that the file system has reached its floor.
    pub(super) floor_is_told: AtomicBool,
    changes: Mutex<u64>,
    changed: Condvar,
    /// As it was found last, with what waited in the journal.
    found: Mutex<(Standing, Room)>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            level: AtomicU8::new(Level::Open as u8),
            closed: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            floor_is_told: AtomicBool::new(false),
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

    /// Why ordinary events are turned away.
    pub(super) fn append_error(&self) -> Option<AppendError> {
        self.append_error_for(0)
    }

    fn append_error_for(&self, class: u8) -> Option<AppendError> {
        if self.closed.load(Ordering::Acquire) {
            return Some(AppendError::Closed);
        }
        match self.level.load(Ordering::Relaxed) {
            level if level == Level::Open as u8 => None,
            level if level == Level::Full as u8 && class != 0 => None,
            level if level == Level::Floor as u8 => Some(AppendError::DiskFull),
            _ => Some(AppendError::QueueFull),
        }
    }

    /// Sets the level and wakes those who wait for room. Who is turned away may ask for the next look if this one has found something
    /// new, or if it is `time`: else callers that come in floods would keep the committer busy with looking.
    pub(super) fn set(&self, standing: Standing, waiting: Room, time: bool) {
        let found = (standing, waiting);
        let news = std::mem::replace(&mut *lock(&self.found), found) != found;
        self.level.store(standing.level as u8, Ordering::Relaxed);
        if news || time {
            self.asked.store(false, Ordering::Relaxed);
        }
        *lock(&self.changes) += 1;
        self.changed.notify_all();
    }

    /// Whether somebody was turned away and may not ask before it is time.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// As it was found last.
    pub(super) fn standing(&self) -> Standing {
        lock(&self.found).0
    }

    /// Whether it is the number of events, and not their bytes, that left no room.
    pub(super) fn is_full_of_events(&self) -> bool {
        let (standing, waiting) = *lock(&self.found);
        waiting.events >= standing.ordinary.events
    }

    /// Ends all waiting for room, for good: nobody will look at the bounds again.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        *lock(&self.changes) += 1;
        self.changed.notify_all();
    }

    fn changes(&self) -> u64 {
        *lock(&self.changes)
    }

    /// Waits for the next look of the committer; `false` if there was none in time.
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
    /// Whether the caller of a capture waits for room.
    #[cold]
    pub(super) fn may_block(&self) -> bool {
        matches!(self.options.limits.overflow, OverflowPolicy::Block(_)) && !reentry::on_our_thread()
    }

    /// The journal was full or busy, or the queue has reached its bounds.
    #[cold]
    pub(super) fn append_without_room(&self, body: &[u8], hash: u64, class: u8) -> Result<u64, AppendError> {
        let until = match self.options.limits.overflow {
            OverflowPolicy::Block(most) if self.may_block() => Instant::now().checked_add(most),
            _ => None,
        };
        loop {
            let seen = self.admission.changes();
            let refused = match self.admission.append_error_for(class) {
                Some(append_error) => append_error,
                None => match self.shard.append(body, hash, class) {
                    Ok(appended) => return Ok(self.appended(appended)),
                    Err(refused) => self.refused(refused),
                },
            };
            if refused.is_for_room() && !self.admission.asked.swap(true, Ordering::Relaxed) {
                self.mailbox.ring(|wanted| wanted.look_again = true);
            }
            let again = match refused {
                // An append has waited for the lock already.
                AppendError::JournalBusy => until.is_some_and(|until| Instant::now() < until),
                refused => refused.is_for_room() && until.is_some_and(|until| self.admission.wait(seen, until)),
            };
            if !again {
                return Err(refused);
            }
        }
    }
}

/// The most that a queue held in memory may take: 64 MiB, or a tenth of what the process may have.
pub(super) fn memory_bound() -> u64 {
    const MOST: u64 = 64 * 1024 * 1024;
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = limits.iter().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    limit.map_or(MOST, |limit| MOST.min(limit / 10))
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
    fn rows_may_take_all_of_the_bound_and_half_of_it_where_the_file_has_grown_beyond() {
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
        let usage = Usage { queued_events: 900, waiting: Room { events: 99, bytes: 0 }, ..Usage::default() };
        assert_eq!(limits().standing(&usage).level, Level::Open);
        let waiting = Room { events: 100, bytes: 0 };
        assert_eq!(limits().standing(&Usage { waiting, ..usage }).level, Level::Full);
        let waiting = Room { events: 1, bytes: 101 * MIB };
        assert_eq!(limits().standing(&Usage { waiting, ..usage }).level, Level::Full);
    }

    #[test]
    fn events_are_bounded_with_an_eighth_more_for_the_priority_ones() {
        for (events, expected) in [(999, Level::Open), (1000, Level::Full), (1125, Level::Packed)] {
            assert_eq!(limits().standing(&Usage { queued_events: events, ..Usage::default() }).level, expected);
        }
    }

    #[test]
    fn where_the_oldest_make_room_only_what_is_under_way_keeps_others_out() {
        let limits = Limits { overflow: OverflowPolicy::DropOldest, ..limits() };
        let usage = Usage { queued_events: 1000, row_bytes: 100 * MIB, ..Usage::default() };
        let room = limits.standing(&usage).ordinary;
        assert_eq!(room, Room { events: u64::MAX, bytes: 100 * MIB });
        let under_way = Room { events: 999, bytes: 60 * MIB };
        assert_eq!(limits.standing(&Usage { under_way, ..usage }).ordinary.bytes, 40 * MIB);
        let under_way = Room { events: 1000, bytes: 60 * MIB };
        assert_eq!(limits.standing(&Usage { under_way, ..usage }).level, Level::Full);
    }

    #[test]
    fn the_free_space_floor_stops_everybody() {
        let usage = Usage { free_bytes: Some(9 * MIB), ..Usage::default() };
        assert_eq!(limits().standing(&usage).level, Level::Floor);
        assert_eq!(limits().standing(&Usage { free_bytes: None, ..usage }).level, Level::Open);
    }
}
