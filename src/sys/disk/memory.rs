//! How much memory this process may still take before a control group's limit has the kernel kill somebody.

use std::fs;
use std::path::{Path, PathBuf};

use super::machine::place_of_group;

/// The files of one version of control groups.
struct Version {
    limit: &'static str,
    usage: &'static str,
    /// Lines of `memory.stat` that count what the kernel takes back before it kills: pages of files.
    reclaimable: [&'static str; 2],
}

const V2: Version =
    Version { limit: "memory.max", usage: "memory.current", reclaimable: ["inactive_file ", "active_file "] };
const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file ", "total_active_file "],
};

/// Bytes below the tightest limit of this process's control group and of those around it; `None` where there is no limit that can be
/// seen.
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
    let second = of_version(path_of_second(&groups), &V2, |kind| kind.starts_with("cgroup2 "));
    let first = of_version(path_of_first(&groups), &V1, is_first_with_memory);
    second.into_iter().chain(first).min()
}

/// The group's path under version 2, from the text of `/proc/self/cgroup`.
fn path_of_second(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The group's path under version 1's memory controller.
fn path_of_first(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|controller| controller == "memory").then_some(path)
    })
}

/// Whether the end of a line of `mountinfo` is that of version 1's memory controller.
fn is_first_with_memory(kind: &str) -> bool {
    let options = kind.strip_prefix("cgroup ").and_then(|rest| rest.rsplit(' ').next());
    options.is_some_and(|options| options.split(',').any(|option| option == "memory"))
}

fn free_in_group(group: &Path, version: &Version) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(PathBuf::from(group).join(name)).unwrap_or_default();
    free_below(&read(version.limit), &read(version.usage), &read("memory.stat"), version)
}

/// The limit, less what is used and cannot be taken back. `None` without a limit.
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

    /// The files of a group: limit, usage.
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
        assert_eq!(free_memory_by(dir.path()), Some(14 * MIB), "that of a parent");
        group(&first, &V1, "20971520\n", 15 * MIB);
        assert_eq!(free_memory_by(dir.path()), Some(5 * MIB), "that of the other version");
        group(&second.join("slice/unit"), &V2, "5242880\n", 5 * MIB);
        assert_eq!(free_memory_by(dir.path()), Some(0), "its own");
    }
}
