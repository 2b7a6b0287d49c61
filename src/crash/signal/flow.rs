//! From the kernel's call to the death of the process, or its going on.
//!
//! What runs on the stack of ours is over before anybody else is called: whoever has the signal next may never come back. While it runs
//! every signal is blocked but those that are caught here, so nobody can leave it by a jump.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::libc::{self, c_int, siginfo_t, ucontext_t};

use super::entry::is_stack_taken;
use super::familiar::{self, Place};
use super::record::{Seen, Written, write};
use super::registers::{self, Registers};
use super::threads::{self, Call, Record};
use super::{SIGNALS, chain, stacks, walk};
use crate::crash::slots::{FRAMES_MOST, RECORD_MOST, with_free_room};
use crate::crash::{file, process, provisional::Held, wake_reader};

/// Signals that the process has to survive before those that somebody may repair are not waited for any more.
const SURVIVALS: u32 = 3;
/// Milliseconds that a thread waits for the stack of ours each time, and for records that others are writing.
const WAIT_MOST: u32 = 100;
/// How often it waits for the stack.
const TURNS: u64 = 20;
/// Times that it lets others run before it sleeps.
const YIELDS: u32 = 50;

/// The thread that is on the stack of ours; 0 if none is.
static OWNER: AtomicI32 = AtomicI32::new(0);
/// How far it is.
static STAGE: AtomicU32 = AtomicU32::new(IDLE);
const IDLE: u32 = 0;
const WALKING: u32 = 1;
const WRITING: u32 = 2;

/// What the owner has to remember when its handler faults. Reached by that thread alone.
struct Job {
    signal: c_int,
    info: MaybeUninit<siginfo_t>,
    context: *mut c_void,
    registers: Registers,
    /// Where the entry goes on, and its frame.
    resume: usize,
    frame: usize,
    frames: [u64; FRAMES_MOST],
    record: [u8; RECORD_MOST],
}

struct JobCell(UnsafeCell<Job>);

// SAFETY: reached only by the thread whose number is in `OWNER`.
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
/// Addresses in the job's `frames`, and more that did not fit.
static FOUND: AtomicUsize = AtomicUsize::new(0);
/// A walk has faulted: tables that it reads are not what they were. No walk goes by them any more.
static HAS_WALK_FAULTED: AtomicBool = AtomicBool::new(false);

static SURVIVED: AtomicU32 = AtomicU32::new(0);

/// What the entry does next, in one word: nothing, or call who was there before, and note afterwards that the process lived on after
/// the record in that place.
const RETURN: u64 = 0;
const AGAIN: u64 = u64::MAX;
const PASS_ON: u64 = 1;
/// The thread is inside such a call already.
const INSIDE: u64 = 2;
/// Nothing was written, since the place is familiar.
const UNTOLD: u64 = 1 << 6;
const PLACE_AT: u32 = 2;
const PLACE_MASK: u64 = 0xf;
const NUMBER_AT: u32 = 8;

fn pass_on_with(held: Option<Held>) -> u64 {
    held.map_or(PASS_ON, |held| PASS_ON | (held.place as u64 + 1) << PLACE_AT | (held.number << NUMBER_AT))
}

/// Where the entry counts how often it found the stack taken: what was passed on [`UNTOLD`] came back and was not repaired.
const CAME_BACK: u64 = 1 << 32;
const DONE: u64 = 0;

fn held_in(next: u64) -> Option<Held> {
    let place = usize::try_from(next >> PLACE_AT & PLACE_MASK).ok()?.checked_sub(1)?;
    Some(Held { place, number: next >> NUMBER_AT })
}

/// Whether this thread is in a handler that we have passed a signal on to.
pub(in crate::crash) fn is_in_progress() -> bool {
    let here = 0u8;
    let stack = ptr::from_ref(std::hint::black_box(&here)).addr() as u64;
    threads::call_of(process::thread_id()).is_some_and(|call| call.goes_on(0, chain::mask_of_this_thread(), stack))
}

