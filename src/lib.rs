//! PostHog for daemons.

#![cfg_attr(not(test), allow(dead_code, reason = "floors are joined one by one"))]

mod clock;
mod event;
mod record;

pub use event::Event;
#[cfg(test)]
