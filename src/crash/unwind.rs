//! The return addresses of the calls that led here.

#![allow(unsafe_code, reason = "a walk without a lock; the block proves itself")]

use std::sync::atomic::{AtomicUsize, Ordering};

/// Fills `frames` with return addresses, the innermost first, and says how many there are. Calls whose frame lies at or below
/// `deepest` are left out, and so is what some unwinders find behind the entry point, which has no address. Of a stack that does not fit, the innermost three quarters and the outermost quarter are kept.
///
/// Allocates nothing: the unwinder of the compiler's own runtime finds its tables through the dynamic loader.
#[inline(never)]
pub(super) fn gather(frames: &mut [u64], deepest: usize, most_walked: usize) -> usize {
    let seen = AtomicUsize::new(0);
    let mut walked = 0;
    let mut note = |frame: &backtrace::Frame| {
        walked += 1;
        if frame.ip().is_null() || (frame.sp().addr() <= deepest && !frame.sp().is_null()) {
            return walked < most_walked;
        }
        keep(frames, &seen, frame.ip().addr() as u64);
        walked < most_walked
    };
    // SAFETY: "unsynchronized" concerns symbol lookup on systems with a debugging library that is not thread-safe (Windows); on Unix the
    // walk shares no state. `note` does not unwind.
    unsafe { backtrace::trace_unsynchronized(&mut note) };
    in_order(frames, seen.into_inner())
}

/// Notes one address, the `seen`th: the first fill three quarters of `frames`, those after them go round in the last quarter. Says so in
/// `seen` after it is written, so that a walk which faults leaves what it had.
pub(super) fn keep(frames: &mut [u64], seen: &AtomicUsize, address: u64) {
    let before = seen.load(Ordering::Relaxed);
    let head = head_of(frames);
    let tail = (frames.len() - head).max(1);
    let at = if before < head { before } else { head + (before - head) % tail };
    if let Some(place) = frames.get_mut(at) {
        *place = address;
    }
    seen.store(before.saturating_add(1), Ordering::Release);
}

/// Turns the last quarter so that it begins with its oldest address. Says how many addresses there are in `frames`.
pub(super) fn in_order(frames: &mut [u64], seen: usize) -> usize {
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
        // The recursion itself: one return address, as in the whole stack.
        assert_eq!(kept[50], whole[50]);
    }
}
