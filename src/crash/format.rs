//! One record as bytes. Pure: writing needs no memory but the buffer it is given, so that a signal handler may do it, and reading
//! takes any bytes.
//!
//! ```text
//!  0  8  magic: 89 'P' 'H' 'X' 'R' 0D 0A 1A       16  4  low half of the XXH3 of header (with this word 0) and body
//!  8  2  version                                  20  4  flags
//! 10  2  kind                                     24  8  number of the record, counted by its process from 1
//! 12  4  bytes of the body                        32  .. body: fields, each a tag (2), a length (4) and its bytes
//! ```
//! All little endian. A tag that is not known is passed over, so a later version may say more. Numbers are 8 bytes.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

pub(super) const MAGIC: [u8; 8] = [0x89, b'P', b'H', b'X', b'R', 0x0d, 0x0a, 0x1a];
const VERSION: u16 = 1;
/// Bytes before the body.
pub(super) const HEADER: usize = 32;
const FIELD_HEADER: usize = 6;
/// No body is longer. It bounds what the reader sums up for each place that looks like a record and is none.
pub(super) const BODY_MOST: usize = 64 * 1024;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The process: written when its file is made.
    Context,
    /// A panic.
    Panic,
    /// A fatal signal.
    Signal,
    /// The `SIGABRT` that a panic ended in.
    Abort,
    /// The process exits by itself.
    Exit,
    /// The process had time to die of what stands before this, and lives.
    Survived,
    /// The process lived on after the signal of that number.
    Repaired,
    /// Room for a signal that somebody may repair.
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

/// What a field says. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Tag {
    /// Nanoseconds since 1970.
    Time = 1,
    Pid = 2,
    Tid = 3,
    ThreadName = 4,
    /// Where a panic was raised.
    File = 5,
    Line = 6,
    Column = 7,
    Message = 8,
    /// Bytes of the message before it was cut.
    MessageBytes = 9,
    /// Return addresses, the innermost first, 8 bytes each.
    Frames = 10,
    /// Records that could not be written before this one.
    Missed = 11,
    Signal = 12,
    SignalCode = 13,
    FaultAddress = 14,
    SenderPid = 15,
    SenderUid = 16,
    /// The number of the panic that an abort belongs to.
    PanicNumber = 17,
    /// Nanoseconds since the process armed its file.
    Uptime = 18,
    /// What the process exits with, if that is known.
    Status = 19,
    /// Time (nanoseconds since 1970) and text of something that the program did before, the newest first; as often as there were such.
    Step = 20,
    /// Nothing: it makes a record as long as the room that it is written into.
    Padding = 21,
    /// Of the context that was current on the thread: whose request it served.
    DistinctId = 22,
    SessionId = 23,
    /// Its `$current_url`, which has no query unless the program wants it.
    CurrentUrl = 24,
    RequestPath = 25,
    /// 16 bytes that no other process has.
    Instance = 32,
    /// 16 bytes that differ after each start of the machine.
    BootId = 33,
    Executable = 34,
    HostName = 35,
    LibVersion = 36,
    /// The images that the addresses of all records lie in, as `record::stack` encodes them.
    Images = 37,
    /// When the process was started, in ticks of the kernel since the machine was: a pid alone may be somebody else's by now.
    StartTicks = 38,
}

/// Flags of a record.
pub(super) mod flags {
    /// Written by a child that the process forked.
    pub(in crate::crash) const FORKED_CHILD: u32 = 1;
    /// A panic ends the process, however it is caught: it was built with `panic = "abort"`.
    pub(in crate::crash) const PANIC_ABORTS: u32 = 2;
    /// A stack that hit the end of its memory.
    pub(in crate::crash) const STACK_OVERFLOW: u32 = 4;
    /// The handler itself faulted while it wrote this.
    pub(in crate::crash) const NESTED: u32 = 8;
    /// The thread was in the middle of a panic.
    pub(in crate::crash) const PANICKING: u32 = 16;
    /// The thread was reading last words.
    pub(in crate::crash) const READING: u32 = 32;
}

/// Writes one record into a buffer. What does not fit is left out, whole fields at a time.
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

    /// As [`new`](Self::new); the finished record has exactly the length of `out`.
    pub(super) fn padded(out: &'a mut [u8], kind: Kind, flags: u32, number: u64) -> Self {
        Self { is_padded: true, ..Self::new(out, kind, flags, number) }
    }

    pub(super) fn bytes(&mut self, tag: Tag, bytes: &[u8]) {
        let Ok(len) = u32::try_from(bytes.len()) else { return };
        if bytes.len().saturating_add(FIELD_HEADER) > self.room() {
            return;
        }
        self.put(&(tag as u16).to_le_bytes());
        self.put(&len.to_le_bytes());
        self.put(bytes);
    }

    pub(super) fn number(&mut self, tag: Tag, value: u64) {
        self.bytes(tag, &value.to_le_bytes());
    }

    /// Addresses, straight from the array they were gathered in.
    pub(super) fn addresses(&mut self, tag: Tag, addresses: &[u64]) {
        let bytes = addresses.len().saturating_mul(8);
        let Ok(len) = u32::try_from(bytes) else { return };
        if bytes.saturating_add(FIELD_HEADER) > self.room() {
            return;
        }
        self.put(&(tag as u16).to_le_bytes());
        self.put(&len.to_le_bytes());
        for address in addresses {
            self.put(&address.to_le_bytes());
        }
    }

    /// The finished record; `None` if the buffer does not even hold a header.
    pub(super) fn finish(mut self) -> Option<&'a [u8]> {
        if self.is_padded {
            self.pad();
        }
        let Self { out, at, .. } = self;
        let body = u32::try_from(at.checked_sub(HEADER)?).ok()?;
        out.get_mut(12..16)?.copy_from_slice(&body.to_le_bytes());
        let sum = xxh3_64(out.get(..at)?) as u32;
        out.get_mut(16..20)?.copy_from_slice(&sum.to_le_bytes());
        out.get(..at)
    }

    fn room(&self) -> usize {
        let kept = if self.is_padded { FIELD_HEADER } else { 0 };
        self.out.len().min(HEADER + BODY_MOST).saturating_sub(self.at).saturating_sub(kept)
    }

    /// There is always room for the head of this field.
    fn pad(&mut self) {
        self.is_padded = false;
        let len = self.room().saturating_sub(FIELD_HEADER);
        self.put(&(Tag::Padding as u16).to_le_bytes());
        self.put(&u32::try_from(len).unwrap_or(0).to_le_bytes());
        let end = self.at.saturating_add(len);
        if let Some(rest) = self.out.get_mut(self.at..end) {
            rest.fill(0);
            self.at = end;
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        let end = self.at.saturating_add(bytes.len());
        if let Some(room) = self.out.get_mut(self.at..end) {
            room.copy_from_slice(bytes);
            self.at = end;
        }
    }
}

