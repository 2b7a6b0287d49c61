//! Where queues are, whose they are, and which process owns them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use super::error::InspectError;
use crate::config::Config;
use crate::queue::{self, Project};
use crate::sys::disk::Disk;

/// The directory of the analytics events' shards is the project's own; the others have a subdirectory.
const LANES: [(&str, &str); 2] = [("analytics", ""), ("ai", "ai")];

/// The directory of queues that a [`Config`] without [`queue_dir`](Config::queue_dir) uses in this environment:
/// `POSTHOG_QUEUE_DIR`, or `posthog` below `STATE_DIRECTORY`, `XDG_STATE_HOME` or `~/.local/state`. A daemon with
/// another environment uses another directory.
pub fn default_queue_dir() -> Result<PathBuf, InspectError> {
    Config::new("").place().map_err(|error| InspectError::NoDirectory(error.to_string()))
}

/// The directory of a queue that an import fills, beside the shards.
pub(super) const UNPUBLISHED: &str = "importing";

/// One queue: a shard of a project and lane, or one that an import fills. Named by its path; nothing is opened yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueDir {
    path: PathBuf,
    queue_dir: PathBuf,
    project: String,
    lane: &'static str,
    number: u32,
    is_import: bool,
}

/// The process that owns a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Owner {
    /// Its process id. `None` where it cannot be known: the process runs in another container.
    pub pid: Option<u32>,
    /// When it opened the queue, by its own clock.
    pub since: Option<SystemTime>,
}

/// The queues below `dir`, which is a queue directory ([`Config::queue_dir`]), the directory of a project in it, or that of
/// one queue. Sorted by project, lane and number. Directories that do not belong to the library are skipped.
///
/// Fails if `dir` cannot be read or contains no queue: with [`InspectError::UnfinishedImport`] if there is only one that an
/// import fills or has left.
pub fn queues(dir: &Path) -> Result<Vec<QueueDir>, InspectError> {
    let (path, found) = find(dir)?;
    let (imports, queues): (Vec<_>, Vec<_>) = found.into_iter().partition(|queue| queue.is_import);
    match imports.into_iter().next() {
        _ if !queues.is_empty() => Ok(queues),
        Some(import) => Err(InspectError::UnfinishedImport { path, import: import.path }),
        None => Err(InspectError::NotAQueue { path }),
    }
}

/// The queues below `dir`, as [`queues`] finds them, and behind those of a lane the queue of an import that is under way or
/// was not finished ([`QueueDir::is_import`]). No program sees or sends its events, but they are on the disk.
///
/// Fails if `dir` cannot be read or contains neither.
pub fn queues_and_imports(dir: &Path) -> Result<Vec<QueueDir>, InspectError> {
    let (dir, found) = find(dir)?;
    if found.is_empty() { Err(InspectError::NotAQueue { path: dir }) } else { Ok(found) }
}

fn find(dir: &Path) -> Result<(PathBuf, Vec<QueueDir>), InspectError> {
    let dir = std::path::absolute(dir).map_err(|source| InspectError::io(dir, source))?;
    fs::read_dir(&dir).map_err(|source| InspectError::io(&dir, source))?;
    let mut found = Vec::new();
    if let Some(queue) = QueueDir::at(&dir) {
        found.push(queue);
    } else if let (true, Some(above)) = (is_project(&dir), dir.parent()) {
        of_project(above, &dir, &mut found)?;
    } else {
        for name in Disk::default().list(&dir).map_err(|source| InspectError::io(&dir, source))? {
            let project = dir.join(name);
            if is_project(&project) && project.is_dir() {
                of_project(&dir, &project, &mut found)?;
            }
        }
    }
    let place = |queue: &QueueDir| (queue.project.clone(), queue.lane_index(), queue.is_import, queue.number);
    found.sort_by_cached_key(place);
    Ok((dir, found))
}

