//! Tests of a queue as a whole. Each shows one part of the guarantee: an accepted record is in the queue, whatever
//! happens to the disk.
//!
//! * `power_cut.rs`: the machine stops at any moment, and any part of what was not synced may be on the disk;
//! * `model.rs`: random operations with leases, kills and clean ends, compared with a list in memory;
//! * `faults.rs`: any one call to the disk fails;
//! * `mutations.rs`: damaged files;
//! * `removed.rs`: files that are removed or replaced;
//! * `claims.rs`, `interrupted_opening.rs`, `free_space.rs`: shards that cannot be claimed, take too long to open, or
//!   are empty;
//! * `late.rs`: arenas that are checkpointed long after they were found;
//! * `out_of_reach.rs`: a directory that is not at its path;
//! * `status_page.rs`, `run.rs`: what the next owner reads from the status page.
//!
//! The body of each record contains a number that no other record has, so that a test can tell which records are there.

mod claims;
mod cut_disk;
mod faults;
mod free_space;
mod interrupted_opening;
mod late;
mod model;
mod mutations;
mod out_of_reach;
mod power_cut;
mod removed;
mod run;
mod status_page;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::recovery::Opened;
use super::*;
use crate::queue::frame;
use crate::queue::store::DeadRecord;
use crate::sys::disk::{Call, Disk, FileSystem, Gate, Verdict};

/// Small, so that tests reach its end.
pub(super) const ARENA: usize = 64 * 1024;
/// The time, where it does not matter.
pub(super) const NOW: WallNanos = 1_700_000_000_000_000_000;

pub(super) fn project() -> Project {
    Project { host: "https://eu.example".into(), api_key: "phc_key".into() }
}

pub(super) fn options(queue_dir: &Path) -> QueueOptions {
    QueueOptions {
        project: project(),
        queue_dir: queue_dir.to_path_buf(),
        arena_bytes: ARENA,
        lock_wait: Duration::from_millis(20),
        cache_bytes: 1 << 20,
        reserve_bytes: 16 * 1024,
        dead_bytes: 1 << 20,
        adopts: false,
    }
}

/// Opens the first free shard below `queue_dir`.
pub(super) fn try_open(disk: &Disk, queue_dir: &Path) -> Result<Opened, QueueError> {
    let claim = claim(disk, &queue_dir.join(project().dir_name()), &[])?;
    Queue::open(disk, &options(queue_dir), claim, NOW)
}

pub(super) fn open(disk: &Disk, queue_dir: &Path) -> Opened {
    try_open(disk, queue_dir).unwrap()
}

/// The directory that [`open`] takes first.
pub(super) fn first_shard(queue_dir: &Path) -> PathBuf {
    shard_dir(&queue_dir.join(project().dir_name()), 0)
}

/// In memory if possible: these tests are about bytes, and make their own power cuts.
pub(super) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A machine that works: its boot id, and whether its file system allows mapping.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) boot_id: u128,
    pub(super) mapped: bool,
}

impl Machine {
    pub(super) fn disk(boot_id: u128, mapped: bool) -> Disk {
        Disk::gated(Arc::new(Machine { boot_id, mapped }))
    }
}

impl Gate for Machine {
    fn before(&self, _call: &Call<'_>) -> Verdict {
        Verdict::Go
    }

    fn file_system(&self) -> Option<FileSystem> {
        Some(pretended(self.mapped))
    }

    fn boot_id(&self) -> Option<u128> {
        Some(self.boot_id)
    }
}

pub(super) fn pretended(mapped: bool) -> FileSystem {
    if mapped { FileSystem::Ext } else { FileSystem::Other }
}

/// A body that no other record has.
pub(super) fn body(id: u64) -> Vec<u8> {
    let mut body = id.to_le_bytes().to_vec();
    body.resize(8 + (id % 1_000) as usize * 37 % 300, id as u8);
    body
}

fn id_of(bytes: &[u8]) -> u64 {
    let id = u64::from_le_bytes(*bytes.first_chunk().unwrap());
    assert_eq!(bytes, body(id), "a record is not what was appended");
    id
}

pub(super) fn append(queue: &Queue, id: u64, class: u8) -> Result<Appended, AppendError> {
    let body = body(id);
    queue.append(&body, frame::hash_body(&body), class)
}

/// Sequence number and body number of every queued record.
pub(super) fn queued(queue: &Queue) -> Vec<(u64, u64)> {
    let read = queue.read(None, usize::MAX).unwrap();
    assert!(read.damaged.is_empty(), "damaged rows: {:?}", read.damaged);
    let mut records = Vec::new();
    for chunk in &read.chunks {
        let before = records.len();
        records.extend(frame::frames(&chunk.frames, chunk.salt).map(|(head, body)| (head.seq, id_of(body))));
        assert_eq!(records.len() - before, chunk.count as usize, "a row has other records than it says");
    }
    records
}

/// The next number of a fixed pseudorandom series.
pub(super) fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// An ack of a whole row whose events were all delivered.
pub(super) fn delivered(first_seq: u64, events: u64) -> Ack {
    let row = ChunkRef { origin: OWN, key: store::ChunkKey::new(first_seq) };
    Ack { row, delivered: events, dead: Vec::new(), keep: None }
}

/// An ack of a row that keeps the records of these sequence numbers.
pub(super) fn ack_keeping(row: &store::Chunk, delivered: u64, dead: Vec<DeadRecord>, keep: &[u64]) -> Ack {
    let keep = row.retain(|seq| keep.contains(&seq));
    Ack { row: ChunkRef { origin: OWN, key: row.key }, delivered, dead, keep }
}

/// A dead record made from a queued one.
pub(super) fn dead(seq: u64, id: u64) -> DeadRecord {
    let (reason, body) = ("not an event".to_owned(), body(id));
    DeadRecord { seq, status: 400, reason, first_attempt: NOW, last_attempt: NOW, attempts: 1, body }
}

/// A copy of a directory, as a kill would leave it.
pub(super) fn copy_of(dir: &Path) -> tempfile::TempDir {
    let copy = scratch();
    copy_into(dir, copy.path());
    copy
}

fn copy_into(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if from.is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_into(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}
