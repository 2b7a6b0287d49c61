//! HTTPS requests: the network behind a trait with one method, [`Http::send`].
//!
//! One [`Transport`] belongs to one delivery task. It handles TLS, proxies and timeouts, and knows nothing of PostHog:
//! it neither retries failed requests nor interprets responses. reqwest and rustls are used in this folder only. TLS is
//! rustls with ring, never OpenSSL, and the process-wide crypto provider of the program is neither read nor set.
//!
//! Rules:
//!
//! * **Nothing here panics.** A machine without CA certificates causes a warning; requests then fail with
//!   [`TransportError::Tls`] and are retried by their sender, so events wait on disk until certificates are installed.
//!   A malformed proxy setting in the environment is ignored with a warning; a malformed proxy or certificate in the
//!   *options* is an error.
//! * **Proxies are read once**, in [`Transport::new`], from the environment (`https_proxy`, `http_proxy`, `all_proxy`,
//!   `no_proxy`; see `proxy.rs`). A forked child calls [`Transport::reconnect`], which reads nothing and shares no
//!   connection with the parent.
//! * **Replaced certificates are noticed.** The machine's certificates (`SSL_CERT_FILE`, `SSL_CERT_DIR`) are read in
//!   [`Transport::new`] and again after a failure of TLS, at most once a minute. If they have changed, the request is
//!   sent once more with the new ones. An idle process reads nothing.
//! * **The client's own certificate**, if one is configured, is presented to endpoints that ask for one, also through
//!   proxies. Its files are read again whenever a connection is made (`identity.rs`).
//! * **Redirects are not followed:** a POST that becomes a GET of a login page must not look like success.
//! * **Names are resolved** on one thread per look-up, with a bounded number of them: tokio's own way panics if no
//!   thread can be created.
//! * **Responses are bounded.** At most [`Request::max_answer`] bytes of a body are read (usually 64 KiB). Encoded
//!   responses are not requested (`Accept-Encoding: identity`), but gzip and deflate are decoded within the same bound,
//!   because servers and proxies send them anyway. A successful response in another encoding is an error that names the
//!   encoding.
//! * **A connection that died while idle is not a failure.** A request that finds it dead before the response begins is
//!   sent once more, at once, over new connections and within the same timeout. A request on a new connection is never
//!   sent twice.
//! * **An idle transport has no timers.** Unused connections are closed after 30 s, before a NAT forgets them; the only
//!   timer ends with the last of them.
//! * `Retry-After` is parsed leniently: seconds (a fraction is rounded up) or an HTTP date. Anything else counts as
//!   absent.
//! * The texts of errors and warnings never contain a proxy's password or a request's URL. The log line of a request
//!   (`log.rs`) has its path, and neither its query nor its headers.

mod exchange;
mod identity;
mod log;
mod message;
mod pool;
mod proxy;
#[cfg(test)]
mod proxy_tests;
mod resolve;
#[cfg(test)]
mod tests;

use reqwest::Url;

pub(crate) use identity::ClientIdentity;
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use identity::load_any as load_any_identity;
pub(crate) use log::{RequestLine, host_and_path, logged};
#[cfg(any(fuzzing, test, feature = "testing"))]
pub(crate) use message::RetryAfter;
pub(crate) use message::{Http, MAX_RESPONSE_BYTES, Pending, Request, Response, TransportError};
pub(crate) use pool::{Transport, TransportOptions, check_certificates};
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use proxy::choose_any as choose_any_proxy;
pub(crate) use proxy::{Proxy, check_proxy};

/// Normalizes the base URL of an installation to `scheme://host[:port][/path]` without a trailing slash; the default
/// scheme is `https://`. Different spellings of one URL give the same text, because directories of queues are named
/// after it.
pub(crate) fn normalize_host(host: &str) -> Result<String, &'static str> {
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
