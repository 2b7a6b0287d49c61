//! The status page: one page of words that any process may read at any time, without a lock.
//!
//! The owner writes the page; readers treat it as a mirror that may lag. Two entries are more than a mirror. The
//! *phase* says whether the owner is inside a call of the store: if the next owner finds it set, the last one died
//! there. The count of accepted records, written with each record, shows after a power cut how many there were. The
//! words about the run of the owner are in `run.rs`.
//!
//! What is believed of a page is in `page_check.rs`.
//!
//! The version is stored twice, the second time inverted. A newer version is believed only if both agree, because one
//! flipped bit must not make a queue look like one that this library may not touch.
//!
//! **Opening mark.** An owner that dies while it opens the store is counted, because it may have died of the file:
//! after [`DEATHS_MAX`] of them the file is no longer trusted. A process that exits, or gives up because opening takes
//! too long, did not die of the file; [`OpeningMark`] resets the phase for it.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::owner_page::OwnerPage;
#[cfg(any(test, feature = "inspect"))]
use super::owner_words::OwnerWords;
use super::page_check::Trust;
use super::run::RunRecord;
use super::store::Ledger;
use crate::sys::clock::WallNanos;
use crate::sys::disk::fork::lock_within;
use crate::sys::disk::{Disk, DiskFile, Mapping, Open};

/// Size of the file.
pub(crate) const STATUS_BYTES: usize = 4096;
/// The number of counters that the caller can mirror.
pub(crate) const REASONS_MAX: usize = 64;
const MAGIC: u64 = u64::from_le_bytes(*b"\x89PHS\r\n\x1a\n");
const VERSION: u64 = 1;
/// No journal reaches this epoch: at a thousand rounds a second it would take nine thousand years. A page of an older
/// library has no check, and a damaged epoch near the highest number would leave no room for another round.
const EPOCH_MAX: u64 = 1 << 48;
/// After this many owners in a row died while opening the store, its file is no longer trusted.
pub(crate) const DEATHS_MAX: u64 = 3;

/// How often a page that seems damaged is read before that is believed: its owner may be writing it. That takes
/// nanoseconds, unless the owner is preempted between two words.
const READS: u32 = 4;
const BETWEEN_READS: Duration = Duration::from_millis(1);

/// How long releasing the queue waits for calls of other threads.
const LEAVING_WAIT: Duration = Duration::from_millis(100);

/// What the owner is doing, as far as the next owner needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing that can leave a damaged store.
    Quiet = 0,
    Opening = 1,
    /// Inside a call of the open store; or the last owner died in one and the file has not been checked since.
    Store = 2,
}

/// What the last owner left on the page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Predecessor {
    /// Whether there was one.
    pub(crate) existed: bool,
    /// Whether its words do not match their check. Then nothing is known of its ledger, epoch and deaths, and `accepted`
    /// may be too low.
    pub(crate) is_damaged: bool,
    /// Whether it closed the queue.
    pub(crate) clean: bool,
    /// The store as it closed it: see [`store::seal_of`](super::store::seal_of).
    pub(crate) closed_store: Option<u64>,
    /// Whether it died inside the store.
    pub(crate) died_in_store: bool,
    /// The task that it died in: see [`Queue::mark_task`](super::Queue::mark_task).
    pub(crate) died_in_task: Option<u64>,
    /// Number of owners in a row that died while opening the store, including this one.
    pub(crate) deaths_opening: u64,
    /// Whether the machine has been up since.
    pub(crate) same_boot: bool,
    /// The highest sequence number that it accepted.
    pub(crate) accepted: u64,
    /// The highest epoch that it used.
    pub(crate) epoch: u64,
    /// Its last ledger, if that balances.
    pub(crate) ledger: Option<Ledger>,
    /// When the oldest event in its store was checkpointed.
    pub(crate) oldest_at: Option<WallNanos>,
    /// Its process, and when it took the queue over, in nanoseconds since the epoch.
    pub(crate) pid: u64,
    pub(crate) started_at: u64,
    /// When it last committed something.
    pub(crate) active_at: WallNanos,
    /// The last run of an owner that had the queue as its own.
    pub(crate) run: Option<RunRecord>,
}

