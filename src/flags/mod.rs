//! Feature flags: what is on for whom.

mod answer;
mod definitions;
mod inconclusive;
mod local;
mod property;
mod subject;
mod value;

pub(crate) use answer::{Answer, Evaluated, Failure};
pub use definitions::ParseFlagsError;
pub use inconclusive::Inconclusive;
pub(crate) use local::LocalAnswer;
pub use local::{LocalFlags, LocalValue};
pub(crate) use property::{Filter, MatchingVersion};
pub use subject::FlagContext;
pub use value::FlagValue;
