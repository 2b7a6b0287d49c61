//! Rows that are acked piece by piece: what is kept of one stays with the delivery under its new name.

use super::super::source::OWN;
use super::*;

/// Of a row with the records from 1 on, these are kept.
fn ack(bench: &Bench, chunk: ChunkRef, delivered: u64, keep: &[u64]) -> ChunkRef {
    let keep = Some(keep.to_vec()).filter(|kept| !kept.is_empty());
    let first_seq = keep.as_ref().map_or(0, |kept| kept[0]);
    bench.pipeline.ack(Ack { chunk, delivered, dead_lettered: Vec::new(), keep });
    ChunkRef { key: ChunkKey { first_seq, ..chunk.key }, ..chunk }
}

fn checkpointed(edit: impl FnOnce(&mut WorkerOptions)) -> (Bench, ChunkRef) {
    let mut bench = bench(edit);
    bench.append(30);
    bench.ack_down();
    let row = bench.read().remove(0).0;
    (bench, row)
}

#[test]
fn what_is_kept_is_neither_read_nor_evicted_until_it_is_given_back() {
    for keep in [[1, 5], [2, 5]] {
        let (mut bench, row) = checkpointed(|options| {
            options.limits.queue_events = 40;
            options.limits.overflow = OverflowPolicy::DropOldest;
        });
        let rest = ack(&bench, row, 28, &keep);
        bench.advance(Duration::from_secs(1));
        assert_eq!((bench.ledger().delivered, bench.ledger().queued_events), (28, 2));
        let read = bench.pipeline.read(usize::MAX, &|chunk| chunk == rest).unwrap();
        assert!(read.is_empty());
        bench.append(60);
        bench.advance(Duration::from_secs(6));
        let ledger = bench.ledger();
        assert_eq!((ledger.evicted, ledger.queued_events), (22, 40), "the oldest are with the delivery and stay");
        bench.pipeline.give_back(rest);
        let again = bench.read();
        assert_eq!((again[0].0, again[0].1.count), (rest, 2));
    }
}

#[test]
fn what_is_given_back_before_its_row_is_written_is_read_once_it_is() {
    for keep in [[1, 5], [2, 5]] {
        let (mut bench, row) = checkpointed(|_| ());
        let rest = ack(&bench, row, 28, &keep);
        bench.pipeline.give_back(rest);
        assert!(bench.read().is_empty());
        bench.advance(Duration::from_secs(1));
        assert_eq!(bench.read().iter().map(|(chunk, _)| *chunk).collect::<Vec<_>>(), [rest]);
    }
}

#[test]
fn pieces_add_up_however_commits_fall_between_them() {
    for keep in [[1, 5], [2, 5]] {
        for commits in 0..4 {
            let fault = Fault::of(Op::Write, "queue.redb");
            let (mut bench, row) =
                checkpointed(|options| options.disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>));
            let rest = ack(&bench, row, 28, &keep);
            if commits & 1 == 1 {
                bench.advance(Duration::from_secs(1));
            }
            let last = ack(&bench, rest, 1, &[5]);
            if commits & 2 == 2 {
                bench.advance(Duration::from_secs(1));
            }
            ack(&bench, last, 1, &[]);
            assert!(bench.read().is_empty());
            // A commit that fails first changes nothing about that.
            fault.arm(5);
            bench.advance(Duration::from_secs(1));
            fault.arm(0);
            bench.advance(HOUR);
            assert_eq!((bench.ledger().delivered, bench.ledger().queued_events), (30, 0), "{keep:?} {commits}");
            assert!(bench.read().is_empty());
        }
    }
}

#[test]
fn a_piece_that_is_acked_during_the_commit_of_the_one_before_is_not_read_again() {
    let (bench, row) = checkpointed(|_| ());
    let rest = ack(&bench, row, 29, &[1]);
    assert_eq!(rest, row, "what is kept has the name of the whole");
    let under_way = bench.pipeline.outbox.take(OWN, &bench.ledger());
    ack(&bench, rest, 1, &[]);
    bench.pipeline.outbox.committed(under_way);
    assert!(bench.read().is_empty());
}

#[test]
fn pieces_are_acked_in_their_order_also_after_a_commit_that_failed() {
    for keep in [1, 2] {
        let (mut bench, row) = checkpointed(|_| ());
        let rest = ack(&bench, row, 29, &[keep]);
        let under_way = bench.pipeline.outbox.take(OWN, &bench.ledger());
        ack(&bench, rest, 1, &[]);
        bench.pipeline.outbox.put_back(under_way);
        bench.advance(HOUR);
        assert_eq!((bench.ledger().delivered, bench.ledger().queued_events), (30, 0));
        assert!(bench.read().is_empty());
    }
}
