//! `posthog-queue forget` and `dead` against queues of killed processes.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use posthog::{Client, Context, Event};
use serde_json::Value;
use sink::Answer;
use uuid::Uuid;

use crate::apart::apart_to_death;
use crate::fixture::{Fixture, KEY, PATIENCE, Place, accepted, eventually};
use crate::tool_fix::{
    DEAD, USERS, WAITING, bytes_of, command, copy_of, delivering, flip, must_take, quiet, refusing, tool, user,
    work_and_die,
};

fn contains(bytes: &[u8], text: &str) -> bool {
    regex::bytes::Regex::new(&regex::escape(text)).unwrap().is_match(bytes)
}

/// The files below a directory that contain a text, in any byte: also in free pages and old rounds.
fn files_with(dir: &Path, text: &str) -> Vec<String> {
    let files = bytes_of(dir).into_iter().filter(|(_, bytes)| contains(bytes, text));
    files.map(|(path, _)| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn number(line: &Value, key: &str) -> u64 {
    line[key].as_u64().unwrap_or_else(|| panic!("{key} of {line}"))
}

/// [`work_and_die`], and a panic while a request of a user is served, and breadcrumbs and other events about that user.
fn work_panic_and_die(place: &Place) {
    let client = posthog::init(quiet(place).proxy("http://127.0.0.1:9")).unwrap();
    posthog::install_panic_hook();
    client.breadcrumb(format!("signed in: {}", user(3)));
    client.breadcrumb("nobody");
    must_take(&client, || Event::new("$identify", "known").prop("$anon_distinct_id", user(3)));
    must_take(&client, || Event::new("$pageview", "known").prop("$current_url", format!("https://h/?u={}", user(3))));
    for n in 0..200 {
        must_take(&client, || Event::new("tick", user(n)));
    }
    for n in [3, 4] {
        let fall = || Context::new().distinct_id(user(n)).enter(|| panic!("it fell"));
        assert!(catch_unwind(fall).is_err());
    }
    raise(Signal::SIGKILL).unwrap();
}

#[test]
fn no_byte_of_a_forgotten_person_is_left_and_others_stay() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let gone = user(3);
            assert!(!files_with(&fixture.queue, &gone).is_empty());
            let dry = tool(&fixture.queue, &format!("forget --json --dry-run --distinct-id {gone}"));
            assert_eq!(dry.code, Some(1), "{dry:?}");
            let found = dry.one();
            // 12 dead letters of 10 users, and 2999 waiting events.
            assert_eq!((number(&found, "events"), number(&found, "dead_letters")), (300, 1), "{found}");
            let refused = tool(&fixture.queue, &format!("forget --distinct-id {gone}"));
            assert_eq!(refused.code, Some(2), "nobody can be asked: {refused:?}");
            assert!(refused.err.contains("--yes"), "{refused:?}");
            assert!(!files_with(&fixture.queue, &gone).is_empty());

            let ran = tool(&fixture.queue, &format!("forget --json --yes --distinct-id {gone}"));
            assert_eq!(ran.code, Some(0), "{ran:?}");
            let removed = ran.one();
            assert_eq!((number(&removed, "events"), number(&removed, "dead_letters")), (300, 1), "{removed}");
            assert_eq!(files_with(&fixture.queue, &gone), [""; 0]);
            let line = tool(&fixture.queue, "verify --json").one();
            assert_eq!((&line["is_sound"], number(&line, "waiting_events")), (&true.into(), WAITING - 300), "{line}");
            assert_eq!(number(&line, "dead_letters"), DEAD - 1);

            let client = delivering(fixture);
            eventually("the others are delivered", || fixture.sink.unique().len() as u64 == WAITING - 300);
            let stats = client.stats();
            assert_eq!((stats.imbalance(), stats.evicted, stats.damaged), (0, 300, 0), "{stats:?}");
            let ids: BTreeSet<_> = fixture.sink.events().into_iter().map(|event| event.distinct_id).collect();
            assert_eq!(ids, (0..USERS).map(user).filter(|id| *id != gone).collect());
        },
    );
}

