//! What the next owner reads from the status page.

use std::path::Path;

use crate::queue::run::task_id;
use crate::queue::status_page::{DEATHS_MAX, Phase, Predecessor, STATUS_BYTES, StatusPage, Word};
use crate::queue::store::Ledger;
use crate::sys::disk::Disk;

fn take_over(dir: &Path, map: bool) -> (StatusPage, Predecessor) {
    StatusPage::take_over(&Disk::default(), &dir.join("status"), map, false, 7).unwrap()
}

#[test]
fn the_next_owner_sees_the_counters_and_the_end_of_the_last() {
    for map in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (page, before) = take_over(dir.path(), map);
        assert_eq!(before, Predecessor::default());
        let ledger = Ledger { accepted: 9, delivered: 4, queued_events: 5, queued_bytes: 500, ..Ledger::default() };
        page.mirror(&ledger, 3, None, 8);
        page.took(12);
        page.mark_clean_exit(None);
        let (_, seen) = take_over(dir.path(), map);
        assert!(seen.existed && seen.clean && seen.same_boot && !seen.died_in_store);
        assert_eq!((seen.accepted, seen.epoch, seen.ledger), (12, 3, Some(ledger)));
    }
}

#[test]
fn deaths_while_opening_add_up_until_the_store_opens() {
    let dir = tempfile::tempdir().unwrap();
    for deaths in 0..3 {
        let (page, before) = take_over(dir.path(), true);
        assert_eq!(before.deaths_opening, deaths);
        std::mem::forget(page.enter(Phase::Opening));
    }
    let (page, before) = take_over(dir.path(), true);
    assert_eq!(before.deaths_opening, DEATHS_MAX);
    page.forget_deaths();
    std::mem::forget(page.enter(Phase::Store));
    let (_, before) = take_over(dir.path(), true);
    assert!(before.died_in_store && before.deaths_opening == 0);
}

#[test]
fn a_page_whose_owner_died_between_two_words_is_not_believed() {
    let ledger = Ledger { accepted: 9, delivered: 4, queued_events: 5, queued_bytes: 500, ..Ledger::default() };
    for map in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (page, _) = take_over(dir.path(), map);
        page.mirror(&ledger, 3, Some(5), 8);
        page.set(Word::Delivered, 5);
        page.publish();
        let (page, seen) = take_over(dir.path(), map);
        assert_eq!((seen.is_damaged, seen.ledger, seen.epoch, seen.oldest_at), (true, None, 0, None));
        assert_eq!(seen.accepted, 9, "it has a check of its own");
        page.publish();
        let (_, seen) = take_over(dir.path(), map);
        assert_eq!((seen.is_damaged, seen.ledger), (false, Some(Ledger::default())), "what was wrong is gone");
    }
}

#[test]
fn the_count_that_an_owner_died_in_is_the_smaller_one() {
    let dir = tempfile::tempdir().unwrap();
    let (page, _) = take_over(dir.path(), true);
    page.took(12);
    page.set(Word::Accepted, 13);
    let seen = StatusPage::peek(&Disk::default(), dir.path()).unwrap();
    assert_eq!((seen.is_damaged, seen.accepted), (false, 12), "the record is in the journal, if it is anywhere");
    page.set(Word::Accepted, 14);
    let seen = StatusPage::peek(&Disk::default(), dir.path()).unwrap();
    assert_eq!((seen.is_damaged, seen.accepted), (true, 12));
}

#[test]
fn a_page_of_an_older_library_is_believed_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger { accepted: 9, delivered: 4, queued_events: 5, queued_bytes: 500, ..Ledger::default() };
    for (kept, clean) in [(0, 0), (0, 1), (3, 0), (3, 1)] {
        let (page, _) = take_over(dir.path(), true);
        page.mirror(&ledger, 3, None, 8);
        // Such an owner leaves the words of the check as it finds them.
        page.set(Word::CheckKept, kept);
        page.set(Word::Accepted, 12);
        page.set(Word::CleanExit, clean);
        let seen = StatusPage::peek(&Disk::default(), dir.path()).unwrap();
        assert_eq!((seen.is_damaged, seen.accepted, seen.ledger), (false, 12, Some(ledger)));
        assert_eq!((seen.clean, seen.closed_store), (clean == 1, None));
    }
}

#[test]
fn a_ledger_that_does_not_balance_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (page, _) = take_over(dir.path(), true);
    page.mirror(&Ledger { accepted: 9, delivered: 1, ..Ledger::default() }, 3, None, 8);
    assert_eq!(take_over(dir.path(), true).1.ledger, None);
}

