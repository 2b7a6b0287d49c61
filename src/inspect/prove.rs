//! What a disk does for the library's promise: its file system, its locks, and how long its syncs take.
//!
//! `posthog-queue prove` adds the proof by experiment: processes that are killed while they capture on this disk, and
//! power cuts that are simulated on it (`power_cut.rs`).

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use uuid::Uuid;

use super::error::InspectError;
use super::places::{lossy, queues};
use super::reader::{Content, Damage};
use crate::client::Client;
use crate::config::Config;
use crate::crash::termination::{self, Watch};
use crate::error::Error;
use crate::pipeline::{PipelineOptions, spawn_apart};
use crate::report::QueueMedium;
use crate::sys::disk::{Disk, FileSystem, Open};
use crate::sys::limits::JOURNAL_BYTES_DEFAULT;

/// A new directory for measurements, of mode 0700. It is removed with its content when this is dropped, and when the
/// process is asked to terminate (SIGHUP, SIGINT, SIGTERM), of which it then dies.
#[derive(Debug)]
pub struct ProofDir {
    scratch: Scratch,
    is_ending: Arc<AtomicBool>,
}

/// Attempts to remove a directory in which threads of this process may still create files, and the wait between two.
const REMOVALS: u32 = 100;
const REMOVAL_WAIT: Duration = Duration::from_millis(20);
/// SIGHUP, SIGINT, SIGTERM.
const SIGNALS: [i32; 3] = [1, 2, 15];

impl ProofDir {
    /// Creates it below `dir`. When the process is asked to terminate, `stop` is called before the directory is removed,
    /// to end processes that write to it. Only one in a process handles signals, and none where the program called
    /// [`drain_on_terminate`](crate::drain_on_terminate).
    ///
    /// Fails if nothing can be created in `dir`, or the system can start no thread.
    pub fn below(dir: &Path, stop: impl FnOnce() + Send + 'static) -> Result<Self, InspectError> {
        let dir = std::path::absolute(dir).map_err(|source| InspectError::io(dir, source))?;
        let path = dir.join(format!("posthog-prove-{}", Uuid::now_v7().simple()));
        let is_ending = Arc::new(AtomicBool::new(false));
        // Before the directory exists, so that there is no moment at which it would stay.
        if let Some(watch) = Watch::claim() {
            let failed = |source| InspectError::io(&dir, source);
            watch.register(&SIGNALS, Some(true)).map_err(failed)?;
            watch.listen();
            let (path, is_ending) = (path.clone(), Arc::clone(&is_ending));
            let serve = move || {
                let caught = termination::wait();
                is_ending.store(true, Ordering::SeqCst);
                stop();
                remove_stubbornly(&path);
                termination::die_of(caught.signal);
            };
            spawn_apart("posthog-prove", serve).map_err(failed)?;
        }
        Ok(Self { scratch: Scratch::at(path)?, is_ending })
    }

    /// Its path, absolute.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }
}

impl Drop for ProofDir {
    fn drop(&mut self) {
        // What failed because the directory is being removed is no failure to report: the process dies in a moment.
        while self.is_ending.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }
}

fn remove_stubbornly(path: &Path) {
    for _ in 0..REMOVALS {
        let removed = fs::remove_dir_all(path);
        if removed.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            return;
        }
        std::thread::sleep(REMOVAL_WAIT);
    }
}

/// What a directory's disk does, as far as it can be measured from outside. Serializes as its fields.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DiskReport {
    /// The directory.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// The name of the file system, such as `ext4`; `unknown` where the system does not say.
    pub file_system: String,
    /// What is mounted, such as `/dev/nvme0n1p2`.
    pub device: Option<String>,
    /// The kind of medium that the library sees.
    pub medium: QueueMedium,
    /// Whether the journal is mapped there. Otherwise it is written, and a capture takes some microseconds more.
    pub is_mapped: bool,
    /// Whether a lock (`flock`) excludes others. Without that the library refuses the directory.
    pub has_working_locks: bool,
    /// Whether the disk's cache is flushed by syncs, according to the options of the mount.
    pub has_barriers: bool,
    /// Bytes that an unprivileged process may still write.
    pub free_bytes: u64,
    /// How long it takes to append 4 KiB and sync them (`fdatasync`): what a `persisted()` costs at least.
    pub sync_latency: Latencies,
}

