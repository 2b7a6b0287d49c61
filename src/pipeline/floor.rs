//! Reports a file system that has too little free space for events to be accepted.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::{AppendError, Notice, Pipeline};

/// A file system with less free space than the configured floor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Floor {
    /// Where the queue lies on it.
    pub(crate) path: PathBuf,
    /// Its free space.
    pub(crate) free_bytes: u64,
    /// The free space that is left to other programs (`min_free_space`).
    pub(crate) floor_bytes: u64,
    /// Its size, if the system reports it.
    pub(crate) volume_bytes: Option<u64>,
}

impl Pipeline {
    /// The file system, while events are refused because it has too little free space.
    pub(crate) fn floor(&self) -> Option<Floor> {
        if self.admission.append_error() != Some(AppendError::DiskFull) {
            return None;
        }
        let (disk, path) = (&self.options.disk, self.shard.dir());
        Some(Floor {
            path: path.clone(),
            free_bytes: disk.free_bytes(path).unwrap_or(0),
            floor_bytes: self.options.limits.min_free_space,
            volume_bytes: disk.volume_bytes(path).ok(),
        })
    }

    /// Reports once when the floor is reached, and once when an eighth more than the floor is free again, so that free
    /// space that hovers about the floor is not reported each time.
    pub(super) fn tell_of_floor(&self, free: Option<u64>) {
        let is_told = &self.admission.floor_is_told;
        match self.floor() {
            Some(floor) if !is_told.swap(true, Ordering::Relaxed) => (self.options.report)(Notice::Floor(floor)),
            None if is_told.load(Ordering::Relaxed) => {
                let floor = self.options.limits.min_free_space;
                if free.is_none_or(|free| free >= floor.saturating_add(floor / 8)) {
                    is_told.store(false, Ordering::Relaxed);
                    (self.options.report)(Notice::Storage { problem: None });
                }
            }
            _ => {}
        }
    }
}
