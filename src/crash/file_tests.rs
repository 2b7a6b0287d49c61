//! Writers, a file that is taken away from under them, and what becomes of it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[cfg(feature = "crash-signals")]
use super::file::Holding;
use super::file::{self, KEPT_FOR_SIGNALS, Share};
use super::format::{Kind, Record, Tag, Writer, scan};
use super::incident::{End, incidents};
#[cfg(feature = "crash-signals")]
use super::provisional::RECORD_BYTES;
use super::write::FILE_MOST;

/// The file is one for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn record(kind: Kind, number: u64, message: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; message.len() + 128];
    let mut writer = Writer::new(&mut buffer, kind, 0, number);
    writer.bytes(Tag::Message, message);
    writer.finish().unwrap().to_vec()
}

fn context() -> Vec<u8> {
    record(Kind::Context, 0, b"who we are")
}

/// What stands in a file that holds whole records and nothing else.
fn records_in(path: &Path) -> Vec<Record> {
    let scanned = scan(&std::fs::read(path).unwrap());
    assert_eq!(scanned.passed_over, 0, "{path:?}");
    scanned.records
}

/// Places for signals that somebody may repair come after the context.
fn behind_the_places(records: &[Record]) -> Vec<Record> {
    let is_place = |record: &&Record| matches!(record.kind, Kind::Repaired | Kind::Reserved);
    records.iter().skip_while(is_place).cloned().collect()
}

fn numbers(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.number).collect()
}

#[test]
fn rotation_under_a_storm_of_writers_loses_nothing_and_tears_nothing() {
    const THREADS: u64 = 4;
    const ROTATIONS: u64 = 40;
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = |number: u64| dir.path().join(format!("{number}.phx"));
    file::rotate(&path(0), &context()).unwrap();
    let (together, is_over) = (Barrier::new(THREADS as usize + 1), AtomicBool::new(false));
    let mut lengths = Vec::new();
    let written: Vec<u64> = std::thread::scope(|scope| {
        let (together, is_over) = (&together, &is_over);
        let storm = move |thread: u64| {
            together.wait();
            let mut written = 0;
            while !is_over.load(Ordering::SeqCst) {
                // A file may be full, until it is taken away.
                let record = record(Kind::Panic, thread << 32 | (written + 1), b"one of a storm");
                if file::write(&record, Share::Panic) { written += 1 } else { std::thread::yield_now() }
            }
            written
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || storm(thread))).collect();
        together.wait();
        for number in 0..ROTATIONS {
            // Looked at when the writers have ended, who would not if this panicked.
            let complete = file::rotate(&path(number + 1), &context());
            lengths.push((complete.ok().flatten(), std::fs::metadata(path(number)).map_or(0, |file| file.len())));
            std::thread::sleep(Duration::from_millis(1));
        }
        is_over.store(true, Ordering::SeqCst);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut found: Vec<u64> = Vec::new();
    for number in 0..=ROTATIONS {
        let records = records_in(&path(number));
        assert_eq!(records[0].kind, Kind::Context, "{number}");
        found.extend(numbers(&behind_the_places(&records[1..])));
        if let Some((complete, then)) = lengths.get(number as usize) {
            assert_eq!(complete.as_deref(), Some(&*path(number)));
            assert_eq!(std::fs::metadata(path(number)).unwrap().len(), *then, "complete when it was handed over");
        }
    }
    found.sort_unstable();
    let expected = written.iter().zip(0..).flat_map(|(written, thread)| (1..=*written).map(move |n| thread << 32 | n));
    assert_eq!(found, expected.collect::<Vec<u64>>());
    assert!(found.len() > 1_000, "{}: hardly a storm", found.len());
    file::take_missed();
}

#[test]
fn a_file_that_somebody_removed_is_made_again_with_its_context() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.phx");
    file::rotate(&path, &context()).unwrap();
    assert!(file::write(&record(Kind::Panic, 1, b"seen by nobody"), Share::Panic));
    std::fs::remove_file(&path).unwrap();
    for number in 2..4 {
        assert!(file::write(&record(Kind::Panic, number, b"after it"), Share::Panic));
    }
    let records = records_in(&path);
    assert_eq!((records[0].kind, numbers(&behind_the_places(&records[1..]))), (Kind::Context, vec![2, 3]));
}

