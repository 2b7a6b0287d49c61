//! The attempts: the same request until there is an answer, or none is to be had in time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::reply::{self, Reply};
use crate::flags::Failure;
use crate::sys::clock::Clock;
use crate::sys::limits::{FLAG_ANSWER_BYTES, NAME_KEPT, foreign};
use crate::sys::wording;
use crate::transport::{Http, Method, Request, Response, TransportError};

/// Where flags are asked for, and for how long.
#[derive(Clone, Debug, Default)]
pub(crate) struct RemoteOptions {
    /// The endpoint.
    pub(crate) url: Arc<str>,
    /// The project's write-only token.
    pub(crate) token: String,
    /// For a question, with all its attempts and the waits between them.
    pub(crate) timeout: Duration,
    /// Attempts after the first.
    pub(crate) max_retries: u32,
}

/// Whom PostHog is to evaluate flags for: a context in which everything is settled, overrides included.
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
    /// Is put even if PostHog is taken to be down. No part of the request.
    pub(crate) insists: bool,
}

impl Question {
    /// The body of the request.
    fn body(&self, token: &str) -> Vec<u8> {
        // Not `api_key` as well: to PostHog they are two names of one field, which it takes once.
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

/// The wait before the first retry; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(300);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Asks PostHog until it answers or a further attempt is of no use, for at most [`RemoteOptions::timeout`].
pub(crate) async fn ask(
    http: &dyn Http,
    options: &RemoteOptions,
    question: &Question,
    clock: &Clock,
) -> Result<Reply, Failure> {
    tokio::select! {
        // An answer that comes at the last moment is one.
        biased;
        answer = attempts(http, options, question, clock) => answer,
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
        if !is_worth_another(&result) || retries >= options.max_retries {
            return judge(result);
        }
        let wait = wait_before(retries);
        retries += 1;
        if clock.now().saturating_duration_since(began).saturating_add(wait) >= options.timeout {
            return judge(result);
        }
        clock.sleep(wait).await;
    }
}

fn request(url: &Arc<str>, body: Vec<u8>) -> Request {
    Request {
        method: Method::Post,
        url: Arc::clone(url),
        headers: vec![("Content-Type", "application/json".to_owned())],
        body,
        max_answer: FLAG_ANSWER_BYTES,
    }
}

/// How long to wait after so many retries.
fn wait_before(retries: u32) -> Duration {
    FIRST_WAIT.saturating_mul(2_u32.saturating_pow(retries)).min(LONGEST_WAIT)
}

/// Nobody answered, or a gateway that found nobody behind it.
fn is_worth_another(result: &Result<Response, TransportError>) -> bool {
    result.as_ref().map_or(true, |response| matches!(response.status, 502 | 504))
}

/// What is made of the last attempt.
fn judge(result: Result<Response, TransportError>) -> Result<Reply, Failure> {
    match result {
        Ok(response) if (200..300).contains(&response.status) => {
            if response.is_cut {
                return Err(Failure::Unreadable(format!(
                    "it is larger than {}",
                    wording::bytes(FLAG_ANSWER_BYTES as u64)
                )));
            }
            reply::read(&response.body).map_err(Failure::Unreadable)
        }
        Ok(response) => {
            let words = String::from_utf8_lossy(&response.body);
            Err(Failure::Status { status: response.status, why: foreign(&words, NAME_KEPT) })
        }
        Err(TransportError::Timeout(_)) => Err(Failure::Timeout),
        Err(other) => Err(Failure::Connection(other.describe())),
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
