//! The bytes of the rows. Everything is opaque to the database: a version byte of our own first, integers little-endian (keys
//! big-endian, so that they sort), and a checksum, since a plain open of the database verifies none of its pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{Chunk, ChunkKey, DeadRecord, Identity, Ledger};
use crate::sys::clock::WallNanos;

/// The version of everything in this file, and of the set of tables.
pub(super) const SCHEMA: u32 = 1;
const VERSION: u8 = 1;

/// Bytes of a chunk row before its frames.
pub(super) const CHUNK_HEAD: usize = 40;
/// Longest reason kept with a dead record.
const REASON_MAX: usize = 1024;
/// Bytes of a dead row around its reason and its record: the head and the check.
const DEAD_FRAME: usize = 26 + 8;

/// What stands before a chunk row's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkHead {
    pub(super) count: u32,
    pub(super) salt: u64,
    pub(super) checkpointed_at: WallNanos,
    frames_check: u64,
}

/// A chunk row as it was found.
#[derive(Debug)]
pub(super) enum ChunkRow {
    /// As it was written.
    Whole(Chunk),
    /// The head holds, the frames do not: some records may be left.
    Torn(Chunk),
    /// The head does not hold; without the salt no record can be told from noise.
    Lost,
}

/// The key of a chunk row.
pub(super) fn chunk_key(key: ChunkKey) -> [u8; 9] {
    let mut bytes = [0; 9];
    bytes[0] = key.lane;
    bytes[1..].copy_from_slice(&key.first_seq.to_be_bytes());
    bytes
}

/// Reads what [`chunk_key`] wrote.
pub(super) fn parse_chunk_key(bytes: &[u8]) -> Option<ChunkKey> {
    let [lane, seq @ ..] = *<&[u8; 9]>::try_from(bytes).ok()?;
    Some(ChunkKey { lane, first_seq: u64::from_be_bytes(seq) })
}

/// `[version u8][0; 3][count u32][salt u64][checkpointed_at i64][check of frames u64][check of key and the head so far u64]`, frames.
pub(super) fn chunk_value(chunk: &Chunk) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CHUNK_HEAD + chunk.frames.len());
    bytes.extend_from_slice(&[VERSION, 0, 0, 0]);
    bytes.extend_from_slice(&chunk.count.to_le_bytes());
    bytes.extend_from_slice(&chunk.salt.to_le_bytes());
    bytes.extend_from_slice(&chunk.checkpointed_at.to_le_bytes());
    bytes.extend_from_slice(&xxh3_64(&chunk.frames).to_le_bytes());
    bytes.extend_from_slice(&head_check(chunk.key, &bytes).to_le_bytes());
    bytes.extend_from_slice(&chunk.frames);
    bytes
}

/// The head of a chunk row, if it holds. The key is part of its check: a row that a damaged tree shows under another key is lost.
pub(super) fn chunk_head(key: ChunkKey, value: &[u8]) -> Option<ChunkHead> {
    let mut fields = Fields(value);
    let [version, ..] = fields.take::<4>()?;
    let head = ChunkHead {
        count: fields.u32()?,
        salt: fields.u64()?,
        checkpointed_at: fields.i64()?,
        frames_check: fields.u64()?,
    };
    let holds = fields.u64()? == head_check(key, value.get(..CHUNK_HEAD - 8)?);
    (holds && version == VERSION).then_some(head)
}

/// A chunk row with its frames.
pub(super) fn parse_chunk(key: ChunkKey, value: &[u8]) -> ChunkRow {
    let (Some(head), Some(frames)) = (chunk_head(key, value), value.get(CHUNK_HEAD..)) else {
        return ChunkRow::Lost;
    };
    let whole = xxh3_64(frames) == head.frames_check;
    let chunk = Chunk {
        key,
        count: head.count,
        salt: head.salt,
        checkpointed_at: head.checkpointed_at,
        frames: Arc::from(frames),
    };
    if whole { ChunkRow::Whole(chunk) } else { ChunkRow::Torn(chunk) }
}

/// Bytes of the pages that a chunk row of so many bytes takes: a run of them, their number a power of two.
pub(super) fn page_bytes(value_len: usize) -> u64 {
    const PAGE: usize = 4096;
    // The leaf's own head, and the key.
    const AROUND: usize = 24;
    (value_len.saturating_add(AROUND).div_ceil(PAGE).next_power_of_two() * PAGE) as u64
}

