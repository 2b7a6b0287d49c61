//! A damaged file as the database is made to see it when only its rows are wanted.
//!
//! An ordinary open first reads how the file's space is allocated, and fails if that is damaged, though every row may be whole. A reader
//! beside another process's writer does without. So the file is opened as by such a reader: read-only, every lock granted, since there
//! is nobody to share it with. Of the header three things are put right that stand in the way of reading:
//! the magic, which is always the same; the mark of an unclean end, which asks for a repair; and, if the newest commit's slot
//! is bad, which of the two slots is read: the one before it is whole, for its pages are reused one commit later.

use std::io;
use std::ops::Bound;

use redb::{BackendError, ConcurrencyMode, ReadOnlyDatabase, StorageBackend};

use super::StoreError;
use super::guard::guarded;
use super::place::Place;
use crate::sys::disk::{DiskFile, Open};

/// From redb's file format, version 3.
const MAGIC: [u8; 9] = *b"redb\x1A\x0A\xA9\x0D\x0A";
const FLAGS_AT: usize = MAGIC.len();
/// The first byte of a page.
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
const OTHER_SLOT: u8 = 1;
const UNCLEAN: u8 = 2;
const UNFLUSHED: u8 = 8;

/// Opens the store's file for reading, however damaged; `None` if no commit can be found in it.
pub(super) fn open(place: &Place) -> Option<ReadOnlyDatabase> {
    [0, OTHER_SLOT].into_iter().find_map(|flip| {
        guarded(|| {
            let file = place.disk.open(&place.queue(), Open::ReadOnly)?;
            let mut builder = place.options.builder();
            builder.set_concurrency_mode(ConcurrencyMode::SingleWriter);
            Ok::<_, StoreError>(builder.open_read_only_with_backend(Untrusted { file, flip })?)
        })
        .ok()
    })
}

#[derive(Debug)]
struct Untrusted {
    file: DiskFile,
    /// Flags of the header to be inverted.
    flip: u8,
}

impl Untrusted {
    fn repair_header(&self, header: &mut [u8]) {
        if let Some(magic) = header.get_mut(..MAGIC.len()) {
            magic.copy_from_slice(&MAGIC);
        }
        if let Some(flags) = header.get_mut(FLAGS_AT) {
            *flags = (*flags & !(UNCLEAN | UNFLUSHED)) ^ self.flip;
        }
    }
}

impl StorageBackend for Untrusted {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(offset, out)?;
        match out.first() {
            _ if offset == 0 => self.repair_header(out),
            Some(&(LEAF | BRANCH)) => {}
            // A reader reads nothing but trees. Most damage to a page shows here, as an error; to the database it would be a reason to panic,
            // which a program whose panics abort does not survive.
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "not a page of a tree")),
        }
        Ok(())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn try_lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn try_lock_shared_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn lock_shared_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn unlock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    fn query_lock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<bool, BackendError> {
        Ok(false)
    }
}
