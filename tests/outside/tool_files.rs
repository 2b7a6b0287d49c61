//! The files that `posthog-queue` reads and writes for `import`, `export` and `metrics --output`: what is in them, what
//! they take the place of, and what a kill leaves.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};

use crate::fixture::{Fixture, KEY, eventually};
use crate::tool_move::{
    OTHER_KEY, command, content, must, nth, objects, run, text, until_it_ends_with, uuids, write_events,
};

/// An event as a line, without uuid and time.
fn bare(name: &str) -> String {
    json!({"event": name, "distinct_id": "u"}).to_string()
}

/// An import with the key of these tests.
fn import_args<'a>(fixture: &'a Fixture, file: &'a Path, dir: &'a Path) -> Vec<&'a str> {
    vec!["import", text(file), text(dir), "--host", &fixture.host, "--key", KEY]
}

/// A queue of so many events.
fn filled(fixture: &Fixture, count: u64) {
    let file = fixture.folder().join("filled.jsonl");
    write_events(&file, count);
    must(0, &import_args(fixture, &file, &fixture.queue));
}

/// The names in a directory.
fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_first_line_that_was_cut_off_costs_no_other_line() {
    let fixture = Fixture::new();
    let (file, folder) = (fixture.folder().join("events.jsonl"), fixture.folder());
    write_events(&file, 10);
    let good = fs::read_to_string(&file).unwrap();
    let cut = good.lines().next().unwrap().split("\"path\"").next().unwrap();
    fs::write(&file, format!("{cut}\n{good}")).unwrap();
    let args = import_args(&fixture, &file, &fixture.queue);
    assert!(must(2, &args).contains("line 1 is no event"));
    let imported = objects(1, &[&args[..], &["--skip-bad"]].concat());
    assert_eq!((&imported[0]["events"], &imported[0]["bad_lines"]), (&json!(10), &json!(1)), "{imported:?}");
    assert_eq!(
        uuids(&objects(0, &["list", text(&fixture.queue)])),
        (0..10).map(|n| nth(n).to_string()).collect::<Vec<_>>()
    );

    // One object in several lines is still one, also behind what some tools write at the beginning.
    let batch = json!({"batch": [{"event": "a", "distinct_id": "u"}, {"event": "b", "distinct_id": "u"}]});
    let pretty = serde_json::to_string_pretty(&batch).unwrap();
    for (nth, begins) in ["", "\u{feff}", "\n \n", "\u{feff}\n"].iter().enumerate() {
        fs::write(&file, format!("{begins}{pretty}\n")).unwrap();
        let dir = folder.join(format!("pretty-{nth}"));
        assert_eq!(objects(0, &import_args(&fixture, &file, &dir))[0]["events"], 2, "{begins:?}");
    }
}

#[test]
fn a_resumed_import_refuses_what_was_changed_meanwhile() {
    let fixture = Fixture::new();
    let file = fixture.folder().join("events.jsonl");
    write_events(&file, 10);
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replacen("\"event\":\"tick\",\"distinct_id\":\"user_5\"", "\"distinct_id\":\"user_5\"", 1))
        .unwrap();
    let args = import_args(&fixture, &file, &fixture.queue);
    assert!(must(2, &args).contains("line 6 is no event"));
    for changed in [
        good.replacen("\"n\":1,", "\"n\":100,", 1),
        good.replacen("\"distinct_id\":\"user_1\"", "\"distinct_id\":\"user_x\"", 1),
        good.replacen("12:00:01Z", "12:59:01Z", 1),
    ] {
        fs::write(&file, &changed).unwrap();
        let error = must(2, &args);
        assert!(error.contains("line 2") && error.contains("changed") && error.contains("--restart"), "{error}");
        assert!(must(2, &["list", text(&fixture.queue)]).contains("contains no queue"));
    }
    fs::write(&file, good.lines().take(3).collect::<Vec<_>>().join("\n")).unwrap();
    assert!(must(2, &args).contains("ends"), "a file that ends before what was imported of it is another one");
    let changed = good.replacen("\"n\":1,", "\"n\":100,", 1);
    fs::write(&file, &changed).unwrap();
    let imported = objects(0, &[&args[..], &["--restart", "--yes"]].concat());
    assert_eq!((&imported[0]["events"], &imported[0]["resumed"]), (&json!(10), &json!(0)));
    assert_eq!(must(0, &["export", "-", text(&fixture.queue)]).matches("\"n\":100,").count(), 1);

    // Where the file gives no time, that of the first attempt stays.
    let second = fixture.folder().join("second");
    fs::write(&file, format!("{}\n{}\n{{\"event\":\"c\"}}\n", bare("a"), bare("b"))).unwrap();
    let args = import_args(&fixture, &file, &second);
    assert!(must(2, &args).contains("line 3 is no event"));
    fs::write(&file, format!("{}\n{}\n{}\n", bare("a"), bare("b"), bare("c"))).unwrap();
    assert_eq!(objects(0, &args)[0]["resumed"], 2);
}

