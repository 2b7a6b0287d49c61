//! The delivery reads while the committer changes rows.

use std::cell::RefCell;

use super::super::outbox::Outbox;
use super::super::source::OWN;
use super::*;
use crate::queue::{EvictUntil, LANE, Passed};

fn row(first_seq: u64) -> (ChunkRef, Chunk) {
    let key = ChunkKey { lane: LANE, first_seq };
    let chunk = Chunk { key, count: 10, salt: 1, checkpointed_at: 1, frames: Arc::from(Vec::new()) };
    (ChunkRef { origin: OWN, key }, chunk)
}

fn ack(outbox: &Outbox, chunk: ChunkRef) {
    assert!(outbox.ack(Ack { chunk, delivered: 10, dead_lettered: Vec::new(), keep: None }));
}

#[test]
fn a_row_that_was_acked_and_committed_during_a_read_is_not_handed_out_again() {
    let outbox = Outbox::default();
    let ((a, chunk_a), (b, chunk_b)) = (row(1), row(11));
    let idle = |_: ChunkRef| false;
    let both = || vec![chunk_a.clone(), chunk_b.clone()];
    assert_eq!(outbox.hand_out(OWN, (None, 0), Some(b.key), both(), &idle).unwrap().len(), 2);
    // A failed and is given back; B was delivered.
    outbox.give_back(a);
    ack(&outbox, b);
    // The delivery reads again: it has looked at the store, where both still are ...
    let after = outbox.resume(OWN, &idle);
    let snapshot = both();
    // ... when the committer's transaction comes to its end.
    let batch = outbox.take(OWN, &Ledger::default());
    outbox.committed(batch);
    let handed = outbox.hand_out(OWN, after, Some(b.key), snapshot, &idle).unwrap_or_default();
    assert!(handed.iter().all(|(chunk, _)| *chunk != b), "B was delivered, is gone from the store, and is sent again");
}

#[test]
fn a_row_that_was_given_back_is_found_after_a_reopen_during_a_read() {
    let outbox = Outbox::default();
    let ((a, chunk_a), (b, chunk_b), (c, chunk_c)) = (row(1), row(11), row(21));
    let idle = |_: ChunkRef| false;
    outbox.hand_out(OWN, (None, 0), Some(b.key), vec![chunk_a, chunk_b], &idle);
    // A is avoided for now.
    outbox.give_back(a);
    let busy = |chunk: ChunkRef| chunk == a;
    let after = outbox.resume(OWN, &busy);
    assert_eq!(after.0, Some(b.key));
    // The committer reopens the store meanwhile.
    outbox.forget(OWN);
    outbox.hand_out(OWN, after, Some(c.key), vec![chunk_c], &busy);
    // A may be sent again: where does the reading go on?
    assert!(outbox.resume(OWN, &idle).0.is_none_or(|after| after < a.key), "A is never read again in this life");
}

#[test]
fn what_is_read_while_it_is_evicted_is_neither_counted_twice_nor_left_behind() {
    let mut bench = bench(|options| options.flush_at = 1);
    for _ in 0..4 {
        for n in 0..30 {
            assert!(bench.pipeline.append(&[7; 100], if n % 10 == 5 { 2 } else { 0 }).is_ok());
        }
        bench.advance(Duration::from_secs(6));
    }
    assert_eq!(bench.ledger().queued_events, 120);
    let rows = RefCell::new(Vec::new());
    // As `Committer::evict` asks; the delivery thread reads just after the answer, and before the transaction.
    let busy = |key| {
        let busy = bench.pipeline.outbox.is_out_or_stays(ChunkRef { origin: OWN, key });
        if rows.borrow().is_empty() {
            rows.replace(bench.read());
        }
        busy
    };
    bench
        .pipeline
        .shard
        .evict(EvictUntil::Fits { bytes: u64::MAX, events: 100 }, &mut Passed::default(), &busy, 1)
        .unwrap();
    bench.pipeline.outbox.evicted();
    let rows = rows.into_inner();
    bench.deliver(rows);
    for _ in 0..20 {
        bench.advance(Duration::from_secs(6));
        bench.deliver(bench.read());
    }
    bench.advance(Duration::from_secs(6));
    let ledger = bench.ledger();
    assert_eq!(
        (ledger.delivered, ledger.queued_events),
        (120 - ledger.evicted, 0),
        "rows that nobody reads in this life"
    );
}

