//! [`Server`]: a scripted PostHog in memory.

use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flate2::read::{MultiGzDecoder, ZlibDecoder};
use serde_json::{Value, json};

use super::answer::Answer;
use super::harness::StillClock;
use crate::sys::clock::still::StillTime;
use crate::transport::{Http, Pending, Request, TransportError};

/// A kind of request, whatever the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Route {
    /// Events given to [`capture`](crate::Client::capture).
    Analytics,
    /// Events given to [`capture_ai`](crate::Client::capture_ai).
    Ai,
    /// Values of feature flags.
    Flags,
    /// Feature flag definitions, for evaluation in the client.
    FlagDefinitions,
    /// The payload of a remote config flag. By default there is none.
    RemoteConfig,
}

/// A request that the server received. Headers of [`Config::header`](crate::Config::header) are not included, because
/// the HTTP layer that the server replaces adds them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RecordedRequest {
    /// The kind of request.
    pub route: Route,
    /// The URL, including the query.
    pub url: String,
    /// Names, in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body, decompressed; null if there is none.
    pub body: Value,
    /// The events in the body, as they were sent.
    pub events: Vec<Value>,
    /// How many requests have contained its first event, including this one.
    pub attempt: u32,
    /// The status of the response; `None` if there was none.
    pub status: Option<u16>,
}

impl RecordedRequest {
    /// The first value of the header called `name` (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(each, _)| each == name).map(|(_, value)| value.as_str())
    }
}

/// A PostHog with scripted responses. Clones are the same server. By default it accepts everything at once.
///
/// It reads every codec of the build: brotli and zstd with the features of these names. A request that it cannot read
/// gets no response, so its events stay queued, and the next call of [`requests`](Server::requests) or
/// [`taken`](Server::taken) panics.
#[derive(Clone, Debug)]
pub struct Server {
    clock: Arc<StillTime>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    scripts: HashMap<Route, VecDeque<Answer>>,
    standing: HashMap<Route, Answer>,
    requests: Vec<RecordedRequest>,
    taken: Vec<Value>,
    /// Why a request could not be read, if there was one.
    unreadable: Option<String>,
}

impl Server {
    pub(super) fn new(clock: &StillClock) -> Self {
        Self { clock: Arc::clone(&clock.time), state: Arc::default() }
    }

    /// Sets the responses to the next requests of a kind, in this order, after those of earlier scripts.
    pub fn script(&self, route: Route, answers: impl IntoIterator<Item = Answer>) {
        self.state().scripts.entry(route).or_default().extend(answers);
    }

    /// Responds to the next `times` requests of a kind with 503.
    pub fn fail_next(&self, route: Route, times: usize) {
        self.script(route, std::iter::repeat_n(Answer::status(503), times));
    }

    /// Sets the response to requests of a kind that no script covers. Initially [`Answer::ok`].
    pub fn always(&self, route: Route, answer: Answer) {
        self.state().standing.insert(route, answer);
    }

    /// All requests so far, with or without a response, in the order of their arrival.
    ///
    /// # Panics
    ///
    /// If one of them could not be read.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.read().requests.clone()
    }

    /// The events accepted so far, as they were sent. An event that was accepted twice is there twice.
    ///
    /// # Panics
    ///
    /// If a request could not be read.
    pub fn taken(&self) -> Vec<Value> {
        self.read().taken.clone()
    }

    /// Clears the requests and the events, also those that could not be read. Scripts stay.
    pub fn forget(&self) {
        let mut state = self.state();
        state.requests.clear();
        state.taken.clear();
        state.unreadable = None;
    }

    /// The state, if every request could be read. An unreadable one must fail the test, not look like no request.
    fn read(&self) -> MutexGuard<'_, State> {
        let state = self.state();
        let unreadable = state.unreadable.clone();
        if let Some(why) = unreadable {
            drop(state);
            panic!("the server of posthog::testing could not read a request: {why}");
        }
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Http for Server {
    fn send(&self, request: Request) -> Pending {
        let server = self.clone();
        // Inside the future: a request that is dropped before its first poll was never sent.
        Box::pin(async move {
            let taken_in = server.state().take_in(&request);
            let (answer, words) = taken_in.map_err(|why| TransportError::Other(why.into()))?;
            if !answer.after().is_zero() {
                server.clock.reached(server.clock.now() + answer.after()).await;
            }
            let mut response = answer.into_result(words)?;
            response.is_cut = response.body.len() > request.max_answer;
            response.body.truncate(request.max_answer);
            Ok(response)
        })
    }
}

