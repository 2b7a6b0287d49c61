//! Rows that are acked piece by piece: what is kept of one stays with the delivery under its new name.

use super::super::source::OWN;
use super::*;

/// Acks a row that has the records from 1 on, and keeps these. Returns what is kept.
fn ack(fixture: &Fixture, lease: &Lease, delivered: u64, keep: &[u64]) -> Lease {
    let kept = lease.chunk.retain(|seq| keep.contains(&seq));
    fixture.pipeline.ack(Ack { row: lease.row(), delivered, dead: Vec::new(), keep: kept.clone() });
    kept.map_or_else(|| lease.clone(), |chunk| Lease { chunk, ..*lease })
}

/// A pipeline with one row of 30 records, which is leased.
fn checkpointed(edit: impl FnOnce(&mut PipelineOptions)) -> (Fixture, Lease) {
    let mut fixture = fixture(edit);
    fixture.append(30);
    fixture.settle_down();
    let row = fixture.lease().remove(0);
    (fixture, row)
}

#[test]
fn a_kept_piece_is_not_read_or_evicted_before_its_release() {
    for keep in [[1, 5], [2, 5]] {
        let (mut fixture, row) = checkpointed(|options| {
            options.limits.queue_events = 40;
            options.limits.overflow = OverflowPolicy::DropOldest;
        });
        let rest = ack(&fixture, &row, 28, &keep);
        fixture.advance(Duration::from_secs(1));
        assert_eq!((fixture.ledger().delivered, fixture.ledger().queued_events), (28, 2));
        let read = fixture.pipeline.lease(usize::MAX, &|_| true).unwrap();
        assert!(read.is_empty());
        fixture.append(60);
        fixture.advance(Duration::from_secs(6));
        let ledger = fixture.ledger();
        assert_eq!((ledger.evicted, ledger.queued_events), (22, 40), "the oldest are with the delivery and stay");
        fixture.pipeline.release(rest.row());
        let again = fixture.lease();
        assert_eq!((again[0].row(), again[0].chunk.count), (rest.row(), 2));
    }
}

#[test]
fn a_piece_released_before_its_commit_is_read_after_it() {
    for keep in [[1, 5], [2, 5]] {
        let (mut fixture, row) = checkpointed(|_| ());
        let rest = ack(&fixture, &row, 28, &keep);
        fixture.pipeline.release(rest.row());
        assert!(fixture.lease().is_empty());
        fixture.advance(Duration::from_secs(1));
        assert_eq!(fixture.lease().iter().map(Lease::row).collect::<Vec<_>>(), [rest.row()]);
    }
}

#[test]
fn the_newest_row_is_leased_before_older_ones_and_only_once() {
    let mut fixture = fixture(|options| options.intervals.flush_at = 10);
    for _ in 0..3 {
        fixture.append(10);
        fixture.advance(Duration::from_secs(2));
    }
    let seqs = |leases: &[Lease]| leases.iter().map(|lease| lease.row().key.first_seq).collect::<Vec<_>>();
    let newest = fixture.pipeline.lease_newest(&|_| true).unwrap().unwrap();
    assert_eq!((newest.row().key.first_seq, newest.chunk.count), (21, 10));
    assert!(fixture.pipeline.lease_newest(&|_| true).unwrap().is_none(), "it is leased");
    let older = fixture.lease();
    assert_eq!(seqs(&older), [1, 11]);
    fixture.pipeline.release(newest.row());
    assert!(fixture.pipeline.lease_newest(&|_| false).unwrap().is_none());
    assert_eq!(seqs(&fixture.lease()), [21]);
    fixture.pipeline.release(newest.row());
    let again = fixture.pipeline.lease_newest(&|_| true).unwrap().unwrap();
    fixture.deliver([older, vec![again]].concat());
    fixture.advance(Duration::from_secs(2));
    assert_eq!((fixture.ledger().delivered, fixture.lease().len()), (30, 0));
}

#[test]
fn delivery_is_woken_for_a_row_that_a_commit_makes_free() {
    for keep in [[1, 5], [2, 5]] {
        let (mut fixture, row) = checkpointed(|_| ());
        let wakes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&wakes);
        fixture.pipeline.leases.wake_with(Box::new(move || _ = counted.fetch_add(1, Ordering::SeqCst)));
        let rest = ack(&fixture, &row, 28, &keep);
        fixture.pipeline.release(rest.row());
        assert!(fixture.lease().is_empty(), "it is not in the store yet, and delivery does not look again by itself");
        assert_eq!(wakes.load(Ordering::SeqCst), 0);
        fixture.advance(Duration::from_secs(1));
        assert!(wakes.load(Ordering::SeqCst) > 0);
    }
}

#[test]
fn pieces_add_up_however_commits_fall_between_them() {
    for keep in [[1, 5], [2, 5]] {
        for commits in 0..4 {
            let fault = Fault::of(Op::Write, "queue.redb");
            let (mut fixture, row) =
                checkpointed(|options| options.disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>));
            let rest = ack(&fixture, &row, 28, &keep);
            if commits & 1 == 1 {
                fixture.advance(Duration::from_secs(1));
            }
            let last = ack(&fixture, &rest, 1, &[5]);
            if commits & 2 == 2 {
                fixture.advance(Duration::from_secs(1));
            }
            ack(&fixture, &last, 1, &[]);
            assert!(fixture.lease().is_empty());
            // A commit that fails first changes nothing about that.
            fault.arm(5);
            fixture.advance(Duration::from_secs(1));
            fault.arm(0);
            fixture.advance(HOUR);
            assert_eq!((fixture.ledger().delivered, fixture.ledger().queued_events), (30, 0), "{keep:?} {commits}");
            assert!(fixture.lease().is_empty());
        }
    }
}

#[test]
fn a_piece_acked_during_another_commit_is_not_read_again() {
    let (fixture, row) = checkpointed(|_| ());
    let rest = ack(&fixture, &row, 29, &[1]);
    assert_eq!(rest.row(), row.row(), "what is kept has the name of the whole");
    let leases = &fixture.pipeline.leases;
    let under_way = leases.take_acks(OWN, &fixture.ledger());
    ack(&fixture, &rest, 1, &[]);
    leases.lock().committed(under_way);
    assert!(fixture.lease().is_empty());
}

#[test]
fn pieces_are_acked_in_order_after_a_failed_commit_too() {
    for keep in [1, 2] {
        let (mut fixture, row) = checkpointed(|_| ());
        let rest = ack(&fixture, &row, 29, &[keep]);
        let under_way = fixture.pipeline.leases.take_acks(OWN, &fixture.ledger());
        ack(&fixture, &rest, 1, &[]);
        fixture.pipeline.leases.put_back(under_way);
        fixture.advance(HOUR);
        assert_eq!((fixture.ledger().delivered, fixture.ledger().queued_events), (30, 0));
        assert!(fixture.lease().is_empty());
    }
}
