//! A directory whose path leads nowhere, or elsewhere, while its owner is running. Open files go on, nothing is done by
//! name, and files of other owners are not touched.

use super::*;

fn checkpoint(queue: &Queue) {
    queue.journal().swap().unwrap();
    while queue.checkpoint(&[], None, NOW).unwrap().is_some() {}
}

fn ids(queue: &Queue) -> Vec<u64> {
    queued(queue).into_iter().map(|(_, id)| id).collect()
}

/// A queue with records 1 to 10 in the store, and space for another round.
fn specimen(root: &Path, mapped: bool) -> (Queue, Disk, PathBuf) {
    let (disk, queue_dir) = (Machine::disk(7, mapped), root.join("queue"));
    let queue = open(&disk, &queue_dir).queue;
    queue.journal().prepare_free_arena().unwrap();
    (1..=10).for_each(|id| assert!(append(&queue, id, 0).is_ok()));
    checkpoint(&queue);
    (queue, disk, queue_dir)
}

fn is_out_of_reach(queue: &Queue) -> bool {
    matches!(queue.ownership(), Ownership::OutOfReach { .. })
}

#[test]
fn a_directory_moved_away_and_back_costs_nothing_and_stays_ours() {
    for mapped in [true, false] {
        let root = scratch();
        let (queue, disk, queue_dir) = specimen(root.path(), mapped);
        let away = root.path().join("away");
        std::fs::rename(&queue_dir, &away).unwrap();
        assert!(is_out_of_reach(&queue));
        for round in 0..10 {
            let id = 11 + round;
            append(&queue, id, 0).unwrap();
            assert_eq!(queue.sync().unwrap(), id, "it is durable where it is");
            checkpoint(&queue);
        }
        queue.ack(&[delivered(1, 10)], None, NOW).unwrap();
        assert!(!queue_dir.exists(), "nothing is made under a name that leads elsewhere");
        // A queue that cannot be used by its path is still locked.
        assert!(
            claim(&disk, &away.join(project().dir_name()), &[]).is_ok_and(|other| other.dir() != first_shard(&away))
        );
        std::fs::rename(&away, &queue_dir).unwrap();
        assert_eq!(queue.ownership(), Ownership::Held);
        append(&queue, 21, 0).unwrap();
        assert_eq!(queue.sync().unwrap(), 21);
        queue.close();
        let Opened { queue, findings, .. } = open(&disk, &queue_dir);
        assert_eq!((ids(&queue), findings.len()), ((11..=21).collect(), 0), "{findings:?}");
        assert_eq!((queue.ledger().delivered, queue.ledger().imbalance()), (10, 0));
    }
}

#[test]
fn files_at_the_old_path_are_not_touched() {
    let root = scratch();
    let (queue, disk, queue_dir) = specimen(root.path(), true);
    std::fs::rename(&queue_dir, root.path().join("away")).unwrap();
    queue.open_store().unwrap().unregister();
    let other = open(&disk, &queue_dir).queue;
    (1..=5).for_each(|id| assert!(append(&other, id, 0).is_ok()));
    assert!(is_out_of_reach(&queue), "two directories, two owners");
    let names = |dir: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(first_shard(dir)).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names(&queue_dir);
    append(&queue, 11, 0).unwrap();
    checkpoint(&queue);
    append(&queue, 12, 0).unwrap();
    // Both arenas are in use: a third would be created by name.
    assert!(queue.journal().prepare_free_arena().is_ok());
    queue.journal().swap().unwrap();
    append(&queue, 13, 0).unwrap();
    queue.journal().swap().unwrap_err();
    checkpoint_sealed(&queue);
    assert_eq!(names(&queue_dir), before, "no file of ours is made among theirs");
    assert_eq!(ids(&queue), (1..=12).collect::<Vec<_>>());
    queue.reopen_store(NOW).unwrap();
    assert_eq!(ids(&queue), (1..=12).collect::<Vec<_>>(), "our own file, and not the one at the path");
    queue.close();
    checkpoint(&other);
    assert_eq!(ids(&other), (1..=5).collect::<Vec<_>>());
}

