//! Queue directories that are missing, inaccessible, foreign, shared, orphaned, or of a newer format.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use posthog::diagnostics::Diagnostic;
use posthog::reports::PersistError;
use posthog::stats::{OrphanedQueues, StorageMode};
use posthog::{Client, Config, Error};

use crate::apart::{Terms, apart, apart_on};
use crate::fixture::{Fixture, KEY, PATIENCE, assert_balanced, close_empty, event, eventually, take};
use crate::process::forked;

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_missing_directory_is_made_and_closed_to_others() {
    let fixture = Fixture::new();
    let deep = fixture.folder().join("a/b/c");
    let client = Client::new(fixture.config().queue_dir(&deep)).unwrap();
    take(&client, "tick");
    close_empty(&client);
    let shard = client.stats().dir.unwrap();
    assert!(shard.starts_with(&deep));
    assert_eq!((mode_of(&deep), mode_of(&shard)), (0o700, 0o700));
    let mut files: Vec<_> = fs::read_dir(&shard).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| mode_of(file) != 0o600);
    assert!(files.is_empty(), "{files:?}");
}

/// Opening fails with the name of the directory, or works in memory with `memory_fallback`.
pub(crate) fn is_unusable(config: impl Fn() -> Config) {
    let error = Client::new(config()).map(drop).unwrap_err();
    assert!(matches!(error, Error::QueueDir { .. }), "{error:?}");
    assert!(error.to_string().contains("queue_dir"), "{error}");
    must_not_repeat_itself(&error);
    let client = Client::new(config().memory_fallback(true)).unwrap();
    assert!(matches!(client.stats().storage, StorageMode::Volatile { .. }), "{:?}", client.stats());
    let diagnostics = client.diagnostics();
    assert!(diagnostics.iter().any(|diagnostic| matches!(diagnostic, Diagnostic::InMemory { .. })), "{diagnostics:?}");
    let receipt = client.capture(event("volatile"));
    assert!(receipt.is_accepted());
    assert_eq!(receipt.persisted().wait(PATIENCE), Err(PersistError::Volatile));
    let report = client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    assert_eq!((report.remaining, report.persisted), (0, false), "{report:?}");
}

/// The chain of an error contains the path once and the cause once.
fn must_not_repeat_itself(error: &Error) {
    let texts: Vec<_> = std::iter::successors(Some(error as &dyn std::error::Error), |link| link.source())
        .map(|link| link.to_string())
        .collect();
    for (at, text) in texts.iter().enumerate() {
        assert!(texts[..at].iter().all(|above| !above.contains(text)), "{texts:?}");
        assert!(at == 0 || !text.contains('/'), "a path again: {texts:?}");
    }
}

#[test]
fn a_path_that_is_not_a_directory_is_named_in_the_error() {
    let fixture = Fixture::new();
    for place in ["/dev/null", "/dev/null/below"] {
        let error = Client::new(fixture.config().queue_dir(place)).map(drop).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(place) && text.contains("not a directory") && text.contains("choose"), "{text}");
        must_not_repeat_itself(&error);
    }
}

#[test]
fn a_path_that_is_a_file_or_below_one_is_unusable() {
    let fixture = Fixture::new();
    let file = fixture.folder().join("file");
    fs::write(&file, "not a directory").unwrap();
    is_unusable(|| fixture.config().queue_dir(&file));
    is_unusable(|| fixture.config().queue_dir(file.join("below")));
    assert_eq!(fs::read_to_string(&file).unwrap(), "not a directory");
    assert_eq!(fixture.names(), ["volatile", "volatile"]);
}

#[test]
fn a_directory_that_may_not_be_written_is_unusable() {
    apart_on(
        || {
            let fixture = Fixture::new();
            set_mode(fixture.folder(), 0o755);
            fs::create_dir(&fixture.queue).unwrap();
            set_mode(&fixture.queue, 0o555);
            fixture
        },
        |_| Terms::default().run_as_nobody(),
        |place| is_unusable(|| place.config()),
        |fixture| {
            assert_eq!(fs::read_dir(&fixture.queue).unwrap().count(), 0);
            assert_eq!(fixture.names(), ["volatile"]);
        },
    );
}

#[test]
fn a_queue_of_another_user_is_unusable_and_left_alone() {
    apart_on(
        || {
            let fixture = Fixture::new();
            let client = fixture.client();
            take(&client, "theirs");
            close_empty(&client);
            for path in [fixture.folder(), &fixture.queue] {
                set_mode(path, 0o755);
            }
            fixture
        },
        |_| Terms::default().run_as_nobody(),
        |place| {
            // Without root, the other user is the same user.
            if nix::unistd::geteuid().as_raw() == crate::apart::NOBODY {
                is_unusable(|| place.config());
            }
        },
        |fixture| {
            let client = fixture.client();
            assert_eq!(client.stats().accepted, 1);
            assert_balanced(&client);
        },
    );
}

