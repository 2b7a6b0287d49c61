//! Feature flags: what is on for whom.

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
