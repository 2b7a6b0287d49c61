//! Settings of feature flags.

use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::FlagsProtocol;
use super::check::within;
use crate::error::Error;
use crate::flags::loader::{LoaderOptions, Provider, SecretKey};
use crate::flags::{AsyncFlagDefinitionProvider, FlagDefinitionProvider, RemoteOptions};
use crate::queue::Project;
use crate::sys::limits::*;

/// The settings as the program gave them.
#[derive(Clone)]
pub(crate) struct FlagOptions {
    protocol: FlagsProtocol,
    request_timeout: Duration,
    request_max_retries: u32,
    secret_key: Option<String>,
    poll_interval: Duration,
    provider: Option<Provider>,
    keep_definitions: bool,
    evaluation: FlagSettings,
}

impl Default for FlagOptions {
    fn default() -> Self {
        Self {
            protocol: FlagsProtocol::default(),
            request_timeout: FLAG_REQUEST_TIMEOUT_DEFAULT,
            request_max_retries: FLAG_REQUEST_MAX_RETRIES_DEFAULT,
            secret_key: None,
            poll_interval: FLAG_POLL_INTERVAL_DEFAULT,
            provider: None,
            keep_definitions: true,
            evaluation: FlagSettings {
                only_locally: false,
                cache_ttl: FLAG_CACHE_TTL_DEFAULT,
                cache_size: FLAG_CACHE_SIZE_DEFAULT,
                called_size: FLAG_CALLED_SIZE_DEFAULT,
                send_events: true,
            },
        }
    }
}

/// The settings of a client's evaluations.
#[derive(Clone, Debug)]
pub(crate) struct FlagSettings {
    /// PostHog is not asked, unless a context says otherwise.
    pub(crate) only_locally: bool,
    /// How long a response is fresh.
    pub(crate) cache_ttl: Duration,
    /// The number of cached responses.
    pub(crate) cache_size: usize,
    /// The number of remembered reads.
    pub(crate) called_size: usize,
    /// Reads capture `$feature_flag_called`.
    pub(crate) send_events: bool,
}

impl Config {
    /// Timeout of a request to PostHog for flag values, including retries and the waits between them. An evaluation
    /// never takes longer than this; it then returns the last known values, or defaults. Default 3 s, least 50 ms, most
    /// 60 s.
    ///
    /// One attempt may use the whole timeout and is then not repeated. [`request_timeout`](Self::request_timeout) and
    /// [`connect_timeout`](Self::connect_timeout) end an attempt earlier if they are shorter.
    pub fn flag_request_timeout(mut self, timeout: Duration) -> Self {
        self.flags.request_timeout = timeout;
        self
    }

    /// Attempts after the first, if PostHog cannot be reached or a gateway responds 502 or 504. Other responses are not
    /// retried. The waits are 300 ms, then 600 ms, doubling up to 5 s, as far as
    /// [`flag_request_timeout`](Self::flag_request_timeout) allows. Default 1, most 10.
    pub fn flag_request_max_retries(mut self, retries: u32) -> Self {
        self.flags.request_max_retries = retries;
        self
    }

    /// The endpoint for flag values. Default [`FlagsProtocol::V2`].
    pub fn flags_protocol(mut self, protocol: FlagsProtocol) -> Self {
        self.flags.protocol = protocol;
        self
    }

    /// Whether flags that cannot be evaluated locally have no value instead of being requested from PostHog.
    /// [`FlagContext::only_locally`](crate::feature_flags::FlagContext::only_locally) overrides this for one call.
    /// Default: off.
    pub fn only_evaluate_flags_locally(mut self, only: bool) -> Self {
        self.flags.evaluation.only_locally = only;
        self
    }

    /// How long PostHog's response for a context is used without a new request. During an outage it is used for longer,
    /// see [`Client::evaluate_flags`](crate::Client::evaluate_flags). Default 60 s, most one day. Zero disables the
    /// cache, for outages too.
    pub fn flag_cache_ttl(mut self, ttl: Duration) -> Self {
        self.flags.evaluation.cache_ttl = ttl;
        self
    }

