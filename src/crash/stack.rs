//! The current thread's stack as return addresses. Needs no symbols and allocates nothing while it walks.

#![allow(unsafe_code, reason = "a walk without a lock; the block proves itself")]

use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::record::stack::{NEAREST_FRAMES, OUTERMOST_FRAMES};

/// Maximum number of frames walked, so that a deep recursion does not make a capture expensive.
const MOST_WALKED: usize = 4096;
const MOST_KEPT: usize = NEAREST_FRAMES + OUTERMOST_FRAMES;

/// Where the library's own frames end. Given by an address, which needs no symbols: the stack grows downwards, so a
/// frame of ours, or of a function that we call, has a stack pointer at or below every local variable of our outermost
/// function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edge(usize);

impl Edge {
    /// The edge above the function that owns this local variable. That function must not be inlined into its caller.
    #[inline(always)]
    pub(crate) fn above(local: &u8) -> Self {
        Self(ptr::from_ref(black_box(local)).addr())
    }
}

/// The return addresses above the edge, innermost first: the nearest 96 and the outermost 32.
#[inline(never)]
pub(crate) fn trace(edge: Edge) -> Vec<u64> {
    let mut addresses = vec![0; MOST_KEPT];
    let found = gather(&mut addresses, edge.0, MOST_WALKED);
    addresses.truncate(found);
    addresses
}

/// Fills `frames` with return addresses, innermost first, and returns their number. Frames at or below `deepest` are
/// left out, and so are entries without an address, which some unwinders return after the entry point. If the stack
/// does not fit, the innermost three quarters and the outermost quarter of `frames` are kept.
///
/// Allocates nothing: the compiler runtime's unwinder finds its tables through the dynamic loader.
#[inline(never)]
pub(super) fn gather(frames: &mut [u64], deepest: usize, most_walked: usize) -> usize {
    let seen = AtomicUsize::new(0);
    let mut walked = 0;
    let mut note = |frame: &backtrace::Frame| {
        walked += 1;
        if frame.ip().is_null() || (frame.sp().addr() <= deepest && !frame.sp().is_null()) {
            return walked < most_walked;
        }
        store_frame(frames, &seen, frame.ip().addr() as u64);
        walked < most_walked
    };
    // SAFETY: "unsynchronized" concerns symbol lookup on systems whose debugging library is not thread-safe (Windows).
    // On Unix the walk shares no state. `note` does not unwind.
    unsafe { backtrace::trace_unsynchronized(&mut note) };
    finish(frames, seen.into_inner())
}

/// Stores the `seen`th address. The first addresses fill three quarters of `frames`; later ones use the last quarter as
/// a ring. Increments `seen` after the write, so that a walk that faults leaves what it had.
pub(super) fn store_frame(frames: &mut [u64], seen: &AtomicUsize, address: u64) {
    let before = seen.load(Ordering::Relaxed);
    let head = head_of(frames);
    let tail = (frames.len() - head).max(1);
    let at = if before < head { before } else { head + (before - head) % tail };
    if let Some(place) = frames.get_mut(at) {
        *place = address;
    }
    seen.store(before.saturating_add(1), Ordering::Release);
}

/// Rotates the ring in the last quarter so that it begins with its oldest address. Returns the number of addresses in
/// `frames`.
pub(super) fn finish(frames: &mut [u64], seen: usize) -> usize {
    let head = head_of(frames);
    if seen > frames.len() {
        let tail = frames.get_mut(head..).unwrap_or_default();
        tail.rotate_left((seen - head) % tail.len().max(1));
    }
    seen.min(frames.len())
}

fn head_of(frames: &[u64]) -> usize {
    frames.len() / 4 * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn entry() -> Vec<u64> {
        let here = 0;
        below(Edge::above(&here))
    }

    #[inline(never)]
    fn below(edge: Edge) -> Vec<u64> {
        trace(black_box(edge))
    }

    #[inline(never)]
    fn caller(depth: usize) -> Vec<u64> {
        let found = if depth == 0 { entry() } else { caller(black_box(depth - 1)) };
        black_box(found)
    }

    fn name_of(address: u64) -> String {
        let mut name = String::new();
        backtrace::resolve(ptr::without_provenance_mut(address as usize), |symbol| {
            name = symbol.name().map(|name| format!("{name:#}")).unwrap_or_default();
        });
        name
    }

    #[test]
    fn a_stack_begins_with_the_caller_of_the_function_at_the_edge() {
        let addresses = caller(0);
        assert!(name_of(addresses[0]).ends_with("tests::caller"), "{}", name_of(addresses[0]));
        assert!(name_of(addresses[1]).contains("a_stack_begins_with"), "{}", name_of(addresses[1]));
    }

    #[test]
    fn a_deep_stack_keeps_its_nearest_and_outermost_frames_in_order() {
        let shallow = caller(0);
        let deep = caller(1000);
        assert_eq!(deep.len(), NEAREST_FRAMES + OUTERMOST_FRAMES);
        assert!(deep[1..NEAREST_FRAMES].iter().all(|address| *address == deep[1]), "recursion");
        let tail = shallow.len().min(10) - 2;
        assert_eq!(deep[deep.len() - tail..], shallow[shallow.len() - tail..]);
        assert!(caller(10_000).len() <= NEAREST_FRAMES + OUTERMOST_FRAMES);
    }

    fn here() -> usize {
        let here = 0u8;
        std::ptr::from_ref(std::hint::black_box(&here)).addr()
    }

    #[inline(never)]
    fn nested(depth: usize, frames: &mut [u64]) -> usize {
        let gathered = if depth == 0 { gather(frames, here(), 10_000) } else { nested(depth - 1, frames) };
        std::hint::black_box(gathered)
    }

    #[test]
    fn a_deep_stack_keeps_its_innermost_and_its_outermost_frames() {
        let mut whole = [0; 4096];
        let all = nested(300, &mut whole);
        let mut kept = [0; 128];
        assert_eq!(nested(300, &mut kept), 128);
        assert!(all > 300 && all < whole.len());
        assert_eq!(kept[127], whole[all - 1], "the entry point");
        assert_eq!(kept[100], whole[all - 28]);
        // Inside the recursion all return addresses are the same.
        assert_eq!(kept[50], whole[50]);
    }
}
