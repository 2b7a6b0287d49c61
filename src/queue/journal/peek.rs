//! Reading an arena that this process does not own. Nothing is written or mapped.

use std::io;
use std::path::Path;

use super::arena::{HEADER_BYTES, Header, Round, STATE_AT, decode_header, likely_end_of};
use super::replay::{self, Replay};
use crate::queue::error::QueueError;
use crate::sys::disk::{Disk, DiskFile, Open};

/// Most bytes that are read of an arena, whatever its length. The library makes none that is larger.
const READ_MOST: u64 = 256 * 1024 * 1024;

/// The round in the arena; `None` if it is free or was never completed. The inner error says why the file is no arena.
pub(crate) fn round(disk: &Disk, path: &Path) -> Result<Result<Option<Round>, &'static str>, QueueError> {
    let failed = |source| QueueError::JournalFile { path: path.to_path_buf(), source };
    let file = disk.open(path, Open::ReadOnly).map_err(failed)?;
    Ok(match header(&file).map_err(failed)? {
        Header::Newer(version) => return Err(QueueError::JournalNewer { path: path.to_path_buf(), version }),
        Header::InUse(round) => Ok(Some(round)),
        Header::Blank | Header::Free => Ok(None),
        Header::Damaged => Err("its header is damaged"),
        Header::Foreign => Err("it is not a journal of this library"),
    })
}

fn header(file: &DiskFile) -> io::Result<Header> {
    let mut head = [0; STATE_AT + 8];
    let readable = file.len()?.min(head.len() as u64) as usize;
    file.read_exact_at(0, &mut head[..readable])?;
    Ok(decode_header(&head))
}

/// The records of a round, as recovery finds them: see `SealedArena::replay`.
pub(crate) fn replay(disk: &Disk, path: &Path, round: &Round, last_seq: u64) -> io::Result<Replay> {
    let file = disk.open(path, Open::ReadOnly)?;
    let end = usize::try_from(file.len()?.min(READ_MOST)).unwrap_or(0);
    let read = |from: usize, to: usize| {
        let mut bytes = vec![0; to.saturating_sub(from)];
        file.read_exact_at(from as u64, &mut bytes)?;
        Ok(bytes)
    };
    let likely_end = likely_end_of(end, read)?;
    let found = replay::replay(read(HEADER_BYTES.min(likely_end), likely_end)?, round, Some(last_seq));
    let is_complete = found.last_seq().map_or(round.first_seq, |last| last.saturating_add(1)) > last_seq;
    if is_complete || likely_end == end {
        return Ok(found);
    }
    drop(found);
    Ok(replay::replay(read(HEADER_BYTES.min(end), end)?, round, Some(last_seq)))
}
