//! Flushes on their way to the delivery, and their answers in the user's words.

use std::sync::Arc;
use std::time::Duration;

use super::Pipeline;
use super::committer::Committer;
use super::report::{DeliveryReport, Endpoint, FlushReport};
use super::source::OWN;
use crate::delivery;

impl Committer {
    /// Everything accepted before them was carried by now, or cannot be.
    pub(super) fn pass_flushes_on(&mut self) {
        for promise in std::mem::take(&mut self.asked.flushes) {
            let pipeline = Arc::clone(&self.pipeline);
            let Some(delivery) = self.pipeline.delivery() else { continue };
            delivery.flush(Box::new(move |outcome: delivery::FlushOutcome| {
                let report = FlushReport {
                    delivered: outcome.delivered,
                    buried: outcome.buried,
                    remaining: pipeline.remaining(),
                    endpoint: pipeline.endpoint(outcome.endpoint),
                };
                promise.answer(report);
            }));
        }
        let awaited = std::mem::take(&mut self.asked.awaited);
        if let Some(delivery) = self.pipeline.delivery()
            && !awaited.is_empty()
        {
            let pipeline = Arc::clone(&self.pipeline);
            delivery.flush(Box::new(move |outcome: delivery::FlushOutcome| {
                // Those that were decided are gone from the list by now.
                let endpoint = pipeline.endpoint(outcome.endpoint);
                for uuid in awaited {
                    pipeline.verdicts.tell(uuid, &DeliveryReport::Queued { endpoint: endpoint.clone() });
                }
            }));
        }
    }
}

impl Pipeline {
    /// Events that are accepted and neither delivered nor given up, whether that is committed yet or not.
    pub(super) fn remaining(&self) -> u64 {
        let own = (OWN, Arc::clone(&self.shard));
        let queued = std::iter::once(own).chain(self.adopted_shard()).map(|(origin, shard)| {
            let (delivered, buried) = self.outbox.settled_events(origin);
            shard.ledger().queued_events.saturating_sub(delivered + buried)
        });
        // By sequence numbers: how many records an arena of an earlier life holds is known only when it is carried.
        let in_journal = self.shard.accepted().saturating_sub(self.shard.ledger().accepted);
        queued.sum::<u64>() + in_journal
    }

    /// In the user's words: times from now on.
    pub(super) fn endpoint(&self, endpoint: delivery::Endpoint) -> Endpoint {
        let now = self.options.clock.wall_nanos();
        let retry_in = |until: Option<i64>| {
            until.map(|until| Duration::from_nanos(u64::try_from(until.saturating_sub(now)).unwrap_or(0)))
        };
        match endpoint {
            delivery::Endpoint::Up => Endpoint::Up,
            delivery::Endpoint::Down { reason, until } => Endpoint::Down { reason, retry_in: retry_in(until) },
            delivery::Endpoint::Paused { status, until } => Endpoint::Paused { status, retry_in: retry_in(until) },
            delivery::Endpoint::Stopped => Endpoint::Closed,
        }
    }
}
