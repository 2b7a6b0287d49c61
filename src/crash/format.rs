//! Encoding and decoding of crash records. Pure: writing uses only the buffer that the caller provides, so that a
//! signal handler may do it, and reading accepts any bytes.
//!
//! ```text
//!  0  8  magic: 89 'P' 'H' 'X' 'R' 0D 0A 1A       16  4  low half of the XXH3 of header (with this word 0) and body
//!  8  2  version                                  20  4  flags
//! 10  2  kind                                     24  8  number of the record, counted by its process from 1
//! 12  4  bytes of the body                        32  .. body: fields, each a tag (2), a length (4) and its bytes
//! ```
//! All little endian. Fields with an unknown tag are skipped, so that a later version may add some. Numbers are 8
//! bytes.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

pub(super) const MAGIC: [u8; 8] = [0x89, b'P', b'H', b'X', b'R', 0x0d, 0x0a, 0x1a];
const VERSION: u16 = 1;
pub(super) const HEADER: usize = 32;
const FIELD_HEADER: usize = 6;
/// Maximum bytes of a body. Bounds the checksum work at each position that looks like a record and is none.
pub(super) const BODY_MOST: usize = 64 * 1024;

/// What a record is about. The position in [`Kind::ALL`] is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The process; the first record of each file.
    Context,
    Panic,
    Signal,
    /// The SIGABRT that followed a panic.
    Abort,
    Exit,
    /// The process lived past the grace period after the records before this one.
    Survived,
    /// The process survived the signal with this record's number.
    Repaired,
    /// An empty slot for a provisional record.
    Reserved,
}

impl Kind {
    const ALL: [Kind; 8] = [
        Kind::Context,
        Kind::Panic,
        Kind::Signal,
        Kind::Abort,
        Kind::Exit,
        Kind::Survived,
        Kind::Repaired,
        Kind::Reserved,
    ];

