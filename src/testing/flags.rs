//! [`FlagOverride`]: the value of a flag, as a test wants it.

use serde_json::Value;

use super::harness::Harness;
use crate::flags::FlagValue;

/// The value that [`Harness::override_flag`] gives to a flag, and perhaps its payload, for everyone or for one person.
/// A boolean, a variant's key or a [`FlagValue`] is an override for everyone without a payload.
///
/// ```
/// use posthog::testing::FlagOverride;
///
/// let variant = FlagOverride::new("test").payload(serde_json::json!({"discount": 20})).only_for("user_1");
/// # let _ = variant;
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct FlagOverride {
    value: FlagValue,
    payload: Option<Value>,
    distinct_id: Option<String>,
}

impl FlagOverride {
    /// This value for everyone, without a payload.
    pub fn new(value: impl Into<FlagValue>) -> Self {
        Self { value: value.into(), payload: None, distinct_id: None }
    }

    /// Sets the payload of the value.
    pub fn payload(mut self, payload: impl Into<Value>) -> Self {
        self.payload = Some(payload.into());
        self
    }

    /// Only for the person with this distinct id. It precedes an override for everyone.
    pub fn only_for(mut self, distinct_id: impl Into<String>) -> Self {
        self.distinct_id = Some(distinct_id.into());
        self
    }
}

impl From<bool> for FlagOverride {
    fn from(on: bool) -> Self {
        Self::new(on)
    }
}

impl From<&str> for FlagOverride {
    fn from(variant: &str) -> Self {
        Self::new(variant)
    }
}

impl From<String> for FlagOverride {
    fn from(variant: String) -> Self {
        Self::new(variant)
    }
}

impl From<FlagValue> for FlagOverride {
    fn from(value: FlagValue) -> Self {
        Self::new(value)
    }
}

impl Harness {
    /// Gives a flag this value in every evaluation of the client from now on, whatever its definition and the server
    /// say. If all flags that an evaluation names are overridden, no request is sent. Flags that are not overridden are
    /// evaluated as always. Snapshots that exist do not change.
    ///
    /// A read of an overridden flag captures `$feature_flag_called` as every read does, with `locally_evaluated: true`
    /// and a `$feature_flag_reason` that names the test.
    /// [`Config::send_feature_flag_events`](crate::Config::send_feature_flag_events) turns that off. Definitions that
    /// are read directly ([`Client::local_flags`](crate::Client::local_flags)) are not overridden.
    ///
    /// Corresponds to `overrideFeatureFlags` of other PostHog libraries. Overrides end with the client: a
    /// [`restart`](Self::restart) has none.
    ///
    /// ```
    /// use posthog::testing::{FlagOverride, Harness};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let harness = Harness::new(|config| config)?;
    /// harness.override_flag("new-ui", true);
    /// harness.override_flag("checkout", FlagOverride::new("test").only_for("user_1"));
    /// let flags = harness.client().evaluate_flags("user_1").wait(Duration::from_secs(4))?;
    /// assert!(flags.is_enabled("new-ui") && flags.get("checkout") == Some("test".into()));
    /// harness.clear_flag_overrides();
    /// # Ok(())
    /// # }
    /// ```
    pub fn override_flag(&self, key: impl Into<String>, flag: impl Into<FlagOverride>) {
        let FlagOverride { value, payload, distinct_id } = flag.into();
        self.client().set_test_value(distinct_id, key.into(), value, payload);
    }

    /// Ends the overrides of a flag, for everyone and for each person.
    pub fn clear_flag_override(&self, key: impl AsRef<str>) {
        self.client().clear_test_values(Some(key.as_ref()));
    }

    /// Ends all overrides.
    pub fn clear_flag_overrides(&self) {
        self.client().clear_test_values(None);
    }
}
