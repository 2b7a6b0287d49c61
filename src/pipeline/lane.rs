//! How the lane of AI events differs from that of analytics. It is a second pipeline, and nothing else.

use super::{Limits, Pipeline, WorkerOptions};
use crate::delivery::{CaptureProtocol, DeliveryOptions, PaceOptions};
use crate::queue::{Lane, has_orphan_with_dead};
use crate::sys::limits::{AI_BATCH_BYTES, AI_EVENT_BYTES, AI_IN_FLIGHT_MOST, AI_JOURNAL_BYTES, AI_QUEUE_BYTES_LEAST};

impl Pipeline {
    /// Whether there are AI events that an earlier process left. Known of the analytics lane only, which is there in every process.
    pub(crate) fn has_ai_left_behind(&self) -> bool {
        self.ai_left_behind
    }

    /// Whether an earlier process may have left dead letters of AI events.
    pub(crate) fn has_dead_ai_left_behind(&self) -> bool {
        let options = &self.options;
        has_orphan_with_dead(&options.disk, &options.project.lane_dir(&options.queue_dir, Lane::Ai))
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
