//! The files that are to be read: whose they are, how often they were tried, what stands in them.

use std::io;
use std::path::{Path, PathBuf};

use nix::libc;

use super::cause::FatalRecord;
use super::format::{BODY_MOST, HEADER, Kind, Record, Tag, Writer, scan};
use super::incident::{End, Incident, Severity, incidents, is_survived};
use super::{Context, process};
use crate::sys::clock::WallNanos;
use crate::sys::disk::{Disk, Open};

/// Of a file that was not read yet.
pub(super) const EXTENSION: &str = "phx";
const GIVEN_UP: &str = "bad";
/// Readings that may fail or take the reader with them, before a file is put aside.
const READINGS: u32 = 3;
/// Files put aside that are kept.
const GIVEN_UP_KEPT: usize = 4;
/// Files that wait to be read. A process that dies at every start, before it has read what the last one left, would fill the disk.
const WAITING_MOST: usize = 64;
/// Bytes read of one file; ours are a quarter of that.
const READ_MOST: u64 = 1024 * 1024;

/// What stands in one file.
#[derive(Debug)]
pub(crate) struct Words {
    path: PathBuf,
    /// `None` if the beginning of the file is lost.
    pub(crate) context: Option<Context>,
    pub(crate) incidents: Vec<Incident>,
    /// Bytes of torn or damaged records.
    pub(crate) passed_over: usize,
    /// How often the file was begun to be read, this time included.
    pub(crate) reading: u32,
}

/// Whether there may be something to read, for one look into the directory.
pub(crate) fn has_left_behind(disk: &Disk, dir: &Path) -> bool {
    disk.list(dir).is_ok_and(|names| names.iter().any(|name| readings_of(name).is_some()))
}

