//! The room of a shard that is empty and that nobody has: what is kept is its name, its ledger and its dead letters.

use std::io;
use std::path::Path;

use super::status::StatusPage;
use super::{Shard, ShardError, Standing};
use super::{journal, store};
use crate::sys::clock::WallNanos;
use crate::sys::disk::Disk;

impl Shard {
    /// Lets the shard go as [`close`](Self::close) does. Where nothing waits in it, the store is compacted first and the arenas and the
    /// reserve are removed, under the lock: so nobody else can have come to use them. The directory and its lock stay, for another
    /// process may be about to take them; the store keeps the ledger and dead letters, and crash reports are not touched.
    pub(crate) fn give_back_room(&self, disk: &Disk) -> Result<(), ShardError> {
        let is_empty = self.ledger().queued_events == 0
            && self.journal.journaled().1 == 0
            && self.journal.oldest_sealed().is_none()
            && matches!(self.standing(), Standing::Held)
            && !self.is_volatile();
        if !is_empty {
            self.close();
            return Ok(());
        }
        let compacted = self.compact();
        self.close_files();
        let removed = remove_room(disk, &self.dir);
        self.let_go();
        compacted?;
        removed.map_err(|source| ShardError::Io { path: self.dir.clone(), source })
    }
}

fn room_files() -> impl Iterator<Item = String> {
    journal::file_names().chain([store::RESERVE.to_owned()])
}

fn remove_room(disk: &Disk, dir: &Path) -> io::Result<()> {
    for name in room_files() {
        disk.remove_file(&dir.join(name))?;
    }
    disk.sync_dir(dir)
}

/// Whether a shard has files that only a process at work needs, and nobody has used it since `before`.
pub(crate) fn keeps_room(disk: &Disk, dir: &Path, before: WallNanos) -> bool {
    let has_files = room_files().any(|name| disk.exists(&dir.join(name)).unwrap_or(false));
    has_files
        && StatusPage::peek(disk, &dir.join("status"))
            .is_ok_and(|page| page.is_some_and(|page| page.active_at < before))
}
