//! Rows: round trips, and every flipped bit noticed.

use super::*;

fn chunk() -> Chunk {
    let key = ChunkKey::new(7);
    Chunk { key, count: 3, salt: 9, checkpointed_at: -5, frames: Arc::from(&b"frames"[..]) }
}

fn dead() -> DeadRecord {
    DeadRecord {
        seq: 12,
        status: 400,
        reason: "malformed".into(),
        first_attempt: 1,
        last_attempt: 2,
        attempts: 3,
        body: b"body".to_vec(),
    }
}

fn project() -> Project {
    Project { host: "https://eu.example".into(), api_key: "phc_x".into() }
}

fn state() -> State {
    let ledger = Ledger { accepted: 9, delivered: 1, queued_events: 8, queued_bytes: 800, ..Ledger::default() };
    State { ledger, rows: 2, row_bytes: 0, dead_bytes: None, epoch: 4, next_attempt: Some(-1) }
}

/// Every value that is `bytes` with one bit changed.
fn flipped(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    (0..bytes.len() * 8).map(|bit| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    })
}

#[test]
fn rows_come_back_as_they_were_written() {
    assert!(matches!(parse_chunk(chunk().key, &chunk_value(&chunk())), ChunkRow::Whole(found) if found == chunk()));
    assert_eq!(parse_dead(12, &dead_value(&dead())), Some(dead()));
    assert_eq!(parse_identity(&identity_value(&project())), Some((project(), project().hash())));
    assert_eq!(parse_state(&state_value(&state())), Some(state()));
    assert_eq!(parse_schema(&schema_value(77)), Some(77));
    assert_eq!(parse_chunk_key(&chunk_key(chunk().key)), Some(chunk().key));
}

#[test]
fn keys_sort_as_their_bytes_do() {
    let key = |prefix, first_seq| chunk_key(ChunkKey { prefix, first_seq });
    assert!(key(0, 255) < key(0, 256) && key(0, u64::MAX) < key(1, 0));
}

#[test]
fn every_flipped_bit_of_a_row_is_noticed() {
    let key = chunk().key;
    for value in flipped(&chunk_value(&chunk())) {
        assert!(!matches!(parse_chunk(key, &value), ChunkRow::Whole(_)));
    }
    assert!(flipped(&dead_value(&dead())).all(|value| parse_dead(12, &value).is_none()));
    assert!(flipped(&identity_value(&project())).all(|value| parse_identity(&value).is_none()));
    assert!(flipped(&state_value(&state())).all(|value| parse_state(&value).is_none()));
    assert!(flipped(&schema_value(1)).all(|value| parse_schema(&value).is_none()));
}

#[test]
fn a_row_under_another_key_is_lost() {
    let elsewhere = ChunkKey::new(8);
    assert!(matches!(parse_chunk(elsewhere, &chunk_value(&chunk())), ChunkRow::Lost));
}

#[test]
fn a_head_that_holds_gives_the_count_of_torn_frames() {
    let mut value = chunk_value(&chunk());
    value.pop();
    assert!(matches!(parse_chunk(chunk().key, &value), ChunkRow::Torn(found) if found.count == 3));
}

#[test]
fn rows_cut_anywhere_are_refused_without_a_panic() {
    let value = chunk_value(&chunk());
    assert!((0..value.len()).all(|cut| !matches!(parse_chunk(chunk().key, &value[..cut]), ChunkRow::Whole(_))));
    let value = dead_value(&dead());
    assert!((0..value.len()).all(|cut| parse_dead(12, &value[..cut]).is_none()));
    let value = state_value(&state());
    assert!((0..value.len()).all(|cut| parse_state(&value[..cut]).is_none()));
}

#[test]
fn the_pages_row_is_valid_only_with_the_state_it_belongs_to() {
    let value = state_value(&state());
    let pages = pages_value(65_536, Some(77), &value);
    assert_eq!(parse_pages(&pages, &value), Some((65_536, Some(77))));
    assert_eq!(parse_pages(&pages_value(65_536, None, &value), &value), Some((65_536, None)), "an older version");
    assert_eq!(parse_pages(&pages, &state_value(&State { rows: 3, ..state() })), None);
    assert!((0..pages.len()).all(|cut| parse_pages(&pages[..cut], &value).is_none()));
}

#[test]
fn a_row_takes_a_run_of_pages() {
    assert_eq!(
        [0, 4000, 4072, 4073, 9000, 65_512, 65_513].map(page_bytes),
        [4096, 4096, 4096, 8192, 16_384, 65_536, 131_072]
    );
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let long = DeadRecord { reason: "\u{20ac}".repeat(1000), ..dead() };
    let found = parse_dead(12, &dead_value(&long)).unwrap();
    assert_eq!(found.reason, "\u{20ac}".repeat(341));
    assert_eq!(found.body, dead().body);
}
