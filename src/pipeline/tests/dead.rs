//! Dead letters that are retried while the store fails, or that cannot be read.

use super::*;
use crate::event::Event;
use crate::pipeline::DeadLetterAction;
use crate::queue::store::DeadRecord;
use crate::report::DeadLetterError;

const BROKEN: u32 = 5;

fn body() -> Vec<u8> {
    Event::new("tick", "user_1").finish(uuid::Uuid::from_u128(7), 1, 1024).unwrap().body().to_vec()
}

/// Dead-letters the first record of the only row with this body, and delivers the other.
fn dead_letter(fixture: &mut Fixture, body: Vec<u8>) {
    fixture.append(2);
    fixture.advance(HOUR);
    let row = fixture.lease().remove(0).row();
    let seq = row.key.first_seq;
    let (reason, first_attempt, last_attempt) = (String::new(), 1, 2);
    let dead = DeadRecord { seq, status: 400, reason, first_attempt, last_attempt, attempts: 1, body };
    fixture.pipeline.ack(Ack { row, delivered: 1, dead: vec![dead], keep: None });
}

fn order(fixture: &mut Fixture, order: DeadLetterAction) -> Option<Result<u64, DeadLetterError>> {
    let answer = ask_all(std::slice::from_ref(&fixture.pipeline), sum, |lane, promise| {
        lane.command_dead_letters(order, promise)
    });
    fixture.settle_down();
    answer.try_get()
}

#[test]
fn a_dead_letter_stays_until_the_store_has_it_queued() {
    let fault = Fault::of(Op::Write, "queue.redb");
    let mut fixture = fixture(|options| options.disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>));
    dead_letter(&mut fixture, body());
    fixture.advance(HOUR);
    for order_of in [DeadLetterAction::Retry, DeadLetterAction::Discard] {
        fault.arm(BROKEN);
        let answer = order(&mut fixture, order_of);
        assert!(matches!(answer, Some(Err(DeadLetterError::Storage(_)))), "{answer:?}");
        fault.arm(0);
        fixture.advance(HOUR);
        assert_eq!(fixture.pipeline.dead(9).len(), 1, "{order_of:?}");
    }
    fixture.deliver(fixture.lease());
    fixture.advance(HOUR);
    let before = fixture.ledger();
    assert_eq!(order(&mut fixture, DeadLetterAction::Retry), Some(Ok(1)));
    assert_eq!(fixture.pipeline.dead(9), []);
    let after = fixture.ledger();
    assert_eq!((after.accepted, after.queued_events, after.dead_lettered), (before.accepted + 1, 1, 1));
    let rows = fixture.lease();
    assert!(rows[0].chunk.frames.windows(body().len()).any(|bytes| bytes == body()), "the very same record");
}

#[test]
fn uncommitted_dead_letters_are_retried_too() {
    let mut fixture = fixture(|_| ());
    dead_letter(&mut fixture, body());
    assert_eq!(fixture.pipeline.dead(9), []);
    assert_eq!(order(&mut fixture, DeadLetterAction::Retry), Some(Ok(1)));
    assert_eq!(fixture.pipeline.dead(9), []);
    assert_eq!((fixture.ledger().queued_events, fixture.ledger().dead_lettered), (1, 1));
}

#[test]
fn an_unreadable_dead_letter_stays_and_can_be_discarded() {
    let mut fixture = fixture(|_| ());
    dead_letter(&mut fixture, vec![0xc1]);
    assert_eq!(order(&mut fixture, DeadLetterAction::Retry), Some(Ok(0)));
    assert_eq!(fixture.pipeline.dead(9).len(), 1);
    assert_eq!(order(&mut fixture, DeadLetterAction::Discard), Some(Ok(1)));
    assert_eq!((fixture.pipeline.dead(9).len(), fixture.ledger().dead_lettered), (0, 1));
}

