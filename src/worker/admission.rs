//! Who is let in when room runs out.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Pipeline, lock};
use crate::reentry;

/// What happens to a capture when the queue has reached its bounds.
///
/// That is one kind of fullness. A burst that comes faster than events can be moved from the journal to the queue fills the journal
/// ([`Config::journal_bytes`](crate::Config::journal_bytes)), and then a capture is `Dropped(JournalFull)` under each of these but
/// [`Block`](Overflow::Block).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Overflow {
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
    /// Bytes of the store's file.
    pub(crate) queue_bytes: u64,
    /// Events.
    pub(crate) queue_events: u64,
    /// Age of the oldest.
    pub(crate) queue_age: Option<Duration>,
    /// Bytes of the file system that are left alone.
    pub(crate) free_space_floor: u64,
    /// What happens beyond them.
    pub(crate) overflow: Overflow,
}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unwelcome {
    /// The client was closed.
    Closed,
    /// A forked child has to start a pipeline of its own.
    Forked,
    /// The journal's lock could not be had in time.
    JournalBusy,
    /// Events come faster than they can be carried, or cannot be carried at all.
    JournalFull,
    /// The queue has reached its bounds.
    QueueFull,
    /// The file system has reached its floor.
    DiskFull,
    /// The journal's file could not be written.
    Storage,
}

impl Unwelcome {
    /// Whether waiting may help.
    fn is_for_room(self) -> bool {
        matches!(self, Unwelcome::JournalFull | Unwelcome::QueueFull | Unwelcome::DiskFull)
    }
}

/// How full the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Everybody is welcome.
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
    pub(super) queued_bytes: u64,
    pub(super) queued_events: u64,
    pub(super) file_bytes: u64,
    pub(super) arena_bytes: u64,
    /// `None` if it could not be found out.
    pub(super) free_bytes: Option<u64>,
}

/// How full that is. A row takes a run of pages up to twice its size, and a file does not shrink: so the file is allowed to reach its
/// bound, and then holds at least half of it in content.
pub(super) fn level(limits: &Limits, usage: &Usage) -> Level {
    if usage.free_bytes.is_some_and(|free| free < limits.free_space_floor) {
        return Level::Floor;
    }
    let may_take = usage.queued_bytes.saturating_mul(2).saturating_add(usage.arena_bytes);
    let reaches = |bytes: u64, events: u64| {
        (usage.file_bytes >= bytes && may_take > bytes)
            || may_take > bytes.saturating_mul(2)
            || usage.queued_events >= events
    };
    let eighth_more = |limit: u64| limit.saturating_add(limit / 8);
    if reaches(eighth_more(limits.queue_bytes), eighth_more(limits.queue_events)) {
        Level::Packed
    } else if reaches(limits.queue_bytes, limits.queue_events) {
        Level::Full
    } else {
        Level::Open
    }
}

/// The bounds, as callers see them. Looked at by the committer after each commit.
#[derive(Debug)]
pub(super) struct Admission {
    level: AtomicU8,
    /// Nobody is let in any more, and nobody may go on waiting.
    closed: AtomicBool,
    /// A caller was turned away since the committer last looked: it is asked once to look again.
    asked: AtomicBool,
    changes: Mutex<u64>,
    changed: Condvar,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            level: AtomicU8::new(Level::Open as u8),
            closed: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            changes: Mutex::new(0),
            changed: Condvar::new(),
        }
    }
}

impl Admission {
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.level.load(Ordering::Relaxed) == Level::Open as u8
    }

    /// Why ordinary events are turned away.
    pub(super) fn unwelcome(&self) -> Option<Unwelcome> {
        self.unwelcome_for(0)
    }

    fn unwelcome_for(&self, class: u8) -> Option<Unwelcome> {
        if self.closed.load(Ordering::Acquire) {
            return Some(Unwelcome::Closed);
        }
        match self.level.load(Ordering::Relaxed) {
            level if level == Level::Open as u8 => None,
            level if level == Level::Full as u8 && class != 0 => None,
            level if level == Level::Floor as u8 => Some(Unwelcome::DiskFull),
            _ => Some(Unwelcome::QueueFull),
        }
    }

    /// Sets the level and wakes those who wait for room.
    pub(super) fn set(&self, level: Level) {
        self.level.store(level as u8, Ordering::Relaxed);
        self.asked.store(false, Ordering::Relaxed);
        *lock(&self.changes) += 1;
        self.changed.notify_all();
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
        matches!(self.options.limits.overflow, Overflow::Block(_)) && !reentry::on_our_thread()
    }

    /// The journal was full or busy, or the queue has reached its bounds.
    #[cold]
    pub(super) fn append_without_room(&self, body: &[u8], hash: u64, class: u8) -> Result<u64, Unwelcome> {
        let until = match self.options.limits.overflow {
            Overflow::Block(most) if self.may_block() => Instant::now().checked_add(most),
            _ => None,
        };
        loop {
            let seen = self.admission.changes();
            let refused = match self.admission.unwelcome_for(class) {
                Some(unwelcome) => unwelcome,
                None => match self.shard.append(body, hash, class) {
                    Ok(appended) => return Ok(self.appended(appended)),
                    Err(refused) => self.refused(refused),
                },
            };
            if refused.is_for_room() && !self.admission.asked.swap(true, Ordering::Relaxed) {
                self.bell.ring(|wanted| wanted.look_again = true);
            }
            let again = match refused {
                // An append has waited for the lock already.
                Unwelcome::JournalBusy => until.is_some_and(|until| Instant::now() < until),
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
            free_space_floor: 10 * MIB,
            overflow: Overflow::DropNewest,
        }
    }

    #[test]
    fn a_file_at_its_bound_is_full_unless_its_content_has_gone() {
        let full = Usage { queued_bytes: 80 * MIB, file_bytes: 100 * MIB, ..Usage::default() };
        assert_eq!(level(&limits(), &full), Level::Full);
        assert_eq!(level(&limits(), &Usage { queued_bytes: 10 * MIB, ..full }), Level::Open);
        assert_eq!(level(&limits(), &Usage { file_bytes: 50 * MIB, ..full }), Level::Open);
        assert_eq!(level(&limits(), &Usage { file_bytes: 113 * MIB, ..full }), Level::Packed);
    }

    #[test]
    fn events_are_bounded_with_an_eighth_more_for_the_dear_ones() {
        for (events, expected) in [(999, Level::Open), (1000, Level::Full), (1125, Level::Packed)] {
            assert_eq!(level(&limits(), &Usage { queued_events: events, ..Usage::default() }), expected);
        }
    }

    #[test]
    fn the_free_space_floor_stops_everybody() {
        let usage = Usage { free_bytes: Some(9 * MIB), ..Usage::default() };
        assert_eq!(level(&limits(), &usage), Level::Floor);
        assert_eq!(level(&limits(), &Usage { free_bytes: None, ..usage }), Level::Open);
    }
}
