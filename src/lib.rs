//! PostHog for daemons.

#![cfg_attr(not(test), allow(dead_code, reason = "floors are joined one by one"))]

mod clock;
mod crash_point;
mod disk;
mod entropy;
mod journal;
mod record;
