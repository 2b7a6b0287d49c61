//! The handler of fatal signals: classifies a signal, writes its record, and decides what happens next.
//!
//! What runs on our stack is finished before an earlier handler is called, which may never return. While it runs, all
//! signals except the fatal ones are blocked, so that nothing can leave it by a jump.
//!
//! A signal that may be repaired gets a provisional record; any other gets a final record at the end of the report
//! file. If this handler itself faults while it walks the stack, the record is written with the addresses found so far.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::libc::{self, c_int, siginfo_t, ucontext_t};

use super::repairs::{self, Call, FaultSite, UNRECORDED};
use super::stacks::{self, Registers, is_stack_taken};
use super::{previous, walk};
use crate::crash::buffers::{FRAMES_MOST, RECORD_MOST, with_buffers};
use crate::crash::format::{Kind, Tag, Writer, flags};
use crate::crash::report_file::{PROVISIONAL_BYTES, Quota, Recorded, wake_reader};
use crate::crash::{breadcrumbs, panic_hook, process, report_file, stack};

/// The signals that are handled: faults of the program, and signals by which programs end themselves.
pub(super) const SIGNALS: [c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];
/// After the process has survived this many signals, a signal that may be repaired no longer waits for other writers.
const SURVIVALS: u32 = 3;
/// Milliseconds that a thread waits for our stack at each attempt, and for records that other threads are writing.
const WAIT_MOST: u32 = 100;
/// How often a thread waits for our stack.
const TURNS: u64 = 20;
/// How often a wait yields before it sleeps.
const YIELDS: u32 = 50;

/// The thread that is on our stack; 0 if none.
static OWNER: AtomicI32 = AtomicI32::new(0);
/// What that thread is doing.
static STAGE: AtomicU32 = AtomicU32::new(IDLE);
const IDLE: u32 = 0;
const WALKING: u32 = 1;
const WRITING: u32 = 2;

/// What the owner of our stack needs when its own handler faults. Accessed by that thread only.
struct Job {
    signal: c_int,
    info: MaybeUninit<siginfo_t>,
    context: *mut c_void,
    registers: Registers,
    /// Where the entry continues, and its frame.
    resume: usize,
    frame: usize,
    frames: [u64; FRAMES_MOST],
    record: [u8; RECORD_MOST],
}

struct JobCell(UnsafeCell<Job>);

// SAFETY: accessed only by the thread whose id is in `OWNER`.
unsafe impl Sync for JobCell {}

static JOB: JobCell = JobCell(UnsafeCell::new(Job {
    signal: 0,
    info: MaybeUninit::zeroed(),
    context: ptr::null_mut(),
    registers: Registers { pc: 0, sp: 0, fp: 0, lr: 0 },
    resume: 0,
    frame: 0,
    frames: [0; FRAMES_MOST],
    record: [0; RECORD_MOST],
}));
/// Addresses found by the walk, including those that did not fit into the job's `frames`.
static FOUND: AtomicUsize = AtomicUsize::new(0);
/// A walk has faulted, so the unwind tables are not what they were. Later walks use frame pointers only.
static HAS_WALK_FAULTED: AtomicBool = AtomicBool::new(false);

static SURVIVED: AtomicU32 = AtomicU32::new(0);

/// What the entry does next, encoded in one word: return, try again, or call the earlier handler. The word also holds
/// the record ([`repairs::bits_of`]): a provisional one is marked if the signal was survived.
const RETURN: u64 = 0;
const AGAIN: u64 = u64::MAX;
const PASS_ON: u64 = 1;
/// The thread is inside an earlier handler already.
const INSIDE: u64 = 2;

/// Added to the entry's count of turns: a signal that was passed on [`UNRECORDED`] was not repaired.
const CAME_BACK: u64 = 1 << 32;

