//! Events that PostHog refused for good.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::Client;
use crate::record::{NoSymbols, View, json};
use crate::store::DeadRecord;

/// An event that PostHog refused for good, and why. Kept in the queue's file; the newest 1000 of a queue are.
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
    /// The dead letters of this queue, those of AI events included, oldest first, at most `limit`. Reads from the disk: not for a hot
    /// path. Empty when the client is disabled or closed, or the queue cannot be read.
    ///
    /// "This queue" is the one that the process got, see [`Stats`](crate::Stats): where several processes share a directory, each shows
    /// its own.
    pub fn dead_letters(&self, limit: usize) -> Vec<DeadLetter> {
        let Some((pipeline, ai)) = self.pipelines() else { return Vec::new() };
        let mut records = pipeline.dead(limit);
        if let Some(ai) = ai {
            records.extend(ai.dead(limit));
            // Stable: within a lane they are in their order.
            records.sort_by_key(|record| record.last_attempt);
            records.truncate(limit);
        }
        records.into_iter().map(DeadLetter::from).collect()
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
            reason: record.reason,
            first_attempt: time(record.first_attempt),
            last_attempt: time(record.last_attempt),
            attempts: record.attempts,
        }
    }
}

fn time(nanos: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}
