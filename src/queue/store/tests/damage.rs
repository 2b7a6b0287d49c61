//! Damaged files.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use super::*;

/// Mutated files tried by each of the two loops below; 3,000 together in a release build. A debug build of the database
/// is slower by an order of magnitude.
const MUTATIONS: u64 = if cfg!(debug_assertions) { 120 } else { 1_500 };

const EVENTS: u64 = 120;

/// A store of twelve chunks, two of them delivered; its bytes and its ledger.
fn specimen() -> (Vec<u8>, Ledger) {
    let [closed, _] = specimens();
    closed
}

/// The same, as closing the store leaves it, and as a kill does: the two commits of the file differ only after a kill,
/// because closing makes further ones.
fn specimens() -> [(Vec<u8>, Ledger); 2] {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open_in(dir.path());
    let body_bytes = |epoch: u64| 30 + 40 * epoch as usize;
    for epoch in 1..=12 {
        if epoch == 12 {
            for epoch in [1, 6] {
                store.apply(&delivered(&chunk(epoch * 10 - 9, 10, body_bytes(epoch)))).unwrap();
            }
        }
        store.apply(&checkpoint_of(epoch, chunk(epoch * 10 - 9, 10, body_bytes(epoch)))).unwrap();
    }
    let ledger = store.ledger();
    assert_eq!((ledger.accepted, ledger.queued_events, ledger.imbalance()), (EVENTS, 100, 0));
    let bytes = || std::fs::read(dir.path().join("queue.redb")).unwrap();
    let killed = bytes();
    drop(store);
    [(bytes(), ledger), (killed, ledger)]
}

/// Whether the report says that something may be back that had been removed.
fn is_in_doubt(report: &OpenReport) -> bool {
    report.doubt.is_some()
}

