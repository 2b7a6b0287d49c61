//! Knobs of feature flags.

use std::time::Duration;

use super::Config;
use super::check::within;
use super::choices::FlagsProtocol;
use crate::error::Error;
use crate::flags::RemoteOptions;
use crate::limits::*;
use crate::shard::Project;

/// As they were set.
#[derive(Clone)]
pub(crate) struct FlagKnobs {
    protocol: FlagsProtocol,
    request_timeout: Duration,
    request_max_retries: u32,
    only_locally: bool,
}

impl Default for FlagKnobs {
    fn default() -> Self {
        Self {
            protocol: FlagsProtocol::default(),
            request_timeout: FLAG_REQUEST_TIMEOUT_DEFAULT,
            request_max_retries: FLAG_REQUEST_MAX_RETRIES_DEFAULT,
            only_locally: false,
        }
    }
}

/// What the client goes by when it evaluates flags.
#[derive(Clone, Debug)]
pub(crate) struct FlagSettings {
    /// Unless a context says otherwise, PostHog is not asked.
    pub(crate) only_locally: bool,
}

impl Config {
    /// Time for one question to PostHog about flags, all its attempts and the waits between them included. Whoever evaluates flags never
    /// waits longer for PostHog than this; then what is known stands, or the default. Default 3 s, least 50 ms, most 60 s.
    ///
    /// An attempt may take all of it, and is not repeated then. [`request_timeout`](Self::request_timeout) and
    /// [`connect_timeout`](Self::connect_timeout), where they are shorter, end an attempt earlier.
    pub fn flag_request_timeout(mut self, timeout: Duration) -> Self {
        self.flags.request_timeout = timeout;
        self
    }

    /// Attempts after the first, if PostHog cannot be reached or a gateway answers 502 or 504; no other answer is asked for again. They come 300 ms
    /// after the failure, then 600 ms, doubling up to 5 s, as long as [`flag_request_timeout`](Self::flag_request_timeout) allows.
    /// Default 1, most 10.
    pub fn flag_request_max_retries(mut self, retries: u32) -> Self {
        self.flags.request_max_retries = retries;
        self
    }

    /// Which endpoint is asked for flags. Default [`FlagsProtocol::V2`].
    pub fn flags_protocol(mut self, protocol: FlagsProtocol) -> Self {
        self.flags.protocol = protocol;
        self
    }

    /// Flags that cannot be evaluated here have no value: PostHog is not asked, unless
    /// [`FlagContext::only_locally`](crate::FlagContext::only_locally) says otherwise for one call. Default: it is.
    pub fn only_evaluate_flags_locally(mut self, only: bool) -> Self {
        self.flags.only_locally = only;
        self
    }

    pub(super) fn flag_settings(&self) -> Result<FlagSettings, Error> {
        Ok(FlagSettings { only_locally: self.flags.only_locally })
    }

    pub(super) fn remote_flags(&self, project: &Project) -> Result<RemoteOptions, Error> {
        let knobs = &self.flags;
        let path = match knobs.protocol {
            FlagsProtocol::V2 => "/flags/?v=2",
            FlagsProtocol::Decide => "/decide/?v=3",
        };
        Ok(RemoteOptions {
            url: format!("{}{path}", project.host).into(),
            token: project.api_key.clone(),
            timeout: within("flag_request_timeout", knobs.request_timeout, &FLAG_REQUEST_TIMEOUT)?,
            max_retries: within("flag_request_max_retries", knobs.request_max_retries, &FLAG_REQUEST_MAX_RETRIES)?,
        })
    }
}
