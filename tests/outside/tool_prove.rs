//! `posthog-queue prove` and `posthog-queue crash`: on real disks, with processes that are really killed and really crash.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::apart::{NOBODY, Terms, apart_to_death, apart_until};
use crate::fixture::{Fixture, Place, eventually, take, tool_for_everybody};

/// The command with these arguments, before it is started.
fn tool(args: &[&str]) -> Command {
    let mut command = sink::command(env!("CARGO_BIN_EXE_posthog-queue"));
    command.args(args).env_remove("POSTHOG_QUEUE_DIR");
    command
}

fn run(args: &[&str]) -> Output {
    tool(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The objects that were written, one a line, and the status.
fn json(output: &Output) -> (Vec<Value>, i32) {
    let said = text(&output.stdout);
    let objects = said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    (objects.collect(), output.status.code().unwrap_or_else(|| panic!("{output:?}")))
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

// ---- prove
// --------------------------------------------------------------------------------------------------------------------

/// A new directory on the disk of the target directory.
fn on_disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Proves the disk of `dir` with few kills, and checks all that does not depend on the disk.
fn prove(dir: &Path) -> Value {
    let few = ["--kills", "3", "--power-cuts", "2", "--seconds", "3000", "--json"];
    let output = run(&[&["prove", dir.to_str().unwrap()], &few[..]].concat());
    let (mut objects, status) = json(&output);
    let [proof] = &mut objects[..] else { panic!("{output:?}") };
    for (part, tried, most_accepted) in [("kills", "kills", "accepted"), ("power_cuts", "cuts", "persisted")] {
        let of = |key: &str| proof[part][key].as_u64().unwrap_or_else(|| panic!("{part} {key}: {proof}"));
        assert_eq!((of("lost"), of("twice"), of("damaged")), (0, 0, 0), "{proof}");
        assert!(of(tried) >= 2 && of(most_accepted) > 0, "{proof}");
    }
    assert!(proof["disk"]["sync_latency"]["count"].as_u64() > Some(0), "{proof}");
    assert!(proof["captures"]["latency"]["count"].as_u64() > Some(1000), "{proof}");
    let is_fine = proof["problems"].as_array().unwrap().is_empty();
    assert_eq!((status, proof["verdict"].as_str()), if is_fine { (0, Some("fine")) } else { (1, Some("found")) });
    assert_eq!(names(dir), Vec::<String>::new(), "nothing stays");
    proof.take()
}

#[test]
fn prove_loses_nothing_on_a_disk_and_leaves_nothing() {
    let dir = on_disk();
    let proof = prove(dir.path());
    assert_eq!(proof["disk"]["path"].as_str(), dir.path().to_str());
}

#[test]
fn prove_says_that_memory_does_not_survive_a_restart() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return eprintln!("skipped: there is no file system in memory at /dev/shm");
    };
    let is_memory = Command::new("stat").args(["-f", "-c", "%T"]).arg(dir.path()).output();
    if !is_memory.is_ok_and(|found| found.stdout.starts_with(b"tmpfs")) {
        return eprintln!("skipped: /dev/shm is no file system in memory");
    }
    let proof = prove(dir.path());
    assert_eq!(
        (proof["disk"]["medium"].as_str(), proof["verdict"].as_str()),
        (Some("memory_file_system"), Some("found"))
    );
    assert!(proof["problems"][0].as_str().unwrap().contains("is in memory"), "{proof}");
}

#[test]
fn prove_writes_its_verdict_first_within_80_columns() {
    let dir = on_disk();
    let output =
        run(&["prove", dir.path().to_str().unwrap(), "--kills", "1", "--power-cuts", "1", "--seconds", "3000"]);
    let said = text(&output.stdout);
    let is_fine = output.status.code() == Some(0);
    assert_eq!(said.starts_with("Fine: this disk keeps what the library promises."), is_fine, "{said}");
    for part in ["Disk ", "Sync ", "Capture ", "SIGKILL at any moment", "power cut ("] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Paths cannot be wrapped.
    let long: Vec<_> = said.lines().filter(|line| line.chars().count() > 80 && !line.contains('/')).collect();
    assert_eq!(long, Vec::<&str>::new());
    assert!(output.stderr.is_empty() && !said.contains('\u{1b}'), "{output:?}");
}

/// The test directory below `dir`, and the names in it.
fn inside(dir: &Path) -> Option<(PathBuf, Vec<String>)> {
    let found = names(dir).into_iter().find(|name| name.starts_with("posthog-prove-")).map(|name| dir.join(name))?;
    let entries = fs::read_dir(&found).ok()?;
    Some((found, entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()))
}

/// Processes that were started with this path as an argument.
fn processes_on(path: &Path) -> Vec<String> {
    let path = path.to_str().unwrap();
    let commands = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&command).replace('\0', " "))
    });
    commands.filter(|command| command.contains(path)).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn prove_that_is_interrupted_leaves_nothing_behind() {
    // At once, while a process is killed again and again, and while power cuts are simulated.
    for (signal, kills, awaited) in [
        (Signal::SIGTERM, "100000", None),
        (Signal::SIGINT, "100000", Some("kills")),
        (Signal::SIGTERM, "1", Some("power")),
    ] {
        let dir = on_disk();
        let path = dir.path().to_str().unwrap();
        let endless = ["--kills", kills, "--power-cuts", "100000", "--seconds", "3000"];
        let mut command = tool(&[&["prove", path], &endless[..]].concat());
        let mut child: Child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("the test directory is there", || {
            inside(dir.path())
                .is_some_and(|(_, names)| awaited.is_none_or(|part| names.iter().any(|name| name == part)))
        });
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let output = child.wait().map(|status| (status, child)).unwrap();
        let said = std::io::read_to_string(output.1.stderr.unwrap()).unwrap();
        assert_eq!((output.0.signal(), said.as_str()), (Some(signal as i32), ""), "{awaited:?}");
        assert_eq!(names(dir.path()), Vec::<String>::new(), "{awaited:?}");
        assert_eq!(processes_on(dir.path()), Vec::<String>::new(), "{awaited:?}");
    }
}

