//! One request for definitions, and what the response means for those that are loaded.

use std::fmt::{self, Debug};
use std::time::Duration;

use serde_json::Value;

use super::handle::FlagDefinitionsError;
use super::provider::Provider;
use crate::sys::clock::Clock;
use crate::sys::limits;
use crate::transport::{Http, Request, RequestLine, Response, logged};

/// The longest `ETag` that is sent back.
const MAX_ETAG_BYTES: usize = 1024;
/// The longest response that is read: tens of thousands of flags.
pub(super) const MAX_RESPONSE_BYTES: usize = 32 * 1024 * 1024;

/// A key that may read a project's definitions. It is sent to PostHog, and neither logged nor stored.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretKey(String);

impl SecretKey {
    pub(crate) fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// The value of the header `Authorization`.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// Where definitions are loaded from, and how often. A loader exists only if there is a secret key or a provider.
#[derive(Clone, Debug)]
pub(crate) struct LoaderOptions {
    /// PostHog's host, without a trailing slash.
    pub(crate) host: String,
    /// The project's public key.
    pub(crate) api_key: String,
    /// Without it, definitions come from the provider alone.
    pub(crate) secret_key: Option<SecretKey>,
    /// The time from the end of one load to the next.
    pub(crate) interval: Duration,
    /// Bound of one request.
    pub(crate) timeout: Duration,
    /// The longest `Retry-After` that is respected.
    pub(crate) retry_after_cap: Duration,
    pub(crate) provider: Option<Provider>,
    /// The maximum size of the definitions kept for the next process. `None`: they are not kept.
    pub(crate) keep: Option<usize>,
}

/// Requests all definitions or, with an `etag`, those that are newer. An error is one line.
pub(super) async fn send(
    http: &dyn Http,
    clock: &Clock,
    options: &LoaderOptions,
    secret_key: &SecretKey,
    etag: Option<&str>,
) -> Result<Response, String> {
    let request = request(&options.host, &options.api_key, secret_key, etag);
    let response = logged(RequestLine::of(&request, None), http.send(request));
    match clock.within(options.timeout, response).await {
        Some(response) => response.map_err(|error| error.describe()),
        None => Err(format!("no response within {:?}", options.timeout)),
    }
}

fn request(host: &str, api_key: &str, secret_key: &SecretKey, etag: Option<&str>) -> Request {
    // The query names the project, because a personal key may have access to several.
    let url = format!("{host}/flags/definitions?token={}&send_cohorts", percent_encoded(api_key));
    let mut headers = vec![("authorization", secret_key.bearer())];
    headers.extend(etag.map(|etag| ("if-none-match", etag.to_owned())));
    Request { url: url.into(), headers, max_answer: MAX_RESPONSE_BYTES, ..Request::default() }
}

/// PostHog's keys need no encoding; others might.
pub(crate) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// An `ETag` that can be sent back unchanged in a header.
pub(super) fn usable(etag: Option<String>) -> Option<String> {
    etag.filter(|etag| {
        (1..=MAX_ETAG_BYTES).contains(&etag.len()) && etag.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
    })
}

/// Whether the body of a response replaces the loaded definitions, if it can be parsed (`false`: they are the newest).
/// `is_conditional`: the request named the loaded version.
///
/// After [`FlagDefinitionsError::Refused`] the loaded definitions must not be used any more. A proxy may respond 401 or
/// 403 to every request, and a captive portal 200, so good definitions are dropped only if the body is one of PostHog's
/// own error objects.
pub(super) fn interpret(response: &Response, is_conditional: bool) -> Result<bool, FlagDefinitionsError> {
    let status = response.status;
    let message = || message_of(&response.body);
    Err(FlagDefinitionsError::Unavailable(match status {
        200 if response.is_cut => format!("the response is longer than {} bytes", response.body.len()),
        200 => return Ok(true),
        304 if is_conditional => return Ok(false),
        401..=403 if is_posthogs(&response.body) => {
            return Err(FlagDefinitionsError::Refused { status, why: message() });
        }
        401..=403 => {
            format!(
                "HTTP status {status}, but not from PostHog; check Config::host (POSTHOG_HOST) and proxies: {}",
                message()
            )
        }
        400 | 404 => format!(
            "HTTP status {status}; check Config::host (POSTHOG_HOST) and that the secret key belongs to this project: {}",
            message()
        ),
        _ => format!("HTTP status {status}: {}", message()),
    }))
}

/// PostHog's error objects have at least one of these members.
fn is_posthogs(body: &[u8]) -> bool {
    let json = serde_json::from_slice::<Value>(body).ok();
    json.is_some_and(|json| {
        ["error", "detail", "code", "type"].iter().any(|key| json.get(key).is_some_and(Value::is_string))
    })
}

/// The beginning of a body, as text for a message.
fn message_of(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body.get(..limits::DETAIL_KEPT).unwrap_or(body));
    limits::foreign(text.trim(), limits::DETAIL_KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENIED: &str = r#"{"type":"authentication_error","code":"invalid_api_key","detail":"Personal API key is invalid.","attr":null}"#;

    fn of(status: u16, body: &str) -> Result<bool, FlagDefinitionsError> {
        interpret(&Response { status, body: body.as_bytes().to_vec(), ..Response::default() }, true)
    }

    fn kind(meaning: &Result<bool, FlagDefinitionsError>) -> &'static str {
        match meaning {
            Ok(true) => "replace",
            Ok(false) => "unchanged",
            Err(FlagDefinitionsError::Refused { .. }) => "clear",
            Err(_) => "failed",
        }
    }