/// Whether this thread is inside an earlier handler that we have called.
pub(in crate::crash) fn is_in_progress() -> bool {
    let here = 0u8;
    let stack = ptr::from_ref(std::hint::black_box(&here)).addr() as u64;
    repairs::call_of(process::thread_id()).is_some_and(|call| call.goes_on(0, previous::mask_of_this_thread(), stack))
}

/// Called by the entry on our stack. `frame` is the entry's frame, `resume` the address where it continues, `turns` its
/// count of turns. Returns what the entry does next.
pub(super) extern "C" fn on_signal(
    signal: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
    frame: usize,
    resume: usize,
    turns: u64,
) -> u64 {
    let errno = Errno::last_raw();
    let thread = process::thread_id();
    OWNER.store(thread, Ordering::SeqCst);
    // Allowed here, because this thread has left the alternate stack.
    // SAFETY: a stack that only the owner of our stack uses, and there is one.
    unsafe { libc::sigaltstack(&stacks::nested(), ptr::null_mut()) };
    // SAFETY: the kernel's structures are valid while the handler runs. This thread is the owner, and no other
    // reference to the job exists.
    let next = unsafe {
        let job = &mut *JOB.0.get();
        job.signal = signal;
        job.info = MaybeUninit::new(info.read());
        job.context = context;
        job.registers = Registers::of(&*context.cast::<ucontext_t>());
        (job.resume, job.frame) = (resume, frame);
        FOUND.store(0, Ordering::SeqCst);
        if turns < CAME_BACK { handle_job(job, thread, info) } else { record_late(job, thread) }
    };
    // SAFETY: restores the setting that the kernel saved.
    unsafe { libc::sigaltstack(&alternate_of(context), ptr::null_mut()) };
    leave_stack();
    Errno::set_raw(errno);
    next
}

fn leave_stack() {
    STAGE.store(IDLE, Ordering::SeqCst);
    OWNER.store(0, Ordering::SeqCst);
}

/// The alternate stack that a thread has inside a handler that was called with this context.
///
/// # Safety
///
/// `context` must be the one that the kernel gave to the handler.
unsafe fn alternate_of(context: *const c_void) -> libc::stack_t {
    const SS_AUTODISARM: c_int = 1 << 31;
    // SAFETY: guaranteed by the caller; a copy of plain memory.
    let mut stack = unsafe { (*context.cast::<ucontext_t>()).uc_stack };
    if stack.ss_flags & SS_AUTODISARM != 0 {
        // The thread has none until it leaves the handler.
        stack.ss_flags = libc::SS_DISABLE;
    }
    stack
}

/// Treats a signal with our stack.
fn handle_job(job: &mut Job, thread: i32, info: *mut siginfo_t) -> u64 {
    let (signal, context, registers) = (job.signal, job.context, job.registers);
    handle(thread, signal, info, context, &registers, &mut |may_be_repaired| {
        let recorded = record_signal(job, thread, may_be_repaired);
        if !may_be_repaired || SURVIVED.load(Ordering::SeqCst) < SURVIVALS {
            // The process may end now, while other threads are in the middle of a write.
            wait_until(|| !report_file::has_writers());
        }
        Some(recorded)
    })
}

/// Records a signal whose earlier handler returned without repairing it: the process dies of it when we return.
fn record_late(job: &mut Job, thread: i32) -> u64 {
    // All signals are blocked, so a walk that faults ends the process here, by the signal of which it would die anyway.
    record_signal(job, thread, false);
    wait_until(|| !report_file::has_writers());
    // If the process survives after all, the reader marks the record as survived.
    wake_reader();
    RETURN
}

