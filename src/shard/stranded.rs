//! Queues that nobody delivers any more: of a key or host that was replaced.

use std::path::Path;

use super::claim::{ClaimError, Lane, shard_dir, shard_numbers};
use super::status::StatusPage;
use crate::clock::WallNanos;
use crate::disk::Disk;

/// The queue of another project under the same `queue_dir`, with events in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stranded {
    /// The name of its directory.
    pub(crate) project: String,
    /// Events in it, as its status pages say.
    pub(crate) events: u64,
    /// Bytes in it.
    pub(crate) bytes: u64,
    /// When the oldest was carried into the store.
    pub(crate) oldest_at: Option<WallNanos>,
}

/// Looks at the other projects of `queue_dir`. Reads status pages only: no lock is taken and no file is changed.
pub(crate) fn stranded(disk: &Disk, queue_dir: &Path, ours: &str) -> Result<Vec<Stranded>, ClaimError> {
    let names = disk.list(queue_dir).map_err(|source| ClaimError::Io { path: queue_dir.to_path_buf(), source })?;
    let mut found = Vec::new();
    for name in names.into_iter().filter(|name| is_project(name) && name != ours) {
        let project_dir = queue_dir.join(&name);
        let mut queue = Stranded { project: name, events: 0, bytes: 0, oldest_at: None };
        let shards = Lane::ALL.into_iter().flat_map(|lane| {
            let dir = lane.dir_in(&project_dir);
            let numbers = shard_numbers(disk, &dir).unwrap_or_default();
            numbers.into_iter().map(move |number| shard_dir(&dir, number))
        });
        for shard in shards {
            // A page that cannot be read says nothing; the queue itself stays where it is.
            let Ok(Some(page)) = StatusPage::peek(disk, &shard.join("status")) else { continue };
            let ledger = page.ledger.unwrap_or_default();
            queue.events += ledger.queued_events + page.accepted.saturating_sub(ledger.accepted);
            queue.bytes += ledger.queued_bytes;
            queue.oldest_at = [queue.oldest_at, page.oldest_at].into_iter().flatten().min();
        }
        if queue.events > 0 {
            found.push(queue);
        }
    }
    Ok(found)
}

/// Whether a shard's last owner left it in good order and with nothing in it. One status page is read, and no lock taken.
pub(crate) fn is_known_empty(disk: &Disk, shard_dir: &Path) -> bool {
    let Ok(Some(page)) = StatusPage::peek(disk, &shard_dir.join("status")) else { return false };
    let carried = page.ledger.is_some_and(|ledger| ledger.queued_events == 0 && ledger.accepted == page.accepted);
    page.clean && !page.died_in_store && carried
}

fn is_project(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}
