//! The payload of a remote config flag: a value that is the same for everyone, and may be encrypted.
//!
//! The endpoint is `GET {host}/api/projects/@current/feature_flags/{key}/remote_config?token={project token}`, with the
//! secret key as bearer token. The token names the project, because a personal key may have access to several.
//!
//! * A payload is JSON in a JSON string, as for other flags. A string that is not JSON is kept. An empty body means that
//!   the flag has no payload.
//! * PostHog decrypts an encrypted payload for a personal key (`phx_`) only. For a project's secret key (`phs_`) it
//!   returns a marker in place of the payload, which is an error here: a program must not take it for its configuration.
//! * A response that is not PostHog's (a captive portal's page, the HTML of a proxy's 404) is [`RemoteConfigError::Unavailable`].
//! * Permits, retries and the timeout are those of requests for values. An outage of those does not matter here, because
//!   another service of PostHog's may respond.

use serde_json::Value;

use super::super::answer::Failure;
use super::super::loader::percent_encoded;
use super::{RemoteOptions, is_cut, reply};
use crate::sys::limits::{FLAG_ANSWER_BYTES, NAME_KEPT, foreign};
use crate::transport::{Request, Response, TransportError};

/// What PostHog returns in place of a payload that the key may not decrypt.
const REDACTED: &str = "\"********* (encrypted)\"";

/// Receives the payload: on the delivery thread, or on the caller's thread if no request is sent.
pub(crate) type PayloadDone = Box<dyn FnOnce(Result<Option<Value>, RemoteConfigError>) + Send>;

/// Why there is no remote config payload. See
/// [`Client::get_remote_config_payload`](crate::Client::get_remote_config_payload).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteConfigError {
    /// The client has no secret key ([`Config::secret_key`](crate::Config::secret_key)).
    #[error("a remote config payload needs a secret key (Config::secret_key)")]
    NotConfigured,
    /// The project has no flag with this key, or the flag is not a remote config flag.
    #[error("the project has no remote config flag with this key")]
    NotFound,
    /// The payload is encrypted, and PostHog does not decrypt it for this key.
    #[error(
        "the payload is encrypted, and PostHog decrypts it for a personal API key (phx_) only; set that as Config::secret_key"
    )]
    Encrypted,
    /// PostHog rejects the secret key (401, 403).
    #[error(
        "the secret key is refused (HTTP status {status}{}{why}); check that it belongs to this project and, if it is a \
         personal API key, has the scope feature_flag:read",
        if why.is_empty() { "" } else { ": " }
    )]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The beginning of the response.
        why: String,
    },
    /// There was no response, or not with a payload.
    #[error("the remote config payload cannot be loaded: {0}")]
    Unavailable(String),
    /// The client is closed or disabled.
    #[error("the client is closed or disabled")]
    Closed,
    /// The process is a forked child, and the request was made by its parent.
    #[error("the request was made by the parent of this forked process")]
    Forked,
    /// [`Pending::wait`](crate::Pending::wait) ended before the response.
    #[error("the remote config payload was not loaded within the time given")]
    Timeout,
}

impl From<Failure> for RemoteConfigError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Closed => RemoteConfigError::Closed,
            Failure::Status { status: status @ (401 | 403), why } => RemoteConfigError::Refused { status, why },
            other => RemoteConfigError::Unavailable(other.to_string()),
        }
    }
}

/// The request for a flag's payload. An error: none is to be sent.
pub(super) fn request(options: &RemoteOptions, key: &str) -> Result<Request, RemoteConfigError> {
    let Some(secret_key) = &options.secret_key else { return Err(RemoteConfigError::NotConfigured) };
    // No flag has such a key, and in a URL these would lead to another endpoint.
    if matches!(key, "" | "." | "..") {
        return Err(RemoteConfigError::NotFound);
    }
    let (host, key, token) = (&options.host, percent_encoded(key), percent_encoded(&options.token));
    let url = format!("{host}/api/projects/@current/feature_flags/{key}/remote_config?token={token}");
    let headers = vec![("authorization", secret_key.bearer())];
    Ok(Request { url: url.into(), headers, body: Vec::new(), max_answer: FLAG_ANSWER_BYTES })
}

/// The payload in the result of the last attempt.
pub(super) fn interpret(result: Result<Response, TransportError>) -> Result<Option<Value>, RemoteConfigError> {
    let response = match result {
        Ok(response) => response,
        Err(error) => return Err(Failure::from(error).into()),
    };
    match response.status {
        200 if response.is_cut => Err(is_cut().into()),
        200 => payload(&response.body),
        404 if is_empty_or_json(&response.body) => Err(RemoteConfigError::NotFound),
        404 => {
            let why = "HTTP status 404, but not from PostHog; check Config::host and proxies on the way";
            Err(RemoteConfigError::Unavailable(why.to_owned()))
        }
        status => {
            let why = foreign(String::from_utf8_lossy(&response.body).trim(), NAME_KEPT);
            Err(Failure::Status { status, why }.into())
        }
    }
}

