//! Directories of queues: the names of project and shard directories, the lock that makes a shard belong to one
//! process, and which shards no process holds.
//!
//! ```text
//! <queue_dir>/<project>/shard-<n>/          a queue, owned by the process that holds the lock in it
//! <queue_dir>/<project>/<part>/shard-<n>/   another group of shards of the same project
//! ```
//!
//! A process claims the first shard of a group that no process holds, and makes a new one only if all are held. A shard
//! that no process holds can be adopted: its events are delivered in place by another process of the same project. An
//! orphaned queue belongs to a project of which no process holds any shard.

use std::io;
use std::path::{Path, PathBuf};

use super::error::QueueError;
use super::status_page::StatusPage;
use super::store::{self, Project};
use crate::sys::clock::WallNanos;
use crate::sys::disk::{Disk, Lock, Name, Open};

/// The most shards of one group: a bound on what a fork bomb can leave behind.
const SHARDS_MAX: u32 = 4096;

impl Project {
    /// The name of its directory: the first 128 bits of its hash.
    pub(crate) fn dir_name(&self) -> String {
        self.hash().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The directory of the project.
    pub(crate) fn dir(&self, queue_dir: &Path) -> PathBuf {
        queue_dir.join(self.dir_name())
    }
}

/// A shard directory that this process owns until the claim is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    dir: PathBuf,
    number: u32,
    is_new: bool,
    lock: Lock,
}

impl Claim {
    /// The shard's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The shard's number.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Whether no process had the shard before.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// What the path of the lock file leads to: our lock file, or not (also if the program has closed our descriptor, and
    /// the lock with it). While the directory is out of reach, a process that reaches it finds it locked by us.
    pub(crate) fn hold(&self) -> Name {
        let lock = self.lock.file();
        if lock.descriptor_is_ours().is_err() { Name::Other } else { lock.name() }
    }

    /// Replaces a broken lock by a lock on the file that is at its path now, which is made if it is missing. `false` if
    /// another process holds it, or has held it meanwhile, which `was_not_taken` determines while the lock is held.
    pub(super) fn renew(&mut self, was_not_taken: impl FnOnce(&Disk) -> io::Result<bool>) -> io::Result<bool> {
        // A directory that was moved away and back between two looks seems to have lost its lock. It is there again,
        // and we hold it, so it could not be locked a second time.
        if matches!(self.hold(), Name::Same) {
            return Ok(true);
        }
        let lock = self.lock.file();
        lock.home().check()?;
        let Some(fresh) = lock.disk().open_locked(lock.path(), Open::EnsureExists)? else {
            return Ok(matches!(self.hold(), Name::Same));
        };
        if !fresh.file().is_same_file()? {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its lock file is being replaced"));
        }
        let is_ours = was_not_taken(lock.disk())?;
        if is_ours {
            self.lock = fresh;
        }
        Ok(is_ours)
    }

    /// Whether our lock file has lost its name.
    pub(super) fn is_unlinked(&self) -> bool {
        self.lock.file().is_unlinked().unwrap_or(false)
    }

    /// Whether another lock file may have its name.
    pub(super) fn may_be_replaced(&self) -> bool {
        let lock = self.lock.file();
        lock.disk().exists(lock.path()).unwrap_or(true)
    }
}

