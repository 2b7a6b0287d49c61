//! A disk that fails.

use super::*;

fn open_on(disk: &Disk, dir: &Path) -> Store {
    Store::open(disk, dir, &options(), 1_000).unwrap().0
}

#[test]
fn a_failed_write_latches_the_store_until_it_is_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let fault = Fault::of(Op::Write, "queue.redb", broken);
    let store = open_on(&Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>), dir.path());
    store.apply(&checkpoint(1, 1, 5)).unwrap();
    let before = store.ledger();
    fault.arm(0);
    assert!(matches!(store.apply(&checkpoint(2, 6, 5)), Err(StoreError::Io(_))));
    assert_eq!(store.ledger(), before, "the ledger ran ahead of the disk");
    fault.disarm();
    assert!(matches!(store.apply(&checkpoint(2, 6, 5)), Err(StoreError::Latched)));
    assert!(matches!(store.read(None, 1), Err(StoreError::Latched)));
    assert_eq!(store.reopen(2_000).unwrap(), OpenReport::default());
    store.apply(&checkpoint(2, 6, 5)).unwrap();
    assert_eq!((events_in(&store), store.ledger().imbalance()), (10, 0));
}

#[test]
fn a_failed_reopen_leaves_the_store_latched_and_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let fault = Fault::of(Op::Read, "queue.redb", broken);
    let store = open_on(&Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>), dir.path());
    store.apply(&checkpoint(1, 1, 5)).unwrap();
    fault.arm(0);
    assert!(matches!(store.reopen(0), Err(StoreError::Io(_))));
    assert!(matches!(store.apply(&checkpoint(2, 6, 5)), Err(StoreError::Latched)));
    fault.disarm();
    store.reopen(0).unwrap();
    assert_eq!(events_in(&store), 5);
}

/// Whichever call of a commit fails, the transaction takes effect entirely or not at all, and after it is applied again
/// it has taken effect once.
#[test]
fn a_commit_that_fails_anywhere_can_be_applied_again() {
    for op in [Op::Write, Op::Sync, Op::SetLen] {
        for nth in 0..40 {
            let dir = scratch();
            let fault = Fault::of(op, "queue.redb", broken);
            let store = open_on(&Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>), dir.path());
            store.apply(&checkpoint(1, 1, 50)).unwrap();
            let acked = chunk(1, 50, 100);
            let changes = Changes { remove: delivered(&acked).remove, ..checkpoint_of(2, chunk(51, 50, 6_000)) };
            fault.arm(nth);
            let outcome = store.apply(&changes);
            fault.disarm();
            if outcome.is_ok() {
                assert!(nth > 0 || op == Op::SetLen, "the fault was never met");
                break;
            }
            store.reopen(2_000).unwrap();
            match store.apply(&changes) {
                Ok(_) => {}
                Err(StoreError::AlreadyCheckpointed { .. }) => {
                    let ack_again = store.apply(&delivered(&acked)).unwrap();
                    assert_eq!(ack_again.stale_removals, 1, "the transaction took effect in part");
                }
                Err(other) => panic!("{op:?} {nth}: {other}"),
            }
            let ledger = store.ledger();
            assert_eq!((ledger.accepted, ledger.delivered, ledger.queued_events), (100, 50, 50), "{op:?} {nth}");
            assert_eq!((events_in(&store), ledger.imbalance()), (50, 0), "{op:?} {nth}");
        }
    }
}

#[test]
fn a_file_whose_sync_failed_is_replaced_with_all_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let fault = Fault::of(Op::Sync, "queue.redb", broken);
    let store = open_on(&Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>), dir.path());
    store.apply(&checkpoint(1, 1, 5)).unwrap();
    let inode = |dir: &Path| std::os::unix::fs::MetadataExt::ino(&dir.join("queue.redb").metadata().unwrap());
    let before = inode(dir.path());
    fault.arm(0);
    store.apply(&checkpoint(2, 6, 5)).unwrap_err();
    fault.disarm();
    let report = store.reopen(2_000).unwrap();
    assert!(report.replaced && report.lost_events == 0 && report.damaged_file.is_none(), "{report:?}");
    assert_eq!(report.salvaged_events, 5);
    assert_ne!(inode(dir.path()), before);
    assert_eq!((store.journal_epoch(), store.ledger().imbalance()), (1, 0));
    store.apply(&checkpoint(2, 6, 5)).unwrap();
    assert_eq!(events_in(&store), 10);
}

