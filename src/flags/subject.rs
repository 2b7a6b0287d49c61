//! Whom flags are evaluated for, and how.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

/// Whom flags are evaluated for, and how. A distinct id alone will do: every call that takes one takes a `&str` or `String` as well.
///
/// ```
/// use posthog::FlagContext;
///
/// let context = FlagContext::new("user_1")
///     .person_property("plan", "pro")
///     .group("company", "acme")
///     .group_property("company", "tier", "gold");
/// # let _ = context;
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct FlagContext {
    /// `None`: whoever the request that is being served is for.
    pub(crate) distinct_id: Option<String>,
    pub(crate) device_id: Option<String>,
    pub(crate) groups: BTreeMap<String, String>,
    pub(crate) person_properties: Map<String, Value>,
    /// By group type.
    pub(crate) group_properties: BTreeMap<String, Map<String, Value>>,
    /// `None`: all flags.
    pub(crate) flag_keys: Option<Vec<String>>,
    /// `None`: as the client is configured.
    pub(crate) only_locally: Option<bool>,
    /// `None`: as the client is configured.
    pub(crate) disable_geoip: Option<bool>,
    /// Asks PostHog whatever is known.
    pub(crate) is_remote: bool,
    /// Reads are told with `$feature_flag_called`.
    pub(crate) is_silent: bool,
    /// Names of properties whose values could not be encoded.
    pub(crate) unserializable: Vec<String>,
}

impl FlagContext {
    /// For a person, by distinct id.
    pub fn new(distinct_id: impl Into<String>) -> Self {
        Self { distinct_id: Some(distinct_id.into()), ..Self::default() }
    }

    /// For whomever the request is that is being served, see [`Context`](crate::Context). Outside of one there is nobody to evaluate flags
    /// for, and no flag has a value.
    pub fn from_current() -> Self {
        Self::default()
    }

    /// The device, for flags that are rolled out by device.
    pub fn device_id(mut self, device_id: impl Into<String>) -> Self {
        self.device_id = Some(device_id.into());
        self
    }

    /// A group that the person belongs to, by type and key.
    pub fn group(mut self, group_type: impl Into<String>, key: impl Into<String>) -> Self {
        self.groups.insert(group_type.into(), key.into());
        self
    }

    /// A property of the person, for conditions on it. Counts more than what was set with
    /// [`Client::set_person_properties_for_flags`](crate::Client::set_person_properties_for_flags).
    pub fn person_property(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        let name = name.into();
        match serde_json::to_value(value) {
            Ok(value) => drop(self.person_properties.insert(name, value)),
            Err(_) => self.unserializable.push(name),
        }
        self
    }

    /// A property of the person's group of that type.
    pub fn group_property(
        mut self,
        group_type: impl Into<String>,
        name: impl Into<String>,
        value: impl Serialize,
    ) -> Self {
        let name = name.into();
        match serde_json::to_value(value) {
            Ok(value) => drop(self.group_properties.entry(group_type.into()).or_default().insert(name, value)),
            Err(_) => self.unserializable.push(name),
        }
        self
    }

    /// These flags alone. No keys: no flags. Default: all.
    pub fn only_keys<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.flag_keys = Some(keys.into_iter().map(Into::into).collect());
        self
    }

    /// Asks nobody: what cannot be evaluated here has no value. Default: as
    /// [`Config::only_evaluate_flags_locally`](crate::Config::only_evaluate_flags_locally) says.
    pub fn only_locally(mut self, only: bool) -> Self {
        self.only_locally = Some(only);
        self
    }

    /// Asks PostHog even if the flag could be evaluated here or is in the cache. Default: off.
    pub fn ask_posthog(mut self, on: bool) -> Self {
        self.is_remote = on;
        self
    }

    /// Has PostHog not look up where this machine is. Default: as [`Config::disable_geoip`](crate::Config::disable_geoip) says.
    pub fn disable_geoip(mut self, on: bool) -> Self {
        self.disable_geoip = Some(on);
        self
    }

    /// Whether the first read of a flag's value captures `$feature_flag_called`, by which experiments are counted. Default: on.
    pub fn send_feature_flag_events(mut self, on: bool) -> Self {
        self.is_silent = !on;
        self
    }
}

impl From<&str> for FlagContext {
    fn from(distinct_id: &str) -> Self {
        Self::new(distinct_id)
    }
}

impl From<String> for FlagContext {
    fn from(distinct_id: String) -> Self {
        Self::new(distinct_id)
    }
}

impl From<&String> for FlagContext {
    fn from(distinct_id: &String) -> Self {
        Self::new(distinct_id.as_str())
    }
}

/// Who evaluates flags more than once for somebody keeps the context.
impl From<&FlagContext> for FlagContext {
    fn from(context: &FlagContext) -> Self {
        context.clone()
    }
}
