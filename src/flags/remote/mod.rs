//! Requesting flag values from PostHog, and payloads of remote config flags (`payload.rs`).
//!
//! [`RemoteFlags`] makes a task of each request, for the delivery thread's runtime, and reports its result through a
//! callback, exactly once. `reply.rs` reads the response. Responses are not cached here; see `cache.rs`.
//!
//! The endpoint is `POST {host}/flags/?v=2`, or `POST {host}/decide/?v=3` for older servers. Both take the same body,
//! and either may respond in either format: one object per flag, or a map of values and a map of payloads.
//!
//! * The project token is in the body. There is no `Authorization` header: the token is public and authorizes nothing
//!   else.
//! * `groups`, `person_properties`, `group_properties` and `geoip_disable` are always present, because PostHog's
//!   defaults for absent fields differ between server versions.
//! * A flag that PostHog could not evaluate (`failed`) has no value, although its `enabled` is `false`. A flag that
//!   cannot be parsed has no value either. Both set `has_errors`; the other flags are not affected.
//! * A response that is truncated, is not JSON or contains no flags is [`Failure::Unreadable`], never an empty result.
//!   A captive portal must not switch all flags off.
//! * [`RemoteOptions::timeout`] bounds everything: waiting for a permit, all attempts and the waits between them. A
//!   retry whose wait would reach the bound is not made.
//! * During an outage (three requests in a row without a response) one request in 5 s is sent. The others fail at once
//!   with the last failure, so that a program that reads flags in every request it serves does not wait in every one of
//!   them.

mod payload;
mod reply;

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::Semaphore;

use super::answer::{Answer, Failure};
use super::context::FlagContext;
use super::loader::SecretKey;
use crate::report::{Diagnostic, Report};
use crate::sys::backoff::doubled;
use crate::sys::clock::Clock;
use crate::sys::limits::{FLAG_ANSWER_BYTES, FLAG_REQUESTS_AT_ONCE, FLAG_REQUESTS_MOST, NAME_KEPT, foreign};
use crate::sys::throttle::Throttle;
use crate::sys::{reentry, wording};
use crate::transport::{Http, Request, RequestLine, Response, TransportError, logged};

pub(crate) use payload::PayloadDone;
pub use payload::RemoteConfigError;
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use payload::interpret_any;
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use reply::read;

/// The wait before the first retry; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(300);
/// The longest wait before a retry.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The shortest time between two diagnostics of the same kind.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// Requests in a row without a response after which PostHog is considered down. A single one may have been expensive to
/// evaluate.
const OUTAGE_AFTER: u32 = 3;
/// The time between two requests during an outage.
const OUTAGE_RETRY: Duration = Duration::from_secs(5);

/// Where and how flag values are requested.
#[derive(Clone, Debug, Default)]
pub(crate) struct RemoteOptions {
    /// The endpoint for values.
    pub(crate) url: Arc<str>,
    /// PostHog's host, without a trailing slash.
    pub(crate) host: String,
    /// The project's public token.
    pub(crate) token: String,
    /// For payloads of remote config flags.
    pub(crate) secret_key: Option<SecretKey>,
    /// Bound of a request with all its attempts and waits.
    pub(crate) timeout: Duration,
    /// Attempts after the first.
    pub(crate) max_retries: u32,
}

/// Receives the result of a request: on the delivery thread, or on the caller's thread if no request is sent.
pub(crate) type Done = Box<dyn FnOnce(Result<Answer, Failure>) + Send>;

/// Sends requests for flag values; see the module.
pub(crate) struct RemoteFlags {
    options: RemoteOptions,
    http: Arc<dyn Http>,
    clock: Clock,
    report: Report,
    /// One permit for each request that may be in flight.
    permits: Semaphore,
    /// Requests without a result, including those that wait for a permit.
    open: AtomicUsize,
    outage: Mutex<Outage>,
    unanswered: Mutex<Throttle>,
    unreadable: Mutex<Throttle>,
}

