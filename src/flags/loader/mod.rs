//! Definitions of flags: fetched, kept fresh, and there before anybody was asked.
//!
//! A [`Loader`] is what callers have: the definitions that are evaluated with at the moment behind an atomic pointer, so that no reader
//! ever waits for a load, and sees the old set or the new one and never a mix. [`serve`] is its task, on the delivery's runtime. There is
//! neither where the program has given no secret key and no provider: then nothing is polled and nothing wakes up.
//!
//! # Rules
//!
//! * One load at a time. The first is at once; the next follows an interval later, more or less (`pace.rs`). Who asks for a load while
//!   one is under way is answered by that one; who asks in a pause ends it, unless the server has asked for that pause (`Retry-After`).
//! * `judge.rs` says what an answer means. 200 replaces, if it can be read and is whole. 304 confirms. 401, 402 and 403 clear, if PostHog
//!   says so in its own words: a key that was revoked must not go on being used, by the next process neither. Whatever else happens,
//!   what is loaded stays, and its age is told.
//! * A reset by the program clears in the same way, and loads anew: what a load brings that began before it is not used.
//! * With a provider (`provider.rs`) that decides whether PostHog is asked or the provider read. It is the program's code: it may hang,
//!   fail or panic (`consult.rs`), each wait is bounded, and nothing it does costs definitions that are loaded. Since it may have lost
//!   what it was given, it gets the whole document after each request; so no request names a version then. Its shutdown is called once.
//! * What was loaded is *kept* for the next process when it has changed (`kept.rs`): encoded here, written by whoever has the store. The
//!   next process evaluates with it before its first request, and asks only whether there are newer ones. Should the store lose it
//!   (`kept_is_lost`), it is fetched and kept again.
//! * Told once per episode: that loading fails, and with another kind of failure again; that it works again; that an operation of a
//!   provider fails. Told once per document: flags in it that cannot be read.
//! * The secret key is in one header of a request and nowhere else: not in errors, not in `Debug`, not on the disk.
//! * Time is that of the [`Clock`](crate::sys::clock::Clock), which may stand still.
//!
//! Parts: `mailbox.rs` is the loader from outside, `poller.rs` its task, `fetch.rs` one request, `options.rs` what it is told and tells,
//! `loaded.rs` the public words for its state and its errors.

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

pub(crate) use fetch::{LoaderOptions, SecretKey};
pub use handle::{FlagDefinitionsError, FlagDefinitionsState};
pub(crate) use handle::{LoadedFlags, Loader};
pub(crate) use kept::{Restored, decode};
pub(crate) use provider::Provider;
pub use provider::{
    AsyncFlagDefinitionProvider, FlagDefinitionProvider, FlagDefinitions, ProviderError, ProviderFuture,
};
pub(crate) use task::{Keep, LoaderParts, Notice, serve};
