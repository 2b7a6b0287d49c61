//! Whose directory is whose: the names of project and shard directories, and the lock that makes a shard somebody's own.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::orphaned::{is_known_empty, is_known_without_dead};
use crate::sys::disk::{Disk, Lock, Name, Open};

/// Shards of one project, at most: a bound on what a fork bomb can leave behind.
const SHARDS_MAX: u32 = 4096;

/// Where the shards of AI events lie, in the directory of their project.
const AI_DIR: &str = "ai";

/// The project that a queue belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Project {
    /// Normalised host.
    pub(crate) host: String,
    /// The public, write-only project key.
    pub(crate) api_key: String,
}

impl Project {
    /// Identifies the project; 256 bits.
    pub(crate) fn hash(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        // The separator cannot occur in a host, so no two pairs have the same text.
        hasher.update(self.host.as_bytes());
        hasher.update(b"\n");
        hasher.update(self.api_key.as_bytes());
        hasher.finalize().into()
    }

    /// The name of its directory: the first 128 bits of its hash.
    pub(crate) fn dir_name(&self) -> String {
        self.hash().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Where the shards of one of its lanes lie.
    pub(crate) fn lane_dir(&self, queue_dir: &Path, lane: Lane) -> PathBuf {
        lane.dir_in(&queue_dir.join(self.dir_name()))
    }
}

/// Which of a project's queues. A lane has shards, bounds and an endpoint of its own, so that neither can hold the other up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// What `capture` takes.
    Analytics,
    /// What `capture_ai` takes.
    Ai,
}

impl Lane {
    pub(crate) const ALL: [Lane; 2] = [Lane::Analytics, Lane::Ai];

    /// Where its shards lie in the directory of a project. Analytics came first, and lies where it always did.
    pub(crate) fn dir_in(self, project_dir: &Path) -> PathBuf {
        match self {
            Lane::Analytics => project_dir.to_path_buf(),
            Lane::Ai => project_dir.join(AI_DIR),
        }
    }
}

/// Why no shard could be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    /// A directory or its lock could not be created or opened.
    #[error("{path:?}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory is another user's, or every user may write to it.
    #[error("{0}")]
    Exposed(io::Error),
    /// Two opens both got the lock, or locking is not supported.
    #[error("the file system of {path:?} has no working file locks")]
    NoLocks {
        /// Where.
        path: PathBuf,
    },
    /// More shards than any sane number of processes would leave.
    #[error("all {SHARDS_MAX} queues that {path:?} may hold are in use by other processes")]
    TooMany {
        /// Where.
        path: PathBuf,
    },
    /// One shard cannot be had, for a reason of its own: the others are as good as ever.
    #[error("{source}")]
    Shard {
        /// Its number.
        number: u32,
        /// Why.
        #[source]
        source: Box<ClaimError>,
    },
}

impl ClaimError {
    /// Whether every other shard would fail in the same way: the disk is full or read-only, locks do not work, the process has no
    /// descriptor left.
    pub(super) fn concerns_all(&self) -> bool {
        match self {
            ClaimError::Io { source, .. } => is_of_the_machine(source),
            ClaimError::NoLocks { .. } | ClaimError::TooMany { .. } => true,
            ClaimError::Exposed(_) | ClaimError::Shard { .. } => false,
        }
    }
}

/// Whether an error says something about the disk or the process, and not about the file or directory that it was met at.
pub(super) fn is_of_the_machine(error: &io::Error) -> bool {
    use io::ErrorKind::{OutOfMemory, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem | OutOfMemory)
        || matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE))
}

/// A shard directory that is ours while this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    dir: PathBuf,
    number: u32,
    is_new: bool,
    lock: Lock,
}

/// What the shard's own path says about a claim.
#[derive(Debug)]
pub(crate) enum Hold {
    /// The lock is where it was, and ours.
    Holds,
    /// The directory is where it was, and our lock is not in it, or the program has closed our descriptor, and the lock with it.
    Broken,
    /// Nothing can be said: the directory is out of reach. Whoever reaches it finds it locked by us.
    OutOfReach(io::Error),
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

