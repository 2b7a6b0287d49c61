//! Statements of `docs/deployment.md` that no other test shows: file systems, limits of a service, backups, the unit
//! file.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use posthog::{Client, Config};

use crate::apart::{Terms, apart, apart_on};
use crate::directories::is_unusable;
use crate::disk_full::{Kind, SmallDisk, path, run};
use crate::fixture::{Fixture, PATIENCE, accepted, close_empty, event, eventually, take};

/// Whether a journal arena below `root` is mapped into this process.
fn is_mapped(root: &Path) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| line.contains(path(root)) && line.contains("/journal-"))
}

/// What is reported about where the queue is.
fn reported_place(client: &Client) -> Option<String> {
    let diagnostics = client.diagnostics();
    diagnostics.iter().find(|diagnostic| diagnostic.kind() == "queue_dir_ephemeral").map(ToString::to_string)
}

/// Opens a queue on each kind of file system, and checks how arenas are accessed and what is reported.
fn works_on(kind: Kind, mib: usize, mapped: bool, reported: Option<&str>) {
    let Some(disk) = SmallDisk::of(kind, mib) else { return };
    let client = Client::new(disk.config()).unwrap();
    assert_eq!(is_mapped(&disk.root()), mapped, "{kind:?}");
    let text = reported_place(&client);
    match reported {
        None => assert_eq!(text, None, "{kind:?}"),
        Some(part) => assert!(text.as_ref().is_some_and(|text| text.contains(part)), "{kind:?}: {text:?}"),
    }
    assert_eq!(client.capture(event("tick")).persisted().wait(PATIENCE), Ok(()), "{kind:?}");
    close_empty(&client);
}

#[test]
fn arenas_are_mapped_on_ext4_and_tmpfs() {
    works_on(Kind::Ext4, 24, true, None);
    works_on(Kind::Memory, 24, true, Some("in memory"));
}

#[test]
fn arenas_are_written_on_other_file_systems() {
    works_on(Kind::Overlay, 24, false, Some("a container's own layer"));
    works_on(Kind::Btrfs, 160, false, None);
    // The smallest size that mkfs.xfs accepts is 300 MiB; the image is sparse.
    works_on(Kind::Xfs, 320, false, None);
}

#[test]
fn a_read_only_file_system_is_unusable() {
    let Some(disk) = SmallDisk::of(Kind::Memory, 8) else { return };
    run("mount", &["-o", "remount,ro", path(&disk.root())]).unwrap();
    is_unusable(|| disk.config());
}

/// The number of entries of a directory of this process in `/proc`.
fn entries(dir: &str) -> usize {
    fs::read_dir(dir).unwrap().count()
}

fn own_threads() -> usize {
    let names = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path().join("comm"));
    names.filter(|name| fs::read_to_string(name).is_ok_and(|name| name.starts_with("posthog-"))).count()
}

