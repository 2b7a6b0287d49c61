//! The run record: words of the status page from which the next owner determines how the last one ended.
//!
//! These words were added after the first version of the page, and an older library leaves them as it finds them. So
//! each owner that knows them repeats its start time among them, and they are believed only if it equals the start time
//! of the page's owner.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::Queue;
use super::status_page::{StatusPage, Word};
use crate::sys::clock::WallNanos;
use crate::sys::disk::OomCount;
use crate::sys::disk::fork::lock_within;

/// A process that is ending waits at most this long for a lock that another of its threads holds.
const ENDING_WAIT: Duration = Duration::from_millis(100);

const EXITED: u64 = 1 << 32;
const STATUS_KNOWN: u64 = 1 << 33;
const WATCHES_EXIT: u64 = 1;
const WATCHES_TERMINATION: u64 = 2;
const COUNTS_OOM: u64 = 4;

/// The number of fatal tasks that are remembered.
const FATAL_TASKS_MAX: usize = 8;

/// The identity of a task as a word of the page, never 0: a hash of its name.
pub(crate) fn task_id(build_id: &[u8]) -> u64 {
    xxh3_64(build_id).max(1)
}

/// What an owner reports about itself while it is running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    /// Wall time of the report.
    pub(crate) at: WallNanos,
    /// Monotonic time since the owner took the queue over.
    pub(crate) alive_for: Duration,
    /// Whether a call of `exit` will be recorded.
    pub(crate) watches_exit: bool,
    /// Whether SIGTERM has a handler.
    pub(crate) watches_termination: bool,
    /// The count of the OOM killer, where there is one.
    pub(crate) oom: Option<OomCount>,
}

/// A run of a process that had the queue as its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunRecord {
    pub(crate) pid: u32,
    pub(crate) started_at: WallNanos,
    /// Whether the machine has been up since it began; `None` if the system does not say.
    pub(crate) same_boot: Option<bool>,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) closed: bool,
    /// Set if it called `exit` or returned from `main`, with the status if that is known.
    pub(crate) exit: Option<Option<i32>>,
    /// The signal that asked it to end, and that it was about to die of.
    pub(crate) dying_of: Option<i32>,
}

impl StatusPage {
    /// Marks the task that the owner is in; `None` for none.
    pub(crate) fn mark_task(&self, build: Option<u64>) {
        self.set(Word::Task, build.unwrap_or(0));
        self.publish();
    }

    /// Whether an earlier owner died in that task. This is never forgotten: under the same conditions the next owner
    /// would die in it too.
    pub(crate) fn is_fatal_task(&self, build: u64) -> bool {
        self.fatal_tasks().any(|word| word.load(Ordering::Relaxed) == build)
    }

    /// Remembers a fatal task, in place of the oldest if there is no room.
    pub(super) fn remember_fatal_task(&self, build: u64) {
        let mut moved = if self.is_fatal_task(build) { 0 } else { build };
        for word in self.fatal_tasks() {
            if moved == 0 {
                break;
            }
            moved = word.swap(moved, Ordering::Relaxed);
        }
    }

    fn fatal_tasks(&self) -> impl Iterator<Item = &AtomicU64> {
        (0..FATAL_TASKS_MAX).filter_map(|at| self.word(Word::FatalTasks as usize + at))
    }

    /// The last run on the page; `None` if an older version of the library had the queue since.
    pub(super) fn run(&self, now_booted: u128) -> Option<RunRecord> {
        if self.get(Word::RunKept) == 0 || self.get(Word::RunKept) != self.get(Word::StartedAt) {
            return None;
        }
        let pid = u32::try_from(self.get(Word::RunPid)).ok().filter(|pid| *pid != 0)?;
        let (watches, ended) = (self.get(Word::Watches), self.get(Word::Ended));
        let oom = OomCount {
            path: self.get(Word::OomPath),
            inode: self.get(Word::OomInode),
            kills: self.get(Word::OomKills),
        };
        let heartbeat = Heartbeat {
            at: self.get(Word::SeenAt) as WallNanos,
            alive_for: Duration::from_nanos(self.get(Word::AliveFor)),
            watches_exit: watches & WATCHES_EXIT != 0,
            watches_termination: watches & WATCHES_TERMINATION != 0,
            oom: (watches & COUNTS_OOM != 0).then_some(oom),
        };
        let boot_id = u128::from(self.get(Word::RunBootHigh)) << 64 | u128::from(self.get(Word::RunBootLow));
        // The low half of the word: see `mark_exit`.
        let status = (ended & STATUS_KNOWN != 0).then_some(ended as u32 as i32);
        Some(RunRecord {
            pid,
            started_at: self.get(Word::RunStartedAt) as WallNanos,
            same_boot: (boot_id != 0 && now_booted != 0).then_some(boot_id == now_booted),
            heartbeat,
            closed: self.get(Word::Closed) == 1,
            exit: (ended & EXITED != 0).then_some(status),
            dying_of: i32::try_from(self.get(Word::DyingOf)).ok().filter(|signal| *signal != 0),
        })
    }

