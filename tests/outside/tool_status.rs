//! `posthog-queue status` and `posthog-queue metrics`, on queues of living and of killed processes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use posthog::{Client, Event};
use serde_json::Value;
use sink::Answer;

use crate::apart::{NOBODY, apart, apart_to_death};
use crate::deployment::copy_dir;
use crate::fixture::{Fixture, PATIENCE, Place, eventually, take, tool_for_everybody};

const TOOL: &str = env!("CARGO_BIN_EXE_posthog-queue");

/// What a command printed, and its exit status.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    error: String,
}

fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
}

fn tool(args: &[&str], dir: &Path) -> Ran {
    ran(sink::command(TOOL).args(args).arg(dir))
}

/// The status of the only queue below `dir`, and the exit status.
fn status(dir: &Path) -> (Value, Option<i32>) {
    let ran = tool(&["status", "--json", "--no-rates"], dir);
    let mut lines = ran.out.lines();
    let line = lines.next().unwrap_or_else(|| panic!("{ran:?}"));
    assert_eq!(lines.next(), None, "one queue is one line");
    (serde_json::from_str(line).unwrap(), ran.code)
}

fn state(status: &Value) -> (&str, &str) {
    let verdict = &status["verdict"];
    (verdict["state"].as_str().unwrap(), verdict["findings"][0]["cause"].as_str().unwrap_or(""))
}

/// Every file below a directory with its bytes and its time of modification.
fn content(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(content(&path));
        } else {
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            found.insert(path.clone(), (fs::read(path).unwrap(), modified));
        }
    }
    found
}

/// A queue of a process that was killed in an outage. `part` is [`capture_and_die`], in a closure of the test.
fn killed<P: FnOnce(&Place), J: FnOnce(&Fixture)>(part: P, judge: J) {
    let set = || {
        let fixture = Fixture::new();
        fixture.sink.stop();
        fixture
    };
    apart_to_death(set, part, judge);
}

/// Leaves so many events in the store, and so many in the journal.
fn capture_and_die(place: &Place, stored: usize, journaled: usize) {
    // In the journal until a flush.
    let client = Client::new(place.config().flush_interval(PATIENCE * 60).flush_at(1000)).unwrap();
    (0..stored).for_each(|_| _ = take(&client, "stored"));
    client.flush().wait(PATIENCE).unwrap();
    // The flush is answered a moment before the page says how it went.
    eventually("the outage is on the page", || status(&place.queue).0["delivery"]["last_error"].is_string());
    (0..journaled).for_each(|_| _ = take(&client, "journaled"));
    kill(Pid::this(), Signal::SIGKILL).unwrap();
}

#[test]
fn a_living_owner_says_how_delivery_is() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = fixture.client();
    (0..3).for_each(|_| _ = take(&client, "waits"));
    let mut failing = Value::Null;
    eventually("the outage is on the page", || {
        failing = status(&fixture.queue).0;
        failing["delivery"]["last_error"].is_string()
    });
    assert_eq!(state(&failing), ("waiting", "endpoint_failing"), "{failing}");
    assert_eq!(failing["owner"]["pid"], std::process::id());
    assert!(failing["owner"]["program"].as_str().unwrap().starts_with("outside"), "{failing}");
    assert_eq!(failing["owner"]["library_version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((failing["host"].as_str(), failing["key"].as_str()), (Some(fixture.host.as_str()), Some("phc_outs...")));
    assert_eq!((&failing["queued_events"], &failing["accepted"]), (&3.into(), &3.into()));
    let text = tool(&["status"], &fixture.queue);
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.out.starts_with("waiting (endpoint failing): 3 events queued\n"), "{}", text.out);
    // Lines are broken where numbers leave room.
    let words = text.out.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("could not connect") && words.contains(" in a row since "), "{}", text.out);

    fixture.sink.resume();
    let mut well = Value::Null;
    eventually("the success is on the page", || {
        well = status(&fixture.queue).0;
        well["delivered"] == 3 && well["delivery"]["phase"]["name"] == "idle"
    });
    assert_eq!((state(&well), &well["queued_events"]), (("fine", ""), &0.into()), "{well}");
    assert!(well["delivery"]["last_success_timestamp_seconds"].is_f64(), "{well}");
    drop(client);
    eventually("the owner is gone", || status(&fixture.queue).0["owner"].is_null());
    let (closed, code) = status(&fixture.queue);
    assert_eq!((state(&closed), code, &closed["last_run"]["closed"]), (("fine", ""), Some(0), &true.into()));
}

