//! One condition of a feature flag or a cohort on one property, compiled.

use serde_json::Value;

use crate::clock::WallNanos;

use super::Inconclusive;

/// How `exact` and `is_not` read truth values: what the definitions call `property_matching_version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MatchingVersion {
    /// A filter of nothing but truth values asks whether the property is true.
    One,
    /// `true` is equal to `true` and nothing else.
    Two,
}

/// A condition on one property.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    unusable: Inconclusive,
}

impl Filter {
    /// Compiles a condition. What cannot be used compiles into a filter that is always inconclusive.
    pub(crate) fn compile(_operator: Option<&str>, _value: &Value, _version: MatchingVersion) -> Filter {
        Filter { unusable: Inconclusive::UnknownOperator }
    }

    /// Whether the property, at this time, is as the condition wants it.
    pub(crate) fn matches(&self, _property: Option<&Value>, _now: WallNanos) -> Result<bool, Inconclusive> {
        Err(self.unusable)
    }
}
