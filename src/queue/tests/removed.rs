//! Files that are removed or replaced, while the owner is running or while there is none. Their content may be lost:
//! that is counted and reported, and nothing else is lost.

use super::*;

/// A queue with ten records in the store and ten in the journal.
fn specimen(root: &Path, mapped: bool) -> (Queue, Disk, PathBuf) {
    let (disk, queue_dir) = (Machine::disk(7, mapped), root.join("queue"));
    let queue = open(&disk, &queue_dir).queue;
    (1..=10).for_each(|id| assert!(append(&queue, id, 0).is_ok()));
    checkpoint(&queue);
    (11..=20).for_each(|id| assert!(append(&queue, id, 0).is_ok()));
    assert_eq!(queue.sync().unwrap(), 20);
    (queue, disk, queue_dir)
}

fn checkpoint(queue: &Queue) {
    queue.journal().swap().unwrap();
    while queue.checkpoint(&[], None, NOW).unwrap().is_some() {}
}

/// A copy of the queue as a kill would leave it, without the files whose names begin with one of `names`.
fn killed_without(queue: Queue, queue_dir: &Path, names: &[&str]) -> tempfile::TempDir {
    let root = copy_of(queue_dir.parent().unwrap());
    drop(queue);
    remove(&root.path().join("queue"), names);
    root
}

fn remove(queue_dir: &Path, names: &[&str]) {
    for entry in std::fs::read_dir(first_shard(queue_dir)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if names.iter().any(|prefix| name.starts_with(prefix)) {
            std::fs::remove_file(&path).unwrap();
        }
    }
}

fn ids(queue: &Queue) -> Vec<u64> {
    queued(queue).into_iter().map(|(_, id)| id).collect()
}

fn missing(findings: &[Finding]) -> u64 {
    findings.iter().map(|f| if let Finding::Missing { events, after_restart: false } = f { *events } else { 0 }).sum()
}

#[test]
fn journals_removed_without_an_owner_count_as_damaged() {
    for mapped in [true, false] {
        let root = scratch();
        let (queue, disk, queue_dir) = specimen(root.path(), mapped);
        let root = killed_without(queue, &queue_dir, &["journal-"]);
        let Opened { queue, findings, .. } = open(&disk, &root.path().join("queue"));
        assert_eq!((ids(&queue), missing(&findings)), ((1..=10).collect(), 10), "{findings:?}");
        assert_eq!((queue.ledger().damaged, queue.ledger().imbalance()), (10, 0));
        assert_eq!(append(&queue, 21, 0).unwrap().seq, 21, "sequence numbers of lost records are not reused");
    }
}

#[test]
fn a_store_removed_without_an_owner_leaves_the_journal() {
    let root = scratch();
    let (queue, disk, queue_dir) = specimen(root.path(), true);
    let root = killed_without(queue, &queue_dir, &["queue.redb"]);
    let Opened { queue, findings, .. } = open(&disk, &root.path().join("queue"));
    assert_eq!((ids(&queue), missing(&findings)), ((11..=20).collect(), 10), "{findings:?}");
    assert_eq!((queue.ledger().damaged, queue.ledger().accepted, queue.ledger().imbalance()), (10, 20, 0));
}

#[test]
fn a_status_page_removed_or_cut_short_costs_nothing() {
    for mapped in [true, false] {
        let root = scratch();
        let (queue, disk, queue_dir) = specimen(root.path(), mapped);
        let root = killed_without(queue, &queue_dir, &["status", "reserve"]);
        let queue_dir = root.path().join("queue");
        let queue = open(&disk, &queue_dir).queue;
        assert_eq!((ids(&queue), queue.ledger().damaged), ((1..=20).collect(), 0));
        queue.close();
        drop(queue);
        std::fs::File::options()
            .write(true)
            .open(first_shard(&queue_dir).join("status"))
            .unwrap()
            .set_len(100)
            .unwrap();
        let Opened { queue, findings, .. } = open(&disk, &queue_dir);
        assert_eq!((ids(&queue), queue.ledger().imbalance()), ((1..=20).collect(), 0), "{findings:?}");
    }
}

#[test]
fn a_sync_of_removed_journals_fails_and_no_event_is_lost() {
    for mapped in [true, false] {
        let root = scratch();
        let (queue, disk, queue_dir) = specimen(root.path(), mapped);
        remove(&queue_dir, &["journal-"]);
        append(&queue, 21, 0).unwrap();
        queue.sync().expect_err("nothing would find that file again");
        checkpoint(&queue);
        append(&queue, 22, 0).unwrap();
        // The free arena was removed as well.
        if queue.sync().is_err() {
            checkpoint(&queue);
        }
        append(&queue, 23, 0).unwrap();
        assert_eq!(queue.sync().unwrap(), 23);
        let root = killed_without(queue, &queue_dir, &[]);
        let queue = open(&disk, &root.path().join("queue")).queue;
        assert_eq!((ids(&queue), queue.ledger().damaged), ((1..=23).collect(), 0));
    }
}

#[test]
fn a_store_removed_under_its_owner_costs_only_what_was_in_it() {
    let root = scratch();
    let (queue, disk, queue_dir) = specimen(root.path(), true);
    remove(&queue_dir, &["queue.redb"]);
    queue.journal().swap().unwrap();
    queue.checkpoint(&[], None, NOW).unwrap_err();
    let findings = queue.reopen_store(NOW).unwrap();
    assert_eq!(missing(&findings), 10, "{findings:?}");
    checkpoint(&queue);
    assert_eq!((ids(&queue), queue.ledger().damaged, queue.ledger().imbalance()), ((11..=20).collect(), 10, 0));
    let root = killed_without(queue, &queue_dir, &[]);
    let Opened { queue, findings, .. } = open(&disk, &root.path().join("queue"));
    assert_eq!((ids(&queue), findings.len()), ((11..=20).collect(), 0), "{findings:?}");
}

