//! What a journal holds, for tests that look (feature `testing`).

use std::io;

use super::Journal;
use super::replay::{self, Replay};
use crate::record::frame;

impl Journal {
    /// The records that wait to be checkpointed, by their sequence numbers. A record may come twice while the committer is at work, but none
    /// is missed that is not in the store by the time this returns.
    pub(crate) fn contents(&self) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let active = {
            let active = self.lock();
            if active.stand_in {
                None
            } else {
                // Under the lock, or it might be begun anew meanwhile.
                Some(replay::replay(active.arena.read_frames(active.position)?, &active.round, None))
            }
        };
        let sealed = self.pool.all_sealed();
        let sealed = sealed.iter().map(|sealed| sealed.replay()).collect::<io::Result<Vec<_>>>()?;
        Ok(sealed.iter().chain(&active).flat_map(records).collect())
    }
}

fn records(replay: &Replay) -> impl Iterator<Item = (u64, Vec<u8>)> {
    let runs = replay.runs.iter().filter_map(|run| replay.bytes.get(run.range.clone()));
    runs.flat_map(|bytes| frame::frames(bytes, replay.salt).map(|(head, body)| (head.seq, body.to_vec())))
}
