//! [`OwnedQueue`]: a queue that this process owns for as long as it changes it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use super::error::InspectError;
use super::places::{QueueDir, UNPUBLISHED};
use crate::queue::{self, Claim, Finding, Opened, Project, Queue, QueueOptions, journal};
use crate::sys::clock::{Clock, WallNanos};
use crate::sys::disk::Disk;
use crate::sys::{limits, wording};

/// A queue without another owner, opened by this process. Opening recovers it as the next start of its program would: what
/// is in the journal is moved into the store, and a damaged file is renamed and salvaged. Other processes find the queue
/// in use until this is dropped.
#[derive(Debug)]
pub(crate) struct OwnedQueue {
    pub(crate) queue: Arc<Queue>,
    /// What recovery found, in the order in which it was found.
    pub(crate) findings: Vec<Finding>,
    /// Events that were in the journal.
    pub(crate) replayed: u64,
    clock: Clock,
}

impl QueueDir {
    /// Opens the queue to change it. `None` if there is nothing in it to be opened ([`is_blank`](Self::is_blank)). Fails
    /// while a living process owns it, and for a user to whom it does not belong.
    pub(crate) fn own(&self, disk: &Disk) -> Result<Option<OwnedQueue>, InspectError> {
        self.check_user()?;
        let claim = self.claim(disk)?;
        if self.is_blank() {
            return Ok(None);
        }
        // A damaged store is not replaced by the way: that would keep it as a further copy of what it contains.
        let has_store = disk.exists(&self.path().join("queue.redb")).unwrap_or(true);
        let project = if has_store { self.project_of_store() } else { self.project_by_name() };
        let project = project.ok_or_else(|| InspectError::Nameless { path: self.path().into() })?;
        self.open(disk, claim, project, false).map(Some)
    }

    /// Opens the queue of this project to change it; if it `rebuilds`, the store is replaced by one that is made of its
    /// readable rows.
    pub(crate) fn own_as(&self, disk: &Disk, project: Project, rebuilds: bool) -> Result<OwnedQueue, InspectError> {
        self.check_user()?;
        self.open(disk, self.claim(disk)?, project, rebuilds)
    }

    fn claim(&self, disk: &Disk) -> Result<Claim, InspectError> {
        let claim = if self.is_import() {
            queue::claim_unpublished(disk, self.group_dir(), UNPUBLISHED)
        } else {
            queue::claim_shard(disk, self.group_dir(), self.number())
        };
        match claim.map_err(|error| InspectError::queue(self.path(), error))? {
            Some(claim) => Ok(claim),
            None => {
                let pid = self.owner()?.and_then(|owner| owner.pid);
                Err(InspectError::Owned { path: self.path().into(), pid })
            }
        }
    }

    fn open(&self, disk: &Disk, claim: Claim, project: Project, rebuilds: bool) -> Result<OwnedQueue, InspectError> {
        let clock = Clock::default();
        let options = QueueOptions {
            project,
            queue_dir: self.queue_dir().to_path_buf(),
            arena_bytes: self.arena_bytes(),
            lock_wait: Duration::from_secs(1),
            cache_bytes: limits::STORE_CACHE_BYTES,
            reserve_bytes: limits::RESERVE_BYTES,
            // Nothing may be evicted here: the bounds are the program's.
            dead_bytes: u64::MAX,
            // The page goes on describing the last run of the program.
            adopts: true,
        };
        let Opened { queue, replayed, findings, .. } =
            Queue::open_as(disk, &options, claim, rebuilds, clock.wall_nanos())
                .map_err(|error| InspectError::queue(self.path(), error))?;
        Ok(OwnedQueue { queue: Arc::new(queue), findings, replayed, clock })
    }

    /// Fails unless the queue belongs to the user of this process: files that another user, also root, makes in it would
    /// keep its program from opening it.
    pub(crate) fn check_user(&self) -> Result<(), InspectError> {
        [self.path(), self.group_dir(), &self.project_dir()].into_iter().try_for_each(check_user)
    }

