//! The types of the transport's interface: requests, responses and errors.

use std::error::Error;
use std::fmt::{self, Debug};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

use crate::sys::clock::WallNanos;
use crate::sys::limits;

/// The most bytes that are read of the body of an ordinary response.
pub(crate) const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// A request.
#[derive(Clone, Default)]
pub(crate) struct Request {
    pub(crate) url: Arc<str>,
    /// Headers in addition to those of the options.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// The body as it is sent with the method POST. A request without a body is a GET.
    pub(crate) body: Vec<u8>,
    /// The most bytes that are read of the response's body: [`MAX_RESPONSE_BYTES`] unless a longer response is
    /// expected.
    pub(crate) max_answer: usize,
}

impl Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers and body contain the key.
        f.debug_struct("Request").field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// A response, from the server or from a proxy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// The `Retry-After` header, if it can be parsed.
    pub(crate) retry_after: Option<RetryAfter>,
    /// The `ETag` header: the version of the content.
    pub(crate) etag: Option<String>,
    /// Whether the body was longer than what was read.
    pub(crate) is_cut: bool,
    /// The first [`Request::max_answer`] bytes of the body.
    pub(crate) body: Vec<u8>,
}

pub(crate) type Pending = Pin<Box<dyn Future<Output = Result<Response, TransportError>> + Send>>;

/// Sends requests. Tests implement it with a scripted endpoint.
pub(crate) trait Http: Send + Sync {
    /// Sends `request`. Dropping the future cancels the request.
    fn send(&self, request: Request) -> Pending;
}

/// The value of a `Retry-After` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryAfter {
    In(Duration),
    /// At this wall time of the server's clock.
    At(WallNanos),
}

impl RetryAfter {
    /// Parses seconds (`120`, and `1.5`, which some servers send) or an HTTP date; `None` if it is neither.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(seconds) = seconds(text) {
            return Some(RetryAfter::In(seconds));
        }
        static DATE: DateTimeParser = DateTimeParser::new().relaxed_weekday(true);
        let at: Timestamp = DATE.parse_timestamp(text).ok()?;
        // A date out of range is beyond any cap, so it saturates instead of being ignored.
        Some(RetryAfter::At(WallNanos::try_from(at.as_nanosecond()).unwrap_or(WallNanos::MAX)))
    }

    /// The wait from the wall time `wall`; zero if the time has passed.
    pub(crate) fn wait_at(self, wall: WallNanos) -> Duration {
        match self {
            RetryAfter::In(duration) => duration,
            RetryAfter::At(at) => Duration::from_nanos(u64::try_from(at.saturating_sub(wall)).unwrap_or(0)),
        }
    }
}

fn seconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    // A number of seconds that does not fit saturates; the caller caps it.
    let whole = whole.parse::<u64>().unwrap_or(u64::MAX);
    let partly = u64::from(fraction.bytes().any(|digit| digit != b'0'));
    Some(Duration::from_secs(whole.saturating_add(partly)))
}

pub(super) type Source = Box<dyn Error + Send + Sync>;

/// Why there is no response, or no transport. The variants up to `Encoding` concern one request and may be temporary;
/// the others concern the configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    #[error("could not connect; check the host name and that this machine can reach it")]
    Connect(#[source] Source),
    #[error("no response before the timeout; the endpoint or the network is slow, or the request timeout is too short")]
    Timeout(#[source] Source),
    #[error(
        "TLS failed; check this machine's CA certificates and its clock, or configure the endpoint's CA \
         (certificates are read again after such a failure, at most once a minute)"
    )]
    Tls(#[source] Source),
    /// The endpoint asked for a client certificate, and refused what it got.
    #[error("the endpoint refuses this client's certificate; {advice}")]
    ClientCertificate {
        /// What the operator can do.
        advice: String,
        source: Source,
    },
    #[error("could not connect to the proxy {proxy}; check that it runs and that this is its address{remedy}")]
    ProxyDown {
        proxy: String,
        /// A further remedy for the error text, or an empty text.
        remedy: &'static str,
        source: Source,
    },
    #[error("the proxy {proxy} refused to pass the request on; check its rules and the credentials in its URL{remedy}")]
    Proxy {
        proxy: String,
        /// A further remedy for the error text, or an empty text.
        remedy: &'static str,
        source: Source,
    },
    #[error("the connection broke before the response was complete, or the response is not HTTP")]
    Other(#[source] Source),
    /// A successful response in an unknown or damaged encoding: its content is unknown.
    #[error(
        "the response has Content-Encoding {encoding:?}, {problem}; a proxy or load balancer in front of the host \
         must pass responses on unchanged"
    )]
    Encoding { encoding: String, problem: &'static str },
    #[error("the configured proxy is not usable: {reason}")]
    BadProxy { reason: &'static str },
    #[error("CA certificate number {number} of the configuration is not a PEM certificate")]
    BadCertificate { number: usize },
    #[error("the client identity cannot be used: {why}")]
    BadIdentity { why: String },
    #[error("the configured header {name:?} has a name or a value that HTTP does not allow")]
    BadHeader {
        /// Its name; the value may be a secret.
        name: String,
    },
    #[error("the HTTP client could not be set up")]
    Setup(#[source] Source),
}

impl TransportError {
    /// Whether no connection could be established, so that the content of the request cannot be the cause.
    pub(crate) fn is_unreachable(&self) -> bool {
        use TransportError::{ClientCertificate, Connect, Proxy, ProxyDown, Tls};
        matches!(self, Connect(_) | Tls(_) | ClientCertificate { .. } | Proxy { .. } | ProxyDown { .. })
    }

    /// The error and all its sources in one line.
    pub(crate) fn describe(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(link) = next {
            let part = link.to_string();
            // Some errors repeat the text of their source.
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            next = link.source();
        }
        // It contains foreign text, such as names from a proxy or a certificate.
        limits::foreign(&text, 2 * limits::DETAIL_KEPT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read_and_nonsense_is_ignored() {
        let secs = |n| Some(RetryAfter::In(Duration::from_secs(n)));
        for (text, expected) in [
            ("120", secs(120)),
            (" 3 ", secs(3)),
            ("0", secs(0)),
            ("1.5", secs(2)),
            ("2.000", secs(2)),
            ("99999999999999999999999", secs(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(RetryAfter::At(784_111_777_000_000_000))),
            // The weekday is wrong; the date is what counts.
            ("Mon, 06 Nov 1994 08:49:37 GMT", Some(RetryAfter::At(784_111_777_000_000_000))),
            ("", None),
            ("-5", None),
            ("soon", None),
            ("1e9", None),
            (".5", None),
        ] {
            assert_eq!(RetryAfter::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_date_in_the_past_means_now() {
        assert_eq!(RetryAfter::At(5).wait_at(7), Duration::ZERO);
        assert_eq!(RetryAfter::At(9).wait_at(7), Duration::from_nanos(2));
        assert_eq!(RetryAfter::At(i64::MAX).wait_at(i64::MIN), Duration::from_nanos(i64::MAX as u64));
    }
}
