//! The database's tables, and how each transaction is begun.

use redb::{Database, Durability, ReadTransaction, ReadableDatabase, TableDefinition, WriteTransaction};

use super::rows::{self, SCHEMA, State};
use super::{Identity, StoreError};

/// Lane and first sequence number to a chunk.
pub(super) const CHUNKS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("chunks");
/// Sequence number to a dead record.
pub(super) const DEAD: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("dead");
/// The five rows below.
pub(super) const META: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("meta");

/// Which version wrote the file.
pub(super) const SCHEMA_ROW: &[u8] = b"schema";
/// Whose queue it is.
pub(super) const IDENTITY_ROW: &[u8] = b"identity";
/// What changes with every transaction.
pub(super) const STATE_ROW: &[u8] = b"state";
/// What the chunk rows take, beside the state that it belongs to.
const PAGES_ROW: &[u8] = b"pages";

/// Definitions of flags, for the next owner. It says nothing of the store, which is whole without it.
const DEFINITIONS_ROW: &[u8] = b"flag_definitions";

/// A transaction that survives the power once committed, and leaves a file that opens without being walked.
pub(super) fn begin(db: &Database) -> Result<WriteTransaction, StoreError> {
    let mut transaction = db.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    // Two syncs instead of one and the allocator's state written each time; the first open after SIGKILL is 500 times faster.
    transaction.set_quick_repair(true);
    Ok(transaction)
}

/// Writes the rows that say what the file is.
pub(super) fn write_identity(transaction: &WriteTransaction, identity: &Identity) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META)?;
    meta.insert(SCHEMA_ROW, rows::schema_value(SCHEMA).as_slice())?;
    meta.insert(IDENTITY_ROW, rows::identity_value(identity).as_slice())?;
    Ok(())
}

/// Writes the rows that change with every transaction.
pub(super) fn write_state(transaction: &WriteTransaction, state: &State) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META)?;
    let value = rows::state_value(state);
    meta.insert(STATE_ROW, value.as_slice())?;
    meta.insert(PAGES_ROW, rows::pages_value(state.row_bytes, state.dead_bytes, &value).as_slice())?;
    Ok(())
}

/// Writes the row of the definitions, or removes it.
pub(super) fn write_definitions(transaction: &WriteTransaction, content: Option<&[u8]>) -> Result<(), StoreError> {
    let mut meta = transaction.open_table(META)?;
    match content {
        Some(content) => drop(meta.insert(DEFINITIONS_ROW, rows::definitions_value(content).as_slice())?),
        None => drop(meta.remove(DEFINITIONS_ROW)?),
    }
    Ok(())
}

/// Reads what [`write_definitions`] wrote.
pub(super) fn read_definitions(db: &impl ReadableDatabase) -> Result<Option<Vec<u8>>, StoreError> {
    meta_row(&db.begin_read()?, DEFINITIONS_ROW, rows::parse_definitions)
}

/// What the `meta` table says, row by row; a row that is missing or damaged is `None`.
#[derive(Debug, Default)]
pub(super) struct Meta {
    pub(super) schema: Option<u32>,
    pub(super) identity: Option<Identity>,
    pub(super) state: Option<State>,
}

/// Reads the `meta` table.
pub(super) fn read_meta(db: &impl ReadableDatabase) -> Result<Meta, StoreError> {
    let transaction = db.begin_read()?;
    let mut state = meta_row(&transaction, STATE_ROW, rows::parse_state)?;
    if let Some(state) = &mut state {
        let known = meta_row(&transaction, PAGES_ROW, |value| rows::parse_pages(value, &rows::state_value(state)))?;
        (state.row_bytes, state.dead_bytes) = known.unwrap_or_else(|| (rows::page_bytes_at_most(state), None));
    }
    Ok(Meta {
        schema: meta_row(&transaction, SCHEMA_ROW, rows::parse_schema)?,
        identity: meta_row(&transaction, IDENTITY_ROW, rows::parse_identity)?,
        state,
    })
}

fn meta_row<T>(
    transaction: &ReadTransaction,
    row: &[u8],
    parse: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<Option<T>, StoreError> {
    let found = transaction.open_table(META)?.get(row)?;
    Ok(found.and_then(|value| parse(value.value())))
}

impl Meta {
    /// Refuses what must be left alone: a newer version's file, another project's file.
    pub(super) fn refuse_foreign(&self, project_hash: &[u8; 32]) -> Result<(), StoreError> {
        if let Some(found) = self.schema.filter(|found| *found > SCHEMA) {
            return Err(StoreError::Newer { found, known: SCHEMA });
        }
        if self.identity.as_ref().is_some_and(|identity| identity.project_hash != *project_hash) {
            return Err(StoreError::OtherProject);
        }
        Ok(())
    }

    /// All of it, or the file is damaged: a store is never visible without these rows.
    pub(super) fn complete(self) -> Result<(Identity, State), StoreError> {
        match (self.schema, self.identity, self.state) {
            (Some(_), Some(identity), Some(state)) => Ok((identity, state)),
            _ => Err(StoreError::damaged("the rows that say what the file is are missing or damaged")),
        }
    }
}
