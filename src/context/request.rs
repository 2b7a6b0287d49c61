//! Contexts and HTTP requests: reading a context from an incoming request, adding it to an outgoing one, and what of a
//! URL is sent to PostHog.

use std::net::IpAddr;
use std::sync::Arc;

use super::scope::{CURRENT_URL, Context, REQUEST_PATH};

/// The header for the distinct id, as in PostHog's other libraries.
const DISTINCT_ID_HEADER: &str = "X-POSTHOG-DISTINCT-ID";
/// The header for the session id.
const SESSION_ID_HEADER: &str = "X-POSTHOG-SESSION-ID";

/// Longer header values are cut.
const MOST_CHARS: usize = 1000;

impl Context {
    /// Reads the headers `X-POSTHOG-DISTINCT-ID` and `X-POSTHOG-SESSION-ID`; the case of their names does not matter.
    /// Values are cleaned, and the first usable value of a name counts. A value that is not UTF-8 is left out, which
    /// the client that uses the context records.
    ///
    /// The sender of the request chooses these values: they are no authentication. [`Context::update`] replaces them
    /// with what the program knows.
    ///
    /// ```
    /// use posthog::Context;
    /// use posthog::context::current_distinct_id;
    ///
    /// let context = Context::from_headers([("x-posthog-distinct-id", " user_1\r\n"), ("accept", "*/*")]);
    /// assert_eq!(context.enter(current_distinct_id).as_deref(), Some("user_1"));
    /// ```
    pub fn from_headers<N: AsRef<str>, V: AsRef<[u8]>>(headers: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut read = Read::default();
        headers.into_iter().for_each(|(name, value)| read.header(name.as_ref(), value.as_ref(), false));
        read.context()
    }

    /// Like [`from_headers`](Self::from_headers), and sets `$current_url`, `$request_method`, `$request_path`,
    /// `$user_agent` and `$ip`. `$ip` is the first address of `X-Forwarded-For`, as the sender claims.
    ///
    /// `$current_url` is sent without the query, which may contain secrets;
    /// [`from_request_with`](Self::from_request_with) keeps the parts of it that the program names.
    ///
    /// ```
    /// use posthog::Context;
    /// use posthog::context::current_session_id;
    ///
    /// let headers = [("X-PostHog-Session-Id", "session_7"), ("User-Agent", "curl/8")];
    /// let context = Context::from_request("GET", "https://example.org/cart?item=7", headers);
    /// assert_eq!(context.enter(current_session_id).as_deref(), Some("session_7"));
    /// ```
    pub fn from_request<N: AsRef<str>, V: AsRef<[u8]>>(
        method: &str,
        url: &str,
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        Self::from_request_with(method, url, headers, &RequestQuery::none())
    }

    /// Like [`from_request`](Self::from_request), with the parts of the URL's query that `query` keeps.
    ///
    /// ```
    /// use posthog::Context;
    /// use posthog::context::RequestQuery;
    ///
    /// let (url, headers) = ("/buy?utm_source=mail&card=4111", [("User-Agent", "curl/8")]);
    /// let context = Context::from_request_with("GET", url, headers, &RequestQuery::only(["utm_source"]));
    /// assert!(format!("{context:?}").contains("/buy?utm_source=mail\""));
    /// ```
    pub fn from_request_with<N: AsRef<str>, V: AsRef<[u8]>>(
        method: &str,
        url: &str,
        headers: impl IntoIterator<Item = (N, V)>,
        query: &RequestQuery,
    ) -> Self {
        let mut read = Read::default();
        headers.into_iter().for_each(|(name, value)| read.header(name.as_ref(), value.as_ref(), true));
        let mut context = read.context();
        let sent = query.applied_to(url);
        let facts = [(CURRENT_URL, sent.as_str()), ("$request_method", method), (REQUEST_PATH, path_of(url))];
        for (key, value) in facts {
            if let Some(value) = cleaned(value) {
                context = context.prop(key, value);
            }
        }
        context
    }
}