#[test]
fn events_without_uuids_keep_theirs_when_a_line_is_removed() {
    let fixture = Fixture::new();
    let file = fixture.folder().join("events.jsonl");
    let [same, other] = ["same", "other"].map(bare);
    let batch = format!("{{\"batch\":[{other},{same}]}}");
    let imported = |name: &str, status: i32, lines: &[&str]| {
        fs::write(&file, lines.join("\n")).unwrap();
        let dir = fixture.folder().join(name);
        must(status, &[&import_args(&fixture, &file, &dir)[..], &["--skip-bad"]].concat());
        uuids(&objects(0, &["list", text(&dir)]))
    };
    let first = imported("first", 1, &["no event", &same, &same, "no event", &batch]);
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 4, "identical lines are events of their own: {first:?}");
    assert_eq!(imported("second", 0, &[&same, &same, &batch]), first);
    assert_eq!(imported("third", 0, &["", &same, &same, &other, &same]), first, "wherever they stand");
}

#[test]
fn an_export_of_several_projects_or_lanes_is_refused() {
    let fixture = Fixture::new();
    let (file, out, dir) = (fixture.folder().join("a.jsonl"), fixture.folder().join("out.jsonl"), text(&fixture.queue));
    write_events(&file, 3);
    let import = |key: &str, lane: &str| {
        let args = ["import", text(&file), dir, "--host", &fixture.host, "--key", key, "--lane", lane];
        let queue = PathBuf::from(objects(0, &args)[0]["queue"].as_str().unwrap());
        let project = queue.strip_prefix(&fixture.queue).unwrap().components().next().unwrap();
        project.as_os_str().to_str().unwrap()[..8].to_owned()
    };
    let project = import(KEY, "analytics");
    must(0, &["export", text(&out), dir]);
    fs::remove_file(&out).unwrap();
    import(KEY, "ai");
    for to in [text(&out), "-"] {
        let refused = run(&["export", to, dir]);
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(2) && refused.stdout.is_empty() && !out.exists(), "{error}");
        assert!(error.contains(&format!("--project {project} --lane ai")), "{error}");
    }
    assert_eq!(must(0, &["export", "-", dir, "--lane", "ai"]).lines().count(), 3);

    let other = import(OTHER_KEY, "analytics");
    for to in [text(&out), "-"] {
        let error = must(2, &["export", to, dir, "--lane", "analytics"]);
        assert!(
            !out.exists() && [&project, &other].iter().all(|one| error.contains(&format!("--project {one}"))),
            "{error}"
        );
    }
    assert_eq!(must(0, &["export", "-", dir, "--project", &other]).lines().count(), 3);
    // A project whose events have left is none of them.
    must(0, &["drain", dir, "--project", &other]);
    assert_eq!(must(0, &["export", "-", dir, "--lane", "analytics"]).lines().count(), 3);
}

#[test]
fn events_of_another_project_are_not_imported() {
    let fixture = Fixture::new();
    let file = fixture.folder().join("events.jsonl");
    let batch =
        |key: &str, name: &str| json!({"api_key": key, "batch": [{"event": name, "distinct_id": "u"}]}).to_string();
    let of_another = batch("phc_another_project", "a");
    let lines = [
        of_another,
        batch(KEY, "b"),
        json!({"token": "phc_another_project", "event": "c", "distinct_id": "u"}).to_string(),
        json!({"api_key": KEY, "event": "d", "distinct_id": "u"}).to_string(),
        json!({"event": "both", "distinct_id": "u", "batch": [{"event": "e", "distinct_id": "u"}]}).to_string(),
    ];
    fs::write(&file, lines.join("\n")).unwrap();
    let args = import_args(&fixture, &file, &fixture.queue);
    let error = must(2, &args);
    assert!(error.contains("line 1") && error.contains("another project") && error.contains("phc_anot"), "{error}");
    assert!(!error.contains("phc_another_project"), "a key is shown in part: {error}");
    assert_eq!(objects(1, &[&args[..], &["--skip-bad"]].concat())[0]["bad_lines"], 3);
    let listed = objects(0, &["list", text(&fixture.queue)]);
    assert_eq!(listed.iter().map(|row| row["event"].as_str().unwrap()).collect::<Vec<_>>(), ["b", "d"]);
}

