//! A file system with so little room that nothing is taken: who is told, and of what.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::{Notice, Pipeline, Unwelcome};

/// A file system that has less free than is to be left to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Floor {
    /// Where the queue lies on it.
    pub(crate) path: PathBuf,
    /// What it has free.
    pub(crate) free_bytes: u64,
    /// What it should have.
    pub(crate) floor_bytes: u64,
    /// Its size, if it tells.
    pub(crate) volume_bytes: Option<u64>,
}

impl Pipeline {
    /// The file system, if it has so little free that nothing is taken.
    pub(crate) fn floor(&self) -> Option<Floor> {
        if self.admission.unwelcome() != Some(Unwelcome::DiskFull) {
            return None;
        }
        let (disk, path) = (&self.options.disk, self.shard.dir());
        Some(Floor {
            path: path.clone(),
            free_bytes: disk.free_bytes(path).unwrap_or(0),
            floor_bytes: self.options.limits.free_space_floor,
            volume_bytes: disk.volume_bytes(path).ok(),
        })
    }

    /// Once when the floor is reached, and once when there is an eighth more than that again: what hovers about it is not worth telling.
    pub(super) fn tell_of_floor(&self, free: Option<u64>) {
        let is_told = &self.admission.floor_is_told;
        match self.floor() {
            Some(floor) if !is_told.swap(true, Ordering::Relaxed) => (self.options.report)(Notice::Floor(floor)),
            None if is_told.load(Ordering::Relaxed) => {
                let floor = self.options.limits.free_space_floor;
                if free.is_none_or(|free| free >= floor.saturating_add(floor / 8)) {
                    is_told.store(false, Ordering::Relaxed);
                    (self.options.report)(Notice::Storage { problem: None });
                }
            }
            _ => {}
        }
    }
}
