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
//! * A batch has whole chunks as far as they fit; with V1 no uuid twice.
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

use crate::queue::{Ack, ChunkRef, Lease};
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

/// The queue, as delivery sees it. The calls are made on the delivery task and must not take long.
pub(crate) trait Source: Send + Sync + 'static {
    /// Leases the next free rows that `wants` accepts: oldest first within an origin, those of a lower origin
    /// first; as many as fit `max_bytes`, and at least one if there is one. An empty list means that no such row is
    /// free now.
    fn lease(&self, max_bytes: usize, wants: &dyn Fn(ChunkRef) -> bool) -> Result<Vec<Lease>, SourceError>;

    /// Whether the program has opted out. Then `lease` returns nothing, and delivery releases what it has leased.
    fn is_held(&self) -> bool;

    /// The last committed row of this process's own queue: what a flush that begins now has to cover.
    fn newest(&self) -> Vec<ChunkRef>;

    /// Decides over a leased row. The commit comes later, but the row is not leased again. What the ack keeps is a
    /// leased row too, to be acked or released.
    fn ack(&self, ack: Ack);

    /// Ends a lease without a decision: the row can be leased again, and until then evicted.
    fn release(&self, row: ChunkRef);

    /// All that is left of that queue is in quarantine. Returns `true` if the queue is given up in favour of another.
    fn stuck(&self, origin: u32) -> bool;

    /// The pace has changed; its `next_attempt` has to survive a restart.
    fn pace(&self, state: &PaceState);
}

/// Why no row could be leased.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// The committer is changing rows. It wakes delivery when it is done.
    #[error("the queue is being written to")]
    Busy,
    /// The store failed.
    #[error("the queue could not be read; reading is tried again: {0}")]
    Unreadable(Box<dyn Error + Send + Sync>),
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
    /// The endpoint: the first of these.
    pub(crate) urls: Vec<Arc<str>>,
    /// The project's write-only token.
    pub(crate) api_key: String,
    /// Whether PostHog shall treat all of this as an import of old events.
    pub(crate) historical_migration: bool,
    /// What the endpoint speaks.
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