#[test]
fn a_client_takes_two_threads_and_ten_descriptors() {
    apart(
        |place| {
            let before = entries("/proc/self/fd");
            let config = Config::new("phc_outside").host(&place.host).queue_dir(&place.queue).no_proxy();
            let client = Client::new(config.min_free_space(0).first_send_jitter(Duration::ZERO)).unwrap();
            // Both threads open a directory or a file for a moment while they start.
            let ours = || entries("/proc/self/fd") - before;
            eventually("it holds ten descriptors before anything is sent", || (5..=10).contains(&ours()));
            eventually("both threads run, and no other", || own_threads() == 2);
            for _ in 0..100 {
                take(&client, "tick");
            }
            eventually("all is delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
            eventually("it holds four more at most, for connections", || ours() <= 10 + 4);
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names().len(), 100),
    );
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_dir(&from, &to);
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

#[test]
fn a_restored_backup_sends_events_again_with_their_uuids() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = fixture.client();
    let uuids: Vec<_> = (0..30).map(|_| take(&client, "tick")).collect();
    client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    drop(client);
    let backup = fixture.folder().join("backup");
    copy_dir(&fixture.queue, &backup);
    fixture.sink.resume();
    let delivers = || {
        let client = fixture.client();
        eventually("all is delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
        close_empty(&client);
    };
    delivers();
    fixture.must_have_taken(&uuids);
    fs::remove_dir_all(&fixture.queue).unwrap();
    copy_dir(&backup, &fixture.queue);
    delivers();
    assert_eq!(fixture.sink.inspect(|state| (state.unique(), state.duplicates())), (30, 30));
}

/// A control group with a limit on memory, as `MemoryMax=` and Kubernetes make them. Removed when dropped.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// `None`, with a printed reason, if this machine does not allow it.
    fn of(limit: u64) -> Option<Self> {
        let name = format!("posthog-outside-{}", std::process::id());
        let versions = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        let group = versions.into_iter().find_map(|(root, file)| {
            let path = Path::new(root).join(&name);
            fs::create_dir(&path).ok()?;
            let group = Self(path);
            fs::write(group.0.join(file), limit.to_string()).ok().map(|()| group)
        });
        if group.is_none() {
            eprintln!("skipped: no control group for memory can be made here");
        }
        group
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_queue_larger_than_its_memory_limit_is_kept() {
    const LIMIT: u64 = 32 << 20;
    const EVENTS: u64 = 1_500;
    const GROUP: &str = "POSTHOG_OUTSIDE_GROUP";
    let group = OnceCell::new();
    let is_limited = || matches!(group.get(), Some(Some(_)));
    apart_on(
        || {
            let _ = group.set(MemoryGroup::of(LIMIT));
            let fixture = Fixture::new();
            fixture.sink.stop();
            fixture
        },
        |_| match group.get() {
            Some(Some(MemoryGroup(dir))) => Terms::default().env(GROUP, path(dir)),
            _ => Terms::default(),
        },
        |place| {
            let Some(group) = std::env::var_os(GROUP).map(PathBuf::from) else { return };
            fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
            let client = place.client();
            let filling = "x".repeat(30_000);
            let mut taken = 0;
            while taken < EVENTS {
                // A journal that is full is waited for: this disk may be slow.
                match client.capture(event("tick").prop("filling", &filling)).is_accepted() {
                    true => taken += 1,
                    false => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
        },
        |fixture| {
            let stats = fixture.client().stats();
            assert_eq!(stats.queued_events, if is_limited() { EVENTS } else { 0 }, "{stats:?}");
            assert!(stats.queued_bytes > LIMIT || !is_limited(), "{stats:?}");
        },
    );
}

/// The first block of `docs/deployment.md` in this language.
fn block(language: &str) -> &'static str {
    let text = include_str!("../../docs/deployment.md");
    let (_, rest) = text.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0
}

fn setting(unit: &str, name: &str) -> u64 {
    let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap();
    value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}"))
}

#[test]
fn the_unit_file_of_the_documentation_is_valid() {
    let unit = block("ini");
    // The default of `Config::shutdown_timeout` is 10 s, and storing may take one more.
    assert!(setting(unit, "TimeoutStopSec") > 11, "{unit}");
    let fixture = Fixture::new();
    let file = fixture.folder().join("mydaemon.service");
    // A program that exists wherever this test runs.
    let program = std::env::current_exe().unwrap();
    fs::write(&file, unit.replace("/usr/bin/mydaemon", path(&program))).unwrap();
    let Ok(output) = Command::new("systemd-analyze").arg("verify").arg(&file).output() else {
        eprintln!("skipped: there is no systemd-analyze here");
        return;
    };
    // It succeeds in spite of unknown settings, but names them.
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = said.lines().filter(|line| line.contains("mydaemon.service")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn the_unit_files_state_directory_is_where_the_queue_is() {
    apart_on(
        Fixture::new,
        |fixture| {
            let state = fixture.folder().join("state/mydaemon");
            fs::create_dir_all(&state).unwrap();
            Terms::default().env("STATE_DIRECTORY", path(&state)).env("POSTHOG_API_KEY", "phc_outside")
        },
        |place| {
            let client = Client::new(Config::from_env().host(&place.host).no_proxy().min_free_space(0)).unwrap();
            let state = PathBuf::from(std::env::var("STATE_DIRECTORY").unwrap());
            assert!(client.stats().dir.unwrap().starts_with(state.join("posthog")), "{:?}", client.stats());
            let _ = accepted(&client.capture(event("tick")));
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["tick"]),
    );
}
