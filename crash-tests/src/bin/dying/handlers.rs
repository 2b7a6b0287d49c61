//! Handlers that were installed before the client's and do not simply return.

use nix::libc::{self, c_int, c_void, siginfo_t};

use crate::signals::fault;

pub(crate) fn prepare(scenario: &str) {
    match scenario {
        "handled_once" => install(come_back, libc::SA_RESETHAND),
        #[cfg(target_arch = "x86_64")]
        "jumped_out_of" | "jumped_out_of_and_dies" => install(jump, 0),
        _ => {}
    }
}

/// Returns `false` if the scenario is not in this file.
pub(crate) fn play(scenario: &str) -> bool {
    match scenario {
        "handled_once" => fault(),
        #[cfg(target_arch = "x86_64")]
        "jumped_out_of" => (0..300).for_each(|_| jumping::attempt()),
        #[cfg(target_arch = "x86_64")]
        "jumped_out_of_and_dies" => {
            (0..5).for_each(|_| jumping::attempt());
            std::process::abort();
        }
        _ => return false,
    }
    true
}

fn install(handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void), more: c_int) {
    // SAFETY: zero is a valid action, and the handler is never unloaded.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | more;
        libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
    }
}

/// Returns, so that the fault happens again.
extern "C" fn come_back(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

/// Continues elsewhere, as with `siglongjmp`.
#[cfg(target_arch = "x86_64")]
extern "C" fn jump(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: restores the mask, and jumps into the one function whose stack pointer was saved, which is still active.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        jumping::land();
    }
}

#[cfg(target_arch = "x86_64")]
mod jumping {
    use std::arch::naked_asm;
    use std::sync::atomic::AtomicUsize;

    static SAVED: AtomicUsize = AtomicUsize::new(0);

    /// Reads an unmapped address, and returns through [`land`].
    // SAFETY: follows the C calling convention, together with `land`.
    #[unsafe(naked)]
    pub(super) extern "C" fn attempt() {
        naked_asm!(
            "push rbp", "push rbx", "push r12", "push r13", "push r14", "push r15",
            "mov qword ptr [rip + {saved}], rsp",
            "xor eax, eax",
            "mov rax, qword ptr [rax + 8]",
            "ud2",
            saved = sym SAVED,
        )
    }

    /// # Safety
    ///
    /// Must be called while `attempt` has not returned.
    // SAFETY: leaves the stack as `attempt` found it, with all callee-saved registers.
    #[unsafe(naked)]
    pub(super) unsafe extern "C" fn land() {
        naked_asm!(
            "mov rsp, qword ptr [rip + {saved}]",
            "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp",
            "ret",
            saved = sym SAVED,
        )
    }
}
