//! PostHog for daemons.

#![allow(dead_code, unused_imports, reason = "floors are joined one by one")]

mod clock;
mod event;
mod record;

pub use event::Event;
