//! Requesting flag values from PostHog.
//!
//! [`RemoteFlags`] runs each request as a task on the delivery thread's runtime and reports its result through a
//! callback, exactly once. `request.rs` builds and sends a request and retries it; `reply.rs` reads the response.
//!
//! The endpoint is `POST {host}/flags/?v=2`, or `POST {host}/decide/?v=3` for older servers. Both take the same body
//! ([`FlagContext`]), and either may respond in either format: one object per flag, or a map of values and a map of
//! payloads.
//!
//! # Request
//!
//! * The project token is in the body. There is no `Authorization` header: the token is public and authorizes nothing
//!   else.
//! * `groups`, `person_properties`, `group_properties` and `geoip_disable` are always present, because PostHog's
//!   defaults for absent fields differ between server versions. `flag_keys_to_evaluate` is present only if the caller
//!   named keys.
//!
//! # Response
//!
//! * A flag that PostHog could not evaluate (`failed`) has no value, although its `enabled` is `false`. A flag that
//!   cannot be parsed has no value either. Both set `has_errors`; the other flags are not affected.
//! * A payload is usually JSON in a string. It is parsed, or kept as a string if it is not JSON.
//! * A response that is truncated, is not JSON or contains no flags is [`Failure::Unreadable`], never an empty result.
//!   A captive portal must not switch all flags off.
//!
//! # Limits
//!
//! * A request is retried, with the same bytes, only if there was no response or a gateway responded 502 or 504. The
//!   first wait is 300 ms and doubles up to 5 s.
//! * [`RemoteOptions::timeout`] bounds everything: waiting for a permit, all attempts and the waits between them. A
//!   retry whose wait would reach the bound is not made.
//! * 64 requests are in flight at a time and 1,024 are open in all; further ones fail at once with [`Failure::Busy`].
//! * During an outage (three requests in a row without a response) one request in 5 s is sent. The others fail at once
//!   with the last failure, so that a program that reads flags in every request it serves does not wait in every one of
//!   them.
//! * Responses are not cached here; see `cache.rs`.

mod reply;
mod request;

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::answer::{Answer, Failure};
use super::context::FlagContext;
use crate::report::{Diagnostic, Report};
use crate::sys::clock::Clock;
use crate::sys::limits::{FLAG_REQUESTS_AT_ONCE, FLAG_REQUESTS_MOST};
use crate::sys::reentry;
use crate::sys::throttle::Throttle;
use crate::transport::Http;

#[cfg(fuzzing)]
pub(crate) use reply::read;
pub(crate) use request::RemoteOptions;

/// The shortest time between two diagnostics of the same kind.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// Requests in a row without a response after which PostHog is considered down. A single one may have been expensive to
/// evaluate.
const OUTAGE_AFTER: u32 = 3;
/// The time between two requests during an outage.
const OUTAGE_RETRY: Duration = Duration::from_secs(5);

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
        let open = OpenRequest { done: Some(done), remote: Arc::clone(self) };
        let is_excess = self.open.fetch_add(1, Ordering::AcqRel) >= FLAG_REQUESTS_MOST;
        let rejected = lock(&self.outage).rejects(&context, self.clock.now(), self.options.timeout);
        if let Some(failure) = rejected.or(is_excess.then_some(Failure::Busy)) {
            self.report(&Err(failure.clone()));
            open.finish(Err(failure));
            return None;
        }
        Some(async move {
            let Self { options, http, clock, permits, outage, .. } = &*open.remote;
            let result = request::send(permits, &**http, options, &context, clock).await;
            open.remote.report(&result);
            lock(outage).record(result.as_ref().err(), clock.now());
            open.finish(result);
        })
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

/// A request without a result. Dropping it reports [`Failure::Closed`], so that the caller gets a result even if the
/// runtime drops the task.
struct OpenRequest {
    done: Option<Done>,
    remote: Arc<RemoteFlags>,
}

impl OpenRequest {
    fn finish(mut self, result: Result<Answer, Failure>) {
        if let Some(done) = self.done.take() {
            // A panic in the callback must not unwind into the runtime.
            reentry::caught(|| done(result));
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.remote.open.fetch_sub(1, Ordering::AcqRel);
        if let Some(done) = self.done.take() {
            reentry::caught(|| done(Err(Failure::Closed)));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