/// Decides how a signal is treated. `record` writes its record. Its argument is whether the process may survive the
/// signal; it returns `None` if the entry is to try again. Returns what the entry does next.
fn handle(
    thread: i32,
    signal: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
    registers: &Registers,
    record: &mut dyn FnMut(bool) -> Option<Recorded>,
) -> u64 {
    if previous::is_dropped_by_kernel(signal, info) {
        // Without our handler the process would not notice it.
        return RETURN;
    }
    if let Some(call) = repairs::call_of(thread) {
        let goes_on = call.goes_on(signal, previous::mask_of(context), registers.sp);
        let is_recorded = match call.recorded {
            Recorded::Final => true,
            // If there is none any more, the thread has been in that handler for so long that the reader took it to
            // have left by a jump.
            Recorded::Provisional(_) => report_file::has_provisional_of(thread),
            Recorded::None => false,
        };
        if goes_on && is_recorded {
            return choose_next(thread, signal, info, context, None);
        }
        repairs::leave(thread);
        if !goes_on {
            // The thread has left the earlier handler by a jump.
            count_survived(call.site);
        }
    }
    let site = FaultSite::of(signal, info, registers.pc);
    if repairs::REPAIR_COUNTS.is_known_repairable(site) {
        return choose_next(thread, signal, info, context, Some((site, Recorded::None)));
    }
    match record(previous::may_be_survived(signal)) {
        Some(recorded) => choose_next(thread, signal, info, context, Some((site, recorded))),
        None => AGAIN,
    }
}

fn count_survived(site: FaultSite) {
    SURVIVED.fetch_add(1, Ordering::SeqCst);
    repairs::REPAIR_COUNTS.count(site);
}

/// Prepares the call of the earlier handler, or applies the default action. `new` is the site and the record of a
/// signal that did not arrive inside an earlier handler. Returns what the entry does next.
fn choose_next(
    thread: i32,
    signal: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
    new: Option<(FaultSite, Recorded)>,
) -> u64 {
    if !previous::has_previous_handler(signal) {
        previous::take_default_action(signal, info);
        return RETURN;
    }
    previous::prepare_previous(signal);
    let Some((site, recorded)) = new else { return PASS_ON | INSIDE };
    let is_blocked = previous::is_blocked_by_previous(signal);
    repairs::enter(thread, &Call { signal, is_blocked, recorded, site, stack: context.addr() as u64 });
    PASS_ON | repairs::bits_of(recorded)
}

/// Called by the entry on the stack that the kernel chose. Calls the earlier handler with the mask that the kernel
/// would have set. Returns [`CAME_BACK`] if the signal still needs a record.
pub(super) extern "C" fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void, next: u64) -> u64 {
    // Read before the call, because a handler may change where the thread continues.
    // SAFETY: as given by the kernel.
    let site = FaultSite::of(signal, info, Registers::of(unsafe { &*context.cast::<ucontext_t>() }).pc);
    // SAFETY: as given by the kernel.
    unsafe { previous::call_previous(signal, info, context) };
    // The earlier handler has returned.
    if next & INSIDE != 0 {
        return RETURN;
    }
    let errno = Errno::last_raw();
    // A handler that interrupts this could leave by a jump.
    previous::block_everything();
    let thread = process::thread_id();
    repairs::leave(thread);
    // If our handler is still installed, the instruction is executed again, and an unrepaired fault would come back to
    // us. `abort` ends the process whatever its handler does.
    let is_repaired = signal != libc::SIGABRT && previous::is_our_handler_installed(signal);
    if is_repaired {
        count_survived(site);
        if let Recorded::Provisional(provisional) = repairs::recorded_in(next) {
            report_file::mark_survived(provisional, thread);
        }
    }
    Errno::set_raw(errno);
    if next & UNRECORDED != 0 && !is_repaired { CAME_BACK } else { RETURN }
}

