//! Reading the rows of a store that this process does not own: in its file nothing is changed, and each row must pass
//! its own checks. Stands on salvage, so damage costs only the rows that it is in.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{StoreDir, StoreOptions};
use super::open;
use super::rows::{Chunk, DeadRecord, Project, State};
use super::salvage::{Copied, Salvage, Table};
use super::schema::{self, ChunkRow, Meta};
use crate::queue::error::StoreError;
use crate::sys::disk::{Disk, Home};

/// A row, as far as it can be read.
#[derive(Debug)]
pub(crate) enum Row {
    /// Records, of which `lost` others of the same row are damaged.
    Chunk {
        chunk: Chunk,
        lost: u64,
    },
    Dead(DeadRecord),
    /// A row, or a range of rows, of which nothing can be read.
    Lost {
        why: String,
        /// The number of records, if it is known.
        events: Option<u64>,
    },
}

/// A store's file, open for reading.
#[derive(Debug)]
pub(crate) struct RowReader {
    place: StoreDir,
    /// Whether there is a file.
    exists: bool,
    meta: Meta,
}

type Each<'a> = &'a mut dyn FnMut(Row) -> ControlFlow<()>;
/// Gets key and value of a row.
type EachRow<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

impl RowReader {
    /// Opens the store in `dir`. A file that is missing or cannot be read has no rows; one of a newer version is refused.
    pub(crate) fn open(disk: &Disk, dir: &Path) -> Result<Self, StoreError> {
        let options = StoreOptions {
            project: Project { host: String::new(), api_key: String::new() },
            cache_bytes: 1024 * 1024,
            reserve_bytes: 0,
            dead_bytes: 0,
            check_integrity: false,
            untrusted: true,
            unreadable: false,
            witness: None,
        };
        let place = StoreDir {
            disk: disk.clone(),
            dir: dir.to_path_buf(),
            home: Home::of(dir)?,
            options,
            condemned: Arc::default(),
        };
        let path = place.to_read()?;
        let exists = disk.exists(&path)?;
        if exists {
            // An error here (a permission) must not look like damage.
            disk.open(&path, crate::sys::disk::Open::ReadOnly)?;
        }
        let mut meta = Meta::default();
        if exists {
            meta = Salvage::open(&place)?.meta()?;
        }
        if let Some(found) = meta.schema.filter(|found| *found > schema::SCHEMA) {
            return Err(StoreError::Newer { found, known: schema::SCHEMA });
        }
        Ok(Self { place, exists, meta })
    }

    /// Whether the store's file exists.
    pub(crate) fn exists(&self) -> bool {
        self.exists
    }

    /// The state, if it can be read.
    pub(crate) fn state(&self) -> Option<&State> {
        self.meta.state.as_ref()
    }

    /// The project, if it can be read.
    pub(crate) fn project(&self) -> Option<&Project> {
        self.meta.identity.as_ref().map(|(project, _)| project)
    }

    /// Lets the database itself verify every page, as an owner does after a death in the store, and checks the rows that
    /// identify the file. What the database would write stays in memory. Returns what is wrong.
    pub(crate) fn check(&self) -> Option<String> {
        if !self.exists {
            return None;
        }
        let checked = self.place.to_read().map_err(StoreError::from);
        let checked = checked.and_then(|path| open::state_of_whole(&self.place, &path, None).map(drop));
        checked.err().map(|error| open::in_full(&error))
    }

    /// The finished file of an interrupted replacement, and why the next owner will not use it. `None` if there is none,
    /// or it will be used.
    pub(crate) fn refused_replacement(&self) -> Option<(PathBuf, String)> {
        let ready = self.place.ready();
        let is_beside = self.place.disk.exists(&ready).ok()? && self.place.disk.exists(&self.place.queue()).ok()?;
        let objection = if is_beside { open::objection(&self.place, self.project()) } else { Ok(None) };
        objection.unwrap_or_else(|error| Some(open::in_full(&error))).map(|why| (ready, why))
    }

    /// Bytes of the rows of dead letters according to the state, if they were counted.
    pub(crate) fn dead_bytes(&self) -> Option<u64> {
        self.meta.state.as_ref()?.dead_bytes
    }