fn head_check(key: ChunkKey, head: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&chunk_key(key));
    hash.update(head);
    hash.digest()
}

/// `[version u8][lane u8][status u16][attempts u32][first i64][last i64][reason's length u16]...[check u64]`, see the order below.
pub(super) fn dead_value(dead: &DeadRecord) -> Vec<u8> {
    let reason = at_most(&dead.reason, REASON_MAX).as_bytes();
    let mut bytes = Vec::with_capacity(dead_len(dead));
    bytes.extend_from_slice(&[VERSION, dead.lane]);
    bytes.extend_from_slice(&dead.status.to_le_bytes());
    bytes.extend_from_slice(&dead.attempts.to_le_bytes());
    bytes.extend_from_slice(&dead.first_attempt.to_le_bytes());
    bytes.extend_from_slice(&dead.last_attempt.to_le_bytes());
    bytes.extend_from_slice(&(reason.len() as u16).to_le_bytes());
    bytes.extend_from_slice(reason);
    bytes.extend_from_slice(&dead.body);
    sealed(bytes)
}

/// Bytes of what [`dead_value`] makes.
pub(super) fn dead_len(dead: &DeadRecord) -> usize {
    DEAD_FRAME.saturating_add(at_most(&dead.reason, REASON_MAX).len()).saturating_add(dead.body.len())
}

/// Reads what [`dead_value`] wrote; `None` if it is damaged.
pub(super) fn parse_dead(seq: u64, value: &[u8]) -> Option<DeadRecord> {
    let mut fields = Fields(unsealed(value)?);
    let [version, lane] = fields.take::<2>()?;
    let status = u16::from_le_bytes(fields.take()?);
    let attempts = fields.u32()?;
    let (first_attempt, last_attempt) = (fields.i64()?, fields.i64()?);
    let reason_len = u16::from_le_bytes(fields.take()?);
    let (reason, body) = fields.0.split_at_checked(usize::from(reason_len))?;
    let reason = String::from_utf8_lossy(reason).into_owned();
    let body = body.to_vec();
    (version == VERSION).then_some(DeadRecord {
        seq,
        lane,
        status,
        reason,
        first_attempt,
        last_attempt,
        attempts,
        body,
    })
}

/// The row that says which version wrote the file. Its own checksum, so that one flipped bit is damage and not a newer version.
pub(super) fn schema_value(version: u32) -> Vec<u8> {
    sealed(version.to_le_bytes().to_vec())
}

/// Reads what [`schema_value`] wrote.
pub(super) fn parse_schema(value: &[u8]) -> Option<u32> {
    Fields(unsealed(value)?).u32()
}

/// `[version u8][project hash; 32][host's length u32][host][project key]...[check u64]`
pub(super) fn identity_value(identity: &Identity) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&identity.project_hash);
    bytes.extend_from_slice(&(identity.host.len() as u32).to_le_bytes());
    bytes.extend_from_slice(identity.host.as_bytes());
    bytes.extend_from_slice(identity.api_key.as_bytes());
    sealed(bytes)
}

/// Reads what [`identity_value`] wrote.
pub(super) fn parse_identity(value: &[u8]) -> Option<Identity> {
    let mut fields = Fields(unsealed(value)?);
    let [version] = fields.take()?;
    let project_hash = fields.take()?;
    let host_len = fields.u32()?;
    let (host, api_key) = fields.0.split_at_checked(host_len as usize)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let identity = Identity { project_hash, host: text(host)?, api_key: text(api_key)? };
    (version == VERSION).then_some(identity)
}

/// Everything small that changes with a transaction; one row, so that it changes as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) ledger: Ledger,
    /// Rows in the chunk table: what the table says of itself is compared with it at open.
    pub(super) rows: u64,
    /// Bytes of the pages that the chunk rows take. In a row of its own: a file of an older version does not have it.
    pub(super) row_bytes: u64,
    /// Bytes of the rows of dead records, beside `row_bytes`; `None` if nobody has counted.
    pub(super) dead_bytes: Option<u64>,
    /// The newest epoch checkpointed, by lane.
    pub(super) epochs: BTreeMap<u8, u64>,
    pub(super) next_attempt: Option<WallNanos>,
}

