//! What has happened when a flush or a shutdown is answered, and what it counts.

use super::*;
use crate::queue::store::DeadRecord;
use crate::report::{EndpointStatus, FlushReport};

/// A flush that the committer has given to delivery.
fn flush(bench: &mut Bench) -> (Pending<FlushReport>, crate::pipeline::mailbox::Flush) {
    let answer = ask_all(std::slice::from_ref(&bench.pipeline), FlushReport::with_ai, Pipeline::flush);
    let commands = bench.pipeline.mailbox.listen(Some(bench.now()), || bench.pipeline.options.clock.now());
    bench.committer.receive(commands);
    let flush = bench.committer.commands.flushes.pop().unwrap();
    (answer, flush)
}

fn dead_letter(bench: &Bench, lease: &Lease) {
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
    bench.pipeline.ack(Ack { row, delivered: 0, dead, keep: None });
}

fn ended(bench: &Bench, flush: crate::pipeline::mailbox::Flush) {
    bench.pipeline.flush_completed(flush, EndpointStatus::Up);
}

#[test]
fn a_flush_is_answered_after_the_commit_and_the_bounds_check() {
    let mut bench = bench(|options| options.limits.queue_events = 30);
    bench.append(30);
    bench.settle_down();
    assert!(bench.pipeline.append(&[7; 100], 0).is_err(), "the queue is full");
    bench.settle_down();
    let (answer, flush) = flush(&mut bench);
    let mut rows = bench.lease();
    dead_letter(&bench, &rows.remove(0));
    bench.deliver(rows);
    ended(&bench, flush);
    assert_eq!(answer.try_get(), None);
    bench.turn();
    let report = answer.try_get().unwrap();
    assert_eq!(
        (report.delivered + report.dead_lettered, report.remaining, report.endpoint),
        (30, 0, EndpointStatus::Up)
    );
    let ledger = bench.ledger();
    assert_eq!((ledger.queued_events, ledger.queued_bytes, ledger.dead_lettered), (0, 0, report.dead_lettered));
    assert_eq!(bench.pipeline.dead(100).len() as u64, report.dead_lettered);
    assert!(bench.pipeline.append(&[7; 100], 0).is_ok(), "at once");
}

#[test]
fn a_flush_counts_from_when_it_was_asked_for() {
    let mut bench = bench(|_| ());
    bench.append(30);
    bench.settle_down();
    let rows = bench.lease();
    let (answer, flush) = {
        let answer = ask_all(std::slice::from_ref(&bench.pipeline), FlushReport::with_ai, Pipeline::flush);
        // A fast server answers before delivery and the committer receive the flush.
        bench.deliver(rows);
        let commands = bench.pipeline.mailbox.listen(None, Instant::now);
        bench.committer.receive(commands);
        (answer, bench.committer.commands.flushes.pop().unwrap())
    };
    ended(&bench, flush);
    bench.turn();
    assert_eq!(answer.try_get().unwrap().delivered, 30);
    let (second, flush) = self::flush(&mut bench);
    ended(&bench, flush);
    bench.turn();
    assert_eq!(second.try_get().unwrap().delivered, 0, "nothing is counted twice");
}

#[test]
fn a_flush_is_answered_also_while_the_store_fails() {
    let fault = Fault::of(Op::Write, "queue.redb");
    let mut bench = bench(|options| options.disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>));
    bench.append(30);
    bench.settle_down();
    let (answer, flush) = flush(&mut bench);
    fault.arm(5);
    bench.deliver(bench.lease());
    ended(&bench, flush);
    bench.settle_down();
    let report = answer.try_get().unwrap();
    assert_eq!((report.delivered, report.remaining), (30, 0));
    assert!(bench.reports(is_problem));
}

#[test]
fn a_shutdown_counts_what_was_taken_since_and_nothing_twice() {
    let mut bench = bench(|_| ());
    bench.append(30);
    bench.settle_down();
    // Accepted before, and not committed when the shutdown begins.
    bench.deliver(bench.lease());
    let answer = bench.pipeline.shutdown(Duration::ZERO);
    let (late, flush) = flush(&mut bench);
    bench.turn();
    bench.clock.advance(Duration::from_secs(1));
    assert!(bench.committer.turn().is_break());
    let report = answer.try_get().unwrap();
    assert_eq!((report.delivered, report.remaining, report.persisted), (0, 0, true));
    // Delivery completes the flush after the committer has ended.
    ended(&bench, flush);
    assert_eq!(late.try_get().unwrap().delivered, 0);
    assert_eq!(bench.pipeline.shutdown(HOUR).try_get(), Some(report));
}

#[test]
fn outcomes_are_gathered_only_where_they_are_awaited() {
    use crate::delivery::DeliveryObserver;
    use crate::pipeline::outcomes::OutcomeObserver;

    let silent = bench(|_| ());
    assert!(!OutcomeObserver(Arc::clone(&silent.pipeline)).is_listening());
    let _waiting = silent.pipeline.outcome_of(uuid::Uuid::nil());
    assert!(OutcomeObserver(Arc::clone(&silent.pipeline)).is_listening());
    let hearing = bench(|options| options.on_delivery = Some(Arc::new(|_| ())));
    assert!(OutcomeObserver(Arc::clone(&hearing.pipeline)).is_listening());
}