/// A record as read back; its fields are looked up where they lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) flags: u32,
    pub(super) number: u64,
    fields: Vec<(u16, Vec<u8>)>,
}

impl Record {
    pub(super) fn bytes(&self, tag: Tag) -> Option<&[u8]> {
        self.fields.iter().find(|(known, _)| *known == tag as u16).map(|(_, bytes)| bytes.as_slice())
    }

    /// Each of the fields of that tag.
    pub(super) fn all(&self, tag: Tag) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |(known, _)| *known == tag as u16).map(|(_, bytes)| bytes.as_slice())
    }

    /// Text; bytes that are none (a thread may have any name) are replaced.
    pub(super) fn text(&self, tag: Tag) -> Option<String> {
        self.bytes(tag).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    pub(super) fn number(&self, tag: Tag) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(tag)?.try_into().ok()?))
    }

    pub(super) fn addresses(&self, tag: Tag) -> Vec<u64> {
        let (words, _) = self.bytes(tag).unwrap_or_default().as_chunks::<8>();
        words.iter().map(|word| u64::from_le_bytes(*word)).collect()
    }
}

/// What stands in the bytes of a file.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) records: Vec<Record>,
    /// Bytes that belong to no whole record: a torn write, damage, a kind of record that this version does not know.
    pub(super) passed_over: usize,
}

/// Finds the records in any bytes. After one that is torn or damaged the search goes on at the next byte, so it costs itself only.
pub(super) fn scan(bytes: &[u8]) -> Scanned {
    let mut scanned = Scanned::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let Some(start) = rest.windows(MAGIC.len()).position(|window| window == MAGIC) else {
            scanned.passed_over = scanned.passed_over.saturating_add(rest.len());
            break;
        };
        scanned.passed_over = scanned.passed_over.saturating_add(start);
        rest = rest.get(start..).unwrap_or_default();
        match parse(rest) {
            Some((record, len)) => {
                scanned.records.push(record);
                rest = rest.get(len..).unwrap_or_default();
            }
            None => {
                scanned.passed_over = scanned.passed_over.saturating_add(1);
                rest = rest.get(1..).unwrap_or_default();
            }
        }
    }
    scanned
}

/// The record that `bytes` begin with, and its length.
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
        assert_eq!(scanned.passed_over, 0);
        let [record] = scanned.records.as_slice() else { panic!("{scanned:?}") };
        assert_eq!((record.kind, record.flags, record.number), (Kind::Panic, flags::FORKED_CHILD, 5));
        assert_eq!(record.number(Tag::Pid), Some(77));
        assert_eq!(record.text(Tag::Message).as_deref(), Some("index out of bounds"));
        assert_eq!(record.addresses(Tag::Frames), [1, u64::MAX]);
        assert_eq!(record.number(Tag::Line), None);
    }

    #[test]
    fn a_field_without_room_is_left_out_whole_and_the_record_stays_readable() {
        let mut buffer = [0; HEADER + 20];
        let mut writer = Writer::new(&mut buffer, Kind::Panic, 0, 1);
        writer.number(Tag::Pid, 1);
        writer.bytes(Tag::Message, b"too long for six bytes");
        let record = writer.finish().unwrap();
        assert_eq!(scan(record).records.len(), 1);
        assert!(Writer::new(&mut [0; HEADER - 1], Kind::Panic, 0, 1).finish().is_none());
    }

    #[test]
    fn a_torn_record_costs_itself_only_wherever_it_is_torn() {
        let (first, second) = (panic_record(1, "first"), panic_record(2, "second"));
        for kept in 0..first.len() {
            let scanned = scan(&[&first[..kept], &second].concat());
            let numbers: Vec<_> = scanned.records.iter().map(|record| record.number).collect();
            assert_eq!((numbers, scanned.passed_over), (vec![2], kept));
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_seen() {
        let whole = panic_record(1, "x");
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(scan(&flipped).records.is_empty(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic_and_every_byte_is_accounted_for(
            before in proptest::collection::vec(any::<u8>(), 0..200),
            after in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..300,
        ) {
            let record = panic_record(9, "in between");
            let bytes = [before.as_slice(), &record[..cut.min(record.len())], &after].concat();
            let scanned = scan(&bytes);
            prop_assert!(scanned.passed_over <= bytes.len());
            if cut >= record.len() {
                prop_assert!(scanned.records.iter().any(|read| read.number == 9));
            }
        }
    }
}