#[test]
fn a_killed_owner_leaves_a_queue_that_waits_for_a_start() {
    killed(
        |place| capture_and_die(place, 3, 7),
        |fixture| {
            let before = content(&fixture.queue);
            let (found, code) = status(&fixture.queue);
            assert_eq!((state(&found), code), (("waiting", "no_owner"), Some(0)), "{found}");
            assert!(found["owner"].is_null() && found["last_run"]["closed"] == false, "{found}");
            assert_eq!((&found["queued_events"], &found["journal_events"]), (&10.into(), &7.into()));
            assert!(found["delivery"]["last_error"].is_string(), "the last words of the process: {found}");
            let text = tool(&["status"], &fixture.queue);
            assert!(text.out.starts_with("waiting (no owner): 10 events queued\n"), "{}", text.out);
            assert!(text.out.contains("-> start the program, or send them with: posthog-queue drain"), "{}", text.out);
            let dir = fixture.queue.to_str().unwrap();
            for line in text.out.lines().filter(|line| !line.contains(dir)) {
                assert!(line.chars().count() <= 80, "{line}");
            }
            let metrics = tool(&["metrics"], &fixture.queue);
            let samples = ["posthog_queue_events{", "posthog_queue_owned{", "posthog_queue_state{"];
            assert!(samples.iter().all(|sample| metrics.out.contains(sample)), "{metrics:?}");
            assert_eq!(content(&fixture.queue), before, "looking changes nothing");
        },
    );
}

#[test]
fn a_rejected_key_is_stuck_and_says_what_to_do() {
    let fixture = Fixture::new();
    fixture.sink.default_answer(Answer::status(401));
    let client = fixture.client();
    take(&client, "refused");
    let mut found = (Value::Null, None);
    eventually("the pause is on the page", || {
        found = status(&fixture.queue);
        found.0["delivery"]["phase"]["name"] == "paused"
    });
    let (found, code) = found;
    assert_eq!((state(&found), code), (("stuck", "paused"), Some(1)), "{found}");
    let what = found["verdict"]["findings"][0]["what"].as_str().unwrap();
    assert!(what.contains("401") && what.contains("check the API key"), "{what}");
}

#[test]
fn a_full_queue_is_dropping_and_counts_what_it_drops() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = Client::new(fixture.config().max_queue_events(5)).unwrap();
    let mut found = (Value::Null, None);
    eventually("the queue is full", || {
        client.capture(Event::new("too many", "user"));
        found = status(&fixture.queue);
        found.0["rejecting"].is_string() && found.0["dropped"]["queue_full"].is_u64()
    });
    let (found, code) = found;
    assert_eq!((state(&found), code), (("dropping", "rejecting"), Some(1)), "{found}");
    assert_eq!(found["rejecting"], "queue_full");
    assert!(tool(&["metrics"], &fixture.queue).out.contains("reason=\"queue_full\"} "), "{found}");
}

