//! The function that the kernel calls for a signal.
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

use nix::libc;

use super::handler::{on_signal, on_signal_without_stack, pass_on};
use super::stacks::{EMERGENCY_TOP, IN_USE};

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
