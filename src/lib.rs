//! PostHog for daemons.

#![allow(dead_code, unused_imports, reason = "floors are joined one by one")]

mod clock;
mod crash_point;
mod disk;
mod entropy;
mod event;
mod journal;
mod record;
mod reentry;
mod shard;
mod store;

pub use event::Event;
