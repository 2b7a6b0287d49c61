//! The commands `list`, `show`, `export`, `import` and `drain` of `posthog-queue`, against real queues: of killed
//! processes, of living owners, damaged, of other users, large; and killed themselves.

#![allow(clippy::redundant_closure, reason = "the name of a part is that of the test in which its closure stands")]

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use posthog::{Client, Event};
use serde_json::{Value, json};
use sink::Answer;
use uuid::Uuid;

use crate::apart::{NOBODY, apart_to_death};
use crate::fixture::{Fixture, KEY, PATIENCE, Place, accepted, eventually, take, tool_for_everybody};

pub(crate) const OTHER_KEY: &str = "phc_moved";

/// The command with these arguments, in an environment without settings.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = sink::command(env!("CARGO_BIN_EXE_posthog-queue"));
    command.env_clear().env("POSTHOG_PROXY", "none").env("POSTHOG_RETRY_AFTER_CAP", "1s").args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// What a command prints that ends with this status.
#[track_caller]
pub(crate) fn must(status: i32, args: &[&str]) -> String {
    let output = run(args);
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{args:?}\n{out}\n{error}");
    if status == 2 { error.into_owned() } else { out.into_owned() }
}

/// The objects that a command prints with `--json`.
#[track_caller]
pub(crate) fn objects(status: i32, args: &[&str]) -> Vec<Value> {
    let args: Vec<_> = args.iter().copied().chain(["--json"]).collect();
    must(status, &args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn uuids(objects: &[Value]) -> Vec<String> {
    objects.iter().map(|object| object["uuid"].as_str().unwrap().to_owned()).collect()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The uuid of the event number `n` of these tests.
pub(crate) fn nth(n: u64) -> Uuid {
    Uuid::from_u128(0x0197_a1b2_0000_7000_8000_0000_0000_0000 + u128::from(n))
}

/// Writes `count` events as JSON lines.
pub(crate) fn write_events(path: &Path, count: u64) -> BTreeSet<Uuid> {
    let mut text = String::new();
    for n in 0..count {
        let (uuid, second) = (nth(n), n % 60);
        text += &format!(
            "{{\"uuid\":\"{uuid}\",\"event\":\"tick\",\"distinct_id\":\"user_{}\",\"properties\":{{\"n\":{n},\"path\":\
             \"/some/where/{n}.\",\"workspace\":\"ws_abc\"}},\"timestamp\":\"2026-01-31T12:00:{second:02}Z\"}}\n",
            n % 7
        );
    }
    std::fs::write(path, text).unwrap();
    (0..count).map(nth).collect()
}

/// Content of all files below a directory.
pub(crate) fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            all.extend(content(&entry));
        } else {
            all.push((entry.clone(), std::fs::read(&entry).unwrap()));
        }
    }
    all.sort();
    all
}

pub(crate) fn offline() -> Fixture {
    let fixture = Fixture::new();
    fixture.sink.stop();
    fixture
}

/// Captures events of every kind and dies.
fn captures_and_dies(place: &Place) {
    let client = place.client();
    for n in 0..30 {
        let (name, at) =
            (if n % 3 == 0 { "page" } else { "tick" }, UNIX_EPOCH + Duration::from_secs(1_700_000_000 + n));
        let event = Event::new(name, format!("user_{}", n % 2)).uuid(nth(n)).timestamp(at).prop("n", n);
        let event = match n {
            3 => event.disable_geoip().prop("deep", json!({"z": [1, 2.5, {"a": null}], "b": "\u{e9}\n\"x\""})),
            4 => event.personless().prop("large", u128::MAX).prop("tiny", 1e-9),
            5 => event.group("company", "acme").group("seat", 7).person_property("plan", "pro"),
            _ => event,
        };
        accepted(&client.capture(event));
        if n == 19 {
            // Ten events stay in the journal.
            eventually("twenty events are in the store", || client.stats().oldest_age.is_some());
            client.flush().wait(PATIENCE).unwrap();
        }
    }
    raise(Signal::SIGKILL).unwrap();
}

