//! Knowing that we were called back: from a hook of ours, from a log line of ours.
//!
//! An application may capture from inside `before_send`, or from a log layer that hears our own warnings. The first such capture is
//! taken without running hooks again; one from inside that is refused. Otherwise a hook that captures would never end.

use std::cell::Cell;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// How many of our callbacks this thread is inside.
pub(crate) fn depth() -> u32 {
    DEPTH.try_with(Cell::get).unwrap_or(0)
}

/// Runs code that is not ours (a hook, a log line) with the depth raised.
pub(crate) fn calling_out<T>(call: impl FnOnce() -> T) -> T {
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            let _ = DEPTH.try_with(|depth| depth.set(depth.get().saturating_sub(1)));
        }
    }
    let _ = DEPTH.try_with(|depth| depth.set(depth.get().saturating_add(1)));
    let _back = Back;
    call()
}

/// Marks this thread as one of ours: waiting on it for what it has to do itself would never end.
pub(crate) fn this_thread_is_ours() {
    let _ = OURS.try_with(|ours| ours.set(true));
}

/// Whether this thread is one of ours.
pub(crate) fn on_our_thread() -> bool {
    OURS.try_with(Cell::get).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_depth_comes_back_also_when_the_callback_panics() {
        let seen = calling_out(|| calling_out(depth));
        assert_eq!((seen, depth()), (2, 0));
        let panicked = std::panic::catch_unwind(|| calling_out(|| panic!("in a hook")));
        assert!(panicked.is_err() && depth() == 0);
    }
}
