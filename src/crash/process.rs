//! What a record says of the process and the thread, by calls that allocate nothing.

#![allow(unsafe_code, reason = "system calls that nix wraps only with an allocation; each block proves itself")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::libc;

use super::format::{Tag, Writer, flags};
use crate::sys::disk::fork::lock_within;

static STARTED: OnceLock<Instant> = OnceLock::new();
/// A thread may have the list that does not exist here, because this is a child of its process.
const INSTANCES_WAIT: Duration = Duration::from_millis(100);

static ARMED_BY: AtomicU32 = AtomicU32::new(0);

/// Notes who we are, so that a forked child can be told from us, and from when uptime counts.
pub(super) fn note_armed() {
    STARTED.get_or_init(Instant::now);
    ARMED_BY.store(std::process::id(), Ordering::Relaxed);
}

/// Since the first arming; 0 before.
pub(super) fn uptime_nanos() -> u64 {
    // `get` of a cell that is set is one load.
    STARTED.get().map_or(0, |started| u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// Whether this process was forked by the one that made the file.
pub(super) fn is_forked_child() -> bool {
    let armed_by = ARMED_BY.load(Ordering::Relaxed);
    armed_by != 0 && armed_by != std::process::id()
}

/// [`flags::FORKED_CHILD`] if that is what this process is.
pub(super) fn forked_flag() -> u32 {
    if is_forked_child() { flags::FORKED_CHILD } else { 0 }
}

/// Since 1970, by the clock on the wall.
pub(super) fn now_nanos() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// What every record says of its moment, process and thread.
pub(super) fn describe(writer: &mut Writer<'_>, thread: i32) {
    writer.number(Tag::Time, now_nanos());
    writer.number(Tag::Uptime, uptime_nanos());
    writer.number(Tag::Pid, u64::from(std::process::id()));
    writer.number(Tag::Tid, u64::try_from(thread).unwrap_or(0));
    let mut name = [0; 64];
    writer.bytes(Tag::ThreadName, thread_name(&mut name));
}

/// The kernel's number of this thread; never 0.
pub(super) fn thread_id() -> i32 {
    #[cfg(target_os = "linux")]
    let id = nix::unistd::gettid().as_raw();
    #[cfg(not(target_os = "linux"))]
    // SAFETY: the call takes nothing and cannot fail; the pointer is made a number only.
    let id = (unsafe { libc::pthread_self() } as usize >> 4) as i32 & i32::MAX;
    id.max(1)
}

/// The name of this thread as the kernel knows it (at most 15 bytes on Linux). `std::thread::current` would make a handle, on the heap.
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

/// The name of this machine.
pub(super) fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// When the process of that number was started, in ticks since the start of the machine; `None` if there is none, or where the system
/// does not tell.
pub(super) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program stands in brackets, and may hold anything; the 22nd field is the 20th after it.
    stat.get(stat.rfind(')')?..)?.split_ascii_whitespace().nth(20)?.parse().ok()
}

/// The instances that this process has called itself by; see [`super::Context`].
static INSTANCES: Mutex<Vec<[u8; 16]>> = Mutex::new(Vec::new());

/// Notes that this process calls itself so.
pub(super) fn note_instance(instance: [u8; 16]) {
    if let Some(mut known) = lock_within(&INSTANCES, INSTANCES_WAIT)
        && !known.contains(&instance)
    {
        known.push(instance);
    }
}

/// Whether this process has called itself so. What it has inherited from the one that forked it is not its own, and has another pid.
pub(super) fn is_own_instance(instance: &[u8]) -> bool {
    lock_within(&INSTANCES, INSTANCES_WAIT).is_none_or(|known| known.iter().any(|own| own == instance))
}

/// Whether the process of that number lives and was started then. `started` is 0 where the system did not tell. `is_own` says that the
/// number stands beside an instance of this process.
pub(super) fn lives(pid: u32, started: u64, is_own: bool) -> bool {
    // Somebody without a descriptor left is told nothing by `/proc`, not even of himself.
    if started != 0
        && let Some(found) = start_ticks(pid)
    {
        return found == started;
    }
    if pid == std::process::id() {
        // In a container every run may have the same number.
        return is_own;
    }
    let Ok(pid) = i32::try_from(pid) else { return false };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_that_was_given_to_somebody_else_is_not_taken_for_the_process_that_had_it() {
        let own = std::process::id();
        let started = start_ticks(own).unwrap();
        for is_own in [true, false] {
            assert!(lives(own, started, is_own));
            assert!(!lives(own, started + 1, is_own));
            assert_eq!(lives(own, 0, is_own), is_own, "where the system does not tell, it is known who we are");
        }
        assert!(lives(nix::unistd::getppid().as_raw() as u32, 0, false));
    }

    #[test]
    fn the_name_of_a_thread_comes_without_its_handle() {
        let named = std::thread::Builder::new().name("fifteen-letters-and-more".to_owned());
        let read = named.spawn(|| thread_name(&mut [0; 64]).to_vec()).unwrap().join().unwrap();
        assert_eq!(read, b"fifteen-letters");
    }
}
