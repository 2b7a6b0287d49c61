//! How the owner is, and how it ends: the words of the status page that the next owner judges by.
//!
//! They came after the page's first version, and an older library leaves them as it finds them. So each owner that knows them writes
//! its start time there once more, and they are believed only where that is the start time that the page has.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use super::Shard;
use super::status::{STATUS_BYTES, StatusPage};
use super::words::Word;
use crate::sys::clock::WallNanos;
use crate::sys::disk::fork::lock_within;
use crate::sys::disk::{Disk, OomCount, Open};

/// A process that ends waits so long for a lock that another of its threads holds.
const ENDING_WAIT: Duration = Duration::from_millis(100);

const EXITED: u64 = 1 << 32;
const STATUS_KNOWN: u64 = 1 << 33;
const WATCHES_EXIT: u64 = 1;
const WATCHES_TERMINATION: u64 = 2;
const COUNTS_OOM: u64 = 4;

/// Builds that are remembered as died of: an executable and its libraries may each be, once.
const DISTRUSTED_MOST: usize = 8;

/// A build id as one word of the page, never 0.
pub(crate) fn build_word(build_id: &[u8]) -> u64 {
    xxh3_64(build_id).max(1)
}

/// What an owner says of itself while it is at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sign {
    /// Wall time.
    pub(crate) at: WallNanos,
    /// Monotonic time since it took the shard over.
    pub(crate) alive_for: Duration,
    /// An end by `exit` will be written here.
    pub(crate) watches_exit: bool,
    /// Somebody has a handler for SIGTERM.
    pub(crate) watches_termination: bool,
    /// The OOM killer, where it runs.
    pub(crate) oom: Option<OomCount>,
}

/// A life that the shard had with an owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Life {
    /// Of its process.
    pub(crate) pid: u32,
    /// Wall time.
    pub(crate) started_at: WallNanos,
    /// Whether the machine has been up since it began; `None` if the system does not tell.
    pub(crate) same_boot: Option<bool>,
    /// The last sign that it gave.
    pub(crate) sign: Sign,
    /// It ended in good order.
    pub(crate) closed: bool,
    /// It called `exit`, or returned from `main`, with this status if that is known.
    pub(crate) exit: Option<Option<i32>>,
    /// The signal by which it was asked to end, and of which it was about to die.
    pub(crate) dying_of: Option<i32>,
}

impl StatusPage {
    /// The owner looks up what addresses of a build mean, or of none.
    pub(crate) fn mark_resolving(&self, build: Option<u64>) {
        self.set(Word::Resolving, build.unwrap_or(0));
        self.publish();
    }

    /// Whether that is what an earlier owner died of. It stays so: with the same file and the same limits it would be died of again.
    pub(crate) fn untrusts_symbols_of(&self, build: u64) -> bool {
        self.untrusted().any(|word| word.load(Ordering::Relaxed) == build)
    }

    /// Remembers a build, and forgets the oldest for it where there is no room.
    pub(super) fn untrust_symbols_of(&self, build: u64) {
        let mut moved = if self.untrusts_symbols_of(build) { 0 } else { build };
        for word in self.untrusted() {
            if moved == 0 {
                break;
            }
            moved = word.swap(moved, Ordering::Relaxed);
        }
    }

    fn untrusted(&self) -> impl Iterator<Item = &AtomicU64> {
        (0..DISTRUSTED_MOST).filter_map(|at| self.word(Word::Untrusted as usize + at))
    }

    /// The last life that is written here; none where an older version had the shard last.
    pub(super) fn life(&self, now_booted: u128) -> Option<Life> {
        if self.get(Word::LifeKept) == 0 || self.get(Word::LifeKept) != self.get(Word::StartedAt) {
            return None;
        }
        let pid = u32::try_from(self.get(Word::LifePid)).ok().filter(|pid| *pid != 0)?;
        let (watches, ended) = (self.get(Word::Watches), self.get(Word::Ended));
        let oom = OomCount {
            path: self.get(Word::OomPath),
            inode: self.get(Word::OomInode),
            kills: self.get(Word::OomKills),
        };
        let sign = Sign {
            at: self.get(Word::SeenAt) as WallNanos,
            alive_for: Duration::from_nanos(self.get(Word::AliveFor)),
            watches_exit: watches & WATCHES_EXIT != 0,
            watches_termination: watches & WATCHES_TERMINATION != 0,
            oom: (watches & COUNTS_OOM != 0).then_some(oom),
        };
        let boot_id = u128::from(self.get(Word::LifeBootHigh)) << 64 | u128::from(self.get(Word::LifeBootLow));
        // The low half of the word; see `mark_exit`.
        let status = (ended & STATUS_KNOWN != 0).then_some(ended as u32 as i32);
        Some(Life {
            pid,
            started_at: self.get(Word::LifeStartedAt) as WallNanos,
            same_boot: (boot_id != 0 && now_booted != 0).then_some(boot_id == now_booted),
            sign,
            closed: self.get(Word::Closed) == 1,
            exit: (ended & EXITED != 0).then_some(status),
            dying_of: i32::try_from(self.get(Word::DyingOf)).ok().filter(|signal| *signal != 0),
        })
    }

