//! Full disks: small file systems that the test creates and fills.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use posthog::diagnostics::Diagnostic;
use posthog::stats::StorageMode;
use posthog::{Client, Config, DropReason, Event, Outcome};
use sink::Sink;
use tempfile::TempDir;
use uuid::Uuid;

use crate::fixture::{PATIENCE, Place, accepted, assert_balanced, close_empty, event, eventually};

const MIB: usize = 1024 * 1024;

/// A file system of its own, unmounted when dropped.
pub(crate) struct SmallDisk {
    folder: TempDir,
    place: Place,
    sink: Sink,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Btrfs,
    Memory,
    /// As the writable layer of a container.
    Overlay,
}

impl SmallDisk {
    /// `None`, with a printed reason, if this machine does not allow mounting.
    pub(crate) fn of(kind: Kind, mib: usize) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("posthog-disk-").tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        let image = folder.path().join("image");
        let image_with = |mkfs: &str, options: &[&str]| {
            fs::File::create(&image).unwrap().set_len((mib * MIB) as u64).unwrap();
            run(mkfs, &[options, &[path(&image)]].concat())?;
            run("mount", &["-o", "loop", path(&image), path(&root)])
        };
        let made = match kind {
            Kind::Ext4 => image_with("mkfs.ext4", &["-q", "-F", "-m", "0"]),
            Kind::Xfs => image_with("mkfs.xfs", &["-q", "-f"]),
            Kind::Btrfs => image_with("mkfs.btrfs", &["-q", "-f"]),
            Kind::Overlay => {
                // An overlay on an overlay, as in a test in a container, is not possible.
                let layers = folder.path().join("layers");
                fs::create_dir(&layers).unwrap();
                run("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs", path(&layers)]).and_then(|()| {
                    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| layers.join(name));
                    [&lower, &upper, &work].iter().for_each(|layer| fs::create_dir(layer).unwrap());
                    let options =
                        format!("lowerdir={},upperdir={},workdir={}", path(&lower), path(&upper), path(&work));
                    run("mount", &["-t", "overlay", "-o", &options, "overlay", path(&root)])
                })
            }
            Kind::Memory => run("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs", path(&root)]),
        };
        if let Err(why) = made {
            eprintln!("skipped: a {kind:?} file system cannot be mounted here: {why}");
            return None;
        }
        let sink = Sink::start();
        let place = Place { host: sink.url(), queue: root.join("queue") };
        Some(Self { folder, place, sink })
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    pub(crate) fn config(&self) -> Config {
        self.place.config().max_event_bytes(16 * 1024).journal_bytes(128 * 1024)
    }

    fn client(&self) -> Client {
        Client::new(self.config()).unwrap()
    }

    /// Fills the file system until at most `left` bytes are free.
    fn fill_until_free(&self, left: usize) {
        use std::io::Write;
        let mut filler = fs::File::create(self.root().join("filler")).unwrap();
        let step = vec![0xA5; 16 * 1024];
        while self.free() > left {
            if filler.write_all(&step).is_err() {
                break;
            }
            // Until then, blocks whose allocation is delayed still count as free.
            filler.sync_data().unwrap();
        }
    }

    fn free(&self) -> usize {
        let stat = nix::sys::statvfs::statvfs(&self.root()).unwrap();
        usize::try_from(stat.blocks_available() * stat.fragment_size()).unwrap()
    }

    fn make_room(&self) {
        fs::remove_file(self.root().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let layers = self.folder.path().join("layers");
        for mounted in std::iter::once(self.root()).chain(layers.exists().then_some(layers)) {
            if let Err(why) = run("umount", &["-l", path(&mounted)]) {
                eprintln!("{}: {why}", mounted.display());
            }
        }
    }
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output =
        Command::new(program).args(args).stdin(Stdio::null()).output().map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {said}")) }
}

/// A small event. To delete the small row of such events, the store needs new pages, even on a full disk.
fn small(number: usize) -> Event {
    event("tick").prop("number", number)
}

