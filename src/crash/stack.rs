//! Where a thread is, as return addresses.

#![allow(unsafe_code, reason = "walking the stack of the thread that asks; the block proves itself")]

use std::hint::black_box;
use std::ptr;

use crate::record::stack::{NEAREST_FRAMES, OUTERMOST_FRAMES};

/// Frames that are walked: what recurses deeper is cut, and does not cost its caller more.
const MOST_WALKED: usize = 4096;

/// Where our own frames end. Told by addresses, so that it needs no names: the stack grows downwards, and a frame of ours, or of
/// whom we call, has a stack pointer at or below every variable of our outermost function.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edge(usize);

impl Edge {
    /// Everything above the function that has this local variable. That function must not be inlined into its caller.
    #[inline(always)]
    pub(crate) fn above(local: &u8) -> Self {
        Self(ptr::from_ref(black_box(local)).addr())
    }
}

/// The return addresses above the edge, that of the nearest call first: 96 of those, and the last 32.
#[inline(never)]
pub(crate) fn trace(edge: Edge) -> Vec<u64> {
    let mut addresses: Vec<u64> = Vec::with_capacity(NEAREST_FRAMES + OUTERMOST_FRAMES);
    let (mut walked, mut above) = (0, 0);
    let look = |frame: &backtrace::Frame| {
        walked += 1;
        let address = frame.ip().addr() as u64;
        // Some unwinders end with a frame at zero, above the thread's first.
        if frame.sp().addr() > edge.0 && address != 0 {
            if addresses.len() < NEAREST_FRAMES + OUTERMOST_FRAMES {
                addresses.push(address);
            } else if let Some(place) = addresses.get_mut(NEAREST_FRAMES + (above - NEAREST_FRAMES) % OUTERMOST_FRAMES)
            {
                *place = address;
            }
            above += 1;
        }
        walked < MOST_WALKED
    };
    // SAFETY: what is not synchronized is the table of symbols of another system's debugger. On Unix the walk keeps all it needs on its
    // own stack, and the closure neither panics nor looks anything up.
    unsafe { backtrace::trace_unsynchronized(look) };
    if let Some(outermost) = addresses.get_mut(NEAREST_FRAMES..)
        && above > NEAREST_FRAMES + OUTERMOST_FRAMES
    {
        // The oldest of the ring comes first.
        outermost.rotate_left((above - NEAREST_FRAMES) % OUTERMOST_FRAMES);
    }
    addresses
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
    fn of_a_deep_stack_the_nearest_and_the_outermost_are_kept_in_order() {
        let shallow = caller(0);
        let deep = caller(1000);
        assert_eq!(deep.len(), NEAREST_FRAMES + OUTERMOST_FRAMES);
        assert!(deep[1..NEAREST_FRAMES].iter().all(|address| *address == deep[1]), "recursion");
        let tail = shallow.len().min(10) - 2;
        assert_eq!(deep[deep.len() - tail..], shallow[shallow.len() - tail..]);
        assert!(caller(10_000).len() <= NEAREST_FRAMES + OUTERMOST_FRAMES);
    }
}
