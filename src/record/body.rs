//! A record's body: the 36 fixed bytes of its head, and a checked view of all of its parts.

use uuid::Uuid;

use super::msgpack::{Malformed, Reader, Token, check_text};
use crate::sys::clock::WallNanos;

/// Length of the head in bytes.
pub(crate) const HEAD_LEN: usize = 36;
/// The value of `$lib`.
pub(crate) const LIB_NAME: &str = "posthog-durable";
/// Major, minor and patch version of this build.
pub(crate) const LIB_VERSION: [u16; 3] = [
    decimal(env!("CARGO_PKG_VERSION_MAJOR")),
    decimal(env!("CARGO_PKG_VERSION_MINOR")),
    decimal(env!("CARGO_PKG_VERSION_PATCH")),
];

const VERSION: u8 = 1;

/// How important an event is when space runs out. The more important class compares greater and is evicted later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(crate) enum Class {
    #[default]
    Ordinary = 0,
    /// An event that identifies a person or group: losing it splits a person in two.
    Identity = 1,
    Exception = 2,
}

impl Class {
    /// The class that a byte denotes. A class of a newer version reads as ordinary.
    pub(crate) fn from_u8(byte: u8) -> Self {
        match byte {
            1 => Class::Identity,
            2 => Class::Exception,
            _ => Class::Ordinary,
        }
    }
}

/// Boolean facts about an event, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u16);

impl Flags {
    /// The timestamp was set by the caller; it is not the time of capture.
    pub(crate) const EXPLICIT_TIMESTAMP: Flags = Flags(1 << 0);
    /// `$geoip_disable: true`.
    pub(crate) const GEOIP_DISABLE: Flags = Flags(1 << 1);
    /// `$process_person_profile: false`.
    pub(crate) const PERSONLESS: Flags = Flags(1 << 2);

    /// Whether all flags of `other` are set.
    pub(crate) fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) fn insert(&mut self, other: Flags) {
        self.0 |= other.0;
    }
}

/// The fields of the head, without its version and reserved bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) class: Class,
    pub(crate) flags: Flags,
    /// Version of the library that captured the event.
    pub(crate) lib_version: [u16; 3],
    /// PostHog de-duplicates events by it.
    pub(crate) uuid: Uuid,
    pub(crate) timestamp_nanos: WallNanos,
}

impl Head {
    pub(crate) fn encode(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[0] = VERSION;
        bytes[1] = self.class as u8;
        bytes[2..4].copy_from_slice(&self.flags.0.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.lib_version[0].to_le_bytes());
        bytes[6..8].copy_from_slice(&self.lib_version[1].to_le_bytes());
        bytes[8..10].copy_from_slice(&self.lib_version[2].to_le_bytes());
        bytes[12..28].copy_from_slice(self.uuid.as_bytes());
        bytes[28..36].copy_from_slice(&self.timestamp_nanos.to_le_bytes());
        bytes
    }

    /// Reads the head at the start of `body`; returns it with the bytes that follow.
    pub(crate) fn split(body: &[u8]) -> Result<(Head, &[u8]), Malformed> {
        let (head, rest) = body.split_first_chunk::<HEAD_LEN>().ok_or(Malformed::Truncated)?;
        if head[0] != VERSION {
            return Err(Malformed::Version(head[0]));
        }
        let u16_at = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&head[12..28]);
        let mut timestamp = [0; 8];
        timestamp.copy_from_slice(&head[28..36]);
        let head = Head {
            class: Class::from_u8(head[1]),
            flags: Flags(u16_at(2)),
            lib_version: [u16_at(4), u16_at(6), u16_at(8)],
            uuid: Uuid::from_bytes(uuid),
            timestamp_nanos: WallNanos::from_le_bytes(timestamp),
        };
        Ok((head, rest))
    }
}

/// Parses a decimal number; a compile error if it is not one or does not fit.
const fn decimal(text: &str) -> u16 {
    let digits = text.as_bytes();
    let (mut value, mut at) = (0u16, 0);
    while at < digits.len() {
        assert!(digits[at].is_ascii_digit(), "a version consists of decimal numbers");
        value = value * 10 + (digits[at] - b'0') as u16;
        at += 1;
    }
    value
}

