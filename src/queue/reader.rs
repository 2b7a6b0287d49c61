//! Reading a shard without owning it: nothing in it is changed, however damaged it is.
//!
//! A shard without an owner is read in place. One with an owner changes while it is read, so it is copied first
//! ([`copy`]), in an order that misses no record: arenas, then the store. A record that is checkpointed in between is in
//! both copies, and the epoch in the copied store says so. The store's file is consistent if its header did not change
//! while it was copied: a database that copies on write never overwrites a page of the last commit before it has made
//! the next one.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::error::{QueueError, StoreError};
use super::frame;
use super::journal::arena::Round;
use super::journal::{self, peek};
use super::store::{self, DeadRecord, HEADER_BYTES, Ledger, Row, RowReader, State};
use crate::sys::clock::WallNanos;
use crate::sys::disk::{Disk, DiskFile, Open};

/// Something that a shard contains.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// A record that waits for delivery, the oldest first.
    Record {
        seq: u64,
        body: &'a [u8],
        /// When it was moved into the store; `None` while it is in the journal.
        checkpointed_at: Option<WallNanos>,
    },
    /// A dead letter.
    Dead(&'a DeadRecord),
    /// Something that cannot be read.
    Bad(Bad),
}

/// Something that cannot be read, and what can be saved of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bad {
    pub(crate) path: PathBuf,
    pub(crate) why: String,
    /// Records that are lost, where that is known.
    pub(crate) lost: Option<u64>,
}

/// What a shard contains, according to its store and its journal alone: the page is a mirror of them, which may lag, be
/// damaged or be that of another shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    /// The ledger of the store, if its state can be read.
    pub(crate) ledger: Option<Ledger>,
    /// Records in the journal that are not in the store.
    pub(crate) journal_events: u64,
}

impl Contents {
    /// Records that wait.
    pub(crate) fn queued_events(&self) -> u64 {
        self.ledger.map_or(0, |ledger| ledger.queued_events).saturating_add(self.journal_events)
    }
}

/// A shard, open for reading.
#[derive(Debug)]
pub(crate) struct Reader {
    dir: PathBuf,
    /// Arenas in use, the oldest first, and files that are none.
    arenas: Vec<(PathBuf, Round)>,
    bad_arenas: Vec<Bad>,
    rows: RowReader,
    /// The highest sequence number that the last owner accepted, according to its page.
    accepted: u64,
    /// Whether this is a copy of a queue that was in use: what was accepted after the copy began may be missing.
    is_copy: bool,
}

impl Reader {
    /// Opens the shard, or a [`copy`] of it. Fails if a newer version of this library wrote it.
    pub(crate) fn open(disk: &Disk, dir: &Path, is_copy: bool) -> Result<Self, QueueError> {
        let failed = |source| QueueError::Io { path: dir.to_path_buf(), source };
        if let Some(version) = super::newer_version(disk, dir).map_err(failed)? {
            return Err(QueueError::Newer { dir: dir.to_path_buf(), version });
        }
        let (mut arenas, mut bad_arenas) = (Vec::new(), Vec::new());
        for name in journal::file_names() {
            let path = dir.join(name);
            if !disk.exists(&path).map_err(failed)? {
                continue;
            }
            match peek::round(disk, &path) {
                Ok(Ok(round)) => arenas.extend(round.map(|round| (path, round))),
                Ok(Err(why)) => bad_arenas.push(Bad { path, why: why.to_owned(), lost: None }),
                Err(QueueError::JournalFile { path, source }) => {
                    if source.kind() == io::ErrorKind::PermissionDenied {
                        return Err(QueueError::JournalFile { path, source });
                    }
                    bad_arenas.push(Bad { path, why: source.to_string(), lost: None });
                }
                Err(error) => return Err(error),
            }
        }
        arenas.sort_by_key(|(_, round)| round.epoch);
        let rows = RowReader::open(disk, dir).map_err(|source| QueueError::Store { dir: dir.into(), source })?;
        let accepted = super::predecessor(disk, dir).accepted;
        Ok(Self { dir: dir.into(), arenas, bad_arenas, rows, accepted, is_copy })
    }

