//! The signal handlers that were installed before ours, and the kernel's default actions.
//!
//! An earlier handler is called as the kernel would have called it: on the stack that it asked for (our entry is
//! installed with or without the alternate stack, as that handler was), with the signals blocked that it asked for, and
//! only once if it was installed with `SA_RESETHAND`.

use std::ffi::c_void;
use std::io;
use std::mem::{MaybeUninit, transmute};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use nix::libc::{self, c_int, siginfo_t};

use crate::crash::termination::disposition;

// SAFETY: its functions are called only as the kernel calls a handler, or with the arguments that the kernel gave one.
type Entry = unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// By signal number: the action before ours. Leaked, because a handler may read it at any time.
static PREVIOUS: [AtomicPtr<libc::sigaction>; 32] = [const { AtomicPtr::new(ptr::null_mut()) }; 32];
/// The address of our handler.
static ENTRY: AtomicUsize = AtomicUsize::new(0);
/// Bytes of a signal set in the kernel's format.
const SET_BYTES: usize = 8;
/// Pid of the init process of a container. The kernel drops signals whose default action would end it.
const FIRST_PROCESS: u32 = 1;

/// Installs `entry` in front of the current action of each signal.
pub(super) fn install(signals: &[c_int], entry: Entry) -> io::Result<()> {
    ENTRY.store(entry as *const () as usize, Ordering::SeqCst);
    for &signal in signals {
        // Stored before the handler can run.
        let before = disposition(signal)?;
        let is_handled = !matches!(before.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN);
        let previous = Box::into_raw(Box::new(before));
        if let Some(place) = usize::try_from(signal).ok().and_then(|at| PREVIOUS.get(at)) {
            place.store(previous, Ordering::Release);
        }
        let mut action = default_action();
        action.sa_sigaction = entry as *const () as usize;
        // The signal itself stays unblocked: a fault while its signal is blocked ends the process without a record. All
        // other signals are blocked.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        // A handler that did not ask for the alternate stack may need more space than that has.
        action.sa_flags |= if is_handled { before.sa_flags & libc::SA_ONSTACK } else { libc::SA_ONSTACK };
        // An ignored signal does not interrupt system calls.
        let is_ignored = before.sa_sigaction == libc::SIG_IGN;
        action.sa_flags |= if is_ignored { libc::SA_RESTART } else { before.sa_flags & libc::SA_RESTART };
        // SAFETY: writes to our own structure.
        unsafe { libc::sigfillset(&mut action.sa_mask) };
        for &other in signals {
            // SAFETY: as above.
            unsafe { libc::sigdelset(&mut action.sa_mask, other) };
        }
        // SAFETY: a handler that is never unloaded, and that is async-signal-safe.
        if unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether an earlier handler may repair the fault or handle the signal better than we can.
pub(super) fn has_previous_handler(signal: c_int) -> bool {
    previous(signal).is_some_and(|action| !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN))
}

/// Whether the process may survive the signal.
pub(super) fn may_be_survived(signal: c_int) -> bool {
    previous(signal).is_some_and(|action| action.sa_sigaction != libc::SIG_DFL)
}

/// Whether the kernel blocks the signal while the earlier handler runs.
pub(super) fn is_blocked_by_previous(signal: c_int) -> bool {
    previous(signal).is_some_and(|action| action.sa_flags & libc::SA_NODEFER == 0)
}

/// What the kernel does before it calls the earlier handler.
pub(super) fn prepare_previous(signal: c_int) {
    // A handler with `SA_RESETHAND` expects the default action when the fault comes again; otherwise it would be called
    // for ever.
    if previous(signal).is_some_and(|action| action.sa_flags & libc::SA_RESETHAND != 0) {
        set_default(signal);
    }
}

/// Calls the earlier handler as the kernel would have: with the mask of the interrupted thread, the signals that the
/// handler asked to block, and usually the signal itself. Runs on the stack that the kernel chose, of which it needs
/// little.
///
/// # Safety
///
/// `info` and `context` must be those that the kernel passed to our handler.
pub(super) unsafe fn call_previous(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(action) = previous(signal) else { return };
    let handler = action.sa_sigaction;
    if matches!(handler, libc::SIG_DFL | libc::SIG_IGN) {
        return;
    }
    let own = if action.sa_flags & libc::SA_NODEFER == 0 { bit_of(signal) } else { 0 };
    set_mask(mask_of(context) | first_word(&action.sa_mask) | own);
    if action.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: an action with SA_SIGINFO holds a function of this type.
        let handler: Entry = unsafe { transmute::<usize, Entry>(handler) };
        // SAFETY: called with the arguments and on the stack that the kernel chose.
        unsafe { handler(signal, info, context) };
    } else {
        // SAFETY: an action without SA_SIGINFO that is neither of the two constants holds a function of this type.
        let handler = unsafe { transmute::<usize, unsafe extern "C" fn(c_int)>(handler) };
        // SAFETY: as above.
        unsafe { handler(signal) };
    }
}

/// Whether the kernel would not have delivered the signal without our handler: it was sent to the init process of a
/// container, which has no handler for it. Its own `abort` is an exception, since that always ends the process.
pub(super) fn is_dropped_by_kernel(signal: c_int, info: *const siginfo_t) -> bool {
    if std::process::id() != FIRST_PROCESS || may_be_survived(signal) || is_raised_by_kernel(info) {
        return false;
    }
    // SAFETY: the kernel's structure, or a copy of it; for a sent signal the sender's pid is set.
    let sender = unsafe { info.as_ref().map_or(0, |info| info.si_pid()) };
    signal != libc::SIGABRT || u32::try_from(sender) != Ok(FIRST_PROCESS)
}

