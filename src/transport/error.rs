//! What can go wrong between us and an answer.

use std::error::Error;
use std::io;

type Source = Box<dyn Error + Send + Sync>;

/// Why there is no answer, or no transport. The first six are of a request, and each of them may pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    /// No connection.
    #[error("could not connect; check the host's name and that this machine may reach it")]
    Connect(#[source] Source),
    /// No answer in time.
    #[error("no answer in time; the endpoint or the way to it is slow, or the request timeout is too short")]
    Timeout(#[source] Source),
    /// No trust.
    #[error("TLS failed; check this machine's CA certificates and its clock, or configure the endpoint's CA")]
    Tls(#[source] Source),
    /// No way through the proxy.
    #[error("the proxy refused to pass the request on; check the proxy settings")]
    Proxy(#[source] Source),
    /// The connection broke, or the answer is not HTTP.
    #[error("the request failed on its way")]
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
    /// Sorts reqwest's error by what its reader can do about it.
    pub(super) fn of_request(error: reqwest::Error) -> Self {
        let error = error.without_url();
        // A TLS or proxy failure is also a connect failure, and may be a timeout: the most telling name first.
        if in_chain(&error, &|link| link.is::<rustls::Error>()) {
            TransportError::Tls(error.into())
        } else if in_chain(&error, &|link| link.to_string().starts_with("tunnel error")) {
            // hyper-util does not export the type.
            TransportError::Proxy(error.into())
        } else if error.is_timeout() {
            TransportError::Timeout(error.into())
        } else if error.is_connect() {
            TransportError::Connect(error.into())
        } else {
            TransportError::Other(error.into())
        }
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
        text
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
