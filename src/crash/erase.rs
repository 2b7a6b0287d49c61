//! Looking for a person in the crash reports and breadcrumbs of a shard, and removing what is about that person; and
//! counting what is whole in a report. For a process that writes none of these files.
//!
//! A record is replaced by reserved space of the same length, so that every other record stays where it is. The file is
//! written anew beside the old one and renamed: a kill leaves one or the other.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::breadcrumbs;
use super::format::{self, HEADER, Kind, Record, Tag, Writer};
use super::reader;
use crate::sys::disk::{Disk, Entry, Open};

/// Maximum bytes read of one file, as the reader of reports.
const READ_MOST: u64 = 1024 * 1024;
/// Ends the name of a report that is being written anew. No reader takes it for a report.
const UNFINISHED: &str = ".new";

/// What to look for.
pub(crate) struct Wanted<'a> {
    /// Whether this distinct id is the person's.
    pub(crate) is_person: &'a dyn Fn(&str) -> bool,
    /// Whether these bytes contain an id of the person anywhere.
    pub(crate) mentions: &'a dyn Fn(&[u8]) -> bool,
    /// Whether records that only mention the person are removed as well.
    pub(crate) also_mentions: bool,
}

/// What was found, and removed if that was wanted.
#[derive(Debug, Default)]
pub(crate) struct FoundInReports {
    /// Records of the person.
    pub(crate) records: u64,
    /// Records of others, or of nobody, that contain an id of the person.
    pub(crate) mentions: u64,
    pub(crate) out_of_reach: Vec<OutOfReach>,
}

/// What could not be examined or changed, and why.
pub(crate) type OutOfReach = (PathBuf, String);

/// How much of a report is whole.
#[derive(Debug)]
pub(crate) struct ReportFacts {
    pub(crate) path: PathBuf,
    pub(crate) records: u64,
    pub(crate) damaged_bytes: u64,
}

/// Examines every report file in `dir`, also those that were given up and those of living processes; and names what is in
/// the place of one and is no file.
pub(crate) fn report_facts(disk: &Disk, dir: &Path) -> io::Result<(Vec<ReportFacts>, Vec<OutOfReach>)> {
    let (paths, passed_over) = files(disk, dir)?;
    let mut facts = Vec::new();
    for path in paths {
        let bytes = match disk.read(&path, READ_MOST) {
            // It was sent, or counted and renamed, since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            read => read?,
        };
        let scanned = format::scan(&bytes);
        let is_said = |record: &&Record| !matches!(record.kind, Kind::Repaired | Kind::Reserved);
        let records = scanned.records.iter().filter(is_said).count() as u64;
        facts.push(ReportFacts { path, records, damaged_bytes: scanned.damaged_bytes as u64 });
    }
    Ok((facts, passed_over))
}

/// Looks for the person in every report file in `dir`; removes what is found if `removes`.
pub(crate) fn search_reports(
    disk: &Disk,
    dir: &Path,
    wanted: &Wanted<'_>,
    removes: bool,
) -> io::Result<FoundInReports> {
    let (paths, passed_over) = files(disk, dir)?;
    let mut found = FoundInReports { out_of_reach: passed_over, ..FoundInReports::default() };
    for path in paths {
        if removes && reader::is_in_use(disk, &path) {
            found.out_of_reach.push((path, "a living process writes it".into()));
            continue;
        }
        let searched = disk.read(&path, READ_MOST).and_then(|bytes| {
            let without = without_person(&bytes, wanted);
            if let (true, Some(bytes)) = (removes, &without.bytes) {
                replace(disk, &path, bytes)?;
            }
            Ok(without)
        });
        match searched {
            Ok(without) => {
                found.records += without.records;
                found.mentions += without.mentions;
            }
            Err(error) => found.out_of_reach.push((path, error.to_string())),
        }
    }
    if removes && Entry::at(dir).is_ok_and(|found| found == Entry::Dir) {
        // What a kill left behind while a file was replaced.
        for name in disk.list(dir)?.iter().filter(|name| name.ends_with(UNFINISHED)) {
            let path = dir.join(name);
            if let Err(error) = disk.remove_file(&path) {
                found.out_of_reach.push((path, error.to_string()));
            }
        }
    }
    Ok(found)
}

/// The number of breadcrumbs that mention the person, in the file of the shard's last run; overwrites them if `removes`.
pub(crate) fn search_breadcrumbs(
    disk: &Disk,
    shard_dir: &Path,
    mentions: &dyn Fn(&[u8]) -> bool,
    removes: bool,
) -> io::Result<u64> {
    const ENTRY: usize = 256;
    let path = shard_dir.join(breadcrumbs::FILE);
    if !disk.exists(&path)? {
        return Ok(0);
    }
    let bytes = disk.read(&path, breadcrumbs::FILE_BYTES as u64)?;
    let entries: Vec<_> =
        bytes.chunks(ENTRY).zip(0_u64..).skip(1).filter(|(entry, _)| mentions(entry)).map(|(_, at)| at).collect();
    if removes && !entries.is_empty() {
        let file = disk.open(&path, Open::Existing)?;
        for at in &entries {
            file.write_all_at(at * ENTRY as u64, &[0; ENTRY])?;
        }
        file.sync_data()?;
    }
    Ok(entries.len() as u64)
}

