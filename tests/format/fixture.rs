//! The golden queue: its events, how it is made, and how it is unpacked.
//!
//! `POSTHOG_WRITE_FIXTURES=1 cargo test --test format` writes `tests/fixtures/format-v1/` if it does not exist. An
//! existing golden queue is never overwritten, because queues of that version are in use. Each file is stored as
//! `<name>.gz`, without the reserve, which is a mebibyte of random bytes.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use posthog::{Client, Config, Event};
use sink::Sink;
use uuid::Uuid;

pub(crate) const HOST: &str = "http://posthog.example";
pub(crate) const API_KEY: &str = "phc_format_fixture";
/// The server's message about event 2.
pub(crate) const REASON: &str = "event submitted with an empty event name";
/// Events 1 and 3 were delivered, 2 refused for good; 4 to 6 are in the store, 7 and 8 in the journal.
pub(crate) const REFUSED: u64 = 2;
pub(crate) const STORED: RangeInclusive<u64> = 4..=6;
pub(crate) const IN_JOURNAL: RangeInclusive<u64> = 7..=8;

const PATIENCE: Duration = Duration::from_secs(20);

/// Three of the events have a class other than ordinary, which is a byte on disk.
pub(crate) fn name(number: u64) -> &'static str {
    match number {
        4 => "$exception",
        5 | 7 => "$identify",
        _ => "fixture_event",
    }
}

pub(crate) fn class(number: u64) -> u8 {
    match name(number) {
        "$exception" => 2,
        "$identify" => 1,
        _ => 0,
    }
}

pub(crate) fn uuid(number: u64) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + u128::from(number))
}

pub(crate) fn time(number: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + number)
}

fn event(number: u64) -> Event {
    Event::new(name(number), format!("user_{number}"))
        .prop("number", number)
        .prop("text", "gr\u{fc}n")
        .prop("list", [1.5, -2.0])
        .group("company", "acme")
        .uuid(uuid(number))
        .timestamp(time(number))
}

/// A client of the golden queue's project, whose events go to `sink`.
pub(crate) fn client(queue_dir: &Path, sink: &Sink) -> Client {
    let config = Config::new(API_KEY)
        .host(HOST)
        .proxy(sink.url())
        .queue_dir(queue_dir)
        .journal_bytes(64 * 1024)
        .max_event_bytes(8 * 1024)
        .flush_at(1_000_000)
        .flush_interval(Duration::from_secs(3600))
        .first_send_jitter(Duration::ZERO);
    Client::new(config).unwrap()
}

/// Makes the queue with the present code and returns a copy of it as a kill at that moment would have left it.
pub(crate) fn write(to: &Path) {
    let queue = tempfile::tempdir().unwrap();
    let sink = Sink::start();
    sink.refuse_if(|event| event["properties"]["number"] == REFUSED, 400, REASON);
    let first = client(queue.path(), &sink);
    // The success of the third is the evidence that the second, and not the server, is at fault.
    for numbers in [1..=REFUSED, 3..=3] {
        numbers.for_each(|number| assert!(first.capture(event(number)).is_accepted()));
        first.flush().wait(PATIENCE).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while first.stats().dead_lettered == 0 && Instant::now() < deadline {
        first.flush().wait(PATIENCE).unwrap();
    }
    assert_eq!(first.shutdown(PATIENCE).wait(PATIENCE).unwrap().remaining, 0);

    sink.stop();
    let second = client(queue.path(), &sink);
    for number in STORED {
        assert!(second.capture(event(number)).is_accepted());
    }
    assert_eq!(second.flush().wait(PATIENCE).unwrap().remaining, 3);
    for number in IN_JOURNAL {
        assert_eq!(second.capture(event(number)).persisted().wait(PATIENCE), Ok(()));
    }
    copy_at_rest(queue.path(), to);
}

/// Copies a queue that its owner has open, at a time when nothing is being written.
fn copy_at_rest(from: &Path, to: &Path) {
    let read = || -> Vec<(PathBuf, Vec<u8>)> {
        let names = files_below(from);
        names.into_iter().map(|name| (name.clone(), fs::read(from.join(name)).unwrap())).collect()
    };
    let mut before = read();
    for _ in 0..100 {
        let again = read();
        if again == before {
            for (name, bytes) in again {
                let path = to.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
            return;
        }
        before = again;
    }
    panic!("the queue keeps changing");
}

/// Stores a queue as a golden one.
pub(crate) fn store(queue: &Path, golden: &Path) {
    for name in files_below(queue) {
        if name.ends_with("reserve") {
            continue;
        }
        let target = golden.join(with_gz(&name));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let mut packed = GzEncoder::new(File::create(target).unwrap(), flate2::Compression::best());
        packed.write_all(&fs::read(queue.join(name)).unwrap()).unwrap();
        packed.finish().unwrap();
    }
}

/// Unpacks a golden queue.
pub(crate) fn unpack(golden: &Path, queue: &Path) {
    for name in files_below(golden) {
        let target = queue.join(name.with_extension(""));
        let target = if name.ends_with("queue.redb.gz") { target.with_extension("redb") } else { target };
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let mut bytes = Vec::new();
        GzDecoder::new(File::open(golden.join(name)).unwrap()).read_to_end(&mut bytes).unwrap();
        fs::write(target, bytes).unwrap();
    }
}

fn with_gz(name: &Path) -> PathBuf {
    let mut name = name.as_os_str().to_owned();
    name.push(".gz");
    name.into()
}

/// The relative paths of all files, sorted.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().to_path_buf());
            }
        }
    }
    found.sort();
    found
}
