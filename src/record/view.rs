//! A body, checked once and then read in place.

use super::decode::{Malformed, Reader, check_text};
use super::head::Head;

/// The parts of a body, borrowed from it. Everything in it was checked by [`View::parse`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// Class, flags, version, uuid and time.
    pub(crate) head: Head,
    /// The event's name.
    pub(crate) name: &'a str,
    /// Who did it.
    pub(crate) distinct_id: &'a str,
    /// What the caller said about it.
    pub(crate) properties: Entries<'a>,
    /// Group type to group key.
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

/// The pairs of a map, in the order they were written; a key may come more than once. Iterating gives a key's text as its bytes:
/// most who iterate look for one key, or copy it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries<'a> {
    left: u32,
    reader: Reader<'a>,
}

impl<'a> Entries<'a> {
    /// The `len` pairs at the start of `bytes`, not checked: iterating ends early where they are malformed.
    pub(crate) fn new(len: u32, bytes: &'a [u8]) -> Self {
        Self { left: len, reader: Reader::new(bytes) }
    }

    /// Reads a map whose keys are strings, checks every value, and leaves `reader` behind it.
    fn checked(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let left = reader.map_header()?;
        let entries = Self { left, reader: *reader };
        for _ in 0..left {
            check_text(reader.string_bytes()?)?;
            reader.value()?;
        }
        Ok(entries)
    }

    /// How many pairs there are, repeated keys included.
    pub(crate) fn len(&self) -> u32 {
        self.left
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// The bytes that were not iterated yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.reader.rest()
    }

    /// The value that counts for `key`: the last one written.
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
