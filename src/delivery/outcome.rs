//! What an answer means. One pure function, one table.
//!
//! Words matter because of who else may answer: a captive portal says 200, a corporate proxy says 400 or 403 to everything, a load
//! balancer has its own idea of 413. Only a body that looks like PostHog's may cost an event its place in the queue, and even then
//! only on the evidence that `split.rs` demands; so looking like PostHog's may be judged leniently here.

use serde_json::Value;

use super::CaptureProtocol;
use super::results::Results;
use crate::sys::limits;
use crate::transport::{Response, RetryAfter};

/// Dead letters keep so much of the server's words.
const MAX_REASON_BYTES: usize = limits::DETAIL_KEPT;

/// PostHog has a handful of kinds of events.
const MOST_KINDS: usize = 32;

/// The beginnings of what PostHog's capture service says in plain text when a request or one of its events is unacceptable.
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

/// The beginnings of what PostHog says in plain text when it refuses the key or the quota.
const PAUSES: [&str; 3] = ["api key is not valid", "project api key", "billing limit"];

/// What to do about an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// PostHog took the batch.
    Delivered {
        /// Kinds of events that it says it dropped for want of quota.
        quota_limited: Vec<String>,
    },
    /// PostHog has decided on each event.
    Judged {
        /// How.
        results: Results,
        /// When it wants to see again those that it could not take.
        retry_after: Option<RetryAfter>,
    },
    /// PostHog has decided on each event, and it takes more bytes to say how than are read.
    TooLong,
    /// The batch, or one event of it, is unacceptable.
    Refused {
        /// 400 or 413.
        status: u16,
        /// The server's words.
        reason: String,
        /// PostHog itself said so: an event refused alone may be dead_lettered, given evidence.
        by_posthog: bool,
    },
    /// The key, the quota or the encoding is refused; the events are fine.
    Paused {
        /// 401, 402, 403 or 415.
        status: u16,
        /// The server's words.
        reason: String,
        /// They are PostHog's; else somebody on the way may have answered.
        by_posthog: bool,
    },
    /// An outage.
    Failed {
        /// The HTTP status.
        status: u16,
        /// The beginning of the body.
        reason: String,
        /// When the server wants to hear from us again.
        retry_after: Option<RetryAfter>,
    },
}

/// Judges an answer to a request in that protocol.
pub(super) fn judge(response: &Response, protocol: CaptureProtocol) -> Outcome {
    let status = response.status;
    let json = serde_json::from_slice::<Value>(&response.body).ok();
    let retry_after = response.retry_after;
    let failed = || Outcome::Failed { status, reason: reason(&response.body), retry_after };
    match status {
        200..=299 if protocol == CaptureProtocol::V1 => match json.as_ref().and_then(Results::parse) {
            Some(results) => Outcome::Judged { results, retry_after },
            // A portal's page may be as long, and is no reason for smaller requests.
            None if response.is_cut && response.body.trim_ascii_start().starts_with(b"{") => Outcome::TooLong,
            None => failed(),
        },
        200..=299 => match json.as_ref().filter(|body| is_acceptance(body)) {
            Some(body) => Outcome::Delivered { quota_limited: quota_limited(body) },
            None => failed(),
        },
        400 | 413 => {
            let by_posthog = is_error_object(json.as_ref()) || begins_with(&REFUSALS, &response.body);
            // Whoever finds a request too large will take a smaller one; a stranger's 400 says nothing about its parts.
            if by_posthog || status == 413 {
                Outcome::Refused { status, reason: reason(&response.body), by_posthog }
            } else {
                failed()
            }
        }
        401..=403 | 415 => {
            let by_posthog = is_error_object(json.as_ref()) || begins_with(&PAUSES, &response.body);
            Outcome::Paused { status, reason: reason(&response.body), by_posthog }
        }
        _ => failed(),
    }
}

/// `{"status":1}` of the capture service, `{"status":"Ok"}` of older and of self-hosted ones, `{"results":{..}}` of newer ones.
fn is_acceptance(body: &Value) -> bool {
    let status_is_good = match body.get("status") {
        Some(Value::Number(number)) => number.as_u64() == Some(1),
        Some(Value::String(text)) => ["1", "ok", "success"].iter().any(|good| text.eq_ignore_ascii_case(good)),
        _ => false,
    };
    status_is_good || body.get("results").is_some_and(Value::is_object)
}

/// PostHog's error objects have one of these members.
fn is_error_object(json: Option<&Value>) -> bool {
    json.is_some_and(|json| {
        ["error", "detail", "code", "error_description"].iter().any(|key| json.get(key).is_some_and(Value::is_string))
    })
}

/// The capture service's plain texts are known.
fn begins_with(known: &[&str], body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body.get(..MAX_REASON_BYTES).unwrap_or(body)).trim_start().to_lowercase();
    known.iter().any(|words| text.starts_with(words))
}

/// A failure in one line, for a human. What it may come from stands before the body, which may be a whole page of HTML.
pub(super) fn describe(status: u16, reason: &str) -> String {
    let hint = match status {
        200..=399 | 404 | 405 => {
            " (not PostHog's answer; check Config::host: it must be the ingestion host, without /batch)"
        }
        407 => " (a proxy wants a user name and a password: give them in its URL)",
        _ => "",
    };
    let colon = if reason.is_empty() { "" } else { ": " };
    format!("HTTP status {status}{hint}{colon}{reason}")
}

