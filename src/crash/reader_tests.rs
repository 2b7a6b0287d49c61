//! Tests of the reader: which files are due, how often they are read, and which are kept.

use std::path::{Path, PathBuf};

use super::exit::ExitCause;
use super::format::{Kind, Tag, Writer};
use super::process::start_ticks;
use super::reader::{CrashReport, fatal_record_of, has_unread_reports, limit_unread, unread_reports};
use super::{ProcessState, adopt_reports};
use crate::record::Pairs;
use crate::sys::disk::Disk;

/// A pid that no process has: above the maximum on Linux.
const NOBODY: u64 = 0x7fff_fff0;

/// Writes a file of a process of release 1.0 that is gone, with one panic.
pub(crate) fn write_report_of_dead_process(dir: &Path, name: &str) {
    write_report(dir, name, NOBODY, 1);
}

/// Writes a file of process `pid` with one panic.
fn write_report(dir: &Path, name: &str, pid: u64, started: u64) -> PathBuf {
    let mut buffer = [0; 256];
    let mut writer = Writer::new(&mut buffer, Kind::Context, 0, 0);
    writer.number(Tag::Pid, pid);
    writer.number(Tag::StartTicks, started);
    writer.bytes(Tag::Executable, b"/usr/bin/program");
    writer.bytes(Tag::Facts, &Pairs::of(&[("$app_version", "1.0")]).unwrap().to_map());
    let mut bytes = writer.finish().unwrap().to_vec();
    let mut writer = Writer::new(&mut buffer, Kind::Panic, 0, 1);
    writer.number(Tag::Time, 1_000);
    writer.bytes(Tag::Message, b"a panic");
    bytes.extend_from_slice(writer.finish().unwrap());
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn names(dir: &Path) -> Vec<String> {
    Disk::default().list(dir).unwrap()
}

#[test]
fn a_file_is_read_three_times_and_then_given_up() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    write_report(dir.path(), "one-1.phx", NOBODY, 1);
    for attempt in 1..=3 {
        let [path] = unread_reports(&disk, dir.path()).unwrap().try_into().unwrap();
        let report = CrashReport::read(&disk, &path, ProcessState::Gone).unwrap().unwrap();
        assert_eq!((report.attempt, report.incidents.len()), (attempt, 1));
        // The reading is counted before the file is read, so a reader that dies now leaves this name.
        assert_eq!(names(dir.path()), [format!("one-1.phx.{attempt}")]);
    }
    let [path] = unread_reports(&disk, dir.path()).unwrap().try_into().unwrap();
    assert!(CrashReport::read(&disk, &path, ProcessState::Gone).unwrap().is_none());
    assert_eq!(names(dir.path()), ["one-1.bad"]);
    assert!(!has_unread_reports(&disk, dir.path()) && unread_reports(&disk, dir.path()).unwrap().is_empty());
}

#[test]
fn four_given_up_files_are_kept() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    for number in 1..=9 {
        let path = write_report(dir.path(), &format!("{number}-1.phx.3"), NOBODY, 1);
        assert!(CrashReport::read(&disk, &path, ProcessState::Gone).unwrap().is_none());
    }
    assert_eq!(names(dir.path()), ["6-1.bad", "7-1.bad", "8-1.bad", "9-1.bad"]);
}

#[test]
fn of_given_up_files_the_newest_are_kept_whatever_their_names() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    for (age, name) in ["f-1", "a-1", "e-1", "b-1", "d-1"].iter().enumerate() {
        let path = write_report(dir.path(), &format!("{name}.bad"), NOBODY, 1);
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 - age as u64);
        std::fs::File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
    }
    let path = write_report(dir.path(), "c-1.phx.3", NOBODY, 1);
    assert!(CrashReport::read(&disk, &path, ProcessState::Gone).unwrap().is_none());
    assert_eq!(names(dir.path()), ["a-1.bad", "c-1.bad", "e-1.bad", "f-1.bad"]);
}

