//! Classifies responses. Pure, and tested by tables.
//!
//! The body matters because servers other than PostHog may respond: a captive portal responds 200 to every request, a
//! corporate proxy 400 or 403, and a load balancer 413 above its own limit. An event is dead-lettered only if the body
//! looks like PostHog's, and then only with further evidence (`bisect.rs`), so the check of the body is lenient.
//!
//! A V1 endpoint returns a result for each event: `{"results": {"<uuid>": {"result": "ok", "details": ".."}}}`. A
//! response that does not have this form as a whole is ignored: a body that a proxy made up, or that was cut off on the
//! way, must not decide what happens to an event.

use std::collections::HashMap;

use serde_json::Value;
use uuid::Uuid;

use super::CaptureProtocol;
use crate::sys::limits;
use crate::transport::Response;

/// The text of a refusal is cut to this many bytes.
const MAX_REASON_BYTES: usize = limits::DETAIL_KEPT;

/// Maximum number of kinds that are read from `quota_limited`. PostHog has a handful.
const MOST_KINDS: usize = 32;

/// The beginnings of the plain texts by which PostHog's capture service refuses a request or one of its events.
const REFUSALS: [&str; 11] = [
    "failed to decode request",
    "failed to parse request",
    "failed to hydrate events",
    "failed to buffer the request body: length limit exceeded",
    "request holds no event",
    "request missing data payload",
    "event submitted with",
    "replay event",
    "batch submitted with inconsistent",
    "maximum event size exceeded",
    "invalid event could not be processed",
];

/// The beginnings of the plain texts by which PostHog refuses the key or the quota.
const PAUSES: [&str; 3] = ["api key is not valid", "project api key", "billing limit"];

/// What a response means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ResponseKind {
    /// PostHog accepted the batch.
    Delivered {
        /// The kinds of events that it dropped because their quota is used up.
        quota_limited: Vec<String>,
    },
    /// PostHog has returned a result for each event.
    PerEvent(HashMap<Uuid, EventResult>),
    /// PostHog has returned a result for each event, but the response is longer than the part that is read.
    TooLong,
    /// The batch, or one event of it, is refused.
    Refused {
        /// Whether the response is PostHog's. If so, an event that is refused in a request of its own may be
        /// dead-lettered, given further evidence.
        by_posthog: bool,
    },
    /// The key or the encoding is refused, or the quota is used up. The events are not at fault.
    Paused {
        /// Whether the response is PostHog's. Otherwise it may be a proxy's.
        by_posthog: bool,
    },
    /// The request failed, because of the endpoint or because of one of its events.
    Failed,
}

/// Classifies a response to a request in this protocol.
pub(super) fn classify(response: &Response, protocol: CaptureProtocol) -> ResponseKind {
    let status = response.status;
    let json = serde_json::from_slice::<Value>(&response.body).ok();
    match status {
        200..=299 if protocol == CaptureProtocol::V1 => match json.as_ref().and_then(results) {
            Some(results) => ResponseKind::PerEvent(results),
            // The page of a captive portal may be cut off too, but smaller requests would not help.
            None if response.is_cut && response.body.trim_ascii_start().starts_with(b"{") => ResponseKind::TooLong,
            None => ResponseKind::Failed,
        },
        200..=299 => match json.as_ref().filter(|body| is_acceptance(body)) {
            Some(body) => ResponseKind::Delivered { quota_limited: quota_limited(body) },
            None => ResponseKind::Failed,
        },
        400 | 413 => {
            let by_posthog = is_error_object(json.as_ref()) || begins_with(&REFUSALS, &response.body);
            // A smaller request may pass a proxy's limit on size, but a proxy's 400 says nothing about parts of the
            // request.
            if by_posthog || status == 413 { ResponseKind::Refused { by_posthog } } else { ResponseKind::Failed }
        }
        401..=403 | 415 => {
            let by_posthog = is_error_object(json.as_ref()) || begins_with(&PAUSES, &response.body);
            ResponseKind::Paused { by_posthog }
        }
        _ => ResponseKind::Failed,
    }
}

