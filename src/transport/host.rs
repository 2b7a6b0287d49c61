//! The base URL of an installation, in one spelling.

use reqwest::Url;

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
