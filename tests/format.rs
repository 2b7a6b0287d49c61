//! The format on disk. The present code reads a golden queue of each version, and what it writes agrees with
//! `docs/format.md`, which a second reader, written from the document, checks.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

#[path = "format/fixture.rs"]
mod fixture;
#[path = "format/reader.rs"]
mod reader;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use fixture::{API_KEY, HOST, IN_JOURNAL, REASON, REFUSED, STORED};
use posthog::stats::StorageMode;
use reader::{Arena, Record};
use serde_json::json;
use sha2::{Digest, Sha256};
use sink::Sink;

const PATIENCE: Duration = Duration::from_secs(20);

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-v1")
}

fn unpacked() -> tempfile::TempDir {
    let queue = tempfile::tempdir().unwrap();
    fixture::unpack(&golden(), queue.path());
    queue
}

fn project_hash() -> Vec<u8> {
    Sha256::digest(format!("{HOST}\n{API_KEY}")).to_vec()
}

fn shard(queue: &Path) -> PathBuf {
    let project: String = project_hash().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    queue.join(project).join("shard-0")
}

fn assert_is(record: &Record, number: u64) {
    let time = fixture::time(number).duration_since(UNIX_EPOCH).unwrap();
    assert_eq!((record.seq, record.class, record.uuid), (number, fixture::class(number), fixture::uuid(number)));
    assert_eq!(i128::from(record.time_nanos), time.as_nanos() as i128);
    assert_eq!((record.name.as_str(), &record.distinct_id), (fixture::name(number), &format!("user_{number}")));
    let properties = json!({"number": number, "text": "gr\u{fc}n", "list": [1.5, -2.0]});
    // An exception also names the operating system; the golden queue is from a version that did not.
    let mut found = record.properties.clone();
    found.retain(|key, _| !["$os", "$os_version", "$os_distro"].contains(&key.as_str()));
    assert_eq!(Some(&found), properties.as_object());
    assert_eq!(Some(&record.groups), json!({"company": "acme"}).as_object());
}

fn assert_are(records: &[Record], numbers: RangeInclusive<u64>) {
    assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), numbers.clone().collect::<Vec<_>>());
    records.iter().zip(numbers).for_each(|(record, number)| assert_is(record, number));
}

/// Reads a queue made by `fixture::write` with the reader that was written from the document.
fn assert_reads_as_documented(queue: &Path) {
    let shard = shard(queue);
    assert!(std::fs::read(shard.join("lock")).unwrap().is_empty());
    let mut in_use = Vec::new();
    for number in 0..4 {
        let path = shard.join(format!("journal-{number}"));
        if path.exists()
            && let Arena::InUse(records) = reader::arena(&path)
        {
            in_use.push(records);
        }
    }
    assert_eq!(in_use.len(), 1, "one arena is active, the others are free");
    assert_are(&in_use[0], IN_JOURNAL);

    let store = reader::store(&shard.join("queue.redb"));
    assert_are(&store.chunks, STORED);
    assert_eq!((store.project_hash, store.host.as_str(), store.api_key.as_str()), (project_hash(), HOST, API_KEY));
    let [accepted, delivered, dead_lettered, evicted, damaged, lost_unsynced, queued_events, queued_bytes, rows] =
        store.state;
    assert_eq!((accepted, delivered, dead_lettered, evicted, damaged, lost_unsynced), (6, 2, 1, 0, 0, 0));
    assert!((queued_events, rows) == (3, 1) && queued_bytes > 0);
    assert!(matches!(store.epochs[..], [(0, 2..)]), "the pipeline of events has checkpointed more than one round");
    let [dead] = &store.dead[..] else { panic!("one event was refused: {:?}", store.dead) };
    assert_eq!((dead.seq, dead.status, dead.reason.as_str()), (REFUSED, 400, REASON));
    assert!(dead.attempts >= 1);
    assert_is(&dead.record, REFUSED);

    let words = reader::status(&shard.join("status"));
    assert_eq!((words[1], words[7]), (1, 0), "version and phase");
    match reader::page_check(&words) {
        Some(check) => assert_eq!((words[47], words[8]), (check, !words[11]), "check, and accepted once more"),
        None => assert_eq!((words[8], words[47]), (0, 0), "an older version wrote it"),
    }
    assert_eq!(words[11], *IN_JOURNAL.end(), "accepted, with what is in the journal");
    assert_eq!(
        words[12..20],
        [delivered, dead_lettered, evicted, damaged, lost_unsynced, queued_events, queued_bytes, accepted]
    );
}

