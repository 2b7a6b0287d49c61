//! Whoever had the signals before, and how the process goes on without us.

use std::ffi::c_void;
use std::io;
use std::mem::{MaybeUninit, transmute};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use nix::libc::{self, c_int, siginfo_t};

// SAFETY: of its functions: to be called as the kernel calls a handler, or with what it gave one.
type Entry = unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// By signal number: what was installed before us. Leaked, because a handler may read it at any time.
static PREVIOUS: [AtomicPtr<libc::sigaction>; 32] = [const { AtomicPtr::new(ptr::null_mut()) }; 32];

/// Puts `entry` before what each of `signals` does now.
pub(super) fn take_signals(signals: &[c_int], entry: Entry) -> io::Result<()> {
    for &signal in signals {
        // Known before the handler can run.
        let previous = Box::into_raw(Box::new(disposition(signal)?));
        if let Some(place) = usize::try_from(signal).ok().and_then(|at| PREVIOUS.get(at)) {
            place.store(previous, Ordering::Release);
        }
        let mut action = default_action();
        action.sa_sigaction = entry as *const () as usize;
        // The signal itself stays unblocked: a fault while it is blocked would end the process without a word. Others wait.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: the mask is ours to fill.
        unsafe { libc::sigfillset(&mut action.sa_mask) };
        for &other in signals {
            // SAFETY: as above.
            unsafe { libc::sigdelset(&mut action.sa_mask, other) };
        }
        // SAFETY: a handler that lives for ever and keeps to what a handler may do.
        if unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Lets who was there before have the signal.
///
/// # Safety
///
/// `info` and `context` as the kernel gave them.
pub(super) unsafe fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let previous = previous(signal);
    match previous.map_or(libc::SIG_DFL, |action| action.sa_sigaction) {
        // `abort` among them: that insists by itself, and takes the signal back first.
        libc::SIG_IGN if !is_forced(info) => {}
        // What the kernel raises itself cannot be ignored.
        libc::SIG_DFL | libc::SIG_IGN => die_of(signal, info),
        handler => {
            // Asked for by who lets the fault come again after he has looked: he would be asked for ever.
            if previous.is_some_and(|action| action.sa_flags & libc::SA_RESETHAND != 0) {
                set_default(signal);
            }
            let wants_info = previous.is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0);
            if wants_info {
                // SAFETY: an action with SA_SIGINFO holds a function of this type.
                let handler: Entry = unsafe { transmute::<usize, Entry>(handler) };
                // SAFETY: called as the kernel would have called it.
                unsafe { handler(signal, info, context) };
            } else {
                // SAFETY: an action without SA_SIGINFO that is neither of the two constants holds a function of this type.
                let handler = unsafe { transmute::<usize, unsafe extern "C" fn(c_int)>(handler) };
                // SAFETY: as above.
                unsafe { handler(signal) };
            }
        }
    }
}

/// Whether there is a handler that may repair what happened, or know better than we do.
pub(super) fn has_previous_handler(signal: c_int) -> bool {
    previous(signal).is_some_and(|action| !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN))
}

/// Whether nothing stands between the signal and the kernel's default any more.
pub(super) fn is_default(signal: c_int) -> bool {
    disposition(signal).is_ok_and(|action| action.sa_sigaction == libc::SIG_DFL)
}

/// The thread dies of the signal as soon as the handler returns, as if there had never been one.
pub(super) fn die_of(signal: c_int, info: *mut siginfo_t) {
    set_default(signal);
    if is_fault(signal, info) {
        // The instruction is tried again, and faults again.
        return;
    }
    block(signal);
    send_to_this_thread(signal, info);
}

/// The process dies of the signal here and now.
pub(super) fn die_at_once(signal: c_int, info: *mut siginfo_t) -> ! {
    set_default(signal);
    send_to_this_thread(signal, info);
    unblock_all();
    // SAFETY: ends the process without running anything of it. Reached only if a signal that was sent did not arrive.
    unsafe { libc::_exit(128 + signal) }
}

/// From now on the kernel alone decides about these.
pub(super) fn give_back(signals: &[c_int]) {
    for &signal in signals {
        set_default(signal);
    }
}

/// Raised by an instruction of the thread itself, which raises it again when it is tried again.
pub(super) fn is_fault(signal: c_int, info: *const siginfo_t) -> bool {
    is_forced(info) && matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE)
}

/// Raised by the kernel, and not sent by anybody.
fn is_forced(info: *const siginfo_t) -> bool {
    // SAFETY: the kernel's, or a copy of it.
    unsafe { info.as_ref() }.is_some_and(|info| info.si_code > 0)
}

fn previous(signal: c_int) -> Option<&'static libc::sigaction> {
    let place = PREVIOUS.get(usize::try_from(signal).ok()?)?;
    // SAFETY: null, or leaked by `take_signals` and never changed after.
    unsafe { place.load(Ordering::Acquire).as_ref() }
}

fn disposition(signal: c_int) -> io::Result<libc::sigaction> {
    let mut action = default_action();
    // SAFETY: asks only, into memory of ours.
    if unsafe { libc::sigaction(signal, ptr::null(), &mut action) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(action)
}

fn default_action() -> libc::sigaction {
    // SAFETY: a structure of numbers and an optional function, for which zero is the default action.
    unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() }
}

fn set_default(signal: c_int) {
    // SAFETY: the default action is always valid.
    unsafe { libc::sigaction(signal, &default_action(), ptr::null_mut()) };
}

fn block(signal: c_int) {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is emptied before it is used.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
    }
}

fn unblock_all() {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: as above.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut());
    }
}

/// With all that the kernel said about it, so that a core dump says the same; else at least the signal.
fn send_to_this_thread(signal: c_int, info: *mut siginfo_t) {
    // SAFETY: system calls on numbers, and on a structure that the kernel has filled.
    unsafe {
        let (process, thread) = (libc::getpid(), libc::syscall(libc::SYS_gettid));
        if libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, info) != 0 {
            libc::syscall(libc::SYS_tgkill, process, thread, signal);
        }
    }
}