#[test]
fn the_events_of_a_killed_process_are_listed_and_shown() {
    apart_to_death(
        offline,
        |place| captures_and_dies(place),
        |fixture| {
            let (dir, before) = (text(&fixture.queue), content(&fixture.queue));
            let all = objects(0, &["list", dir]);
            assert_eq!(uuids(&all), (0..30).map(|n| nth(n).to_string()).collect::<Vec<_>>());
            for row in &all {
                let is_journaled = row["state"] == "journal";
                assert!(is_journaled || row["state"] == "queued", "{row}");
                assert_eq!(row["since"].is_null(), is_journaled, "{row}");
                assert!(row["lane"] == "analytics" && row["bytes"].as_u64().unwrap() > 50, "{row}");
            }
            assert_eq!((&all[3]["event"], &all[3]["distinct_id"]), (&json!("page"), &json!("user_1")));
            assert_eq!(all[3]["timestamp"], "2023-11-14T22:13:23Z");
            let count = |args: &[&str]| objects(0, &[&["list", dir], args].concat()).len();
            assert_eq!(count(&["--event", "page"]), 10);
            assert_eq!(count(&["--event", "page", "--event", "tick", "--distinct-id", "user_1"]), 15);
            assert_eq!(count(&["--since", "2023-11-14T22:13:25Z", "--until", "2023-11-14T22:13:30Z"]), 5);
            assert_eq!((count(&["--since", "2h"]), count(&["--until", "2023-11-15"]), count(&["-n", "4"])), (0, 30, 4));
            assert_eq!(count(&["--state", "queued"]) + count(&["--state", "journal"]), 30);
            assert_eq!(count(&["--state", "dead"]), 0);
            assert_eq!(uuids(&objects(0, &["list", dir, "--newest", "-n", "2"])), [29, 28].map(|n| nth(n).to_string()));
            let shown = must(0, &["show", &nth(4).to_string()[24..], "--in", dir]);
            assert!(shown.contains("\"large\": 340282366920938463463374607431768211455,\n"), "{shown}");
            assert!(shown.contains("\"$process_person_profile\": false"), "{shown}");
            let shown = objects(0, &["show", &nth(5).to_string(), "--in", dir]);
            assert_eq!(shown[0]["content"]["properties"]["$groups"], json!({"company": "acme", "seat": 7}));
            assert!(objects(1, &["show", "0123456789ab", "--in", dir]).is_empty());
            for line in must(0, &["list", dir]).lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
            assert!(content(&fixture.queue) == before, "a command that reads has changed a file");
        },
    );
}

#[test]
fn the_events_of_a_living_process_come_from_a_copy() {
    let fixture = offline();
    let client = fixture.client();
    let taken: Vec<_> = (0..20).map(|_| take(&client, "tick").to_string()).collect();
    let scratch = fixture.folder().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let (dir, copies) = (text(&fixture.queue), text(&scratch));
    assert_eq!(uuids(&objects(0, &["list", dir, "--scratch", copies])), taken);
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "the copy is removed");
    let error = must(2, &["list", dir, "--scratch", "/nowhere"]);
    assert!(error.contains("/nowhere"), "{error}");
    let drained = objects(1, &["drain", dir, "--timeout", "1s"]);
    assert_eq!(drained[0]["ended"], "owned");
    assert_eq!(
        objects(1, &["drain", dir, "--host", "http://127.0.0.1:9", "--key", OTHER_KEY, "--yes"]),
        [] as [Value; 0]
    );
    fixture.sink.resume();
    eventually("its owner delivers them", || client.stats().queued_events == 0);
    assert_eq!(fixture.sink.unique().len(), 20);
}