/// Whether the body says that the batch was accepted: `{"status":1}` of the capture service, `{"status":"Ok"}` of older
/// and of self-hosted ones, or `{"results":{..}}` of newer ones.
fn is_acceptance(body: &Value) -> bool {
    let status_is_good = match body.get("status") {
        Some(Value::Number(number)) => number.as_u64() == Some(1),
        Some(Value::String(text)) => ["1", "ok", "success"].iter().any(|good| text.eq_ignore_ascii_case(good)),
        _ => false,
    };
    status_is_good || body.get("results").is_some_and(Value::is_object)
}

/// Whether the body is an error object of PostHog's: those have one of these members.
fn is_error_object(json: Option<&Value>) -> bool {
    json.is_some_and(|json| {
        ["error", "detail", "code", "error_description"].iter().any(|key| json.get(key).is_some_and(Value::is_string))
    })
}

/// Whether the body begins with one of these plain texts.
fn begins_with(known: &[&str], body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body.get(..MAX_REASON_BYTES).unwrap_or(body)).trim_start().to_lowercase();
    known.iter().any(|words| text.starts_with(words))
}

/// Describes a failure in one line. A hint at the cause stands before the body, which may be a page of HTML.
pub(super) fn describe(status: u16, reason: &str) -> String {
    let hint = match status {
        200..=399 | 404 | 405 => {
            " (not PostHog's answer; check Config::host (POSTHOG_HOST): it must be the ingestion host, without /batch)"
        }
        407 => " (a proxy wants a user name and a password: give them in its URL)",
        _ => "",
    };
    let colon = if reason.is_empty() { "" } else { ": " };
    format!("HTTP status {status}{hint}{colon}{reason}")
}

/// Describes a pause in one line.
pub(super) fn describe_pause(status: u16, reason: &str, by_posthog: bool) -> String {
    if by_posthog {
        return format!("HTTP status {status}: {reason}");
    }
    let said = if reason.is_empty() { "no text" } else { reason };
    format!(
        "HTTP status {status}, apparently not from PostHog; check Config::host (POSTHOG_HOST) and proxies on the way: {said}"
    )
}

fn quota_limited(body: &Value) -> Vec<String> {
    match body.get("quota_limited") {
        Some(Value::Array(kinds)) => kinds
            .iter()
            .filter_map(Value::as_str)
            .take(MOST_KINDS)
            .map(|kind| limits::foreign(kind, limits::NAME_KEPT))
            .collect(),
        Some(Value::Bool(true)) => vec!["all".to_owned()],
        _ => Vec::new(),
    }
}

/// The beginning of a body as text.
pub(super) fn reason(body: &[u8]) -> String {
    kept(String::from_utf8_lossy(body).trim())
}

/// The beginning of a server's text, with control characters escaped.
fn kept(text: &str) -> String {
    limits::foreign(text, MAX_REASON_BYTES)
}

/// The details of an event that was accepted without person processing.
const WITHOUT_PERSON: &str = "person_processing_disabled";

/// The result for one event of a V1 request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EventResult {
    /// PostHog accepted it.
    Accepted,
    /// PostHog accepted it with this warning.
    Warned(String),
    /// The response does not mention it. By PostHog's specification of V1 it was accepted.
    Missing,
    /// A result that this version does not know, which by that specification is neither a refusal nor a reason to send
    /// the event again.
    Unknown {
        /// Its name.
        result: String,
        /// Its details.
        details: String,
    },
    /// PostHog refused it for good.
    Refused {
        /// The reason given.
        reason: String,
    },
    /// PostHog could not accept it this time.
    Retry {
        /// The reason given.
        reason: String,
    },
}

/// The results in a response of V1; `None` if it does not have this form.
fn results(body: &Value) -> Option<HashMap<Uuid, EventResult>> {
    let results = body.get("results")?.as_object()?;
    let mut parsed = HashMap::with_capacity(results.len());
    for (uuid, entry) in results {
        let result = entry.get("result")?.as_str()?;
        // A key that is no uuid is not one of the events that were sent.
        if let Ok(uuid) = Uuid::parse_str(uuid) {
            parsed.insert(uuid, EventResult::of(result, entry.get("details")));
        }
    }
    Some(parsed)
}

