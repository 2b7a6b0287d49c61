//! What has arrived, and the rules for the next requests. One lock each, taken in the order rules, state.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use crate::answer::Answer;
use crate::batch::{Batch, Event};
use crate::flags::Plans;

/// PostHog's limit for a body.
const POSTHOG_SIZE_LIMIT: usize = 20 * 1024 * 1024;

/// Everything recorded since the start or the last [`Sink::clear`](crate::Sink::clear).
#[derive(Debug, Default)]
pub struct State {
    events: Vec<Event>,
    requests: Vec<Request>,
    uuids: HashSet<Uuid>,
    taken: u64,
    in_flight: usize,
    peak_in_flight: usize,
}

/// One request, taken or not.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method, such as `POST`.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// The query without its `?`; empty if there is none.
    pub query: String,
    /// Header names in lower case and values, in the order sent.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body as sent.
    pub wire_bytes: usize,
    /// When the whole request had arrived.
    pub arrived: Instant,
    /// The body's `api_key`, or V1's bearer token. Empty in fast mode and for a body that could not be read.
    pub api_key: String,
    /// The body's `sent_at`, or V1's request timestamp. Empty in fast mode and for a body that could not be read.
    pub sent_at: String,
    /// The body without its events. Null in fast mode and for a body that could not be read.
    pub envelope: Value,
    /// How many events it carried.
    pub event_count: usize,
    /// The events' uuids, in the order sent. Empty in fast mode.
    pub uuids: Vec<Uuid>,
    /// The status it is answered with; 0 if it gets no answer.
    pub status: u16,
    /// Whether its events were taken.
    pub taken: bool,
}

impl Request {
    /// The first value of the header called `name` (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(each, _)| each == name).map(|(_, value)| value.as_str())
    }
}

impl State {
    /// The events taken, in order of arrival, duplicates included. Empty in fast mode.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// All requests, in order of arrival.
    pub fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// The uuids taken, each once, in no order.
    pub fn uuids(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.uuids.iter().copied()
    }

    /// Whether an event with this uuid was taken.
    pub fn contains(&self, uuid: Uuid) -> bool {
        self.uuids.contains(&uuid)
    }

    /// How many events were taken, duplicates included.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// How many different uuids were taken.
    pub fn unique(&self) -> u64 {
        self.uuids.len() as u64
    }

    /// How many taken events carried a uuid that had been taken before.
    pub fn duplicates(&self) -> u64 {
        self.taken - self.unique()
    }

    /// The most requests that waited for their responses at the same time.
    pub fn peak_in_flight(&self) -> usize {
        self.peak_in_flight
    }

    fn record(&mut self, mut request: Request, batch: Batch) {
        if request.taken {
            let is_taken = |uuid: &Uuid| !batch.left.contains_key(uuid);
            self.taken += batch.uuids.iter().filter(|&uuid| is_taken(uuid)).count() as u64;
            self.uuids.extend(batch.uuids.iter().copied().filter(is_taken));
            let arrival = self.requests.len();
            let events = batch.events.into_iter().filter(|event| is_taken(&event.uuid));
            self.events.extend(events.map(|event| Event { request: arrival, ..event }));
        }
        request.event_count = batch.uuids.len();
        request.api_key = batch.api_key;
        request.sent_at = batch.sent_at;
        request.envelope = batch.envelope;
        if batch.keeps_uuids {
            request.uuids = batch.uuids;
        }
        self.requests.push(request);
    }
}

/// The rules for the next response.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) script: VecDeque<Answer>,
    pub(crate) default: Answer,
    pub(crate) refuse: Option<Refusal>,
    pub(crate) size_limit: usize,
    pub(crate) fast: bool,
    pub(crate) flags: Plans,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            script: VecDeque::new(),
            default: Answer::ok(),
            refuse: None,
            size_limit: POSTHOG_SIZE_LIMIT,
            fast: false,
            flags: Plans::default(),
        }
    }
}

type Poison = Arc<dyn Fn(&Value) -> bool + Send + Sync>;

/// A rule that refuses a request because of one event.
#[derive(Clone)]
pub(crate) struct Refusal {
    poison: Poison,
    answer: Answer,
}

impl Refusal {
    pub(crate) fn new(poison: impl Fn(&Value) -> bool + Send + Sync + 'static, answer: Answer) -> Self {
        Self { poison: Arc::new(poison), answer: answer.discarding() }
    }

    /// The response if the rule applies to one of `events`.
    pub(crate) fn judge(&self, events: &[Value]) -> Option<Answer> {
        events.iter().any(|event| (self.poison)(event)).then(|| self.answer.clone())
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusal").field("answer", &self.answer).finish_non_exhaustive()
    }
}

/// State that the server's thread shares with the test's threads.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    rules: Mutex<Rules>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    pub(crate) fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a request and counts it as in flight until the returned guard is dropped.
    pub(crate) fn arrive(self: &Arc<Self>, request: Request, batch: Batch) -> InFlight {
        let mut state = self.state();
        state.record(request, batch);
        state.in_flight += 1;
        state.peak_in_flight = state.peak_in_flight.max(state.in_flight);
        self.changed.notify_all();
        InFlight(Arc::clone(self))
    }

    pub(crate) fn wait_for(&self, mut reached: impl FnMut(&State) -> bool, timeout: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), timeout, |state| !reached(state));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    pub(crate) fn clear(&self) {
        let mut state = self.state();
        // Requests in flight still decrement the counter.
        let in_flight = state.in_flight;
        *state = State { in_flight, peak_in_flight: in_flight, ..State::default() };
    }
}

/// A request that waits for its response.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Shared>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.state().in_flight -= 1;
    }
}
