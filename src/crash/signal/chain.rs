//! Whoever had the signals before, and how the process goes on without us.
//!
//! A handler that was there before is called as the kernel would have called it: on the stack of its choice (the entry is installed
//! with or without the alternate stack as that handler was), with the signals blocked that it asked for, and once if it wanted that.

use std::ffi::c_void;
use std::io;
use std::mem::{MaybeUninit, transmute};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use nix::libc::{self, c_int, siginfo_t};

use super::threads::bit_of;

// SAFETY: of its functions: to be called as the kernel calls a handler, or with what it gave one.
type Entry = unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// By signal number: what was installed before us. Leaked, because a handler may read it at any time.
static PREVIOUS: [AtomicPtr<libc::sigaction>; 32] = [const { AtomicPtr::new(ptr::null_mut()) }; 32];
/// Our handler, as the kernel knows it.
static ENTRY: AtomicUsize = AtomicUsize::new(0);
/// Bytes of a set of signals, as the kernel takes it.
const SET_BYTES: usize = 8;
/// The number of the first process of a container. Of what it sends itself, the kernel drops what would end it by default.
const FIRST_PROCESS: u32 = 1;

/// Puts `entry` before what each of `signals` does now.
pub(super) fn take_signals(signals: &[c_int], entry: Entry) -> io::Result<()> {
    ENTRY.store(entry as *const () as usize, Ordering::SeqCst);
    for &signal in signals {
        // Known before the handler can run.
        let before = disposition(signal)?;
        let is_handled = !matches!(before.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN);
        let previous = Box::into_raw(Box::new(before));
        if let Some(place) = usize::try_from(signal).ok().and_then(|at| PREVIOUS.get(at)) {
            place.store(previous, Ordering::Release);
        }
        let mut action = default_action();
        action.sa_sigaction = entry as *const () as usize;
        // The signal itself stays unblocked: a fault while it is blocked would end the process without a word. Others wait.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        // A handler that did not ask for the alternate stack may need more than that has.
        action.sa_flags |= if is_handled { before.sa_flags & libc::SA_ONSTACK } else { libc::SA_ONSTACK };
        // What is ignored interrupts no system call.
        let is_ignored = before.sa_sigaction == libc::SIG_IGN;
        action.sa_flags |= if is_ignored { libc::SA_RESTART } else { before.sa_flags & libc::SA_RESTART };
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

/// Whether there is a handler that may repair what happened, or know better than we do.
pub(super) fn has_previous_handler(signal: c_int) -> bool {
    previous(signal).is_some_and(|action| !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN))
}

/// Whether the process may live on after it.
pub(super) fn may_be_survived(signal: c_int) -> bool {
    previous(signal).is_some_and(|action| action.sa_sigaction != libc::SIG_DFL)
}

/// Whether the kernel blocks the signal while the handler before ours runs.
pub(super) fn is_blocked_by_previous(signal: c_int) -> bool {
    previous(signal).is_some_and(|action| action.sa_flags & libc::SA_NODEFER == 0)
}

/// What it would do before it calls that handler.
pub(super) fn prepare_previous(signal: c_int) {
    // Asked for by who lets the fault come again after he has looked: he would be asked for ever.
    if previous(signal).is_some_and(|action| action.sa_flags & libc::SA_RESETHAND != 0) {
        set_default(signal);
    }
}

/// Calls that handler as the kernel would have: with what was blocked before, what it asked for, and mostly the signal itself. On the
/// stack that the kernel gave, of which this needs little.
///
/// # Safety
///
/// `info` and `context` as the kernel gave them.
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
        // SAFETY: called as the kernel would have called it.
        unsafe { handler(signal, info, context) };
    } else {
        // SAFETY: an action without SA_SIGINFO that is neither of the two constants holds a function of this type.
        let handler = unsafe { transmute::<usize, unsafe extern "C" fn(c_int)>(handler) };
        // SAFETY: as above.
        unsafe { handler(signal) };
    }
}

