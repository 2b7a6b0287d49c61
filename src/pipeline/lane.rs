//! How the lane of AI events differs from that of analytics. It is a second pipeline, and nothing else.

use std::path::{Path, PathBuf};

use super::{Limits, Pipeline, WorkerOptions};
use crate::delivery::{CaptureProtocol, DeliveryOptions, PaceOptions};
use crate::queue::{Project, has_orphan_with_dead};
use crate::sys::limits::{AI_BATCH_BYTES, AI_EVENT_BYTES, AI_IN_FLIGHT_MOST, AI_JOURNAL_BYTES, AI_QUEUE_BYTES_LEAST};

/// Which of a project's queues. A lane has shards, bounds and an endpoint of its own, so that neither can hold the other up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// What `capture` takes.
    Analytics,
    /// What `capture_ai` takes.
    Ai,
}

impl Lane {
    /// The directory of the AI lane's shards below that of their project. Those of the analytics lane lie in the latter.
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

impl Pipeline {
    /// Whether there are AI events that an earlier process left. Known of the analytics lane only, which is there in every process.
    pub(crate) fn has_ai_left_behind(&self) -> bool {
        self.ai_left_behind
    }

    /// Whether an earlier process may have left dead letters of AI events.
    pub(crate) fn has_dead_ai_left_behind(&self) -> bool {
        let options = &self.options;
        has_orphan_with_dead(&options.disk, &Lane::Ai.dir(&options.project, &options.queue_dir))
    }
}

impl WorkerOptions {
    /// Options of the AI lane beside these of the analytics lane.
    pub(crate) fn for_ai(&self) -> WorkerOptions {
        let delivery = &self.delivery;
        WorkerOptions {
            lane: Lane::Ai,
            flag_definitions: None,
            max_event_bytes: AI_EVENT_BYTES,
            arena_bytes: AI_JOURNAL_BYTES,
            limits: Limits { queue_bytes: self.limits.queue_bytes.max(AI_QUEUE_BYTES_LEAST), ..self.limits },
            delivery: DeliveryOptions {
                urls: vec![format!("{}/i/v0/ai/batch/", self.project.host).into()],
                // Whatever analytics speak: this endpoint knows nothing else.
                protocol: CaptureProtocol::V0,
                gzip_in_query: false,
                max_batch_bytes: AI_BATCH_BYTES,
                pace: PaceOptions {
                    max_in_flight: delivery.pace.max_in_flight.min(AI_IN_FLIGHT_MOST),
                    ..delivery.pace.clone()
                },
                ..delivery.clone()
            },
            ..self.clone()
        }
    }
}
