//! A context on its way to another service, in the headers of a request, and which services may have it.

use super::Context;
use super::headers::{DISTINCT_ID_HEADER, SESSION_ID_HEADER, cleaned};

impl Context {
    /// The headers for a request to `url`: none, unless its host is one of `hosts` or below one of them.
    pub(crate) fn headers_for(&self, url: &str, hosts: &[String]) -> Vec<(&'static str, String)> {
        if !host_of(url).is_some_and(|host| hosts.iter().any(|listed| is_at_or_below(&host, listed))) {
            return Vec::new();
        }
        let distinct_id = self.known_distinct_id().and_then(cleaned).map(|id| (DISTINCT_ID_HEADER, id));
        let session_id = self.known_session_id().and_then(|id| cleaned(&id)).map(|id| (SESSION_ID_HEADER, id));
        distinct_id.into_iter().chain(session_id).collect()
    }
}

/// A host as it may stand in a list of those that may have the headers. `None` for what is no host.
pub(crate) fn host_pattern(host: &str) -> Option<String> {
    let host = host.trim().trim_end_matches('.').to_ascii_lowercase();
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    (!host.is_empty() && !host.starts_with('.') && host.chars().all(is_plain)).then_some(host)
}

/// The host that a request to this address goes to. Read as browsers and HTTP libraries read it (a backslash ends it, what stands
/// before an `@` is no host): a reader that saw another host than the one that sends would give the headers away.
fn host_of(url: &str) -> Option<String> {
    let url = url.trim();
    if url.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return None;
    }
    let (scheme, rest) = url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return None;
    }
    let authority = rest.split(['/', '\\', '?', '#']).next()?;
    let host_and_port = authority.rsplit('@').next()?;
    // A host in brackets is an address of version 6, and on no list.
    let host = host_and_port.split(':').next()?;
    host_pattern(host)
}

fn is_at_or_below(host: &str, listed: &str) -> bool {
    host.strip_suffix(listed).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}
