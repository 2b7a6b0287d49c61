//! The return addresses of the calls that led here.

#![allow(unsafe_code, reason = "a walk without a lock; the block proves itself")]

/// Fills `frames` with return addresses, the innermost first, and says how many there are. Calls whose frame lies at or below
/// `deepest` are left out. Of a stack that does not fit, the innermost three quarters and the outermost quarter are kept.
///
/// Allocates nothing: the unwinder of the compiler's own runtime finds its tables through the dynamic loader.
#[inline(never)]
pub(super) fn gather(frames: &mut [u64], deepest: usize) -> usize {
    let head = frames.len() / 4 * 3;
    let tail = frames.len() - head;
    let mut seen = 0usize;
    let mut note = |frame: &backtrace::Frame| {
        if frame.sp().addr() <= deepest && !frame.sp().is_null() {
            return true;
        }
        let at = if seen < head { seen } else { head + (seen - head) % tail.max(1) };
        if let Some(place) = frames.get_mut(at) {
            *place = frame.ip().addr() as u64;
        }
        seen = seen.saturating_add(1);
        seen < FRAMES_WALKED
    };
    // SAFETY: "unsynchronized" concerns symbol lookup on systems with a debugging library that is not thread-safe (Windows); on Unix the
    // walk shares no state. `note` does not unwind.
    unsafe { backtrace::trace_unsynchronized(&mut note) };
    if seen > frames.len() {
        // The tail was used as a ring: turn its oldest entry to the front.
        frames.get_mut(head..).unwrap_or_default().rotate_left((seen - head) % tail.max(1));
    }
    seen.min(frames.len())
}

/// A stack deeper than this is a recursion that ran away; walking on would only take time.
const FRAMES_WALKED: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> usize {
        let here = 0u8;
        std::ptr::from_ref(std::hint::black_box(&here)).addr()
    }

    #[inline(never)]
    fn nested(depth: usize, frames: &mut [u64]) -> usize {
        let gathered = if depth == 0 { gather(frames, here()) } else { nested(depth - 1, frames) };
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
