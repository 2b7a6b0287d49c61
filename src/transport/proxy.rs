//! Proxies: which proxy a request uses, if any.
//!
//! The variables, their precedence and the patterns of `NO_PROXY` are those of curl; `docs/delivery.md` has the table,
//! which `proxy_tests.rs` checks completely. As in curl, `HTTP_PROXY` in capitals is not read: in a CGI program it
//! contains the `Proxy:` header of a client.

use std::fmt::{self, Debug, Display};
use std::net::IpAddr;
use std::sync::Arc;

use reqwest::Url;

use super::message::TransportError;

/// The choice of the proxy.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) enum Proxy {
    /// From the environment.
    #[default]
    FromEnv,
    /// No proxy, whatever the environment says.
    None,
    /// This proxy, `http://[user:password@]host[:port]`, whatever the environment says.
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

/// A proxy and where it was set.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Named {
    url: Url,
    /// The name of an environment variable or of the setting.
    pub(super) by: &'static str,
}

/// Host and port without the password: `proxy.corp:3128 (from HTTPS_PROXY)`.
impl Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.url.port_or_known_default().unwrap_or_default();
        write!(f, "{}:{port} (from {})", self.url.host_str().unwrap_or_default(), self.by)
    }
}

impl Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl Named {
    /// Whether it comes from the environment, so that `no_proxy` can exempt a host from it.
    pub(super) fn is_of_environment(&self) -> bool {
        self.by != SETTING
    }
}

/// The proxies of this process, read once.
#[derive(Clone, Debug, Default)]
pub(super) struct Ways {
    https: Option<Arc<Named>>,
    http: Option<Arc<Named>>,
    /// Hosts that are reached without the proxy: the entries of `no_proxy`.
    except: Vec<Entry>,
    /// Whether `HTTP_PROXY` is set but no variable that applies to `http://`.
    ignores_capitals: bool,
}

type Env<'a> = &'a dyn Fn(&'static str) -> Option<String>;

const SETTING: &str = "Config::proxy";
/// The variables for `https://` URLs, in order of precedence.
const HTTPS: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
/// The variables for `http://` URLs, in order of precedence.
const HTTP: [&str; 3] = ["http_proxy", "all_proxy", "ALL_PROXY"];

/// Fails, with the reason, unless the URL is that of a proxy.
pub(crate) fn check_proxy(url: &str) -> Result<(), TransportError> {
    Ways::new(&Proxy::Url(url.to_owned()), &|_| None).map(drop)
}

impl Ways {
    pub(super) fn new(choice: &Proxy, env: Env<'_>) -> Result<(Self, Vec<String>), TransportError> {
        match choice {
            Proxy::None => Ok((Self::default(), Vec::new())),
            Proxy::Url(url) => {
                let bad = |reason| TransportError::BadProxy { reason };
                // The short form without a scheme is accepted in environment variables only.
                if !url.contains("://") {
                    return Err(bad("it is not a URL"));
                }
                let named = Arc::new(Named { url: parse(url).map_err(bad)?, by: SETTING });
                Ok((Self { https: Some(Arc::clone(&named)), http: Some(named), ..Self::default() }, Vec::new()))
            }
            Proxy::FromEnv => Ok(Self::from_env(env)),
        }
    }

    fn from_env(env: Env<'_>) -> (Self, Vec<String>) {
        // As in curl, an empty variable counts as unset.
        let set = |name| env(name).filter(|value| !value.trim().is_empty());
        let mut warnings = Vec::new();
        let mut first = |names: &[&'static str]| {
            names.iter().find_map(|&variable| match parse(&set(variable)?) {
                Ok(url) => Some(Arc::new(Named { url, by: variable })),
                Err(reason) => {
                    let warning = format!("{variable} is ignored: {reason}; correct or unset it");
                    if !warnings.contains(&warning) {
                        warnings.push(warning);
                    }
                    None
                }
            })
        };
        let (https, http) = (first(&HTTPS), first(&HTTP));
        let except = set("no_proxy").or_else(|| set("NO_PROXY")).map(|list| Entry::parse_list(&list));
        let ignores_capitals = http.is_none() && set("HTTP_PROXY").is_some();
        (Self { https, http, except: except.unwrap_or_default(), ignores_capitals }, warnings)
    }

    /// The proxy for a request to `url`; `None` if it is sent directly.
    pub(super) fn to(&self, url: &Url) -> Option<&Arc<Named>> {
        let named = match url.scheme() {
            "https" => self.https.as_ref()?,
            "http" => self.http.as_ref()?,
            _ => return None,
        };
        let host = url.host_str().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let domain = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let is_here = |pattern: &Pattern| match (pattern, address) {
            (Pattern::All, _) => true,
            (Pattern::Domain(name), None) => {
                domain.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            (Pattern::Network(network, bits), Some(address)) => same_prefix(*network, address, *bits),
            _ => false,
        };
        let port = url.port_or_known_default();
        let is_direct = |entry: &Entry| (entry.port.is_none() || entry.port == port) && is_here(&entry.host);
        (!self.except.iter().any(is_direct)).then_some(named)
    }

    /// A hint for a failed connection: a proxy setting that was probably expected to apply.
    pub(super) fn hint(&self, url: &Url) -> Option<&'static str> {
        (self.ignores_capitals && url.scheme() == "http")
            .then_some("HTTP_PROXY is set and not used: as with curl, http:// hosts use only http_proxy or all_proxy")
    }

    /// As a proxy of the HTTP client; `None` if no proxy is set.
    pub(super) fn proxy(&self) -> Option<reqwest::Proxy> {
        let ways = self.clone();
        let proxy = move || reqwest::Proxy::custom(move |url| ways.to(url).map(|named| named.url.clone()));
        (self.https.is_some() || self.http.is_some()).then(proxy)
    }
}

/// One entry of `no_proxy`, optionally for one port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    host: Pattern,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    /// Every host.
    All,
    /// A domain and its subdomains.
    Domain(String),
    /// A network: an address and the length of its prefix in bits.
    Network(IpAddr, u8),
}

