//! The guarantees of the journal, with real files.

use std::time::Duration;

use super::*;
use crate::queue::frame::hash_body;
use crate::sys::disk::{Disk, Op, Verdict};

const ARENA: usize = 64 * 1024;

fn options(dir: &std::path::Path, map: bool) -> JournalOptions {
    JournalOptions { dir: Some(dir.to_path_buf()), map, arena_bytes: ARENA, lock_wait: Duration::from_millis(20) }
}

fn started(dir: &std::path::Path, map: bool) -> Journal {
    Pool::open(&Disk::default(), options(dir, map)).unwrap().start(1, 1).unwrap()
}

fn append(journal: &Journal, body: &[u8]) -> Result<Appended, AppendError> {
    journal.append(body, hash_body(body), 0, |_| ())
}

fn sequences(sealed: &SealedArena) -> Vec<u64> {
    sealed.replay().unwrap().runs.iter().flat_map(|run| run.first_seq..=run.last_seq).collect()
}

#[test]
fn appended_records_survive_the_process_without_a_sync() {
    for map in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let journal = started(dir.path(), map);
        for body in [&b"one"[..], b"two", b"three"] {
            append(&journal, body).unwrap();
        }
        // Not dropped: a killed process runs no destructors.
        std::mem::forget(journal);
        let found = Pool::open(&Disk::default(), options(dir.path(), map)).unwrap();
        let sealed = found.all_sealed();
        assert_eq!((sealed.len(), found.epoch_max), (1, 1));
        assert_eq!(sequences(&sealed[0]), [1, 2, 3], "mapped: {map}");
        let replay = sealed[0].replay().unwrap();
        let bodies: Vec<_> = frame::frames(&replay.bytes, replay.salt).map(|(_, body)| body.to_vec()).collect();
        assert_eq!(bodies, [&b"one"[..], b"two", b"three"]);
    }
}

#[test]
fn an_arena_written_through_a_mapping_is_read_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let journal = started(dir.path(), true);
    append(&journal, b"mapped").unwrap();
    std::mem::forget(journal);
    let found = Pool::open(&Disk::default(), options(dir.path(), false)).unwrap();
    assert_eq!(sequences(&found.all_sealed()[0]), [1]);
}

#[test]
fn a_swap_continues_the_numbers_and_a_freed_arena_never_replays() {
    let dir = tempfile::tempdir().unwrap();
    let journal = started(dir.path(), true);
    append(&journal, b"a").unwrap();
    assert!(journal.swap().unwrap());
    assert_eq!(append(&journal, b"b").unwrap().seq, 2);
    assert_eq!(sequences(&journal.oldest_sealed().unwrap()), [1]);
    journal.free_oldest();
    std::mem::forget(journal);
    let found = Pool::open(&Disk::default(), options(dir.path(), true)).unwrap();
    let seen: Vec<_> = found.all_sealed().iter().flat_map(sequences).collect();
    assert_eq!(seen, [2]);
}

#[test]
fn a_round_without_a_record_takes_no_sequence_number() {
    let dir = tempfile::tempdir().unwrap();
    let journal = started(dir.path(), true);
    append(&journal, b"a").unwrap();
    assert!(journal.swap().unwrap());
    std::mem::forget(journal);
    assert_eq!(Pool::open(&Disk::default(), options(dir.path(), true)).unwrap().taken_until, 1);
}

#[test]
fn an_empty_arena_is_not_swapped() {
    let dir = tempfile::tempdir().unwrap();
    let journal = started(dir.path(), true);
    assert!(!journal.swap().unwrap());
}

#[test]
fn a_full_arena_still_takes_priority_records() {
    let dir = tempfile::tempdir().unwrap();
    let journal = started(dir.path(), true);
    let body = [7; 1000];
    while append(&journal, &body).is_ok() {}
    assert!(matches!(append(&journal, &body), Err(AppendError::Full)));
    assert!(journal.append(&body, hash_body(&body), 2, |_| ()).is_ok());
    // The last eighth, which is reserved for priority records, fills up too, and nothing is written past it.
    while journal.append(&body, hash_body(&body), 2, |_| ()).is_ok() {}
    let per_arena = (ARENA - HEADER_BYTES - 8) as u64 / 1024;
    assert_eq!(journal.last_seq(), per_arena);
}

