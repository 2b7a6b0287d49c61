//! What a flag is for somebody.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// What a flag is for somebody: on, off, or the variant of a flag that has several.
///
/// ```
/// use posthog::FlagValue;
///
/// let value = FlagValue::Variant("blue".into());
/// assert!(value.is_enabled() && value == "blue");
/// assert!(!FlagValue::Boolean(false).is_enabled());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FlagValue {
    /// A flag without variants.
    Boolean(bool),
    /// The key of a variant.
    Variant(String),
}

impl FlagValue {
    /// On, or a variant whose key is not empty.
    pub fn is_enabled(&self) -> bool {
        match self {
            FlagValue::Boolean(on) => *on,
            FlagValue::Variant(key) => !key.is_empty(),
        }
    }

    /// The key of the variant, if it is one.
    pub fn variant(&self) -> Option<&str> {
        match self {
            FlagValue::Boolean(_) => None,
            FlagValue::Variant(key) => Some(key),
        }
    }

    /// What PostHog says a flag is; `None` for what no flag can be.
    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(on) => Some(FlagValue::Boolean(*on)),
            Value::String(key) => Some(FlagValue::Variant(key.clone())),
            _ => None,
        }
    }
}

impl From<bool> for FlagValue {
    fn from(on: bool) -> Self {
        FlagValue::Boolean(on)
    }
}

impl From<&str> for FlagValue {
    fn from(key: &str) -> Self {
        FlagValue::Variant(key.to_owned())
    }
}

impl From<String> for FlagValue {
    fn from(key: String) -> Self {
        FlagValue::Variant(key)
    }
}

impl PartialEq<bool> for FlagValue {
    fn eq(&self, other: &bool) -> bool {
        matches!(self, FlagValue::Boolean(on) if on == other)
    }
}

impl PartialEq<str> for FlagValue {
    fn eq(&self, other: &str) -> bool {
        self.variant() == Some(other)
    }
}

impl PartialEq<&str> for FlagValue {
    fn eq(&self, other: &&str) -> bool {
        self.variant() == Some(*other)
    }
}

/// `true`, `false`, or the variant's key.
impl fmt::Display for FlagValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlagValue::Boolean(on) => write!(f, "{on}"),
            FlagValue::Variant(key) => f.write_str(key),
        }
    }
}

/// A bool or a string, as in PostHog's properties.
impl Serialize for FlagValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            FlagValue::Boolean(on) => serializer.serialize_bool(*on),
            FlagValue::Variant(key) => serializer.serialize_str(key),
        }
    }
}