/// Applies the default: the process dies of the signal, or it is ignored.
pub(super) fn take_default_action(signal: c_int, info: *mut siginfo_t) {
    // `abort` resets the disposition of SIGABRT itself and raises it again. A signal raised by the kernel cannot be
    // ignored.
    let is_ignored = may_be_survived(signal) && !is_raised_by_kernel(info);
    if !is_ignored {
        die_of(signal, info);
    }
}

/// Makes the thread die of the signal when our handler returns, as if there had been no handler.
fn die_of(signal: c_int, info: *mut siginfo_t) {
    set_default(signal);
    if is_fault(signal, info) {
        // The instruction is executed again, and faults again.
        return;
    }
    if std::process::id() == FIRST_PROCESS {
        die_at_once(signal, info);
    }
    block(signal);
    send_to_this_thread(signal, info);
}

/// Ends the process by the signal at once. In the init process of a container the kernel drops the signal; the process
/// then exits with the status that a shell reports for the signal.
fn die_at_once(signal: c_int, info: *mut siginfo_t) -> ! {
    send_to_this_thread(signal, info);
    set_mask(0);
    // SAFETY: ends the process without running any of its code. Reached only if the signal was not delivered.
    unsafe { libc::_exit(128 + signal) }
}

pub(super) fn restore_defaults(signals: &[c_int]) {
    for &signal in signals {
        set_default(signal);
    }
}

/// Defers a signal that was sent: it is delivered when the thread leaves what it was interrupted in, `interrupted`.
pub(super) fn postpone(signal: c_int, info: *mut siginfo_t, interrupted: &mut libc::ucontext_t) {
    // SAFETY: the kernel's set; the C library's type is at least as long.
    unsafe { libc::sigaddset(&mut interrupted.uc_sigmask, signal) };
    block(signal);
    send_to_this_thread(signal, info);
}

/// Whether the signal was raised by an instruction of the thread, which raises it again when executed again.
fn is_fault(signal: c_int, info: *const siginfo_t) -> bool {
    is_raised_by_kernel(info) && matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE)
}

/// Whether the signal was raised by the kernel and not sent by a process.
pub(super) fn is_raised_by_kernel(info: *const siginfo_t) -> bool {
    // SAFETY: the kernel's structure, or a copy of it.
    unsafe { info.as_ref() }.is_some_and(|info| info.si_code > 0)
}

fn previous(signal: c_int) -> Option<&'static libc::sigaction> {
    let place = PREVIOUS.get(usize::try_from(signal).ok()?)?;
    // SAFETY: null, or leaked by `install` and never changed afterwards.
    unsafe { place.load(Ordering::Acquire).as_ref() }
}

/// Whether our handler is still installed for the signal. Uses the system call directly, because it runs on the
/// kernel's stack and the C library's wrapper needs more of it.
pub(super) fn is_our_handler_installed(signal: c_int) -> bool {
    // The kernel's own structure begins with the handler, and is shorter than this.
    let mut action = [0_usize; 8];
    // SAFETY: only reads the disposition, into memory of ours.
    let answer =
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, ptr::null::<c_void>(), action.as_mut_ptr(), SET_BYTES) };
    answer == 0 && action.first() == Some(&ENTRY.load(Ordering::SeqCst))
}

fn default_action() -> libc::sigaction {
    // SAFETY: a structure of numbers and an optional function, for which zero is the default action.
    unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() }
}

fn set_default(signal: c_int) {
    // SAFETY: the default action is always valid.
    unsafe { libc::sigaction(signal, &default_action(), ptr::null_mut()) };
}

/// The signals below 64 that were blocked when the signal arrived.
pub(super) fn mask_of(context: *const c_void) -> u64 {
    // SAFETY: as given by the kernel.
    first_word(unsafe { &(*context.cast::<libc::ucontext_t>()).uc_sigmask })
}

/// The signals that this thread blocks now.
pub(super) fn mask_of_this_thread() -> u64 {
    change_mask(libc::SIG_BLOCK, 0)
}

/// The bit of a signal in the kernel's mask.
pub(super) fn bit_of(signal: i32) -> u64 {
    u32::try_from(signal.wrapping_sub(1)).ok().and_then(|at| 1u64.checked_shl(at)).unwrap_or(0)
}

fn first_word(set: &libc::sigset_t) -> u64 {
    // SAFETY: the type is at least as long as the kernel's set, one 64-bit word, and as aligned.
    unsafe { ptr::from_ref(set).cast::<u64>().read() }
}

fn set_mask(mask: u64) {
    change_mask(libc::SIG_SETMASK, mask);
}

pub(super) fn block_everything() {
    set_mask(u64::MAX);
}

fn block(signal: c_int) {
    change_mask(libc::SIG_BLOCK, bit_of(signal));
}

/// Changes the signal mask by the system call, and returns the mask before. The C library's function leaves out some
/// signals that it uses itself, and needs more stack.
fn change_mask(how: c_int, mask: u64) -> u64 {
    let mut before = 0u64;
    // SAFETY: both are sets of the kernel's length.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const mask, &raw mut before, SET_BYTES) };
    before
}

/// Sends the signal with its original `siginfo_t`, so that a core dump has it; if that fails, at least the signal.
fn send_to_this_thread(signal: c_int, info: *mut siginfo_t) {
    // SAFETY: system calls on numbers, and on a structure that the kernel has filled.
    unsafe {
        let (process, thread) = (libc::getpid(), libc::syscall(libc::SYS_gettid));
        if libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, info) != 0 {
            libc::syscall(libc::SYS_tgkill, process, thread, signal);
        }
    }
}