#[test]
fn prove_that_cannot_write_says_why() {
    let dir = on_disk();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let output = run(&["prove", file.to_str().unwrap()]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()));
    assert!(text(&output.stderr).contains("could not be used: Not a directory"), "{output:?}");
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("the rest is skipped: it needs root, to run the command as another user");
    }
    let (open, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::set_permissions(open.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = sink::command(tool_for_everybody(folder.path()));
    let output = command.args(["prove", open.path().to_str().unwrap()]).uid(NOBODY).gid(NOBODY).output().unwrap();
    assert_eq!((output.status.code(), names(open.path())), (Some(2), Vec::new()));
    assert!(text(&output.stderr).contains("run the command as root"), "{output:?}");
}

// ---- crash
// --------------------------------------------------------------------------------------------------------------------

/// Panics in a caught call, and is killed: the panic is the last that is known of the process.
fn panics_and_is_killed(place: &Place) {
    let client = posthog::init(place.config()).unwrap();
    std::panic::set_hook(Box::new(|_| ()));
    posthog::install_panic_hook();
    take(&client, "tick");
    let caught = catch_unwind(AssertUnwindSafe(|| the_order_that_panics(std::hint::black_box(7))));
    assert!(caught.is_err());
    raise(Signal::SIGKILL).unwrap();
}

#[inline(never)]
fn the_order_that_panics(dish: usize) -> u32 {
    let menu = [7, 9, 12];
    menu[dish]
}

fn queue(fixture: &Fixture) -> &str {
    fixture.queue.to_str().unwrap()
}

fn report_file(fixture: &Fixture) -> PathBuf {
    let dir = fixture.shards()[0].join("crash");
    let [name] = &names(&dir)[..] else { panic!("{:?}", names(&dir)) };
    dir.join(name)
}

/// Every file below a directory with its content.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut content(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

/// `crash list` as JSON. Neither it nor `crash show` changes anything.
fn listed(fixture: &Fixture) -> Vec<Value> {
    let before = content(&fixture.queue);
    let (objects, status) = json(&run(&["crash", "list", queue(fixture), "--json"]));
    assert_eq!(status, i32::from(!objects.is_empty()));
    for args in [&["crash", "list", queue(fixture)][..], &["crash", "show", queue(fixture)]] {
        assert_eq!(run(args).status.code(), Some(status));
    }
    assert!(content(&fixture.queue) == before, "something was changed");
    objects
}

#[test]
fn crash_shows_the_panic_of_a_killed_process_with_its_stack() {
    let part = |place: &Place| {
        panics_and_is_killed(place);
    };
    apart_to_death(Fixture::new, part, |fixture| {
        let reports = listed(fixture);
        let [report] = &reports[..] else { panic!("{reports:?}") };
        assert_eq!((report["state"].as_str(), report["attempts"].as_u64()), (Some("waiting"), Some(0)));
        let crash = &report["crashes"][0];
        assert_eq!((crash["kind"].as_str(), crash["is_fatal"].as_bool()), (Some("Panic"), Some(true)), "{report}");
        assert!(crash["message"].as_str().unwrap().contains("index is 7") && crash["signal"].is_null(), "{report}");
        assert!(crash["timestamp_seconds"].as_f64() > Some(1.7e9), "{report}");
        let (shown, _) = json(&run(&["crash", "show", queue(fixture), "--json"]));
        let [event] = &shown[..] else { panic!("{shown:?}") };
        let exception = &event["properties"]["$exception_list"][0];
        assert_eq!((event["event"].as_str(), exception["type"].as_str()), (Some("$exception"), Some("Panic")));
        let is_ours =
            |frame: &&Value| frame["function"].as_str().is_some_and(|name| name.contains("the_order_that_panics"));
        let frame = exception["stacktrace"]["frames"].as_array().unwrap().iter().find(is_ours);
        // Names need a build id, which not every linker writes.
        if !event["properties"]["$debug_images"].is_null() {
            let frame = frame.unwrap_or_else(|| panic!("{exception}"));
            assert!(frame["filename"].as_str().unwrap().ends_with("tests/outside/tool_prove.rs"), "{frame}");
        }
        let said = text(&run(&["crash", "show", queue(fixture)]).stdout);
        assert!(said.starts_with("Panic: index out of bounds") && said.contains("Stack of Panic"), "{said}");
        // What is shown is what is sent, under the same uuid.
        let client = fixture.client();
        eventually("the report is sent", || fixture.sink.events().iter().any(|sent| sent.event == "$exception"));
        let sent = fixture.sink.events().into_iter().find(|sent| sent.event == "$exception").unwrap();
        assert_eq!(Some(sent.uuid.to_string().as_str()), event["uuid"].as_str());
        assert_eq!(sent.properties["$exception_list"], event["properties"]["$exception_list"]);
        eventually("the report is removed", || names(&fixture.shards()[0].join("crash")).is_empty());
        drop(client);
        assert_eq!(listed(fixture), Vec::<Value>::new());
    });
}

#[test]
fn crash_lists_a_process_that_died_of_a_signal() {
    let dies = |place: &Place| {
        let client = posthog::init(place.config()).unwrap();
        posthog::install_crash_handler();
        take(&client, "tick");
        // At the first one, the handler of the standard library restores the default action and returns.
        raise(Signal::SIGSEGV).unwrap();
        raise(Signal::SIGSEGV).unwrap();
    };
    let signalled = |status: &std::process::ExitStatus| status.signal() == Some(Signal::SIGSEGV as i32);
    apart_until(
        signalled,
        Fixture::new,
        |_| Terms::default(),
        dies,
        |fixture| {
            let reports = listed(fixture);
            let crash = &reports[0]["crashes"][0];
            assert_eq!((crash["kind"].as_str(), crash["signal"].as_u64()), (Some("SIGSEGV"), Some(11)), "{reports:?}");
            let said = text(&run(&["crash", "list", queue(fixture)]).stdout);
            assert!(said.starts_with("1 crash report waits to be sent.") && said.contains("SIGSEGV"), "{said}");
            assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
            let name = reports[0]["name"].as_str().unwrap();
            let of = |name: &str| run(&["crash", "show", queue(fixture), "--report", name]);
            assert!(text(&of(&name[..8]).stdout).starts_with("SIGSEGV: Segmentation fault"));
            let missing = of("no-such");
            assert_eq!(missing.status.code(), Some(2));
            assert!(text(&missing.stderr).contains("no crash report begins with \"no-such\""), "{missing:?}");
        },
    );
}

#[test]
fn crash_shows_damaged_and_given_up_files_as_such() {
    let part = |place: &Place| {
        panics_and_is_killed(place);
    };
    apart_to_death(Fixture::new, part, |fixture| {
        let file = report_file(fixture);
        let whole = fs::read(&file).unwrap();
        let only = || listed(fixture).pop().unwrap();
        // The description of the process is at the beginning.
        let mut bytes = whole.clone();
        bytes[100] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let report = only();
        assert!(report["damaged_bytes"].as_u64() > Some(0) && report["executable"].is_null(), "{report}");
        assert_eq!(report["crashes"].as_array().unwrap().len(), 1, "the panic can still be read: {report}");
        for damaged in [&whole[..whole.len() / 2], b"no report at all"] {
            fs::write(&file, damaged).unwrap();
            let report = only();
            assert_eq!((report["crashes"].as_array().unwrap().len(), report["state"].as_str()), (0, Some("waiting")));
            let said = text(&run(&["crash", "list", queue(fixture)]).stdout);
            assert!(said.contains("damaged: ") && said.contains("cannot be read"), "{said}");
        }
        // Given up, and beside a living owner.
        fs::remove_file(&file).unwrap();
        let stem = file.file_name().unwrap().to_str().unwrap().split('.').next().unwrap().to_owned();
        fs::write(file.with_file_name(format!("{stem}.bad")), &whole).unwrap();
        let client = fixture.client();
        let (reports, _) = json(&run(&["crash", "list", queue(fixture), "--json"]));
        assert_eq!((reports[0]["state"].as_str(), reports[0]["attempts"].as_u64()), (Some("given_up"), Some(3)));
        let said = text(&run(&["crash", "list", queue(fixture)]).stdout);
        assert!(said.starts_with("1 report was given up: not all of it can be read or sent."), "{said}");
        let said = text(&run(&["crash", "show", queue(fixture)]).stdout);
        assert!(said.starts_with("Panic: ") && said.contains("given up"), "{said}");
        drop(client);
    });
}

#[test]
fn crash_of_a_directory_without_queues_or_reports() {
    let fixture = Fixture::new();
    drop(fixture.client());
    let output = run(&["crash", "list", queue(&fixture)]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "No crash report waits.\n"));
    assert_eq!(json(&run(&["crash", "show", queue(&fixture), "--json"])), (Vec::new(), 0));
    let output = run(&["crash", "list", fixture.folder().join("elsewhere").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let output = run(&["crash", "list", fixture.folder().to_str().unwrap()]);
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("contains no queue"), "{output:?}");
}
