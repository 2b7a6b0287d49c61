//! PostHog, played in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::answer::Answer;
use super::body;
use super::clock::StillClock;
use crate::sys::clock::still::StillTime;
use crate::transport::{Http, Pending, Request, TransportError};

/// What is asked of PostHog, whichever protocol it is asked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Route {
    /// Events given to [`capture`](crate::Client::capture).
    Analytics,
    /// Events given to [`capture_ai`](crate::Client::capture_ai).
    Ai,
    /// Feature flags of a user.
    Flags,
    /// Their definitions, for evaluation by the client itself.
    FlagDefinitions,
}

/// A request that the server got. It gets none of the headers of [`Config::header`](crate::Config::header), which are added by what
/// it stands in for.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RecordedRequest {
    /// What was asked.
    pub route: Route,
    /// Where, query included.
    pub url: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body, decompressed; null if there is none.
    pub body: Value,
    /// The events in it, as they were sent.
    pub events: Vec<Value>,
    /// How many requests have carried its first event, this one included.
    pub attempt: u32,
    /// The status that it is answered with; `None` if it gets no answer.
    pub status: Option<u16>,
}

impl RecordedRequest {
    /// The first value of the header called `name` (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(each, _)| each == name).map(|(_, value)| value.as_str())
    }
}

/// A PostHog that answers as it is told. Clones are the same server. Unless told otherwise it takes everything at once.
///
/// It reads every codec that the build has: brotli and zstd with the features of these names. A request that it cannot read gets no answer,
/// so its events stay queued, and whoever then asks what came hears of it.
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
    /// Why a request could not be read, if one could not.
    unreadable: Option<String>,
}

impl Server {
    pub(super) fn new(clock: &StillClock) -> Self {
        Self { clock: Arc::clone(&clock.time), state: Arc::default() }
    }

    /// Answers for the next requests of that kind, one each, in this order, behind those of earlier scripts.
    pub fn script(&self, route: Route, answers: impl IntoIterator<Item = Answer>) {
        self.state().scripts.entry(route).or_default().extend(answers);
    }

    /// Fails the next `times` requests of that kind with 503.
    pub fn fail_next(&self, route: Route, times: usize) {
        self.script(route, std::iter::repeat_n(Answer::status(503), times));
    }

    /// The answer for requests of that kind that no script covers; [`Answer::ok`] at first.
    pub fn always(&self, route: Route, answer: Answer) {
        self.state().standing.insert(route, answer);
    }

    /// All requests so far, answered or not, in the order of their arrival.
    ///
    /// # Panics
    ///
    /// If one of them could not be read.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.read().requests.clone()
    }

    /// The events taken so far, as they were sent. One that was taken twice is there twice.
    ///
    /// # Panics
    ///
    /// If a request could not be read.
    pub fn taken(&self) -> Vec<Value> {
        self.read().taken.clone()
    }

    /// Forgets the requests and the events, and what could not be read. Scripts stay.
    pub fn forget(&self) {
        let mut state = self.state();
        state.requests.clear();
        state.taken.clear();
        state.unreadable = None;
    }

    /// What came, if all of it could be read: an empty answer would let a test pass that sees nothing.
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
        // Only when it is first looked at: one that is given up before that was never sent.
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
    /// Records the request; answers with the answer, and what an endpoint of that kind says when all is well. Or why it cannot be read.
    fn take_in(&mut self, request: &Request) -> Result<(Answer, String), String> {
        let path = request.url.split('?').next().unwrap_or_default().trim_end_matches('/');
        let route = match path {
            path if path.ends_with("/i/v0/ai/batch") => Route::Ai,
            path if path.ends_with("/flags") || path.ends_with("/decide") => Route::Flags,
            path if path.ends_with("/flags/definitions") || path.ends_with("/api/feature_flag/local_evaluation") => {
                Route::FlagDefinitions
            }
            _ => Route::Analytics,
        };
        let headers: Vec<_> =
            request.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        let encoding = headers.iter().find(|(name, _)| name == "content-encoding").map(|(_, value)| value.as_str());
        let body = body::read(encoding, &request.body)
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
        Route::Analytics if path.ends_with("/i/v1/analytics/events") => {
            let uuids = events.iter().filter_map(|event| event["uuid"].as_str());
            json!({"results": uuids.map(|uuid| (uuid, json!({"result": "ok"}))).collect::<HashMap<_, _>>()})
        }
        Route::Analytics | Route::Ai => json!({"status": 1}),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    use super::*;
    use crate::testing::Harness;
    use crate::{CaptureProtocol, Compression, Config, Event};

    fn speaking(compression: Compression) -> impl FnOnce(Config) -> Config {
        move |config| config.protocol(CaptureProtocol::V1).compression(compression)
    }

    /// Every codec that is compiled in.
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
    fn every_codec_that_is_compiled_in_is_read() {
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
        let request = Request {
            url: "http://posthog.test/batch/".into(),
            headers,
            body: body.to_vec(),
            max_answer: 1024,
            ..Request::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(server.send(request)).map(drop).map_err(|error| error.describe())
    }

    #[test]
    fn a_request_that_cannot_be_read_gets_no_answer_and_whoever_asks_hears_of_it() {
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
                let told = panicked.downcast_ref::<String>().unwrap();
                assert!(told.contains("http://posthog.test/batch/: its body is"), "{told}");
            }
            server.forget();
            assert!(server.requests().is_empty() && server.taken().is_empty());
        }
        assert_eq!(post(&server, "identity", br#"{"batch":[]}"#), Ok(()));
        assert_eq!(server.requests().len(), 1);
    }
}
