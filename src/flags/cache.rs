//! What PostHog answered, for a while, and who waits for what it is being asked.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::answer::{Answer, Failure, is_wanted};
use super::context::FlagContext;
use super::local::plain_number;
use crate::sys::clock::Clock;

/// After a failure what is known serves so long without PostHog being asked again: in an outage each reader would wait for its timeout.
const PAUSE: Duration = Duration::from_secs(5);
/// Who may wait at a time. More are told at once that there is no answer.
const WAITING: usize = 10_000;

/// What all answers together may take, about: of a server that answers with megabytes to each.
const WEIGHT_MOST: usize = 32 * 1024 * 1024;
/// What a flag takes beside its texts, about.
const FLAG_WEIGHT: usize = 256;

/// Is called with the answer, outside of every lock.
pub(crate) type Waiter = Box<dyn FnOnce(&Answer) + Send>;

/// PostHog's answers by what they were asked for ([`ContextKey`]).
///
/// * An answer serves for its time without PostHog being asked. One for all flags serves for some of them too.
/// * Of those who ask for the same at the same time one asks PostHog, and all get that answer.
/// * An answer that is none (an outage) leaves what was known before, however old: that is the answer, with the failure in it.
/// * An answer of a PostHog that could not evaluate everything is laid over what was known before, and one of a PostHog without quota,
///   which evaluates nothing, changes none of it. A flag that such an answer lacks is not known to be missing.
/// * Of two answers for the same the one counts that was asked for later, also where it came first.
/// * After a reset nothing counts that was asked for before it: it is neither kept, nor an answer to whoever asks afterwards.
/// * The context that was asked for longest ago goes when there are too many, or their answers take too much.
#[derive(Debug)]
pub(crate) struct FlagCache {
    clock: Clock,
    /// Zero: nothing is kept.
    time_to_live: Duration,
    state: Mutex<State>,
}

struct State {
    entries: LruCache<ContextKey, Entry>,
    /// Of all entries.
    weight: usize,
    /// By the epoch in which they began, too: who asks after a reset does not join what was asked before it.
    flights: HashMap<(u64, ContextKey), Vec<Waiter>>,
    waiting: usize,
    /// Grows with each reset: what was asked before is not kept after it.
    epoch: u64,
    /// Flights so far.
    asked: u64,
}

#[derive(Debug)]
struct Entry {
    answer: Arc<Answer>,
    /// Which flight brought it.
    asked: u64,
    fresh_until: Instant,
    weight: usize,
}

/// A question to PostHog that is to be put, or was. However it ends, those who wait get an answer.
#[must_use = "a flight that does not land answers that there is no answer"]
pub(crate) struct Flight {
    cache: Arc<FlagCache>,
    key: ContextKey,
    /// Under which an answer for all flags is kept.
    whole: ContextKey,
    keys: Option<Vec<String>>,
    epoch: u64,
    /// Which one it is, in the order in which they began.
    asked: u64,
    /// Others wait with whoever put the question; else it is somebody's own.
    is_shared: bool,
    own: Vec<Waiter>,
    has_landed: bool,
}

impl FlagCache {
    pub(crate) fn new(clock: Clock, time_to_live: Duration, most: NonZeroUsize) -> Self {
        let state = State {
            entries: LruCache::sparse(most),
            weight: 0,
            flights: HashMap::new(),
            waiting: 0,
            epoch: 0,
            asked: 0,
        };
        Self { clock, time_to_live, state: Mutex::new(state) }
    }

    /// Calls `waiter` with PostHog's answer: at once if it is known, later if it is being asked for. Else it is for the caller to ask.
    pub(crate) fn ask(cache: &Arc<Self>, context: &FlagContext, waiter: Waiter) -> Option<Flight> {
        let (key, whole) = keys_of(context);
        let keys = context.flag_keys.as_deref();
        let now = cache.clock.now();
        let mut state = cache.lock();
        if let Some(answer) = state.fresh(&key, &whole, keys, now) {
            drop(state);
            waiter(&answer);
            return None;
        }
        let epoch = state.epoch;
        if state.waiting >= WAITING {
            drop(state);
            waiter(&Answer { failure: Some(Failure::Busy), ..Answer::default() });
            return None;
        }
        state.waiting += 1;
        if let Some(waiters) = state.flights.get_mut(&(epoch, key)) {
            waiters.push(waiter);
            return None;
        }
        state.flights.insert((epoch, key), vec![waiter]);
        let asked = state.another();
        drop(state);
        let (cache, keys) = (Arc::clone(cache), context.flag_keys.clone());
        Some(Flight { cache, key, whole, keys, epoch, asked, is_shared: true, own: Vec::new(), has_landed: false })
    }

