//! One request and its answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, ETAG, HeaderMap, HeaderName, RETRY_AFTER};
use tokio::time::Instant;

use super::encoding::Encoding;
use super::error::in_chain;
use super::pool::{Connections, Pool, noting_connects};
use super::proxy::Ways;
use super::{Method, Request, Response, RetryAfter, TransportError};

/// That a connection has died while it was idle is found out at once. Who hangs up later was at work on the request, and its `sent_at`
/// would be old by then.
const FOUND_OUT_WITHIN: Duration = Duration::from_secs(1);

/// Why an attempt has no answer.
struct Failure {
    error: TransportError,
    /// The connection was there before the request, and died before the answer began: it had died while it was idle.
    was_stale: bool,
}

/// Sends a request, and once more if that is found to be of use and within its time.
pub(super) async fn exchange(pool: Arc<Pool>, request: Request) -> Result<Response, TransportError> {
    let began = Instant::now();
    let most = request.max_answer;
    let connections = pool.current();
    let request = prepare(&connections, request)?;
    // The body is shared, not copied.
    let spare = request.try_clone();
    let ways = &pool.settings().ways;
    let failure = match attempt(&connections, request, most, ways).await {
        Ok(response) => return Ok(response),
        Err(failure) => failure,
    };
    let left = || pool.settings().options.request_timeout.saturating_sub(began.elapsed());
    let again = match &failure.error {
        _ if failure.was_stale => pool.without(&connections),
        // A file system that hangs may keep the certificates for longer.
        TransportError::Tls(_) => {
            let newer = pool.with_certificates_of_now(&connections);
            tokio::time::timeout(left(), newer).await.ok().flatten()
        }
        _ => None,
    };
    match (again, spare) {
        (Some(connections), Some(mut request)) if !left().is_zero() => {
            *request.timeout_mut() = Some(left());
            attempt(&connections, request, most, ways).await.map_err(|failure| failure.error)
        }
        _ => Err(failure.error),
    }
}

fn prepare(connections: &Connections, request: Request) -> Result<reqwest::Request, TransportError> {
    let mut builder = match request.method {
        Method::Post => connections.client.post(&*request.url).body(request.body),
        Method::Get => connections.client.get(&*request.url),
    };
    // Small answers of few servers: compressing them saves nothing.
    builder = builder.header(ACCEPT_ENCODING, "identity");
    for (name, value) in request.headers {
        builder = builder.header(name, value);
    }
    builder.build().map_err(|error| TransportError::Other(error.without_url().into()))
}

async fn attempt(
    connections: &Connections,
    request: reqwest::Request,
    most: usize,
    ways: &Ways,
) -> Result<Response, Failure> {
    let (url, began) = (request.url().clone(), Instant::now());
    let failed = |error, was_stale| Failure { error: TransportError::from_current(error, &url, ways), was_stale };
    let (result, has_connected) = noting_connects(connections.client.execute(request)).await;
    let mut answer = result.map_err(|error| {
        let was_stale = !has_connected && began.elapsed() < FOUND_OUT_WITHIN && is_hang_up(&error);
        failed(error, was_stale)
    })?;
    let encoding = Encoding::of(answer.headers());
    let mut response = Response {
        status: answer.status().as_u16(),
        retry_after: text(answer.headers(), RETRY_AFTER).and_then(RetryAfter::parse),
        etag: text(answer.headers(), ETAG).map(str::to_owned),
        is_cut: false,
        body: Vec::new(),
    };
    let room = encoding.room(most);
    while let Some(part) = answer.chunk().await.map_err(|error| failed(error, false))? {
        let left = room.saturating_sub(response.body.len());
        response.body.extend(part.iter().take(left));
        if part.len() > left {
            response.is_cut = true;
            break;
        }
    }
    decode(response, &encoding, most).map_err(|error| Failure { error, was_stale: false })
}

/// The answer with its body decoded. What cannot be decoded is an error where the body is what counts; beside a failure the status and the
/// headers count, and the body is left out.
fn decode(mut response: Response, encoding: &Encoding, most: usize) -> Result<Response, TransportError> {
    match encoding.decode(&response.body, response.is_cut, most) {
        Ok(None) => {}
        Ok(Some((body, is_cut))) => (response.body, response.is_cut) = (body, is_cut),
        Err(error) if (200..300).contains(&response.status) => return Err(error),
        Err(_) => response.body.clear(),
    }
    Ok(response)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether somebody closed or reset the connection before an answer began. (hyper does not tell apart an answer of no bytes from one that
/// broke off within its head.)
fn is_hang_up(error: &reqwest::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    let is_closed =
        |kind| matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof);
    !error.is_timeout()
        && !error.is_connect()
        && in_chain(error, &|link| {
            link.downcast_ref::<io::Error>().is_some_and(|error| is_closed(error.kind()))
                // hyper's error, which reqwest does not export.
                || link.to_string() == "connection closed before message completed"
        })
}
