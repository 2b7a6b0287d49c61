//! The record of a signal.

use nix::libc::{self, c_int, siginfo_t};

use super::registers::Registers;
use crate::crash::format::{Kind, Tag, Writer, flags};
use crate::crash::{file, hook, process, steps};

/// A fault this far below the stack pointer, at most, is the stack's own: functions with large frames probe each page.
const BELOW_STACK_POINTER: u64 = 64 * 1024;
const ABOVE_STACK_POINTER: u64 = 4096;

/// What is known of a signal.
pub(super) struct Seen<'a> {
    pub(super) signal: c_int,
    pub(super) info: &'a siginfo_t,
    pub(super) registers: &'a Registers,
    pub(super) frames: &'a [u64],
    /// The signal by which the handler itself was interrupted; 0 if it was not.
    pub(super) nested: c_int,
}

/// Writes it. `false` if there is no file or no room.
pub(super) fn write(out: &mut [u8], seen: &Seen<'_>) -> bool {
    let is_panicking = seen.signal == libc::SIGABRT && std::thread::panicking();
    let panic = if is_panicking { hook::last_panic_of_this_thread() } else { None };
    let kind = if panic.is_some() { Kind::Abort } else { Kind::Signal };
    let mut set = process::forked_flag();
    if is_panicking {
        set |= flags::PANICKING;
    }
    if seen.nested != 0 {
        set |= flags::NESTED;
    }
    if hook::is_silenced() {
        set |= flags::READING;
    }
    if is_stack_overflow(seen) {
        set |= flags::STACK_OVERFLOW;
    }
    let mut writer = Writer::new(out, kind, set, hook::next_number());
    process::describe(&mut writer, process::thread_id());
    writer.number(Tag::Signal, number(seen.signal));
    writer.number(Tag::SignalCode, i64::from(seen.info.si_code).cast_unsigned());
    // SAFETY: which of the union's members is filled follows from the code, as sigaction(2) says.
    unsafe {
        if seen.info.si_code > 0 {
            writer.number(Tag::FaultAddress, seen.info.si_addr().addr() as u64);
        } else {
            writer.number(Tag::SenderPid, number(seen.info.si_pid()));
            writer.number(Tag::SenderUid, u64::from(seen.info.si_uid()));
        }
    }
    if let Some(panic) = panic {
        writer.number(Tag::PanicNumber, panic);
    }
    writer.addresses(Tag::Frames, seen.frames);
    writer.number(Tag::Missed, file::take_missed());
    if kind == Kind::Signal {
        steps::describe(&mut writer);
    }
    writer.finish().is_some_and(file::write)
}

fn is_stack_overflow(seen: &Seen<'_>) -> bool {
    if seen.info.si_code <= 0 || !matches!(seen.signal, libc::SIGSEGV | libc::SIGBUS) {
        return false;
    }
    // SAFETY: a fault says an address.
    let address = unsafe { seen.info.si_addr() }.addr() as u64;
    let lowest = seen.registers.sp.wrapping_sub(BELOW_STACK_POINTER);
    address.wrapping_sub(lowest) < BELOW_STACK_POINTER + ABOVE_STACK_POINTER
}

fn number(value: c_int) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
