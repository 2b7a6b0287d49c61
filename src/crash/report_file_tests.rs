//! Tests of the report file: concurrent writers, rotation, and the limits on its size.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::format::{Kind, Record, Tag, Writer, scan};
use super::incident::{ProcessState, incidents};
use super::report_file::{self, FILE_MOST, Quota, RESERVED_FOR_SIGNALS};
#[cfg(feature = "crash-signals")]
use super::report_file::{PROVISIONAL_BYTES, Recorded};

/// The report file is shared by all tests of the process.
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
    record(Kind::Context, 0, b"the process")
}

/// The records of a file that must hold complete records and nothing else.
fn records_in(path: &Path) -> Vec<Record> {
    let scanned = scan(&std::fs::read(path).unwrap());
    assert_eq!(scanned.damaged_bytes, 0, "{path:?}");
    scanned.records
}

/// The records after the context and the slots.
fn after_the_slots(records: &[Record]) -> Vec<Record> {
    let is_slot = |record: &&Record| matches!(record.kind, Kind::Repaired | Kind::Reserved);
    records.iter().skip_while(is_slot).cloned().collect()
}

fn numbers(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.number).collect()
}

#[test]
fn rotation_during_a_storm_of_writers_loses_no_record() {
    const THREADS: u64 = 4;
    const ROTATIONS: u64 = 40;
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = |number: u64| dir.path().join(format!("{number}.phx"));
    report_file::rotate(&path(0), &context()).unwrap();
    let (together, is_over) = (Barrier::new(THREADS as usize + 1), AtomicBool::new(false));
    let mut lengths = Vec::new();
    let written: Vec<u64> = std::thread::scope(|scope| {
        let (together, is_over) = (&together, &is_over);
        let storm = move |thread: u64| {
            together.wait();
            let mut written = 0;
            while !is_over.load(Ordering::SeqCst) {
                // The file may be full until it is rotated.
                let record = record(Kind::Panic, thread << 32 | (written + 1), b"one of a storm");
                if report_file::write(&record, Quota::Panic) { written += 1 } else { std::thread::yield_now() }
            }
            written
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || storm(thread))).collect();
        together.wait();
        for number in 0..ROTATIONS {
            // Checked after the writers have ended; a panic here would keep them running.
            let complete = report_file::rotate(&path(number + 1), &context());
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
        found.extend(numbers(&after_the_slots(&records[1..])));
        if let Some((complete, then)) = lengths.get(number as usize) {
            assert_eq!(complete.as_deref(), Some(&*path(number)));
            assert_eq!(std::fs::metadata(path(number)).unwrap().len(), *then, "complete when it was returned");
        }
    }
    found.sort_unstable();
    let expected = written.iter().zip(0..).flat_map(|(written, thread)| (1..=*written).map(move |n| thread << 32 | n));
    assert_eq!(found, expected.collect::<Vec<u64>>());
    assert!(found.len() > 1_000, "only {} records", found.len());
    report_file::take_missed();
}

#[test]
fn a_removed_file_is_created_again_with_its_first_record() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.phx");
    report_file::rotate(&path, &context()).unwrap();
    assert!(report_file::write(&record(Kind::Panic, 1, b"removed"), Quota::Panic));
    std::fs::remove_file(&path).unwrap();
    for number in 2..4 {
        assert!(report_file::write(&record(Kind::Panic, number, b"after it"), Quota::Panic));
    }
    let records = records_in(&path);
    assert_eq!((records[0].kind, numbers(&after_the_slots(&records[1..]))), (Kind::Context, vec![2, 3]));
}

#[test]
fn a_file_full_of_panics_has_space_for_the_fatal_signal() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.phx");
    report_file::rotate(&path, &context()).unwrap();
    report_file::take_missed();
    let beginning = std::fs::metadata(&path).unwrap().len();
    let long = record(Kind::Panic, 1, &[b'x'; 10_000]);
    let len = long.len() as u64;
    let taken = (0..100).filter(|_| report_file::write(&long, Quota::Panic)).count() as u64;
    assert_eq!(taken, (FILE_MOST - RESERVED_FOR_SIGNALS - beginning) / len);
    assert_eq!(report_file::take_missed(), 100 - taken);
    assert!(report_file::write(&record(Kind::Panic, 2, b""), Quota::Panic), "a short record fits");
    let ends = (0..100).filter(|_| report_file::write(&long, Quota::End)).count() as u64;
    assert!(ends >= RESERVED_FOR_SIGNALS / len);
    assert!(std::fs::metadata(&path).unwrap().len() <= FILE_MOST);
    records_in(&path);
    report_file::take_missed();
}

#[test]
fn bytes_written_by_other_processes_count() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.phx");
    report_file::rotate(&path, &context()).unwrap();
    // As a forked child does, which counts its own bytes only.
    let mut other = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    while std::fs::metadata(&path).unwrap().len() < FILE_MOST - 10_000 {
        std::io::Write::write_all(&mut other, &record(Kind::Panic, 1, &[b'x'; 5_000])).unwrap();
    }
    assert!(!report_file::write(&record(Kind::Panic, 2, b"too long"), Quota::Panic));
    assert!(report_file::write(&record(Kind::Signal, 3, b"the end"), Quota::End));
    report_file::take_missed();
}

#[cfg(feature = "crash-signals")]
#[test]
fn survived_signals_take_no_more_space_however_many_there_are() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.phx");
    report_file::rotate(&path, &context()).unwrap();
    let before = std::fs::metadata(&path).unwrap().len();
    let provisional = |thread: i32, number: u64| {
        let mut buffer = vec![0; PROVISIONAL_BYTES];
        let mut writer = Writer::padded(&mut buffer, Kind::Signal, 0, number);
        writer.number(Tag::Signal, 11);
        match report_file::write_provisional(writer.finish().unwrap(), thread, number) {
            Some(Recorded::Provisional(written)) => written,
            refused => panic!("{refused:?}"),
        }
    };
    for number in 1..=1_000 {
        report_file::mark_survived(provisional(1, number), 1);
    }
    assert!(!report_file::has_anything_to_report(), "nothing to report");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), before);
    assert_eq!(incidents(&records_in(&path), ProcessState::Gone), []);
    provisional(2, 1_001);
    assert!(report_file::has_anything_to_report());
    let reported: Vec<_> =
        incidents(&records_in(&path), ProcessState::Gone).iter().map(|reported| reported.record.number).collect();
    assert_eq!(reported, [1_001]);
    report_file::confirm_survived(Duration::ZERO);
    assert_eq!(incidents(&records_in(&path), ProcessState::Gone), [], "it had time to die");
}

#[test]
fn a_rotation_gives_up_waiting_for_a_stopped_writer() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("1.phx"), dir.path().join("2.phx"));
    report_file::rotate(&one, &context()).unwrap();
    let (stands, goes_on) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let late = record(Kind::Panic, 7, b"late");
            report_file::with_file(|file| {
                stands.wait();
                goes_on.wait();
                assert!(file.append(&late, Quota::Panic));
            });
        });
        stands.wait();
        let complete = report_file::rotate(&two, &context());
        goes_on.wait();
        assert_eq!(complete.unwrap(), None, "it is not complete");
    });
    assert_eq!(numbers(&after_the_slots(&records_in(&one)[1..])), [7]);
    assert_eq!(numbers(&after_the_slots(&records_in(&two)[1..])), Vec::<u64>::new());
}
