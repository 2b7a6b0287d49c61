//! What the next owner reads from the page.

use std::path::Path;

use crate::queue::life::build_word;
use crate::queue::status::{DEATHS_MAX, Phase, Predecessor, STATUS_BYTES, StatusPage};
use crate::queue::store::Ledger;
use crate::sys::disk::Disk;

fn take_over(dir: &Path, map: bool) -> (StatusPage, Predecessor) {
    StatusPage::take_over(&Disk::default(), &dir.join("status"), map, false, 7).unwrap()
}

#[test]
fn the_next_owner_sees_what_the_last_one_counted_and_how_it_ended() {
    for map in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (page, before) = take_over(dir.path(), map);
        assert_eq!(before, Predecessor::default());
        let ledger = Ledger { accepted: 9, delivered: 4, queued_events: 5, queued_bytes: 500, ..Ledger::default() };
        page.mirror(&ledger, 3, None, 8);
        page.took(12);
        page.mark_clean_exit();
        let (_, seen) = take_over(dir.path(), map);
        assert!(seen.existed && seen.clean && seen.same_boot && !seen.died_in_store);
        assert_eq!((seen.accepted, seen.epoch, seen.ledger), (12, 3, Some(ledger)));
    }
}

#[test]
fn deaths_while_opening_count_up_and_an_opened_store_forgets_them() {
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
fn a_version_is_newer_if_both_words_say_so_and_no_flipped_bit_does() {
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
    assert!(StatusPage::peek(&Disk::default(), &dir.path().join("status")).unwrap().is_some());
}

#[test]
fn names_of_a_build_that_somebody_died_of_looking_up_are_not_looked_up_again() {
    let (one, other) = (build_word(b"one"), build_word(b"other"));
    for map in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (page, _) = take_over(dir.path(), map);
        page.mark_resolving(Some(one));
        page.mark_resolving(None);
        drop(page);
        let (page, before) = take_over(dir.path(), map);
        assert!(before.died_resolving.is_none() && !page.untrusts_symbols_of(one), "it came to an end");
        page.mark_resolving(Some(one));
        drop(page);
        let (page, before) = take_over(dir.path(), map);
        assert_eq!(before.died_resolving, Some(one));
        // Also when all that was queued has been sent, and while names of another build are looked up.
        page.mirror(&Ledger { accepted: 3, delivered: 3, ..Ledger::default() }, 3, None, 8);
        page.mark_resolving(Some(other));
        page.mark_resolving(None);
        drop(page);
        let (page, before) = take_over(dir.path(), map);
        assert!(before.died_resolving.is_none(), "it is told once");
        assert!(page.untrusts_symbols_of(one) && !page.untrusts_symbols_of(other));
        // Two that kill are both remembered, and nobody goes back and forth between them.
        page.mark_resolving(Some(other));
        drop(page);
        for _ in 0..2 {
            let (page, _) = take_over(dir.path(), map);
            assert!(page.untrusts_symbols_of(one) && page.untrusts_symbols_of(other));
            page.mark_resolving(Some(one));
        }
    }
}

#[test]
fn who_exits_while_looking_up_names_has_not_died_of_it() {
    for close in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (page, _) = take_over(dir.path(), true);
        page.mark_resolving(Some(1));
        if close {
            page.mark_clean_exit()
        } else {
            page.mark_exit(Some(0))
        }
        assert!(take_over(dir.path(), true).1.died_resolving.is_none());
    }
}
