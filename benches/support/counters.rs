//! Counters of the kernel: memory, bytes written, context switches, processor time.

use std::collections::BTreeMap;
use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::Path;

/// A field of a `/proc` file made of `Name: value` lines; 0 if it is missing.
fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Resident anonymous and file-backed memory of a process, in KiB.
pub(crate) fn resident(pid: u32) -> (u64, u64) {
    let status = format!("/proc/{pid}/status");
    (field(&status, "RssAnon"), field(&status, "RssFile"))
}

/// Bytes that this process has caused to be written to disk, counted when a page becomes dirty.
pub(crate) fn written_by_process() -> u64 {
    field("/proc/self/io", "write_bytes")
}

/// Bytes written to the disk of `dir` by all processes; `None` if it has no such counter.
pub(crate) fn written_to_device(dir: &Path) -> Option<u64> {
    let dev = fs::metadata(dir).ok()?.st_dev();
    let (major, minor) = ((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xf_ff00));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    let sectors: u64 = stat.split_whitespace().nth(6)?.parse().ok()?;
    Some(sectors * 512)
}

/// Counters of one thread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Thread {
    /// How often it went to sleep by itself, which is how often it was woken.
    pub(crate) sleeps: u64,
    /// Processor time in seconds.
    pub(crate) busy: f64,
}

/// The threads of this process whose names begin with `prefix`, by name.
pub(crate) fn threads(prefix: &str) -> BTreeMap<String, Thread> {
    let mut found = BTreeMap::<String, Thread>::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let task = task.path().display().to_string();
        let name = fs::read_to_string(format!("{task}/comm")).unwrap_or_default().trim().to_owned();
        if !name.starts_with(prefix) {
            continue;
        }
        let on_processor = fs::read_to_string(format!("{task}/schedstat")).unwrap_or_default();
        let nanos: u64 = on_processor.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0);
        let thread = found.entry(name).or_default();
        thread.sleeps += field(&format!("{task}/status"), "voluntary_ctxt_switches");
        thread.busy += nanos as f64 / 1e9;
    }
    found
}
