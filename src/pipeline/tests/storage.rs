//! Storage that fails and recovers.

use super::super::source::OWN;
use super::*;

const NO_SPACE: u32 = 28;
const BROKEN: u32 = 5;

fn with(fault: &Arc<Fault>) -> Fixture {
    fixture(|options| options.disk = Disk::gated(Arc::clone(fault) as Arc<dyn Gate>))
}

#[test]
fn a_failing_store_is_retried_while_receipts_are_served() {
    for errno in [NO_SPACE, BROKEN] {
        let fault = Fault::of(Op::Write, "queue.redb");
        let mut fixture = with(&fault);
        fault.arm(errno);
        fixture.append(30);
        let receipt = fixture.pipeline.persisted(30);
        fixture.settle_down();
        assert!(fixture.pipeline.current_problem().is_some() && fixture.reports(is_problem));
        assert_eq!(receipt.try_get(), Some(Ok(())), "the journal has it");
        fixture.append(5);
        fixture.advance(HOUR);
        assert_eq!((fixture.ledger().accepted, fixture.pipeline.stats().accepted), (0, 35));
        fault.arm(0);
        fixture.advance(HOUR);
        assert!(fixture.pipeline.current_problem().is_none());
        assert!(fixture.reports(|diagnostic| matches!(diagnostic, Diagnostic::StorageRecovered)));
        assert_eq!((fixture.ledger().queued_events, fixture.ledger().damaged), (35, 0));
    }
}

#[test]
fn retries_of_the_store_grow_rarer_and_use_up_no_arenas() {
    let fault = Fault::of(Op::Write, "queue.redb");
    let mut fixture = with(&fault);
    fault.arm(BROKEN);
    for _ in 0..25 {
        fixture.append(30);
        fixture.advance(Duration::from_secs(1));
    }
    let tried = fault.calls();
    // Each attempt is a reopen and a commit, of a few writes each.
    assert!(tried < 50, "{tried} writes in 25 seconds");
    fault.arm(0);
    fixture.advance(HOUR);
    assert_eq!((fixture.ledger().queued_events, fixture.ledger().damaged), (750, 0), "nothing was refused or lost");
}

#[test]
fn a_found_journal_that_cannot_be_stored_causes_no_busy_loop() {
    let before = fixture(|_| ());
    let mut taken = 0;
    loop {
        match before.pipeline.append(&[7; 1000], 0) {
            Ok(_) => taken += 1,
            Err(DropReason::JournalFull) => break,
            // On a busy machine the lock of the journal may not be free in time.
            Err(reason) => assert_eq!(reason, DropReason::JournalBusy),
        }
    }
    before.pipeline.shard.close();
    // The file may be written to but not grow: it opens, and no arena fits.
    let fault = Fault::of(Op::SetLen, "queue.redb");
    fault.arm(NO_SPACE);
    let disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>);
    let mut fixture = fixture_in(Arc::clone(&before.root), |options| options.disk = disk);
    for _ in 0..25 {
        fixture.advance(Duration::from_secs(1));
    }
    assert!((2..20).contains(&fault.calls()), "{} attempts in 25 seconds", fault.calls());
    fault.arm(0);
    fixture.advance(HOUR);
    assert_eq!((fixture.ledger().queued_events, fixture.ledger().damaged), (taken, 0));
}

#[test]
fn a_failed_sync_fails_receipts_and_events_go_to_the_store() {
    let fault = Fault::of(Op::Sync, "journal-");
    let mut fixture = with(&fault);
    fixture.settle_down();
    fixture.append(3);
    let receipt = fixture.pipeline.persisted(3);
    fault.arm(BROKEN);
    fixture.settle_down();
    let answer = receipt.try_get();
    assert!(matches!(&answer, Some(Err(PersistError::Sync(why))) if !why.is_empty()), "{answer:?}");
    assert_eq!((fixture.ledger().queued_events, fixture.pipeline.receipts.synced()), (3, 3));
    fault.arm(0);
    fixture.append(1);
    let receipt = fixture.pipeline.persisted(4);
    fixture.settle_down();
    assert_eq!(receipt.try_get(), Some(Ok(())));
    fixture.advance(HOUR);
    assert!(fixture.pipeline.current_problem().is_none());
}

