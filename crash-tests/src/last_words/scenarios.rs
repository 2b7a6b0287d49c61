//! The list. Numbers of signals are those of Linux.

use super::Ending::{Exit, Signal};
use super::{Ending, Scenario, Told};

const ABRT: i32 = 6;
const SEGV: i32 = 11;

/// All that this program can die of, and a few ends that are none.
pub const ALL: &[Scenario] = &[
    // Panics.
    Scenario::new("quiet", Exit(0), &[]),
    panics("literal", &[Told::fatal("a literal")]),
    panics("formatted", &[Told::fatal("formatted ")]),
    panics("index", &[Told::fatal("index out of bounds")]),
    panics("unwrap", &[Told::fatal("what must not fail: \"an error\"")]),
    panics("any", &[Told::fatal("Box<dyn Any>")]),
    panics("long", &[Told::fatal("\u{e9}\u{e9}\u{e9}")]),
    panics("capacity", &[Told::fatal("capacity overflow")]),
    panics("reinstalled", &[Told::fatal("once")]),
    panics("displaced", &[Told::fatal("after somebody else")]),
    Scenario::new("displaced_for_good", Exit(101), &[]).aborting(&[UNHEARD]),
    Scenario::new("thread", Exit(0), &[Told::error("in a thread")]).aborting(&[Told::fatal("in a thread")]),
    Scenario::new("caught", Exit(0), &[Told::error("caught")])
        .aborting(&[Told::fatal("caught")])
        .on_musl(Exit(0), &[Told::fatal("caught")]),
    Scenario::new("survived", Exit(0), &[Told::error("survived")]).aborting(&[Told::fatal("survived")]),
    // The reader must not take the second for survived when it has waited for the first.
    Scenario::new("soon_after", Exit(101), &[Told::error("the first"), Told::fatal("the second")])
        .aborting(&[Told::fatal("the first")]),
    Scenario::new("rethrown", Exit(0), &[]).aborting(&[UNHEARD]),
    Scenario::new("sixteen", Exit(0), &[Told::error("thread ").times(16)])
        .aborting(&[Told::fatal("thread ")])
        .may_tell_more(),
    // All are of one place: 16, and then those that are a power of two.
    Scenario::new("two_hundred", Exit(0), &[Told::error("one of many").times(16 + 3)])
        .aborting(&[Told::fatal("one of many")])
        .may_tell_more(),
    Scenario::new("storm", Exit(0), &[Told::error("again").times(16 + 9)])
        .aborting(&[Told::fatal("again")])
        .on_musl(Exit(0), &[Told::error("again").times(16 + 8), Told::fatal("again")]),
    // Panics that abort in any build.
    Scenario::new("drop", Signal(ABRT), &[Told::fatal("second")]).aborting(&[Told::fatal("first")]),
    Scenario::new("extern_c", Signal(ABRT), &[Told::fatal("in a callback of C")]),
    Scenario::new("previous_hook_panics", Signal(ABRT), &[Told::fatal("a literal")]),
    Scenario::new("display", Signal(ABRT), &[UNHEARD]),
    Scenario::new(
        "catch_then_abort",
        Signal(ABRT),
        &[Told::error("caught long ago"), Told::signal("SIGABRT", "Aborted")],
    )
    .aborting(&[Told::fatal("caught long ago")]),
    // Faults.
    Scenario::new("null_read", Signal(SEGV), &[SEGMENTATION]),
    Scenario::new("null_write", Signal(SEGV), &[SEGMENTATION]),
    Scenario::new("null_call", Signal(SEGV), &[SEGMENTATION]),
    Scenario::new("wild_call", Signal(SEGV), &[SEGMENTATION]),
    Scenario::new("bus", Signal(7), &[Told::signal("SIGBUS", "Bus error at 0x")]),
    Scenario::new("eight_at_once", Signal(SEGV), &[SEGMENTATION.frames(1)]).may_tell_more(),
    Scenario::new("eight_and_panics", Signal(SEGV), &[SEGMENTATION.frames(1)]).may_tell_more(),
    Scenario::new("exits_in_handler", Exit(3), &[SEGMENTATION]),
    Scenario::new("repaired", Exit(0), &[]),
    // The kernel takes such a handler away before it calls it.
    Scenario::new("handled_once", Signal(SEGV), &[SEGMENTATION]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("jumped_out_of", Exit(0), &[]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("jumped_out_of_and_dies", Signal(ABRT), &[Told::signal("SIGABRT", "Aborted")]).may_tell_more(),
    // What a program ignores it lives through, unless it is `abort` or the kernel that insists.
    Scenario::new("ignored_raised", Exit(0), &[]),
    Scenario::new("ignored_abort", Signal(ABRT), &[Told::signal("SIGABRT", "Aborted")]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("ignored_trap", Signal(5), &[Told::signal("SIGTRAP", "Trap")]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("illegal", Signal(4), &[Told::signal("SIGILL", "Illegal instruction at 0x")]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("trap", Signal(5), &[Told::signal("SIGTRAP", "Trap")]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("division", Signal(8), &[Told::signal("SIGFPE", "Arithmetic exception")]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("stack_pointer_lost", Signal(SEGV), &[SEGMENTATION.frames(1)]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("frame_pointer_lost", Signal(SEGV), &[SEGMENTATION.frames(1)]),
    #[cfg(target_arch = "x86_64")]
    Scenario::new("wide_registers", Signal(SEGV), &[SEGMENTATION]),
    Scenario::new("forbidden_call", Signal(31), &[Told::signal("SIGSYS", "Bad system call")]),
    // Signals that somebody sends.
    Scenario::new("abort", Signal(ABRT), &[Told::signal("SIGABRT", "Aborted")]),
    Scenario::new("c_abort", Signal(ABRT), &[Told::signal("SIGABRT", "Aborted")]),
    Scenario::new(
        "killed_by_segv",
        Signal(SEGV),
        &[Told::signal("SIGSEGV", "Segmentation fault, sent by process ").anywhere()],
    ),
    Scenario::new("killed_by_bus", Signal(7), &[Told::signal("SIGBUS", "Bus error, sent by process ").anywhere()]),
    Scenario::new("killed_by_abrt", Signal(ABRT), &[Told::signal("SIGABRT", "Aborted, sent by process ").anywhere()]),
    Scenario::new("raised", Exit(0), &[]),
    // Stacks and memory.
    Scenario::new("overflow", Signal(ABRT), &[OVERFLOW.frames(60)]).on_musl(Signal(SEGV), &[OVERFLOW.frames(60)]),
    Scenario::new("overflow_thread", Signal(ABRT), &[OVERFLOW.frames(30)]),
    Scenario::new("overflow_registered", Signal(SEGV), &[OVERFLOW.frames(60)]),
    Scenario::new("overflow_foreign", Signal(SEGV), &[]),
    Scenario::new("out_of_memory", Signal(ABRT), &[Told::signal("SIGABRT", "Aborted")]),
    Scenario::new("refused_layout", Signal(ABRT), &[Told::signal("SIGABRT", "Aborted")]),
    Scenario::new("literal_without_memory", Signal(ABRT), &[Told::fatal("a literal needs no memory")]),
    Scenario::new("formatted_without_memory", Signal(ABRT), &[UNHEARD]),
    // Processes, descriptors, disks.
    Scenario::new("forked", Exit(0), &[Told::fatal("in a forked child")]),
    Scenario::new("forked_fault", Exit(0), &[SEGMENTATION]),
    // However many there are, and whatever they leave, there is room for the parent's own.
    panics("forked_often", &[Told::fatal("of the parent")]).may_tell_more(),
    panics("forked_often_small_files", &[Told::fatal("of the parent")]).may_tell_more(),
    Scenario::new("installed_at_once", Exit(0), &[]),
    Scenario::new("replaced_program", Signal(SEGV), &[]),
    // The client's own threads lose theirs too, and may panic of it.
    panics("closed_descriptors", &[Told::fatal("without descriptors")]).may_tell_more(),
    panics("small_files", &[]),
    panics("full_disk", &[Told::fatal("the disk is full")]).on_a_small_disk(),
    panics("read_only", &[]),
];

/// A panic of which no hook heard, in a program that aborts by it.
const UNHEARD: Told = Told { kind: "Panic", message: "panic message unavailable", ..Told::fatal("") };
pub(super) const SEGMENTATION: Told = Told::signal("SIGSEGV", "Segmentation fault at 0x");
const OVERFLOW: Told = Told::signal("StackOverflow", "a thread has overflowed its stack");

/// A panic of the main thread that nobody catches.
const fn panics(name: &'static str, told: &'static [Told]) -> Scenario {
    Scenario::new(name, Exit(101), told).aborting(told)
}

impl Scenario {
    pub(super) const fn new(name: &'static str, ending: Ending, told: &'static [Told]) -> Self {
        Self {
            name,
            ending,
            told,
            if_panics_abort: None,
            on_musl: None,
            may_tell_more: false,
            needs_a_small_disk: false,
        }
    }

    /// In a build whose panics abort, it ends by the first.
    const fn aborting(self, told: &'static [Told]) -> Self {
        Self { if_panics_abort: Some((Signal(ABRT), told)), ..self }
    }

    const fn on_musl(self, ending: Ending, told: &'static [Told]) -> Self {
        Self { on_musl: Some((ending, told)), ..self }
    }

    const fn may_tell_more(self) -> Self {
        Self { may_tell_more: true, ..self }
    }

    const fn on_a_small_disk(self) -> Self {
        Self { needs_a_small_disk: true, ..self }
    }
}

impl Told {
    /// A panic that the process ended by.
    const fn fatal(message: &'static str) -> Self {
        Self { kind: "Panic", level: "fatal", message, frames: 3, times: 1, is_anywhere: false }
    }

    /// A panic that it survived.
    const fn error(message: &'static str) -> Self {
        Self { level: "error", ..Self::fatal(message) }
    }

    pub(super) const fn signal(kind: &'static str, message: &'static str) -> Self {
        Self { kind, ..Self::fatal(message) }
    }

    const fn frames(self, frames: usize) -> Self {
        Self { frames, ..self }
    }

    /// The kernel gives a signal from outside to any thread, also to one of the library's.
    pub(super) const fn anywhere(self) -> Self {
        Self { is_anywhere: true, frames: 1, ..self }
    }

    const fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }
}