fn payload(body: &[u8]) -> Result<Option<Value>, RemoteConfigError> {
    if body.trim_ascii().is_empty() {
        return Ok(None);
    }
    match serde_json::from_slice(body) {
        Ok(Value::String(text)) if text == REDACTED => Err(RemoteConfigError::Encrypted),
        Ok(payload) => Ok(reply::payload(payload)),
        Err(error) => Err(Failure::Unreadable(format!("it is no JSON: {error}")).into()),
    }
}

fn is_empty_or_json(body: &[u8]) -> bool {
    body.trim_ascii().is_empty() || serde_json::from_slice::<Value>(body).is_ok()
}

/// For the fuzz target: a response of any content is a payload, none, or an error.
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) fn interpret_any(status: u16, body: &[u8]) {
    for is_cut in [false, true] {
        let response = Response { status, retry_after: None, etag: None, is_cut, body: body.to_vec() };
        if let Err(error) = interpret(Ok(response)) {
            assert!(!error.to_string().contains(char::is_control), "{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::flags::loader::SecretKey;

    fn of(status: u16, body: &str) -> Result<Option<Value>, RemoteConfigError> {
        interpret(Ok(Response { status, body: body.into(), ..Response::default() }))
    }

    fn kind(result: Result<Option<Value>, RemoteConfigError>) -> String {
        match result {
            Ok(Some(payload)) => payload.to_string(),
            Ok(None) => "none".to_owned(),
            Err(RemoteConfigError::Refused { status, .. }) => format!("refused {status}"),
            Err(RemoteConfigError::Unavailable(_)) => "unavailable".to_owned(),
            Err(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn responses_are_interpreted_as_posthogs_server_means_them() {
        for (status, body, expected) in [
            // JSON in a string, as it is stored.
            (200, r#""{\"limit\": 3}""#, r#"{"limit":3}"#),
            (200, r#""true""#, "true"),
            (200, r#""plain text""#, r#""plain text""#),
            (200, r#"{"limit": 3}"#, r#"{"limit":3}"#),
            (200, "", "none"),
            (200, "null", "none"),
            (200, r#""\"********* (encrypted)\"""#, "Encrypted"),
            (200, "<html>Sign in</html>", "unavailable"),
            (404, "", "NotFound"),
            (404, r#"{"type":"invalid_request","code":"not_found","detail":"Project not found."}"#, "NotFound"),
            (404, "<html>Not Found</html>", "unavailable"),
            (401, "", "refused 401"),
            (403, r#"{"detail":"no"}"#, "refused 403"),
            (402, "", "unavailable"),
            (429, "", "unavailable"),
            (500, "", "unavailable"),
            (302, "", "unavailable"),
        ] {
            assert_eq!(kind(of(status, body)), expected, "{status} {body}");
        }
        let cut = Response { status: 200, is_cut: true, body: b"\"x\"".to_vec(), ..Response::default() };
        assert_eq!(kind(interpret(Ok(cut))), "unavailable");
        let Err(RemoteConfigError::Refused { why, .. }) = of(403, " {\"detail\":\"no\"}\n") else { panic!("taken") };
        assert_eq!(why, r#"{"detail":"no"}"#);
    }

    #[test]
    fn the_request_has_the_key_the_token_and_the_secret() {
        let options = RemoteOptions {
            host: "https://ph.test/sub".to_owned(),
            token: "phc_1".to_owned(),
            secret_key: Some(SecretKey::new("phx_2")),
            ..RemoteOptions::default()
        };
        let made = request(&options, "a/b?c").unwrap();
        let expected = "https://ph.test/sub/api/projects/@current/feature_flags/a%2Fb%3Fc/remote_config?token=phc_1";
        assert_eq!((&*made.url, made.body.is_empty()), (expected, true));
        assert_eq!(made.headers, [("authorization", "Bearer phx_2".to_owned())]);
        for key in ["", ".", ".."] {
            assert!(matches!(request(&options, key), Err(RemoteConfigError::NotFound)));
        }
        assert_eq!(payload(json!(1).to_string().as_bytes()), Ok(Some(json!(1))));
        let none = RemoteOptions { secret_key: None, ..options };
        assert!(matches!(request(&none, "a"), Err(RemoteConfigError::NotConfigured)));
    }
}
