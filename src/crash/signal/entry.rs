//! Where the kernel enters, and the stacks it goes on with.
//!
//! The standard library gives each thread an alternate stack of some kilobytes. The kernel saves the processor's state there first, and
//! with wide vector or matrix registers in use that leaves a few hundred bytes: less than a call of the C library takes. A handler that
//! overflows it faults again, for ever. So the entry needs two words of whatever stack it is given, and goes on with one of ours.

use std::arch::naked_asm;
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;

use super::flow::on_signal;

/// Bytes of each stack. The walk was seen to need 16 KiB.
pub(super) const STACK_BYTES: usize = 128 * 1024;

#[repr(C, align(4096))]
pub(super) struct Stack(UnsafeCell<[u8; STACK_BYTES]>);

// SAFETY: no Rust code makes a reference into it. It is a processor's stack, used by one thread at a time: `EMERGENCY` by who took
// `IN_USE`, `NESTED` by the same thread after that.
unsafe impl Sync for Stack {}

impl Stack {
    pub(super) fn bottom(&self) -> *mut c_void {
        self.0.get().cast()
    }

    /// Whether an address lies in it.
    pub(super) fn holds(&self, address: u64) -> bool {
        address.wrapping_sub(self.bottom().addr() as u64) <= STACK_BYTES as u64
    }
}

pub(super) static EMERGENCY: Stack = Stack(UnsafeCell::new([0; STACK_BYTES]));
/// For faults of the handler itself: without it they would land on the stack whose signal frame is still needed.
pub(super) static NESTED: Stack = Stack(UnsafeCell::new([0; STACK_BYTES]));
/// 1 while a thread is on `EMERGENCY`.
static IN_USE: AtomicU32 = AtomicU32::new(0);

/// Whether a thread is on `EMERGENCY`, or left it by a jump.
pub(super) fn is_stack_taken() -> bool {
    IN_USE.load(Ordering::SeqCst) != 0
}

/// The handler that the kernel calls. The stack of ours goes to the first thread that comes; another stays where it is.
///
/// # Safety
///
/// For the kernel only, with `SA_SIGINFO`.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn entry(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    naked_asm!(
        // Told to debuggers, so that they walk through us to the fault.
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "xor eax, eax",
        "mov ecx, 1",
        "lock cmpxchg dword ptr [rip + {in_use}], ecx",
        "jne 2f",
        "lea rsp, [rip + {stack} + {bytes}]",
        "call {go_on}",
        "mov rsp, rbp",
        "mov dword ptr [rip + {in_use}], 0",
        "jmp 3f",
        "2:",
        "and rsp, -16",
        "xor ecx, ecx",
        "call {go_on}",
        "mov rsp, rbp",
        "3:",
        "pop rbp",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
        in_use = sym IN_USE,
        stack = sym EMERGENCY,
        bytes = const STACK_BYTES,
        go_on = sym on_signal,
    )
}

/// As on x86-64.
///
/// # Safety
///
/// For the kernel only, with `SA_SIGINFO`.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn entry(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    naked_asm!(
        ".cfi_startproc",
        "stp x29, x30, [sp, #-16]!",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset x29, -16",
        ".cfi_offset x30, -8",
        "mov x29, sp",
        ".cfi_def_cfa_register x29",
        "adrp x9, {in_use}",
        "add x9, x9, :lo12:{in_use}",
        "mov w10, #1",
        "1:",
        "ldaxr w11, [x9]",
        "cbnz w11, 2f",
        "stlxr w12, w10, [x9]",
        "cbnz w12, 1b",
        "adrp x13, {stack}",
        "add x13, x13, :lo12:{stack}",
        "mov x14, {bytes}",
        "add sp, x13, x14",
        "mov w3, #1",
        "bl {go_on}",
        "mov sp, x29",
        "adrp x9, {in_use}",
        "add x9, x9, :lo12:{in_use}",
        "stlr wzr, [x9]",
        "b 3f",
        "2:",
        "clrex",
        "mov w3, #0",
        "bl {go_on}",
        "mov sp, x29",
        "3:",
        "ldp x29, x30, [sp], #16",
        ".cfi_def_cfa sp, 0",
        "ret",
        ".cfi_endproc",
        in_use = sym IN_USE,
        stack = sym EMERGENCY,
        bytes = const STACK_BYTES,
        go_on = sym on_signal,
    )
}

/// Gives the stacks real memory beforehand: at the time of need the process may be at its limit.
pub(super) fn touch_stacks() {
    for stack in [&EMERGENCY, &NESTED] {
        for offset in (0..STACK_BYTES).step_by(1024) {
            // SAFETY: inside the array, which nobody uses yet: the handler is installed after this.
            unsafe { ptr::write_volatile(stack.bottom().cast::<u8>().add(offset), 0) };
        }
    }
}

/// Gives this thread an alternate stack if it has none, so that an overflow of its own stack can be told of. It is never given back: a
/// signal may arrive until the very end of the thread.
pub(in crate::crash) fn register_thread() -> io::Result<()> {
    let mut current = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: asks only, into memory of ours.
    if unsafe { libc::sigaltstack(ptr::null(), &mut current) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if current.ss_flags & libc::SS_DISABLE == 0 {
        return Ok(());
    }
    const ALTERNATE_BYTES: usize = 64 * 1024;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let memory =
        unsafe { libc::mmap(ptr::null_mut(), ALTERNATE_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let stack = libc::stack_t { ss_sp: memory, ss_flags: 0, ss_size: ALTERNATE_BYTES };
    // SAFETY: the memory was just mapped and is never unmapped.
    if unsafe { libc::sigaltstack(&stack, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