/// What a page says to a process that does not own the shard.
#[cfg(any(test, feature = "inspect"))]
#[derive(Clone, Debug)]
pub(crate) struct PageContent {
    /// The last owner, which may be alive.
    pub(crate) last: Predecessor,
    /// The counters of the caller.
    pub(crate) counters: Vec<u64>,
    /// What the last owner says of itself.
    pub(crate) owner: Option<OwnerWords>,
    /// Whether words do not match their check: those about the queue, or those of the owner about itself.
    pub(crate) is_damaged: bool,
}

impl Predecessor {
    /// Events that it left, including those in the journal.
    pub(crate) fn queued_events(&self) -> u64 {
        let ledger = self.ledger.unwrap_or_default();
        ledger.queued_events.saturating_add(self.accepted.saturating_sub(ledger.accepted))
    }
}

/// The status page of this owner. See the module.
#[derive(Debug)]
pub(crate) struct StatusPage {
    words: Mapping,
    /// Where mapping is not safe, the words are in memory and are written to the file by position.
    file: Option<Mutex<DiskFile>>,
    /// Whether the owner has adopted the queue.
    pub(super) adopts: bool,
    /// When this owner took the page over.
    pub(super) started_at: u64,
    /// The number of calls inside a phase: the committer's, and occasionally one of a reader.
    inside: AtomicU64,
    /// Whether the page may belong to another owner: nothing is written to it any more.
    is_released: AtomicBool,
    /// A further page, if the layer above asked for one. Released together with this one.
    pub(super) owner_page: OnceLock<Arc<OwnerPage>>,
}

impl StatusPage {
    /// The name of its file in the shard's directory.
    pub(super) const FILE: &str = "status";

    /// Takes the page over, and creates it if it is missing. The lock of the shard must be held. An owner that only
    /// `adopts` the queue preserves the run record for the next owner that does not.
    pub(crate) fn take_over(
        disk: &Disk,
        path: &Path,
        map: bool,
        adopts: bool,
        now: WallNanos,
    ) -> io::Result<(Self, Predecessor)> {
        let file = disk.open(path, Open::EnsureExists)?;
        if file.len()? < STATUS_BYTES as u64 {
            // Every block is written, so that no later store into the mapping needs a new one.
            file.write_zeros(0, STATUS_BYTES as u64)?;
        }
        // The page may have been restored without its zeros. If there is no space for them, it is written by position.
        let map = map && file.fill_holes(STATUS_BYTES as u64).is_ok();
        let words = if map { file.map(STATUS_BYTES)? } else { copy_of(&file)? };
        let mut page = Self { adopts, started_at: now as u64, ..Self::of_words(words) };
        let boot_id = disk.boot_id();
        let predecessor = page.predecessor(boot_id);
        page.begin(&predecessor, boot_id, now);
        // Synced at once: after a power cut the page must be about this run, not about the one before. If that fails,
        // the page lags, which is allowed.
        if map {
            let _ = file.sync_mapped(&page.words, STATUS_BYTES);
        } else {
            page.write_out(&file);
            let _ = file.sync_data();
            page.file = Some(Mutex::new(file));
        }
        Ok((page, predecessor))
    }