impl State {
    /// Records the request. Returns the scripted response and the body of a success, or why the request cannot be read.
    fn take_in(&mut self, request: &Request) -> Result<(Answer, String), String> {
        let path = request.url.split('?').next().unwrap_or_default().trim_end_matches('/');
        let route = match path {
            path if path.ends_with("/i/v0/ai/batch") || path.ends_with("/i/v1/ai/events") => Route::Ai,
            path if path.ends_with("/flags") || path.ends_with("/decide") => Route::Flags,
            path if path.ends_with("/flags/definitions") || path.ends_with("/api/feature_flag/local_evaluation") => {
                Route::FlagDefinitions
            }
            path if path.contains("/feature_flags/") && path.ends_with("/remote_config") => Route::RemoteConfig,
            _ => Route::Analytics,
        };
        let headers: Vec<_> =
            request.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        let encoding = headers.iter().find(|(name, _)| name == "content-encoding").map(|(_, value)| value.as_str());
        let body = read_body(encoding, &request.body)
            .map_err(|why| format!("{}: {why}", request.url))
            .inspect_err(|why| self.unreadable = Some(why.clone()))?;
        let events = body["batch"].as_array().cloned().unwrap_or_default();
        let scripted = self.scripts.get_mut(&route).and_then(VecDeque::pop_front);
        let answer = scripted.or_else(|| self.standing.get(&route).cloned()).unwrap_or_else(Answer::ok);
        if answer.takes() {
            self.taken.extend(events.iter().cloned());
        }
        let words = words(path, route, &events);
        let first = events.first().map(|event| event["uuid"].clone());
        let carried = |request: &&RecordedRequest| {
            first.is_some() && request.events.iter().any(|event| Some(&event["uuid"]) == first.as_ref())
        };
        let attempt = u32::try_from(self.requests.iter().filter(carried).count() + 1).unwrap_or(u32::MAX);
        let (url, status) = (request.url.to_string(), answer.status_code());
        self.requests.push(RecordedRequest { route, url, headers, body, events, attempt, status });
        Ok((answer, words.to_string()))
    }
}

/// What an endpoint says when all is well and there is nothing to say.
fn words(path: &str, route: Route, events: &[Value]) -> Value {
    match route {
        Route::Flags if path.ends_with("/decide") => {
            json!({"featureFlags": {}, "featureFlagPayloads": {}, "errorsWhileComputingFlags": false})
        }
        Route::Flags => json!({"flags": {}, "errorsWhileComputingFlags": false}),
        Route::FlagDefinitions => json!({"flags": [], "group_type_mapping": {}, "cohorts": {}}),
        Route::RemoteConfig => Value::Null,
        Route::Analytics | Route::Ai if path.contains("/i/v1/") => {
            let uuids = events.iter().filter_map(|event| event["uuid"].as_str());
            json!({"results": uuids.map(|uuid| (uuid, json!({"result": "ok"}))).collect::<HashMap<_, _>>()})
        }
        Route::Analytics | Route::Ai => json!({"status": 1}),
    }
}

/// The body as JSON, null if there is none; or why it cannot be read.
fn read_body(encoding: Option<&str>, body: &[u8]) -> Result<Value, String> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    let text = decode(encoding, body)?;
    serde_json::from_slice(&text).map_err(|error| format!("its body is no JSON: {error}"))
}

