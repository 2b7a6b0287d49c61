//! PostHog for daemons.

mod client;
mod clock;
mod config;
mod crash_point;
mod delivery;
mod diagnostics;
mod disk;
mod entropy;
mod error;
mod event;
mod journal;
mod limits;
mod record;
mod reentry;
mod shard;
mod store;
mod transport;
mod worker;

pub use client::{Client, DeadLetter, DeliveryPhase, DropReason, Mode, Outcome, Receipt, Stats, capture, client, init};
pub use config::{Compression, Config, Protocol};
pub use delivery::{Delivery, Verdict};
pub use diagnostics::Diagnostic;
pub use error::Error;
pub use event::Event;
pub use worker::{Endpoint, FlushReport, Overflow, Pending, PendingFuture, PersistError, ShutdownReport, WaitTimeout};

/// The places at which the crash tests can have a process die.
#[cfg(feature = "__crash_points")]
#[doc(hidden)]
pub fn __crash_point_names() -> &'static [&'static str] {
    crash_point::NAMES
}
