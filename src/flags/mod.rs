//! Feature flags: evaluating them locally or requesting their values from PostHog.
//!
//! ```text
//! FlagContext --> local/     evaluated against loaded definitions      no request, no wait
//!             --> cache.rs   PostHog's earlier response                no request
//!             --> remote/    one request, on the delivery thread       up to 3 s
//!                  combined by answer.rs (merge) --> Answer
//!
//! loader/ --> definitions: polled from PostHog, read from the program's provider,
//!             or kept in the store by an earlier process
//! ```
//!
//! A flag gets its value from one of two sources. If definitions are loaded, it is evaluated locally. If they cannot
//! decide it ([`InconclusiveReason`]), PostHog is asked. Both sources produce an [`Answer`]: what is known of each flag
//! ([`Evaluated`]), and whether the whole is complete (errors, exceeded quota, a [`Failure`]). A flag that an answer
//! does not contain has no value; no value is ever made up.
//!
//! * `context.rs`: [`FlagContext`], for whom flags are evaluated, and the client's default properties ([`Overrides`]).
//! * `answer.rs`: [`FlagValue`] and the other results of an evaluation.
//! * `local/`: parses definitions and evaluates flags against them.
//! * `loader/`: loads definitions, refreshes them, and keeps them for the next process.
//! * `remote/`: requests values from PostHog, and payloads of remote config flags.
//! * `cache.rs`: caches PostHog's responses and lets concurrent callers share one request. `missing.rs`: keys that do
//!   not exist.
//! * `called.rs`: deduplicates `$feature_flag_called`.
//!
//! `client/flags/` combines these parts. `pipeline/` provides the runtime, the transport and the store.
//!
//! # Rules
//!
//! * Nothing here captures events or blocks a caller. The only user code that runs here is a provider of definitions,
//!   on a thread of its own.
//! * Everything that grows with use is bounded: cached responses, captured reads, groups, missing keys, waiting
//!   callers.
//! * In doubt a flag has no value. A flag that cannot be parsed or compared does not affect the others.
//! * A failed request removes nothing: earlier values stay in use and are marked as old.
//! * Readers never wait for a refresh: definitions are an immutable snapshot behind an atomic pointer.

mod answer;
mod cache;
mod called;
mod context;
pub(crate) mod loader;
mod local;
mod missing;
pub(crate) mod remote;

pub(crate) use answer::{Answer, Evaluated, Failure, merge};
pub use answer::{FlagValue, InconclusiveReason};
pub(crate) use cache::{FlagCache, Waiter};
pub(crate) use called::CalledTracker;
pub use context::FlagContext;
pub(crate) use context::Overrides;
pub use loader::{
    AsyncFlagDefinitionProvider, FlagDefinitionProvider, FlagDefinitions, FlagDefinitionsError, FlagDefinitionsState,
    ProviderError, ProviderFuture,
};
pub use local::{LocalFlags, LocalValue, ParseFlagsError};
pub(crate) use missing::{Generation, MissingKeys};
pub use remote::RemoteConfigError;
pub(crate) use remote::{RemoteFlags, RemoteOptions};