#[test]
fn a_burst_rotates_to_a_free_arena_without_the_committer() {
    let dir = tempfile::tempdir().unwrap();
    let journal = started(dir.path(), true);
    journal.prepare_free_arena().unwrap();
    let mut halves = 0;
    while let Ok(appended) = append(&journal, &[7; 1000]) {
        halves += u32::from(appended.half_full);
    }
    let total = journal.last_seq();
    assert_eq!(sequences(&journal.oldest_sealed().unwrap()), (1..=total / 2).collect::<Vec<_>>());
    assert_eq!(journal.journaled().1, total);
    assert_eq!(halves, 3, "the committer is notified at each half, and at the rotation");
}

#[test]
fn a_swap_without_a_free_arena_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = started(dir.path(), true);
    for seq in 1..=ARENAS_MAX as u64 {
        assert_eq!(append(&journal, b"x").unwrap().seq, seq);
        assert_eq!(journal.swap().unwrap(), seq < ARENAS_MAX as u64);
    }
    let mut seen = Vec::new();
    while let Some(sealed) = journal.oldest_sealed() {
        seen.extend(sequences(&sealed));
        journal.free_oldest();
    }
    assert_eq!(seen, [1, 2, 3]);
    assert!(journal.swap().unwrap());
    assert_eq!(sequences(&journal.oldest_sealed().unwrap()), [4]);
}

#[test]
fn a_journal_without_a_free_arena_starts_and_waits_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let journal = started(dir.path(), true);
    append(&journal, b"a").unwrap();
    journal.swap().unwrap();
    append(&journal, b"b").unwrap();
    std::mem::forget(journal);
    let disk = Disk::gated(crate::sys::disk::fail_when(|call, _| {
        (call.op == Op::Create).then(|| Verdict::Fail(io::ErrorKind::StorageFull.into()))
    }));
    let journal = Pool::open(&disk, options(dir.path(), true)).unwrap().start(9, 3).unwrap();
    assert!(matches!(append(&journal, b"c"), Err(AppendError::Full)));
    assert_eq!(sequences(&journal.oldest_sealed().unwrap()), [1], "what waits is not touched");
    journal.free_oldest();
    assert_eq!(append(&journal, b"c").unwrap().seq, 3);
    assert_eq!((journal.epoch(), sequences(&journal.oldest_sealed().unwrap())), (9, vec![2]));
}

#[test]
fn a_lock_that_is_held_too_long_gives_busy_and_not_a_hang() {
    let dir = tempfile::tempdir().unwrap();
    let journal = started(dir.path(), true);
    let held = journal.lock();
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| append(&journal, b"x")).join().unwrap();
        assert!(matches!(refused, Err(AppendError::Busy)));
    });
    drop(held);
    assert!(append(&journal, b"x").is_ok());
}

#[test]
fn a_closed_journal_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = started(dir.path(), true);
    journal.close();
    assert!(matches!(append(&journal, b"x"), Err(AppendError::Closed)));
}

