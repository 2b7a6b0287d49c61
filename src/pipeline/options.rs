//! Options of a lane, and how the lane of AI events differs from the analytics lane.
//!
//! A lane is a [`Pipeline`]: a queue in a directory of its own and a delivery engine with an endpoint of its own. All
//! lanes of a client are served by the same two threads ([`Threads`](super::threads::Threads)). A lane is described by
//! its options alone: a further one takes a variant of [`Lane`], a function such as [`PipelineOptions::for_ai`], and a
//! call of [`start_beside`](super::start_beside).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::admission::Limits;
use super::committer::Intervals;
use super::pending::{self, Pending, Promise, Unanswered};
use super::shared::Pipeline;
use crate::delivery::{self, CaptureProtocol, DeliveryOptions, PaceOptions};
use crate::flags::RemoteOptions;
use crate::flags::loader::LoaderOptions;
use crate::queue::{Project, QueueOptions, has_orphan_with_dead};
use crate::report::{Report, ShutdownReport};
use crate::sys::clock::Clock;
use crate::sys::disk::Disk;
use crate::sys::limits::{AI_BATCH_BYTES, AI_EVENT_BYTES, AI_IN_FLIGHT_MOST, AI_JOURNAL_BYTES, AI_QUEUE_BYTES_LEAST};
use crate::transport::{Http, TransportOptions};

/// A queue of a project. Each lane has shards, bounds and an endpoint of its own, so that neither can hold up the
/// other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Events of `capture`.
    Analytics,
    /// Events of `capture_ai`.
    Ai,
}

impl Lane {
    /// The directory of the AI lane's shards below that of their project, which contains those of the analytics lane.
    pub(super) const AI_DIR: &str = "ai";

    /// The directory of the lane's shards.
    pub(super) fn dir(self, project: &Project, queue_dir: &Path) -> PathBuf {
        let project_dir = project.dir(queue_dir);
        match self {
            Lane::Analytics => project_dir,
            Lane::Ai => project_dir.join(Self::AI_DIR),
        }
    }
}

/// Called with what was delivered and what remains, and the directory of the queue.
pub(crate) type OnEnded = Arc<dyn Fn(&ShutdownReport, &Path) + Send + Sync>;

/// The options of a lane, checked by `config`.
#[derive(Clone)]
pub(crate) struct PipelineOptions {
    /// Where and how the events are stored, for the lane's own shard.
    pub(crate) queue: QueueOptions,
    /// The lane.
    pub(crate) lane: Lane,
    /// Other projects whose queues are delivered as well.
    pub(crate) also: Vec<Project>,
    /// Work in memory where the directory cannot be used.
    pub(crate) memory_fallback: bool,
    /// Size of the largest event, encoded. Enforced where records are made.
    pub(crate) max_event_bytes: usize,
    /// How long opening may take.
    pub(crate) open_timeout: Duration,
    /// When a checkpoint, a sync and an ack are due.
    pub(crate) intervals: Intervals,
    /// Bounds of the queue.
    pub(crate) limits: Limits,
    /// Send nothing until [`Pipeline::hold`] ends that.
    pub(crate) held: bool,
    /// How events are sent.
    pub(crate) delivery: DeliveryOptions,
    /// How flags are requested.
    pub(crate) flags: RemoteOptions,
    /// Where flag definitions are loaded from, if they are.
    pub(crate) flag_definitions: Option<LoaderOptions>,
    /// How the network is reached.
    pub(crate) transport: TransportOptions,
    /// Replaces the network in tests.
    pub(crate) network: Option<Arc<dyn Http>>,
    /// The program's callback for outcomes of delivery.
    pub(crate) on_delivery: Option<delivery::OnDelivery>,
    /// Receives every diagnostic.
    pub(crate) report: Report,
    /// Called when the lane has ended and reports nothing more.
    pub(crate) ended: OnEnded,
    /// The disk.
    pub(crate) disk: Disk,
    /// The clock.
    pub(crate) clock: Clock,
}

/// Asks each of these lanes, and resolves with the sum of their answers in the order of the lanes.
pub(crate) fn ask_all<T: Unanswered>(
    lanes: &[Arc<Pipeline>],
    add: fn(T, T) -> T,
    ask: impl Fn(&Pipeline, Promise<T>),
) -> Pending<T> {
    let (promises, answer) = pending::pending_sum(lanes.len(), add);
    lanes.iter().zip(promises).for_each(|(lane, promise)| ask(lane, promise));
    answer
}

impl Pipeline {
    /// Whether an earlier process left AI events. Determined by the analytics lane, which exists in every process.
    pub(crate) fn has_ai_left_behind(&self) -> bool {
        self.ai_left_behind
    }

    /// Whether an earlier process may have left dead letters of AI events.
    pub(crate) fn has_dead_ai_left_behind(&self) -> bool {
        let options = &self.options;
        has_orphan_with_dead(&options.disk, &Lane::Ai.dir(&options.queue.project, &options.queue.queue_dir))
    }
}

impl PipelineOptions {
    /// The options of the AI lane of a client whose analytics lane has these options.
    pub(crate) fn for_ai(&self) -> PipelineOptions {
        let delivery = &self.delivery;
        let limits = Limits { queue_bytes: self.limits.queue_bytes.max(AI_QUEUE_BYTES_LEAST), ..self.limits };
        PipelineOptions {
            lane: Lane::Ai,
            flag_definitions: None,
            max_event_bytes: AI_EVENT_BYTES,
            queue: QueueOptions {
                arena_bytes: AI_JOURNAL_BYTES,
                dead_bytes: limits.dead_bytes(),
                ..self.queue.clone()
            },
            limits,
            delivery: DeliveryOptions {
                url: format!("{}{}", self.queue.project.host, ai_path(delivery.protocol)).into(),
                gzip_in_query: false,
                max_batch_bytes: AI_BATCH_BYTES,
                pace: PaceOptions {
                    max_in_flight: delivery.pace.max_in_flight.min(AI_IN_FLIGHT_MOST),
                    ..delivery.pace
                },
                ..delivery.clone()
            },
            ..self.clone()
        }
    }
}

/// The path of the endpoint for AI events. PostHog serves it by other machines than the endpoint for analytics events.
fn ai_path(protocol: CaptureProtocol) -> &'static str {
    match protocol {
        CaptureProtocol::V0 => "/i/v0/ai/batch/",
        CaptureProtocol::V1 => "/i/v1/ai/events",
    }
}

#[cfg(test)]
mod tests {
    use crate::report::{EndpointStatus, FlushReport};

    #[test]
    fn of_two_endpoints_the_one_that_is_worse_off_is_reported() {
        let flushed = |endpoint| FlushReport { delivered: 1, dead_lettered: 2, remaining: 3, endpoint };
        let down = || EndpointStatus::Down { reason: "503".into(), retry_in: None };
        let paused = |reason: &str| EndpointStatus::Paused { status: 402, reason: reason.into(), retry_in: None };
        let endpoint = |one, other| flushed(one).with_ai(flushed(other)).endpoint;
        assert_eq!(flushed(EndpointStatus::Up).with_ai(flushed(EndpointStatus::Up)).remaining, 6);
        assert_eq!(endpoint(EndpointStatus::Up, paused("quota")), paused("AI events: quota"));
        assert_eq!(endpoint(down(), EndpointStatus::Up), down());
        assert_eq!(endpoint(down(), paused("quota")), down());
        let said = EndpointStatus::Down { reason: "AI events: 503".into(), retry_in: None };
        assert_eq!(endpoint(EndpointStatus::Up, down()), said);
    }
}
