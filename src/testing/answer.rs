//! What the server is to answer.

use std::time::Duration;

use serde_json::Value;

use crate::transport::{Response, RetryAfter, TransportError};

/// An answer to one request.
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
    /// `None`: there is none.
    status: Option<u16>,
    /// Where there is none: it is not waited for, either.
    is_unreachable: bool,
    body: Option<String>,
    retry_after: Option<String>,
    etag: Option<String>,
    delay: Duration,
    takes: bool,
}

impl Answer {
    /// 200, in the words of whichever endpoint is asked: every event is taken.
    pub fn ok() -> Self {
        Self::status(200)
    }

    /// A status; below 300 with the words of [`ok`](Answer::ok), else with an empty body. 2xx takes the events, any other does not.
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

    /// No answer: the request times out, after [`delay`](Answer::delay) or else at once. Its events are not taken, unless
    /// [`taking`](Answer::taking) makes it the ambiguous case.
    pub fn timeout() -> Self {
        Self { status: None, takes: false, ..Self::status(200) }
    }

    /// No answer, because there is no connection: nothing is taken.
    pub fn unreachable() -> Self {
        Self { is_unreachable: true, ..Self::timeout() }
    }

    /// 200 with that body, such as the flags of a user, or their definitions.
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

    /// Sets the `ETag` header. Whether a request knows that version already is the test's to look at: it has it in `if-none-match`, and
    /// `Answer::status(304)` says so.
    pub fn etag(mut self, value: impl Into<String>) -> Self {
        self.etag = Some(value.into());
        self
    }

    /// Answers only when the clock has been moved on by so much. The request is recorded at once.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Takes the events whatever the answer says: a gateway's 502 for a request that the server behind it has stored.
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

    /// As the client gets it; `words` are those of the endpoint for a success.
    pub(super) fn into_result(self, words: String) -> Result<Response, TransportError> {
        let Some(status) = self.status else {
            if self.is_unreachable {
                return Err(TransportError::Connect("the script says so".into()));
            }
            return Err(TransportError::Timeout("the script says so".into()));
        };
        let body = self.body.unwrap_or(if status < 300 { words } else { String::new() });
        let retry_after = self.retry_after.as_deref().and_then(RetryAfter::parse);
        Ok(Response { status, retry_after, etag: self.etag, body: body.into_bytes(), ..Response::default() })
    }
}
