//! Events that PostHog refused for good.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::Client;
use crate::pipeline::{DeadLetterError, DeadOrder, Pending, Pipeline, both, pending, sum};
use crate::queue::store::DeadRecord;
use crate::record::{NoSymbols, View, json};
use crate::sys::limits::{DETAIL_KEPT, foreign};

/// An event that PostHog refused for good, and why. Kept in the queue's file: the newest 1000 of a queue, as far as they fit an eighth
/// of [`Config::max_queue_bytes`](crate::Config::max_queue_bytes) (at least 1 MiB); the oldest go first.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The event as it was sent: `uuid`, `event`, `distinct_id`, `timestamp`, `properties`. Null if its bytes cannot be read.
    pub event: Value,
    /// The HTTP status of the refusal; 0 if the event could not be read and was never sent.
    pub status: u16,
    /// In the server's words.
    pub reason: String,
    /// When it was first sent.
    pub first_attempt: SystemTime,
    /// When it was refused for the last time.
    pub last_attempt: SystemTime,
    /// How often the process that gave it up had sent it, or others of its row.
    pub attempts: u32,
}

impl Client {
    /// The dead letters of this queue, those of AI events included, oldest first, at most `limit`: so many are held in memory. Reads from the disk, and opens the
    /// queue of AI events where an earlier process has left some in that: not for a hot path. Empty when the client is disabled or closed, or the queue cannot be read.
    ///
    /// "This queue" is the one that the process got, see [`Stats`](crate::Stats): where several processes share a directory, each shows
    /// its own.
    pub fn dead_letters(&self, limit: usize) -> Vec<DeadLetter> {
        let Some((pipeline, ai)) = self.pipelines_with_dead() else { return Vec::new() };
        let mut records = pipeline.dead(limit);
        if let Some(ai) = ai {
            records.extend(ai.dead(limit));
            // Stable: within a lane they are in their order.
            records.sort_by_key(|record| record.last_attempt);
            records.truncate(limit);
        }
        records.into_iter().map(DeadLetter::from).collect()
    }

    /// Queues all dead letters again, those of AI events included, as after a mistake on the server's side. Resolves, when they are safe
    /// there, with how many: as many as the queue has room for, oldest first; the others, and those that cannot be read, stay.
    ///
    /// An event that is sent again counts as accepted once more in [`Stats`](crate::Stats), and `buried` goes on counting that it was
    /// refused. It keeps its uuid and its time, and passes no hook again. One that is refused again lies here again.
    ///
    /// # Errors
    ///
    /// [`DeadLetterError`] says what failed. After a failure of the disk, or the process's death meanwhile, an event may be queued and lie
    /// here as well.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// # use std::time::Duration;
    /// let retried = client.retry_dead_letters().wait(Duration::from_secs(5));
    /// # assert_eq!(retried, Ok(Ok(0)));
    /// ```
    pub fn retry_dead_letters(&self) -> Pending<Result<u64, DeadLetterError>> {
        self.order_dead(DeadOrder::Retry)
    }

    /// Forgets all dead letters, those of AI events included. Resolves with how many there were. [`Stats`](crate::Stats) goes on counting
    /// them as dead_lettered.
    ///
    /// # Errors
    ///
    /// [`DeadLetterError`] says what failed; then they may still be here.
    pub fn discard_dead_letters(&self) -> Pending<Result<u64, DeadLetterError>> {
        self.order_dead(DeadOrder::Discard)
    }

    fn order_dead(&self, order: DeadOrder) -> Pending<Result<u64, DeadLetterError>> {
        match self.pipelines_with_dead() {
            Some((pipeline, None)) => pipeline.order_dead(order),
            Some((pipeline, Some(ai))) => both(pipeline.order_dead(order), ai.order_dead(order), sum),
            None if self.is_disabled() => pending::answered(Ok(0)),
            None => pending::answered(Err(DeadLetterError::Forked)),
        }
    }
}

impl Client {
    /// As [`Client::pipelines`]; that of AI events is opened if an earlier process has left dead letters in it.
    fn pipelines_with_dead(&self) -> Option<(Arc<Pipeline>, Option<Arc<Pipeline>>)> {
        let own = self.shared.pipeline.as_ref()?;
        if own.is_forked() {
            return self.shared.child()?.pipelines_with_dead();
        }
        let ai = self.shared.ai.get().cloned();
        // If it cannot be opened, a diagnostic says so.
        let ai = ai.or_else(|| own.has_dead_ai_left_behind().then(|| self.shared.ai_or_open(own).ok()).flatten());
        Some((Arc::clone(own), ai))
    }
}

impl From<DeadRecord> for DeadLetter {
    fn from(record: DeadRecord) -> Self {
        let mut text = Vec::new();
        let written = View::parse(&record.body).and_then(|view| json::write_event(&view, &NoSymbols, &mut text));
        let event = written.ok().and_then(|()| serde_json::from_slice(&text).ok()).unwrap_or(Value::Null);
        Self {
            event,
            status: record.status,
            // An earlier version kept the words as they came.
            reason: foreign(&record.reason, DETAIL_KEPT),
            first_attempt: time(record.first_attempt),
            last_attempt: time(record.last_attempt),
            attempts: record.attempts,
        }
    }
}

fn time(nanos: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}
