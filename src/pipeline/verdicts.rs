//! Who waits for what PostHog says about a single event.
//!
//! The event is accepted like any other and then sent at once, by a flush. An entry exists from before the event is accepted until
//! PostHog has decided over it, or the flush has found that it does not now: nobody waits for an event that waits itself.
//!
//! Several events may have one uuid, where the program chose it, and each has a verdict of its own. So who waits is known by a number,
//! and hears of one sequence number: that of the record, which it learns when that is accepted. What is told of records of its uuid
//! before that is kept for so long.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use super::pending::{self, Pending, Promise};
use super::report::{DeliveryReport, EndpointStatus};
use super::source::OWN;
use super::{Pipeline, lock};
use crate::delivery::{DeliveryNotice, DeliveryOutcome, EventId, Hears};

/// More are not waited for at once; each costs memory until the next flush has ended.
const WAITING_MAX: usize = 10_000;
/// Of records of one uuid that were decided while another one is being accepted, so many are remembered.
const EARLY_MAX: usize = 64;

/// Who waits, by name.
#[derive(Debug)]
pub(crate) struct Awaited {
    uuid: Uuid,
    number: u64,
}

/// Who waits.
#[derive(Debug)]
struct Waiter {
    number: u64,
    /// Of its record, once that is accepted.
    seq: Option<u64>,
    /// What was told of other records of its uuid before.
    early: Vec<(u64, DeliveryReport)>,
    promise: Promise<DeliveryReport>,
}

#[derive(Debug, Default)]
struct Waiting {
    by_uuid: HashMap<Uuid, Vec<Waiter>>,
    next_number: u64,
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
    /// Resolves when the fate is told of the record that [`Verdicts::accepted`] names.
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

