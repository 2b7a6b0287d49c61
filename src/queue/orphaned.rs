//! Queues that nobody delivers any more: of a key or host that was replaced.

use std::io;
use std::path::{Path, PathBuf};

use super::claim::{ClaimError, Lane, Project, shard_dir, shard_numbers};
use super::status::{Predecessor, StatusPage};
use crate::queue::store::{self, Identity};
use crate::sys::clock::WallNanos;
use crate::sys::disk::{Disk, Lock, Open};

/// The queue of another project under the same `queue_dir`, with events in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrphanedQueue {
    /// The name of its directory.
    pub(crate) project: String,
    /// Its directory.
    pub(crate) path: PathBuf,
    /// Whose it is, if one of its stores could be asked.
    pub(crate) owner: Option<Project>,
    /// Events in it, as its status pages say.
    pub(crate) events: u64,
    /// Bytes in it.
    pub(crate) bytes: u64,
    /// When the oldest was checkpointed into the store.
    pub(crate) oldest_at: Option<WallNanos>,
}

/// Looks at the other projects of `queue_dir`: at those of which nobody has a shard, for who has one delivers the others too. No file is
/// changed; locks are held for a moment, while the store is asked whose it is.
pub(crate) fn orphaned(disk: &Disk, queue_dir: &Path, ours: &str) -> Result<Vec<OrphanedQueue>, ClaimError> {
    let names = disk.list(queue_dir).map_err(|source| ClaimError::Io { path: queue_dir.to_path_buf(), source })?;
    let others = names.into_iter().filter(|name| is_project(name) && name != ours);
    Ok(others.filter_map(|name| look_at(disk, queue_dir.join(&name), name)).collect())
}

fn look_at(disk: &Disk, path: PathBuf, project: String) -> Option<OrphanedQueue> {
    let mut queue = OrphanedQueue { project, path, owner: None, events: 0, bytes: 0, oldest_at: None };
    for lane in Lane::ALL {
        let dir = lane.dir_in(&queue.path);
        for number in shard_numbers(disk, &dir).unwrap_or_default() {
            let shard = shard_dir(&dir, number);
            match lock_if_free(disk, &shard) {
                Ok(Some(_lock)) => queue.add(disk, &shard),
                Ok(None) => return None,
                // What cannot be looked at says nothing; it stays where it is.
                Err(_) => {}
            }
        }
    }
    Some(queue).filter(|queue| queue.events > 0)
}

impl OrphanedQueue {
    fn add(&mut self, disk: &Disk, shard: &Path) {
        let Ok(Some(page)) = StatusPage::peek(disk, &shard.join(StatusPage::FILE)) else { return };
        let ledger = page.ledger.unwrap_or_default();
        let events = page.queued_events();
        if events == 0 {
            return;
        }
        self.owner = self.owner.take().or_else(|| {
            let Identity { host, api_key, .. } = store::identify(disk, shard)?;
            Some(Project { host, api_key })
        });
        self.events = self.events.saturating_add(events);
        self.bytes = self.bytes.saturating_add(ledger.queued_bytes);
        self.oldest_at = [self.oldest_at, page.oldest_at].into_iter().flatten().min();
    }
}

impl Predecessor {
    /// Events that it left, those in the journal included.
    pub(crate) fn queued_events(&self) -> u64 {
        let ledger = self.ledger.unwrap_or_default();
        ledger.queued_events.saturating_add(self.accepted.saturating_sub(ledger.accepted))
    }
}

/// The shard's lock, unless somebody has it. Unlike a claim it makes no file.
fn lock_if_free(disk: &Disk, shard: &Path) -> io::Result<Option<Lock>> {
    disk.open_locked(&shard.join("lock"), Open::ReadOnly)
}

/// Whether a shard's last owner left it in good order and with nothing in it. One status page is read, and no lock taken.
pub(crate) fn is_known_empty(disk: &Disk, shard_dir: &Path) -> bool {
    let Ok(Some(page)) = StatusPage::peek(disk, &shard_dir.join(StatusPage::FILE)) else { return false };
    let checkpointed = page.ledger.is_some_and(|ledger| ledger.queued_events == 0 && ledger.accepted == page.accepted);
    page.clean && !page.died_in_store && checkpointed
}

/// Whether nothing in a shard was ever refused for good. One status page is read, and no lock taken.
pub(crate) fn is_known_without_dead(disk: &Disk, shard_dir: &Path) -> bool {
    let Ok(Some(page)) = StatusPage::peek(disk, &shard_dir.join(StatusPage::FILE)) else { return false };
    page.ledger.is_some_and(|ledger| ledger.dead_lettered == 0)
}

fn is_project(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}