#[test]
fn an_export_that_is_imported_and_sent_is_byte_for_byte_the_same() {
    apart_to_death(
        offline,
        |place| captures_and_dies(place),
        |fixture| {
            let (dir, folder) = (text(&fixture.queue), fixture.folder());
            let [plain, gzip, zstd] = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"].map(|name| folder.join(name));
            must(0, &["export", text(&plain), dir]);
            assert_eq!(std::fs::metadata(&plain).unwrap().permissions().mode() & 0o777, 0o600);
            let exported = std::fs::read_to_string(&plain).unwrap();
            assert_eq!(exported.lines().count(), 30);
            assert_eq!(must(0, &["export", "-", dir]), exported);
            assert!(must(2, &["export", text(&plain), dir]).contains("--yes"));
            assert_eq!(objects(0, &["export", text(&gzip), dir])[0]["events"], 30);
            must(0, &["export", text(&zstd), dir, "--event", "page"]);
            assert_eq!(must(0, &["export", "-", dir, "--event", "page"]).lines().count(), 10);

            let other = folder.join("other");
            let import = |file: &Path, key: &str, count: u64| {
                let imported = objects(0, &["import", text(file), text(&other), "--host", &fixture.host, "--key", key]);
                assert_eq!(imported[0]["events"], count, "{imported:?}");
                PathBuf::from(imported[0]["queue"].as_str().unwrap())
            };
            let queue = import(&gzip, KEY, 30);
            import(&zstd, "phc_third", 10);
            assert_eq!(must(0, &["export", "-", text(&queue)]), exported);
            fixture.sink.resume();
            let drained = objects(0, &["drain", text(&queue)]);
            assert_eq!((&drained[0]["ended"], &drained[0]["progress"]["delivered"]), (&json!("empty"), &json!(30)));
            let sent: Vec<_> = fixture.sink.events();
            assert_eq!(sent.len(), 30);
            for (line, sent) in exported.lines().zip(sent) {
                let line: Value = serde_json::from_str(line).unwrap();
                assert_eq!(line["properties"], sent.properties);
                assert_eq!(
                    (&line["uuid"], &line["timestamp"]),
                    (&json!(sent.uuid.to_string()), &json!(sent.timestamp))
                );
                assert_eq!((&line["event"], &line["distinct_id"]), (&json!(sent.event), &json!(sent.distinct_id)));
            }
            // The same content, whatever it is compressed with.
            let again = objects(0, &["import", text(&plain), text(&other), "--host", &fixture.host, "--key", KEY]);
            assert_eq!(again[0]["was_imported"], true);
        },
    );
}

/// Runs a command again and again and kills it, each time later, until one run ends by itself. Returns its status and how
/// often it was killed.
fn until_it_ends(args: &[&str]) -> (Option<i32>, u32) {
    until_it_ends_with(args, || {})
}

