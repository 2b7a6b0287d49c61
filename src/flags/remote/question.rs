//! The request: whom flags are to be evaluated for, as PostHog wants it said.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Whom PostHog is to evaluate flags for: a context in which everything is settled, overrides included.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Question {
    pub(crate) distinct_id: String,
    pub(crate) device_id: Option<String>,
    pub(crate) groups: BTreeMap<String, String>,
    pub(crate) person_properties: Map<String, Value>,
    /// By group type.
    pub(crate) group_properties: BTreeMap<String, Map<String, Value>>,
    pub(crate) disable_geoip: bool,
    /// `None`: all flags.
    pub(crate) flag_keys: Option<Vec<String>>,
    /// Is put even if PostHog is taken to be down. No part of the request.
    pub(crate) insists: bool,
}

impl Question {
    /// The body of the request.
    pub(super) fn body(&self, token: &str) -> Vec<u8> {
        // Not `api_key` as well: to PostHog they are two names of one field, which it takes once.
        let mut body = json!({
            "token": token,
            "distinct_id": self.distinct_id,
            "groups": self.groups,
            "person_properties": self.person_properties,
            "group_properties": self.group_properties,
            "geoip_disable": self.disable_geoip,
        });
        if let Some(device_id) = &self.device_id {
            body["device_id"] = json!(device_id);
        }
        if let Some(keys) = &self.flag_keys {
            body["flag_keys_to_evaluate"] = json!(keys);
        }
        body.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(question: &Question) -> Value {
        serde_json::from_slice(&question.body("phc_x")).unwrap()
    }

    #[test]
    fn what_is_not_known_is_said_to_be_empty_and_only_keys_and_device_are_left_out() {
        let question = Question { distinct_id: "user_1".into(), ..Question::default() };
        let expected = json!({
            "token": "phc_x", "distinct_id": "user_1", "groups": {}, "person_properties": {}, "group_properties": {},
            "geoip_disable": false,
        });
        assert_eq!(said(&question), expected);
    }

    #[test]
    fn everything_that_is_known_is_said() {
        let question = Question {
            distinct_id: "user_1".into(),
            device_id: Some("device_1".into()),
            groups: [("company".into(), "acme".into())].into(),
            person_properties: Map::from_iter([("plan".into(), json!("pro"))]),
            group_properties: [("company".into(), Map::from_iter([("seats".into(), json!(3))]))].into(),
            disable_geoip: true,
            flag_keys: Some(vec!["new-ui".into()]),
            insists: true,
        };
        let expected = json!({
            "token": "phc_x", "distinct_id": "user_1", "device_id": "device_1", "groups": {"company": "acme"},
            "person_properties": {"plan": "pro"}, "group_properties": {"company": {"seats": 3}}, "geoip_disable": true,
            "flag_keys_to_evaluate": ["new-ui"],
        });
        assert_eq!(said(&question), expected);
        let none = Question { flag_keys: Some(Vec::new()), ..question };
        assert_eq!(said(&none)["flag_keys_to_evaluate"], json!([]), "no keys are not all keys");
    }
}