#[test]
fn a_file_takes_so_many_panics_and_has_room_for_what_the_process_dies_of() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.phx");
    file::rotate(&path, &context()).unwrap();
    file::take_missed();
    let beginning = std::fs::metadata(&path).unwrap().len();
    let long = record(Kind::Panic, 1, &[b'x'; 10_000]);
    let len = long.len() as u64;
    let taken = (0..100).filter(|_| file::write(&long, Share::Panic)).count() as u64;
    assert_eq!(taken, (FILE_MOST - KEPT_FOR_SIGNALS - beginning) / len);
    assert_eq!(file::take_missed(), 100 - taken);
    assert!(file::write(&record(Kind::Panic, 2, b""), Share::Panic), "a short one finds room");
    let ends = (0..100).filter(|_| file::write(&long, Share::End)).count() as u64;
    assert!(ends >= KEPT_FOR_SIGNALS / len);
    assert!(std::fs::metadata(&path).unwrap().len() <= FILE_MOST);
    records_in(&path);
    file::take_missed();
}

#[test]
fn what_others_have_written_counts() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.phx");
    file::rotate(&path, &context()).unwrap();
    // As a child does, whose count is its own.
    let mut other = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    while std::fs::metadata(&path).unwrap().len() < FILE_MOST - 10_000 {
        std::io::Write::write_all(&mut other, &record(Kind::Panic, 1, &[b'x'; 5_000])).unwrap();
    }
    assert!(!file::write(&record(Kind::Panic, 2, b"no room"), Share::Panic));
    assert!(file::write(&record(Kind::Signal, 3, b"the end"), Share::End));
    file::take_missed();
}

#[cfg(feature = "crash-signals")]
#[test]
fn signals_that_are_survived_take_no_more_room_however_many_there_are() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.phx");
    file::rotate(&path, &context()).unwrap();
    let before = std::fs::metadata(&path).unwrap().len();
    let hold = |thread: i32, number: u64| {
        let mut buffer = vec![0; RECORD_BYTES];
        let mut writer = Writer::padded(&mut buffer, Kind::Signal, 0, number);
        writer.number(Tag::Signal, 11);
        match file::hold(writer.finish().unwrap(), thread, number) {
            Holding::Held(held) => held,
            refused => panic!("{refused:?}"),
        }
    };
    for number in 1..=1_000 {
        file::mark_survived(hold(1, number), 1);
    }
    assert!(!file::holds_words(), "nothing to tell");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before);
    assert_eq!(incidents(&records_in(&path), End::Gone), []);
    hold(2, 1_001);
    assert!(file::holds_words());
    let told: Vec<_> = incidents(&records_in(&path), End::Gone).iter().map(|told| told.number).collect();
    assert_eq!(told, [1_001]);
    file::settle(Duration::ZERO);
    assert_eq!(incidents(&records_in(&path), End::Gone), [], "it had time to die");
}

#[test]
fn a_rotation_does_not_wait_for_ever_for_a_writer_that_stands_still_and_leaves_it_its_file() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("1.phx"), dir.path().join("2.phx"));
    file::rotate(&one, &context()).unwrap();
    let (stands, goes_on) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let late = record(Kind::Panic, 7, b"late");
            file::with_target(|target| {
                stands.wait();
                goes_on.wait();
                assert!(target.append(&late, Share::Panic));
            });
        });
        stands.wait();
        let complete = file::rotate(&two, &context());
        goes_on.wait();
        assert_eq!(complete.unwrap(), None, "it is not complete");
    });
    assert_eq!(numbers(&behind_the_places(&records_in(&one)[1..])), [7]);
    assert_eq!(numbers(&behind_the_places(&records_in(&two)[1..])), Vec::<u64>::new());
}
