//! A context from what a request says of itself.

use std::net::IpAddr;

use super::{CURRENT_URL, Context, REQUEST_PATH, RequestQuery};

/// Whose request it is, in the words of PostHog's other libraries.
pub(super) const DISTINCT_ID_HEADER: &str = "X-POSTHOG-DISTINCT-ID";
/// The session it belongs to.
pub(super) const SESSION_ID_HEADER: &str = "X-POSTHOG-SESSION-ID";

/// Longer values are cut.
const MOST_CHARS: usize = 1000;

impl Context {
    /// What a request's headers say: `X-POSTHOG-DISTINCT-ID` and `X-POSTHOG-SESSION-ID`, whatever the case of their names. Values are
    /// cleaned; the first usable one of a name counts; what is not UTF-8 is left out, and recorded by the client that uses the context.
    ///
    /// Whoever sends the request chooses these values: they are no authentication. [`Context::update`] replaces them by what the
    /// application knows.
    ///
    /// ```
    /// use posthog::{Context, current_distinct_id};
    ///
    /// let context = Context::from_headers([("x-posthog-distinct-id", " user_1\r\n"), ("accept", "*/*")]);
    /// assert_eq!(context.enter(current_distinct_id).as_deref(), Some("user_1"));
    /// ```
    pub fn from_headers<N: AsRef<str>, V: AsRef<[u8]>>(headers: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut read = Read::default();
        headers.into_iter().for_each(|(name, value)| read.header(name.as_ref(), value.as_ref(), false));
        read.context()
    }

    /// [`from_headers`](Self::from_headers), and what else the request says: `$current_url`, `$request_method`, `$request_path`,
    /// `$user_agent`, and `$ip`, which is the first address of `X-Forwarded-For`, as the sender claims.
    ///
    /// `$current_url` is sent without the query, which may hold secrets; [`from_request_with`](Self::from_request_with) keeps what the
    /// program wants of it.
    ///
    /// ```
    /// use posthog::{Context, current_session_id};
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

    /// [`from_request`](Self::from_request) with what `query` keeps of the URL's query.
    ///
    /// ```
    /// use posthog::{Context, RequestQuery};
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

/// What was found so far.
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

/// Without control characters, without blanks around, not too long; nothing left is nothing said.
pub(super) fn cleaned(value: &str) -> Option<String> {
    let kept: String = value.chars().filter(|c| !c.is_control()).collect();
    let cut: String = kept.trim().chars().take(MOST_CHARS).collect();
    let cut = cut.trim_end();
    (!cut.is_empty()).then(|| cut.to_owned())
}

/// The path of an absolute address, or of one that begins with its path.
fn path_of(url: &str) -> &str {
    // An address that begins with its path may have another one in its query.
    let scheme = url.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?', '#']));
    let after_scheme = scheme.map_or(url, |(_, rest)| rest);
    let until = after_scheme.find(['?', '#']).unwrap_or(after_scheme.len());
    let (before_query, _) = after_scheme.split_at(until);
    before_query.find('/').map_or("/", |at| before_query.split_at(at).1)
}