/// Whether the kernel would not even have delivered it: sent to the first process of a container, which has no handler for it. Its own
/// `abort` is another matter, since that insists.
pub(super) fn is_dropped(signal: c_int, info: *const siginfo_t) -> bool {
    if std::process::id() != FIRST_PROCESS || may_be_survived(signal) || is_forced(info) {
        return false;
    }
    // SAFETY: the kernel's, or a copy of it; what was sent says by whom.
    let sender = unsafe { info.as_ref().map_or(0, |info| info.si_pid()) };
    signal != libc::SIGABRT || u32::try_from(sender) != Ok(FIRST_PROCESS)
}

/// What happens without a handler: the process dies of it, or it is ignored.
pub(super) fn let_happen(signal: c_int, info: *mut siginfo_t) {
    // `abort` among them: that insists by itself, and takes the signal back first. What the kernel raises itself cannot be ignored.
    let is_ignored = may_be_survived(signal) && !is_forced(info);
    if !is_ignored {
        die_of(signal, info);
    }
}

/// The thread dies of the signal as soon as the handler returns, as if there had never been one.
fn die_of(signal: c_int, info: *mut siginfo_t) {
    set_default(signal);
    if is_fault(signal, info) {
        // The instruction is tried again, and faults again.
        return;
    }
    if std::process::id() == FIRST_PROCESS {
        die_at_once(signal, info);
    }
    block(signal);
    send_to_this_thread(signal, info);
}

/// The process dies of the signal here and now. The kernel drops it in the first process of a container, which then exits with what
/// a shell makes of the signal.
fn die_at_once(signal: c_int, info: *mut siginfo_t) -> ! {
    send_to_this_thread(signal, info);
    set_mask(0);
    // SAFETY: ends the process without running anything of it. Reached only if a signal that was sent did not arrive.
    unsafe { libc::_exit(128 + signal) }
}

/// From now on the kernel alone decides about these.
pub(super) fn give_back(signals: &[c_int]) {
    for &signal in signals {
        set_default(signal);
    }
}

/// A signal that somebody sent comes again when the thread has done what it does now, of which it was interrupted in `interrupted`.
pub(super) fn postpone(signal: c_int, info: *mut siginfo_t, interrupted: &mut libc::ucontext_t) {
    // SAFETY: a set of the kernel's, of which the C library's type is as long or longer.
    unsafe { libc::sigaddset(&mut interrupted.uc_sigmask, signal) };
    block(signal);
    send_to_this_thread(signal, info);
}

/// Raised by an instruction of the thread itself, which raises it again when it is tried again.
fn is_fault(signal: c_int, info: *const siginfo_t) -> bool {
    is_forced(info) && matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE)
}

/// Raised by the kernel, and not sent by anybody.
pub(super) fn is_forced(info: *const siginfo_t) -> bool {
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

/// Whether the signal still comes to us. Asked on the stack that the kernel gave, so without the C library's way round.
pub(super) fn is_ours(signal: c_int) -> bool {
    // The kernel's own structure, which begins with the handler, and is shorter than this.
    let mut action = [0_usize; 8];
    // SAFETY: asks only, into memory of ours.
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

/// What was blocked when the signal came, of the signals that have a number below 64.
pub(super) fn mask_of(context: *const c_void) -> u64 {
    // SAFETY: as the kernel gave it.
    first_word(unsafe { &(*context.cast::<libc::ucontext_t>()).uc_sigmask })
}

/// What this thread blocks now.
pub(super) fn mask_of_this_thread() -> u64 {
    change_mask(libc::SIG_BLOCK, 0)
}

fn first_word(set: &libc::sigset_t) -> u64 {
    // SAFETY: a set is at least as long as the kernel's, which is one word of 64 bits, and as aligned.
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

/// By the kernel's own call: the C library keeps some signals to itself, and needs more of the stack. Answers what was blocked before.
fn change_mask(how: c_int, mask: u64) -> u64 {
    let mut before = 0u64;
    // SAFETY: both are sets of the kernel's length.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const mask, &raw mut before, SET_BYTES) };
    before
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
