//! The locks and flags whose use the tests named `models` explore: those of the standard library, or, with the internal
//! feature `__models`, those of shuttle, which runs the threads of a test in thousands of orders. It knows no weak
//! memory: every access is sequentially consistent.

#[cfg(feature = "__models")]
pub(crate) use shuttle::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU32},
    sync::{Mutex, MutexGuard},
    thread::{sleep, yield_now},
};
#[cfg(not(feature = "__models"))]
pub(crate) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU32},
    sync::{Mutex, MutexGuard},
    thread::{sleep, yield_now},
};

#[cfg(not(feature = "__models"))]
pub(crate) use super::disk::fork::try_lock;

/// Locks a mutex if no thread holds it.
#[cfg(feature = "__models")]
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    use std::sync::TryLockError;
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Held by a model: one of them makes this process look like a forked child, which the others would notice.
#[cfg(all(test, feature = "__models"))]
pub(crate) fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
