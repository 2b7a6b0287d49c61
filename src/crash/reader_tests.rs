//! Which files are read, how often, and what is kept of those that never could be.

use std::path::{Path, PathBuf};

use super::cause::FatalRecord;
use super::format::{Kind, Tag, Writer};
use super::process::start_ticks;
use super::reader::{Words, fatal_left, has_left_behind, left_behind, make_room};
use super::{End, Severity, take_over};
use crate::sys::disk::Disk;

/// A pid that no process has: above what Linux gives out.
const NOBODY: u64 = 0x7fff_fff0;

/// A file of a process that is gone, with one panic in it.
pub(crate) fn left_by_nobody(dir: &Path, name: &str) {
    left_by(dir, name, NOBODY, 1);
}

/// A file of that process with one panic in it.
fn left_by(dir: &Path, name: &str, pid: u64, started: u64) -> PathBuf {
    let mut buffer = [0; 256];
    let mut writer = Writer::new(&mut buffer, Kind::Context, 0, 0);
    writer.number(Tag::Pid, pid);
    writer.number(Tag::StartTicks, started);
    writer.bytes(Tag::Executable, b"/usr/bin/program");
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
fn a_file_is_read_three_times_and_then_put_aside() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    left_by(dir.path(), "one-1.phx", NOBODY, 1);
    for reading in 1..=3 {
        let [path] = left_behind(&disk, dir.path()).unwrap().try_into().unwrap();
        let words = Words::read(&disk, &path, End::Gone).unwrap().unwrap();
        assert_eq!((words.reading, words.incidents.len()), (reading, 1));
        // Counted before it is read: whoever dies now has left this.
        assert_eq!(names(dir.path()), [format!("one-1.phx.{reading}")]);
    }
    let [path] = left_behind(&disk, dir.path()).unwrap().try_into().unwrap();
    assert!(Words::read(&disk, &path, End::Gone).unwrap().is_none());
    assert_eq!(names(dir.path()), ["one-1.bad"]);
    assert!(!has_left_behind(&disk, dir.path()) && left_behind(&disk, dir.path()).unwrap().is_empty());
}

#[test]
fn of_files_put_aside_four_are_kept() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    for number in 1..=9 {
        let path = left_by(dir.path(), &format!("{number}-1.phx.3"), NOBODY, 1);
        assert!(Words::read(&disk, &path, End::Gone).unwrap().is_none());
    }
    assert_eq!(names(dir.path()), ["6-1.bad", "7-1.bad", "8-1.bad", "9-1.bad"]);
}

#[test]
fn a_reading_that_is_taken_back_does_not_count() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    for before in ["one-1.phx", "one-1.phx.1", "one-1.phx.2"] {
        let path = left_by(dir.path(), before, NOBODY, 1);
        let words = Words::read(&disk, &path, End::Gone).unwrap().unwrap();
        assert_ne!(words.path(), path);
        words.put_back(&disk).unwrap();
        assert_eq!(names(dir.path()), [before]);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_file_of_a_process_that_lives_is_left_alone_and_one_of_a_pid_that_was_given_again_is_not() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let own = std::process::id();
    let started = start_ticks(own).unwrap();
    left_by(dir.path(), "alive-1.phx", own.into(), started);
    let given_again = left_by(dir.path(), "given_again-1.phx", own.into(), started + 1);
    let gone = left_by(dir.path(), "gone-1.phx.2", NOBODY, 1);
    let unlinked = dir.path().join("unlinked-1.phx");
    std::fs::write(&unlinked, b"no context stands here").unwrap();
    std::fs::write(dir.path().join("stranger.txt"), b"none of ours").unwrap();
    std::fs::write(dir.path().join("one-1.phx.x"), b"none of ours").unwrap();
    assert_eq!(left_behind(&disk, dir.path()).unwrap(), [given_again, gone, unlinked.clone()]);
    let words = Words::read(&disk, &unlinked, End::Gone).unwrap().unwrap();
    assert!(words.context.is_none() && words.incidents.is_empty() && words.passed_over == 22);
    words.done(&disk).unwrap();
    assert!(!names(dir.path()).iter().any(|name| name.starts_with("unlinked")));
}

