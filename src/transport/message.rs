//! What can go wrong between us and an answer.

use std::error::Error;
use std::fmt::{self, Display};
use std::io;
use std::sync::Arc;

use reqwest::Url;

use super::proxy::{Named, Ways};
use crate::sys::limits;

type Source = Box<dyn Error + Send + Sync>;

/// Why there is no answer, or no transport. The first seven are of a request, and each of them may pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    /// No connection.
    #[error("could not connect; check the host's name and that this machine may reach it")]
    Connect(#[source] Source),
    /// No answer in time.
    #[error("no answer in time; the endpoint or the way to it is slow, or the request timeout is too short")]
    Timeout(#[source] Source),
    /// No trust.
    #[error(
        "TLS failed; check this machine's CA certificates and its clock, or configure the endpoint's CA (certificates are read again \
         after such a failure, at most once a minute)"
    )]
    Tls(#[source] Source),
    /// The proxy is not there.
    #[error("could not connect to the proxy {proxy}; check that it runs and that this is its address{remedy}")]
    ProxyDown {
        /// Host and port, and who named it.
        proxy: String,
        /// What else there is to do.
        remedy: &'static str,
        /// What was met.
        source: Source,
    },
    /// No way through the proxy.
    #[error("the proxy {proxy} refused to pass the request on; check its rules and the credentials in its URL{remedy}")]
    Proxy {
        /// Host and port, and who named it.
        proxy: String,
        /// What else there is to do.
        remedy: &'static str,
        /// What was met.
        source: Source,
    },
    /// The connection broke, or the answer is not HTTP.
    #[error("the connection broke before the answer was complete, or the answer is not HTTP")]
    Other(#[source] Source),
    /// A success in an encoding that is not to be had or damaged: what was said is not known.
    #[error(
        "the answer has Content-Encoding {encoding:?}, {problem}; a proxy or load balancer before the host must pass answers on \
         as PostHog sends them"
    )]
    Encoding {
        /// Its name.
        encoding: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The configured proxy cannot be used.
    #[error("the configured proxy is not usable: {reason}")]
    BadProxy {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A configured certificate cannot be used.
    #[error("CA certificate number {number} of the configuration is not a PEM certificate")]
    BadCertificate {
        /// Counted from 1.
        number: usize,
    },
    /// A configured header cannot be sent.
    #[error("the configured header {name:?} has a name or a value that HTTP does not allow")]
    BadHeader {
        /// Its name; the value may be a secret.
        name: String,
    },
    /// The HTTP client could not be built.
    #[error("the HTTP client could not be set up")]
    Setup(#[source] Source),
}

impl TransportError {
    /// Sorts reqwest's error by what its reader can do about it. `url` says which way the request was to take.
    pub(super) fn from_current(error: reqwest::Error, url: &Url, ways: &Ways) -> Self {
        let error = error.without_url();
        let proxy = ways.to(url);
        // hyper-util does not export the type.
        let has = |text: &str| in_chain(&error, &|link| link.to_string().starts_with(text));
        // A TLS or proxy failure is also a connect failure, and may be a timeout: the most telling name first.
        if in_chain(&error, &|link| link.is::<rustls::Error>()) {
            return TransportError::Tls(on_the_way(error, proxy));
        }
        if error.is_timeout() && !has("tunnel error") {
            return TransportError::Timeout(on_the_way(error, proxy));
        }
        match proxy {
            Some(named) if has(NO_PROXY_THERE) || (error.is_connect() && !has("tunnel error")) => {
                TransportError::ProxyDown { proxy: named.to_string(), remedy: remedy(named), source: error.into() }
            }
            Some(named) if has("tunnel error") => {
                TransportError::Proxy { proxy: named.to_string(), remedy: remedy(named), source: error.into() }
            }
            None if error.is_connect() => TransportError::Connect(match ways.hint(url) {
                Some(hint) => Note { note: hint.to_owned(), source: error.into() }.into(),
                None => error.into(),
            }),
            _ => TransportError::Other(on_the_way(error, proxy)),
        }
    }

    /// Whether there was no connection over which a request could have been sent: no fault of what was in it.
    pub(crate) fn is_unreachable(&self) -> bool {
        use TransportError::{Connect, Proxy, ProxyDown, Tls};
        matches!(self, Connect(_) | Tls(_) | Proxy { .. } | ProxyDown { .. })
    }

    /// The whole chain in one line.
    pub(crate) fn describe(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(link) = next {
            let part = link.to_string();
            // Several layers repeat the text of the layer below.
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            next = link.source();
        }
        // Names and words of others are in it: of a proxy, of a certificate.
        limits::foreign(&text, 2 * limits::DETAIL_KEPT)
    }
}

/// What hyper-util says where it did not get as far as the proxy.
const NO_PROXY_THERE: &str = "tunnel error: failed to create underlying connection";

/// What to do about a proxy that is not wanted.
fn remedy(named: &Named) -> &'static str {
    if named.is_of_environment() { ", or name PostHog's host in no_proxy to go without it" } else { "" }
}

/// An error with something to know about it.
#[derive(Debug)]
struct Note {
    note: String,
    source: Source,
}

impl Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.note)
    }
}

impl Error for Note {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// The error, with the proxy that the request went through: it may be the proxy's.
fn on_the_way(error: reqwest::Error, proxy: Option<&Arc<Named>>) -> Source {
    match proxy {
        Some(named) => Note { note: format!("on the way through the proxy {named}"), source: error.into() }.into(),
        None => error.into(),
    }
}

pub(super) fn in_chain(error: &(dyn Error + 'static), wanted: &dyn Fn(&(dyn Error + 'static)) -> bool) -> bool {
    if wanted(error) {
        return true;
    }
    // An `io::Error` answers `source` with the source of what it wraps, not with what it wraps.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match wrapped {
        Some(link) => in_chain(link, wanted),
        None => error.source().is_some_and(|link| in_chain(link, wanted)),
    }
}
