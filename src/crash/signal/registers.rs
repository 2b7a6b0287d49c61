//! What the interrupted thread's registers held, and how it is led elsewhere.

use nix::libc;

/// The three that a walk begins with, and the return address on machines that keep it in a register.
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

/// Has the thread go on in the entry's frame at `resume` when the handler that got `context` returns, with that answer.
#[cfg(target_arch = "x86_64")]
pub(super) fn go_on_at(context: &mut libc::ucontext_t, resume: usize, frame: usize, answer: u64) {
    for (name, value) in [(libc::REG_RIP, resume as u64), (libc::REG_RBP, frame as u64), (libc::REG_RAX, answer)] {
        if let Some(register) = usize::try_from(name).ok().and_then(|at| context.uc_mcontext.gregs.get_mut(at)) {
            *register = value.cast_signed();
        }
    }
}

/// As on x86-64.
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
