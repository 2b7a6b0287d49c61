//! What an owner leaves of its life, for the next owner to read.

use super::*;
use crate::sys::disk::OomCount;

type End = fn(&Shard);

fn open_as(adopts: bool, mapped: bool, boot_id: u128, queue_dir: &Path) -> (Shard, Option<Life>) {
    let disk = Machine::disk(boot_id, mapped);
    let claim = claim(&disk, &queue_dir.join(project().dir_name()), &[]).unwrap();
    let opened = Shard::open(&disk, &ShardOptions { adopts, ..options(queue_dir) }, claim, NOW).unwrap();
    (opened.shard, opened.before.life)
}

fn open(queue_dir: &Path) -> (Shard, Option<Life>) {
    open_as(false, true, 1, queue_dir)
}

fn sign() -> Sign {
    Sign {
        at: NOW + 5,
        alive_for: Duration::from_secs(5),
        watches_exit: true,
        watches_termination: true,
        oom: Some(OomCount { path: 1, inode: 2, kills: 3 }),
    }
}

#[test]
fn the_next_owner_reads_the_last_sign_and_the_end() {
    let ends: [(End, Life); 5] = [
        (|_| (), Life::default()),
        (|shard| shard.mark_exit(Some(3)), Life { exit: Some(Some(3)), ..Life::default() }),
        (|shard| shard.mark_exit(None), Life { exit: Some(None), ..Life::default() }),
        (|shard| shard.mark_dying_of(15), Life { dying_of: Some(15), ..Life::default() }),
        (Shard::close, Life { closed: true, ..Life::default() }),
    ];
    for mapped in [true, false] {
        for (end, expected) in &ends {
            let dir = scratch();
            let (shard, before) = open_as(false, mapped, 1, dir.path());
            assert_eq!(before, None, "there was nobody");
            shard.note_sign(&sign());
            shard.publish();
            end(&shard);
            drop(shard);
            let about =
                Life { pid: std::process::id(), started_at: NOW, same_boot: Some(true), sign: sign(), ..*expected };
            assert_eq!(open_as(false, mapped, 1, dir.path()).1, Some(about));
        }
    }
}

#[test]
fn a_machine_that_does_not_say_when_it_was_started_leaves_that_open() {
    for (then, now, expected) in [(1, 2, Some(false)), (0, 2, None), (1, 0, None), (0, 0, None)] {
        let dir = scratch();
        drop(open_as(false, true, then, dir.path()));
        assert_eq!(open_as(false, true, now, dir.path()).1.unwrap().same_boot, expected);
    }
}

#[test]
fn whoever_has_let_go_of_a_shard_writes_no_more_to_its_page() {
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
fn what_ends_late_does_not_reach_the_page_of_the_next_owner() {
    for mapped in [true, false] {
        let dir = scratch();
        let disk = Machine::disk(1, mapped);
        let (first, _) = open_as(false, mapped, 1, dir.path());
        first.mark_resolving(Some(7));
        first.close();
        let (second, _) = open_as(false, mapped, 1, dir.path());
        second.mark_resolving(Some(7));
        let page = || std::fs::read(first_shard(dir.path()).join("status")).unwrap();
        let before = page();
        // A look-up that was under way when the shard was let go, counts of refusals, a phase.
        first.mark_resolving(None);
        first.mirror_refusals(&[9; 16]);
        first.note_sign(&sign());
        drop(first.status.enter(Phase::Store));
        first.publish();
        assert!(page() == before, "mapped: {mapped}");
        drop(second);
        let status = first_shard(dir.path()).join("status");
        let left = super::super::status::StatusPage::peek(&disk, &status).unwrap().unwrap();
        assert_eq!(left.died_resolving, Some(7), "the mark is the second owner's");
    }
}

#[test]
fn an_adoption_leaves_the_life_that_is_written_there_to_the_next_owner() {
    let dir = scratch();
    let (shard, _) = open(dir.path());
    shard.note_sign(&sign());
    shard.mark_exit(Some(3));
    drop(shard);
    for _ in 0..2 {
        let (adopted, life) = open_as(true, true, 1, dir.path());
        assert!(life.is_some());
        adopted.close();
    }
    let life = open(dir.path()).1.unwrap();
    assert_eq!((life.exit, life.closed, life.sign), (Some(Some(3)), false, sign()));
    // Of one that nobody has lived in it says nothing.
    let dir = scratch();
    open_as(true, true, 1, dir.path()).0.close();
    assert_eq!(open(dir.path()).1, None);
}

#[test]
fn words_that_an_older_version_left_standing_are_not_believed() {
    let dir = scratch();
    let (shard, _) = open(dir.path());
    shard.mark_exit(Some(3));
    drop(shard);
    // It writes its start time, and knows nothing of the words behind.
    let path = first_shard(dir.path()).join("status");
    let mut page = std::fs::read(&path).unwrap();
    page[24..32].copy_from_slice(&(NOW + 1).to_le_bytes());
    std::fs::write(&path, page).unwrap();
    assert_eq!(open(dir.path()).1, None);
}
