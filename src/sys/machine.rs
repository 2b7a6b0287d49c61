//! Facts about the machine: operating system, boot id, uptime, kills by the OOM killer in this process's control group,
//! and the memory that the group leaves to this process.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

/// The number of kills by the OOM killer in one control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OomCount {
    /// Hash of the group's path.
    pub(crate) path: u64,
    /// Inode of its directory: a group that is created later under the same path has another one.
    pub(crate) inode: u64,
    pub(crate) kills: u64,
}

/// An id that changes with each boot; 0 if the system does not provide one.
pub(crate) fn boot_id() -> u128 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

/// The operating system, with the names that PostHog uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    /// That of the distribution; of the kernel if the distribution has none.
    pub(crate) version: Option<String>,
    /// The name of the Linux distribution.
    pub(crate) distribution: Option<String>,
}

/// The operating system of this process. Read once, from two small local files.
pub(crate) fn system() -> &'static System {
    static SYSTEM: OnceLock<System> = OnceLock::new();
    SYSTEM.get_or_init(|| system_by(Path::new("/")))
}

const SYSTEM_NAME: &str = match std::env::consts::OS.as_bytes() {
    b"linux" => "Linux",
    b"macos" => "Mac OS X",
    b"freebsd" => "FreeBSD",
    b"netbsd" => "NetBSD",
    b"openbsd" => "OpenBSD",
    _ => std::env::consts::OS,
};

fn system_by(root: &Path) -> System {
    // The second is where the file belongs, the first is usually a link to it.
    let release = ["etc/os-release", "usr/lib/os-release"].iter().find_map(|path| read_small(&root.join(path)));
    let release = release.unwrap_or_default();
    let kernel = || read_small(&root.join("proc/sys/kernel/osrelease"));
    let version = value_in(&release, "VERSION_ID").or_else(|| bounded(&kernel()?));
    System { name: SYSTEM_NAME, version, distribution: value_in(&release, "NAME") }
}

/// The beginning of a regular file. Anything else is not opened: a pipe would block.
fn read_small(path: &Path) -> Option<String> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(SMALL_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Maximum bytes read of a file that describes the system.
const SMALL_FILE: u64 = 16 * 1024;

/// The value of a variable in a file of assignments as a shell reads them, such as `os-release`.
fn value_in(text: &str, name: &str) -> Option<String> {
    let assigned = |line: &str| line.trim().strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
    bounded(text.lines().filter_map(assigned).next_back()?.trim().trim_matches(['"', '\'']))
}

/// The text without the space around it, if there is any and it is not too long.
fn bounded(text: &str) -> Option<String> {
    let text = text.trim();
    (1..=128).contains(&text.len()).then(|| text.to_owned())
}

/// Time since boot, suspension included.
pub(crate) fn uptime() -> Option<Duration> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

/// The kills in this process's control group (version 2).
pub(crate) fn oom_count() -> Option<OomCount> {
    oom_count_by(Path::new("/proc/self"))
}

fn oom_count_by(proc_self: &Path) -> Option<OomCount> {
    let groups = fs::read_to_string(proc_self.join("cgroup")).ok()?;
    let path = path_of_second(&groups)?;
    let mounts = fs::read_to_string(proc_self.join("mountinfo")).ok()?;
    let (_, dir) = mounts.lines().find_map(|mount| place_of_group(mount, path, is_second))?;
    // `local` excludes kills in groups below this one. Kernels before 5.2 do not have it.
    let events = fs::read_to_string(dir.join("memory.events.local"))
        .or_else(|_| fs::read_to_string(dir.join("memory.events")))
        .ok()?;
    let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()?;
    Some(OomCount { path: xxh3_64(path.as_bytes()), inode: fs::metadata(&dir).ok()?.ino(), kills })
}

/// The mount point and the directory of a control group, if the line `mount` of `mountinfo` is the mount that contains
/// it.
fn place_of_group(mount: &str, path: &str, is_kind: impl Fn(&str) -> bool) -> Option<(PathBuf, PathBuf)> {
    let (fields, kind) = mount.split_once(" - ")?;
    let mut fields = fields.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    if !is_kind(kind) {
        return None;
    }
    let below = Path::new(path).strip_prefix(root).ok()?;
    // Outside of this process's namespace and not visible from here.
    (!path.contains("/..")).then(|| (PathBuf::from(point), Path::new(point).join(below)))
}

/// The files of one version of control groups.
struct Version {
    limit: &'static str,
    usage: &'static str,
    /// Lines of `memory.stat` that count memory which the kernel reclaims before it kills: pages of files.
    reclaimable: [&'static str; 2],
}

const V2: Version =
    Version { limit: "memory.max", usage: "memory.current", reclaimable: ["inactive_file ", "active_file "] };
const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file ", "total_active_file "],
};

/// Bytes left below the tightest limit of this process's control group and its parents; `None` if no limit is visible.
pub(crate) fn free_memory() -> Option<u64> {
    free_memory_by(Path::new("/proc/self"))
}

fn free_memory_by(proc_self: &Path) -> Option<u64> {
    let groups = fs::read_to_string(proc_self.join("cgroup")).ok()?;
    let mounts = fs::read_to_string(proc_self.join("mountinfo")).ok()?;
    let of_version = |path: Option<&str>, version: &Version, is_kind: fn(&str) -> bool| {
        let (point, dir) = mounts.lines().find_map(|mount| place_of_group(mount, path?, is_kind))?;
        let groups = dir.ancestors().take_while(|group| group.starts_with(&point));
        groups.map(Path::to_path_buf).filter_map(|group| free_in_group(&group, version)).min()
    };
    let second = of_version(path_of_second(&groups), &V2, is_second);
    let first = of_version(path_of_first(&groups), &V1, is_first_with_memory);
    second.into_iter().chain(first).min()
}

/// The group's path under version 2, from the text of `/proc/self/cgroup`.
fn path_of_second(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

fn is_second(kind: &str) -> bool {
    kind.starts_with("cgroup2 ")
}

/// The group's path under version 1's memory controller.
fn path_of_first(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|controller| controller == "memory").then_some(path)
    })
}

