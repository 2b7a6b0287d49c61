//! The record of a signal.

use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc::{self, c_int, siginfo_t};

use super::registers::Registers;
use crate::crash::file::{Holding, Share};
use crate::crash::format::{Kind, Tag, Writer, flags};
use crate::crash::provisional::{Held, RECORD_BYTES};
use crate::crash::{file, hook, process, steps, wake_reader};

/// A fault this far below the stack pointer, at most, is the stack's own: functions with large frames probe each page.
const BELOW_STACK_POINTER: u64 = 64 * 1024;
const ABOVE_STACK_POINTER: u64 = 4096;

/// Records of signals that somebody may repair, and for which there was no place: more would take the room of the one that nobody
/// repairs.
const REPAIRABLE_AT_THE_END: u32 = 8;

/// What is known of a signal.
pub(super) struct Seen<'a> {
    pub(super) signal: c_int,
    pub(super) info: &'a siginfo_t,
    pub(super) registers: &'a Registers,
    pub(super) frames: &'a [u64],
    /// The signal by which the handler itself was interrupted; 0 if it was not.
    pub(super) nested: c_int,
    /// The one that it came to.
    pub(super) thread: i32,
    /// The process may live on.
    pub(super) may_be_repaired: bool,
}

/// Where the record is.
#[derive(Clone, Copy)]
pub(super) enum Written {
    /// There is no file, or no room.
    Nowhere,
    /// For good.
    AtTheEnd,
    /// Where it may be marked as survived.
    Held(Held),
}

impl Written {
    pub(super) fn held(self) -> Option<Held> {
        match self {
            Written::Held(held) => Some(held),
            Written::Nowhere | Written::AtTheEnd => None,
        }
    }
}

/// Writes it. What a process lives on after has a reader woken, who notes that.
pub(super) fn write(out: &mut [u8], seen: &Seen<'_>) -> Written {
    if !seen.may_be_repaired {
        return write_at_the_end(out, seen);
    }
    // The places of the file are the parent's.
    let holding = if process::is_forked_child() { Holding::Impossible } else { write_in_a_place(out, seen) };
    let written = match holding {
        Holding::Held(held) => Written::Held(held),
        // Others are in the middle of the same, and this is hardly the one that is not repaired.
        Holding::AllTaken => Written::Nowhere,
        Holding::Impossible => write_at_the_end_if_few(out, seen),
    };
    wake_reader();
    written
}

fn write_in_a_place(out: &mut [u8], seen: &Seen<'_>) -> Holding {
    let number = hook::next_number();
    let (kind, set, panic) = nature_of(seen);
    let Some(out) = out.get_mut(..RECORD_BYTES) else { return Holding::Impossible };
    let mut writer = Writer::padded(out, kind, set, number);
    fill(&mut writer, seen, kind, panic);
    writer.finish().map_or(Holding::Impossible, |record| file::hold(record, seen.thread, number))
}

fn write_at_the_end_if_few(out: &mut [u8], seen: &Seen<'_>) -> Written {
    static WRITTEN: AtomicU32 = AtomicU32::new(0);
    if WRITTEN.fetch_add(1, Ordering::Relaxed) >= REPAIRABLE_AT_THE_END {
        // So that it does not come round.
        WRITTEN.store(REPAIRABLE_AT_THE_END, Ordering::Relaxed);
        return Written::Nowhere;
    }
    write_at_the_end(out, seen)
}

fn write_at_the_end(out: &mut [u8], seen: &Seen<'_>) -> Written {
    let (kind, set, panic) = nature_of(seen);
    let mut writer = Writer::new(out, kind, set, hook::next_number());
    fill(&mut writer, seen, kind, panic);
    match writer.finish() {
        Some(record) if file::write(record, Share::End) => Written::AtTheEnd,
        _ => Written::Nowhere,
    }
}

/// Kind, flags, and the panic that an abort belongs to.
fn nature_of(seen: &Seen<'_>) -> (Kind, u32, Option<u64>) {
    let is_panicking = seen.signal == libc::SIGABRT && is_panicking(seen.thread);
    let panic = if is_panicking { hook::last_panic_of(seen.thread) } else { None };
    let kind = if panic.is_some() { Kind::Abort } else { Kind::Signal };
    let mut set = process::forked_flag();
    if is_panicking {
        set |= flags::PANICKING;
    }
    if seen.nested != 0 {
        set |= flags::NESTED;
    }
    if hook::is_silenced(seen.thread) {
        set |= flags::READING;
    }
    if is_stack_overflow(seen) {
        set |= flags::STACK_OVERFLOW;
    }
    (kind, set, panic)
}

/// The standard library counts panics in a thread-local. A library that was loaded later gets those from `malloc`, whose lock the thread
/// may hold: then it is asked only of a thread that has panicked before, and so has it.
fn is_panicking(thread: i32) -> bool {
    (super::has_static_thread_locals() || hook::last_panic_of(thread).is_some()) && std::thread::panicking()
}

fn fill(writer: &mut Writer<'_>, seen: &Seen<'_>, kind: Kind, panic: Option<u64>) {
    process::describe(writer, seen.thread);
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
    if !seen.may_be_repaired {
        writer.number(Tag::Missed, file::take_missed());
    }
    if kind == Kind::Signal {
        steps::describe(writer);
    }
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