/// `[version u8][ledger 8 * u64][rows u64][has next attempt u8][next attempt i64]` and for each lane `[lane u8][epoch u64]`, `[check u64]`
pub(super) fn state_value(state: &State) -> Vec<u8> {
    let Ledger { accepted, delivered, dead_lettered, evicted, damaged, lost_unsynced, queued_events, queued_bytes } =
        state.ledger;
    let mut bytes = vec![VERSION];
    let counters =
        [accepted, delivered, dead_lettered, evicted, damaged, lost_unsynced, queued_events, queued_bytes, state.rows];
    bytes.extend(counters.into_iter().flat_map(u64::to_le_bytes));
    bytes.push(u8::from(state.next_attempt.is_some()));
    bytes.extend_from_slice(&state.next_attempt.unwrap_or_default().to_le_bytes());
    for (lane, epoch) in &state.epochs {
        bytes.push(*lane);
        bytes.extend_from_slice(&epoch.to_le_bytes());
    }
    sealed(bytes)
}

/// Reads what [`state_value`] wrote.
pub(super) fn parse_state(value: &[u8]) -> Option<State> {
    let mut fields = Fields(unsealed(value)?);
    let [version] = fields.take()?;
    let ledger = Ledger {
        accepted: fields.u64()?,
        delivered: fields.u64()?,
        dead_lettered: fields.u64()?,
        evicted: fields.u64()?,
        damaged: fields.u64()?,
        lost_unsynced: fields.u64()?,
        queued_events: fields.u64()?,
        queued_bytes: fields.u64()?,
    };
    let rows = fields.u64()?;
    let [has_next_attempt] = fields.take()?;
    let next_attempt = fields.i64()?;
    let mut epochs = BTreeMap::new();
    while let Some([lane]) = fields.take() {
        epochs.insert(lane, fields.u64()?);
    }
    let next_attempt = (has_next_attempt != 0).then_some(next_attempt);
    (version == VERSION).then_some(State { ledger, rows, row_bytes: 0, dead_bytes: None, epochs, next_attempt })
}

/// `[version u8][bytes u64][check of the state's row u64]...[bytes of dead rows u64][check u64]`. A version that did not count the last
/// of these leaves it out.
pub(super) fn pages_value(row_bytes: u64, dead_bytes: Option<u64>, state_value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&row_bytes.to_le_bytes());
    bytes.extend_from_slice(&xxh3_64(state_value).to_le_bytes());
    bytes.extend(dead_bytes.into_iter().flat_map(u64::to_le_bytes));
    sealed(bytes)
}

/// Reads what [`pages_value`] wrote; `None` if it belongs to another state, because an older version has written since.
pub(super) fn parse_pages(value: &[u8], state_value: &[u8]) -> Option<(u64, Option<u64>)> {
    let mut fields = Fields(unsealed(value)?);
    let [version] = fields.take()?;
    let row_bytes = fields.u64()?;
    (version == VERSION && fields.u64()? == xxh3_64(state_value)).then(|| (row_bytes, fields.u64()))
}

/// `[version u8]`, whatever the owner wants to find again, `[check u64]`
pub(super) fn definitions_value(content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(content.len().saturating_add(9));
    bytes.push(VERSION);
    bytes.extend_from_slice(content);
    sealed(bytes)
}

/// Reads what [`definitions_value`] wrote; `None` if it is damaged, or of another version.
pub(super) fn parse_definitions(value: &[u8]) -> Option<Vec<u8>> {
    let (version, content) = unsealed(value)?.split_first()?;
    (*version == VERSION).then(|| content.to_vec())
}

/// The most that the chunk rows of a state can take where nobody has counted.
pub(super) fn page_bytes_at_most(state: &State) -> u64 {
    let around = page_bytes(0).saturating_mul(2);
    state.ledger.queued_bytes.saturating_mul(2).saturating_add(state.rows.saturating_mul(around))
}

/// As many whole characters of `text` as fit `most` bytes.
fn at_most(text: &str, most: usize) -> &str {
    let end = text.char_indices().map(|(at, next)| at + next.len_utf8()).take_while(|end| *end <= most).last();
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let check = xxh3_64(&bytes);
    bytes.extend_from_slice(&check.to_le_bytes());
    bytes
}

fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (content, check) = bytes.split_last_chunk::<8>()?;
    (xxh3_64(content) == u64::from_le_bytes(*check)).then_some(content)
}

/// Fixed fields from the front of foreign bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_le_bytes)
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