#[test]
fn the_file_that_is_given_up_now_is_kept_whatever_its_age() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    (1..=4).for_each(|number| drop(write_report(dir.path(), &format!("new-{number}.bad"), NOBODY, 1)));
    let path = write_report(dir.path(), "old-1.phx.3", NOBODY, 1);
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    std::fs::File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
    assert!(CrashReport::read(&disk, &path, ProcessState::Gone).unwrap().is_none());
    assert!(dir.path().join("old-1.bad").exists() && names(dir.path()).len() == 4, "{:?}", names(dir.path()));
}

#[test]
fn no_report_replaces_another_of_the_same_name() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = Disk::default();
    write_report(dir.path(), "one-1.phx.1", NOBODY, 1);
    let again = write_report(dir.path(), "one-1.phx", NOBODY, 2);
    let report = CrashReport::read(&disk, &again, ProcessState::Gone).unwrap().unwrap();
    assert_eq!(names(dir.path()), ["one-1-2.phx.1", "one-1.phx.1"]);
    write_report(other.path(), "one-1.phx.1", NOBODY, 3);
    assert!(adopt_reports(&disk, other.path(), dir.path()).unwrap());
    assert_eq!(names(dir.path()), ["one-1-2.phx.1", "one-1-3.phx.1", "one-1.phx.1"]);
    write_report(dir.path(), "one-1-2.bad", NOBODY, 4);
    assert_eq!(report.give_up(&disk).unwrap(), dir.path().join("one-1-2-2.bad"));
}

#[test]
fn bytes_beyond_those_that_are_read_count_as_damaged() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let path = write_report(dir.path(), "one-1.phx", NOBODY, 1);
    let len = std::fs::metadata(&path).unwrap().len();
    std::fs::File::options().append(true).open(&path).unwrap().set_len(3 << 20).unwrap();
    let report = CrashReport::read(&disk, &path, ProcessState::Gone).unwrap().unwrap();
    assert_eq!((report.incidents.len(), report.damaged_bytes as u64), (1, (3 << 20) - len));
}

#[test]
fn a_reading_that_is_taken_back_does_not_count() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    for before in ["one-1.phx", "one-1.phx.1", "one-1.phx.2"] {
        let path = write_report(dir.path(), before, NOBODY, 1);
        let report = CrashReport::read(&disk, &path, ProcessState::Gone).unwrap().unwrap();
        assert_ne!(report.path, path);
        report.undo_reading(&disk).unwrap();
        assert_eq!(names(dir.path()), [before]);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_file_is_due_only_if_its_process_is_gone() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let own = std::process::id();
    let started = start_ticks(own).unwrap();
    write_report(dir.path(), "alive-1.phx", own.into(), started);
    let given_again = write_report(dir.path(), "given_again-1.phx", own.into(), started + 1);
    let gone = write_report(dir.path(), "gone-1.phx.2", NOBODY, 1);
    let unlinked = dir.path().join("unlinked-1.phx");
    std::fs::write(&unlinked, b"no process stands here").unwrap();
    std::fs::write(dir.path().join("other.txt"), b"not a report").unwrap();
    std::fs::write(dir.path().join("one-1.phx.x"), b"not a report").unwrap();
    assert_eq!(unread_reports(&disk, dir.path()).unwrap(), [given_again, gone, unlinked.clone()]);
    let report = CrashReport::read(&disk, &unlinked, ProcessState::Gone).unwrap().unwrap();
    assert!(report.process.is_none() && report.incidents.is_empty() && report.damaged_bytes == 22);
    report.remove(&disk).unwrap();
    assert!(!names(dir.path()).iter().any(|name| name.starts_with("unlinked")));
}

#[test]
fn files_of_dead_processes_of_another_shard_are_adopted() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    assert!(!adopt_reports(&disk, &from, &to).unwrap(), "there is no such folder");
    std::fs::create_dir(&from).unwrap();
    let own = std::process::id();
    write_report(&from, "alive-1.phx", own.into(), start_ticks(own).unwrap());
    assert!(!adopt_reports(&disk, &from, &to).unwrap() && !to.exists());
    write_report(&from, "gone-1.phx.2", NOBODY, 1);
    assert!(adopt_reports(&disk, &from, &to).unwrap());
    assert_eq!((names(&from), names(&to)), (vec!["alive-1.phx".to_owned()], vec!["gone-1.phx.2".to_owned()]));
}