    /// The version of a page that a newer library wrote. Every version keeps the magic number and both version words in
    /// place.
    pub(crate) fn newer_version(disk: &Disk, path: &Path) -> io::Result<Option<u64>> {
        if !disk.exists(path)? {
            return Ok(None);
        }
        let file = disk.open(path, Open::ReadOnly)?;
        let word = |word| read_word(&file, word);
        let read = || io::Result::Ok((word(Word::Magic)?, word(Word::Version)?, word(Word::VersionAgain)?));
        match read() {
            Ok((MAGIC, version, again)) if version > VERSION && again == !version => Ok(Some(version)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A page in memory only, for a queue without files.
    pub(crate) fn volatile() -> io::Result<Self> {
        Ok(Self::of_words(Mapping::anonymous(STATUS_BYTES)?))
    }

    fn of_words(words: Mapping) -> Self {
        let (inside, is_released) = (AtomicU64::new(0), AtomicBool::new(false));
        let owner_page = OnceLock::new();
        Self { words, file: None, adopts: false, started_at: 0, inside, is_released, owner_page }
    }

    /// The queue is released: later calls write nothing.
    pub(super) fn release(&self) {
        // A call of another thread that is inside a phase finds the store closed and returns in a moment.
        let deadline = Instant::now() + LEAVING_WAIT;
        while self.inside.load(Ordering::Acquire) != 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.is_released.store(true, Ordering::Release);
        if let Some(page) = self.owner_page.get() {
            page.release();
        }
    }

    /// Reads the page of any shard. `None` if it cannot be read or is not a status page.
    pub(crate) fn peek(disk: &Disk, shard_dir: &Path) -> Option<Predecessor> {
        let file = disk.open(&shard_dir.join(Self::FILE), Open::ReadOnly).ok()?;
        let found = Self::read(&file).ok()?.predecessor(disk.boot_id());
        found.existed.then_some(found)
    }

    /// Reads the page of any shard. `None` if there is none, or if it is not a status page of this version.
    #[cfg(any(test, feature = "inspect"))]
    pub(crate) fn content(disk: &Disk, shard_dir: &Path) -> io::Result<Option<PageContent>> {
        let path = shard_dir.join(Self::FILE);
        if !disk.exists(&path)? {
            return Ok(None);
        }
        let page = match Self::read(&disk.open(&path, Open::ReadOnly)?) {
            Ok(page) => page,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let last = page.predecessor(disk.boot_id());
        let counter =
            |reason| page.word(Word::Counters as usize + reason).map_or(0, |word| word.load(Ordering::Relaxed));
        let counters = (0..REASONS_MAX).map(counter).collect();
        let owner = page.owner_words();
        let is_damaged = last.is_damaged || !page.owner_words_are_whole();
        Ok(last.existed.then_some(PageContent { last, counters, owner, is_damaged }))
    }

    /// A copy of the page in a file that its owner may be writing.
    fn read(file: &DiskFile) -> io::Result<Self> {
        let mut page = Self::of_words(copy_of(file)?);
        for _ in 1..READS {
            if page.trust() != Trust::Damaged && page.owner_words_are_whole() {
                break;
            }
            std::thread::sleep(BETWEEN_READS);
            let again = Self::of_words(copy_of(file)?);
            let goes_on = again.is_counting() && again.get(Word::Accepted) != page.get(Word::Accepted);
            page = if goes_on { again.settle() } else { again };
        }
        Ok(page)
    }

    /// Whether the page at `path` still names this owner as the last. An owner that takes the queue over makes a page
    /// where there is none, so a missing page means that no process did.
    pub(super) fn names_this_owner(&self, disk: &Disk, path: &Path) -> io::Result<bool> {
        if !disk.exists(path)? {
            return Ok(true);
        }
        let page = Self::of_words(copy_of(&disk.open(path, Open::ReadOnly)?)?);
        // The start time is in nanoseconds, so no two owners have the same, even if they have the same process id.
        Ok(page.get(Word::Pid) == u64::from(std::process::id()) && page.get(Word::StartedAt) == self.started_at)
    }

    fn predecessor(&self, now_booted: u128) -> Predecessor {
        if self.get(Word::Magic) != MAGIC || self.get(Word::Version) != VERSION {
            return Predecessor::default();
        }
        let (phase, trust) = (self.get(Word::Phase), self.trust());
        let is_believed = trust != Trust::Damaged;
        let ledger = Ledger::of_words(LEDGER.map(|word| self.get(word)));
        let (task, run) = (self.get(Word::Task), self.run(now_booted));
        let boot_id = u128::from(self.get(Word::BootIdHigh)) << 64 | u128::from(self.get(Word::BootIdLow));
        // An owner that exited did not die of its task, nor did one that was running when the machine went down.
        let died_of_another =
            self.get(Word::CleanExit) == 1 || boot_id != now_booted || run.is_some_and(|run| run.exit.is_some());
        Predecessor {
            existed: true,
            is_damaged: !is_believed,
            clean: self.get(Word::CleanExit) == 1,
            closed_store: Some(self.get(Word::ClosedStore)).filter(|hash| *hash != 0 && trust == Trust::Whole),
            died_in_store: phase != Phase::Quiet as u64,
            deaths_opening: deaths_after(phase, if is_believed { self.get(Word::Deaths) } else { 0 }),
            same_boot: boot_id == now_booted,
            pid: self.get(Word::Pid),
            started_at: self.get(Word::StartedAt),
            active_at: self.get(Word::LastActivity) as WallNanos,
            accepted: self.believed_accepted(trust),
            epoch: Some(self.get(Word::Epoch)).filter(|epoch| is_believed && *epoch <= EPOCH_MAX).unwrap_or(0),
            ledger: (is_believed && ledger.imbalance() == 0).then_some(ledger),
            oldest_at: self.oldest_at().filter(|_| is_believed),
            died_in_task: Some(task).filter(|build| *build != 0 && !died_of_another),
            run,
        }
    }

    fn begin(&self, predecessor: &Predecessor, boot_id: u128, now: WallNanos) {
        if !predecessor.existed {
            // Whatever the words were, nobody wrote them about this queue.
            (0..STATUS_BYTES / size_of::<u64>())
                .filter_map(|index| self.word(index))
                .for_each(|word| word.store(0, Ordering::Relaxed));
        }
        if predecessor.is_damaged {
            LEDGER.into_iter().chain([Word::Epoch, Word::OldestAt]).for_each(|word| self.set(word, 0));
        }
        // Until the end of this, the words are taken as they are: each of them is right, and the owner may die in between.
        // So the damaged ones are gone before. A death of the process keeps the order of the program; only the compiler
        // could change it.
        compiler_fence(Ordering::Release);
        self.set(Word::CheckKept, 0);
        compiler_fence(Ordering::Release);
        self.set_accepted(predecessor.accepted);
        self.set(Word::ClosedStore, 0);
        // A check that is due stays due until the store is open.
        let phase = if predecessor.died_in_store { Phase::Store } else { Phase::Quiet };
        self.set(Word::Phase, phase as u64);
        self.set(Word::Deaths, predecessor.deaths_opening);
        self.set(Word::Pid, u64::from(std::process::id()));
        self.set(Word::StartedAt, now as u64);
        self.set(Word::LastActivity, now as u64);
        self.set(Word::BootIdHigh, (boot_id >> 64) as u64);
        self.set(Word::BootIdLow, boot_id as u64);
        self.set(Word::Version, VERSION);
        self.set(Word::VersionAgain, !VERSION);
        self.set(Word::Magic, MAGIC);
        self.begin_run(predecessor.run.as_ref(), boot_id, now);
        self.seal();
        compiler_fence(Ordering::Release);
        self.set(Word::CheckKept, now as u64);
        // An owner that adopts marks its tasks on the page of its own queue.
        if let Some(build) = predecessor.died_in_task {
            self.remember_fatal_task(build);
        }
        if !self.adopts || predecessor.died_in_task.is_some() {
            self.set(Word::Task, 0);
        }
    }

    /// A record was appended; called in the order of sequence numbers.
    #[inline]
    pub(crate) fn took(&self, seq: u64) {
        // A plain store: with any stronger operation, two processors that take turns would wait for each other. It
        // happens under the journal's lock, and a closed journal takes nothing, so the page is ours.
        self.store(Word::Accepted, seq);
        // Costs no instruction: a killed process leaves the words in the order of its stores.
        compiler_fence(Ordering::Release);
        // Again, for the reader that has to know whether to believe it: see `page_check.rs`. In the same line of the cache.
        self.store(Word::CleanExit, !seq);
    }

    /// Raises the count of accepted records to at least `seq`.
    fn raise_accepted(&self, seq: u64) {
        if self.is_released.load(Ordering::Acquire) {
            return;
        }
        if let Some(word) = self.word(Word::Accepted as usize) {
            // Never lowers it: callers go on appending while the committer mirrors what it has stored.
            word.fetch_max(seq, Ordering::Relaxed);
        }
        if let Some(word) = self.word(Word::CleanExit as usize) {
            word.fetch_min(!seq, Ordering::Relaxed);
        }
    }

    /// Mirrors counters of the caller.
    pub(crate) fn mirror_counters(&self, counts: &[u64]) {
        for (reason, count) in counts.iter().take(REASONS_MAX).enumerate() {
            if let Some(word) = self.word(Word::Counters as usize + reason) {
                word.store(*count, Ordering::Relaxed);
            }
        }
    }

    /// Mirrors the ledger after a commit.
    pub(crate) fn mirror(&self, ledger: &Ledger, epoch: u64, oldest_at: Option<WallNanos>, now: WallNanos) {
        for (word, value) in LEDGER.into_iter().zip(ledger.words()) {
            self.set(word, value);
        }
        self.set(Word::Epoch, epoch);
        self.set(Word::OldestAt, oldest_at.unwrap_or(0) as u64);
        self.set(Word::LastActivity, now as u64);
        self.seal();
        self.raise_accepted(ledger.accepted);
        self.publish();
    }

    /// Sets the phase until the guard is dropped.
    pub(crate) fn enter(&self, phase: Phase) -> PhaseGuard<'_> {
        self.inside.fetch_add(1, Ordering::AcqRel);
        self.set_phase(phase);
        PhaseGuard { page: self }
    }

    /// The store was opened: earlier deaths no longer count.
    pub(crate) fn forget_deaths(&self) {
        self.set(Word::Deaths, 0);
        self.seal();
    }

    /// The store could not be opened: a check that was due stays due.
    pub(super) fn leave_unopened(&self, before: &Predecessor) {
        if before.died_in_store {
            self.set_phase(Phase::Store);
        }
    }

    /// This process has another queue of its own, whose page holds its run record.
    pub(super) fn become_adopted(&mut self) {
        if !std::mem::replace(&mut self.adopts, true) {
            self.set(Word::RunPid, 0);
            self.publish();
        }
    }

    /// The owner closes the queue. `store` identifies the state of its store's file; `None` if that is not known.
    pub(crate) fn mark_clean_exit(&self, store: Option<u64>) {
        self.set(Word::ClosedStore, store.unwrap_or(0));
        self.set(Word::CleanExit, 1);
        self.seal();
        if !self.adopts {
            self.set(Word::Closed, 1);
        }
        self.publish();
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.set(Word::Phase, phase as u64);
        self.publish();
    }

    /// Writes the words to the file where they are not mapped. After a failure the page lags, which is allowed.
    pub(crate) fn publish(&self) {
        if let Some(file) = &self.file {
            self.write_out(&file.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Like [`publish`](Self::publish), unless another thread holds the file for longer than `most`.
    pub(super) fn publish_within(&self, most: Duration) {
        if let Some(file) = self.file.as_ref().and_then(|file| lock_within(file, most)) {
            self.write_out(&file);
        }
    }

    /// The caller holds the file's lock, so that no thread overwrites newer words with older ones.
    fn write_out(&self, file: &DiskFile) {
        if self.is_released.load(Ordering::Acquire) {
            return;
        }
        let _ = file.write_all_at(0, &self.settled(self.words.read(0, STATUS_BYTES)));
    }

    /// When the oldest record in the store was checkpointed, as of the last [`mirror`](Self::mirror).
    pub(crate) fn oldest_at(&self) -> Option<WallNanos> {
        Some(self.get(Word::OldestAt) as WallNanos).filter(|at| *at != 0)
    }

    pub(super) fn get(&self, word: Word) -> u64 {
        self.word(word as usize).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, word: Word, value: u64) {
        if self.is_released.load(Ordering::Acquire) {
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

/// Ends the phase when dropped. A panic that unwinds ends it too: it is caught, so the process does not die of it.
#[derive(Debug)]
pub(crate) struct PhaseGuard<'a> {
    page: &'a StatusPage,
}

impl Drop for PhaseGuard<'_> {
    fn drop(&mut self) {
        // Only the last guard resets the phase.
        if self.page.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.page.set_phase(Phase::Quiet);
            // Another thread may have entered in between, and its phase was overwritten.
            if self.page.inside.load(Ordering::SeqCst) > 0 {
                self.page.set_phase(Phase::Store);
            }
        }
    }
}

/// The words of the page by index. `docs/format.md` describes them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Word {
    Magic = 0,
    Version = 1,
    Pid = 2,
    StartedAt = 3,
    BootIdHigh = 4,
    BootIdLow = 5,
    LastActivity = 6,
    Phase = 7,
    /// 1 once the owner has closed the queue. Until then the inverted count of accepted records, which is never 1.
    CleanExit = 8,
    Deaths = 9,
    Epoch = 10,
    Accepted = 11,
    Delivered = 12,
    DeadLettered = 13,
    Evicted = 14,
    Damaged = 15,
    LostUnsynced = 16,
    QueuedEvents = 17,
    QueuedBytes = 18,
    CheckpointedUpTo = 19,
    OldestAt = 20,
    VersionAgain = 21,
    // From here on: see `run.rs`.
    RunKept = 22,
    RunPid = 23,
    RunStartedAt = 24,
    RunBootHigh = 25,
    RunBootLow = 26,
    SeenAt = 27,
    AliveFor = 28,
    Watches = 29,
    Closed = 30,
    Ended = 31,
    DyingOf = 32,
    OomPath = 33,
    OomInode = 34,
    OomKills = 35,
    /// The task that the owner is in; 0 for none.
    Task = 36,
    /// The newest epoch that existed when the machine had been restarted. Epochs rise, so the word stays true under any
    /// later owner.
    EpochAtRestart = 37,
    /// The tasks that owners died in, the newest first, in eight words; 0 where there are no more.
    FatalTasks = 38,
    // See `page_check.rs`.
    CheckKept = 46,
    Check = 47,
    /// The store as the last owner closed it; 0 if that is not known.
    ClosedStore = 48,
    Counters = 64,
}

/// The words that mirror the ledger, in the order of [`Ledger::words`].
const LEDGER: [Word; 8] = [
    Word::CheckpointedUpTo,
    Word::Delivered,
    Word::DeadLettered,
    Word::Evicted,
    Word::Damaged,
    Word::LostUnsynced,
    Word::QueuedEvents,
    Word::QueuedBytes,
];

/// The opening phase of a queue whose store is not open yet.
#[derive(Debug)]
pub(crate) struct OpeningMark {
    file: DiskFile,
    /// Mapped where the owner's page is mapped, so that resetting the phase needs no call to a disk that may hang.
    words: Option<Mapping>,
    /// The phase before: whether a check of the store was due.
    before: Phase,
}

impl OpeningMark {
    /// For a shard that this process has claimed and is about to open. `None` if it has no readable page yet.
    pub(crate) fn of(disk: &Disk, shard_dir: &Path) -> Option<Self> {
        let path = shard_dir.join(StatusPage::FILE);
        if !disk.exists(&path).ok()? {
            return None;
        }
        let file = disk.open(&path, Open::Existing).ok()?;
        if file.len().ok()? < STATUS_BYTES as u64 {
            return None;
        }
        let is_mapped = disk.file_system(shard_dir).ok()?.may_map();
        let words = if is_mapped { Some(file.map(STATUS_BYTES).ok()?) } else { None };
        let mark = Self { file, words, before: Phase::Quiet };
        let before = if mark.phase()? == Phase::Quiet as u64 { Phase::Quiet } else { Phase::Store };
        Some(Self { before, ..mark })
    }

    /// The opening is given up, or goes on with no caller waiting for it. If the process ends now, it did not die of
    /// the opening.
    pub(crate) fn give_up(&self) {
        let (opening, before) = (Phase::Opening as u64, self.before as u64);
        if let Some(word) = self.word() {
            let _ = word.compare_exchange(opening, before, Ordering::Relaxed, Ordering::Relaxed);
        } else if self.phase() == Some(opening) {
            // If this write fails, the end counts as a death. Fewer than three of them cost nothing but time.
            let _ = self.file.write_all_at(at(Word::Phase), &before.to_le_bytes());
        }
    }

    fn phase(&self) -> Option<u64> {
        if let Some(word) = self.word() {
            return Some(word.load(Ordering::Relaxed));
        }
        read_word(&self.file, Word::Phase).ok()
    }

    fn word(&self) -> Option<&AtomicU64> {
        self.words.as_ref()?.word64(Word::Phase as usize * size_of::<u64>())
    }
}

fn at(word: Word) -> u64 {
    (word as usize * size_of::<u64>()) as u64
}

fn read_word(file: &DiskFile, word: Word) -> io::Result<u64> {
    let mut bytes = [0; size_of::<u64>()];
    file.read_exact_at(at(word), &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The words of a page's file, in memory.
fn copy_of(file: &DiskFile) -> io::Result<Mapping> {
    let mut bytes = vec![0; STATUS_BYTES];
    file.read_exact_at(0, &mut bytes)?;
    let words = Mapping::anonymous(STATUS_BYTES)?;
    if words.write(0, &bytes) { Ok(words) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// The number of owners in a row that died while opening the store, from the phase that the last one left and the count
/// before it.
pub(super) fn deaths_after(phase: u64, deaths: u64) -> u64 {
    match phase {
        phase if phase == Phase::Quiet as u64 => 0,
        phase if phase == Phase::Opening as u64 => deaths.saturating_add(1),
        // An owner that gave the opening up adds nothing, and one that has opened the store leaves 0.
        _ => deaths,
    }
}