/// Claims the first shard that no process holds and that is not in `unusable`, or creates one if there is none. If an
/// existing shard cannot be claimed, the error is [`QueueError::Shard`]: the caller reports it, adds the shard to
/// `unusable` and calls again.
pub(crate) fn claim(disk: &Disk, project_dir: &Path, unusable: &[PathBuf]) -> Result<Claim, QueueError> {
    disk.make_dir(project_dir).map_err(|source| failed(project_dir, source))?;
    vet_shards_dir(disk, project_dir)?;
    let taken = shard_numbers(disk, project_dir)?;
    for number in taken.iter().filter(|number| !unusable.contains(&shard_dir(project_dir, **number))) {
        if let Some(claim) = try_existing(disk, project_dir, *number)? {
            return Ok(claim);
        }
    }
    // Another process may create the same shard at the same time: then its lock or its owner decides, and the next
    // number is tried.
    for number in (0..SHARDS_MAX).filter(|number| !taken.contains(number)) {
        let dir = shard_dir(project_dir, number);
        match try_claim(disk, &dir, number) {
            Ok(Some(claim)) => return Ok(Claim { is_new: true, ..claim }),
            Ok(None) => {}
            Err(QueueError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied && disk.exists(&dir).unwrap_or(false) => {}
            Err(error) => return Err(error),
        }
    }
    Err(QueueError::TooMany { path: project_dir.to_path_buf(), most: SHARDS_MAX })
}

/// Claims the next shard after `after` that no process holds. If one cannot be claimed, the error is
/// [`QueueError::Shard`]: the caller goes on after its number.
pub(crate) fn claim_orphan(
    disk: &Disk,
    project_dir: &Path,
    after: Option<u32>,
    is_wanted: &dyn Fn(u32) -> bool,
) -> Result<Option<Claim>, QueueError> {
    vet_shards_dir(disk, project_dir)?;
    for number in shard_numbers(disk, project_dir)? {
        if after.is_some_and(|after| number <= after) || !is_wanted(number) {
            continue;
        }
        if let Some(claim) = try_existing(disk, project_dir, number)? {
            return Ok(Some(claim));
        }
    }
    Ok(None)
}

/// Claims the shard of this number, which exists; `None` if a process holds it.
#[cfg(feature = "inspect")]
pub(crate) fn claim_shard(disk: &Disk, shards_dir: &Path, number: u32) -> Result<Option<Claim>, QueueError> {
    vet_shards_dir(disk, shards_dir)?;
    try_existing(disk, shards_dir, number)
}

/// Claims a directory in which a shard is being prepared, beside the shards and under a name of its own, so that no other
/// process takes it for one. `None` if a process holds it.
#[cfg(feature = "inspect")]
pub(crate) fn claim_unpublished(disk: &Disk, shards_dir: &Path, name: &str) -> Result<Option<Claim>, QueueError> {
    vet_shards_dir(disk, shards_dir)?;
    try_claim(disk, &shards_dir.join(name), SHARDS_MAX)
}

/// Makes a closed directory of [`claim_unpublished`] the next shard, durably. Returns its new path.
#[cfg(feature = "inspect")]
pub(crate) fn publish(disk: &Disk, shards_dir: &Path, name: &str) -> Result<PathBuf, QueueError> {
    let (from, taken) = (shards_dir.join(name), shard_numbers(disk, shards_dir)?);
    for number in (0..SHARDS_MAX).filter(|number| !taken.contains(number)) {
        let to = shard_dir(shards_dir, number);
        match disk.rename(&from, &to) {
            Ok(()) => {
                disk.sync_dir(shards_dir).map_err(|source| failed(shards_dir, source))?;
                return Ok(to);
            }
            // Another process has just made it.
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {}
            Err(source) => return Err(failed(&from, source)),
        }
    }
    Err(QueueError::TooMany { path: shards_dir.to_path_buf(), most: SHARDS_MAX })
}

/// Whether no process holds some shard that `is_wanted`. Shards that cannot be claimed are skipped.
fn any_orphan(disk: &Disk, project_dir: &Path, is_wanted: &dyn Fn(u32) -> bool) -> bool {
    let mut after = None;
    loop {
        match claim_orphan(disk, project_dir, after, is_wanted) {
            Ok(found) => return found.is_some(),
            Err(QueueError::Shard { number, .. }) => after = Some(number),
            Err(_) => return false,
        }
    }
}

/// Whether there is a shard that no process holds and that may contain events. Changes nothing; a lock is held for a
/// moment.
pub(crate) fn has_orphan(disk: &Disk, shards_dir: &Path) -> bool {
    let may_hold_events = |number| !is_known_empty(disk, &shard_dir(shards_dir, number));
    any_orphan(disk, shards_dir, &may_hold_events)
}

/// Whether there is a shard that no process holds and that may contain dead letters. Otherwise like [`has_orphan`].
pub(crate) fn has_orphan_with_dead(disk: &Disk, shards_dir: &Path) -> bool {
    let may_hold_dead = |number| {
        let ledger = StatusPage::peek(disk, &shard_dir(shards_dir, number)).and_then(|page| page.ledger);
        ledger.is_none_or(|ledger| ledger.dead_lettered > 0)
    };
    any_orphan(disk, shards_dir, &may_hold_dead)
}

/// The numbers of the shards in a directory, in ascending order.
pub(crate) fn shard_numbers(disk: &Disk, project_dir: &Path) -> Result<Vec<u32>, QueueError> {
    let names = match disk.list(project_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(|source| failed(project_dir, source))?,
    };
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| parse_shard_name(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The directories of the shards, as far as they can be listed.
pub(crate) fn shard_dirs(disk: &Disk, project_dir: &Path) -> Vec<PathBuf> {
    let numbers = shard_numbers(disk, project_dir).unwrap_or_default();
    numbers.into_iter().map(|number| shard_dir(project_dir, number)).collect()
}

pub(crate) fn shard_dir(project_dir: &Path, number: u32) -> PathBuf {
    project_dir.join(format!("shard-{number}"))
}

fn parse_shard_name(name: &str) -> Option<u32> {
    let number: u32 = name.strip_prefix("shard-")?.parse().ok()?;
    // Only the spelling that this library writes.
    (format!("shard-{number}") == name).then_some(number)
}

/// Fails unless the directory of the shards, and that of their project, belong to this user alone: a process that may
/// change them decides which files are written and what is delivered.
fn vet_shards_dir(disk: &Disk, dir: &Path) -> Result<(), QueueError> {
    let name_of = |dir: &Path| dir.file_name().and_then(|name| name.to_str()).is_some_and(is_project);
    let project_dir = dir.parent().filter(|parent| name_of(parent));
    project_dir.into_iter().chain([dir]).try_for_each(|dir| vet(disk, dir))
}

fn vet(disk: &Disk, dir: &Path) -> Result<(), QueueError> {
    match disk.vet_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.raw_os_error().is_none() => Err(QueueError::Exposed(error)),
        other => other.map_err(|source| failed(dir, source)),
    }
}

fn try_existing(disk: &Disk, project_dir: &Path, number: u32) -> Result<Option<Claim>, QueueError> {
    try_claim(disk, &shard_dir(project_dir, number), number).map_err(|error| {
        if error.concerns_all_shards() { error } else { QueueError::Shard { number, source: Box::new(error) } }
    })
}

fn try_claim(disk: &Disk, dir: &Path, number: u32) -> Result<Option<Claim>, QueueError> {
    disk.make_dir(dir).map_err(|source| failed(dir, source))?;
    vet(disk, dir)?;
    let path = dir.join("lock");
    let lock = disk.open_locked(&path, Open::EnsureExists).map_err(|source| unsupported(&path, source))?;
    let Some(lock) = lock else { return Ok(None) };
    // The file may have been removed or replaced between opening and locking; then the lock protects nothing. Further
    // hard links, as some backups make them, do no harm: a process that opens one of them meets the same lock.
    if !lock.file().is_same_file().map_err(|source| failed(&path, source))? {
        return Ok(None);
    }
    // On a file system that grants the same lock twice, two processes would write one journal.
    let again = disk.open_locked(&path, Open::EnsureExists).map_err(|source| unsupported(&path, source))?;
    if again.is_some() {
        return Err(QueueError::NoLocks { path });
    }
    Ok(Some(Claim { dir: dir.to_path_buf(), number, is_new: false, lock }))
}

fn unsupported(path: &Path, source: io::Error) -> QueueError {
    let is_unsupported =
        source.kind() == io::ErrorKind::Unsupported || source.raw_os_error() == Some(nix::libc::ENOLCK);
    if is_unsupported { QueueError::NoLocks { path: path.to_path_buf() } } else { failed(path, source) }
}

fn failed(path: &Path, source: io::Error) -> QueueError {
    QueueError::Io { path: path.to_path_buf(), source }
}

/// A queue of another project under the same `queue_dir` that contains events and that no process delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrphanedQueue {
    /// The name of its directory.
    pub(crate) project: String,
    pub(crate) path: PathBuf,
    /// The project, if one of its stores could be read.
    pub(crate) owner: Option<Project>,
    /// The number of events, according to the status pages.
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    /// When the oldest of them was checkpointed.
    pub(crate) oldest_at: Option<WallNanos>,
}

/// Finds the projects under `queue_dir`, other than `ours`, of which no process holds a shard: a process that holds one
/// delivers the others too. `groups` names the subdirectories of a project that contain further shards. No file is
/// changed; each lock is held for a moment while the store is read.
pub(crate) fn orphaned(
    disk: &Disk,
    queue_dir: &Path,
    ours: &str,
    groups: &[&str],
) -> Result<Vec<OrphanedQueue>, QueueError> {
    let names = disk.list(queue_dir).map_err(|source| failed(queue_dir, source))?;
    let others = names.into_iter().filter(|name| is_project(name) && name != ours);
    Ok(others.filter_map(|name| look_at(disk, queue_dir.join(&name), name, groups)).collect())
}

fn look_at(disk: &Disk, path: PathBuf, project: String, groups: &[&str]) -> Option<OrphanedQueue> {
    let mut queue = OrphanedQueue { project, path, owner: None, events: 0, bytes: 0, oldest_at: None };
    let group_dirs: Vec<PathBuf> = groups.iter().map(|group| queue.path.join(group)).collect();
    for dir in [queue.path.clone()].into_iter().chain(group_dirs) {
        for number in shard_numbers(disk, &dir).unwrap_or_default() {
            let shard = shard_dir(&dir, number);
            // Unlike a claim, this creates no file.
            match disk.open_locked(&shard.join("lock"), Open::ReadOnly) {
                Ok(Some(_lock)) => queue.add(disk, &shard),
                Ok(None) => return None,
                // A shard that cannot be examined contributes nothing; it stays where it is.
                Err(_) => {}
            }
        }
    }
    Some(queue).filter(|queue| queue.events > 0)
}

impl OrphanedQueue {
    fn add(&mut self, disk: &Disk, shard: &Path) {
        let Some(page) = StatusPage::peek(disk, shard) else { return };
        let ledger = page.ledger.unwrap_or_default();
        let events = page.queued_events();
        if events == 0 {
            return;
        }
        self.owner = self.owner.take().or_else(|| store::identify(disk, shard));
        self.events = self.events.saturating_add(events);
        self.bytes = self.bytes.saturating_add(ledger.queued_bytes);
        self.oldest_at = [self.oldest_at, page.oldest_at].into_iter().flatten().min();
    }
}

/// Whether the last owner closed the shard with nothing in it. Reads the status page and the beginning of the store, and
/// takes no lock.
pub(crate) fn is_known_empty(disk: &Disk, shard_dir: &Path) -> bool {
    let Some(page) = StatusPage::peek(disk, shard_dir) else { return false };
    let checkpointed = page.ledger.is_some_and(|ledger| ledger.queued_events == 0 && ledger.accepted == page.accepted);
    // The page may be that of another shard, or of another day.
    let is_of_this_store = || page.closed_store.is_none_or(|seal| store::seal_of(disk, shard_dir) == Some(seal));
    page.clean && !page.died_in_store && checkpointed && is_of_this_store()
}

fn is_project(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