#[test]
fn only_a_regular_file_outside_of_queues_is_replaced() {
    let fixture = Fixture::new();
    filled(&fixture, 3);
    let (folder, dir, shard) = (fixture.folder(), text(&fixture.queue), fixture.shards().remove(0));
    let [fifo, link, socket, subdir, into] = ["fifo", "link", "socket", "subdir", "into"].map(|name| folder.join(name));
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    fs::write(folder.join("precious"), "precious").unwrap();
    symlink(folder.join("precious"), &link).unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::create_dir(&subdir).unwrap();
    symlink(&shard, &into).unwrap();
    let project = shard.parent().unwrap();
    let importing = project.join("importing");
    fs::create_dir(&importing).unwrap();
    fs::write(importing.join("queue.redb"), "").unwrap();
    let in_queues = [
        shard.join("queue.redb"),
        shard.join("new.prom"),
        project.join("new.prom"),
        importing.join("new.prom"),
        fixture.queue.join("new.prom"),
        into.join("new.prom"),
    ];
    let before = (content(&fixture.queue), names(folder));
    for (target, says) in [(&fifo, "a FIFO"), (&link, "a link"), (&socket, "a socket"), (&subdir, "a directory")]
        .into_iter()
        .chain(in_queues.iter().map(|path| (path, "inside the queue")))
    {
        for args in [&["export", text(target), dir, "--yes"][..], &["metrics", "--output", text(target), dir]] {
            let error = must(2, args);
            assert!(error.contains(says) && error.contains(text(target)), "{args:?}: {error}");
        }
    }
    assert!((content(&fixture.queue), names(folder)) == before, "something was written");
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(folder.join("precious")).unwrap(), b"precious");
}

#[test]
fn an_unfinished_file_is_new_private_and_removed_on_failure() {
    let fixture = Fixture::new();
    filled(&fixture, 2_000);
    let folder = fixture.folder().join("out");
    fs::create_dir(&folder).unwrap();
    let (dir, out, part) = (text(&fixture.queue), folder.join("out.jsonl"), folder.join("out.jsonl.part"));
    let precious = fixture.folder().join("precious");
    fs::write(&precious, "precious").unwrap();
    symlink(&precious, &part).unwrap();
    must(0, &["export", text(&out), dir]);
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(names(&folder), ["out.jsonl", "out.jsonl.part"].map(str::to_owned).into());
    let whole = fs::read(&out).unwrap();

    // The file would become larger than the process may make one.
    let full = "trap '' XFSZ; ulimit -f 8; exec \"$@\"";
    let tool = env!("CARGO_BIN_EXE_posthog-queue");
    let args = ["-c", full, "sh", tool, "export", text(&out), dir, "--yes"];
    let failed = sink::command("sh").args(args).output().unwrap();
    let error = String::from_utf8_lossy(&failed.stderr);
    assert!(failed.status.code() == Some(2) && error.contains(text(&out)), "{error}");
    assert!(fs::read(&out).unwrap() == whole, "a failed export has changed the file");
    assert_eq!(names(&folder), ["out.jsonl", "out.jsonl.part"].map(str::to_owned).into());
}

#[test]
fn a_file_that_is_asked_to_end_leaves_no_unfinished_one() {
    let fixture = Fixture::new();
    filled(&fixture, 2_000);
    let (folder, dir) = (fixture.folder().join("out"), text(&fixture.queue));
    fs::create_dir(&folder).unwrap();
    let (out, prom) = (folder.join("out.jsonl"), folder.join("out.prom"));
    let whole = must(0, &["export", "-", dir]);
    let commands =
        [(10, vec!["export", text(&out), dir, "--yes"]), (40, vec!["metrics", "--output", text(&prom), dir])];
    for (rounds, args) in commands {
        // Some runs are met in the middle of the file; whatever a run does when it is asked, the same holds.
        for _ in 0..rounds {
            let mut child = command(&args).spawn().unwrap();
            let is_begun = || names(&folder).iter().any(|name| name.ends_with(".part"));
            while !is_begun() && child.try_wait().unwrap().is_none() {}
            if child.try_wait().unwrap().is_none() {
                kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
            }
            let ended = child.wait_with_output().unwrap();
            let error = String::from_utf8_lossy(&ended.stderr);
            assert!(ended.status.success() || error.contains("stopped by a signal"), "{:?}: {error}", ended.status);
            let left = names(&folder);
            assert!(left.iter().all(|name| ["out.jsonl", "out.prom"].contains(&name.as_str())), "{args:?}: {left:?}");
        }
    }
    assert!(!out.exists() || fs::read_to_string(&out).unwrap() == whole);
}

