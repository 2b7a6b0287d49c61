//! Delivery: leased events become requests, and the responses become acks.
//!
//! One [`Engine`](engine::Engine) is one task on a current-thread runtime. It leases rows from a [`Source`] (the
//! queue), sends their events in batches, and acks each row that it is done with. It owns no file. What it has in
//! memory may be lost at any moment; those events are then leased and sent again, with the same uuids.
//!
//! What happens in which case is described in `docs/delivery.md`.
//!
//! # What becomes of an event
//!
//! The records of a leased chunk are *open*, *delivered* or *dead*. A batch is a list of slices of leased chunks. When
//! no batch refers to a chunk any more, what is decided is acked, and the open rest goes back to the queue. Only V1
//! acks earlier, when some events of a request are decided and the others are sent again. So every way out (an outage
//! during a bisection, the deadline of a stop) runs through the same few lines.
//!
//! 1. `intake.rs` leases rows and assembles batches; `loaded.rs` has the leased chunks in memory.
//! 2. `pace.rs` decides when the next request may be sent; `send.rs` sends it and limits how long it may take.
//! 3. `response.rs` classifies the response, and `decision.rs` acts on it.
//! 4. A batch that is refused, or that fails while others pass, is bisected (`bisect.rs`) until the bad event is alone.
//!    That event is dead-lettered if PostHog refused it and has accepted another request since, which is *evidence*.
//!    Otherwise it is quarantined (`quarantine.rs`).
//! 5. Whether the events or the endpoint are at fault, `outage.rs` decides. In an *outage* every lease without a
//!    request under way is released, and one probe at a time follows.
//!
//! Flushes and stops (`flush.rs`) may bring an attempt forward. The state is published before a flush is answered.
//! While the program has opted out nothing is sent, and everything without a request under way is released.
//!
//! # Rules
//!
//! * A batch has whole chunks as far as they fit; with V1 no uuid twice.
//! * A request is built anew for each attempt: `sent_at`, or V1's header for it, is the time of that attempt,
//!   because the server corrects the timestamps of the events by it.
//! * Nothing pending means no timer. Monotonic time is tokio's, whose timers we sleep by; wall time is the `Clock`'s.
//! * An engine that panics is replaced (`engine.rs`); what it had read is read again.
//! * User code (`on_delivery`, callbacks of `flush` and `stop`) runs on this task, outside all locks; its panics are
//!   caught.

mod batch;
mod bisect;
#[cfg(test)]
mod blame_tests;
#[cfg(test)]
mod days_tests;
mod decision;
mod engine;
#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod fake;
mod flush;
mod handle;
#[cfg(test)]
mod held_tests;
mod intake;
mod loaded;
mod notice;
mod outage;
#[cfg(test)]
mod outage_tests;
mod pace;
mod quarantine;
#[cfg(test)]
mod refusal_tests;
mod request;
mod response;
mod send;
#[cfg(test)]
mod stop_tests;
#[cfg(test)]
mod v1_tests;
#[cfg(test)]
mod wire_tests;

use std::error::Error;
use std::sync::Arc;

use crate::queue::{Ack, ChunkRef, Lease};
use crate::record::{NoSymbols, Symbols};
use crate::sys::clock::WallNanos;

pub(crate) use engine::{EngineParts, serve};
pub(crate) use handle::{DeliveryHandle, DeliveryState, Phase};
pub use notice::{DeliveryNotice, DeliveryOutcome};
pub(crate) use pace::PaceOptions;
pub(crate) use quarantine::EventId;
pub use request::{CaptureProtocol, Compression};
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) use response::classify_any;