fn store_of(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = scratch();
    let path = dir.path().join("queue.redb");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// The next number of a fixed pseudorandom series.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Damages `bytes` as disks, editors and crashes do: a bit, a run of noise, a run of zeros, a page in another place, a
/// cut.
fn mutate(bytes: &mut Vec<u8>, random: &mut u64) {
    let pages: Vec<_> =
        (0..bytes.len() / 4096).filter(|page| bytes[page * 4096..][..4096].iter().any(|b| *b != 0)).collect();
    let page = |random: &mut u64| pages[next(random) as usize % pages.len()] * 4096;
    let at = page(random) + (next(random) % 4096) as usize;
    let run = (next(random) % 600) as usize;
    match next(random) % 6 {
        0 | 1 => bytes[at] ^= 1 << (next(random) % 8),
        2 => (at..(at + run).min(bytes.len())).for_each(|i| bytes[i] = next(random) as u8),
        3 => (at..(at + run).min(bytes.len())).for_each(|i| bytes[i] = 0),
        4 => {
            let from = page(random);
            bytes.copy_within(from..from + 4096, at / 4096 * 4096);
        }
        _ => bytes.truncate(at),
    }
}

/// Makes a file that no plain open accepts, and of which every row can be read.
pub(super) fn spoil_the_magic_of(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[..9].fill(0);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_checked_open_of_a_mutated_file_loses_nothing_silently() {
    let specimens = specimens();
    let before = specimens[0].1;
    let options = StoreOptions { check_integrity: true, witness: Some(before), ..options() };
    let mut random = 0x1234_5678_9ABC_DEF1;
    for round in 0..MUTATIONS {
        let mut mutated = specimens[(round % 2) as usize].0.clone();
        mutate(&mut mutated, &mut random);
        let (dir, _path) = store_of(&mutated);
        let (store, report) = Store::open(&Disk::default(), dir.path(), &options, 1).unwrap();
        let (ledger, found) = (store.ledger(), whole_events(&store));
        assert_eq!((ledger.imbalance(), ledger.queued_events), (0, found), "round {round}: {report:?}");
        assert_eq!(ledger.accepted + report.behind_witness, EVENTS, "round {round}: {report:?}");
        let accounted = found + report.lost_events + report.behind_witness;
        if is_in_doubt(&report) || report.behind_witness > 0 {
            assert!(accounted >= before.queued_events, "round {round}: {report:?}");
        } else {
            assert_eq!(accounted, before.queued_events, "round {round}: {report:?}");
        }
        assert_eq!(report.damage.is_some(), report.damaged_file.is_some());
    }
}

#[test]
fn a_mutated_file_opened_unchecked_can_be_drained_and_balances() {
    let (bytes, before) = specimen();
    let options = StoreOptions { witness: Some(before), ..options() };
    let mut random = 0x0FED_CBA9_8765_4321;
    for round in 0..MUTATIONS {
        let mut mutated = bytes.clone();
        mutate(&mut mutated, &mut random);
        let (dir, _path) = store_of(&mutated);
        let (store, report) = Store::open(&Disk::default(), dir.path(), &options, 1).unwrap();
        drain(&store);
        let ledger = store.ledger();
        assert_eq!((ledger.imbalance(), ledger.queued_events), (0, 0), "round {round}: {report:?} {ledger:?}");
        let accepted = ledger.accepted + report.behind_witness;
        assert_eq!(accepted, EVENTS, "round {round}: {report:?} {ledger:?}");
    }
}

/// Events in the store; every record must be one of the specimen's.
fn whole_events(store: &Store) -> u64 {
    let mut events = 0;
    let read = store.read(None, usize::MAX).unwrap();
    assert!(read.damaged.is_empty(), "a checked open let a damaged row through");
    for chunk in read.chunks {
        assert_eq!(frame::frames(&chunk.frames, SALT).count(), chunk.count as usize);
        events += u64::from(chunk.count);
    }
    events
}

/// Delivers everything, reopening whenever the store asks for it.
fn drain(store: &Store) {
    for _ in 0..100 {
        let step = || {
            let mut changes = Changes::default();
            let read = store.read(None, usize::MAX)?;
            changes.remove.extend(read.chunks.iter().flat_map(|chunk| delivered(chunk).remove));
            changes.remove.extend(read.damaged);
            let nothing_left = changes.remove.is_empty();
            store.apply(&changes)?;
            Ok::<_, StoreError>(nothing_left)
        };
        match step() {
            Ok(true) => return,
            Ok(false) => {}
            Err(_) => {
                store.reopen(2).unwrap();
            }
        }
    }
    panic!("the queue does not get empty");
}

#[test]
fn a_damaged_file_is_kept_as_it_was_found() {
    let (mut bytes, before) = specimen();
    (1..bytes.len() / 4096).for_each(|page| bytes[page * 4096] = 0);
    let (dir, _path) = store_of(&bytes);
    let options = StoreOptions { witness: Some(before), check_integrity: true, ..options() };
    let (store, report) = Store::open(&Disk::default(), dir.path(), &options, 77).unwrap();
    let kept = report.damaged_file.unwrap();
    assert_eq!(kept, dir.path().join("damaged-77/queue.redb"));
    assert!(std::fs::read(kept).unwrap() == bytes);
    // Without a page nothing can be read: everything is lost, and counted.
    assert_eq!((report.lost_events, store.ledger().damaged, store.ledger().queued_events), (100, 100, 0));
    assert_eq!((store.ledger().delivered, store.ledger().imbalance()), (before.delivered, 0));
}

/// What salvage finds: the report of an open that trusts nothing, and the ledger.
fn salvaged(bytes: &[u8]) -> (OpenReport, Ledger) {
    let (dir, _path) = store_of(bytes);
    let options = StoreOptions { untrusted: true, ..options() };
    let (store, report) = Store::open(&Disk::default(), dir.path(), &options, 1).unwrap();
    (report, store.ledger())
}

#[test]
fn no_byte_of_the_header_costs_a_row() {
    for (name, (bytes, before)) in ["closed", "killed"].into_iter().zip(specimens()) {
        // Pages of 4 KiB, regions of 4 GiB that begin with pages, and version 3: salvage relies on these.
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(([12, 16, 20].map(word), [bytes[64], bytes[192]]), ([4096, 0, 1 << 20], [3, 3]));
        // If nothing says any more which commit is the newest, or where its root is, the one before it is read.
        let slot = if bytes[9] & 1 == 0 { 64 } else { 192 };
        let root = slot + 8..slot + 32;
        for at in (0..320).filter(|at| name == "closed" || *at != 9 && !root.contains(at)) {
            for flip in [0x01, 0xFF] {
                let mut mutated = bytes.clone();
                mutated[at] ^= flip;
                let (report, ledger) = salvaged(&mutated);
                assert_eq!((report.lost_events, ledger), (0, before), "{name}, byte {at} with {flip:#x}");
            }
        }
    }
}

#[test]
fn without_its_header_a_file_is_searched_for_its_rows() {
    let (mut bytes, before) = specimen();
    bytes[..4096].fill(0);
    let (dir, _path) = store_of(&bytes);
    let (store, report) = Store::open(&Disk::default(), dir.path(), &options(), 1).unwrap();
    let found: BTreeSet<u64> = read_all(&store).chunks.iter().map(|chunk| chunk.key.first_seq).collect();
    // Rows that were delivered may be back: the file does not say which pages are free.
    let waiting = (0..12).filter(|n| ![0, 5].contains(n)).map(|n| n * 10 + 1);
    assert!(waiting.into_iter().all(|seq| found.contains(&seq)), "{found:?}");
    assert_eq!((report.lost_events, store.ledger().accepted), (0, before.accepted));
    assert_eq!((store.ledger().imbalance(), store.ledger().queued_events), (0, events_in(&store)));
}

#[test]
fn one_bad_row_costs_its_bad_records_alone() {
    let (bytes, before) = specimen();
    // A byte of the body of record 25, which only the chunk that begins with 21 has.
    let body = [25_u8; 60];
    let at = bytes.windows(body.len()).position(|window| window == body).unwrap();
    let mut mutated = bytes;
    mutated[at] ^= 1;
    let (dir, _path) = store_of(&mutated);
    let (store, report) = open_in(dir.path());
    assert_eq!(report, OpenReport::default(), "a plain open does not read rows");
    let damaged = store.read(None, usize::MAX).unwrap().damaged.remove(0);
    assert_eq!((damaged.key.first_seq, damaged.keep.as_ref().map(|kept| kept.count)), (21, Some(9)));
    let applied = store.apply(&Changes { remove: vec![damaged], ..Changes::default() }).unwrap();
    assert_eq!(applied.damaged_events, 1);
    let ledger = store.ledger();
    assert_eq!((ledger.damaged, ledger.queued_events, ledger.imbalance()), (1, before.queued_events - 1, 0));
    assert_eq!(whole_events(&store), 99);
}

#[test]
fn a_row_with_a_damaged_head_is_counted_by_difference() {
    let (bytes, before) = specimen();
    let head = schema::chunk_value(&chunk(21, 10, 30 + 40 * 3))[..40].to_vec();
    let mut mutated = bytes;
    let at = mutated.windows(40).position(|window| window == head).unwrap();
    mutated[at + 5] ^= 1;
    let (dir, _path) = store_of(&mutated);
    let (store, _) = open_in(dir.path());
    let damaged = store.read(None, usize::MAX).unwrap().damaged.remove(0);
    assert_eq!(damaged.keep, None);
    let applied = store.apply(&Changes { remove: vec![damaged], ..Changes::default() }).unwrap();
    assert_eq!(applied.damaged_events, 10);
    assert_eq!((store.ledger().queued_events, store.ledger().imbalance()), (before.queued_events - 10, 0));
}

#[test]
fn a_newer_store_or_one_of_another_project_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open_in(dir.path());
    let other = Project { api_key: "phc_other".into(), ..options().project };
    let other = StoreOptions { project: other, ..options() };
    drop(store);
    let path = dir.path().join("queue.redb");
    let ours = std::fs::read(&path).unwrap();
    for check_integrity in [false, true] {
        let options = StoreOptions { check_integrity, ..other.clone() };
        let refused = Store::open(&Disk::default(), dir.path(), &options, 0);
        assert!(matches!(refused, Err(StoreError::OtherProject)), "{refused:?}");
        assert!(std::fs::read(&path).unwrap() == ours);
    }
    write_schema(&path, schema::SCHEMA + 1);
    let newer = std::fs::read(&path).unwrap();
    let refused = Store::open(&Disk::default(), dir.path(), &options(), 0);
    assert!(matches!(refused, Err(StoreError::Newer { found: 2, known: 1 })), "{refused:?}");
    assert!(std::fs::read(&path).unwrap() == newer);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_damaged_file_of_another_project_is_left_alone_too() {
    let dir = scratch();
    drop(open_in(dir.path()));
    let path = dir.path().join("queue.redb");
    spoil_the_magic_of(&path);
    let before = std::fs::read(&path).unwrap();
    let other = Project { api_key: "phc_other".into(), ..options().project };
    let refused = Store::open(&Disk::default(), dir.path(), &StoreOptions { project: other, ..options() }, 0);
    assert!(matches!(refused, Err(StoreError::OtherProject)), "{refused:?}");
    assert!(std::fs::read(&path).unwrap() == before);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_removed_row_is_noticed_at_open() {
    let (bytes, _) = specimen();
    let (dir, path) = store_of(&bytes);
    let db = Database::open(path).unwrap();
    let transaction = db.begin_write().unwrap();
    let key = schema::chunk_key(ChunkKey::new(41));
    assert!(transaction.open_table(schema::CHUNKS).unwrap().remove(key.as_slice()).unwrap().is_some());
    transaction.commit().unwrap();
    drop(db);
    let (store, report) = open_in(dir.path());
    assert_eq!((report.lost_events, report.damaged_file.is_some()), (10, true));
    assert_eq!((store.ledger().damaged, store.ledger().imbalance()), (10, 0));
}

#[test]
fn a_row_whose_key_is_damaged_is_found_once_the_others_are_gone() {
    let (bytes, _) = specimen();
    let (dir, path) = store_of(&bytes);
    let db = Database::open(path).unwrap();
    let transaction = db.begin_write().unwrap();
    {
        let mut table = transaction.open_table(schema::CHUNKS).unwrap();
        let key = |prefix| schema::chunk_key(ChunkKey { prefix, first_seq: 41 });
        let value = table.remove(key(0).as_slice()).unwrap().unwrap().value().to_vec();
        table.insert(key(64).as_slice(), value.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(db);
    let (store, report) = open_in(dir.path());
    assert_eq!(report, OpenReport::default());
    drain(&store);
    let ledger = store.ledger();
    assert_eq!((ledger.delivered, ledger.damaged, ledger.imbalance()), (110, 10, 0));
}

#[test]
fn what_is_still_queued_when_the_last_row_has_gone_is_damaged() {
    let ledger = Ledger { accepted: 7, queued_events: 7, queued_bytes: 700, ..Ledger::default() };
    let state = State { ledger, ..State::default() };
    let opened = open::in_memory(&options(), &state).unwrap();
    let (state, applied) = transaction::commit(&opened.db, &state, &Changes::default(), 0).unwrap();
    assert_eq!(state.ledger, Ledger { accepted: 7, damaged: 7, ..Ledger::default() });
    assert_eq!(applied.damaged_events, 7);
}

#[test]
fn a_file_with_a_damaged_commit_slot_falls_back_to_the_other() {
    let (mut bytes, before) = specimen();
    let newest = 64 + 128 * usize::from(bytes[9] & 1);
    bytes[newest + 40] ^= 1;
    bytes[..9].fill(0);
    let (dir, _path) = store_of(&bytes);
    // The last commit is the one that closed the file; it changed no row.
    let (store, report) = open_in(dir.path());
    assert_eq!((report.salvaged_events, report.lost_events, store.ledger()), (100, 0, before));
}

fn write_schema(path: &Path, version: u32) {
    let db = Database::open(path).unwrap();
    let transaction = db.begin_write().unwrap();
    let value = schema::schema_value(version);
    transaction.open_table(schema::META).unwrap().insert(schema::SCHEMA_ROW, value.as_slice()).unwrap();
    transaction.commit().unwrap();
}

#[test]
fn an_empty_or_missing_file_is_a_loss_if_it_had_content() {
    let (_, before) = specimen();
    let options = StoreOptions { witness: Some(before), ..options() };
    let (dir, path) = store_of(b"");
    let (store, report) = Store::open(&Disk::default(), dir.path(), &options, 1).unwrap();
    assert_eq!((report.lost_events, report.damaged_file.is_some()), (100, true));
    drop(store);
    std::fs::remove_file(path).unwrap();
    let (store, report) = Store::open(&Disk::default(), dir.path(), &options, 1).unwrap();
    assert_eq!((report.fresh, report.lost_events, store.ledger().imbalance()), (true, 100, 0));
}

#[test]
fn an_older_file_put_in_place_is_noticed() {
    let (bytes, before) = specimen();
    let (dir, _path) = store_of(&bytes);
    let witness = Ledger { accepted: 130, delivered: before.delivered + 10, ..before };
    let options = StoreOptions { witness: Some(witness), ..options() };
    let (_store, report) = Store::open(&Disk::default(), dir.path(), &options, 1).unwrap();
    assert_eq!(report, OpenReport { behind_witness: 10, ..OpenReport::default() });
}

#[test]
fn an_untrusted_file_is_rebuilt_unopened_and_only_once() {
    let (bytes, before) = specimen();
    let (dir, _path) = store_of(&bytes);
    let options = StoreOptions { untrusted: true, ..options() };
    let (store, report) = Store::open(&Disk::default(), dir.path(), &options, 1).unwrap();
    assert_eq!((report.salvaged_events, report.lost_events, store.ledger()), (100, 0, before));
    assert_eq!(store.reopen(2).unwrap(), OpenReport::default());
}

#[test]
fn rows_between_two_bad_pages_are_found() {
    let dir = scratch();
    let (store, _) = open_in(dir.path());
    for epoch in 1..=64 {
        store.apply(&checkpoint_of(epoch, chunk(epoch * 10 - 9, 10, 600))).unwrap();
    }
    drop(store);
    let path = dir.path().join("queue.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    // Whole leaves: the database reports them as corrupted.
    for record in [101, 301, 501] {
        let body = [record as u8; 600];
        let page = bytes.windows(600).position(|window| window == body).unwrap() / 4096 * 4096;
        bytes[page..page + 4096].fill(0xEE);
    }
    std::fs::write(&path, bytes).unwrap();
    let options = StoreOptions { check_integrity: true, ..options() };
    let (store, report) = Store::open(&Disk::default(), dir.path(), &options, 1).unwrap();
    assert!((580..=610).contains(&report.salvaged_events), "{report:?}");
    assert_eq!((report.salvaged_events + report.lost_events, store.ledger().imbalance()), (640, 0));
}

#[test]
fn a_file_whose_rows_kill_readers_is_moved_away_unread() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open_in(dir.path());
    store.apply(&checkpoint(1, 1, 20)).unwrap();
    let witness = Some(store.ledger());
    drop(store);
    let before = std::fs::read(dir.path().join("queue.redb")).unwrap();
    let options = StoreOptions { untrusted: true, unreadable: true, witness, ..options() };
    let (store, report) = Store::open(&Disk::default(), dir.path(), &options, 1_000).unwrap();
    assert_eq!((report.lost_events, report.salvaged_events), (20, 0));
    assert_eq!((store.ledger().damaged, store.ledger().queued_events, store.ledger().imbalance()), (20, 0, 0));
    assert!(std::fs::read(report.damaged_file.unwrap()).unwrap() == before, "the file was not changed");
    store.apply(&checkpoint(2, 21, 5)).unwrap();
    assert_eq!(store.ledger().queued_events, 5);
}

/// A directory with a store of 12 chunks and beside it the finished file of a replacement, changed by `change`.
fn with_replacement(change: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, Vec<u8>) {
    let (bytes, _) = specimen();
    let (dir, _) = store_of(&bytes);
    let mut ready = bytes.clone();
    change(&mut ready);
    std::fs::write(dir.path().join("queue.redb.ready"), ready).unwrap();
    (dir, bytes)
}

#[test]
fn a_sound_replacement_is_completed() {
    let (dir, bytes) = with_replacement(|_| ());
    spoil_the_magic_of(&dir.path().join("queue.redb"));
    let (store, report) = open_in(dir.path());
    let kept = dir.path().join("damaged-1000/queue.redb");
    assert_eq!((report.damaged_file, report.refused, whole_events(&store)), (Some(kept.clone()), None, 100));
    assert!(std::fs::read(kept).unwrap()[9..] == bytes[9..]);
}

#[test]
fn a_damaged_replacement_never_replaces_a_good_store() {
    let mut random = 0x3141_5926_5358_9793;
    for round in 0..MUTATIONS / 4 {
        let mut is_changed = false;
        let (dir, bytes) = with_replacement(|ready| {
            let before = ready.clone();
            match round {
                0 => ready.clear(),
                1 => ready.truncate(4096),
                2 => ready[..9].fill(0),
                _ => mutate(ready, &mut random),
            }
            is_changed = *ready != before;
        });
        let ready = std::fs::read(dir.path().join("queue.redb.ready")).unwrap();
        let (store, report) = open_in(dir.path());
        assert_eq!((whole_events(&store), store.ledger().queued_events), (100, 100), "round {round}: {report:?}");
        assert_eq!(report.lost_events, 0, "round {round}");
        assert!(!dir.path().join("queue.redb.ready").exists());
        // Damage of a free page, or of the commit before the last, is none.
        let Some((kept, why)) = report.refused else {
            assert!(round > 2 && report.damaged_file.is_some(), "round {round}");
            continue;
        };
        assert!(is_changed && !why.is_empty() && report.damage.is_none(), "round {round}");
        assert_eq!(kept, dir.path().join("damaged-1000/queue.redb.ready"));
        assert!(std::fs::read(kept).unwrap() == ready, "it is kept as it was");
        drop(store);
        assert!(std::fs::read(dir.path().join("queue.redb")).unwrap().len() >= bytes.len());
    }
}

#[test]
fn an_older_or_foreign_replacement_is_moved_away() {
    let (older, _) = specimen();
    let foreign = {
        let dir = scratch();
        let project = Project { api_key: "phc_other".into(), ..options().project };
        drop(Store::open(&Disk::default(), dir.path(), &StoreOptions { project, ..options() }, 1).unwrap());
        std::fs::read(dir.path().join("queue.redb")).unwrap()
    };
    for (ready, expected) in [(older, "older than the store"), (foreign, "another project")] {
        let (dir, _) = with_replacement(|_| ());
        std::fs::remove_file(dir.path().join("queue.redb.ready")).unwrap();
        let (store, _) = open_in(dir.path());
        store.apply(&checkpoint_of(13, chunk(121, 10, 100))).unwrap();
        drop(store);
        std::fs::write(dir.path().join("queue.redb.ready"), ready).unwrap();
        let (store, report) = open_in(dir.path());
        let (kept, why) = report.refused.unwrap();
        assert!(why.contains(expected) && kept.exists(), "{why}");
        assert_eq!((whole_events(&store), report.damaged_file), (110, None));
    }
}

#[test]
fn a_replacement_is_not_opened_after_processes_died_opening() {
    let (dir, _) = with_replacement(|_| ());
    let options = StoreOptions { untrusted: true, ..options() };
    let opened = Store::open(&Disk::default(), dir.path(), &options, 1000).unwrap();
    let (store, report) = opened;
    assert!(report.refused.is_some_and(|(kept, why)| kept.exists() && why.contains("not trusted")));
    assert_eq!((whole_events(&store), report.lost_events), (100, 0));
}

#[test]
fn a_damaged_replacement_is_salvaged_where_it_is_all_that_is_left() {
    let (dir, _) = with_replacement(|ready| ready[..9].fill(0));
    std::fs::remove_file(dir.path().join("queue.redb")).unwrap();
    let (store, report) = open_in(dir.path());
    assert_eq!((whole_events(&store), report.lost_events, report.refused), (100, 0, None));
    assert_eq!(report.damaged_file, Some(dir.path().join("damaged-1000/queue.redb")));
}

/// A store of one chunk and of 30 dead letters, one of them on each page or two.
fn with_dead_letters() -> Vec<u8> {
    let dir = scratch();
    let (store, _) = open_in(dir.path());
    store.apply(&checkpoint(1, 1, 40)).unwrap();
    let dead = |seq: u64| DeadRecord {
        seq,
        status: 400,
        reason: "a mistake".into(),
        first_attempt: 1,
        last_attempt: 2,
        attempts: 1,
        body: vec![seq as u8; 2_500],
    };
    let keep = Some(chunk(31, 10, 100));
    let removal = Removal { key: ChunkKey::new(1), keep, delivered: 0, dead_lettered: 30, evicted: 0 };
    let changes = Changes { remove: vec![removal], dead_letter: (1..=30).map(dead).collect(), ..Changes::default() };
    store.apply(&changes).unwrap();
    assert_eq!((store.ledger().dead_lettered, store.ledger().imbalance()), (30, 0));
    drop(store);
    std::fs::read(dir.path().join("queue.redb")).unwrap()
}

#[test]
fn dead_letters_that_are_lost_count_as_damaged() {
    let bytes = with_dead_letters();
    let of = |seq: u8| bytes.windows(2_500).rposition(|window| window.iter().all(|byte| *byte == seq)).unwrap();
    let (mut flipped, mut zeroed, mut rootless) = (bytes.clone(), bytes.clone(), bytes.clone());
    flipped[of(7)] ^= 1;
    zeroed[of(7) / 4096 * 4096..][..4096].fill(0);
    rootless.chunks_mut(4096).skip(1).filter(|page| page[0] == 2).for_each(|page| page.fill(0));
    for (mutated, lost) in [(bytes.clone(), 0..=0), (flipped, 1..=1), (zeroed, 1..=3), (rootless, 0..=0)] {
        let (dir, _path) = store_of(&mutated);
        let options = StoreOptions { untrusted: true, ..options() };
        let (store, report) = Store::open(&Disk::default(), dir.path(), &options, 1).unwrap();
        let (ledger, left) = (store.ledger(), store.dead_seqs().unwrap().len() as u64);
        assert!(lost.contains(&report.lost_events), "{report:?}");
        assert_eq!((left, ledger.dead_lettered), (30 - report.lost_events, left), "{report:?}");
        assert_eq!((ledger.damaged, ledger.queued_events, ledger.imbalance()), (report.lost_events, 10, 0));
    }
}

#[cfg(feature = "inspect")]
#[test]
fn a_rewrite_counts_the_dead_letters_that_it_cannot_read() {
    let mut bytes = with_dead_letters();
    let body = bytes.windows(2_500).rposition(|window| window.iter().all(|byte| *byte == 7)).unwrap();
    bytes[body] ^= 1;
    let (dir, _path) = store_of(&bytes);
    let (store, _) = open_in(dir.path());
    let rewritten = store.rewrite(&mut |_, _| true).unwrap();
    let ledger = store.ledger();
    assert_eq!((rewritten.damaged, ledger.damaged, ledger.dead_lettered, ledger.imbalance()), (1, 1, 29, 0));
}

/// A store of 4,000 chunks of one to three records, filled by 40 transactions, of which the last also removed rows; its
/// bytes and its chunks.
fn large_specimen() -> (Vec<u8>, Vec<Chunk>) {
    let dir = scratch();
    let (store, _) = open_in(dir.path());
    let (mut chunks, mut next_seq) = (Vec::new(), 1);
    for epoch in 1..=40 {
        let insert: Vec<_> = (0..100_u32)
            .map(|n| {
                let chunk = chunk(next_seq, 1 + n % 3, 20 + (n as usize * 37) % 400);
                next_seq += u64::from(chunk.count);
                chunk
            })
            .collect();
        chunks.extend(insert.clone());
        let changes = Changes {
            insert,
            remove: if epoch == 40 { delivered(&chunks[0]).remove } else { Vec::new() },
            journal_epoch: Some(epoch),
            accepted_up_to: next_seq - 1,
            ..Changes::default()
        };
        store.apply(&changes).unwrap();
    }
    // As a kill leaves it: the two commits differ.
    let bytes = std::fs::read(dir.path().join("queue.redb")).unwrap();
    drop(store);
    chunks.remove(0);
    (bytes, chunks)
}

/// The events of the chunks whose rows are whole somewhere in these bytes.
fn searched(bytes: &[u8], chunks: &[Chunk]) -> BTreeSet<u64> {
    let values: HashMap<Vec<u8>, (u64, Vec<u8>)> = chunks
        .iter()
        .map(|chunk| (schema::chunk_value(chunk), chunk.key.first_seq))
        .map(|(value, seq)| (value[..40].to_vec(), (seq, value)))
        .collect();
    let mut found = BTreeSet::new();
    for at in 0..bytes.len().saturating_sub(40) {
        if bytes[at..at + 4] == [1, 0, 0, 0]
            && let Some((seq, value)) = values.get(&bytes[at..at + 40])
            && bytes[at..].starts_with(value)
        {
            found.insert(*seq);
        }
    }
    found
}

#[test]
fn every_row_on_a_whole_page_is_saved() {
    let (bytes, chunks) = large_specimen();
    let pages = bytes.len() / 4096;
    let used = (0..pages).rev().find(|page| bytes[page * 4096..][..4096].iter().any(|byte| *byte != 0)).unwrap();
    let without = |is_bad: &dyn Fn(usize, u8) -> bool| {
        let mut bytes = bytes.clone();
        let bad: Vec<_> = (1..pages).filter(|page| is_bad(*page, bytes[page * 4096])).collect();
        bad.iter().for_each(|page| bytes[page * 4096..][..4096].fill(0));
        bytes
    };
    let cases = [
        ("the end is cut off", bytes[..(used - 10) * 4096].to_vec()),
        ("the end is cut off within a page", bytes[..(used - 40) * 4096 + 77].to_vec()),
        ("many leaves are bad", without(&|page, kind| kind == 1 && page % 7 == 0)),
        ("every third page is bad", without(&|page, _| page % 3 == 0)),
        ("a run is bad", without(&|page, _| (100..130).contains(&page))),
        ("every branch is bad", without(&|_, kind| kind == 2)),
    ];
    for (name, mutated) in cases {
        let expected = searched(&mutated, &chunks);
        let (dir, _path) = store_of(&mutated);
        let options = StoreOptions { untrusted: true, ..options() };
        let (store, report) = Store::open(&Disk::default(), dir.path(), &options, 1).unwrap();
        let saved: BTreeSet<u64> = read_all(&store).chunks.iter().map(|chunk| chunk.key.first_seq).collect();
        let lost: Vec<_> = expected.difference(&saved).collect();
        assert!(lost.is_empty() && expected.len() > 1000, "{name}: {} of {} lost", lost.len(), expected.len());
        assert_eq!(store.ledger().imbalance(), 0, "{name}: {report:?}");
    }
}

#[test]
fn one_bad_byte_after_a_kill_costs_no_more_than_its_rows() {
    let dir = scratch();
    let (store, _) = open_in(dir.path());
    for epoch in 1..=30 {
        store.apply(&checkpoint_of(epoch, chunk(epoch * 10 - 9, 10, 30))).unwrap();
    }
    // What is kept of a row has another key if its first record is gone.
    let before = chunk(101, 10, 30);
    let kept = before.retain(|seq| seq > 101).unwrap();
    let removal = Removal { delivered: 1, ..Removal::keeping(before.key, Some(kept)) };
    let insert = (31..=35).map(|epoch| chunk(epoch * 10 - 9, 10, 30)).collect();
    let last = Changes { insert, journal_epoch: Some(31), accepted_up_to: 350, ..Changes::default() };
    store.apply(&Changes { remove: vec![removal], ..last }).unwrap();
    let queued = store.ledger().queued_events;
    // As a kill leaves it: closing makes further commits.
    let bytes = std::fs::read(dir.path().join("queue.redb")).unwrap();
    drop(store);
    let mut found = 0;
    for at in (4096..bytes.len()).step_by(700) {
        let mut mutated = bytes.clone();
        mutated[at] ^= 0xFF;
        let (dir, _path) = store_of(&mutated);
        let options = StoreOptions { untrusted: true, ..options() };
        let (store, report) = Store::open(&Disk::default(), dir.path(), &options, 1).unwrap();
        let ledger = store.ledger();
        let mut seqs = BTreeSet::new();
        for chunk in read_all(&store).chunks {
            for (head, _) in frame::frames(&chunk.frames, chunk.salt) {
                assert!(seqs.insert(head.seq), "byte {at}: record {} is there twice", head.seq);
            }
        }
        // The byte may belong to the heads of two rows; what the page before had of others is there.
        let bounds = queued - 20..=queued + 1;
        assert!(bounds.contains(&ledger.queued_events) && ledger.imbalance() == 0, "byte {at}: {report:?}");
        found += u64::from(ledger.queued_events < queued);
    }
    assert!(found > 0, "no byte belonged to a row");
}

/// Pairs of leaves of 4 KiB: where they begin.
fn pairs_of_leaves(bytes: &[u8]) -> Vec<(usize, usize)> {
    let leaves: Vec<_> = (4096..bytes.len()).step_by(4096).filter(|at| bytes[*at] == 1).collect();
    leaves.iter().zip(leaves.iter().skip(9)).step_by(70).map(|(first, second)| (*first, *second)).collect()
}

#[test]
fn rows_on_exchanged_pages_are_saved() {
    let (bytes, chunks) = large_specimen();
    let events = chunks.iter().map(|chunk| u64::from(chunk.count)).sum::<u64>();
    let is_used = |at: usize| {
        let mut mutated = bytes.clone();
        mutated[at..at + 4096].fill(0);
        salvaged(&mutated).1.queued_events < events
    };
    let mut exchanged = 0;
    for (first, second) in
        pairs_of_leaves(&bytes).into_iter().filter(|(first, second)| is_used(*first) && is_used(*second))
    {
        let mut mutated = bytes.clone();
        let (low, high) = mutated.split_at_mut(second);
        low[first..first + 4096].swap_with_slice(&mut high[..4096]);
        let (report, ledger) = salvaged(&mutated);
        assert_eq!((ledger.queued_events, report.lost_events), (events, 0), "{first} and {second}: {report:?}");
        exchanged += 1;
    }
    assert!(exchanged > 0, "no two of the pages are in use");
}

#[test]
fn a_page_that_was_written_over_another_is_noticed_when_it_is_read() {
    let (bytes, chunks) = large_specimen();
    let mut noticed = 0;
    for (first, second) in pairs_of_leaves(&bytes) {
        let mut mutated = bytes.clone();
        mutated.copy_within(first..first + 4096, second);
        let (dir, _path) = store_of(&mutated);
        let (store, report) = Store::open(&Disk::default(), dir.path(), &options(), 1).unwrap();
        match store.read(None, usize::MAX) {
            // A page that is not part of the newest commit.
            Ok(read) => assert!(
                report.damage.is_some()
                    || read.chunks.iter().map(|chunk| chunk.key).eq(chunks.iter().map(|chunk| chunk.key)),
                "{first} over {second}: other rows are read, and nothing is said"
            ),
            Err(error) => {
                assert!(error.is_damage(), "{error}");
                noticed += 1;
            }
        }
    }
    assert!(noticed > 0, "no page was one that is read");
}