/// A pause in one line, for a human.
pub(super) fn describe_pause(status: u16, reason: &str, by_posthog: bool) -> String {
    if by_posthog {
        return format!("HTTP status {status}: {reason}");
    }
    let said = if reason.is_empty() { "no text" } else { reason };
    format!("HTTP status {status}, not in PostHog's words; check Config::host and proxies on the way: {said}")
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
fn reason(body: &[u8]) -> String {
    kept(String::from_utf8_lossy(body).trim())
}

/// As much of the server's words as is kept, fit to be shown.
pub(super) fn kept(text: &str) -> String {
    limits::foreign(text, MAX_REASON_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, body: &str) -> Outcome {
        answer(status, body, CaptureProtocol::V0)
    }

    fn answer(status: u16, body: &str, protocol: CaptureProtocol) -> Outcome {
        judge(&Response { status, body: body.as_bytes().to_vec(), ..Response::default() }, protocol)
    }

    fn kind(outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::Judged { .. } => "judged",
            Outcome::Delivered { .. } => "delivered",
            Outcome::TooLong => "too long",
            Outcome::Refused { by_posthog: true, .. } => "refused",
            Outcome::Refused { by_posthog: false, .. } => "split",
            Outcome::Paused { .. } => "paused",
            Outcome::Failed { .. } => "failed",
        }
    }

    #[test]
    fn the_table_holds() {
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
    fn of_v1_only_a_success_means_something_else() {
        let judged = r#"{"results":{"0198c0de-0000-7000-8000-000000000abc":{"result":"retry"}}}"#;
        for (status, body, expected) in [
            (200, judged, "judged"),
            (202, r#"{"results":{}}"#, "judged"),
            (200, r#"{"status":1}"#, "failed"),
            (200, "<html>Sign in</html>", "failed"),
            (200, judged.split_at(60).0, "failed"),
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
            (500, judged, "failed"),
            (503, r#"{"error":"service_unavailable"}"#, "failed"),
            (504, "", "failed"),
        ] {
            assert_eq!(kind(&answer(status, body, CaptureProtocol::V1)), expected, "{status} {body}");
        }
    }

    #[test]
    fn only_an_answer_of_v1_that_is_cut_is_too_long() {
        let cut = |status, body: &str, protocol| {
            kind(&judge(&Response { status, is_cut: true, body: body.into(), ..Response::default() }, protocol))
        };
        assert_eq!(cut(200, "{ \"results\":\n{\"0198c0de-", CaptureProtocol::V1), "too long");
        assert_eq!(cut(200, "<html>..", CaptureProtocol::V1), "failed");
        assert_eq!(cut(503, r#"{"results":{"#, CaptureProtocol::V1), "failed");
        assert_eq!(cut(200, r#"{"results":{"#, CaptureProtocol::V0), "failed");
    }

    #[test]
    fn a_pause_knows_whether_it_is_posthog_that_refuses() {
        for (status, body, expected) in [
            (401, "API key is not valid: not_ascii", true),
            (402, r#"{"error":"billing_limit_exceeded"}"#, true),
            (401, r#"{"type":"authentication_error","code":"invalid_api_key","detail":"..","attr":null}"#, true),
            (415, r#"{"error":"unsupported_content_type"}"#, true),
            (403, "<html>Attention Required! | Cloudflare</html>", false),
            (403, "", false),
            (401, "Authorization required", false),
        ] {
            let Outcome::Paused { by_posthog, reason, .. } = of(status, body) else { panic!("{status} {body}") };
            assert_eq!(by_posthog, expected, "{status} {body}");
            assert_eq!(describe_pause(status, &reason, by_posthog).contains("Config::host"), !expected);
        }
    }

    #[test]
    fn a_wrong_host_is_hinted_at_before_the_page_it_shows() {
        for (status, is_hinted) in [(200, true), (301, true), (404, true), (405, true), (400, false), (503, false)] {
            let text = describe(status, "<html>");
            assert_eq!(text.contains("ingestion host, without /batch"), is_hinted, "{text}");
            assert!(text.ends_with(": <html>"), "{text}");
        }
        assert_eq!(describe(503, ""), "HTTP status 503");
    }

    #[test]
    fn exhausted_quotas_are_noticed_in_every_shape() {
        for (body, expected) in [
            (r#"{"status":1,"quota_limited":["events","recordings"]}"#, vec!["events", "recordings"]),
            (r#"{"status":1,"quota_limited":true}"#, vec!["all"]),
            (r#"{"status":1,"quota_limited":false}"#, vec![]),
            (r#"{"status":1}"#, vec![]),
        ] {
            let kinds = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(of(200, body), Outcome::Delivered { quota_limited: kinds });
        }
    }

    #[test]
    fn a_reason_is_cut_between_characters_and_survives_bytes_that_are_no_text() {
        let Outcome::Failed { reason, .. } = of(500, &"\u{fc}".repeat(2000)) else { panic!("not failed") };
        assert_eq!(reason.len(), MAX_REASON_BYTES);
        let Outcome::Failed { reason, .. } = of(500, "two\nlines \u{1b}[31mred") else { panic!("not failed") };
        assert_eq!(reason, "two\\nlines \\u{1b}[31mred", "it will be a line of a log");
        let Outcome::Failed { reason, .. } =
            judge(&Response { status: 502, body: vec![0xff; 9], ..Response::default() }, CaptureProtocol::V0)
        else {
            panic!("not failed")
        };
        assert!(!reason.is_empty());
    }
}
