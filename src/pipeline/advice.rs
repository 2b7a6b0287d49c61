//! Advice for operators: what an error of the operating system or of the queue means, and what helps. Each error number
//! has its own remedy.

use std::error::Error;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{getegid, geteuid};

use crate::queue::{QueueError, StoreError};
use crate::sys::disk::Disk;
use crate::sys::wording::bytes;

const ANOTHER: &str = "choose another directory (queue_dir, POSTHOG_QUEUE_DIR)";

/// What the system says about the circumstances of the error.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Bytes free on the file system.
    pub(crate) free: Option<u64>,
    /// Bytes that the failed operation needs, if known.
    pub(crate) needed: Option<u64>,
    /// The soft limit of the resource that ran out.
    pub(crate) limit: Option<u64>,
    /// The effective user and group of this process.
    pub(crate) user: (u32, u32),
    /// The file or directory to which access was denied, or its nearest ancestor that can be examined.
    pub(crate) guard: Option<Guard>,
}

/// Owner and mode of a file or directory.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    pub(crate) path: PathBuf,
    pub(crate) owner: (u32, u32),
    pub(crate) mode: u32,
}

/// What the error at `path` means and what helps. Does not repeat the system's own text of the error.
pub(crate) fn advise(disk: &Disk, error: &io::Error, path: &Path, needed: Option<u64>) -> String {
    let code = error.raw_os_error();
    let mut facts = Facts { needed, user: (geteuid().as_raw(), getegid().as_raw()), ..Facts::default() };
    if error.kind() == io::ErrorKind::StorageFull {
        facts.free = nearest(path).and_then(|(at, _)| disk.free_bytes(&at).ok());
    }
    facts.limit = match code {
        Some(libc::EMFILE) => limit(Resource::RLIMIT_NOFILE),
        Some(libc::EFBIG) => limit(Resource::RLIMIT_FSIZE),
        Some(libc::ENOMEM) => limit(Resource::RLIMIT_AS),
        _ => None,
    };
    if error.kind() == io::ErrorKind::PermissionDenied {
        facts.guard = nearest(path).map(|(path, found)| Guard {
            path,
            owner: (found.uid(), found.gid()),
            mode: found.mode() & 0o7777,
        });
    }
    advice(error, &facts)
}

/// As [`advise`], for an error that concerns no file.
pub(crate) fn advise_resource(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => advise(&Disk::default(), error, Path::new("/"), None),
        _ => "the system cannot provide a thread, a file descriptor or memory".to_owned(),
    }
}

/// What failed in the queue and what helps, in one line for an operator.
pub(crate) fn explain_queue(disk: &Disk, error: &QueueError) -> String {
    match system_error(error) {
        Some((path, source)) => explain_io(disk, path, source),
        None if matches!(error, QueueError::NoDirectory) => {
            format!("{error}: set Config::queue_dir, or POSTHOG_QUEUE_DIR, STATE_DIRECTORY, XDG_STATE_HOME or HOME")
        }
        None => with_causes(error),
    }
}

/// As [`explain_queue`], for an I/O error at `path`. An empty path is left out.
pub(crate) fn explain_io(disk: &Disk, path: &Path, source: &io::Error) -> String {
    let at = if path.as_os_str().is_empty() { String::new() } else { format!("{}: ", path.display()) };
    match source.raw_os_error() {
        Some(_) => format!("{at}{source}: {}", advise(disk, source, path, None)),
        None => format!("{at}{source}"),
    }
}

/// The operating system's error and the path at which it occurred. `None` for an error that this library itself has
/// created, which needs no advice.
fn system_error(error: &QueueError) -> Option<(&Path, &io::Error)> {
    match error {
        QueueError::Io { path, source }
        | QueueError::JournalFile { path, source }
        | QueueError::Store { dir: path, source: StoreError::Io(source) | StoreError::NoSpace(source) } => {
            source.raw_os_error().map(|_| (path.as_path(), source))
        }
        _ => None,
    }
}

/// The error followed by its causes, each text once.
fn with_causes(error: &QueueError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        next = cause.source();
    }
    text
}

/// `path`, or its nearest ancestor that exists and whose metadata can be read, and that metadata.
fn nearest(path: &Path) -> Option<(PathBuf, std::fs::Metadata)> {
    path.ancestors().find_map(|at| Some((at.to_path_buf(), std::fs::metadata(at).ok()?)))
}

fn limit(resource: Resource) -> Option<u64> {
    // A value this large stands for "unlimited" (`RLIM_INFINITY`).
    getrlimit(resource).ok().map(|(soft, _)| soft).filter(|soft| *soft < 1 << 62)
}

