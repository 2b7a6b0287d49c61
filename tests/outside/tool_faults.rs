//! `posthog-queue` where a status page is damaged, a store is missing or cannot be opened, or something else is in the
//! place of a directory: nothing is believed blindly, each thing is named, and no command stops because of it.

use std::fs;

use sink::Answer;

use crate::apart::apart_to_death;
use crate::fixture::{Fixture, KEY};
use crate::tool_fix::{capture_and_die, copy_of, ends, make_pipe, refusing, tool};

#[test]
fn no_byte_of_the_page_keeps_a_drain_from_its_end() {
    apart_to_death(
        refusing,
        |place| {
            capture_and_die(place, 40);
        },
        |fixture| {
            fixture.sink.default_answer(Answer::ok());
            let (first, mut shards) = (fixture.shards()[0].clone(), 1);
            let mut another = |page: &[u8]| {
                let shard = first.with_file_name(format!("shard-{shards}"));
                fs::create_dir(&shard).unwrap();
                for name in ["journal-0", "journal-1", "queue.redb"].iter().filter(|name| first.join(name).exists()) {
                    fs::copy(first.join(name), shard.join(name)).unwrap();
                }
                fs::write(shard.join("status"), page).unwrap();
                shards += 1;
            };
            let whole = fs::read(first.join("status")).unwrap();
            for (word, byte) in [(7, 0), (8, 0), (9, 0), (10, 5), (11, 0), (11, 1), (12, 0), (17, 0), (19, 0), (47, 3)]
            {
                let mut page = whole.clone();
                page[word * 8 + byte] ^= 0x80;
                another(&page);
            }
            // Of a queue that was closed with nothing in it.
            let empty = Fixture::new();
            let client = empty.client();
            crate::fixture::close_empty(&client);
            another(&fs::read(empty.shards()[0].join("status")).unwrap());
            let ran = ends(&fixture.queue, "drain --json");
            let line = ran.one();
            let progress = &line["progress"];
            assert_eq!(
                (ran.code, &line["ended"], &progress["lost_events"]),
                (Some(0), &"empty".into(), &0.into()),
                "{ran:?}"
            );
            assert_eq!((shards, &progress["delivered"]), (12, &(12 * 40).into()), "{ran:?}");
            assert_eq!(fixture.sink.unique().len(), 40);
        },
    );
}

#[test]
fn a_queue_without_its_store_is_delivered_once_it_is_named() {
    apart_to_death(
        refusing,
        |place| {
            capture_and_die(place, 40);
        },
        |fixture| {
            fixture.sink.default_answer(Answer::ok());
            let shard = fixture.shards()[0].clone();
            fs::remove_file(shard.join("queue.redb")).unwrap();
            let verify = tool(&fixture.queue, "verify --json");
            let line = verify.one();
            assert_eq!(
                (verify.code, &line["needs_project"], &line["waiting_events"]),
                (Some(1), &true.into(), &40.into())
            );
            let helps = format!("posthog-queue repair --host URL --key KEY {}\n", shard.display());
            assert!(tool(&fixture.queue, "verify").out.contains(&helps));
            let status = tool(&fixture.queue, "status --json --no-rates").one();
            assert_eq!(
                (&status["verdict"]["state"], &status["queued_events"]),
                (&"damaged".into(), &40.into()),
                "{status}"
            );
            for words in ["repair", "drain", "dead retry", "forget --yes --distinct-id nobody"] {
                let ran = ends(&fixture.queue, words);
                assert!(ran.code == Some(2) && ran.err.contains(&helps), "{words}: {ran:?}");
            }
            let named = |key: &str| format!("--host {} --key {key}", fixture.host);
            let (copy, _) = copy_of(fixture, "copy");
            let wrong = tool(&copy, &format!("repair {}", named("phc_wrong")));
            assert!(wrong.code == Some(2) && wrong.err.contains("nothing was changed"), "{wrong:?}");
            let repaired = tool(&copy, &format!("repair --json {}", named(KEY)));
            assert_eq!((repaired.code, &repaired.one()["saved_events"]), (Some(0), &40.into()), "{repaired:?}");
            let drained = ends(&fixture.queue, &format!("drain {}", named(KEY)));
            assert_eq!((drained.code, fixture.sink.unique().len()), (Some(0), 40), "{drained:?}");
        },
    );
}

