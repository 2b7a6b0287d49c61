//! Integrations with other libraries, each behind a cargo feature that is off by default.
//!
//! An integration is a thin layer over the public API: a program can do the same without it. A feature only adds; it
//! never changes the behaviour of the library. An integration that serves a request neither fails nor delays it, and
//! leaves its response as it is.
//!
//! | feature | module | for |
//! |---|---|---|
//! | `log` | `log` | a logger for the crate `log`: errors become exceptions, other records breadcrumbs |
//! | `tracing` | `tracing` | a layer for `tracing-subscriber`: errors become exceptions, other events breadcrumbs |
//! | `tower` | `tower` | a [`Context`](crate::Context) for each HTTP request, and exceptions for failed requests, with axum, tonic, hyper and others |
//!
//! To use one, enable its feature.

#[cfg(any(feature = "log", feature = "tracing"))]
mod lines;
#[cfg(feature = "log")]
#[cfg_attr(docsrs, doc(cfg(feature = "log")))]
pub mod log;
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub mod tower;
#[cfg(feature = "tracing")]
#[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
pub mod tracing;