impl EventResult {
    /// Whether the warnings of both are reported as one. The details of an unknown result are about a single event.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unknown { result: one, .. }, Self::Unknown { result: other, .. }) => one == other,
            _ => self == other,
        }
    }

    /// The warning about an accepted event, in one line.
    pub(super) fn warning(&self) -> Option<String> {
        match self {
            Self::Accepted | Self::Refused { .. } | Self::Retry { .. } => None,
            Self::Warned(text) => Some(text.clone()),
            Self::Missing => Some("no result in the response, which counts as accepted".to_owned()),
            Self::Unknown { result, details } => {
                let colon = if details.is_empty() { "" } else { ": " };
                let text = "which counts as accepted; update this library";
                Some(format!("unknown result {result:?}{colon}{details}, {text}"))
            }
        }
    }

    fn of(result: &str, details: Option<&Value>) -> Self {
        let details = match details {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => kept(text),
            Some(other) => kept(&other.to_string()),
        };
        let or = |otherwise: &str| if details.is_empty() { otherwise.to_owned() } else { details.clone() };
        match result.to_ascii_lowercase().as_str() {
            "ok" => Self::Accepted,
            "warning" => Self::Warned(or("a warning without details")),
            // Older servers return `limited` with these details instead of `warning`. Otherwise, it means that they
            // did not accept the event because a quota or a rate limit was exceeded.
            "limited" if details == WITHOUT_PERSON => Self::Warned(details),
            "limited" => Self::Refused { reason: or("limited without details") },
            "drop" => Self::Refused { reason: or("dropped without details") },
            "retry" => Self::Retry { reason: or("to be sent again") },
            _ => Self::Unknown { result: limits::foreign(result, limits::NAME_KEPT), details },
        }
    }
}