/// The values found so far.
#[derive(Default)]
struct Read {
    distinct_id: Option<String>,
    session_id: Option<String>,
    user_agent: Option<String>,
    ip: Option<IpAddr>,
    not_text: Vec<&'static str>,
}

impl Read {
    fn header(&mut self, name: &str, value: &[u8], with_facts: bool) {
        if name.eq_ignore_ascii_case(DISTINCT_ID_HEADER) {
            self.distinct_id = self.distinct_id.take().or_else(|| text(DISTINCT_ID_HEADER, value, &mut self.not_text));
        } else if name.eq_ignore_ascii_case(SESSION_ID_HEADER) {
            self.session_id = self.session_id.take().or_else(|| text(SESSION_ID_HEADER, value, &mut self.not_text));
        } else if !with_facts {
        } else if name.eq_ignore_ascii_case("user-agent") {
            let found = || std::str::from_utf8(value).ok().and_then(cleaned);
            self.user_agent = self.user_agent.take().or_else(found);
        } else if name.eq_ignore_ascii_case("x-forwarded-for") && self.ip.is_none() {
            let first = std::str::from_utf8(value).ok().and_then(|list| list.split(',').next());
            self.ip = first.and_then(|address| address.trim().parse().ok());
        }
    }

    fn context(self) -> Context {
        let mut context = Context::new();
        if let Some(distinct_id) = self.distinct_id {
            context = context.distinct_id(distinct_id);
        }
        if let Some(session_id) = self.session_id {
            context = context.session_id(session_id);
        }
        if let Some(user_agent) = self.user_agent {
            context = context.prop("$user_agent", user_agent);
        }
        if let Some(ip) = self.ip {
            context = context.prop("$ip", ip);
        }
        for name in self.not_text {
            context.remember(format!("request header {name} was left out: it is not UTF-8"));
        }
        context
    }
}

fn text(name: &'static str, value: &[u8], not_text: &mut Vec<&'static str>) -> Option<String> {
    match std::str::from_utf8(value) {
        Ok(value) => cleaned(value),
        Err(_) => {
            not_text.push(name);
            None
        }
    }
}

/// Removes control characters and surrounding blanks and cuts long values; `None` if nothing is left.
fn cleaned(value: &str) -> Option<String> {
    let kept: String = value.chars().filter(|c| !c.is_control()).collect();
    let cut: String = kept.trim().chars().take(MOST_CHARS).collect();
    let cut = cut.trim_end();
    (!cut.is_empty()).then(|| cut.to_owned())
}

/// The path of an absolute URL, or of one that begins with its path.
fn path_of(url: &str) -> &str {
    // A URL that begins with its path may have another URL in its query.
    let scheme = url.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?', '#']));
    let after_scheme = scheme.map_or(url, |(_, rest)| rest);
    let until = after_scheme.find(['?', '#']).unwrap_or(after_scheme.len());
    let (before_query, _) = after_scheme.split_at(until);
    before_query.find('/').map_or("/", |at| before_query.split_at(at).1)
}

/// Which parameters of a request's query are sent in `$current_url`. By default none.
///
/// A query often contains what must not leave the program: tokens to reset a password, session keys, names and
/// addresses. The fragment, and a user name and password before the host, are never sent.
///
/// ```
/// use posthog::context::RequestQuery;
///
/// let campaign = RequestQuery::only(["utm_source", "utm_campaign"]);
/// # let _ = campaign;
/// ```
#[derive(Clone, Debug, Default)]
pub struct RequestQuery {
    kept: Kept,
}

#[derive(Clone, Debug, Default)]
enum Kept {
    #[default]
    Nothing,
    Only(Arc<[Box<str>]>),
    All,
}

impl RequestQuery {
    /// Sends the URL without its query. The default.
    pub fn none() -> Self {
        Self::default()
    }

    /// Sends the parameters of these names, in the order of the request. Names are compared as written in the URL, not
    /// decoded.
    pub fn only<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Self {
        Self { kept: Kept::Only(names.into_iter().map(|name| name.as_ref().into()).collect()) }
    }

    /// Sends the whole query, whatever it contains.
    pub fn all() -> Self {
        Self { kept: Kept::All }
    }

