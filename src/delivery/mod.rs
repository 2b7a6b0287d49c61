//! Committed chunks become acked ones: sent to PostHog, judged, deleted or dead_lettered.
//!
//! One [`Engine`] is one task on a current-thread runtime. It reads chunks from a [`Source`] (the queue), sends their records in
//! batches, and hands a [`Ack`] back for each chunk it is done with. It owns no file and no queue; what it has in memory may be
//! lost at any moment and is then simply read and sent again, with the same uuids.
//!
//! # What becomes of a record
//!
//! A loaded chunk's records are *open*, *delivered* or *buried*. A batch is a list of slices of loaded chunks; a chunk is closed when
//! no slice of it is queued or under way. Closing acks what is known and gives the open rest back to the queue (`keep`). Nothing
//! else acks (but for what V1 decides of a batch whose rest is sent again), so every way out (an outage in the middle of a bisection,
//! the deadline of `stop`) is the same few lines.
//!
//! * `outcome.rs` judges one answer; `pace.rs` says when the next request may go; both are pure, and tables test them.
//! * A batch that is refused in PostHog's words, or by anybody for its size, is cut in two by records until the refused one is alone,
//!   in pieces that become as small as bad events are dense (`split.rs`). That one is dead_lettered only on *evidence*: the endpoint accepted some other request after it refused this one. Without
//!   evidence it is a *suspect*: it stays in the queue, is stepped over, and is tried again once there is evidence, or after a park.
//!   A stranger's 413 never buries anything. 32 refusals in a row give a search up; when others are refused as well, it is an outage.
//! * Any other failure (`failure.rs`) may be the events' or the endpoint's. While others pass it is the events': the batch is searched
//!   like a refused one, and what fails alone is quarantined, and tried again ever more rarely. While it is not known, the next probe is
//!   one event that has not failed.
//! * An *outage*: all that is not under way goes back to the queue, then one probe at a time: 1 + `max_retries` requests with jittered
//!   exponential backoff, then a park of 30 s to 5 min. `Retry-After` is a *hold*: nothing ends it early, and it outlives the process.
//! * 401, 402, 403 and 415 *pause*: probes of one event, each time another, 30 s to 5 min apart.
//! * V1 answers for each event (`results.rs`): taken, perhaps with a warning; refused, and dead_lettered without further evidence; or to be sent again, which counts as
//!   a failure of the request, while the others are acked at once. A V1 request is known by an id and counts its attempts, so what
//!   failed is kept and is the next probe (`again.rs`), the same events under the same id (`request.rs`), until the cycle is over.
//! * `flush` covers what was committed before it. It may send one probe early, never breaks a hold, never counts as an attempt, and
//!   answers at once if the last failure is less than a second old. State is published before it is told.
//! * While the source is *held* (an opt-out) nothing is sent: what is not under way goes back to the queue, a request that was to be sent
//!   again included, and a flush or a stop is over with what is under way. Pace, holds and evidence stay as they are.
//! * `stop` makes attempts of its own (`stop.rs`), the first at once, at most a cycle of them, as far as its deadline allows.
//! * Of an outage each kind of failure is told once, and parks ever more rarely (`episode.rs`).
//!
//! # Rules
//!
//! * A batch has records of one lane (lanes have endpoints of their own), whole chunks as far as they fit; with V1 no uuid twice.
//! * A request is built anew for each attempt: `sent_at`, or V1's header for it, is the time of that attempt, for the server moves every
//!   event by it.
//! * Nothing pending means no timer. Monotonic time is tokio's, whose timers we sleep by (`timers.rs`); wall time is the `Clock`'s.
//! * An engine that panics is replaced (`supervise.rs`); what it had read is read again.
//! * User code (`on_delivery`, callbacks of `flush` and `stop`) runs on this task, outside all locks; its panics are caught.

mod again;
mod answer;
mod arrival;
mod aside;
mod batch;
#[cfg(test)]
mod blame_tests;
mod body;
mod engine;
#[cfg(test)]
mod engine_tests;
mod episode;
mod failure;
#[cfg(test)]
mod fake;
mod flush;
mod handle;
#[cfg(test)]
mod held_tests;
mod intake;
mod loaded;
mod notice;
#[cfg(test)]
mod outage_tests;
mod outcome;
mod pace;
mod patience;
#[cfg(test)]
mod refusal_tests;
mod request;
mod results;
mod send;
mod split;
mod state;
mod stop;
mod supervise;
mod timers;
#[cfg(test)]
mod v1_tests;
mod verdict;
#[cfg(test)]
mod wire_tests;

use std::error::Error;
use std::sync::Arc;

use crate::queue::store::{Chunk, ChunkKey, DeadRecord};
use crate::record::{NoSymbols, Symbols};

pub(crate) use aside::EventId;
pub(crate) use body::Compression;
pub(crate) use engine::EngineParts;
pub(crate) use flush::EndpointStatus;
pub(crate) use handle::DeliveryHandle;
pub(crate) use notice::Notice;
pub(crate) use pace::PaceOptions;
pub(crate) use state::{DeliveryState, PaceState, Phase};
pub(crate) use supervise::serve;
pub use verdict::{DeliveryNotice, DeliveryOutcome};