#[test]
fn a_store_that_cannot_be_opened_is_named_by_every_reader() {
    apart_to_death(
        refusing,
        |place| {
            capture_and_die(place, 40);
        },
        |fixture| {
            let store = fixture.shards()[0].join("queue.redb");
            let unread = "what a search does not find of it is lost";
            let never: [(&str, Vec<u8>); 2] = [("text", b"no store".to_vec()), ("zeros", vec![0; 8192])];
            for (what, bytes) in never {
                fs::write(&store, bytes).unwrap();
                for words in ["verify --json", "list", "export -", "dead list"] {
                    let ran = tool(&fixture.queue, words);
                    let said = format!("{}{}", ran.out, ran.err).split_whitespace().collect::<Vec<_>>().join(" ");
                    assert!(said.contains(unread) && said.contains("queue.redb"), "{what}, {words}: {ran:?}");
                    assert!(!said.contains("header"), "{what}, {words}: {ran:?}");
                    assert_eq!(ran.code, Some(1), "{what}, {words}: {ran:?}");
                }
            }
        },
    );
}

#[test]
fn what_is_no_directory_of_a_queue_stops_no_command() {
    apart_to_death(
        refusing,
        |place| {
            capture_and_die(place, 40);
        },
        |fixture| {
            fixture.sink.default_answer(Answer::ok());
            let shard = fixture.shards()[0].clone();
            let beside = |name: &str| shard.with_file_name(name);
            fs::write(beside("shard-1"), "a file").unwrap();
            make_pipe(&beside("shard-2"));
            std::os::unix::fs::symlink("nowhere", beside("shard-3")).unwrap();
            std::os::unix::fs::symlink("shard-0", beside("shard-4")).unwrap();
            let _socket = std::os::unix::net::UnixListener::bind(beside("shard-5")).unwrap();
            fs::write(beside("ai"), "a file").unwrap();
            fs::write(beside("importing"), "a file").unwrap();
            fs::create_dir(shard.join("queue.redb.ready")).unwrap();
            let verify = ends(&fixture.queue, "verify --json");
            let line = verify.one();
            let problems = line["problems"].as_array().unwrap();
            let of = |name: &str| {
                let found: Vec<_> = problems.iter().filter(|of| of["path"].as_str().unwrap().ends_with(name)).collect();
                let [problem] = found[..] else { panic!("{name}: {line}") };
                assert_eq!(problem["kind"], "permissions", "{name}: {line}");
                problem["what"].as_str().unwrap().to_owned()
            };
            assert_eq!(verify.code, Some(1), "{verify:?}");
            for (name, what) in [
                ("/shard-1", "it is a regular file, not a directory"),
                ("/shard-2", "it is a pipe, not a directory"),
                ("/shard-3", "it is a symbolic link, not a directory"),
                ("/shard-5", "it is a socket, not a directory"),
                ("/ai", "it is a regular file, not a directory"),
                ("/importing", "it is a regular file, not a directory"),
                ("/queue.redb.ready", "it is a directory, not a regular file"),
            ] {
                assert!(of(name).starts_with(what), "{name}: {line}");
            }
            assert_eq!((problems.len(), &line["waiting_events"]), (7, &40.into()), "{line}");
            for words in ["status --no-rates", "metrics", "crash list", "list --limit 0", "dead list", "repair"] {
                let ran = ends(&fixture.queue, words);
                // What is left in the queue's own directory can be seen to by `repair`.
                let expected = if words == "repair" { 1 } else { 0 };
                assert_eq!((ran.code, ran.err.as_str()), (Some(expected), ""), "{words}: {ran:?}");
            }
            fs::remove_dir(shard.join("queue.redb.ready")).unwrap();
            for words in ["dead retry", "forget --yes --distinct-id nobody", "drain"] {
                let ran = ends(&fixture.queue, words);
                assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{words}: {ran:?}");
            }
            assert_eq!(fixture.sink.unique().len(), 40);
        },
    );
}
