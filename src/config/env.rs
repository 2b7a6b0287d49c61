//! Settings from the environment, and the default queue directory.

use std::path::{Path, PathBuf};

use super::{Config, variables};
use crate::error::Error;

impl Config {
    /// Settings from the environment. Without `POSTHOG_API_KEY` the client is [`disabled`](Config::disabled) and reports
    /// that once ([`Diagnostic::KeyMissing`](crate::diagnostics::Diagnostic::KeyMissing)). All
    /// settings can still be changed; then the program decides, whatever the environment says. To let the operator
    /// decide instead, see [`with_env`](Self::with_env).
    ///
    /// | variable | setting | form |
    /// |---|---|---|
    /// | `POSTHOG_API_KEY` | [`new`](Self::new) | `phc_...` |
    /// | `POSTHOG_HOST` | [`host`](Self::host) | `https://eu.i.posthog.com` |
    /// | `POSTHOG_QUEUE_DIR` | [`queue_dir`](Self::queue_dir) | a path |
    /// | `POSTHOG_SECRET_KEY`, else `POSTHOG_PERSONAL_API_KEY` | [`secret_key`](Self::secret_key) | `phs_...`, `phx_...` |
    /// | `POSTHOG_DISABLED` | [`disabled`](Self::disabled) | yes or no |
    /// | `POSTHOG_OPTED_OUT` | [`opted_out`](Self::opted_out) | yes or no |
    /// | `POSTHOG_MEMORY_FALLBACK` | [`memory_fallback`](Self::memory_fallback) | yes or no |
    /// | `POSTHOG_ADOPT_QUEUE` | [`adopt_queue`](Self::adopt_queue) | `key@host`, several separated by commas |
    /// | `POSTHOG_MAX_EVENT_BYTES` | [`max_event_bytes`](Self::max_event_bytes) | bytes |
    /// | `POSTHOG_JOURNAL_BYTES` | [`journal_bytes`](Self::journal_bytes) | bytes |
    /// | `POSTHOG_MAX_QUEUE_BYTES` | [`max_queue_bytes`](Self::max_queue_bytes) | bytes |
    /// | `POSTHOG_MAX_QUEUE_EVENTS` | [`max_queue_events`](Self::max_queue_events) | a number |
    /// | `POSTHOG_MAX_QUEUE_AGE` | [`max_queue_age`](Self::max_queue_age) | a time |
    /// | `POSTHOG_MIN_FREE_SPACE` | [`min_free_space`](Self::min_free_space) | bytes |
    /// | `POSTHOG_OVERFLOW` | [`overflow`](Self::overflow) | `drop-newest`, `drop-oldest` or `block:<time>` |
    /// | `POSTHOG_SYNC_INTERVAL` | [`sync_interval`](Self::sync_interval) | a time |
    /// | `POSTHOG_ACK_INTERVAL` | [`ack_interval`](Self::ack_interval) | a time |
    /// | `POSTHOG_FLUSH_AT` | [`flush_at`](Self::flush_at) | a number |
    /// | `POSTHOG_FLUSH_INTERVAL` | [`flush_interval`](Self::flush_interval) | a time |
    /// | `POSTHOG_SHUTDOWN_TIMEOUT` | [`shutdown_timeout`](Self::shutdown_timeout) | a time |
    /// | `POSTHOG_MAX_BATCH_EVENTS` | [`max_batch_events`](Self::max_batch_events) | a number |
    /// | `POSTHOG_MAX_BATCH_BYTES` | [`max_batch_bytes`](Self::max_batch_bytes) | bytes |
    /// | `POSTHOG_MAX_IN_FLIGHT` | [`max_in_flight`](Self::max_in_flight) | a number |
    /// | `POSTHOG_MAX_RETRIES` | [`max_retries`](Self::max_retries) | a number |
    /// | `POSTHOG_RETRY_AFTER_CAP` | [`retry_after_cap`](Self::retry_after_cap) | a time |
    /// | `POSTHOG_FIRST_SEND_JITTER` | [`first_send_jitter`](Self::first_send_jitter) | a time |
    /// | `POSTHOG_REQUEST_TIMEOUT` | [`request_timeout`](Self::request_timeout) | a time |
    /// | `POSTHOG_CONNECT_TIMEOUT` | [`connect_timeout`](Self::connect_timeout) | a time |
    /// | `POSTHOG_PROXY` | [`proxy`](Self::proxy), [`no_proxy`](Self::no_proxy) | `http://[user:password@]host[:port]`, or `none` |
    /// | `POSTHOG_CA_CERTIFICATE` | [`ca_certificate`](Self::ca_certificate) | the path of a PEM file, which is read at once |
    /// | `POSTHOG_CLIENT_CERT`, `POSTHOG_CLIENT_KEY` | [`client_identity_files`](Self::client_identity_files) | the paths of two PEM files |
    /// | `POSTHOG_RELEASE_ID` | [`release`](Self::release) | the id that PostHog gave the release |
    /// | `POSTHOG_PROTOCOL` | [`protocol`](Self::protocol) | `v0` or `v1` |
    /// | `POSTHOG_COMPRESSION` | [`compression`](Self::compression) | `none`, `gzip`, `deflate`, `brotli` or `zstd` |
    /// | `POSTHOG_DISABLE_GEOIP` | [`disable_geoip`](Self::disable_geoip) | yes or no |
    /// | `POSTHOG_FLAG_REQUEST_TIMEOUT` | [`flag_request_timeout`](Self::flag_request_timeout) | a time |
    /// | `POSTHOG_FLAG_POLL_INTERVAL` | [`flag_poll_interval`](Self::flag_poll_interval) | a time |
    /// | `POSTHOG_KEEP_FLAG_DEFINITIONS` | [`keep_flag_definitions`](Self::keep_flag_definitions) | yes or no |
    /// | `POSTHOG_REPORT_PREVIOUS_RUN` | [`report_previous_run`](Self::report_previous_run) | yes or no |
    /// | `POSTHOG_EXCEPTION_RATE_LIMIT` | [`exception_rate_limit`](Self::exception_rate_limit) | a number and a time, `10/10s`; or `0` |
    /// | `POSTHOG_EXACT_TIMESTAMPS` | [`exact_timestamps`](Self::exact_timestamps) | yes or no |
    /// | `POSTHOG_SYMBOLICATE` | [`symbolicate`](Self::symbolicate) | yes or no |
    /// | `POSTHOG_BREADCRUMB_EVENTS` | [`breadcrumb_events`](Self::breadcrumb_events) | yes or no |
    ///
    /// Bytes are a number, alone or with a unit (`1048576`, `256MiB`); a time always has its unit (`500ms`, `5s`,
    /// `10min`, `12h`, `7d`); yes and no are also `true` and `false`, `on` and `off`, `1` and `0`. An empty variable
    /// counts as unset.
    ///
    /// A value that cannot be used, or that is out of the bounds of its setting, is ignored and reported
    /// ([`Diagnostic::InputIgnored`](crate::diagnostics::Diagnostic::InputIgnored), which names the variable), so that a
    /// typing error does not keep a daemon from starting. With a key, a host or a queue directory that cannot be used
    /// the client is not created, because events would go elsewhere; the error names the variable.
    pub fn from_env() -> Self {
        Self::from_env_by(|name| std::env::var(name).ok())
    }

