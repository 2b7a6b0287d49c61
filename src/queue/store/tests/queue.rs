//! The store on a healthy disk.

use super::*;

#[test]
fn a_queue_comes_back_after_it_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (store, report) = open_in(dir.path());
    assert!(report.fresh);
    store.apply(&checkpoint(1, 1, 10)).unwrap();
    let dead = DeadRecord {
        seq: 1,
        status: 400,
        reason: "no event name".into(),
        first_attempt: 1,
        last_attempt: 2,
        attempts: 3,
        body: b"body".to_vec(),
    };
    let keep = chunk(1, 10, 100).retain(|seq| seq > 4);
    let removal = Removal { key: ChunkKey::new(1), keep, delivered: 3, dead_lettered: 1, evicted: 0 };
    let changes = Changes {
        remove: vec![removal],
        dead_letter: vec![dead.clone()],
        next_attempt: Some(Some(77)),
        ..Changes::default()
    };
    assert_eq!(store.apply(&changes).unwrap(), Applied::default());
    let ledger = store.ledger();
    drop(store);

    let (store, report) = open_in(dir.path());
    assert_eq!(report, OpenReport::default());
    assert_eq!((store.ledger(), store.ledger().imbalance()), (ledger, 0));
    assert_eq!((ledger.accepted, ledger.delivered, ledger.dead_lettered, ledger.queued_events), (10, 3, 1, 6));
    assert_eq!((store.journal_epoch(), store.next_attempt()), (1, Some(77)));
    assert_eq!(store.dead(None, 10, usize::MAX).unwrap().records, [dead]);
    let read = read_all(&store);
    assert_eq!(read.chunks, [chunk(1, 10, 100).retain(|seq| seq > 4).unwrap()]);
    assert_eq!(store.oldest(&|_| false).unwrap(), Some((ChunkKey::new(5), 1)));
    drop(store);
    assert_eq!(identify(&Disk::default(), dir.path()), Some(options().project));
}

#[test]
fn a_read_takes_what_fits_and_goes_on_from_there() {
    let store = Store::volatile(&options()).unwrap();
    for (epoch, first) in [(1, 1), (2, 11), (3, 21)] {
        store.apply(&checkpoint(epoch, first, 10)).unwrap();
    }
    let first = store.read(None, 1).unwrap();
    assert_eq!(first.chunks.iter().map(|chunk| chunk.key.first_seq).collect::<Vec<_>>(), [1]);
    let rest = store.read(first.last, usize::MAX).unwrap();
    assert_eq!(rest.chunks.iter().map(|chunk| chunk.key.first_seq).collect::<Vec<_>>(), [11, 21]);
    assert_eq!(store.read(rest.last, usize::MAX).unwrap().last, None);
    assert_eq!(store.read(Some(ChunkKey::new(u64::MAX)), 1).unwrap().last, None);
}

#[test]
fn an_arena_checkpointed_twice_is_in_the_queue_once() {
    let store = Store::volatile(&options()).unwrap();
    store.apply(&checkpoint(3, 1, 10)).unwrap();
    let before = store.ledger();
    for epoch in [2, 3] {
        let again = store.apply(&checkpoint(epoch, 1, 10));
        assert!(matches!(again, Err(StoreError::AlreadyCheckpointed { stored: 3, given }) if given == epoch));
    }
    assert_eq!(store.ledger(), before);
    assert!(!store.is_latched());
    store.apply(&Changes { journal_epoch: Some(4), ..Changes::default() }).unwrap();
}

#[test]
fn an_ack_applied_twice_counts_once() {
    let store = Store::volatile(&options()).unwrap();
    store.apply(&checkpoint(1, 1, 10)).unwrap();
    // The same ack twice. It keeps the first record of the row and therefore its key.
    let keep = chunk(1, 10, 100).retain(|seq| seq < 4);
    let removal = Removal { key: ChunkKey::new(1), keep, delivered: 7, dead_lettered: 0, evicted: 0 };
    let changes = Changes { remove: vec![removal], ..Changes::default() };
    assert_eq!(store.apply(&changes).unwrap().stale_removals, 0);
    let once = store.ledger();
    assert_eq!(store.apply(&changes).unwrap().stale_removals, 1);
    assert_eq!(store.ledger(), once);
    // An ack that removes the row.
    let rest = read_all(&store).chunks.remove(0);
    store.apply(&delivered(&rest)).unwrap();
    assert_eq!(store.apply(&delivered(&rest)).unwrap().stale_removals, 1);
    let ledger = store.ledger();
    assert_eq!((ledger.delivered, ledger.queued_events, ledger.queued_bytes, ledger.imbalance()), (10, 0, 0, 0));
}

