//! Knobs of feature flags.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::check::within;
use super::choices::FlagsProtocol;
use crate::error::Error;
use crate::flags::loader::{LoaderOptions, Provider, SecretKey};
use crate::flags::{AsyncFlagDefinitionProvider, FlagDefinitionProvider, RemoteOptions};
use crate::queue::Project;
use crate::sys::limits::*;

/// As they were set.
#[derive(Clone)]
pub(crate) struct FlagKnobs {
    protocol: FlagsProtocol,
    request_timeout: Duration,
    request_max_retries: u32,
    only_locally: bool,
    cache_ttl: Duration,
    cache_size: usize,
    called_size: usize,
    send_events: bool,
    secret_key: Option<String>,
    poll_interval: Duration,
    provider: Option<Provider>,
    keep_definitions: bool,
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
            secret_key: None,
            poll_interval: FLAG_POLL_INTERVAL_DEFAULT,
            provider: None,
            keep_definitions: true,
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
    pub fn flag_called_cache_size(mut self, reads: usize) -> Self {
        self.flags.called_size = reads;
        self
    }

    /// Whether reads of flags are told with `$feature_flag_called`, by which PostHog counts experiments and the use of flags. One context can
    /// say no for itself: [`FlagContext::send_feature_flag_events`](crate::FlagContext::send_feature_flag_events). Default: on.
    pub fn send_feature_flag_events(mut self, on: bool) -> Self {
        self.flags.send_events = on;
        self
    }

    /// A secret that may read the definitions of flags (`phs_...`, or a personal `phx_...`): with it flags are evaluated here, without
    /// asking PostHog. Definitions are loaded when the client is made, and then every
    /// [`flag_poll_interval`](Self::flag_poll_interval). Default: none, and nothing is polled. It is sent to
    /// [`host`](Self::host) and nowhere else, and never stored.
    pub fn secret_key(mut self, key: impl Into<String>) -> Self {
        self.flags.secret_key = Some(key.into());
        self
    }

    /// From one load of definitions to the next, a tenth more or less. After failures it becomes longer, up to 5 min. Default 30 s, least
    /// 1 s, most 1 day.
    pub fn flag_poll_interval(mut self, interval: Duration) -> Self {
        self.flags.poll_interval = interval;
        self
    }

    /// A cache of definitions that several processes share: it decides which of them ask PostHog. Replaces one that was given before, of
    /// either kind. Default: none. Without a [`secret_key`](Self::secret_key) definitions come from it alone.
    pub fn flag_definitions_provider(mut self, provider: impl FlagDefinitionProvider + 'static) -> Self {
        self.flags.provider = Some(Provider::Sync(Arc::new(provider)));
        self
    }

    /// The same, for a cache that is awaited.
    pub fn flag_definitions_async_provider(mut self, provider: impl AsyncFlagDefinitionProvider + 'static) -> Self {
        self.flags.provider = Some(Provider::Async(Arc::new(provider)));
        self
    }

    /// Whether the definitions that were loaded last are kept in the queue's file, up to 4 MiB of them compressed: a process that starts
    /// while PostHog is down evaluates with them at once, and says how old they are
    /// ([`Client::flag_definitions_age`](crate::Client::flag_definitions_age)). Default: they are.
    pub fn keep_flag_definitions(mut self, keep: bool) -> Self {
        self.flags.keep_definitions = keep;
        self
    }

    pub(super) fn flag_settings(&self) -> Result<FlagSettings, Error> {
        let knobs = &self.flags;
        within("flag_cache_ttl", knobs.cache_ttl, &FLAG_CACHE_TTL)?;
        Ok(FlagSettings {
            only_locally: knobs.only_locally,
            cache_ttl: knobs.cache_ttl,
            cache_size: size("flag_cache_size", knobs.cache_size, &FLAG_CACHE_SIZE)?,
            called_size: size("flag_called_cache_size", knobs.called_size, &FLAG_CALLED_SIZE)?,
            send_events: knobs.send_events,
        })
    }

    /// `None`: there is nobody to load from.
    pub(super) fn flag_definitions(&self, project: &Project) -> Result<Option<LoaderOptions>, Error> {
        let knobs = &self.flags;
        let interval = within("flag_poll_interval", knobs.poll_interval, &FLAG_POLL_INTERVAL)?;
        let secret_key = knobs.secret_key.as_deref().map(secret_key).transpose()?;
        if secret_key.is_none() && knobs.provider.is_none() {
            return Ok(None);
        }
        let room = usize::try_from(self.max_queue_bytes / 8).unwrap_or(usize::MAX);
        Ok(Some(LoaderOptions {
            host: project.host.clone(),
            api_key: project.api_key.clone(),
            secret_key,
            interval,
            timeout: FLAG_DEFINITIONS_TIMEOUT,
            retry_after_cap: self.retry_after_cap,
            provider: knobs.provider.clone(),
            keep: knobs.keep_definitions.then(|| FLAG_DEFINITIONS_KEPT.min(room)),
        }))
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

/// Nothing of it is ever repeated.
fn secret_key(key: &str) -> Result<SecretKey, Error> {
    let key = key.trim();
    if key.is_empty() {
        return Err(Error::config("secret_key", "is blank"));
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::config("secret_key", "holds white space, or characters that no key has"));
    }
    if key.starts_with("phc_") {
        let why =
            "is a project's public key (phc_), which may not read definitions: give one that begins with phs_ or phx_";
        return Err(Error::config("secret_key", why));
    }
    Ok(SecretKey::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new("phc_test").queue_dir("/q")
    }

    fn loads(config: Config) -> Result<Option<LoaderOptions>, Error> {
        config.check().map(|checked| checked.worker.unwrap().flag_definitions)
    }

    #[test]
    fn without_a_secret_key_and_a_provider_nothing_is_loaded() {
        assert!(loads(config()).unwrap().is_none());
        assert!(loads(config().secret_key("phs_1")).unwrap().is_some());
    }

    #[test]
    fn a_secret_key_is_never_shown() {
        let config = config().secret_key("phx_verysecret");
        let shown = format!("{config:?} {:?}", loads(config.clone()).unwrap().unwrap());
        assert!(!shown.contains("verysecret"), "{shown}");
        let Err(error) = loads(config.secret_key("phx_very secret")) else { panic!("taken") };
        assert!(!format!("{error:?} {error}").contains("very"), "{error}");
    }

    #[test]
    fn a_key_or_an_interval_that_cannot_be_meant_is_refused_by_name() {
        let refused = |config: Config| match loads(config) {
            Err(Error::Config { field, .. }) => field,
            _ => "",
        };
        for key in ["", " ", "phc_1", "phx_\n1", "phx_\u{e9}"] {
            assert_eq!(refused(config().secret_key(key)), "secret_key", "{key:?}");
        }
        assert_eq!(refused(config().secret_key(" phs_1\n")), "", "as a file with a key in it ends");
        for seconds in [0, 86_401] {
            assert_eq!(refused(config().flag_poll_interval(Duration::from_secs(seconds))), "flag_poll_interval");
        }
    }

    #[test]
    fn what_is_kept_leaves_most_of_a_small_queue_to_events() {
        let keep = |config: Config| loads(config.secret_key("phs_1")).unwrap().unwrap().keep;
        assert_eq!(keep(config()), Some(4 * 1024 * 1024));
        assert_eq!(keep(config().max_queue_bytes(1024 * 1024)), Some(128 * 1024));
        assert_eq!(keep(config().keep_flag_definitions(false)), None);
    }
}