#[test]
fn output_that_nobody_reads_is_seen_in_the_exit_status() {
    let fixture = Fixture::new();
    filled(&fixture, 300);
    let (dir, event) = (text(&fixture.queue), nth(7).to_string());
    let commands = [
        &["export", "-", dir][..],
        &["list", dir],
        &["list", dir, "--json"],
        &["show", &event, "--in", dir],
        &["verify", dir],
        &["repair", dir],
        &["status", dir, "--json"],
        &["metrics", dir],
    ];
    for args in commands {
        // A peer that has ended its reading is a closed pipe, whatever other processes hold copies of it.
        let (reader, writer) = UnixStream::pair().unwrap();
        reader.shutdown(std::net::Shutdown::Both).unwrap();
        let closed = command(args).stdout(Stdio::from(std::os::fd::OwnedFd::from(writer))).output().unwrap();
        let error = String::from_utf8_lossy(&closed.stderr);
        assert_eq!((closed.status.code(), &*error), (Some(141), ""), "{args:?}");
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let full = command(args).stdout(full).output().unwrap();
        let error = String::from_utf8_lossy(&full.stderr);
        assert!(full.status.code() == Some(2) && error.contains("standard output"), "{args:?}: {error}");
    }
}

#[test]
fn an_import_reads_what_tools_write() {
    let fixture = Fixture::new();
    let (file, folder) = (fixture.folder().join("events"), fixture.folder());
    write_events(&file, 20);
    let all = fs::read(&file).unwrap();
    let half = all.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(9).unwrap().0 + 1;
    let gzip = |bytes: &[u8]| {
        let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        to.write_all(bytes).unwrap();
        to.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let bom = [b"\xef\xbb\xbf", &all[..]].concat();
    let [members, frames] =
        [&gzip as &dyn Fn(&[u8]) -> Vec<u8>, &zstd].map(|one| [one(&all[..half]), one(&all[half..])].concat());
    for (nth, bytes) in [bom, members, frames].into_iter().enumerate() {
        fs::write(&file, &bytes).unwrap();
        let dir = folder.join(format!("file-{nth}"));
        assert_eq!(objects(0, &import_args(&fixture, &file, &dir))[0]["events"], 20, "{nth}");
        // Through a pipe, with as little in the first read as can be.
        let dir = folder.join(format!("pipe-{nth}"));
        let mut args = import_args(&fixture, Path::new("-"), &dir);
        args.push("--json");
        let mut child = command(&args).stdin(Stdio::piped()).spawn().unwrap();
        let mut to = child.stdin.take().unwrap();
        to.write_all(&bytes[..1]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        to.write_all(&bytes[1..]).unwrap();
        drop(to);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let imported: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{nth}: {said}"));
        assert_eq!(imported["events"], 20, "{nth}");
    }
    let (fifo, dir) = (folder.join("fifo"), folder.join("fifo-queue"));
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let writer = std::thread::spawn({
        let (fifo, all) = (fifo.clone(), all.clone());
        move || fs::write(fifo, all).unwrap()
    });
    assert_eq!(objects(0, &import_args(&fixture, &fifo, &dir))[0]["events"], 20);
    writer.join().unwrap();

    let dir = text(&dir);
    for (name, magic) in [("OUT.GZ", &b"\x1f\x8b"[..]), ("Out.Zst", b"\x28\xb5\x2f\xfd")] {
        must(0, &["export", text(&folder.join(name)), dir]);
        assert!(fs::read(folder.join(name)).unwrap().starts_with(magic), "{name}");
    }
    for year in ["9999-12-31T23:59:59Z", "9999-01-01T00:00:00Z", "0001-01-01T00:00:00Z"] {
        fs::write(&file, json!({"event": "e", "distinct_id": "u", "timestamp": year}).to_string()).unwrap();
        let error = must(2, &import_args(&fixture, &file, &folder.join("years")));
        assert!(error.contains("line 1 is no event") && error.contains("between the years 1678 and 2261"), "{error}");
    }
}

#[test]
fn an_export_killed_at_any_moment_leaves_a_whole_file() {
    let fixture = Fixture::new();
    filled(&fixture, 4_000);
    let (out, dir) = (fixture.folder().join("out.jsonl"), text(&fixture.queue));
    let new = must(0, &["export", "-", dir]);
    fs::write(&out, "old").unwrap();
    let is_whole = || {
        let found = fs::read_to_string(&out).unwrap();
        assert!(found == "old" || found == new, "{} of {} bytes", found.len(), new.len());
    };
    let (status, kills) = until_it_ends_with(&["export", text(&out), dir, "--yes"], is_whole);
    assert!(status == Some(0) && kills > 0, "{status:?} after {kills} kills");
    assert!(fs::read_to_string(&out).unwrap() == new);
}

#[test]
fn metrics_killed_at_any_moment_leave_a_whole_file() {
    let fixture = Fixture::new();
    filled(&fixture, 10);
    let (out, dir) = (fixture.folder().join("posthog.prom"), text(&fixture.queue));
    let args = ["metrics", "--output", text(&out), dir];
    must(0, &args);
    // All but the figures.
    let series = || {
        let found = fs::read_to_string(&out).unwrap();
        assert!(found.ends_with('\n'), "{found}");
        found.lines().map(|line| line.rsplit_once(' ').map_or("", |(name, _)| name).to_owned()).collect::<Vec<_>>()
    };
    let (expected, is_over) = (series(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(series(), expected);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let ended = std::panic::catch_unwind(|| until_it_ends_with(&args, || assert_eq!(series(), expected)));
        is_over.store(true, Ordering::Relaxed);
        let (status, _kills) = ended.unwrap();
        assert_eq!(status, Some(0));
        reader.join().unwrap();
    });
}

#[test]
fn a_drain_waits_for_queues_whose_pages_are_missing() {
    let fixture = Fixture::new();
    // Two queues of one project, neither of which says what is in it.
    filled(&fixture, 20);
    let file = fixture.folder().join("more.jsonl");
    fs::write(&file, format!("{}\n", bare("more"))).unwrap();
    must(0, &import_args(&fixture, &file, &fixture.queue));
    let shards = fixture.shards();
    assert_eq!(shards.len(), 2);
    shards.iter().for_each(|shard| fs::remove_file(shard.join("status")).unwrap());
    let said = must(0, &["drain", text(&fixture.queue)]);
    assert_eq!(fixture.sink.unique().len(), 21, "{said}");
}

/// A file of eleven events, of which an import has taken ten because it met something else behind them. Returns the
/// directory that it fills.
fn unfinished(fixture: &Fixture, file: &Path, dir: &Path) -> PathBuf {
    write_events(file, 11);
    let good = fs::read_to_string(file).unwrap();
    let ten: Vec<_> = good.lines().take(10).collect();
    fs::write(file, format!("{}\nno event\n", ten.join("\n"))).unwrap();
    must(2, &import_args(fixture, file, dir));
    fs::write(file, good).unwrap();
    project_in(dir).join("importing")
}

/// The directory of the only project.
fn project_in(dir: &Path) -> PathBuf {
    let found: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

/// Puts a directory with a file in it in the place of whatever is there.
fn becomes_a_directory(path: &Path) {
    let _ = fs::remove_file(path);
    fs::create_dir(path).unwrap();
    fs::write(path.join("x"), "x").unwrap();
}

#[test]
fn an_unfinished_import_that_is_damaged_is_begun_anew() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 14] = [
        ("a kept file that is a directory", |dir| becomes_a_directory(&dir.join("damaged-0-queue.redb"))),
        ("the lock is a directory", |dir| becomes_a_directory(&dir.join("lock"))),
        ("the page is a directory", |dir| becomes_a_directory(&dir.join("status"))),
        ("the store is a directory", |dir| becomes_a_directory(&dir.join("queue.redb"))),
        ("a new store is a directory", |dir| becomes_a_directory(&dir.join("queue.redb.new"))),
        ("the reserve is a directory", |dir| becomes_a_directory(&dir.join("reserve"))),
        ("an arena is a directory", |dir| becomes_a_directory(&dir.join("journal-0"))),
        ("a FIFO", |dir| {
            fs::remove_file(dir.join("queue.redb")).unwrap();
            mkfifo(&dir.join("queue.redb"), Mode::S_IRWXU).unwrap();
        }),
        ("a foreign store", |dir| fs::write(dir.join("queue.redb"), "x".repeat(9_000)).unwrap()),
        ("no store", |dir| fs::remove_file(dir.join("queue.redb")).unwrap()),
        ("an empty store", |dir| fs::write(dir.join("queue.redb"), "").unwrap()),
        ("a foreign journal", |dir| {
            (0..4).for_each(|n| fs::write(dir.join(format!("journal-{n}")), "x".repeat(9_000)).unwrap());
        }),
        ("a file", |dir| {
            fs::remove_dir_all(dir).unwrap();
            fs::write(dir, "x").unwrap();
        }),
        ("a link", |dir| {
            fs::rename(dir, dir.with_file_name("elsewhere")).unwrap();
            symlink(dir.with_file_name("elsewhere"), dir).unwrap();
        }),
    ];
    let fixture = Fixture::new();
    for (nth, (what, harm)) in harms.into_iter().enumerate() {
        let (file, dir) = (fixture.folder().join("events.jsonl"), fixture.folder().join(format!("queue-{nth}")));
        let other = fixture.folder().join("other.jsonl");
        fs::write(&other, bare("earlier")).unwrap();
        must(0, &import_args(&fixture, &other, &dir));
        let shard = project_in(&dir).join("shard-0");
        let complete = content(&shard);
        let importing = unfinished(&fixture, &file, &dir);
        harm(&importing);
        let args = import_args(&fixture, &file, &dir);
        let plain = run(&args);
        let said = String::from_utf8_lossy(&plain.stderr);
        if plain.status.code() == Some(2) {
            assert!(said.contains("--restart"), "{what}: {said}");
            let again = run(&[&args[..], &["--restart", "--yes"]].concat());
            let said = String::from_utf8_lossy(&again.stderr);
            assert!(again.status.code() == Some(1) && said.contains("from its beginning"), "{what}: {said}");
        } else {
            assert!(plain.status.code() <= Some(1), "{what}: {plain:?}");
        }
        assert!(content(&shard) == complete, "{what}: what was complete was touched");
        let listed = uuids(&objects(0, &["list", text(&project_in(&dir).join("shard-1"))]));
        assert_eq!(listed, (0..11).map(nth_uuid).collect::<Vec<_>>(), "{what}");
        assert!(!importing.exists() && fs::symlink_metadata(&importing).is_err(), "{what}");
    }
}

fn nth_uuid(n: u64) -> String {
    nth(n).to_string()
}

#[test]
fn a_complete_import_is_not_lost_before_it_is_published() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm, bool); 4] = [
        ("nothing", |_| {}, true),
        ("the lock is a directory", |dir| becomes_a_directory(&dir.join("lock")), true),
        ("the page is a directory", |dir| becomes_a_directory(&dir.join("status")), true),
        ("a foreign store", |dir| fs::write(dir.join("queue.redb"), "x".repeat(9_000)).unwrap(), false),
    ];
    for (what, harm, is_kept) in harms {
        let fixture = Fixture::new();
        filled(&fixture, 20);
        let shard = fixture.shards().remove(0);
        let importing = shard.with_file_name("importing");
        fs::rename(&shard, &importing).unwrap();
        harm(&importing);
        if is_kept {
            // Also where another file is imported, and the operator gives up what is unfinished.
            let other = fixture.folder().join("other.jsonl");
            fs::write(&other, bare("other")).unwrap();
            let ran = run(&[&import_args(&fixture, &other, &fixture.queue)[..], &["--restart", "--yes"]].concat());
            assert!(ran.status.code() <= Some(1), "{what}: {ran:?}");
            // The operator has to remove what keeps the queue from being opened.
            for name in ["lock", "status"] {
                let paths = fixture.shards().into_iter().map(|shard| shard.join(name));
                paths.filter(|path| path.is_dir()).for_each(|path| fs::remove_dir_all(path).unwrap());
            }
            let listed = uuids(&objects(0, &["list", text(&fixture.queue)]));
            assert!((0..20).all(|n| listed.contains(&nth_uuid(n))) && listed.len() == 21, "{what}: {listed:?}");
        } else {
            // The record says that this content was imported, but its events are gone.
            let file = fixture.folder().join("filled.jsonl");
            let good = fs::read_to_string(&file).unwrap();
            fs::write(&file, format!("{good}no event\n")).unwrap();
            must(2, &import_args(&fixture, &file, &fixture.queue));
            fs::write(&file, good).unwrap();
            let imported = objects(1, &import_args(&fixture, &file, &fixture.queue));
            assert!(imported[0]["notes"][0].as_str().unwrap().contains("from its beginning"), "{imported:?}");
            assert_eq!((&imported[0]["events"], &imported[0]["was_imported"]), (&json!(20), &json!(false)), "{what}");
        }
    }
}