/// The queue, as delivery sees it. The calls are made on the delivery task and must not take long.
pub(crate) trait Source: Send + Sync + 'static {
    /// Leases the next free rows that `wants` accepts: oldest first within an origin, those of a lower origin
    /// first; as many as fit `max_bytes`, and at least one if there is one. An empty list means that no such row is
    /// free now.
    fn lease(&self, max_bytes: usize, wants: &dyn Fn(ChunkRef) -> bool) -> Result<Vec<Lease>, SourceError>;

    /// Leases the last committed row of this process's own queue, if it is free and `wants` accepts it.
    fn lease_newest(&self, wants: &dyn Fn(ChunkRef) -> bool) -> Result<Option<Lease>, SourceError>;

    /// Whether the program has opted out. Then `lease` returns nothing, and delivery releases what it has leased.
    fn is_held(&self) -> bool;

    /// An upper bound for the rows of this process's own queue, if it has any: what a flush that begins now has to
    /// cover.
    fn newest(&self) -> Option<ChunkRef>;

    /// Number of events that wait for delivery, as last committed: for reports, which must not wait for a lock.
    fn waiting(&self) -> u64;

    /// Applies the decision on a leased row. It is committed later, but the row is not leased again. The row that the
    /// ack keeps is leased too, and has to be acked or released.
    fn ack(&self, ack: Ack);

    /// Ends a lease without a decision: the row can be leased again, and until then evicted.
    fn release(&self, row: ChunkRef);

    /// Everything left in the queue `origin` is in quarantine. Returns `true` if that queue is given up in favour of
    /// another.
    fn stuck(&self, origin: u32) -> bool;

    /// The pace has changed. `next_attempt` is the `Retry-After` deadline, which the next process honours
    /// ([`EngineParts::next_attempt`]). Cooldowns are not stored: a restart may be an attempt to repair something.
    fn pace(&self, phase: Phase, next_attempt: Option<WallNanos>);
}

/// Why no row could be leased.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// The committer is changing rows, or the store is being opened again, or a shutdown still moves events from the
    /// journal to the store. Delivery is woken when that is over.
    #[error("the queue is being written to")]
    Busy,
    /// The store failed.
    #[error("the queue could not be read; reading is tried again: {0}")]
    Unreadable(Box<dyn Error + Send + Sync>),
}

/// The program's callback for decided events.
pub(crate) type OnDelivery = Arc<dyn Fn(&DeliveryNotice<'_>) + Send + Sync>;

/// Observes the events that a response decides.
pub(crate) trait DeliveryObserver: Send + Sync + 'static {
    /// Whether there is anything to notify now. If not, the arguments of `notify` are not gathered.
    fn is_listening(&self) -> bool;

    /// Some events are decided. `ids` and the uuids of the notice are in the same order.
    fn notify(&self, ids: &[EventId], delivery: &DeliveryNotice<'_>);
}

/// What to send, where, and how much at once.
#[derive(Clone, Debug)]
pub(crate) struct DeliveryOptions {
    /// The endpoint.
    pub(crate) url: Arc<str>,
    /// The project's write-only token.
    pub(crate) api_key: String,
    /// Whether PostHog treats the events as an import of old ones.
    pub(crate) historical_migration: bool,
    /// What the endpoint speaks.
    pub(crate) protocol: CaptureProtocol,
    /// The compression of bodies, where the endpoint supports it.
    pub(crate) compression: Compression,
    /// Whether the query string states, in addition to the header, that V0 bodies are compressed.
    pub(crate) gzip_in_query: bool,
    /// Events in one request.
    pub(crate) max_batch_events: usize,
    /// Estimated bytes of JSON in one request, before compression.
    pub(crate) max_batch_bytes: usize,
    /// Resolves the addresses of stacks while a body is built.
    pub(crate) symbols: Arc<dyn Symbols>,
    /// When to send.
    pub(crate) pace: PaceOptions,
}

impl Default for DeliveryOptions {
    fn default() -> Self {
        Self {
            url: "https://us.i.posthog.com/batch/".into(),
            api_key: String::new(),
            historical_migration: false,
            protocol: CaptureProtocol::V0,
            compression: Compression::default(),
            gzip_in_query: true,
            max_batch_events: 1000,
            max_batch_bytes: 4 * 1024 * 1024,
            symbols: Arc::new(NoSymbols),
            pace: PaceOptions::default(),
        }
    }
}