    fn of(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// The meaning of a field. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Tag {
    /// Nanoseconds since 1970.
    Time = 1,
    Pid = 2,
    Tid = 3,
    ThreadName = 4,
    /// Source location of a panic.
    File = 5,
    Line = 6,
    Column = 7,
    Message = 8,
    /// Bytes of the message before truncation.
    MessageBytes = 9,
    /// Return addresses, innermost first, 8 bytes each.
    Frames = 10,
    /// Records that could not be written before this one.
    Missed = 11,
    Signal = 12,
    SignalCode = 13,
    FaultAddress = 14,
    SenderPid = 15,
    SenderUid = 16,
    /// Number of the panic record that an abort belongs to.
    PanicNumber = 17,
    /// Nanoseconds since the process first opened a report file.
    Uptime = 18,
    /// Exit status, if the system provides it.
    Status = 19,
    /// A breadcrumb: time (nanoseconds since 1970) and text. Repeated, the newest first.
    Breadcrumb = 20,
    /// Ignored. Extends a record to the length of its slot.
    Padding = 21,
    /// The identity of the thread's current context.
    DistinctId = 22,
    SessionId = 23,
    /// The context's `$current_url`, without a query unless the program keeps it.
    CurrentUrl = 24,
    RequestPath = 25,
    /// 16 bytes, unique to each process.
    Instance = 32,
    /// 16 bytes that change at each boot of the machine.
    BootId = 33,
    Executable = 34,
    HostName = 35,
    LibVersion = 36,
    /// The loaded images that contain the addresses of all records, as encoded by `record::stack`.
    Images = 37,
    /// Start of the process, in clock ticks since boot. Distinguishes it from a later process with the same pid.
    StartTicks = 38,
    /// Properties that all exceptions of the process have (release, operating system), as a MessagePack map.
    Facts = 39,
}

pub(crate) mod flags {
    /// Written by a forked child of the process that owns the file.
    pub(crate) const FORKED_CHILD: u32 = 1;
    /// A panic ends the process even if it is caught: the program was built with `panic = "abort"`.
    pub(crate) const PANIC_ABORTS: u32 = 2;
    /// The fault address is near the stack pointer: the stack overflowed.
    pub(crate) const STACK_OVERFLOW: u32 = 4;
    /// The handler itself faulted while it wrote this record.
    pub(crate) const NESTED: u32 = 8;
    pub(crate) const PANICKING: u32 = 16;
    pub(crate) const READING: u32 = 32;
}

/// Writes one record into a buffer. A field that does not fit is omitted as a whole.
pub(super) struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
    /// Whether the record has to fill `out`.
    is_padded: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut [u8], kind: Kind, flags: u32, number: u64) -> Self {
        let mut writer = Self { out, at: 0, is_padded: false };
        writer.put(&MAGIC);
        writer.put(&VERSION.to_le_bytes());
        writer.put(&(kind as u16).to_le_bytes());
        writer.put(&[0; 8]);
        writer.put(&flags.to_le_bytes());
        writer.put(&number.to_le_bytes());
        writer
    }

    /// As [`new`](Self::new), but the finished record has exactly the length of `out`.
    pub(super) fn padded(out: &'a mut [u8], kind: Kind, flags: u32, number: u64) -> Self {
        Self { is_padded: true, ..Self::new(out, kind, flags, number) }
    }

    pub(super) fn bytes(&mut self, tag: Tag, bytes: &[u8]) {
        if self.begin_field(tag, bytes.len()) {
            self.put(bytes);
        }
    }

    pub(super) fn number(&mut self, tag: Tag, value: u64) {
        self.bytes(tag, &value.to_le_bytes());
    }

    /// Appends a list of addresses without a copy.
    pub(super) fn addresses(&mut self, tag: Tag, addresses: &[u64]) {
        if self.begin_field(tag, addresses.len().saturating_mul(8)) {
            for address in addresses {
                self.put(&address.to_le_bytes());
            }
        }
    }

    /// Appends the header of a field, if `len` bytes of content fit.
    fn begin_field(&mut self, tag: Tag, len: usize) -> bool {
        let Ok(bytes) = u32::try_from(len) else { return false };
        if len.saturating_add(FIELD_HEADER) > self.remaining() {
            return false;
        }
        self.put(&(tag as u16).to_le_bytes());
        self.put(&bytes.to_le_bytes());
        true
    }

    /// Returns the finished record; `None` if the buffer cannot hold a header.
    pub(super) fn finish(mut self) -> Option<&'a [u8]> {
        let sum = self.checksum()?;
        self.finish_with(sum)
    }

    pub(super) fn checksum(&mut self) -> Option<u32> {
        self.complete()?;
        Some(xxh3_64(self.out.get(..self.at)?) as u32)
    }

    /// Returns the finished record with a checksum that was computed before. Needs little stack, unlike the hash, whose
    /// frame has six kilobytes in an unoptimized build.
    pub(super) fn finish_with(mut self, sum: u32) -> Option<&'a [u8]> {
        self.complete()?;
        let Self { out, at, .. } = self;
        out.get_mut(16..20)?.copy_from_slice(&sum.to_le_bytes());
        out.get(..at)
    }

    /// Pads the record and enters its length.
    fn complete(&mut self) -> Option<()> {
        if self.is_padded {
            self.pad();
        }
        let body = u32::try_from(self.at.checked_sub(HEADER)?).ok()?;
        self.out.get_mut(12..16)?.copy_from_slice(&body.to_le_bytes());
        Some(())
    }

    fn remaining(&self) -> usize {
        let kept = if self.is_padded { FIELD_HEADER } else { 0 };
        self.out.len().min(HEADER + BODY_MOST).saturating_sub(self.at).saturating_sub(kept)
    }

    /// `remaining` always leaves space for the header of this field.
    fn pad(&mut self) {
        self.is_padded = false;
        let len = self.remaining().saturating_sub(FIELD_HEADER);
        self.begin_field(Tag::Padding, len);
        let end = self.at.saturating_add(len);
        if let Some(rest) = self.out.get_mut(self.at..end) {
            rest.fill(0);
            self.at = end;
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.at.saturating_add(bytes.len());
        if let Some(rest) = self.out.get_mut(self.at..end) {
            rest.copy_from_slice(bytes);
            self.at = end;
        }
    }
}

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) flags: u32,
    pub(crate) number: u64,
    fields: Vec<(u16, Vec<u8>)>,
}

