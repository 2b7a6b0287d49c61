//! Moves events from the journal into the store, and out of the store once they are acked.

use std::sync::Arc;

use super::{Ack, Queue, QueueError, StoreError};
use crate::queue::journal::SealedArena;
use crate::queue::journal::replay::Replay;
use crate::queue::store::{Applied, CHUNK_BYTES_TARGET, Changes, Chunk, ChunkKey, DeadRead, Read, Removal, Store};
use crate::sys::clock::WallNanos;

/// How much one read of dead records returns, so that reading all of them needs a bounded amount of memory.
const DEAD_READ_BYTES: usize = 1024 * 1024;

/// The result of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checkpointed {
    /// Events that were moved into the store.
    pub(crate) events: u64,
    /// Accepted events that were not found.
    pub(crate) missing: u64,
    /// Whether the machine was restarted since: then they had not been synced. Otherwise they are damaged.
    pub(crate) after_restart: bool,
    /// The sequence number up to which everything is in the store.
    pub(crate) up_to: u64,
}

impl Queue {
    /// Checkpoints the oldest sealed arena, and applies the acks in the same transaction. `None` if no arena waits.
    pub(crate) fn checkpoint(
        &self,
        acks: &[Ack],
        next_attempt: Option<Option<WallNanos>>,
        now: WallNanos,
    ) -> Result<Option<Checkpointed>, QueueError> {
        let Some(sealed) = self.journal.oldest_sealed() else { return Ok(None) };
        let changes = changes(acks, next_attempt);
        // An arena that could not be checkpointed at open may have been filled before the machine was restarted.
        let same_boot = self.status.is_of_this_boot(sealed.round.epoch);
        let checkpointed = self.in_store(|store| checkpoint_into(store, &sealed, changes, now, same_boot))?;
        self.journal.free_oldest();
        self.mirror(now);
        Ok(Some(checkpointed))
    }

    /// Bytes of the pages that the records of an arena will take in the store; 0 if they cannot be read, because then
    /// they cannot be checkpointed.
    pub(crate) fn page_bytes_of(&self, sealed: &SealedArena) -> u64 {
        let Ok(replay) = sealed.replay() else { return 0 };
        let pieces = replay.pieces(CHUNK_BYTES_TARGET, self.ledger().accepted);
        pieces.iter().map(|piece| Chunk::page_bytes_with(piece.range.len())).sum()
    }

    /// Applies acks without checkpointing anything.
    pub(crate) fn ack(
        &self,
        acks: &[Ack],
        next_attempt: Option<Option<WallNanos>>,
        now: WallNanos,
    ) -> Result<Applied, QueueError> {
        let changes = changes(acks, next_attempt);
        let applied = self.in_store(|store| store.apply(&changes))?;
        crate::sys::crash_point::reach("ack.committed");
        self.mirror(now);
        Ok(applied)
    }

    /// Dead records after `after`, oldest first: up to `limit` of them in [`DEAD_READ_BYTES`], but at least one.
    pub(crate) fn dead(&self, after: Option<u64>, limit: usize) -> Result<DeadRead, QueueError> {
        self.read_store(|store| store.dead(after, limit, DEAD_READ_BYTES))
    }

    /// The sequence numbers of all dead records, including those that cannot be read.
    pub(crate) fn dead_seqs(&self) -> Result<Vec<u64>, QueueError> {
        self.read_store(Store::dead_seqs)
    }

    /// Removes dead records. The ledger goes on counting them.
    pub(crate) fn remove_dead(&self, seqs: Vec<u64>) -> Result<(), QueueError> {
        let changes = Changes { remove_dead: seqs, ..Changes::default() };
        self.in_store(|store| store.apply(&changes)).map(drop)
    }

    /// Stores `content` under `name` for the next owner, or removes it. The bytes are opaque to the queue.
    pub(crate) fn put_meta(&self, name: &str, content: Option<&[u8]>) -> Result<(), QueueError> {
        self.in_store(|store| store.put_meta(name, content))
    }