fn decode(encoding: Option<&str>, body: &[u8]) -> Result<Vec<u8>, String> {
    match encoding {
        None | Some("identity") => Ok(body.to_vec()),
        Some("gzip") => unpack("gzip", MultiGzDecoder::new(body)),
        Some("deflate") => unpack("deflate", ZlibDecoder::new(body)),
        #[cfg(feature = "brotli")]
        Some("br") => unpack("br", brotli::Decompressor::new(body, 4096)),
        #[cfg(feature = "zstd")]
        Some("zstd") => match zstd::stream::read::Decoder::new(body) {
            Ok(decoder) => unpack("zstd", decoder),
            Err(error) => Err(format!("no decoder for zstd: {error}")),
        },
        Some(other) => Err(format!("its body is in {other:?}, which this build does not decode")),
    }
}

fn unpack(encoding: &str, mut decoder: impl Read) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    decoder.read_to_end(&mut text).map_err(|error| format!("its body is not {encoding}: {error}"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    use super::*;
    use crate::settings::{CaptureProtocol, Compression};
    use crate::testing::Harness;
    use crate::{Config, Event};

    fn speaking(compression: Compression) -> impl FnOnce(Config) -> Config {
        move |config| config.protocol(CaptureProtocol::V1).compression(compression)
    }

    /// The codecs of this build.
    fn codecs() -> Vec<(Compression, Option<&'static str>)> {
        vec![
            (Compression::None, None),
            (Compression::Gzip, Some("gzip")),
            (Compression::Deflate, Some("deflate")),
            #[cfg(feature = "brotli")]
            (Compression::Brotli, Some("br")),
            #[cfg(feature = "zstd")]
            (Compression::Zstd, Some("zstd")),
        ]
    }

    #[test]
    fn every_codec_of_this_build_is_read() {
        for (compression, encoding) in codecs() {
            let harness = Harness::new(speaking(compression)).unwrap();
            for n in 0..300 {
                harness.client().capture(Event::new("tick", "user_1").prop("n", n));
            }
            harness.deliver();
            assert_eq!(harness.client().stats().delivered, 300, "{compression:?}");
            let requests = harness.server().requests();
            assert_eq!(requests[0].header("content-encoding"), encoding);
            assert!(requests[0].body["created_at"].is_string());
            let numbers: Vec<_> =
                harness.server().taken().iter().map(|event| event["properties"]["n"].clone()).collect();
            assert_eq!(numbers, (0..300).map(Value::from).collect::<Vec<_>>(), "{compression:?}");
        }
    }

    fn post(server: &Server, encoding: &str, body: &[u8]) -> Result<(), String> {
        let headers = vec![("Content-Encoding", encoding.to_owned())];
        let request =
            Request { url: "http://posthog.test/batch/".into(), headers, body: body.to_vec(), max_answer: 1024 };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(server.send(request)).map(drop).map_err(|error| error.describe())
    }

    #[test]
    fn an_unreadable_request_gets_no_response_and_fails_the_test() {
        let server = Server::new(&StillClock::at(std::time::UNIX_EPOCH + Duration::from_secs(1)));
        for (encoding, body) in [("snappy", &b"{}"[..]), ("gzip", b"{}"), ("identity", b"<html>")] {
            let said = post(&server, encoding, body).unwrap_err();
            assert!(said.contains("its body is"), "{said}");
            let asked = [
                catch_unwind(AssertUnwindSafe(|| drop(server.requests()))),
                catch_unwind(AssertUnwindSafe(|| drop(server.taken()))),
            ];
            for panicked in asked {
                let panicked = panicked.unwrap_err();
                let text = panicked.downcast_ref::<String>().unwrap();
                assert!(text.contains("http://posthog.test/batch/: its body is"), "{text}");
            }
            server.forget();
            assert!(server.requests().is_empty() && server.taken().is_empty());
        }
        assert_eq!(post(&server, "identity", br#"{"batch":[]}"#), Ok(()));
        assert_eq!(server.requests().len(), 1);
    }
}