/// The parts of a body, borrowed from it and checked by [`View::parse`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) head: Head,
    pub(crate) name: &'a str,
    pub(crate) distinct_id: &'a str,
    pub(crate) properties: Entries<'a>,
    /// The groups: type to key.
    pub(crate) groups: Entries<'a>,
}

impl<'a> View<'a> {
    /// Reads and checks a whole body.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let (head, rest) = Head::split(body)?;
        let mut reader = Reader::new(rest);
        let name = reader.string()?;
        let distinct_id = reader.string()?;
        let properties = Entries::checked(&mut reader)?;
        let groups = Entries::checked(&mut reader)?;
        if !reader.rest().is_empty() {
            return Err(Malformed::Trailing);
        }
        Ok(View { head, name, distinct_id, properties, groups })
    }

    /// The value of a property as MessagePack.
    #[cfg(test)]
    pub(crate) fn get(&self, key: &str) -> Option<&'a [u8]> {
        self.properties.last(key)
    }
}

/// The pairs of a map in the order in which they were written; a key may occur more than once. The iterator returns a
/// key as the bytes of its text, which is enough to compare or copy it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries<'a> {
    left: u32,
    reader: Reader<'a>,
}

impl<'a> Entries<'a> {
    /// The `len` pairs at the start of `bytes`, unchecked: the iterator ends early if they are malformed.
    pub(crate) fn new(len: u32, bytes: &'a [u8]) -> Self {
        Self { left: len, reader: Reader::new(bytes) }
    }

    /// Reads a map whose keys are strings, checks every value, and leaves `reader` after it.
    fn checked(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let Token::Map(left) = reader.token()? else { return Err(Malformed::Type) };
        let entries = Self { left, reader: *reader };
        for _ in 0..left {
            check_text(reader.string_bytes()?)?;
            reader.value()?;
        }
        Ok(entries)
    }

    /// Number of pairs, repeated keys included.
    pub(crate) fn len(&self) -> u32 {
        self.left
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// The bytes of the pairs that were not iterated yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.reader.rest()
    }

    /// The value of `key`: the last one written.
    pub(crate) fn last(self, key: &str) -> Option<&'a [u8]> {
        self.filter(|(name, _)| *name == key.as_bytes()).last().map(|(_, value)| value)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let key = self.reader.string_bytes().ok()?;
        Some((key, self.reader.value().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Head {
        let mut flags = Flags::default();
        flags.insert(Flags::PERSONLESS);
        Head {
            class: Class::Exception,
            flags,
            lib_version: [1, 20, 300],
            uuid: Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
            timestamp_nanos: -2,
        }
    }

    #[test]
    fn the_bytes_of_a_head_are_these() {
        let expected = [
            1, 2, 4, 0, 1, 0, 20, 0, 44, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 254, 255, 255,
            255, 255, 255, 255, 255,
        ];
        assert_eq!(sample().encode(), expected);
    }

    #[test]
    fn a_head_reads_back_as_it_was_written() {
        let mut body = sample().encode().to_vec();
        body.push(0xa0);
        assert_eq!(Head::split(&body), Ok((sample(), &[0xa0][..])));
    }

    #[test]
    fn a_head_of_another_version_or_cut_short_is_refused() {
        let mut bytes = sample().encode();
        assert_eq!(Head::split(&bytes[..HEAD_LEN - 1]), Err(Malformed::Truncated));
        bytes[0] = 2;
        assert_eq!(Head::split(&bytes), Err(Malformed::Version(2)));
    }

    #[test]
    fn a_class_of_a_newer_library_is_ordinary() {
        let classes = [Class::Ordinary, Class::Identity, Class::Exception];
        assert_eq!(classes.map(|class| Class::from_u8(class as u8)), classes);
        assert_eq!(Class::from_u8(3), Class::Ordinary);
    }

    #[test]
    fn the_version_of_this_build_is_the_package_version() {
        let [major, minor, patch] = LIB_VERSION;
        assert_eq!(format!("{major}.{minor}.{patch}"), env!("CARGO_PKG_VERSION"));
    }
}