#[test]
fn two_clients_of_one_process_have_a_shard_each() {
    let fixture = Fixture::new();
    let (one, two) = (fixture.client(), fixture.client());
    assert_ne!(one.stats().dir, two.stats().dir);
    let uuids: Vec<_> = (0..200).map(|n| take(if n % 2 == 0 { &one } else { &two }, "tick")).collect();
    close_empty(&one);
    close_empty(&two);
    fixture.must_have_taken(&uuids);
    assert_eq!((one.stats().accepted, two.stats().accepted), (100, 100));
}

#[test]
fn two_processes_in_one_directory_have_a_shard_each() {
    apart(
        |place| {
            let client = place.client();
            take(&client, "first");
            let second = forked(|| {
                // A new client, not the inherited one.
                let client = place.client();
                take(&client, "second");
                assert!(client.stats().dir.unwrap().ends_with("shard-1"));
                close_empty(&client);
            });
            second.must_end_well();
            assert!(client.stats().dir.unwrap().ends_with("shard-0"));
            close_empty(&client);
            drop(client);
            let client = place.client();
            assert!(client.stats().dir.unwrap().ends_with("shard-0"));
            assert_eq!(client.stats().accepted, 1);
        },
        |fixture| assert_eq!(fixture.names(), ["first", "second"]),
    );
}

#[test]
fn orphaned_shards_are_adopted_one_after_the_other() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let clients: Vec<_> = (0..4).map(|_| fixture.client()).collect();
    let mut uuids = Vec::new();
    for client in &clients {
        uuids.extend((0..30).map(|_| take(client, "orphan")));
    }
    for client in clients {
        client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    }
    assert_eq!(fixture.shards().len(), 4);
    fixture.sink.resume();
    let client = fixture.client();
    fixture.must_have_taken(&uuids);
    eventually("the last orphan is let go", || client.stats().adopted_events == 0);
    close_empty(&client);
    drop(client);
    // Nothing is left. One client may hold the shard of another at the moment, which then creates one more.
    let again: Vec<_> = (0..4).map(|_| fixture.client()).collect();
    for client in &again {
        let stats = client.stats();
        assert_eq!((stats.queued_events, stats.delivered), (0, stats.accepted), "{stats:?}");
        assert_balanced(client);
    }
}

#[test]
fn the_queue_of_an_old_key_is_reported_and_can_be_adopted() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let old = fixture.client();
    let mut uuids: Vec<_> = (0..25).map(|_| take(&old, "old")).collect();
    old.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    drop(old);
    fixture.sink.resume();
    let new = || Config::new("phc_new").host(&fixture.host).queue_dir(&fixture.queue).no_proxy().min_free_space(0);
    let client = Client::new(new()).unwrap();
    let stranded = client.stats().orphaned;
    assert_eq!((stranded.queues, stranded.events), (1, 25));
    let diagnostics = client.diagnostics();
    let stranded =
        |found: &Diagnostic| matches!(found, Diagnostic::OrphanedQueue { events: 25, bytes, .. } if *bytes > 0);
    let text = diagnostics
        .iter()
        .find(|diagnostic| stranded(diagnostic))
        .unwrap_or_else(|| panic!("{diagnostics:?}"))
        .to_string();
    for part in [
        "25 events (",
        ") of the key phc_outs... at ",
        &fixture.host,
        "adopt_queue",
        "remove ",
        fixture.queue.to_str().unwrap(),
    ] {
        assert!(text.contains(part), "{text}");
    }
    take(&client, "new");
    close_empty(&client);
    assert_eq!(fixture.names(), ["new"]);
    drop(client);
    let client = Client::new(new().adopt_queue(KEY, &fixture.host).flush_interval(Duration::from_millis(20))).unwrap();
    assert_eq!(client.stats().orphaned, OrphanedQueues::default());
    uuids.extend(fixture.sink.events().iter().map(|event| event.uuid));
    uuids.push(take(&client, "trigger"));
    fixture.must_have_taken(&uuids);
    // Under the new key.
    assert!(fixture.sink.inspect(|state| state.requests().iter().all(|request| request.api_key == "phc_new")));
    close_empty(&client);
    drop(client);
    assert_eq!(Client::new(new()).unwrap().stats().orphaned, OrphanedQueues::default());
}

