//! PostHog for daemons.

#![cfg_attr(not(test), allow(dead_code, reason = "floors are joined one by one"))]

mod clock;
mod crash_point;
mod delivery;
mod disk;
mod record;
mod store;
mod transport;
