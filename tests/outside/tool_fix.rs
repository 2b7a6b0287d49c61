//! `posthog-queue verify` and `repair` against queues of killed processes, of living ones, and damaged in every way.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use posthog::inspect::{Content, EventPlace};
use posthog::settings::CaptureProtocol;
use posthog::{Client, Config, Event};
use serde_json::Value;
use sink::Answer;

use crate::apart::{NOBODY, apart_to_death};
use crate::fixture::{Fixture, KEY, PATIENCE, Place, eventually, tool_for_everybody};

/// Waiting events and dead letters that [`work_and_die`] leaves.
pub(crate) const WAITING: u64 = 3000;
pub(crate) const DEAD: u64 = 12;
/// They belong to this many users, `user-0@example.org` and so on.
pub(crate) const USERS: u64 = 10;

pub(crate) fn user(n: u64) -> String {
    format!("user-{}@example.org", n % USERS)
}

/// How a run of the command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// The lines of standard output as JSON.
    pub(crate) fn json(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        self.out.lines().map(parse).collect()
    }

    /// The one line of standard output as JSON.
    pub(crate) fn one(&self) -> Value {
        let [line] = self.json().try_into().unwrap_or_else(|_| panic!("not one line: {self:?}"));
        line
    }
}

pub(crate) fn command(dir: &Path, words: &str) -> Command {
    let mut command = sink::command(env!("CARGO_BIN_EXE_posthog-queue"));
    command.args(words.split(' ')).arg(dir).env("POSTHOG_PROXY", "none");
    command
}

