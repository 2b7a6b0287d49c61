//! Health in failures of the disk and the directory. Those of the network are in `src/testing/health_tests.rs`, and the
//! rules by themselves, with the list of all failures, in `src/report/health_tests.rs`.

use std::sync::mpsc;

use super::slow::Slow;
use super::*;
use crate::queue::claim;
use crate::report::{Health, HealthCause, HealthStatus, QueueMedium};

const BROKEN: u32 = 5;

fn with(fault: &Arc<Fault>) -> Fixture {
    fixture(|options| options.disk = Disk::gated(Arc::clone(fault) as Arc<dyn Gate>))
}

impl Fixture {
    fn health(&self) -> Health {
        self.pipeline.stats().health()
    }

    fn must_be(&self, status: HealthStatus, cause: HealthCause) {
        let health = self.health();
        assert!(health.status == status && health.has(cause), "{cause} is expected: {health}");
        assert!(!health.to_string().ends_with(": "), "{health}");
        assert_eq!(health.is_alive(), self.pipeline.stats().rejecting != Some(DropReason::Storage), "{health}");
    }

    /// Delivers what is queued, and must be ready after that.
    fn must_recover(&mut self) {
        for _ in 0..3 {
            self.advance(HOUR);
            let rows = self.lease();
            self.deliver(rows);
        }
        self.advance(HOUR);
        assert_eq!(self.health().status, HealthStatus::Ready, "{}", self.health());
    }
}

#[test]
fn health_sees_a_disk_that_fails_until_it_works_again() {
    for (op, path) in [(Op::Write, "queue.redb"), (Op::Sync, "shard-0")] {
        let fault = Fault::of(op, path);
        let mut fixture = with(&fault);
        assert_eq!(fixture.health().status, HealthStatus::Ready);
        fault.arm(BROKEN);
        fixture.append(30);
        fixture.settle_down();
        fixture.must_be(HealthStatus::Degraded, HealthCause::StorageFailing);
        fault.arm(0);
        fixture.must_recover();
    }
}

#[test]
fn health_sees_a_journal_that_is_full_while_storage_fails() {
    let fault = Fault::of(Op::Write, "queue.redb");
    let mut fixture = with(&fault);
    fault.arm(BROKEN);
    while fixture.pipeline.append(&[7; 1000], 0) != Err(DropReason::JournalFull) {
        fixture.turn();
    }
    fixture.must_be(HealthStatus::Failing, HealthCause::Rejecting);
    assert_eq!(fixture.pipeline.stats().rejecting, Some(DropReason::JournalFull));
    fault.arm(0);
    fixture.must_recover();
}

#[test]
fn health_sees_a_full_disk_and_a_full_queue() {
    let fixture_below_floor = fixture(|options| options.limits.min_free_space = u64::MAX);
    fixture_below_floor.must_be(HealthStatus::Failing, HealthCause::Rejecting);
    assert_eq!(fixture_below_floor.pipeline.stats().rejecting, Some(DropReason::DiskFull));
    let mut fixture = fixture(|options| options.limits.queue_events = 30);
    fixture.append(24);
    fixture.settle_down();
    fixture.must_be(HealthStatus::Degraded, HealthCause::AlmostFull);
    assert_eq!(fixture.health().fill_percent, 80);
    fixture.append(6);
    fixture.settle_down();
    fixture.must_be(HealthStatus::Failing, HealthCause::Rejecting);
    fixture.must_recover();
}

#[test]
fn health_sees_a_queue_that_is_nearly_full_of_bytes() {
    let mut fixture = fixture(|options| options.limits.queue_bytes = 2 * 1024 * 1024);
    let mut events = 0;
    while fixture.pipeline.append(&[7; 4000], 0).is_ok() {
        events += 1;
        fixture.turn();
    }
    fixture.advance(Duration::from_secs(2));
    let stats = fixture.pipeline.stats();
    assert!(events > 200 && stats.used_bytes <= stats.max_bytes, "{stats:?}");
    assert!(stats.fill() > 0.97 && stats.queued_bytes < stats.used_bytes, "{} {stats:?}", stats.fill());
    // A smaller event would still be accepted.
    fixture.must_be(HealthStatus::Degraded, HealthCause::AlmostFull);
    assert_eq!(stats.rejecting, None);
}

