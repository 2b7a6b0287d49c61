//! From the kernel's call to the death of the process, or its going on.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use nix::libc::{self, c_int, siginfo_t, ucontext_t};

use super::entry::{EMERGENCY, NESTED, STACK_BYTES, is_stack_taken};
use super::record::{Seen, write};
use super::registers::Registers;
use super::{SIGNALS, chain, walk};
use crate::crash::slots::{FRAMES_MOST, RECORD_MOST, with_room};
use crate::crash::{file, process};

/// Handlers inside handlers. More is no program that we know how to end well.
const ENTRIES_MOST: u32 = 200;
/// Crashes that the process has to survive before other handlers come first.
const SURVIVALS: u32 = 3;
/// Milliseconds that the first thread to crash waits for records of others, and that others wait to be taken down by it.
const WAIT_FOR_OTHERS: u32 = 100;
const WAIT_FOR_THE_END: u32 = 1000;

static ENTRIES: AtomicU32 = AtomicU32::new(0);
/// The thread that crashed first; 0 if none has.
static FIRST: AtomicI32 = AtomicI32::new(0);
/// How far it is.
static STAGE: AtomicU32 = AtomicU32::new(IDLE);
const IDLE: u32 = 0;
const WALKING: u32 = 1;
const WRITING: u32 = 2;
const PASSING_ON: u32 = 3;

/// What the first thread has to remember when its handler faults. Reached by that thread alone.
struct Job {
    signal: c_int,
    info: MaybeUninit<siginfo_t>,
    registers: Registers,
    frames: [u64; FRAMES_MOST],
    record: [u8; RECORD_MOST],
}

struct JobCell(UnsafeCell<Job>);

// SAFETY: reached only by the thread whose number is in `FIRST`.
unsafe impl Sync for JobCell {}

static JOB: JobCell = JobCell(UnsafeCell::new(Job {
    signal: 0,
    info: MaybeUninit::zeroed(),
    registers: Registers { pc: 0, sp: 0, fp: 0, lr: 0 },
    frames: [0; FRAMES_MOST],
    record: [0; RECORD_MOST],
}));
/// Addresses in the job's `frames`, and more that did not fit.
static FOUND: AtomicUsize = AtomicUsize::new(0);
/// Whether the job's record is written.
static IS_WRITTEN: AtomicBool = AtomicBool::new(false);

static SURVIVED: AtomicU32 = AtomicU32::new(0);
/// The fault that another handler was last let look at first: the instruction, and what it reached for.
static LAST_FAULT: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Whether a thread is in here. Of the calling one it is known, should it have left by a jump.
pub(in crate::crash) fn is_in_progress() -> bool {
    let first = FIRST.load(Ordering::SeqCst);
    first != 0 && (first != process::thread_id() || is_on_our_stacks(here()))
}

/// Where the stack is at this moment.
#[inline(always)]
fn here() -> u64 {
    let here = 0u8;
    ptr::from_ref(std::hint::black_box(&here)).addr() as u64
}

fn is_on_our_stacks(address: u64) -> bool {
    EMERGENCY.holds(address) || NESTED.holds(address)
}

/// Called by the entry. `has_own_stack` is 1 on the stack of ours.
pub(super) extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void, has_own_stack: u32) {
    let errno = nix::errno::Errno::last_raw();
    if ENTRIES.fetch_add(1, Ordering::SeqCst) > ENTRIES_MOST {
        chain::give_back(&SIGNALS);
        return;
    }
    let has_own_stack = has_own_stack != 0;
    if has_own_stack {
        // Allowed, since we are not on the alternate stack any more.
        let nested = libc::stack_t { ss_sp: NESTED.bottom(), ss_flags: 0, ss_size: STACK_BYTES };
        // SAFETY: a stack that nobody else uses: there is one thread with a stack of ours at a time.
        unsafe { libc::sigaltstack(&nested, ptr::null_mut()) };
    }
    // SAFETY: the kernel gave both for the duration of the handler.
    unsafe { handle(signal, info, context, has_own_stack) };
    if has_own_stack {
        // SAFETY: what the thread had when the signal came, as the kernel noted it.
        unsafe { libc::sigaltstack(&raw const (*context.cast::<ucontext_t>()).uc_stack, ptr::null_mut()) };
    }
    ENTRIES.fetch_sub(1, Ordering::SeqCst);
    nix::errno::Errno::set_raw(errno);
}

