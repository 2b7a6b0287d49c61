//! Signals that ask the process to terminate: caught here, handled by a thread, and then the process dies of them.
//!
//! The signal action stores the number in an atomic and posts a semaphore. It uses no pipe: in a program that closes
//! all descriptors to become a daemon, the next signal would be written into whichever file got the same number, and a
//! forked child would wake its parent.

#![allow(unsafe_code, reason = "a signal action and a semaphore; each block proves itself")]

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use nix::libc;
use signal_hook::low_level::{emulate_default_handler, register};

use wake::Wake;

/// The signals that ask a process to terminate, whose default action ends it.
pub(crate) const TERMINATION_SIGNALS: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// The process whose thread waits for signals; 0 if none. In a forked child it is the parent.
static OWNER: AtomicI32 = AtomicI32::new(0);
/// The process that has claimed the [`Watch`], whether or not it listens yet.
static CLAIMED_BY: AtomicI32 = AtomicI32::new(0);
/// The signal being handled; 0 if none.
static CAUGHT: AtomicI32 = AtomicI32::new(0);
/// A signal that arrived while another was handled, to be handled next; 0 if none.
static WAITING: AtomicI32 = AtomicI32::new(0);
static WAKE: Wake = Wake::new();

/// Flags of each signal. An action is never unregistered: the registry would then ignore the signal instead of
/// restoring its default action.
static KNOWN: [AtomicU8; 32] = [const { AtomicU8::new(0) }; 32];
/// An action is registered, by this process or by one that forked it.
const REGISTERED: u8 = 1;
/// Before the registration the signal had its default action, which ends the process.
const WAS_DEFAULT: u8 = 2;
/// After it was handled, the process dies of the signal.
const IS_FATAL: u8 = 4;

/// A signal that was caught and is to be handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caught {
    pub(crate) signal: i32,
    /// Whether the process is to die of it; otherwise the program ends itself.
    pub(crate) is_fatal: bool,
}

/// The right to handle the termination signals of this process. There is one.
#[derive(Debug)]
pub(crate) struct Watch(());

impl Watch {
    /// `None` if it was claimed in this process already.
    pub(crate) fn claim() -> Option<Self> {
        let pid = own_pid();
        (CLAIMED_BY.swap(pid, Ordering::AcqRel) != pid).then_some(Self(()))
    }

