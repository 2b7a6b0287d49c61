//! The payload of a remote config flag.

use serde_json::Value;

use super::super::Client;
use crate::flags::{Failure, RemoteConfigError};
use crate::pipeline::pending::Unanswered;
use crate::pipeline::{Pending, pending};
use crate::sys::reentry;

impl Client {
    /// Requests the payload of a remote config flag, which is the same for everyone. `None` if the flag has none. A
    /// payload that is not JSON is returned as a string.
    ///
    /// Needs [`Config::secret_key`](crate::Config::secret_key). PostHog decrypts an encrypted payload for a personal API
    /// key (`phx_`, with the scope `feature_flag:read`) only; with a project's secret key (`phs_`) the result is
    /// [`RemoteConfigError::Encrypted`]. A key that consists of digits is taken for the id of a flag, by PostHog.
    ///
    /// Each call sends a request, on the delivery thread, with the retries and the timeout of a request for flag values
    /// ([`Config::flag_request_timeout`](crate::Config::flag_request_timeout)). Nothing is cached, and the payload is
    /// kept nowhere: a program that needs it in an outage keeps it itself. Captures nothing.
    ///
    /// # Errors
    ///
    /// [`RemoteConfigError`] says why there is no payload.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// use std::time::Duration;
    ///
    /// match client.get_remote_config_payload("upload-limits").wait(Duration::from_secs(4)) {
    ///     Ok(Some(limits)) => println!("new limits: {limits}"),
    ///     Ok(None) => println!("no limits"),
    ///     Err(error) => println!("the limits stay as they are: {error}"),
    /// }
    /// ```
    pub fn get_remote_config_payload(&self, key: impl AsRef<str>) -> Pending<Result<Option<Value>, RemoteConfigError>> {
        let Ok(client) = self.for_flags() else { return pending::answered(Err(RemoteConfigError::Closed)) };
        let Some(pipeline) = &client.shared.pipeline else {
            return pending::answered(Err(RemoteConfigError::Closed));
        };
        if reentry::inside().refuses_captures() {
            return pending::answered(Err(Failure::Reentrant.into()));
        }
        let (promise, pending) = pending::pending();
        pipeline.request_flag_payload(key.as_ref(), Box::new(move |result| promise.answer(result)));
        pending
    }
}

impl Unanswered for Result<Option<Value>, RemoteConfigError> {
    fn closed() -> Self {
        Err(RemoteConfigError::Closed)
    }

    fn forked() -> Self {
        Err(RemoteConfigError::Forked)
    }
}
