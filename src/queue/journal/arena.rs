//! An arena: a header page and the frames behind it, in a mapped file, in a file that is written by position, or in
//! memory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use crate::queue::frame::{self, FRAME_HEAD, FrameHead};
use crate::sys::crash_point;
use crate::sys::disk::{Disk, DiskFile, Mapping, Open, store_bytes};

/// Where frames begin. The header has a page of its own, so that changing it never dirties a page of records.
pub(crate) const HEADER_BYTES: usize = 4096;
/// Not text, broken by any conversion of line ends, and never the start of a zeroed file.
const MAGIC: [u8; 8] = *b"\x89PHJ\r\n\x1a\n";
pub(crate) const VERSION: u32 = 1;
/// Bytes of the header that its checksum covers.
const CHECKED: usize = 48;
pub(super) const STATE_AT: usize = 56;
/// How much is read at a time when looking for the end.
const LOOK_BYTES: usize = 256 * 1024;

/// One use of an arena, from empty to checkpointed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    /// Mixed into the check word of each frame.
    pub(crate) salt: u64,
    /// Rises with every round of a queue.
    pub(crate) epoch: u64,
    /// The sequence number that its first record has or would have.
    pub(crate) first_seq: u64,
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// Nothing was written, or creation was interrupted: the blocks may be missing.
    Blank,
    /// Ready for use.
    Free,
    /// Holds records that are not known to be checkpointed.
    InUse(Round),
    /// An arena of this library whose header checksum does not match.
    Damaged,
    /// Written by a later version.
    Newer(u32),
    /// Not an arena of this library.
    Foreign,
}

const FREE: u64 = 0;
const ACTIVE: u64 = 1;

/// An arena in one of the three forms of the module.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: Memory,
    pub(super) path: PathBuf,
    pub(super) index: usize,
    /// Set when a sync failed: the kernel may have dropped what it could not write. The file is replaced once its
    /// records are checkpointed.
    condemned: AtomicBool,
}

#[derive(Debug)]
enum Memory {
    Mapped { file: DiskFile, mapping: Mapping },
    Written { file: DiskFile, len: usize },
    Volatile { mapping: Mapping },
}

impl Arena {
    /// An arena in memory. It ends with the process.
    pub(super) fn volatile(index: usize, len: usize) -> io::Result<Self> {
        let memory = Memory::Volatile { mapping: Mapping::anonymous(len)? };
        Ok(Self { memory, path: PathBuf::from("(memory)"), index, condemned: AtomicBool::new(false) })
    }

    /// Creates the file, or completes one whose creation was interrupted. Every block is written before the header says
    /// that the arena is usable, because a store into a mapping cannot report a full disk.
    pub(super) fn create(disk: &Disk, path: &Path, index: usize, len: usize, map: bool) -> io::Result<Self> {
        let file = disk.open(path, Open::EnsureExists)?;
        file.set_len(0)?;
        let written = file.write_zeros(0, len as u64).and_then(|()| file.sync_data()).and_then(|()| {
            crash_point::reach("journal.arena.zeroed");
            file.write_all_at(0, &encode_header(None))?;
            file.sync_data()
        });
        if let Err(error) = written {
            // A partial arena is of no use, and takes space on a full disk.
            let _ = disk.remove_file(path);
            return Err(error);
        }
        Self::of_file(file, index, len, map)
    }

    /// Opens an existing file and reads its header. The arena is `None` if the file cannot be used as one.
    pub(super) fn open(disk: &Disk, path: &Path, index: usize, map: bool) -> io::Result<(Header, Option<Self>)> {
        let file = disk.open(path, Open::Existing)?;
        let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
        let mut head = [0; STATE_AT + 8];
        let readable = len.min(head.len());
        file.read_exact_at(0, &mut head[..readable])?;
        let header = decode_header(&head);
        if len <= HEADER_BYTES && matches!(header, Header::InUse(_) | Header::Free) {
            return Ok((Header::Damaged, None));
        }
        match header {
            Header::Free | Header::InUse(_) => Ok((header, Some(Self::of_file(file, index, len, map)?))),
            other => Ok((other, None)),
        }
    }

    fn of_file(file: DiskFile, index: usize, len: usize, map: bool) -> io::Result<Self> {
        let path = file.path().to_path_buf();
        // The file may have been restored without its zeros, with no space for them: a write by position can report
        // that.
        let memory = if map && file.fill_holes(len as u64).is_ok() {
            let mapping = file.map(len)?;
            Memory::Mapped { file, mapping }
        } else {
            Memory::Written { file, len }
        };
        Ok(Self { memory, path, index, condemned: AtomicBool::new(false) })
    }

    /// Whether its file has lost its name.
    pub(super) fn is_unlinked(&self) -> bool {
        match &self.memory {
            Memory::Mapped { file, .. } | Memory::Written { file, .. } => file.is_unlinked().unwrap_or(false),
            Memory::Volatile { .. } => true,
        }
    }

