//! Knowing that we were called back: from a hook of ours, from a log line of ours.
//!
//! An application may capture from inside `before_send`, from a hook that hears of diagnostics, or from a log layer that hears our own
//! warnings. The first such capture is taken; one from inside that is refused, or it would never end. What is captured inside
//! `before_send` itself is not shown to `before_send` again; everything else is, for a hook that removes secrets has to see it all.
//!
//! On threads of ours none is taken outside of such a callback: there it can only come from a line that a package below us logs, of a
//! connection that it makes or a name that it looks up, and each request would be the cause of the next, for ever.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Where this thread is. One cell: each capture looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inside {
    /// How many of our callbacks it is inside.
    pub(crate) depth: u32,
    /// One of them is a `before_send` hook.
    pub(crate) before_send: bool,
    /// The thread is one of ours, or of our runtime: outside of callbacks the program has nothing to say there.
    pub(crate) on_our_thread: bool,
}

impl Inside {
    /// Whether what is captured here is refused, or it would never end.
    #[inline]
    pub(crate) fn refuses_captures(self) -> bool {
        self.depth > 1 || (self.on_our_thread && self.depth == 0)
    }
}

thread_local! {
    static INSIDE: Cell<Inside> = const { Cell::new(Inside { depth: 0, before_send: false, on_our_thread: false }) };
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// Which callbacks of ours this thread is inside.
pub(crate) fn inside() -> Inside {
    INSIDE.try_with(Cell::get).unwrap_or_default()
}

/// Runs code that is not ours (a hook, a log line) with the depth raised.
pub(crate) fn calling_out<T>(call: impl FnOnce() -> T) -> T {
    going_into(Inside { depth: inside().depth.saturating_add(1), ..inside() }, call)
}

/// Runs a `before_send` hook, which is not shown what it captures itself.
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

/// Runs code that is not ours where it must not take us along: `None` if it panicked.
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(value) => Some(value),
        Err(payload) => {
            // What was thrown is not ours either, and may panic once more while it is dropped.
            if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(again);
            }
            None
        }
    }
}

/// Marks this thread as one of ours: waiting on it for what it has to do itself would never end.
pub(crate) fn this_thread_is_ours() {
    let _ = OURS.try_with(|ours| ours.set(true));
    this_thread_runs_packages();
}

/// Marks a thread of our runtime, on which packages below us log; it may wait.
pub(crate) fn this_thread_runs_packages() {
    let _ = INSIDE.try_with(|inside| inside.set(Inside { on_our_thread: true, ..inside.get() }));
}

/// Whether this thread is one of ours.
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
    fn on_our_threads_the_program_is_listened_to_in_callbacks_only() {
        let refused = || (inside().refuses_captures(), calling_out(|| inside().refuses_captures()));
        assert_eq!(refused(), (false, false));
        let seen = std::thread::spawn(move || {
            this_thread_is_ours();
            (refused(), calling_out(|| calling_out(|| inside().refuses_captures())), refused())
        });
        assert_eq!(seen.join().unwrap(), ((true, false), true, (true, false)));
    }

    #[test]
    fn what_is_thrown_may_panic_when_it_is_dropped() {
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