#[test]
fn records_missing_from_an_older_store_are_counted() {
    let root = scratch();
    let (queue, disk, queue_dir) = specimen(root.path(), true);
    let older = copy_of(root.path());
    checkpoint(&queue);
    append(&queue, 21, 0).unwrap();
    let root = killed_without(queue, &queue_dir, &[]);
    let store = |root: &Path| first_shard(&root.join("queue")).join("queue.redb");
    std::fs::copy(store(older.path()), store(root.path())).unwrap();
    let Opened { queue, findings, .. } = open(&disk, &root.path().join("queue"));
    let expected: Vec<_> = (1..=10).chain([21]).collect();
    assert_eq!((ids(&queue), missing(&findings)), (expected, 10), "{findings:?}");
    assert_eq!((queue.ledger().damaged, queue.ledger().imbalance()), (10, 0));
}

#[test]
fn an_owner_whose_lock_was_replaced_accepts_nothing_more() {
    let root = scratch();
    let (queue, disk, queue_dir) = specimen(root.path(), true);
    remove(&queue_dir, &["lock"]);
    let other = claim(&disk, &queue_dir.join(project().dir_name()), &[]).unwrap();
    assert_eq!(other.dir(), first_shard(&queue_dir), "the directory belongs to another process");
    queue.sync().unwrap_err();
    assert!(matches!(append(&queue, 21, 0), Err(AppendError::Lost)), "two owners would write over each other");
    assert!(!queue.journal().swap().unwrap(), "no round begins in a file of another process");
    queue.ack(&[], None, NOW).expect_err("nor is the store ours any more");
    queue.read(None, usize::MAX).expect_err("nor is it ours to send");
    drop(other);
    assert_eq!(queue.ownership(), Ownership::Lost, "this is final: the files may have changed meanwhile");
}

#[test]
fn a_reader_that_outlives_the_owner_finds_the_store_closed() {
    let root = scratch();
    let (queue, disk, queue_dir) = specimen(root.path(), true);
    let reader = queue.open_store().unwrap();
    queue.close();
    let next = open(&disk, &queue_dir).queue;
    assert!(reader.read(None, usize::MAX).is_err(), "its file is closed");
    assert_eq!(ids(&next), (1..=20).collect::<Vec<_>>());
}

/// As the committer does.
fn notice_deletion(queue: &Queue) {
    assert_eq!(queue.ownership(), Ownership::Deleted);
    queue.become_volatile();
}

/// Deletes the whole queue under its owner.
fn delete(queue_dir: &Path) {
    std::fs::remove_dir_all(queue_dir).unwrap();
}

#[test]
fn a_queue_deleted_under_its_owner_works_until_it_is_closed() {
    for mapped in [true, false] {
        let root = scratch();
        let (queue, _, queue_dir) = specimen(root.path(), mapped);
        assert_eq!(queue.ownership(), Ownership::Held);
        delete(&queue_dir);
        queue.sync().expect_err("the records could not be found again");
        notice_deletion(&queue);
        assert!(queue.is_volatile());
        assert_eq!(queue.ownership(), Ownership::Held, "a deletion is reported once");
        append(&queue, 21, 0).unwrap();
        // The two arenas that exist are deleted files; those that are added are in memory.
        for id in 22..=60 {
            append(&queue, id, 0).unwrap();
            queue.journal().swap().unwrap();
        }
        // All four arenas are in use: the first call only frees the sealed ones, the second moves the active one's
        // records.
        checkpoint(&queue);
        checkpoint(&queue);
        assert_eq!((ids(&queue), queue.ledger().imbalance()), ((1..=60).collect(), 0));
        queue.ack(&[delivered(1, 10)], None, NOW).unwrap();
        assert_eq!((ids(&queue), queue.ledger().delivered), ((11..=60).collect(), 10));
        assert!(!queue_dir.exists(), "nothing is made under a name that is not ours any more");
    }
}

#[test]
fn files_of_the_next_owner_under_the_same_names_are_untouched() {
    let root = scratch();
    let (queue, disk, queue_dir) = specimen(root.path(), true);
    delete(&queue_dir);
    notice_deletion(&queue);
    let next = open(&disk, &queue_dir).queue;
    (1..=5).for_each(|id| assert!(append(&next, id, 0).is_ok()));
    checkpoint(&next);
    for id in 21..=40 {
        append(&queue, id, 0).unwrap();
        checkpoint(&queue);
    }
    queue.close();
    assert_eq!(ids(&next), (1..=5).collect::<Vec<_>>());
    (6..=9).for_each(|id| assert!(append(&next, id, 0).is_ok()));
    checkpoint(&next);
    assert_eq!(next.sync().unwrap(), 9);
    drop(next);
    let Opened { queue, findings, .. } = open(&disk, &queue_dir);
    assert_eq!((ids(&queue), findings.len()), ((1..=9).collect(), 0), "{findings:?}");
}

#[test]
fn a_store_that_failed_before_the_deletion_is_reopened() {
    let root = scratch();
    let (queue, _, queue_dir) = specimen(root.path(), true);
    remove(&queue_dir, &["queue.redb"]);
    queue.journal().swap().unwrap();
    queue.checkpoint(&[], None, NOW).unwrap_err();
    delete(&queue_dir);
    notice_deletion(&queue);
    queue.reopen_store(NOW).unwrap();
    checkpoint(&queue);
    assert_eq!((ids(&queue), queue.ledger().damaged, queue.ledger().imbalance()), ((1..=20).collect(), 0, 0));
}