#[test]
fn a_survived_panic_stays_survived_in_a_later_reading() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let path = write_report(dir.path(), "one-1.phx", NOBODY, 1);
    let fatal = |report: &CrashReport| report.incidents.iter().map(|incident| incident.is_fatal).collect::<Vec<_>>();
    let report = CrashReport::read(&disk, &path, ProcessState::Alive).unwrap().unwrap();
    assert_eq!((fatal(&report), report.damaged_bytes), (vec![false], 0));
    report.undo_reading(&disk).unwrap();
    assert_eq!(fatal_record_of(&disk, dir.path(), NOBODY as u32, 0), None);
    let later = CrashReport::read(&disk, &path, ProcessState::Gone).unwrap().unwrap();
    assert_eq!((fatal(&later), later.damaged_bytes), (vec![false], 0));
}

#[test]
fn the_fatal_record_is_found_among_several_files() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let survived = write_report(dir.path(), "one-1.phx", NOBODY, 1);
    CrashReport::read(&disk, &survived, ProcessState::Alive).unwrap().unwrap().undo_reading(&disk).unwrap();
    write_report(dir.path(), "one-2.phx", NOBODY, 1);
    assert_eq!(fatal_record_of(&disk, dir.path(), NOBODY as u32, 0), Some(ExitCause::Panicked));
    assert_eq!(
        fatal_record_of(&disk, dir.path(), NOBODY as u32, i64::MAX),
        None,
        "it is of an earlier run of that number"
    );
}

#[test]
fn a_file_of_an_earlier_boot_is_due_even_with_our_pid() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let own = std::process::id();
    let mut buffer = [0; 256];
    let mut written_at = |boot_id: u128, name: &str| {
        let mut writer = Writer::new(&mut buffer, Kind::Context, 0, 0);
        writer.number(Tag::Pid, own.into());
        writer.number(Tag::StartTicks, start_ticks(own).unwrap());
        writer.bytes(Tag::BootId, &boot_id.to_le_bytes());
        std::fs::write(dir.path().join(name), writer.finish().unwrap()).unwrap();
    };
    written_at(disk.boot_id(), "now-1.phx");
    written_at(0, "unknown-1.phx");
    written_at(disk.boot_id() ^ 1, "before-1.phx");
    assert_eq!(unread_reports(&disk, dir.path()).unwrap(), [dir.path().join("before-1.phx")]);
}

#[test]
fn a_pipe_a_link_and_a_folder_are_given_up_without_waiting() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let pipe = dir.path().join("pipe-1.phx");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("link-1.phx")).unwrap();
    std::fs::create_dir(dir.path().join("folder-1.phx")).unwrap();
    assert_eq!(fatal_record_of(&disk, dir.path(), 1, 0), None);
    for _ in 0..4 {
        for path in unread_reports(&disk, dir.path()).unwrap() {
            assert!(!CrashReport::read(&disk, &path, ProcessState::Gone).is_ok_and(|report| report.is_some()));
        }
    }
    assert_eq!(names(dir.path()), ["folder-1.bad", "link-1.bad", "pipe-1.bad"]);
}

#[test]
fn a_process_that_dies_at_every_start_does_not_fill_the_disk() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let own = std::process::id();
    let living = write_report(dir.path(), "living-1.phx", own.into(), start_ticks(own).unwrap());
    let mut removed = 0;
    for start in 100..300 {
        removed += limit_unread(&disk, dir.path(), "no-such-instance", "").unwrap();
        write_report_of_dead_process(dir.path(), &format!("start_{start}-1.phx"));
        assert!(names(dir.path()).len() <= 64);
    }
    assert!(living.exists() && removed == 201 - 64, "{removed}");
    for rotation in 1..300 {
        limit_unread(&disk, dir.path(), "own", "own-1.phx").unwrap();
        write_report(dir.path(), &format!("own-{rotation}.phx"), own.into(), start_ticks(own).unwrap());
    }
    assert!(living.exists() && dir.path().join("own-1.phx").exists() && names(dir.path()).len() <= 64);
}
