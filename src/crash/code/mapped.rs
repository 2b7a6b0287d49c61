//! Files in memory without a copy: what the kernel can take back at any time, and what does not count as the process's own.

#![allow(unsafe_code, reason = "mapping files; each block proves itself")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::slice;

use nix::libc::{c_void, off_t};
use nix::sys::mman::{self, MapFlags, ProtFlags};

/// Mappings begin at multiples of this, whatever the size of a page.
const GRAIN: usize = 64 * 1024;

/// A part of a file, to be read; a private one may be written to as well, which changes this process's view alone.
#[derive(Debug)]
pub(super) struct Mapped {
    start: NonNull<c_void>,
    len: usize,
    /// Bytes of the mapping before the part that was asked for.
    skipped: usize,
    is_private: bool,
}

// SAFETY: the mapping belongs to the process and not to a thread, and only its owner reaches it.
unsafe impl Send for Mapped {}

impl Mapped {
    /// The whole file.
    pub(super) fn whole(file: &File, len: usize) -> io::Result<Self> {
        Self::map(file, 0, len, ProtFlags::PROT_READ)
    }

    /// Some of it, to be written to: each page that is takes memory, the others do not.
    pub(super) fn private(file: &File, offset: usize, len: usize) -> io::Result<Self> {
        Self::map(file, offset, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    fn map(file: &File, offset: usize, len: usize, rights: ProtFlags) -> io::Result<Self> {
        let skipped = offset % GRAIN;
        let len = len.checked_add(skipped).ok_or(io::ErrorKind::InvalidInput)?;
        let length = NonZeroUsize::new(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        let from = off_t::try_from(offset - skipped).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that Rust knows of.
        let start = unsafe { mman::mmap(None, length, rights, MapFlags::MAP_PRIVATE, file, from)? };
        Ok(Self { start, len, skipped, is_private: rights.contains(ProtFlags::PROT_WRITE) })
    }

    /// What was asked for.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: mapped and readable until this is dropped. The file is an image that is loaded, or debug information beside it: who
        // writes to such a file in place breaks the program that runs from it as well.
        let all = unsafe { slice::from_raw_parts(self.start.as_ptr().cast::<u8>().cast_const(), self.len) };
        all.get(self.skipped..).unwrap_or_default()
    }

    /// The same, to be written to; empty if it is not private.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        if !self.is_private {
            return &mut [];
        }
        // SAFETY: as above, mapped writable, and borrowed from its one owner.
        let all = unsafe { slice::from_raw_parts_mut(self.start.as_ptr().cast::<u8>(), self.len) };
        all.get_mut(self.skipped..).unwrap_or_default()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and nobody has a slice of it any more.
        let _unmapped = unsafe { mman::munmap(self.start, self.len) };
    }
}
