//! One request for flag values: its body, its attempts, and what the last response means.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::reply::{self, Reply};
use crate::flags::Failure;
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

/// What is requested: a context after the client has added its defaults and overrides.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Question {
    pub(crate) distinct_id: String,
    pub(crate) device_id: Option<String>,
    pub(crate) groups: BTreeMap<String, String>,
    pub(crate) person_properties: Map<String, Value>,
    /// By group type.
    pub(crate) group_properties: BTreeMap<String, Map<String, Value>>,
    pub(crate) disable_geoip: bool,
    /// `None`: all flags.
    pub(crate) flag_keys: Option<Vec<String>>,
    /// Sends the request even during an outage. Not part of the body.
    pub(crate) insists: bool,
}

impl Question {
    /// The body of the request.
    fn body(&self, token: &str) -> Vec<u8> {
        // Not `api_key` as well: PostHog treats the two as one field and rejects duplicates.
        let mut body = json!({
            "token": token,
            "distinct_id": self.distinct_id,
            "groups": self.groups,
            "person_properties": self.person_properties,
            "group_properties": self.group_properties,
            "geoip_disable": self.disable_geoip,
        });
        if let Some(device_id) = &self.device_id {
            body["device_id"] = json!(device_id);
        }
        if let Some(keys) = &self.flag_keys {
            body["flag_keys_to_evaluate"] = json!(keys);
        }
        body.to_string().into_bytes()
    }
}

/// Waits for a permit and sends the request, with retries, within [`RemoteOptions::timeout`].
pub(super) async fn send(
    permits: &Semaphore,
    http: &dyn Http,
    options: &RemoteOptions,
    question: &Question,
    clock: &Clock,
) -> Result<Reply, Failure> {
    let answer = async {
        // The semaphore is never closed.
        let _permit = permits.acquire().await;
        attempts(http, options, question, clock).await
    };
    tokio::select! {
        // A response that arrives together with the timeout counts.
        biased;
        answer = answer => answer,
        () = clock.sleep(options.timeout) => Err(Failure::Timeout),
    }
}

async fn attempts(
    http: &dyn Http,
    options: &RemoteOptions,
    question: &Question,
    clock: &Clock,
) -> Result<Reply, Failure> {
    let began = clock.now();
    let body = question.body(&options.token);
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
    FIRST_WAIT.saturating_mul(2_u32.saturating_pow(retries)).min(LONGEST_WAIT)
}

/// No response, or a gateway that could not reach the server. After any other status the caller is better served by an
/// early failure than by a second attempt.
fn is_retryable(result: &Result<Response, TransportError>) -> bool {
    result.as_ref().map_or(true, |response| matches!(response.status, 502 | 504))
}

/// The result of the last attempt.
fn interpret(result: Result<Response, TransportError>) -> Result<Reply, Failure> {
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