#[test]
fn commands_say_that_only_an_unfinished_import_is_there() {
    let fixture = Fixture::new();
    let (file, dir) = (fixture.folder().join("events.jsonl"), text(&fixture.queue));
    let importing = unfinished(&fixture, &file, &fixture.queue);
    let project = importing.parent().unwrap();
    for dir in [dir, text(project), text(&importing)] {
        for args in [
            &["list", dir][..],
            &["export", "-", dir],
            &["show", "00000001", "--in", dir],
            &["repair", dir],
            &["dead", "list", dir],
            &["metrics", dir],
        ] {
            let error = must(2, args);
            let says = ["an import that is not finished", text(&importing), "repeat the same import", "--restart"];
            assert!(says.iter().all(|said| error.contains(said)), "{args:?}: {error}");
        }
    }
    // A file that is written must not become one of its files.
    let inside = must(2, &["metrics", "--output", text(&project.join("new.prom")), dir]);
    assert!(inside.contains("inside the queue"), "{inside}");
    assert_eq!(objects(0, &import_args(&fixture, &file, &fixture.queue))[0]["resumed"], 10);
    assert_eq!(objects(0, &["list", dir]).len(), 11);
}

#[test]
fn a_drain_names_an_import_that_is_under_way() {
    let fixture = Fixture::new();
    let dir = text(&fixture.queue);
    let mut child =
        command(&import_args(&fixture, Path::new("-"), &fixture.queue)).stdin(Stdio::piped()).spawn().unwrap();
    let mut to = child.stdin.take().unwrap();
    writeln!(to, "{}", bare("a")).unwrap();
    eventually("the import has begun", || {
        let found = posthog::inspect::queues_and_imports(&fixture.queue).unwrap_or_default();
        found.iter().any(|queue| queue.is_import() && queue.owner().unwrap().is_some())
    });
    let drained = objects(1, &["drain", dir]);
    assert!(drained[0]["running_imports"][0].as_str().unwrap().ends_with("/importing"), "{drained:?}");
    assert_eq!(drained[0]["unfinished_imports"], json!([]));
    assert!(must(1, &["drain", dir]).contains("is under way"));
    drop(to);
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(objects(0, &["drain", dir])[0]["running_imports"], json!([]));
    assert_eq!(fixture.sink.unique().len(), 1);
}

