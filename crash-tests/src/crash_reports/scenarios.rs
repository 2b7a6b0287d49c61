//! The list of scenarios, with Linux signal numbers.

use super::Ending::{Exit, Signal};
use super::{Ending, Expected, Scenario};

const ABRT: i32 = 6;
const SEGV: i32 = 11;

/// All crashes that `dying` can produce, and some ends without a crash.
pub const ALL: &[Scenario] = &[
    // Panics.
    Scenario::new("quiet", Exit(0), &[]),
    panics("literal", &[Expected::fatal("a literal")]),
    panics("formatted", &[Expected::fatal("formatted ")]),
    panics("index", &[Expected::fatal("index out of bounds")]),
    panics("unwrap", &[Expected::fatal("what must not fail: \"an error\"")]),
    panics("any", &[Expected::fatal("Box<dyn Any>")]),
    panics("long", &[Expected::fatal("\u{e9}\u{e9}\u{e9}")]),
    panics("capacity", &[Expected::fatal("capacity overflow")]),
    panics("reinstalled", &[Expected::fatal("once")]),
    panics("displaced", &[Expected::fatal("after another hook")]),
    Scenario::new("displaced_for_good", Exit(101), &[]).aborting(&[WITHOUT_MESSAGE]),
    Scenario::new("thread", Exit(0), &[Expected::error("in a thread")]).aborting(&[Expected::fatal("in a thread")]),
    Scenario::new("caught", Exit(0), &[Expected::error("caught")])
        .aborting(&[Expected::fatal("caught")])
        .on_musl(Exit(0), &[Expected::fatal("caught")]),
    Scenario::new("survived", Exit(0), &[Expected::error("survived")]).aborting(&[Expected::fatal("survived")]),
    // The reader must not take the second panic for survived when it has waited for the first.
    Scenario::new("soon_after", Exit(101), &[Expected::error("the first"), Expected::fatal("the second")])
        .aborting(&[Expected::fatal("the first")]),
    Scenario::new("rethrown", Exit(0), &[]).aborting(&[WITHOUT_MESSAGE]),
    Scenario::new("sixteen", Exit(0), &[Expected::error("thread ").times(16)])
        .aborting(&[Expected::fatal("thread ")])
        .may_report_more(),
    // All are at one location: the first 16 are recorded, and then powers of two.
    Scenario::new("two_hundred", Exit(0), &[Expected::error("one of many").times(16 + 3)])
        .aborting(&[Expected::fatal("one of many")])
        .may_report_more(),
    Scenario::new("storm", Exit(0), &[Expected::error("again").times(16 + 9)])
        .aborting(&[Expected::fatal("again")])
        .on_musl(Exit(0), &[Expected::error("again").times(16 + 8), Expected::fatal("again")]),
    // Panics that abort in any build.
    Scenario::new("drop", Signal(ABRT), &[Expected::fatal("second")]).aborting(&[Expected::fatal("first")]),
    Scenario::new("extern_c", Signal(ABRT), &[Expected::fatal("in a callback of C")]),
    Scenario::new("previous_hook_panics", Signal(ABRT), &[Expected::fatal("a literal")]),
    Scenario::new("display", Signal(ABRT), &[WITHOUT_MESSAGE]),
    Scenario::new(
        "catch_then_abort",
        Signal(ABRT),
        &[Expected::error("caught long ago"), Expected::signal("SIGABRT", "Aborted")],
    )
    .aborting(&[Expected::fatal("caught long ago")]),
    // Faults.
    Scenario::new("null_read", Signal(SEGV), &[SEGMENTATION]),
    Scenario::new("null_write", Signal(SEGV), &[SEGMENTATION]),
    Scenario::new("null_call", Signal(SEGV), &[SEGMENTATION]),
    Scenario::new("wild_call", Signal(SEGV), &[SEGMENTATION]),
    Scenario::new("bus", Signal(7), &[Expected::signal("SIGBUS", "Bus error at 0x")]),
    Scenario::new("eight_at_once", Signal(SEGV), &[SEGMENTATION.frames(1)]).may_report_more(),
    Scenario::new("eight_and_panics", Signal(SEGV), &[SEGMENTATION.frames(1)]).may_report_more(),
    Scenario::new("exits_in_handler", Exit(3), &[SEGMENTATION]),
    Scenario::new("repaired", Exit(0), &[]),
    // The kernel removes such a handler before it calls it.
    Scenario::new("handled_once", Signal(SEGV), &[SEGMENTATION]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("jumped_out_of", Exit(0), &[]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("jumped_out_of_and_dies", Signal(ABRT), &[Expected::signal("SIGABRT", "Aborted")]).may_report_more(),
    // A process survives a signal that it ignores, unless `abort` or the kernel raised it.
    Scenario::new("ignored_raised", Exit(0), &[]),
    Scenario::new("ignored_abort", Signal(ABRT), &[Expected::signal("SIGABRT", "Aborted")]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("ignored_trap", Signal(5), &[Expected::signal("SIGTRAP", "Trap")]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("illegal", Signal(4), &[Expected::signal("SIGILL", "Illegal instruction at 0x")]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("trap", Signal(5), &[Expected::signal("SIGTRAP", "Trap")]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("division", Signal(8), &[Expected::signal("SIGFPE", "Arithmetic exception")]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("stack_pointer_lost", Signal(SEGV), &[SEGMENTATION.frames(1)]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("frame_pointer_lost", Signal(SEGV), &[SEGMENTATION.frames(1)]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("wide_registers", Signal(SEGV), &[SEGMENTATION]),
    Scenario::new("forbidden_call", Signal(31), &[Expected::signal("SIGSYS", "Bad system call")]),
    // Signals that are sent.
    Scenario::new("abort", Signal(ABRT), &[Expected::signal("SIGABRT", "Aborted")]),
    Scenario::new("c_abort", Signal(ABRT), &[Expected::signal("SIGABRT", "Aborted")]),
    Scenario::new(
        "killed_by_segv",
        Signal(SEGV),
        &[Expected::signal("SIGSEGV", "Segmentation fault, sent by process ").anywhere()],
    ),
    Scenario::new("killed_by_bus", Signal(7), &[Expected::signal("SIGBUS", "Bus error, sent by process ").anywhere()]),
    Scenario::new(
        "killed_by_abrt",
        Signal(ABRT),
        &[Expected::signal("SIGABRT", "Aborted, sent by process ").anywhere()],
    ),
    Scenario::new("raised", Exit(0), &[]),
    // Stacks and memory.
    Scenario::new("overflow", Signal(ABRT), &[OVERFLOW.frames(60)]).on_musl(Signal(SEGV), &[OVERFLOW.frames(60)]),
    Scenario::new("overflow_thread", Signal(ABRT), &[OVERFLOW.frames(30)]),
    Scenario::new("overflow_registered", Signal(SEGV), &[OVERFLOW.frames(60)]),
    Scenario::new("overflow_foreign", Signal(SEGV), &[]),
    Scenario::new("out_of_memory", Signal(ABRT), &[Expected::signal("SIGABRT", "Aborted")]),
    Scenario::new("refused_layout", Signal(ABRT), &[Expected::signal("SIGABRT", "Aborted")]),
    Scenario::new("literal_without_memory", Signal(ABRT), &[Expected::fatal("a literal needs no memory")]),
    Scenario::new("formatted_without_memory", Signal(ABRT), &[WITHOUT_MESSAGE]),
    // Forked processes, descriptors, disks.
    Scenario::new("forked", Exit(0), &[Expected::fatal("in a forked child")]),
    Scenario::new("forked_fault", Exit(0), &[SEGMENTATION]),
    // However many children there are, there is space for the parent's own record.
    panics("forked_often", &[Expected::fatal("of the parent")]).may_report_more(),
    panics("forked_often_small_files", &[Expected::fatal("of the parent")]).may_report_more(),
    Scenario::new("installed_at_once", Exit(0), &[]),
    Scenario::new("replaced_program", Signal(SEGV), &[]),
    // The client's own threads lose their descriptors too, and may panic.
    panics("closed_descriptors", &[Expected::fatal("without descriptors")]).may_report_more(),
    panics("small_files", &[]),
    panics("full_disk", &[Expected::fatal("the disk is full")]).on_a_small_disk(),
    panics("read_only", &[]),
];

/// A panic without a call of the hook, in a program that aborts.
const WITHOUT_MESSAGE: Expected =
    Expected { kind: "Panic", message: "panic message unavailable", ..Expected::fatal("") };
pub(super) const SEGMENTATION: Expected = Expected::signal("SIGSEGV", "Segmentation fault at 0x");
const OVERFLOW: Expected = Expected::signal("StackOverflow", "a thread has overflowed its stack");

/// An uncaught panic of the main thread.
const fn panics(name: &'static str, exceptions: &'static [Expected]) -> Scenario {
    Scenario::new(name, Exit(101), exceptions).aborting(exceptions)
}

impl Scenario {
    pub(super) const fn new(name: &'static str, ending: Ending, exceptions: &'static [Expected]) -> Self {
        Self {
            name,
            ending,
            exceptions,
            if_panics_abort: None,
            on_musl: None,
            may_report_more: false,
            needs_a_small_disk: false,
        }
    }

    /// What is expected in a build whose panics abort: it dies of the first.
    const fn aborting(self, exceptions: &'static [Expected]) -> Self {
        Self { if_panics_abort: Some((Signal(ABRT), exceptions)), ..self }
    }

    const fn on_musl(self, ending: Ending, exceptions: &'static [Expected]) -> Self {
        Self { on_musl: Some((ending, exceptions)), ..self }
    }

    const fn may_report_more(self) -> Self {
        Self { may_report_more: true, ..self }
    }

    const fn on_a_small_disk(self) -> Self {
        Self { needs_a_small_disk: true, ..self }
    }
}

impl Expected {
    /// A panic of which the process died.
    const fn fatal(message: &'static str) -> Self {
        Self { kind: "Panic", level: "fatal", message, frames: 3, times: 1, is_anywhere: false }
    }

    /// A panic that the process survived.
    const fn error(message: &'static str) -> Self {
        Self { level: "error", ..Self::fatal(message) }
    }

    pub(super) const fn signal(kind: &'static str, message: &'static str) -> Self {
        Self { kind, ..Self::fatal(message) }
    }

    const fn frames(self, frames: usize) -> Self {
        Self { frames, ..self }
    }

    /// A signal from outside may be delivered to any thread, also to one of the library's.
    pub(super) const fn anywhere(self) -> Self {
        Self { is_anywhere: true, frames: 1, ..self }
    }

    const fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }
}