#[test]
fn if_journal_and_store_fail_nothing_is_lost_after_recovery() {
    let fault = Fault::of(Op::Sync, "shard-0");
    let mut fixture = with(&fault);
    fault.arm(BROKEN);
    fixture.append(3);
    let receipt = fixture.pipeline.persisted(3);
    fixture.settle_down();
    assert!(matches!(receipt.try_get(), Some(Err(PersistError::Sync(_)))));
    fixture.append(3);
    let receipt = fixture.pipeline.persisted(6);
    fixture.advance(Duration::from_millis(100));
    assert!(matches!(receipt.try_get(), Some(Err(PersistError::Sync(_)))), "nor can the next sync be believed");
    fault.arm(0);
    fixture.advance(HOUR);
    fixture.advance(HOUR);
    assert_eq!((fixture.ledger().queued_events, fixture.pipeline.receipts.synced()), (6, 6));
}

#[test]
fn a_disk_without_space_for_an_arena_causes_no_busy_loop() {
    let fault = Fault::of(Op::Create, "journal-");
    let mut fixture = with(&fault);
    fault.arm(NO_SPACE);
    let mut taken = 0;
    while fixture.pipeline.append(&[7; 1000], 0).is_ok() {
        taken += 1;
    }
    assert!(taken > 40);
    for _ in 0..10 {
        fixture.settle_down();
    }
    assert!(fault.calls() < 20, "{} attempts to make an arena at one moment", fault.calls());
    fault.arm(0);
    fixture.advance(HOUR);
    assert_eq!(fixture.ledger().queued_events, taken);
    assert!(fixture.pipeline.append(&[7; 1000], 0).is_ok());
}

#[test]
fn acks_are_committed_without_space_for_another_arena() {
    let mut before = fixture(|_| ());
    before.append(30);
    before.advance(Duration::from_secs(6));
    before.pipeline.shard.close();
    for index in 0..4 {
        let _ = std::fs::remove_file(before.pipeline.shard.dir().join(format!("journal-{index}")));
    }
    let fault = Fault::of(Op::Create, "journal-");
    let disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>);
    let mut fixture = fixture_in(Arc::clone(&before.root), |options| options.disk = disk);
    fault.arm(NO_SPACE);
    while fixture.pipeline.append(&[7; 1000], 0).is_ok() {}
    (0..40).for_each(|_| fixture.advance(Duration::from_secs(1)));
    fixture.deliver(fixture.lease());
    fixture.advance(Duration::from_secs(1));
    assert_eq!((fixture.ledger().delivered, fixture.ledger().queued_events), (30, 0));
    assert!(fixture.pipeline.current_problem().is_some());
}

#[test]
fn acks_are_committed_with_a_checkpoint_or_after_the_interval() {
    let syncs = Fault::of(Op::Sync, "queue.redb");
    let mut fixture = with(&syncs);
    fixture.append(30);
    fixture.settle_down();
    fixture.deliver(fixture.lease());
    fixture.append(30);
    let before = syncs.calls();
    fixture.advance(Duration::from_secs(1) - Duration::from_millis(1));
    assert_eq!((syncs.calls() - before, fixture.ledger().delivered), (0, 0), "neither is due");
    fixture.advance(Duration::from_millis(1));
    assert_eq!((fixture.ledger().delivered, fixture.ledger().queued_events), (30, 30));
    let per_commit = syncs.calls() - before;
    fixture.deliver(fixture.lease());
    fixture.advance(Duration::from_secs(1));
    assert_eq!((fixture.ledger().delivered, syncs.calls() - before), (60, 2 * per_commit), "one transaction each");
}

#[test]
fn acked_rows_are_not_read_again_after_a_failed_commit() {
    let fault = Fault::of(Op::Write, "queue.redb");
    let mut fixture = with(&fault);
    fixture.append(30);
    fixture.settle_down();
    fixture.deliver(fixture.lease());
    fault.arm(BROKEN);
    fixture.append(30);
    fixture.advance(Duration::from_secs(60));
    fault.arm(0);
    // As the committer does, but without a commit.
    fixture.pipeline.shard.reopen_store(0).unwrap();
    fixture.pipeline.leases.lock().forget(OWN);
    assert!(fixture.lease().is_empty(), "the row is still there, and not for the delivery");
    fixture.advance(HOUR);
    assert_eq!((fixture.ledger().delivered, fixture.ledger().queued_events), (30, 30));
    let again: Vec<_> = fixture.lease().into_iter().map(|lease| lease.chunk.key.first_seq).collect();
    assert_eq!(again, [31]);
}