/// Runs the command on a directory; `words` are its other arguments.
pub(crate) fn tool(dir: &Path, words: &str) -> Ran {
    let output = command(dir, words).stdin(std::process::Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Nothing is sent unless it is flushed.
pub(crate) fn quiet(place: &Place) -> Config {
    place.config().protocol(CaptureProtocol::V1).flush_interval(Duration::from_secs(600)).flush_at(10_000)
}

pub(crate) fn refusing() -> Fixture {
    let fixture = Fixture::new();
    // For every event of a request, in however many requests they are sent.
    fixture.sink.default_answer(Answer::results(["drop:a mistake"]));
    fixture
}

/// A client that delivers what is in the queue, to a server that takes everything by now.
pub(crate) fn delivering(fixture: &Fixture) -> Client {
    fixture.sink.default_answer(Answer::ok());
    fixture.client()
}

pub(crate) fn must_take(client: &Client, event: impl Fn() -> Event) {
    eventually("the event is accepted", || client.capture(event()).is_accepted());
}

/// Leaves dead letters and waiting events, in the store and in the journal, and kills itself.
pub(crate) fn work_and_die(place: &Place) {
    let client = Client::new(quiet(place)).unwrap();
    for n in 0..DEAD {
        must_take(&client, || Event::new("bad", user(n)).prop("n", n));
    }
    let flushed = client.flush();
    eventually("they are dead letters", || client.dead_letters(99).len() as u64 == DEAD);
    let _ = flushed.wait(PATIENCE);
    client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    drop(client);
    // Nobody is there: what is sent from here on does not arrive.
    let client = posthog::init(quiet(place).proxy("http://127.0.0.1:9")).unwrap();
    let note = "a text of some length. ".repeat(10);
    for n in 0..WAITING - 100 {
        must_take(&client, || Event::new("tick", user(n)).prop("n", n).prop("note", &note));
    }
    eventually("some events are in the store", || stored_events(&place.queue) > 0);
    for n in WAITING - 100..WAITING {
        must_take(&client, || Event::new("tick", user(n)).prop("n", n));
    }
    raise(Signal::SIGKILL).unwrap();
}

/// Leaves so many waiting events in the journal, and kills itself.
pub(crate) fn capture_and_die(place: &Place, count: u64) {
    let client = Client::new(quiet(place).proxy("http://127.0.0.1:9")).unwrap();
    (0..count).for_each(|n| must_take(&client, || Event::new("tick", user(n)).prop("n", n)));
    raise(Signal::SIGKILL).unwrap();
}

fn stored_events(queue: &Path) -> u64 {
    let (mut stored, scratch) = (0, tempfile::tempdir().unwrap());
    let reader = posthog::inspect::queues(queue).unwrap().remove(0).read(scratch.path()).unwrap();
    reader
        .content(&mut |content| {
            if let Content::Event(event) = content {
                stored += u64::from(matches!(event.place, EventPlace::Store { .. }));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    stored
}

pub(crate) fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// A copy of the queue in a directory of its own, and its only shard.
pub(crate) fn copy_of(fixture: &Fixture, name: &str) -> (PathBuf, PathBuf) {
    let copied = fixture.folder().join(name);
    let _ = fs::remove_dir_all(&copied);
    copy(&fixture.queue, &copied);
    let below = fixture.shards()[0].strip_prefix(&fixture.queue).unwrap().to_path_buf();
    let shard = copied.join(below);
    (copied, shard)
}

/// Every file below a directory with its bytes.
pub(crate) fn bytes_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(bytes_of(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// The same pseudorandom numbers in every run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

pub(crate) fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

/// The arena of the newest round that has records. Those of an older one may be in the store already.
fn arena_in_use(shard: &Path) -> PathBuf {
    let paths = (0..4).map(|n| shard.join(format!("journal-{n}"))).filter(|path| path.exists());
    let round = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        let epoch = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
        (bytes[56] == 1 && bytes[4096..4100] != [0; 4]).then_some((epoch, path))
    };
    paths.filter_map(round).max().unwrap().1
}

#[test]
fn a_killed_queue_is_sound_and_verifying_changes_nothing() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let before = bytes_of(&fixture.queue);
            let ran = tool(&fixture.queue, "verify --json");
            assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
            let line = ran.one();
            assert_eq!(line["is_sound"], true, "{line}");
            assert_eq!(line["waiting_events"], WAITING);
            let journal = line["journal_events"].as_u64().unwrap();
            assert!(journal > 0 && journal < WAITING, "{line}");
            assert_eq!((&line["dead_letters"], &line["lost_events"]), (&DEAD.into(), &0.into()));
            let human = tool(&fixture.queue, "verify");
            assert!(human.out.starts_with("Sound:"), "{human:?}");
            let repair = tool(&fixture.queue, "repair");
            assert_eq!((repair.code, repair.out.starts_with("Nothing to repair")), (Some(0), true), "{repair:?}");
            assert!(before == bytes_of(&fixture.queue), "nothing was written");
        },
    );
}

#[test]
fn a_queue_in_use_is_verified_from_a_copy_and_not_repaired() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = fixture.client();
    for _ in 0..200 {
        must_take(&client, || Event::new("tick", user(1)));
    }
    let ran = tool(&fixture.queue, "verify --json");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let line = ran.one();
    assert_eq!((&line["is_copy"], &line["waiting_events"]), (&true.into(), &200.into()), "{line}");
    for words in ["repair --force", "dead retry", "dead discard --yes", "forget --yes --distinct-id x"] {
        let refused = tool(&fixture.queue, words);
        assert_eq!(refused.code, Some(2), "{words}: {refused:?}");
        assert!(refused.err.contains(&format!("process {} owns the queue", std::process::id())), "{refused:?}");
    }
    assert_eq!(client.stats().queued_events, 200);
    assert!(client.capture(Event::new("tick", "still alive")).is_accepted());
}

/// What `verify` says can be saved is saved by `repair`, and what it says is lost is all that is lost.
fn must_be_repaired(host: &str, queue: &Path, what: &str) -> (u64, u64) {
    let found = tool(queue, "verify --json");
    let line = found.one();
    let of = |line: &Value, key: &str| line[key].as_u64().unwrap();
    let (waiting, lost) = (of(&line, "waiting_events"), of(&line, "lost_events"));
    if found.code == Some(0) {
        assert_eq!((waiting, lost), (WAITING, 0), "{what}: {line}");
        return (waiting, lost);
    }
    assert_eq!(found.code, Some(1), "{what}: {found:?}");
    assert_eq!(waiting + lost, WAITING, "{what}: {line}");
    // The rows that say whose events it contains may be what is damaged.
    let repaired = tool(queue, &format!("repair --json --host {host} --key {KEY}"));
    let report = repaired.one();
    assert_eq!(repaired.code, Some(i32::from(lost > 0)), "{what}: {repaired:?}");
    assert_eq!((of(&report, "saved_events"), of(&report, "lost_events")), (waiting, lost), "{what}: {line} {report}");
    assert_eq!(report["dead_letters"], line["dead_letters"], "{what}");
    let after = tool(queue, "verify --json");
    assert_eq!((after.code, of(&after.one(), "waiting_events")), (Some(0), waiting), "{what}: {after:?}");
    (waiting, lost)
}

#[test]
fn flipped_bytes_anywhere_in_the_store_are_found_and_repaired() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let mut damaged = 0;
            let mut dice = Dice::new(12);
            for round in 0..12 {
                let (queue, shard) = copy_of(fixture, "copy");
                let store = shard.join("queue.redb");
                let len = fs::metadata(&store).unwrap().len();
                // Some of them at the beginning, where the header is.
                let at = if round % 4 == 0 { dice.below(320) } else { dice.below(len) };
                flip(&store, at);
                let (_, lost) = must_be_repaired(&fixture.host, &queue, &format!("byte {at} of {len}"));
                damaged += u64::from(lost > 0);
            }
            assert!(damaged > 0, "some of the bytes belong to events");
        },
    );
}

