//! Mapped memory, shared with a file, whose every access is atomic.
//!
//! Another process may write the same file at any moment, which Rust's aliasing rules cannot prevent. So there is no
//! slice of this memory and no plain load or store. It is read and written as relaxed atomic words, which compile to
//! plain moves on the supported machines. A mistake of this or another process then gives a wrong byte, which the
//! checksums detect, and never undefined behaviour.

#![allow(unsafe_code, reason = "mapping memory and accessing it; each block has a safety comment")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{self, MapFlags, MmapAdvise, MsFlags, ProtFlags};

use super::fork;

const WORD: usize = size_of::<u64>();
/// `madvise` works on whole pages. Systems with larger pages refuse it, which costs only speed.
const PAGE: usize = 4096;

/// A range of mapped memory. It does not exist in forked children: there, dropping it does nothing and an access
/// faults, so callers compare [`fork::generation`] first.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u64>,
    /// In bytes; a multiple of `WORD`.
    len: usize,
    /// The fork generation in which the memory is mapped.
    generation: u64,
}

// SAFETY: the memory belongs to the process, not to a thread, and stays mapped until the one owner is dropped.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference, the memory is accessed only by atomic operations.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The first `len` bytes (rounded down to whole words) of `file`, shared with it.
    pub(super) fn shared(file: &File, len: usize) -> io::Result<Self> {
        let (len, length) = whole_words(len)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that Rust knows of.
        let start = unsafe {
            mman::mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, file, 0)?
        };
        Self::of(start.cast(), len)
    }

    /// Zeroed memory that belongs to no file.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let (len, length) = whole_words(len)?;
        // SAFETY: as above.
        let start = unsafe {
            mman::mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)?
        };
        Self::of(start.cast(), len)
    }

    fn of(start: NonNull<u64>, len: usize) -> io::Result<Self> {
        let mapping = Self { start, len, generation: fork::generation() };
        mapping.advise(0, len, MmapAdvise::MADV_DONTFORK)?;
        Ok(mapping)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The 8-byte word at byte `offset`; `None` if it is outside or unaligned.
    #[inline]
    pub(crate) fn word64(&self, offset: usize) -> Option<&AtomicU64> {
        self.words(offset, offset.checked_add(WORD)?)?.first()
    }

    /// The words from byte `from` to byte `to`; `None` unless both are inside and aligned.
    #[inline]
    pub(crate) fn words(&self, from: usize, to: usize) -> Option<&[AtomicU64]> {
        if !from.is_multiple_of(WORD) || !to.is_multiple_of(WORD) {
            return None;
        }
        // SAFETY: the mapping is `len / WORD` whole words from `start` on and outlives the borrow; the address is
        // aligned because mappings begin on pages, and every access of this memory in this process is an atomic of this
        // size.
        let all = unsafe { slice::from_raw_parts(self.start.as_ptr().cast::<AtomicU64>(), self.len / WORD) };
        all.get(from / WORD..to / WORD)
    }

    /// Copies `bytes` to byte `offset`, which must be a multiple of 8. A partial last word is filled with zeros.
    /// Returns `false`, and writes nothing, if it does not fit.
    #[must_use]
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let end = bytes.len().checked_next_multiple_of(WORD).and_then(|len| offset.checked_add(len));
        let words = end.and_then(|end| self.words(offset, end));
        words.is_some_and(|words| store_bytes(words, bytes))
    }

    /// Copies `len` bytes at byte `offset`, or as many of them as are inside.
    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let end = offset.saturating_add(len).min(self.len);
        let first = offset.min(end) / WORD;
        let mut out = Vec::with_capacity(end.saturating_sub(first * WORD).next_multiple_of(WORD));
        for index in first..end.div_ceil(WORD) {
            // SAFETY: `index` is below `len / WORD`, since `end <= len` and `len` is whole words; as for `words`
            // otherwise.
            let word = unsafe { AtomicU64::from_ptr(self.start.add(index).as_ptr()) }.load(Ordering::Relaxed);
            out.extend_from_slice(&bytes_of(word));
        }
        out.truncate(end.saturating_sub(first * WORD));
        out.drain(..offset.min(end) - first * WORD);
        out
    }

    /// Makes data that was written to the first `len` bytes durable, as `fdatasync` does for a whole file. Later pages
    /// stay dirty, so they can be written without a fault.
    pub(super) fn sync(&self, len: usize) -> io::Result<()> {
        // SAFETY: the range begins with this mapping and is no longer; its bytes are only read.
        unsafe { mman::msync(self.start.cast(), len.min(self.len), MsFlags::MS_SYNC)? };
        Ok(())
    }

    /// Releases the memory of all whole pages from byte `from` to the end. The bytes of a shared mapping stay in the
    /// file, and the next access maps the page again.
    pub(crate) fn release_pages(&self, from: usize) -> io::Result<()> {
        self.advise(from.next_multiple_of(PAGE), self.len, MmapAdvise::MADV_DONTNEED)
    }

    /// Makes the pages of a range writable now, on this thread, instead of at the first write to each. Does nothing on
    /// kernels before 5.14.
    #[cfg(target_os = "linux")]
    pub(crate) fn prefault(&self, from: usize, to: usize) {
        let to = to.saturating_add(PAGE - 1).min(self.len);
        let _ = self.advise(from - from % PAGE, to - to % PAGE, MmapAdvise::MADV_POPULATE_WRITE);
    }

    /// Does nothing: only Linux can do this.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn prefault(&self, _from: usize, _to: usize) {}

    /// Calls `madvise` for the bytes from `from`, a multiple of the page size, to `to`. The kernel rounds `to` up.
    fn advise(&self, from: usize, to: usize, advice: MmapAdvise) -> io::Result<()> {
        let to = to.min(self.len);
        if from >= to {
            return Ok(());
        }
        // SAFETY: the range lies inside this mapping (checked above). DONTFORK concerns children only; POPULATE_WRITE
        // changes no byte; DONTNEED on a shared file mapping drops page table entries and no bytes. On a private
        // mapping it would zero the bytes, so `release_pages` is called for shared mappings only.
        unsafe { mman::madvise(self.start.add(from / WORD).cast(), to - from, advice)? };
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if fork::generation() != self.generation {
            // The mapping does not exist in the child, and something else may be at that address.
            return;
        }
        // SAFETY: the range was mapped by us, is still mapped (nobody else unmaps it), and no reference into it
        // outlives `self`.
        let unmapped = unsafe { mman::munmap(self.start.cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "a whole mapping can always be unmapped");
    }
}

