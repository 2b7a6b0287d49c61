//! Feature flags: what is on for whom.

mod answer;
mod inconclusive;
mod property;
mod subject;
mod value;

pub(crate) use answer::{Answer, Evaluated, Failure};
pub use inconclusive::Inconclusive;
pub(crate) use property::{Filter, MatchingVersion};
pub use subject::FlagContext;
pub use value::FlagValue;