#[test]
fn foreign_files_are_renamed_and_newer_ones_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("journal-0"), vec![b'x'; 9000]).unwrap();
    let found = Pool::open(&Disk::default(), options(dir.path(), true)).unwrap();
    assert_eq!(found.damaged_files.len(), 1);
    assert_eq!(std::fs::read(&found.damaged_files[0].0).unwrap(), vec![b'x'; 9000]);
    std::mem::forget(found.start(1, 1).unwrap());
    let path = dir.path().join("journal-0");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 200;
    let check = xxhash_rust::xxh3::xxh3_64(&bytes[..48]);
    bytes[48..56].copy_from_slice(&check.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let refused = Pool::open(&Disk::default(), options(dir.path(), true));
    assert!(matches!(refused, Err(QueueError::JournalNewer { version: 200, .. })));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn an_arena_cut_anywhere_keeps_its_whole_records() {
    let dir = tempfile::tempdir().unwrap();
    let journal = started(dir.path(), true);
    for _ in 0..50 {
        append(&journal, &[5; 100]).unwrap();
    }
    std::mem::forget(journal);
    let path = dir.path().join("journal-0");
    let whole = std::fs::read(&path).unwrap();
    for cut in (0..HEADER_BYTES + 60 * 128).step_by(61) {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let found = Pool::open(&Disk::default(), options(dir.path(), true)).unwrap();
        let seen: Vec<_> = found.all_sealed().iter().flat_map(sequences).collect();
        let least = cut.saturating_sub(HEADER_BYTES) / 128;
        assert!(seen.len() >= least.min(50) && seen.len() <= 50, "cut {cut}: {}", seen.len());
        for (aside, _) in found.damaged_files {
            std::fs::remove_file(aside).unwrap();
        }
    }
}

#[test]
fn after_a_failed_sync_the_arena_is_replaced_once_checkpointed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::gated(crate::sys::disk::fail_when(|call, nth| {
        // Creation syncs each of the two arenas twice; the fifth sync is that of the test.
        (call.op == Op::Sync && nth == 5).then(|| Verdict::Fail(io::Error::from_raw_os_error(5)))
    }));
    let journal = Pool::open(&disk, options(dir.path(), true)).unwrap().start(1, 1).unwrap();
    journal.prepare_free_arena().unwrap();
    append(&journal, b"x").unwrap();
    assert_eq!(journal.sync().unwrap_err().raw_os_error(), Some(5));
    journal.swap().unwrap();
    assert_eq!(sequences(&journal.oldest_sealed().unwrap()), [1], "what was accepted can still be checkpointed");
    journal.free_oldest();
    assert!(!dir.path().join("journal-0").exists());
    append(&journal, b"y").unwrap();
    assert_eq!(journal.sync().unwrap(), 2);
}

#[test]
fn a_volatile_journal_works_and_leaves_no_file() {
    let options = JournalOptions { dir: None, map: true, arena_bytes: ARENA, lock_wait: Duration::from_millis(20) };
    let journal = Pool::open(&Disk::default(), options).unwrap().start(1, 1).unwrap();
    append(&journal, b"x").unwrap();
    assert!(journal.swap().unwrap());
    assert_eq!(sequences(&journal.oldest_sealed().unwrap()), [1]);
}

#[test]
fn two_threads_appending_get_every_number_once() {
    let dir = tempfile::tempdir().unwrap();
    let journal = started(dir.path(), true);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..200).for_each(|_| assert!(append(&journal, b"twelve bytes").is_ok())));
        }
    });
    journal.swap().unwrap();
    assert_eq!(sequences(&journal.oldest_sealed().unwrap()), (1..=400).collect::<Vec<_>>());
}

#[test]
fn an_arena_of_another_size_is_replaced_once_checkpointed() {
    for (then, now) in [(ARENA, 2 * ARENA), (2 * ARENA, ARENA)] {
        let dir = tempfile::tempdir().unwrap();
        let sized = |arena_bytes| JournalOptions { arena_bytes, ..options(dir.path(), true) };
        let journal = Pool::open(&Disk::default(), sized(then)).unwrap().start(1, 1).unwrap();
        append(&journal, b"of an earlier life").unwrap();
        std::mem::forget(journal);
        let found = Pool::open(&Disk::default(), sized(now)).unwrap();
        assert_eq!(sequences(&found.oldest_sealed().unwrap()), [1], "whatever its size, it is read");
        found.free_oldest();
        let _journal = found.start(2, 2).unwrap();
        let sizes = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len() as usize);
        assert!(sizes.into_iter().all(|size| size == now), "from {then} to {now}");
    }
}

