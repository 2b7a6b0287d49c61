//! Delivery leases rows while the committer changes them.

use std::cell::Cell;

use super::super::source::OWN;
use super::*;
use crate::queue::{EvictUntil, EvictionCursor};

#[test]
fn rows_read_during_an_eviction_are_counted_once() {
    let mut fixture = fixture(|options| options.intervals.flush_at = 1);
    for _ in 0..4 {
        for n in 0..30 {
            assert!(fixture.pipeline.append(&[7; 100], if n % 10 == 5 { 2 } else { 0 }).is_ok());
        }
        fixture.advance(Duration::from_secs(6));
    }
    assert_eq!(fixture.ledger().queued_events, 120);
    let (attempts, woken) = (Cell::new(0), Arc::new(AtomicU64::new(0)));
    let wakes = Arc::clone(&woken);
    fixture.pipeline.leases.wake_with(Box::new(move || _ = wakes.fetch_add(1, Ordering::SeqCst)));
    // As `Committer::evict` asks; delivery tries to lease rows between the answer and the transaction.
    let rows = fixture.pipeline.leases.lock();
    let is_out = |key| {
        let leased = fixture.pipeline.lease(usize::MAX, &|_| true);
        assert!(matches!(leased, Err(delivery::SourceError::Busy)));
        attempts.set(attempts.get() + 1);
        rows.is_out(ChunkRef { origin: OWN, key })
    };
    fixture
        .pipeline
        .shard
        .evict(EvictUntil::Fits { bytes: u64::MAX, events: 100 }, &mut EvictionCursor::default(), &is_out, 1)
        .unwrap();
    assert!(attempts.get() > 0 && woken.load(Ordering::SeqCst) == 0);
    drop(rows);
    assert_eq!(woken.load(Ordering::SeqCst), 1, "delivery tries again");
    fixture.deliver(fixture.lease());
    for _ in 0..20 {
        fixture.advance(Duration::from_secs(6));
        fixture.deliver(fixture.lease());
    }
    fixture.advance(Duration::from_secs(6));
    let ledger = fixture.ledger();
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
    let mut fixture = fixture(|options| options.intervals.flush_at = 1);
    let (pipeline, done) = (Arc::clone(&fixture.pipeline), Arc::new(AtomicBool::new(false)));
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
    fixture.append(10);
    fixture.advance(Duration::from_secs(6));
    let backlog = fixture.lease();
    for _ in 0..100 {
        fixture.append(10);
        fixture.advance(Duration::from_secs(6));
        fixture.deliver(fixture.lease());
        own.look(&fixture.pipeline);
        fixture.advance(Duration::from_secs(6));
        own.look(&fixture.pipeline);
    }
    fixture.deliver(backlog);
    own.look(&fixture.pipeline);
    done.store(true, Ordering::SeqCst);
    let watch = looking.join().unwrap();
    assert!(watch.looks > 200, "{}", watch.looks);
    assert_eq!((own.accepted, own.delivered), (1_010, 1_010));
}
