//! Feature flags: what is on for whom.
//!
//! ```text
//! FlagContext --> local/       by definitions/, whose conditions are property/      no request, no wait
//!             --> cache.rs     what PostHog answered for the same context lately     no request
//!             --> remote/      one request, on the delivery's runtime                up to three seconds
//!                  all three --> merge.rs --> Answer
//! loader/ --> definitions, polled, from the program's own cache, or kept in the store over a restart
//! ```
//!
//! Two ways lead to a value. Definitions that were loaded before are evaluated here, without asking anybody; what they cannot decide is
//! [`InconclusiveReason`], and PostHog is asked. Both end in an [`Answer`]: for each flag what is known of it ([`Evaluated`]), and how much the
//! whole is worth (errors, want of quota, a [`Failure`]). A flag that is not in it has no value; nothing is ever made up.
//!
//! * `subject.rs`, `value.rs`, `inconclusive.rs`: what callers say and get.
//! * `property/` one condition on one property, `definitions/` what was loaded, `local/` its evaluation.
//! * `loader/` loads definitions, again and again, and keeps them for the next process.
//! * `remote/` asks PostHog, and reads both forms of its answer.
//! * `cache.rs` keeps PostHog's answers by all that they depend on (`context_key.rs`) and lets one ask for many; `missing.rs` knows the
//!   flags that there are not; `merge.rs` puts our values and PostHog's together, ours first.
//! * `plain_number.rs`: numbers as PostHog has them, whatever a crate elsewhere has made of ours.
//! * `overrides.rs`: properties that count for every evaluation; `called.rs`: which reads were told already.
//!
//! # Rules
//!
//! * Nothing here captures, waits for a caller, or runs a program's code, but for providers of definitions, on a thread of their own.
//!   Who puts the parts together is `client/flags/`, and `worker` runs what takes time.
//! * Everything that grows with use has a bound: answers, reads, groups, keys that are missing, callers that wait.
//! * In doubt there is no value: a flag that cannot be read or compared loses itself alone, and is asked for or defaults.
//! * An answer that fails takes nothing away: what was known before is better than nothing, and says that it is old.
//! * Nobody waits for a refresh: definitions are an immutable snapshot behind an atomic pointer.

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
pub(crate) use loader::LoadedFlags;
pub use loader::{
    AsyncFlagDefinitionProvider, FlagDefinitionProvider, FlagDefinitions, FlagDefinitionsError, FlagDefinitionsState,
    ProviderError, ProviderFuture,
};
pub use local::{LocalFlags, LocalValue, ParseFlagsError};
pub(crate) use missing::{KnownMissing, Moment};
pub(crate) use remote::{Question, RemoteOptions};
