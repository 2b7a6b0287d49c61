//! Starting threads that are guests in somebody's process.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use crate::sys::reentry;

/// Starts a detached thread of ours. It takes no signal of the host's: every one is blocked but those that a fault of the thread
/// itself raises, which would otherwise be delivered as soon as they were unblocked, or never.
pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    spawn_apart(name, move || {
        reentry::this_thread_is_ours();
        run();
    })
}

/// The same for a thread that no client needs to go on: it may wait for one, as any thread of the program may.
pub(crate) fn spawn_apart(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let before = block_all();
    // The mask is inherited: set before the thread exists, there is no moment at which it could take a signal.
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    if let Some(before) = before {
        let _ = before.thread_set_mask();
    }
    started.map(drop)
}

fn block_all() -> Option<SigSet> {
    let mut blocked = SigSet::all();
    for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGTRAP, Signal::SIGSYS] {
        blocked.remove(fault);
    }
    blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_threads_take_no_signals_and_leave_the_callers_mask_as_it_was() {
        let before = SigSet::thread_get_mask().unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        spawn("test", move || send.send(SigSet::thread_get_mask().unwrap()).unwrap()).unwrap();
        let mask = receive.recv().unwrap();
        assert!(mask.contains(Signal::SIGTERM) && mask.contains(Signal::SIGXFSZ) && !mask.contains(Signal::SIGSEGV));
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