/// [`until_it_ends`], with a check after each kill.
pub(crate) fn until_it_ends_with(args: &[&str], mut check: impl FnMut()) -> (Option<i32>, u32) {
    let mut kills = 0;
    loop {
        let mut child = command(args).stdout(Stdio::null()).spawn().unwrap();
        // Longer each time, so that all runs together take a few times as long as one that is not killed, on any machine.
        let after = Duration::from_millis(4).mul_f64(1.35_f64.powi(kills as i32));
        if let Some(status) = ended_within(&mut child, after) {
            if !status.success() {
                // The test shows what the last run said.
                let mut said = String::new();
                std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
                eprintln!("{said}");
            }
            return (status.code(), kills);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        check();
    }
}

fn ended_within(child: &mut Child, most: Duration) -> Option<std::process::ExitStatus> {
    let deadline = std::time::Instant::now() + most;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if std::time::Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_import_killed_at_any_moment_neither_loses_nor_doubles() {
    let fixture = offline();
    let (file, dir) = (fixture.folder().join("events.jsonl"), text(&fixture.queue));
    let all = write_events(&file, 8_000);
    let args = ["import", text(&file), dir, "--host", &fixture.host, "--key", KEY];
    let (status, kills) = until_it_ends(&args);
    assert!(status == Some(0) && kills > 0, "{status:?} after {kills} kills");
    // Also if the last kill came after the file was complete.
    assert_eq!(objects(0, &args)[0]["was_imported"], true);
    let listed = uuids(&objects(0, &["list", dir]));
    assert_eq!(listed.len(), all.len());
    assert!(listed.iter().map(|uuid| uuid.parse::<Uuid>().unwrap()).eq(all), "order or content");
    assert_eq!(objects(0, &[&args[..], &["--again"]].concat())[0]["events"], 8_000);
    assert_eq!(objects(0, &["list", dir]).len(), 16_000);
}

#[test]
fn a_drain_killed_at_any_moment_loses_nothing() {
    let fixture = Fixture::new();
    let (file, dir) = (fixture.folder().join("events.jsonl"), text(&fixture.queue));
    let all = write_events(&file, 4_000);
    must(0, &["import", text(&file), dir, "--host", &fixture.host, "--key", KEY]);
    let (status, kills) = until_it_ends(&["drain", dir]);
    assert!(status == Some(0) && kills > 0, "{status:?} after {kills} kills");
    assert!(fixture.sink.inspect(|state| all.iter().all(|uuid| state.contains(*uuid))));
    assert_eq!(objects(0, &["list", dir]).len(), 0);
}

#[test]
fn a_drain_to_another_host_killed_at_any_moment_loses_nothing() {
    let fixture = offline();
    let (file, dir, other) = (fixture.folder().join("events.jsonl"), text(&fixture.queue), sink::Sink::start());
    let all = write_events(&file, 4_000);
    must(0, &["import", text(&file), dir, "--host", &fixture.host, "--key", KEY]);
    must(0, &["import", text(&file), dir, "--host", &fixture.host, "--key", KEY, "--lane", "ai"]);
    assert!(must(2, &["drain", dir, "--host", &other.url(), "--key", OTHER_KEY]).contains("--yes"));
    let (status, kills) = until_it_ends(&["drain", dir, "--host", &other.url(), "--key", OTHER_KEY, "--yes"]);
    assert!(status == Some(0) && kills > 0, "{status:?} after {kills} kills");
    assert!(other.inspect(|state| all.iter().all(|uuid| state.contains(*uuid)) && state.unique() == all.len() as u64));
    assert!(other.requests().iter().filter(|request| request.taken).all(|request| request.api_key == OTHER_KEY));
    assert!(other.requests().iter().any(|request| request.path.contains("/ai/")), "AI events keep their lane");
    assert_eq!(objects(0, &["list", dir]).len(), 0);
}

#[test]
fn a_drain_stops_on_request_and_goes_on_later() {
    let fixture = offline();
    let (file, dir) = (fixture.folder().join("events.jsonl"), text(&fixture.queue));
    write_events(&file, 50);
    must(0, &["import", text(&file), dir, "--host", &fixture.host, "--key", KEY]);
    let child = command(&["drain", dir, "--json"]).spawn().unwrap();
    let is_owned = || {
        let queues = posthog::inspect::queues(&fixture.queue).unwrap();
        queues.iter().any(|queue| queue.owner().unwrap().is_some_and(|owner| owner.pid == Some(child.id())))
    };
    eventually("the queue is opened", is_owned);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &result["ended"]), (Some(1), &json!("interrupted")), "{result}");
    assert_eq!(result["progress"]["remaining"], 50, "{result}");
    assert_eq!(objects(1, &["drain", dir, "--timeout", "1s"])[0]["ended"], "timeout");
    fixture.sink.resume();
    assert_eq!(objects(0, &["drain", dir])[0]["progress"]["remaining"], 0);
    assert_eq!((fixture.sink.unique().len(), fixture.sink.duplicates()), (50, 0));
}

#[test]
fn a_drain_that_ends_lets_no_further_request_begin() {
    const EVENTS: u64 = 1_000;
    let fixture = Fixture::new();
    let file = fixture.folder().join("events.jsonl");
    write_events(&file, EVENTS);
    must(0, &["import", text(&file), text(&fixture.queue), "--host", &fixture.host, "--key", KEY]);
    // A request waits for a permission.
    let (permit, permits) = std::sync::mpsc::channel::<()>();
    let (asks, asked) = std::sync::mpsc::channel();
    let gate = std::sync::Mutex::new((asks, permits));
    let waits = move |_: &Value| {
        let gate = gate.lock().unwrap();
        let _ = gate.0.send(());
        let _ = gate.1.recv();
        false
    };
    fixture.sink.refuse_if(waits, 400, "");
    let queue = posthog::inspect::queues(&fixture.queue).unwrap().remove(0);
    let settings = posthog::Config::new("").no_proxy().max_batch_events(1);
    let drain = posthog::inspect::Drain::begin(&queue, settings).unwrap();
    asked.recv_timeout(PATIENCE).unwrap();
    let end = std::thread::spawn(move || drain.end(PATIENCE).unwrap());
    let mut permitted = 0;
    while !end.is_finished() {
        // Gives the other thread much more time than it needs to hold the rest back.
        std::thread::sleep(Duration::from_millis(20));
        if permit.send(()).is_ok() {
            permitted += 1;
        }
    }
    let ended = end.join().unwrap();
    drop(permit);
    assert!(ended.remaining > 0 && ended.delivered > 0, "after {permitted} permissions: {ended:?}");
    assert_eq!(ended.remaining + ended.delivered, EVENTS);
    assert_eq!(fixture.sink.unique().len() as u64, ended.delivered);
    fixture.sink.refuse_none();
    assert_eq!(objects(0, &["drain", text(&fixture.queue)])[0]["progress"]["delivered"], ended.remaining);
    assert_eq!(fixture.sink.duplicates(), 0);
}

