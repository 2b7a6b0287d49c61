//! The tables of the database and the bytes of their rows.
//!
//! Keys and values are opaque to the database. A value begins with a version byte of its own and ends with a checksum,
//! because opening the database verifies none of its pages. Integers are little-endian; in keys they are big-endian, so
//! that keys sort by number. `docs/format.md` describes every field.

use std::sync::Arc;

use redb::{Database, Durability, ReadableDatabase, TableDefinition, WriteTransaction};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::rows::{CHUNK_HEAD, Chunk, ChunkKey, DeadRecord, Ledger, Project, State, page_bytes};
use crate::queue::error::StoreError;
use crate::sys::clock::WallNanos;
use crate::sys::limits::beginning;

pub(super) const CHUNKS_NAME: &str = "chunks";
pub(super) const DEAD_NAME: &str = "dead";
pub(super) const META_NAME: &str = "meta";

/// First sequence number to a chunk.
pub(super) const CHUNKS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new(CHUNKS_NAME);
/// Sequence number to a dead record.
pub(super) const DEAD: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new(DEAD_NAME);
/// The rows below, and entries of the owner under other names.
pub(super) const META: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new(META_NAME);

/// The version that wrote the file.
pub(super) const SCHEMA_ROW: &[u8] = b"schema";
/// The project of the queue.
pub(super) const IDENTITY_ROW: &[u8] = b"identity";
/// The state, which changes with every transaction.
pub(super) const STATE_ROW: &[u8] = b"state";
/// The space that chunks and dead records take, and the state that this belongs to.
const PAGES_ROW: &[u8] = b"pages";

/// Begins a transaction that is durable once committed and leaves a file that opens without being walked.
pub(super) fn begin(db: &Database) -> Result<WriteTransaction, StoreError> {
    let mut transaction = db.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    // Costs a second sync and writes the allocator state each time, but makes the first open after SIGKILL 500 times
    // faster.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

/// Writes the rows that identify the file.
pub(super) fn write_identity(transaction: &WriteTransaction, project: &Project) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META)?;
    meta.insert(SCHEMA_ROW, schema_value(SCHEMA).as_slice())?;
    meta.insert(IDENTITY_ROW, identity_value(project).as_slice())?;
    Ok(())
}

/// Writes the rows that change with every transaction.
pub(super) fn write_state(transaction: &WriteTransaction, state: &State) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META)?;
    let value = state_value(state);
    meta.insert(STATE_ROW, value.as_slice())?;
    meta.insert(PAGES_ROW, pages_value(state.row_bytes, state.dead_bytes, &value).as_slice())?;
    Ok(())
}

/// Writes the owner's entry `name`, or removes it.
pub(super) fn write_meta(transaction: &WriteTransaction, name: &str, content: Option<&[u8]>) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META)?;
    match content {
        Some(content) => drop(meta.insert(name.as_bytes(), entry_value(content).as_slice())?),
        None => drop(meta.remove(name.as_bytes())?),
    }
    Ok(())
}

/// Reads what [`write_meta`] wrote.
pub(super) fn read_entry(db: &impl ReadableDatabase, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let found = db.begin_read()?.open_table(META)?.get(name.as_bytes())?;
    Ok(found.and_then(|value| parse_entry(value.value())))
}

/// The rows of the `meta` table; `None` for a row that is missing or damaged.
#[derive(Debug, Default)]
pub(super) struct Meta {
    pub(super) schema: Option<u32>,
    /// The project and its hash.
    pub(super) identity: Option<(Project, [u8; 32])>,
    pub(super) state: Option<State>,
}

pub(super) fn read_meta(db: &impl ReadableDatabase) -> Result<Meta, StoreError> {
    let table = db.begin_read()?.open_table(META)?;
    let mut rows = Vec::new();
    for name in [SCHEMA_ROW, IDENTITY_ROW, STATE_ROW, PAGES_ROW] {
        rows.extend(table.get(name)?.map(|value| (name.to_vec(), value.value().to_vec())));
    }
    Ok(meta_of(&rows))
}