#[test]
fn a_steady_stream_is_synced_once_an_interval() {
    let stream = Arc::new(Stream::default());
    let gate: Arc<dyn Gate> = stream.clone();
    let mut fixture = fixture(|options| options.disk = Disk::gated(gate));
    // Arenas are created, and synced for that.
    fixture.settle_down();
    stream.pipeline.set(Arc::downgrade(&fixture.pipeline)).unwrap();
    let before = stream.syncs.load(Ordering::SeqCst);
    fixture.append(1);
    for syncs in 1..=3 {
        fixture.advance(Duration::from_millis(100));
        assert_eq!(stream.syncs.load(Ordering::SeqCst) - before, syncs);
    }
}

#[test]
fn a_delivered_queue_has_no_bytes_or_age_before_the_commit() {
    let mut fixture = fixture(|_| ());
    fixture.append(30);
    fixture.advance(Duration::from_secs(6));
    fixture.append(10);
    fixture.advance(Duration::from_secs(6));
    let mut rows = fixture.lease();
    let younger = rows.split_off(1);
    fixture.clock.advance(Duration::from_secs(43));
    let age = |fixture: &Fixture| fixture.pipeline.stats().oldest_age.map(|age| age.as_secs());
    assert!(age(&fixture).is_some_and(|age| age >= 49));
    fixture.deliver(rows);
    assert!(age(&fixture).is_some_and(|age| (43..49).contains(&age)), "the younger row is the oldest that waits");
    fixture.deliver(younger);
    let stats = fixture.pipeline.stats();
    assert_eq!((stats.queued_events, stats.queued_bytes, age(&fixture)), (0, 0, None));
    assert!(fixture.pipeline.shard.ledger().queued_events > 0, "nothing is committed yet");
}

#[test]
fn without_a_directory_the_memory_fallback_applies() {
    let fixture =
        fixture(|options| (options.queue.queue_dir, options.memory_fallback) = (std::path::PathBuf::new(), true));
    assert!(fixture.pipeline.shard.is_volatile() && fixture.pipeline.append(&[7; 100], 0).is_ok());
    assert!(fixture.reports(
        |diagnostic| matches!(diagnostic, Diagnostic::InMemory { problem, .. } if problem.contains("POSTHOG_QUEUE_DIR"))
    ));
}

/// Fails the next sync of the store's file once it is set.
#[derive(Debug)]
struct Once(AtomicBool);

impl Gate for Once {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if call.op != Op::Sync || !call.path.ends_with("queue.redb") || !self.0.swap(false, Ordering::SeqCst) {
            return Verdict::Go;
        }
        Verdict::Fail(std::io::Error::from_raw_os_error(BROKEN as i32))
    }
}

#[test]
fn a_shutdown_waits_for_events_that_the_store_takes_later() {
    let fault = Arc::new(Once(AtomicBool::new(false)));
    let mut fixture = fixture(|options| options.disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>));
    fixture.append(3);
    fault.0.store(true, Ordering::SeqCst);
    let report = fixture.pipeline.shutdown(Duration::from_secs(30));
    fixture.turn();
    let leased = fixture.pipeline.lease(usize::MAX, &|_| true);
    assert!(matches!(leased, Err(delivery::SourceError::Busy)), "{leased:?}");
    fixture.advance(Duration::from_secs(1));
    let leases = fixture.lease();
    assert_eq!(leases.iter().map(|lease| lease.chunk.count).sum::<u32>(), 3);
    fixture.deliver(leases);
    assert_eq!(fixture.lease().len(), 0, "everything is sent, so the shutdown may end");
    fixture.pipeline.mailbox.send(|commands| commands.delivery_ended = Some(crate::report::EndpointStatus::Up));
    let commands = fixture.pipeline.mailbox.take();
    fixture.committer.receive(commands);
    assert!(fixture.committer.turn().is_break());
    let report = report.try_get().unwrap();
    assert_eq!((report.delivered, report.remaining), (3, 0));
}

#[test]
fn a_shutdown_does_not_wait_long_for_a_store_that_fails() {
    let fault = Fault::of(Op::SetLen, "queue.redb");
    let mut fixture = with(&fault);
    fault.arm(NO_SPACE);
    while fixture.pipeline.append(&[7; 1000], 0).is_ok() {}
    let _report = fixture.pipeline.shutdown(Duration::from_secs(30));
    fixture.turn();
    let is_waited_for =
        |fixture: &Fixture| matches!(fixture.pipeline.lease(usize::MAX, &|_| true), Err(delivery::SourceError::Busy));
    assert!(is_waited_for(&fixture));
    fixture.advance(Duration::from_millis(200));
    fixture.advance(Duration::from_millis(400));
    assert!(!is_waited_for(&fixture), "what is left stays on disk");
}
