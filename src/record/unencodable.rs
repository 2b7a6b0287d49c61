//! What is wrong with a value that cannot be part of a record.

use std::fmt::Display;

use serde::ser;

use super::MAX_DEPTH;
use super::decode::Malformed;

/// Why a value cannot be part of a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unencodable {
    /// Deeper than [`MAX_DEPTH`].
    #[error("it nests more than {MAX_DEPTH} levels deep; send a flatter value")]
    TooDeep,
    /// JSON's keys are strings.
    #[error("it has a map whose keys are not strings, integers or booleans; convert the keys first")]
    MapKey,
    /// Keys without values, swallowed errors: serde's contract broken.
    #[error("its Serialize implementation breaks serde's rules; correct it")]
    Misshapen(#[source] Malformed),
    /// What the value's own `Serialize` said.
    #[error("its Serialize implementation failed: {0}")]
    Refused(String),
    /// Several properties at once have names.
    #[error("it is neither a map, a struct nor a sequence of pairs of a name and a value; give one of these")]
    NotPairs,
    /// A group is named by a string or a number.
    #[error("a group's key is a string or a number; give one of these")]
    NotAKey,
}

impl ser::Error for Unencodable {
    #[cold]
    fn custom<T: Display>(message: T) -> Self {
        Unencodable::Refused(message.to_string())
    }
}

impl From<Malformed> for Unencodable {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::MapKey => Unencodable::MapKey,
            Malformed::TooDeep => Unencodable::TooDeep,
            other => Unencodable::Misshapen(other),
        }
    }
}
