//! Arenas of an earlier owner that could not be checkpointed when the queue was opened, and a status page with an
//! impossible count.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::sys::disk::Op;

/// A machine on whose disk the store cannot grow while `is_stuck`.
#[derive(Debug)]
struct Stuck {
    boot_id: u128,
    is_stuck: AtomicBool,
}

impl Stuck {
    fn disk(boot_id: u128, is_stuck: bool) -> (Disk, Arc<Self>) {
        let machine = Arc::new(Self { boot_id, is_stuck: AtomicBool::new(is_stuck) });
        (Disk::gated(Arc::clone(&machine) as Arc<dyn Gate>), machine)
    }
}

impl Gate for Stuck {
    fn before(&self, call: &Call<'_>) -> Verdict {
        let is_growth = call.op == Op::SetLen && call.path.ends_with("queue.redb");
        match is_growth && self.is_stuck.load(Ordering::SeqCst) {
            true => Verdict::Fail(io::ErrorKind::StorageFull.into()),
            false => Verdict::Go,
        }
    }

    fn file_system(&self) -> Option<FileSystem> {
        Some(FileSystem::Ext)
    }

    fn boot_id(&self) -> Option<u128> {
        Some(self.boot_id)
    }
}

/// A queue whose journal is full and was never synced; one of its records has not reached the disk.
fn after_a_power_cut(root: &Path) -> PathBuf {
    let queue_dir = root.join("queue");
    let queue = open(&Machine::disk(7, true), &queue_dir).queue;
    queue.journal().prepare_free_arena().unwrap();
    let taken = (1..10_000).take_while(|id| append(&queue, *id, 0).is_ok()).count();
    assert!(taken > 100);
    std::mem::forget(queue);
    let arena = first_shard(&queue_dir).join("journal-0");
    let mut bytes = std::fs::read(&arena).unwrap();
    bytes[6000..6016].fill(0);
    std::fs::write(&arena, bytes).unwrap();
    queue_dir
}

#[test]
fn losses_of_a_power_cut_are_counted_as_such_however_late() {
    let root = scratch();
    let at_first = after_a_power_cut(root.path());
    // In a copy each: the registration of the owner before is still there in this process.
    let second = copy_of(root.path());
    let (disk, machine) = Stuck::disk(8, true);
    let queue_dir = second.path().join(at_first.file_name().unwrap());
    let Opened { queue, findings, .. } = open(&disk, &queue_dir);
    assert!(findings.iter().any(|finding| matches!(finding, Finding::NotCheckpointed { .. })), "{findings:?}");
    let third = copy_of(second.path());
    machine.is_stuck.store(false, Ordering::SeqCst);
    if queue.open_store().is_some_and(|store| store.is_latched()) {
        queue.reopen_store(NOW).unwrap();
    }
    let mut checkpointed = Vec::new();
    while let Some(step) = queue.checkpoint(&[], None, NOW).unwrap() {
        checkpointed.push(step);
    }
    assert!(checkpointed.iter().any(|step| step.missing > 0 && step.after_restart), "{checkpointed:?}");
    let ledger = queue.ledger();
    assert!(ledger.lost_unsynced > 0 && ledger.damaged == 0 && ledger.imbalance() == 0, "{ledger:?}");
    // The next owner has not seen the restart of the machine, and counts the same.
    let (disk, _) = Stuck::disk(8, false);
    let Opened { queue, findings, before, .. } = open(&disk, &third.path().join("queue"));
    assert!(before.same_boot && findings.iter().any(|f| matches!(f, Finding::Missing { after_restart: true, .. })));
    assert_eq!((queue.ledger().lost_unsynced, queue.ledger().damaged), (ledger.lost_unsynced, 0));
    // What is damaged from then on counts as damaged.
    append(&queue, 10_001, 0).unwrap();
    assert!(queue.journal().swap().unwrap());
    assert!(!queue.checkpoint(&[], None, NOW).unwrap().unwrap().after_restart);
}

#[test]
fn an_absurd_epoch_on_the_page_does_not_end_the_journal() {
    for written in [u64::MAX, u64::MAX - 1, 1 << 50] {
        let root = scratch();
        let (disk, queue_dir) = (Machine::disk(7, true), root.path().join("queue"));
        open(&disk, &queue_dir).queue.close();
        let status = first_shard(&queue_dir).join("status");
        let mut bytes = std::fs::read(&status).unwrap();
        bytes[80..88].copy_from_slice(&written.to_le_bytes());
        std::fs::write(&status, bytes).unwrap();
        for life in 1..=3 {
            let queue = open(&disk, &queue_dir).queue;
            append(&queue, life, 0).unwrap();
            queue.journal().swap().unwrap();
            queue.checkpoint(&[], None, NOW).unwrap();
            assert_eq!(queued(&queue).len() as u64, life, "what was accepted is checkpointed");
            assert!(queue.journal().epoch() < 100, "{}", queue.journal().epoch());
            queue.close();
        }
    }
}