/// # Safety
///
/// `info` and `context` as the kernel gave them.
unsafe fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void, has_own_stack: bool) {
    let thread = process::thread_id();
    // SAFETY: as the caller says.
    let interrupted = unsafe { &*context.cast::<ucontext_t>() };
    let registers = Registers::of(interrupted);
    let has_jumped = FIRST.load(Ordering::SeqCst) == thread;
    if has_jumped && !was_left_by_a_jump(&registers, &interrupted.uc_stack) {
        return handle_nested(signal, info);
    }
    let has_own_stack = has_own_stack || NESTED.holds(here());
    if !has_own_stack && !has_jumped {
        // Another thread took our stack and is about to be first: the deep walk is its, since only there is room for it.
        wait_until(WAIT_FOR_OTHERS, || FIRST.load(Ordering::SeqCst) != 0 || !is_stack_taken());
    }
    let is_first = has_jumped || FIRST.compare_exchange(0, thread, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    if !is_first {
        witness_beside(thread, signal, info, registers);
        wait_until(WAIT_FOR_THE_END, || FIRST.load(Ordering::SeqCst) == 0);
        // SAFETY: as the caller says.
        return unsafe { chain::pass_on(signal, info, context) };
    }
    if IS_WRITTEN.swap(false, Ordering::SeqCst) {
        SURVIVED.fetch_add(1, Ordering::SeqCst);
    }
    // SAFETY: we are first; a reference to the job lives in no other frame of this thread.
    let job = unsafe { &mut *JOB.0.get() };
    job.signal = signal;
    // SAFETY: as the caller says; a plain copy of plain memory.
    job.info = MaybeUninit::new(unsafe { info.read() });
    job.registers = registers;
    FOUND.store(0, Ordering::SeqCst);
    let others_first = SURVIVED.load(Ordering::SeqCst) >= SURVIVALS
        && chain::is_fault(signal, info)
        && chain::has_previous_handler(signal)
        && (!is_repeated(&registers, info) || has_jumped);
    if !others_first {
        witness(has_own_stack);
        wait_until(WAIT_FOR_OTHERS, || !file::has_writers());
    }
    STAGE.store(PASSING_ON, Ordering::SeqCst);
    // SAFETY: as the caller says.
    unsafe { chain::pass_on(signal, info, context) };
    if others_first && chain::is_default(signal) {
        // It gave up, and the instruction will fault once more without anybody's hearing of it.
        witness(has_own_stack);
    }
    // Alive: the fault comes again and ends the process, or somebody repaired what it was about.
    STAGE.store(IDLE, Ordering::SeqCst);
    FIRST.store(0, Ordering::SeqCst);
}

/// Whether the handler that we passed the last signal on to never came back, but jumped to where the program goes on. The stack that was
/// ours stays taken, since nobody knows when such a thread comes again; and it has the other one as its alternate stack, on which we are.
fn was_left_by_a_jump(registers: &Registers, alternate: &libc::stack_t) -> bool {
    // Of two threads that crash at once the first may have come too late for our stack.
    let is_on_alternate = registers.sp.wrapping_sub(alternate.ss_sp.addr() as u64) <= alternate.ss_size as u64;
    if STAGE.load(Ordering::SeqCst) != PASSING_ON || is_on_alternate || is_on_our_stacks(registers.sp) {
        return false;
    }
    // SAFETY: this thread is first, and its frames that knew the job are gone.
    let before = unsafe { (*JOB.0.get()).registers.sp };
    // A handler that faults on a stack of its own looks the same, but comes ever deeper: that is counted, and ended.
    if registers.sp >= before {
        ENTRIES.store(1, Ordering::SeqCst);
    }
    true
}

/// A signal in the middle of our own handler.
fn handle_nested(signal: c_int, info: *mut siginfo_t) {
    match STAGE.load(Ordering::SeqCst) {
        // The handler before us ends the process: std does when a stack has overflowed.
        PASSING_ON => {
            if !IS_WRITTEN.load(Ordering::SeqCst) {
                witness(true);
                STAGE.store(PASSING_ON, Ordering::SeqCst);
            }
            chain::die_of(signal, info);
        }
        // Our walk met memory that is not what it says. What it found by then is told.
        WALKING => {
            STAGE.store(WRITING, Ordering::SeqCst);
            // SAFETY: this thread is first, and its other frame, which the fault interrupted, never runs again.
            let job = unsafe { &mut *JOB.0.get() };
            let found = FOUND.load(Ordering::SeqCst);
            write_job(job, found, signal);
            chain::give_back(&SIGNALS);
            chain::die_at_once(job.signal, job.info.as_mut_ptr());
        }
        _ => chain::give_back(&SIGNALS),
    }
}

/// Walks the stack of the job, and writes its record.
fn witness(walk_fully: bool) {
    // SAFETY: called by the first thread only; a fault in here goes on in `handle_nested`, and never comes back.
    let job = unsafe { &mut *JOB.0.get() };
    STAGE.store(WALKING, Ordering::SeqCst);
    if walk_fully {
        walk::fully(&job.registers, &mut job.frames, &FOUND);
    } else {
        walk::by_frame_pointers(&job.registers, &mut job.frames, &FOUND);
    }
    STAGE.store(WRITING, Ordering::SeqCst);
    let found = crate::crash::unwind::in_order(&mut job.frames, FOUND.load(Ordering::SeqCst));
    write_job(job, found, 0);
}

fn write_job(job: &mut Job, found: usize, nested: c_int) {
    let frames = job.frames.get(..found.min(FRAMES_MOST)).unwrap_or_default();
    // SAFETY: written when the job was begun.
    let info = unsafe { job.info.assume_init_ref() };
    let seen = Seen { signal: job.signal, info, registers: &job.registers, frames, nested };
    IS_WRITTEN.store(write(&mut job.record, &seen), Ordering::SeqCst);
}

/// A thread that crashes while another does: on whatever stack it has, so without the deep walk.
fn witness_beside(thread: i32, signal: c_int, info: *mut siginfo_t, registers: Registers) {
    let _ = with_room(thread, |room| {
        let found = AtomicUsize::new(0);
        walk::by_frame_pointers(&registers, &mut room.frames, &found);
        let found = crate::crash::unwind::in_order(&mut room.frames, found.into_inner());
        let frames = room.frames.get(..found).unwrap_or_default();
        // SAFETY: the kernel's, for the duration of the handler.
        let info = unsafe { &*info };
        write(&mut room.record, &Seen { signal, info, registers: &registers, frames, nested: 0 })
    });
}

fn is_repeated(registers: &Registers, info: *const siginfo_t) -> bool {
    // SAFETY: the kernel's; asked for faults only, which say an address.
    let address = unsafe { (*info).si_addr() }.addr() as u64;
    let [pc, reached] = &LAST_FAULT;
    let before = (pc.swap(registers.pc, Ordering::SeqCst), reached.swap(address, Ordering::SeqCst));
    before == (registers.pc, address)
}

fn wait_until(most_millis: u32, is_over: impl Fn() -> bool) {
    let millisecond = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    for _ in 0..most_millis {
        if is_over() {
            return;
        }
        // SAFETY: async-signal-safe; a signal that cuts it short costs a turn.
        unsafe { libc::nanosleep(&millisecond, ptr::null_mut()) };
    }
}