impl Record {
    pub(crate) fn bytes(&self, tag: Tag) -> Option<&[u8]> {
        self.fields.iter().find(|(known, _)| *known == tag as u16).map(|(_, bytes)| bytes.as_slice())
    }

    pub(crate) fn all(&self, tag: Tag) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |(known, _)| *known == tag as u16).map(|(_, bytes)| bytes.as_slice())
    }

    /// The field as text. Invalid UTF-8 (a thread may have any name) is replaced.
    pub(crate) fn text(&self, tag: Tag) -> Option<String> {
        self.bytes(tag).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    pub(crate) fn number(&self, tag: Tag) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(tag)?.try_into().ok()?))
    }

    pub(crate) fn has_flag(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn addresses(&self, tag: Tag) -> Vec<u64> {
        let (words, _) = self.bytes(tag).unwrap_or_default().as_chunks::<8>();
        words.iter().map(|word| u64::from_le_bytes(*word)).collect()
    }
}

/// The records found in a file.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) records: Vec<Record>,
    /// Bytes that belong to no record: an incomplete write, damage, or a kind that this version does not know.
    pub(super) damaged_bytes: usize,
}

/// Finds the records in any bytes. After an incomplete or damaged record the search continues at the next byte, so that
/// only that record is lost.
pub(super) fn scan(bytes: &[u8]) -> Scanned {
    let mut scanned = Scanned::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let Some(start) = rest.windows(MAGIC.len()).position(|window| window == MAGIC) else {
            scanned.damaged_bytes = scanned.damaged_bytes.saturating_add(rest.len());
            break;
        };
        scanned.damaged_bytes = scanned.damaged_bytes.saturating_add(start);
        rest = rest.get(start..).unwrap_or_default();
        match parse(rest) {
            Some((record, len)) => {
                scanned.records.push(record);
                rest = rest.get(len..).unwrap_or_default();
            }
            None => {
                scanned.damaged_bytes = scanned.damaged_bytes.saturating_add(1);
                rest = rest.get(1..).unwrap_or_default();
            }
        }
    }
    scanned
}

/// The records in any bytes with their places, and the stretches between them.
#[cfg(feature = "inspect")]
#[derive(Debug, Default)]
pub(super) struct Located {
    pub(super) records: Vec<(std::ops::Range<usize>, Record)>,
    pub(super) damaged: Vec<std::ops::Range<usize>>,
}

/// Finds the records in any bytes, as [`scan`] does.
#[cfg(feature = "inspect")]
pub(super) fn locate(bytes: &[u8]) -> Located {
    let Located { mut records, mut damaged } = Located::default();
    let (mut at, mut end) = (0, 0);
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let Some((record, len)) = rest.starts_with(&MAGIC).then(|| parse(rest)).flatten() else {
            at += 1;
            continue;
        };
        if end < at {
            damaged.push(end..at);
        }
        records.push((at..at + len, record));
        at += len;
        end = at;
    }
    if end < bytes.len() {
        damaged.push(end..bytes.len());
    }
    Located { records, damaged }
}

