//! Callers that wait for the outcome of a single event (`capture_immediate`).
//!
//! The event is accepted like any other and then sent at once, by a flush. An entry represents one waiting caller. It
//! is added before the event is accepted, and removed when PostHog has accepted or rejected the event, or when the
//! flush ends without either. So no caller waits for an event that stays queued, for example during an outage.
//!
//! A program may give several events the same uuid, and each of them has an outcome of its own. So the uuid does not
//! identify an entry; its number does. An entry waits for the outcome of one record, identified by its sequence number.
//! That is known only once the record is accepted; until then the entry keeps every outcome reported for its uuid.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use uuid::Uuid;

use super::pending::{self, Pending, Promise};
use super::source::OWN;
use super::{Pipeline, lock};
use crate::delivery::{DeliveryNotice, DeliveryObserver, DeliveryOutcome, EventId};
use crate::report::{DeliveryReport, EndpointStatus};

/// Maximum number of entries; each costs memory until the next flush has ended.
const WAITING_MAX: usize = 10_000;
/// Maximum number of early outcomes of one entry.
const EARLY_MAX: usize = 64;

/// Identifies an entry.
#[derive(Debug)]
pub(crate) struct Awaited {
    uuid: Uuid,
    number: u64,
}

/// A caller that waits.
#[derive(Debug)]
struct Waiter {
    number: u64,
    /// The sequence number of its record, once that is accepted.
    seq: Option<u64>,
    /// Sequence number and outcome of records with the same uuid that were reported while `seq` was still unknown.
    early: Vec<(u64, DeliveryReport)>,
    promise: Promise<DeliveryReport>,
}

#[derive(Debug, Default)]
struct Waiting {
    by_uuid: HashMap<Uuid, Vec<Waiter>>,
    next_number: u64,
    /// Delivery has ended.
    closed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Outcomes {
    /// Number of entries: nearly always none, and then no lock is taken.
    count: AtomicUsize,
    waiting: Mutex<Waiting>,
}

impl Outcomes {
    /// Adds an entry. It resolves with the outcome of the record that [`Outcomes::accepted`] names.
    fn wait_for(&self, uuid: Uuid) -> (Awaited, Pending<DeliveryReport>) {
        let (promise, answer) = pending::pending();
        let mut waiting = lock(&self.waiting);
        let number = waiting.next_number;
        waiting.next_number += 1;
        let refused = if waiting.closed {
            Some(EndpointStatus::Closed)
        } else if self.count.load(Ordering::Relaxed) >= WAITING_MAX {
            Some(EndpointStatus::Up)
        } else {
            None
        };
        let Some(endpoint) = refused else {
            let waiter = Waiter { number, seq: None, early: Vec::new(), promise };
            waiting.by_uuid.entry(uuid).or_default().push(waiter);
            self.count.fetch_add(1, Ordering::Release);
            return (Awaited { uuid, number }, answer);
        };
        drop(waiting);
        (Awaited { uuid, number }, pending::answered(DeliveryReport::Queued { endpoint }))
    }

    /// The event of an entry was accepted as the record with this sequence number.
    fn accepted(&self, awaited: &Awaited, seq: u64) {
        let decided = {
            let mut waiting = lock(&self.waiting);
            let of_uuid = waiting.by_uuid.get_mut(&awaited.uuid);
            let Some(waiter) = of_uuid.and_then(|of| of.iter_mut().find(|waiter| waiter.number == awaited.number))
            else {
                return;
            };
            waiter.seq = Some(seq);
            let early = std::mem::take(&mut waiter.early);
            early.into_iter().find(|(of, _)| *of == seq).map(|(_, report)| report)
        };
        if let Some(report) = decided {
            self.give_up(awaited, report);
        }
    }