    /// Replaces settings of the program by those that the environment sets: see the table of
    /// [`from_env`](Self::from_env). Settings of this configuration are the defaults, and the operator decides.
    ///
    /// ```
    /// use std::time::Duration;
    /// use posthog::Config;
    ///
    /// let config = Config::new("phc_example").flush_interval(Duration::from_secs(2)).with_env();
    /// # let _ = config;
    /// ```
    pub fn with_env(self) -> Self {
        self.with_env_by(|name| std::env::var(name).ok())
    }

    fn from_env_by(var: impl Fn(&str) -> Option<String>) -> Self {
        match set(&var, "POSTHOG_API_KEY") {
            Some(_) => Self::new("").with_env_by(var),
            None => Self::without_key(),
        }
    }

    fn with_env_by(mut self, var: impl Fn(&str) -> Option<String>) -> Self {
        if let Some(api_key) = set(&var, "POSTHOG_API_KEY") {
            (self.api_key, self.is_key_of_env) = (api_key, true);
        }
        if let Some(host) = set(&var, "POSTHOG_HOST") {
            (self.host, self.is_host_of_env) = (host, true);
        }
        if set(&var, "POSTHOG_QUEUE_DIR").is_some() {
            // Looked up when the client is created, as without `with_env`.
            self.queue_dir = None;
        }
        if let Some(key) = set(&var, "POSTHOG_SECRET_KEY").or_else(|| set(&var, "POSTHOG_PERSONAL_API_KEY")) {
            self = self.secret_key(key);
        }
        let identity = (set(&var, "POSTHOG_CLIENT_CERT"), set(&var, "POSTHOG_CLIENT_KEY"));
        if identity != (None, None) {
            // One without the other is an error when the client is created.
            self = self.client_identity_files(identity.0.unwrap_or_default(), identity.1.unwrap_or_default());
        }
        variables::apply(self, var)
    }

