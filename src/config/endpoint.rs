//! Checks the settings of the endpoint: key, host and headers.

use crate::error::Error;
use crate::queue::Project;
use crate::transport;

/// Headers that the library sets itself, in lower case. A second one would change the request or make it invalid.
const OWN_HEADERS: [&str; 8] = [
    "accept-encoding",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
];
/// The prefix of PostHog's own request headers.
const OWN_PREFIX: &str = "posthog-";

/// The hosts of PostHog's app, with the hosts that accept events and evaluate flags.
const APP_HOSTS: [(&str, &str); 3] = [
    ("app.posthog.com", "https://us.i.posthog.com"),
    ("us.posthog.com", "https://us.i.posthog.com"),
    ("eu.posthog.com", "https://eu.i.posthog.com"),
];

/// The ingestion host that replaces this host, if it is one of the app. PostHog's own libraries do the same.
fn ingestion_host(host: &str) -> Option<&'static str> {
    let name = host.strip_prefix("https://").or_else(|| host.strip_prefix("http://"))?;
    APP_HOSTS.iter().find(|(app, _)| *app == name).map(|(_, used)| *used)
}

/// The project that events are sent to, and the host that was replaced, if one was.
pub(super) fn project(api_key: &str, host: &str) -> Result<(Project, Option<String>), Error> {
    if api_key.trim().is_empty() {
        return Err(Error::config("api_key", "is blank; use Config::disabled() for a client that drops everything"));
    }
    let api_key = checked_key(api_key).map_err(|why| Error::config("api_key", why))?;
    let given = checked_host(host).map_err(|why| Error::config("host", why))?;
    Ok(match ingestion_host(&given) {
        Some(used) => (Project { host: used.to_owned(), api_key }, Some(given)),
        None => (Project { host: given, api_key }, None),
    })
}

/// A project of `adopt_queue`, by each name that its queue may have: for the app's host, that host and the ingestion
/// host.
pub(crate) fn former_projects(api_key: &str, host: &str) -> Result<Vec<Project>, Error> {
    let of = |what: &str, why: String| Error::config("adopt_queue", format!("was given a {what} that {why}"));
    let api_key = checked_key(api_key).map_err(|why| of("key", why))?;
    let given = checked_host(host).map_err(|why| of("host", why))?;
    let used = ingestion_host(&given).map(str::to_owned);
    Ok(std::iter::once(given).chain(used).map(|host| Project { host, api_key: api_key.clone() }).collect())
}

/// Checks a key. Error texts never contain it, because it may be a secret in the wrong place.
fn checked_key(api_key: &str) -> Result<String, String> {
    let api_key = api_key.trim();
    if api_key.is_empty() {
        return Err("is blank".into());
    }
    if api_key.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("contains white space or control characters".into());
    }
    if api_key.starts_with("phx_") || api_key.starts_with("phs_") {
        return Err(
            "is a secret (phx_, phs_), which cannot capture events; use the project's key, which begins with phc_"
                .into(),
        );
    }
    Ok(api_key.to_owned())
}

fn checked_host(host: &str) -> Result<String, String> {
    // The part before an @ may be a password.
    let shown = if host.contains('@') { String::new() } else { format!(": {host:?}") };
    let normal = transport::normalize_host(host).map_err(|why| format!("{why}{shown}"))?;
    let path = normal.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
    let names_an_endpoint = matches!(path.rsplit('/').next(), Some("batch" | "capture" | "decide" | "flags"))
        || ["i/v0", "i/v1"].iter().any(|endpoint| format!("/{path}/").contains(&format!("/{endpoint}/")));
    if names_an_endpoint {
        return Err(format!("contains the path of an endpoint, which the library adds itself; leave it out{shown}"));
    }
    Ok(normal)
}

