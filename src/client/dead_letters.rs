//! Dead letters: events that PostHog rejected for good.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use super::Client;
use crate::pipeline::{DeadLetterAction, Pending, Pipeline, ask_all, pending, sum};
use crate::queue::store::DeadRecord;
use crate::record::{NoSymbols, View, json};
use crate::report::DeadLetterError;
use crate::sys::clock::system_time;
use crate::sys::limits::{DETAIL_KEPT, foreign};

/// An event that PostHog rejected for good, and why. Each queue keeps its newest 1000 dead letters on disk, as far as
/// they fit into an eighth of [`Config::max_queue_bytes`](crate::Config::max_queue_bytes) (at least 1 MiB); the oldest
/// are removed first.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The event as it was sent: `uuid`, `event`, `distinct_id`, `timestamp`, `properties`. Null if its bytes cannot be
    /// read.
    pub event: Value,
    /// The HTTP status of the rejection; 0 if the event could not be read and was never sent.
    pub status: u16,
    /// The server's reason.
    pub reason: String,
    /// When the process that dead-lettered the event first sent it, or another event that is stored together with it.
    pub first_attempt: SystemTime,
    /// When the event was last rejected.
    pub last_attempt: SystemTime,
    /// The number of requests, since `first_attempt`, that contained the event or others stored together with it.
    pub attempts: u32,
}

impl Client {
    /// At most `limit` dead letters of this client, including those of AI events, oldest first. Empty if the client is
    /// disabled or closed, or the queue cannot be read.
    ///
    /// Reads them from disk into memory, and opens the queue of AI events if an earlier process left dead letters in
    /// it. Do not call this on a hot path.
    ///
    /// Where several processes share a directory, each has a queue of its own (see [`Stats`](crate::Stats)) and returns
    /// the dead letters of that queue.
    pub fn dead_letters(&self, limit: usize) -> Vec<DeadLetter> {
        let lanes = self.lanes_with_dead().unwrap_or_default();
        let mut records: Vec<_> = lanes.iter().flat_map(|lane| lane.dead(limit)).collect();
        if lanes.len() > 1 {
            // The sort is stable: each queue's order is kept.
            records.sort_by_key(|record| record.last_attempt);
            records.truncate(limit);
        }
        records.into_iter().map(DeadLetter::from).collect()
    }

    /// Queues the dead letters again, including those of AI events, for example after a mistake on the server's side
    /// has been fixed: as many as fit into the queue, oldest first. The others, and those that cannot be read, stay
    /// dead letters. Resolves with the number of queued events once they are durable in the queue.
    ///
    /// An event that is queued again counts as accepted once more in [`Stats`](crate::Stats), and `dead_lettered` still
    /// counts its rejection. It keeps its uuid and its timestamp, and `before_send` is not called for it again. If it
    /// is rejected again, it becomes a dead letter again.
    ///
    /// # Errors
    ///
    /// [`DeadLetterError`]. After a failure of the disk, or if the process dies meanwhile, an event may be both queued
    /// and a dead letter.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// # use std::time::Duration;
    /// let retried = client.retry_dead_letters().wait(Duration::from_secs(5));
    /// # assert_eq!(retried, Ok(0));
    /// ```
    pub fn retry_dead_letters(&self) -> Pending<Result<u64, DeadLetterError>> {
        self.order_dead(DeadLetterAction::Retry)
    }

    /// Deletes all dead letters, including those of AI events. Resolves with their number. [`Stats`](crate::Stats)
    /// still counts them as `dead_lettered`.
    ///
    /// # Errors
    ///
    /// [`DeadLetterError`]; the dead letters may then still exist.
    pub fn discard_dead_letters(&self) -> Pending<Result<u64, DeadLetterError>> {
        self.order_dead(DeadLetterAction::Discard)
    }

    fn order_dead(&self, action: DeadLetterAction) -> Pending<Result<u64, DeadLetterError>> {
        match self.lanes_with_dead() {
            Some(lanes) => ask_all(&lanes, sum, |lane, promise| lane.command_dead_letters(action, promise)),
            None if self.is_disabled() => pending::answered(Ok(0)),
            None => pending::answered(Err(DeadLetterError::Forked)),
        }
    }

    /// As [`Client::lanes`]; also opens the AI lane if an earlier process left dead letters in it.
    fn lanes_with_dead(&self) -> Option<Vec<Arc<Pipeline>>> {
        let own = self.shared.pipeline.as_ref()?;
        if own.is_forked() {
            return self.shared.child()?.lanes_with_dead();
        }
        if self.shared.ai.get().is_none() && own.has_dead_ai_left_behind() {
            // A failure is reported by a diagnostic.
            let _ = self.shared.ai_or_open(own);
        }
        self.lanes()
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
            // Cleaned here too: an earlier version stored the text as received.
            reason: foreign(&record.reason, DETAIL_KEPT),
            first_attempt: system_time(record.first_attempt.max(0)),
            last_attempt: system_time(record.last_attempt.max(0)),
            attempts: record.attempts,
        }
    }
}
