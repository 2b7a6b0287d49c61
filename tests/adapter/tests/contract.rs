//! Tests the adapter against a local PostHog stand-in: our own checks of the rules that PostHog's harness tests.
//!
//! Each check drives the real binary over HTTP, as the harness does, and examines the requests that the stand-in
//! received. The checks run one after another on one instance, which shows state that an earlier check leaves behind,
//! and many at once on separate instances.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helper functions")]

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
