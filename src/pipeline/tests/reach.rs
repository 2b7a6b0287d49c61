//! A directory that is out of reach for a while, and one that another process has taken.

use super::*;
use crate::pipeline::shared::storage_failing;
use crate::queue::claim;

fn away(bench: &Bench) -> std::path::PathBuf {
    bench.root.path().join("away")
}

fn queue(bench: &Bench) -> std::path::PathBuf {
    bench.root.path().join("queue")
}

fn reported(problem: &str) -> String {
    let Diagnostic::StorageFailing { problem } = storage_failing(problem) else { unreachable!() };
    problem
}

fn storage_reports(bench: &Bench) -> Vec<Option<String>> {
    let mut diagnostics = bench.diagnostics.lock().unwrap();
    diagnostics
        .drain(..)
        .filter_map(|diagnostic| match diagnostic {
            Diagnostic::StorageFailing { problem } => Some(Some(problem)),
            Diagnostic::StorageRecovered => Some(None),
            _ => None,
        })
        .collect()
}

#[test]
fn a_moved_directory_is_reported_once_and_nothing_stops() {
    let mut bench = bench(|_| ());
    bench.append(30);
    bench.settle_down();
    std::fs::rename(queue(&bench), away(&bench)).unwrap();
    let mut accepted = 30;
    for _ in 0..200 {
        bench.append(10);
        accepted += 10;
        bench.advance(Duration::from_secs(1));
        let rows = bench.lease();
        bench.deliver(rows);
    }
    let receipt = bench.pipeline.persisted(accepted);
    bench.settle_down();
    assert_eq!(receipt.try_get(), Some(Ok(())), "it is on the disk, in the file that is open");
    let problem = bench.pipeline.current_problem().unwrap_or_default();
    assert!(problem.contains("out of reach") && problem.contains("put the directory back"), "{problem}");
    let why = bench.pipeline.circumstances().explain(crate::report::DropReason::JournalFull);
    assert!(why.contains("out of reach"), "a larger journal would not help: {why}");
    assert_eq!(storage_reports(&bench), [Some(reported(&problem))], "once, whatever else is met");
    assert_eq!(bench.pipeline.stats().rejecting, None);
    std::fs::rename(away(&bench), queue(&bench)).unwrap();
    // It is looked for although nothing is captured.
    bench.advance(Duration::from_secs(31));
    assert_eq!((bench.pipeline.current_problem(), storage_reports(&bench)), (None, vec![None]));
    bench.advance(HOUR);
    let rows = bench.lease();
    bench.deliver(rows);
    bench.advance(HOUR);
    assert_eq!((bench.ledger().delivered, bench.ledger().queued_events), (accepted, 0));
    assert_eq!(bench.committer.wake_at(), None, "and then no more");
}

#[test]
fn a_move_of_three_tenths_of_a_second_leaves_no_trace() {
    let mut bench = bench(|_| ());
    bench.append(1);
    bench.settle_down();
    std::fs::rename(queue(&bench), away(&bench)).unwrap();
    bench.append(1);
    bench.advance(Duration::from_millis(300));
    std::fs::rename(away(&bench), queue(&bench)).unwrap();
    bench.advance(Duration::from_secs(2));
    bench.append(1);
    let receipt = bench.pipeline.persisted(3);
    bench.settle_down();
    assert_eq!(receipt.try_get(), Some(Ok(())));
    assert!(bench.pipeline.current_problem().is_none());
    bench.advance(HOUR);
    assert_eq!(bench.ledger().queued_events, 3);
}

#[test]
fn a_directory_taken_by_another_process_is_given_up() {
    let mut bench = bench(|_| ());
    bench.append(1);
    bench.settle_down();
    std::fs::remove_file(bench.pipeline.shard.dir().join("lock")).unwrap();
    let project_dir = bench.pipeline.shard.dir().parent().unwrap().to_path_buf();
    let other = claim(&Disk::default(), &project_dir, &[]).unwrap();
    assert_eq!(other.dir(), bench.pipeline.shard.dir());
    bench.append(1);
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.pipeline.append(&[7; 100], 0), Err(DropReason::Storage), "not that the client is closed");
    let problem = bench.pipeline.current_problem().unwrap_or_default();
    assert!(problem.contains("another process"), "{problem}");
    drop(other);
    for _ in 0..100 {
        bench.advance(Duration::from_secs(10));
    }
    assert_eq!(bench.pipeline.current_problem().as_ref(), Some(&problem), "for good");
    assert_eq!(storage_reports(&bench), [Some(reported(&problem))]);
    assert!(bench.lease().is_empty());
}
