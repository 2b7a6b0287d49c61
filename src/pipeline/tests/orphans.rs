//! Queues that another process left behind.

use super::*;
use crate::queue::frame;
use crate::queue::{claim, shard_dir};

/// Simulates other processes: each takes the next shard, leaves this many events in it and dies.
pub(super) fn leave_behind(fixture: &Fixture, counts: &[usize]) {
    let options = &fixture.pipeline.options;
    let live = |count: &usize| {
        let claim =
            claim(&Disk::default(), &options.queue.queue_dir.join(options.queue.project.dir_name()), &[]).unwrap();
        let shard = Queue::open(&Disk::default(), &options.queue, claim, 0).unwrap().queue;
        (0..*count).for_each(|_| assert!(shard.append(&[9; 50], frame::hash_body(&[9; 50]), 0).is_ok()));
        shard
    };
    let shards: Vec<_> = counts.iter().map(live).collect();
    // They die before anything is checkpointed.
    shards.iter().for_each(Queue::close);
}

/// Delivery finds its own queue empty, and the committer looks for an orphan.
pub(super) fn look_for_orphans(fixture: &mut Fixture) {
    assert!(fixture.lease().is_empty());
    fixture.settle_down();
}

#[test]
fn an_orphan_is_delivered_in_place_and_let_go() {
    let mut fixture = fixture(|_| ());
    leave_behind(&fixture, &[12, 5]);
    let mut delivered = Vec::new();
    look_for_orphans(&mut fixture);
    // When the first is drained, the committer looks for the next without being asked.
    for _ in 0..2 {
        let rows = fixture.lease();
        delivered.extend(rows.iter().map(|lease| lease.chunk.count));
        fixture.deliver(rows);
        fixture.advance(Duration::from_secs(1));
    }
    assert_eq!(delivered, [12, 5]);
    look_for_orphans(&mut fixture);
    assert!(fixture.pipeline.adopted_shard().is_none());
    assert_eq!(fixture.ledger().accepted, 0, "nothing was copied");
    let options = &fixture.pipeline.options;
    let other = fixture_in(Arc::clone(&fixture.root), |_| ());
    assert_eq!(
        other.pipeline.shard.dir(),
        &shard_dir(&options.queue.queue_dir.join(options.queue.project.dir_name()), 1)
    );
    assert_eq!((other.ledger().delivered, other.ledger().queued_events), (12, 0));
}

#[test]
fn an_adoption_is_reported_with_its_queue_and_events() {
    let mut fixture = fixture(|_| ());
    leave_behind(&fixture, &[12, 0]);
    look_for_orphans(&mut fixture);
    let dir = fixture.pipeline.adopted_shard().unwrap().1.dir().clone();
    assert!(fixture.reports(|report| *report == Diagnostic::QueueAdopted { path: dir.clone(), events: 12 }));
    fixture.deliver(fixture.lease());
    fixture.advance(Duration::from_secs(1));
    look_for_orphans(&mut fixture);
    let is_adopted = |report: &Diagnostic| matches!(report, Diagnostic::QueueAdopted { .. });
    assert!(!fixture.reports(is_adopted), "an empty queue is not delivered");
}

/// The names of all files in a directory, sorted.
fn names(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_delivered_orphan_frees_its_disk_space() {
    let mut fixture = fixture(|_| ());
    leave_behind(&fixture, &[12]);
    look_for_orphans(&mut fixture);
    let dir = fixture.pipeline.adopted_shard().unwrap().1.dir().clone();
    assert!(names(&dir).iter().any(|name| name == "journal-0"));
    fixture.deliver(fixture.lease());
    fixture.advance(Duration::from_secs(1));
    assert_eq!(names(&dir), ["lock", "queue.redb", "status"]);
    for _ in 0..3 {
        fixture.advance(2 * HOUR);
        look_for_orphans(&mut fixture);
    }
    assert_eq!(names(&dir), ["lock", "queue.redb", "status"], "the shard is not opened again");
    assert!(!fixture.reports(|diagnostic| is_skipped(diagnostic) || is_problem(diagnostic)));
}

#[test]
fn a_shard_left_empty_for_an_hour_frees_its_disk_space() {
    let mut fixture = fixture(|_| ());
    let mut other = fixture_in(Arc::clone(&fixture.root), |_| ());
    let dir = other.pipeline.shard.dir().clone();
    other.append(12);
    other.advance(Duration::from_secs(6));
    other.deliver(other.lease());
    other.advance(Duration::from_secs(1));
    other.pipeline.shard.close();
    look_for_orphans(&mut fixture);
    assert!(names(&dir).iter().any(|name| name == "journal-0"), "the next start finds it ready");
    fixture.advance(HOUR + Duration::from_secs(60));
    look_for_orphans(&mut fixture);
    assert_eq!(names(&dir), ["lock", "queue.redb", "status"]);
}

#[test]
fn a_living_process_is_no_orphan() {
    let mut fixture = fixture(|_| ());
    let mut other = fixture_in(Arc::clone(&fixture.root), |_| ());
    other.append(30);
    other.settle_down();
    look_for_orphans(&mut fixture);
    assert!(fixture.pipeline.adopted_shard().is_none() && fixture.lease().is_empty());
}

#[test]
fn an_orphan_whose_disk_fails_is_released_unchanged() {
    let fault = Fault::of(Op::Write, "shard-1/queue.redb");
    let mut fixture = fixture(|options| options.disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>));
    leave_behind(&fixture, &[12]);
    look_for_orphans(&mut fixture);
    let rows = fixture.lease();
    let late = rows.clone();
    fault.arm(5);
    fixture.deliver(rows);
    fixture.advance(Duration::from_secs(1));
    assert!(fixture.reports(|diagnostic| matches!(diagnostic, Diagnostic::QueueSkipped { .. })));
    assert!(fixture.pipeline.adopted_shard().is_none());
    // A late result for a queue that is released.
    fixture.deliver(late);
    fixture.append(30);
    fixture.advance(Duration::from_secs(10));
    assert_eq!(fixture.ledger().queued_events, 30);
    assert_eq!(fixture.committer.wake_at(), None, "nothing is left to be done");
    fault.arm(0);
    fixture.deliver(fixture.lease());
    fixture.advance(Duration::from_secs(1));
    look_for_orphans(&mut fixture);
    assert!(fixture.lease().is_empty(), "it is not adopted again soon after it failed");
    fixture.advance(Duration::from_secs(300));
    look_for_orphans(&mut fixture);
    let again: u32 = fixture.lease().iter().map(|lease| lease.chunk.count).sum();
    assert_eq!(again, 12, "it is found again, with everything in it");
}

