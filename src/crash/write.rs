//! Appending to a file without dying of it: what the process may write, and a write that is whole or is not there.

#![allow(unsafe_code, reason = "taking a signal back; the block proves itself")]

use std::io::IoSlice;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::uio::writev;
use nix::unistd;

/// Bytes of one file; its room is reserved, so that a full disk does not keep a crash from being told.
pub(super) const FILE_MOST: u64 = 256 * 1024;

/// What the process may make of a file, at most [`FILE_MOST`].
pub(super) fn room_of_this_process() -> u64 {
    getrlimit(Resource::RLIMIT_FSIZE).map_or(FILE_MOST, |(soft, _)| FILE_MOST.min(soft))
}

/// One call in all but rare cases: a short write (a full disk without reserved room) is topped up once, and if that fails the reader
/// passes over the torn record.
pub(super) fn write_all(file: &OwnedFd, first: &[u8], then: &[u8]) -> bool {
    let write = || write_whole(file, first, then);
    // Where the process has a limit, others who write to the same file may have reached it a moment ago.
    if room_of_this_process() < FILE_MOST { without_sigxfsz(write) } else { write() }
}

/// The signal of a write past the limit of the process, whose default is to end it, is taken back.
#[cfg(target_os = "linux")]
fn without_sigxfsz(write: impl FnOnce() -> bool) -> bool {
    use nix::libc;
    use nix::sys::signal::{SigSet, SigmaskHow, Signal};

    let (mut it, mut before) = (SigSet::empty(), SigSet::empty());
    it.add(Signal::SIGXFSZ);
    if nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&it), Some(&mut before)).is_err() {
        return false;
    }
    let is_written = write();
    if !is_written && !before.contains(Signal::SIGXFSZ) {
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: takes a signal that is pending, if there is one; both structures are ours.
        unsafe { libc::sigtimedwait(it.as_ref(), std::ptr::null_mut(), &at_once) };
    }
    let _ = nix::sys::signal::pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    is_written
}

#[cfg(not(target_os = "linux"))]
fn without_sigxfsz(write: impl FnOnce() -> bool) -> bool {
    write()
}

fn write_whole(file: &OwnedFd, first: &[u8], then: &[u8]) -> bool {
    let (mut first, mut then) = (first, then);
    for _ in 0..4 {
        let written = match first {
            [] => unistd::write(file, then),
            _ => writev(file, &[IoSlice::new(first), IoSlice::new(then)]),
        };
        match written {
            Ok(written) => {
                let of_first = written.min(first.len());
                first = first.get(of_first..).unwrap_or_default();
                then = then.get(written.saturating_sub(of_first)..).unwrap_or_default();
                if first.is_empty() && then.is_empty() {
                    return true;
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
    false
}
