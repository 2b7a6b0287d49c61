//! Cache of PostHog's responses, with one request for concurrent callers.
//!
//! Entries are found by [`ContextKey`], a digest of everything that PostHog's response depends on.
//!
//! * An entry is fresh for `time_to_live` and is then returned without a request. An entry for all flags also serves a
//!   request for some of them.
//! * Callers that request the same at the same time share one request ([`InFlight`]).
//! * If a request fails, the previous answer stays in use, however old it is, together with the failure. No new request
//!   is made for [`RETRY_AFTER_FAILURE`]; otherwise every reader would wait for its timeout during an outage.
//! * A response with errors is merged over the previous answer. A response without quota contains no flags and changes
//!   nothing. Neither shows that a flag does not exist.
//! * Of two responses to the same request, the one that was requested later is kept, in whichever order they arrive.
//! * After [`FlagCache::reset`], responses to earlier requests are neither kept nor given to later callers.
//! * The number of entries and their total size are bounded; the least recently used entry is evicted.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::answer::{Answer, Failure, is_requested};
use super::context::FlagContext;
use super::local::in_key_order;
use crate::sys::clock::Clock;

/// How long the previous answer serves after a failed request, unless `time_to_live` is shorter.
const RETRY_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Callers that may wait at a time. Further ones get [`Failure::Busy`].
const MAX_WAITING: usize = 10_000;
/// Estimated memory of all answers: a server may respond with megabytes for every context.
const MAX_COST: usize = 32 * 1024 * 1024;
/// Estimated memory of a flag apart from its strings.
const FLAG_COST: usize = 256;

/// Receives the answer. Called without any lock held.
pub(crate) type Waiter = Box<dyn FnOnce(&Answer) + Send>;

/// The cache; see the module.
pub(crate) struct FlagCache {
    clock: Clock,
    /// Zero: nothing is kept.
    time_to_live: Duration,
    state: Mutex<State>,
}

struct State {
    entries: LruCache<ContextKey, Entry>,
    /// Of all entries.
    cost: usize,
    /// Callers by the request they wait for. The epoch is part of the key: a caller after a reset does not join a
    /// request from before it.
    in_flight: HashMap<(u64, ContextKey), Vec<Waiter>>,
    waiting: usize,
    /// Incremented by each reset.
    epoch: u64,
    /// Number of the last request.
    requests: u64,
}

struct Entry {
    answer: Arc<Answer>,
    /// Number of the request that produced it.
    request: u64,
    fresh_until: Instant,
    cost: usize,
}

/// A request to PostHog that the caller has to make. Dropping it gives [`Failure::Closed`] to all that wait.
#[must_use = "dropping it reports a failure to everyone who waits for the response"]
pub(crate) struct InFlight {
    cache: Arc<FlagCache>,
    key: ContextKey,
    /// The key of the request for all flags of the same context.
    all_flags: ContextKey,
    flag_keys: Option<Vec<String>>,
    epoch: u64,
    /// Requests are numbered in the order in which they begin.
    request: u64,
    /// The caller, if others must not wait for this request.
    own: Option<Waiter>,
    is_finished: bool,
}

impl FlagCache {
    pub(crate) fn new(clock: Clock, time_to_live: Duration, most: NonZeroUsize) -> Self {
        let state = State {
            entries: LruCache::sparse(most),
            cost: 0,
            in_flight: HashMap::new(),
            waiting: 0,
            epoch: 0,
            requests: 0,
        };
        Self { clock, time_to_live, state: Mutex::new(state) }
    }

