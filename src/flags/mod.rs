//! Feature flags: what is on for whom.

mod answer;
mod subject;
mod value;

pub(crate) use answer::{Answer, Evaluated, Failure};
pub use subject::FlagContext;
pub use value::FlagValue;