impl RemoteFlags {
    pub(crate) fn new(options: RemoteOptions, http: Arc<dyn Http>, clock: Clock, report: Report) -> Arc<Self> {
        Arc::new(Self {
            options,
            http,
            clock,
            report,
            permits: Semaphore::new(FLAG_REQUESTS_AT_ONCE),
            open: AtomicUsize::new(0),
            outage: Mutex::default(),
            unanswered: Mutex::new(Throttle::new(REPORT_INTERVAL)),
            unreadable: Mutex::new(Throttle::new(REPORT_INTERVAL)),
        })
    }

    /// Requests flag values for a context, to which the client has added its defaults and overrides. The task that is
    /// returned is to be run on the delivery thread's runtime, or dropped if the client is closing. Does not block.
    ///
    /// `done` is called exactly once, at the latest after [`RemoteOptions::timeout`] or when the task is dropped. A
    /// panic in it is caught.
    pub(crate) fn request(
        self: &Arc<Self>,
        context: FlagContext,
        done: Done,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let open = OpenRequest { done: Some(done), closed: || Err(Failure::Closed), remote: Arc::clone(self) };
        let is_excess = self.open.fetch_add(1, Ordering::AcqRel) >= FLAG_REQUESTS_MOST;
        let rejected = lock(&self.outage).rejects(&context, self.clock.now(), self.options.timeout);
        if let Some(failure) = rejected.or(is_excess.then_some(Failure::Busy)) {
            self.report(&Err(failure.clone()));
            open.finish(Err(failure));
            return None;
        }
        Some(async move {
            let remote = &open.remote;
            let result = remote.send(&context).await;
            remote.report(&result);
            lock(&remote.outage).record(result.as_ref().err(), remote.clock.now());
            open.finish(result);
        })
    }

    /// Requests the payload of a remote config flag, as [`request`](Self::request) requests values.
    pub(crate) fn request_payload(
        self: &Arc<Self>,
        key: &str,
        done: PayloadDone,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let closed = || Err(RemoteConfigError::Closed);
        let open = OpenRequest { done: Some(done), closed, remote: Arc::clone(self) };
        let is_excess = self.open.fetch_add(1, Ordering::AcqRel) >= FLAG_REQUESTS_MOST;
        let request = match payload::request(&self.options, key) {
            Ok(_) if is_excess => Err(Failure::Busy.into()),
            other => other,
        };
        match request {
            Ok(request) => Some(async move {
                let result = match open.remote.exchange(request).await {
                    Some(result) => payload::interpret(result),
                    None => Err(Failure::Timeout.into()),
                };
                open.finish(result);
            }),
            Err(why) => {
                open.finish(Err(why));
                None
            }
        }
    }

    /// Requests the values, with retries, within [`RemoteOptions::timeout`].
    async fn send(&self, context: &FlagContext) -> Result<Answer, Failure> {
        let request = Request {
            url: Arc::clone(&self.options.url),
            headers: vec![("Content-Type", "application/json".to_owned())],
            body: body(context, &self.options.token),
            max_answer: FLAG_ANSWER_BYTES,
        };
        self.exchange(request).await.map_or(Err(Failure::Timeout), interpret)
    }

    /// Waits for a permit and sends the request, with retries. `None`: that took [`RemoteOptions::timeout`].
    async fn exchange(&self, request: Request) -> Option<Result<Response, TransportError>> {
        let result = async {
            // The semaphore is never closed.
            let _permit = self.permits.acquire().await;
            self.attempts(request).await
        };
        self.clock.within(self.options.timeout, result).await
    }

    /// The result of the last attempt.
    async fn attempts(&self, request: Request) -> Result<Response, TransportError> {
        let RemoteFlags { options, http, clock, .. } = self;
        let began = clock.now();
        let mut retries = 0;
        loop {
            let line = RequestLine::of(&request, None);
            let result = logged(line, http.send(request.clone())).await;
            let wait = wait_before(retries);
            let is_late = clock.now().saturating_duration_since(began).saturating_add(wait) >= options.timeout;
            if !is_retryable(&result) || retries >= options.max_retries || is_late {
                return result;
            }
            retries += 1;
            clock.sleep(wait).await;
        }
    }

