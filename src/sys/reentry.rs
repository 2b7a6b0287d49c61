//! Reentrancy: captures from inside the library's own callbacks, and from its own threads.
//!
//! A program may capture from inside `before_send`, from its hook for diagnostics, or from a log layer that receives
//! the library's warnings. The first such capture is accepted; a capture inside of that one is refused, because it
//! could recurse without end. An event that is captured inside `before_send` is not passed to `before_send` again. All
//! other events are, since a hook that removes secrets has to see them.
//!
//! On the library's own threads, captures outside of a callback are refused. They can only come from log lines of
//! packages that the library uses (a connection, a look-up of a name), so each request would cause the next.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The state of this thread. One cell, because each capture reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inside {
    /// How many callbacks of the library it is inside of.
    pub(crate) depth: u32,
    /// One of them is a `before_send` hook.
    pub(crate) before_send: bool,
    /// Whether the thread belongs to the library or to its runtime.
    pub(crate) on_our_thread: bool,
}

impl Inside {
    /// Whether captures are refused here because they could recurse without end.
    #[inline]
    pub(crate) fn refuses_captures(self) -> bool {
        self.depth > 1 || (self.on_our_thread && self.depth == 0)
    }
}

thread_local! {
    static INSIDE: Cell<Inside> = const { Cell::new(Inside { depth: 0, before_send: false, on_our_thread: false }) };
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// The state of this thread.
#[inline]
pub(crate) fn inside() -> Inside {
    INSIDE.try_with(Cell::get).unwrap_or_default()
}

/// Runs foreign code (a hook, a log line) as a callback of the library.
pub(crate) fn calling_out<T>(call: impl FnOnce() -> T) -> T {
    going_into(Inside { depth: inside().depth.saturating_add(1), ..inside() }, call)
}

/// Runs code of the library that foreign code has called, in the state from before the foreign code was called.
#[cfg(feature = "log")]
pub(crate) fn back_in<T>(outer: Inside, call: impl FnOnce() -> T) -> T {
    going_into(outer, call)
}

/// Runs a `before_send` hook, which does not receive the events that it captures itself.
pub(crate) fn calling_before_send<T>(call: impl FnOnce() -> T) -> T {
    going_into(Inside { depth: inside().depth.saturating_add(1), before_send: true, ..inside() }, call)
}

fn going_into<T>(inner: Inside, call: impl FnOnce() -> T) -> T {
    struct Back(Inside);
    impl Drop for Back {
        fn drop(&mut self) {
            let _ = INSIDE.try_with(|inside| inside.set(self.0));
        }
    }
    let _back = Back(INSIDE.try_with(|inside| inside.replace(inner)).unwrap_or_default());
    call()
}

/// Runs foreign code and catches its panic; `None` if it panicked.
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(value) => Some(value),
        Err(payload) => {
            // The payload is foreign too, and its drop may panic once more.
            if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(again);
            }
            None
        }
    }
}

/// Marks this thread as one of the library's own threads, which must not wait for each other's work.
pub(crate) fn this_thread_is_ours() {
    let _ = OURS.try_with(|ours| ours.set(true));
    this_thread_runs_packages();
}

/// Marks a thread of the library's runtime, on which packages that it uses write log lines. It may wait.
pub(crate) fn this_thread_runs_packages() {
    let _ = INSIDE.try_with(|inside| inside.set(Inside { on_our_thread: true, ..inside.get() }));
}

/// Whether this thread is one of the library's own threads.
pub(crate) fn on_our_thread() -> bool {
    OURS.try_with(Cell::get).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_a_callback_comes_back_also_when_that_panics() {
        let at = |depth, before_send| Inside { depth, before_send, on_our_thread: false };
        let seen = calling_before_send(|| (calling_out(inside), inside()));
        assert_eq!(seen, (at(2, true), at(1, true)));
        let seen = calling_out(|| (calling_before_send(inside), inside()));
        assert_eq!(seen, (at(2, true), at(1, false)));
        assert_eq!(inside(), Inside::default());
        let panicked = std::panic::catch_unwind(|| calling_before_send(|| panic!("in a hook")));
        assert!(panicked.is_err() && inside() == Inside::default());
    }

    #[test]
    fn on_our_threads_captures_are_accepted_in_callbacks_only() {
        let refused = || (inside().refuses_captures(), calling_out(|| inside().refuses_captures()));
        assert_eq!(refused(), (false, false));
        let seen = std::thread::spawn(move || {
            this_thread_is_ours();
            (refused(), calling_out(|| calling_out(|| inside().refuses_captures())), refused())
        });
        assert_eq!(seen.join().unwrap(), ((true, false), true, (true, false)));
    }

    #[test]
    fn a_panic_payload_may_panic_when_it_is_dropped() {
        struct Spiteful;
        impl Drop for Spiteful {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        assert_eq!(caught(|| 1), Some(1));
        assert_eq!(caught(|| std::panic::panic_any(Spiteful)), None);
    }
}