#[test]
fn a_drain_says_that_dead_letters_remain_or_the_key_is_refused() {
    let fixture = Fixture::new();
    let (file, dir) = (fixture.folder().join("events.jsonl"), text(&fixture.queue));
    write_events(&file, 3);
    must(0, &["import", text(&file), dir, "--host", &fixture.host, "--key", KEY]);
    fixture.sink.default_answer(Answer::status(401).body("no such project"));
    let drained = objects(1, &["drain", dir]);
    assert_eq!((&drained[0]["ended"], &drained[0]["progress"]["remaining"]), (&json!("refused"), &json!(3)));
    assert!(drained[0]["progress"]["last_error"].as_str().unwrap().contains("no such project"));

    let second = Fixture::new();
    let dir = text(&second.queue);
    must(0, &["import", text(&file), dir, "--host", &second.host, "--key", KEY]);
    second.sink.script([Answer::results(["ok", "drop:a mistake", "ok"])]);
    let output = command(&["drain", dir, "--json"]).env("POSTHOG_PROTOCOL", "v1").output().unwrap();
    let drained: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &drained["dead_letters"]), (Some(1), &json!(1)), "{drained}");
    assert_eq!((&drained["progress"]["delivered"], &drained["progress"]["dead_lettered"]), (&json!(2), &json!(1)));
    let dead = objects(0, &["list", dir, "--state", "dead"]);
    assert_eq!((uuids(&dead), &dead[0]["reason"]), (vec![nth(1).to_string()], &json!("a mistake")));
    assert_eq!(must(0, &["export", "-", dir, "--state", "dead"]).lines().count(), 1);
    assert_eq!(must(0, &["export", "-", dir]).lines().count(), 0, "dead letters are exported on request only");
}

#[test]
fn a_bad_line_stops_an_import_until_it_is_corrected_or_skipped() {
    let fixture = Fixture::new();
    let (file, other) = (fixture.folder().join("events.jsonl"), fixture.folder().join("other.jsonl"));
    write_events(&file, 10);
    let good = std::fs::read_to_string(&file).unwrap();
    let bad = good.replacen("\"event\":\"tick\",\"distinct_id\":\"user_4\"", "\"distinct_id\":\"user_4\"", 1);
    std::fs::write(&file, &bad).unwrap();
    let dir = text(&fixture.queue);
    let args = ["import", text(&file), dir, "--host", &fixture.host, "--key", KEY];
    for _ in 0..2 {
        let error = must(2, &args);
        assert!(
            error.contains("line 5 is no event: it has no name") && error.contains("4 events before it"),
            "{error}"
        );
    }
    // Nothing of it is a queue yet.
    assert!(must(2, &["list", dir]).contains("contains no queue"));
    std::fs::write(&other, good.lines().rev().collect::<Vec<_>>().join("\n")).unwrap();
    let of_other = ["import", text(&other), dir, "--host", &fixture.host, "--key", KEY];
    assert!(must(2, &of_other).contains("unfinished import of another file"));
    let imported = objects(1, &[&args[..], &["--skip-bad"]].concat());
    let counts = ["events", "resumed", "bad_lines"].map(|key| imported[0][key].as_u64().unwrap());
    assert_eq!(counts, [9, 4, 1]);
    assert_eq!(objects(0, &["list", dir]).len(), 9);
    must(2, &[&args[..5], &["--key", "phx_secret"]].concat());

    std::fs::write(&file, &bad).unwrap();
    let second = fixture.folder().join("second");
    let args = ["import", text(&file), text(&second), "--host", &fixture.host, "--key", KEY];
    must(2, &args);
    std::fs::write(&file, &good).unwrap();
    assert_eq!(objects(0, &args)[0]["resumed"], 4, "the corrected file goes on");
    std::fs::write(&file, &bad).unwrap();
    must(2, &args);
    let restarted = [&["import", text(&other)], &args[2..], &["--restart"]].concat();
    assert!(must(2, &restarted).contains("--yes"));
    assert_eq!(objects(0, &[&restarted[..], &["--yes"]].concat())[0]["events"], 10);
}