/// Captures until nothing has been accepted for a while. Returns the accepted events and the reasons of the drops.
fn capture_until_refused(client: &Client) -> (Vec<Uuid>, Vec<DropReason>) {
    let (mut taken, mut reasons, mut refused_in_a_row) = (Vec::new(), Vec::new(), 0);
    while refused_in_a_row < 300 {
        let receipt = client.capture(small(taken.len()));
        match receipt.outcome() {
            Outcome::Accepted => {
                taken.push(accepted(&receipt));
                refused_in_a_row = 0;
            }
            Outcome::Dropped(reason) => {
                if !reasons.contains(&reason) {
                    reasons.push(reason);
                }
                refused_in_a_row += 1;
                // Gives a checkpoint time to run, so that the disk is full and not only the journal.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    (taken, reasons)
}

fn fills_up_and_drains(kind: Kind, space_before_server: bool) {
    let Some(disk) = SmallDisk::of(kind, 24) else { return };
    disk.sink.stop();
    let client = disk.client();
    let mut all = vec![accepted(&client.capture(small(0)))];
    assert!(client.capture(small(1)).uuid().map(|uuid| all.push(uuid)).is_some());
    assert_eq!(client.flush().wait(PATIENCE).map(|report| report.delivered), Ok(0));
    disk.fill_until_free(256 * 1024);
    let (taken, reasons) = capture_until_refused(&client);
    all.extend(taken);
    let known = [DropReason::JournalFull, DropReason::DiskFull, DropReason::QueueFull, DropReason::Storage];
    assert!(!reasons.is_empty() && reasons.iter().all(|reason| known.contains(reason)), "{reasons:?}");
    let stats = client.stats();
    assert!(matches!(stats.storage, StorageMode::Degraded { .. }), "{stats:?}");
    assert_eq!(stats.queued_events, all.len() as u64, "{stats:?}");
    assert!(stats.dropped_total() > 0);
    let diagnostics = client.diagnostics();
    assert!(
        diagnostics.iter().any(|diagnostic| matches!(diagnostic, Diagnostic::StorageFailing { .. })),
        "{diagnostics:?}"
    );
    if space_before_server {
        disk.make_room();
        eventually("storage recovers by itself", || client.stats().storage == StorageMode::Durable);
        disk.sink.resume();
    } else {
        // No byte is freed: delivered events must be removable all the same.
        disk.sink.resume();
        eventually("the queue drains on the full disk", || {
            let _ = client.flush().wait(PATIENCE);
            client.stats().queued_events == 0
        });
        disk.make_room();
    }
    eventually("captures are accepted again", || match client.capture(small(2)).uuid() {
        Some(uuid) => {
            all.push(uuid);
            true
        }
        None => false,
    });
    let must_arrive = |state: &sink::State| all.iter().all(|uuid| state.contains(*uuid));
    eventually("everything accepted arrives", || {
        let _ = client.flush().wait(PATIENCE);
        disk.sink.inspect(must_arrive)
    });
    assert_eq!(disk.sink.inspect(sink::State::unique), all.len() as u64);
    close_empty(&client);
    drop(client);
    let again = disk.client();
    assert_eq!(again.stats().queued_events, 0, "{:?}", again.stats());
    assert_balanced(&again);
    close_empty(&again);
}

#[test]
fn a_full_ext4_drops_events_until_space_is_freed() {
    fills_up_and_drains(Kind::Ext4, true);
}

#[test]
fn a_queue_on_a_full_ext4_drains_without_free_space() {
    fills_up_and_drains(Kind::Ext4, false);
}

#[test]
fn a_full_tmpfs_drops_events_until_space_is_freed() {
    fills_up_and_drains(Kind::Memory, true);
}

#[test]
fn a_queue_on_a_full_tmpfs_drains_without_free_space() {
    fills_up_and_drains(Kind::Memory, false);
}

#[test]
fn a_process_started_on_a_full_disk_delivers_queued_events() {
    let Some(disk) = SmallDisk::of(Kind::Ext4, 24) else { return };
    disk.sink.stop();
    let client = disk.client();
    disk.fill_until_free(256 * 1024);
    let (all, _) = capture_until_refused(&client);
    // Events that cannot be checkpointed stay in the journal.
    let report = client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    assert_eq!(report.remaining, all.len() as u64, "{report:?}");
    drop(client);
    disk.sink.resume();
    // When every arena waits for a checkpoint and no further one can be created, new events are dropped and the queued
    // ones are delivered.
    let next = disk.client();
    eventually("the next process delivers all events", || {
        let _ = next.flush().wait(PATIENCE);
        disk.sink.inspect(|state| all.iter().all(|uuid| state.contains(*uuid)))
    });
    disk.make_room();
    eventually("the next process accepts events again", || next.capture(small(0)).is_accepted());
    close_empty(&next);
}

fn accepts_few_events_and_delivers_them(kind: Kind) {
    let Some(disk) = SmallDisk::of(kind, 24) else { return };
    disk.sink.stop();
    let client = disk.client();
    // No byte is free, and the store has no rows to delete: checkpoints of new events use the space of the reserve
    // file.
    disk.fill_until_free(0);
    let mut all = Vec::new();
    for _ in 0..4 {
        all.extend(capture_until_refused(&client).0);
        let _ = client.flush().wait(PATIENCE);
    }
    assert!(!all.is_empty());
    let reserve = client.stats().dir.unwrap().join("reserve");
    assert!(reserve.exists() || disk.free() >= 256 * 1024, "new events used the space reserved for deletes");
    disk.sink.resume();
    eventually("the queue drains on the full disk", || {
        let _ = client.flush().wait(PATIENCE);
        client.stats().queued_events == 0
    });
    assert_eq!(disk.sink.inspect(sink::State::unique), all.len() as u64);
    disk.make_room();
    eventually("captures are accepted again", || client.capture(small(0)).is_accepted());
    close_empty(&client);
}

#[test]
fn events_checkpointed_with_the_reserve_drain_on_full_ext4() {
    accepts_few_events_and_delivers_them(Kind::Ext4);
}

#[test]
fn events_checkpointed_with_the_reserve_drain_on_full_tmpfs() {
    accepts_few_events_and_delivers_them(Kind::Memory);
}

#[test]
fn sparse_queue_files_do_not_fault_on_a_full_disk() {
    let Some(disk) = SmallDisk::of(Kind::Ext4, 24) else { return };
    disk.sink.stop();
    let client = disk.client();
    let mut all: Vec<_> = (0..50).map(|number| accepted(&client.capture(small(number)))).collect();
    assert!(client.capture(small(50)).persisted().wait(PATIENCE).is_ok());
    let dir = client.stats().dir.unwrap();
    client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    drop(client);
    for name in ["journal-0", "journal-1", "status"] {
        if let Err(why) = run("fallocate", &["--dig-holes", path(&dir.join(name))]) {
            eprintln!("skipped: no holes can be made here: {why}");
            return;
        }
    }
    disk.fill_until_free(0);
    // Without a free block, a write to a mapped hole would raise SIGBUS.
    let client = disk.client();
    let (taken, reasons) = capture_until_refused(&client);
    let known = [DropReason::JournalFull, DropReason::DiskFull, DropReason::Storage];
    assert!(reasons.iter().all(|reason| known.contains(reason)), "{reasons:?}");
    all.extend(taken);
    disk.make_room();
    disk.sink.resume();
    eventually("everything accepted arrives", || {
        let _ = client.flush().wait(PATIENCE);
        disk.sink.inspect(|state| all.iter().all(|uuid| state.contains(*uuid)))
    });
    close_empty(&client);
}

/// Thaws the file system when dropped, because a frozen one cannot be unmounted.
struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = run("fsfreeze", &["-u", path(&self.0)]);
    }
}

#[test]
fn at_most_one_capture_waits_for_a_frozen_disk() {
    let Some(disk) = SmallDisk::of(Kind::Ext4, 24) else { return };
    let client = disk.client();
    assert_eq!(client.capture(small(0)).persisted().wait(PATIENCE), Ok(()));
    if let Err(why) = run("fsfreeze", &["-f", path(&disk.root())]) {
        eprintln!("skipped: no file system can be frozen here: {why}");
        return;
    }
    let frozen = Frozen(disk.root());
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=4)
            .map(|number| {
                scope.spawn({
                    let client = &client;
                    move || client.capture(small(number)).outcome()
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(1500));
        let waiting = threads.iter().filter(|thread| !thread.is_finished()).count();
        assert!(waiting <= 1, "{waiting} captures wait for the frozen disk, expected at most one");
        drop(frozen);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let accepted = outcomes.iter().filter(|outcome| **outcome == Outcome::Accepted).count();
    let known = [Outcome::Accepted, Outcome::Dropped(DropReason::JournalBusy)];
    assert!(accepted >= 1 && outcomes.iter().all(|outcome| known.contains(outcome)), "{outcomes:?}");
    eventually("every accepted event is delivered", || {
        let _ = client.flush().wait(PATIENCE);
        disk.sink.inspect(sink::State::unique) == accepted as u64 + 1
    });
    close_empty(&client);
}

#[test]
fn captures_are_dropped_below_min_free_space() {
    let Some(disk) = SmallDisk::of(Kind::Ext4, 24) else { return };
    let client = Client::new(disk.config().min_free_space(8 * MIB as u64)).unwrap();
    accepted(&client.capture(small(0)));
    disk.fill_until_free(6 * MIB);
    eventually("captures are dropped because of min_free_space", || {
        let outcome = client.capture(small(1)).outcome();
        outcome == Outcome::Dropped(DropReason::DiskFull)
    });
    assert_eq!(client.capture(event("$exception")).outcome(), Outcome::Dropped(DropReason::DiskFull));
    disk.make_room();
    eventually("captures are accepted again", || client.capture(small(2)).is_accepted());
    close_empty(&client);
}

#[test]
fn a_disk_too_small_for_a_queue_fails_or_falls_back_to_memory() {
    let Some(disk) = SmallDisk::of(Kind::Ext4, 24) else { return };
    disk.fill_until_free(64 * 1024);
    let error = Client::new(disk.config()).unwrap_err();
    assert!(error.is_queue_dir(), "{error:?}");
    let client = Client::new(disk.config().memory_fallback(true)).unwrap();
    assert!(matches!(client.stats().storage, StorageMode::Volatile { .. }), "{:?}", client.stats());
    accepted(&client.capture(small(0)));
    assert!(client.flush().wait(PATIENCE).is_ok());
    assert_eq!(disk.sink.inspect(sink::State::unique), 1);
    disk.make_room();
    drop(client);
    let client = disk.client();
    accepted(&client.capture(small(1)));
    close_empty(&client);
}