#[test]
fn a_store_that_is_cut_missing_empty_or_foreign_is_repaired() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            type Harm = fn(&Path);
            let harms: [(&str, Harm); 5] = [
                ("cut in half", |store| {
                    let len = fs::metadata(store).unwrap().len();
                    fs::File::options().write(true).open(store).unwrap().set_len(len / 2).unwrap();
                }),
                ("empty", |store| fs::write(store, "").unwrap()),
                ("foreign", |store| fs::write(store, "a text, not a store".repeat(1000)).unwrap()),
                ("missing", |store| fs::remove_file(store).unwrap()),
                ("a page of zeros", |store| {
                    let mut bytes = fs::read(store).unwrap();
                    bytes[8192..12288].fill(0);
                    fs::write(store, bytes).unwrap();
                }),
            ];
            for (what, harm) in harms {
                let (queue, shard) = copy_of(fixture, "copy");
                harm(&shard.join("queue.redb"));
                let unknown = tool(&queue, "repair");
                if unknown.code == Some(2) {
                    assert!(unknown.err.contains("--host"), "{what}: {unknown:?}");
                    let before = bytes_of(&queue);
                    let wrong = tool(&queue, "repair --host https://elsewhere.example --key phc_wrong");
                    assert_eq!(wrong.code, Some(2), "{what}: {wrong:?}");
                    assert!(before == bytes_of(&queue), "{what}: a wrong key changes nothing");
                    let words = format!("repair --json --host {} --key {}", fixture.host, KEY);
                    let line = tool(&queue, "verify --json").one();
                    let report = tool(&queue, &words).one();
                    assert_eq!(report["saved_events"], line["waiting_events"], "{what}: {line} {report}");
                    let sum = report["saved_events"].as_u64().unwrap() + report["lost_events"].as_u64().unwrap();
                    assert_eq!(sum, WAITING, "{what}: {line} {report}");
                    assert_eq!(line["lost_events"], report["lost_events"], "{what}: {line} {report}");
                } else {
                    let (queue, shard) = copy_of(fixture, "copy");
                    harm(&shard.join("queue.redb"));
                    must_be_repaired(&fixture.host, &queue, what);
                }
                assert_eq!(tool(&queue, "verify").code, Some(0), "{what}");
            }
        },
    );
}

#[test]
fn damage_of_the_journal_costs_what_verify_says() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            type Harm = fn(&Path);
            let harms: [(&str, Harm); 6] = [
                ("a torn frame", |arena| flip(arena, 4096 + 40)),
                ("a damaged header", |arena| flip(arena, 26)),
                ("a foreign file", |arena| fs::write(arena, "x".repeat(9000)).unwrap()),
                ("a missing file", |arena| fs::remove_file(arena).unwrap()),
                ("a cut file", |arena| fs::File::options().write(true).open(arena).unwrap().set_len(4100).unwrap()),
                ("a damaged page", |arena| flip(&arena.with_file_name("status"), 1)),
            ];
            for (what, harm) in harms {
                let (queue, shard) = copy_of(fixture, "copy");
                harm(&arena_in_use(&shard));
                let text = tool(&queue, "verify").out;
                assert!(text.contains(&format!("posthog-queue repair {}\n", shard.display())), "{what}: {text}");
                let (_, lost) = must_be_repaired(&fixture.host, &queue, what);
                assert_eq!(lost == 0, what == "a damaged page", "{what}");
            }
        },
    );
}