/// Copies `bytes` to the start of `words`. A partial last word is filled with zeros. Returns `false`, and writes
/// nothing, if there are too few words.
#[inline]
#[must_use]
pub(crate) fn store_bytes(words: &[AtomicU64], bytes: &[u8]) -> bool {
    if words.len() < bytes.len().div_ceil(WORD) {
        return false;
    }
    let store = |(place, word): (&AtomicU64, &[u8; WORD])| place.store(word_of(*word), Ordering::Relaxed);
    let (whole, tail) = bytes.as_chunks::<WORD>();
    // Four at a time: the compiler does not merge atomic stores, and an iteration of the loop costs as much as two of
    // them.
    let (fours, rest) = whole.as_chunks::<4>();
    let (places, _) = words.as_chunks::<4>();
    for (places, four) in places.iter().zip(fours) {
        places.iter().zip(four).for_each(store);
    }
    let places = words.get(fours.len() * 4..).unwrap_or_default();
    places.iter().zip(rest).for_each(store);
    if let (false, Some(place)) = (tail.is_empty(), words.get(whole.len())) {
        // If at least eight bytes exist, the last eight are read and shifted, which is faster than a byte-wise copy.
        let value = match bytes.last_chunk::<WORD>() {
            Some(last) => u64::from_le_bytes(*last) >> (8 * (WORD - tail.len())),
            None => tail.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
        };
        place.store(value.to_le(), Ordering::Relaxed);
    }
    true
}

fn whole_words(len: usize) -> io::Result<(usize, NonZeroUsize)> {
    let len = len - len % WORD;
    NonZeroUsize::new(len)
        .map(|length| (len, length))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "nothing to map"))
}

/// The word whose bytes in memory are `bytes`: the mapping holds bytes, whatever the machine's byte order.
#[inline]
#[allow(clippy::host_endian_bytes, reason = "the order of the bytes in memory is meant")]
fn word_of(bytes: [u8; WORD]) -> u64 {
    u64::from_ne_bytes(bytes)
}

/// The bytes of a word in memory; the inverse of [`word_of`].
#[inline]
#[allow(clippy::host_endian_bytes, reason = "the order of the bytes in memory is meant")]
fn bytes_of(word: u64) -> [u8; WORD] {
    word.to_ne_bytes()
}
