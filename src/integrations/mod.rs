//! Integrations with other libraries, each behind a cargo feature that is off by default.
//!
//! An integration is a thin layer over the public API: a program can do the same without it. A feature only adds; it
//! never changes the behaviour of the library. An integration that serves a request neither fails nor delays it, and
//! leaves its response as it is.
//!
//! | feature | module | for |
//! |---|---|---|
//! | `tower` | `tower` | a [`Context`](crate::Context) for each HTTP request, with axum, tonic, hyper and others |
//!
//! To use one, enable its feature.

#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub mod tower;