impl Entry {
    fn parse_list(list: &str) -> Vec<Self> {
        if list.trim() == "*" {
            return vec![Self { host: Pattern::All, port: None }];
        }
        list.split([',', ' ', '\t']).filter(|entry| !entry.is_empty()).filter_map(Self::parse).collect()
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(host) = network(text) {
            return Some(Self { host, port: None });
        }
        let (host, port) = match text.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
            Some((host, Ok(port))) => (host, Some(port)),
            _ => (text, None),
        };
        if let Some(host) = network(host) {
            return Some(Self { host, port });
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        let host = host.strip_prefix('.').unwrap_or(host);
        (!host.is_empty()).then(|| Self { host: Pattern::Domain(host.to_ascii_lowercase()), port })
    }
}

/// Parses `10.0.0.0/8`, `fd00::/8`, or a single address with or without brackets.
fn network(text: &str) -> Option<Pattern> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    let address: IpAddr = address.parse().ok()?;
    let all = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(all), |bits| bits.parse().ok().filter(|&bits| bits <= all))?;
    Some(Pattern::Network(address, bits))
}

fn same_prefix(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let alike = |differing_zeros: u32| differing_zeros >= u32::from(bits);
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => alike((one.to_bits() ^ other.to_bits()).leading_zeros()),
        (IpAddr::V6(one), IpAddr::V6(other)) => alike((one.to_bits() ^ other.to_bits()).leading_zeros()),
        _ => false,
    }
}

fn parse(value: &str) -> Result<Url, &'static str> {
    let value = value.trim();
    // `proxy:3128` without a scheme is common and not a URL with the scheme `proxy`.
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

/// For the fuzz target: variables of any content give proxies and warnings.
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) fn choose_any(env: Env<'_>) {
    let (ways, warnings) = Ways::from_env(env);
    assert!(warnings.iter().all(|warning| !warning.contains(char::is_control)), "{warnings:?}");
    for url in ["https://eu.i.posthog.com/batch/", "http://127.0.0.1:8000/", "http://[::1]/", "https://host.example."] {
        if let Ok(url) = Url::parse(url) {
            let _any = (ways.to(&url).is_some(), ways.hint(&url));
        }
    }
    let _any = ways.proxy();
}
