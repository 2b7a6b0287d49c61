//! The arenas that take no records: free ones, and sealed ones that wait to be checkpointed.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::arena::{Arena, HEADER_BYTES, Header, Round};
use super::replay::{self, Replay};
use super::{ARENAS_MAX, JournalError, JournalOptions};
use crate::record::frame::FRAME_HEAD;
use crate::sys::crash_point;
use crate::sys::disk::{Disk, Home};
use crate::sys::entropy;

/// An arena that is complete and waits to be checkpointed.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(super) arena: Arc<Arena>,
    /// Its round.
    pub(crate) round: Round,
    /// Where its last frame ends, as far as this process knows.
    end: usize,
    /// The sequence number that its last record is known to have had; `None` if that has to be found out.
    pub(crate) last_seq: Option<u64>,
    /// Records in it, as far as this process knows.
    records: u64,
    weight: u64,
    synced: bool,
}

/// Of all sealed arenas together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SealedSize {
    pub(super) bytes: u64,
    /// As far as this process knows.
    pub(super) records: u64,
    pub(super) weight: u64,
}

/// A file that could not be used and was renamed out of the way, or would have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetAside {
    /// Its new name.
    pub(crate) path: PathBuf,
    /// What was wrong with it.
    pub(crate) why: &'static str,
}

#[derive(Debug)]
pub(super) struct Pool {
    disk: Disk,
    /// Bytes of an arena, as configured now; arenas of an earlier life may have another size.
    arena_bytes: usize,
    /// The directory as it was when the journal was opened; `None` in memory.
    home: Option<Home>,
    /// The directory was deleted: no name below it means anything of ours any more. Further arenas are in memory.
    unlinked: AtomicBool,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    free: Vec<Arc<Arena>>,
    sealed: VecDeque<Sealed>,
    /// Which numbers have an arena, in whatever state.
    taken: [bool; ARENAS_MAX],
    set_aside: Vec<SetAside>,
}

impl Sealed {
    pub(super) fn complete(
        arena: Arc<Arena>,
        round: Round,
        end: usize,
        last_seq: u64,
        records: u64,
        weight: u64,
    ) -> Self {
        Self { arena, round, end, last_seq: Some(last_seq), records, weight, synced: false }
    }

    /// What its records take at most where they are checkpointed to.
    pub(crate) fn weight(&self) -> u64 {
        self.weight
    }