    /// Passes the chunks to `each`, until that breaks. Ascending, as long as nothing is damaged.
    pub(crate) fn chunks(&self, each: Each<'_>) -> Result<ControlFlow<()>, StoreError> {
        let mut read: u64 = 0;
        let mut pass = |key: &[u8], value: &[u8]| {
            let lost = |why, events| Row::Lost { why, events };
            let Some(key) = schema::parse_chunk_key(key) else {
                return each(lost("a row has a key that this library does not write".into(), None));
            };
            let seq = key.first_seq;
            let row = match schema::parse_chunk(key, value) {
                ChunkRow::Whole(chunk) => Row::Chunk { chunk, lost: 0 },
                ChunkRow::Torn(torn) => match torn.salvage() {
                    Some(chunk) => Row::Chunk { lost: u64::from(torn.count.saturating_sub(chunk.count)), chunk },
                    None => lost(format!("no record of the row of record {seq} is whole"), Some(u64::from(torn.count))),
                },
                ChunkRow::Lost => lost(format!("the head of the row of record {seq} is damaged"), None),
            };
            read = read.saturating_add(match &row {
                Row::Chunk { chunk, lost } => u64::from(chunk.count).saturating_add(*lost),
                Row::Lost { events, .. } => events.unwrap_or(0),
                Row::Dead(_) => 0,
            });
            each(row)
        };
        let (flow, copied) = self.table(Table::Chunks, &mut pass)?;
        let lost = self.state().map(|state| state.ledger.queued_events.saturating_sub(read));
        Ok(report(flow, copied, "rows", lost, each))
    }

    /// Passes the dead letters to `each`, until that breaks.
    pub(crate) fn dead(&self, each: Each<'_>) -> Result<ControlFlow<()>, StoreError> {
        let mut rows = 0;
        let mut pass = |key: &[u8], value: &[u8]| {
            rows += 1;
            let seq = key.first_chunk().map_or(0, |seq| u64::from_be_bytes(*seq));
            match schema::dead_of(key, value) {
                Some(dead) => each(Row::Dead(dead)),
                None => each(Row::Lost { why: format!("dead letter {seq} is damaged"), events: Some(1) }),
            }
        };
        let (flow, copied) = self.table(Table::Dead, &mut pass)?;
        let lost = copied.as_ref().map_or(0, |copied| copied.lost(rows));
        Ok(report(flow, copied, "dead letters", Some(lost), each))
    }

    fn table(&self, table: Table, pass: EachRow<'_>) -> Result<(ControlFlow<()>, Option<Copied>), StoreError> {
        if !self.exists {
            return Ok((ControlFlow::Continue(()), None));
        }
        let (mut flow, mut salvage) = (ControlFlow::Continue(()), Salvage::open(&self.place)?);
        salvage.expect(&self.meta);
        let walked = salvage.copy_table(table, &mut |key, value| {
            flow = pass(key, value);
            // Any error ends the walk; this one is not reported.
            if flow.is_break() { Err(StoreError::Latched) } else { Ok(()) }
        });
        if flow.is_break() {
            return Ok((flow, None));
        }
        Ok((flow, Some(walked?)))
    }
}

/// Reports the pages of the table that are damaged, or cannot be found, with what is `lost` and was not reported yet.
fn report(
    flow: ControlFlow<()>,
    copied: Option<Copied>,
    of: &str,
    lost: Option<u64>,
    each: Each<'_>,
) -> ControlFlow<()> {
    flow?;
    let Some(Copied { damaged_pages, is_complete, .. }) = copied else { return ControlFlow::Continue(()) };
    let why = match (damaged_pages, is_complete) {
        // The ledger alone says that events are missing: that is for those who verify.
        (0, true) if of == "rows" || lost == Some(0) => return ControlFlow::Continue(()),
        (0, true) => format!("the table of the {of} has fewer than it should"),
        (0, false) => {
            format!("the file does not say where the table of the {of} is; what a search does not find of it is lost")
        }
        (1, _) => format!("a page of the table of the {of} is damaged; what cannot be read of it is lost"),
        (pages, _) => {
            format!("{pages} pages of the table of the {of} are damaged; what cannot be read of them is lost")
        }
    };
    each(Row::Lost { why, events: lost })
}
