//! The outside world behind small interfaces, and the limits of the library.
//!
//! * [`disk`]: files, mappings, locks, file systems and forks. Tests replace [`disk::Disk`] by one whose calls fail.
//! * [`clock`]: wall clock and monotonic clock, or a clock that tests move. [`ages`]: whether stored wall times can be
//!   trusted.
//! * [`machine`]: boot id, uptime, OOM kills, and the memory that a control group leaves to this process.
//! * [`entropy`]: random numbers that a forked child does not share with its parent.
//! * [`backoff`] and [`throttle`]: growing waits between attempts; limits on how often something is done or reported.
//! * [`limits`]: every configurable or fixed bound, and the functions that cut foreign text to fit.
//! * [`reentry`]: whether this thread runs a callback of the program, or is a thread of the library.
//! * [`sync`]: the locks and flags of the journal, the leases and the fork counter, which tests explore.
//! * [`crash_point`]: named places at which the crash tests kill the process; no code in other builds.
//! * [`wording`]: numbers, sizes and times as text for messages.
//!
//! Nothing here knows events, queues or requests.

pub(crate) mod ages;
pub(crate) mod backoff;
pub(crate) mod clock;
pub(crate) mod crash_point;
pub(crate) mod disk;
pub(crate) mod entropy;
pub(crate) mod limits;
pub(crate) mod machine;
pub(crate) mod reentry;
pub(crate) mod sync;
pub(crate) mod throttle;
pub(crate) mod wording;
