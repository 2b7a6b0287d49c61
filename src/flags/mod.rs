//! Feature flags: what is on for whom.

mod answer;
mod definitions;
mod inconclusive;
pub(crate) mod loader;
mod local;
mod property;
pub(crate) mod remote;
mod subject;
mod value;

pub(crate) use answer::{Answer, Evaluated, Failure};
pub use definitions::ParseFlagsError;
pub use inconclusive::Inconclusive;
pub(crate) use loader::LoadedFlags;
pub use loader::{
    AsyncFlagDefinitionProvider, FlagDefinitionProvider, FlagDefinitions, FlagDefinitionsError, FlagDefinitionsState,
    ProviderError, ProviderFuture,
};
pub(crate) use local::LocalAnswer;
pub use local::{LocalFlags, LocalValue};
pub(crate) use property::{Filter, MatchingVersion};
pub(crate) use remote::{Question, RemoteOptions};
pub use subject::FlagContext;
pub use value::FlagValue;
