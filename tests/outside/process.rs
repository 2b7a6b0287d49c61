//! Forked children, which the standard library does not provide.

#![allow(unsafe_code, reason = "fork")]

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_raw, fork};

use crate::fixture::eventually;

/// A forked child that is still to be waited for.
#[must_use = "a child that nobody waits for tells nobody how it ended"]
#[derive(Debug)]
pub(crate) struct Forked(Pid);

/// Forks; the child runs `child` and then exits as a program does that returns from `main`. A panic of the child is a
/// failure of it.
pub(crate) fn forked(child: impl FnOnce()) -> Forked {
    // SAFETY: this runs in a process of its own, started by `apart`, in which every other thread is the library's or a
    // test thread that holds no lock of the standard library for longer than a call; what the library does in such a
    // child is what is tested.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => Forked(child),
        ForkResult::Child => {
            let scripted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            std::process::exit(if scripted.is_ok() { 0 } else { 101 });
        }
    }
}

impl Forked {
    /// Waits for its end; checks that it succeeded.
    pub(crate) fn must_end_well(self) {
        let pid = self.0;
        assert_eq!(self.ended(), Some(WaitStatus::Exited(pid, 0)), "how the forked child ended");
    }

    /// Waits for its end; checks that a signal caused it.
    pub(crate) fn must_die_of(self, signal: Signal) {
        let pid = self.0;
        assert_eq!(self.ended(), Some(WaitStatus::Signaled(pid, signal, false)), "how the forked child ended");
    }

    /// Sends it a signal.
    pub(crate) fn tell(&self, signal: Signal) {
        kill(self.0, signal).unwrap();
    }

    /// Kills the child if it does not end in time.
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

/// Makes a descriptor refer to another file, as in a program that closes all descriptors and then opens its own files.
pub(crate) fn give_number(number: i32, file: impl std::os::fd::AsFd) {
    // SAFETY: the number is one of the library's, whose business it is to notice; nobody else in this process has it.
    let given = unsafe { dup2_raw(file, number) }.unwrap();
    // The descriptor stays open until the process ends.
    std::mem::forget(given);
}

/// Ignores a signal in this process, as a background process of a shell ignores SIGINT.
pub(crate) fn ignore(ignored: Signal) {
    // SAFETY: no handler of ours is set.
    unsafe { signal(ignored, SigHandler::SigIgn) }.unwrap();
}