#[test]
fn acks_just_committed_free_space_for_retried_dead_letters() {
    let mut fixture = fixture(|options| options.limits.queue_events = 2);
    dead_letter(&mut fixture, body());
    fixture.advance(HOUR);
    fixture.append(2);
    fixture.settle_down();
    fixture.advance(HOUR);
    assert!(fixture.pipeline.append(&[7; 100], 0).is_err(), "the queue is full");
    fixture.deliver(fixture.lease());
    assert_eq!(order(&mut fixture, DeadLetterAction::Retry), Some(Ok(1)));
}

#[test]
fn under_drop_oldest_retries_evict_nothing() {
    let mut fixture = fixture(|options| {
        (options.limits.queue_events, options.limits.overflow) = (2, crate::pipeline::OverflowPolicy::DropOldest);
    });
    for _ in 0..3 {
        dead_letter(&mut fixture, body());
        fixture.advance(HOUR);
    }
    assert_eq!((fixture.pipeline.dead(9).len(), fixture.ledger().queued_events), (3, 0));
    assert_eq!(order(&mut fixture, DeadLetterAction::Retry), Some(Ok(2)));
    fixture.advance(HOUR);
    let ledger = fixture.ledger();
    assert_eq!((fixture.pipeline.dead(9).len(), ledger.queued_events, ledger.evicted), (1, 2, 0));
    assert_eq!(order(&mut fixture, DeadLetterAction::Retry), Some(Ok(0)));
}

/// Dead-letters this many events with bodies of this size.
fn dead_letter_many(fixture: &mut Fixture, count: usize, bytes: usize) {
    let event = Event::new("tick", "user_1").prop("filler", "x".repeat(bytes));
    let body = event.finish(uuid::Uuid::from_u128(7), 1, bytes + 1024).unwrap().body().to_vec();
    fixture.append(count);
    fixture.advance(HOUR);
    for lease in fixture.lease() {
        let dead = |seq| DeadRecord {
            seq,
            status: 400,
            reason: String::new(),
            first_attempt: 1,
            last_attempt: 2,
            attempts: 1,
            body: body.clone(),
        };
        let first = lease.chunk.key.first_seq;
        let dead = (first..first + u64::from(lease.chunk.count)).map(dead).collect();
        fixture.pipeline.ack(Ack { row: lease.row(), delivered: 0, dead, keep: None });
    }
    fixture.advance(HOUR);
}

#[test]
fn dead_letters_have_their_own_bound_and_evict_no_event() {
    const MIB: u64 = 1 << 20;
    let mut fixture = fixture(|options| {
        options.limits.queue_bytes = 4 * MIB;
        options.limits.overflow = crate::pipeline::OverflowPolicy::DropOldest;
    });
    for _ in 0..3 {
        dead_letter_many(&mut fixture, 400, 7000);
    }
    for _ in 0..700 {
        assert!(fixture.pipeline.append(&[7; 4500], 0).is_ok());
        fixture.settle_down();
    }
    fixture.advance(HOUR);
    let ledger = fixture.ledger();
    assert_eq!((ledger.evicted, ledger.queued_events, ledger.dead_lettered), (0, 700, 1200));
    let dead = fixture.pipeline.dead(usize::MAX);
    let bytes: usize = dead.iter().map(|dead| dead.body.len()).sum();
    assert!((900_000..MIB as usize).contains(&bytes), "{} dead letters of {bytes} bytes", dead.len());
    assert_eq!(dead.last().unwrap().seq, 1200, "the newest are kept");
}

#[test]
fn more_dead_letters_than_are_read_at_once_are_all_queued_again() {
    let mut fixture = fixture(|_| ());
    dead_letter_many(&mut fixture, 400, 7000);
    let read = fixture.pipeline.shard.dead(None, usize::MAX).unwrap().records;
    assert!(read.iter().map(|dead| dead.body.len()).sum::<usize>() <= 1 << 20, "they are not all in memory at once");
    assert_eq!(order(&mut fixture, DeadLetterAction::Retry), Some(Ok(400)));
    fixture.advance(HOUR);
    assert_eq!((fixture.pipeline.dead(9), fixture.ledger().queued_events), (Vec::new(), 400));
}
