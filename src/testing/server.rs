//! PostHog, played in memory.

use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flate2::read::{MultiGzDecoder, ZlibDecoder};
use serde_json::{Value, json};

use super::answer::Answer;
use super::clock::StillClock;
use crate::clock::still::StillTime;
use crate::transport::{Pending, Post, Request};

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
    /// The body; null if it cannot be read.
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
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.state().requests.clone()
    }

    /// The events taken so far, as they were sent. One that was taken twice is there twice.
    pub fn taken(&self) -> Vec<Value> {
        self.state().taken.clone()
    }

    /// Forgets the requests and the events. Scripts stay.
    pub fn forget(&self) {
        let mut state = self.state();
        state.requests.clear();
        state.taken.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Post for Server {
    fn post(&self, request: Request) -> Pending {
        let server = self.clone();
        // Only when it is first looked at: one that is given up before that was never sent.
        Box::pin(async move {
            let (answer, words) = server.state().take_in(&request);
            if !answer.after().is_zero() {
                server.clock.reached(server.clock.now() + answer.after()).await;
            }
            answer.into_result(words)
        })
    }
}

impl State {
    /// Records the request; answers with the answer, and what an endpoint of that kind says when all is well.
    fn take_in(&mut self, request: &Request) -> (Answer, String) {
        let path = request.url.split('?').next().unwrap_or_default().trim_end_matches('/');
        let route = match path {
            path if path.ends_with("/i/v0/ai/batch") => Route::Ai,
            path if path.ends_with("/flags") => Route::Flags,
            _ => Route::Analytics,
        };
        let headers: Vec<_> =
            request.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        let body = decode(&headers, &request.body);
        let events = body["batch"].as_array().cloned().unwrap_or_default();
        let scripted = self.scripts.get_mut(&route).and_then(VecDeque::pop_front);
        let answer = scripted.or_else(|| self.standing.get(&route).cloned()).unwrap_or_else(Answer::ok);
        if answer.takes() {
            self.taken.extend(events.iter().cloned());
        }
        let words = if path.ends_with("/i/v1/analytics/events") {
            let uuids = events.iter().filter_map(|event| event["uuid"].as_str());
            json!({"results": uuids.map(|uuid| (uuid, json!({"result": "ok"}))).collect::<HashMap<_, _>>()})
        } else {
            json!({"status": 1})
        };
        let first = events.first().map(|event| event["uuid"].clone());
        let carried = |request: &&RecordedRequest| {
            first.is_some() && request.events.iter().any(|event| Some(&event["uuid"]) == first.as_ref())
        };
        let attempt = u32::try_from(self.requests.iter().filter(carried).count() + 1).unwrap_or(u32::MAX);
        let (url, status) = (request.url.to_string(), answer.status_code());
        self.requests.push(RecordedRequest { route, url, headers, body, events, attempt, status });
        (answer, words.to_string())
    }
}

fn decode(headers: &[(String, String)], body: &[u8]) -> Value {
    let encoding = headers.iter().find(|(name, _)| name == "content-encoding").map(|(_, value)| value.as_str());
    let mut text = Vec::new();
    let read = match encoding {
        Some("gzip") => MultiGzDecoder::new(body).read_to_end(&mut text).map(drop),
        Some("deflate") => ZlibDecoder::new(body).read_to_end(&mut text).map(drop),
        _ => {
            text.extend_from_slice(body);
            Ok(())
        }
    };
    read.ok().and_then(|()| serde_json::from_slice(&text).ok()).unwrap_or_default()
}
