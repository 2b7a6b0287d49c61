//! The response to one request, and whether the sink takes (stores) the events of the request.

use std::time::Duration;

/// The response to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) delay: Duration,
    pub(crate) ending: Ending,
    /// Whether the sink stores the events of the request.
    pub(crate) takes: bool,
    /// V1 results, one for each event in order.
    pub(crate) results: Option<Vec<String>>,
}

/// How the exchange ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With the response.
    Reply,
    /// With a closed connection and no response.
    Close,
    /// Not at all until the client cancels the request or the sink stops.
    Hang,
}

impl Answer {
    /// 200 and `{"status":1}`, or for a V1 batch `ok` for each event: the events are taken.
    pub fn ok() -> Self {
        Self { results: Some(Vec::new()), ..Self::status(200).body(r#"{"status":1}"#) }
    }

    /// For a V1 batch 200 and a result for each event in order: `ok`, `warning`, `drop`, `retry` or any other word,
    /// with details after a colon; `missing` omits the event from the response. The last word applies to all further
    /// events. Only `ok` and `warning` take the event.
    pub fn results<'w>(words: impl IntoIterator<Item = &'w str>) -> Self {
        Self { results: Some(words.into_iter().map(str::to_owned).collect()), ..Self::status(200) }
    }

    /// `status` with an empty body. A 2xx status takes the events, any other does not.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            body: String::new(),
            headers: Vec::new(),
            delay: Duration::ZERO,
            ending: Ending::Reply,
            takes: (200..300).contains(&status),
            results: None,
        }
    }

    /// Closes the connection without a response. The events are not taken. With [`Answer::taking`] they are taken,
    /// which the client cannot know.
    pub fn close() -> Self {
        Self { ending: Ending::Close, ..Self::status(0) }
    }

    /// Takes the events and never answers.
    pub fn hang() -> Self {
        Self { ending: Ending::Hang, ..Self::status(0) }.taking()
    }

    /// Sets the body. One that starts with `{` is sent as JSON, any other as plain text.
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self.results = None;
        self
    }

    /// 200 with this body: flags or their definitions.
    pub fn json(body: &serde_json::Value) -> Self {
        Self::status(200).body(body.to_string())
    }

    /// Adds the `ETag` header. A client that already has this version of the definitions gets a 304.
    pub fn etag(self, version: impl Into<String>) -> Self {
        self.header("etag", version)
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Adds `Retry-After` in seconds.
    pub fn retry_after(self, seconds: u64) -> Self {
        self.header("retry-after", seconds.to_string())
    }

    /// Waits before the response. Requests on other connections are not delayed: this simulates the round trip of a
    /// network, not a slow server.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Takes the events whatever the status is, as for a gateway's 502 after the server behind it has stored the
    /// request.
    pub fn taking(mut self) -> Self {
        self.takes = true;
        self
    }

    /// Takes nothing whatever the status is, as for the 200 of a captive portal.
    pub fn discarding(mut self) -> Self {
        self.takes = false;
        self
    }
}