    /// Whether nobody had the shard before.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Looks whether the directory still is where it was, with our lock in it.
    pub(crate) fn hold(&self) -> Hold {
        let lock = self.lock.file();
        match lock.name() {
            _ if lock.descriptor_is_ours().is_err() => Hold::Broken,
            Name::Same => Hold::Holds,
            Name::Other => Hold::Broken,
            Name::OutOfReach(error) => Hold::OutOfReach(error),
        }
    }

    /// Takes the lock again that is there now, in place of a broken one; made anew where there is none. `false` if it is somebody else's, or
    /// was: `nobody_had_it` looks, while nobody can take it.
    pub(super) fn renew(&mut self, nobody_had_it: impl FnOnce(&Disk) -> io::Result<bool>) -> io::Result<bool> {
        let lock = self.lock.file();
        lock.home().check()?;
        let Some(fresh) = lock.disk().open_locked(lock.path(), Open::EnsureExists)? else { return Ok(false) };
        if !fresh.file().is_same_file()? {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its lock file is being replaced"));
        }
        let is_ours = nobody_had_it(lock.disk())?;
        if is_ours {
            self.lock = fresh;
        }
        Ok(is_ours)
    }

    /// Whether no name leads to our lock any more.
    pub(super) fn is_unlinked(&self) -> bool {
        self.lock.file().is_unlinked().unwrap_or(false)
    }

    /// Whether another lock may stand in its place.
    pub(super) fn may_be_replaced(&self) -> bool {
        let lock = self.lock.file();
        lock.disk().exists(lock.path()).unwrap_or(true)
    }
}

