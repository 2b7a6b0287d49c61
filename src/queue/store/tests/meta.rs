//! Entries that the owner keeps in the `meta` table: the next owner finds them, and a damaged entry does not count as
//! damage of the store.

use redb::{Database, ReadableTable};

use super::super::schema::META;
use super::*;

const ROW: &[u8] = b"definitions";

/// Changes the bytes of the row directly in the file.
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
fn a_meta_entry_is_found_by_the_next_owner_until_removed() {
    let dir = scratch();
    let (store, _) = open_in(dir.path());
    assert_eq!(store.meta("definitions"), None);
    store.apply(&checkpoint(1, 1, 10)).unwrap();
    for content in [&b"one"[..], &[7; 300_000]] {
        store.put_meta("definitions", Some(content)).unwrap();
    }
    let ledger = store.ledger();
    drop(store);
    let (store, report) = open_in(dir.path());
    assert_eq!((store.meta("definitions"), report), (Some(vec![7; 300_000]), OpenReport::default()));
    assert_eq!((store.ledger(), events_in(&store)), (ledger, 10));
    store.put_meta("definitions", None).unwrap();
    drop(store);
    assert_eq!(open_in(dir.path()).0.meta("definitions"), None);
}

#[test]
fn a_damaged_meta_entry_is_absent_and_the_store_intact() {
    let changes: [fn(&mut Vec<u8>); 5] = [
        |value| value[5] ^= 1,
        |value| value.truncate(7),
        |value| value.clear(),
        |value| value.extend_from_slice(b"more"),
        |value| {
            // Valid, and of a version that is not known yet.
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
        store.put_meta("definitions", Some(b"definitions")).unwrap();
        drop(store);
        rewrite(dir.path(), change);
        let (store, report) = open_in(dir.path());
        assert_eq!((store.meta("definitions"), report), (None, OpenReport::default()), "{number}");
        assert_eq!((events_in(&store), store.is_latched()), (10, false));
        store.put_meta("definitions", Some(b"again")).unwrap();
        assert_eq!(store.meta("definitions").as_deref(), Some(&b"again"[..]));
    }
}

#[test]
fn a_large_meta_entry_does_not_cause_repeated_compaction() {
    let (dir, fault) = (scratch(), Fault::of(Op::Write, "queue.redb", full));
    let (store, _) = Store::open(&Disk::gated(fault.clone()), dir.path(), &options(), 1_000).unwrap();
    store.put_meta("definitions", Some(&vec![7; 4 << 20])).unwrap();
    store.compact_if_small(16 << 20, 0).unwrap();
    // From here on each write fails. No compaction is tried: it would write even if it moved nothing.
    fault.arm(0);
    assert!(!store.compact_if_small(16 << 20, 0).unwrap());
    assert_eq!(store.meta("definitions").map(|kept| kept.len()), Some(4 << 20));
}

#[test]
fn a_full_disk_refuses_a_meta_entry_and_keeps_the_events() {
    let (dir, fault) = (scratch(), Fault::of(Op::Write, "queue.redb", full));
    let disk = Disk::gated(fault.clone());
    let (store, _) = Store::open(&disk, dir.path(), &options(), 1_000).unwrap();
    store.apply(&checkpoint(1, 1, 10)).unwrap();
    fault.arm(0);
    assert!(matches!(store.put_meta("definitions", Some(b"definitions")), Err(StoreError::NoSpace(_))));
    fault.disarm();
    store.reopen(2_000).unwrap();
    assert_eq!((store.meta("definitions"), events_in(&store)), (None, 10));
}