#[test]
fn an_arena_that_was_copied_over_another_is_counted_once() {
    apart_to_death(
        Fixture::new,
        |place| {
            capture_and_die(place, 300);
        },
        |fixture| {
            let shard = fixture.shards().remove(0);
            let used = arena_in_use(&shard);
            for other in (0..4).map(|n| shard.join(format!("journal-{n}"))).filter(|path| *path != used) {
                fs::copy(&used, other).unwrap();
            }
            assert_eq!(tool(&fixture.queue, "list --json").json().len(), 300);
            let line = tool(&fixture.queue, "verify --json").one();
            let counts = ["waiting_events", "journal_events", "lost_events"].map(|key| line[key].as_u64());
            assert_eq!((counts, &line["is_sound"]), ([Some(300), Some(300), Some(0)], &false.into()), "{line}");
            let repaired = tool(&fixture.queue, "repair --json").one();
            assert_eq!((&repaired["saved_events"], &repaired["lost_events"]), (&300.into(), &0.into()), "{repaired}");
        },
    );
}

#[test]
fn what_was_repaired_is_delivered_and_the_damaged_file_kept() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let shard = fixture.shards()[0].clone();
            let store = shard.join("queue.redb");
            let len = fs::metadata(&store).unwrap().len();
            let mut dice = Dice::new(5);
            (0..20).for_each(|_| flip(&store, 4096 + dice.below(len - 4096)));
            let harmed = fs::read(&store).unwrap();
            let words = format!("repair --json --host {} --key {}", fixture.host, KEY);
            let report = tool(&fixture.queue, &words).one();
            let saved = report["saved_events"].as_u64().unwrap();
            assert!(saved > 0 && saved < WAITING, "{report}");
            let kept = report["kept"][0].as_str().unwrap();
            assert!(fs::read(kept).unwrap() == harmed);
            let client = delivering(fixture);
            eventually("the saved events are delivered", || fixture.sink.unique().len() as u64 == saved);
            assert_eq!((client.stats().imbalance(), fixture.sink.duplicates()), (0, 0));
        },
    );
}

#[test]
fn repair_killed_at_any_moment_loses_nothing_more() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let (queue, shard) = copy_of(fixture, "copy");
            let store = shard.join("queue.redb");
            // A row of events, not of the rows that identify the file: those are small.
            let bytes = fs::read(&store).unwrap();
            let row = bytes.windows(21).rposition(|window| window == b"a text of some length").unwrap();
            flip(&store, row as u64);
            let expected = tool(&queue, "verify --json").one();
            for round in 0..60 {
                let mut child = command(&queue, "repair --force --json")
                    .stdout(std::process::Stdio::null())
                    .stderr(std::process::Stdio::null())
                    .spawn()
                    .unwrap();
                std::thread::sleep(Duration::from_millis(round));
                child.kill().unwrap();
                child.wait().unwrap();
            }
            tool(&queue, "repair --force");
            let line = tool(&queue, "verify --json").one();
            assert_eq!(
                (&line["waiting_events"], &line["is_sound"]),
                (&expected["waiting_events"], &true.into()),
                "{expected} {line}"
            );
            assert_eq!(line["dead_letters"], DEAD);
        },
    );
}

#[test]
fn a_newer_queue_is_refused_and_left_as_it_is() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let page = fixture.shards()[0].join("status");
            let mut bytes = fs::read(&page).unwrap();
            bytes[8..16].copy_from_slice(&9_u64.to_le_bytes());
            bytes[168..176].copy_from_slice(&(!9_u64).to_le_bytes());
            fs::write(&page, bytes).unwrap();
            let before = bytes_of(&fixture.queue);
            for words in
                ["verify", "repair", "repair --force", "dead list", "dead retry", "forget --yes --distinct-id x"]
            {
                let ran = tool(&fixture.queue, words);
                assert_eq!(ran.code, Some(2), "{words}: {ran:?}");
                assert!(ran.err.contains("newer version"), "{words}: {ran:?}");
            }
            assert!(before == bytes_of(&fixture.queue));
        },
    );
}

