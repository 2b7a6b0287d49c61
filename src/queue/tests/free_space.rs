//! What is left of a shard whose unused files were removed.

use super::*;
use crate::queue::holds_idle_files;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn checkpoint(queue: &Queue) {
    queue.journal().swap().unwrap();
    while queue.checkpoint(&[], None, NOW).unwrap().is_some() {}
}

#[test]
fn closing_an_empty_queue_frees_space_and_keeps_the_ledger() {
    for mapped in [true, false] {
        let root = scratch();
        let (disk, queue_dir) = (Machine::disk(7, mapped), root.path().join("queue"));
        let queue = open(&disk, &queue_dir).queue;
        let dir = first_shard(&queue_dir);
        // Large enough that the file is worth compacting.
        for id in 1..=40_000 {
            while append(&queue, id, 0).is_err() {
                checkpoint(&queue);
            }
        }
        checkpoint(&queue);
        let rows = queue.read(None, usize::MAX).unwrap().chunks;
        let mut acked: Vec<_> = rows.iter().map(|row| delivered(row.key.first_seq, row.count.into())).collect();
        acked[0].dead = vec![dead(1, 1)];
        acked[0].delivered -= 1;
        queue.ack(&acked, None, NOW).unwrap();
        let before = queue.file_bytes();
        std::fs::create_dir(dir.join("crash")).unwrap();
        std::fs::write(dir.join("crash/1-1.bad"), "what could not be read").unwrap();
        assert!(holds_idle_files(&disk, &dir, NOW + 1) && !holds_idle_files(&disk, &dir, NOW));
        queue.close_and_free_space(&disk).unwrap();
        assert_eq!(names(&dir), ["crash", "lock", "queue.redb", "status"]);
        let file_bytes =
            std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(dir.join("queue.redb")).unwrap()) * 512;
        assert!(file_bytes < 3 * 1024 * 1024 && before > 6 * 1024 * 1024, "{before} bytes, then {file_bytes}");
        assert!(!holds_idle_files(&disk, &dir, NOW + 1) && is_known_empty(&disk, &dir));
        let Opened { queue, findings, before, .. } = open(&disk, &queue_dir);
        assert!(findings.is_empty() && before.clean, "{findings:?}");
        let ledger = queue.ledger();
        assert_eq!((ledger.accepted, ledger.delivered, ledger.dead_lettered, ledger.damaged), (40_000, 39_999, 1, 0));
        assert_eq!(queue.dead(None, 10).unwrap().records.len(), 1);
        assert_eq!(append(&queue, 40_001, 0).unwrap().seq, 40_001);
        assert!(dir.join("crash/1-1.bad").exists());
    }
}

#[test]
fn closing_a_queue_not_empty_or_not_ours_removes_nothing() {
    let root = scratch();
    let (disk, queue_dir) = (Machine::disk(7, true), root.path().join("queue"));
    let dir = first_shard(&queue_dir);
    let queue = open(&disk, &queue_dir).queue;
    let files = names(&dir);
    append(&queue, 1, 0).unwrap();
    queue.close_and_free_space(&disk).unwrap();
    assert_eq!(names(&dir), files);
    let queue = open(&disk, &queue_dir).queue;
    assert_eq!(queued(&queue).len(), 1);
    queue.close_and_free_space(&disk).unwrap();
    assert_eq!(names(&dir), files, "one row in the store");
    let queue = open(&disk, &queue_dir).queue;
    queue.ack(&[delivered(1, 1)], None, NOW).unwrap();
    std::fs::remove_file(dir.join("lock")).unwrap();
    let other = claim(&disk, dir.parent().unwrap(), &[]).unwrap();
    assert_eq!(other.dir(), dir);
    queue.close_and_free_space(&disk).unwrap();
    assert_eq!(names(&dir), files, "they belong to another process");
}

#[test]
fn a_power_cut_while_space_is_freed_loses_nothing() {
    let root = scratch();
    let (disk, queue_dir) = (Machine::disk(7, true), root.path().join("queue"));
    let queue = open(&disk, &queue_dir).queue;
    (1..=50).for_each(|id| assert!(append(&queue, id, 0).is_ok()));
    checkpoint(&queue);
    let acked = |row: &crate::queue::store::Chunk| delivered(row.key.first_seq, row.count.into());
    let rows = queue.read(None, usize::MAX).unwrap().chunks;
    queue.ack(&rows.iter().map(acked).collect::<Vec<_>>(), None, NOW).unwrap();
    let before = copy_of(root.path());
    queue.close_and_free_space(&disk).unwrap();
    let gone: Vec<_> = names(&first_shard(&before.path().join("queue")))
        .into_iter()
        .filter(|name| !first_shard(&queue_dir).join(name).exists())
        .collect();
    assert!(gone.len() >= 3, "{gone:?}");
    for set in 0..1_u32 << gone.len() {
        let after = copy_of(before.path());
        let queue_dir = after.path().join("queue");
        for (_, name) in gone.iter().enumerate().filter(|(at, _)| set & 1 << at != 0) {
            std::fs::remove_file(first_shard(&queue_dir).join(name)).unwrap();
        }
        // Another start of the machine.
        let Opened { queue, findings, .. } = open(&Machine::disk(8, true), &queue_dir);
        let ledger = queue.ledger();
        assert_eq!((ledger.accepted, ledger.delivered, ledger.imbalance()), (50, 50, 0), "{set:b}");
        assert!(findings.is_empty(), "{set:b}: {findings:?}");
        assert_eq!(append(&queue, 51, 0).unwrap().seq, 51);
    }
}
