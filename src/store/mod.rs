//! STUB, replaced by the store itself when the branches meet.
#![allow(missing_docs, reason = "stub")]
use crate::clock::WallNanos;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChunkKey {
    pub(crate) lane: u8,
    pub(crate) first_seq: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) key: ChunkKey,
    pub(crate) count: u32,
    pub(crate) salt: u64,
    pub(crate) carried_at: WallNanos,
    pub(crate) frames: Arc<[u8]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadRecord {
    pub(crate) seq: u64,
    pub(crate) lane: u8,
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) first_attempt: WallNanos,
    pub(crate) last_attempt: WallNanos,
    pub(crate) attempts: u32,
    pub(crate) body: Vec<u8>,
}