#[test]
fn health_sees_a_directory_that_is_deleted_moved_or_taken() {
    let mut deleted = fixture(|_| ());
    deleted.append(1);
    deleted.settle_down();
    std::fs::remove_dir_all(deleted.root.path().join("queue")).unwrap();
    deleted.append(1);
    deleted.advance(Duration::from_secs(1));
    deleted.must_be(HealthStatus::Degraded, HealthCause::InMemory);
    assert_eq!(deleted.pipeline.stats().medium, Some(QueueMedium::DeletedFiles));

    let mut moved = fixture(|_| ());
    let (there, away) = (moved.root.path().join("queue"), moved.root.path().join("away"));
    std::fs::rename(&there, &away).unwrap();
    moved.append(1);
    moved.advance(Duration::from_secs(1));
    moved.must_be(HealthStatus::Degraded, HealthCause::StorageFailing);
    std::fs::rename(&away, &there).unwrap();
    moved.must_recover();

    let mut taken = fixture(|_| ());
    std::fs::remove_file(taken.pipeline.shard.dir().join("lock")).unwrap();
    let project_dir = taken.pipeline.shard.dir().parent().unwrap().to_path_buf();
    let _other = claim(&Disk::default(), &project_dir, &[]).unwrap();
    taken.append(1);
    taken.advance(Duration::from_secs(1));
    taken.must_be(HealthStatus::Failing, HealthCause::Rejecting);
    assert_eq!(taken.pipeline.stats().rejecting, Some(DropReason::Storage));
    assert!(!taken.health().is_alive(), "a restart opens another queue");
}

#[test]
fn health_sees_a_late_event_while_a_commit_about_it_hangs() {
    let slow = Slow::at(Op::Sync, "queue.redb");
    slow.hold(false);
    let mut fixture = fixture(|options| options.disk = slow.disk());
    fixture.append(30);
    fixture.settle_down();
    fixture.advance(HOUR);
    fixture.append(30);
    fixture.settle_down();
    let whole = fixture.lease().swap_remove(0);
    let keep = whole.chunk.retain(|seq| seq > 20);
    fixture.pipeline.ack(Ack { row: whole.row(), delivered: 20, dead: Vec::new(), keep });
    fixture.must_be(HealthStatus::Degraded, HealthCause::Late);
    slow.hold(true);
    let pipeline = Arc::clone(&fixture.pipeline);
    std::thread::scope(|scope| {
        scope.spawn(|| fixture.advance(Duration::from_secs(2)));
        until("the commit hangs", || slow.is_waited_for());
        let oldest_age = pipeline.stats().oldest_age;
        slow.hold(false);
        assert!(oldest_age >= Some(HOUR), "ten events of the first row are queued still: {oldest_age:?}");
    });
}

#[test]
fn health_answers_while_a_commit_hangs_on_the_disk() {
    let slow = Slow::at(Op::Sync, "queue.redb");
    slow.hold(false);
    let mut fixture = fixture(|options| options.disk = slow.disk());
    fixture.append(30);
    fixture.settle_down();
    slow.hold(true);
    fixture.append(30);
    let pipeline = Arc::clone(&fixture.pipeline);
    std::thread::scope(|scope| {
        scope.spawn(|| fixture.advance(Duration::from_secs(2)));
        until("the commit hangs", || slow.is_waited_for());
        let (answer, answered) = mpsc::channel();
        scope.spawn(move || answer.send(Box::new(pipeline.stats())));
        // Less than the gate holds a call.
        let stats = answered.recv_timeout(Duration::from_secs(50));
        slow.hold(false);
        assert_eq!(stats.map(|stats| stats.queued_events), Ok(60));
    });
}
