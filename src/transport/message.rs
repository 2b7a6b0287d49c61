//! The types of the seam: a request, its response, and why there is none.

use std::error::Error;
use std::fmt::{self, Debug, Display};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

use crate::sys::clock::WallNanos;
use crate::sys::limits;

/// At most so much of a plain answer's body is read.
pub(crate) const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// What is done to what the URL names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Method {
    /// Something is brought there.
    #[default]
    Post,
    /// It is read; the request has no body.
    Get,
}

/// A request.
#[derive(Default)]
pub(crate) struct Request {
    /// What is asked for.
    pub(crate) method: Method,
    /// Where to.
    pub(crate) url: Arc<str>,
    /// Beside those of the options.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// The bytes as they are sent.
    pub(crate) body: Vec<u8>,
    /// At most so much of the answer's body is read: [`MAX_RESPONSE_BYTES`], unless more has to be said than one verdict.
    pub(crate) max_answer: usize,
}

impl Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers and body have the key.
        f.debug_struct("Request").field("method", &self.method).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// An answer, from whomever it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Response {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The `Retry-After` header, if it can be understood.
    pub(crate) retry_after: Option<RetryAfter>,
    /// The `ETag` header: which version this is.
    pub(crate) etag: Option<String>,
    /// The body was longer than is read.
    pub(crate) is_cut: bool,
    /// The first [`Request::max_answer`] bytes of the body.
    pub(crate) body: Vec<u8>,
}

/// A request under way.
pub(crate) type Pending = Pin<Box<dyn Future<Output = Result<Response, TransportError>> + Send>>;

/// The seam: what sends requests. Tests put an endpoint of their own here.
pub(crate) trait Http: Send + Sync {
    /// Sends `request`. Dropping the future gives the request up.
    fn send(&self, request: Request) -> Pending;
}

/// When the server wants to hear from us again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryAfter {
    /// After so long.
    In(Duration),
    /// At this wall time, by the server's clock.
    At(WallNanos),
}

impl RetryAfter {
    /// Reads seconds (`120`, and `1.5`, which some servers send) or an HTTP date; `None` if it is neither.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(seconds) = seconds(text) {
            return Some(RetryAfter::In(seconds));
        }
        static DATE: DateTimeParser = DateTimeParser::new().relaxed_weekday(true);
        let at: Timestamp = DATE.parse_timestamp(text).ok()?;
        // Far beyond any cap in either direction: saturate instead of refusing.
        Some(RetryAfter::At(WallNanos::try_from(at.as_nanosecond()).unwrap_or(WallNanos::MAX)))
    }

    /// How long from `wall` on; zero if the time has passed.
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
    // More seconds than fit are as good as for ever; the caller caps them.
    let whole = whole.parse::<u64>().unwrap_or(u64::MAX);
    let partly = u64::from(fraction.bytes().any(|digit| digit != b'0'));
    Some(Duration::from_secs(whole.saturating_add(partly)))
}

pub(super) type Source = Box<dyn Error + Send + Sync>;

/// Why there is no answer, or no transport. The first seven are of a request, and each of them may pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    /// No connection.
    #[error("could not connect; check the host's name and that this machine may reach it")]
    Connect(#[source] Source),
    /// No answer in time.
    #[error("no answer in time; the endpoint or the way to it is slow, or the request timeout is too short")]
    Timeout(#[source] Source),
    /// No trust.
    #[error(
        "TLS failed; check this machine's CA certificates and its clock, or configure the endpoint's CA (certificates are read again \
         after such a failure, at most once a minute)"
    )]
    Tls(#[source] Source),
    /// The proxy is not there.
    #[error("could not connect to the proxy {proxy}; check that it runs and that this is its address{remedy}")]
    ProxyDown {
        /// Host and port, and who named it.
        proxy: String,
        /// What else there is to do.
        remedy: &'static str,
        /// What was met.
        source: Source,
    },
    /// No way through the proxy.
    #[error("the proxy {proxy} refused to pass the request on; check its rules and the credentials in its URL{remedy}")]
    Proxy {
        /// Host and port, and who named it.
        proxy: String,
        /// What else there is to do.
        remedy: &'static str,
        /// What was met.
        source: Source,
    },
    /// The connection broke, or the answer is not HTTP.
    #[error("the connection broke before the answer was complete, or the answer is not HTTP")]
    Other(#[source] Source),
    /// A success in an encoding that is not to be had or damaged: what was said is not known.
    #[error(
        "the answer has Content-Encoding {encoding:?}, {problem}; a proxy or load balancer before the host must pass answers on \
         as PostHog sends them"
    )]
    Encoding {
        /// Its name.
        encoding: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The configured proxy cannot be used.
    #[error("the configured proxy is not usable: {reason}")]
    BadProxy {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A configured certificate cannot be used.
    #[error("CA certificate number {number} of the configuration is not a PEM certificate")]
    BadCertificate {
        /// Counted from 1.
        number: usize,
    },
    /// A configured header cannot be sent.
    #[error("the configured header {name:?} has a name or a value that HTTP does not allow")]
    BadHeader {
        /// Its name; the value may be a secret.
        name: String,
    },
    /// The HTTP client could not be built.
    #[error("the HTTP client could not be set up")]
    Setup(#[source] Source),
}

impl TransportError {
    /// Whether there was no connection over which a request could have been sent: no fault of what was in it.
    pub(crate) fn is_unreachable(&self) -> bool {
        use TransportError::{Connect, Proxy, ProxyDown, Tls};
        matches!(self, Connect(_) | Tls(_) | Proxy { .. } | ProxyDown { .. })
    }

    /// The whole chain in one line.
    pub(crate) fn describe(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(link) = next {
            let part = link.to_string();
            // Several layers repeat the text of the layer below.
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            next = link.source();
        }
        // Names and words of others are in it: of a proxy, of a certificate.
        limits::foreign(&text, 2 * limits::DETAIL_KEPT)
    }
}

/// Something about this machine that does not stop us, but that its owner should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Warning {
    /// TLS cannot work until the machine has certificates (package `ca-certificates`) or some are configured.
    NoCertificates,
    /// The named environment variable is not a proxy we can use, and was ignored.
    ProxyIgnored {
        /// The variable's name; its value may hold a password.
        variable: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::NoCertificates => f.write_str(
                "no CA certificates were found: HTTPS requests will fail until the machine has some (package ca-certificates) or \
                 SSL_CERT_FILE names them",
            ),
            Warning::ProxyIgnored { variable, reason } => write!(f, "{variable} is ignored: {reason}"),
        }
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
