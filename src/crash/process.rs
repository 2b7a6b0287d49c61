//! What a record says about the process and the thread, obtained without allocation; and the description at the
//! beginning of a file.

#![allow(unsafe_code, reason = "system calls that nix wraps only with an allocation; each block proves itself")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::libc;

use super::format::{Kind, Record, Tag, Writer, flags};
use super::symbols::Modules;
use crate::record::Pairs;
use crate::record::stack::{Image, decode_images, encode_images};
use crate::sys::disk::fork::lock_within;

static STARTED: OnceLock<Instant> = OnceLock::new();
/// In a forked child, a thread that does not exist there may hold the lock.
const INSTANCES_WAIT: Duration = Duration::from_millis(100);

static ARMED_BY: AtomicU32 = AtomicU32::new(0);

/// Notes the pid, by which a forked child is recognized later, and the start of [`uptime_nanos`].
pub(super) fn note_armed() {
    STARTED.get_or_init(Instant::now);
    ARMED_BY.store(std::process::id(), Ordering::Relaxed);
}

/// Nanoseconds since the first report file was opened; 0 before.
pub(super) fn uptime_nanos() -> u64 {
    // `get` of an initialized cell is one load.
    STARTED.get().map_or(0, |started| u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// Whether this process was forked from the one that opened the report file.
pub(super) fn is_forked_child() -> bool {
    let armed_by = ARMED_BY.load(Ordering::Relaxed);
    armed_by != 0 && armed_by != std::process::id()
}

/// [`flags::FORKED_CHILD`] in a forked child, otherwise 0.
pub(super) fn forked_flag() -> u32 {
    if is_forked_child() { flags::FORKED_CHILD } else { 0 }
}

/// Nanoseconds since 1970, by the wall clock.
pub(super) fn now_nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// Appends the fields that every record has: times, process, thread.
pub(super) fn append_to(writer: &mut Writer<'_>, thread: i32) {
    writer.number(Tag::Time, now_nanos());
    writer.number(Tag::Uptime, uptime_nanos());
    writer.number(Tag::Pid, u64::from(std::process::id()));
    writer.number(Tag::Tid, u64::try_from(thread).unwrap_or(0));
    let mut name = [0; 64];
    writer.bytes(Tag::ThreadName, thread_name(&mut name));
}

/// The kernel's id of this thread; never 0.
pub(super) fn thread_id() -> i32 {
    #[cfg(target_os = "linux")]
    let id = nix::unistd::gettid().as_raw();
    #[cfg(not(target_os = "linux"))]
    // SAFETY: the call has no arguments and cannot fail; the result is only used as a number.
    let id = (unsafe { libc::pthread_self() } as usize >> 4) as i32 & i32::MAX;
    id.max(1)
}

/// The name of this thread as the kernel knows it (at most 15 bytes on Linux). `std::thread::current` could allocate a
/// handle.
fn thread_name(out: &mut [u8; 64]) -> &[u8] {
    #[cfg(target_os = "linux")]
    // SAFETY: PR_GET_NAME writes at most 16 bytes, terminator included, and `out` has 64.
    unsafe {
        libc::prctl(libc::PR_GET_NAME, out.as_mut_ptr());
    }
    #[cfg(not(target_os = "linux"))]
    // SAFETY: the call writes at most the length it is given.
    unsafe {
        libc::pthread_getname_np(libc::pthread_self(), out.as_mut_ptr().cast(), out.len());
    }
    let end = out.iter().position(|byte| *byte == 0).unwrap_or(out.len());
    out.get(..end).unwrap_or_default()
}

/// The name of this machine; empty if it has none.
pub(crate) fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// When process `pid` was started, in clock ticks since boot; `None` if it does not exist or the system does not
/// provide it.
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses and may contain anything. Field 22 is the 20th after it.
    stat.get(stat.rfind(')')?..)?.split_ascii_whitespace().nth(20)?.parse().ok()
}

/// The instance ids that this process has used; see [`ProcessInfo`].
static INSTANCES: Mutex<Vec<[u8; 16]>> = Mutex::new(Vec::new());

pub(super) fn note_instance(instance: [u8; 16]) {
    if let Some(mut known) = lock_within(&INSTANCES, INSTANCES_WAIT)
        && !known.contains(&instance)
    {
        known.push(instance);
    }
}

/// Whether this process has used the instance id. A forked child inherits its parent's ids, but has another pid.
pub(super) fn is_own_instance(instance: &[u8]) -> bool {
    lock_within(&INSTANCES, INSTANCES_WAIT).is_none_or(|known| known.iter().any(|own| own == instance))
}

/// Whether process `pid` is alive and was started at `started` (0 if unknown). `is_own`: the record with this pid has
/// an instance id of this process.
pub(super) fn is_alive(pid: u32, started: u64, is_own: bool) -> bool {
    // `/proc` needs a descriptor, which may not be available.
    if started != 0
        && let Some(found) = start_ticks(pid)
    {
        return found == started;
    }
    if pid == std::process::id() {
        // In a container, each run may have the same pid.
        return is_own;
    }
    let Ok(pid) = i32::try_from(pid) else { return false };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH)
}