    /// The state of the store, if it can be read.
    pub(crate) fn state(&self) -> Option<&State> {
        self.rows.state()
    }

    /// The rows of the store.
    pub(super) fn rows(&self) -> &RowReader {
        &self.rows
    }

    /// The arenas in use, the oldest first, also those whose records are in the store.
    pub(super) fn arenas(&self) -> &[(PathBuf, Round)] {
        &self.arenas
    }

    /// The files that are no arenas.
    pub(super) fn bad_arenas(&self) -> &[Bad] {
        &self.bad_arenas
    }

    pub(super) fn is_copy(&self) -> bool {
        self.is_copy
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether there is a file of a store.
    pub(crate) fn has_store(&self) -> bool {
        self.rows.exists()
    }

    /// Counts what waits, and reads the journal for it.
    pub(crate) fn contents(&self, disk: &Disk) -> Result<Contents, QueueError> {
        let mut journal_events = 0;
        let _ = self.walk_journal(disk, &mut |found| {
            journal_events += u64::from(matches!(found, Found::Record { .. }));
            ControlFlow::Continue(())
        })?;
        Ok(Contents { ledger: self.state().map(|state| state.ledger), journal_events })
    }

    /// The rounds of the journal that are not in the store, the oldest first.
    pub(crate) fn rounds(&self) -> impl Iterator<Item = Round> + '_ {
        let stored = self.state().map_or(0, |state| state.epoch);
        self.arenas.iter().map(|(_, round)| *round).filter(move |round| round.epoch > stored)
    }

