//! Flags on captured events.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::snapshot::FeatureFlags;
use crate::event::Event;
use crate::record::Pairs;

impl Event {
    /// Says which flags its person had: `$feature/<key>` for each flag of the snapshot, and `$active_feature_flags` with those that are
    /// on. What the event says of a flag itself stays. No request, and no read: give it
    /// [`only_accessed`](FeatureFlags::only_accessed) or [`only`](FeatureFlags::only) to say less.
    ///
    /// This is what `send_feature_flags` is in other PostHog libraries, without a request from within a capture. Who has no snapshot gives
    /// it [`Client::known_flags`](crate::Client::known_flags).
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use posthog::Event;
    /// use std::time::Duration;
    ///
    /// let flags = client.evaluate_flags("user_1").wait(Duration::from_secs(4)).unwrap();
    /// client.capture(Event::new("checkout_shown", "user_1").flags(&flags));
    /// ```
    pub fn flags(mut self, flags: &FeatureFlags) -> Self {
        if flags.is_empty() {
            return self;
        }
        let mut said: BTreeMap<String, Value> =
            flags.values().map(|(key, flag)| (format!("$feature/{key}"), json!(flag.value))).collect();
        let active: Vec<&str> =
            flags.values().filter(|(_, flag)| flag.value.is_enabled()).map(|(key, _)| key).collect();
        if !active.is_empty() {
            said.insert("$active_feature_flags".to_owned(), json!(active));
        }
        // Names and values of a map of texts: nothing in it cannot be encoded.
        if let Ok(pairs) = Pairs::of(&said) {
            self.add_absent(&pairs);
        }
        self
    }
}
