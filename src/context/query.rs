//! What of a request's URL is sent: by default neither its query, nor its fragment, nor a name and password before its host.

use std::sync::Arc;

/// What `$current_url` says of a request's query: nothing, unless the program wants it.
///
/// A query often holds what must not leave the program: tokens to reset a password, session keys, names and addresses. So the default
/// sends the URL without it. The fragment, and a name and password before the host, are never sent.
///
/// ```
/// use posthog::RequestQuery;
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
    /// The URL without its query. The default.
    pub fn none() -> Self {
        Self::default()
    }

    /// The parameters of these names, in the order of the request. Names are compared as they stand in the URL, without decoding.
    pub fn only<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Self {
        Self { kept: Kept::Only(names.into_iter().map(|name| name.as_ref().into()).collect()) }
    }

    /// The whole query, whatever it holds.
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

    /// The URL with what is kept of its query.
    pub(super) fn applied_to(&self, url: &str) -> String {
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

/// Without `name:password@` before the host. A path that holds an `@` keeps it.
fn without_user(place: &str) -> String {
    let Some((scheme, rest)) = place.split_once("://").filter(|(scheme, _)| !scheme.contains('/')) else {
        return place.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
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
