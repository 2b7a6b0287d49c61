//! A second reader of everything on disk, written from `docs/format.md` and not from the library.
//!
//! It panics if the bytes do not agree with the document.

use std::fs;
use std::ops::Range;
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The numbers of the last table of the document, by their names there.
pub(crate) const NUMBERS: &[(&str, usize)] = &[
    ("journal format", 1),
    ("journal header page", HEADER),
    ("journal header words checked", 48),
    ("journal state word at", 56),
    ("frame head", FRAME_HEAD),
    ("frame alignment", 8),
    ("record body version", 1),
    ("record body head", BODY_HEAD),
    ("store schema", 1),
    ("chunk key", 9),
    ("chunk row head", CHUNK_HEAD),
    ("dead row head", DEAD_HEAD),
    ("status page", 4096),
    ("status format", 1),
    ("status owner words at", OWNER_WORDS),
    ("status texts at", TEXTS),
];

const HEADER: usize = 4096;
const FRAME_HEAD: usize = 24;
const BODY_HEAD: usize = 36;
const CHUNK_HEAD: usize = 40;
const DEAD_HEAD: usize = 26;
const OWNER_WORDS: usize = 128;
const TEXTS: usize = 160;

/// One record with the fields of its frame.
#[derive(Debug)]
pub(crate) struct Record {
    pub seq: u64,
    pub class: u8,
    pub uuid: Uuid,
    pub time_nanos: i64,
    pub name: String,
    pub distinct_id: String,
    pub properties: Map<String, Value>,
    pub groups: Map<String, Value>,
}

/// A file of the journal.
#[derive(Debug)]
pub(crate) enum Arena {
    Free,
    InUse(Vec<Record>),
}

/// A row of the table `dead`.
#[derive(Debug)]
pub(crate) struct Dead {
    pub seq: u64,
    pub status: u16,
    pub attempts: u32,
    pub reason: String,
    pub record: Record,
}

/// The file `queue.redb`.
#[derive(Debug)]
pub(crate) struct Store {
    pub chunks: Vec<Record>,
    pub dead: Vec<Dead>,
    pub project_hash: Vec<u8>,
    pub host: String,
    pub api_key: String,
    /// Accepted, delivered, dead_lettered, evicted, damaged, lost_unsynced, queued_events, queued_bytes, rows.
    pub state: [u64; 9],
    pub epochs: Vec<(u8, u64)>,
}

pub(crate) fn arena(path: &Path) -> Arena {
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes[..8], *b"\x89PHJ\r\n\x1a\n");
    assert_eq!(u32_at(&bytes, 8), 1);
    assert_eq!(bytes[12..16], [0; 4]);
    if u64_at(&bytes, 56) == 0 {
        return Arena::Free;
    }
    assert_eq!(u64_at(&bytes, 56), 1);
    assert_eq!(u64_at(&bytes, 48), xxh3_64(&bytes[..48]));
    let (epoch, salt, first_seq) = (u64_at(&bytes, 16), u64_at(&bytes, 24), u64_at(&bytes, 32));
    assert!(epoch > 0);
    let records = frames(&bytes[HEADER..], salt);
    assert!(records.iter().map(|record| record.seq).eq(first_seq..first_seq + records.len() as u64));
    Arena::InUse(records)
}

/// The 512 words of a status page.
pub(crate) fn status(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    assert_eq!(bytes.len(), 4096);
    assert_eq!(bytes[..8], *b"\x89PHS\r\n\x1a\n");
    (0..512).map(|word| u64_at(&bytes, word * 8)).collect()
}

/// The check of the words about the queue; `None` if the last owner has written none.
pub(crate) fn page_check(words: &[u64]) -> Option<u64> {
    let closed = (words[8] == 1).then_some(11);
    let checked = [9, 10].into_iter().chain(12..=20).chain([48]).chain(closed);
    (words[46] == words[3]).then(|| seeded(checked.map(|word| words[word]), words[3]))
}

fn seeded(words: impl Iterator<Item = u64>, started_at: u64) -> u64 {
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    xxh3_64_with_seed(&bytes, started_at).max(1)
}

/// What the last owner says of itself on a status page: the numbers from word 129 on, and the texts.
#[derive(Debug)]
pub(crate) struct OwnerWords {
    pub numbers: Vec<u64>,
    pub texts: Vec<String>,
}

/// `None` if the last owner has written none.
pub(crate) fn owner_words(words: &[u64]) -> Option<OwnerWords> {
    let started_at = words[3];
    if words[OWNER_WORDS] != started_at {
        return None;
    }
    let text = |at: usize| {
        let len = words[at] as usize;
        let bytes: Vec<u8> = words[at + 2..].iter().flat_map(|word| word.to_le_bytes()).take(len).collect();
        assert_eq!(words[at + 1], xxh3_64_with_seed(&bytes, started_at).max(1), "text at {at}");
        String::from_utf8(bytes).unwrap()
    };
    let numbers = words[OWNER_WORDS + 1..TEXTS].to_vec();
    if words[46] == started_at {
        assert_eq!(words[246], seeded(numbers.iter().copied(), started_at), "the check of the numbers");
    }
    Some(OwnerWords { numbers, texts: vec![text(TEXTS), text(176), text(212)] })
}

