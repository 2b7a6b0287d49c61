//! Reading report files: which files are due, how often each was read, and what it holds.
//!
//! A file is due when its process is gone, or when this process has rotated it away. Each reading is counted in the
//! file's name before it begins, because its content may crash the reader. After [`ATTEMPTS`] readings the file is
//! renamed to `.bad` and kept for inspection, and so is a file of which a part can never be sent. A file is removed when
//! everything in it is durable in the queue.

use std::io;
use std::path::{Path, PathBuf};

use nix::libc;

use super::exit::ExitCause;
use super::format::{BODY_MOST, HEADER, Kind, Record, Tag, Writer, flags, scan};
use super::incident::{Incident, ProcessState, incidents, is_survived};
use super::process::{self, ProcessInfo};
use crate::sys::clock::WallNanos;
use crate::sys::disk::{Disk, Open};

/// Extension of a file that was not read yet.
pub(super) const EXTENSION: &str = "phx";
const GIVEN_UP: &str = "bad";
/// Readings of a file that may fail or crash the reader before the file is given up.
const ATTEMPTS: u32 = 3;
/// Number of given-up files that are kept.
const GIVEN_UP_KEPT: usize = 4;
/// Maximum number of unread files. A process that dies at every start, before it has read the previous report, would
/// otherwise fill the disk.
const WAITING_MOST: usize = 64;
/// Maximum bytes read of one file. The writer's files are a quarter of that.
const READ_MOST: u64 = 1024 * 1024;

/// The content of one report file.
#[derive(Debug)]
pub(crate) struct CrashReport {
    /// The file, named after this reading.
    pub(crate) path: PathBuf,
    /// `None` if the beginning of the file is damaged.
    pub(crate) process: Option<ProcessInfo>,
    pub(crate) incidents: Vec<Incident>,
    /// Bytes of incomplete or damaged records.
    pub(crate) damaged_bytes: usize,
    /// Number of this reading, from 1.
    pub(crate) attempt: u32,
}

/// Whether the directory holds unread files. Does not check whether their processes are gone.
pub(crate) fn has_unread_reports(disk: &Disk, dir: &Path) -> bool {
    disk.list(dir).is_ok_and(|names| names.iter().any(|name| attempts_in(name).is_some()))
}

/// The unread files in `dir` whose processes are gone. Never a file of this process.
pub(crate) fn unread_reports(disk: &Disk, dir: &Path) -> io::Result<Vec<PathBuf>> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names?,
    };
    let mut found = Vec::new();
    for name in names.iter().filter(|name| attempts_in(name).is_some()) {
        let path = dir.join(name);
        if !is_in_use(disk, &path) {
            found.push(path);
        }
    }
    Ok(found)
}

/// A file in a directory of reports, as somebody finds it who does not read it for delivery.
#[cfg(feature = "inspect")]
#[derive(Debug)]
pub(crate) struct FoundReport {
    pub(crate) path: PathBuf,
    /// Whether it is not read any more.
    pub(crate) is_given_up: bool,
    /// Whether its process is alive, and may write to it.
    pub(crate) is_in_use: bool,
}

/// All report files in `dir`, also those of living processes and those that were given up.
#[cfg(feature = "inspect")]
pub(crate) fn find_reports(disk: &Disk, dir: &Path) -> io::Result<Vec<FoundReport>> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names?,
    };
    let suffix = format!(".{GIVEN_UP}");
    let found = names.iter().filter_map(|name| {
        let is_given_up = name.ends_with(&suffix);
        let path = dir.join(name);
        let is_in_use = !is_given_up && is_in_use(disk, &path);
        (is_given_up || attempts_in(name).is_some()).then_some(FoundReport { path, is_given_up, is_in_use })
    });
    Ok(found.collect())
}

/// The number of unread files in `dir` whose processes are gone, and of those that are no longer tried. What cannot be
/// listed is not counted.
#[cfg(feature = "inspect")]
pub(crate) fn count_reports(disk: &Disk, dir: &Path) -> (u64, u64) {
    let is_given_up = |name: &&String| Path::new(name).extension().is_some_and(|extension| extension == GIVEN_UP);
    let given_up = disk.list(dir).unwrap_or_default().iter().filter(is_given_up).count();
    (unread_reports(disk, dir).unwrap_or_default().len() as u64, given_up as u64)
}

