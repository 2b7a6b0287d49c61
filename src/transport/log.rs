//! The line of a request in the log, at level `DEBUG`: where it went, how large it was, what came back, how long it took.

use std::future::Future;
use std::time::{Duration, Instant};

use super::message::{Request, Response, TransportError};
use crate::sys::reentry;

/// Splits a URL into scheme and host, and the path. The query is left out, because it may contain a key.
pub(crate) fn host_and_path(url: &str) -> (&str, &str) {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let begins = url.find("://").map_or(0, |at| at + 3);
    let ends = url.get(begins..).and_then(|rest| rest.find('/')).map_or(url.len(), |at| begins + at);
    url.split_at_checked(ends).unwrap_or((url, ""))
}

/// The facts of a request that are known before it is sent.
#[derive(Debug)]
pub(crate) struct RequestLine {
    method: &'static str,
    path: String,
    bytes: usize,
    /// Number of events in it, if it delivers events.
    events: Option<usize>,
}

impl RequestLine {
    pub(crate) fn of(request: &Request, events: Option<usize>) -> Self {
        let (_, path) = host_and_path(&request.url);
        let (bytes, method) = (request.body.len(), if request.body.is_empty() { "GET" } else { "POST" });
        Self { method, path: path.to_owned(), bytes, events }
    }

    fn log(&self, took: Duration, result: &Result<Response, TransportError>) {
        let Self { method, path, bytes, events } = self;
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        // Not as a callback: a program that captures its log lines would make each request the cause of the next.
        reentry::caught(|| match result {
            Ok(Response { status, .. }) => tracing::debug!(
                target: "posthog",
                kind = "request", method, path, status, events, bytes, duration_ms,
                "{method} {path}: HTTP status {status}"
            ),
            Err(error) => tracing::debug!(
                target: "posthog",
                kind = "request", method, path, events, bytes, duration_ms,
                "{method} {path}: {}", error.describe()
            ),
        });
    }
}

/// Waits for the result of a request, and logs it.
pub(crate) async fn logged(
    line: RequestLine,
    request: impl Future<Output = Result<Response, TransportError>>,
) -> Result<Response, TransportError> {
    let began = Instant::now();
    let result = request.await;
    line.log(began.elapsed(), &result);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_query() {
        for (url, expected) in [
            ("https://eu.i.posthog.com/batch/", ("https://eu.i.posthog.com", "/batch/")),
            ("http://h:8/a/flags/definitions?token=phc_1", ("http://h:8", "/a/flags/definitions")),
            ("https://h", ("https://h", "")),
            ("https://h?token=phc_1", ("https://h", "")),
        ] {
            assert_eq!(host_and_path(url), expected);
        }
    }
}
