//! The storage backend of the database: the store's file, with every call under our control.
//!
//! * **Held, then direct.** A file is opened *held*: what the database writes while it opens stays in memory, in order,
//!   and reads see it. Once the content is known to be ours, the calls are made on the file ([`StoreFile::release`]);
//!   otherwise they are dropped and the file was not touched. A file that must not be written at all (damaged,
//!   condemned) stays held.
//! * **Not in a child.** Every call fails in a forked child, whose inherited database would write to the file of its
//!   parent.
//! * **Not into another file.** Before each sync and each change of length, the name must still lead to the file that
//!   was opened. While the directory cannot be reached, the name cannot be checked; then the file's link count must not
//!   be zero.
//! * **Not after a failed sync.** The kernel may have dropped what it could not write and report success the next time.
//!   The file is *condemned*: nothing is written to it any more.
//!
//! The lock methods keep their defaults ("unsupported"): the shard's lock is the only lock.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::StorageBackend;

use crate::sys::crash_point;
use crate::sys::disk::{DiskFile, fork};

/// The file of a store. Clones are the same file.
#[derive(Clone, Debug)]
pub(super) struct StoreFile(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: DiskFile,
    /// The fork generation of the process that opened the file.
    generation: u64,
    /// Set when a sync of the file has failed. The flag outlives the open file, because reopening depends on it.
    condemned: Arc<AtomicBool>,
    /// Whether the file was deleted and is used without a name.
    unlinked: AtomicBool,
    /// `None` once released.
    held: RwLock<Option<Held>>,
}

/// Calls that were not made on the file yet.
#[derive(Debug)]
struct Held {
    len: u64,
    calls: Vec<HeldCall>,
}

#[derive(Debug)]
enum HeldCall {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

impl StoreFile {
    /// The file, with every change kept in memory until it is released. A failed sync sets `condemned`.
    pub(super) fn held(file: DiskFile, condemned: Arc<AtomicBool>) -> io::Result<Self> {
        let held = Held { len: file.len()?, calls: Vec::new() };
        Ok(Self::new(file, condemned, Some(held)))
    }

    /// The file, written at once: for a new one, whose content needs no protection.
    pub(super) fn direct(file: DiskFile) -> Self {
        Self::new(file, Arc::default(), None)
    }

    fn new(file: DiskFile, condemned: Arc<AtomicBool>, held: Option<Held>) -> Self {
        Self(Arc::new(Shared {
            file,
            generation: fork::generation(),
            condemned,
            unlinked: AtomicBool::new(false),
            held: RwLock::new(held),
        }))
    }

    /// Makes the held calls in order, including syncs, so that a crash in between leaves what a crash of the database
    /// would have left. Later calls go to the file directly.
    pub(super) fn release(&self) -> io::Result<()> {
        let mut held = self.0.held.write().unwrap_or_else(PoisonError::into_inner);
        // Cleared only after all calls were made: after a failure, nothing may be written on top of a state that the
        // file is not in.
        for call in held.iter().flat_map(|held| &held.calls) {
            match call {
                HeldCall::Write(offset, bytes) => self.0.write(*offset, bytes)?,
                HeldCall::SetLen(len) => self.0.set_len(*len)?,
                HeldCall::Sync => self.0.sync()?,
            }
        }
        *held = None;
        Ok(())
    }

    /// Whether the file has lost its name.
    pub(super) fn is_unlinked(&self) -> bool {
        self.0.file.is_unlinked().unwrap_or(false)
    }

    /// Allows writes although the file has no name.
    pub(super) fn become_unlinked(&self) {
        self.0.unlinked.store(true, Ordering::Release);
    }

    /// Bytes that its blocks take on disk.
    pub(super) fn allocated_bytes(&self) -> io::Result<u64> {
        self.0.file.allocated_bytes()
    }
}

impl Shared {
    fn check_process(&self) -> io::Result<()> {
        if fork::generation() == self.generation {
            Ok(())
        } else {
            Err(io::Error::other("the file belongs to the process that this one was forked from"))
        }
    }

    fn check_writable(&self) -> io::Result<()> {
        self.check_process()?;
        if self.condemned.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier sync of the queue's file failed, so it is replaced by a new one"));
        }
        Ok(())
    }

