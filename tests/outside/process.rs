//! Helpers for forked child processes, signals and descriptors, which the standard library does not provide.

#![allow(unsafe_code, reason = "`fork`, `dup2` and `signal`")]

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_raw, fork};

use crate::fixture::eventually;

/// A forked child that has not been waited for.
#[must_use = "how the child ended is checked only by a method that waits for it"]
#[derive(Debug)]
pub(crate) struct Forked(Pid);

/// Forks. The child runs `child` and then exits as a program does that returns from `main`: with status 0, or with 101
/// if `child` panics.
pub(crate) fn forked(child: impl FnOnce()) -> Forked {
    // SAFETY: this runs in a process of its own, started by `apart`. Its other threads are the library's, or test
    // threads that hold a lock of the standard library only during a call. Whether the library works in such a child is
    // what the tests check.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => Forked(child),
        ForkResult::Child => {
            let scripted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            std::process::exit(if scripted.is_ok() { 0 } else { 101 });
        }
    }
}

impl Forked {
    /// Waits until the child ends, and checks that it exited with status 0.
    pub(crate) fn must_end_well(self) {
        let pid = self.0;
        assert_eq!(self.ended(), Some(WaitStatus::Exited(pid, 0)), "how the forked child ended");
    }

    /// Waits until the child ends, and checks that this signal killed it.
    pub(crate) fn must_die_of(self, signal: Signal) {
        let pid = self.0;
        assert_eq!(self.ended(), Some(WaitStatus::Signaled(pid, signal, false)), "how the forked child ended");
    }

    /// Sends a signal to the child.
    pub(crate) fn send(&self, signal: Signal) {
        kill(self.0, signal).unwrap();
    }

    /// Waits until the child ends. Kills it and returns `None` if it does not end in time.
    fn ended(self) -> Option<WaitStatus> {
        let mut ended = None;
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("the forked child ends", || match waitpid(self.0, Some(WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::StillAlive => false,
                status => {
                    ended = Some(status);
                    true
                }
            });
        }));
        if waited.is_err() {
            let _ = kill(self.0, Signal::SIGKILL);
            let _ = waitpid(self.0, None);
        }
        ended
    }
}

/// Makes the descriptor `number` refer to `file`, as happens in a program that closes all descriptors and then opens
/// its own files.
pub(crate) fn give_number(number: i32, file: impl std::os::fd::AsFd) {
    // SAFETY: the descriptor belongs to the library, which has to detect the replacement; no other code in this process
    // uses it.
    let given = unsafe { dup2_raw(file, number) }.unwrap();
    // The descriptor stays open until the process ends.
    std::mem::forget(given);
}

/// Ignores a signal in this process, as a background process of a shell ignores SIGINT.
pub(crate) fn ignore(ignored: Signal) {
    // SAFETY: `SIG_IGN` installs no handler function.
    unsafe { signal(ignored, SigHandler::SigIgn) }.unwrap();
}
