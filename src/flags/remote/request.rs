//! One request for flag values: its body, its attempts, and what the last response means.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Semaphore;

use super::reply;
use crate::flags::{Answer, Failure, FlagContext};
use crate::sys::backoff::doubled;
use crate::sys::clock::Clock;
use crate::sys::limits::{FLAG_ANSWER_BYTES, NAME_KEPT, foreign};
use crate::sys::wording;
use crate::transport::{Http, Request, Response, TransportError};

/// The wait before the first retry; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(300);
/// The longest wait before a retry.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Where and how flag values are requested.
#[derive(Clone, Debug, Default)]
pub(crate) struct RemoteOptions {
    /// The endpoint.
    pub(crate) url: Arc<str>,
    /// The project's public token.
    pub(crate) token: String,
    /// Bound of a request with all its attempts and waits.
    pub(crate) timeout: Duration,
    /// Attempts after the first.
    pub(crate) max_retries: u32,
}

/// The body of a request. The client has added its defaults and overrides to the context.
fn body(context: &FlagContext, token: &str) -> Vec<u8> {
    // Not `api_key` as well: PostHog treats the two as one field and rejects duplicates.
    let mut body = json!({
        "token": token,
        "distinct_id": context.distinct_id.as_deref().unwrap_or_default(),
        "groups": context.groups,
        "person_properties": context.person_properties,
        "group_properties": context.group_properties,
        "geoip_disable": context.disable_geoip == Some(true),
    });
    if let Some(device_id) = &context.device_id {
        body["device_id"] = json!(device_id);
    }
    if let Some(keys) = &context.flag_keys {
        body["flag_keys_to_evaluate"] = json!(keys);
    }
    body.to_string().into_bytes()
}

/// Waits for a permit and sends the request, with retries, within [`RemoteOptions::timeout`].
pub(super) async fn send(
    permits: &Semaphore,
    http: &dyn Http,
    options: &RemoteOptions,
    context: &FlagContext,
    clock: &Clock,
) -> Result<Answer, Failure> {
    let answer = async {
        // The semaphore is never closed.
        let _permit = permits.acquire().await;
        attempts(http, options, context, clock).await
    };
    clock.within(options.timeout, answer).await.unwrap_or(Err(Failure::Timeout))
}

async fn attempts(
    http: &dyn Http,
    options: &RemoteOptions,
    context: &FlagContext,
    clock: &Clock,
) -> Result<Answer, Failure> {
    let began = clock.now();
    let body = body(context, &options.token);
    let mut retries = 0;
    loop {
        let result = http.send(request(&options.url, body.clone())).await;
        if !is_retryable(&result) || retries >= options.max_retries {
            return interpret(result);
        }
        let wait = wait_before(retries);
        retries += 1;
        if clock.now().saturating_duration_since(began).saturating_add(wait) >= options.timeout {
            return interpret(result);
        }
        clock.sleep(wait).await;
    }
}

fn request(url: &Arc<str>, body: Vec<u8>) -> Request {
    Request {
        url: Arc::clone(url),
        headers: vec![("Content-Type", "application/json".to_owned())],
        body,
        max_answer: FLAG_ANSWER_BYTES,
    }
}

/// The wait after `retries` retries.
fn wait_before(retries: u32) -> Duration {
    doubled(FIRST_WAIT, retries.saturating_add(1)).min(LONGEST_WAIT)
}

/// No response, or a gateway that could not reach the server. After any other status the caller is better served by an
/// early failure than by a second attempt.
fn is_retryable(result: &Result<Response, TransportError>) -> bool {
    result.as_ref().map_or(true, |response| matches!(response.status, 502 | 504))
}

/// The result of the last attempt.
fn interpret(result: Result<Response, TransportError>) -> Result<Answer, Failure> {
    match result {
        Ok(response) if (200..300).contains(&response.status) => {
            if response.is_cut {
                let limit = wording::bytes(FLAG_ANSWER_BYTES as u64);
                return Err(Failure::Unreadable(format!("it is larger than {limit}")));
            }
            reply::read(&response.body).map_err(Failure::Unreadable)
        }
        Ok(response) => {
            let body = String::from_utf8_lossy(&response.body);
            Err(Failure::Status { status: response.status, why: foreign(&body, NAME_KEPT) })
        }
        Err(TransportError::Timeout(_)) => Err(Failure::Timeout),
        Err(other) => Err(Failure::Connection(other.describe())),
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