    #[test]
    fn the_table_holds() {
        let html = "<html>Sign in</html>";
        for (status, body, expected) in [
            (200, r#"{"flags":[]}"#, "replace"),
            // Whether the body can be parsed is decided later.
            (200, html, "replace"),
            (304, "", "unchanged"),
            (401, DENIED, "clear"),
            (402, r#"{"detail":"Feature flags quota exceeded","code":"payment_required"}"#, "clear"),
            (403, DENIED, "clear"),
            // A proxy, which cannot know whether the key is valid.
            (401, html, "failed"),
            (403, "", "failed"),
            (403, "[]", "failed"),
            (402, html, "failed"),
            (400, DENIED, "failed"),
            (404, html, "failed"),
            (407, "", "failed"),
            (408, "", "failed"),
            (429, DENIED, "failed"),
            (500, "", "failed"),
            (503, DENIED, "failed"),
            (204, "", "failed"),
            (206, r#"{"flags":[]}"#, "failed"),
            (302, "", "failed"),
            (0, "", "failed"),
            (999, "", "failed"),
        ] {
            assert_eq!(kind(&of(status, body)), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_truncated_response_replaces_nothing() {
        let cut = Response { status: 200, body: br#"{"flags":[]}"#.to_vec(), is_cut: true, ..Response::default() };
        assert_eq!(kind(&interpret(&cut, true)), "failed");
    }

    #[test]
    fn not_modified_fails_if_nothing_is_loaded() {
        let unchanged = Response { status: 304, ..Response::default() };
        assert_eq!(kind(&interpret(&unchanged, false)), "failed");
    }

    #[test]
    fn the_message_is_passed_on() {
        let busy = Response { status: 429, body: "x".repeat(5000).into_bytes(), ..Response::default() };
        let Err(FlagDefinitionsError::Unavailable(why)) = interpret(&busy, true) else { panic!("not failed") };
        assert!(why.starts_with("HTTP status 429: xxx") && why.len() < 1100, "{}", why.len());
        let Err(FlagDefinitionsError::Refused { status: 401, why }) = of(401, DENIED) else { panic!("not cleared") };
        assert!(why.contains("invalid_api_key"), "{why}");
    }

    #[test]
    fn fdl_04_a_request_has_the_project_the_key_and_the_etag() {
        let request = request("https://ph.test/sub", "phc_1", &SecretKey::new("phx_2"), Some("W/\"3\""));
        assert_eq!(&*request.url, "https://ph.test/sub/flags/definitions?token=phc_1&send_cohorts");
        let expected = [("authorization", "Bearer phx_2".to_owned()), ("if-none-match", "W/\"3\"".to_owned())];
        assert_eq!((request.headers.as_slice(), request.body.len()), (expected.as_slice(), 0));
        assert_eq!(percent_encoded("a&b c\u{e9}"), "a%26b%20c%C3%A9");
    }
}
