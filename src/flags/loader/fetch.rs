//! One request for definitions.

use std::fmt::{self, Debug};
use std::time::Duration;

use serde_json::Value;

use super::provider::{Provider, within};
use crate::sys::clock::Clock;
use crate::sys::limits;
use crate::transport::{Http, Method, Request, Response, RetryAfter};

/// A key that may read a project's definitions. It is sent to PostHog, and neither shown nor stored anywhere.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretKey(String);

impl SecretKey {
    /// A key as the program gave it.
    pub(crate) fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }
}

impl Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// What to load, and how often. There is a loader only where there is a secret key or a provider.
#[derive(Clone, Debug)]
pub(crate) struct LoaderOptions {
    /// Of PostHog, without a slash at the end.
    pub(crate) host: String,
    /// The project's own, public key.
    pub(crate) api_key: String,
    /// Without it there is only what the provider has.
    pub(crate) secret_key: Option<SecretKey>,
    /// From the end of one load to the next.
    pub(crate) interval: Duration,
    /// For one request.
    pub(crate) timeout: Duration,
    /// A server may make us wait so long and no longer.
    pub(crate) retry_after_cap: Duration,
    /// Asked before PostHog is.
    pub(crate) provider: Option<Provider>,
    /// What is loaded is kept for the next process, in so many bytes at most; `None` if it is not.
    pub(crate) keep: Option<usize>,
}

/// So much of an answer is read: tens of thousands of flags.
pub(super) const ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// Asks PostHog for all definitions or, if `etag` names a version that we have, whether there are newer ones. An error is in one line.
pub(super) async fn ask(
    http: &dyn Http,
    clock: &Clock,
    options: &LoaderOptions,
    secret_key: &SecretKey,
    etag: Option<&str>,
) -> Result<Response, String> {
    let asked = http.send(request(&options.host, &options.api_key, &secret_key.0, etag));
    match within(clock, options.timeout, asked).await {
        Some(answer) => answer.map_err(|error| error.describe()),
        None => Err(format!("no answer within {:?}", options.timeout)),
    }
}

fn request(host: &str, api_key: &str, secret_key: &str, etag: Option<&str>) -> Request {
    // The query names the project: a personal key is of a person, who may have several.
    let url = format!("{host}/flags/definitions?token={}&send_cohorts", percent_encoded(api_key));
    let mut headers = vec![("authorization", format!("Bearer {secret_key}"))];
    headers.extend(etag.map(|etag| ("if-none-match", etag.to_owned())));
    Request { method: Method::Get, url: url.into(), headers, max_answer: ANSWER_BYTES, ..Request::default() }
}

/// A key has nothing that needs it, unless somebody made it up.
fn percent_encoded(text: &str) -> String {
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

/// What to do about an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The body is what is used from now on, if it can be read.
    Replace,
    /// What is there is the newest.
    Unchanged,
    /// The key or the quota is refused: what is there may not be used any more.
    Clear {
        /// 401, 402 or 403.
        status: u16,
        /// In PostHog's words.
        why: String,
    },
    /// No answer to what was asked: what is there stays.
    Failed {
        /// In one line.
        why: String,
        /// When the server wants to hear from us again.
        retry_after: Option<RetryAfter>,
    },
}

/// Judges an answer. `asked_for_changes`: the request named a version that we have.
pub(super) fn judge(response: &Response, asked_for_changes: bool) -> Verdict {
    let status = response.status;
    let failed = |why: String| Verdict::Failed { why, retry_after: response.retry_after };
    match status {
        200 if response.is_cut => failed(format!("the answer is longer than {} bytes", response.body.len())),
        200 => Verdict::Replace,
        304 if asked_for_changes => Verdict::Unchanged,
        401..=403 => {
            let said = said(&response.body);
            if is_posthogs(&response.body) {
                Verdict::Clear { status, why: said }
            } else {
                failed(format!("HTTP status {status}, not in PostHog's words; check Config::host and proxies: {said}"))
            }
        }
        400 | 404 => failed(format!(
            "HTTP status {status}; check Config::host and that the secret key is of this project: {}",
            said(&response.body)
        )),
        _ => failed(format!("HTTP status {status}: {}", said(&response.body))),
    }
}

/// PostHog's error objects have one of these members.
fn is_posthogs(body: &[u8]) -> bool {
    let json = serde_json::from_slice::<Value>(body).ok();
    json.is_some_and(|json| {
        ["error", "detail", "code", "type"].iter().any(|key| json.get(key).is_some_and(Value::is_string))
    })
}

/// The beginning of a body as text.
fn said(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body.get(..limits::DETAIL_KEPT).unwrap_or(body));
    limits::foreign(text.trim(), limits::DETAIL_KEPT)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DENIED: &str = r#"{"type":"authentication_error","code":"invalid_api_key","detail":"Personal API key is invalid.","attr":null}"#;

    fn of(status: u16, body: &str) -> Verdict {
        judge(&Response { status, body: body.as_bytes().to_vec(), ..Response::default() }, true)
    }

    fn kind(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Replace => "replace",
            Verdict::Unchanged => "unchanged",
            Verdict::Clear { .. } => "clear",
            Verdict::Failed { .. } => "failed",
        }
    }

    #[test]
    fn the_table_holds() {
        let html = "<html>Sign in</html>";
        for (status, body, expected) in [
            (200, r#"{"flags":[]}"#, "replace"),
            // Whether it can be read is seen by whoever reads it.
            (200, html, "replace"),
            (304, "", "unchanged"),
            (401, DENIED, "clear"),
            (402, r#"{"detail":"Feature flags quota exceeded","code":"payment_required"}"#, "clear"),
            (403, DENIED, "clear"),
            // Somebody on the way, who knows nothing of our key.
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
    fn an_answer_that_was_cut_replaces_nothing() {
        let cut = Response { status: 200, body: br#"{"flags":[]}"#.to_vec(), is_cut: true, ..Response::default() };
        assert_eq!(kind(&judge(&cut, true)), "failed");
    }

    #[test]
    fn not_modified_is_no_answer_to_whoever_has_nothing() {
        let unchanged = Response { status: 304, ..Response::default() };
        assert_eq!(kind(&judge(&unchanged, false)), "failed");
    }

    #[test]
    fn what_the_server_asks_for_and_what_it_says_is_passed_on() {
        let wait = Some(RetryAfter::In(Duration::from_secs(9)));
        let busy =
            Response { status: 429, retry_after: wait, body: "x".repeat(5000).into_bytes(), ..Response::default() };
        let Verdict::Failed { why, retry_after } = judge(&busy, true) else { panic!("not failed") };
        assert_eq!(retry_after, wait);
        assert!(why.starts_with("HTTP status 429: xxx") && why.len() < 1100, "{}", why.len());
        let Verdict::Clear { status: 401, why } = of(401, DENIED) else { panic!("not cleared") };
        assert!(why.contains("invalid_api_key"), "{why}");
    }

    #[test]
    fn fdl_04_a_request_names_the_project_the_key_and_the_version_that_is_there() {
        let request = request("https://ph.test/sub", "phc_1", "phx_2", Some("W/\"3\""));
        assert_eq!(&*request.url, "https://ph.test/sub/flags/definitions?token=phc_1&send_cohorts");
        let expected = [("authorization", "Bearer phx_2".to_owned()), ("if-none-match", "W/\"3\"".to_owned())];
        assert_eq!((request.headers.as_slice(), request.body.len()), (expected.as_slice(), 0));
        assert_eq!(percent_encoded("a&b c\u{e9}"), "a%26b%20c%C3%A9");
    }
}