/// Called by the entry on the stack of ours. `frame` is the entry's, and `resume` where it goes on. Answers what it does next.
/// `turns` is what it counts.
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
    // Allowed, since we are not on the alternate stack any more.
    // SAFETY: a stack that nobody else uses: there is one owner at a time.
    unsafe { libc::sigaltstack(&stacks::nested(), ptr::null_mut()) };
    // SAFETY: the kernel gave both for the duration of the handler; we are the owner, and a reference to the job lives nowhere else.
    let next = unsafe {
        let job = &mut *JOB.0.get();
        job.signal = signal;
        job.info = MaybeUninit::new(info.read());
        job.context = context;
        job.registers = Registers::of(&*context.cast::<ucontext_t>());
        (job.resume, job.frame) = (resume, frame);
        FOUND.store(0, Ordering::SeqCst);
        if turns < CAME_BACK { handle(job, thread, info) } else { tell_late(job, thread) }
    };
    // SAFETY: as the kernel noted it.
    unsafe { libc::sigaltstack(&alternate_of(context), ptr::null_mut()) };
    leave_stack();
    Errno::set_raw(errno);
    next
}

fn leave_stack() {
    STAGE.store(IDLE, Ordering::SeqCst);
    OWNER.store(0, Ordering::SeqCst);
}

/// The alternate stack that the thread has while a handler runs that the kernel called with this context.
///
/// # Safety
///
/// `context` as the kernel gave it.
unsafe fn alternate_of(context: *const c_void) -> libc::stack_t {
    const SS_AUTODISARM: c_int = 1 << 31;
    // SAFETY: as the caller says; a copy of plain memory.
    let mut stack = unsafe { (*context.cast::<ucontext_t>()).uc_stack };
    if stack.ss_flags & SS_AUTODISARM != 0 {
        // It has none until the handler is left.
        stack.ss_flags = libc::SS_DISABLE;
    }
    stack
}

fn handle(job: &mut Job, thread: i32, info: *mut siginfo_t) -> u64 {
    match judge(job.signal, info, job.context, &job.registers, thread) {
        Found::Nothing => RETURN,
        Found::Inside => go_on_inside(job.signal, info),
        Found::Familiar(place) => fate(thread, job.signal, info, job.context, Passed::untold(place)),
        Found::News { may_be_repaired, place } => {
            let written = witness(job, thread, may_be_repaired);
            if !may_be_repaired || SURVIVED.load(Ordering::SeqCst) < SURVIVALS {
                // The process may end now, and others may be in the middle of a word.
                wait_until(|| !file::has_writers());
            }
            fate(thread, job.signal, info, job.context, Passed { written: Some(written), place })
        }
    }
}

/// Whoever was to repair it came back, and did not: when we return, the process dies of it.
fn tell_late(job: &mut Job, thread: i32) -> u64 {
    // Everything is blocked, so a walk that faults ends the process here, by the signal that it would have died of.
    witness(job, thread, false);
    wait_until(|| !file::has_writers());
    // If it lives on after all, it has this noted.
    wake_reader();
    RETURN
}

/// What a signal is.
enum Found {
    /// Nothing that a process without us would notice.
    Nothing,
    /// Part of what the thread was in the middle of: that has been told.
    Inside,
    /// A fault at a place where many were repaired.
    Familiar(Place),
    News {
        may_be_repaired: bool,
        place: Place,
    },
}

fn judge(signal: c_int, info: *const siginfo_t, context: *const c_void, registers: &Registers, thread: i32) -> Found {
    if chain::is_dropped(signal, info) {
        return Found::Nothing;
    }
    if let Some(call) = threads::call_of(thread) {
        let goes_on = call.goes_on(signal, chain::mask_of(context), registers.sp);
        let is_told = match call.record {
            Record::Final => true,
            // Else it is so long in there that the reader believes that it has left by a jump.
            Record::Held => file::holds_of(thread),
            Record::None => false,
        };
        if goes_on && is_told {
            return Found::Inside;
        }
        threads::leave(thread);
        if !goes_on {
            // It left that handler by a jump.
            note_survived(call.place);
        }
    }
    let place = Place::of(signal, info, registers.pc);
    if familiar::SURVIVED.is_familiar(place) {
        return Found::Familiar(place);
    }
    Found::News { may_be_repaired: chain::may_be_survived(signal), place }
}

fn note_survived(place: Place) {
    SURVIVED.fetch_add(1, Ordering::SeqCst);
    familiar::SURVIVED.note(place);
}

/// What goes on to who was there before: the record of it, and where it was. No record if the place is familiar.
#[derive(Clone, Copy)]
struct Passed {
    written: Option<Written>,
    place: Place,
}

impl Passed {
    fn untold(place: Place) -> Self {
        Self { written: None, place }
    }
}

