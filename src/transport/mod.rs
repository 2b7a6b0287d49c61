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

mod exchange;
mod message;
mod pool;
mod proxy;
#[cfg(test)]
mod proxy_tests;
mod resolve;
#[cfg(test)]
mod tests;

use std::fmt::{self, Debug};
use std::sync::Arc;

use reqwest::Url;

pub(crate) use message::{
    Http, MAX_RESPONSE_BYTES, Method, Pending, Request, Response, RetryAfter, TransportError, Warning,
};
pub(crate) use pool::TransportOptions;
use pool::{MachineCertificates, Pool, Settings, header_map, machine_certificates, roots};
pub(crate) use proxy::Proxy;
use proxy::Ways;

/// Sends requests over the network. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub(crate) struct Transport {
    pool: Arc<Pool>,
}

impl Transport {
    /// Reads the environment and the machine's certificates: some tens of milliseconds, not for the caller's thread.
    pub(crate) fn new(options: TransportOptions) -> Result<(Self, Vec<Warning>), TransportError> {
        Self::surrounded_by(options, &|name| std::env::var(name).ok(), Box::new(machine_certificates))
    }

    /// As [`Transport::new`], with the environment and the certificates given.
    fn surrounded_by(
        options: TransportOptions,
        env: &dyn Fn(&'static str) -> Option<String>,
        machine: MachineCertificates,
    ) -> Result<(Self, Vec<Warning>), TransportError> {
        let (ways, mut warnings) = Ways::new(&options.proxy, env)?;
        let roots = roots(machine(), &options.ca_pem)?;
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

/// `scheme://host[:port][/path]` without a slash at the end; `https://` where no scheme is given. Two spellings of one place become the
/// same text, because queues are named by it.
pub(crate) fn normalise_host(host: &str) -> Result<String, &'static str> {
    let host = host.trim();
    if host.is_empty() {
        return Err("is blank");
    }
    let with_scheme = if host.contains("://") { host.to_owned() } else { format!("https://{host}") };
    let url = Url::parse(&with_scheme).map_err(|_| "is not a URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must begin with http:// or https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or password");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not hold a query or a fragment");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no host");
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}