/// A distribution of measured times. Serializes as its fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Latencies {
    /// The number of measurements. With none, the others are 0.
    pub count: u64,
    /// The shortest.
    pub min_seconds: f64,
    /// Half took at most this.
    pub median_seconds: f64,
    /// 99 % took at most this.
    pub p99_seconds: f64,
    /// 99.9 % took at most this.
    pub p999_seconds: f64,
    /// The longest.
    pub max_seconds: f64,
    /// How many took how long, shortest first. Ranges without a measurement in between have a count of 0.
    pub histogram: Vec<LatencyRange>,
}

/// Measurements of a range: at least half of `below_seconds`, and less than that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LatencyRange {
    /// The end of the range.
    pub below_seconds: f64,
    /// How many.
    pub count: u64,
}

impl Latencies {
    /// The distribution of these times.
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let (Some(first), Some(last)) = (times.first(), times.last()) else { return Self::default() };
        // The smallest time that so many thousandths do not exceed.
        let at = |thousandths: usize| {
            let rank = (times.len() * thousandths).div_ceil(1000).max(1);
            times.get(rank - 1).unwrap_or(last).as_secs_f64()
        };
        let mut histogram: Vec<LatencyRange> = Vec::new();
        let mut end = Duration::from_nanos(first.as_nanos().max(1) as u64 + 1).as_nanos().next_power_of_two() as u64;
        let mut rest = times.as_slice();
        while !rest.is_empty() {
            let count = rest.partition_point(|time| time.as_nanos() < u128::from(end));
            let below_seconds = Duration::from_nanos(end).as_secs_f64();
            histogram.push(LatencyRange { below_seconds, count: count as u64 });
            rest = rest.get(count..).unwrap_or_default();
            end = end.saturating_mul(2);
        }
        Self {
            count: times.len() as u64,
            min_seconds: first.as_secs_f64(),
            median_seconds: at(500),
            p99_seconds: at(990),
            p999_seconds: at(999),
            max_seconds: last.as_secs_f64(),
            histogram,
        }
    }
}

/// Syncs measured at most, and for how long.
const SYNCS: usize = 500;
const SYNCING: Duration = Duration::from_secs(2);
const SYNC_BYTES: usize = 4096;