    /// Gives `waiter` the cached answer, or adds it to the request in flight. If there is neither, returns a new
    /// request.
    pub(crate) fn request(cache: &Arc<Self>, context: &FlagContext, waiter: Waiter) -> Option<InFlight> {
        let (key, all_flags) = keys_of(context);
        let keys = context.flag_keys.as_deref();
        let now = cache.clock.now();
        let mut state = cache.lock();
        if let Some(answer) = state.fresh(&key, &all_flags, keys, now) {
            drop(state);
            waiter(&answer);
            return None;
        }
        let epoch = state.epoch;
        if state.waiting >= MAX_WAITING {
            drop(state);
            waiter(&Answer { failure: Some(Failure::Busy), ..Answer::default() });
            return None;
        }
        state.waiting += 1;
        if let Some(waiters) = state.in_flight.get_mut(&(epoch, key)) {
            waiters.push(waiter);
            return None;
        }
        state.in_flight.insert((epoch, key), vec![waiter]);
        Some(Self::begin(cache, state, context, (key, all_flags), None))
    }

    /// A new request for this caller alone, whatever is cached or in flight.
    pub(crate) fn request_anew(cache: &Arc<Self>, context: &FlagContext, waiter: Waiter) -> InFlight {
        Self::begin(cache, cache.lock(), context, keys_of(context), Some(waiter))
    }

    fn begin(
        cache: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        context: &FlagContext,
        (key, all_flags): (ContextKey, ContextKey),
        own: Option<Waiter>,
    ) -> InFlight {
        state.requests = state.requests.wrapping_add(1);
        let (epoch, request) = (state.epoch, state.requests);
        drop(state);
        let (cache, flag_keys) = (Arc::clone(cache), context.flag_keys.clone());
        InFlight { cache, key, all_flags, flag_keys, epoch, request, own, is_finished: false }
    }

    /// The cached answer, however old.
    pub(crate) fn known(&self, context: &FlagContext) -> Option<Arc<Answer>> {
        let (key, all_flags) = keys_of(context);
        self.lock().previous(&key, &all_flags, context.flag_keys.as_deref())
    }

    /// Drops all entries. Requests in flight still answer their callers, but their responses are not kept.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        state.epoch = state.epoch.wrapping_add(1);
        state.entries.clear();
        state.cost = 0;
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn insert(&mut self, key: ContextKey, entry: Entry) {
        self.cost = self.cost.saturating_add(entry.cost);
        // `push` returns the entry it replaces or evicts.
        let mut removed = self.entries.push(key, entry);
        while removed.is_some() || self.cost > MAX_COST {
            let Some((_, entry)) = removed.take().or_else(|| self.entries.pop_lru()) else { break };
            self.cost = self.cost.saturating_sub(entry.cost);
        }
    }

    /// A fresh answer that decides all of the requested flags.
    fn fresh(
        &mut self,
        key: &ContextKey,
        all_flags: &ContextKey,
        keys: Option<&[String]>,
        now: Instant,
    ) -> Option<Arc<Answer>> {
        [key, all_flags].into_iter().find_map(|key| {
            let entry = self.entries.get(key)?;
            (now < entry.fresh_until && decides(&entry.answer, keys)).then(|| Arc::clone(&entry.answer))
        })
    }

    /// The answer to the last such request, or the part of the answer for all flags.
    fn previous(&mut self, key: &ContextKey, all_flags: &ContextKey, keys: Option<&[String]>) -> Option<Arc<Answer>> {
        if let Some(entry) = self.entries.get(key) {
            return Some(Arc::clone(&entry.answer));
        }
        let mut answer = Answer::clone(&self.entries.get(all_flags)?.answer);
        answer.flags.retain(|key, _| is_requested(keys, key));
        Some(Arc::new(answer))
    }
}

impl InFlight {
    /// Stores PostHog's response and gives it to all that wait.
    pub(crate) fn finish(mut self, result: Result<Answer, Failure>) {
        self.complete(result);
    }