#[test]
fn a_damaged_record_of_imports_is_said_until_it_is_removed() {
    type Harm = fn(&Path);
    let harms: [Harm; 3] = [
        |path| fs::write(path, fs::read_to_string(path).unwrap().replacen("sha256", "sha25\u{1}", 1)).unwrap(),
        |path| becomes_a_directory(path),
        |path| fs::write(path, [0; 80]).unwrap(),
    ];
    for harm in harms {
        let fixture = Fixture::new();
        filled(&fixture, 5);
        let file = fixture.folder().join("filled.jsonl");
        let args = import_args(&fixture, &file, &fixture.queue);
        assert_eq!(objects(0, &args)[0]["was_imported"], true);
        let project = project_in(&fixture.queue);
        harm(&project.join("imported"));
        let imported = objects(1, &args);
        let is_said = |imported: &Value| imported["notes"].to_string().contains("record of finished imports");
        assert!(is_said(&imported[0]) && imported[0]["events"] == 5, "{imported:?}");
        // It is known again, but what else the damaged record said is not.
        assert_eq!(objects(0, &args)[0]["was_imported"], true);
        let other = fixture.folder().join("other.jsonl");
        fs::write(&other, bare("other")).unwrap();
        assert!(is_said(&objects(1, &import_args(&fixture, &other, &fixture.queue))[0]));
        let aside = names(&project).into_iter().find(|name| name.starts_with("imported.damaged-")).unwrap();
        let aside = project.join(aside);
        if aside.is_dir() {
            fs::remove_dir_all(aside).unwrap()
        } else {
            fs::remove_file(aside).unwrap()
        }
        fs::write(&other, bare("another")).unwrap();
        assert!(!is_said(&objects(0, &import_args(&fixture, &other, &fixture.queue))[0]));
        // Twice the same uuids: the server keeps one of each.
        must(0, &["drain", text(&fixture.queue)]);
        assert_eq!(fixture.sink.unique().len(), 7);
    }
}