/// A directory of this process alone, removed with its content when dropped.
#[derive(Debug)]
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn path(&self) -> &Path {
        &self.path
    }

    fn below(dir: &Path) -> Result<Self, InspectError> {
        Self::at(dir.join(format!("posthog-inspect-{}", Uuid::now_v7().simple())))
    }

    /// Creates it at this path.
    fn at(path: PathBuf) -> Result<Self, InspectError> {
        let above = path.parent().unwrap_or(&path);
        DirBuilder::new().mode(0o700).create(&path).map_err(|source| InspectError::io(above, source))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Measures the disk of a directory, in a directory below it that is removed afterwards. Takes at most a few seconds,
/// unless a sync hangs.
///
/// Fails if nothing can be written there.
pub fn disk(dir: &Path) -> Result<DiskReport, InspectError> {
    let dir = std::path::absolute(dir).map_err(|source| InspectError::io(dir, source))?;
    let (scratch, disk) = (Scratch::below(&dir)?, Disk::default());
    let path = scratch.path().join("file");
    let failed = |source| InspectError::io(&dir, source);
    let kind = disk.file_system(&dir).map_err(failed)?;
    let has_working_locks = match disk.open_locked(&path, Open::EnsureExists) {
        Ok(held) => held.is_some() && disk.open_locked(&path, Open::Existing).is_ok_and(|second| second.is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Err(failed(error)),
        Err(_) => false,
    };
    let file = disk.open(&path, Open::EnsureExists).map_err(failed)?;
    let (mut times, began) = (Vec::new(), Instant::now());
    while times.len() < SYNCS && began.elapsed() < SYNCING {
        let bytes = [times.len() as u8; SYNC_BYTES];
        file.write_all_at((times.len() * SYNC_BYTES) as u64, &bytes).map_err(failed)?;
        let before = Instant::now();
        file.sync_data().map_err(failed)?;
        times.push(before.elapsed());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = Mount::of(&mounts, &dir.canonicalize().map_err(failed)?);
    Ok(DiskReport {
        file_system: mount.as_ref().map_or_else(|| "unknown".to_owned(), |mount| mount.file_system.clone()),
        has_barriers: mount.as_ref().is_none_or(|mount| mount.has_barriers),
        device: mount.map(|mount| mount.device),
        medium: match kind {
            FileSystem::Ext | FileSystem::Other => QueueMedium::Disk,
            FileSystem::Memory => QueueMedium::MemoryFileSystem,
            FileSystem::Overlay => QueueMedium::ContainerLayer,
            FileSystem::Network => QueueMedium::NetworkFileSystem,
        },
        is_mapped: kind.may_map(),
        has_working_locks,
        free_bytes: disk.free_bytes(&dir).map_err(failed)?,
        sync_latency: Latencies::of(times),
        path: dir,
    })
}

/// A line of `/proc/self/mountinfo`.
struct Mount {
    file_system: String,
    device: String,
    has_barriers: bool,
}

impl Mount {
    /// The mount that contains a canonical path: of the longest mount points, the last one mounted.
    fn of(mounts: &str, path: &Path) -> Option<Self> {
        let mut found: Option<(PathBuf, Self)> = None;
        for line in mounts.lines() {
            // "36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/vda1 rw,barrier=0"
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(point) = before.split(' ').nth(4).map(unescaped) else { continue };
            let is_longer = found.as_ref().is_none_or(|(known, _)| point.as_os_str().len() >= known.as_os_str().len());
            let mut fields = after.split(' ');
            if let (true, true, Some(file_system), Some(device)) =
                (path.starts_with(&point), is_longer, fields.next(), fields.next())
            {
                let off = ["barrier=0", "nobarrier", "nobarriers", "barrier=none"];
                let has_barriers = !fields.flat_map(|options| options.split(',')).any(|option| off.contains(&option));
                found = Some((point, Self { file_system: file_system.into(), device: device.into(), has_barriers }));
            }
        }
        found.map(|(_, mount)| mount)
    }
}

/// A path in which spaces are written as `\040`.
fn unescaped(text: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(escapes.iter().fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain)))
}

/// A sync that is faster did not wait for any medium: the fastest persistent ones need more for the transfer alone.
const SYNC_LEAST_SECONDS: f64 = 10e-6;
/// From here on the promise of 100 ms does not hold.
const SYNC_MOST_SECONDS: f64 = 0.1;

impl DiskReport {
    /// What is wrong with the disk: an event may be lost of which the library says that it is not, or the library
    /// refuses to work there. Whole sentences that say what to do; empty if all is well.
    pub fn problems(&self) -> Vec<String> {
        let syncs = &self.sync_latency;
        let is_memory = self.medium == QueueMedium::MemoryFileSystem;
        let mut found = Vec::new();
        if !self.has_working_locks {
            found.push(
                "File locks do not work here, so two processes could open one queue: the library refuses this \
                 directory. Choose one on a local disk."
                    .to_owned(),
            );
        }
        if is_memory {
            found.push(
                "The directory is in memory: events survive the process, but neither a power cut nor a restart of the \
                 machine. Choose a directory on a disk."
                    .to_owned(),
            );
        } else if syncs.count > 0 && syncs.median_seconds < SYNC_LEAST_SECONDS {
            found.push(format!(
                "Syncs take {}: this disk or its cache does not wait for the medium. A power cut may lose what is \
                 reported as persisted. Look for a write cache without a battery, a virtual disk with \
                 cache=unsafe, or a library such as eatmydata.",
                short(syncs.median_seconds)
            ));
        }
        if !self.has_barriers {
            found.push(
                "The file system is mounted without barriers: the disk's cache is not flushed. A power cut may lose \
                 what is reported as persisted, unless the cache has a battery. Mount it with barriers."
                    .to_owned(),
            );
        }
        found
    }

    /// What is worth knowing and no problem.
    pub fn notes(&self) -> Vec<String> {
        let mut found = Vec::new();
        match self.medium {
            QueueMedium::ContainerLayer => found.push(
                "The directory is in a container's own layer: it is lost with the container. Mount a volume."
                    .to_owned(),
            ),
            QueueMedium::NetworkFileSystem => found
                .push("The directory is on a network file system: what a sync means is up to its server.".to_owned()),
            _ => {}
        }
        if self.sync_latency.median_seconds > SYNC_MOST_SECONDS {
            found.push(format!(
                "Syncs are slow ({}): events become safe against a power cut later than after 100 ms.",
                short(self.sync_latency.median_seconds)
            ));
        }
        found
    }
}

/// A time with its unit, two or three digits.
fn short(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-6 => (s * 1e9, "ns"),
        s if s < 1e-3 => (s * 1e6, "us"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// A small size for the arenas of a journal, so that they change often.
pub(super) const ARENA_BYTES: usize = 512 * 1024;
/// How often events are moved from the journal into the store.
const CHECKPOINTS: Duration = Duration::from_millis(50);

/// A client on a queue below `dir` that sends nothing, ever: to prove what its queue keeps. Checkpoints are frequent, and
/// with a small journal (512 KiB) its arenas change often, so that a short test reaches every state of the files. With
/// `None`, the journal has the size that it has by default.
///
/// Fails if the library refuses the directory; the error says why.
pub fn proof_client(dir: &Path, journal_bytes: Option<usize>) -> Result<Client, Error> {
    client_on(dir, journal_bytes.unwrap_or(JOURNAL_BYTES_DEFAULT), |_| ())
}

/// The uuids of all events in the queues below `dir`, waiting and dead, each with the number of its occurrences, and what
/// cannot be read. In memory: about 50 bytes an event.
pub fn stored_uuids(dir: &Path) -> Result<(HashMap<Uuid, u32>, Vec<Damage>), InspectError> {
    let (mut found, mut damage) = (HashMap::new(), Vec::new());
    for queue in queues(dir)? {
        let mut problem = None;
        queue.read(dir)?.content(&mut |content| {
            match content {
                Content::Event(event) => match event.summary() {
                    Ok(summary) => *found.entry(summary.uuid).or_insert(0) += 1,
                    Err(error) => problem = Some(error),
                },
                Content::Damage(damaged) => damage.push(damaged),
            }
            if problem.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(problem) = problem {
            return Err(problem);
        }
    }
    Ok((found, damage))
}

/// [`proof_client`] with options that `edit` may change.
pub(super) fn client_on(
    dir: &Path,
    journal_bytes: usize,
    edit: impl FnOnce(&mut PipelineOptions),
) -> Result<Client, Error> {
    let config = Config::new("phc_proof")
        .host("http://127.0.0.1:9")
        .no_proxy()
        .queue_dir(dir)
        .max_event_bytes(ARENA_BYTES / 8)
        .journal_bytes(journal_bytes)
        .flush_interval(CHECKPOINTS)
        .min_free_space(0);
    Client::surrounded_by(config, |options| {
        options.held = true;
        edit(options);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(micros: &[u64]) -> Latencies {
        Latencies::of(micros.iter().copied().map(Duration::from_micros).collect())
    }

    #[test]
    fn a_distribution_says_what_was_measured() {
        let found = times(&[1000, 3, 1, 2]);
        assert_eq!((found.count, found.min_seconds, found.max_seconds), (4, 1e-6, 1e-3));
        assert_eq!((found.median_seconds, found.p99_seconds), (2e-6, 1e-3));
        let of_hundred = Latencies::of((1..=1000).map(Duration::from_micros).collect());
        assert_eq!((of_hundred.median_seconds, of_hundred.p99_seconds, of_hundred.p999_seconds), (5e-4, 99e-5, 999e-6));
        assert_eq!(found.histogram.iter().map(|range| range.count).sum::<u64>(), 4);
        let last = found.histogram.last().unwrap();
        assert!(last.count == 1 && last.below_seconds > 1e-3 && last.below_seconds < 2.1e-3, "{last:?}");
        assert_eq!((times(&[9, 1]).median_seconds, times(&[9, 1]).p99_seconds), (1e-6, 9e-6));
        assert_eq!(times(&[]), Latencies::default());
    }

    fn report(medium: QueueMedium, micros: &[u64]) -> DiskReport {
        DiskReport {
            path: "/q".into(),
            file_system: "ext4".into(),
            device: None,
            medium,
            is_mapped: true,
            has_working_locks: true,
            has_barriers: true,
            free_bytes: 1,
            sync_latency: times(micros),
        }
    }

    #[test]
    fn a_disk_that_does_not_wait_for_its_medium_is_found_out() {
        let lying = report(QueueMedium::Disk, &[2, 2, 3, 900]);
        let [problem] = &lying.problems()[..] else { panic!("{:?}", lying.problems()) };
        assert!(problem.starts_with("Syncs take 2.0 us: this disk or its cache does not wait"), "{problem}");
        for honest in [&[15, 16, 17][..], &[120, 400, 9000], &[80_000]] {
            assert_eq!(report(QueueMedium::Disk, honest).problems(), Vec::<String>::new(), "{honest:?}");
            assert_eq!(report(QueueMedium::Disk, honest).notes(), Vec::<String>::new(), "{honest:?}");
        }
        assert!(report(QueueMedium::Disk, &[250_000]).notes()[0].contains("250 ms"));
    }

    #[test]
    fn memory_no_barriers_and_no_locks_are_problems() {
        let of = |edit: fn(&mut DiskReport)| {
            let mut report = report(QueueMedium::Disk, &[100]);
            edit(&mut report);
            report.problems()
        };
        assert!(of(|report| report.medium = QueueMedium::MemoryFileSystem)[0].contains("is in memory"));
        assert!(of(|report| report.has_barriers = false)[0].contains("without barriers"));
        assert!(of(|report| report.has_working_locks = false)[0].contains("the library refuses"));
        let fast_memory = report(QueueMedium::MemoryFileSystem, &[0]);
        assert_eq!(fast_memory.problems().len(), 1, "that memory is fast is no second problem");
        assert!(report(QueueMedium::ContainerLayer, &[100]).notes()[0].contains("lost with the container"));
    }

    #[test]
    fn a_path_is_on_the_mount_with_the_longest_point() {
        let mounts = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
                      30 22 0:26 / /dev/shm rw shared:4 - tmpfs tmpfs rw,size=1k\n\
                      31 22 8:1 / /srv/with\\040space rw master:1 - xfs /dev/sdb1 rw,nobarrier\n\
                      32 22 8:2 /sub /srv rw - btrfs /dev/sdc rw\nnonsense";
        let of = |path: &str| Mount::of(mounts, Path::new(path)).unwrap();
        assert_eq!((of("/home/x").file_system.as_str(), of("/home/x").has_barriers), ("ext4", true));
        assert_eq!((of("/dev/shm/q").file_system.as_str(), of("/dev/shmx").file_system.as_str()), ("tmpfs", "ext4"));
        let spaced = of("/srv/with space/q");
        assert_eq!(
            (spaced.file_system.as_str(), spaced.device.as_str(), spaced.has_barriers),
            ("xfs", "/dev/sdb1", false)
        );
        assert_eq!(of("/srv/other").file_system, "btrfs");
        assert!(Mount::of("", Path::new("/")).is_none());
    }

    #[test]
    fn a_measured_disk_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let report = disk(dir.path()).unwrap();
        assert!(report.has_working_locks && report.sync_latency.count > 0, "{report:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let missing = disk(&dir.path().join("missing")).unwrap_err();
        assert!(matches!(missing, InspectError::Io { .. }), "{missing:?}");
    }
}
