//! PostHog's requirements for server SDKs, one test each, against the real client and a stand-in for PostHog.
//!
//! A test is named by its requirement. `docs/conformance.md` has the table of all requirements, with deviations and
//! their reasons.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helper functions")]

mod ai;
#[path = "../outside/apart.rs"]
#[allow(dead_code, reason = "shared with another target, which uses the rest")]
mod apart;
mod before_send;
mod callbacks;
mod capture;
mod context;
mod crash;
mod evaluate_flags;
mod exc;
mod exm;
#[path = "../outside/fixture.rs"]
#[allow(dead_code, reason = "shared with another target, which uses the rest")]
mod fixture;
mod flag_cache;
mod flag_called;
#[cfg(feature = "testing")]
mod flag_definitions;
mod flag_getters;
mod flag_properties;
#[cfg(feature = "testing")]
mod flag_provider;
#[cfg(feature = "testing")]
mod flag_requests;
mod flag_scenario;
mod http;
mod identity;
#[cfg(feature = "testing")]
mod local_flags;
mod queue;
mod scenario;
#[cfg(feature = "tower")]
mod tower;
