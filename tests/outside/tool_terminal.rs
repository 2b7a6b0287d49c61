//! `posthog-queue` and what surrounds it: terminals and what must not reach them, names that are no text, read-only file
//! systems, and being killed.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, raise};
use posthog::{Client, Event};
use serde_json::Value;

use crate::apart::apart_to_death;
use crate::disk_full::{Kind, SmallDisk, path, run};
use crate::fixture::{Fixture, Place, take};
use crate::tool_fix::{DEAD, WAITING, bytes_of, command, copy_of, must_take, quiet, refusing, tool, work_and_die};

const TOOL: &str = env!("CARGO_BIN_EXE_posthog-queue");

/// A title for the window, a colour, a cleared screen, a tab and a new line, the one-byte beginning of a code, an overridden
/// direction, and an ordinary letter that is not ASCII.
const HOSTILE: &str = "a\u{1b}]0;title\u{7}\u{1b}[31m\u{1b}[2J\t\nb\u{9b}31m\u{7f}\u{202e}c\u{e9}";

/// Whether a terminal would do something with the text other than show it.
fn acts(text: &str) -> bool {
    let is_code = |c: char| c != '\n' && (c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c));
    text.contains(is_code)
}

/// Leaves waiting events and dead letters with hostile texts, and kills itself.
fn captures_hostile_texts_and_dies(place: &Place) {
    let client = Client::new(quiet(place)).unwrap();
    must_take(&client, || Event::new(HOSTILE, HOSTILE).prop(HOSTILE, HOSTILE));
    let _ = client.flush().wait(crate::fixture::PATIENCE);
    crate::fixture::eventually("it is a dead letter", || client.dead_letters(9).len() == 1);
    client.shutdown(crate::fixture::PATIENCE).wait(crate::fixture::PATIENCE).unwrap();
    drop(client);
    let client = Client::new(quiet(place).proxy("http://127.0.0.1:9")).unwrap();
    must_take(&client, || Event::new(HOSTILE, HOSTILE).prop(HOSTILE, HOSTILE));
    raise(Signal::SIGKILL).unwrap();
}

fn refusing_in_hostile_words() -> Fixture {
    let fixture = Fixture::new();
    let said = format!("drop:{HOSTILE}");
    fixture.sink.default_answer(sink::Answer::results([said.as_str()]));
    fixture
}

#[test]
fn nothing_that_a_terminal_acts_on_is_printed() {
    apart_to_death(
        refusing_in_hostile_words,
        |place| {
            captures_hostile_texts_and_dies(place);
        },
        |fixture| {
            let renamed = fixture.folder().join(format!("{HOSTILE}.d"));
            fs::rename(&fixture.queue, &renamed).unwrap();
            let rows = tool(&renamed, "list --json").json();
            let is_hostile = |row: &Value| row["event"] == HOSTILE && row["distinct_id"] == HOSTILE;
            assert!(rows.len() == 2 && rows.iter().all(is_hostile), "JSON says the same in other letters: {rows:?}");
            let show = format!("show {} --in", rows[0]["uuid"].as_str().unwrap());
            let show_json = format!("show --json {} --in", rows[0]["uuid"].as_str().unwrap());
            let all = ["list", "list --json", "dead list", "dead list --json", "status", "status --json", "verify"];
            let more = ["verify --json", "forget --dry-run --distinct-id x", "export -", "export - --state dead"];
            for words in all.into_iter().chain(more).chain([show.as_str(), &show_json]) {
                let ran = tool(&renamed, words);
                assert!(!ran.out.is_empty() && !acts(&ran.out) && !acts(&ran.err), "{words}: {ran:?}");
            }
            let dead = tool(&renamed, "dead list").out;
            assert!(dead.contains(r"a\u001b]0;title\u0007\u001b[31m"), "{dead}");
            let absent = tool(&renamed.join(HOSTILE), "status");
            assert!(absent.code == Some(2) && absent.err.contains(r"\u{1b}") && !acts(&absent.err), "{absent:?}");
        },
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_directory_whose_name_is_no_text_is_no_obstacle() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let (copied, _) = copy_of(fixture, "copy");
            let dir = fixture.folder().join(OsStr::from_bytes(b"queue-\xff\xfe"));
            fs::rename(copied, &dir).unwrap();
            let ask = |words: &str| {
                let ran = tool(&dir, words);
                assert!(ran.code != Some(2) && ran.err.is_empty(), "{words}: {ran:?}");
                ran
            };
            for words in ["status", "list", "verify", "dead list", "crash list"] {
                ask(words);
                ask(&format!("{words} --json"));
            }
            let dead = |words: &str| ask(words).one()["events"].as_u64();
            assert_eq!(dead("dead retry --json --event bad"), Some(DEAD), "what was done is said");
            let repaired = ask("repair --json --force").one();
            assert_eq!(repaired["saved_events"], WAITING + DEAD, "{repaired}");
            let kept = repaired["kept"][0].as_str().unwrap();
            assert!(kept.contains("queue-\u{fffd}\u{fffd}/"), "{kept}");
            let forgotten = ask("forget --json --yes --distinct-id user-1@example.org");
            assert!(forgotten.one()["events"].as_u64() > Some(100), "{forgotten:?}");
            // A word that is neither an option nor a text.
            let mut command = sink::command(TOOL);
            let ran = command.arg("list").arg(&dir).arg(OsStr::from_bytes(b"\xff")).output().unwrap();
            assert_eq!(ran.status.code(), Some(2), "{ran:?}");
        },
    );
}