/// Checks the additional headers against those of the library. The transport checks their syntax.
pub(super) fn headers(headers: &[(String, String)]) -> Result<Vec<(String, String)>, Error> {
    let is_own = |name: &str| OWN_HEADERS.contains(&name) || name.starts_with(OWN_PREFIX);
    match headers.iter().find(|(name, _)| is_own(&name.to_ascii_lowercase())) {
        Some((name, _)) => Err(Error::config("header", format!("{name:?} is set by the library itself"))),
        None => Ok(headers.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::report::Diagnostic;

    fn refused(config: Config) -> (&'static str, String) {
        match config.queue_dir("/q").check() {
            Err(Error::Config { field, why }) => (field, why),
            Err(other) => panic!("{other}"),
            Ok(_) => ("", String::new()),
        }
    }

    #[test]
    fn blank_keys_and_malformed_hosts_are_named() {
        for key in ["", "  ", "phc x", "phc\n"] {
            let expected = if key == "phc\n" { "" } else { "api_key" };
            assert_eq!(refused(Config::new(key)).0, expected, "{key:?}");
        }
        for host in ["", "ftp://x", "https://", "https://a b", "https://x/?q=1"] {
            let (field, why) = refused(Config::new("phc_1").host(host));
            assert_eq!((field, why.contains(&format!("{host:?}"))), ("host", true), "{host:?}: {why}");
        }
        let (field, why) = refused(Config::new("phc_1").host("https://user:secret@x"));
        assert!(field == "host" && !why.contains("secret"), "{why}");
    }

    #[test]
    fn a_secret_key_is_refused_and_not_repeated() {
        for key in ["phx_secret", " phs_secret"] {
            let (field, why) = refused(Config::new(key));
            assert!(field == "api_key" && !why.contains("secret\"") && !why.contains("_secret"), "{why}");
            assert_eq!(refused(Config::new("phc_1").adopt_queue(key, "x")).0, "adopt_queue");
        }
    }

    #[test]
    fn an_invalid_adopt_queue_is_refused_by_that_name() {
        for (key, host, about) in [("", "x", "key that is blank"), ("phc_2", "", "host that is blank")] {
            let (field, why) = refused(Config::new("phc_1").adopt_queue(key, host));
            assert!(field == "adopt_queue" && why.contains(about), "{why}");
        }
        assert_eq!(refused(Config::new("phc_1").adopt_queue("phc_2", "x")).0, "");
    }

    #[test]
    fn a_host_may_have_a_proxy_path_but_no_endpoint_path() {
        let with_path = |path: &str| refused(Config::new("phc_1").host(format!("https://example.org{path}"))).0;
        for path in [
            "/batch",
            "/batch/",
            "/capture/",
            "/flags/",
            "/decide",
            "/ingest/batch/",
            "/i/v1/analytics/events",
            "/i/v0/ai/batch/",
        ] {
            assert_eq!(with_path(path), "host", "{path}");
        }
        for path in ["", "/", "/ingest", "/batch/ingest", "/i/v12"] {
            assert_eq!(with_path(path), "", "{path}");
        }
        assert_eq!(refused(Config::new("phc_1").host("batch")).0, "");
    }

    #[test]
    fn headers_of_the_library_cannot_be_set() {
        for name in ["Content-Type", "authorization", "content-encoding", "Host", "Content-Length", "PostHog-Attempt"] {
            let (field, why) = refused(Config::new("phc_1").header(name, "x"));
            assert!(field == "header" && why.contains(name), "{why}");
        }
        assert_eq!(refused(Config::new("phc_1").header("X-Tenant", "x")).0, "");
    }

    #[test]
    fn the_apps_host_is_replaced_and_reported() {
        let check = |host: &str| Config::new("phc_1").host(host).queue_dir("/q").check().unwrap();
        for (given, used) in [
            ("https://app.posthog.com", "https://us.i.posthog.com"),
            ("https://us.posthog.com/", "https://us.i.posthog.com"),
            ("HTTPS://EU.posthog.com:443", "https://eu.i.posthog.com"),
            ("eu.posthog.com", "https://eu.i.posthog.com"),
            ("http://app.posthog.com", "https://us.i.posthog.com"),
        ] {
            let checked = check(given);
            let options = checked.pipeline.unwrap();
            assert_eq!(options.queue.project.host, used, "{given}");
            assert!(matches!(&checked.diagnostics[..], [Diagnostic::HostReplaced { used: to, .. }] if to == used));
            assert!(options.delivery.url.starts_with(used), "{given}");
            // The queue of an earlier version, which was named by the app's host, is delivered too.
            assert_eq!(options.also[0].host, transport::normalize_host(given).unwrap());
        }
        let also = Config::new("phc_1").adopt_queue("phc_2", "us.posthog.com").queue_dir("/q").check().unwrap();
        let hosts: Vec<_> = also.pipeline.unwrap().also.into_iter().map(|project| project.host).collect();
        assert_eq!(hosts, ["https://us.posthog.com", "https://us.i.posthog.com"]);
        for kept in [
            "https://us.i.posthog.com",
            "https://app.posthog.com/ingest",
            "https://app.posthog.com:8443",
            "https://xapp.posthog.com",
        ] {
            let checked = check(kept);
            assert_eq!(checked.pipeline.unwrap().queue.project.host, kept);
            assert!(checked.diagnostics.is_empty());
        }
    }
}
