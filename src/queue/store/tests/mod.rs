//! Tests of the store as a whole, and their helpers.

mod damage;
mod faults;
mod full_disk;
mod meta;
mod queue;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::queue::frame;
use crate::sys::disk::{Call, Gate, Op, Verdict};

pub(super) const SALT: u64 = 0x5A17;

pub(super) fn options() -> StoreOptions {
    StoreOptions {
        project: Project { host: "https://eu.example".into(), api_key: "phc_key".into() },
        cache_bytes: 1 << 20,
        reserve_bytes: 0,
        dead_bytes: 1 << 20,
        check_integrity: false,
        untrusted: false,
        unreadable: false,
        witness: None,
    }
}

/// Records `first..first + count` of `body_bytes` each.
pub(super) fn chunk(first: u64, count: u32, body_bytes: usize) -> Chunk {
    let mut frames = Vec::new();
    for seq in first..first + u64::from(count) {
        frame::append(&mut frames, &vec![seq as u8; body_bytes.max(1)], 0, seq, SALT);
    }
    let key = ChunkKey::new(first);
    Chunk { key, count, salt: SALT, checkpointed_at: first as i64, frames: frames.into() }
}

/// The checkpoint of one chunk with `epoch`.
pub(super) fn checkpoint(epoch: u64, first: u64, count: u32) -> Changes {
    checkpoint_of(epoch, chunk(first, count, 100))
}

pub(super) fn checkpoint_of(epoch: u64, chunk: Chunk) -> Changes {
    let accepted_up_to = chunk.key.first_seq + u64::from(chunk.count) - 1;
    Changes { insert: vec![chunk], journal_epoch: Some(epoch), accepted_up_to, ..Changes::default() }
}

pub(super) fn delivered(chunk: &Chunk) -> Changes {
    let removal = Removal { key: chunk.key, keep: None, delivered: chunk.count, dead_lettered: 0, evicted: 0 };
    Changes { remove: vec![removal], ..Changes::default() }
}

pub(super) fn open_in(dir: &Path) -> (Store, OpenReport) {
    Store::open(&Disk::default(), dir, &options(), 1_000).unwrap()
}

/// All rows.
pub(super) fn read_all(store: &Store) -> Read {
    store.read(None, usize::MAX).unwrap()
}

pub(super) fn events_in(store: &Store) -> u64 {
    read_all(store).chunks.iter().map(|chunk| u64::from(chunk.count)).sum()
}

/// In memory if possible: for tests about bytes rather than the disk.
pub(super) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Fails calls of one kind on one file, from the `after`-th on, as long as it is armed.
#[derive(Debug)]
pub(super) struct Fault {
    op: Op,
    file: &'static str,
    error: fn() -> io::Error,
    /// Calls that still succeed; `u64::MAX` for all.
    left: AtomicU64,
}

impl Fault {
    pub(super) fn of(op: Op, file: &'static str, error: fn() -> io::Error) -> Arc<Self> {
        Arc::new(Self { op, file, error, left: AtomicU64::new(u64::MAX) })
    }

    pub(super) fn arm(&self, after: u64) {
        self.left.store(after, Ordering::SeqCst);
    }

    pub(super) fn disarm(&self) {
        self.arm(u64::MAX);
    }
}

impl Gate for Fault {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if call.op != self.op || !call.path.ends_with(self.file) {
            return Verdict::Go;
        }
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            0 | u64::MAX => None,
            left => Some(left - 1),
        });
        if left == Err(0) { Verdict::Fail((self.error)()) } else { Verdict::Go }
    }
}

pub(super) fn broken() -> io::Error {
    io::Error::other("bad sector")
}

pub(super) fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}