    fn keeps(&self, parameter: &str) -> bool {
        let name = parameter.split('=').next().unwrap_or_default();
        match &self.kept {
            Kept::Nothing => false,
            Kept::Only(names) => names.iter().any(|kept| **kept == *name),
            Kept::All => true,
        }
    }

    /// The URL with the kept parameters of its query.
    fn applied_to(&self, url: &str) -> String {
        let without_fragment = url.split('#').next().unwrap_or_default();
        let (place, query) = without_fragment.split_once('?').unwrap_or((without_fragment, ""));
        let mut kept = without_user(place);
        let mut separator = '?';
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty() && self.keeps(parameter)) {
            kept.push(separator);
            kept.push_str(parameter);
            separator = '&';
        }
        kept
    }
}

/// Removes `name:password@` before the host. An `@` in the path stays.
fn without_user(place: &str) -> String {
    let Some((scheme, rest)) = place.split_once("://").filter(|(scheme, _)| !scheme.contains('/')) else {
        return place.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

impl Context {
    /// The headers for an outgoing request to `url`; none unless its host is in `hosts` or a subdomain of one of them.
    pub(crate) fn headers_for(&self, url: &str, hosts: &[String]) -> Vec<(&'static str, String)> {
        if !host_of(url).is_some_and(|host| hosts.iter().any(|listed| is_at_or_below(&host, listed))) {
            return Vec::new();
        }
        let distinct_id = self.known_distinct_id().and_then(cleaned).map(|id| (DISTINCT_ID_HEADER, id));
        let session_id = self.known_session_id().and_then(|id| cleaned(&id)).map(|id| (SESSION_ID_HEADER, id));
        distinct_id.into_iter().chain(session_id).collect()
    }
}

/// Normalizes a host for the list of hosts that receive the headers; `None` if it is not a host name.
pub(crate) fn host_pattern(host: &str) -> Option<String> {
    let host = host.trim().trim_end_matches('.').to_ascii_lowercase();
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    (!host.is_empty() && !host.starts_with('.') && host.chars().all(is_plain)).then_some(host)
}

/// The host that a request to `url` goes to, parsed as browsers and HTTP libraries do: a backslash ends it, and text
/// before an `@` is not part of it. If this found another host than the library that sends, headers would leak to that
/// host.
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
    // A host in brackets is an IPv6 address, which no list contains.
    let host = host_and_port.split(':').next()?;
    host_pattern(host)
}

fn is_at_or_below(host: &str, listed: &str) -> bool {
    host.strip_suffix(listed).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_keeps_its_path_and_of_its_query_what_is_asked_for() {
        let url =
            "https://me:secret@shop.example:8080/reset/@me?reset_token=abc&utm_source=mail&utm_source&q=utm_source#top";
        let place = "https://shop.example:8080/reset/@me";
        for (query, expected) in [
            (RequestQuery::none(), String::new()),
            (RequestQuery::only(["utm_source"]), "?utm_source=mail&utm_source".to_owned()),
            (RequestQuery::only(["absent"]), String::new()),
            (RequestQuery::all(), "?reset_token=abc&utm_source=mail&utm_source&q=utm_source".to_owned()),
        ] {
            assert_eq!(query.applied_to(url), format!("{place}{expected}"));
        }
    }

    #[test]
    fn what_looks_like_a_url_in_a_path_or_query_is_left_alone() {
        for (query, url, expected) in [
            (RequestQuery::none(), "/a?to=https://b.example/c", "/a"),
            (RequestQuery::all(), "/a?to=https://b@c.example/d", "/a?to=https://b@c.example/d"),
            (RequestQuery::none(), "/proxy/https://a@b.example/c", "/proxy/https://a@b.example/c"),
            (RequestQuery::none(), "https://a.example?b", "https://a.example"),
            (RequestQuery::none(), "/a#b?c", "/a"),
            (RequestQuery::all(), "", ""),
        ] {
            assert_eq!(query.applied_to(url), expected, "{url}");
        }
    }
}