fn of_project(queue_dir: &Path, project: &Path, found: &mut Vec<QueueDir>) -> Result<(), InspectError> {
    for (lane, below) in LANES {
        let dir = if below.is_empty() { project.to_path_buf() } else { project.join(below) };
        let queue = |path: PathBuf, number| QueueDir {
            path,
            queue_dir: queue_dir.to_path_buf(),
            project: name_of(project),
            lane,
            number,
            is_import: false,
        };
        if is_stray(&dir) {
            continue;
        }
        let numbers = queue::shard_numbers(&Disk::default(), &dir).map_err(|error| InspectError::queue(&dir, error))?;
        let mut known = BTreeSet::new();
        for (number, path) in numbers.into_iter().map(|number| (number, queue::shard_dir(&dir, number))) {
            // A link to a queue that was found already is not a second one.
            let is_known = fs::metadata(&path).is_ok_and(|found| !known.insert((found.dev(), found.ino())));
            if !is_known && !is_stray(&path) {
                found.push(queue(path, number));
            }
        }
        let unpublished = dir.join(UNPUBLISHED);
        if fs::symlink_metadata(&unpublished).is_ok_and(|found| found.is_dir()) {
            found.push(QueueDir { is_import: true, ..queue(unpublished, 0) });
        }
    }
    Ok(())
}

/// Whether something else is where a directory should be: a file, a pipe, a link to none. The library steps over it.
fn is_stray(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(found) => !found.is_dir(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound && fs::symlink_metadata(path).is_ok(),
    }
}