/// The report files in `dir`. What has the name of one and is no regular file is named and not touched, and so is something
/// else in the place of the directory.
fn files(disk: &Disk, dir: &Path) -> io::Result<(Vec<PathBuf>, Vec<OutOfReach>)> {
    let (mut files, mut others) = (Vec::new(), Vec::new());
    match Entry::at(dir) {
        Ok(Entry::Dir) => {}
        Ok(other) => return Ok((files, vec![(dir.to_path_buf(), format!("it is {other}, not a directory"))])),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((files, others)),
        Err(error) => return Err(error),
    }
    for path in disk.list(dir)?.into_iter().filter(|name| reader::is_report(name)).map(|name| dir.join(name)) {
        match Entry::at(&path) {
            Ok(other) if other != Entry::File => others.push((path, format!("it is {other}, not a regular file"))),
            _ => files.push(path),
        }
    }
    Ok((files, others))
}

fn replace(disk: &Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(UNFINISHED);
    let unfinished = PathBuf::from(unfinished);
    disk.remove_file(&unfinished)?;
    let file = disk.open(&unfinished, Open::CreateNew)?;
    file.write_all_at(0, bytes)?;
    file.sync_data()?;
    disk.rename(&unfinished, path)?;
    disk.sync_dir(path.parent().unwrap_or(path))
}

#[derive(Debug, Default)]
struct Without {
    /// `None` if nothing has to be removed.
    bytes: Option<Vec<u8>>,
    records: u64,
    mentions: u64,
}

/// The bytes of a report without the person. Damaged stretches in which the person is mentioned are overwritten too: no
/// reader uses them.
fn without_person(bytes: &[u8], wanted: &Wanted<'_>) -> Without {
    let (mut out, mut without, mut is_changed) = (bytes.to_vec(), Without::default(), false);
    let located = format::locate(bytes);
    for (range, record) in located.records {
        let is_of_person = record.text(Tag::DistinctId).is_some_and(|id| (wanted.is_person)(&id));
        let is_mention = !is_of_person && (wanted.mentions)(bytes.get(range.clone()).unwrap_or_default());
        without.records += u64::from(is_of_person);
        without.mentions += u64::from(is_mention);
        if (is_of_person || (is_mention && wanted.also_mentions)) && record.kind != Kind::Context {
            reserve(&mut out, range);
            is_changed = true;
        }
    }
    for range in
        located.damaged.into_iter().filter(|range| (wanted.mentions)(bytes.get(range.clone()).unwrap_or_default()))
    {
        if let Some(stretch) = out.get_mut(range) {
            stretch.fill(0);
            is_changed = true;
        }
    }
    Without { bytes: is_changed.then_some(out), ..without }
}

/// Makes reserved space of a record's bytes.
fn reserve(bytes: &mut [u8], range: Range<usize>) {
    let Some(place) = bytes.get_mut(range) else { return };
    place.fill(0);
    if place.len() >= HEADER {
        Writer::padded(place, Kind::Reserved, 0, 0).finish();
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::{flags, scan};
    use super::*;

    fn record(number: u64, distinct_id: &str, message: &str) -> Vec<u8> {
        let mut buffer = [0; 512];
        let mut writer = Writer::new(&mut buffer, Kind::Panic, flags::FORKED_CHILD, number);
        writer.bytes(Tag::DistinctId, distinct_id.as_bytes());
        writer.bytes(Tag::Message, message.as_bytes());
        writer.finish().unwrap().to_vec()
    }

    fn contains(bytes: &[u8]) -> bool {
        bytes.windows(5).any(|window| window == b"alice")
    }

    #[test]
    fn a_persons_records_become_reserved_space_and_others_stay() {
        let mut torn = record(4, "alice", "torn");
        torn.truncate(45);
        let file = [record(1, "bob", "a"), record(2, "alice", "b"), record(3, "bob", "alice did it"), torn].concat();
        for (also_mentions, kept) in [(false, vec![1, 3]), (true, vec![1])] {
            let wanted = Wanted { is_person: &|id| id == "alice", mentions: &contains, also_mentions };
            let without = without_person(&file, &wanted);
            assert_eq!((without.records, without.mentions), (1, 1));
            let bytes = without.bytes.unwrap();
            assert_eq!(bytes.len(), file.len());
            let scanned = scan(&bytes);
            let numbers = scanned.records.iter().filter(|record| record.kind == Kind::Panic);
            assert_eq!(numbers.map(|record| record.number).collect::<Vec<_>>(), kept);
            assert_eq!(contains(&bytes), !also_mentions, "the torn record is overwritten in both cases");
            assert_eq!(scanned.damaged_bytes, 45);
        }
    }

    #[test]
    fn a_report_without_the_person_is_not_written() {
        let wanted = Wanted { is_person: &|id| id == "alice", mentions: &contains, also_mentions: true };
        assert!(without_person(&record(1, "bob", "a"), &wanted).bytes.is_none());
    }
}