/// Lets it happen, as far as that does not take the stack which the kernel gave.
fn fate(thread: i32, signal: c_int, info: *mut siginfo_t, context: *mut c_void, passed: Passed) -> u64 {
    if !chain::has_previous_handler(signal) {
        chain::let_happen(signal, info);
        return RETURN;
    }
    chain::prepare_previous(signal);
    let held = passed.written.and_then(Written::held);
    let record = match (passed.written, held) {
        (None, _) => Record::None,
        (_, Some(_)) => Record::Held,
        (Some(_), None) => Record::Final,
    };
    let is_blocked = chain::is_blocked_by_previous(signal);
    threads::enter(thread, &Call { signal, is_blocked, record, place: passed.place, stack: context.addr() as u64 });
    pass_on_with(held) | if record == Record::None { UNTOLD } else { 0 }
}

/// The same of a signal in a handler that another one was passed on to.
fn go_on_inside(signal: c_int, info: *mut siginfo_t) -> u64 {
    if !chain::has_previous_handler(signal) {
        chain::let_happen(signal, info);
        return RETURN;
    }
    chain::prepare_previous(signal);
    PASS_ON | INSIDE
}

/// Called by the entry on the stack that the kernel gave: who was there before has it now, with the mask of the kernel. Answers whether
/// it is to be told of now, as [`CAME_BACK`].
pub(super) extern "C" fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void, next: u64) -> u64 {
    // Asked before: a handler may have the thread go on elsewhere.
    // SAFETY: as the kernel gave it.
    let place = Place::of(signal, info, Registers::of(unsafe { &*context.cast::<ucontext_t>() }).pc);
    // SAFETY: as the kernel gave them.
    unsafe { chain::call_previous(signal, info, context) };
    // It came back.
    if next & INSIDE != 0 {
        return DONE;
    }
    let errno = Errno::last_raw();
    // Whoever interrupts this may jump.
    chain::block_everything();
    let thread = process::thread_id();
    threads::leave(thread);
    // Still ours: the instruction is tried again, and would bring us back. `abort` insists, whatever its handler does.
    let is_repaired = signal != libc::SIGABRT && chain::is_ours(signal);
    if is_repaired {
        note_survived(place);
        if let Some(held) = held_in(next) {
            file::mark_survived(held, thread);
        }
    }
    Errno::set_raw(errno);
    if next & UNTOLD != 0 && !is_repaired { CAME_BACK } else { DONE }
}

/// Called by the entry where another thread, or this one, is on the stack of ours.
pub(super) extern "C" fn on_signal_beside(
    signal: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
    turns: u64,
) -> u64 {
    let errno = Errno::last_raw();
    let thread = process::thread_id();
    let next = if OWNER.load(Ordering::SeqCst) == thread {
        // SAFETY: the kernel gave both for the duration of the handler, and we are the owner.
        unsafe { handle_nested(thread, signal, info, context) };
        RETURN
    } else {
        // SAFETY: as above.
        let registers = Registers::of(unsafe { &*context.cast::<ucontext_t>() });
        if turns < CAME_BACK {
            handle_beside(thread, signal, info, context, &registers, turns)
        } else if waits_again(turns - CAME_BACK) {
            AGAIN
        } else {
            witness_beside(thread, signal, info, &registers, false);
            wake_reader();
            RETURN
        }
    };
    Errno::set_raw(errno);
    next
}

fn handle_beside(
    thread: i32,
    signal: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
    registers: &Registers,
    turns: u64,
) -> u64 {
    match judge(signal, info, context, registers, thread) {
        Found::Nothing => RETURN,
        Found::Inside => go_on_inside(signal, info),
        Found::Familiar(place) => fate(thread, signal, info, context, Passed::untold(place)),
        Found::News { may_be_repaired, place } => {
            let hurries = may_be_repaired && SURVIVED.load(Ordering::SeqCst) >= SURVIVALS;
            if !hurries && waits_again(turns) {
                return AGAIN;
            }
            let written = witness_beside(thread, signal, info, registers, may_be_repaired);
            fate(thread, signal, info, context, Passed { written: Some(written), place })
        }
    }
}

/// Whether the stack came free, for who was told so many times that it was taken.
fn waits_again(turns: u64) -> bool {
    turns < TURNS && wait_until(|| !is_stack_taken())
}

