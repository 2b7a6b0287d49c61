//! The files of a store: their names, the registry of those that this process has open, how a new file replaces an old
//! one without a moment at which a crash loses both, and the reserve.
//!
//! **Reserve.** Removing a row writes new pages before it frees old ones. On a full file system no removal would
//! succeed, and a queue that cannot shrink never frees space. So a file of `reserve_bytes` lies beside the store, with
//! every block written. It is removed when an ack finds no space, and made again when there is plenty. A checkpoint may
//! use it only while the store is empty: no ack can free space then.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Builder, Database};
use xxhash_rust::xxh3::xxh3_64;

use super::rows::{Ledger, Project};
use crate::queue::error::StoreError;
use crate::sys::clock::WallNanos;
use crate::sys::crash_point;
use crate::sys::disk::{Disk, Home, Open, fork};

/// An upper bound of the cache, whatever the options say.
const CACHE_MAX: usize = 8 * 1024 * 1024;

#[derive(Clone, Debug)]
pub(crate) struct StoreOptions {
    /// The project of the queue. A file of another project is refused.
    pub(crate) project: Project,
    /// Page cache in bytes; at most 8 MiB.
    pub(crate) cache_bytes: usize,
    /// Size of the reserve that lets acks succeed on a full disk; 0 for none.
    pub(crate) reserve_bytes: u64,
    /// The most that dead records may take, in bytes. The oldest are removed first; the newest one stays, however
    /// large.
    pub(crate) dead_bytes: u64,
    /// Verify every page first, because the last owner died inside a call into the store.
    pub(crate) check_integrity: bool,
    /// Do not open the file with the database, but rebuild it from its rows: opening killed the last owners and might
    /// kill this one.
    pub(crate) untrusted: bool,
    /// Do not read the rows either, because that has killed owners too. The file is moved away as it is.
    pub(crate) unreadable: bool,
    /// The ledger that the status page mirrored after the last commit, if known.
    pub(crate) witness: Option<Ledger>,
}

/// Identifies the state of the store's file in `dir`, which each commit changes; never 0. `None` if it cannot be read.
pub(crate) fn seal_of(disk: &Disk, dir: &Path) -> Option<u64> {
    let mut header = [0; HEADER_BYTES];
    disk.open(&dir.join(QUEUE), Open::ReadOnly).ok()?.read_exact_at(0, &mut header).ok()?;
    Some(xxh3_64(&header).max(1))
}

impl StoreOptions {
    /// The options of the database.
    pub(super) fn builder(&self) -> Builder {
        let mut builder = Database::builder();
        builder.set_cache_size(self.cache_bytes.min(CACHE_MAX));
        builder
    }
}

pub(crate) const QUEUE: &str = "queue.redb";
const READY: &str = "queue.redb.ready";
/// The bytes at the beginning of the file that each commit changes: see the file format of redb.
pub(crate) const HEADER_BYTES: usize = 320;
pub(crate) const RESERVE: &str = "reserve";

/// The directory of a store.
#[derive(Clone, Debug)]
pub(super) struct StoreDir {
    pub(super) disk: Disk,
    pub(super) dir: PathBuf,
    /// The identity of the directory when the store was opened.
    pub(super) home: Home,
    pub(super) options: StoreOptions,
    /// Whether a sync of the store's file has failed, so that it must be replaced when it is reopened.
    pub(super) condemned: Arc<AtomicBool>,
}

/// What became of a replacement that a crash interrupted.
#[derive(Debug)]
pub(super) enum Interrupted {
    Nothing,
    /// It was completed; the file before it has this path now.
    Swapped(PathBuf),
    /// It cannot be used; it has this path now, for this reason.
    Refused(PathBuf, String),
}

impl StoreDir {
    pub(super) fn queue(&self) -> PathBuf {
        self.dir.join(QUEUE)
    }

    /// The file to read: while a damaged store is being replaced, and after a kill in that moment, the finished one does not
    /// have its name yet.
    pub(super) fn to_read(&self) -> io::Result<PathBuf> {
        let is_between = !self.disk.exists(&self.queue())? && self.disk.exists(&self.ready())?;
        Ok(if is_between { self.ready() } else { self.queue() })
    }