    /// Registers an action for each signal. An ignored signal stays ignored. If `is_fatal` is `None`, a signal is fatal
    /// if it has its default action now. Nothing is caught yet: before [`listen`](Self::listen), each signal does what
    /// it would have done otherwise.
    pub(crate) fn register(&self, signals: &[i32], is_fatal: Option<bool>) -> io::Result<()> {
        WAKE.prepare()?;
        CAUGHT.store(0, Ordering::Release);
        for &signal in signals {
            let Some(known) = known(signal) else { continue };
            let before = known.load(Ordering::Acquire);
            // In a forked child the inherited action is the disposition, so the flags of its registration count.
            let was_default = match before & REGISTERED {
                0 => match disposition(signal)?.sa_sigaction {
                    libc::SIG_IGN => continue,
                    found => found == libc::SIG_DFL,
                },
                _ => before & WAS_DEFAULT != 0,
            };
            let bit = |is_set, bit| if is_set { bit } else { 0 };
            let flags = bit(was_default, WAS_DEFAULT) | bit(is_fatal.unwrap_or(was_default), IS_FATAL);
            known.store(flags | REGISTERED, Ordering::Release);
            if before & REGISTERED == 0 {
                // SAFETY: `notice` does only what a signal handler may do: atomics, `getpid`, posting the semaphore,
                // and ending the process.
                if let Err(error) = unsafe { register(signal, move || notice(signal)) } {
                    known.store(0, Ordering::Release);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// From now on signals are caught: a thread must be in [`wait`].
    pub(crate) fn listen(&self) {
        OWNER.store(own_pid(), Ordering::Release);
    }

    /// Releases the right. The registered actions stay, and each signal does what it would have done otherwise.
    pub(crate) fn give_up(self) {
        OWNER.store(0, Ordering::Release);
        CLAIMED_BY.store(0, Ordering::Release);
    }
}

/// Waits for a signal; called by the one thread that handles them. Until [`served`] is called, another fatal signal
/// ends the process at once.
pub(crate) fn wait() -> Caught {
    loop {
        WAKE.wait();
        let signal = CAUGHT.load(Ordering::Acquire);
        if signal != 0 {
            return Caught { signal, is_fatal: flags(signal) & IS_FATAL != 0 };
        }
    }
}

/// The signal that [`wait`] returned was handled, and the process continues.
pub(crate) fn served() {
    CAUGHT.store(0, Ordering::SeqCst);
    serve_waiting();
}

/// Ends the process by that signal, so that its parent sees the same status as without a handler.
pub(crate) fn die_of(signal: i32) -> ! {
    // The kernel does not let the init process of a container die of a default action, not even of a signal that it
    // sends itself.
    if own_pid() != 1 {
        let _ = emulate_default_handler(signal);
    }
    // SAFETY: ends the process without running any of its code. The status is the one that a shell reports for the
    // signal.
    unsafe { libc::_exit(128 + signal) }
}

/// Whether the signal has a handler in this process.
pub(crate) fn is_caught(signal: i32) -> bool {
    disposition(signal).is_ok_and(|found| !matches!(found.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN))
}

/// Runs in signal context.
fn notice(signal: i32) {
    if OWNER.load(Ordering::Acquire) != own_pid() {
        // A forked child without a listener, or no listener yet.
        if flags(signal) & WAS_DEFAULT != 0 {
            die_of(signal);
        }
    } else if CAUGHT.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
        WAKE.wake();
    } else if flags(signal) & IS_FATAL != 0 {
        // A second signal during the handling of the first: its sender does not want to wait.
        die_of(signal);
    } else {
        WAITING.store(signal, Ordering::SeqCst);
        // The first signal may have been served since the check; then nothing else would handle this one.
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

/// What the process does at the signal.
pub(super) fn disposition(signal: i32) -> io::Result<libc::sigaction> {
    // SAFETY: a C structure of integers and pointers, for which all zeros is a valid value.
    let mut found: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only reads the disposition; the structure outlives the call.
    match unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut found) } {
        0 => Ok(found),
        _ => Err(io::Error::last_os_error()),
    }
}

fn own_pid() -> i32 {
    // SAFETY: has no preconditions, and is async-signal-safe.
    unsafe { libc::getpid() }
}

/// A semaphore. It needs no descriptor, and a forked child has its own copy.
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

        /// Creates a semaphore for each process that listens: a thread of the parent may be waiting on an inherited
        /// one.
        pub(super) fn prepare(&self) -> io::Result<()> {
            let fresh = Box::leak(Box::new(MaybeUninit::<libc::sem_t>::zeroed())).as_mut_ptr();
            // SAFETY: the memory is ours, of the right size, and never freed.
            if unsafe { libc::sem_init(fresh, 0, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
            self.0.store(fresh, Ordering::Release);
            Ok(())
        }

        pub(super) fn wake(&self) {
            let semaphore = self.0.load(Ordering::Acquire);
            if !semaphore.is_null() {
                // SAFETY: initialized before it was stored, and never freed; `sem_post` is async-signal-safe.
                unsafe { libc::sem_post(semaphore) };
            }
        }

        pub(super) fn wait(&self) {
            // SAFETY: as above; `prepare` was called before. An interrupted wait looks like a wake-up, and the caller
            // checks.
            unsafe { libc::sem_wait(self.0.load(Ordering::Acquire)) };
        }
    }
}

/// A pair of close-on-exec sockets, for systems without unnamed semaphores (macOS).
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
            // SAFETY: sends one byte of a constant; `send` is async-signal-safe, and does not block.
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
