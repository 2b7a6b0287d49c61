//! Signals that ask the process to end: noticed here, served by a thread, and then died of.
//!
//! The action that runs in signal context sets a word and posts a semaphore. There is no pipe: a program that closes all descriptors to
//! become a daemon would have the next signal written into whatever file got that number, and a forked child would wake its parent.

#![allow(unsafe_code, reason = "a signal action and a semaphore; each block proves itself")]

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use nix::libc;
use signal_hook::low_level::{emulate_default_handler, register};

use wake::Wake;

/// Those whose default is to end the process, and that are sent to ask for it.
pub(crate) const ASKING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// The process whose thread listens; 0 if none does. In a child it is its parent's.
static OWNER: AtomicI32 = AtomicI32::new(0);
/// The process that has asked for it, listening already or about to.
static CLAIMED_BY: AtomicI32 = AtomicI32::new(0);
/// The signal that is being served; 0 if none is.
static CAUGHT: AtomicI32 = AtomicI32::new(0);
/// One that came while another was served, and is served next; 0 if none did.
static WAITING: AtomicI32 = AtomicI32::new(0);
static WAKE: Wake = Wake::new();

/// What is known of each signal. A registered action is never taken back, for the registry would then swallow the signal instead of
/// giving it back its default.
static KNOWN: [AtomicU8; 32] = [const { AtomicU8::new(0) }; 32];
/// Its action is registered, in this process or in one that it was forked from.
const REGISTERED: u8 = 1;
/// Without us it would end the process.
const WAS_DEFAULT: u8 = 2;
/// Served, it ends the process.
const IS_FATAL: u8 = 4;

/// A signal that was caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caught {
    pub(crate) signal: i32,
    /// The process is to die of it; else somebody else sees to its end.
    pub(crate) is_fatal: bool,
}

/// The right to serve the signals of this process: one has it.
#[derive(Debug)]
pub(crate) struct Watch(());

impl Watch {
    /// `None` if somebody in this process has it.
    pub(crate) fn claim() -> Option<Self> {
        let pid = own_pid();
        (CLAIMED_BY.swap(pid, Ordering::AcqRel) != pid).then_some(Self(()))
    }

