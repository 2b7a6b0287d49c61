//! The function that the kernel calls for a signal, the stacks it uses, and the registers of the interrupted thread.
//!
//! The standard library gives each thread an alternate stack of some kilobytes. The kernel saves the processor's state
//! there first; if wide vector or matrix registers are in use, a few hundred bytes remain, less than a C library call
//! needs. A handler that overflows this stack faults again, for ever. So the entry uses a few words of the stack that
//! it is given and switches to a stack of ours. An earlier handler does not run on our stack: it gets the stack that
//! the kernel chose, because it may need more than ours has, and because some refuse to run on another.
//!
//! ```text
//! claim our stack ------------------- if it is taken
//!   on_signal, on our stack             on_signal_without_stack, on the current stack
//!   release our stack                   (again, if it returns AGAIN)
//! pass_on, on the kernel's stack, unless the answer is 0
//!   (again, if it returns CAME_BACK: on_signal records what was not repaired)
//! ```

use std::arch::naked_asm;
use std::ffi::c_void;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use nix::libc;

use super::handler::{on_signal, on_signal_without_stack, pass_on};

/// 1 while a thread is on our stack.
static IN_USE: AtomicU32 = AtomicU32::new(0);

/// Whether a thread is on our stack.
pub(super) fn is_stack_taken() -> bool {
    IN_USE.load(Ordering::SeqCst) != 0
}

/// The handler that the kernel calls. Our stack goes to the first thread that claims it.
///
/// # Safety
///
/// Must only be called by the kernel, for an action with `SA_SIGINFO`.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn entry(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    naked_asm!(
        // Unwind information, so that debuggers can walk through this frame to the fault.
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "push rdi",
        "push rsi",
        "push rdx",
        // How often the stack was found taken, or `CAME_BACK` after `pass_on` asked for a second round.
        "push 0",
        "2:",
        "xor eax, eax",
        "mov ecx, 1",
        "lock cmpxchg dword ptr [rip + {in_use}], ecx",
        "jne 4f",
        "mov rcx, rbp",
        "lea r8, [rip + 3f]",
        "mov r9, qword ptr [rbp - 32]",
        "mov rsp, qword ptr [rip + {stack}]",
        "call {on_stack}",
        // A thread that faulted inside `on_signal` continues here too.
        "3:",
        "lea rsp, [rbp - 32]",
        "mov dword ptr [rip + {in_use}], 0",
        "5:",
        "test rax, rax",
        "je 6f",
        "mov rdi, qword ptr [rbp - 8]",
        "mov rsi, qword ptr [rbp - 16]",
        "mov rdx, qword ptr [rbp - 24]",
        "mov rcx, rax",
        "call {pass_on}",
        "test rax, rax",
        "je 6f",
        "mov qword ptr [rbp - 32], rax",
        "mov rdi, qword ptr [rbp - 8]",
        "mov rsi, qword ptr [rbp - 16]",
        "mov rdx, qword ptr [rbp - 24]",
        "jmp 2b",
        "6:",
        "mov rsp, rbp",
        "pop rbp",
        ".cfi_remember_state",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_restore_state",
        "4:",
        "mov rcx, qword ptr [rbp - 32]",
        "add qword ptr [rbp - 32], 1",
        "call {beside}",
        "cmp rax, -1",
        "jne 5b",
        "mov rdi, qword ptr [rbp - 8]",
        "mov rsi, qword ptr [rbp - 16]",
        "mov rdx, qword ptr [rbp - 24]",
        "jmp 2b",
        ".cfi_endproc",
        in_use = sym IN_USE,
        stack = sym EMERGENCY_TOP,
        on_stack = sym on_signal,
        beside = sym on_signal_without_stack,
        pass_on = sym pass_on,
    )
}

/// The same on aarch64.
///
/// # Safety
///
/// Must only be called by the kernel, for an action with `SA_SIGINFO`.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn entry(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    naked_asm!(
        ".cfi_startproc",
        "stp x29, x30, [sp, #-48]!",
        ".cfi_def_cfa_offset 48",
        ".cfi_offset x29, -48",
        ".cfi_offset x30, -40",
        "mov x29, sp",
        ".cfi_def_cfa_register x29",
        "stp x0, x1, [x29, #16]",
        "stp x2, xzr, [x29, #32]",
        "2:",
        "adrp x9, {in_use}",
        "add x9, x9, :lo12:{in_use}",
        "mov w10, #1",
        "1:",
        "ldaxr w11, [x9]",
        "cbnz w11, 4f",
        "stlxr w12, w10, [x9]",
        "cbnz w12, 1b",
        "adrp x13, {stack}",
        "add x13, x13, :lo12:{stack}",
        "ldr x13, [x13]",
        "mov x3, x29",
        "adr x4, 3f",
        "ldr x5, [x29, #40]",
        "mov sp, x13",
        "bl {on_stack}",
        "3:",
        "mov sp, x29",
        "adrp x9, {in_use}",
        "add x9, x9, :lo12:{in_use}",
        "stlr wzr, [x9]",
        "5:",
        "cbz x0, 6f",
        "mov x3, x0",
        "ldp x0, x1, [x29, #16]",
        "ldr x2, [x29, #32]",
        "bl {pass_on}",
        "cbz x0, 6f",
        "str x0, [x29, #40]",
        "ldp x0, x1, [x29, #16]",
        "ldr x2, [x29, #32]",
        "b 2b",
        "6:",
        "mov sp, x29",
        "ldp x29, x30, [sp], #48",
        ".cfi_remember_state",
        ".cfi_def_cfa sp, 0",
        "ret",
        ".cfi_restore_state",
        "4:",
        "clrex",
        "ldr x3, [x29, #40]",
        "add x9, x3, #1",
        "str x9, [x29, #40]",
        "bl {beside}",
        "cmn x0, #1",
        "b.ne 5b",
        "ldp x0, x1, [x29, #16]",
        "ldr x2, [x29, #32]",
        "b 2b",
        ".cfi_endproc",
        in_use = sym IN_USE,
        stack = sym EMERGENCY_TOP,
        on_stack = sym on_signal,
        beside = sym on_signal_without_stack,
        pass_on = sym pass_on,
    )
}

/// Bytes of each of our stacks. The walk was measured to use 16 KiB.
const STACK_BYTES: usize = 128 * 1024;
/// Bytes of the alternate stack that [`register_thread`] creates.
const ALTERNATE_BYTES: usize = 64 * 1024;

/// The top of our stack; the entry loads it.
static EMERGENCY_TOP: AtomicUsize = AtomicUsize::new(0);
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
pub(in crate::crash) fn register_thread() -> io::Result<()> {
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
