//! The time that the engine's timers go by: tokio's, whose timers it sleeps by. With the feature `testing` it may be a clock that
//! stands still; then nothing is slept for, and whoever moves the clock wakes the engine.

use std::future::pending;
use std::time::Instant;

use crate::sys::clock::Clock;

#[cfg(feature = "testing")]
thread_local! {
    /// The clock of the delivery that has this thread, if that is one that stands still.
    static STILL: std::cell::OnceCell<std::sync::Arc<crate::sys::clock::still::StillTime>> = const { std::cell::OnceCell::new() };
}

/// Timers of this thread go by `clock`, if that is one that stands still.
pub(super) fn go_by(clock: &Clock) {
    #[cfg(feature = "testing")]
    if let Clock::Still(still) = clock {
        let _ = STILL.with(|known| known.set(std::sync::Arc::clone(still)));
    }
    let _ = clock;
}

/// Monotonic time; in tests of the engine tokio's own may stand still.
pub(super) fn now() -> Instant {
    #[cfg(feature = "testing")]
    if let Some(now) = STILL.with(|still| still.get().map(|still| still.now())) {
        return now;
    }
    tokio::time::Instant::now().into_std()
}

/// Sleeps until then, if there is such a time.
pub(super) async fn sleep_until(at: Option<Instant>) {
    #[cfg(feature = "testing")]
    if STILL.with(|still| still.get().is_some()) {
        return pending().await;
    }
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}
