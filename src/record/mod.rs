//! One event as bytes.
//!
//! PLACEHOLDER PAGE: written by whoever fills this folder.

pub(crate) mod frame;