/// Called by the entry if another thread, or this one, is on our stack.
pub(super) extern "C" fn on_signal_without_stack(
    signal: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
    turns: u64,
) -> u64 {
    let errno = Errno::last_raw();
    let thread = process::thread_id();
    let next = if OWNER.load(Ordering::SeqCst) == thread {
        // SAFETY: the kernel's structures are valid while the handler runs, and this thread is the owner.
        unsafe { handle_nested(thread, signal, info, context) };
        RETURN
    } else {
        // SAFETY: as above.
        let registers = Registers::of(unsafe { &*context.cast::<ucontext_t>() });
        if turns < CAME_BACK {
            handle(thread, signal, info, context, &registers, &mut |may_be_repaired| {
                let skips_wait = may_be_repaired && SURVIVED.load(Ordering::SeqCst) >= SURVIVALS;
                if !skips_wait && wait_for_stack(turns) {
                    return None;
                }
                Some(record_without_stack(thread, signal, info, &registers, may_be_repaired))
            })
        } else if wait_for_stack(turns - CAME_BACK) {
            AGAIN
        } else {
            record_without_stack(thread, signal, info, &registers, false);
            wake_reader();
            RETURN
        }
    };
    Errno::set_raw(errno);
    next
}

/// Waits for our stack, unless it was waited for [`TURNS`] times already. Returns whether it became free.
fn wait_for_stack(turns: u64) -> bool {
    turns < TURNS && wait_until(|| !is_stack_taken())
}

/// Handles a fault inside our own handler. When this returns, the kernel resumes the thread in the entry's frame, with
/// what was known by then. The fault itself is not the program's and is not reported.
///
/// # Safety
///
/// Must be called by the owner of our stack, with the arguments that the kernel gave.
unsafe fn handle_nested(thread: i32, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: guaranteed by the caller.
    let interrupted = unsafe { &mut *context.cast::<ucontext_t>() };
    if !previous::is_raised_by_kernel(info) {
        // It was sent by a process, and can wait.
        return previous::postpone(signal, info, interrupted);
    }
    // SAFETY: the interrupted frame of this thread, which had the reference to the job, never runs again.
    let job = unsafe { &mut *JOB.0.get() };
    let recorded = match STAGE.swap(IDLE, Ordering::SeqCst) {
        // The walk met memory that is not what the tables say. The addresses found so far are recorded.
        WALKING => {
            HAS_WALK_FAULTED.store(true, Ordering::SeqCst);
            let found = FOUND.load(Ordering::SeqCst);
            let may_be_repaired = previous::may_be_survived(job.signal);
            STAGE.store(WRITING, Ordering::SeqCst);
            let recorded = write_job(job, found, signal, thread, may_be_repaired);
            STAGE.store(IDLE, Ordering::SeqCst);
            recorded
        }
        WRITING => {
            report_file::count_missed();
            Recorded::Final
        }
        // No code in that stage can fault.
        _ => return previous::restore_defaults(&SIGNALS),
    };
    let info = job.info.as_mut_ptr();
    let site = FaultSite::of(job.signal, info, job.registers.pc);
    let next = choose_next(thread, job.signal, info, job.context, Some((site, recorded)));
    // SAFETY: as given by the kernel for the original signal, whose handler is still running.
    interrupted.uc_stack = unsafe { alternate_of(job.context) };
    stacks::go_on_at(interrupted, job.resume, job.frame, next);
    leave_stack();
}

/// Walks the stack of the job and writes its record.
fn record_signal(job: &mut Job, thread: i32, may_be_repaired: bool) -> Recorded {
    STAGE.store(WALKING, Ordering::SeqCst);
    if HAS_WALK_FAULTED.load(Ordering::SeqCst) {
        walk::by_frame_pointers(&job.registers, &mut job.frames, &FOUND);
    } else {
        walk::fully(&job.registers, &mut job.frames, &FOUND);
    }
    STAGE.store(WRITING, Ordering::SeqCst);
    let found = stack::finish(&mut job.frames, FOUND.load(Ordering::SeqCst));
    let recorded = write_job(job, found, 0, thread, may_be_repaired);
    STAGE.store(IDLE, Ordering::SeqCst);
    recorded
}

fn write_job(job: &mut Job, found: usize, nested: c_int, thread: i32, may_be_repaired: bool) -> Recorded {
    let frames = job.frames.get(..found.min(FRAMES_MOST)).unwrap_or_default();
    // SAFETY: written when the job began.
    let info = unsafe { job.info.assume_init_ref() };
    let observed =
        Observed { signal: job.signal, info, registers: &job.registers, frames, nested, thread, may_be_repaired };
    write_record(&mut job.record, &observed)
}