#[test]
fn a_copy_that_fails_leaves_the_old_file_and_the_store_latched() {
    let dir = tempfile::tempdir().unwrap();
    let sync = Fault::of(Op::Sync, "queue.redb", broken);
    let copy = Fault::of(Op::Write, "queue.redb.new", full);
    let disk = Disk::gated(Arc::new(Both(Arc::clone(&sync), Arc::clone(&copy))));
    let store = open_on(&disk, dir.path());
    store.apply(&checkpoint(1, 1, 5)).unwrap();
    sync.arm(0);
    store.apply(&checkpoint(2, 6, 5)).unwrap_err();
    let bytes = std::fs::read(dir.path().join("queue.redb")).unwrap();
    copy.arm(0);
    assert!(matches!(store.reopen(0), Err(StoreError::NoSpace(_))));
    assert!(store.is_latched());
    assert!(std::fs::read(dir.path().join("queue.redb")).unwrap() == bytes, "a file whose sync failed was written to");
    copy.disarm();
    sync.disarm();
    assert!(store.reopen(0).unwrap().replaced);
    assert_eq!(events_in(&store), 5);
}

#[derive(Debug)]
struct Both(Arc<Fault>, Arc<Fault>);

impl Gate for Both {
    fn before(&self, call: &Call<'_>) -> Verdict {
        match self.0.before(call) {
            Verdict::Go => self.1.before(call),
            other => other,
        }
    }
}

#[test]
fn a_file_put_in_the_place_of_ours_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open_in(dir.path());
    store.apply(&checkpoint(1, 1, 5)).unwrap();
    std::fs::rename(dir.path().join("queue.redb"), dir.path().join("moved")).unwrap();
    std::fs::write(dir.path().join("queue.redb"), b"foreign").unwrap();
    assert!(store.apply(&checkpoint(2, 6, 5)).is_err());
    assert_eq!(std::fs::read(dir.path().join("queue.redb")).unwrap(), b"foreign");
}

#[test]
fn a_panic_in_the_database_latches_the_store_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fault = Fault::of(Op::Sync, "queue.redb", || panic!("as the database might"));
    let store = open_on(&Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>), dir.path());
    store.apply(&checkpoint(1, 1, 5)).unwrap();
    fault.arm(0);
    let outcome = store.apply(&checkpoint(2, 6, 5));
    assert!(matches!(outcome, Err(StoreError::Panicked { ref message }) if message == "as the database might"));
    fault.disarm();
    assert!(matches!(store.read(None, 1), Err(StoreError::Latched)));
    let report = store.reopen(2_000).unwrap();
    assert_eq!((report.lost_events, events_in(&store), store.ledger().imbalance()), (0, 5, 0));
}

#[test]
fn reopening_a_store_in_memory_counts_its_events_as_damaged() {
    let store = Store::volatile(&options()).unwrap();
    store.apply(&checkpoint(1, 1, 5)).unwrap();
    let report = store.reopen(0).unwrap();
    assert_eq!((report.lost_events, store.ledger().damaged, store.ledger().imbalance()), (5, 5, 0));
    store.apply(&checkpoint(2, 6, 5)).unwrap();
    assert_eq!(events_in(&store), 5);
}

/// A crash between any two steps of creating or replacing a file leaves a directory that opens with everything in it.
#[test]
fn an_open_that_is_cut_short_anywhere_loses_nothing() {
    for op in [Op::Rename, Op::SyncDir, Op::MakeDir] {
        for nth in 0..6 {
            let dir = tempfile::tempdir().unwrap();
            let (store, _) = open_in(dir.path());
            store.apply(&checkpoint(1, 1, 5)).unwrap();
            drop(store);
            damage::spoil_the_magic_of(&dir.path().join("queue.redb"));
            let fault = Arc::new(AnyPath { op, left: AtomicU64::new(nth) });
            let first = Store::open(&Disk::gated(fault), dir.path(), &options(), 1_000);
            let outcome = first.map(|(_, report)| report);
            let (store, _) = open_in(dir.path());
            assert_eq!((events_in(&store), store.ledger().imbalance()), (5, 0), "{op:?} {nth}");
            if let Ok(report) = outcome {
                assert!(nth > 0 && report.damaged_file.is_some(), "{op:?} {nth}: {report:?}");
                break;
            }
        }
    }
}

#[derive(Debug)]
struct AnyPath {
    op: Op,
    left: AtomicU64,
}

impl Gate for AnyPath {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if call.op == self.op
            && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_err()
        {
            return Verdict::Fail(broken());
        }
        Verdict::Go
    }
}