/// What somebody sees who asks for statistics all the time.
#[derive(Default)]
struct Watch {
    delivered: u64,
    dead_lettered: u64,
    accepted: u64,
    looks: u64,
}

impl Watch {
    fn look(&mut self, pipeline: &Pipeline) {
        // What `snapshot` says, without its looks at the disk: they take so long that hardly any falls into a commit.
        let (ledger, accepted) = pipeline.account();
        assert_eq!(ledger.imbalance(), 0, "{ledger:?}");
        assert!(accepted >= ledger.accepted, "{accepted} accepted, {ledger:?}");
        let (before, now) =
            ((self.accepted, self.delivered, self.dead_lettered), (accepted, ledger.delivered, ledger.dead_lettered));
        assert!(now.0 >= before.0 && now.1 >= before.1 && now.2 >= before.2, "{before:?}, and then {now:?}");
        (self.accepted, self.delivered, self.dead_lettered) = now;
        self.looks += 1;
    }
}

#[test]
fn statistics_balance_and_never_go_back_whenever_one_looks() {
    let mut bench = bench(|options| options.flush_at = 1);
    let (pipeline, done) = (Arc::clone(&bench.pipeline), Arc::new(AtomicBool::new(false)));
    let is_done = Arc::clone(&done);
    let looking = std::thread::spawn(move || {
        let mut watch = Watch::default();
        while !is_done.load(Ordering::SeqCst) {
            watch.look(&pipeline);
        }
        watch
    });
    let mut own = Watch::default();
    // Queued all the time: of an empty queue nothing could be counted as acked twice.
    bench.append(10);
    bench.advance(Duration::from_secs(6));
    let backlog = bench.read();
    for _ in 0..100 {
        bench.append(10);
        bench.advance(Duration::from_secs(6));
        bench.deliver(bench.read());
        own.look(&bench.pipeline);
        bench.advance(Duration::from_secs(6));
        own.look(&bench.pipeline);
    }
    bench.deliver(backlog);
    own.look(&bench.pipeline);
    done.store(true, Ordering::SeqCst);
    let watch = looking.join().unwrap();
    assert!(watch.looks > 200, "{}", watch.looks);
    assert_eq!((own.accepted, own.delivered), (1_010, 1_010));
}

#[test]
fn what_is_being_committed_counts_once_before_the_commit_and_after_it() {
    let outbox = Outbox::default();
    let ((a, chunk_a), (b, chunk_b)) = (row(1), row(11));
    outbox.hand_out(OWN, (None, 0), Some(b.key), vec![chunk_a, chunk_b], &|_| false);
    let before = Ledger { accepted: 20, queued_events: 20, ..Ledger::default() };
    let after = Ledger { delivered: 10, queued_events: 10, ..before };
    let seen = |committed: Ledger| {
        let ledger = outbox.ledger(OWN, || committed);
        assert_eq!(ledger.imbalance(), 0);
        (ledger.delivered, ledger.queued_events)
    };
    ack(&outbox, a);
    assert_eq!(seen(before), (10, 10));
    let batch = outbox.take(OWN, &before);
    assert_eq!((seen(before), seen(after)), ((10, 10), (10, 10)), "on one side of the commit and on the other");
    ack(&outbox, b);
    assert_eq!((seen(before), seen(after)), ((20, 0), (20, 0)));
    outbox.committed(batch);
    assert_eq!(seen(after), (20, 0));
    let batch = outbox.take(OWN, &after);
    outbox.put_back(batch);
    assert_eq!(seen(after), (20, 0), "the transaction failed");
}