/// What stands in a project's directory where directories of queues should be.
pub(super) fn strays(project_dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (_, below) in LANES {
        let dir = if below.is_empty() { project_dir.to_path_buf() } else { project_dir.join(below) };
        let shards = queue::shard_dirs(&Disk::default(), &dir);
        found.extend(shards.into_iter().chain([dir.join(UNPUBLISHED), dir]).filter(|path| is_stray(path)));
    }
    found
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn is_project(dir: &Path) -> bool {
    let name = name_of(dir);
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl QueueDir {
    /// The queue at this path, by the names of the path alone.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let is_import = name_of(path) == UNPUBLISHED;
        let number = if is_import { 0 } else { name_of(path).strip_prefix("shard-")?.parse().ok()? };
        let above = path.parent()?;
        let (lane, project) = if name_of(above) == "ai" { ("ai", above.parent()?) } else { ("analytics", above) };
        let queue_dir = project.parent().unwrap_or(project).to_path_buf();
        // Anything else may have that name too.
        let is_queue = !is_import || is_project(project);
        is_queue.then(|| Self { path: path.into(), queue_dir, project: name_of(project), lane, number, is_import })
    }

    /// The directory of the queue, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that contains all queues ([`Config::queue_dir`]).
    pub fn queue_dir(&self) -> &Path {
        &self.queue_dir
    }

    /// The name of the project's directory: 32 hexadecimal digits, from the host and the key.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// `analytics` or `ai`.
    pub fn lane(&self) -> &'static str {
        self.lane
    }

    /// The number of the shard; 0 for the queue of an import.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether this is no shard but the queue that an import fills, or has left because it was not finished. Nothing in it
    /// is sent before the import has ended.
    pub fn is_import(&self) -> bool {
        self.is_import
    }

    /// What an operator has to know of the queue that an import has left.
    pub(super) fn why_unfinished(&self) -> String {
        format!(
            "an import into it was not finished, so nothing of it is sent; repeat the same import, which goes on (or \
             begins anew with --restart), or remove {} to give it up",
            self.path.display()
        )
    }

    fn lane_index(&self) -> usize {
        LANES.iter().position(|(lane, _)| *lane == self.lane).unwrap_or(LANES.len())
    }

    /// Whether it is the first queue of its project: what concerns all of them is said there.
    pub(super) fn is_first(&self) -> bool {
        find(&self.project_dir()).is_ok_and(|(_, all)| all.first().is_some_and(|first| first.path == self.path))
    }

    /// The directory of its project.
    pub(crate) fn project_dir(&self) -> PathBuf {
        self.queue_dir.join(&self.project)
    }

    /// The directory of its shard group: that of the project, or the lane's below it.
    pub(crate) fn group_dir(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// The process that owns the queue; `None` if no living process does. Where the system lists the locks of living
    /// processes, no lock is taken; otherwise a shared lock for a moment, for which a process that opens the queue waits.
    pub fn owner(&self) -> Result<Option<Owner>, InspectError> {
        let path = self.path.join("lock");
        let failed = |source| InspectError::io(&path, source);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let disk = Disk::of_any_user();
        let started_at = Some(queue::predecessor(&disk, &self.path).started_at).filter(|at| *at != 0);
        let since = started_at.and_then(|at| UNIX_EPOCH.checked_add(Duration::from_nanos(at)));
        if let Some(pid) = holder_of(&metadata) {
            return Ok(Some(Owner { pid: Some(pid), since }));
        }
        let is_locked = disk.is_locked(&path).map_err(failed)?;
        // A process may have taken it since the list was read: then it is in the list by now.
        Ok(is_locked.then(|| Owner { pid: holder_of(&metadata), since }))
    }

    /// The host and the project key whose events the queue contains, if its store can be read.
    pub fn identity(&self) -> Option<(String, String)> {
        let project = self.project_of_store()?;
        Some((project.host, project.api_key))
    }

    pub(crate) fn project_of_store(&self) -> Option<Project> {
        queue::project_of(&Disk::of_any_user(), &self.path)
    }

    /// The project that the name of the directory stands for, from the store of the queue or of another one beside it.
    pub(super) fn project_by_name(&self) -> Option<Project> {
        let is_ours = |project: &Project| project.dir_name() == self.project;
        self.project_of_store().filter(is_ours).or_else(|| {
            let (_, others) = find(&self.project_dir()).unwrap_or_default();
            others.iter().filter_map(Self::project_of_store).find(is_ours)
        })
    }

    /// Whether there is nothing in it that could be opened: its first owner ended before it had made a store or a journal,
    /// for example because the disk was full. Every command that opens queues decides by this; a program takes such a
    /// directory as a new one.
    pub fn is_blank(&self) -> bool {
        let holds_events = |name: &OsStr| {
            name.to_str().is_none_or(|name| {
                ["queue.redb", "queue.redb.ready"].contains(&name)
                    || name.starts_with("journal-")
                    || name.starts_with("damaged-")
            })
        };
        // What cannot be listed is not known to be blank.
        let Ok(mut names) = fs::read_dir(&self.path) else { return false };
        !names.any(|entry| entry.map_or(true, |entry| holds_events(&entry.file_name())))
    }
}

/// The process that holds a lock made by `flock` on this file, according to the kernel's list. `None` also where the list
/// names another device than `stat` does (btrfs), or a process of another container holds the lock.
#[cfg(target_os = "linux")]
fn holder_of(file: &fs::Metadata) -> Option<u32> {
    let (device, inode) = (file.dev(), file.ino());
    let device = format!("{:02x}:{:02x}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    // "1: FLOCK  ADVISORY  WRITE 4711 fd:01:131079 0 EOF"
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, file, ..] = fields.as_slice() else { return None };
        let (found_device, found_inode) = file.rsplit_once(':')?;
        let is_it = found_device == device && found_inode.parse() == Ok(inode);
        pid.parse().ok().filter(|pid| is_it && *pid != 0)
    })
}

#[cfg(not(target_os = "linux"))]
fn holder_of(_file: &fs::Metadata) -> Option<u32> {
    None
}

/// A path as JSON; what is not UTF-8 in it is replaced. Every path in a result goes this way: serde's own refuses such a
/// path, when the work that the result is about is done.
pub(super) fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// As [`lossy`], for a path that may be missing.
pub(super) fn lossy_option<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
}

/// As [`lossy`], for several paths.
pub(super) fn lossy_each<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}
