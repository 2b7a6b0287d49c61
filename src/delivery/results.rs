//! What a V1 endpoint says of each event: `{"results": {"<uuid>": {"result": "ok", "details": ".."}}}`. Pure.
//!
//! Either the whole answer has this form or none of it counts: what a proxy put together, or what was cut off on the way, decides over
//! no event.

use std::collections::HashMap;

use serde_json::Value;
use uuid::Uuid;

use super::outcome::kept;
use crate::sys::limits;

/// What is said of an event that was taken without its person being looked at, `limited` or not.
const WITHOUT_PERSON: &str = "person_processing_disabled";

/// What becomes of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// PostHog took it.
    Taken {
        /// Though there is something about it.
        warning: Option<Warning>,
    },
    /// PostHog never will.
    Refused {
        /// In its words.
        reason: String,
    },
    /// PostHog could not take it this time.
    Again {
        /// In its words.
        reason: String,
    },
}

/// What there is to be told of an event that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Warning {
    /// What PostHog says of it.
    Said(String),
    /// The answer does not mention it.
    NoVerdict,
    /// A result that this version does not know.
    UnknownResult {
        /// Its name.
        result: String,
        /// What is said beside.
        details: String,
    },
}

impl Warning {
    /// Whether one of them stands for both. What is said beside a result is of the event.
    pub(super) fn is_like(&self, other: &Warning) -> bool {
        match (self, other) {
            (Warning::UnknownResult { result: one, .. }, Warning::UnknownResult { result: other, .. }) => one == other,
            _ => self == other,
        }
    }

    /// In one line.
    pub(super) fn text(&self) -> String {
        match self {
            Warning::Said(text) => text.clone(),
            Warning::NoVerdict => "no verdict on it in the answer, which counts as accepted".to_owned(),
            Warning::UnknownResult { result, details } => {
                let colon = if details.is_empty() { "" } else { ": " };
                format!("unknown result {result:?}{colon}{details}, which counts as accepted; update this library")
            }
        }
    }
}

/// The rulings of one answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Results(HashMap<Uuid, Ruling>);

impl Results {
    /// Reads an answer; `None` if it is not of this form.
    pub(super) fn parse(body: &Value) -> Option<Self> {
        let results = body.get("results")?.as_object()?;
        let mut rulings = HashMap::with_capacity(results.len());
        for (uuid, said) in results {
            let result = said.get("result")?.as_str()?;
            // What is no uuid is none of ours.
            if let Ok(uuid) = Uuid::parse_str(uuid) {
                rulings.insert(uuid, Ruling::of(result, said.get("details")));
            }
        }
        Some(Self(rulings))
    }

    /// What becomes of an event that was sent. PostHog's specification of V1: one that the answer does not mention was accepted.
    pub(super) fn of(&self, uuid: Uuid) -> Ruling {
        self.0.get(&uuid).cloned().unwrap_or(Ruling::Taken { warning: Some(Warning::NoVerdict) })
    }
}