    fn check_name(&self) -> io::Result<()> {
        self.check_writable()?;
        if self.unlinked.load(Ordering::Acquire) || self.file.can_be_found()? {
            Ok(())
        } else {
            Err(io::Error::other("the queue's file was removed or replaced by another"))
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        self.file.write_all_at(offset, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_name()?;
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.check_name()?;
        self.file.sync_data().inspect_err(|_| self.condemned.store(true, Ordering::Release))?;
        crash_point::reach("store.synced");
        Ok(())
    }

    /// Makes the call if the file is released, and otherwise adds it to the held ones.
    fn hold_or(&self, held_call: impl FnOnce() -> HeldCall, call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        // The common case takes the lock shared, because the database reads on other threads while it writes.
        if self.held.read().unwrap_or_else(PoisonError::into_inner).is_none() {
            return call();
        }
        self.check_process()?;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        match held.as_mut() {
            None => call(),
            Some(held) => {
                held.add(held_call());
                Ok(())
            }
        }
    }
}

impl Held {
    fn add(&mut self, call: HeldCall) {
        match &call {
            HeldCall::Write(offset, bytes) => self.len = self.len.max(offset.saturating_add(bytes.len() as u64)),
            HeldCall::SetLen(len) => self.len = *len,
            HeldCall::Sync => {}
        }
        self.calls.push(call);
    }

    /// Fills `out` as if the held calls had been made. Opening makes few calls, so going through all of them is cheap.
    fn read(&self, file: &DiskFile, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(out.len() as u64);
        if end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.fill(0);
        let in_file = index_of(file.len()?, offset, out.len());
        file.read_exact_at(offset, &mut out[..in_file])?;
        for call in &self.calls {
            match call {
                HeldCall::Write(at, bytes) => overlay(out, offset, *at, bytes),
                HeldCall::SetLen(len) => {
                    let cut = index_of(*len, offset, out.len());
                    out[cut..].fill(0);
                }
                HeldCall::Sync => {}
            }
        }
        Ok(())
    }
}

/// The index of the file's byte `at` in a buffer of `len` bytes that begins at `offset`; clamped to the buffer.
fn index_of(at: u64, offset: u64, len: usize) -> usize {
    usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX).min(len)
}

/// Copies the part of `bytes`, which begin at `at`, that overlaps `out`, which begins at `offset`.
fn overlay(out: &mut [u8], offset: u64, at: u64, bytes: &[u8]) {
    let out_from = index_of(at, offset, out.len());
    let out = &mut out[out_from..];
    let bytes = &bytes[index_of(offset, at, bytes.len())..];
    let common = out.len().min(bytes.len());
    out[..common].copy_from_slice(&bytes[..common]);
}

impl StorageBackend for StoreFile {
    fn len(&self) -> io::Result<u64> {
        self.0.check_process()?;
        match self.0.held.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(held) => Ok(held.len),
            None => self.0.file.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.check_process()?;
        match self.0.held.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(held) => held.read(&self.0.file, offset, out),
            None => self.0.file.read_exact_at(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.hold_or(|| HeldCall::SetLen(len), || self.0.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.hold_or(|| HeldCall::Sync, || self.0.sync())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.hold_or(|| HeldCall::Write(offset, bytes.to_vec()), || self.0.write(offset, bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::sys::disk::{Call, Disk, Gate, Op, Open, Verdict};

    fn held_with(dir: &Path, content: &[u8]) -> StoreFile {
        std::fs::write(dir.join("file"), content).unwrap();
        let file = Disk::default().open(&dir.join("file"), Open::Existing).unwrap();
        StoreFile::held(file, Arc::default()).unwrap()
    }

    fn read_all(file: &StoreFile) -> Vec<u8> {
        let mut bytes = vec![0xFF; file.len().unwrap() as usize];
        file.read(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn held_calls_are_visible_to_reads_but_not_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = held_with(dir.path(), b"0123456789");
        file.write(8, b"abcd").unwrap();
        file.set_len(5).unwrap();
        file.sync_data().unwrap();
        file.set_len(7).unwrap();
        file.write(1, b"X").unwrap();
        assert_eq!(read_all(&file), b"0X234\0\0");
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"0123456789");
        file.release().unwrap();
        assert_eq!(read_all(&file), b"0X234\0\0");
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"0X234\0\0");
    }

    #[test]
    fn nothing_is_written_to_a_file_whose_sync_failed() {
        #[derive(Debug)]
        struct NoSync;
        impl Gate for NoSync {
            fn before(&self, call: &Call<'_>) -> Verdict {
                if call.op == Op::Sync { Verdict::Fail(io::Error::other("bad sector")) } else { Verdict::Go }
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let file = Disk::gated(Arc::new(NoSync)).open(&dir.path().join("file"), Open::CreateNew).unwrap();
        let file = StoreFile::direct(file);
        file.write(0, b"before").unwrap();
        file.sync_data().unwrap_err();
        file.write(0, b"after!").unwrap_err();
        file.set_len(1).unwrap_err();
        assert_eq!(read_all(&file), b"before");
    }

    #[test]
    fn a_read_of_any_part_agrees_with_a_read_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = held_with(dir.path(), b"0123456789");
        file.write(3, b"abc").unwrap();
        file.set_len(12).unwrap();
        let whole = read_all(&file);
        for begin in 0..whole.len() {
            for end in begin..=whole.len() {
                let mut part = vec![0xFF; end - begin];
                file.read(begin as u64, &mut part).unwrap();
                assert_eq!(part, whole[begin..end]);
            }
        }
        assert!(file.read(11, &mut [0; 2]).is_err(), "beyond the end");
    }
}