    /// The number of contexts whose responses are cached. A context is a combination of person, groups, properties and
    /// keys. The least recently used is evicted first. A response takes about as much memory as its flags and payloads.
    /// Default 1000, least 1, most 1,000,000.
    pub fn flag_cache_size(mut self, contexts: usize) -> Self {
        self.flags.evaluation.cache_size = contexts;
        self
    }

    /// The number of reads that are remembered, so that each captures `$feature_flag_called` once. A read is a
    /// combination of person, groups and flag. The least recently used is evicted first, and is captured again if it
    /// recurs. About 80 bytes each. Default 50,000, least 1, most 10,000,000.
    pub fn flag_called_cache_size(mut self, reads: usize) -> Self {
        self.flags.evaluation.called_size = reads;
        self
    }

    /// Whether reads of flags capture `$feature_flag_called`, from which PostHog counts exposures to experiments and
    /// the use of flags.
    /// [`FlagContext::send_feature_flag_events`](crate::feature_flags::FlagContext::send_feature_flag_events) turns it
    /// off for one call. Default: on.
    pub fn send_feature_flag_events(mut self, on: bool) -> Self {
        self.flags.evaluation.send_events = on;
        self
    }

    /// The secret key for loading definitions of flags: a feature flags secure key (`phs_...`) or a personal key
    /// (`phx_...`). With it, flags are evaluated locally. Definitions are loaded when the client is made, and then
    /// every [`flag_poll_interval`](Self::flag_poll_interval).
    /// [`Client::get_remote_config_payload`](crate::Client::get_remote_config_payload) needs it too, and a personal key
    /// for encrypted payloads. The key is sent to [`host`](Self::host) only, and never stored. Default: none, and nothing
    /// is loaded.
    pub fn secret_key(mut self, key: impl Into<String>) -> Self {
        self.flags.secret_key = Some(key.into());
        self
    }

    /// The time between two loads of definitions, with a jitter of a tenth. Grows after failures, up to 5 min. Default
    /// 30 s, least 1 s, most 1 day.
    pub fn flag_poll_interval(mut self, interval: Duration) -> Self {
        self.flags.poll_interval = interval;
        self
    }

    /// A blocking cache of definitions that several processes share. It decides which of them request the definitions
    /// from PostHog. Without a [`secret_key`](Self::secret_key), definitions come from the provider alone. Replaces an
    /// earlier provider of either kind. Default: none.
    pub fn flag_definitions_provider(mut self, provider: impl FlagDefinitionProvider + 'static) -> Self {
        self.flags.provider = Some(Provider::Sync(Arc::new(provider)));
        self
    }

    /// Like [`flag_definitions_provider`](Self::flag_definitions_provider), for an async cache.
    pub fn flag_definitions_async_provider(mut self, provider: impl AsyncFlagDefinitionProvider + 'static) -> Self {
        self.flags.provider = Some(Provider::Async(Arc::new(provider)));
        self
    }

    /// Whether loaded definitions are kept in the queue's file, up to 4 MiB compressed. A process that starts while
    /// PostHog is down then evaluates flags at once;
    /// [`Client::flag_definitions_age`](crate::Client::flag_definitions_age) tells how old the definitions are.
    /// Default: on.
    pub fn keep_flag_definitions(mut self, keep: bool) -> Self {
        self.flags.keep_definitions = keep;
        self
    }

    pub(super) fn flag_settings(&self) -> Result<FlagSettings, Error> {
        let settings = &self.flags.evaluation;
        within("flag_cache_ttl", settings.cache_ttl, &FLAG_CACHE_TTL)?;
        within("flag_cache_size", settings.cache_size, &FLAG_CACHE_SIZE)?;
        within("flag_called_cache_size", settings.called_size, &FLAG_CALLED_SIZE)?;
        Ok(settings.clone())
    }

