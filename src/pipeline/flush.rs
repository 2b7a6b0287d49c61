//! Flushes on their way to the delivery, and their answers in the user's words.

use std::sync::Arc;
use std::time::Duration;

use super::Pipeline;
use super::committer::Committer;
use super::pending::{self, Pending, Promise};
use crate::delivery;
use crate::report::{DeliveryReport, EndpointStatus, FlushReport};

/// A flush under way.
#[derive(Debug)]
pub(super) struct Flush {
    promise: Promise<FlushReport>,
    /// What had been decided when it was asked for: a fast server may take events before the delivery hears of the flush.
    before: crate::queue::Totals,
}

impl Pipeline {
    /// Sends what is queued; resolves when it was tried, and what came of that is committed.
    pub(crate) fn flush(&self) -> Pending<FlushReport> {
        if self.finished.get().is_some() {
            let closed = FlushReport {
                delivered: 0,
                dead_lettered: 0,
                remaining: self.remaining(),
                endpoint: EndpointStatus::Closed,
            };
            return pending::answered(closed);
        }
        let (promise, answer) = pending::pending();
        let before = self.leases.totals();
        self.mailbox.ring(|wanted| wanted.flushes.push(Flush { promise, before }));
        // It may have ended between the look above and the ring: then nobody hears it.
        if self.finished.get().is_some() { self.flush() } else { answer }
    }

    fn answer_flush(&self, flush: Flush, endpoint: delivery::EndpointStatus) {
        let totals = self.leases.totals();
        flush.promise.answer(FlushReport {
            delivered: totals.delivered.saturating_sub(flush.before.delivered),
            dead_lettered: totals.dead_lettered.saturating_sub(flush.before.dead_lettered),
            remaining: self.remaining(),
            endpoint: self.endpoint(endpoint),
        });
    }

    /// The delivery is done with a flush. The committer answers it, unless that has ended.
    pub(super) fn flush_ended(&self, flush: Flush, endpoint: delivery::EndpointStatus) {
        self.mailbox.ring(|wanted| wanted.flushed.push((flush, endpoint)));
        if self.finished.get().is_some() {
            for (flush, endpoint) in self.mailbox.take_flushed() {
                self.answer_flush(flush, endpoint);
            }
        }
    }
}

impl Committer {
    /// Everything accepted before them was checkpointed by now, or cannot be.
    pub(super) fn pass_flushes_on(&mut self) {
        for flush in std::mem::take(&mut self.asked.flushes) {
            let pipeline = Arc::clone(&self.pipeline);
            let Some(delivery) = self.pipeline.delivery() else { continue };
            delivery.flush(Box::new(move |endpoint| pipeline.flush_ended(flush, endpoint)));
        }
        let awaited = std::mem::take(&mut self.asked.awaited);
        if let Some(delivery) = self.pipeline.delivery()
            && !awaited.is_empty()
        {
            let pipeline = Arc::clone(&self.pipeline);
            delivery.flush(Box::new(move |endpoint| {
                // Those that were decided are gone from the list by now.
                let endpoint = pipeline.endpoint(endpoint);
                for one in awaited {
                    pipeline.outcomes.give_up(&one, DeliveryReport::Queued { endpoint: endpoint.clone() });
                }
            }));
        }
    }

    /// What the delivery is done with is committed by now, or cannot be.
    pub(super) fn answer_flushes(&mut self) {
        for (flush, endpoint) in std::mem::take(&mut self.asked.flushed) {
            self.pipeline.answer_flush(flush, endpoint);
        }
    }

    /// The end: also those that the delivery has not heard of.
    pub(super) fn answer_all_flushes(&mut self) {
        let unheard = std::mem::take(&mut self.asked.flushes).into_iter();
        self.asked.flushed.extend(unheard.map(|flush| (flush, delivery::EndpointStatus::Stopped)));
        self.answer_flushes();
    }
}

impl Pipeline {
    /// Events that are accepted and neither delivered nor given up, whether that is committed yet or not.
    pub(super) fn remaining(&self) -> u64 {
        let (own, accepted) = self.account();
        // By sequence numbers: how many records an arena of an earlier life holds is known only when it is checkpointed.
        let in_journal = accepted.saturating_sub(own.accepted);
        let adopted = self.adopted_shard();
        let adopted = adopted.map_or(0, |(origin, shard)| self.leases.ledger(origin, || shard.ledger()).queued_events);
        own.queued_events + in_journal + adopted
    }

    /// In the user's words: times from now on.
    pub(super) fn endpoint(&self, endpoint: delivery::EndpointStatus) -> EndpointStatus {
        let now = self.options.clock.wall_nanos();
        let retry_in = |until: Option<i64>| {
            until.map(|until| Duration::from_nanos(u64::try_from(until.saturating_sub(now)).unwrap_or(0)))
        };
        match endpoint {
            delivery::EndpointStatus::Up => EndpointStatus::Up,
            delivery::EndpointStatus::Down { reason, until } => {
                EndpointStatus::Down { reason, retry_in: retry_in(until) }
            }
            delivery::EndpointStatus::Refusing { reason } => EndpointStatus::Refusing { reason },
            delivery::EndpointStatus::Paused { status, reason, until } => {
                EndpointStatus::Paused { status, reason, retry_in: retry_in(until) }
            }
            delivery::EndpointStatus::Stopped => EndpointStatus::Closed,
        }
    }
}