#[test]
fn directories_without_a_queue_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "text").unwrap();
    for dir in [folder.path().to_path_buf(), folder.path().join("file"), folder.path().join("nowhere")] {
        for words in ["verify", "repair", "dead list", "forget --yes --distinct-id x"] {
            let ran = tool(&dir, words);
            assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{words} {dir:?}: {ran:?}");
            assert!(ran.err.contains(dir.to_str().unwrap()), "{ran:?}");
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn an_empty_queue_is_sound() {
    let fixture = Fixture::new();
    let client = fixture.client();
    crate::fixture::close_empty(&client);
    drop(client);
    let line = tool(&fixture.queue, "verify --json").one();
    assert_eq!((&line["is_sound"], &line["waiting_events"]), (&true.into(), &0.into()), "{line}");
    let dead = tool(&fixture.queue, "dead list");
    assert_eq!((dead.code, dead.out.starts_with("No dead letters")), (Some(0), true), "{dead:?}");
}

#[test]
fn root_reads_a_queue_of_another_user_and_does_not_write_to_it() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can give files to another user");
        return;
    }
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let status = Command::new("chown").args(["-R", &NOBODY.to_string()]).arg(&fixture.queue).status().unwrap();
            assert!(status.success());
            let before = bytes_of(&fixture.queue);
            assert_eq!(tool(&fixture.queue, "verify").code, Some(0));
            assert_eq!(tool(&fixture.queue, "dead list").code, Some(1));
            for words in ["repair --force", "dead retry", "forget --yes --distinct-id x"] {
                let refused = tool(&fixture.queue, words);
                assert_eq!(refused.code, Some(2), "{words}: {refused:?}");
                let advice = format!("sudo -u nobody posthog-queue {words} {}", fixture.queue.display());
                assert!(refused.err.contains(&advice), "{advice}: {refused:?}");
            }
            assert!(before == bytes_of(&fixture.queue));
            // A file of root in it is what would keep the program out.
            fs::write(fixture.shards()[0].join("reserve"), "x").unwrap();
            Command::new("chown").arg("root").arg(fixture.shards()[0].join("reserve")).status().unwrap();
            let line = tool(&fixture.queue, "verify --json").one();
            assert_eq!(line["problems"][0]["kind"], "permissions", "{line}");
        },
    );
}

#[test]
fn another_user_is_told_whose_queue_it_is() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    use std::os::unix::process::CommandExt;
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let binary = tool_for_everybody(fixture.folder());
            fs::set_permissions(&fixture.queue, fs::Permissions::from_mode(0o755)).unwrap();
            for words in ["verify", "repair", "dead list", "forget --yes --distinct-id x"] {
                let mut command = sink::command(&binary);
                let ran = command.args(words.split(' ')).arg(&fixture.queue).uid(NOBODY).gid(NOBODY).output().unwrap();
                let err = String::from_utf8(ran.stderr).unwrap();
                assert_eq!(ran.status.code(), Some(2), "{words}: {err}");
                assert!(err.contains("root"), "{words}: {err}");
            }
        },
    );
}

#[test]
fn what_was_lost_before_a_change_is_counted_and_said() {
    apart_to_death(
        refusing,
        |place| {
            capture_and_die(place, 200);
        },
        |fixture| {
            fixture.sink.default_answer(Answer::ok());
            for words in ["drain", "dead retry", "dead discard --yes", "forget --yes --distinct-id nobody"] {
                let (queue, shard) = copy_of(fixture, "copy");
                flip(&arena_in_use(&shard), 4096 + 40);
                let lost = tool(&queue, "verify --json").one()["lost_events"].clone();
                assert!(lost.as_u64() > Some(0), "{lost}");
                let ran = tool(&queue, &format!("{words} --json"));
                assert_eq!(ran.code, Some(1), "{words}: {ran:?}");
                let line = ran.one();
                let found = if words == "drain" { &line["progress"] } else { &line };
                assert_eq!(found["lost_events"], lost, "{words}: {line}");
                assert!(!found["notes"].as_array().unwrap().is_empty(), "{words}: {line}");
                let again = tool(&queue, words);
                assert_eq!(again.code, Some(0), "it is said once: {again:?}");

                let (queue, shard) = copy_of(fixture, "copy");
                flip(&arena_in_use(&shard), 4096 + 40);
                let text = tool(&queue, words).out;
                assert!(text.contains("lost") && text.contains("Found: "), "{words}: {text}");
                assert!(!text.contains("nothing is left"), "{words}: {text}");
            }
        },
    );
}