#[test]
fn a_stopped_process_is_not_called_fine() {
    apart(
        |place| {
            let client = place.client();
            take(&client, "sent");
            eventually("it is delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
            let script = format!(
                "kill -STOP $PPID; '{TOOL}' status --json --no-rates '{dir}' > '{dir}.json'; kill -CONT $PPID",
                dir = place.queue.display()
            );
            assert!(sink::command("sh").args(["-c", &script]).status().unwrap().success());
        },
        |fixture| {
            let text = fs::read_to_string(fixture.folder().join("queue.json")).unwrap();
            let found: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(state(&found), ("stuck", "stopped"), "{found}");
            let advice = found["verdict"]["findings"][0]["advice"].as_str().unwrap();
            assert!(advice.contains("kill -CONT"), "{advice}");
        },
    );
}

#[test]
fn damage_is_found_before_and_after_the_next_start() {
    killed(
        |place| capture_and_die(place, 3, 7),
        |fixture| {
            let store = fixture.shards()[0].join("queue.redb");
            let len = fs::metadata(&store).unwrap().len() as usize;
            fs::write(&store, vec![0xA5; len]).unwrap();
            let (found, code) = status(&fixture.queue);
            assert_eq!((state(&found), code), (("damaged", "store_unreadable"), Some(1)), "{found}");
            drop(fixture.client());
            eventually("the owner is gone", || status(&fixture.queue).0["owner"].is_null());
            let (found, code) = status(&fixture.queue);
            assert_eq!((state(&found), code), (("damaged", "damaged_files"), Some(1)), "{found}");
            assert!(found["damaged_files"][0]["bytes"].as_u64() > Some(0), "{found}");
            assert_eq!(found["damaged"], 3, "{found}");
        },
    );
}

#[test]
fn a_page_that_is_damaged_is_not_needed() {
    killed(
        |place| capture_and_die(place, 3, 7),
        |fixture| {
            let page = fixture.shards()[0].join("status");
            fs::write(&page, vec![0; 4096]).unwrap();
            let (found, code) = status(&fixture.queue);
            let said = (state(&found), code, &found["queued_events"], &found["journal_events"]);
            assert_eq!(said, (("waiting", "no_owner"), Some(0), &10.into(), &7.into()));
            fs::write(&page, "torn").unwrap();
            assert_eq!(status(&fixture.queue).0["queued_events"], 10);
        },
    );
}

#[test]
fn no_byte_of_the_page_hides_events_that_wait() {
    killed(
        |place| capture_and_die(place, 3, 7),
        |fixture| {
            let [queue] = posthog::inspect::queues(&fixture.queue).unwrap().try_into().unwrap();
            let page = queue.path().join("status");
            let whole = fs::read(&page).unwrap();
            let words = (0..50).chain([64]).chain(128..162).chain([246]);
            for (word, byte, by) in words.flat_map(|word| [(word, 0, 1), (word, 0, 0x80), (word, 1, 0xFF)]) {
                let mut changed = whole.clone();
                changed[word * 8 + byte] ^= by;
                fs::write(&page, changed).unwrap();
                let found = queue.status().unwrap();
                let what = format!("word {word}, byte {byte} ^ {by:#x}: {found:?}");
                assert_eq!((found.queued_events, found.journal_events, found.accepted), (10, 7, 10), "{what}");
                assert!(found.verdict().state != posthog::inspect::QueueState::Fine, "{what}");
                assert!(!queue.is_known_empty() && queue.waiting() == 10, "{what}");
            }
        },
    );
}

#[test]
fn the_damaged_page_of_a_living_owner_is_not_believed() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = fixture.client();
    eventually("the owner says how it is", || status(&fixture.queue).0["described_at_timestamp_seconds"].is_f64());
    // A copy of which this process holds the lock, so that nobody writes it meanwhile.
    let copy = fixture.folder().join("copy");
    let take_copy = || {
        let _ = fs::remove_dir_all(&copy);
        copy_dir(&fixture.queue, &copy);
        let shard = copy.join(fixture.shards()[0].strip_prefix(&fixture.queue).unwrap());
        let lock = fs::File::options().write(true).open(shard.join("lock")).unwrap();
        lock.lock().unwrap();
        (shard, lock)
    };
    let mut copied = take_copy();
    // Words may have been written while they were copied.
    eventually("a copy with whole words", || {
        copied = take_copy();
        state(&status(&copy).0) == ("fine", "")
    });
    let page = copied.0.join("status");
    let words = fs::read(&page).unwrap();
    // Storage is closed, no events have been delivered, and as many were accepted.
    for (word, by) in [(143, 3), (12, 1), (11, 1 << 5)] {
        let mut damaged = words.clone();
        damaged[word * 8] ^= by;
        fs::write(&page, damaged).unwrap();
        let (found, code) = status(&copy);
        assert_eq!((state(&found), code), (("unknown", "page_damaged"), Some(2)), "word {word}: {found}");
    }
    fs::write(&page, words).unwrap();
    assert_eq!(state(&status(&copy).0), ("fine", ""));
    take(&client, "goes on");
}

#[test]
fn a_newer_queue_is_named_and_left_alone() {
    killed(
        |place| capture_and_die(place, 3, 7),
        |fixture| {
            let page = fixture.shards()[0].join("status");
            let mut words = fs::read(&page).unwrap();
            words[8..16].copy_from_slice(&2_u64.to_le_bytes());
            words[21 * 8..22 * 8].copy_from_slice(&(!2_u64).to_le_bytes());
            fs::write(&page, words).unwrap();
            let before = content(&fixture.queue);
            let (found, code) = status(&fixture.queue);
            assert_eq!((state(&found), code), (("unknown", "newer_format"), Some(2)), "{found}");
            assert!(tool(&["metrics"], &fixture.queue).out.contains("state=\"unknown\"} 1"));
            assert_eq!(content(&fixture.queue), before);
        },
    );
}