impl Ruling {
    fn of(result: &str, details: Option<&Value>) -> Self {
        let details = match details {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => kept(text),
            Some(other) => kept(&other.to_string()),
        };
        let or = |otherwise: &str| if details.is_empty() { otherwise.to_owned() } else { details.clone() };
        match result.to_ascii_lowercase().as_str() {
            "ok" => Ruling::Taken { warning: None },
            "warning" => Ruling::Taken { warning: Some(Warning::Said(or("a warning without details"))) },
            // What servers said before there was `warning`, and of two things: of events that they took, with these details, and of
            // others that were over a quota or a rate and that they did not take.
            "limited" if details == WITHOUT_PERSON => Ruling::Taken { warning: Some(Warning::Said(details)) },
            "limited" => Ruling::Refused { reason: or("limited without details") },
            "drop" => Ruling::Refused { reason: or("dropped without details") },
            "retry" => Ruling::Again { reason: or("to be sent again") },
            // PostHog's specification of V1: what a library does not know is no refusal and nothing to be sent again.
            _ => Ruling::Taken {
                warning: Some(Warning::UnknownResult { result: limits::foreign(result, limits::NAME_KEPT), details }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const UUID: &str = "0198c0de-0000-7000-8000-000000000abc";

    fn ruling(said: Value) -> Option<Ruling> {
        Results::parse(&json!({"results": {UUID: said}})).map(|results| results.of(Uuid::parse_str(UUID).unwrap()))
    }

    fn refused(reason: &str) -> Option<Ruling> {
        Some(Ruling::Refused { reason: reason.to_owned() })
    }

    fn taken(warning: Option<&str>) -> Option<Ruling> {
        Some(Ruling::Taken { warning: warning.map(|text| Warning::Said(text.to_owned())) })
    }

    fn unknown(result: &str, details: &str) -> Option<Ruling> {
        let warning = Warning::UnknownResult { result: result.to_owned(), details: details.to_owned() };
        Some(Ruling::Taken { warning: Some(warning) })
    }

    #[test]
    fn the_table_of_results_holds() {
        let again = |reason: &str| Some(Ruling::Again { reason: reason.to_owned() });
        for (said, expected) in [
            (json!({"result": "ok"}), taken(None)),
            (json!({"result": "ok", "details": null}), taken(None)),
            (json!({"result": "OK"}), taken(None)),
            (
                json!({"result": "warning", "details": "person_processing_disabled"}),
                taken(Some("person_processing_disabled")),
            ),
            (json!({"result": "warning"}), taken(Some("a warning without details"))),
            (json!({"result": "drop", "details": "event_name_too_long"}), refused("event_name_too_long")),
            (json!({"result": "drop", "details": {"limit": 200}}), refused(r#"{"limit":200}"#)),
            (json!({"result": "drop"}), refused("dropped without details")),
            (json!({"result": "retry", "details": "not_persisted"}), again("not_persisted")),
            (json!({"result": "retry", "details": ""}), again("to be sent again")),
            (
                json!({"result": "limited", "details": "person_processing_disabled"}),
                taken(Some("person_processing_disabled")),
            ),
            (json!({"result": "limited", "details": "exceptions_over_quota"}), refused("exceptions_over_quota")),
            (json!({"result": "limited"}), refused("limited without details")),
            (json!({"result": "later", "details": "busy"}), unknown("later", "busy")),
            (json!({"result": ""}), unknown("", "")),
            (json!({"result": "drop", "details": "two\nlines"}), refused("two\\nlines")),
        ] {
            assert_eq!(ruling(said.clone()), expected, "{said}");
        }
    }

    #[test]
    fn what_is_not_wholly_of_the_form_is_no_answer() {
        for body in [
            json!([]),
            json!("ok"),
            json!({"status": 1}),
            json!({"results": []}),
            json!({"results": null}),
            json!({"results": [{"uuid": UUID, "result": "ok"}]}),
            json!({"results": {UUID: "ok"}}),
            json!({"results": {UUID: {"result": 1}}}),
            json!({"results": {UUID: {"result": "ok"}, "other": {}}}),
            json!({"result": {UUID: {"result": "ok"}}}),
        ] {
            assert_eq!(Results::parse(&body), None, "{body}");
        }
    }

    #[test]
    fn an_event_that_is_not_mentioned_was_accepted() {
        let accepted = Some(Ruling::Taken { warning: Some(Warning::NoVerdict) });
        let results = Results::parse(&json!({"results": {}})).unwrap();
        assert_eq!(Some(results.of(Uuid::nil())), accepted.clone());
        let results =
            Results::parse(&json!({"results": {"no uuid": {"result": "ok"}, UUID: {"result": "ok"}}})).unwrap();
        assert_eq!(Some(results.of(Uuid::nil())), accepted);
    }

    #[test]
    fn a_uuid_is_the_same_however_it_is_written_and_of_two_verdicts_the_last_counts() {
        let of = |text: &str| {
            let body: Value = serde_json::from_str(text).unwrap();
            Results::parse(&body).map(|results| results.of(Uuid::parse_str(UUID).unwrap()))
        };
        assert_eq!(of(&format!(r#"{{"results":{{"{}":{{"result":"ok"}}}}}}"#, UUID.to_uppercase())), taken(None));
        let twice = format!(r#"{{"results":{{"{UUID}":{{"result":"drop"}},"{UUID}":{{"result":"ok"}}}}}}"#);
        assert_eq!(of(&twice), taken(None));
    }

    #[test]
    fn huge_details_are_cut() {
        for result in ["warning", "drop", "retry", "\u{fc}"] {
            let text = format!("{:?}", ruling(json!({"result": result, "details": "\u{fc}".repeat(100_000)})).unwrap());
            assert!(text.len() < 1400, "{} bytes", text.len());
        }
        assert!(format!("{:?}", ruling(json!({"result": "x".repeat(100_000)})).unwrap()).len() < 1100);
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in r#"\{"results":\{("[0-9a-fA-F-]{0,40}":\{"(result|details)":("[a-z]{0,8}"|[0-9]{1,3}|null|\[\])\},?){0,4}\}\}|.{0,60}"#) {
            if let Some(results) = serde_json::from_str(&text).ok().as_ref().and_then(Results::parse) {
                results.of(Uuid::nil());
            }
        }
    }
}