#[test]
fn an_epoch_that_no_journal_can_have_come_to_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    for (written, believed) in [(1 << 40, 1 << 40), (u64::MAX, 0), (u64::MAX - 3, 0), (1 << 63, 0)] {
        let (page, _) = take_over(dir.path(), true);
        page.mirror(&Ledger::default(), written, None, 8);
        assert_eq!(take_over(dir.path(), true).1.epoch, believed);
    }
}

#[test]
fn a_version_is_newer_only_if_both_words_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("status");
    drop(take_over(dir.path(), true));
    let written = std::fs::read(&path).unwrap();
    let newer = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        StatusPage::newer_version(&Disk::default(), &path).unwrap()
    };
    for bit in 0..written.len().min(256) * 8 {
        let mut bytes = written.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(newer(&bytes), None, "bit {bit}");
    }
    let mut bytes = written.clone();
    bytes[8..16].copy_from_slice(&2_u64.to_le_bytes());
    bytes[168..176].copy_from_slice(&(!2_u64).to_le_bytes());
    assert_eq!(newer(&bytes), Some(2));
    assert_eq!(newer(&bytes[..100]), None);
}

#[test]
fn a_foreign_file_is_no_predecessor() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("status"), vec![b'x'; STATUS_BYTES]).unwrap();
    assert_eq!(take_over(dir.path(), true).1, Predecessor::default());
    assert!(StatusPage::peek(&Disk::default(), dir.path()).is_some());
}

#[test]
fn nothing_of_a_foreign_page_is_left_when_it_is_taken_over() {
    for map in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("status"), [0x55; STATUS_BYTES]).unwrap();
        let (page, before) = take_over(dir.path(), map);
        assert_eq!(before, Predecessor::default());
        page.publish();
        let seen = StatusPage::peek(&Disk::default(), dir.path()).unwrap();
        assert_eq!((seen.accepted, seen.ledger, seen.queued_events()), (0, Some(Ledger::default()), 0));
    }
}

#[test]
fn a_task_that_an_owner_died_in_is_remembered() {
    let (one, other) = (task_id(b"one"), task_id(b"other"));
    for map in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (page, _) = take_over(dir.path(), map);
        page.mark_task(Some(one));
        page.mark_task(None);
        drop(page);
        let (page, before) = take_over(dir.path(), map);
        assert!(before.died_in_task.is_none() && !page.is_fatal_task(one), "it came to an end");
        page.mark_task(Some(one));
        drop(page);
        let (page, before) = take_over(dir.path(), map);
        assert_eq!(before.died_in_task, Some(one));
        // The mark stays when the queue is empty, and while another task is running.
        page.mirror(&Ledger { accepted: 3, delivered: 3, ..Ledger::default() }, 3, None, 8);
        page.mark_task(Some(other));
        page.mark_task(None);
        drop(page);
        let (page, before) = take_over(dir.path(), map);
        assert!(before.died_in_task.is_none(), "it is reported once");
        assert!(page.is_fatal_task(one) && !page.is_fatal_task(other));
        // Both fatal tasks are remembered.
        page.mark_task(Some(other));
        drop(page);
        for _ in 0..2 {
            let (page, _) = take_over(dir.path(), map);
            assert!(page.is_fatal_task(one) && page.is_fatal_task(other));
            page.mark_task(Some(one));
        }
    }
}

#[test]
fn an_owner_that_exits_in_a_task_did_not_die_of_it() {
    for close in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (page, _) = take_over(dir.path(), true);
        page.mark_task(Some(1));
        if close {
            page.mark_clean_exit(None)
        } else {
            page.mark_exit(Some(0))
        }
        assert!(take_over(dir.path(), true).1.died_in_task.is_none());
    }
}

#[test]
fn a_count_copied_before_its_inverted_form_is_written_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let (page, _) = take_over(dir.path(), false);
    page.took(9);
    let word = |bytes: &[u8], word: Word| u64::from_le_bytes(*bytes[word as usize * 8..].first_chunk().unwrap());
    let mut copied = std::fs::read(dir.path().join("status")).unwrap();
    // Meanwhile a thread has appended two records.
    copied[Word::Accepted as usize * 8] = 7;
    let written = page.settled(copied);
    assert_eq!((word(&written, Word::Accepted), word(&written, Word::CleanExit)), (7, !7));
}
