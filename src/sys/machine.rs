//! What the system says of itself: since when it is up, and how often its OOM killer was where this process runs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

/// How often the OOM killer has killed in one control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OomCount {
    /// Hash of the group's path.
    pub(crate) path: u64,
    /// Inode of its directory: another group that is made under the same path has another one.
    pub(crate) inode: u64,
    pub(crate) kills: u64,
}

/// Differs after each start of the machine; 0 where the system does not tell.
pub(super) fn boot_id() -> u128 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

/// Time since its start, suspension included.
pub(super) fn uptime() -> Option<Duration> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

/// That of the control group (version 2) that this process is in.
pub(super) fn oom_count() -> Option<OomCount> {
    oom_count_by(Path::new("/proc/self"))
}

fn oom_count_by(proc_self: &Path) -> Option<OomCount> {
    let groups = fs::read_to_string(proc_self.join("cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = fs::read_to_string(proc_self.join("mountinfo")).ok()?;
    let is_second = |kind: &str| kind.starts_with("cgroup2 ");
    let (_, dir) = mounts.lines().find_map(|mount| place_of_group(mount, path, is_second))?;
    // What was killed in groups below this one is not what was killed here; kernels before 5.2 do not tell them apart.
    let events = fs::read_to_string(dir.join("memory.events.local"))
        .or_else(|_| fs::read_to_string(dir.join("memory.events")))
        .ok()?;
    let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()?;
    Some(OomCount { path: xxh3_64(path.as_bytes()), inode: fs::metadata(&dir).ok()?.ino(), kills })
}

/// Where the group's tree is mounted and where the group lies, if that line of `mountinfo` is the mount that has it.
pub(super) fn place_of_group(mount: &str, path: &str, is_kind: impl Fn(&str) -> bool) -> Option<(PathBuf, PathBuf)> {
    let (fields, kind) = mount.split_once(" - ")?;
    let mut fields = fields.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    if !is_kind(kind) {
        return None;
    }
    let below = Path::new(path).strip_prefix(root).ok()?;
    // Outside of our namespace: nothing that can be seen from here.
    (!path.contains("/..")).then(|| (PathBuf::from(point), Path::new(point).join(below)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path, path: &str, root: &str, group: &str, events: &[(&str, &str)]) -> Option<OomCount> {
        let point = dir.join("mount");
        fs::create_dir_all(point.join(group)).unwrap();
        for (name, text) in events {
            fs::write(point.join(group).join(name), text).unwrap();
        }
        fs::write(dir.join("cgroup"), format!("9:memory:/other\n0::{path}\n")).unwrap();
        let line = format!("36 24 0:30 {root} {} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n", point.display());
        fs::write(dir.join("mountinfo"), format!("1 2 8:1 / / rw - ext4 /dev/vda1 rw\n{line}")).unwrap();
        oom_count_by(dir)
    }

    const EVENTS: &str = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 3\noom_group_kill 0\n";

    #[test]
    fn the_counter_of_ones_own_group_is_found_and_known_by_path_and_inode() {
        let dir = tempfile::tempdir().unwrap();
        let found =
            written(dir.path(), "/system.slice/d.service", "/", "system.slice/d.service", &[("memory.events", EVENTS)]);
        let inode = fs::metadata(dir.path().join("mount/system.slice/d.service")).unwrap().ino();
        assert_eq!(found, Some(OomCount { path: xxh3_64(b"/system.slice/d.service"), inode, kills: 3 }));
        // In a container that sees its group under its path outside.
        let dir = tempfile::tempdir().unwrap();
        let local = ("memory.events.local", "oom_kill 1\n");
        let found = written(dir.path(), "/docker/abc", "/docker/abc", "", &[("memory.events", EVENTS), local]);
        assert_eq!(found.map(|found| found.kills), Some(1), "of the group itself, where that is told");
    }

    #[test]
    fn where_there_is_no_counter_nothing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(oom_count_by(dir.path()), None);
        assert_eq!(written(dir.path(), "/", "/", "", &[]), None);
        assert_eq!(written(dir.path(), "/", "/", "", &[("memory.events", "max 1\n")]), None);
        assert_eq!(written(dir.path(), "/../x", "/", "", &[("memory.events", EVENTS)]), None);
        assert_eq!(written(dir.path(), "/a", "/b", "", &[("memory.events", EVENTS)]), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_says_that_it_is_up() {
        assert!(uptime().unwrap() > Duration::ZERO && boot_id() != 0);
    }
}
