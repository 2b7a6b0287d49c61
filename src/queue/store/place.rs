//! The store's files in its directory, and how one takes the place of another without a moment in which a crash could lose both.

use std::io;
use std::path::PathBuf;

use super::{StoreError, StoreOptions};
use crate::sys::clock::WallNanos;
use crate::sys::crash_point;
use crate::sys::disk::{Disk, Home};

/// The name of the store's file.
pub(super) const QUEUE: &str = "queue.redb";
/// That of the space kept for hard times.
pub(crate) const RESERVE: &str = "reserve";

/// A directory with a store in it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) disk: Disk,
    pub(super) dir: PathBuf,
    /// The directory as it was when the store was opened.
    pub(super) home: Home,
    pub(super) options: StoreOptions,
}

impl Place {
    /// The store.
    pub(super) fn queue(&self) -> PathBuf {
        self.dir.join(QUEUE)
    }

    /// A file being built; worth nothing before it is renamed.
    pub(super) fn unfinished(&self) -> PathBuf {
        self.dir.join("queue.redb.new")
    }

    /// A file completely built from a damaged one that has not left its place yet.
    fn ready(&self) -> PathBuf {
        self.dir.join("queue.redb.ready")
    }

    /// The space kept for hard times.
    pub(super) fn reserve(&self) -> PathBuf {
        self.dir.join(RESERVE)
    }

    /// Puts the finished file in the store's place; a file that is there already goes.
    pub(super) fn install(&self) -> Result<(), StoreError> {
        self.disk.rename(&self.unfinished(), &self.queue())?;
        Ok(self.disk.sync_dir(&self.dir)?)
    }

    /// Puts the finished file in the store's place; the damaged file that is there is kept. Returns where.
    pub(super) fn install_beside_damaged(&self, now: WallNanos) -> Result<PathBuf, StoreError> {
        // From here on a crash is finished by `finish_interrupted`.
        self.disk.rename(&self.unfinished(), &self.ready())?;
        crash_point::reach("store.ready");
        self.disk.sync_dir(&self.dir)?;
        self.swap_ready(now)
    }

    /// Ends what a crash interrupted: a finished file takes its place, an unfinished one goes. Returns where a damaged file went.
    pub(super) fn finish_interrupted(&self, now: WallNanos) -> Result<Option<PathBuf>, StoreError> {
        self.disk.remove_file(&self.unfinished())?;
        if !self.disk.exists(&self.ready())? {
            return Ok(None);
        }
        if self.disk.exists(&self.queue())? {
            return self.swap_ready(now).map(Some);
        }
        self.disk.rename(&self.ready(), &self.queue())?;
        self.disk.sync_dir(&self.dir)?;
        Ok(None)
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

    /// The wall clock may stand still or step back: a name that is taken gets a number.
    fn new_damaged_dir(&self, now: WallNanos) -> io::Result<PathBuf> {
        let mut dir = self.dir.join(format!("damaged-{now}"));
        for number in 2..1000 {
            if !self.disk.exists(&dir.join(QUEUE))? {
                break;
            }
            dir = self.dir.join(format!("damaged-{now}-{number}"));
        }
        self.disk.make_dir(&dir)?;
        Ok(dir)
    }
}