#[test]
fn a_copy_has_no_name_and_so_outlives_no_process() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = fixture.client();
    let text = "a text of some length. ".repeat(10);
    for n in 0..3000 {
        must_take(&client, || Event::new("tick", "user").prop("n", n).prop("text", &text));
    }
    let scratch = fixture.folder().join("scratch");
    fs::create_dir(&scratch).unwrap();
    let words = format!("list --json --scratch {}", scratch.display());
    let mut reader = command(&fixture.queue, &words).stdout(Stdio::piped()).spawn().unwrap();
    // More is written than a pipe takes, so it reads its copy until somebody reads its lines.
    let mut line = String::new();
    let mut lines = BufReader::new(reader.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("tick"), "{line}");
    let left: Vec<_> = fs::read_dir(&scratch).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(reader.try_wait().unwrap().is_none(), "it is still reading");
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    drop(client);
}

#[test]
fn a_damaged_replacement_of_the_store_is_found_by_verify() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let (queue, shard) = copy_of(fixture, "copy");
            let ready = shard.join("queue.redb.ready");
            let mut bytes = fs::read(shard.join("queue.redb")).unwrap();
            bytes[..4096].fill(0);
            fs::write(&ready, &bytes).unwrap();
            let before = bytes_of(&queue);
            let found = tool(&queue, "verify --json").one();
            let is_it = |problem: &Value| problem["path"] == path(&ready) && problem["kind"] == "damage";
            let problems = found["problems"].as_array().unwrap();
            assert!(problems.len() == 1 && is_it(&problems[0]), "{found}");
            assert_eq!((&found["waiting_events"], &found["lost_events"]), (&WAITING.into(), &0.into()), "{found}");
            assert!(before == bytes_of(&queue), "verifying changes nothing");
            let retried = tool(&queue, "dead retry --json").one();
            assert_eq!(retried["events"], DEAD, "{retried}");
            let notes = retried["notes"].to_string();
            assert!(notes.contains("queue.redb.ready") && notes.contains("damaged-"), "{retried}");
            assert!(!ready.exists());
            let after = tool(&queue, "verify --json").one();
            assert_eq!(
                (&after["waiting_events"], &after["is_sound"]),
                (&(WAITING + DEAD).into(), &true.into()),
                "{after}"
            );
        },
    );
}

#[test]
fn a_queue_that_cannot_be_written_is_read_and_nothing_else() {
    for kind in [Kind::Memory, Kind::Overlay] {
        let Some(disk) = SmallDisk::of(kind, 200) else { continue };
        let client = Client::new(disk.config().host("http://127.0.0.1:9")).unwrap();
        for _ in 0..20 {
            take(&client, "tick");
        }
        client.close().wait(crate::fixture::PATIENCE).unwrap();
        drop(client);
        // A second mount, because the first one may be written to for another moment.
        let mount = disk.root().with_file_name("sealed");
        fs::create_dir(&mount).unwrap();
        let mounted = run("mount", &["--bind", path(&disk.root()), path(&mount)])
            .and_then(|()| run("mount", &["-o", "remount,ro,bind", path(&mount)]));
        if let Err(why) = mounted {
            eprintln!("skipped: nothing can be mounted read-only here: {why}");
            let _none = run("umount", &[path(&mount)]);
            continue;
        }
        let queue = mount.join("queue");
        let read = ["status --json", "list --json", "verify --json", "dead list", "crash list", "metrics", "list"];
        for words in read.into_iter().chain(["forget --dry-run --json --distinct-id x", "repair"]) {
            let ran = tool(&queue, words);
            assert!(ran.code == Some(0) && ran.err.is_empty(), "{kind:?} {words}: {ran:?}");
        }
        assert_eq!(tool(&queue, "list --json").json().len(), 20, "{kind:?}");
        let write = ["repair --force", "dead retry", "dead discard --yes", "forget --yes --distinct-id user_1"];
        for words in write.into_iter().chain(["drain --timeout 1s"]) {
            let ran = tool(&queue, words);
            assert_eq!(ran.code, Some(2), "{kind:?} {words}: {ran:?}");
            let says =
                ran.err.contains("mounted read-only") && ran.err.contains(path(&mount)) && !ran.err.contains("panic");
            assert!(says && ran.err.lines().count() == 1, "{kind:?} {words}: {ran:?}");
        }
        run("umount", &[path(&mount)]).unwrap();
    }
}