#[test]
fn this_version_writes_what_the_document_says() {
    let queue = tempfile::tempdir().unwrap();
    fixture::write(queue.path());
    if std::env::var_os("POSTHOG_WRITE_FIXTURES").is_some() && !golden().exists() {
        fixture::store(queue.path(), &golden());
    }
    assert_reads_as_documented(queue.path());
    let words = reader::status(&shard(queue.path()).join("status"));
    assert_eq!((words[46], words[48]), (words[3], 0), "the check is there, and no store was closed");
    let owner = reader::owner_words(&words).unwrap();
    let [written_at, phase, paused, .., reserved] = owner.numbers[..] else { panic!("{owner:?}") };
    assert!(written_at >= words[3] && phase <= 4 && paused == 0 && reserved == 0, "{owner:?}");
    assert_eq!(owner.numbers[9..11], [1 << 30, 0], "the bounds of the queue");
    let version = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse::<u64>().unwrap());
    assert_eq!(owner.numbers[19], version.fold(0, |sum, part| sum << 16 | part));
    let program = std::env::current_exe().unwrap();
    assert_eq!(owner.texts[0], program.file_name().unwrap().to_str().unwrap());
    assert!(owner.texts[1].contains("refused"), "nothing listens: {owner:?}");
    assert_eq!(owner.texts[2], "");
}

#[test]
fn the_golden_queue_of_format_1_agrees_with_the_document() {
    assert_reads_as_documented(unpacked().path());
}

#[test]
fn a_queue_of_format_1_is_delivered_by_this_version() {
    let queue = unpacked();
    let sink = Sink::start();
    let client = fixture::client(queue.path(), &sink);
    assert_eq!(client.stats().replayed, 2);
    assert_eq!(client.flush().wait(PATIENCE).unwrap().remaining, 0);

    let arrived: BTreeMap<_, _> = sink.events().into_iter().map(|event| (event.uuid, event)).collect();
    let expected = *STORED.start()..=*IN_JOURNAL.end();
    assert_eq!(arrived.len() as u64, 1 + expected.end() - expected.start());
    for number in expected {
        let event = &arrived[&fixture::uuid(number)];
        assert_eq!((event.event.as_str(), &event.distinct_id), (fixture::name(number), &format!("user_{number}")));
        assert_eq!(event.timestamp, format!("2023-11-14T22:13:20.{number:03}Z"));
        assert_eq!(event.properties["number"], number);
        assert_eq!(event.properties["text"], "gr\u{fc}n");
        assert_eq!(event.properties["list"], json!([1.5, -2.0]));
        assert_eq!(event.properties["$groups"], json!({"company": "acme"}));
        assert_eq!(event.properties["$lib_version"], "0.1.0", "the version that captured it");
    }

    let letters = client.dead_letters(10);
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].status, letters[0].reason.as_str()), (400, REASON));
    assert_eq!(letters[0].event["uuid"], fixture::uuid(REFUSED).to_string());

    let stats = client.stats();
    assert_eq!((stats.accepted, stats.delivered, stats.dead_lettered, stats.queued_events), (8, 7, 1, 0));
    assert_eq!((stats.damaged, stats.lost_unsynced, stats.imbalance(), stats.storage), (0, 0, 0, StorageMode::Durable));
}

#[test]
fn the_numbers_of_the_document_are_those_of_the_reader() {
    let document = include_str!("../docs/format.md");
    let (_, table) = document.split_once("## The numbers").unwrap();
    let rows = table.lines().filter_map(|line| {
        let (name, number) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        Some((name, number.parse::<usize>().ok()?))
    });
    assert_eq!(rows.collect::<Vec<_>>(), reader::NUMBERS);
}