fn checkpoint_sealed(queue: &Queue) {
    while queue.checkpoint(&[], None, NOW).unwrap().is_some() {}
}

#[test]
fn a_directory_moved_and_then_deleted_goes_on_in_memory() {
    let root = scratch();
    let (queue, _, queue_dir) = specimen(root.path(), true);
    let away = root.path().join("away");
    std::fs::rename(&queue_dir, &away).unwrap();
    assert!(is_out_of_reach(&queue));
    std::fs::remove_dir_all(&away).unwrap();
    assert_eq!(queue.ownership(), Ownership::Deleted);
}

#[test]
fn a_deleted_directory_goes_on_in_memory_despite_backup_links() {
    // As `cp -al` and `rsync --link-dest` make them: of the lock alone, or of each file.
    for names in [["lock"].as_slice(), &["lock", "journal-0", "journal-1", "queue.redb", "status"]] {
        for (is_moved, whole) in [(false, true), (true, true), (false, false)] {
            let root = scratch();
            let (queue, _, queue_dir) = specimen(root.path(), true);
            for name in names {
                std::fs::hard_link(first_shard(&queue_dir).join(name), root.path().join(name)).unwrap();
            }
            assert_eq!(queue.ownership(), Ownership::Held);
            let mut at = queue_dir;
            if is_moved {
                let away = root.path().join("away");
                std::fs::rename(at, &away).unwrap();
                assert!(is_out_of_reach(&queue), "moved is not deleted");
                at = away;
            }
            if whole {
                std::fs::remove_dir_all(&at).unwrap();
            } else {
                let files = std::fs::read_dir(first_shard(&at)).unwrap();
                files.for_each(|file| std::fs::remove_file(file.unwrap().path()).unwrap());
            }
            append(&queue, 11, 0).unwrap();
            queue.sync().expect_err("no owner to come would find it again");
            assert_eq!(queue.ownership(), Ownership::Deleted, "{names:?}, moved: {is_moved}, whole: {whole}");
        }
    }
}

#[test]
fn a_removed_lock_is_taken_again_if_no_other_process_had_it() {
    for replaced in [false, true] {
        let root = scratch();
        let (queue, disk, queue_dir) = specimen(root.path(), true);
        let lock = first_shard(&queue_dir).join("lock");
        std::fs::remove_file(&lock).unwrap();
        if replaced {
            // A program that cleans up, or restores files one by one, does this.
            std::fs::write(&lock, "").unwrap();
        }
        assert_eq!(queue.ownership(), Ownership::Held);
        append(&queue, 11, 0).unwrap();
        assert_eq!(queue.sync().unwrap(), 11);
        let other = claim(&disk, &queue_dir.join(project().dir_name()), &[]).unwrap();
        assert_ne!(other.dir(), first_shard(&queue_dir), "it is locked");
    }
}

#[test]
fn a_shard_that_another_process_had_meanwhile_is_given_up() {
    for mapped in [true, false] {
        let root = scratch();
        let (queue, disk, queue_dir) = specimen(root.path(), mapped);
        append(&queue, 11, 0).unwrap();
        std::fs::remove_file(first_shard(&queue_dir).join("lock")).unwrap();
        // The other owner has delivered everything and is gone.
        queue.open_store().unwrap().unregister();
        let claim = claim(&disk, &queue_dir.join(project().dir_name()), &[]).unwrap();
        let other = Queue::open(&disk, &options(&queue_dir), claim, NOW + 1).unwrap().queue;
        other.ack(&[delivered(1, 10), delivered(11, 1)], None, NOW).unwrap();
        other.close();
        drop(other);
        queue.sync().unwrap_err();
        assert!(matches!(append(&queue, 12, 0), Err(AppendError::Lost)));
        assert!(queue.read(None, usize::MAX).is_err(), "what they have sent is not sent again");
        queue.note_heartbeat(&Heartbeat::default());
        queue.close();
        let Opened { before, findings, .. } = open(&disk, &queue_dir);
        assert!(before.clean && findings.is_empty(), "what they left is as they left it: {before:?} {findings:?}");
    }
}