#[test]
fn fields_that_an_import_leaves_out_are_named_once() {
    let fixture = Fixture::new();
    let file = fixture.folder().join("events.jsonl");
    let event = json!({"event": "a", "distinct_id": "u", "timestamp": "2026-01-31T12:00:00Z", "type": "capture"});
    let batch = json!({"batch": [event, event], "sent_at": "2026-01-31T12:00:05Z", "historical_migration": true});
    let early = json!({"event": "b", "distinct_id": "u", "sent_at": "2026-01-31T12:00:05Z", "offset": 1500});
    let unknown = json!({"event": "c", "distinct_id": "u", "offset": 1500, "ip": null, "\u{1b}[2J": 1});
    fs::write(&file, format!("{batch}\n{early}\n{unknown}\n")).unwrap();
    let args = import_args(&fixture, &file, &fixture.queue);
    let imported = objects(0, &args);
    let left_out = json!({"\u{1b}[2J": 1, "historical_migration": 1, "offset": 1, "sent_at": 2, "type": 2});
    assert_eq!(imported[0]["left_out"], left_out);
    let listed = objects(0, &["list", text(&fixture.queue), "--event", "b"]);
    assert_eq!(listed[0]["timestamp"], "2026-01-31T12:00:03.5Z");
    let said = must(0, &[&args[..], &["--again"]].concat()).replace('\n', " ");
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("sent_at (2), type (2)") && said.contains(r"\u001b[2J (1)"), "{said}");
}