#[test]
fn the_queue_of_a_living_client_of_another_key_is_not_orphaned() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let (left, living) = (fixture.client(), fixture.client());
    for client in [&left, &living] {
        for _ in 0..25 {
            take(client, "other");
        }
        let _ = client.flush().wait(PATIENCE);
    }
    // A running process delivers what this one leaves.
    left.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    let client = Client::new(fixture.config_for("phc_new")).unwrap();
    let stranded = |client: &Client| (client.stats().orphaned.queues, client.stats().orphaned.events);
    assert_eq!(stranded(&client), (0, 0), "{:?}", client.diagnostics());
    living.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    drop(client);
    assert_eq!(stranded(&Client::new(fixture.config_for("phc_new")).unwrap()), (1, 50));
}

/// All files of a shard except its lock.
fn contents(shard: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(shard)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != "lock")
        .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// A client of the older version uses another shard, and the newer version finds its own unchanged.
fn is_stepped_over(file: &str, newer: impl FnOnce(&mut [u8])) {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = fixture.client();
    let first = take(&client, "tick");
    client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    let shard = client.stats().dir.unwrap();
    drop(client);
    let present = fs::read(shard.join(file)).unwrap();
    let mut bytes = present.clone();
    newer(&mut bytes);
    fs::write(shard.join(file), &bytes).unwrap();
    let before = contents(&shard);
    fixture.sink.resume();
    let client = fixture.client();
    let diagnostics = client.diagnostics();
    assert!(
        diagnostics
            .iter()
            .any(|diagnostic| matches!(diagnostic, Diagnostic::QueueSkipped { path, .. } if *path == shard)),
        "{diagnostics:?}"
    );
    let second = take(&client, "tock");
    close_empty(&client);
    drop(client);
    fixture.must_have_taken(&[second]);
    let after = contents(&shard);
    if file == "status" {
        assert!(after == before, "a file was touched");
    } else {
        let of = |files: &[(std::ffi::OsString, Vec<u8>)]| {
            files.iter().filter(|(name, _)| name != "status").cloned().collect::<Vec<_>>()
        };
        assert!(of(&after) == of(&before), "a file was touched");
    }
    fs::write(shard.join(file), &present).unwrap();
    let client = fixture.client();
    close_empty(&client);
    fixture.must_have_taken(&[first, second]);
}

#[test]
fn a_bad_event_in_one_orphan_does_not_delay_another() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let living = fixture.client();
    let (stuck, good) = (fixture.client(), fixture.client());
    take(&stuck, "giant");
    for _ in 0..10 {
        take(&good, "good");
    }
    for orphan in [stuck, good] {
        orphan.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    }
    // Not a response of PostHog itself: the event is kept, because something else may be at fault.
    fixture.sink.refuse_if(|event| event["event"] == "giant", 413, "<html>nginx</html>");
    fixture.sink.resume();
    eventually("the second orphan is delivered", || {
        take(&living, "mine");
        let _ = living.flush().wait(PATIENCE);
        fixture.names().iter().filter(|name| *name == "good").count() == 10
    });
    assert_eq!(fixture.sink.inspect(sink::State::duplicates), 0);
}

#[test]
fn a_shard_of_a_newer_format_is_skipped_and_not_changed() {
    // Both fields of the version (docs/format.md).
    is_stepped_over("status", |page| {
        page[8..16].copy_from_slice(&200_u64.to_le_bytes());
        page[168..176].copy_from_slice(&(!200_u64).to_le_bytes());
    });
}

#[test]
fn a_journal_of_a_newer_format_is_left_untouched() {
    is_stepped_over("journal-0", |journal| {
        // The version, and the checksum over the bytes before it (docs/format.md).
        journal[8] = 200;
        let check = xxhash_rust::xxh3::xxh3_64(&journal[..48]);
        journal[48..56].copy_from_slice(&check.to_le_bytes());
    });
}

#[test]
fn a_foreign_file_in_place_of_the_store_is_moved_and_kept() {
    let fixture = Fixture::new();
    let client = fixture.client();
    take(&client, "tick");
    close_empty(&client);
    let shard = client.stats().dir.unwrap();
    drop(client);
    let poem = "so much depends upon a red wheel barrow ".repeat(500);
    fs::write(shard.join("queue.redb"), &poem).unwrap();
    let client = fixture.client();
    let diagnostics = client.diagnostics();
    let aside = diagnostics.iter().find_map(|diagnostic| match diagnostic {
        Diagnostic::QueueSalvaged { path, .. } => Some(path.clone()),
        _ => None,
    });
    let aside = aside.unwrap_or_else(|| panic!("{diagnostics:?}"));
    assert_eq!(fs::read_to_string(&aside).unwrap(), poem);
    take(&client, "tock");
    close_empty(&client);
    assert_eq!((fixture.names(), client.stats().imbalance()), (vec!["tick".to_owned(), "tock".to_owned()], 0));
}