#[test]
fn crash_records_breadcrumbs_and_mentions_are_forgotten() {
    apart_to_death(
        Fixture::new,
        |place| {
            work_panic_and_die(place);
        },
        |fixture| {
            let gone = user(3);
            let words = format!("--json --distinct-id {gone}");
            let found = tool(&fixture.queue, &format!("forget --dry-run {words}")).one();
            let counts = ["events", "crash_records", "breadcrumbs", "in_properties"].map(|key| number(&found, key));
            assert_eq!(counts, [20, 1, 1, 1], "{found}");
            assert!(number(&found, "in_text") >= 1, "the event with the URL, and records with the breadcrumb: {found}");
            let first = tool(&fixture.queue, &format!("forget --yes {words}"));
            assert_eq!(first.code, Some(0), "{first:?}");
            let left = tool(&fixture.queue, &format!("forget --dry-run {words}")).one();
            let counts = ["events", "crash_records", "breadcrumbs", "in_properties"].map(|key| number(&left, key));
            assert_eq!(counts, [0, 0, 0, 1], "{left}");
            let all = tool(&fixture.queue, &format!("forget --yes --also-properties --also-text {words}"));
            assert_eq!(all.code, Some(0), "{all:?}");
            assert_eq!(files_with(&fixture.queue, &gone), [""; 0]);
            let line = tool(&fixture.queue, "verify --json").one();
            assert_eq!((&line["is_sound"], number(&line, "waiting_events")), (&true.into(), 180), "{line}");
        },
    );
}

#[test]
fn what_forget_cannot_reach_is_named() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let shard = &fixture.shards()[0];
            fs::create_dir(shard.join("damaged-7")).unwrap();
            fs::copy(shard.join("queue.redb"), shard.join("damaged-7/queue.redb")).unwrap();
            fs::write(shard.join("notes.txt"), "of the operator").unwrap();
            let ran = tool(&fixture.queue, &format!("forget --json --yes --distinct-id {}", user(3)));
            assert_eq!(ran.code, Some(1), "something is left: {ran:?}");
            let files = ran.one()["not_reached"].clone();
            let of = |at: usize| (files[at]["path"].as_str().unwrap().to_owned(), files[at]["contains_id"].clone());
            let mut found = [of(0), of(1)];
            found.sort_by(|a, b| a.0.cmp(&b.0));
            assert!(found[0].0.ends_with("damaged-7/queue.redb") && found[0].1 == true, "{files}");
            assert!(found[1].0.ends_with("notes.txt") && found[1].1 == false, "{files}");
            assert_eq!(files_with(&fixture.queue, &user(3)), ["queue.redb"], "the kept one alone");
        },
    );
}

/// Runs the command again and again, each time killed a little later.
fn killed_again_and_again(queue: &Path, words: &str) {
    for round in 0..40 {
        let mut child = command(queue, words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(round * 3));
        child.kill().unwrap();
        child.wait().unwrap();
        // An orderly opening in between: after three owners that died while opening it, the store is replaced and the old
        // one is kept, which `forget` does not change.
        assert_eq!(tool(queue, "dead discard --yes --status 599").code, Some(0));
    }
}

#[test]
fn forget_killed_at_any_moment_loses_no_other_event() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let gone = user(3);
            // A kill between two commands leaves a part of the work; so does each id at another moment.
            let words = format!("forget --yes --json --distinct-id {gone}");
            for copy in 0..3 {
                let (queue, _) = copy_of(fixture, &format!("copy-{copy}"));
                killed_again_and_again(&queue, &words);
                let line = tool(&queue, "verify --json").one();
                let waiting = number(&line, "waiting_events");
                assert!(line["is_sound"] == true && [WAITING, WAITING - 300].contains(&waiting), "{line}");
                let ended = tool(&queue, &words);
                assert_eq!(ended.code, Some(0), "{ended:?}");
                assert_eq!(files_with(&queue, &gone), [""; 0]);
                let line = tool(&queue, "verify --json").one();
                assert_eq!((number(&line, "waiting_events"), number(&line, "dead_letters")), (WAITING - 300, DEAD - 1));
            }
        },
    );
}

#[test]
fn dead_letters_are_grouped_retried_and_discarded() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let before = bytes_of(&fixture.queue);
            let list = tool(&fixture.queue, "dead list --json");
            assert_eq!(list.code, Some(1), "{list:?}");
            let group = list.one();
            let status = number(&group, "status");
            assert_eq!((group["reason"].as_str(), number(&group, "events")), (Some("a mistake"), DEAD), "{group}");
            assert_eq!(group["by_event"]["bad"], DEAD);
            assert!(group["first_rejected_at"].as_f64() <= group["last_rejected_at"].as_f64(), "{group}");
            for words in ["dead list --status 413", "dead list --event good", "dead list --reason other"] {
                assert_eq!(tool(&fixture.queue, words).code, Some(0), "{words}");
            }
            let refused = tool(&fixture.queue, "dead discard");
            assert_eq!((refused.code, refused.err.contains("--yes")), (Some(2), true), "{refused:?}");
            assert!(before == bytes_of(&fixture.queue), "nothing was written");

            let (copy, _) = copy_of(fixture, "copy");
            let discarded = tool(&copy, &format!("dead discard --yes --json --status {status}"));
            assert_eq!((discarded.code, number(&discarded.one(), "events")), (Some(0), DEAD), "{discarded:?}");
            let line = tool(&copy, "verify --json").one();
            assert_eq!((number(&line, "waiting_events"), number(&line, "dead_letters")), (WAITING, 0), "{line}");

            let none = tool(&fixture.queue, "dead retry --json --event good").one();
            assert_eq!(number(&none, "events"), 0);
            let retried = tool(&fixture.queue, "dead retry --json --event bad");
            assert_eq!((retried.code, number(&retried.one(), "events")), (Some(0), DEAD), "{retried:?}");
            let line = tool(&fixture.queue, "verify --json").one();
            assert_eq!((number(&line, "waiting_events"), number(&line, "dead_letters")), (WAITING + DEAD, 0), "{line}");
            let client = delivering(fixture);
            eventually("all are delivered", || fixture.sink.unique().len() as u64 == WAITING + DEAD);
            assert_eq!((client.stats().imbalance(), fixture.sink.duplicates()), (0, 0));
        },
    );
}

