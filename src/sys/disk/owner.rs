//! Who besides this process may write a file or a directory.
//!
//! A queue decides what is sent in the program's name, and a program that is run by root opens, truncates and removes the files in it.
//! So what another user owns, or every user may write, is not used as a queue. Members of a group are a choice of the
//! administrator (Kubernetes' `fsGroup` opens every volume to one), and on a file system of another machine owners are that machine's.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::{FileSystem, filesystem};

const ROOT: u32 = 0;
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Why something is not this process's alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exposure {
    /// It belongs to somebody who is neither root nor the user of this process.
    Owner {
        /// Its owner.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// Every user may write to it.
    Everybody {
        /// Its mode.
        mode: u32,
    },
    /// A group may write to it, and root does.
    Group {
        /// Which.
        group: u32,
        /// Its mode.
        mode: u32,
    },
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exposure::Owner { owner, user } => write!(
                f,
                "it belongs to user {owner}, and this process runs as user {user}: give it to this user (chown), or run as its owner"
            ),
            Exposure::Everybody { mode } => {
                write!(f, "every user may write to it (mode {mode:o}): take that away (chmod o-w)")
            }
            Exposure::Group { group, mode } => {
                write!(
                    f,
                    "group {group} may write to it (mode {mode:o}), and this process runs as root: chmod g-w if that is not meant to be"
                )
            }
        }
    }
}

/// What is wrong with something that is to be used as part of a queue.
fn exposure(owner: u32, mode: u32, user: u32) -> Option<Exposure> {
    if owner != user && owner != ROOT {
        return Some(Exposure::Owner { owner, user });
    }
    (mode & OTHERS_WRITE != 0).then_some(Exposure::Everybody { mode })
}

/// What is wrong with a directory above: one in which nobody can touch what belongs to others (`/tmp`) is good.
fn exposure_above(owner: u32, group: u32, mode: u32, user: u32, is_queue_dir: bool) -> Option<Exposure> {
    let found =
        exposure(owner, mode, user).filter(|found| matches!(found, Exposure::Owner { .. }) || mode & STICKY == 0);
    let by_group = is_queue_dir && user == ROOT && group != ROOT && mode & (GROUP_WRITES | STICKY) == GROUP_WRITES;
    found.or(by_group.then_some(Exposure::Group { group, mode }))
}

/// Fails for a file or directory of a queue that is not this process's alone. `path` is where it lies.
pub(super) fn vet(metadata: &Metadata, path: &Path) -> io::Result<()> {
    // A link has no mode of its own.
    let mode = if metadata.is_symlink() { 0 } else { metadata.mode() & 0o7777 };
    let Some(exposure) = exposure(metadata.uid(), mode, geteuid().as_raw()) else { return Ok(()) };
    if filesystem::kind(path).is_ok_and(|kind| kind == FileSystem::Network) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{path:?} is not used: {exposure}")))
}

/// The first of the directories from `queue_dir` up to the root that others may change or replace.
pub(crate) fn exposed_above(queue_dir: &Path) -> io::Result<Option<(PathBuf, Exposure)>> {
    let queue_dir = queue_dir.canonicalize()?;
    let user = geteuid().as_raw();
    for dir in queue_dir.ancestors() {
        let found = std::fs::metadata(dir)?;
        let mode = found.mode() & 0o7777;
        if let Some(exposure) = exposure_above(found.uid(), found.gid(), mode, user, dir == queue_dir) {
            return Ok(Some((dir.to_path_buf(), exposure)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u32 = 1000;
    const OTHER: u32 = 1001;

    #[test]
    fn what_another_user_owns_or_every_user_may_write_is_no_part_of_a_queue() {
        for (owner, mode, user, is_exposed) in [
            (USER, 0o700, USER, false),
            (ROOT, 0o700, USER, false),
            (ROOT, 0o700, ROOT, false),
            (USER, 0o2770, USER, false),
            (USER, 0o660, USER, false),
            (OTHER, 0o700, USER, true),
            (USER, 0o700, ROOT, true),
            (USER, 0o702, USER, true),
            (ROOT, 0o1777, ROOT, true),
            (ROOT, 0o602, USER, true),
        ] {
            assert_eq!(exposure(owner, mode, user).is_some(), is_exposed, "{owner} {mode:o} {user}");
        }
    }

    #[test]
    fn above_a_queue_a_sticky_directory_is_good_and_groups_are_said_to_root_alone() {
        for (owner, group, mode, user, is_queue_dir, is_exposed) in [
            (ROOT, ROOT, 0o1777, USER, false, false),
            (ROOT, ROOT, 0o1777, ROOT, true, false),
            (ROOT, ROOT, 0o777, USER, false, true),
            (OTHER, OTHER, 0o755, USER, false, true),
            (OTHER, OTHER, 0o1755, USER, false, true),
            (ROOT, 43, 0o775, ROOT, false, false),
            (ROOT, 43, 0o775, ROOT, true, true),
            (ROOT, 43, 0o3775, ROOT, true, false),
            (ROOT, ROOT, 0o775, ROOT, true, false),
            (USER, 43, 0o2775, USER, true, false),
        ] {
            let found = exposure_above(owner, group, mode, user, is_queue_dir);
            assert_eq!(found.is_some(), is_exposed, "{owner} {group} {mode:o} {user} {is_queue_dir}");
        }
    }
}
