//! What has happened when a flush or a shutdown is answered, and what its report counts.

use super::*;
use crate::queue::store::DeadRecord;
use crate::report::{EndpointStatus, FlushReport};

/// A flush that the committer has given to delivery.
fn flush(fixture: &mut Fixture) -> (Pending<FlushReport>, crate::pipeline::mailbox::Flush) {
    let answer = ask_all(std::slice::from_ref(&fixture.pipeline), FlushReport::with_ai, Pipeline::flush);
    let commands = fixture.pipeline.mailbox.listen(Some(fixture.now()), || fixture.pipeline.options.clock.now());
    fixture.committer.receive(commands);
    let flush = fixture.committer.commands.flushes.pop().unwrap();
    (answer, flush)
}

fn dead_letter(fixture: &Fixture, lease: &Lease) {
    let row = lease.row();
    let dead = |seq| DeadRecord {
        seq,
        status: 400,
        reason: "no".into(),
        first_attempt: 1,
        last_attempt: 2,
        attempts: 3,
        body: vec![7; 100],
    };
    let dead = (row.key.first_seq..).take(lease.chunk.count as usize).map(dead).collect();
    fixture.pipeline.ack(Ack { row, delivered: 0, dead, keep: None });
}

fn ended(fixture: &Fixture, flush: crate::pipeline::mailbox::Flush) {
    fixture.pipeline.flush_completed(flush, EndpointStatus::Up);
}

#[test]
fn a_flush_is_answered_after_the_commit_and_the_bounds_check() {
    let mut fixture = fixture(|options| options.limits.queue_events = 30);
    fixture.append(30);
    fixture.settle_down();
    assert!(fixture.pipeline.append(&[7; 100], 0).is_err(), "the queue is full");
    fixture.settle_down();
    let (answer, flush) = flush(&mut fixture);
    let mut rows = fixture.lease();
    dead_letter(&fixture, &rows.remove(0));
    fixture.deliver(rows);
    ended(&fixture, flush);
    assert_eq!(answer.try_get(), None);
    fixture.turn();
    let report = answer.try_get().unwrap();
    assert_eq!(
        (report.delivered + report.dead_lettered, report.remaining, report.endpoint),
        (30, 0, EndpointStatus::Up)
    );
    let ledger = fixture.ledger();
    assert_eq!((ledger.queued_events, ledger.queued_bytes, ledger.dead_lettered), (0, 0, report.dead_lettered));
    assert_eq!(fixture.pipeline.dead(100).len() as u64, report.dead_lettered);
    assert!(fixture.pipeline.append(&[7; 100], 0).is_ok(), "at once");
}

#[test]
fn a_flush_counts_from_when_it_was_asked_for() {
    let mut fixture = fixture(|_| ());
    fixture.append(30);
    fixture.settle_down();
    let rows = fixture.lease();
    let (answer, flush) = {
        let answer = ask_all(std::slice::from_ref(&fixture.pipeline), FlushReport::with_ai, Pipeline::flush);
        // A fast server answers before delivery and the committer receive the flush.
        fixture.deliver(rows);
        let commands = fixture.pipeline.mailbox.listen(None, Instant::now);
        fixture.committer.receive(commands);
        (answer, fixture.committer.commands.flushes.pop().unwrap())
    };
    ended(&fixture, flush);
    fixture.turn();
    assert_eq!(answer.try_get().unwrap().delivered, 30);
    let (second, flush) = self::flush(&mut fixture);
    ended(&fixture, flush);
    fixture.turn();
    assert_eq!(second.try_get().unwrap().delivered, 0, "nothing is counted twice");
}

#[test]
fn a_flush_is_answered_also_while_the_store_fails() {
    let fault = Fault::of(Op::Write, "queue.redb");
    let mut fixture = fixture(|options| options.disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>));
    fixture.append(30);
    fixture.settle_down();
    let (answer, flush) = flush(&mut fixture);
    fault.arm(5);
    fixture.deliver(fixture.lease());
    ended(&fixture, flush);
    fixture.settle_down();
    let report = answer.try_get().unwrap();
    assert_eq!((report.delivered, report.remaining), (30, 0));
    assert!(fixture.reports(is_problem));
}

#[test]
fn a_shutdown_counts_deliveries_since_its_call_only() {
    let mut fixture = fixture(|_| ());
    fixture.append(30);
    fixture.settle_down();
    // Accepted before, and not committed when the shutdown begins.
    fixture.deliver(fixture.lease());
    let answer = fixture.pipeline.shutdown(Duration::ZERO);
    let (late, flush) = flush(&mut fixture);
    fixture.turn();
    fixture.clock.advance(Duration::from_secs(1));
    assert!(fixture.committer.turn().is_break());
    let report = answer.try_get().unwrap();
    assert_eq!((report.delivered, report.remaining, report.persisted), (0, 0, true));
    // Delivery completes the flush after the committer has ended.
    ended(&fixture, flush);
    assert_eq!(late.try_get().unwrap().delivered, 0);
    assert_eq!(fixture.pipeline.shutdown(HOUR).try_get(), Some(report));
}

#[test]
fn outcomes_are_gathered_only_where_they_are_awaited() {
    use crate::delivery::DeliveryObserver;

    let silent = fixture(|_| ());
    assert!(!silent.pipeline.is_listening());
    let _waiting = silent.pipeline.outcome_of(uuid::Uuid::nil());
    assert!(silent.pipeline.is_listening());
    let hearing = fixture(|options| options.on_delivery = Some(Arc::new(|_| ())));
    assert!(hearing.pipeline.is_listening());
}