/// Records a signal on a thread that did not get our stack: it runs on an unknown stack, so the walk uses frame
/// pointers only.
fn record_without_stack(
    thread: i32,
    signal: c_int,
    info: *const siginfo_t,
    registers: &Registers,
    may_be_repaired: bool,
) -> Recorded {
    let recorded = with_buffers(thread, 1, |buffers| {
        let found = AtomicUsize::new(0);
        walk::by_frame_pointers(registers, &mut buffers.frames, &found);
        let found = stack::finish(&mut buffers.frames, found.into_inner());
        let frames = buffers.frames.get(..found).unwrap_or_default();
        // SAFETY: the kernel's structure is valid while the handler runs.
        let info = unsafe { &*info };
        write_record(
            &mut buffers.record,
            &Observed { signal, info, registers, frames, nested: 0, thread, may_be_repaired },
        )
    });
    recorded.unwrap_or(Recorded::Final)
}

/// Waits until `is_over` returns true, for a bounded time. Returns whether it did.
fn wait_until(is_over: impl Fn() -> bool) -> bool {
    for _ in 0..YIELDS {
        if is_over() {
            return true;
        }
        // SAFETY: async-signal-safe; on Linux a plain system call.
        unsafe { libc::sched_yield() };
    }
    let millisecond = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    for _ in 0..WAIT_MOST {
        if is_over() {
            return true;
        }
        // SAFETY: async-signal-safe; an interrupted sleep costs one turn.
        unsafe { libc::nanosleep(&millisecond, ptr::null_mut()) };
    }
    false
}

/// A fault this far below the stack pointer, or nearer, is a stack overflow: functions with large frames touch each
/// page in turn.
const BELOW_STACK_POINTER: u64 = 64 * 1024;
const ABOVE_STACK_POINTER: u64 = 4096;

/// Maximum number of records of signals that may be repaired and could not get a slot. More would use up the space for
/// the signal that is not repaired.
const FALLBACK_RECORDS: u32 = 8;

/// The facts of a signal that go into its record.
struct Observed<'a> {
    signal: c_int,
    info: &'a siginfo_t,
    registers: &'a Registers,
    frames: &'a [u64],
    /// The signal that interrupted the handler itself; 0 if none.
    nested: c_int,
    thread: i32,
    may_be_repaired: bool,
}

/// Writes the record. If the process may survive the signal, wakes the reader, which marks the record after the grace
/// period.
fn write_record(out: &mut [u8], observed: &Observed<'_>) -> Recorded {
    if !observed.may_be_repaired {
        write_final(out, observed);
        return Recorded::Final;
    }
    // The slots belong to the parent process.
    let in_slot = if process::is_forked_child() { None } else { write_to_slot(out, observed) };
    if in_slot.is_none() {
        write_fallback(out, observed);
    }
    wake_reader();
    in_slot.unwrap_or(Recorded::Final)
}

fn write_to_slot(out: &mut [u8], observed: &Observed<'_>) -> Option<Recorded> {
    let number = panic_hook::next_number();
    let (kind, set, panic) = kind_and_flags(observed);
    let mut writer = Writer::padded(out.get_mut(..PROVISIONAL_BYTES)?, kind, set, number);
    fill(&mut writer, observed, kind, panic);
    report_file::write_provisional(writer.finish()?, observed.thread, number)
}

fn write_fallback(out: &mut [u8], observed: &Observed<'_>) {
    static WRITTEN: AtomicU32 = AtomicU32::new(0);
    if WRITTEN.fetch_add(1, Ordering::Relaxed) >= FALLBACK_RECORDS {
        // Keeps the counter from wrapping.
        WRITTEN.store(FALLBACK_RECORDS, Ordering::Relaxed);
        return;
    }
    write_final(out, observed);
}