    /// A question that is put whatever is known, or asked already.
    pub(crate) fn ask_anew(cache: &Arc<Self>, context: &FlagContext, waiter: Waiter) -> Flight {
        let (key, whole) = keys_of(context);
        let (epoch, asked) = {
            let mut state = cache.lock();
            (state.epoch, state.another())
        };
        let (cache, keys) = (Arc::clone(cache), context.flag_keys.clone());
        Flight { cache, key, whole, keys, epoch, asked, is_shared: false, own: vec![waiter], has_landed: false }
    }

    /// What is known, be it as old as it may.
    pub(crate) fn known(&self, context: &FlagContext) -> Option<Arc<Answer>> {
        let (key, whole) = keys_of(context);
        self.lock().older(&key, &whole, context.flag_keys.as_deref())
    }

    /// Forgets everything. What is being asked for is answered to those who wait, and not kept.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        state.epoch = state.epoch.wrapping_add(1);
        state.entries.clear();
        state.weight = 0;
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
    fn put(&mut self, key: ContextKey, entry: Entry) {
        self.weight = self.weight.saturating_add(entry.weight);
        // What it takes the place of: the older answer to the same question, or the one asked for longest ago.
        let mut gone = self.entries.push(key, entry);
        while gone.is_some() || self.weight > WEIGHT_MOST {
            let Some((_, entry)) = gone.take().or_else(|| self.entries.pop_lru()) else { break };
            self.weight = self.weight.saturating_sub(entry.weight);
        }
    }

    /// The number of a flight that begins.
    fn another(&mut self) -> u64 {
        self.asked = self.asked.wrapping_add(1);
        self.asked
    }

    /// An answer that still serves for those keys.
    fn fresh(
        &mut self,
        key: &ContextKey,
        whole: &ContextKey,
        keys: Option<&[String]>,
        now: Instant,
    ) -> Option<Arc<Answer>> {
        [key, whole].into_iter().find_map(|key| {
            let entry = self.entries.get(key)?;
            (now < entry.fresh_until && settles(&entry.answer, keys)).then(|| Arc::clone(&entry.answer))
        })
    }

    /// What was known before, of those keys.
    fn older(&mut self, key: &ContextKey, whole: &ContextKey, keys: Option<&[String]>) -> Option<Arc<Answer>> {
        if let Some(entry) = self.entries.get(key) {
            return Some(Arc::clone(&entry.answer));
        }
        let mut answer = Answer::clone(&self.entries.get(whole)?.answer);
        answer.flags.retain(|key, _| is_wanted(keys, key));
        Some(Arc::new(answer))
    }
}

impl Flight {
    /// What PostHog answered.
    pub(crate) fn land(mut self, result: Result<Answer, Failure>) {
        self.settle(result);
    }

