//! Feature flags: what is on for whom.

mod answer;
mod inconclusive;
pub(crate) mod loader;
mod local;
pub(crate) mod remote;
mod subject;
mod value;

pub(crate) use answer::{Answer, Evaluated, Failure};
pub use inconclusive::Inconclusive;
pub(crate) use loader::LoadedFlags;
pub use loader::{
    AsyncFlagDefinitionProvider, FlagDefinitionProvider, FlagDefinitions, FlagDefinitionsError, FlagDefinitionsState,
    ProviderError, ProviderFuture,
};
pub use local::{LocalFlags, ParseFlagsError};
pub(crate) use remote::{Question, RemoteOptions};
pub use subject::FlagContext;
pub use value::FlagValue;
