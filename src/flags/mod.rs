//! Feature flags: what is on for whom. Answers; who asks, and what is told of the answers, is the client's part.
//!
//! ```text
//! FlagContext --> local/       by definitions/, whose conditions are property/      no request, no wait
//!             --> cache.rs     what PostHog answered for the same context lately     no request
//!             --> remote/      one request, on the delivery's runtime                up to three seconds
//!                  all three --> merge.rs --> Answer
//! loader/ --> definitions, polled, from the program's own cache, or kept in the store over a restart
//! ```
//!
//! Rules
//!
//! * A value is what PostHog itself would answer, or there is none: what only PostHog knows is [`Inconclusive`] here, and asked for there.
//! * What was evaluated here is never overwritten by what PostHog answers to the same question: it is at most one poll older.
//! * An answer that fails takes nothing away. What was known before is better than nothing (`cache.rs`), and says that it is old.
//! * Everything that grows has a bound and gives up what was not used for longest: answers (`cache.rs`), reads that were told
//!   (`called.rs`), keys that nobody knows (`missing.rs`), requests under way.
//! * Everything that comes from outside, definitions, answers, a program's provider, what lies in the store, may be anything: what
//!   cannot be read is left out and named, flag by flag, and never stands for `false`.
//! * Nobody waits for a refresh: definitions are an immutable snapshot behind an atomic pointer.
//! * No floor below knows of flags but the store, which keeps some bytes for them.
//!
//! Here are values (`value.rs`), whom they are for (`subject.rs`, with what `overrides.rs` adds and the key `context_key.rs` makes of it)
//! and the common form of what is known (`answer.rs`).

mod answer;
mod cache;
#[cfg(test)]
mod cache_tests;
mod called;
mod context_key;
mod definitions;
mod inconclusive;
pub(crate) mod loader;
mod local;
mod merge;
mod missing;
mod overrides;
mod property;
pub(crate) mod remote;
mod subject;
mod value;

pub(crate) use answer::{Answer, Evaluated, Failure};
pub(crate) use cache::{FlagCache, Waiter};
pub(crate) use called::CalledTracker;
pub use definitions::ParseFlagsError;
pub use inconclusive::Inconclusive;
pub(crate) use loader::LoadedFlags;
pub use loader::{
    AsyncFlagDefinitionProvider, FlagDefinitionProvider, FlagDefinitions, FlagDefinitionsError, FlagDefinitionsState,
    ProviderError, ProviderFuture,
};
pub use local::{LocalFlags, LocalValue};
pub(crate) use merge::merge;
pub(crate) use missing::KnownMissing;
pub(crate) use overrides::Overrides;
pub(crate) use property::{Filter, MatchingVersion};
pub(crate) use remote::{Question, RemoteOptions};
pub use subject::FlagContext;
pub use value::FlagValue;