/// The files in `dir` whose processes are gone. Those of this process are not among them.
pub(crate) fn left_behind(disk: &Disk, dir: &Path) -> io::Result<Vec<PathBuf>> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names?,
    };
    let mut found = Vec::new();
    for name in names.iter().filter(|name| readings_of(name).is_some()) {
        let path = dir.join(name);
        if !is_in_use(disk, &path) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Removes files where too many wait to be read: those of this process, whose names
/// begin with `own`, where a full queue does not take them, and those of processes that are gone. `current`, which is written to, and
/// those of other processes that live stay. Those that were read most often go last: they are put aside soon. Says how many went.
pub(super) fn make_room(disk: &Disk, dir: &Path, own: &str, current: &str) -> io::Result<usize> {
    let names = disk.list(dir)?;
    let mut waiting: Vec<_> = names.iter().filter_map(|name| Some((readings_of(name)?, name))).collect();
    let excess = waiting.len().saturating_sub(WAITING_MOST.saturating_sub(1));
    waiting.sort_by_key(|(readings, _)| *readings);
    let mut removed = 0;
    for (_, name) in waiting.iter().filter(|(_, name)| *name != current) {
        let path = dir.join(name);
        if removed < excess && (name.starts_with(own) || !is_in_use(disk, &path)) {
            disk.remove_file(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// What the process of that number left of which it died, without taking it away. It began at `began`, by the wall clock: in a container
/// every run has the same number, and what an earlier one left may not have been read yet.
pub(crate) fn fatal_left(disk: &Disk, dir: &Path, pid: u32, began: WallNanos) -> Option<FatalRecord> {
    let paths = left_behind(disk, dir).ok()?;
    let is_of_it = |record: &Record| record.kind == Kind::Context && record.number(Tag::Pid) == Some(u64::from(pid));
    let is_earlier = |time: u64| i64::try_from(time).is_ok_and(|time| time < began);
    let ended_it = |incident: &Incident| {
        let facts = &incident.facts;
        incident.severity == Severity::Fatal && !facts.in_forked_child && !facts.time_nanos.is_some_and(is_earlier)
    };
    // It may have left several: one that was put back tells of what it survived.
    let fatal = paths.iter().find_map(|path| {
        let records = scan(&bytes_of(disk, path, READ_MOST).ok()?).records;
        records.iter().any(is_of_it).then(|| incidents(&records, End::Gone).into_iter().rfind(ended_it))?
    })?;
    let signal = fatal.facts.signal.and_then(|signal| i32::try_from(signal).ok());
    Some(signal.map_or(FatalRecord::Panic, FatalRecord::Signal))
}

impl Words {
    /// Reads a file whose process came to this `end`. The reading is counted first, in the file's name: what is in it may be what ends
    /// this process too. `None` if it was tried often enough, and now lies aside under another name.
    pub(crate) fn read(disk: &Disk, path: &Path, end: End) -> io::Result<Option<Self>> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let reading = readings_of(name).unwrap_or(0).saturating_add(1);
        let stem = name.split('.').next().unwrap_or_default();
        if reading > READINGS {
            disk.rename(path, &path.with_file_name(format!("{stem}.{GIVEN_UP}")))?;
            return forget_oldest(disk, path.parent().unwrap_or(path)).map(|()| None);
        }
        let counted = path.with_file_name(format!("{stem}.{EXTENSION}.{reading}"));
        disk.rename(path, &counted)?;
        if end == End::Alive {
            // Should this reading not come to its end, the next one finds the process gone, and must not take it for the cause. What
            // cannot be noted is told as fatal then.
            let _ = note_survival(disk, &counted);
        }
        let scanned = scan(&bytes_of(disk, &counted, READ_MOST)?);
        let context = scanned.records.iter().rfind(|record| record.kind == Kind::Context).map(Context::decode);
        let incidents = incidents(&scanned.records, end);
        Ok(Some(Self { path: counted, context, incidents, passed_over: scanned.passed_over, reading }))
    }

    /// Removes the file: all that it said is safe elsewhere.
    pub(crate) fn done(&self, disk: &Disk) -> io::Result<()> {
        disk.remove_file(&self.path)
    }

    /// Takes this reading back: it was not what is in the file that stopped it.
    pub(crate) fn put_back(&self, disk: &Disk) -> io::Result<()> {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let stem = name.split('.').next().unwrap_or_default();
        let before = match self.reading.saturating_sub(1) {
            0 => format!("{stem}.{EXTENSION}"),
            reading => format!("{stem}.{EXTENSION}.{reading}"),
        };
        disk.rename(&self.path, &self.path.with_file_name(before))
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// How often the file of that name was begun to be read; `None` if it is none of ours, or given up.
fn readings_of(name: &str) -> Option<u32> {
    let (_, rest) = name.split_once('.')?;
    match rest.strip_prefix(EXTENSION)? {
        "" => Some(0),
        counted => counted.strip_prefix('.')?.parse().ok(),
    }
}

/// Whether a file says nothing but what its process is, and what that has survived.
pub(super) fn holds_a_context_only(disk: &Disk, path: &Path) -> bool {
    bytes_of(disk, path, READ_MOST).is_ok_and(|bytes| {
        let scanned = scan(&bytes);
        let says_nothing = |record: &Record| {
            matches!(record.kind, Kind::Context | Kind::Repaired | Kind::Reserved)
                || is_survived(record, &scanned.records)
        };
        scanned.passed_over == 0 && scanned.records.iter().all(says_nothing)
    })
}

/// Whether the process that the file belongs to lives. One without a readable context belongs to nobody.
fn is_in_use(disk: &Disk, path: &Path) -> bool {
    let bytes = match bytes_of(disk, path, BODY_MOST as u64) {
        Ok(bytes) => bytes,
        // Without a descriptor to look with, it may be that of a process that lives: ours.
        Err(error) => return matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)),
    };
    let records = scan(&bytes).records;
    let Some(context) = records.iter().find(|record| record.kind == Kind::Context) else { return false };
    let (Some(pid), Some(started)) = (context.number(Tag::Pid), context.number(Tag::StartTicks)) else { return false };
    // The start of a process is counted from that of the machine: a daemon may well have the same numbers after the next.
    let boot_id = context.bytes(Tag::BootId).and_then(|bytes| Some(u128::from_le_bytes(bytes.try_into().ok()?)));
    let is_known = |boot_id: &u128| *boot_id != 0;
    let now = Some(disk.boot_id()).filter(is_known);
    if boot_id.filter(is_known).zip(now).is_some_and(|(then, now)| then != now) {
        return false;
    }
    let is_own = context.bytes(Tag::Instance).is_some_and(process::is_own_instance);
    u32::try_from(pid).is_ok_and(|pid| process::lives(pid, started, is_own))
}

/// Notes in a file, which nobody writes to any more, that its process lived on.
fn note_survival(disk: &Disk, path: &Path) -> io::Result<()> {
    let mut buffer = [0; HEADER];
    let Some(record) = Writer::new(&mut buffer, Kind::Survived, 0, 0).finish() else { return Ok(()) };
    let file = disk.open(path, Open::Existing)?;
    file.write_all_at(file.len()?, record)
}

fn bytes_of(disk: &Disk, path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Open::ReadOnly)?;
    let mut bytes = vec![0; usize::try_from(file.len()?.min(most)).unwrap_or(0)];
    file.read_exact_at(0, &mut bytes)?;
    Ok(bytes)
}

fn forget_oldest(disk: &Disk, dir: &Path) -> io::Result<()> {
    let names = disk.list(dir)?;
    let given_up: Vec<_> = names.iter().filter(|name| name.ends_with(GIVEN_UP)).collect();
    for name in given_up.iter().take(given_up.len().saturating_sub(GIVEN_UP_KEPT)) {
        disk.remove_file(&dir.join(name))?;
    }
    Ok(())
}