#[test]
fn batches_are_imported_and_events_without_uuids_get_stable_ones() {
    let fixture = Fixture::new();
    let file = fixture.folder().join("batch.json");
    let batch = json!({"api_key": KEY, "batch": [
        {"event": "a", "distinct_id": "u", "properties": {"n": 1}},
        {"event": "b", "properties": {"distinct_id": "v"}, "$set": {"plan": "pro"}},
    ]});
    let mut seen = Vec::new();
    for text_of in [serde_json::to_string(&batch).unwrap(), serde_json::to_string_pretty(&batch).unwrap()] {
        std::fs::write(&file, text_of).unwrap();
        let dir = fixture.folder().join(format!("queue-{}", seen.len()));
        must(0, &["import", text(&file), text(&dir), "--host", &fixture.host, "--key", KEY]);
        let listed = objects(0, &["list", text(&dir)]);
        assert_eq!(listed.iter().map(|row| row["event"].as_str().unwrap()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(listed[1]["distinct_id"], "v");
        seen.push(uuids(&listed));
    }
    std::fs::write(&file, serde_json::to_string(&batch).unwrap() + "\n").unwrap();
    let dir = fixture.folder().join("again");
    must(0, &["import", text(&file), text(&dir), "--host", &fixture.host, "--key", KEY]);
    assert_eq!(uuids(&objects(0, &["list", text(&dir)])), seen[0]);
}

#[test]
fn damage_costs_the_events_that_it_is_in_and_is_reported() {
    let fixture = Fixture::new();
    let (file, dir) = (fixture.folder().join("events.jsonl"), text(&fixture.queue));
    write_events(&file, 2000);
    must(0, &["import", text(&file), dir, "--host", &fixture.host, "--key", KEY]);
    let store = fixture.shards()[0].join("queue.redb");
    let mut bytes = std::fs::read(&store).unwrap();
    let needle = b"/some/where/777.";
    let places: Vec<_> = (0..bytes.len() - 16).filter(|at| bytes[*at..].starts_with(needle)).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| bytes[*at] = b'!');
    std::fs::write(&store, &bytes).unwrap();
    let listed = uuids(&objects(1, &["list", dir]));
    assert_eq!(listed.len(), 1999);
    assert!(!listed.contains(&nth(777).to_string()));
    assert_eq!(must(1, &["export", "-", dir]).lines().count(), 1999);
    assert!(std::fs::read(&store).unwrap() == bytes, "a command that reads has changed the file");
    let drained = objects(1, &["drain", dir]);
    assert_eq!(
        (&drained[0]["progress"]["delivered"], &drained[0]["progress"]["lost_events"]),
        (&json!(1999), &json!(1))
    );
}

#[test]
fn what_is_no_queue_or_of_a_newer_version_is_named_and_left_alone() {
    let fixture = Fixture::new();
    let (file, dir) = (fixture.folder().join("events.jsonl"), text(&fixture.queue));
    write_events(&file, 3);
    for command in [&["list"][..], &["export", "-"], &["drain"]] {
        let at = |dir| [command, &[dir]].concat();
        assert!(must(2, &at("/nowhere")).contains("/nowhere"));
        assert!(must(2, &at(text(fixture.folder()))).contains("contains no queue"));
        assert!(must(2, &at(text(&file))).contains("events.jsonl"));
    }
    assert!(must(2, &["import", "/nowhere", dir, "--host", &fixture.host, "--key", KEY]).contains("/nowhere"));
    assert!(must(2, &["import", text(&file), dir, "--host", "ftp://x", "--key", KEY]).contains("ftp://x"));
    std::fs::write(&file, "\n\n").unwrap();
    assert_eq!(
        objects(0, &["import", text(&file), dir, "--host", &fixture.host, "--key", KEY])[0]["queue"],
        Value::Null
    );

    write_events(&file, 3);
    must(0, &["import", text(&file), dir, "--host", &fixture.host, "--key", KEY]);
    let page = fixture.shards()[0].join("status");
    let mut words = std::fs::read(&page).unwrap();
    words[8..16].copy_from_slice(&99_u64.to_le_bytes());
    let inverted = words.chunks_exact(8).position(|word| word == (!1_u64).to_le_bytes()).unwrap();
    words[8 * inverted..][..8].copy_from_slice(&(!99_u64).to_le_bytes());
    std::fs::write(&page, words).unwrap();
    let before = content(&fixture.queue);
    for command in [
        &["list", dir][..],
        &["export", "-", dir],
        &["drain", dir, "--host", &fixture.host, "--key", OTHER_KEY, "--yes"],
    ] {
        let error = must(2, command);
        assert!(error.contains("newer version"), "{error}");
    }
    assert!(content(&fixture.queue) == before, "the files of a newer version were changed");
}

#[test]
fn the_queue_of_another_user_is_read_by_root_and_written_by_its_user() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can make files of another user");
        return;
    }
    let fixture = Fixture::new();
    let (file, dir) = (fixture.folder().join("events.jsonl"), text(&fixture.queue));
    write_events(&file, 3);
    let import = ["import", text(&file), dir, "--host", &fixture.host, "--key", KEY];
    must(0, &import);
    let private = {
        use std::os::unix::process::CommandExt;
        let program = tool_for_everybody(fixture.folder());
        std::fs::set_permissions(&fixture.queue, std::fs::Permissions::from_mode(0o755)).unwrap();
        sink::command(&program).env_clear().args(["list", dir]).uid(NOBODY).gid(NOBODY).output().unwrap()
    };
    let error = String::from_utf8_lossy(&private.stderr);
    assert!(private.status.code() == Some(2) && error.contains("run the command as root"), "{error}");

    fn give(path: &Path) {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        if path.is_dir() {
            std::fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path()));
        }
    }
    give(&fixture.queue);
    let before = content(&fixture.queue);
    assert_eq!(objects(0, &["list", dir]).len(), 3);
    for command in
        [&["drain", dir][..], &["drain", dir, "--host", "http://127.0.0.1:9", "--key", OTHER_KEY, "--yes"], &import]
    {
        let error = must(2, command);
        assert!(error.contains(&format!("sudo -u nobody posthog-queue {}", command[..2].join(" "))), "{error}");
    }
    assert!(content(&fixture.queue) == before, "root has changed the queue of another user");
}

