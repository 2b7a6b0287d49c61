//! HTTPS requests: the network, behind a seam of one call.
//!
//! One [`Transport`] belongs to one delivery task. It knows TLS, proxies and timeouts, and nothing of PostHog: it neither retries nor
//! judges an answer. reqwest and rustls are used in this folder only; TLS is rustls on ring, never OpenSSL, and the process-wide
//! crypto provider of the host program is neither read nor set.
//!
//! Rules:
//!
//! * **Nothing here panics.** A machine without CA certificates gives a [`Warning`]; requests then fail with [`TransportError::Tls`]
//!   and are retried by whoever sent them, so that events wait on disk until the certificates are there. A malformed proxy setting
//!   in the environment is ignored with a warning; a malformed proxy or certificate in the *options* is an error.
//! * **Proxies are read once** from the environment, in [`Transport::new`] (`https_proxy`, `http_proxy`, `all_proxy`, `no_proxy`;
//!   `proxy.rs`). A forked child calls [`Transport::reconnect`], which reads nothing and shares no connection with its parent.
//! * **Certificates that are replaced are noticed:** the machine's (`SSL_CERT_FILE`, `SSL_CERT_DIR`) are read then, too, and again after
//!   a failure of TLS, at most once a minute; if there are others now, the request is sent once more with them. An idle process reads
//!   nothing.
//! * **Redirects are not followed:** a POST that becomes a GET on somebody's login page must not look like success.
//! * **Names are looked up** on a thread for each lookup, a bounded number of them, for the runtime's own way panics where there are
//!   no threads to be had.
//! * **Answers are bounded:** so much of a body is read as the request says (64 KiB, mostly), the rest is cut. Encoded answers are not
//!   asked for (`Accept-Encoding: identity`); gzip and deflate are decoded all the same, within the same bound, because servers and
//!   proxies send them unasked. A success in another encoding is an error that names it.
//! * **A connection that died while it was idle is no failure:** a request that finds it dead before the answer begins is sent once
//!   more, at once and over new connections, within the same request timeout. On a new connection nothing is sent twice.
//! * **An idle transport sleeps.** Unused connections are closed after 30 s, before a NAT on the way would forget them; with the
//!   last of them the only timer ends.
//! * `Retry-After` is read leniently: seconds (a fraction is rounded up) or an HTTP date; anything else is as if it was absent.
//! * Text of errors and warnings never contains a proxy's password, nor a request's URL.

mod encoding;
mod error;
mod exchange;
mod host;
mod pool;
mod proxy;
#[cfg(test)]
mod proxy_tests;
mod resolve;
mod retry_after;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt::{self, Debug, Display};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

pub(crate) use error::TransportError;
pub(crate) use host::normalise_host;
use pool::{Pool, Settings};
pub(crate) use proxy::Proxy;
use proxy::Ways;
pub(crate) use retry_after::RetryAfter;
use tls::MachineCertificates;

/// At most so much of a plain answer's body is read.
pub(crate) const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// How to reach the network.
#[derive(Clone, Debug)]
pub(crate) struct TransportOptions {
    /// From the first byte sent to the last byte read, connecting included.
    pub(crate) request_timeout: Duration,
    /// For DNS, TCP and TLS together.
    pub(crate) connect_timeout: Duration,
    /// The way out.
    pub(crate) proxy: Proxy,
    /// Certificate authorities trusted beside the machine's own, each a PEM text of one or more certificates.
    pub(crate) ca_pem: Vec<Vec<u8>>,
    /// The `User-Agent` header.
    pub(crate) user_agent: String,
    /// Sent with every request.
    pub(crate) headers: Vec<(String, String)>,
}