/// Maximum bytes of the record that describes the process and its loaded images.
const INFO_MOST: usize = 60 * 1024;

/// What a process writes about itself at the beginning of a report file.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProcessInfo {
    /// Unique to each process.
    pub(crate) instance: [u8; 16],
    /// Changes at each boot of the machine.
    pub(crate) boot_id: [u8; 16],
    pub(crate) executable: String,
    pub(crate) host_name: String,
    pub(crate) lib_version: String,
    /// Properties that all its exceptions have: release, operating system.
    pub(crate) facts: Pairs,
    /// The loaded images, encoded. Filled when a report is read; what is written is always the current list.
    pub(crate) images: Vec<u8>,
}

impl ProcessInfo {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut buffer = vec![0; INFO_MOST];
        let mut writer = Writer::new(&mut buffer, Kind::Context, 0, 0);
        writer.number(Tag::Pid, u64::from(std::process::id()));
        writer.number(Tag::StartTicks, start_ticks(std::process::id()).unwrap_or(0));
        writer.bytes(Tag::Instance, &self.instance);
        writer.bytes(Tag::BootId, &self.boot_id);
        writer.bytes(Tag::Executable, self.executable.as_bytes());
        writer.bytes(Tag::HostName, self.host_name.as_bytes());
        writer.bytes(Tag::LibVersion, self.lib_version.as_bytes());
        writer.bytes(Tag::Facts, &self.facts.to_map());
        writer.bytes(Tag::Images, &encode_images(&Modules::loaded().images().collect::<Vec<_>>()));
        writer.finish().map(<[u8]>::to_vec).unwrap_or_default()
    }

    /// The images that contain the addresses of this process.
    pub(crate) fn images(&self) -> Vec<Image<'_>> {
        decode_images(&self.images).unwrap_or_default()
    }

    pub(super) fn decode(record: &Record) -> Self {
        let sixteen = |tag| record.bytes(tag).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        Self {
            instance: sixteen(Tag::Instance),
            boot_id: sixteen(Tag::BootId),
            executable: record.text(Tag::Executable).unwrap_or_default(),
            host_name: record.text(Tag::HostName).unwrap_or_default(),
            lib_version: record.text(Tag::LibVersion).unwrap_or_default(),
            facts: Pairs::of_map(record.bytes(Tag::Facts).unwrap_or_default()),
            images: record.bytes(Tag::Images).unwrap_or_default().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_pid_is_not_the_earlier_process() {
        let own = std::process::id();
        let started = start_ticks(own).unwrap();
        for is_own in [true, false] {
            assert!(is_alive(own, started, is_own));
            assert!(!is_alive(own, started + 1, is_own));
            assert_eq!(is_alive(own, 0, is_own), is_own, "without a start time, the instance id decides");
        }
        assert!(is_alive(nix::unistd::getppid().as_raw() as u32, 0, false));
    }

    #[test]
    fn a_thread_name_is_read_without_its_handle() {
        let named = std::thread::Builder::new().name("fifteen-letters-and-more".to_owned());
        let read = named.spawn(|| thread_name(&mut [0; 64]).to_vec()).unwrap().join().unwrap();
        assert_eq!(read, b"fifteen-letters");
    }
}
