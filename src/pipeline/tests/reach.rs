//! A directory that is out of reach for a while, and one that another process has taken.

use super::*;
use crate::pipeline::shared::storage_failing;
use crate::queue::claim;

fn away(fixture: &Fixture) -> std::path::PathBuf {
    fixture.root.path().join("away")
}

fn queue(fixture: &Fixture) -> std::path::PathBuf {
    fixture.root.path().join("queue")
}

fn reported(problem: &str) -> String {
    let Diagnostic::StorageFailing { problem } = storage_failing(problem) else { unreachable!() };
    problem
}

fn storage_reports(fixture: &Fixture) -> Vec<Option<String>> {
    let mut diagnostics = fixture.diagnostics.lock().unwrap();
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
    let mut fixture = fixture(|_| ());
    fixture.append(30);
    fixture.settle_down();
    std::fs::rename(queue(&fixture), away(&fixture)).unwrap();
    let mut accepted = 30;
    for _ in 0..200 {
        fixture.append(10);
        accepted += 10;
        fixture.advance(Duration::from_secs(1));
        let rows = fixture.lease();
        fixture.deliver(rows);
    }
    let receipt = fixture.pipeline.persisted(accepted);
    fixture.settle_down();
    assert_eq!(receipt.try_get(), Some(Ok(())), "it is on the disk, in the file that is open");
    let problem = fixture.pipeline.current_problem().unwrap_or_default();
    assert!(problem.contains("out of reach") && problem.contains("put the directory back"), "{problem}");
    let why = fixture.pipeline.circumstances().explain(crate::report::DropReason::JournalFull);
    assert!(why.contains("out of reach"), "a larger journal would not help: {why}");
    assert_eq!(storage_reports(&fixture), [Some(reported(&problem))], "once, whatever else is met");
    assert_eq!(fixture.pipeline.stats().rejecting, None);
    std::fs::rename(away(&fixture), queue(&fixture)).unwrap();
    // It is looked for although nothing is captured.
    fixture.advance(Duration::from_secs(31));
    assert_eq!((fixture.pipeline.current_problem(), storage_reports(&fixture)), (None, vec![None]));
    fixture.advance(HOUR);
    let rows = fixture.lease();
    fixture.deliver(rows);
    fixture.advance(HOUR);
    assert_eq!((fixture.ledger().delivered, fixture.ledger().queued_events), (accepted, 0));
    assert_eq!(fixture.committer.wake_at(), None, "and then no more");
}

#[test]
fn a_move_of_three_tenths_of_a_second_leaves_no_trace() {
    let mut fixture = fixture(|_| ());
    fixture.append(1);
    fixture.settle_down();
    std::fs::rename(queue(&fixture), away(&fixture)).unwrap();
    fixture.append(1);
    fixture.advance(Duration::from_millis(300));
    std::fs::rename(away(&fixture), queue(&fixture)).unwrap();
    fixture.advance(Duration::from_secs(2));
    fixture.append(1);
    let receipt = fixture.pipeline.persisted(3);
    fixture.settle_down();
    assert_eq!(receipt.try_get(), Some(Ok(())));
    assert!(fixture.pipeline.current_problem().is_none());
    fixture.advance(HOUR);
    assert_eq!(fixture.ledger().queued_events, 3);
}

#[test]
fn a_directory_taken_by_another_process_is_given_up() {
    let mut fixture = fixture(|_| ());
    fixture.append(1);
    fixture.settle_down();
    std::fs::remove_file(fixture.pipeline.shard.dir().join("lock")).unwrap();
    let project_dir = fixture.pipeline.shard.dir().parent().unwrap().to_path_buf();
    let other = claim(&Disk::default(), &project_dir, &[]).unwrap();
    assert_eq!(other.dir(), fixture.pipeline.shard.dir());
    fixture.append(1);
    fixture.advance(Duration::from_secs(1));
    assert_eq!(fixture.pipeline.append(&[7; 100], 0), Err(DropReason::Storage), "not that the client is closed");
    let problem = fixture.pipeline.current_problem().unwrap_or_default();
    assert!(problem.contains("another process"), "{problem}");
    drop(other);
    for _ in 0..100 {
        fixture.advance(Duration::from_secs(10));
    }
    assert_eq!(fixture.pipeline.current_problem().as_ref(), Some(&problem), "for good");
    assert_eq!(storage_reports(&fixture), [Some(reported(&problem))]);
    assert!(fixture.lease().is_empty());
}