    /// Adds the variable that a key or a host comes from to an error about it.
    pub(super) fn naming_its_variable(&self, error: Error) -> Error {
        match error {
            Error::Config { field: "api_key", why } if self.is_key_of_env => {
                Error::config("api_key", format!("(from POSTHOG_API_KEY) {why}"))
            }
            Error::Config { field: "host", why } if self.is_host_of_env => {
                Error::config("host", format!("(from POSTHOG_HOST) {why}"))
            }
            other => other,
        }
    }

    /// The directory of the queues.
    pub(crate) fn place(&self) -> Result<PathBuf, Error> {
        self.place_by(|name| std::env::var(name).ok())
    }

    fn place_by(&self, var: impl Fn(&str) -> Option<String>) -> Result<PathBuf, Error> {
        let dir = match &self.queue_dir {
            Some(dir) if dir.as_os_str().is_empty() => return Err(Error::config("queue_dir", "is empty")),
            Some(dir) if begins_with_a_tilde(dir) => {
                return Err(Error::config("queue_dir", format!("{UNEXPANDED}: {dir:?}")));
            }
            Some(dir) => dir.clone(),
            None => match default_queue_dir(var)? {
                Some(dir) => dir,
                // Opening the queue then falls back to memory.
                None if self.memory_fallback => PathBuf::new(),
                None => return Err(Error::config("queue_dir", NOWHERE)),
            },
        };
        // Made absolute, because daemons change their working directory.
        Ok(std::path::absolute(&dir).unwrap_or(dir))
    }
}