    /// Whether the page at `path` still names this owner as the last one. Whoever takes a shard over makes one where there is none, so
    /// where there is none nobody has.
    pub(super) fn is_of_this_life(&self, disk: &Disk, path: &Path) -> io::Result<bool> {
        if !disk.exists(path)? {
            return Ok(true);
        }
        let file = disk.open(path, Open::ReadOnly)?;
        let mut bytes = vec![0; STATUS_BYTES];
        file.read_exact_at(0, &mut bytes)?;
        let word = |word: Word| bytes.as_chunks().0.get(word as usize).map(|bytes| u64::from_le_bytes(*bytes));
        // The start is in nanoseconds: no two owners have the same, whatever their numbers are.
        Ok(word(Word::Pid) == Some(u64::from(std::process::id())) && word(Word::StartedAt) == Some(self.started_at))
    }

    /// Notes which rounds were filled before the machine was restarted, for as long as one of them waits to be checkpointed: what is missing in
    /// those is what was not synced. `newest` is the newest epoch that is known.
    pub(super) fn note_restart(&self, same_boot: bool, newest: u64) {
        let before = if same_boot { self.get(Word::EpochAtRestart).min(newest) } else { newest };
        self.set(Word::EpochAtRestart, before);
        self.publish();
    }

    /// Whether the machine has been up since that round was filled.
    pub(super) fn is_of_this_boot(&self, epoch: u64) -> bool {
        epoch > self.get(Word::EpochAtRestart)
    }

    /// A new owner. Whoever adopts the shard keeps the life that is written there, for its own is written elsewhere.
    pub(super) fn begin_life(&self, last: Option<&Life>, boot_id: u128, now: WallNanos) {
        if !(self.adopts && last.is_some()) {
            // First not believed, then written, then believed again: the owner may die in between.
            self.set(Word::LifeKept, 0);
            for word in [Word::Watches, Word::AliveFor, Word::Closed, Word::Ended, Word::DyingOf] {
                self.set(word, 0);
            }
            self.set(Word::LifePid, if self.adopts { 0 } else { u64::from(std::process::id()) });
            self.set(Word::LifeStartedAt, now as u64);
            self.set(Word::LifeBootHigh, (boot_id >> 64) as u64);
            self.set(Word::LifeBootLow, boot_id as u64);
            self.set(Word::SeenAt, now as u64);
        }
        self.set(Word::LifeKept, now as u64);
    }

    /// The owner ends in good order.
    pub(super) fn end_life(&self) {
        if !self.adopts {
            self.set(Word::Closed, 1);
        }
    }

    /// Read back with the next [`publish`](Self::publish) where the page is not mapped.
    fn note_sign(&self, sign: &Sign) {
        let bit = |is_set, bit| if is_set { bit } else { 0 };
        if let Some(oom) = sign.oom {
            self.set(Word::OomPath, oom.path);
            self.set(Word::OomInode, oom.inode);
            self.set(Word::OomKills, oom.kills);
        }
        let watches = bit(sign.watches_exit, WATCHES_EXIT)
            | bit(sign.watches_termination, WATCHES_TERMINATION)
            | bit(sign.oom.is_some(), COUNTS_OOM);
        self.set(Word::Watches, watches);
        self.set(Word::SeenAt, sign.at as u64);
        self.set(Word::AliveFor, u64::try_from(sign.alive_for.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn mark_exit(&self, status: Option<i32>) {
        let known = status.map_or(0, |status| STATUS_KNOWN | u64::from(status as u32));
        self.set(Word::Ended, EXITED | known);
    }
}

impl Shard {
    /// Says that the owner is alive. Committer, when it is awake anyway.
    pub(crate) fn note_sign(&self, sign: &Sign) {
        self.status.note_sign(sign);
    }

    /// The process exits. Called while other threads are at work.
    pub(crate) fn mark_exit(&self, status: Option<i32>) {
        self.write_last(|page| page.mark_exit(status));
    }

    /// The process was asked to end by that signal, and is going to die of it.
    pub(crate) fn mark_dying_of(&self, signal: i32) {
        self.write_last(|page| page.set(Word::DyingOf, u64::from(signal.unsigned_abs())));
    }

    /// Writes to the page, unless it may be somebody else's already.
    fn write_last(&self, write: impl FnOnce(&StatusPage)) {
        self.while_ours(|page| {
            write(page);
            page.publish_within(ENDING_WAIT);
        });
    }

    /// Gives the page to whoever writes to it late or on another thread, unless it may be somebody else's already.
    pub(super) fn while_ours(&self, write: impl FnOnce(&StatusPage)) {
        // Held while writing, so that the shard is not let go meanwhile. A process must not hang at its end: rather nothing is written.
        let Some(claim) = lock_within(&self.claim, ENDING_WAIT) else { return };
        if claim.is_some() {
            write(&self.status);
        }
    }
}