/// The same from names and values that were found in any way. Of several rows of one name, the first whole one counts.
pub(super) fn meta_of(rows: &[(Vec<u8>, Vec<u8>)]) -> Meta {
    let values =
        |row: &'static [u8]| rows.iter().filter(move |(name, _)| name == row).map(|(_, value)| value.as_slice());
    let mut state = values(STATE_ROW).find_map(parse_state);
    if let Some(state) = &mut state {
        let known = values(PAGES_ROW).find_map(|value| parse_pages(value, &state_value(state)));
        (state.row_bytes, state.dead_bytes) = known.unwrap_or_else(|| (page_bytes_at_most(state), None));
    }
    Meta {
        schema: values(SCHEMA_ROW).find_map(parse_schema),
        identity: values(IDENTITY_ROW).find_map(parse_identity),
        state,
    }
}

/// How new the state in this row is, if it is one.
pub(super) fn age_of_state(name: &[u8], value: &[u8]) -> Option<(u64, u64, u64)> {
    let state = parse_state(value).filter(|_| name == STATE_ROW)?;
    Some((state.epoch, state.ledger.accepted, state.ledger.gone()))
}

/// Whether this is a whole row of the `meta` table.
pub(super) fn is_meta(name: &[u8], value: &[u8]) -> bool {
    match name {
        SCHEMA_ROW => parse_schema(value).is_some(),
        IDENTITY_ROW => parse_identity(value).is_some(),
        STATE_ROW => parse_state(value).is_some(),
        _ => name == PAGES_ROW && unsealed(value).is_some(),
    }
}

impl Meta {
    /// Refuses a file that must not be changed: one of a newer version, or of another project.
    pub(super) fn refuse_foreign(&self, project: &Project) -> Result<(), StoreError> {
        if let Some(found) = self.schema.filter(|found| *found > SCHEMA) {
            return Err(StoreError::Newer { found, known: SCHEMA });
        }
        if self.identity.as_ref().is_some_and(|(_, hash)| *hash != project.hash()) {
            return Err(StoreError::OtherProject);
        }
        Ok(())
    }

    /// The state. If a row is missing the file is damaged, because a store never appears without these rows.
    pub(super) fn complete(self) -> Result<State, StoreError> {
        match (self.schema, self.identity, self.state) {
            (Some(_), Some(_), Some(state)) => Ok(state),
            _ => Err(StoreError::damaged("the rows that say what the file is are missing or damaged")),
        }
    }
}

/// A chunk row as it was read.
#[derive(Debug)]
pub(super) enum ChunkRow {
    Whole(Chunk),
    /// The head is valid, the frames are not: some records may be whole.
    Torn(Chunk),
    /// The head is invalid. Without the salt, no record can be recognized.
    Lost,
}

/// The version of the tables and of everything in this file.
pub(super) const SCHEMA: u32 = 1;
const VERSION: u8 = 1;

/// The longest reason that is stored with a dead record.
const REASON_MAX: usize = 1024;
/// Bytes of a dead row around its reason and its record: the head and the check.
const DEAD_FRAME: usize = 26 + 8;

/// The head of a chunk row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkHead {
    pub(super) count: u32,
    pub(super) salt: u64,
    pub(super) checkpointed_at: WallNanos,
    frames_check: u64,
}

pub(super) fn chunk_key(key: ChunkKey) -> [u8; 9] {
    let mut bytes = [0; 9];
    bytes[0] = key.prefix;
    bytes[1..].copy_from_slice(&key.first_seq.to_be_bytes());
    bytes
}