#[test]
fn a_directory_without_a_queue_is_refused_with_a_reason() {
    let fixture = Fixture::new();
    for (dir, reason) in [(fixture.folder(), "contains no queue"), (&fixture.queue, "No such file")] {
        for command in ["status", "metrics"] {
            let ran = tool(&[command], dir);
            assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{ran:?}");
            assert!(ran.error.contains(reason), "{ran:?}");
        }
    }
}

#[test]
fn another_user_is_told_whose_queue_it_is() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let fixture = Fixture::new();
    let client = fixture.client();
    let ran = ran(sink::command(tool_for_everybody(fixture.folder()))
        .args(["status", "--no-rates"])
        .arg(&fixture.queue)
        .uid(NOBODY)
        .gid(NOBODY));
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.error.contains("run the command as root"), "{ran:?}");
    drop(client);
}

/// A queue with many events. The environment may ask for more, to measure by hand.
fn many() -> u64 {
    std::env::var("POSTHOG_TOOL_EVENTS").ok().and_then(|many| many.parse().ok()).unwrap_or(100_000)
}

#[test]
fn a_big_queue_is_judged_in_bounded_memory() {
    apart_to_death(
        || {
            let fixture = Fixture::new();
            fixture.sink.stop();
            fixture
        },
        |place| {
            let client = Client::new(place.config().journal_bytes(16 << 20)).unwrap();
            for _ in 0..many() {
                while !client.capture(Event::new("one of many", "user").prop("text", "x".repeat(40))).is_accepted() {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
            kill(Pid::this(), Signal::SIGKILL).unwrap();
        },
        |fixture| {
            // All private memory: the limit of the shell is in KiB.
            let script = format!(
                "ulimit -d 65536; '{TOOL}' status --json '{dir}' && '{TOOL}' metrics '{dir}' > /dev/null",
                dir = fixture.queue.display()
            );
            let began = std::time::Instant::now();
            let ran = ran(sink::command("sh").args(["-c", &script]));
            eprintln!("status and metrics of {} events: {:?}", many(), began.elapsed());
            assert_eq!(ran.code, Some(0), "{ran:?}");
            let found: Value = serde_json::from_str(&ran.out).unwrap();
            assert_eq!((&found["queued_events"], state(&found)), (&many().into(), ("waiting", "no_owner")), "{found}");
        },
    );
}

#[test]
fn watching_ends_with_an_interrupt_after_whole_lines() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let mut command = sink::command(TOOL);
    command.args(["status", "--json", "--watch=1"]).arg(&fixture.queue).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let second = (&mut lines).map(Result::unwrap).nth(1).unwrap();
    let second: Value = serde_json::from_str(&second).unwrap();
    assert_eq!(second["accepted_per_second"], 0.0, "{second}");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    for line in lines.map(Result::unwrap) {
        serde_json::from_str::<Value>(&line).unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(client);
}

#[test]
fn metrics_replace_a_file_that_everybody_may_read() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let dir = fixture.folder().join("textfile");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("posthog.prom");
    fs::write(&path, "old").unwrap();
    let write = |path: &Path| tool(&["metrics", "--output", path.to_str().unwrap()], &fixture.queue);
    let ran = write(&path);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{ran:?}");
    let text = fs::read_to_string(&path).unwrap();
    let host = format!("host=\"{}\",lane=\"analytics\",shard=\"0\"}} 1\n", fixture.host);
    assert!(text.contains("\nposthog_queue_owned{project=") && text.contains(&host), "{text}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing unfinished is left");
    let ran = write(&dir.join("none/posthog.prom"));
    assert!(ran.code == Some(2) && ran.error.contains("it was not changed"), "{ran:?}");
    drop(client);
}

#[test]
fn queues_of_two_projects_are_told_apart() {
    let fixture = Fixture::new();
    for key in ["phc_one", "phc_two"] {
        let client = Client::new(fixture.config_for(key)).unwrap();
        crate::fixture::close_empty(&client);
    }
    let text = tool(&["status", "--no-rates"], &fixture.queue).out;
    for shard in fixture.shards() {
        let project = shard.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        assert!(text.contains(&format!("\n{}/shard-0\n", &project[..8])), "{text}");
    }
}