#[test]
fn files_of_another_shard_are_taken_over_with_their_readings_and_those_of_the_living_stay() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    assert!(!take_over(&disk, &from, &to).unwrap(), "there is no such folder");
    std::fs::create_dir(&from).unwrap();
    let own = std::process::id();
    left_by(&from, "alive-1.phx", own.into(), start_ticks(own).unwrap());
    assert!(!take_over(&disk, &from, &to).unwrap() && !to.exists());
    left_by(&from, "gone-1.phx.2", NOBODY, 1);
    assert!(take_over(&disk, &from, &to).unwrap());
    assert_eq!((names(&from), names(&to)), (vec!["alive-1.phx".to_owned()], vec!["gone-1.phx.2".to_owned()]));
}

#[test]
fn what_a_process_survived_is_not_taken_for_its_end_by_a_later_reading() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let path = left_by(dir.path(), "one-1.phx", NOBODY, 1);
    let severities = |words: &Words| words.incidents.iter().map(|incident| incident.severity).collect::<Vec<_>>();
    let words = Words::read(&disk, &path, End::Alive).unwrap().unwrap();
    assert_eq!((severities(&words), words.passed_over), (vec![Severity::Survived], 0));
    words.put_back(&disk).unwrap();
    assert_eq!(fatal_left(&disk, dir.path(), NOBODY as u32, 0), None);
    let later = Words::read(&disk, &path, End::Gone).unwrap().unwrap();
    assert_eq!((severities(&later), later.passed_over), (vec![Severity::Survived], 0));
}

#[test]
fn of_several_files_of_a_process_the_one_that_says_its_end_is_found() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let survived = left_by(dir.path(), "one-1.phx", NOBODY, 1);
    Words::read(&disk, &survived, End::Alive).unwrap().unwrap().put_back(&disk).unwrap();
    left_by(dir.path(), "one-2.phx", NOBODY, 1);
    assert_eq!(fatal_left(&disk, dir.path(), NOBODY as u32, 0), Some(FatalRecord::Panic));
    assert_eq!(fatal_left(&disk, dir.path(), NOBODY as u32, i64::MAX), None, "it is of an earlier run of that number");
}

#[test]
fn a_file_of_an_earlier_start_of_the_machine_is_nobodys_though_the_numbers_are_ours() {
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
    assert_eq!(left_behind(&disk, dir.path()).unwrap(), [dir.path().join("before-1.phx")]);
}

#[test]
fn what_is_no_file_is_waited_for_by_nobody_and_put_aside() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let pipe = dir.path().join("pipe-1.phx");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("link-1.phx")).unwrap();
    std::fs::create_dir(dir.path().join("folder-1.phx")).unwrap();
    assert_eq!(fatal_left(&disk, dir.path(), 1, 0), None);
    for _ in 0..4 {
        for path in left_behind(&disk, dir.path()).unwrap() {
            assert!(!Words::read(&disk, &path, End::Gone).is_ok_and(|words| words.is_some()));
        }
    }
    assert_eq!(names(dir.path()), ["folder-1.bad", "link-1.bad", "pipe-1.bad"]);
}

#[test]
fn a_process_that_dies_at_every_start_does_not_fill_the_disk() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Disk::default());
    let own = std::process::id();
    let living = left_by(dir.path(), "living-1.phx", own.into(), start_ticks(own).unwrap());
    let mut removed = 0;
    for start in 100..300 {
        removed += make_room(&disk, dir.path(), "no-such-instance", "").unwrap();
        left_by_nobody(dir.path(), &format!("start_{start}-1.phx"));
        assert!(names(dir.path()).len() <= 64);
    }
    assert!(living.exists() && removed == 201 - 64, "{removed}");
    for put_back in 1..300 {
        make_room(&disk, dir.path(), "own", "own-1.phx").unwrap();
        left_by(dir.path(), &format!("own-{put_back}.phx"), own.into(), start_ticks(own).unwrap());
    }
    assert!(living.exists() && dir.path().join("own-1.phx").exists() && names(dir.path()).len() <= 64);
}
