//! Where queues are, whose they are, and which process owns them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::InspectError;
use crate::config::Config;
use crate::queue::{self, Project};
use crate::sys::disk::{Disk, Open};

/// The directory of the analytics events' shards is the project's own; the others have a subdirectory.
const LANES: [(&str, &str); 2] = [("analytics", ""), ("ai", "ai")];

/// The directory of queues that a [`Config`] without [`queue_dir`](Config::queue_dir) uses in this environment:
/// `POSTHOG_QUEUE_DIR`, or `posthog` below `STATE_DIRECTORY`, `XDG_STATE_HOME` or `~/.local/state`. A daemon with
/// another environment uses another directory.
pub fn default_queue_dir() -> Result<PathBuf, InspectError> {
    Config::new("").place().map_err(|error| InspectError::NoDirectory(error.to_string()))
}

/// One queue: a shard of a project and lane. Named by its path; nothing is opened yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueDir {
    path: PathBuf,
    queue_dir: PathBuf,
    project: String,
    lane: &'static str,
    number: u32,
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
/// Fails if `dir` cannot be read or contains no queue.
pub fn queues(dir: &Path) -> Result<Vec<QueueDir>, InspectError> {
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
    found.sort_by(|a, b| (&a.project, a.lane_index(), a.number).cmp(&(&b.project, b.lane_index(), b.number)));
    if found.is_empty() { Err(InspectError::NotAQueue { path: dir }) } else { Ok(found) }
}

fn of_project(queue_dir: &Path, project: &Path, found: &mut Vec<QueueDir>) -> Result<(), InspectError> {
    for (lane, below) in LANES {
        let dir = if below.is_empty() { project.to_path_buf() } else { project.join(below) };
        let numbers = queue::shard_numbers(&Disk::default(), &dir).map_err(|error| InspectError::queue(&dir, error))?;
        found.extend(numbers.into_iter().map(|number| QueueDir {
            path: queue::shard_dir(&dir, number),
            queue_dir: queue_dir.to_path_buf(),
            project: name_of(project),
            lane,
            number,
        }));
    }
    Ok(())
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
        let number = name_of(path).strip_prefix("shard-")?.parse().ok()?;
        let above = path.parent()?;
        let (lane, project) = if name_of(above) == "ai" { ("ai", above.parent()?) } else { ("analytics", above) };
        let queue_dir = project.parent().unwrap_or(project).to_path_buf();
        Some(Self { path: path.into(), queue_dir, project: name_of(project), lane, number })
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

    /// The number of the shard.
    pub fn number(&self) -> u32 {
        self.number
    }

    fn lane_index(&self) -> usize {
        LANES.iter().position(|(lane, _)| *lane == self.lane).unwrap_or(LANES.len())
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
    /// processes, no lock is taken; otherwise the lock is held for a moment.
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
        match disk.open_locked(&path, Open::ReadOnly).map_err(failed)? {
            Some(_released) => Ok(None),
            None => Ok(Some(Owner { pid: None, since })),
        }
    }

    /// The host and the project key whose events the queue contains, if its store can be read.
    pub fn identity(&self) -> Option<(String, String)> {
        let project = self.project_of_store()?;
        Some((project.host, project.api_key))
    }

    pub(crate) fn project_of_store(&self) -> Option<Project> {
        queue::project_of(&Disk::of_any_user(), &self.path)
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
