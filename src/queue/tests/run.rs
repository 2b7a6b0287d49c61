//! The run record that an owner leaves for the next one.

use super::*;
use crate::sys::disk::OomCount;

type End = fn(&Queue);

fn open_as(adopts: bool, mapped: bool, boot_id: u128, queue_dir: &Path) -> (Queue, Option<RunRecord>) {
    let disk = Machine::disk(boot_id, mapped);
    let claim = claim(&disk, &queue_dir.join(project().dir_name()), &[]).unwrap();
    let opened = Queue::open(&disk, &QueueOptions { adopts, ..options(queue_dir) }, claim, NOW).unwrap();
    (opened.queue, opened.before.run)
}

fn open(queue_dir: &Path) -> (Queue, Option<RunRecord>) {
    open_as(false, true, 1, queue_dir)
}

fn heartbeat() -> Heartbeat {
    Heartbeat {
        at: NOW + 5,
        alive_for: Duration::from_secs(5),
        watches_exit: true,
        watches_termination: true,
        oom: Some(OomCount { path: 1, inode: 2, kills: 3 }),
    }
}

#[test]
fn the_next_owner_reads_the_last_heartbeat_and_the_end() {
    let ends: [(End, RunRecord); 5] = [
        (|_| (), RunRecord::default()),
        (|queue| queue.mark_exit(Some(3)), RunRecord { exit: Some(Some(3)), ..RunRecord::default() }),
        (|queue| queue.mark_exit(None), RunRecord { exit: Some(None), ..RunRecord::default() }),
        (|queue| queue.mark_dying_of(15), RunRecord { dying_of: Some(15), ..RunRecord::default() }),
        (Queue::close, RunRecord { closed: true, ..RunRecord::default() }),
    ];
    for mapped in [true, false] {
        for (end, expected) in &ends {
            let dir = scratch();
            let (queue, before) = open_as(false, mapped, 1, dir.path());
            assert_eq!(before, None, "there was no owner before");
            queue.note_heartbeat(&heartbeat());
            queue.publish();
            end(&queue);
            drop(queue);
            let about = RunRecord {
                pid: std::process::id(),
                started_at: NOW,
                same_boot: Some(true),
                heartbeat: heartbeat(),
                ..*expected
            };
            assert_eq!(open_as(false, mapped, 1, dir.path()).1, Some(about));
        }
    }
}

#[test]
fn without_a_boot_id_it_is_unknown_if_the_machine_restarted() {
    for (then, now, expected) in [(1, 2, Some(false)), (0, 2, None), (1, 0, None), (0, 0, None)] {
        let dir = scratch();
        drop(open_as(false, true, then, dir.path()));
        assert_eq!(open_as(false, true, now, dir.path()).1.unwrap().same_boot, expected);
    }
}

#[test]
fn after_release_an_owner_writes_nothing_to_the_page() {
    let dir = scratch();
    let (first, _) = open(dir.path());
    first.close();
    let (second, _) = open(dir.path());
    first.mark_exit(Some(7));
    first.mark_dying_of(15);
    drop(second);
    let life = open(dir.path()).1.unwrap();
    assert_eq!((life.exit, life.dying_of, life.closed), (None, None, false));
}

#[test]
fn late_calls_do_not_reach_the_page_of_the_next_owner() {
    for mapped in [true, false] {
        let dir = scratch();
        let disk = Machine::disk(1, mapped);
        let (first, _) = open_as(false, mapped, 1, dir.path());
        first.mark_task(Some(7));
        first.close();
        let (second, _) = open_as(false, mapped, 1, dir.path());
        second.mark_task(Some(7));
        let page = || std::fs::read(first_shard(dir.path()).join("status")).unwrap();
        let before = page();
        // Calls that come late: the mark of a task, counters, a phase.
        first.mark_task(None);
        first.mirror_counters(&[9; 16]);
        first.note_heartbeat(&heartbeat());
        drop(first.status.enter(Phase::Store));
        first.publish();
        assert!(page() == before, "mapped: {mapped}");
        drop(second);
        let left = super::super::status_page::StatusPage::peek(&disk, &first_shard(dir.path())).unwrap();
        assert_eq!(left.died_in_task, Some(7), "the mark is the second owner's");
    }
}

#[test]
fn an_adoption_preserves_the_run_record_for_the_next_owner() {
    let dir = scratch();
    let (queue, _) = open(dir.path());
    queue.note_heartbeat(&heartbeat());
    queue.mark_exit(Some(3));
    drop(queue);
    for _ in 0..2 {
        let (adopted, life) = open_as(true, true, 1, dir.path());
        assert!(life.is_some());
        adopted.close();
    }
    let life = open(dir.path()).1.unwrap();
    assert_eq!((life.exit, life.closed, life.heartbeat), (Some(Some(3)), false, heartbeat()));
    // A queue that no process had as its own has no run record.
    let dir = scratch();
    open_as(true, true, 1, dir.path()).0.close();
    assert_eq!(open(dir.path()).1, None);
}

#[test]
fn run_words_left_by_an_older_version_are_ignored() {
    let dir = scratch();
    let (queue, _) = open(dir.path());
    queue.mark_exit(Some(3));
    drop(queue);
    // An older version writes its start time and does not know the words behind it.
    let path = first_shard(dir.path()).join("status");
    let mut page = std::fs::read(&path).unwrap();
    page[24..32].copy_from_slice(&(NOW + 1).to_le_bytes());
    std::fs::write(&path, page).unwrap();
    assert_eq!(open(dir.path()).1, None);
}

/// The words of an owner's page, as far as it may be written.
fn page_of(queue: &Queue, mapped: bool) -> Option<Arc<OwnerPage>> {
    queue.open_owner_page(&Machine::disk(1, mapped), "notes", 4096).unwrap()
}

#[test]
fn an_owners_page_outlives_it_and_is_closed_with_it() {
    let dir = scratch();
    let (first, _) = open(dir.path());
    let page = page_of(&first, true).unwrap();
    page.words().unwrap()[7].store(77, Ordering::Relaxed);
    assert!(page_of(&first, true).is_none(), "a queue has one");
    first.close();
    assert!(page.words().is_none() && page_of(&first, true).is_none(), "it may belong to another owner");
    let (second, _) = open(dir.path());
    let page = page_of(&second, true).unwrap();
    assert_eq!((page.words().unwrap().len(), page.words().unwrap()[7].load(Ordering::Relaxed)), (512, 77));
}

#[test]
fn where_files_are_not_mapped_an_owner_has_no_page() {
    let dir = scratch();
    let (queue, _) = open_as(false, false, 1, dir.path());
    assert!(page_of(&queue, false).is_none() && !first_shard(dir.path()).join("notes").exists());
    let volatile = Queue::volatile(&Machine::disk(1, true), &options(dir.path())).unwrap();
    assert!(page_of(&volatile, true).is_none());
}