/// A chunk of one of the queues this process delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChunkRef {
    /// Whose queue: 0 is our own shard, the others are adopted ones.
    pub(crate) origin: u32,
    /// Which row of it.
    pub(crate) key: ChunkKey,
}

/// The queue, as the delivery sees it. Its calls are made on the delivery task and must not take long.
pub(crate) trait Source: Send + Sync + 'static {
    /// Committed chunks, oldest first within an origin and lane, those of a lower origin first, without the `busy` ones: as many as fit
    /// `max_bytes`, and at least one if there is one. Empty means that there is nothing (more) now.
    fn read(&self, max_bytes: usize, busy: &dyn Fn(ChunkRef) -> bool) -> Result<Vec<(ChunkRef, Chunk)>, SourceError>;

    /// Whether nothing is to be sent for the time being. Then `read` finds nothing, and the delivery lets go of what it has read.
    fn is_held(&self) -> bool;

    /// The last committed chunk of each lane of our own queue: what a flush that begins now has to cover.
    fn newest(&self) -> Vec<ChunkRef>;

    /// Takes note of what became of a chunk; the commit may come later, but from now on `read` answers accordingly. What it keeps is a
    /// chunk that counts as read, until it is acked or given back in its turn.
    fn ack(&self, ack: Ack);

    /// All that is left of that queue is stepped over for a while. True: it is let go, and another one is read in its place.
    fn stuck(&self, origin: u32) -> bool;

    /// A chunk that was read is let go undecided: it can be read again, and until then the queue may do with it as it likes.
    fn give_back(&self, chunk: ChunkRef);

    /// The pace has changed: `next_attempt` has to survive a restart.
    fn pace(&self, state: &PaceState);
}

/// Why the queue could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the queue could not be read; reading is tried again")]
pub(crate) struct SourceError(#[source] pub(crate) Box<dyn Error + Send + Sync>);

/// What became of a chunk. Records that are in none of the three were unreadable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Which one.
    pub(crate) chunk: ChunkRef,
    /// How many of its records PostHog took.
    pub(crate) delivered: u64,
    /// Those that it never will.
    pub(crate) dead_lettered: Vec<DeadRecord>,
    /// `None`: nothing is left, the row goes. Else only the records of these sequence numbers (ascending) stay, in a row of the first
    /// one's key, which is read again some time.
    pub(crate) keep: Option<Vec<u64>>,
}

/// The program's own ear, called for each answer that decides over events.
pub(crate) type OnDelivery = Arc<dyn Fn(&DeliveryNotice<'_>) + Send + Sync>;

/// Hears of each answer that decides over events.
pub(crate) trait Hears: Send + Sync + 'static {
    /// Whether anybody is told at the moment; if not, nothing is gathered that could be told.
    fn is_listening(&self) -> bool;

    /// Some events are decided: those of these names, in the order of their uuids.
    fn hear(&self, ids: &[EventId], delivery: &DeliveryNotice<'_>);
}

/// Hears of everything a human might want to know; logging and its rate limits are not ours.
pub(crate) type Report = Arc<dyn Fn(Notice) + Send + Sync>;

/// What an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CaptureProtocol {
    /// One verdict on the whole batch; key and time are in the body.
    V0,
    /// A verdict on each event; key, time, and which attempt of which request it is are headers.
    V1,
}

/// What to send, where, and how much at once.
#[derive(Clone, Debug)]
pub(crate) struct DeliveryOptions {
    /// The endpoint of each lane; a lane beyond the list uses the first.
    pub(crate) urls: Vec<Arc<str>>,
    /// The project's write-only token.
    pub(crate) api_key: String,
    /// Whether PostHog shall treat all of this as an import of old events.
    pub(crate) historical_migration: bool,
    /// What the endpoint of the first lane speaks.
    pub(crate) protocol: CaptureProtocol,
    /// How bodies are compressed, where the endpoint can read that.
    pub(crate) compression: Compression,
    /// Says in the query, too, that V0 bodies are compressed.
    pub(crate) gzip_in_query: bool,
    /// Events in one request.
    pub(crate) max_batch_events: usize,
    /// Bytes of JSON in one request, before compression, by estimate.
    pub(crate) max_batch_bytes: usize,
    /// Names the addresses of stacks while a body is built.
    pub(crate) symbols: Arc<dyn Symbols>,
    /// When to send.
    pub(crate) pace: PaceOptions,
}

impl Default for DeliveryOptions {
    fn default() -> Self {
        Self {
            urls: vec!["https://us.i.posthog.com/batch/".into()],
            api_key: String::new(),
            historical_migration: false,
            protocol: CaptureProtocol::V0,
            compression: Compression::Gzip { level: 1 },
            gzip_in_query: true,
            max_batch_events: 1000,
            max_batch_bytes: 4 * 1024 * 1024,
            symbols: Arc::new(NoSymbols),
            pace: PaceOptions::default(),
        }
    }
}