    /// What [`put_meta`](Self::put_meta) stored under `name`. `None` also if it cannot be read.
    pub(crate) fn meta(&self, name: &str) -> Option<Vec<u8>> {
        self.open_store()?.meta(name)
    }

    /// Replaces rows that fail their checks by the whole records in them. Returns how many events are lost.
    pub(crate) fn repair(&self, removals: Vec<Removal>, now: WallNanos) -> Result<u64, QueueError> {
        let changes = Changes { remove: removals, ..Changes::default() };
        let applied = self.in_store(|store| store.apply(&changes))?;
        self.mirror(now);
        Ok(applied.damaged_events)
    }

    /// The chunks after `after`, oldest first.
    pub(crate) fn read(&self, after: Option<ChunkKey>, max_bytes: usize) -> Result<Read, QueueError> {
        self.read_store(|store| store.read(after, max_bytes))
    }

    /// The newest chunk, unless its row fails its checks.
    pub(crate) fn newest(&self) -> Result<Option<Chunk>, QueueError> {
        self.read_store(Store::newest)
    }
}

/// The changes to the store that acks stand for, in their order: a later one may be about what an earlier one keeps.
fn changes(acks: &[Ack], next_attempt: Option<Option<WallNanos>>) -> Changes {
    let removal = |ack: &Ack| Removal {
        key: ack.row.key,
        keep: ack.keep.clone(),
        delivered: u32::try_from(ack.delivered).unwrap_or(u32::MAX),
        dead_lettered: u32::try_from(ack.dead.len()).unwrap_or(u32::MAX),
        evicted: 0,
    };
    Changes {
        remove: acks.iter().map(removal).collect(),
        dead_letter: acks.iter().flat_map(|ack| ack.dead.iter().cloned()).collect(),
        next_attempt,
        ..Changes::default()
    }
}

/// Moves an arena into the store. `same_boot` says whether the machine has been up since the arena was filled.
pub(super) fn checkpoint_into(
    store: &Store,
    sealed: &SealedArena,
    mut changes: Changes,
    now: WallNanos,
    same_boot: bool,
) -> Result<Checkpointed, StoreError> {
    let before = store.ledger().accepted;
    if sealed.round.epoch <= store.journal_epoch() {
        // The arena was checkpointed before, and its owner died, or got an error from the commit, before it freed
        // the arena.
        if !changes.remove.is_empty() || changes.next_attempt.is_some() {
            store.apply(&changes)?;
        }
        return Ok(Checkpointed { up_to: before, ..Checkpointed::default() });
    }
    let replay = sealed.replay()?;
    let (chunks, up_to) = chunks(&replay, before, now);
    let events: u64 = chunks.iter().map(|chunk| u64::from(chunk.count)).sum();
    let up_to = up_to.max(sealed.last_seq.unwrap_or(0)).max(before);
    let missing = (up_to - before).saturating_sub(events);
    changes.insert = chunks;
    changes.journal_epoch = Some(sealed.round.epoch);
    changes.accepted_up_to = up_to;
    changes.count_missing(missing, same_boot);
    store.apply(&changes)?;
    Ok(Checkpointed { events, missing, after_restart: !same_boot, up_to })
}

/// The records after `checkpointed`, cut into rows, and the highest sequence number among all records found.
fn chunks(replay: &Replay, checkpointed: u64, now: WallNanos) -> (Vec<Chunk>, u64) {
    let pieces = replay.pieces(CHUNK_BYTES_TARGET, checkpointed);
    let chunks = pieces.iter().map(|piece| Chunk {
        key: ChunkKey::new(piece.first_seq),
        count: piece.count,
        salt: replay.salt,
        checkpointed_at: now,
        frames: Arc::from(replay.bytes.get(piece.range.clone()).unwrap_or_default()),
    });
    (chunks.collect(), replay.last_seq().unwrap_or(0))
}