pub(crate) fn store(path: &Path) -> Store {
    let db = Database::open(path).unwrap();
    let read = db.begin_read().unwrap();
    let table = |name| {
        let table = read.open_table(TableDefinition::<&[u8], &[u8]>::new(name)).unwrap();
        let rows = table.iter().unwrap().map(|row| row.unwrap());
        rows.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())).collect::<Vec<_>>()
    };
    let meta = table("meta");
    let row = |name: &[u8]| unsealed(&meta.iter().find(|(key, _)| key == name).unwrap().1);
    assert_eq!(row(b"schema"), 1_u32.to_le_bytes());

    let identity = row(b"identity");
    assert_eq!(identity[0], 1);
    let host_end = 37 + u32_at(&identity, 33) as usize;
    let state = row(b"state");
    assert_eq!((state[0], state[73]), (1, 0), "no next attempt");
    let epochs = state[82..].chunks(9).map(|lane| (lane[0], u64_at(lane, 1))).collect();
    Store {
        chunks: table("chunks").iter().flat_map(|(key, value)| chunk(key, value)).collect(),
        dead: table("dead").iter().map(|(key, value)| dead(key, value)).collect(),
        project_hash: identity[1..33].to_vec(),
        host: text(&identity, 37..host_end),
        api_key: text(&identity, host_end..identity.len()),
        state: std::array::from_fn(|word| u64_at(&state, 1 + word * 8)),
        epochs,
    }
}

fn chunk(key: &[u8], value: &[u8]) -> Vec<Record> {
    assert_eq!((key.len(), key[0]), (9, 0));
    let (head, frame_bytes) = value.split_at(CHUNK_HEAD);
    assert_eq!(head[..4], [1, 0, 0, 0]);
    assert_eq!(u64_at(head, 24), xxh3_64(frame_bytes));
    assert_eq!(u64_at(head, 32), xxh3_64(&[key, &head[..32]].concat()));
    let records = frames(frame_bytes, u64_at(head, 8));
    assert_eq!(records.len(), u32_at(head, 4) as usize);
    assert_eq!(records[0].seq.to_be_bytes(), key[1..]);
    records
}

fn dead(key: &[u8], value: &[u8]) -> Dead {
    let row = unsealed(value);
    let seq = u64::from_be_bytes(key.try_into().unwrap());
    assert_eq!(row[..2], [1, 0]);
    assert!(u64_at(&row, 8) <= u64_at(&row, 16), "the first attempt comes before the last");
    let reason_end = DEAD_HEAD + usize::from(u16_at(&row, 24));
    Dead {
        seq,
        status: u16_at(&row, 2),
        attempts: u32_at(&row, 4),
        reason: text(&row, DEAD_HEAD..reason_end),
        record: record(seq, &row[reason_end..]),
    }
}

fn frames(bytes: &[u8], salt: u64) -> Vec<Record> {
    let mut records = Vec::new();
    let mut at = 0;
    while at + FRAME_HEAD <= bytes.len() && u32_at(bytes, at) != 0 {
        let (len, class, seq) = (u32_at(bytes, at), bytes[at + 4], u64_at(bytes, at + 8));
        let body = &bytes[at + FRAME_HEAD..][..len as usize];
        let mut check = xxh3_64(body) ^ salt;
        for part in [seq, u64::from(len) << 8 | u64::from(class)] {
            check = (check ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            check ^= check >> 32;
        }
        assert_eq!(u64_at(bytes, at + 16), check, "frame {seq}");
        let record = record(seq, body);
        assert_eq!(record.class, class);
        records.push(record);
        at += (FRAME_HEAD + len as usize).next_multiple_of(8);
    }
    records
}

fn record(seq: u64, body: &[u8]) -> Record {
    assert_eq!((body[0], u16_at(body, 10)), (1, 0));
    let mut values = rmp_serde::Deserializer::new(&body[BODY_HEAD..]);
    let name = String::deserialize(&mut values).unwrap();
    let distinct_id = String::deserialize(&mut values).unwrap();
    let properties = Map::deserialize(&mut values).unwrap();
    let groups = Map::deserialize(&mut values).unwrap();
    assert!(values.into_inner().is_empty(), "nothing comes after the groups");
    Record {
        seq,
        class: body[1],
        uuid: Uuid::from_slice(&body[12..28]).unwrap(),
        time_nanos: i64::from_le_bytes(body[28..36].try_into().unwrap()),
        name,
        distinct_id,
        properties,
        groups,
    }
}

fn unsealed(value: &[u8]) -> Vec<u8> {
    let (content, check) = value.split_at(value.len() - 8);
    assert_eq!(u64_at(check, 0), xxh3_64(content));
    content.to_vec()
}

fn text(bytes: &[u8], range: Range<usize>) -> String {
    String::from_utf8(bytes[range].to_vec()).unwrap()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