#[test]
fn a_second_open_of_the_same_store_is_refused_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open_in(dir.path());
    let second = Store::open(&Disk::default(), dir.path(), &options(), 0);
    assert!(matches!(second, Err(StoreError::AlreadyOpen { .. })), "{second:?}");
    store.apply(&checkpoint(1, 1, 3)).unwrap();
    drop(store);
    assert_eq!(events_in(&open_in(dir.path()).0), 3);
}

#[test]
fn reads_go_on_while_transactions_commit() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open_in(dir.path());
    store.apply(&checkpoint(1, 1, 10)).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..50 {
                let read = read_all(&store);
                assert!(read.damaged.is_empty() && !read.chunks.is_empty());
            }
        });
        for epoch in 2..20 {
            store.apply(&checkpoint(epoch, epoch * 10 - 9, 10)).unwrap();
        }
        reader.join().unwrap();
    });
    assert_eq!(events_in(&store), 190);
}

#[test]
fn compaction_frees_space_and_leaves_a_file_that_opens_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open_in(dir.path());
    let chunks: Vec<_> = (0..200).map(|i| chunk(i * 100 + 1, 100, 500)).collect();
    store.apply(&Changes { insert: chunks.clone(), accepted_up_to: 20_000, ..Changes::default() }).unwrap();
    assert!(!store.compact_if_small(1 << 20, 0).unwrap(), "too much to be moved");
    let remove = chunks[1..].iter().flat_map(|chunk| delivered(chunk).remove).collect();
    store.apply(&Changes { remove, ..Changes::default() }).unwrap();
    let before = store.file_bytes().unwrap();
    assert!(store.compact_if_small(16 << 20, 0).unwrap());
    let after = store.file_bytes().unwrap();
    assert!(after * 4 < before, "{before} bytes became {after}");
    assert!(!opens_only_after_a_repair(dir.path()), "compaction left a file that has to be walked through");
    assert!(!store.compact_if_small(16 << 20, 0).unwrap(), "nothing more to be gained");
    assert_eq!(events_in(&store), 100);
}

#[test]
fn dead_records_are_kept_until_removed_and_counted_for_ever() {
    let store = Store::volatile(&options()).unwrap();
    store.apply(&checkpoint(1, 1, 1)).unwrap();
    let dead = DeadRecord {
        seq: 1,
        status: 413,
        reason: String::new(),
        first_attempt: 0,
        last_attempt: 0,
        attempts: 1,
        body: vec![1],
    };
    let removal = Removal { key: ChunkKey::new(1), keep: None, delivered: 0, dead_lettered: 1, evicted: 0 };
    store.apply(&Changes { remove: vec![removal], dead_letter: vec![dead], ..Changes::default() }).unwrap();
    assert_eq!(store.dead(None, 1, usize::MAX).unwrap().records.len(), 1);
    store.apply(&Changes { remove_dead: vec![1], ..Changes::default() }).unwrap();
    assert_eq!(
        (
            store.dead(None, 1, usize::MAX).unwrap().records.len(),
            store.ledger().dead_lettered,
            store.ledger().imbalance()
        ),
        (0, 1, 0)
    );
}

#[test]
fn a_chunk_of_the_target_size_takes_one_run_of_64_kib() {
    let dir = scratch();
    let (store, _) = open_in(dir.path());
    // A frame's head and padding make the chunk exactly as large as it may be.
    let body_bytes = CHUNK_BYTES_TARGET - frame::FRAME_HEAD;
    let chunks = (1..=256).map(|seq| chunk(seq, 1, body_bytes)).collect::<Vec<_>>();
    assert_eq!(chunks[0].frames.len(), CHUNK_BYTES_TARGET);
    store.apply(&Changes { insert: chunks, ..Changes::default() }).unwrap();
    let per_chunk = store.file_bytes().unwrap() / 256;
    assert!(per_chunk < 80 * 1024, "{per_chunk} bytes a chunk");
}