    /// Registers an action for each of the signals. A signal that is ignored stays ignored. Where `is_fatal` does not say it, one is
    /// fatal that has its default disposition now. Nothing is caught yet: what comes before [`listen`](Self::listen) does what it would
    /// have done without us.
    pub(crate) fn register(&self, signals: &[i32], is_fatal: Option<bool>) -> io::Result<()> {
        WAKE.prepare()?;
        CAUGHT.store(0, Ordering::Release);
        for &signal in signals {
            let Some(known) = known(signal) else { continue };
            let before = known.load(Ordering::Acquire);
            // In a child of a process that had registered it, the action is there, and what that found is what counts.
            let was_default = match before & REGISTERED {
                0 => match disposition(signal)? {
                    Disposition::Ignored => continue,
                    found => found == Disposition::Default,
                },
                _ => before & WAS_DEFAULT != 0,
            };
            let bit = |is_set, bit| if is_set { bit } else { 0 };
            let flags = bit(was_default, WAS_DEFAULT) | bit(is_fatal.unwrap_or(was_default), IS_FATAL);
            known.store(flags | REGISTERED, Ordering::Release);
            if before & REGISTERED == 0 {
                // SAFETY: `notice` does only what a signal handler may do: atomics, `getpid`, a wake, and dying.
                if let Err(error) = unsafe { register(signal, move || notice(signal)) } {
                    known.store(0, Ordering::Release);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// From here on signals are caught: somebody must be waiting for them.
    pub(crate) fn listen(&self) {
        OWNER.store(own_pid(), Ordering::Release);
    }

    /// Gives the right back. What was registered stays, and does what would have been done without us.
    pub(crate) fn give_up(self) {
        OWNER.store(0, Ordering::Release);
        CLAIMED_BY.store(0, Ordering::Release);
    }
}

/// Waits for a signal. For the one thread that serves them; until [`served`], a further fatal one kills at once.
pub(crate) fn wait() -> Caught {
    loop {
        WAKE.wait();
        let signal = CAUGHT.load(Ordering::Acquire);
        if signal != 0 {
            return Caught { signal, is_fatal: flags(signal) & IS_FATAL != 0 };
        }
    }
}

/// What [`wait`] gave was served, and the process goes on.
pub(crate) fn served() {
    CAUGHT.store(0, Ordering::SeqCst);
    serve_waiting();
}

/// Ends the process by that signal, so that whoever waits for it sees what he would have seen without us.
pub(crate) fn die_of(signal: i32) -> ! {
    // The first process of a container does not die of a signal's default, not even by its own hand: the kernel spares it.
    if own_pid() != 1 {
        let _ = emulate_default_handler(signal);
    }
    // SAFETY: ends the process without running anything of it; the status is what a shell makes of that signal.
    unsafe { libc::_exit(128 + signal) }
}

/// Whether anybody in this process has a handler for the signal.
pub(crate) fn is_caught(signal: i32) -> bool {
    disposition(signal).is_ok_and(|found| found == Disposition::Caught)
}

/// In signal context.
fn notice(signal: i32) {
    if OWNER.load(Ordering::Acquire) != own_pid() {
        // In a child, where nobody listens, or not listening yet.
        if flags(signal) & WAS_DEFAULT != 0 {
            die_of(signal);
        }
    } else if CAUGHT.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
        WAKE.wake();
    } else if flags(signal) & IS_FATAL != 0 {
        // While another one is served: whoever sends it does not want to wait for that.
        die_of(signal);
    } else {
        WAITING.store(signal, Ordering::SeqCst);
        // The other one may have been served meanwhile, and then nobody else looks.
        serve_waiting();
    }
}

fn serve_waiting() {
    if CAUGHT.load(Ordering::SeqCst) == 0 {
        match WAITING.swap(0, Ordering::SeqCst) {
            0 => {}
            waiting => notice(waiting),
        }
    }
}

fn flags(signal: i32) -> u8 {
    known(signal).map_or(0, |known| known.load(Ordering::Acquire))
}

fn known(signal: i32) -> Option<&'static AtomicU8> {
    usize::try_from(signal).ok().and_then(|index| KNOWN.get(index))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disposition {
    Default,
    Ignored,
    Caught,
}

fn disposition(signal: i32) -> io::Result<Disposition> {
    // SAFETY: a C structure of integers and pointers, for which zeros are a value.
    let mut found: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks and changes nothing; the structure lives through the call.
    if unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(match found.sa_sigaction {
        libc::SIG_DFL => Disposition::Default,
        libc::SIG_IGN => Disposition::Ignored,
        _ => Disposition::Caught,
    })
}

fn own_pid() -> i32 {
    // SAFETY: has no conditions, and may be called in a signal handler.
    unsafe { libc::getpid() }
}

/// A semaphore: it needs no descriptor, and a child has a copy of its own.
#[cfg(target_os = "linux")]
mod wake {
    use std::io;
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::atomic::{AtomicPtr, Ordering};

    use nix::libc;

    pub(super) struct Wake(AtomicPtr<libc::sem_t>);

    impl Wake {
        pub(super) const fn new() -> Self {
            Self(AtomicPtr::new(ptr::null_mut()))
        }

        /// A new one for each process that listens: what a child inherits may have been waited for.
        pub(super) fn prepare(&self) -> io::Result<()> {
            let fresh = Box::leak(Box::new(MaybeUninit::<libc::sem_t>::zeroed())).as_mut_ptr();
            // SAFETY: the memory is ours, of the right size, and lives for ever.
            if unsafe { libc::sem_init(fresh, 0, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
            self.0.store(fresh, Ordering::Release);
            Ok(())
        }

        pub(super) fn wake(&self) {
            let semaphore = self.0.load(Ordering::Acquire);
            if !semaphore.is_null() {
                // SAFETY: was initialised before it was stored, is never freed; posting is allowed in a signal handler.
                unsafe { libc::sem_post(semaphore) };
            }
        }

        pub(super) fn wait(&self) {
            // SAFETY: as above; whoever waits has prepared it. An interruption looks like a wake, and the caller looks again.
            unsafe { libc::sem_wait(self.0.load(Ordering::Acquire)) };
        }
    }
}

/// Where there are no semaphores in memory (macOS): a pair of sockets, closed when a program is executed.
#[cfg(not(target_os = "linux"))]
mod wake {
    use std::io::{self, Read};
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicI32, Ordering};

    use nix::libc;

    pub(super) struct Wake(AtomicI32, Mutex<Option<UnixStream>>);

    impl Wake {
        pub(super) const fn new() -> Self {
            Self(AtomicI32::new(-1), Mutex::new(None))
        }

        pub(super) fn prepare(&self) -> io::Result<()> {
            let (reading, writing) = UnixStream::pair()?;
            *self.1.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(reading);
            self.0.store(writing.into_raw_fd(), Ordering::Release);
            Ok(())
        }

        pub(super) fn wake(&self) {
            // SAFETY: one byte of a constant; sending is allowed in a signal handler, and does not wait.
            unsafe { libc::send(self.0.load(Ordering::Acquire), [1_u8].as_ptr().cast(), 1, libc::MSG_DONTWAIT) };
        }

        pub(super) fn wait(&self) {
            let reading = self.1.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(mut reading) = reading.as_ref() {
                let _ = reading.read(&mut [0]);
            }
        }
    }
}