#[test]
fn a_drain_of_a_store_that_was_cut_says_what_was_lost() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            fixture.sink.default_answer(Answer::ok());
            assert_eq!(tool(&fixture.queue, "dead discard --yes").code, Some(0));
            // A store beside it still says whose events they are.
            let file = fixture.folder().join("one.jsonl");
            fs::write(&file, "{\"event\":\"tick\",\"distinct_id\":\"a\"}\n").unwrap();
            let import = format!("import {} --host {} --key {KEY}", file.display(), fixture.host);
            assert_eq!(tool(&fixture.queue, &import).code, Some(0));
            let store = fixture.shards()[0].join("queue.redb");
            let len = fs::metadata(&store).unwrap().len();
            fs::File::options().write(true).open(&store).unwrap().set_len(len / 3 * 2).unwrap();
            let lost = tool(&fixture.shards()[0], "verify --json").one()["lost_events"].clone();
            let ran = tool(&fixture.queue, "drain --json");
            let progress = &ran.one()["progress"];
            assert_eq!((ran.code, &progress["lost_events"]), (Some(1), &lost), "{ran:?}");
            let delivered = progress["delivered"].as_u64().unwrap();
            assert!(lost.as_u64() > Some(0) && delivered + lost.as_u64().unwrap() == WAITING + 1, "{ran:?}");
        },
    );
}

#[test]
fn a_shard_whose_first_owner_made_no_store_stops_nothing() {
    apart_to_death(
        refusing,
        |place| {
            capture_and_die(place, 40);
        },
        |fixture| {
            fixture.sink.default_answer(Answer::ok());
            let blank = fixture.shards()[0].with_file_name("shard-1");
            fs::create_dir(&blank).unwrap();
            fs::write(blank.join("lock"), "").unwrap();
            fs::write(blank.join("status"), [0; 64]).unwrap();
            for words in [
                "verify",
                "repair",
                "dead list",
                "dead retry",
                "dead discard --yes",
                "forget --yes --distinct-id nobody",
                "repair --force",
                "drain",
            ] {
                let ran = tool(&fixture.queue, words);
                assert_eq!(ran.code, Some(0), "{words}: {ran:?}");
                // Delivery takes it as a new one.
                assert!(!blank.join("queue.redb").exists() || words == "drain", "{words} has made a store");
            }
            assert_eq!(fixture.sink.unique().len(), 40);
        },
    );
}

#[test]
fn one_bad_shard_is_named_and_stops_no_other() {
    apart_to_death(
        refusing,
        |place| {
            capture_and_die(place, 40);
        },
        |fixture| {
            fixture.sink.default_answer(Answer::ok());
            let bad = fixture.shards()[0].with_file_name("shard-1");
            fs::create_dir(&bad).unwrap();
            fs::write(bad.join("queue.redb"), "no store").unwrap();
            make_pipe(&bad.join("lock"));
            for words in ["dead list", "dead retry", "forget --yes --distinct-id user-3@example.org", "drain"] {
                let ran = ends(&fixture.queue, words);
                assert_eq!(ran.code, Some(2), "{words}: {ran:?}");
                assert!(ran.err.contains("shard-1"), "{words}: {ran:?}");
                assert!(ran.out.contains("shard-0") || words == "drain", "{words}: {ran:?}");
            }
            assert_eq!(fixture.sink.unique().len(), 36, "the others are delivered, and the person's are gone");
        },
    );
}