/// Runs the command on copies of the queue, each time killed in a later part of it, and passes on what `verify` finds.
fn killed_in_each_part(fixture: &Fixture, words: &str, judge: &dyn Fn(&Value)) {
    let (queue, _) = copy_of(fixture, "copy");
    let began = Instant::now();
    assert_eq!(tool(&queue, words).code, Some(0));
    // How long it takes decides only how many of the kills hit something.
    let takes = began.elapsed();
    for round in 0..24 {
        let (queue, _) = copy_of(fixture, "copy");
        let mut child = command(&queue, words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(takes * round / 24);
        child.kill().unwrap();
        child.wait().unwrap();
        judge(&tool(&queue, "verify --json").one());
    }
}

#[test]
fn retry_killed_at_any_moment_loses_no_dead_letter() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            killed_in_each_part(fixture, "dead retry", &|line| {
                let there = number(line, "waiting_events") + number(line, "dead_letters");
                assert!(line["is_sound"] == true && there >= WAITING + DEAD, "{line}");
            });
            assert_eq!(tool(&fixture.queue, "dead retry").code, Some(0));
            let line = tool(&fixture.queue, "verify --json").one();
            assert_eq!((&line["is_sound"], number(&line, "dead_letters")), (&true.into(), 0), "{line}");
            assert!(number(&line, "waiting_events") >= WAITING + DEAD, "{line}");
            let client = delivering(fixture);
            // Some may be sent twice, under the same uuid.
            eventually("each is delivered", || {
                let _ = client.flush().wait(PATIENCE);
                fixture.sink.unique().len() as u64 == WAITING + DEAD
            });
        },
    );
}

#[test]
fn discard_killed_at_any_moment_loses_no_waiting_event() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            killed_in_each_part(fixture, "dead discard --yes", &|line| {
                let dead = number(line, "dead_letters");
                assert!(line["is_sound"] == true && [0, DEAD].contains(&dead), "{line}");
                assert_eq!(number(line, "waiting_events"), WAITING, "{line}");
            });
        },
    );
}

#[test]
fn a_drain_to_another_project_says_that_dead_letters_stay() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            fixture.sink.default_answer(Answer::ok());
            let words = format!("drain --yes --host {} --key phc_other", fixture.host);
            // The second time there is nothing else.
            for round in 0..2 {
                let ran = tool(&fixture.queue, &format!("{words} --json"));
                let old = &ran.json()[0];
                assert_eq!((ran.code, number(old, "dead_letters")), (Some(1), DEAD), "round {round}: {ran:?}");
                assert_eq!(old["ended"], "left", "{old}");
            }
            assert_eq!(fixture.sink.unique().len() as u64, WAITING);
            let text = tool(&fixture.queue, &words).out;
            assert!(text.contains("12 dead letters left") && text.contains("posthog-queue dead list /"), "{text}");
            assert_eq!(tool(&fixture.queue, "dead discard --yes").code, Some(0));
            assert_eq!(tool(&fixture.queue, &words).code, Some(0));
        },
    );
}

