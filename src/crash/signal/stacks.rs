//! The stacks of the handler, and the registers of the interrupted thread.
//!
//! Each stack is between two guard pages: what does not fit faults and overwrites nothing.

use std::ffi::c_void;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use nix::libc;

/// 1 while a thread is on our stack.
pub(super) static IN_USE: AtomicU32 = AtomicU32::new(0);

/// Whether a thread is on our stack.
pub(super) fn is_stack_taken() -> bool {
    IN_USE.load(Ordering::SeqCst) != 0
}

/// Bytes of each of our stacks. The walk was measured to use 16 KiB.
const STACK_BYTES: usize = 128 * 1024;
/// Bytes of the alternate stack that [`register_thread`] creates.
const ALTERNATE_BYTES: usize = 64 * 1024;

/// The top of our stack; the entry loads it.
pub(super) static EMERGENCY_TOP: AtomicUsize = AtomicUsize::new(0);
/// The bottom of the stack for faults inside our handler. Without it they would land on the alternate stack, whose
/// signal frame is still needed.
static NESTED_BOTTOM: AtomicUsize = AtomicUsize::new(0);

/// Maps both stacks, each between two guard pages, and makes the kernel allocate their memory: during a crash the
/// process may be at its limit.
pub(super) fn prepare() -> io::Result<()> {
    let (emergency, nested) = (map(STACK_BYTES)?, map(STACK_BYTES)?);
    for bottom in [emergency, nested] {
        for offset in (0..STACK_BYTES).step_by(1024) {
            // SAFETY: inside the mapping, which is not used yet: the handler is installed later.
            unsafe { ptr::write_volatile(bottom.cast::<u8>().add(offset), 0) };
        }
    }
    NESTED_BOTTOM.store(nested.expose_provenance(), Ordering::SeqCst);
    EMERGENCY_TOP.store(emergency.expose_provenance().saturating_add(STACK_BYTES), Ordering::SeqCst);
    Ok(())
}

/// The alternate stack of the thread that is on our stack.
pub(super) fn nested() -> libc::stack_t {
    let bottom = ptr::with_exposed_provenance_mut(NESTED_BOTTOM.load(Ordering::SeqCst));
    libc::stack_t { ss_sp: bottom, ss_flags: 0, ss_size: STACK_BYTES }
}

/// Maps a stack of this size between two inaccessible pages. Never unmapped.
fn map(bytes: usize) -> io::Result<*mut c_void> {
    // SAFETY: only reads a system parameter.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let whole = bytes.saturating_add(page.saturating_mul(2));
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let memory = unsafe { libc::mmap(ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: inside the mapping, which is two pages longer.
    let bottom = unsafe { memory.byte_add(page) };
    // SAFETY: a part of the mapping that was just created.
    if unsafe { libc::mprotect(bottom, bytes, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
        let error = io::Error::last_os_error();
        // SAFETY: the whole mapping, to which nothing else has a pointer.
        unsafe { libc::munmap(memory, whole) };
        return Err(error);
    }
    Ok(bottom)
}

/// Gives the calling thread an alternate stack if it has none, so that an overflow of its own stack can be recorded. It
/// is never freed: a signal may arrive until the very end of the thread.
pub(crate) fn register_thread() -> io::Result<()> {
    let mut current = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: only reads the setting, into memory of ours.
    if unsafe { libc::sigaltstack(ptr::null(), &mut current) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if current.ss_flags & libc::SS_DISABLE == 0 {
        return Ok(());
    }
    let stack = libc::stack_t { ss_sp: map(ALTERNATE_BYTES)?, ss_flags: 0, ss_size: ALTERNATE_BYTES };
    // SAFETY: the memory was just mapped, and is never unmapped.
    if unsafe { libc::sigaltstack(&stack, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The three registers that a walk starts from, and the return address on machines that keep it in a register.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registers {
    pub(super) pc: u64,
    pub(super) sp: u64,
    pub(super) fp: u64,
    #[cfg_attr(target_arch = "x86_64", allow(dead_code, reason = "the return address is on the stack"))]
    pub(super) lr: u64,
}

impl Registers {
    #[cfg(target_arch = "x86_64")]
    pub(super) fn of(context: &libc::ucontext_t) -> Self {
        let register = |name: libc::c_int| {
            let at = usize::try_from(name).unwrap_or(usize::MAX);
            context.uc_mcontext.gregs.get(at).map_or(0, |value| value.cast_unsigned())
        };
        Self { pc: register(libc::REG_RIP), sp: register(libc::REG_RSP), fp: register(libc::REG_RBP), lr: 0 }
    }

    #[cfg(target_arch = "aarch64")]
    pub(super) fn of(context: &libc::ucontext_t) -> Self {
        let machine = &context.uc_mcontext;
        let register = |at: usize| machine.regs.get(at).copied().unwrap_or(0);
        Self { pc: machine.pc, sp: machine.sp, fp: register(29), lr: register(30) }
    }
}

/// Makes the thread continue in the entry's frame at `resume`, with `answer`, when the handler that was given `context`
/// returns.
#[cfg(target_arch = "x86_64")]
pub(super) fn go_on_at(context: &mut libc::ucontext_t, resume: usize, frame: usize, answer: u64) {
    for (name, value) in [(libc::REG_RIP, resume as u64), (libc::REG_RBP, frame as u64), (libc::REG_RAX, answer)] {
        if let Some(register) = usize::try_from(name).ok().and_then(|at| context.uc_mcontext.gregs.get_mut(at)) {
            *register = value.cast_signed();
        }
    }
}

/// The same on aarch64.
#[cfg(target_arch = "aarch64")]
pub(super) fn go_on_at(context: &mut libc::ucontext_t, resume: usize, frame: usize, answer: u64) {
    let machine = &mut context.uc_mcontext;
    machine.pc = resume as u64;
    for (at, value) in [(29, frame as u64), (0, answer)] {
        if let Some(register) = machine.regs.get_mut(at) {
            *register = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_between_two_guard_pages() {
        let bottom = map(STACK_BYTES).unwrap().addr();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line_of = |address: usize| {
            let line = maps.lines().find(|line| {
                let (range, _) = line.split_once(' ').unwrap();
                let (from, to) = range.split_once('-').unwrap();
                let number = |text| usize::from_str_radix(text, 16).unwrap();
                (number(from)..number(to)).contains(&address)
            });
            line.unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned()
        };
        assert_eq!(line_of(bottom), "rw-p");
        assert_eq!(line_of(bottom + STACK_BYTES - 1), "rw-p");
        assert_eq!([line_of(bottom - 1), line_of(bottom + STACK_BYTES)], ["---p", "---p"]);
    }
}
