//! The mark of an opening that is under way, for a process that ends in good order meanwhile.
//!
//! An owner that dies while it opens the store is counted, for it may have died of that: after three of them the file is not trusted
//! any more. Who exits, or lets the shard go because opening it takes too long, has not died; it says so on the status page.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Claim;
use super::status::{Phase, Predecessor, STATUS_BYTES, StatusPage};
use super::words::Word;
use crate::sys::disk::{Disk, DiskFile, Mapping, Open};

/// The phase on the page of a shard whose opening has not come to its end.
#[derive(Debug)]
pub(crate) struct OpeningMark {
    file: DiskFile,
    /// Where the owner's own page is mapped, so is this: then it costs no call to the disk, which may be what hangs.
    words: Option<Mapping>,
    /// What the phase was before: the store is still to be checked, or not.
    before: Phase,
}

impl OpeningMark {
    /// Of a shard that is claimed and about to be opened. `None` if it has no page yet, or one that cannot be read.
    pub(crate) fn of(disk: &Disk, claim: &Claim) -> Option<Self> {
        let path = claim.dir().join("status");
        if !disk.exists(&path).ok()? {
            return None;
        }
        let file = disk.open(&path, Open::Existing).ok()?;
        if file.len().ok()? < STATUS_BYTES as u64 {
            return None;
        }
        let is_mapped = disk.file_system(claim.dir()).ok()?.may_map();
        let words = if is_mapped { Some(file.map(STATUS_BYTES).ok()?) } else { None };
        let mark = Self { file, words, before: Phase::Quiet };
        let before = if mark.phase()? == Phase::Quiet as u64 { Phase::Quiet } else { Phase::Store };
        Some(Self { before, ..mark })
    }

    /// The opening is given up, or goes on without anybody who waits for it; whatever ends the process now, it is not that.
    pub(crate) fn give_up(&self) {
        let (opening, before) = (Phase::Opening as u64, self.before as u64);
        if let Some(word) = self.word() {
            let _ = word.compare_exchange(opening, before, Ordering::Relaxed, Ordering::Relaxed);
        } else if self.phase() == Some(opening) {
            // Not written: then it counts as a death, of which three do no harm but for the time that they cost.
            let _ = self.file.write_all_at(at(Word::Phase), &before.to_le_bytes());
        }
    }

    fn phase(&self) -> Option<u64> {
        if let Some(word) = self.word() {
            return Some(word.load(Ordering::Relaxed));
        }
        let mut bytes = [0; size_of::<u64>()];
        self.file.read_exact_at(at(Word::Phase), &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    fn word(&self) -> Option<&AtomicU64> {
        self.words.as_ref()?.word64(Word::Phase as usize * size_of::<u64>())
    }
}

fn at(word: Word) -> u64 {
    (word as usize * size_of::<u64>()) as u64
}

/// Owners in a row that died while opening the store, by what the last one left: its phase, and how many there were before it.
pub(super) fn deaths_after(phase: u64, deaths: u64) -> u64 {
    match phase {
        phase if phase == Phase::Quiet as u64 => 0,
        phase if phase == Phase::Opening as u64 => deaths.saturating_add(1),
        // Nothing was added by an owner that gave the opening up, and one that has opened the store leaves 0.
        _ => deaths,
    }
}

impl StatusPage {
    /// The store could not be opened: whatever was to be done about it is still to be done.
    pub(super) fn leave_unopened(&self, before: &Predecessor) {
        if before.died_in_store {
            self.set_phase(Phase::Store);
        }
    }

    /// The owner has the shard beside another one of its own, in which its life is written.
    pub(super) fn become_adopted(&mut self) {
        if !std::mem::replace(&mut self.adopts, true) {
            self.set(Word::LifePid, 0);
            self.publish();
        }
    }
}