    /// A file that is being built. Removed at open.
    pub(super) fn unfinished(&self) -> PathBuf {
        self.dir.join("queue.redb.new")
    }

    /// A file that was completely rebuilt from a damaged one, which has not been moved away yet.
    pub(super) fn ready(&self) -> PathBuf {
        self.dir.join(READY)
    }

    pub(super) fn reserve(&self) -> PathBuf {
        self.dir.join(RESERVE)
    }

    /// Gives the finished file the name of the store, in place of an existing file.
    pub(super) fn install(&self) -> Result<(), StoreError> {
        self.disk.rename(&self.unfinished(), &self.queue())?;
        Ok(self.disk.sync_dir(&self.dir)?)
    }

    /// Gives the finished file the name of the store and keeps the damaged file. Returns its new path.
    pub(super) fn install_beside_damaged(&self, now: WallNanos) -> Result<PathBuf, StoreError> {
        // From here on, `finish_interrupted` completes what a crash interrupts.
        self.disk.rename(&self.unfinished(), &self.ready())?;
        crash_point::reach("store.ready");
        self.disk.sync_dir(&self.dir)?;
        self.swap_ready(now)
    }

    /// Completes a replacement that a crash interrupted: a finished file gets its name, an unfinished one is removed. A
    /// finished file that `refuse` has an objection to does not replace the store: it is moved away, and the store stays.
    pub(super) fn finish_interrupted(
        &self,
        now: WallNanos,
        refuse: impl FnOnce() -> Result<Option<String>, StoreError>,
    ) -> Result<Interrupted, StoreError> {
        self.disk.remove_file(&self.unfinished())?;
        if !self.disk.exists(&self.ready())? {
            return Ok(Interrupted::Nothing);
        }
        if !self.disk.exists(&self.queue())? {
            // There is no other file. Whatever is wrong with this one is found when it is opened under its name.
            self.disk.rename(&self.ready(), &self.queue())?;
            self.disk.sync_dir(&self.dir)?;
            return Ok(Interrupted::Nothing);
        }
        let Some(why) = refuse()? else { return self.swap_ready(now).map(Interrupted::Swapped) };
        let aside = self.new_damaged_dir(now)?;
        let kept = aside.join(READY);
        self.disk.rename(&self.ready(), &kept)?;
        // The new name before the loss of the old one, so that a power cut leaves one of the two.
        self.disk.sync_dir(&aside)?;
        self.disk.sync_dir(&self.dir)?;
        Ok(Interrupted::Refused(kept, why))
    }

    fn swap_ready(&self, now: WallNanos) -> Result<PathBuf, StoreError> {
        let aside = self.new_damaged_dir(now)?;
        let damaged = aside.join(QUEUE);
        self.disk.rename(&self.queue(), &damaged)?;
        crash_point::reach("store.aside");
        self.disk.sync_dir(&aside)?;
        self.disk.rename(&self.ready(), &self.queue())?;
        self.disk.sync_dir(&self.dir)?;
        Ok(damaged)
    }

    /// The wall clock may stand still or go backwards, so a name that exists gets a number.
    fn new_damaged_dir(&self, now: WallNanos) -> io::Result<PathBuf> {
        let mut dir = self.dir.join(format!("damaged-{now}"));
        for number in 2..1000 {
            if !self.disk.exists(&dir.join(QUEUE))? && !self.disk.exists(&dir.join(READY))? {
                break;
            }
            dir = self.dir.join(format!("damaged-{now}-{number}"));
        }
        self.disk.make_dir(&dir)?;
        Ok(dir)
    }
}

/// The reserve is made only if this many times its size is free, so that it does not fill the disk itself.
const FREE_FACTOR: u64 = 4;

/// The reserve, and whether its file exists.
#[derive(Debug)]
pub(super) struct Reserve {
    held: bool,
}

impl Reserve {
    /// Makes the reserve unless it exists. On a disk that is too full there is none for now.
    pub(super) fn open(place: &StoreDir) -> Self {
        let mut reserve = Reserve { held: false };
        reserve.refill(place);
        reserve
    }

    /// No reserve, for a store in memory.
    pub(super) fn none() -> Self {
        Reserve { held: true }
    }

