//! [`Answer`]: a scripted response.

use std::time::Duration;

use serde_json::Value;

use crate::transport::{Response, RetryAfter, TransportError};

/// The response to one request.
///
/// ```
/// # use std::time::Duration;
/// # use posthog::testing::Answer;
/// let busy = Answer::status(429).retry_after("120");
/// let slow = Answer::ok().delay(Duration::from_secs(3));
/// let lost = Answer::timeout().taking();
/// let flags = Answer::json(serde_json::json!({"flags": {"new-ui": {"enabled": true}}}));
/// # let _ = (busy, slow, lost, flags);
/// ```
#[derive(Clone, Debug)]
pub struct Answer {
    /// `None` if there is no response.
    status: Option<u16>,
    /// If there is no response: whether not even a connection is made.
    is_unreachable: bool,
    body: Option<String>,
    retry_after: Option<String>,
    etag: Option<String>,
    delay: Duration,
    takes: bool,
}

impl Answer {
    /// 200 with the endpoint's usual body: every event is accepted.
    pub fn ok() -> Self {
        Self::status(200)
    }

    /// A status: below 300 with the body of [`ok`](Answer::ok), otherwise with an empty body. 2xx accepts the events,
    /// others do not.
    pub fn status(status: u16) -> Self {
        let takes = (200..300).contains(&status);
        Self {
            status: Some(status),
            is_unreachable: false,
            body: None,
            retry_after: None,
            etag: None,
            delay: Duration::ZERO,
            takes,
        }
    }

    /// No response: the request times out, after [`delay`](Answer::delay) or else at once. Its events are not accepted,
    /// unless [`taking`](Answer::taking) makes it the ambiguous case.
    pub fn timeout() -> Self {
        Self { status: None, takes: false, ..Self::status(200) }
    }

    /// No response, because there is no connection. Nothing is accepted.
    pub fn unreachable() -> Self {
        Self { is_unreachable: true, ..Self::timeout() }
    }

    /// 200 with this body, such as values of flags or their definitions.
    pub fn json(body: impl Into<Value>) -> Self {
        Self::ok().body(body.into().to_string())
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Sets the `Retry-After` header: seconds, or an HTTP date.
    pub fn retry_after(mut self, value: impl Into<String>) -> Self {
        self.retry_after = Some(value.into());
        self
    }

    /// Sets the `ETag` header. The server does not compare versions: a test looks at `if-none-match` of the request and
    /// uses `Answer::status(304)`.
    pub fn etag(mut self, value: impl Into<String>) -> Self {
        self.etag = Some(value.into());
        self
    }

    /// Delays the response until the clock has been moved by this much. The request is recorded at once.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Accepts the events whatever the status: a gateway's 502 for a request that the server behind it has stored.
    pub fn taking(mut self) -> Self {
        self.takes = true;
        self
    }

    pub(super) fn takes(&self) -> bool {
        self.takes
    }

    pub(super) fn status_code(&self) -> Option<u16> {
        self.status
    }

    pub(super) fn after(&self) -> Duration {
        self.delay
    }

    /// The response as the client receives it; `success` is the default body of a success.
    pub(super) fn into_result(self, success: String) -> Result<Response, TransportError> {
        let Some(status) = self.status else {
            if self.is_unreachable {
                return Err(TransportError::Connect("scripted by the test".into()));
            }
            return Err(TransportError::Timeout("scripted by the test".into()));
        };
        let body = self.body.unwrap_or(if status < 300 { success } else { String::new() });
        let retry_after = self.retry_after.as_deref().and_then(RetryAfter::parse);
        Ok(Response { status, retry_after, etag: self.etag, body: body.into_bytes(), ..Response::default() })
    }
}
