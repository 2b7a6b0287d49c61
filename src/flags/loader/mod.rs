//! The loader of flag definitions.
//!
//! A [`Loader`] (`handle.rs`) is what callers have. It holds the current definitions behind an atomic pointer: a reader
//! never waits for a load, and sees the old set or the new one, never a mix. [`serve`] (`task.rs`) is its task, on the
//! delivery thread's runtime. Without a secret key and a provider there is no loader, and nothing is polled. `fetch.rs`
//! makes one request, `provider.rs` calls the program's provider, and `kept.rs` has the form in which definitions are
//! kept.
//!
//! * One load at a time. The first begins at once, the next about an interval after the end of the one before. A caller
//!   that requests a load joins the one under way, or ends the wait for the next one, unless the server asked for that
//!   wait (`Retry-After`).
//! * 200 replaces the definitions, if the body is complete and can be parsed. 304 confirms them. 401, 402 and 403 clear
//!   them, for the next process too, but only with an error object of PostHog in the body: a revoked key must not stay
//!   in use, and a proxy must not clear anything. Any other response leaves the definitions in use, and their age
//!   grows.
//! * A reset by the program clears the definitions and loads them again. The result of a load that began before is
//!   discarded.
//! * With a provider, the provider decides whether PostHog is asked or the provider is read. It is shut down once.
//! * Changed definitions are encoded here and written by the pipeline, which owns the store. The next process evaluates
//!   with them before its first request, and asks only for newer ones (`ETag`).
//! * Reported once per outage: that loading fails, and again if the kind of failure changes; that it works again; that
//!   an operation of the provider fails. Once per document: flags that cannot be parsed.
//! * The secret key is in one header of the request and nowhere else: not in errors, not in `Debug` output, not on
//!   disk.

#[cfg(test)]
mod fake;
mod fetch;
mod handle;
mod kept;
mod provider;
#[cfg(test)]
mod provider_tests;
mod task;
#[cfg(test)]
mod task_tests;

pub(crate) use fetch::{LoaderOptions, SecretKey, percent_encoded};
pub(crate) use handle::Loader;
pub use handle::{FlagDefinitionsError, FlagDefinitionsState};
pub(crate) use kept::decode;
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use kept::keep_any as keep_any_document;
pub(crate) use provider::Provider;
pub use provider::{
    AsyncFlagDefinitionProvider, FlagDefinitionProvider, FlagDefinitions, ProviderError, ProviderFuture,
};
pub(crate) use task::{KEEP, LoaderParts, serve};
