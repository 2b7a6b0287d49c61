//! The attempts: the same request until there is an answer, or none is to be had in time.

use std::sync::Arc;
use std::time::Duration;

use super::reply::{self, Reply};
use super::{Question, RemoteOptions};
use crate::flags::Failure;
use crate::sys::clock::Clock;
use crate::sys::limits::{FLAG_ANSWER_BYTES, NAME_KEPT, foreign};
use crate::sys::wording;
use crate::transport::{Http, Method, Request, Response, TransportError};

/// The wait before the first retry; each further one doubles it.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(300);
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
pub(super) fn wait_before(retries: u32) -> Duration {
    FIRST_WAIT.saturating_mul(2_u32.saturating_pow(retries)).min(LONGEST_WAIT)
}

/// Nobody answered, or a gateway that found nobody behind it.
fn is_worth_another(result: &Result<Response, TransportError>) -> bool {
    result.as_ref().map_or(true, |response| matches!(response.status, 502 | 504))
}

/// What is made of the last attempt.
pub(super) fn judge(result: Result<Response, TransportError>) -> Result<Reply, Failure> {
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
