//! A running adapter, and a test's instance and server.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sink::{Answer, Request, Sink};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than the wait before a first retry.
pub(crate) const FIRST_RETRY: Duration = Duration::from_millis(1200);

/// The adapter's process, killed when dropped.
#[derive(Debug)]
pub(crate) struct Adapter {
    child: Child,
    url: String,
    /// Removed here, because a killed process cannot remove it.
    _queues: tempfile::TempDir,
}

impl Adapter {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let queues = tempfile::tempdir().unwrap();
        let mut child = sink::command(env!("CARGO_BIN_EXE_adapter"))
            .args(["--port", "0", "--queue-dir"])
            .arg(queues.path())
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut said).unwrap();
        let address = said.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("{said}"));
        let url = format!("http://{address}");
        // Later output is read too, so that the process never blocks on the pipe.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Self { child, url, _queues: queues }
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One test: an instance of the adapter and a server of its own.
#[derive(Debug)]
pub(crate) struct Test<'a> {
    adapter: &'a Adapter,
    id: Option<String>,
    http: reqwest::Client,
    pub(crate) sink: Sink,
    /// Whether it captures AI events.
    is_ai: bool,
}

impl<'a> Test<'a> {
    pub(crate) async fn begin(adapter: &'a Adapter, id: Option<&str>) -> Self {
        // The library enables reqwest's TLS without a provider, which this crate's client then needs even for plain
        // HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        let test = Self { adapter, id: id.map(str::to_owned), http, sink: Sink::start(), is_ai: false };
        test.post("/reset", None).await;
        test
    }

    /// The same test with AI events.
    pub(crate) fn of_ai(self) -> Self {
        Self { is_ai: true, ..self }
    }

    /// The endpoint that V1 has for the events of the test.
    pub(crate) fn endpoint(&self) -> &'static str {
        if self.is_ai { "/i/v1/ai/events" } else { "/i/v1/analytics/events" }
    }

    /// The name of the events of the test.
    pub(crate) fn event(&self) -> &'static str {
        if self.is_ai { "$ai_generation" } else { "tick" }
    }

    pub(crate) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    pub(crate) async fn init(&self, settings: Value) {
        let mut body = json!({ "api_key": "phc_test_key", "host": self.sink.url() });
        body.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        self.post("/init", Some(body)).await;
    }

    pub(crate) async fn capture(&self, event: Value) -> Value {
        let name = self.event();
        let mut body = json!({ "distinct_id": "user_1", "event": name, "properties": null, "timestamp": null });
        body.as_object_mut().unwrap().extend(event.as_object().unwrap().clone());
        self.post(if self.is_ai { "/capture_ai" } else { "/capture" }, Some(body)).await
    }

    pub(crate) async fn flush(&self) {
        self.post("/flush", None).await;
    }

    /// Posts a request, and checks what the harness checks.
    pub(crate) async fn post(&self, path: &str, body: Option<Value>) -> Value {
        let url = match &self.id {
            Some(id) => format!("{}{path}?test_id={id}", self.adapter.url),
            None => format!("{}{path}", self.adapter.url),
        };
        let request = self.http.post(url);
        let request = match body {
            Some(body) => request.json(&body),
            None => request.header("content-type", "application/octet-stream").body(""),
        };
        self.answer(request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let id = self.id.as_ref().map(|id| format!("?test_id={id}")).unwrap_or_default();
        self.answer(self.http.get(format!("{}{path}{id}", self.adapter.url))).await
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Value {
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.status());
        assert_eq!(answer.headers()["content-type"], "application/json");
        let body: Value = answer.json().await.unwrap();
        assert!(body.get("success").is_none_or(|success| success == true), "{body}");
        body
    }

    /// Waits for so many requests, and then long enough to see that there is no further one.
    pub(crate) async fn exactly(&self, requests: usize, longest_wait: Duration) -> Vec<Request> {
        self.at_least(requests).await;
        tokio::time::sleep(longest_wait).await;
        let seen = self.sink.requests();
        assert_eq!(seen.len(), requests);
        seen
    }

    pub(crate) async fn at_least(&self, requests: usize) -> Vec<Request> {
        let until = Instant::now() + PATIENCE;
        while self.sink.requests().len() < requests {
            assert!(Instant::now() < until, "{} of {requests} requests", self.sink.requests().len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.sink.requests()
    }

    pub(crate) fn answers(&self, statuses: &[u16]) {
        self.sink.script(statuses.iter().map(|&status| Answer::status(status)));
    }
}