/// Reads what [`chunk_key`] wrote.
pub(super) fn parse_chunk_key(bytes: &[u8]) -> Option<ChunkKey> {
    let [prefix, seq @ ..] = *<&[u8; 9]>::try_from(bytes).ok()?;
    Some(ChunkKey { prefix, first_seq: u64::from_be_bytes(seq) })
}

/// `[version u8][0; 3][count u32][salt u64][checkpointed_at i64][check of frames u64][check of key and the head so far
/// u64]`, frames.
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

/// Reads the head of a chunk row, if it is valid. The key is part of its checksum, so a row that a damaged tree shows
/// under another key is invalid.
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

fn head_check(key: ChunkKey, head: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&chunk_key(key));
    hash.update(head);
    hash.digest()
}

/// `[version u8][0][status u16][attempts u32][first i64][last i64][reason's length u16]...[check u64]`, see the order
/// below.
pub(super) fn dead_value(dead: &DeadRecord) -> Vec<u8> {
    let reason = beginning(&dead.reason, REASON_MAX).as_bytes();
    let mut bytes = Vec::with_capacity(dead_len(dead));
    bytes.extend_from_slice(&[VERSION, 0]);
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
    DEAD_FRAME.saturating_add(beginning(&dead.reason, REASON_MAX).len()).saturating_add(dead.body.len())
}

#[cfg(feature = "inspect")]
impl DeadRecord {
    /// Bytes of its row's value.
    pub(crate) fn row_bytes(&self) -> u64 {
        dead_len(self) as u64
    }
}

/// Reads what [`dead_value`] wrote; `None` if it is damaged.
pub(super) fn parse_dead(seq: u64, value: &[u8]) -> Option<DeadRecord> {
    let mut fields = Fields(unsealed(value)?);
    let [version, _] = fields.take::<2>()?;
    let status = u16::from_le_bytes(fields.take()?);
    let attempts = fields.u32()?;
    let (first_attempt, last_attempt) = (fields.i64()?, fields.i64()?);
    let reason_len = u16::from_le_bytes(fields.take()?);
    let (reason, body) = fields.0.split_at_checked(usize::from(reason_len))?;
    let reason = String::from_utf8_lossy(reason).into_owned();
    let body = body.to_vec();
    (version == VERSION).then_some(DeadRecord { seq, status, reason, first_attempt, last_attempt, attempts, body })
}

/// A row of the table of dead letters; `None` if it is damaged.
pub(super) fn dead_of(key: &[u8], value: &[u8]) -> Option<DeadRecord> {
    parse_dead(u64::from_be_bytes(key.try_into().ok()?), value)
}

/// The row with the version of the file. It has its own checksum, so that one flipped bit is damage and not a newer
/// version.
pub(super) fn schema_value(version: u32) -> Vec<u8> {
    sealed(version.to_le_bytes().to_vec())
}

/// Reads what [`schema_value`] wrote.
pub(super) fn parse_schema(value: &[u8]) -> Option<u32> {
    Fields(unsealed(value)?).u32()
}

/// `[version u8][project hash; 32][host's length u32][host][project key]...[check u64]`
pub(super) fn identity_value(project: &Project) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&project.hash());
    bytes.extend_from_slice(&(project.host.len() as u32).to_le_bytes());
    bytes.extend_from_slice(project.host.as_bytes());
    bytes.extend_from_slice(project.api_key.as_bytes());
    sealed(bytes)
}

/// Reads what [`identity_value`] wrote.
pub(super) fn parse_identity(value: &[u8]) -> Option<(Project, [u8; 32])> {
    let mut fields = Fields(unsealed(value)?);
    let [version] = fields.take()?;
    let hash = fields.take()?;
    let host_len = fields.u32()?;
    let (host, api_key) = fields.0.split_at_checked(host_len as usize)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let project = Project { host: text(host)?, api_key: text(api_key)? };
    (version == VERSION).then_some((project, hash))
}

