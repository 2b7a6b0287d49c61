//! Who waits for what PostHog says about a single event.
//!
//! The event is accepted like any other and then sent at once, by a flush. An entry exists from before the event is accepted until
//! PostHog has decided over it, or the flush has found that it does not now: nobody waits for an event that waits itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use super::pending::{self, Pending, Promise};
use super::report::{DeliveryReport, Endpoint};
use super::{Pipeline, lock};
use crate::delivery::{Delivery, Hears, Verdict};

/// More are not waited for at once; each costs memory until the next flush has ended.
const WAITING_MAX: usize = 10_000;

#[derive(Debug, Default)]
struct Waiting {
    by_uuid: HashMap<Uuid, Vec<Promise<DeliveryReport>>>,
    /// Nothing is delivered any more.
    closed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Verdicts {
    /// How many wait: nearly always nobody, and then no lock is taken.
    count: AtomicUsize,
    waiting: Mutex<Waiting>,
}

impl Verdicts {
    /// Resolves when that event's fate is told.
    fn wait_for(&self, uuid: Uuid) -> Pending<DeliveryReport> {
        let (promise, answer) = pending::pending();
        let refused = {
            let mut waiting = lock(&self.waiting);
            if waiting.closed {
                Some(Endpoint::Closed)
            } else if self.count.load(Ordering::Relaxed) >= WAITING_MAX {
                Some(Endpoint::Up)
            } else {
                waiting.by_uuid.entry(uuid).or_default().push(promise);
                self.count.fetch_add(1, Ordering::Release);
                return answer;
            }
        };
        match refused {
            Some(endpoint) => pending::answered(DeliveryReport::Queued { endpoint }),
            None => answer,
        }
    }

    /// Whether anybody waits.
    fn is_awaited(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// The delivery has decided over some events.
    fn hear(&self, delivery: &Delivery<'_>) {
        if !self.is_awaited() {
            return;
        }
        let report = match delivery.verdict {
            Verdict::Delivered => DeliveryReport::Delivered,
            Verdict::Buried { status, reason } => DeliveryReport::Buried { status, reason: reason.to_owned() },
        };
        for uuid in delivery.uuids {
            self.tell(*uuid, &report);
        }
    }

    /// That event's fate, as far as it is known.
    pub(super) fn tell(&self, uuid: Uuid, report: &DeliveryReport) {
        let told = {
            let mut waiting = lock(&self.waiting);
            let told = waiting.by_uuid.remove(&uuid).unwrap_or_default();
            self.count.fetch_sub(told.len(), Ordering::Relaxed);
            told
        };
        for promise in told {
            promise.answer(report.clone());
        }
    }

    /// Who came last waits no more.
    fn forget(&self, uuid: Uuid) {
        let mut waiting = lock(&self.waiting);
        let Some(of_it) = waiting.by_uuid.get_mut(&uuid) else { return };
        // Others may wait for an earlier event of that uuid, where the caller chose it.
        let forgotten = of_it.pop();
        if of_it.is_empty() {
            waiting.by_uuid.remove(&uuid);
        }
        self.count.fetch_sub(usize::from(forgotten.is_some()), Ordering::Relaxed);
        drop(waiting);
    }

    /// Nothing is delivered any more: who waits, or comes later, is told so.
    pub(super) fn close(&self) {
        let left = {
            let mut waiting = lock(&self.waiting);
            waiting.closed = true;
            self.count.store(0, Ordering::Relaxed);
            std::mem::take(&mut waiting.by_uuid)
        };
        // A promise that is dropped says that the client was closed.
        drop(left);
    }
}

/// What hears of each verdict: those who wait for a single event, and the program's own ear.
pub(super) struct Ear(pub(super) Arc<Pipeline>);

impl Hears for Ear {
    fn is_listening(&self) -> bool {
        self.0.options.on_delivery.is_some() || self.0.verdicts.is_awaited()
    }

    fn hear(&self, delivery: &Delivery<'_>) {
        // Before the program's own ear, which may panic.
        self.0.verdicts.hear(delivery);
        if let Some(own) = &self.0.options.on_delivery {
            own(delivery);
        }
    }
}

impl Pipeline {
    /// Waits for what becomes of an event; asked before it is appended, so that no answer can come too early.
    pub(crate) fn verdict_of(&self, uuid: Uuid) -> Pending<DeliveryReport> {
        self.verdicts.wait_for(uuid)
    }

    /// The event that was waited for last was not accepted: there will be no verdict.
    pub(crate) fn forget_verdict_of(&self, uuid: Uuid) {
        self.verdicts.forget(uuid);
    }

    /// The event that is waited for was accepted: sends it now, with all that is queued before it.
    pub(crate) fn send_now(&self, uuid: Uuid) {
        self.bell.ring(|wanted| wanted.awaited.push(uuid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(uuids: &[Uuid]) -> Delivery<'_> {
        Delivery { uuids, verdict: Verdict::Delivered }
    }

    #[test]
    fn everybody_who_waits_for_an_event_hears_of_it_and_nobody_else() {
        let verdicts = Verdicts::default();
        let [one, two] = [1, 2].map(Uuid::from_u128);
        let waiting = [one, one, two].map(|uuid| verdicts.wait_for(uuid));
        verdicts.hear(&delivered(&[one, Uuid::from_u128(9)]));
        let answers = waiting.each_ref().map(Pending::try_get);
        assert_eq!(answers, [Some(DeliveryReport::Delivered), Some(DeliveryReport::Delivered), None]);
        assert_eq!(verdicts.count.load(Ordering::Relaxed), 1);
        verdicts.close();
        let closed = Some(DeliveryReport::Queued { endpoint: Endpoint::Closed });
        assert_eq!((waiting[2].try_get(), verdicts.wait_for(one).try_get()), (closed.clone(), closed));
    }

    #[test]
    fn waiting_is_bounded_and_whoever_is_too_many_knows_at_once() {
        let verdicts = Verdicts::default();
        let waiting: Vec<_> = (0..WAITING_MAX as u128).map(|n| verdicts.wait_for(Uuid::from_u128(n))).collect();
        let late = verdicts.wait_for(Uuid::nil());
        assert_eq!(late.try_get(), Some(DeliveryReport::Queued { endpoint: Endpoint::Up }));
        assert!(waiting.iter().all(|answer| answer.try_get().is_none()));
    }
}