    fn settle(&mut self, result: Result<Answer, Failure>) {
        self.has_landed = true;
        let cache = Arc::clone(&self.cache);
        let (answer, waiters) = {
            let mut state = cache.lock();
            let older = state.older(&self.key, &self.whole, self.keys.as_deref());
            let has_older = older.is_some();
            let serves_for = match &result {
                Ok(_) => cache.time_to_live,
                Err(_) => cache.time_to_live.min(PAUSE),
            };
            let is_worth_keeping = match &result {
                Ok(_) => true,
                Err(failure) => has_older && *failure != Failure::Closed,
            };
            let answer = Arc::new(together(older.as_deref(), result));
            let is_newest = state.entries.peek(&self.key).is_none_or(|entry| entry.asked < self.asked);
            if is_worth_keeping && is_newest && state.epoch == self.epoch && !cache.time_to_live.is_zero() {
                // A time that the clock cannot hold never comes.
                let now = cache.clock.now();
                let fresh_until = now.checked_add(serves_for).unwrap_or(now + Duration::from_secs(86_400));
                let weight = weight_of(&answer);
                let entry = Entry { answer: Arc::clone(&answer), asked: self.asked, fresh_until, weight };
                state.put(self.key, entry);
            }
            let shared = self.is_shared.then(|| state.flights.remove(&(self.epoch, self.key)));
            let waiters = shared.flatten().unwrap_or_default();
            state.waiting = state.waiting.saturating_sub(waiters.len());
            (answer, waiters)
        };
        for waiter in self.own.drain(..).chain(waiters) {
            waiter(&answer);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.has_landed {
            self.settle(Err(Failure::Closed));
        }
    }
}

impl std::fmt::Debug for Flight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flight").field("key", &self.key).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("entries", &self.entries.len())
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

fn weight_of(answer: &Answer) -> usize {
    let flags = answer.flags.iter().map(|(key, flag)| {
        // As a tree a value takes several times what it takes as text.
        let payload = flag.payload.as_ref().map_or(0, |payload| payload.to_string().len().saturating_mul(4));
        FLAG_WEIGHT
            + key.len()
            + flag.value.variant().map_or(0, str::len)
            + flag.reason.as_ref().map_or(0, String::len)
            + payload
    });
    flags.fold(FLAG_WEIGHT, usize::saturating_add)
}

fn keys_of(context: &FlagContext) -> (ContextKey, ContextKey) {
    let whole = ContextKey::of(context, None);
    match context.flag_keys.as_deref() {
        None => (whole, whole),
        Some(keys) => (ContextKey::of(context, Some(keys)), whole),
    }
}

/// Whether an answer leaves nothing open: what it lacks, PostHog does not know.
fn settles(answer: &Answer, keys: Option<&[String]>) -> bool {
    let is_whole = !answer.has_errors && !answer.is_quota_limited && answer.failure.is_none();
    match keys {
        _ if is_whole => true,
        Some(keys) => keys.iter().all(|key| answer.flags.contains_key(key)),
        None => !answer.flags.is_empty(),
    }
}

/// An answer with what was known before it.
fn together(older: Option<&Answer>, result: Result<Answer, Failure>) -> Answer {
    match result {
        Ok(mut answer) if answer.has_errors || answer.is_quota_limited => {
            let good = std::mem::take(&mut answer.flags);
            answer.flags = older.map(|older| older.flags.clone()).unwrap_or_default();
            answer.flags.extend(good);
            answer
        }
        Ok(answer) => answer,
        Err(failure) => Answer { failure: Some(failure), ..older.cloned().unwrap_or_default() },
    }
}

/// A digest of everything on which PostHog's answer depends. Of an algorithm that nobody can find two inputs for: distinct ids and
/// properties come from outside, and a collision would give one person another's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContextKey([u8; 32]);

impl ContextKey {
    /// Of a context that is resolved: whose distinct id and GeoIP choice are those that will be sent. `scope` stands for its own keys.
    pub(crate) fn of(context: &FlagContext, scope: Option<&[String]>) -> Self {
        let mut words = Words(Sha256::new());
        words.optional(context.distinct_id.as_deref());
        words.optional(context.device_id.as_deref());
        words.count(context.groups.len());
        for (group_type, key) in &context.groups {
            words.text(group_type);
            words.text(key);
        }
        words.map(&context.person_properties);
        words.count(context.group_properties.len());
        for (group_type, properties) in &context.group_properties {
            words.text(group_type);
            words.map(properties);
        }
        words.flag(context.disable_geoip == Some(true));
        words.flag(scope.is_some());
        let mut keys: Vec<&str> = scope.unwrap_or_default().iter().map(String::as_str).collect();
        keys.sort_unstable();
        keys.dedup();
        words.count(keys.len());
        keys.iter().for_each(|key| words.text(key));
        Self(words.0.finalize().into())
    }
}

/// Lengths before contents, and a mark before each kind: no two contexts are the same row of bytes.
struct Words(Sha256);

impl Words {
    fn count(&mut self, count: usize) {
        self.0.update((count as u64).to_le_bytes());
    }

    fn flag(&mut self, on: bool) {
        self.0.update([u8::from(on)]);
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text);
    }

    fn optional(&mut self, text: Option<&str>) {
        self.flag(text.is_some());
        self.text(text.unwrap_or_default());
    }

    fn map(&mut self, map: &serde_json::Map<String, Value>) {
        // Somebody else in the build may have turned on serde_json's feature by which maps keep their order.
        let mut pairs: Vec<_> = map.iter().collect();
        pairs.sort_unstable_by_key(|(name, _)| name.as_str());
        self.count(pairs.len());
        for (name, value) in pairs {
            self.text(name);
            self.value(value);
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.0.update([0]),
            Value::Bool(on) => self.0.update([1, u8::from(*on)]),
            Value::Number(number) => {
                self.0.update([2]);
                self.text(&plain_number(number).to_string());
            }
            Value::String(text) => {
                self.0.update([3]);
                self.text(text);
            }
            Value::Array(items) => {
                self.0.update([4]);
                self.count(items.len());
                items.iter().for_each(|item| self.value(item));
            }
            Value::Object(map) => {
                self.0.update([5]);
                self.map(map);
            }
        }
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