/// `[version u8][ledger 8 * u64][rows u64][has next attempt u8][next attempt i64]`, then `[0][epoch u64]` if there is
/// one, `[check u64]`
pub(super) fn state_value(state: &State) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend(state.ledger.words().into_iter().chain([state.rows]).flat_map(u64::to_le_bytes));
    bytes.push(u8::from(state.next_attempt.is_some()));
    bytes.extend_from_slice(&state.next_attempt.unwrap_or_default().to_le_bytes());
    if state.epoch > 0 {
        bytes.push(0);
        bytes.extend_from_slice(&state.epoch.to_le_bytes());
    }
    sealed(bytes)
}

/// Reads what [`state_value`] wrote.
pub(super) fn parse_state(value: &[u8]) -> Option<State> {
    let mut fields = Fields(unsealed(value)?);
    let [version] = fields.take()?;
    let mut ledger = [0; 8];
    for word in &mut ledger {
        *word = fields.u64()?;
    }
    let ledger = Ledger::of_words(ledger);
    let rows = fields.u64()?;
    let [has_next_attempt] = fields.take()?;
    let next_attempt = fields.i64()?;
    let epoch = match fields.take() {
        Some([0]) => fields.u64()?,
        _ => 0,
    };
    let next_attempt = (has_next_attempt != 0).then_some(next_attempt);
    (version == VERSION).then_some(State { ledger, rows, row_bytes: 0, dead_bytes: None, epoch, next_attempt })
}

/// `[version u8][bytes u64][check of the state's row u64]...[bytes of dead rows u64][check u64]`. A version that did
/// not count dead rows leaves that field out.
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

/// `[version u8]`, the content, `[check u64]`.
pub(super) fn entry_value(content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(content.len().saturating_add(9));
    bytes.push(VERSION);
    bytes.extend_from_slice(content);
    sealed(bytes)
}

/// Reads what [`entry_value`] wrote; `None` if it is damaged, or of another version.
pub(super) fn parse_entry(value: &[u8]) -> Option<Vec<u8>> {
    let (version, content) = unsealed(value)?.split_first()?;
    (*version == VERSION).then(|| content.to_vec())
}

/// The most that the chunk rows of a state can take, where their pages were not counted.
pub(super) fn page_bytes_at_most(state: &State) -> u64 {
    let around = page_bytes(0).saturating_mul(2);
    state.ledger.queued_bytes.saturating_mul(2).saturating_add(state.rows.saturating_mul(around))
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

/// Reads fixed-size fields from the front of untrusted bytes.
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
#[path = "schema_tests.rs"]
mod tests;

/// For the fuzz target: any bytes are read as a row of each kind, as they are and with the checksum that they need.
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) fn read_any(bytes: &[u8]) {
    for value in [bytes.to_vec(), sealed(bytes.to_vec())] {
        let _any = (parse_schema(&value), parse_identity(&value), parse_pages(&value, bytes), parse_entry(&value));
        if let Some(state) = parse_state(&value) {
            let again = parse_state(&state_value(&state)).map(|again| state_value(&again));
            assert_eq!(again, Some(state_value(&state)), "a state is written as it was read");
            let _any = page_bytes_at_most(&state);
        }
        if let Some(dead) = parse_dead(7, &value) {
            assert!(parse_dead(7, &dead_value(&dead)).is_some_and(|again| again.body == dead.body));
        }
    }
    let Some(key) = parse_chunk_key(bytes.get(..9).unwrap_or_default()) else { return };
    let value = bytes.get(9..).unwrap_or_default();
    let _any = parse_chunk(key, value);
    if let Some((head, frames)) = value.split_at_checked(CHUNK_HEAD - 16) {
        let mut whole = head.to_vec();
        whole.extend_from_slice(&xxh3_64(frames).to_le_bytes());
        let check = head_check(key, &whole);
        whole.extend_from_slice(&check.to_le_bytes());
        whole.extend_from_slice(frames);
        let _any = parse_chunk(key, &whole);
    }
}