    /// Removes the file and thereby frees its space. `false` if there was none.
    pub(super) fn release(&mut self, place: &StoreDir) -> io::Result<bool> {
        if !self.held || place.options.reserve_bytes == 0 {
            return Ok(false);
        }
        place.disk.remove_file(&place.reserve())?;
        self.held = false;
        Ok(true)
    }

    /// Whether the reserve was given up and less than half of its size is free.
    pub(super) fn is_needed(&self, place: &StoreDir) -> bool {
        let half = place.options.reserve_bytes / 2;
        // If the free space cannot be determined, the write is tried.
        !self.held && place.disk.free_bytes(&place.dir).is_ok_and(|free| free < half)
    }

    /// Makes the reserve again if possible. After a failure it is tried again after the next commit.
    pub(super) fn refill(&mut self, place: &StoreDir) {
        if !self.held {
            self.held = place.options.reserve_bytes == 0 || fill(place).unwrap_or(false);
        }
    }
}

fn fill(place: &StoreDir) -> io::Result<bool> {
    let wanted = place.options.reserve_bytes;
    if let Ok(present) = place.disk.open(&place.reserve(), Open::Existing)
        && present.allocated_bytes()? >= wanted
    {
        return Ok(true);
    }
    if place.disk.free_bytes(&place.dir)? < wanted.saturating_mul(FREE_FACTOR) {
        return Ok(false);
    }
    place.disk.remove_file(&place.reserve())?;
    let written = write_noise(place, wanted);
    if written.is_err() {
        place.disk.remove_file(&place.reserve())?;
    }
    written.map(|()| true)
}

/// Pseudorandom bytes, because a file system that compresses would keep zeros in no space at all.
fn write_noise(place: &StoreDir, bytes: u64) -> io::Result<()> {
    let file = place.disk.open(&place.reserve(), Open::CreateNew)?;
    let mut noise = 0x9E37_79B9_7F4A_7C15_u64;
    let mut block = [0; 64 * 1024];
    let mut offset = 0;
    while offset < bytes {
        for word in block.chunks_exact_mut(8) {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            word.copy_from_slice(&noise.to_le_bytes());
        }
        let step = (bytes - offset).min(block.len() as u64);
        file.write_all_at(offset, &block[..step as usize])?;
        offset += step;
    }
    file.sync_data()?;
    place.disk.sync_dir(&place.dir)
}

/// The registration of an open store; it ends when dropped.
#[derive(Debug)]
pub(super) struct Registration {
    path: PathBuf,
    generation: u64,
}

impl Registration {
    /// Registers the store in `dir`, which must not be registered yet. Symbolic links in `dir` are resolved; the file
    /// need not exist.
    pub(super) fn of(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.canonicalize()?.join(QUEUE);
        let generation = fork::generation();
        if open_paths(generation).insert(path.clone()) {
            Ok(Self { path, generation })
        } else {
            Err(StoreError::AlreadyOpen { path })
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // The entry of the parent is in the parent's set; an inherited store that is dropped in a child has none here.
        if fork::generation() == self.generation {
            open_paths(self.generation).remove(&self.path);
        }
    }
}

/// One set per fork generation: a child may inherit the set of its parent locked by a thread that the child does not
/// have.
static OPEN_PATHS: [Mutex<BTreeSet<PathBuf>>; 16] = [const { Mutex::new(BTreeSet::new()) }; 16];

fn open_paths(generation: u64) -> MutexGuard<'static, BTreeSet<PathBuf>> {
    let slot = (generation % OPEN_PATHS.len() as u64) as usize;
    OPEN_PATHS[slot].lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_registered_until_its_registration_is_dropped() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = Registration::of(dir.path()).unwrap();
        assert!(matches!(Registration::of(dir.path()), Err(StoreError::AlreadyOpen { .. })));
        Registration::of(other.path()).unwrap();
        drop(first);
        Registration::of(dir.path()).unwrap();
    }

    #[test]
    fn a_link_to_the_directory_is_the_same_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let _first = Registration::of(&dir.path().join("real")).unwrap();
        assert!(matches!(Registration::of(&dir.path().join("link")), Err(StoreError::AlreadyOpen { .. })));
    }
}
