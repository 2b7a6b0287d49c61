//! The row of the definitions: found again by the next owner, and never a reason to distrust the queue.

use redb::{Database, ReadableTable};

use super::super::tables::META;
use super::*;

const ROW: &[u8] = b"flag_definitions";

/// The row's bytes, changed by whoever has the file.
fn rewrite(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let db = Database::open(dir.join("queue.redb")).unwrap();
    let transaction = db.begin_write().unwrap();
    {
        let mut meta = transaction.open_table(META).unwrap();
        let mut value = meta.get(ROW).unwrap().unwrap().value().to_vec();
        change(&mut value);
        meta.insert(ROW, value.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
}

#[test]
fn what_was_kept_is_found_by_the_next_owner_until_it_is_forgotten() {
    let dir = scratch();
    let (store, _) = open_in(dir.path());
    assert_eq!(store.kept_definitions(), None);
    store.apply(&checkpoint(1, 1, 10)).unwrap();
    for content in [&b"one"[..], &[7; 300_000]] {
        store.keep_definitions(Some(content)).unwrap();
    }
    let ledger = store.ledger();
    drop(store);
    let (store, report) = open_in(dir.path());
    assert_eq!((store.kept_definitions(), report), (Some(vec![7; 300_000]), OpenReport::default()));
    assert_eq!((store.ledger(), events_in(&store)), (ledger, 10));
    store.keep_definitions(None).unwrap();
    drop(store);
    assert_eq!(open_in(dir.path()).0.kept_definitions(), None);
}

#[test]
fn a_row_that_is_torn_or_of_another_version_is_as_if_absent_and_no_damage() {
    let changes: [fn(&mut Vec<u8>); 5] = [
        |value| value[5] ^= 1,
        |value| value.truncate(7),
        |value| value.clear(),
        |value| value.extend_from_slice(b"more"),
        |value| {
            // Whole, and of a version that nobody knows yet.
            value.truncate(value.len() - 8);
            value[0] = 2;
            let check = xxhash_rust::xxh3::xxh3_64(value);
            value.extend_from_slice(&check.to_le_bytes());
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let dir = scratch();
        let (store, _) = open_in(dir.path());
        store.apply(&checkpoint(1, 1, 10)).unwrap();
        store.keep_definitions(Some(b"definitions")).unwrap();
        drop(store);
        rewrite(dir.path(), change);
        let (store, report) = open_in(dir.path());
        assert_eq!((store.kept_definitions(), report), (None, OpenReport::default()), "{number}");
        assert_eq!((events_in(&store), store.is_latched()), (10, false));
        store.keep_definitions(Some(b"again")).unwrap();
        assert_eq!(store.kept_definitions().as_deref(), Some(&b"again"[..]));
    }
}

#[test]
fn a_large_row_does_not_have_the_file_compacted_again_and_again() {
    let (dir, fault) = (scratch(), Fault::of(Op::Write, "queue.redb", full));
    let (store, _) = Store::open(&Disk::gated(fault.clone()), dir.path(), &options(), 1_000).unwrap();
    store.keep_definitions(Some(&vec![7; 4 << 20])).unwrap();
    store.compact_if_small(16 << 20, 0).unwrap();
    // Not even tried: a compaction that finds nothing to move writes all the same.
    fault.arm(0);
    assert!(!store.compact_if_small(16 << 20, 0).unwrap());
    assert_eq!(store.kept_definitions().map(|kept| kept.len()), Some(4 << 20));
}

#[test]
fn on_a_disk_whose_last_room_is_for_acks_nothing_is_kept_and_the_store_goes_on() {
    let (dir, fault) = (scratch(), Fault::of(Op::Write, "queue.redb", full));
    let disk = Disk::gated(fault.clone());
    let (store, _) = Store::open(&disk, dir.path(), &options(), 1_000).unwrap();
    store.apply(&checkpoint(1, 1, 10)).unwrap();
    fault.arm(0);
    assert!(matches!(store.keep_definitions(Some(b"definitions")), Err(StoreError::NoSpace(_))));
    fault.disarm();
    store.reopen(2_000).unwrap();
    assert_eq!((store.kept_definitions(), events_in(&store)), (None, 10));
}