    /// Requests without a result.
    #[cfg(test)]
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    fn report(&self, result: &Result<Answer, Failure>) {
        let diagnostic = match result {
            Err(failure) => {
                let occurrences = lock(&self.unanswered).admit(self.clock.now());
                occurrences.map(|requests| Diagnostic::FlagRequestsFailed { why: failure.to_string(), requests })
            }
            Ok(answer) if !answer.unreadable.is_empty() => {
                let occurrences = lock(&self.unreadable).admit(self.clock.now());
                occurrences.map(|_| Diagnostic::FlagsInvalid { keys: answer.unreadable.clone() })
            }
            Ok(_) => None,
        };
        if let Some(diagnostic) = diagnostic {
            (self.report)(diagnostic);
        }
    }
}

/// Whether PostHog responds to requests for flags.
#[derive(Debug, Default)]
struct Outage {
    /// Requests in a row without a response.
    misses: u32,
    /// The failure of the last one, and until when other requests fail with it.
    last: Option<(Failure, Instant)>,
}

impl Outage {
    /// The failure for a request that is not to be sent. While one request probes a server that is down, others are
    /// rejected.
    fn rejects(&mut self, context: &FlagContext, now: Instant, timeout: Duration) -> Option<Failure> {
        if self.misses < OUTAGE_AFTER || context.is_remote {
            return None;
        }
        let (failure, until) = self.last.as_mut()?;
        if now < *until {
            return Some(failure.clone());
        }
        *until = now.checked_add(timeout).unwrap_or(now);
        None
    }

    /// Records the outcome of a request. An error status is a response: it ends an outage.
    fn record(&mut self, failure: Option<&Failure>, now: Instant) {
        match failure {
            Some(failure @ (Failure::Timeout | Failure::Connection(_))) => {
                self.misses = self.misses.saturating_add(1);
                self.last = Some((failure.clone(), now.checked_add(OUTAGE_RETRY).unwrap_or(now)));
            }
            // These say nothing about the server.
            Some(Failure::Busy | Failure::Reentrant | Failure::Closed) => {}
            _ => *self = Self::default(),
        }
    }
}

/// A request without a result. Dropping it reports that the client is closed, so that the caller gets a result even if
/// the runtime drops the task.
struct OpenRequest<R> {
    done: Option<Box<dyn FnOnce(R) + Send>>,
    /// The result of a request that is dropped.
    closed: fn() -> R,
    remote: Arc<RemoteFlags>,
}

impl<R> OpenRequest<R> {
    fn finish(mut self, result: R) {
        if let Some(done) = self.done.take() {
            // A panic in the callback must not unwind into the runtime.
            reentry::caught(|| done(result));
        }
    }
}

impl<R> Drop for OpenRequest<R> {
    fn drop(&mut self) {
        self.remote.open.fetch_sub(1, Ordering::AcqRel);
        if let Some(done) = self.done.take() {
            reentry::caught(|| done((self.closed)()));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of a request.
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
                return Err(is_cut());
            }
            reply::read(&response.body).map_err(Failure::Unreadable)
        }
        Ok(response) => {
            let body = String::from_utf8_lossy(&response.body);
            Err(Failure::Status { status: response.status, why: foreign(&body, NAME_KEPT) })
        }
        Err(error) => Err(error.into()),
    }
}

/// The failure of a response that is too long.
fn is_cut() -> Failure {
    Failure::Unreadable(format!("it is larger than {}", wording::bytes(FLAG_ANSWER_BYTES as u64)))
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Timeout(_) => Failure::Timeout,
            other => Failure::Connection(other.describe()),
        }
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