    /// Records which rounds were filled before the machine was restarted: records missing from those had not been
    /// synced. `newest` is the newest epoch known.
    pub(super) fn note_restart(&self, same_boot: bool, newest: u64) {
        let before = if same_boot { self.get(Word::EpochAtRestart).min(newest) } else { newest };
        self.set(Word::EpochAtRestart, before);
        self.publish();
    }

    /// Whether the machine has been up since the round of that epoch was filled.
    pub(super) fn is_of_this_boot(&self, epoch: u64) -> bool {
        epoch > self.get(Word::EpochAtRestart)
    }

    /// Begins the run of a new owner. One that adopts the queue keeps the record that is there; its own is on another
    /// page.
    pub(super) fn begin_run(&self, last: Option<&RunRecord>, boot_id: u128, now: WallNanos) {
        if !(self.adopts && last.is_some()) {
            // Invalidated, written, then validated: the owner may die in between.
            self.set(Word::RunKept, 0);
            for word in [Word::Watches, Word::AliveFor, Word::Closed, Word::Ended, Word::DyingOf] {
                self.set(word, 0);
            }
            self.set(Word::RunPid, if self.adopts { 0 } else { u64::from(std::process::id()) });
            self.set(Word::RunStartedAt, now as u64);
            self.set(Word::RunBootHigh, (boot_id >> 64) as u64);
            self.set(Word::RunBootLow, boot_id as u64);
            self.set(Word::SeenAt, now as u64);
        }
        self.set(Word::RunKept, now as u64);
    }

    /// Reaches the file with the next [`publish`](Self::publish) where the page is not mapped.
    fn note_heartbeat(&self, heartbeat: &Heartbeat) {
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        if let Some(oom) = heartbeat.oom {
            self.set(Word::OomPath, oom.path);
            self.set(Word::OomInode, oom.inode);
            self.set(Word::OomKills, oom.kills);
        }
        let watches = bit(heartbeat.watches_exit, WATCHES_EXIT)
            | bit(heartbeat.watches_termination, WATCHES_TERMINATION)
            | bit(heartbeat.oom.is_some(), COUNTS_OOM);
        self.set(Word::Watches, watches);
        self.set(Word::SeenAt, heartbeat.at as u64);
        self.set(Word::AliveFor, u64::try_from(heartbeat.alive_for.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn mark_exit(&self, status: Option<i32>) {
        let known = status.map_or(0, |status| STATUS_KNOWN | u64::from(status as u32));
        self.set(Word::Ended, EXITED | known);
    }
}

impl Queue {
    /// Records that the owner is alive. Called by the committer when it is awake anyway.
    pub(crate) fn note_heartbeat(&self, heartbeat: &Heartbeat) {
        self.status.note_heartbeat(heartbeat);
    }

    /// The process exits. Other threads may still be running.
    pub(crate) fn mark_exit(&self, status: Option<i32>) {
        self.write_last(|page| page.mark_exit(status));
    }

    /// The process was asked to end by `signal` and is about to die of it.
    pub(crate) fn mark_dying_of(&self, signal: i32) {
        self.write_last(|page| page.set(Word::DyingOf, u64::from(signal.unsigned_abs())));
    }

    /// Writes to the page, unless it may belong to another owner already.
    fn write_last(&self, write: impl FnOnce(&StatusPage)) {
        self.while_ours(|page| {
            write(page);
            page.publish_within(ENDING_WAIT);
        });
    }

    /// Passes the page to a caller that writes late or on another thread, unless it may belong to another owner
    /// already.
    pub(super) fn while_ours(&self, write: impl FnOnce(&StatusPage)) {
        // The lock is held while writing, so that the queue is not released meanwhile. A process must not hang at its
        // end: if the lock cannot be had in time, nothing is written.
        let Some(claim) = lock_within(&self.claim, ENDING_WAIT) else { return };
        if claim.is_some() {
            write(&self.status);
        }
    }
}