pub(crate) fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Runs the command, and fails if it waits for ever.
pub(crate) fn ends(dir: &Path, words: &str) -> Ran {
    use std::process::Stdio;
    let mut child =
        command(dir, words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if std::time::Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{words} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

#[test]
fn what_is_no_regular_file_is_named_and_stepped_over() {
    apart_to_death(
        refusing,
        |place| {
            capture_and_die(place, 40);
        },
        |fixture| {
            let shard = fixture.shards()[0].clone();
            let outside = fixture.folder().join("outside");
            fs::write(&outside, user(3)).unwrap();
            let crash = shard.join("crash");
            fs::create_dir_all(&crash).unwrap();
            let report = |n: u8| crash.join(format!("{n}aaabb792392c8b7ea3452e1a603f5c6-1.phx"));
            let link = |path: &Path| std::os::unix::fs::symlink(&outside, path).unwrap();
            make_pipe(&report(1));
            link(&report(2));
            make_pipe(&shard.join("notes"));
            link(&shard.join("damaged-5"));
            let note = shard.with_file_name("owner.txt");
            let _ = fs::remove_file(&note);
            make_pipe(&note);
            let status = ends(&fixture.queue, "status --json --no-rates").one();
            assert_eq!(status["queued_events"], 40, "{status}");
            let verify = ends(&fixture.queue, "verify --json");
            let notes = verify.one()["notes"].to_string();
            assert_eq!((verify.code, &verify.one()["is_sound"]), (Some(0), &true.into()), "{verify:?}");
            assert!(notes.contains("it is a pipe") && notes.contains("it is a symbolic link"), "{notes}");
            assert!(ends(&fixture.queue, "repair").out.starts_with("Nothing to repair"));
            let words = format!("forget --yes --json --distinct-id {}", user(3));
            let ran = ends(&fixture.queue, &words);
            let line = ran.one();
            assert_eq!((ran.code, &line["events"]), (Some(1), &4.into()), "{ran:?}");
            let files = line["not_reached"].as_array().unwrap();
            assert_eq!(files.len(), 4, "{line}");
            for file in files {
                let why = file["why"].as_str().unwrap();
                assert!(file["contains_id"].is_null() && why.contains("not a regular file"), "{file}");
            }
            assert_eq!(fs::read_to_string(&outside).unwrap(), user(3));

            fs::remove_file(shard.join("notes")).unwrap();
            let _ = fs::remove_file(shard.join("breadcrumbs"));
            link(&shard.join("breadcrumbs"));
            let verify = ends(&fixture.queue, "verify --json");
            assert_eq!(
                (verify.code, &verify.one()["problems"][0]["kind"]),
                (Some(1), &"permissions".into()),
                "{verify:?}"
            );
        },
    );
}

#[test]
fn a_drain_without_time_sends_nothing() {
    apart_to_death(
        Fixture::new,
        |place| {
            capture_and_die(place, 40);
        },
        |fixture| {
            let ran = tool(&fixture.queue, "drain --timeout 0s --json");
            let line = ran.one();
            assert_eq!(
                (ran.code, &line["ended"], &line["remaining"]),
                (Some(1), &"timeout".into(), &40.into()),
                "{ran:?}"
            );
            let text = tool(&fixture.queue, "drain --timeout 0s").out;
            assert!(text.contains("40 events are left"), "{text}");
            assert!(fixture.sink.requests().is_empty());
            assert_eq!(tool(&fixture.queue, "drain").code, Some(0));
            assert_eq!(fixture.sink.unique().len(), 40);
        },
    );
}

#[test]
fn options_that_match_no_queue_are_named_with_what_there_is() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let owned = tool(&fixture.queue, "drain");
    crate::fixture::take(&client, "tick");
    let busy = tool(&fixture.queue, "drain");
    let holder = format!("process {} has the queues", std::process::id());
    assert!(owned.out.contains(&holder) && busy.out.contains(&holder), "{owned:?} {busy:?}");
    crate::fixture::close_empty(&client);
    drop(client);
    let project = fixture.shards()[0].parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let commands =
        ["status", "verify", "repair", "dead list", "dead retry", "forget --distinct-id x", "drain", "list", "metrics"];
    for words in commands {
        let ran = tool(&fixture.queue, &format!("{words} --project ffff --lane ai"));
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{words}: {ran:?}");
        assert!(ran.err.contains("--project ffff --lane ai") && ran.err.contains(&project[..8]), "{words}: {ran:?}");
    }
    let help = sink::command(env!("CARGO_BIN_EXE_posthog-queue")).args(["drain", "--help"]).output().unwrap();
    assert!(String::from_utf8(help.stdout).unwrap().contains("Only with --host"));
}
