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

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::fixture::{Fixture, KEY};
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