    /// Its records, checked.
    pub(crate) fn replay(&self) -> io::Result<Replay> {
        // Where an arena ends that another process filled is not known. Most of it is empty, and reading it all takes longer than
        // everything else an open does: so it is read as far as it looks used, and again as a whole if records are missing.
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
    pub(super) fn open(disk: &Disk, options: &JournalOptions) -> Result<Self, JournalError> {
        let home = options
            .dir
            .as_ref()
            .map(|dir| Home::of(dir).map_err(|source| JournalError::File { path: dir.clone(), source }));
        let home = home.transpose()?;
        let mut places = Places::default();
        for index in 0..ARENAS_MAX {
            let Some(path) = path_of(options, index) else { break };
            let failed = |source| JournalError::File { path: path.clone(), source };
            if !disk.exists(&path).map_err(failed)? {
                continue;
            }
            places.admit(disk, &path, index, options)?;
        }
        places.sealed.make_contiguous().sort_by_key(|sealed| sealed.round.epoch);
        let unlinked = AtomicBool::new(options.dir.is_none());
        let arena_bytes = options.arena_bytes;
        Ok(Self { disk: disk.clone(), arena_bytes, home, unlinked, places: Mutex::new(places) })
    }

    /// The highest epoch of the sealed rounds, and the sequence number before the highest that one of them begins with: a round that
    /// has begun may not have a record yet.
    pub(super) fn highest(&self) -> (u64, u64) {
        let places = self.lock();
        let rounds = || places.sealed.iter().map(|sealed| sealed.round);
        let first_seq = rounds().map(|round| round.first_seq).max().unwrap_or(0);
        (rounds().map(|round| round.epoch).max().unwrap_or(0), first_seq.saturating_sub(1))
    }

    pub(super) fn take_set_aside(&self) -> Vec<SetAside> {
        std::mem::take(&mut self.lock().set_aside)
    }

    /// Tells each recovered arena how far its records must reach: to where the next round begins, the newest one to `seq`.
    pub(super) fn expect_up_to(&self, seq: u64) {
        let mut places = self.lock();
        let mut last = seq;
        for sealed in places.sealed.iter_mut().rev() {
            let expected = last.max(sealed.round.first_seq.saturating_sub(1));
            sealed.last_seq.get_or_insert(expected);
            last = sealed.round.first_seq.saturating_sub(1);
        }
    }

    /// A free arena, created if there is none and the limit allows.
    pub(super) fn take_free(&self, options: &JournalOptions) -> Result<Option<Arc<Arena>>, JournalError> {
        let index = {
            let mut places = self.lock();
            if let Some(arena) = places.free.pop() {
                return Ok(Some(arena));
            }
            match places.taken.iter().position(|taken| !taken) {
                Some(index) => index,
                None => return Ok(None),
            }
        };
        let bytes = options.arena_bytes;
        let arena = match path_of(options, index).filter(|_| !self.is_unlinked()) {
            None => Arena::volatile(index, bytes).map_err(|source| JournalError::Memory { bytes, source })?,
            Some(path) => self
                .check_home()
                .and_then(|()| Arena::create(&self.disk, &path, index, bytes, options.map))
                .and_then(|arena| {
                    path.parent().map_or(Ok(()), |dir| self.disk.sync_dir(dir))?;
                    Ok(arena)
                })
                .map_err(|source| JournalError::File { path, source })?,
        };
        self.lock().mark(index, true);
        Ok(Some(Arc::new(arena)))
    }

    /// An arena is free again. A condemned one, or one whose size is no longer the configured one, is not: its file goes.
    pub(super) fn give_back(&self, arena: Arc<Arena>) {
        let is_wanted = !arena.is_condemned() && arena.len() == self.arena_bytes;
        // Under a name that is not ours there may be somebody else's file by now. One that is left in a directory out of reach is free, and
        // made anew when its number is needed.
        let names_nothing = || self.is_unlinked() || self.check_home().is_err();
        if !is_wanted && (names_nothing() || self.disk.remove_file(arena.path()).is_ok()) {
            self.lock().mark(arena.index(), false);
            return;
        }
        self.lock().free.push(arena);
    }

    /// A free arena, if there is one already.
    pub(super) fn pop_free(&self) -> Option<Arc<Arena>> {
        self.lock().free.pop()
    }

    pub(super) fn become_unlinked(&self) {
        self.unlinked.store(true, Ordering::Release);
    }

    /// Whether the directory is where it was: only there are names ours.
    fn check_home(&self) -> io::Result<()> {
        self.home.as_ref().map_or(Ok(()), Home::check)
    }

    fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Acquire)
    }

    /// Whether no name leads to any of them.
    pub(super) fn are_unlinked(&self) -> bool {
        let places = self.lock();
        let sealed = places.sealed.iter().map(|sealed| &sealed.arena);
        places.free.iter().chain(sealed).all(|arena| arena.is_unlinked())
    }

    pub(super) fn has_free(&self) -> bool {
        !self.lock().free.is_empty()
    }

    pub(super) fn push_sealed(&self, sealed: Sealed) {
        self.lock().sealed.push_back(sealed);
    }

    pub(super) fn oldest_sealed(&self) -> Option<Sealed> {
        self.lock().sealed.front().cloned()
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn all_sealed(&self) -> Vec<Sealed> {
        self.lock().sealed.iter().cloned().collect()
    }

    pub(super) fn free_oldest(&self) {
        let Some(sealed) = self.lock().sealed.pop_front() else { return };
        // It will be needed about as far again. Of an arena that was recovered it is not known how far it was used.
        sealed.arena.mark_free(if sealed.records > 0 { sealed.end + sealed.end / 2 } else { HEADER_BYTES });
        crash_point::reach("journal.freed");
        self.give_back(sealed.arena);
    }

    pub(super) fn last_seq_taken(&self) -> u64 {
        let ends = self.lock().sealed.clone().into_iter().map(|sealed| {
            let found = match sealed.replay() {
                Ok(replay) => replay.last_seq().unwrap_or(0),
                // As many as fit. What there was not will count as missing one day, but no number is given twice.
                Err(_) => {
                    let room = (sealed.arena.len().saturating_sub(HEADER_BYTES) / FRAME_HEAD) as u64;
                    sealed.round.first_seq.saturating_add(room)
                }
            };
            found.max(sealed.last_seq.unwrap_or(0))
        });
        ends.max().unwrap_or(0)
    }

    pub(super) fn sealed_size(&self) -> SealedSize {
        let places = self.lock();
        places.sealed.iter().fold(SealedSize::default(), |size, sealed| SealedSize {
            bytes: size.bytes + sealed.end.saturating_sub(HEADER_BYTES) as u64,
            records: size.records + sealed.records,
            weight: size.weight.saturating_add(sealed.weight),
        })
    }

    /// Syncs each sealed arena once.
    pub(super) fn sync_sealed(&self) -> io::Result<()> {
        let waiting: Vec<_> = self.lock().sealed.iter().filter(|sealed| !sealed.synced).cloned().collect();
        for sealed in waiting {
            sealed.arena.sync(sealed.end.saturating_add(size_of::<u64>()))?;
            let mut places = self.lock();
            if let Some(known) = places.sealed.iter_mut().find(|known| known.round.epoch == sealed.round.epoch) {
                known.synced = true;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    /// Sorts one existing file into its place.
    fn admit(&mut self, disk: &Disk, path: &Path, index: usize, options: &JournalOptions) -> Result<(), JournalError> {
        let failed = |source| JournalError::File { path: path.to_path_buf(), source };
        let (header, arena) = Arena::open(disk, path, index, options.map).map_err(failed)?;
        let why = match (header, arena) {
            (Header::Newer(version), _) => return Err(JournalError::Newer { path: path.to_path_buf(), version }),
            (Header::Free, Some(arena)) if arena.len() == options.arena_bytes => {
                self.mark(index, true);
                self.free.push(Arc::new(arena));
                return Ok(());
            }
            (Header::InUse(round), Some(arena)) => {
                self.mark(index, true);
                let end = arena.len();
                let (arena, last_seq) = (Arc::new(arena), None);
                // Of an earlier life: all of it may be full.
                let weight = end as u64;
                self.sealed.push_back(Sealed { arena, round, end, last_seq, records: 0, weight, synced: false });
                return Ok(());
            }
            // Nothing in it, or of a size that is no longer wanted: made anew when one is needed.
            (Header::Blank | Header::Free, _) => return disk.remove_file(path).map_err(failed),
            (Header::Damaged, _) | (Header::InUse(_), None) => "its header is damaged",
            (Header::Foreign, _) => "it is not a journal of this library",
        };
        // Never overwritten: somebody may want to look at it.
        let aside = path.with_file_name(format!("damaged-journal-{index}-{:016x}", entropy::random_u64()));
        disk.rename(path, &aside).map_err(failed)?;
        self.set_aside.push(SetAside { path: aside, why });
        Ok(())
    }

    fn mark(&mut self, index: usize, taken: bool) {
        if let Some(place) = self.taken.get_mut(index) {
            *place = taken;
        }
    }
}

fn path_of(options: &JournalOptions, index: usize) -> Option<PathBuf> {
    options.dir.as_ref().map(|dir| dir.join(name_of(index)))
}

fn name_of(index: usize) -> String {
    format!("journal-{index}")
}

/// The names that arenas may have in their directory.
pub(crate) fn file_names() -> impl Iterator<Item = String> {
    (0..ARENAS_MAX).map(name_of)
}