/// What `posthog-queue` writes to a terminal of that size, until it has shown something twice. `None`, with a printed
/// reason, where there is no `script` to make terminals.
fn two_screens(environment: &str, size: (usize, usize), dir: &Path) -> Option<String> {
    let (columns, rows) = size;
    let watch =
        format!("stty cols {columns} rows {rows}; {environment} exec {TOOL} status --watch=1 {}", dir.display());
    let mut script = Command::new("script");
    script.args(["-qec", &watch, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = match script.env("TERM", "xterm").env("SHELL", "/bin/sh").env_remove("NO_COLOR").spawn() {
        Ok(script) => script,
        Err(error) => {
            eprintln!("skipped: script cannot be run: {error}");
            return None;
        }
    };
    let (mut shown, mut byte, mut out) = (Vec::new(), [0], script.stdout.take().unwrap());
    // A small window has no room for the words.
    let seen = |shown: &[u8]| {
        let shown = String::from_utf8_lossy(shown);
        shown.matches("\u{1b}[H\u{1b}[J").count().max(shown.matches("Ctrl-C ends").count())
    };
    while seen(&shown) < 2 && out.read(&mut byte).unwrap() == 1 {
        shown.push(byte[0]);
    }
    if shown.is_empty() {
        eprintln!("skipped: script makes no terminal here: {:?}", script.wait());
        return None;
    }
    // As the key does it.
    script.stdin.take().unwrap().write_all(&[3]).unwrap();
    out.read_to_end(&mut shown).unwrap();
    assert!(script.wait().unwrap().success(), "{}", String::from_utf8_lossy(&shown));
    Some(String::from_utf8(shown).unwrap())
}

/// The text without colours.
fn plain(text: &str) -> String {
    ["32", "33", "31"]
        .iter()
        .fold(text.replace("\u{1b}[0m", ""), |text, tone| text.replace(&format!("\u{1b}[1;{tone}m"), ""))
}

#[test]
fn watching_a_terminal_refreshes_one_screen_of_any_size() {
    let fixture = Fixture::new();
    let client = fixture.client();
    for size in [(80, 50), (40, 12), (200, 5), (10, 3)] {
        let Some(shown) = two_screens("", size, &fixture.queue) else { return };
        assert!(!shown.contains("\u{1b}[?25l"), "the cursor stays: {shown:?}");
        let screens: Vec<_> = shown.split("\u{1b}[H\u{1b}[J").skip(1).map(plain).collect();
        assert!(screens.len() >= 2 && screens.iter().all(|screen| !screen.contains('\u{1b}')), "{shown:?}");
        // What follows the last screen is the echo of the key.
        for screen in &screens[..screens.len() - 1] {
            let rows = screen.lines().map(|line| line.chars().count().div_ceil(size.0).max(1)).sum::<usize>();
            assert!(rows < size.1, "{rows} rows in {size:?}: {screen:?}");
            assert_eq!(size.1 == 50, !screen.contains("... "), "{size:?} {screen:?}");
        }
    }
    drop(client);
}

#[test]
fn a_dumb_terminal_gets_lines_and_no_codes() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let Some(shown) = two_screens("TERM=dumb", (80, 24), &fixture.queue) else { return };
    assert!(!shown.contains('\u{1b}') && shown.contains("fine"), "{shown:?}");
    let Some(shown) = two_screens("NO_COLOR=1", (80, 50), &fixture.queue) else { return };
    assert!(shown.contains("\u{1b}[H\u{1b}[J") && !shown.contains("\u{1b}[1;"), "{shown:?}");
    drop(client);
}
