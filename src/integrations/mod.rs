//! What joins this library to others: each part behind a feature of its own, off by default.
//!
//! # Rules
//!
//! * An integration is a thin layer over the public API: whatever it does, a program can do without it, with another library.
//! * A feature adds; none changes what another means, and none changes the library's own behaviour.
//! * A guest in somebody's request: it never fails it, never delays it, and changes nothing of what it answers.
//!
//! # Parts
//!
//! `tower.rs` (feature `tower`): a layer that serves each HTTP request in a context of its own, for axum, tonic, hyper and whatever else
//! speaks tower.

#[cfg(feature = "tower")]
pub mod tower;