fn is_skipped(diagnostic: &Diagnostic) -> bool {
    matches!(diagnostic, Diagnostic::QueueSkipped { .. })
}

#[test]
fn an_orphan_that_cannot_be_opened_hides_no_other() {
    let fault = Fault::of(Op::Create, "shard-1/lock");
    let mut fixture = fixture(|options| options.disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>));
    leave_behind(&fixture, &[12, 5]);
    fault.arm(13);
    look_for_orphans(&mut fixture);
    assert!(fixture.reports(|diagnostic| {
        let Diagnostic::QueueSkipped { path, why } = diagnostic else { return false };
        path.ends_with("shard-1") && why.contains("lock") && why.contains("Permission denied")
    }));
    let rows = fixture.lease();
    assert_eq!(rows.iter().map(|lease| lease.chunk.count).collect::<Vec<_>>(), [5]);
    fixture.deliver(rows);
    for _ in 0..3 {
        fixture.advance(Duration::from_secs(301));
        look_for_orphans(&mut fixture);
    }
    assert!(!fixture.reports(is_skipped), "the same is not reported again");
    fault.arm(0);
    fixture.advance(Duration::from_secs(301));
    look_for_orphans(&mut fixture);
    assert_eq!(fixture.lease().iter().map(|lease| lease.chunk.count).sum::<u32>(), 12);
}

#[test]
fn a_start_skips_shards_that_it_cannot_lock_or_open() {
    let first = fixture(|_| ());
    leave_behind(&first, &[12, 5, 7]);
    let project_dir = first.pipeline.shard.dir().parent().unwrap().to_path_buf();
    first.pipeline.shard.close();
    // A file in place of a directory, a directory in place of a file, and a lock file that may not be opened.
    std::fs::remove_dir_all(shard_dir(&project_dir, 0)).unwrap();
    std::fs::write(shard_dir(&project_dir, 0), "a file").unwrap();
    std::fs::remove_file(shard_dir(&project_dir, 1).join("status")).unwrap();
    std::fs::create_dir(shard_dir(&project_dir, 1).join("status")).unwrap();
    let fault = Fault::of(Op::Create, "shard-2/lock");
    fault.arm(13);
    let mut next = fixture_in(Arc::clone(&first.root), |options| {
        options.disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>);
    });
    assert_eq!(next.pipeline.shard.dir(), &shard_dir(&project_dir, 3));
    let skipped: Vec<_> = next.diagnostics.lock().unwrap().drain(..).filter(is_skipped).collect();
    assert_eq!(skipped.len(), 3, "{skipped:?}");
    assert_eq!(next.ledger().queued_events, 7, "its events are now in this queue");
    next.deliver(next.lease());
    next.advance(Duration::from_secs(1));
    look_for_orphans(&mut next);
    assert!(!next.reports(is_skipped), "they were reported at the start");
}

#[test]
fn a_failing_disk_fails_the_start_and_gets_no_new_shards() {
    let first = fixture(|_| ());
    let project_dir = first.pipeline.shard.dir().parent().unwrap().to_path_buf();
    first.pipeline.shard.close();
    let mut options = first.pipeline.options.clone();
    options.disk = Disk::gated(crate::sys::disk::fail_when(|call, _| {
        call.path.ends_with("status").then(|| Verdict::Fail(std::io::Error::from_raw_os_error(5)))
    }));
    for _ in 0..40 {
        assert!(start::open(options.clone(), first.pipeline.network.clone(), Arc::default(), Arc::default()).is_err());
    }
    assert!(std::fs::read_dir(&project_dir).unwrap().count() < 20);
}

#[test]
fn orphaned_queues_are_reported_by_name_and_many_by_their_sum() {
    for (count, named, others) in [(3, 3, None), (20, 16, Some((4, 8)))] {
        let root = Arc::new(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap());
        for number in 0..count {
            let project = Project { host: "https://eu.example".into(), api_key: format!("phc_old_{number}") };
            let mut old = fixture_in(Arc::clone(&root), |options| options.queue.project = project);
            old.append(2);
            old.settle_down();
            old.pipeline.shard.close();
        }
        let fixture = fixture_in(Arc::clone(&root), |_| ());
        let diagnostics = fixture.diagnostics.lock().unwrap();
        let names: std::collections::BTreeSet<_> = diagnostics
            .iter()
            .filter_map(
                |diagnostic| if let Diagnostic::OrphanedQueue { path, .. } = diagnostic { Some(path) } else { None },
            )
            .collect();
        let rest = diagnostics.iter().find_map(|diagnostic| match diagnostic {
            Diagnostic::OrphanedQueues { queues, events, .. } => Some((*queues, *events)),
            _ => None,
        });
        assert_eq!((names.len(), rest), (named, others));
    }
}
