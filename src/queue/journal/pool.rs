//! The arenas that take no records: free ones, and sealed ones that wait to be checkpointed.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::arena::{Arena, HEADER_BYTES, Header, Round};
use super::replay::{self, Replay};
use crate::queue::error::QueueError;
use crate::queue::frame::FRAME_HEAD;
use crate::sys::crash_point;
use crate::sys::disk::{Disk, Home};
use crate::sys::entropy;
use crate::sys::sync::{AtomicBool, Mutex, MutexGuard};

/// The most arenas of one journal.
pub(crate) const ARENAS_MAX: usize = 4;

/// How a journal is opened.
#[derive(Clone, Debug)]
pub(crate) struct JournalOptions {
    /// The directory of the arenas; `None` keeps them in memory only.
    pub(crate) dir: Option<PathBuf>,
    /// Whether a mapping may be written without risk of a fault (see `disk::FileSystem::may_map`).
    pub(crate) map: bool,
    pub(crate) arena_bytes: usize,
    /// How long an append may wait for the lock.
    pub(crate) lock_wait: Duration,
}

/// A sealed arena, which waits to be checkpointed.
#[derive(Clone, Debug)]
pub(crate) struct SealedArena {
    pub(super) arena: Arc<Arena>,
    pub(crate) round: Round,
    /// Where its last frame ends, as far as this process knows.
    pub(super) end: usize,
    /// The sequence number of its last record; `None` if that is not known yet.
    pub(crate) last_seq: Option<u64>,
    /// Records in it, as far as this process knows.
    pub(super) records: u64,
    /// An upper bound of what its records take in the store.
    pub(crate) cost: u64,
    pub(super) synced: bool,
}

/// The arenas of a journal that take no records. Nothing can be appended before [`Pool::start`] makes a journal of it.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(super) options: JournalOptions,
    disk: Disk,
    /// The identity of the directory when the journal was opened; `None` in memory.
    home: Option<Home>,
    /// Whether the directory was deleted: names in it are no longer ours, and further arenas are in memory.
    unlinked: AtomicBool,
    arenas: Mutex<Arenas>,
    /// The highest epoch that was found on disk.
    pub(crate) epoch_max: u64,
    /// The highest sequence number that the rounds found on disk prove to be taken: the one before the newest round's
    /// first. A round that has begun may have no record yet.
    pub(crate) taken_until: u64,
    /// The new paths of files that were foreign or damaged and were renamed, and what was wrong with them.
    pub(crate) damaged_files: Vec<(PathBuf, &'static str)>,
}

#[derive(Debug, Default)]
struct Arenas {
    free: Vec<Arc<Arena>>,
    sealed: VecDeque<SealedArena>,
    /// Whether there is an arena for each index.
    taken: [bool; ARENAS_MAX],
}

impl SealedArena {
    /// Reads and checks its records.
    pub(crate) fn replay(&self) -> io::Result<Replay> {
        // Where the arena of another process ends is not known. Most of it is empty, and reading all of it takes longer
        // than the rest of an open. So it is read as far as it appears used, and as a whole only if records are
        // missing.
        let likely_end = if self.records > 0 { self.end } else { self.arena.likely_end(self.end)? };
        let replay = replay::replay(self.arena.read_frames(likely_end)?, &self.round, self.last_seq);
        let first_missing = replay.last_seq().map_or(self.round.first_seq, |last| last.saturating_add(1));
        if likely_end == self.end || self.last_seq.is_none_or(|last| first_missing > last) {
            return Ok(replay);
        }
        Ok(replay::replay(self.arena.read_frames(self.end)?, &self.round, self.last_seq))
    }
}

impl Pool {
    /// Opens the files. Arenas that are not free become sealed ones.
    pub(crate) fn open(disk: &Disk, options: JournalOptions) -> Result<Self, QueueError> {
        let home = options
            .dir
            .as_ref()
            .map(|dir| Home::of(dir).map_err(|source| QueueError::JournalFile { path: dir.clone(), source }));
        let home = home.transpose()?;
        let (mut arenas, mut damaged_files) = (Arenas::default(), Vec::new());
        for index in 0..ARENAS_MAX {
            let Some(path) = file_path(&options, index) else { break };
            let failed = |source| QueueError::JournalFile { path: path.clone(), source };
            if disk.exists(&path).map_err(failed)? {
                damaged_files.extend(arenas.admit(disk, &path, index, &options)?);
            }
        }
        arenas.sealed.make_contiguous().sort_by_key(|sealed| sealed.round.epoch);
        let rounds = || arenas.sealed.iter().map(|sealed| sealed.round);
        Ok(Self {
            epoch_max: rounds().map(|round| round.epoch).max().unwrap_or(0),
            taken_until: rounds().map(|round| round.first_seq).max().unwrap_or(0).saturating_sub(1),
            damaged_files,
            disk: disk.clone(),
            home,
            unlinked: AtomicBool::new(options.dir.is_none()),
            options,
            arenas: Mutex::new(arenas),
        })
    }

