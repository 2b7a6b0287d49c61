//! The status page: one page of words that any process may read at any time, without a lock.
//!
//! The owner writes it; a reader takes it for what it is, a mirror that may lag. Two things in it are more than a mirror. The
//! *phase* says whether the owner is inside a call of the store: found set by the next owner, it means that the last one died there.
//! The count of accepted records, written with each record, tells after a power cut how many there were. What says how the owner was
//! and how it ended is in `life.rs`.
//!
//! The version stands there twice, the second time with all bits turned: a newer one is believed only if both agree, for one flipped
//! bit must not make a shard look like somebody else's.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::life::Life;
use super::opening::deaths_after;
use super::words::Word;
use crate::queue::store::Ledger;
use crate::sys::clock::WallNanos;
use crate::sys::disk::fork::lock_within;
use crate::sys::disk::{Disk, DiskFile, Mapping, Open};

/// Bytes of the file.
pub(crate) const STATUS_BYTES: usize = 4096;
/// Reasons for refusing a capture that can be counted apart.
pub(crate) const REASONS_MAX: usize = 64;
const MAGIC: u64 = u64::from_le_bytes(*b"\x89PHS\r\n\x1a\n");
const VERSION: u64 = 1;
/// An epoch that no journal has come to: at a thousand rounds a second it would take nine thousand years. The page has no checksum, and a
/// round of the highest number would be the last.
const EPOCH_MOST: u64 = 1 << 48;
/// Deaths inside the opening of the store, one after the other, after which the file is no longer trusted.
pub(crate) const DEATHS_MAX: u64 = 3;

/// Whoever lets the shard go waits so long for calls of other threads.
const LEAVING_WAIT: Duration = Duration::from_millis(100);

/// What the owner is doing, as far as it matters to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing that can leave a damaged store.
    Quiet = 0,
    /// Opening the store.
    Opening = 1,
    /// Inside a call of the open store; or it was, and the store was not opened and checked since.
    Store = 2,
}

/// What the last owner left on the page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Predecessor {
    /// There was one.
    pub(crate) existed: bool,
    /// It marked its end.
    pub(crate) clean: bool,
    /// It died inside the store.
    pub(crate) died_in_store: bool,
    /// It died while it looked up what addresses of this build mean.
    pub(crate) died_resolving: Option<u64>,
    /// Owners in a row that died while opening the store, this one included.
    pub(crate) deaths_opening: u64,
    /// The machine has not been restarted since.
    pub(crate) same_boot: bool,
    /// The highest sequence number that it accepted.
    pub(crate) accepted: u64,
    /// The highest epoch that it used.
    pub(crate) epoch: u64,
    /// Its last ledger, if that balances.
    pub(crate) ledger: Option<Ledger>,
    /// When the oldest event in its store was checkpointed.
    pub(crate) oldest_at: Option<WallNanos>,
    /// When it last committed something.
    pub(crate) active_at: WallNanos,
    /// The last life that the shard had with an owner who had not only adopted it.
    pub(crate) life: Option<Life>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct StatusPage {
    words: Mapping,
    /// Where mapping is not safe the words live in memory and are written out by position.
    file: Option<Mutex<DiskFile>>,
    /// The owner has the shard beside its own.
    pub(super) adopts: bool,
    /// When this owner took it over.
    pub(super) started_at: u64,
    /// How many calls are inside a phase: the committer's, and now and then one of the delivery's.
    inside: AtomicU64,
    /// The page may be another owner's by now: nothing is written to it any more.
    is_let_go: AtomicBool,
}

impl StatusPage {
    /// The name of its file in the shard's directory.
    pub(super) const FILE: &str = "status";

    /// Takes the page over, creating it if missing. The shard's lock must be held. Whoever only `adopts` the shard leaves the life that
    /// is written there to the next one who does not.
    pub(crate) fn take_over(
        disk: &Disk,
        path: &Path,
        map: bool,
        adopts: bool,
        now: WallNanos,
    ) -> io::Result<(Self, Predecessor)> {
        let file = disk.open(path, Open::EnsureExists)?;
        if file.len()? < STATUS_BYTES as u64 {
            // Really written, so that no later store into the mapping needs a block.
            file.write_zeros(STATUS_BYTES as u64)?;
        }
        // Of a page that was restored without its zeros too. Where there is no room for them it is written by position.
        let map = map && file.fill_holes(STATUS_BYTES as u64).is_ok();
        let words = if map {
            file.map(STATUS_BYTES)?
        } else {
            let mut bytes = vec![0; STATUS_BYTES];
            file.read_exact_at(0, &mut bytes)?;
            let words = Mapping::anonymous(STATUS_BYTES)?;
            if !words.write(0, &bytes) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            words
        };
        let mut page = Self { adopts, started_at: now as u64, ..Self::of_words(words) };
        let boot_id = disk.boot_id();
        let predecessor = page.predecessor(boot_id);
        page.begin(&predecessor, boot_id, now);
        // At once: after a power cut the page must be about this life, and not about the one before. If that fails it lags, as it may.
        if map {
            let _ = file.sync_mapped(&page.words, STATUS_BYTES);
        } else {
            page.write_out(&file);
            let _ = file.sync_data();
            page.file = Some(Mutex::new(file));
        }
        Ok((page, predecessor))
    }