    /// The length of the arenas that the program has made, so that they need not be made again.
    fn arena_bytes(&self) -> usize {
        let lengths = journal::file_names().filter_map(|name| fs::metadata(self.path().join(name)).ok());
        let longest = lengths.filter_map(|file| usize::try_from(file.len()).ok()).max();
        let default = if self.lane() == "ai" { limits::AI_JOURNAL_BYTES } else { limits::JOURNAL_BYTES_DEFAULT };
        longest.filter(|bytes| limits::JOURNAL_BYTES.contains(bytes)).unwrap_or(default)
    }
}

/// Fails if files cannot be created in `dir`, or could not be used by the program that `dir` is for: as root in a
/// directory of another user. A directory that does not exist yet is judged by the one that it will be in.
pub(super) fn check_user(dir: &Path) -> Result<(), InspectError> {
    let exists = dir.exists();
    let Some(nearest) = dir.ancestors().find(|path| path.exists()) else { return Ok(()) };
    // A disk with a fault is often mounted like that; otherwise the first file that is opened would be blamed.
    if access(nearest, AccessFlags::W_OK) == Err(Errno::EROFS) {
        let why = "the file system is mounted read-only; nothing was changed; mount it for writing, or copy the queue to \
                   another disk and work there";
        let source = std::io::Error::new(std::io::ErrorKind::ReadOnlyFilesystem, why);
        return Err(InspectError::io(dir, source));
    }
    let metadata = fs::metadata(nearest).map_err(|source| InspectError::io(nearest, source))?;
    let own = nix::unistd::geteuid().as_raw();
    // Whether another user than root may create a directory there is for the system to say.
    if metadata.uid() == own || (own != 0 && !exists) || Disk::default().vet_dir(nearest).is_ok() {
        return Ok(());
    }
    Err(InspectError::other_user(dir))
}

impl OwnedQueue {
    /// The time.
    pub(crate) fn now(&self) -> WallNanos {
        self.clock.wall_nanos()
    }

    /// What recovery found, as text for an operator.
    pub(crate) fn notes(&self) -> Vec<String> {
        notes(&self.findings)
    }

    /// Events that recovery found to be lost.
    pub(crate) fn lost(&self) -> u64 {
        lost(&self.findings)
    }
}

/// What recovery found, as text for an operator; empty for a sound queue.
pub(super) fn notes(findings: &[Finding]) -> Vec<String> {
    findings.iter().filter_map(note).collect()
}

/// Events that recovery found to be lost.
pub(super) fn lost(findings: &[Finding]) -> u64 {
    let lost = |finding: &Finding| match finding {
        Finding::Salvaged { lost, .. } => *lost,
        Finding::Missing { events, .. } => *events,
        _ => 0,
    };
    findings.iter().map(lost).fold(0, u64::saturating_add)
}

fn behind(doubt: Option<&String>) -> String {
    doubt.map_or(String::new(), |doubt| format!("; {doubt}"))
}

fn note(finding: &Finding) -> Option<String> {
    Some(match finding {
        // `repair` asks for this; the reason that the store gives is another one.
        Finding::Salvaged { path, lost, doubt, .. } if path.ends_with("queue.redb") => {
            format!(
                "the store was replaced; {} of it lost; the old one is kept as {}{}",
                wording::count(*lost, "event"),
                path.display(),
                behind(doubt.as_ref())
            )
        }
        Finding::Salvaged { path, why, lost, doubt } => {
            let lost = wording::count(*lost, "event");
            format!("{why}: it is kept as {}; {lost} lost{}", path.display(), behind(doubt.as_ref()))
        }
        Finding::Missing { events, after_restart: true } => {
            format!("{} lost when the machine went down before the disk had them", wording::count(*events, "event"))
        }
        Finding::Missing { events, .. } => {
            format!("{} lost: accepted, and in no file", wording::count(*events, "event"))
        }
        Finding::NotCheckpointed { error } => {
            format!("the journal could not be moved into the store ({error}); its events stay in the journal")
        }
        Finding::StoreVerified | Finding::DiedInTask => return None,
    })
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        self.queue.close();
    }
}
