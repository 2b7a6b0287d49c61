//! Which stores this process has open. The shard's lock keeps other processes out; this keeps the process from meeting itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::StoreError;
use crate::sys::disk::fork;

/// A path's place in the registry; given back when dropped.
#[derive(Debug)]
pub(super) struct Registration {
    path: PathBuf,
    generation: u64,
}

/// Registers `path`, which must not be registered yet. Symbolic links in the directory are resolved; the file need not exist.
pub(super) fn register(dir: &Path, name: &str) -> Result<Registration, StoreError> {
    let path = dir.canonicalize()?.join(name);
    let generation = fork::generation();
    if open_paths(generation).insert(path.clone()) {
        Ok(Registration { path, generation })
    } else {
        Err(StoreError::AlreadyOpen { path })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // The parent's entries are in the parent's list; an inherited store that is dropped in a child owns nothing there.
        if fork::generation() == self.generation {
            open_paths(self.generation).remove(&self.path);
        }
    }
}

#[cfg(test)]
impl super::Store {
    /// As if another process had it: a test that plays several needs that.
    pub(crate) fn unregister(&self) {
        self.registration.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// One list per generation of forks: a child may inherit its parent's list locked, by a thread that the child does not have.
static OPEN_PATHS: [Mutex<BTreeSet<PathBuf>>; 16] = [const { Mutex::new(BTreeSet::new()) }; 16];

fn open_paths(generation: u64) -> MutexGuard<'static, BTreeSet<PathBuf>> {
    let slot = (generation % OPEN_PATHS.len() as u64) as usize;
    OPEN_PATHS[slot].lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_until_its_registration_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let first = register(dir.path(), "queue").unwrap();
        assert!(matches!(register(dir.path(), "queue"), Err(StoreError::AlreadyOpen { .. })));
        register(dir.path(), "other").unwrap();
        drop(first);
        register(dir.path(), "queue").unwrap();
    }

    #[test]
    fn a_link_to_the_directory_is_the_same_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let _first = register(&dir.path().join("real"), "queue").unwrap();
        assert!(matches!(register(&dir.path().join("link"), "queue"), Err(StoreError::AlreadyOpen { .. })));
    }
}