/// Rewrites a file as a restore program does that leaves holes in place of pages of zeros.
fn restore_sparse(path: &std::path::Path) {
    let bytes = std::fs::read(path).unwrap();
    let file = std::fs::File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    let pages = bytes.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0));
    pages.for_each(|(at, page)| std::os::unix::fs::FileExt::write_all_at(&file, page, at as u64 * 4096).unwrap());
}

#[test]
fn a_sparse_arena_is_mapped_only_if_it_can_be_filled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal-0");
    for has_room in [true, false] {
        arena::Arena::create(&Disk::default(), &path, 0, 1 << 20, true).unwrap();
        restore_sparse(&path);
        let gate = crate::sys::disk::fail_when(move |call, _| {
            let fails = !has_room && call.op == crate::sys::disk::Op::Write;
            fails.then(|| crate::sys::disk::Verdict::Fail(io::ErrorKind::StorageFull.into()))
        });
        let (header, arena) = arena::Arena::open(&Disk::gated(gate), &path, 0, true).unwrap();
        let arena = arena.unwrap();
        assert_eq!((header, format!("{arena:?}").contains("Mapped {")), (arena::Header::Free, has_room));
        let file = Disk::default().open(&path, crate::sys::disk::Open::ReadOnly).unwrap();
        assert_eq!(file.allocated_bytes().unwrap() >= 1 << 20, has_room);
        drop(arena);
        std::fs::remove_file(&path).unwrap();
    }
}

/// The journal under every order of its threads that a scheduler of shuttle tries.
#[cfg(feature = "__models")]
mod models {
    use shuttle::thread;

    use super::*;
    use crate::sys::sync::alone;

    const RECORDS: u64 = 4;
    /// Three frames of 1 KiB fit, so appends rotate too.
    const SMALL: usize = 8 * 1024;

    fn body(appender: u64, number: u64) -> Vec<u8> {
        let mut body = vec![appender as u8; 1000];
        body[..8].copy_from_slice(&number.to_le_bytes());
        body
    }

    fn checkpoint_all(journal: &Journal, found: &mut Vec<(u64, Vec<u8>)>) {
        journal.swap().unwrap();
        while let Some(sealed) = journal.oldest_sealed() {
            let replay = sealed.replay().unwrap();
            for run in &replay.runs {
                let frames = frame::frames(&replay.bytes[run.range.clone()], replay.salt);
                found.extend(frames.map(|(head, body)| (head.seq, body.to_vec())));
            }
            journal.free_oldest();
        }
    }

    fn every_accepted_record_is_checkpointed_once_and_in_order() {
        let options =
            JournalOptions { dir: None, map: false, arena_bytes: SMALL, lock_wait: Duration::from_secs(3600) };
        let journal = Arc::new(Pool::open(&Disk::default(), options).unwrap().start(1, 1).unwrap());
        let append = |appender: u64| {
            let journal = Arc::clone(&journal);
            thread::spawn(move || {
                let mut accepted = Vec::new();
                for body in (0..RECORDS).map(|number| body(appender, number)) {
                    match super::append(&journal, &body) {
                        Ok(appended) => accepted.push((appended.seq, body)),
                        Err(AppendError::Full) => thread::yield_now(),
                        Err(error) => panic!("{error:?}"),
                    }
                }
                accepted
            })
        };
        let (one, other) = (append(1), append(2));
        let mut found = Vec::new();
        for _ in 0..3 {
            checkpoint_all(&journal, &mut found);
            thread::yield_now();
        }
        let mut accepted = [one.join().unwrap(), other.join().unwrap()].concat();
        checkpoint_all(&journal, &mut found);
        accepted.sort_unstable();
        assert_eq!(found, accepted);
        assert!(found.iter().map(|(seq, _)| *seq).eq(1..=found.len() as u64), "numbers have no gaps");
    }

    #[test]
    fn appends_rotations_and_checkpoints_lose_nothing() {
        let _alone = alone();
        shuttle::check_random(every_accepted_record_is_checkpointed_once_and_in_order, 2_000);
        shuttle::check_pct(every_accepted_record_is_checkpointed_once_and_in_order, 2_000, 3);
    }
}