/// Whether the end of a line of `mountinfo` describes the memory controller of version 1.
fn is_first_with_memory(kind: &str) -> bool {
    let options = kind.strip_prefix("cgroup ").and_then(|rest| rest.rsplit(' ').next());
    options.is_some_and(|options| options.split(',').any(|option| option == "memory"))
}

fn free_in_group(group: &Path, version: &Version) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(PathBuf::from(group).join(name)).unwrap_or_default();
    free_below(&read(version.limit), &read(version.usage), &read("memory.stat"), version)
}

/// The limit minus the memory that is used and cannot be reclaimed. `None` without a limit.
fn free_below(limit: &str, usage: &str, stat: &str, version: &Version) -> Option<u64> {
    let limit: u64 = limit.trim().parse().ok()?;
    let usage: u64 = usage.trim().parse().ok()?;
    let count =
        |name: &&str| -> Option<u64> { stat.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok() };
    let reclaimable = version.reclaimable.iter().filter_map(count).fold(0, u64::saturating_add);
    Some(limit.saturating_sub(usage.saturating_sub(reclaimable)))
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

    fn system_of(files: &[(&str, &str)]) -> System {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        system_by(dir.path())
    }

    #[test]
    fn the_system_is_what_its_files_say() {
        let kernel = ("proc/sys/kernel/osrelease", "6.1.0-9-amd64\n");
        let is = |files: &[(&str, &str)], version: Option<&str>, name: Option<&str>| {
            let found = system_of(files);
            assert_eq!((found.version.as_deref(), found.distribution.as_deref()), (version, name), "{files:?}");
        };
        let debian = "PRETTY_NAME=\"Debian 12\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID='12'\n# VERSION_ID=13\n";
        is(&[("etc/os-release", debian), kernel], Some("12"), Some("Debian GNU/Linux"));
        is(&[("usr/lib/os-release", "NAME=Alpine\n"), kernel], Some("6.1.0-9-amd64"), Some("Alpine"));
        is(&[kernel], Some("6.1.0-9-amd64"), None);
        let long = format!("VERSION_ID={}", "1".repeat(129));
        is(&[("etc/os-release", &long)], None, None);
        is(&[], None, None);
        is(&[("etc/os-release/x", "a directory")], None, None);
        assert_eq!(system().name, if cfg!(target_os = "linux") { "Linux" } else { SYSTEM_NAME });
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pipe_in_place_of_a_file_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&dir.path().join("etc/os-release"), mode).unwrap();
        assert_eq!(system_by(dir.path()).version, None);
    }

    const EVENTS: &str = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 3\noom_group_kill 0\n";

    #[test]
    fn the_counter_of_the_own_group_has_its_path_and_inode() {
        let dir = tempfile::tempdir().unwrap();
        let found =
            written(dir.path(), "/system.slice/d.service", "/", "system.slice/d.service", &[("memory.events", EVENTS)]);
        let inode = fs::metadata(dir.path().join("mount/system.slice/d.service")).unwrap().ino();
        assert_eq!(found, Some(OomCount { path: xxh3_64(b"/system.slice/d.service"), inode, kills: 3 }));
        // A container that sees its group under the path that it has outside.
        let dir = tempfile::tempdir().unwrap();
        let local = ("memory.events.local", "oom_kill 1\n");
        let found = written(dir.path(), "/docker/abc", "/docker/abc", "", &[("memory.events", EVENTS), local]);
        assert_eq!(found.map(|found| found.kills), Some(1), "the count of the group itself, if available");
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

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn what_is_free_is_the_limit_less_what_cannot_be_taken_back() {
        let stat = "anon 20971520\ninactive_file 10485760\nactive_file 5242880\nslab 1\n";
        let free = |limit: &str, usage: &str, stat: &str| free_below(limit, usage, stat, &V2);
        assert_eq!(free("67108864\n", "41943040\n", stat), Some(39 * MIB));
        assert_eq!(free("67108864\n", "41943040\n", ""), Some(24 * MIB));
        assert_eq!(free("10\n", "20\n", ""), Some(0));
        assert_eq!(free("max\n", "20\n", stat), None);
        assert_eq!(free("", "", stat), None);
        let stat = "inactive_file 9\ntotal_inactive_file 1048576\ntotal_active_file 0\n";
        assert_eq!(free_below("4194304", "3145728", stat, &V1), Some(2 * MIB));
    }

    #[test]
    fn the_groups_are_found_among_those_of_both_versions() {
        let text = "12:cpu,cpuacct:/a\n9:hugetlb,memory:/b\n1:name=systemd:/c\n0::/d\n";
        assert_eq!((path_of_first(text), path_of_second(text)), (Some("/b"), Some("/d")));
        assert_eq!((path_of_first("0::/\n"), path_of_second("9:memory:/\n")), (None, None));
        assert!(is_first_with_memory("cgroup cgroup rw,memory") && !is_first_with_memory("cgroup2 cgroup2 rw,memory"));
        assert!(!is_first_with_memory("cgroup cgroup rw,cpu,memoryx"));
    }

    /// Writes the files of a group: limit and usage.
    fn group(dir: &Path, version: &Version, limit: &str, usage: u64) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join(version.limit), limit).unwrap();
        fs::write(dir.join(version.usage), usage.to_string()).unwrap();
    }

    #[test]
    fn the_tightest_limit_of_a_group_and_those_around_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(free_memory_by(dir.path()), None);
        let (second, first) = (dir.path().join("second"), dir.path().join("first"));
        fs::write(dir.path().join("cgroup"), "9:memory:/docker/x\n0::/slice/unit\n").unwrap();
        let mounts = format!(
            "1 2 8:1 / / rw - ext4 /dev/vda1 rw\n36 24 0:30 / {} rw shared:9 - cgroup2 cgroup2 rw\n37 24 0:31 /docker/x {} rw - cgroup cgroup rw,memory\n",
            second.display(),
            first.display()
        );
        fs::write(dir.path().join("mountinfo"), mounts).unwrap();
        group(&second.join("slice/unit"), &V2, "max\n", 5 * MIB);
        assert_eq!(free_memory_by(dir.path()), None, "no limit anywhere");
        group(&second.join("slice"), &V2, "67108864\n", 50 * MIB);
        assert_eq!(free_memory_by(dir.path()), Some(14 * MIB), "the limit of a parent");
        group(&first, &V1, "20971520\n", 15 * MIB);
        assert_eq!(free_memory_by(dir.path()), Some(5 * MIB), "the limit of the other version");
        group(&second.join("slice/unit"), &V2, "5242880\n", 5 * MIB);
        assert_eq!(free_memory_by(dir.path()), Some(0), "the limit of the group itself");
    }
}