/// Appends the record, unless no report file is open or it is full.
fn write_final(out: &mut [u8], observed: &Observed<'_>) {
    let (kind, set, panic) = kind_and_flags(observed);
    let mut writer = Writer::new(out, kind, set, panic_hook::next_number());
    fill(&mut writer, observed, kind, panic);
    if let Some(record) = writer.finish() {
        report_file::write(record, Quota::End);
    }
}

/// The record's kind and flags, and the panic that an abort belongs to.
fn kind_and_flags(observed: &Observed<'_>) -> (Kind, u32, Option<u64>) {
    let is_panicking = observed.signal == libc::SIGABRT && is_panicking(observed.thread);
    let panic = if is_panicking { panic_hook::last_panic_of(observed.thread) } else { None };
    let kind = if panic.is_some() { Kind::Abort } else { Kind::Signal };
    let mut set = process::forked_flag();
    if is_panicking {
        set |= flags::PANICKING;
    }
    if observed.nested != 0 {
        set |= flags::NESTED;
    }
    if panic_hook::is_reader(observed.thread) {
        set |= flags::READING;
    }
    if is_stack_overflow(observed) {
        set |= flags::STACK_OVERFLOW;
    }
    (kind, set, panic)
}

/// Whether this code is linked into the executable, and not into a library that was loaded later. Thread-locals of an
/// executable exist from a thread's start; those of a library are allocated at their first use.
static HAS_STATIC_THREAD_LOCALS: AtomicBool = AtomicBool::new(false);

/// Stores, at installation, whether this code is part of the executable.
pub(super) fn note_linkage(is_in_executable: bool) {
    HAS_STATIC_THREAD_LOCALS.store(is_in_executable, Ordering::SeqCst);
}

/// Whether the thread is panicking. The standard library counts panics in a thread-local. In a library that was loaded
/// later that may be allocated with `malloc`, whose lock the thread may hold; so there it is read only on threads that
/// have panicked before, where it exists.
fn is_panicking(thread: i32) -> bool {
    (HAS_STATIC_THREAD_LOCALS.load(Ordering::Relaxed) || panic_hook::last_panic_of(thread).is_some())
        && std::thread::panicking()
}

fn fill(writer: &mut Writer<'_>, observed: &Observed<'_>, kind: Kind, panic: Option<u64>) {
    process::append_to(writer, observed.thread);
    writer.number(Tag::Signal, number(observed.signal));
    writer.number(Tag::SignalCode, i64::from(observed.info.si_code).cast_unsigned());
    // SAFETY: the code determines which members of the union are set, see sigaction(2).
    unsafe {
        if observed.info.si_code > 0 {
            writer.number(Tag::FaultAddress, observed.info.si_addr().addr() as u64);
        } else {
            writer.number(Tag::SenderPid, number(observed.info.si_pid()));
            writer.number(Tag::SenderUid, u64::from(observed.info.si_uid()));
        }
    }
    if let Some(panic) = panic {
        writer.number(Tag::PanicNumber, panic);
    }
    writer.addresses(Tag::Frames, observed.frames);
    if !observed.may_be_repaired {
        writer.number(Tag::Missed, report_file::take_missed());
    }
    if kind == Kind::Signal {
        breadcrumbs::append_to(writer);
    }
}

fn is_stack_overflow(observed: &Observed<'_>) -> bool {
    if observed.info.si_code <= 0 || !matches!(observed.signal, libc::SIGSEGV | libc::SIGBUS) {
        return false;
    }
    // SAFETY: a fault has an address.
    let address = unsafe { observed.info.si_addr() }.addr() as u64;
    let lowest = observed.registers.sp.wrapping_sub(BELOW_STACK_POINTER);
    address.wrapping_sub(lowest) < BELOW_STACK_POINTER + ABOVE_STACK_POINTER
}

fn number(value: c_int) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