    fn complete(&mut self, result: Result<Answer, Failure>) {
        self.is_finished = true;
        let cache = Arc::clone(&self.cache);
        let (answer, waiters) = {
            let mut state = cache.lock();
            let previous = state.previous(&self.key, &self.all_flags, self.flag_keys.as_deref());
            let has_previous = previous.is_some();
            let (fresh_for, is_worth_keeping) = match &result {
                Ok(_) => (cache.time_to_live, true),
                Err(failure) => {
                    (cache.time_to_live.min(RETRY_AFTER_FAILURE), has_previous && *failure != Failure::Closed)
                }
            };
            let answer = Arc::new(combine(previous.as_deref(), result));
            let is_newest = state.entries.peek(&self.key).is_none_or(|entry| entry.request < self.request);
            if is_worth_keeping && is_newest && state.epoch == self.epoch && !cache.time_to_live.is_zero() {
                let now = cache.clock.now();
                // The clock may not be able to represent the sum.
                let fresh_until = now.checked_add(fresh_for).unwrap_or(now + Duration::from_secs(86_400));
                let cost = cost_of(&answer);
                let entry = Entry { answer: Arc::clone(&answer), request: self.request, fresh_until, cost };
                state.insert(self.key, entry);
            }
            let shared = if self.own.is_none() { state.in_flight.remove(&(self.epoch, self.key)) } else { None };
            let waiters = shared.unwrap_or_default();
            state.waiting = state.waiting.saturating_sub(waiters.len());
            (answer, waiters)
        };
        for waiter in self.own.take().into_iter().chain(waiters) {
            waiter(&answer);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.is_finished {
            self.complete(Err(Failure::Closed));
        }
    }
}

impl std::fmt::Debug for FlagCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlagCache").field("entries", &self.lock().entries.len()).finish_non_exhaustive()
    }
}

fn cost_of(answer: &Answer) -> usize {
    let flags = answer.flags.iter().map(|(key, flag)| {
        // A parsed value takes several times the memory of its text.
        let payload = flag.payload.as_ref().map_or(0, |payload| payload.to_string().len().saturating_mul(4));
        FLAG_COST
            + key.len()
            + flag.value.variant().map_or(0, str::len)
            + flag.reason.as_ref().map_or(0, String::len)
            + payload
    });
    flags.fold(FLAG_COST, usize::saturating_add)
}

/// The key of this request, and that of the request for all flags.
fn keys_of(context: &FlagContext) -> (ContextKey, ContextKey) {
    let all_flags = ContextKey::of(context, None);
    match context.flag_keys.as_deref() {
        None => (all_flags, all_flags),
        Some(keys) => (ContextKey::of(context, Some(keys)), all_flags),
    }
}

/// Whether the answer decides all of the requested flags: it contains them, or it is complete and shows that they do
/// not exist.
fn decides(answer: &Answer, keys: Option<&[String]>) -> bool {
    let is_complete = !answer.has_errors && !answer.is_quota_limited && answer.failure.is_none();
    match keys {
        _ if is_complete => true,
        Some(keys) => keys.iter().all(|key| answer.flags.contains_key(key)),
        None => !answer.flags.is_empty(),
    }
}

/// The result of a request combined with the previous answer.
fn combine(previous: Option<&Answer>, result: Result<Answer, Failure>) -> Answer {
    match result {
        Ok(mut answer) if answer.has_errors || answer.is_quota_limited => {
            let evaluated = std::mem::take(&mut answer.flags);
            answer.flags = previous.map(|previous| previous.flags.clone()).unwrap_or_default();
            answer.flags.extend(evaluated);
            answer
        }
        Ok(answer) => answer,
        Err(failure) => Answer { failure: Some(failure), ..previous.cloned().unwrap_or_default() },
    }
}

/// A digest of everything that PostHog's response depends on.
///
/// SHA-256, because distinct ids and properties may come from outside the program: with a weaker hash, someone could
/// construct a collision and receive another person's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContextKey([u8; 32]);

impl ContextKey {
    /// The key of a request for `flag_keys`. `context` is complete: its distinct id and GeoIP setting are those of the
    /// request.
    fn of(context: &FlagContext, flag_keys: Option<&[String]>) -> Self {
        // JSON is unambiguous: different contexts never have the same text.
        let described = json!([
            context.distinct_id,
            context.device_id,
            context.groups,
            context.person_properties,
            context.group_properties,
            context.disable_geoip == Some(true),
            flag_keys.map(|keys| keys.iter().collect::<BTreeSet<_>>()),
        ]);
        Self(Sha256::digest(in_key_order(&described).to_string()).into())
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