/// Whether the file as it is now would need a repair if its owner were killed.
fn opens_only_after_a_repair(dir: &Path) -> bool {
    let copy = dir.join("copy.redb");
    std::fs::copy(dir.join("queue.redb"), &copy).unwrap();
    let mut builder = Database::builder();
    builder.set_repair_callback(redb::RepairSession::abort);
    match builder.open(copy) {
        Ok(_) => false,
        Err(redb::DatabaseError::RepairAborted) => true,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_killed_owner_leaves_a_file_that_opens_without_repair() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open_in(dir.path());
    store.apply(&checkpoint(1, 1, 10)).unwrap();
    assert!(!opens_only_after_a_repair(dir.path()));
    store.apply(&delivered(&chunk(1, 10, 100))).unwrap();
    assert!(!opens_only_after_a_repair(dir.path()));
}

#[test]
fn dead_records_do_not_keep_a_file_from_being_compacted() {
    let dir = scratch();
    let (store, _) = open_in(dir.path());
    let dead = |seq: u64| DeadRecord {
        seq,
        status: 400,
        reason: String::new(),
        first_attempt: 0,
        last_attempt: 0,
        attempts: 1,
        body: vec![1; 10_000],
    };
    let chunks: Vec<_> = (0..200).map(|i| chunk(i * 100 + 1, 100, 500)).collect();
    let dead_letter = (1..=90).map(dead).collect();
    let all = Changes { insert: chunks.clone(), dead_letter, accepted_up_to: 20_000, ..Changes::default() };
    store.apply(&all).unwrap();
    let remove = chunks.iter().flat_map(|chunk| delivered(chunk).remove).collect();
    store.apply(&Changes { remove, ..Changes::default() }).unwrap();
    let before = store.file_bytes().unwrap();
    assert!(!store.compact_if_small(512 << 10, 800_000).unwrap(), "too many of them to be moved");
    assert!(store.compact_if_small(512 << 10, 1 << 20).unwrap(), "they are not counted among what waits");
    let after = store.file_bytes().unwrap();
    assert!(after * 2 < before, "{before} bytes became {after}");
    assert_eq!(store.dead_seqs().unwrap().len(), 90);
}

#[test]
fn dead_records_stay_within_their_bytes_and_the_newest_stay() {
    let dir = scratch();
    let dead = |seq: u64, bytes: usize| DeadRecord {
        seq,
        status: 400,
        reason: String::new(),
        first_attempt: 0,
        last_attempt: 0,
        attempts: 1,
        body: vec![1; bytes],
    };
    let dead_letter = |store: &Store, dead_letter: Vec<DeadRecord>| {
        store.apply(&Changes { dead_letter, ..Changes::default() }).unwrap()
    };
    let seqs = |store: &Store| store.dead_seqs().unwrap();
    let bytes = |store: &Store| store.committed().dead_bytes;
    let generous = StoreOptions { dead_bytes: u64::MAX, ..options() };
    let (store, _) = Store::open(&Disk::default(), dir.path(), &generous, 0).unwrap();
    dead_letter(&store, (1..=30).map(|seq| dead(seq, 100_000)).collect());
    assert_eq!((seqs(&store).len(), bytes(&store)), (30, Some(30 * 100_034)));
    // As a version left it that did not count bytes.
    store.committed().dead_bytes = None;
    store.apply(&checkpoint(1, 1, 1)).unwrap();
    assert_eq!(bytes(&store), Some(30 * 100_034));
    drop(store);
    let (store, _) = open_in(dir.path());
    assert_eq!(bytes(&store), Some(30 * 100_034), "it is known to the next owner");
    dead_letter(&store, vec![dead(31, 100_000)]);
    assert_eq!(seqs(&store), (22..=31).collect::<Vec<_>>());
    // The same records again take no more space.
    dead_letter(&store, vec![dead(31, 100_000)]);
    assert_eq!((seqs(&store).len(), bytes(&store)), (10, Some(10 * 100_034)));
    store.apply(&Changes { remove_dead: vec![22, 23], ..Changes::default() }).unwrap();
    assert_eq!(bytes(&store), Some(8 * 100_034));
    dead_letter(&store, vec![dead(32, 2 << 20)]);
    assert_eq!(seqs(&store), [32], "one that is larger than that stays alone");
    let first = store.dead(None, 9, 1).unwrap();
    assert_eq!((first.records.len(), first.last), (1, Some(32)));
    assert!(store.dead(first.last, 9, 1).unwrap().last.is_none());
}