/// Decodes the record at the beginning of `bytes`, and returns its length.
fn parse(bytes: &[u8]) -> Option<(Record, usize)> {
    let header: &[u8; HEADER] = bytes.first_chunk()?;
    let word = |at: usize| Some(u32::from_le_bytes(header.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_le_bytes(header.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let body_len = usize::try_from(word(12)?).ok().filter(|len| *len <= BODY_MOST)?;
    let len = HEADER.checked_add(body_len)?;
    let body = bytes.get(HEADER..len)?;
    let mut sum = Xxh3::new();
    sum.update(header.get(..16)?);
    sum.update(&[0; 4]);
    sum.update(header.get(20..)?);
    sum.update(body);
    if half(8)? != VERSION || sum.digest() as u32 != word(16)? {
        return None;
    }
    let record = Record {
        kind: Kind::of(half(10)?)?,
        flags: word(20)?,
        number: u64::from_le_bytes(header.last_chunk().copied()?),
        fields: fields(body)?,
    };
    Some((record, len))
}

fn fields(body: &[u8]) -> Option<Vec<(u16, Vec<u8>)>> {
    let mut fields = Vec::new();
    let mut rest = body;
    while let Some((tag, after)) = rest.split_first_chunk::<2>() {
        let (len, after) = after.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
        fields.push((u16::from_le_bytes(*tag), after.get(..len)?.to_vec()));
        rest = after.get(len..)?;
    }
    rest.is_empty().then_some(fields)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn panic_record(number: u64, message: &str) -> Vec<u8> {
        let mut buffer = [0; 4096];
        let mut writer = Writer::new(&mut buffer, Kind::Panic, flags::FORKED_CHILD, number);
        writer.number(Tag::Pid, 77);
        writer.bytes(Tag::Message, message.as_bytes());
        writer.addresses(Tag::Frames, &[1, u64::MAX]);
        writer.finish().unwrap().to_vec()
    }

    #[test]
    fn a_record_is_read_back_as_it_was_written() {
        let scanned = scan(&panic_record(5, "index out of bounds"));
        assert_eq!(scanned.damaged_bytes, 0);
        let [record] = scanned.records.as_slice() else { panic!("{scanned:?}") };
        assert_eq!((record.kind, record.flags, record.number), (Kind::Panic, flags::FORKED_CHILD, 5));
        assert_eq!(record.number(Tag::Pid), Some(77));
        assert_eq!(record.text(Tag::Message).as_deref(), Some("index out of bounds"));
        assert_eq!(record.addresses(Tag::Frames), [1, u64::MAX]);
        assert_eq!(record.number(Tag::Line), None);
    }

    #[test]
    fn a_field_without_space_is_omitted_as_a_whole() {
        let mut buffer = [0; HEADER + 20];
        let mut writer = Writer::new(&mut buffer, Kind::Panic, 0, 1);
        writer.number(Tag::Pid, 1);
        writer.bytes(Tag::Message, b"too long for six bytes");
        let record = writer.finish().unwrap();
        assert_eq!(scan(record).records.len(), 1);
        assert!(Writer::new(&mut [0; HEADER - 1], Kind::Panic, 0, 1).finish().is_none());
    }

    #[test]
    fn an_incomplete_record_costs_only_itself() {
        let (first, second) = (panic_record(1, "first"), panic_record(2, "second"));
        for kept in 0..first.len() {
            let scanned = scan(&[&first[..kept], &second].concat());
            let numbers: Vec<_> = scanned.records.iter().map(|record| record.number).collect();
            assert_eq!((numbers, scanned.damaged_bytes), (vec![2], kept));
        }
    }

    #[test]
    fn any_flipped_bit_is_detected() {
        let whole = panic_record(1, "x");
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(scan(&flipped).records.is_empty(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            before in proptest::collection::vec(any::<u8>(), 0..200),
            after in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..300,
        ) {
            let record = panic_record(9, "in between");
            let bytes = [before.as_slice(), &record[..cut.min(record.len())], &after].concat();
            let scanned = scan(&bytes);
            prop_assert!(scanned.damaged_bytes <= bytes.len());
            if cut >= record.len() {
                prop_assert!(scanned.records.iter().any(|read| read.number == 9));
            }
        }
    }
}