    /// Passes everything to `each`, until that breaks: rows of the store, records of the journal, dead letters, and in
    /// between what is damaged. Needs memory for one row or one arena. Returns whether it came to the end.
    pub(crate) fn walk(
        &self,
        disk: &Disk,
        each: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, QueueError> {
        for bad in &self.bad_arenas {
            if each(Found::Bad(bad.clone())).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let flow = self.rows.chunks(&mut |row| self.pass(row, each)).map_err(|source| self.failed(source))?;
        if flow.is_break() || self.walk_journal(disk, each)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.rows.dead(&mut |row| self.pass(row, each)).map_err(|source| self.failed(source))
    }

    /// Passes the dead letters alone to `each`, until that breaks.
    pub(crate) fn walk_dead(
        &self,
        each: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, QueueError> {
        self.rows.dead(&mut |row| self.pass(row, each)).map_err(|source| self.failed(source))
    }

    fn pass(&self, row: Row, each: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        let path = || self.dir.join(store::QUEUE);
        match row {
            Row::Chunk { chunk, lost } => {
                if lost > 0 {
                    let why = format!("the row of record {} is damaged in part", chunk.key.first_seq);
                    each(Found::Bad(Bad { path: path(), why, lost: Some(lost) }))?;
                }
                for (head, body) in frame::frames(&chunk.frames, chunk.salt) {
                    each(Found::Record { seq: head.seq, body, checkpointed_at: Some(chunk.checkpointed_at) })?;
                }
                ControlFlow::Continue(())
            }
            Row::Dead(dead) => each(Found::Dead(&dead)),
            Row::Lost { why, events } => each(Found::Bad(Bad { path: path(), why, lost: events })),
        }
    }

    pub(super) fn walk_journal(
        &self,
        disk: &Disk,
        each: &mut dyn FnMut(Found<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, QueueError> {
        // Records are passed in the order of their numbers, each once: an arena may have been copied over another one.
        let (stored, mut known) = self.state().map_or((0, 0), |state| (state.epoch, state.ledger.accepted));
        let rounds: Vec<_> = self.arenas.iter().filter(|(_, round)| round.epoch > stored).collect();
        for (at, (path, round)) in rounds.iter().enumerate() {
            // How far its records must reach: to the next round, and in the newest one to what the page says.
            let next = rounds.get(at + 1).map(|(_, next)| next.first_seq.saturating_sub(1));
            let next = next.map(|next| if self.is_copy { next.min(self.accepted) } else { next });
            let last_seq = next.unwrap_or(self.accepted).max(round.first_seq.saturating_sub(1));
            let replay = match peek::replay(disk, path, round, last_seq) {
                Ok(replay) => replay,
                Err(source) => {
                    let lost = Some(last_seq.saturating_add(1).saturating_sub(round.first_seq));
                    let bad = Bad { path: path.clone(), why: source.to_string(), lost };
                    if each(Found::Bad(bad)).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    continue;
                }
            };
            let mut found = 0_u64;
            for run in &replay.runs {
                let bytes = replay.bytes.get(run.range.clone()).unwrap_or_default();
                for (head, body) in frame::frames(bytes, replay.salt) {
                    found += 1;
                    if head.seq <= known {
                        continue;
                    }
                    known = head.seq;
                    if each(Found::Record { seq: head.seq, body, checkpointed_at: None }).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
            }
            let expected = last_seq.saturating_add(1).saturating_sub(round.first_seq);
            if let Some(lost) = expected.checked_sub(found).filter(|lost| *lost > 0) {
                let why = "records that were accepted are missing or damaged".to_owned();
                if each(Found::Bad(Bad { path: path.clone(), why, lost: Some(lost) })).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    pub(super) fn failed(&self, source: StoreError) -> QueueError {
        QueueError::Store { dir: self.dir.clone(), source }
    }
}

/// How often a copy of the store is tried before it is given up.
const COPY_ATTEMPTS: u32 = 8;
/// How many bytes are copied at a time.
const PIECE: usize = 1024 * 1024;

/// Copies a shard that a living process owns into files without names in `scratch`: they end with this process, however
/// it ends. `progress` gets the bytes copied so far. Returns a disk on which the shard's directory has the copies in
/// place of its files; `None` if the store changed each time that it was copied.
pub(crate) fn copy(
    disk: &Disk,
    shard: &Path,
    scratch: &Path,
    progress: &dyn Fn(u64),
) -> Result<Option<Disk>, QueueError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| QueueError::Io { path, source }
    };
    let (mut copies, mut copied) = (Vec::new(), 0);
    // The page first: what it counts as accepted is in the arenas that are copied next.
    for name in ["status".to_owned()].into_iter().chain(journal::file_names()) {
        let path = shard.join(&name);
        if disk.exists(&path).map_err(failed(&path))? {
            let copy = copy_file(disk, &path, scratch, &|done| progress(copied + done)).map_err(failed(&path))?;
            copied += copy.len().map_err(failed(&path))?;
            copies.push((path, copy));
        }
    }
    let path = shard.join(store::QUEUE);
    for _ in 0..COPY_ATTEMPTS {
        let before = header(disk, &path).map_err(failed(&path))?;
        let copy = copy_file(disk, &path, scratch, &|done| progress(copied + done)).map_err(failed(&path))?;
        if header(disk, &path).map_err(failed(&path))? == before {
            copies.push((path, copy));
            return Ok(Some(disk.with_copies(shard, copies)));
        }
    }
    Ok(None)
}

fn header(disk: &Disk, path: &Path) -> io::Result<([u8; HEADER_BYTES], u64)> {
    let (file, mut bytes) = (disk.open(path, Open::ReadOnly)?, [0; HEADER_BYTES]);
    let len = file.len()?;
    let readable = len.min(HEADER_BYTES as u64) as usize;
    file.read_exact_at(0, &mut bytes[..readable])?;
    Ok((bytes, len))
}

fn copy_file(disk: &Disk, from: &Path, scratch: &Path, progress: &dyn Fn(u64)) -> io::Result<DiskFile> {
    let (source, target) = (disk.open(from, Open::ReadOnly)?, disk.create_unnamed(scratch)?);
    let len = source.len()?;
    target.set_len(len)?;
    let mut at = 0;
    while at < len {
        let mut piece = vec![0; (len - at).min(PIECE as u64) as usize];
        source.read_exact_at(at, &mut piece)?;
        // What is not written stays a hole: most of an arena is empty.
        if piece.iter().any(|byte| *byte != 0) {
            target.write_all_at(at, &piece)?;
        }
        at += piece.len() as u64;
        progress(at);
    }
    Ok(target)
}
