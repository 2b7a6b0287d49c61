//! A net under every call into the database: its panics become errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::StoreError;

/// Makes a call that may panic. After a panic nothing the call touched may be used again but to be closed.
pub(super) fn guarded<T>(call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // What a panic leaves behind is never looked at: the caller latches the store, and a latched store only closes its database.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| {
        let message = match payload.downcast::<String>() {
            Ok(text) => *text,
            Err(payload) => payload.downcast_ref::<&str>().copied().unwrap_or("no message").to_owned(),
        };
        Err(StoreError::Panicked { message })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_its_words() {
        for text in ["from a literal", "from a String"] {
            let outcome: Result<(), _> = guarded(|| {
                if text.ends_with("String") {
                    std::panic::panic_any(text.to_owned())
                } else {
                    std::panic::panic_any(text)
                }
            });
            assert!(matches!(outcome, Err(StoreError::Panicked { message }) if message == text));
        }
    }
}