/// For the fuzz target: a response of any content is classified, and described in one line of bounded length.
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) fn classify_any(status: u16, body: &[u8]) {
    for protocol in [CaptureProtocol::V0, CaptureProtocol::V1] {
        for is_cut in [false, true] {
            let response = Response { status, retry_after: None, etag: None, is_cut, body: body.to_vec() };
            let kind = classify(&response, protocol);
            let delivers = matches!(kind, ResponseKind::Delivered { .. } | ResponseKind::PerEvent(_));
            assert!(!delivers || (200..300).contains(&status), "{kind:?} after status {status}");
        }
    }
    let reason = reason(body);
    assert!(!reason.contains(char::is_control), "{reason:?}");
    let _any = (describe(status, &reason), describe_pause(status, &reason, true));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, body: &str) -> ResponseKind {
        answer(status, body, CaptureProtocol::V0)
    }

    fn answer(status: u16, body: &str, protocol: CaptureProtocol) -> ResponseKind {
        classify(&Response { status, body: body.as_bytes().to_vec(), ..Response::default() }, protocol)
    }

    fn kind(outcome: &ResponseKind) -> &'static str {
        match outcome {
            ResponseKind::PerEvent { .. } => "per event",
            ResponseKind::Delivered { .. } => "delivered",
            ResponseKind::TooLong => "too long",
            ResponseKind::Refused { by_posthog: true, .. } => "refused",
            ResponseKind::Refused { by_posthog: false, .. } => "split",
            ResponseKind::Paused { .. } => "paused",
            ResponseKind::Failed => "failed",
        }
    }

    #[test]
    fn responses_are_classified_by_status_and_body() {
        let html = "<html><body>Sign in to the network</body></html>";
        let django =
            r#"{"type":"validation_error","code":"invalid_payload","detail":"Malformed request data","attr":null}"#;
        for (status, body, expected) in [
            (200, r#"{"status":1}"#, "delivered"),
            (200, r#"{"status":"Ok"}"#, "delivered"),
            (200, r#" {"status":1,"quota_limited":["events"]} "#, "delivered"),
            (200, r#"{"results":{}}"#, "delivered"),
            (200, html, "failed"),
            (200, "", "failed"),
            (204, "", "failed"),
            (200, r#"{"status":0}"#, "failed"),
            (200, r#"{"login":"required"}"#, "failed"),
            (200, r#"[1]"#, "failed"),
            (400, "event submitted with an empty event name", "refused"),
            (400, "event submitted without a distinct_id", "refused"),
            (400, " Maximum event size exceeded: 1.2 MB", "refused"),
            (400, django, "refused"),
            (400, r#"{"error":"Bad Request"}"#, "refused"),
            (400, html, "failed"),
            (400, "", "failed"),
            (400, "Bad Request", "failed"),
            (400, r#"{"message":"blocked"}"#, "failed"),
            (413, r#"{"error":"payload_too_large","error_description":"Too large"}"#, "refused"),
            (413, "length limit exceeded", "split"),
            (413, "Failed to buffer the request body: length limit exceeded", "refused"),
            (413, html, "split"),
            (401, "API key is not valid: not_ascii", "paused"),
            (402, html, "paused"),
            (403, "", "paused"),
            (408, "", "failed"),
            (429, "billing limit reached", "failed"),
            (500, r#"{"error":"oops"}"#, "failed"),
            (503, "transient error, please retry", "failed"),
            (301, "", "failed"),
            (404, html, "failed"),
            (405, "", "failed"),
            (415, r#"{"error":"unsupported_content_type"}"#, "paused"),
            (599, "", "failed"),
        ] {
            assert_eq!(kind(&of(status, body)), expected, "{status} {body}");
        }
    }

    #[test]
    fn v1_differs_from_v0_only_for_a_success() {
        let decided_per_event = r#"{"results":{"0198c0de-0000-7000-8000-000000000abc":{"result":"retry"}}}"#;
        for (status, body, expected) in [
            (200, decided_per_event, "per event"),
            (202, r#"{"results":{}}"#, "per event"),
            (200, r#"{"status":1}"#, "failed"),
            (200, "<html>Sign in</html>", "failed"),
            (200, decided_per_event.split_at(60).0, "failed"),
            (200, "", "failed"),
            (400, r#"{"error":"bad_created_at","error_description":"..","error_uri":".."}"#, "refused"),
            (400, "<html></html>", "failed"),
            (413, r#"{"error":"payload_too_large"}"#, "refused"),
            (401, r#"{"error":"missing_authorization"}"#, "paused"),
            (402, r#"{"error":"billing_limit_exceeded"}"#, "paused"),
            (403, "", "paused"),
            (415, r#"{"error":"unsupported_content_type"}"#, "paused"),
            (408, r#"{"error":"body_read_timeout"}"#, "failed"),
            (429, "", "failed"),
            (500, decided_per_event, "failed"),
            (503, r#"{"error":"service_unavailable"}"#, "failed"),
            (504, "", "failed"),
        ] {
            assert_eq!(kind(&answer(status, body, CaptureProtocol::V1)), expected, "{status} {body}");
        }
    }

    #[test]
    fn only_v1_results_that_are_cut_are_too_long() {
        let cut = |status, body: &str, protocol| {
            kind(&classify(&Response { status, is_cut: true, body: body.into(), ..Response::default() }, protocol))
        };
        assert_eq!(cut(200, "{ \"results\":\n{\"0198c0de-", CaptureProtocol::V1), "too long");
        assert_eq!(cut(200, "<html>..", CaptureProtocol::V1), "failed");
        assert_eq!(cut(503, r#"{"results":{"#, CaptureProtocol::V1), "failed");
        assert_eq!(cut(200, r#"{"results":{"#, CaptureProtocol::V0), "failed");
    }

    #[test]
    fn a_pause_tells_whether_the_response_is_from_posthog() {
        for (status, body, expected) in [
            (401, "API key is not valid: not_ascii", true),
            (402, r#"{"error":"billing_limit_exceeded"}"#, true),
            (401, r#"{"type":"authentication_error","code":"invalid_api_key","detail":"..","attr":null}"#, true),
            (415, r#"{"error":"unsupported_content_type"}"#, true),
            (403, "<html>Attention Required! | Cloudflare</html>", false),
            (403, "", false),
            (401, "Authorization required", false),
        ] {
            let ResponseKind::Paused { by_posthog } = of(status, body) else { panic!("{status} {body}") };
            assert_eq!(by_posthog, expected, "{status} {body}");
            assert_eq!(
                describe_pause(status, &reason(body.as_bytes()), by_posthog).contains("Config::host (POSTHOG_HOST)"),
                !expected
            );
        }
    }

    #[test]
    fn a_failure_hints_at_a_wrong_host_before_the_body() {
        for (status, is_hinted) in [(200, true), (301, true), (404, true), (405, true), (400, false), (503, false)] {
            let text = describe(status, "<html>");
            assert_eq!(text.contains("ingestion host, without /batch"), is_hinted, "{text}");
            assert!(text.ends_with(": <html>"), "{text}");
        }
        assert_eq!(describe(503, ""), "HTTP status 503");
    }

    #[test]
    fn quota_limited_is_parsed_as_a_list_or_a_boolean() {
        for (body, expected) in [
            (r#"{"status":1,"quota_limited":["events","recordings"]}"#, vec!["events", "recordings"]),
            (r#"{"status":1,"quota_limited":true}"#, vec!["all"]),
            (r#"{"status":1,"quota_limited":false}"#, vec![]),
            (r#"{"status":1}"#, vec![]),
        ] {
            let kinds = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(of(200, body), ResponseKind::Delivered { quota_limited: kinds });
        }
    }

    #[test]
    fn a_reason_is_cut_between_characters_and_escaped() {
        assert_eq!(reason("\u{fc}".repeat(2000).as_bytes()).len(), MAX_REASON_BYTES);
        let said = reason(b"two\nlines \x1b[31mred");
        assert_eq!(said, "two\\nlines \\u{1b}[31mred", "control characters are escaped");
        assert!(!reason(&[0xff; 9]).is_empty());
    }
}

#[cfg(test)]
mod results_tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const UUID: &str = "0198c0de-0000-7000-8000-000000000abc";

    fn result_of(said: Value) -> Option<EventResult> {
        results(&json!({"results": {UUID: said}}))?.remove(&Uuid::parse_str(UUID).unwrap())
    }

    fn refused(reason: &str) -> Option<EventResult> {
        Some(EventResult::Refused { reason: reason.to_owned() })
    }

    fn taken(warning: Option<&str>) -> Option<EventResult> {
        Some(warning.map_or(EventResult::Accepted, |text| EventResult::Warned(text.to_owned())))
    }

    fn unknown(result: &str, details: &str) -> Option<EventResult> {
        Some(EventResult::Unknown { result: result.to_owned(), details: details.to_owned() })
    }

    #[test]
    fn v1_results_are_parsed() {
        let again = |reason: &str| Some(EventResult::Retry { reason: reason.to_owned() });
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
            assert_eq!(result_of(said.clone()), expected, "{said}");
        }
    }

    #[test]
    fn a_response_of_another_form_has_no_results() {
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
            assert_eq!(results(&body), None, "{body}");
        }
    }

    #[test]
    fn a_key_that_is_no_uuid_is_not_an_event() {
        assert_eq!(results(&json!({"results": {}})), Some(HashMap::new()));
        let results = results(&json!({"results": {"no uuid": {"result": "ok"}, UUID: {"result": "ok"}}})).unwrap();
        assert_eq!(results, HashMap::from([(Uuid::parse_str(UUID).unwrap(), EventResult::Accepted)]));
    }

    #[test]
    fn uuids_are_case_insensitive_and_the_last_result_counts() {
        let of = |text: &str| {
            let body: Value = serde_json::from_str(text).unwrap();
            results(&body)?.remove(&Uuid::parse_str(UUID).unwrap())
        };
        assert_eq!(of(&format!(r#"{{"results":{{"{}":{{"result":"ok"}}}}}}"#, UUID.to_uppercase())), taken(None));
        let twice = format!(r#"{{"results":{{"{UUID}":{{"result":"drop"}},"{UUID}":{{"result":"ok"}}}}}}"#);
        assert_eq!(of(&twice), taken(None));
    }

    #[test]
    fn huge_details_are_cut() {
        for result in ["warning", "drop", "retry", "\u{fc}"] {
            let text =
                format!("{:?}", result_of(json!({"result": result, "details": "\u{fc}".repeat(100_000)})).unwrap());
            assert!(text.len() < 1400, "{} bytes", text.len());
        }
        assert!(format!("{:?}", result_of(json!({"result": "x".repeat(100_000)})).unwrap()).len() < 1100);
    }

    proptest! {
        #[test]
        fn parsing_results_never_panics(text in r#"\{"results":\{("[0-9a-fA-F-]{0,40}":\{"(result|details)":("[a-z]{0,8}"|[0-9]{1,3}|null|\[\])\},?){0,4}\}\}|.{0,60}"#) {
            let _ = serde_json::from_str(&text).ok().as_ref().and_then(results);
        }
    }
}