/// Takes over the first shard that nobody has and that is none of `unusable`, or creates one where there is none. One that exists and
/// cannot be had is a [`ClaimError::Shard`]: the caller reports it, adds it to `unusable` and calls again.
pub(crate) fn claim(disk: &Disk, project_dir: &Path, unusable: &[PathBuf]) -> Result<Claim, ClaimError> {
    disk.make_dir(project_dir).map_err(|source| failed(project_dir, source))?;
    vet_lane(disk, project_dir)?;
    let taken = shard_numbers(disk, project_dir)?;
    for number in taken.iter().filter(|number| !unusable.contains(&shard_dir(project_dir, **number))) {
        if let Some(claim) = try_existing(disk, project_dir, *number)? {
            return Ok(claim);
        }
    }
    // Somebody may create the same one at the same time: then its lock decides, or its owner, and we try the next.
    for number in (0..SHARDS_MAX).filter(|number| !taken.contains(number)) {
        let dir = shard_dir(project_dir, number);
        match try_claim(disk, &dir, number) {
            Ok(Some(claim)) => return Ok(Claim { is_new: true, ..claim }),
            Ok(None) => {}
            Err(ClaimError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied && disk.exists(&dir).unwrap_or(false) => {}
            Err(error) => return Err(error),
        }
    }
    Err(ClaimError::TooMany { path: project_dir.to_path_buf() })
}

/// The shards of a project that nobody has right now, tried one after the other from `after` on. One that cannot be had is a
/// [`ClaimError::Shard`]: the caller goes on after its number.
pub(crate) fn claim_orphan(
    disk: &Disk,
    project_dir: &Path,
    after: Option<u32>,
    is_wanted: &dyn Fn(u32) -> bool,
) -> Result<Option<(u32, Claim)>, ClaimError> {
    vet_lane(disk, project_dir)?;
    for number in shard_numbers(disk, project_dir)? {
        if after.is_some_and(|after| number <= after) || !is_wanted(number) {
            continue;
        }
        if let Some(claim) = try_existing(disk, project_dir, number)? {
            return Ok(Some((number, claim)));
        }
    }
    Ok(None)
}

/// Whether there is a shard that nobody has and that `is_wanted`. What cannot be had is stepped over.
fn any_orphan(disk: &Disk, project_dir: &Path, is_wanted: &dyn Fn(u32) -> bool) -> bool {
    let mut after = None;
    loop {
        match claim_orphan(disk, project_dir, after, is_wanted) {
            Ok(found) => return found.is_some(),
            Err(ClaimError::Shard { number, .. }) => after = Some(number),
            Err(_) => return false,
        }
    }
}

/// Whether a lane has a shard that nobody has and that may hold events. Nothing is changed; a lock is held for a moment.
pub(crate) fn has_orphan(disk: &Disk, lane_dir: &Path) -> bool {
    let may_hold_events = |number| !is_known_empty(disk, &shard_dir(lane_dir, number));
    any_orphan(disk, lane_dir, &may_hold_events)
}

/// Whether a lane has a shard that nobody has and that may hold dead letters. As [`has_orphan`].
pub(crate) fn has_orphan_with_dead(disk: &Disk, lane_dir: &Path) -> bool {
    let may_hold_dead = |number| !is_known_without_dead(disk, &shard_dir(lane_dir, number));
    any_orphan(disk, lane_dir, &may_hold_dead)
}

/// The numbers of a project's shards, lowest first.
pub(crate) fn shard_numbers(disk: &Disk, project_dir: &Path) -> Result<Vec<u32>, ClaimError> {
    let names = match disk.list(project_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(|source| failed(project_dir, source))?,
    };
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| parse_shard_name(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The directories of a project's shards, as far as they can be listed.
pub(crate) fn shard_dirs(disk: &Disk, project_dir: &Path) -> Vec<PathBuf> {
    let numbers = shard_numbers(disk, project_dir).unwrap_or_default();
    numbers.into_iter().map(|number| shard_dir(project_dir, number)).collect()
}

/// A shard's directory.
pub(crate) fn shard_dir(project_dir: &Path, number: u32) -> PathBuf {
    project_dir.join(format!("shard-{number}"))
}

fn parse_shard_name(name: &str) -> Option<u32> {
    let number: u32 = name.strip_prefix("shard-")?.parse().ok()?;
    // Only the one spelling that we write.
    (format!("shard-{number}") == name).then_some(number)
}

/// Fails unless the directories of a lane are this process's alone: whoever may change them decides what is sent, and which files are
/// written. The AI lane lies in the directory of its project.
fn vet_lane(disk: &Disk, lane_dir: &Path) -> Result<(), ClaimError> {
    let project_dir = if lane_dir.ends_with(AI_DIR) { lane_dir.parent() } else { None };
    project_dir.into_iter().chain([lane_dir]).try_for_each(|dir| vet(disk, dir))
}

fn vet(disk: &Disk, dir: &Path) -> Result<(), ClaimError> {
    match disk.vet_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.raw_os_error().is_none() => Err(ClaimError::Exposed(error)),
        other => other.map_err(|source| failed(dir, source)),
    }
}

fn try_existing(disk: &Disk, project_dir: &Path, number: u32) -> Result<Option<Claim>, ClaimError> {
    try_claim(disk, &shard_dir(project_dir, number), number).map_err(|error| {
        if error.concerns_all() { error } else { ClaimError::Shard { number, source: Box::new(error) } }
    })
}

fn try_claim(disk: &Disk, dir: &Path, number: u32) -> Result<Option<Claim>, ClaimError> {
    disk.make_dir(dir).map_err(|source| failed(dir, source))?;
    vet(disk, dir)?;
    let path = dir.join("lock");
    let lock = disk.open_locked(&path, Open::EnsureExists).map_err(|source| unsupported(&path, source))?;
    let Some(lock) = lock else { return Ok(None) };
    // Between opening and locking somebody may have removed or replaced the file: then the lock guards nothing. Further names of the
    // file, as backups by hard links make them, do not matter: whoever opens it by one of those meets the same lock.
    if !lock.file().is_same_file().map_err(|source| failed(&path, source))? {
        return Ok(None);
    }
    // A file system that grants the same lock twice would let two processes write one journal.
    let again = disk.open_locked(&path, Open::EnsureExists).map_err(|source| unsupported(&path, source))?;
    if again.is_some() {
        return Err(ClaimError::NoLocks { path });
    }
    Ok(Some(Claim { dir: dir.to_path_buf(), number, is_new: false, lock }))
}

fn unsupported(path: &Path, source: io::Error) -> ClaimError {
    match source.kind() {
        io::ErrorKind::Unsupported => ClaimError::NoLocks { path: path.to_path_buf() },
        _ if source.raw_os_error() == Some(nix::libc::ENOLCK) => ClaimError::NoLocks { path: path.to_path_buf() },
        _ => failed(path, source),
    }
}

fn failed(path: &Path, source: io::Error) -> ClaimError {
    ClaimError::Io { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(host: &str, api_key: &str) -> Project {
        Project { host: host.into(), api_key: api_key.into() }
    }

    #[test]
    fn projects_that_differ_in_key_or_host_have_different_directories() {
        let names = [project("https://a", "phc_1"), project("https://a", "phc_2"), project("https://b", "phc_1")]
            .map(|project| project.dir_name());
        assert!(names[0] != names[1] && names[0] != names[2] && names[1] != names[2]);
        assert!(names.iter().all(|name| name.len() == 32));
    }

    #[test]
    fn the_first_free_shard_is_taken_over_and_a_new_one_made_only_if_all_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::default();
        let first = claim(&disk, dir.path(), &[]).unwrap();
        let second = claim(&disk, dir.path(), &[]).unwrap();
        assert_eq!(shard_numbers(&disk, dir.path()).unwrap(), [0, 1]);
        assert!(claim_orphan(&disk, dir.path(), None, &|_| true).unwrap().is_none());
        let left = first.dir().to_path_buf();
        drop(first);
        assert_eq!(claim(&disk, dir.path(), &[]).unwrap().dir(), left);
        let (number, orphan) = claim_orphan(&disk, dir.path(), None, &|_| true).unwrap().unwrap();
        assert_eq!((number, orphan.dir()), (0, left.as_path()));
        assert!(claim_orphan(&disk, dir.path(), Some(0), &|_| true).unwrap().is_none());
        assert!(matches!(second.hold(), Hold::Holds));
    }

    #[test]
    fn an_orphan_is_a_shard_that_nobody_has_and_that_is_not_known_to_be_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, lane) = (Disk::default(), Lane::Ai.dir_in(dir.path()));
        assert!(!has_orphan(&disk, &lane), "the lane was never used");
        let claim = claim(&disk, &lane, &[]).unwrap();
        assert!(!has_orphan(&disk, &lane), "somebody has it");
        drop(claim);
        assert!(has_orphan(&disk, &lane), "its owner died before it could say what is in it");
        assert!(!has_orphan(&disk, dir.path()), "the other lane has shards of its own");
    }

    #[test]
    fn a_claim_is_out_of_reach_while_its_directory_is_moved_and_broken_where_its_lock_is_not_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let claim = claim(&Disk::default(), dir.path(), &[]).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::rename(claim.dir(), &elsewhere).unwrap();
        assert!(matches!(claim.hold(), Hold::OutOfReach(_)), "{:?}", claim.hold());
        std::fs::create_dir(claim.dir()).unwrap();
        std::fs::write(claim.dir().join("lock"), "").unwrap();
        assert!(matches!(claim.hold(), Hold::OutOfReach(_)), "another directory says nothing: {:?}", claim.hold());
        std::fs::remove_dir_all(claim.dir()).unwrap();
        std::fs::rename(&elsewhere, claim.dir()).unwrap();
        assert!(matches!(claim.hold(), Hold::Holds));
        std::fs::remove_file(claim.dir().join("lock")).unwrap();
        assert!(matches!(claim.hold(), Hold::Broken));
    }

    #[test]
    fn names_that_are_not_ours_are_no_shards() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["shard-", "shard-01", "shard--1", "shard-x", "Shard-1", "damaged-5"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert!(shard_numbers(&Disk::default(), dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_file_system_without_locks_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let gate = crate::sys::disk::fail_when(|call, _| {
            (call.op == crate::sys::disk::Op::Lock)
                .then(|| crate::sys::disk::Verdict::Fail(io::Error::from_raw_os_error(nix::libc::ENOLCK)))
        });
        let refused = claim(&Disk::gated(gate), dir.path(), &[]);
        assert!(matches!(refused, Err(ClaimError::NoLocks { .. })));
    }
}
