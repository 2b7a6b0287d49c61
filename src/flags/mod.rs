//! Feature flags: what is on for whom.

mod answer;
mod cache;
#[cfg(test)]
mod cache_tests;
mod called;
mod context_key;
mod inconclusive;
mod merge;
mod missing;
mod overrides;
pub(crate) mod remote;
mod subject;
mod value;

pub(crate) use answer::{Answer, Evaluated, Failure};
pub(crate) use cache::{FlagCache, Flight, Waiter};
pub(crate) use called::CalledTracker;
pub use inconclusive::Inconclusive;
pub(crate) use merge::{is_wanted, merge};
pub(crate) use missing::KnownMissing;
pub(crate) use overrides::Overrides;
pub(crate) use remote::{Question, RemoteOptions};
pub use subject::FlagContext;
pub use value::FlagValue;