/// Chooses the advice from the error and the facts alone, without calls to the system.
fn advice(error: &io::Error, facts: &Facts) -> String {
    let needed = facts.needed.map_or(String::new(), |needed| format!(", about {} needed", bytes(needed)));
    match error.raw_os_error() {
        Some(libc::EMFILE) => {
            let limit = facts.limit.map_or(String::new(), |limit| format!(" = {limit}"));
            format!(
                "this process may open no more files (RLIMIT_NOFILE{limit}); raise the limit (ulimit -n, LimitNOFILE= of systemd), or \
                 find out what keeps so many open"
            )
        }
        Some(libc::ENFILE) => {
            "the machine may open no more files (fs.file-max); raise that limit, or find out what keeps so many open"
                .to_owned()
        }
        Some(libc::ENOMEM) => {
            let limit = facts.limit.map_or(String::new(), |limit| format!(", RLIMIT_AS = {}", bytes(limit)));
            format!(
                "there is not enough memory{needed}{limit}; raise the memory limit of this process or its container, or lower \
                 Config::journal_bytes (POSTHOG_JOURNAL_BYTES)"
            )
        }
        Some(libc::EFBIG) => {
            let limit = facts.limit.map_or(String::new(), |limit| format!(" (RLIMIT_FSIZE = {})", bytes(limit)));
            format!(
                "a file of the queue may not grow so large{limit}; raise the limit (ulimit -f), or lower Config::max_queue_bytes (POSTHOG_MAX_QUEUE_BYTES)"
            )
        }
        Some(libc::ELOOP) => {
            format!(
                "a symbolic link stands where the queue needs a file or directory; name the real path, or {ANOTHER}"
            )
        }
        Some(libc::ENOLCK | libc::ENOTSUP) => {
            "its file system does not support what a queue needs, such as file locks; choose a \
                                               directory on a local disk (queue_dir, POSTHOG_QUEUE_DIR)"
                .to_owned()
        }
        Some(libc::EIO) => {
            format!(
                "the disk reports an error; look into the kernel's log (dmesg), repair or replace the disk, or {ANOTHER}"
            )
        }
        Some(libc::ESTALE) => format!("its network file system has lost the file; mount it again, or {ANOTHER}"),
        _ => advice_by_kind(error.kind(), facts, &needed),
    }
}

fn advice_by_kind(kind: io::ErrorKind, facts: &Facts, needed: &str) -> String {
    match kind {
        io::ErrorKind::StorageFull => match facts.free {
            Some(free) if free > facts.needed.unwrap_or(1 << 20) => format!(
                "the disk is full although it has {} free{needed}: it may have no free inodes, or reserve the rest for \
                 root; delete files, or choose a directory on another disk (queue_dir, POSTHOG_QUEUE_DIR)",
                bytes(free)
            ),
            free => {
                let free = free.map_or(String::new(), |free| format!(": {} free", bytes(free)));
                format!(
                    "the disk is full{free}{needed}; free some space, or choose a directory on another disk (queue_dir, POSTHOG_QUEUE_DIR)"
                )
            }
        },
        io::ErrorKind::QuotaExceeded => format!(
            "the disk quota of uid {} is used up{needed}; free some space, raise the quota, or choose a directory on another disk \
             (queue_dir, POSTHOG_QUEUE_DIR)",
            facts.user.0
        ),
        io::ErrorKind::PermissionDenied => {
            let (uid, gid) = facts.user;
            let guard = facts.guard.as_ref().map_or(String::new(), |Guard { path, owner, mode }| {
                format!(" ({} belongs to uid {}, gid {}, mode {mode:04o})", path.display(), owner.0, owner.1)
            });
            format!("uid {uid}, gid {gid} may not use it{guard}; change its owner or mode, or {ANOTHER}")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("its file system is mounted read-only; mount it for writing, or {ANOTHER}")
        }
        // Creating a directory where a file exists fails with `AlreadyExists`.
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            format!("it is not a directory, or lies below a file; move the file away, or {ANOTHER}")
        }
        io::ErrorKind::NotFound => format!(
            "it does not exist and cannot be created: it was removed, its path contains a broken symbolic link, or no directory can be \
             made there, as in /proc; {ANOTHER}"
        ),
        io::ErrorKind::InvalidFilename => "its path is too long; choose a shorter one (queue_dir, POSTHOG_QUEUE_DIR)".to_owned(),
        io::ErrorKind::TimedOut => format!("its disk or its file server does not respond; check both, or {ANOTHER}"),
        _ => "it cannot be used; choose a directory on a local disk that this user may write to (queue_dir, POSTHOG_QUEUE_DIR)".to_owned(),
    }
}

#[cfg(test)]
#[path = "advice_tests.rs"]
mod tests;