/// A signal in the middle of our own handler. The kernel takes the thread back to the entry's frame when this returns, with what is known
/// by then: what that signal was about is not the program's affair.
///
/// # Safety
///
/// By the owner, with both as the kernel gave them.
unsafe fn handle_nested(thread: i32, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: as the caller says.
    let interrupted = unsafe { &mut *context.cast::<ucontext_t>() };
    if !chain::is_forced(info) {
        // Somebody sends it, and it has time.
        return chain::postpone(signal, info, interrupted);
    }
    // SAFETY: the frame of this thread that knew the job was interrupted, and never runs again.
    let job = unsafe { &mut *JOB.0.get() };
    let written = match STAGE.swap(IDLE, Ordering::SeqCst) {
        // Our walk met memory that is not what it says. What it found by then is told.
        WALKING => {
            HAS_WALK_FAULTED.store(true, Ordering::SeqCst);
            let found = FOUND.load(Ordering::SeqCst);
            let may_be_repaired = chain::may_be_survived(job.signal);
            STAGE.store(WRITING, Ordering::SeqCst);
            let written = write_job(job, found, signal, thread, may_be_repaired);
            STAGE.store(IDLE, Ordering::SeqCst);
            written
        }
        WRITING => {
            file::count_missed();
            Written::Nowhere
        }
        // Nothing that we do there can fault.
        _ => return chain::give_back(&SIGNALS),
    };
    let info = job.info.as_mut_ptr();
    let passed = Passed { written: Some(written), place: Place::of(job.signal, info, job.registers.pc) };
    let next = fate(thread, job.signal, info, job.context, passed);
    // SAFETY: as the kernel gave it, for the signal that this is about; its handler runs on.
    interrupted.uc_stack = unsafe { alternate_of(job.context) };
    registers::go_on_at(interrupted, job.resume, job.frame, next);
    leave_stack();
}

/// Walks the stack of the job, and writes its record.
fn witness(job: &mut Job, thread: i32, may_be_repaired: bool) -> Written {
    STAGE.store(WALKING, Ordering::SeqCst);
    if HAS_WALK_FAULTED.load(Ordering::SeqCst) {
        walk::by_frame_pointers(&job.registers, &mut job.frames, &FOUND);
    } else {
        walk::fully(&job.registers, &mut job.frames, &FOUND);
    }
    STAGE.store(WRITING, Ordering::SeqCst);
    let found = crate::crash::unwind::in_order(&mut job.frames, FOUND.load(Ordering::SeqCst));
    let written = write_job(job, found, 0, thread, may_be_repaired);
    STAGE.store(IDLE, Ordering::SeqCst);
    written
}

fn write_job(job: &mut Job, found: usize, nested: c_int, thread: i32, may_be_repaired: bool) -> Written {
    let frames = job.frames.get(..found.min(FRAMES_MOST)).unwrap_or_default();
    // SAFETY: written when the job was begun.
    let info = unsafe { job.info.assume_init_ref() };
    let seen = Seen { signal: job.signal, info, registers: &job.registers, frames, nested, thread, may_be_repaired };
    write(&mut job.record, &seen)
}

/// A thread that did not get the stack: on whatever stack it has, so without the deep walk.
fn witness_beside(
    thread: i32,
    signal: c_int,
    info: *const siginfo_t,
    registers: &Registers,
    may_be_repaired: bool,
) -> Written {
    let written = with_free_room(thread, |room| {
        let found = AtomicUsize::new(0);
        walk::by_frame_pointers(registers, &mut room.frames, &found);
        let found = crate::crash::unwind::in_order(&mut room.frames, found.into_inner());
        let frames = room.frames.get(..found).unwrap_or_default();
        // SAFETY: the kernel's, for the duration of the handler.
        let info = unsafe { &*info };
        write(&mut room.record, &Seen { signal, info, registers, frames, nested: 0, thread, may_be_repaired })
    });
    written.unwrap_or(Written::Nowhere)
}

/// Whether it was over in a bounded time.
fn wait_until(is_over: impl Fn() -> bool) -> bool {
    for _ in 0..YIELDS {
        if is_over() {
            return true;
        }
        // SAFETY: async-signal-safe, on Linux a plain system call.
        unsafe { libc::sched_yield() };
    }
    let millisecond = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    for _ in 0..WAIT_MOST {
        if is_over() {
            return true;
        }
        // SAFETY: async-signal-safe; a signal that cuts it short costs a turn.
        unsafe { libc::nanosleep(&millisecond, ptr::null_mut()) };
    }
    false
}