    /// The version of a page that a newer library wrote. Every version keeps the magic and both version words where they are.
    pub(crate) fn newer_version(disk: &Disk, path: &Path) -> io::Result<Option<u64>> {
        if !disk.exists(path)? {
            return Ok(None);
        }
        let file = disk.open(path, Open::ReadOnly)?;
        let word = |word: Word| {
            let mut bytes = [0; size_of::<u64>()];
            file.read_exact_at((word as usize * size_of::<u64>()) as u64, &mut bytes)?;
            Ok::<_, io::Error>(u64::from_le_bytes(bytes))
        };
        let read = || io::Result::Ok((word(Word::Magic)?, word(Word::Version)?, word(Word::VersionAgain)?));
        match read() {
            Ok((MAGIC, version, again)) if version > VERSION && again == !version => Ok(Some(version)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A page in memory alone, for a shard that has no files.
    pub(crate) fn volatile() -> io::Result<Self> {
        Ok(Self::of_words(Mapping::anonymous(STATUS_BYTES)?))
    }

    fn of_words(words: Mapping) -> Self {
        let (inside, is_let_go) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { words, file: None, adopts: false, started_at: 0, inside, is_let_go }
    }

    /// The shard is let go: what is said late is not written any more.
    pub(super) fn let_go(&self) {
        // A call of another thread that is inside a phase finds the store closed, and is out in a moment.
        let deadline = Instant::now() + LEAVING_WAIT;
        while self.inside.load(Ordering::Acquire) != 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.is_let_go.store(true, Ordering::Release);
    }

    /// Reads somebody else's page. `None` if it is not one.
    pub(crate) fn peek(disk: &Disk, path: &Path) -> io::Result<Option<Predecessor>> {
        let file = disk.open(path, Open::ReadOnly)?;
        let mut bytes = vec![0; STATUS_BYTES];
        file.read_exact_at(0, &mut bytes)?;
        let words = Mapping::anonymous(STATUS_BYTES)?;
        let page = words.write(0, &bytes).then(|| Self::of_words(words));
        Ok(page.map(|page| page.predecessor(disk.boot_id())).filter(|found| found.existed))
    }

    fn predecessor(&self, now_booted: u128) -> Predecessor {
        if self.get(Word::Magic) != MAGIC || self.get(Word::Version) != VERSION {
            return Predecessor::default();
        }
        let phase = self.get(Word::Phase);
        let ledger = Ledger {
            accepted: self.get(Word::CheckpointedUpTo),
            delivered: self.get(Word::Delivered),
            dead_lettered: self.get(Word::DeadLettered),
            evicted: self.get(Word::Evicted),
            damaged: self.get(Word::Damaged),
            lost_unsynced: self.get(Word::LostUnsynced),
            queued_events: self.get(Word::QueuedEvents),
            queued_bytes: self.get(Word::QueuedBytes),
        };
        let (resolving, life) = (self.get(Word::Resolving), self.life(now_booted));
        let boot_id = u128::from(self.get(Word::BootIdHigh)) << 64 | u128::from(self.get(Word::BootIdLow));
        // Who exits meanwhile has not died of it, nor has who was there when the machine went down.
        let died_of_another =
            self.get(Word::CleanExit) == 1 || boot_id != now_booted || life.is_some_and(|life| life.exit.is_some());
        Predecessor {
            existed: true,
            clean: self.get(Word::CleanExit) == 1,
            died_in_store: phase != Phase::Quiet as u64,
            deaths_opening: deaths_after(phase, self.get(Word::Deaths)),
            same_boot: boot_id == now_booted,
            active_at: self.get(Word::LastActivity) as WallNanos,
            accepted: self.get(Word::Accepted),
            epoch: Some(self.get(Word::Epoch)).filter(|epoch| *epoch <= EPOCH_MOST).unwrap_or(0),
            ledger: (ledger.imbalance() == 0).then_some(ledger),
            oldest_at: self.oldest_at(),
            died_resolving: Some(resolving).filter(|build| *build != 0 && !died_of_another),
            life,
        }
    }

    fn begin(&self, predecessor: &Predecessor, boot_id: u128, now: WallNanos) {
        // What is to be checked is still to be checked until the store is open.
        let phase = if predecessor.died_in_store { Phase::Store } else { Phase::Quiet };
        self.set(Word::Phase, phase as u64);
        self.set(Word::CleanExit, 0);
        self.set(Word::Deaths, predecessor.deaths_opening);
        self.set(Word::Pid, u64::from(std::process::id()));
        self.set(Word::StartedAt, now as u64);
        self.set(Word::LastActivity, now as u64);
        self.set(Word::BootIdHigh, (boot_id >> 64) as u64);
        self.set(Word::BootIdLow, boot_id as u64);
        self.set(Word::Version, VERSION);
        self.set(Word::VersionAgain, !VERSION);
        self.set(Word::Magic, MAGIC);
        self.begin_life(predecessor.life.as_ref(), boot_id, now);
        // Whoever adopts leaves a mark of its own, on its own page.
        if let Some(build) = predecessor.died_resolving {
            self.untrust_symbols_of(build);
        }
        if !self.adopts || predecessor.died_resolving.is_some() {
            self.set(Word::Resolving, 0);
        }
    }

    /// A record was taken; told in the order of the numbers.
    #[inline]
    pub(crate) fn took(&self, seq: u64) {
        // A plain store, because two processors that take turns at it would wait for each other with anything else. Under the journal's
        // lock, and a journal that was closed takes nothing: the page is ours.
        self.store(Word::Accepted, seq);
    }

    /// At least so many records were accepted.
    fn raise_accepted(&self, seq: u64) {
        if self.is_let_go.load(Ordering::Acquire) {
            return;
        }
        if let Some(word) = self.word(Word::Accepted as usize) {
            // Never backwards: callers go on accepting while the committer mirrors what it has stored.
            word.fetch_max(seq, Ordering::Relaxed);
        }
    }

    /// Mirrors the refusals of this process, by reason.
    pub(crate) fn mirror_refusals(&self, counts: &[u64]) {
        for (reason, count) in counts.iter().take(REASONS_MAX).enumerate() {
            if let Some(word) = self.word(Word::Refused as usize + reason) {
                word.store(*count, Ordering::Relaxed);
            }
        }
    }

    /// Mirrors the ledger after a commit.
    pub(crate) fn mirror(&self, ledger: &Ledger, epoch: u64, oldest_at: Option<WallNanos>, now: WallNanos) {
        self.set(Word::CheckpointedUpTo, ledger.accepted);
        self.set(Word::Delivered, ledger.delivered);
        self.set(Word::DeadLettered, ledger.dead_lettered);
        self.set(Word::Evicted, ledger.evicted);
        self.set(Word::Damaged, ledger.damaged);
        self.set(Word::LostUnsynced, ledger.lost_unsynced);
        self.set(Word::QueuedEvents, ledger.queued_events);
        self.set(Word::QueuedBytes, ledger.queued_bytes);
        self.set(Word::Epoch, epoch);
        self.set(Word::OldestAt, oldest_at.unwrap_or(0) as u64);
        self.set(Word::LastActivity, now as u64);
        self.raise_accepted(ledger.accepted);
        self.publish();
    }

    /// Sets the phase until the answer is dropped.
    pub(crate) fn enter(&self, phase: Phase) -> InPhase<'_> {
        self.inside.fetch_add(1, Ordering::AcqRel);
        self.set_phase(phase);
        InPhase { page: self }
    }

    /// The store was opened: earlier deaths no longer count.
    pub(crate) fn forget_deaths(&self) {
        self.set(Word::Deaths, 0);
    }

    /// The owner ends in good order.
    pub(crate) fn mark_clean_exit(&self) {
        self.set(Word::CleanExit, 1);
        self.end_life();
        self.publish();
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.set(Word::Phase, phase as u64);
        self.publish();
    }

    /// Writes the words out where they are not mapped. A failure leaves the mirror behind, which it may be.
    pub(crate) fn publish(&self) {
        if let Some(file) = &self.file {
            self.write_out(&file.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The same, unless another thread is at it for longer than that.
    pub(super) fn publish_within(&self, most: Duration) {
        if let Some(file) = self.file.as_ref().and_then(|file| lock_within(file, most)) {
            self.write_out(&file);
        }
    }

    /// The file is locked, so that nobody writes words that he has read before.
    fn write_out(&self, file: &DiskFile) {
        if self.is_let_go.load(Ordering::Acquire) {
            return;
        }
        let _ = file.write_all_at(0, &self.words.read(0, STATUS_BYTES));
    }

    /// When the oldest event in the store was checkpointed, as [`mirror`](Self::mirror) was told last.
    pub(crate) fn oldest_at(&self) -> Option<WallNanos> {
        Some(self.get(Word::OldestAt) as WallNanos).filter(|at| *at != 0)
    }

    pub(super) fn get(&self, word: Word) -> u64 {
        self.word(word as usize).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, word: Word, value: u64) {
        if self.is_let_go.load(Ordering::Acquire) {
            return;
        }
        self.store(word, value);
    }

    #[inline]
    fn store(&self, word: Word, value: u64) {
        if let Some(word) = self.word(word as usize) {
            word.store(value, Ordering::Relaxed);
        }
    }

    pub(super) fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.words.word64(index * size_of::<u64>())
    }
}

/// Ends a phase when dropped, also by an unwinding panic: that one was caught, so the process did not die of it.
#[derive(Debug)]
pub(crate) struct InPhase<'a> {
    page: &'a StatusPage,
}

impl Drop for InPhase<'_> {
    fn drop(&mut self) {
        // The last one out.
        if self.page.inside.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.page.set_phase(Phase::Quiet);
        }
    }
}
