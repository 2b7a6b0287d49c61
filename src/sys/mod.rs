//! The outside world behind seams of a few calls, and the numbers that bound it.
//!
//! * [`disk`]: files, mappings, locks, file systems and forks. [`disk::Disk`] is replaced in tests by one that fails.
//! * [`clock`]: wall clock, monotonic clock and time since boot, or a manual clock in tests.
//! * [`entropy`]: random bytes that a forked child does not share with its parent.
//! * [`limits`]: every size and count that the library bounds, and the text that is cut to fit.
//! * [`reentry`]: whether this thread runs a callback of the program, or is a thread of the library.
//! * [`crash_point`]: named places at which the crash tests kill the process; nothing in other builds.
//! * [`wording`]: phrases that several errors and diagnostics share.
//!
//! Nothing here knows of events, queues or requests.

pub(crate) mod ages;
pub(crate) mod backoff;
pub(crate) mod clock;
pub(crate) mod crash_point;
pub(crate) mod disk;
pub(crate) mod entropy;
pub(crate) mod limits;
pub(crate) mod machine;
pub(crate) mod reentry;
pub(crate) mod throttle;
pub(crate) mod wording;
