//! A net under every call into the database: its panics become errors.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::StoreError;

/// Makes a call that may panic. After a panic nothing the call touched may be used again but to be closed.
pub(super) fn guarded<T>(call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let _inside = Inside::enter();
    // What a panic leaves behind is never looked at: the caller latches the store, and a latched store only closes its database.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
        let message = match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => payload.downcast_ref::<&str>().copied().unwrap_or("no message").to_owned(),
        };
        Err(StoreError::Panicked { message })
    })
}

/// Whether this thread is inside a guarded call. A panic hook runs before the panic is caught, and must not report as the
/// program's end what the store is about to handle.
pub(crate) fn inside_guarded_call() -> bool {
    DEPTH.try_with(|depth| depth.get() > 0).unwrap_or(false)
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

struct Inside;

impl Inside {
    fn enter() -> Self {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get().saturating_add(1)));
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get().saturating_sub(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_words() {
        for text in ["from a literal", "from a String"] {
            let outcome: Result<(), _> = guarded(|| {
                assert!(inside_guarded_call());
                if text.ends_with("String") {
                    std::panic::panic_any(text.to_owned())
                } else {
                    std::panic::panic_any(text)
                }
            });
            assert!(matches!(outcome, Err(StoreError::Panicked { message }) if message == text));
            assert!(!inside_guarded_call());
        }
    }
}