    /// `None`: there is neither a secret key nor a provider.
    pub(super) fn flag_definitions(&self, project: &Project) -> Result<Option<LoaderOptions>, Error> {
        let settings = &self.flags;
        let interval = within("flag_poll_interval", settings.poll_interval, &FLAG_POLL_INTERVAL)?;
        let secret_key = settings.secret_key.as_deref().map(secret_key).transpose()?;
        if secret_key.is_none() && settings.provider.is_none() {
            return Ok(None);
        }
        let budget = usize::try_from(self.max_queue_bytes / 8).unwrap_or(usize::MAX);
        Ok(Some(LoaderOptions {
            host: project.host.clone(),
            api_key: project.api_key.clone(),
            secret_key,
            interval,
            timeout: FLAG_DEFINITIONS_TIMEOUT,
            retry_after_cap: self.retry_after_cap,
            provider: settings.provider.clone(),
            keep: settings.keep_definitions.then(|| FLAG_DEFINITIONS_KEPT.min(budget)),
        }))
    }

    pub(super) fn remote_flags(&self, project: &Project) -> Result<RemoteOptions, Error> {
        let settings = &self.flags;
        let path = match settings.protocol {
            FlagsProtocol::V2 => "/flags/?v=2",
            FlagsProtocol::Decide => "/decide/?v=3",
        };
        Ok(RemoteOptions {
            url: format!("{}{path}", project.host).into(),
            host: project.host.clone(),
            secret_key: settings.secret_key.as_deref().map(secret_key).transpose()?,
            token: project.api_key.clone(),
            timeout: within("flag_request_timeout", settings.request_timeout, &FLAG_REQUEST_TIMEOUT)?,
            max_retries: within("flag_request_max_retries", settings.request_max_retries, &FLAG_REQUEST_MAX_RETRIES)?,
        })
    }
}

/// Checks the key. Errors do not contain any part of it.
fn secret_key(key: &str) -> Result<SecretKey, Error> {
    let key = key.trim();
    if key.is_empty() {
        return Err(Error::config("secret_key", "is blank"));
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::config("secret_key", "contains white space or characters that no key has"));
    }
    if key.starts_with("phc_") {
        let why =
            "is a project's public key (phc_), which cannot load definitions: use a key that begins with phs_ or phx_";
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
        config.check().map(|checked| checked.pipeline.unwrap().flag_definitions)
    }

    #[test]
    fn nothing_is_loaded_without_a_secret_key_and_a_provider() {
        assert!(loads(config()).unwrap().is_none());
        assert!(loads(config().secret_key("phs_1")).unwrap().is_some());
    }

    #[test]
    fn a_secret_key_is_never_shown() {
        let config = config().secret_key("phx_verysecret");
        let shown = format!("{config:?} {:?}", loads(config.clone()).unwrap().unwrap());
        assert!(!shown.contains("verysecret"), "{shown}");
        let Err(error) = loads(config.secret_key("phx_very secret")) else { panic!("accepted") };
        assert!(!format!("{error:?} {error}").contains("very"), "{error}");
    }

    #[test]
    fn an_invalid_key_or_interval_is_rejected_by_name() {
        let refused = |config: Config| match loads(config) {
            Err(Error::Config { field, .. }) => field,
            _ => "",
        };
        for key in ["", " ", "phc_1", "phx_\n1", "phx_\u{e9}"] {
            assert_eq!(refused(config().secret_key(key)), "secret_key", "{key:?}");
        }
        assert_eq!(refused(config().secret_key(" phs_1\n")), "", "surrounding white space is trimmed");
        for seconds in [0, 86_401] {
            assert_eq!(refused(config().flag_poll_interval(Duration::from_secs(seconds))), "flag_poll_interval");
        }
    }

    #[test]
    fn kept_definitions_use_at_most_an_eighth_of_the_queue() {
        let keep = |config: Config| loads(config.secret_key("phs_1")).unwrap().unwrap().keep;
        assert_eq!(keep(config()), Some(4 * 1024 * 1024));
        assert_eq!(keep(config().max_queue_bytes(1024 * 1024)), Some(128 * 1024));
        assert_eq!(keep(config().keep_flag_definitions(false)), None);
    }
}
