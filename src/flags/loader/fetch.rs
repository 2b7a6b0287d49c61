//! One request for definitions.

use std::time::Duration;

use super::options::LoaderParts;
use crate::transport::{Request, Response};

/// So much of an answer is read: tens of thousands of flags.
pub(super) const ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// Asks PostHog for all definitions or, if `etag` names a version that we have, whether there are newer ones. An error is in one line.
pub(super) async fn ask(parts: &LoaderParts, secret_key: &str, etag: Option<&str>) -> Result<Response, String> {
    let asked = parts.http.send(request(&parts.options.host, &parts.options.api_key, secret_key, etag));
    match within(parts, parts.options.timeout, asked).await {
        Some(answer) => answer.map_err(|error| error.describe()),
        None => Err(format!("no answer within {:?}", parts.options.timeout)),
    }
}

/// What comes of `task` if that is in time.
pub(super) async fn within<T>(parts: &LoaderParts, most: Duration, task: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = task => Some(done),
        () = parts.clock.sleep(most) => None,
    }
}

fn request(host: &str, api_key: &str, secret_key: &str, etag: Option<&str>) -> Request {
    // The query names the project: a personal key is of a person, who may have several.
    let url = format!("{host}/flags/definitions?token={}&send_cohorts", percent_encoded(api_key));
    let mut headers = vec![("authorization", format!("Bearer {secret_key}"))];
    headers.extend(etag.map(|etag| ("if-none-match", etag.to_owned())));
    Request {
        method: crate::transport::Method::Get,
        url: url.into(),
        headers,
        max_answer: ANSWER_BYTES,
        ..Request::default()
    }
}

/// A key has nothing that needs it, unless somebody made it up.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdl_04_a_request_names_the_project_the_key_and_the_version_that_is_there() {
        let request = request("https://ph.test/sub", "phc_1", "phx_2", Some("W/\"3\""));
        assert_eq!(&*request.url, "https://ph.test/sub/flags/definitions?token=phc_1&send_cohorts");
        let expected = [("authorization", "Bearer phx_2".to_owned()), ("if-none-match", "W/\"3\"".to_owned())];
        assert_eq!((request.headers.as_slice(), request.body.len()), (expected.as_slice(), 0));
        assert_eq!(percent_encoded("a&b c\u{e9}"), "a%26b%20c%C3%A9");
    }
}
