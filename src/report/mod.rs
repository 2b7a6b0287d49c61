//! Plain data shared by the client, the pipeline, delivery and flags: what happened, and why.
//!
//! Nothing here does anything: no thread, no lock, no I/O. Each type is built where the fact is known and handed to the
//! caller unchanged, so that no layer needs an enum of its own that another layer maps onto a public one.
//!
//! * `drop_reason.rs`: [`DropReason`], why an event was not accepted.
//! * `diagnostic.rs`: [`Diagnostic`], a problem that no return value reports; `text.rs`: its text for an operator.
//! * `stats.rs`: [`Stats`], the state of the queue and of delivery. `health.rs`: its judgement, [`Health`];
//!   `lane_state.rs`: what of it other processes read on the status page of the queue.
//!   `prometheus.rs`: its figures as metrics, and the text for Prometheus.
//! * `serialize.rs`: the shape of each type for `serde`.
//! * `reports.rs`: what a receipt, a flush, a shutdown or an order about dead letters resolves with.
//!
//! What keeps diagnostics, passes them to the program and logs them is the module `recorder`.

mod diagnostic;
mod drop_reason;
mod health;
mod lane_state;
mod prometheus;
mod reports;
mod serialize;
mod stats;
mod text;

use std::sync::Arc;

pub use diagnostic::{Backlog, Diagnostic, DiagnosticCategory};
pub use drop_reason::DropReason;
pub use health::{Health, HealthCause, HealthProblem, HealthStatus};
pub(crate) use lane_state::{LanePhase, LaneState};
#[cfg(all(test, feature = "inspect"))]
pub(crate) use prometheus::tests::parse as parse_prometheus;
#[cfg(any(feature = "metrics", feature = "inspect"))]
pub(crate) use prometheus::{FAMILIES as METRIC_FAMILIES, Kind};
#[cfg(feature = "inspect")]
pub(crate) use prometheus::{write_head, write_sample};
pub use reports::{
    DeadLetterError, DeliveryReport, EndpointStatus, FlushReport, PersistError, ShutdownReport, WaitTimeout,
};
pub use stats::{DeliveryPhase, OrphanedQueues, QueueMedium, Stats, StorageMode, ThreadState};
pub(crate) use text::Line;

/// Receives each diagnostic of the layers below the client.
pub(crate) type Report = Arc<dyn Fn(Diagnostic) + Send + Sync>;