/// The value of a variable, unless that is blank.
fn set(var: &impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

const NOWHERE: &str = "is not set, and neither POSTHOG_QUEUE_DIR, STATE_DIRECTORY, XDG_STATE_HOME nor HOME names an absolute path for it; set one of them";

const UNEXPANDED: &str = "begins with ~, which only a shell expands; write the full path";

fn begins_with_a_tilde(dir: &Path) -> bool {
    dir.as_os_str().as_encoded_bytes().starts_with(b"~")
}

/// The first of the usual directories that the environment names. Relative paths are ignored, because they depend on
/// where the daemon is started.
pub(super) fn default_queue_dir(var: impl Fn(&str) -> Option<String>) -> Result<Option<PathBuf>, Error> {
    let set = |name: &str| var(name).filter(|value| !value.is_empty());
    if let Some(dir) = set("POSTHOG_QUEUE_DIR").map(PathBuf::from) {
        if begins_with_a_tilde(&dir) {
            return Err(Error::config("queue_dir", format!("from POSTHOG_QUEUE_DIR {UNEXPANDED}: {dir:?}")));
        }
        return Ok(Some(dir));
    }
    let absolute = |dir: &str| Some(PathBuf::from(dir)).filter(|dir| dir.is_absolute());
    // systemd separates several directories by colons.
    let state_directory = set("STATE_DIRECTORY").and_then(|list| absolute(list.split(':').next().unwrap_or_default()));
    let state_home = || set("XDG_STATE_HOME").and_then(|dir| absolute(&dir));
    let home = || set("HOME").and_then(|dir| absolute(&dir)).map(|home| home.join(".local/state"));
    Ok(state_directory.or_else(state_home).or_else(home).map(|dir| dir.join("posthog")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(vars: &[(&str, &str)]) -> Option<String> {
        let var = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        default_queue_dir(var).ok().flatten().map(|dir| dir.to_string_lossy().into_owned())
    }

    #[test]
    fn without_a_directory_the_queue_is_an_error_or_in_memory() {
        let config = Config::new("phc_test");
        let Err(error) = config.place_by(|_| None) else { panic!("taken") };
        assert!(error.to_string().contains("POSTHOG_QUEUE_DIR"), "{error}");
        let config = config.memory_fallback(true);
        assert_eq!(config.place_by(|_| None).unwrap(), PathBuf::new());
        let home = |name: &str| (name == "HOME").then(|| "/home/u".to_owned());
        assert_eq!(config.place_by(home).unwrap(), Path::new("/home/u/.local/state/posthog"));
        // A mistake stays one.
        assert!(config.queue_dir("").place_by(|_| None).is_err());
    }

    #[test]
    fn directories_are_tried_in_order() {
        let all = [
            ("POSTHOG_QUEUE_DIR", "/own"),
            ("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"),
            ("XDG_STATE_HOME", "/xdg"),
            ("HOME", "/home/u"),
        ];
        let expected = ["/own", "/var/lib/a/posthog", "/xdg/posthog", "/home/u/.local/state/posthog"];
        for (from, place) in expected.iter().enumerate() {
            assert_eq!(found(&all[from..]).as_deref(), Some(*place));
        }
        assert_eq!(found(&[]), None, "never a temporary directory");
    }

    #[test]
    fn relative_and_empty_values_are_ignored() {
        assert_eq!(
            found(&[("STATE_DIRECTORY", ""), ("XDG_STATE_HOME", "state"), ("HOME", "/h")]).as_deref(),
            Some("/h/.local/state/posthog")
        );
        assert_eq!(found(&[("HOME", "relative")]), None);
    }

    fn vars(set: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        move |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn a_bad_key_or_host_names_its_variable() {
        let error = |config: Config| config.queue_dir("/q").check().err().map(|error| error.to_string()).unwrap();
        let set = vars(&[("POSTHOG_API_KEY", "phx_secret"), ("POSTHOG_HOST", "ftp://x")]);
        let said = error(Config::from_env_by(&set));
        assert!(said.contains("api_key (from POSTHOG_API_KEY) is a secret") && !said.contains("_secret"), "{said}");
        let set = vars(&[("POSTHOG_API_KEY", "phc_1"), ("POSTHOG_HOST", "ftp://x")]);
        let said = error(Config::from_env_by(&set));
        assert!(said.contains("host (from POSTHOG_HOST) must begin with http"), "{said}");
        let said = error(Config::from_env_by(&set).host("ftp://of.the.program"));
        assert!(!said.contains("POSTHOG_HOST"), "{said}");
    }

    #[test]
    fn the_environment_replaces_the_settings_of_the_program() {
        let set = vars(&[("POSTHOG_API_KEY", "phc_operator"), ("POSTHOG_FLUSH_AT", "7"), ("POSTHOG_QUEUE_DIR", "/q")]);
        let config = Config::new("phc_program").host("http://program").flush_at(3).queue_dir("/p").with_env_by(&set);
        assert_eq!((&*config.api_key, &*config.host, config.flush_at), ("phc_operator", "http://program", 7));
        assert_eq!(config.place_by(&set).unwrap(), Path::new("/q"));
        assert_eq!(Config::from_env_by(&set).flush_at(9).flush_at, 9, "what the program sets later counts");
        assert!(Config::from_env_by(|_| None).disabled);
        let kept = Config::new("phc_program").with_env_by(|_| None);
        assert_eq!((&*kept.api_key, kept.disabled), ("phc_program", false));
    }

    #[test]
    fn an_unexpanded_tilde_is_an_error() {
        let var = |_: &str| Some("~/queue".to_owned());
        let from_env = default_queue_dir(var).unwrap_err().to_string();
        let given = Config::new("phc_1").queue_dir("~/queue").place().unwrap_err().to_string();
        assert!(from_env.contains("POSTHOG_QUEUE_DIR begins with ~"), "{from_env}");
        assert!(given.contains("queue_dir begins with ~") && given.contains("~/queue"), "{given}");
    }

    #[test]
    fn debug_shows_the_directory_that_would_be_used_and_no_key() {
        let shown = format!("{:?}", Config::new("phc_1").queue_dir("queue"));
        let absolute = std::env::current_dir().unwrap().join("queue");
        assert!(shown.contains(&format!("queue_dir: {absolute:?}")) && !shown.contains("phc_1"), "{shown}");
        assert!(format!("{:?}", Config::new("phc_1").queue_dir("")).contains("is empty"));
    }
}
