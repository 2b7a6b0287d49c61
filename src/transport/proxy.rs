//! Which way out a request takes.
//!
//! The variables and their precedence are curl's: one for each scheme, `ALL_PROXY` for what has none, and `NO_PROXY` for hosts that are
//! reached directly. A CGI program (`REQUEST_METHOD` is set) has no proxy from the environment: there `HTTP_PROXY` is what a client
//! sent as its `Proxy:` header.

use std::fmt::{self, Debug};

use reqwest::{NoProxy, Url};

use super::{TransportError, Warning};

/// The way out.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) enum Proxy {
    /// As the environment says.
    #[default]
    FromEnv,
    /// Directly, whatever the environment says.
    None,
    /// Through this one, `http://[user:password@]host[:port]`, whatever the environment says.
    Url(String),
}

impl Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proxy::FromEnv => "FromEnv",
            Proxy::None => "None",
            Proxy::Url(_) => "Url(..)",
        })
    }
}

type Env<'a> = &'a dyn Fn(&'static str) -> Option<String>;
type MakeProxy = fn(Url) -> reqwest::Result<reqwest::Proxy>;

/// The first proxy of a list that matches a request is the one it takes, so `ALL_PROXY` comes last.
const VARIABLES: [(&[&str], MakeProxy); 3] = [
    (&["HTTPS_PROXY", "https_proxy"], reqwest::Proxy::https::<Url>),
    (&["HTTP_PROXY", "http_proxy"], reqwest::Proxy::http::<Url>),
    (&["ALL_PROXY", "all_proxy"], reqwest::Proxy::all::<Url>),
];

/// The proxies to use, in order.
pub(super) fn resolve(choice: &Proxy, env: Env<'_>) -> Result<(Vec<reqwest::Proxy>, Vec<Warning>), TransportError> {
    match choice {
        Proxy::None => Ok((Vec::new(), Vec::new())),
        Proxy::Url(url) => {
            let bad = |reason| TransportError::BadProxy { reason };
            // A variable's value may be of the short form; what is written into a program is a URL.
            if !url.contains("://") {
                return Err(bad("it is not a URL"));
            }
            let url = parse(url).map_err(bad)?;
            let proxy = reqwest::Proxy::all(url).map_err(|_| bad("it is not a URL"))?;
            Ok((vec![proxy], Vec::new()))
        }
        Proxy::FromEnv => Ok(from_env(env)),
    }
}

fn from_env(env: Env<'_>) -> (Vec<reqwest::Proxy>, Vec<Warning>) {
    let (mut proxies, mut warnings) = (Vec::new(), Vec::new());
    if env("REQUEST_METHOD").is_some() {
        return (proxies, warnings);
    }
    let first = |names: &[&'static str]| names.iter().find_map(|&name| env(name).map(|value| (name, value)));
    let except = first(&["NO_PROXY", "no_proxy"]).and_then(|(_, hosts)| NoProxy::from_string(&hosts));
    for (names, make) in VARIABLES {
        let Some((variable, value)) = first(names).filter(|(_, value)| !value.trim().is_empty()) else {
            continue;
        };
        match parse(&value).and_then(|url| make(url).map_err(|_| "it is not a URL")) {
            Ok(proxy) => proxies.push(proxy.no_proxy(except.clone())),
            Err(reason) => warnings.push(Warning::ProxyIgnored { variable, reason }),
        }
    }
    (proxies, warnings)
}

fn parse(value: &str) -> Result<Url, &'static str> {
    let value = value.trim();
    // `proxy:3128` without a scheme is common, and is not a URL of scheme `proxy`.
    let url = if value.contains("://") { Url::parse(value) } else { Url::parse(&format!("http://{value}")) };
    let url = url.map_err(|_| "it is not a URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("only http:// and https:// proxies are supported");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("it names no host");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&'static str, &str)]) -> (usize, Vec<Warning>) {
        let lookup = |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let (proxies, warnings) = from_env(&lookup);
        (proxies.len(), warnings)
    }

    #[test]
    fn a_proxy_needs_no_scheme_and_may_carry_a_password() {
        for good in
            ["proxy:3128", "http://proxy", "https://user:pa%40ss@proxy.corp:8443", " 10.0.0.1:3128 ", "[::1]:3128"]
        {
            assert!(parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_malformed_variable_is_a_warning_that_names_it_and_not_its_value() {
        for bad in ["http://", "::::", "http://user:secret@ho st", "socks5://proxy:1080", "http://proxy:99999"] {
            let (proxies, warnings) = env(&[("https_proxy", bad)]);
            assert_eq!(proxies, 0, "{bad}");
            assert!(matches!(warnings.as_slice(), [Warning::ProxyIgnored { variable: "https_proxy", .. }]), "{bad}");
            assert!(!warnings[0].to_string().contains("secret"));
        }
    }

    #[test]
    fn one_bad_variable_does_not_disable_the_others() {
        let (proxies, warnings) = env(&[("HTTPS_PROXY", "::::"), ("ALL_PROXY", "proxy:3128")]);
        assert_eq!((proxies, warnings.len()), (1, 1));
    }

    #[test]
    fn an_empty_variable_means_none_and_is_no_mistake() {
        assert_eq!(env(&[("HTTPS_PROXY", ""), ("http_proxy", " ")]), (0, Vec::new()));
    }

    #[test]
    fn a_cgi_program_takes_no_proxy_from_its_client() {
        assert_eq!(env(&[("HTTP_PROXY", "http://evil"), ("REQUEST_METHOD", "GET")]), (0, Vec::new()));
    }

    #[test]
    fn a_malformed_proxy_of_the_options_is_an_error() {
        for bad in ["socks5://p", "nope", "proxy:3128", "http://"] {
            let refused = resolve(&Proxy::Url(bad.into()), &|_| None);
            assert!(matches!(refused, Err(TransportError::BadProxy { .. })), "{bad}");
        }
    }
}