/// Moves unread files of another shard, whose processes are gone, into `to`. Returns whether there were any.
pub(crate) fn adopt_reports(disk: &Disk, from: &Path, to: &Path) -> io::Result<bool> {
    let found = unread_reports(disk, from)?;
    if !found.is_empty() {
        disk.make_dir(to)?;
    }
    for path in &found {
        let (stem, rest) = name_of(path).split_once('.').unwrap_or_default();
        rename_to_free(disk, path, to, stem, rest)?;
    }
    Ok(!found.is_empty())
}

/// Removes files if too many are unread: those of this process, whose names begin with `own`, when a full queue does
/// not accept their events, and those of processes that are gone. `current`, which is being written to, and files of
/// other live processes stay. Files with the most readings are removed last, since they are given up soon. Returns the
/// number of removed files.
pub(super) fn limit_unread(disk: &Disk, dir: &Path, own: &str, current: &str) -> io::Result<usize> {
    let names = disk.list(dir)?;
    let mut waiting: Vec<_> = names.iter().filter_map(|name| Some((attempts_in(name)?, name))).collect();
    let excess = waiting.len().saturating_sub(WAITING_MOST.saturating_sub(1));
    waiting.sort_by_key(|(attempts, _)| *attempts);
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

/// What process `pid` died of according to its unread files. The files stay. `began` is the wall time of the process's
/// start: in a container every run may have the same pid, and an earlier run's files may still be unread.
pub(crate) fn fatal_record_of(disk: &Disk, dir: &Path, pid: u32, began: WallNanos) -> Option<ExitCause> {
    let paths = unread_reports(disk, dir).ok()?;
    let is_of_it = |record: &Record| record.kind == Kind::Context && record.number(Tag::Pid) == Some(u64::from(pid));
    let is_earlier = |time: u64| i64::try_from(time).is_ok_and(|time| time < began);
    let ended_it = |incident: &Incident| {
        let record = &incident.record;
        incident.is_fatal && !record.has_flag(flags::FORKED_CHILD) && !record.number(Tag::Time).is_some_and(is_earlier)
    };
    // There may be several files of one process; one that was returned unread holds only survived incidents.
    let fatal = paths.iter().find_map(|path| {
        let records = scan(&disk.read(path, READ_MOST).ok()?).records;
        records.iter().any(is_of_it).then(|| incidents(&records, ProcessState::Gone).into_iter().rfind(ended_it))?
    })?;
    let signal = fatal.record.number(Tag::Signal).and_then(|signal| i32::try_from(signal).ok());
    Some(signal.map_or(ExitCause::Panicked, ExitCause::Signal))
}

impl CrashReport {
    /// Reads a file whose process is in this `state`. Counts the reading in the file's name first, because the content
    /// may crash this process. Returns `None` if the file was read [`ATTEMPTS`] times already; it is then renamed and
    /// not read again.
    pub(crate) fn read(disk: &Disk, path: &Path, state: ProcessState) -> io::Result<Option<Self>> {
        let attempt = attempts_in(name_of(path)).unwrap_or(0).saturating_add(1);
        if attempt > ATTEMPTS {
            return give_up(disk, path).map(|_| None);
        }
        let counted = rename_after(disk, path, attempt)?;
        if state == ProcessState::Alive {
            // If this reading does not finish, the next one finds the process gone and must not conclude that it died
            // of this. If the note cannot be written, the next reading reports it as fatal.
            let _ = note_survival(disk, &counted);
        }
        Ok(Some(Self::of(disk, counted, state, attempt)?))
    }

    /// Reads a file without counting the reading, and changes nothing.
    #[cfg(feature = "inspect")]
    pub(crate) fn look(disk: &Disk, path: &Path, state: ProcessState) -> io::Result<Self> {
        Self::of(disk, path.to_path_buf(), state, attempts_in(name_of(path)).unwrap_or(ATTEMPTS))
    }

    fn of(disk: &Disk, path: PathBuf, state: ProcessState, attempt: u32) -> io::Result<Self> {
        let (bytes, len) = bytes_and_len_of(disk, &path, READ_MOST)?;
        let scanned = scan(&bytes);
        let process = scanned.records.iter().rfind(|record| record.kind == Kind::Context).map(ProcessInfo::decode);
        let incidents = incidents(&scanned.records, state);
        let unread = usize::try_from(len).unwrap_or(usize::MAX).saturating_sub(bytes.len());
        let damaged_bytes = scanned.damaged_bytes.saturating_add(unread);
        Ok(Self { path, process, incidents, damaged_bytes, attempt })
    }

    /// Whether the file has been read as often as a file is read.
    pub(crate) fn is_last_attempt(&self) -> bool {
        self.attempt >= ATTEMPTS
    }

    /// Removes the file, once all its incidents are durable elsewhere and nothing else is in it.
    pub(crate) fn remove(&self, disk: &Disk) -> io::Result<()> {
        disk.remove_file(&self.path)
    }

    /// Keeps the file under a name under which it is not read again. Returns its path.
    pub(crate) fn give_up(&self, disk: &Disk) -> io::Result<PathBuf> {
        give_up(disk, &self.path)
    }

    /// Takes back the count of this reading, which failed for a reason outside the file.
    pub(crate) fn undo_reading(&self, disk: &Disk) -> io::Result<()> {
        rename_after(disk, &self.path, self.attempt.saturating_sub(1)).map(drop)
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// How often the file of that name was read; `None` if it is not a report file, or given up.
fn attempts_in(name: &str) -> Option<u32> {
    let (_, rest) = name.split_once('.')?;
    match rest.strip_prefix(EXTENSION)? {
        "" => Some(0),
        counted => counted.strip_prefix('.')?.parse().ok(),
    }
}

/// Gives the file the name that it has after so many readings.
fn rename_after(disk: &Disk, path: &Path, attempts: u32) -> io::Result<PathBuf> {
    let stem = name_of(path).split('.').next().unwrap_or_default();
    let rest = if attempts == 0 { EXTENSION.to_owned() } else { format!("{EXTENSION}.{attempts}") };
    rename_to_free(disk, path, path.parent().unwrap_or(path), stem, &rest)
}

fn give_up(disk: &Disk, path: &Path) -> io::Result<PathBuf> {
    let stem = name_of(path).split('.').next().unwrap_or_default();
    let dir = path.parent().unwrap_or(path);
    let kept = rename_to_free(disk, path, dir, stem, GIVEN_UP)?;
    // If older ones cannot be removed, this one is kept all the same.
    let _ = remove_oldest(disk, dir, &kept);
    Ok(kept)
}

/// Renames the file to `<dir>/<stem>.<rest>`. A number follows the stem if that name is taken: a writer that lost its
/// descriptor begins its file again under the first name, and the other one may not be sent yet.
fn rename_to_free(disk: &Disk, from: &Path, dir: &Path, stem: &str, rest: &str) -> io::Result<PathBuf> {
    let mut to = dir.join(format!("{stem}.{rest}"));
    let mut number = 1;
    while to != from && disk.exists(&to)? {
        number += 1;
        to = dir.join(format!("{stem}-{number}.{rest}"));
    }
    disk.rename(from, &to)?;
    Ok(to)
}

/// Whether a file holds only the process's description and survived signals.
pub(super) fn has_nothing_to_report(disk: &Disk, path: &Path) -> bool {
    disk.read(path, READ_MOST).is_ok_and(|bytes| {
        let scanned = scan(&bytes);
        let says_nothing = |record: &Record| {
            matches!(record.kind, Kind::Context | Kind::Repaired | Kind::Reserved)
                || is_survived(record, &scanned.records)
        };
        scanned.damaged_bytes == 0 && scanned.records.iter().all(says_nothing)
    })
}

/// Whether a file of that name is a report, given up or not.
#[cfg(feature = "inspect")]
pub(super) fn is_report(name: &str) -> bool {
    attempts_in(name).is_some() || name.split_once('.').is_some_and(|(_, rest)| rest == GIVEN_UP)
}

/// Whether the process that owns the file is alive. A file without a readable first record has no owner.
pub(super) fn is_in_use(disk: &Disk, path: &Path) -> bool {
    let bytes = match disk.read(path, BODY_MOST as u64) {
        Ok(bytes) => bytes,
        // Without a free descriptor to check, the file may belong to a live process: this one.
        Err(error) => return matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)),
    };
    let records = scan(&bytes).records;
    let Some(process) = records.iter().find(|record| record.kind == Kind::Context) else { return false };
    let (Some(pid), Some(started)) = (process.number(Tag::Pid), process.number(Tag::StartTicks)) else { return false };
    // A start time counts from the boot of the machine: after the next boot another process may have the same pid and
    // start time.
    let boot_id = process.bytes(Tag::BootId).and_then(|bytes| Some(u128::from_le_bytes(bytes.try_into().ok()?)));
    let is_known = |boot_id: &u128| *boot_id != 0;
    let now = Some(disk.boot_id()).filter(is_known);
    if boot_id.filter(is_known).zip(now).is_some_and(|(then, now)| then != now) {
        return false;
    }
    let is_own = process.bytes(Tag::Instance).is_some_and(process::is_own_instance);
    u32::try_from(pid).is_ok_and(|pid| process::is_alive(pid, started, is_own))
}

/// Notes in a file that nothing writes to any more that its process survived.
fn note_survival(disk: &Disk, path: &Path) -> io::Result<()> {
    let mut buffer = [0; HEADER];
    let Some(record) = Writer::new(&mut buffer, Kind::Survived, 0, 0).finish() else { return Ok(()) };
    let file = disk.open(path, Open::Existing)?;
    file.write_all_at(file.len()?, record)
}

/// The beginning of the file, and the length of the whole.
fn bytes_and_len_of(disk: &Disk, path: &Path, most: u64) -> io::Result<(Vec<u8>, u64)> {
    let file = disk.open(path, Open::ReadOnly)?;
    let len = file.len()?;
    let mut bytes = vec![0; usize::try_from(len.min(most)).unwrap_or(0)];
    file.read_exact_at(0, &mut bytes)?;
    Ok((bytes, len))
}

/// Removes the oldest files that were given up, and never `newest`, whatever the age of its crash. Names say nothing
/// about age, since they begin with random digits.
fn remove_oldest(disk: &Disk, dir: &Path, newest: &Path) -> io::Result<()> {
    let suffix = format!(".{GIVEN_UP}");
    let mut given_up: Vec<_> =
        disk.list(dir)?.into_iter().filter(|name| name.ends_with(&suffix)).map(|name| dir.join(name)).collect();
    given_up.retain(|path| path != newest);
    given_up.sort_by_cached_key(|path| std::fs::symlink_metadata(path).and_then(|file| file.modified()).ok());
    for path in given_up.iter().take((given_up.len() + 1).saturating_sub(GIVEN_UP_KEPT)) {
        disk.remove_file(path)?;
    }
    Ok(())
}

/// For fuzz targets: the incidents in a file of these bytes, for each state of its process. Once with the bytes as they
/// are and once with corrected checksums, since a fuzzer never guesses one.
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) fn incidents_of_bytes(bytes: &[u8], mut visit: impl FnMut(&Incident, Option<&ProcessInfo>)) {
    let mut repaired = bytes.to_vec();
    correct_checksums(&mut repaired);
    for bytes in [bytes, &repaired] {
        let scanned = scan(bytes);
        assert!(scanned.damaged_bytes <= bytes.len());
        let is_context = |record: &&Record| record.kind == Kind::Context;
        let process = scanned.records.iter().rfind(is_context).map(ProcessInfo::decode);
        for state in
            [ProcessState::Alive, ProcessState::Gone, ProcessState::Exited(Some(101)), ProcessState::Exited(None)]
        {
            incidents(&scanned.records, state).iter().for_each(|incident| visit(incident, process.as_ref()));
        }
    }
}

#[cfg(all(any(fuzzing, test), feature = "inspect"))]
fn correct_checksums(bytes: &mut [u8]) {
    for start in 0..bytes.len() {
        let Some(record) = bytes.get_mut(start..).filter(|rest| rest.starts_with(&super::format::MAGIC)) else {
            continue;
        };
        let Some(body) = record.get(12..16).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes) else {
            return;
        };
        let Some(record) = record.get_mut(..(body as usize).saturating_add(HEADER)) else { continue };
        record[16..20].fill(0);
        let sum = xxhash_rust::xxh3::xxh3_64(record) as u32;
        record[16..20].copy_from_slice(&sum.to_le_bytes());
    }
}
