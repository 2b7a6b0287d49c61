//! The adapter against a stand-in on loopback: our own checks of the rules that PostHog's harness looks at.
//!
//! Each check drives the real binary over HTTP, as the harness does, and looks at what the stand-in received. The same checks run one
//! after the other on one instance, where whatever an earlier one left behind would show, and many at once on instances of their own.

#![allow(clippy::unwrap_used, reason = "a test may end where it stands, in its helping functions too")]

#[path = "contract/batches.rs"]
mod batches;
#[path = "contract/driver.rs"]
mod driver;
#[path = "contract/flags.rs"]
mod flags;
#[path = "contract/v0.rs"]
mod v0;
#[path = "contract/v1.rs"]
mod v1;