    /// Size in bytes, including the header.
    pub(super) fn len(&self) -> usize {
        match &self.memory {
            Memory::Mapped { mapping, .. } | Memory::Volatile { mapping } => mapping.len(),
            Memory::Written { len, .. } => *len,
        }
    }

    pub(super) fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::Relaxed)
    }

    /// Begins a round: the header announces records with this salt.
    pub(super) fn begin(&self, round: &Round) -> io::Result<()> {
        let header = encode_header(Some(round));
        match &self.memory {
            Memory::Mapped { mapping, .. } | Memory::Volatile { mapping } => {
                // The state is stored last: killed between any two of these stores, the arena is still free.
                let words = [header_state(mapping), mapping.word64(HEADER_BYTES)];
                for word in words.into_iter().flatten() {
                    word.store(FREE, Ordering::Relaxed);
                }
                if !mapping.write(0, &header[..STATE_AT]) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                if let Some(state) = header_state(mapping) {
                    state.store(ACTIVE.to_le(), Ordering::Release);
                }
                Ok(())
            }
            Memory::Written { file, .. } => {
                file.write_all_at(HEADER_BYTES as u64, &[0; 8])?;
                file.write_all_at(0, &header)
            }
        }
    }

    /// Writes a frame to `at..end` and publishes it. `buffer` is used where the file is written by position.
    #[inline]
    pub(super) fn write_frame(
        &self,
        at: usize,
        end: usize,
        head: &FrameHead,
        body: &[u8],
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        match &self.memory {
            Memory::Mapped { mapping, .. } | Memory::Volatile { mapping } => {
                // The words of the frame, and the length word behind it.
                let words = mapping.words(at, end.saturating_add(size_of::<u64>())).unwrap_or_default();
                let [publish, seq, check, place @ .., next] = words else {
                    return Err(io::ErrorKind::InvalidInput.into());
                };
                if !store_bytes(place, body) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let [length_word, seq_word, check_word] = frame::head_words(head).map(u64::to_le);
                seq.store(seq_word, Ordering::Relaxed);
                check.store(check_word, Ordering::Relaxed);
                next.store(0, Ordering::Relaxed);
                crash_point::reach("journal.append.copied");
                // Stored last, with release ordering: a reader that sees the length sees the record and the zero word
                // behind it.
                publish.store(length_word, Ordering::Release);
                crash_point::reach("journal.append.published");
                Ok(())
            }
            Memory::Written { file, .. } => {
                // One write of the frame and the zero word behind it. If a kill cuts it short, the check word does not
                // match.
                buffer.clear();
                buffer.extend_from_slice(&frame::encode_head(head));
                buffer.extend_from_slice(body);
                buffer.resize(end - at + 8, 0);
                crash_point::reach("journal.append.copied");
                if let Err(error) = file.write_all_at(at as u64, buffer) {
                    // The write failed and may still have written everything but the padding. The record must not come
                    // back.
                    let _ = file.write_all_at(at as u64, &[0; 8]);
                    return Err(error);
                }
                crash_point::reach("journal.append.published");
                Ok(())
            }
        }
    }

    /// The bytes from the first frame up to `end`.
    pub(super) fn read_frames(&self, end: usize) -> io::Result<Vec<u8>> {
        self.read(HEADER_BYTES, end)
    }

    /// The bytes from `from` to `to`, as far as they are inside. A mapped file is read through its descriptor too:
    /// there an unreadable sector is an error, in the mapping it would be a fault.
    fn read(&self, from: usize, to: usize) -> io::Result<Vec<u8>> {
        let len = to.min(self.len()).saturating_sub(from);
        match &self.memory {
            Memory::Volatile { mapping } => Ok(mapping.read(from, len)),
            // The program has closed the descriptor; the mapping still works.
            Memory::Mapped { file, mapping } if file.descriptor_is_ours().is_err() => Ok(mapping.read(from, len)),
            Memory::Mapped { file, .. } | Memory::Written { file, .. } => {
                let mut bytes = vec![0; len];
                file.read_exact_at(from as u64, &mut bytes)?;
                Ok(bytes)
            }
        }
    }

    /// Where the frames up to `end` appear to stop, from their length words alone.
    pub(super) fn likely_end(&self, end: usize) -> io::Result<usize> {
        likely_end_of(end.min(self.len()), |from, to| self.read(from, to))
    }

    /// Prepares the pages of a range for being written to.
    pub(super) fn prefault(&self, from: usize, to: usize) {
        if let Memory::Mapped { mapping, .. } = &self.memory {
            mapping.prefault(from, to);
        }
    }

    /// Makes the first `len` bytes durable. A failure condemns the arena: no later sync can be trusted, because the
    /// kernel treats pages that it has dropped as written.
    pub(super) fn sync(&self, len: usize) -> io::Result<()> {
        if self.is_condemned() {
            return Err(io::Error::other(
                "an earlier sync of the journal failed, so its events are moved to the queue's file first",
            ));
        }
        let synced = match &self.memory {
            Memory::Mapped { file, mapping } => file.sync_mapped(mapping, len).and_then(|()| still_there(file)),
            Memory::Written { file, .. } => file.sync_data().and_then(|()| still_there(file)),
            Memory::Volatile { .. } => Ok(()),
        };
        if synced.is_err() {
            self.condemned.store(true, Ordering::Relaxed);
        }
        synced
    }

    /// Marks the arena free, because its records are in the store: it never replays. Prepares the pages up to `end` for
    /// the next records.
    pub(super) fn mark_free(&self, end: usize) {
        match &self.memory {
            Memory::Mapped { mapping, .. } | Memory::Volatile { mapping } => {
                if let Some(state) = header_state(mapping) {
                    state.store(FREE, Ordering::Release);
                }
                if matches!(self.memory, Memory::Mapped { .. }) {
                    // This only keeps the resident size small; if it fails, the pages stay.
                    let _ = mapping.release_pages(end);
                    mapping.prefault(0, end);
                }
            }
            Memory::Written { file, .. } => {
                if file.write_all_at(STATE_AT as u64, &FREE.to_le_bytes()).is_err() {
                    // The epoch in the store says the same, but the file must not be used again.
                    self.condemned.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Where the frames in the `end` bytes that `read` returns parts of appear to stop, from their length words alone.
pub(super) fn likely_end_of(end: usize, read: impl Fn(usize, usize) -> io::Result<Vec<u8>>) -> io::Result<usize> {
    let mut at = HEADER_BYTES;
    while at < end {
        let piece = read(at, end.min(at.saturating_add(LOOK_BYTES)))?;
        let mut inside = 0;
        while let Some(word) = piece.get(inside..).and_then(|rest| rest.first_chunk::<4>()) {
            match frame::framed_len(u32::from_le_bytes(*word) as usize) {
                Some(framed) if *word != [0; 4] => inside = inside.saturating_add(framed),
                _ => return Ok(at + inside),
            }
        }
        at = at.saturating_add(inside.max(FRAME_HEAD));
    }
    Ok(at.min(end))
}

/// A file that was removed or replaced can be synced without an error, and its bytes can never be found again.
fn still_there(file: &DiskFile) -> io::Result<()> {
    if file.can_be_found()? {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the journal's file was removed or replaced by another"))
}

fn header_state(mapping: &Mapping) -> Option<&std::sync::atomic::AtomicU64> {
    mapping.word64(STATE_AT)
}

/// Magic, version u32, zero u32, epoch, salt, first sequence number, zero u64, checksum of these 48 bytes, state.
fn encode_header(round: Option<&Round>) -> [u8; STATE_AT + 8] {
    let mut bytes = [0; STATE_AT + 8];
    bytes[0..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    if let Some(round) = round {
        bytes[16..24].copy_from_slice(&round.epoch.to_le_bytes());
        bytes[24..32].copy_from_slice(&round.salt.to_le_bytes());
        bytes[32..40].copy_from_slice(&round.first_seq.to_le_bytes());
        bytes[STATE_AT..].copy_from_slice(&ACTIVE.to_le_bytes());
    }
    let check = xxh3_64(&bytes[..CHECKED]);
    bytes[CHECKED..STATE_AT].copy_from_slice(&check.to_le_bytes());
    bytes
}

pub(super) fn decode_header(bytes: &[u8; STATE_AT + 8]) -> Header {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    if bytes[..8] == [0; 8] {
        return Header::Blank;
    }
    if bytes[..8] != MAGIC {
        return Header::Foreign;
    }
    let (version, holds) = (word(8) as u32, word(CHECKED) == xxh3_64(&bytes[..CHECKED]));
    if version > VERSION {
        // Every version keeps this checksum, so a flipped bit is damage and not an unknown version.
        return if holds { Header::Newer(version) } else { Header::Damaged };
    }
    // Between two rounds the checksum does not match: only the state counts.
    if word(STATE_AT) == FREE {
        return Header::Free;
    }
    if !holds {
        return Header::Damaged;
    }
    Header::InUse(Round { epoch: word(16), salt: word(24), first_seq: word(32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flipped_bit_of_a_header_makes_another_round() {
        let round = Round { epoch: 7, salt: 0x1234_5678_9abc_def0, first_seq: 99 };
        let mut bytes = encode_header(Some(&round));
        assert_eq!(decode_header(&bytes), Header::InUse(round));
        assert_eq!(decode_header(&encode_header(None)), Header::Free);
        for bit in 0..STATE_AT * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(decode_header(&bytes), Header::InUse(_) | Header::Newer(_)), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_creation_that_fails_leaves_no_half_arena_behind() {
        let dir = tempfile::tempdir().unwrap();
        let gate = crate::sys::disk::fail_nth(crate::sys::disk::Op::Write, 3);
        let path = dir.path().join("journal-0");
        assert!(Arena::create(&Disk::gated(gate), &path, 0, 1 << 20, true).is_err());
        assert!(!path.exists());
    }
}
