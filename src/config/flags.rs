//! Knobs of feature flags.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
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
pub(super) struct FlagKnobs {
    protocol: FlagsProtocol,
    request_timeout: Duration,
    request_max_retries: u32,
    only_locally: bool,
    cache_ttl: Duration,
    cache_size: usize,
    called_size: usize,
    send_events: bool,
}

impl Default for FlagKnobs {
    fn default() -> Self {
        Self {
            protocol: FlagsProtocol::default(),
            request_timeout: FLAG_REQUEST_TIMEOUT_DEFAULT,
            request_max_retries: FLAG_REQUEST_MAX_RETRIES_DEFAULT,
            only_locally: false,
            cache_ttl: FLAG_CACHE_TTL_DEFAULT,
            cache_size: FLAG_CACHE_SIZE_DEFAULT,
            called_size: FLAG_CALLED_SIZE_DEFAULT,
            send_events: true,
        }
    }
}

/// What the client goes by when it evaluates flags.
#[derive(Clone, Debug)]
pub(crate) struct FlagSettings {
    /// Unless a context says otherwise, PostHog is not asked.
    pub(crate) only_locally: bool,
    /// How long an answer serves.
    pub(crate) cache_ttl: Duration,
    /// Answers that are kept.
    pub(crate) cache_size: NonZeroUsize,
    /// Reads that are remembered as told.
    pub(crate) called_size: NonZeroUsize,
    /// Reads are told with `$feature_flag_called`.
    pub(crate) send_events: bool,
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

    /// How long PostHog's answer for a context serves without PostHog being asked again. In an outage it serves longer, see
    /// [`Client::evaluate_flags`](crate::Client::evaluate_flags). Default 60 s, most a day; zero: nothing is kept, for an outage neither.
    pub fn flag_cache_ttl(mut self, ttl: Duration) -> Self {
        self.flags.cache_ttl = ttl;
        self
    }

    /// Contexts whose answers are kept: each combination of person, groups, properties and keys. The one that was asked for longest ago goes
    /// first. An answer takes about as much memory as its flags with their payloads. Default 1000, least 1, most 1,000,000.
    pub fn flag_cache_size(mut self, contexts: usize) -> Self {
        self.flags.cache_size = contexts;
        self
    }

    /// Reads of flags that are remembered, so that each is told once with `$feature_flag_called`: combinations of person, groups and flag. The
    /// one that was read longest ago goes first, and is told again if it comes again. About 80 bytes each. Default 50,000, least 1, most
    /// 10,000,000.
    pub fn flag_called_size(mut self, reads: usize) -> Self {
        self.flags.called_size = reads;
        self
    }

    /// Whether reads of flags are told with `$feature_flag_called`, by which PostHog counts experiments and the use of flags. One context can
    /// say no for itself: [`FlagContext::send_feature_flag_events`](crate::FlagContext::send_feature_flag_events). Default: on.
    pub fn send_feature_flag_events(mut self, on: bool) -> Self {
        self.flags.send_events = on;
        self
    }

    pub(super) fn flag_settings(&self) -> Result<FlagSettings, Error> {
        let knobs = &self.flags;
        within("flag_cache_ttl", knobs.cache_ttl, &FLAG_CACHE_TTL)?;
        Ok(FlagSettings {
            only_locally: knobs.only_locally,
            cache_ttl: knobs.cache_ttl,
            cache_size: size("flag_cache_size", knobs.cache_size, &FLAG_CACHE_SIZE)?,
            called_size: size("flag_called_size", knobs.called_size, &FLAG_CALLED_SIZE)?,
            send_events: knobs.send_events,
        })
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

/// Bounds of sizes begin at one.
fn size(field: &'static str, value: usize, bounds: &RangeInclusive<usize>) -> Result<NonZeroUsize, Error> {
    Ok(NonZeroUsize::new(within(field, value, bounds)?).unwrap_or(NonZeroUsize::MIN))
}