    /// Sets how far the records of each recovered arena must reach: to the beginning of the next round, and in the
    /// newest arena to `seq`.
    pub(crate) fn expect_last_seq(&self, seq: u64) {
        let mut arenas = self.lock();
        let mut last = seq;
        for sealed in arenas.sealed.iter_mut().rev() {
            let expected = last.max(sealed.round.first_seq.saturating_sub(1));
            sealed.last_seq.get_or_insert(expected);
            last = sealed.round.first_seq.saturating_sub(1);
        }
    }

    /// Takes a free arena. Creates one if there is none and the limit allows.
    pub(super) fn take_free(&self) -> Result<Option<Arc<Arena>>, QueueError> {
        let index = {
            let mut arenas = self.lock();
            if let Some(arena) = arenas.free.pop() {
                return Ok(Some(arena));
            }
            match arenas.taken.iter().position(|taken| !taken) {
                Some(index) => index,
                None => return Ok(None),
            }
        };
        let bytes = self.options.arena_bytes;
        let arena = match file_path(&self.options, index).filter(|_| !self.is_unlinked()) {
            None => Arena::volatile(index, bytes).map_err(|source| QueueError::NoMemory { bytes, source })?,
            Some(path) => self
                .check_home()
                .and_then(|()| Arena::create(&self.disk, &path, index, bytes, self.options.map))
                .and_then(|arena| {
                    path.parent().map_or(Ok(()), |dir| self.disk.sync_dir(dir))?;
                    Ok(arena)
                })
                .map_err(|source| QueueError::JournalFile { path, source })?,
        };
        self.lock().mark(index, true);
        Ok(Some(Arc::new(arena)))
    }

    /// Puts an arena back to the free ones. The file of one that is condemned or has another size than configured is
    /// removed instead.
    pub(super) fn give_back(&self, arena: Arc<Arena>) {
        let is_wanted = !arena.is_condemned() && arena.len() == self.options.arena_bytes;
        // If the directory is not ours any more, the name may belong to another file. In a directory that is out of
        // reach the file stays; it is free, and made anew when its index is needed.
        let names_nothing = || self.is_unlinked() || self.check_home().is_err();
        if !is_wanted && (names_nothing() || self.disk.remove_file(&arena.path).is_ok()) {
            self.lock().mark(arena.index, false);
            return;
        }
        self.lock().free.push(arena);
    }

    /// Takes a free arena, if there is one.
    pub(super) fn pop_free(&self) -> Option<Arc<Arena>> {
        self.lock().free.pop()
    }

    pub(super) fn become_unlinked(&self) {
        self.unlinked.store(true, Ordering::Release);
    }

    /// Checks that the directory is where it was: only there are names ours.
    fn check_home(&self) -> io::Result<()> {
        self.home.as_ref().map_or(Ok(()), Home::check)
    }

    fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Acquire)
    }

    /// Whether all of them have lost their names.
    pub(super) fn are_unlinked(&self) -> bool {
        let arenas = self.lock();
        let sealed = arenas.sealed.iter().map(|sealed| &sealed.arena);
        arenas.free.iter().chain(sealed).all(|arena| arena.is_unlinked())
    }

    pub(super) fn has_free(&self) -> bool {
        !self.lock().free.is_empty()
    }

    pub(super) fn push_sealed(&self, sealed: SealedArena) {
        self.lock().sealed.push_back(sealed);
    }

    /// The sealed arena to be checkpointed next.
    pub(crate) fn oldest_sealed(&self) -> Option<SealedArena> {
        self.lock().sealed.front().cloned()
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn all_sealed(&self) -> Vec<SealedArena> {
        self.lock().sealed.iter().cloned().collect()
    }

    /// Frees the oldest sealed arena, which was checkpointed: it never replays again.
    pub(crate) fn free_oldest(&self) {
        let Some(sealed) = self.lock().sealed.pop_front() else { return };
        // The next round will probably need as much and half as much again. How far a recovered arena was used is not
        // known.
        sealed.arena.mark_free(if sealed.records > 0 { sealed.end + sealed.end / 2 } else { HEADER_BYTES });
        crash_point::reach("journal.freed");
        self.give_back(sealed.arena);
    }

    /// The highest sequence number of any record in the sealed arenas.
    pub(crate) fn last_seq_taken(&self) -> u64 {
        let ends = self.lock().sealed.clone().into_iter().map(|sealed| {
            let found = match sealed.replay() {
                Ok(replay) => replay.last_seq().unwrap_or(0),
                // As many as could fit. Numbers that did not exist will be counted as missing, but no number is given
                // twice.
                Err(_) => {
                    let room = (sealed.arena.len().saturating_sub(HEADER_BYTES) / FRAME_HEAD) as u64;
                    sealed.round.first_seq.saturating_add(room)
                }
            };
            found.max(sealed.last_seq.unwrap_or(0))
        });
        ends.max().unwrap_or(0)
    }

    /// Bytes, records (as far as this process knows) and cost of all sealed arenas together.
    pub(super) fn sealed_size(&self) -> (u64, u64, u64) {
        self.lock().sealed.iter().fold((0, 0, 0), |(bytes, records, cost), sealed| {
            let end = sealed.end.saturating_sub(HEADER_BYTES) as u64;
            (bytes + end, records + sealed.records, cost.saturating_add(sealed.cost))
        })
    }

    /// Syncs each sealed arena that was not synced yet.
    pub(super) fn sync_sealed(&self) -> io::Result<()> {
        let waiting: Vec<_> = self.lock().sealed.iter().filter(|sealed| !sealed.synced).cloned().collect();
        for sealed in waiting {
            sealed.arena.sync(sealed.end.saturating_add(size_of::<u64>()))?;
            let mut arenas = self.lock();
            if let Some(known) = arenas.sealed.iter_mut().find(|known| known.round.epoch == sealed.round.epoch) {
                known.synced = true;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Arenas> {
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arenas {
    /// Classifies an existing file. Returns the new path of one that was renamed, and why.
    fn admit(
        &mut self,
        disk: &Disk,
        path: &Path,
        index: usize,
        options: &JournalOptions,
    ) -> Result<Option<(PathBuf, &'static str)>, QueueError> {
        let failed = |source| QueueError::JournalFile { path: path.to_path_buf(), source };
        let (header, arena) = Arena::open(disk, path, index, options.map).map_err(failed)?;
        let why = match (header, arena) {
            (Header::Newer(version), _) => return Err(QueueError::JournalNewer { path: path.to_path_buf(), version }),
            (Header::Free, Some(arena)) if arena.len() == options.arena_bytes => {
                self.mark(index, true);
                self.free.push(Arc::new(arena));
                return Ok(None);
            }
            (Header::InUse(round), Some(arena)) => {
                self.mark(index, true);
                let end = arena.len();
                let (arena, last_seq) = (Arc::new(arena), None);
                // Another process left it: it may be full.
                let cost = end as u64;
                self.sealed.push_back(SealedArena { arena, round, end, last_seq, records: 0, cost, synced: false });
                return Ok(None);
            }
            // It is empty, or of a size that is not configured any more: made anew when one is needed.
            (Header::Blank | Header::Free, _) => return disk.remove_file(path).map(|()| None).map_err(failed),
            (Header::Damaged, _) | (Header::InUse(_), None) => "its header is damaged",
            (Header::Foreign, _) => "it is not a journal of this library",
        };
        // Never overwritten: an operator may want to examine it.
        let aside = path.with_file_name(format!("damaged-journal-{index}-{:016x}", entropy::random_u64()));
        disk.rename(path, &aside).map_err(failed)?;
        Ok(Some((aside, why)))
    }

    fn mark(&mut self, index: usize, taken: bool) {
        if let Some(place) = self.taken.get_mut(index) {
            *place = taken;
        }
    }
}

fn file_path(options: &JournalOptions, index: usize) -> Option<PathBuf> {
    options.dir.as_ref().map(|dir| dir.join(file_name(index)))
}

fn file_name(index: usize) -> String {
    format!("journal-{index}")
}

/// The names that arenas may have in their directory.
pub(crate) fn file_names() -> impl Iterator<Item = String> {
    (0..ARENAS_MAX).map(file_name)
}