#[test]
fn an_unfinished_import_is_shown_and_a_person_in_it_forgotten() {
    let fixture = Fixture::new();
    let file = fixture.folder().join("events.jsonl");
    let events = |count| -> String {
        (0..count).map(|n| format!("{{\"event\":\"tick\",\"distinct_id\":\"{}\"}}\n", user(n))).collect()
    };
    fs::write(&file, events(20) + "no event\n").unwrap();
    let import = format!("import {} --host {} --key {KEY}", file.display(), fixture.host);
    assert_eq!(tool(&fixture.queue, &import).code, Some(2));

    let status = tool(&fixture.queue, "status --json --no-rates");
    let line = status.one();
    assert_eq!(
        (status.code, &line["is_import"], number(&line, "queued_events")),
        (Some(1), &true.into(), 20),
        "{line}"
    );
    assert_eq!(line["verdict"]["findings"][0]["cause"], "unfinished_import", "{line}");
    let text = tool(&fixture.queue, "status --no-rates").out;
    assert!(text.contains("importing stuck: unfinished import") && text.contains("-> repeat the same"), "{text}");
    let line = tool(&fixture.queue, "verify --json").one();
    assert_eq!((&line["is_sound"], number(&line, "waiting_events")), (&true.into(), 20), "{line}");
    assert!(line["notes"].to_string().contains("repeat the same import"), "{line}");
    let drained = tool(&fixture.queue, "drain --json");
    assert_eq!(drained.code, Some(1), "{drained:?}");
    assert!(drained.one()["unfinished_imports"][0].as_str().unwrap().ends_with("/importing"), "{drained:?}");

    let gone = user(3);
    assert!(!files_with(&fixture.queue, &gone).is_empty());
    let words = format!("forget --json --yes --distinct-id {gone}");
    let ran = tool(&fixture.queue, &words);
    assert_eq!((ran.code, number(&ran.one(), "events")), (Some(0), 2), "{ran:?}");
    assert_eq!(files_with(&fixture.queue, &gone), [""; 0]);
    assert!(tool(&fixture.queue, &words.replace(" --json", "")).out.contains("its file brings the person back"));

    fs::write(&file, events(20)).unwrap();
    let again = tool(&fixture.queue, &format!("{import} --json"));
    assert_eq!((again.code, number(&again.one(), "events")), (Some(0), 20), "{again:?}");
    assert_eq!(tool(&fixture.queue, "status --no-rates").code, Some(0));
}

#[test]
fn dead_letters_of_a_queue_in_use_are_listed() {
    let fixture = Fixture::new();
    fixture.sink.default_answer(Answer::results(["drop:a mistake"]));
    let client = Client::new(quiet(&fixture)).unwrap();
    let uuid: Uuid = accepted(&client.capture(Event::new("bad", user(1))));
    let _flushed = client.flush();
    eventually("it is a dead letter", || client.dead_letters(9).len() == 1);
    let group = tool(&fixture.queue, "dead list --json").one();
    assert_eq!((number(&group, "events"), group["example_uuid"].as_str()), (1, Some(&*uuid.to_string())), "{group}");
}

#[test]
fn a_damaged_dead_letter_is_found_by_every_command() {
    apart_to_death(
        refusing,
        |place| {
            work_and_die(place);
        },
        |fixture| {
            let damaged = |name: &str| {
                let (queue, shard) = copy_of(fixture, name);
                // The journal is moved into the store first, so that no command writes the row anew.
                assert_eq!(tool(&queue, "repair --force").code, Some(0));
                let store = shard.join("queue.redb");
                let bytes = fs::read(&store).unwrap();
                flip(&store, bytes.windows(9).rposition(|window| window == b"a mistake").unwrap() as u64);
                queue
            };
            let queue = damaged("read");
            let line = tool(&queue, "verify --json").one();
            assert_eq!((&line["dead_letters"], &line["lost_events"]), (&(DEAD - 1).into(), &1.into()), "{line}");
            let listed = tool(&queue, "dead list");
            assert!(listed.code == Some(1) && listed.err.contains("is damaged (1 event lost)"), "{listed:?}");
            let dry = tool(&queue, "forget --dry-run --json --distinct-id nobody");
            assert_eq!((dry.code, &dry.one()["unreadable_events"]), (Some(1), &1.into()), "{dry:?}");
            for action in ["retry", "discard --yes"] {
                let ran = tool(&damaged("changed"), &format!("dead {action} --json"));
                let line = ran.one();
                assert_eq!((&line["events"], &line["left"]), (&(DEAD - 1).into(), &1.into()), "{ran:?}");
                assert_eq!(ran.code, Some(1), "{ran:?}");
            }
            // Of all dead letters only the damaged one is left.
            let queue = fixture.folder().join("changed");
            fixture.sink.default_answer(Answer::ok());
            let drained = tool(&queue, "drain --json");
            assert_eq!((drained.code, &drained.one()["dead_letters"]), (Some(1), &1.into()), "{drained:?}");
            let forgotten = tool(&damaged("forgotten"), "forget --yes --json --distinct-id nobody");
            assert_eq!((forgotten.code, &forgotten.one()["unreadable_events"]), (Some(1), &1.into()), "{forgotten:?}");
            let queue = damaged("repaired");
            let repaired = tool(&queue, "repair --json");
            let line = repaired.one();
            assert_eq!((&line["dead_letters"], &line["lost_events"]), (&(DEAD - 1).into(), &1.into()), "{line}");
            assert_eq!((repaired.code, tool(&queue, "verify").code), (Some(1), Some(0)), "{repaired:?}");
        },
    );
}