    /// The event that is waited for is the record of that number.
    fn accepted(&self, awaited: &Awaited, seq: u64) {
        let told = {
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
        if let Some(report) = told {
            self.give_up(awaited, report);
        }
    }

    /// Whether anybody waits.
    fn is_awaited(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// The delivery has decided over some events.
    fn hear(&self, ids: &[EventId], delivery: &DeliveryNotice<'_>) {
        if !self.is_awaited() {
            return;
        }
        let report = match delivery.verdict {
            DeliveryOutcome::Delivered => DeliveryReport::Delivered,
            DeliveryOutcome::DeadLettered { status, reason } => {
                DeliveryReport::DeadLettered { status, reason: reason.to_owned() }
            }
        };
        for (id, uuid) in ids.iter().zip(delivery.uuids) {
            // What other processes left behind has sequence numbers of its own.
            if id.origin == OWN {
                self.tell(*uuid, id.seq, &report);
            }
        }
    }

    /// A record's fate.
    fn tell(&self, uuid: Uuid, seq: u64, report: &DeliveryReport) {
        let told = {
            let mut waiting = lock(&self.waiting);
            let Some(of_uuid) = waiting.by_uuid.get_mut(&uuid) else { return };
            for waiter in of_uuid.iter_mut().filter(|waiter| waiter.seq.is_none() && waiter.early.len() < EARLY_MAX) {
                waiter.early.push((seq, report.clone()));
            }
            let found = of_uuid.iter().position(|waiter| waiter.seq == Some(seq));
            found.map(|at| of_uuid.swap_remove(at)).inspect(|_| self.one_less(&mut waiting, uuid))
        };
        if let Some(waiter) = told {
            waiter.promise.answer(report.clone());
        }
    }

    /// Nothing more will be said of that event for now, or it was said before.
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

    fn hear(&self, ids: &[EventId], delivery: &DeliveryNotice<'_>) {
        // Before the program's own ear, which may panic.
        self.0.verdicts.hear(ids, delivery);
        if let Some(own) = &self.0.options.on_delivery {
            own(delivery);
        }
    }
}

impl Pipeline {
    /// Waits for what becomes of an event; asked before it is appended, so that no answer can come too early.
    pub(crate) fn verdict_of(&self, uuid: Uuid) -> (Awaited, Pending<DeliveryReport>) {
        self.verdicts.wait_for(uuid)
    }

    /// The event was not accepted: there will be no verdict.
    pub(crate) fn forget_verdict_of(&self, awaited: &Awaited) {
        drop(self.verdicts.take(awaited));
    }

    /// The event that is waited for was accepted, as the record of that number: sends it now, with all that is queued before it.
    pub(crate) fn send_now(&self, awaited: Awaited, seq: u64) {
        self.verdicts.accepted(&awaited, seq);
        self.mailbox.ring(|wanted| wanted.awaited.push(awaited));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Uuid = Uuid::from_u128(1);

    /// Says of a record of a shard, and of that uuid, that PostHog took it.
    fn deliver(verdicts: &Verdicts, origin: u32, seq: u64, uuid: Uuid) {
        verdicts
            .hear(&[EventId { origin, seq }], &DeliveryNotice { uuids: &[uuid], verdict: DeliveryOutcome::Delivered });
    }

    fn dead_letter(verdicts: &Verdicts, seq: u64, uuid: Uuid) {
        let verdict = DeliveryOutcome::DeadLettered { status: 400, reason: "no" };
        verdicts.hear(&[EventId { origin: OWN, seq }], &DeliveryNotice { uuids: &[uuid], verdict });
    }

    fn dead_lettered() -> DeliveryReport {
        DeliveryReport::DeadLettered { status: 400, reason: "no".into() }
    }

    #[test]
    fn each_of_several_events_of_one_uuid_hears_of_its_own_record() {
        let verdicts = Verdicts::default();
        let waiting = [7, 8, 9].map(|seq| {
            let (awaited, answer) = verdicts.wait_for(OURS);
            verdicts.accepted(&awaited, seq);
            (awaited, answer)
        });
        let answers = || waiting.each_ref().map(|(_, answer)| answer.try_get());
        // Another record, another uuid's, another shard's.
        deliver(&verdicts, OWN, 6, OURS);
        deliver(&verdicts, OWN, 8, Uuid::from_u128(2));
        deliver(&verdicts, OWN + 1, 8, OURS);
        assert_eq!(answers(), [None, None, None]);
        dead_letter(&verdicts, 8, OURS);
        verdicts.give_up(&waiting[2].0, DeliveryReport::Queued { endpoint: EndpointStatus::Up });
        deliver(&verdicts, OWN, 9, OURS);
        deliver(&verdicts, OWN, 7, OURS);
        let queued = DeliveryReport::Queued { endpoint: EndpointStatus::Up };
        assert_eq!(answers(), [Some(DeliveryReport::Delivered), Some(dead_lettered()), Some(queued)]);
        assert!(!verdicts.is_awaited() && lock(&verdicts.waiting).by_uuid.is_empty());
    }

    #[test]
    fn a_verdict_that_comes_before_the_waiter_knows_its_record_is_not_missed() {
        let verdicts = Verdicts::default();
        let [(one, of_one), (two, of_two)] = [verdicts.wait_for(OURS), verdicts.wait_for(OURS)];
        deliver(&verdicts, OWN, 2, OURS);
        dead_letter(&verdicts, 1, OURS);
        assert_eq!((of_one.try_get(), of_two.try_get()), (None, None));
        verdicts.accepted(&two, 2);
        verdicts.accepted(&one, 1);
        assert_eq!((of_one.try_get(), of_two.try_get()), (Some(dead_lettered()), Some(DeliveryReport::Delivered)));
        assert!(!verdicts.is_awaited());
    }

    #[test]
    fn one_that_was_not_accepted_is_forgotten_and_no_other_of_its_uuid() {
        let verdicts = Verdicts::default();
        let [(one, of_one), (two, of_two)] = [verdicts.wait_for(OURS), verdicts.wait_for(OURS)];
        verdicts.accepted(&two, 2);
        drop(verdicts.take(&one));
        deliver(&verdicts, OWN, 2, OURS);
        let closed = DeliveryReport::Queued { endpoint: EndpointStatus::Closed };
        assert_eq!((of_one.try_get(), of_two.try_get()), (Some(closed), Some(DeliveryReport::Delivered)));
    }

    #[test]
    fn whoever_waits_when_all_is_closed_or_comes_later_is_told_so() {
        let verdicts = Verdicts::default();
        let (awaited, answer) = verdicts.wait_for(OURS);
        verdicts.close();
        let closed = Some(DeliveryReport::Queued { endpoint: EndpointStatus::Closed });
        assert_eq!((answer.try_get(), verdicts.wait_for(OURS).1.try_get()), (closed.clone(), closed));
        verdicts.accepted(&awaited, 1);
        verdicts.give_up(&awaited, DeliveryReport::Delivered);
        assert!(!verdicts.is_awaited());
    }

    #[test]
    fn waiting_is_bounded_and_whoever_is_too_many_knows_at_once() {
        let verdicts = Verdicts::default();
        let waiting: Vec<_> = (0..WAITING_MAX as u128).map(|n| verdicts.wait_for(Uuid::from_u128(n)).1).collect();
        let (_, late) = verdicts.wait_for(Uuid::nil());
        assert_eq!(late.try_get(), Some(DeliveryReport::Queued { endpoint: EndpointStatus::Up }));
        assert!(waiting.iter().all(|answer| answer.try_get().is_none()));
    }
}