    /// Whether there are entries.
    fn is_awaited(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Delivery has decided over some events.
    fn notify(&self, ids: &[EventId], delivery: &DeliveryNotice<'_>) {
        if !self.is_awaited() {
            return;
        }
        let report = match delivery.outcome {
            DeliveryOutcome::Delivered => DeliveryReport::Delivered,
            DeliveryOutcome::DeadLettered { status, reason } => {
                DeliveryReport::DeadLettered { status, reason: reason.to_owned() }
            }
        };
        for (id, uuid) in ids.iter().zip(delivery.uuids) {
            // Adopted queues have sequence numbers of their own.
            if id.origin == OWN {
                self.resolve(*uuid, id.seq, &report);
            }
        }
    }

    /// Resolves the entry of a record.
    fn resolve(&self, uuid: Uuid, seq: u64, report: &DeliveryReport) {
        let decided = {
            let mut waiting = lock(&self.waiting);
            let Some(of_uuid) = waiting.by_uuid.get_mut(&uuid) else { return };
            for waiter in of_uuid.iter_mut().filter(|waiter| waiter.seq.is_none() && waiter.early.len() < EARLY_MAX) {
                waiter.early.push((seq, report.clone()));
            }
            let found = of_uuid.iter().position(|waiter| waiter.seq == Some(seq));
            found.map(|at| of_uuid.swap_remove(at)).inspect(|_| self.one_less(&mut waiting, uuid))
        };
        if let Some(waiter) = decided {
            waiter.promise.answer(report.clone());
        }
    }

    /// Resolves an entry without a decision, unless it is resolved already.
    pub(super) fn give_up(&self, awaited: &Awaited, report: DeliveryReport) {
        if let Some(waiter) = self.take(awaited) {
            waiter.promise.answer(report);
        }
    }

    fn take(&self, awaited: &Awaited) -> Option<Waiter> {
        let mut waiting = lock(&self.waiting);
        let of_uuid = waiting.by_uuid.get_mut(&awaited.uuid)?;
        let found = of_uuid.iter().position(|waiter| waiter.number == awaited.number)?;
        let waiter = of_uuid.swap_remove(found);
        self.one_less(&mut waiting, awaited.uuid);
        Some(waiter)
    }

    fn one_less(&self, waiting: &mut Waiting, uuid: Uuid) {
        if waiting.by_uuid.get(&uuid).is_some_and(Vec::is_empty) {
            waiting.by_uuid.remove(&uuid);
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    /// Delivery has ended: resolves all entries, and all later ones.
    pub(super) fn close(&self) {
        let left = {
            let mut waiting = lock(&self.waiting);
            waiting.closed = true;
            self.count.store(0, Ordering::Relaxed);
            std::mem::take(&mut waiting.by_uuid)
        };
        // A promise that is dropped resolves as closed.
        drop(left);
    }
}

/// Observes decided events for callers that wait for one, and for the program's own callback.
impl DeliveryObserver for Pipeline {
    fn is_listening(&self) -> bool {
        self.options.on_delivery.is_some() || self.outcomes.is_awaited()
    }

    fn notify(&self, ids: &[EventId], delivery: &DeliveryNotice<'_>) {
        // Before the program's callback, which may panic.
        self.outcomes.notify(ids, delivery);
        if let Some(own) = &self.options.on_delivery {
            own(delivery);
        }
    }
}

impl Pipeline {
    /// Waits for the outcome of an event. Called before the event is appended, so that no outcome is missed.
    pub(crate) fn outcome_of(&self, uuid: Uuid) -> (Awaited, Pending<DeliveryReport>) {
        self.outcomes.wait_for(uuid)
    }

    /// The event was not accepted, so it has no outcome.
    pub(crate) fn forget_outcome_of(&self, awaited: &Awaited) {
        drop(self.outcomes.take(awaited));
    }

    /// The event was accepted as the record with this sequence number: sends it now, with everything queued before it.
    pub(crate) fn send_now(&self, awaited: Awaited, seq: u64) {
        self.outcomes.accepted(&awaited, seq);
        self.mailbox.send(|commands| commands.awaited.push(awaited));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Uuid = Uuid::from_u128(1);

    /// A record of a shard, with this uuid, is delivered.
    fn deliver(outcomes: &Outcomes, origin: u32, seq: u64, uuid: Uuid) {
        outcomes.notify(
            &[EventId { origin, seq }],
            &DeliveryNotice { uuids: &[uuid], outcome: DeliveryOutcome::Delivered },
        );
    }

    fn dead_letter(outcomes: &Outcomes, seq: u64, uuid: Uuid) {
        let outcome = DeliveryOutcome::DeadLettered { status: 400, reason: "no" };
        outcomes.notify(&[EventId { origin: OWN, seq }], &DeliveryNotice { uuids: &[uuid], outcome });
    }

    fn dead_lettered() -> DeliveryReport {
        DeliveryReport::DeadLettered { status: 400, reason: "no".into() }
    }

    #[test]
    fn events_with_one_uuid_each_get_their_own_outcome() {
        let outcomes = Outcomes::default();
        let waiting = [7, 8, 9].map(|seq| {
            let (awaited, answer) = outcomes.wait_for(OURS);
            outcomes.accepted(&awaited, seq);
            (awaited, answer)
        });
        let answers = || waiting.each_ref().map(|(_, answer)| answer.try_get());
        // Another record, another uuid's, another shard's.
        deliver(&outcomes, OWN, 6, OURS);
        deliver(&outcomes, OWN, 8, Uuid::from_u128(2));
        deliver(&outcomes, OWN + 1, 8, OURS);
        assert_eq!(answers(), [None, None, None]);
        dead_letter(&outcomes, 8, OURS);
        outcomes.give_up(&waiting[2].0, DeliveryReport::Queued { endpoint: EndpointStatus::Up });
        deliver(&outcomes, OWN, 9, OURS);
        deliver(&outcomes, OWN, 7, OURS);
        let queued = DeliveryReport::Queued { endpoint: EndpointStatus::Up };
        assert_eq!(answers(), [Some(DeliveryReport::Delivered), Some(dead_lettered()), Some(queued)]);
        assert!(!outcomes.is_awaited() && lock(&outcomes.waiting).by_uuid.is_empty());
    }

    #[test]
    fn an_outcome_before_the_record_is_known_is_not_missed() {
        let outcomes = Outcomes::default();
        let [(one, of_one), (two, of_two)] = [outcomes.wait_for(OURS), outcomes.wait_for(OURS)];
        deliver(&outcomes, OWN, 2, OURS);
        dead_letter(&outcomes, 1, OURS);
        assert_eq!((of_one.try_get(), of_two.try_get()), (None, None));
        outcomes.accepted(&two, 2);
        outcomes.accepted(&one, 1);
        assert_eq!((of_one.try_get(), of_two.try_get()), (Some(dead_lettered()), Some(DeliveryReport::Delivered)));
        assert!(!outcomes.is_awaited());
    }

    #[test]
    fn an_event_that_was_not_accepted_is_forgotten_alone() {
        let outcomes = Outcomes::default();
        let [(one, of_one), (two, of_two)] = [outcomes.wait_for(OURS), outcomes.wait_for(OURS)];
        outcomes.accepted(&two, 2);
        drop(outcomes.take(&one));
        deliver(&outcomes, OWN, 2, OURS);
        let closed = DeliveryReport::Queued { endpoint: EndpointStatus::Closed };
        assert_eq!((of_one.try_get(), of_two.try_get()), (Some(closed), Some(DeliveryReport::Delivered)));
    }

    #[test]
    fn entries_resolve_as_closed_when_delivery_has_ended() {
        let outcomes = Outcomes::default();
        let (awaited, answer) = outcomes.wait_for(OURS);
        outcomes.close();
        let closed = Some(DeliveryReport::Queued { endpoint: EndpointStatus::Closed });
        assert_eq!((answer.try_get(), outcomes.wait_for(OURS).1.try_get()), (closed.clone(), closed));
        outcomes.accepted(&awaited, 1);
        outcomes.give_up(&awaited, DeliveryReport::Delivered);
        assert!(!outcomes.is_awaited());
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let outcomes = Outcomes::default();
        let waiting: Vec<_> = (0..WAITING_MAX as u128).map(|n| outcomes.wait_for(Uuid::from_u128(n)).1).collect();
        let (_, late) = outcomes.wait_for(Uuid::nil());
        assert_eq!(late.try_get(), Some(DeliveryReport::Queued { endpoint: EndpointStatus::Up }));
        assert!(waiting.iter().all(|answer| answer.try_get().is_none()));
    }
}