#[test]
fn the_readable_beginning_of_a_file_that_was_cut_is_imported() {
    let fixture = Fixture::new();
    let (file, folder) = (fixture.folder().join("events"), fixture.folder());
    write_events(&file, 4_000);
    let all = fs::read(&file).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&all).unwrap();
    for (name, bytes) in [("gzip", gzip.finish().unwrap()), ("zstd", zstd::encode_all(&all[..], 1).unwrap())] {
        fs::write(&file, &bytes[..bytes.len() - 40]).unwrap();
        let dir = folder.join(name);
        let args = import_args(&fixture, &file, &dir);
        let error = must(2, &args);
        assert!(error.contains("incomplete or damaged") && error.contains("--skip-bad"), "{name}: {error}");
        let imported = objects(1, &[&args[..], &["--skip-bad"]].concat());
        let events = imported[0]["events"].as_u64().unwrap();
        assert!(imported[0]["notes"][0].as_str().unwrap().contains("what follows is missing"), "{imported:?}");
        let listed = uuids(&objects(0, &["list", text(&dir)]));
        assert!((1..4_000).contains(&events), "{name}: {events}");
        assert_eq!(listed, (0..events).map(nth_uuid).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn a_drain_is_not_over_before_a_queue_without_a_page_is_open() {
    let fixture = Fixture::new();
    // The queue that the drain takes for itself has nothing to deliver; the other does not say what is in it.
    let client = fixture.client();
    crate::fixture::close_empty(&client);
    drop(client);
    let file = fixture.folder().join("more.jsonl");
    fs::write(&file, format!("{}\n", bare("more"))).unwrap();
    must(0, &import_args(&fixture, &file, &fixture.queue));
    let shards = fixture.shards();
    assert_eq!(shards.len(), 2);
    fs::remove_file(shards[1].join("status")).unwrap();
    fixture.sink.stop();
    let queues = posthog::inspect::queues(&fixture.queue).unwrap();
    let drain = posthog::inspect::Drain::begin(&queues[1], posthog::Config::new("").no_proxy()).unwrap();
    for _ in 0..50 {
        let progress = drain.progress().unwrap();
        assert!(!progress.is_over, "nobody takes the event: {progress:?}");
    }
    fixture.sink.resume();
    crate::fixture::eventually("the event is delivered", || drain.progress().unwrap().is_over);
    assert_eq!(drain.end(crate::fixture::PATIENCE).unwrap().delivered, 1);
}