/// Something about this machine that does not stop us, but that its owner should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Warning {
    /// TLS cannot work until the machine has certificates (package `ca-certificates`) or some are configured.
    NoCertificates,
    /// The named environment variable is not a proxy we can use, and was ignored.
    ProxyIgnored {
        /// The variable's name; its value may hold a password.
        variable: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::NoCertificates => f.write_str(
                "no CA certificates were found: HTTPS requests will fail until the machine has some (package ca-certificates) or \
                 SSL_CERT_FILE names them",
            ),
            Warning::ProxyIgnored { variable, reason } => write!(f, "{variable} is ignored: {reason}"),
        }
    }
}

/// What is done to what the URL names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Method {
    /// Something is brought there.
    #[default]
    Post,
    /// It is read; the request has no body.
    Get,
}

/// A request.
#[derive(Default)]
pub(crate) struct Request {
    /// What is asked for.
    pub(crate) method: Method,
    /// Where to.
    pub(crate) url: Arc<str>,
    /// Beside those of the options.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// The bytes as they are sent.
    pub(crate) body: Vec<u8>,
    /// At most so much of the answer's body is read: [`MAX_RESPONSE_BYTES`], unless more has to be said than one verdict.
    pub(crate) max_answer: usize,
}

impl Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers and body have the key.
        f.debug_struct("Request").field("method", &self.method).field("bytes", &self.body.len()).finish_non_exhaustive()
    }
}

/// An answer, from whomever it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Response {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The `Retry-After` header, if it can be understood.
    pub(crate) retry_after: Option<RetryAfter>,
    /// The `ETag` header: which version this is.
    pub(crate) etag: Option<String>,
    /// The body was longer than is read.
    pub(crate) is_cut: bool,
    /// The first [`Request::max_answer`] bytes of the body.
    pub(crate) body: Vec<u8>,
}

/// A request under way.
pub(crate) type Pending = Pin<Box<dyn Future<Output = Result<Response, TransportError>> + Send>>;

/// The seam: what sends requests. Tests put an endpoint of their own here.
pub(crate) trait Http: Send + Sync {
    /// Sends `request`. Dropping the future gives the request up.
    fn send(&self, request: Request) -> Pending;
}

/// Sends requests over the network. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub(crate) struct Transport {
    pool: Arc<Pool>,
}

impl Transport {
    /// Reads the environment and the machine's certificates: some tens of milliseconds, not for the caller's thread.
    pub(crate) fn new(options: TransportOptions) -> Result<(Self, Vec<Warning>), TransportError> {
        Self::surrounded_by(options, &|name| std::env::var(name).ok(), Box::new(tls::machine_certificates))
    }

    /// As [`Transport::new`], with the environment and the certificates given.
    fn surrounded_by(
        options: TransportOptions,
        env: &dyn Fn(&'static str) -> Option<String>,
        machine: MachineCertificates,
    ) -> Result<(Self, Vec<Warning>), TransportError> {
        let (ways, mut warnings) = Ways::new(&options.proxy, env)?;
        let roots = tls::roots(machine(), &options.ca_pem)?;
        if roots.is_empty() {
            warnings.push(Warning::NoCertificates);
        }
        let headers = header_map(&options.headers)?;
        let settings = Settings { options, headers, ways, machine, roots: Arc::new(roots) };
        Ok((Self { pool: Pool::new(Arc::new(settings))? }, warnings))
    }

    /// The same settings without the connections: for a forked child, which must not write into its parent's sockets.
    pub(crate) fn reconnect(&self) -> Result<Self, TransportError> {
        Ok(Self { pool: self.pool.apart()? })
    }
}

impl Http for Transport {
    fn send(&self, request: Request) -> Pending {
        Box::pin(exchange::exchange(Arc::clone(&self.pool), request))
    }
}

impl Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither proxies (passwords) nor headers (keys) are shown.
        f.debug_struct("Transport")
            .field("request_timeout", &self.pool.settings().options.request_timeout)
            .finish_non_exhaustive()
    }
}

fn header_map(headers: &[(String, String)]) -> Result<HeaderMap, TransportError> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let (Ok(key), Ok(text)) = (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str())) else {
            return Err(TransportError::BadHeader { name: name.clone() });
        };
        map.append(key, text);
    }
    Ok(map)
}
