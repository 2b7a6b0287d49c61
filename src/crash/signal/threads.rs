//! Which threads are inside the handler that was there before ours.
//!
//! A signal in there belongs to the one that is being handled: what that dies of has been written down. Nobody says when a handler is
//! left by a jump, so a note may be out of date; what the kernel says of the next signal of the thread tells. Thread-locals would be
//! the natural place, but a library that was loaded later gets those from `malloc`. Lock-free; a thread reads and writes its own notes
//! only.

use std::sync::atomic::{AtomicU64, Ordering};

use super::familiar::Place;

/// Notes; and those that are looked at for one thread. A thread that finds no free one takes another's, which then may be told twice.
const NOTES: usize = 1024;
const LOOKED_AT: usize = 16;
/// A handler that is not masked while it runs is taken to be inside itself no deeper than this.
const DEEPEST: u64 = 64 * 1024;

struct Note {
    /// Thread, signal, and whether the signal is blocked while its handler runs. 0 if nobody is inside.
    who: AtomicU64,
    /// Where the stack was when its handler was called.
    stack: AtomicU64,
    /// The [`Place`] of what it is about.
    place: AtomicU64,
}

static INSIDE: [Note; NOTES] =
    [const { Note { who: AtomicU64::new(0), stack: AtomicU64::new(0), place: AtomicU64::new(0) } }; NOTES];

/// A call of the handler before ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) signal: i32,
    /// The kernel blocks the signal while its handler runs, unless that wants it otherwise.
    pub(super) is_blocked: bool,
    /// What it is about.
    pub(super) record: Record,
    pub(super) place: Place,
    /// Where the stack was.
    pub(super) stack: u64,
}

/// What was written about a signal before its handler was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// Nothing, because its place is familiar.
    None,
    /// Something that may be marked as survived.
    Held,
    /// What was possible.
    Final,
}

impl Call {
    /// Whether it is still going on when a signal finds the thread with this mask and this stack. Pure.
    pub(super) fn goes_on(&self, signal: i32, mask: u64, stack: u64) -> bool {
        if self.is_blocked && mask & bit_of(self.signal) != 0 {
            return true;
        }
        // Unblocked by the handler itself, as some do who give up, or never blocked.
        signal != self.signal && stack <= self.stack && self.stack.wrapping_sub(stack) <= DEEPEST
    }
}

/// Of a signal in a mask of the kernel's.
pub(super) fn bit_of(signal: i32) -> u64 {
    u32::try_from(signal.wrapping_sub(1)).ok().and_then(|at| 1u64.checked_shl(at)).unwrap_or(0)
}

/// The thread is about to call it.
pub(super) fn enter(thread: i32, call: &Call) {
    let who = word_of(thread, call);
    let own = notes_of(thread).find(|note| thread_in(note.who.load(Ordering::Relaxed)) == thread);
    let free = || {
        notes_of(thread).find(|note| note.who.compare_exchange(0, who, Ordering::Relaxed, Ordering::Relaxed).is_ok())
    };
    if let Some(note) = own.or_else(free).or_else(|| notes_of(thread).next()) {
        note.stack.store(call.stack, Ordering::Relaxed);
        note.place.store(call.place.word(), Ordering::Relaxed);
        note.who.store(who, Ordering::Relaxed);
    }
}

/// It came back from it.
pub(super) fn leave(thread: i32) {
    for note in notes_of(thread) {
        let who = note.who.load(Ordering::Relaxed);
        if thread_in(who) == thread {
            let _ = note.who.compare_exchange(who, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// The call that the thread began and did not come back from.
pub(super) fn call_of(thread: i32) -> Option<Call> {
    let note = notes_of(thread).find(|note| thread_in(note.who.load(Ordering::Relaxed)) == thread)?;
    let (stack, place) = (note.stack.load(Ordering::Relaxed), Place::in_word(note.place.load(Ordering::Relaxed)));
    let who = note.who.load(Ordering::Relaxed);
    let record = match who & (IS_HELD | IS_UNTOLD) {
        0 => Record::Final,
        IS_HELD => Record::Held,
        _ => Record::None,
    };
    let call = Call { signal: (who as u8).into(), is_blocked: who & IS_BLOCKED != 0, record, place, stack };
    // Unless another thread took the note meanwhile.
    (thread_in(who) == thread).then_some(call)
}

const IS_BLOCKED: u64 = 1 << 8;
const IS_HELD: u64 = 1 << 9;
const IS_UNTOLD: u64 = 1 << 10;

fn word_of(thread: i32, call: &Call) -> u64 {
    let blocked = if call.is_blocked { IS_BLOCKED } else { 0 };
    let record = match call.record {
        Record::None => IS_UNTOLD,
        Record::Held => IS_HELD,
        Record::Final => 0,
    };
    u64::from(thread.cast_unsigned()) << 32 | record | blocked | u64::from(call.signal as u8)
}

fn thread_in(who: u64) -> i32 {
    ((who >> 32) as u32).cast_signed()
}

fn notes_of(thread: i32) -> impl Iterator<Item = &'static Note> {
    let first = (thread.cast_unsigned().wrapping_mul(0x9e37_79b9) >> 16) as usize;
    (0..LOOKED_AT).filter_map(move |step| INSIDE.get(first.wrapping_add(step) % NOTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGV: i32 = 11;
    const ABRT: i32 = 6;

    fn call(is_blocked: bool) -> Call {
        Call { signal: SEGV, is_blocked, record: Record::Held, place: Place::NONE, stack: 0x10_0000 }
    }

    #[test]
    fn a_call_goes_on_while_its_signal_is_blocked_and_was_left_by_a_jump_if_it_is_not() {
        let blocked = bit_of(SEGV);
        for (call, signal, mask, stack, expected, why) in [
            (call(true), ABRT, blocked, 0x0f_f000, true, "it aborts"),
            (call(true), SEGV, blocked, 0x50_0000, true, "on a stack of its own"),
            (call(true), SEGV, 0, 0x10_1000, false, "it jumped, and the thread faults again"),
            (call(true), SEGV, 0, 0x0f_f000, false, "deeper than before"),
            (call(true), ABRT, 0, 0x0f_f000, true, "it unblocked the signal and aborts"),
            (call(true), ABRT, 0, 0x20_0000, false, "it jumped, and the thread aborts"),
            (call(false), SEGV, 0, 0x0f_f000, false, "the same again, as it wants it"),
            (call(false), ABRT, blocked, 0x0f_f000, true, "never blocked by the kernel"),
        ] {
            assert_eq!(call.goes_on(signal, mask, stack), expected, "{why}");
        }
    }

    #[test]
    fn a_thread_knows_its_own_call_among_those_of_many() {
        let first = 7_000_000;
        for thread in first..first + 300 {
            enter(thread, &Call { record: Record::None, stack: thread as u64, ..call(true) });
        }
        let kept = (first..first + 300).filter(|thread| {
            call_of(*thread)
                .is_some_and(|noted| noted == Call { record: Record::None, stack: *thread as u64, ..call(true) })
        });
        assert!(kept.count() > 290, "hardly any was taken away");
        (first..first + 300).for_each(leave);
        assert!((first..first + 300).all(|thread| call_of(thread).is_none()));
    }
}
