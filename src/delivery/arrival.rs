//! What becomes of a chunk that was read.

use std::ops::Range;
use std::time::Instant;

use super::aside::EventId;
use super::batch::Batch;
use super::intake::{Intake, READ_BYTES, Wanted};
use super::loaded::{Reason, Slice};
use crate::queue::{ChunkRef, Lease};

impl Intake {
    /// A chunk was read: its records go into the next batches, or into pieces of a search, or stay where they are.
    pub(super) fn take_in(&mut self, lease: Lease, wanted: Wanted, now: Instant) {
        let reference = lease.row();
        let failed_since = self.loaded.failed_since(reference);
        let is_doubted = wanted == Wanted::All && failed_since.is_some_and(|since| self.accepted > since);
        let whole = self.loaded.insert(lease);
        let is_due = self.aside.take_out(reference);
        let quarantined = self.aside.times(reference).max(1);
        let suspects = self.suspects_of(&whole);
        let mut clean = whole.range.start;
        for (position, reason) in suspects {
            self.queue(reference, clean..position, is_doubted);
            clean = position + 1;
            if is_due {
                let slice = Slice { chunk: reference, range: position..position + 1 };
                self.loaded.retain(&slice);
                self.due.push_back(Batch { quarantined, ..Batch::of(slice, &self.loaded) });
            } else {
                self.loaded.set_aside(reference, reason);
            }
        }
        self.queue(reference, clean..whole.range.end, is_doubted);
        // The parts are counted; the whole no longer is. A chunk without a readable record is closed by this.
        let closed = self.loaded.release(&whole);
        self.ack(closed, now);
    }

    fn suspects_of(&self, slice: &Slice) -> Vec<(usize, Reason)> {
        if !self.aside.has_suspects() {
            return Vec::new();
        }
        let reason = |event| match self.aside.refused_since(event) {
            Some(_) => Reason::EventsRefused,
            None => Reason::EventsFail,
        };
        let named = self.loaded.open(slice).map(|(position, seq, _)| (position, EventId::of(slice.chunk, seq)));
        let suspects = named.filter(|&(_, event)| self.aside.is_suspect(event));
        suspects.map(|(position, event)| (position, reason(event))).collect()
    }

    fn queue(&mut self, chunk: ChunkRef, range: Range<usize>, is_doubted: bool) {
        if range.is_empty() {
            return;
        }
        let slice = Slice { chunk, range };
        self.loaded.retain(&slice);
        if !is_doubted {
            return self.ready.push_back(slice);
        }
        // Neighbours are searched together: of what failed in an outage, nearly all is good.
        let piece = Batch::of(slice, &self.loaded);
        match self.doubted.last_mut().filter(|last| last.bytes < READ_BYTES) {
            Some(last) => last.join(piece),
            None => self.doubted.push(piece),
        }
    }

    /// What of it is in memory, to be searched.
    pub(super) fn doubted_bytes(&self) -> usize {
        self.doubted.iter().map(|piece| piece.bytes).sum()
    }
}
