//! The reserve: space that is given up so that acks get through on a full disk.
//!
//! Removing a row writes new pages first. On a full file system not one removal succeeds, and a queue that cannot shrink never
//! makes room again. So a file of a mebibyte is kept beside the store, really written; it goes when a ack finds no space, and
//! comes back when there is plenty. A checkpoint may use it only where the store is empty: then no ack will ever make room.

use std::io;

use super::place::Place;
use crate::sys::disk::Open;

/// The reserve is made only where this many times its size is free: it must not itself be what fills the disk.
const FREE_FACTOR: u64 = 4;

/// Whether the space is set aside at present.
#[derive(Debug)]
pub(super) struct Reserve {
    held: bool,
}

impl Reserve {
    /// Makes the reserve unless it is there already; on a disk too full for it there is none for now.
    pub(super) fn open(place: &Place) -> Self {
        let mut reserve = Reserve { held: false };
        reserve.refill(place);
        reserve
    }

    /// None, ever.
    pub(super) fn none() -> Self {
        Reserve { held: true }
    }

    /// Gives the space back to the file system. `false` if there was none to give.
    pub(super) fn release(&mut self, place: &Place) -> io::Result<bool> {
        if !self.held || place.options.reserve_bytes == 0 {
            return Ok(false);
        }
        place.disk.remove_file(&place.reserve())?;
        self.held = false;
        Ok(true)
    }

    /// Whether it was given up and the file system has less than half of it left.
    pub(super) fn is_missed(&self, place: &Place) -> bool {
        let half = place.options.reserve_bytes / 2;
        // Where the free space cannot be told, trying tells.
        !self.held && place.disk.free_bytes(&place.dir).is_ok_and(|free| free < half)
    }

    /// Sets the space aside again if that is possible. Failing costs nothing today, and is tried again after the next commit.
    pub(super) fn refill(&mut self, place: &Place) {
        if !self.held {
            self.held = place.options.reserve_bytes == 0 || fill(place).unwrap_or(false);
        }
    }
}

fn fill(place: &Place) -> io::Result<bool> {
    let wanted = place.options.reserve_bytes;
    if let Ok(present) = place.disk.open(&place.reserve(), Open::Existing)
        && present.allocated_bytes()? >= wanted
    {
        return Ok(true);
    }
    if place.disk.free_bytes(&place.dir)? < wanted.saturating_mul(FREE_FACTOR) {
        return Ok(false);
    }
    place.disk.remove_file(&place.reserve())?;
    let written = write_noise(place, wanted);
    if written.is_err() {
        place.disk.remove_file(&place.reserve())?;
    }
    written.map(|()| true)
}

/// A file system that compresses would keep a mebibyte of zeros in no space at all.
fn write_noise(place: &Place, bytes: u64) -> io::Result<()> {
    let file = place.disk.open(&place.reserve(), Open::CreateNew)?;
    let mut noise = 0x9E37_79B9_7F4A_7C15_u64;
    let mut block = [0; 64 * 1024];
    let mut offset = 0;
    while offset < bytes {
        for word in block.chunks_exact_mut(8) {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            word.copy_from_slice(&noise.to_le_bytes());
        }
        let step = (bytes - offset).min(block.len() as u64);
        file.write_all_at(offset, &block[..step as usize])?;
        offset += step;
    }
    file.sync_data()?;
    place.disk.sync_dir(&place.dir)
}