/// The most anonymous memory that a command takes, in KiB, and its output.
fn memory_of(args: &[&str]) -> (u64, Output) {
    let mut child = command(args).stdout(Stdio::null()).spawn().unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        most = most.max(kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    (most, child.wait_with_output().unwrap())
}

#[test]
fn a_hundred_thousand_events_need_little_memory() {
    let fixture = Fixture::new();
    fixture.sink.fast_mode(true);
    let folder = fixture.folder();
    let (file, out, dir) = (folder.join("events.jsonl"), folder.join("out.jsonl.zst"), text(&fixture.queue));
    write_events(&file, 100_000);
    for args in [
        &["import", text(&file), dir, "--host", &fixture.host, "--key", KEY][..],
        &["list", dir, "--json"],
        &["list", dir, "--newest"],
        &["export", text(&out), dir],
        &["drain", dir],
    ] {
        let (kib, output) = memory_of(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(kib <= 64 * 1024, "{args:?} took {kib} KiB");
    }
    assert_eq!(fixture.sink.inspect(sink::State::unique), 100_000);
}

#[test]
fn a_running_program_adopts_what_is_imported() {
    let fixture = Fixture::new();
    let client = Client::new(fixture.config()).unwrap();
    let (file, dir) = (fixture.folder().join("events.jsonl"), text(&fixture.queue));
    write_events(&file, 3);
    must(0, &["import", text(&file), dir, "--host", &fixture.host, "--key", KEY]);
    let own = take(&client, "tick");
    fixture.must_have_taken(&[own, nth(0), nth(1), nth(2)]);
}
