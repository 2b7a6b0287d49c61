//! Settings from the environment, and the default queue directory.

use std::path::{Path, PathBuf};

use super::Config;
use crate::error::Error;

impl Config {
    /// Settings from `POSTHOG_API_KEY`, `POSTHOG_HOST`, `POSTHOG_QUEUE_DIR`, `POSTHOG_SECRET_KEY` or else
    /// `POSTHOG_PERSONAL_API_KEY` (for [`secret_key`](Config::secret_key)), and `POSTHOG_CLIENT_CERT` with
    /// `POSTHOG_CLIENT_KEY` (for [`client_identity_files`](Config::client_identity_files)). Without a key the client is
    /// [`disabled`](Config::disabled) and reports that once
    /// ([`Diagnostic::KeyMissing`](crate::diagnostics::Diagnostic::KeyMissing), logged at level `INFO`). All other
    /// settings can still be changed.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let Some(api_key) = set("POSTHOG_API_KEY") else { return Self::without_key() };
        let config = Self::new(api_key.trim());
        // The queue directory is looked up when the client is created, as without `from_env`.
        let config = match set("POSTHOG_HOST") {
            Some(host) => config.host(host),
            None => config,
        };
        let config = match (set("POSTHOG_CLIENT_CERT"), set("POSTHOG_CLIENT_KEY")) {
            (None, None) => config,
            // One without the other is an error when the client is created.
            (certificates, key) => {
                config.client_identity_files(certificates.unwrap_or_default(), key.unwrap_or_default())
            }
        };
        match set("POSTHOG_SECRET_KEY").or_else(|| set("POSTHOG_PERSONAL_API_KEY")) {
            Some(secret_key) => config.secret_key(secret_key),
            None => config,
        }
    }

    /// The directory of the queues.
    pub(super) fn place(&self) -> Result<PathBuf, Error> {
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
