//! MessagePack read back, from bytes nobody vouches for: one token at a time, nothing copied, nothing recursed deeper than
//! [`MAX_DEPTH`].

use rmp::Marker;
use serde::de::DeserializeOwned;

use super::symbols::NoSymbols;
use super::{MAX_DEPTH, json};

/// Why bytes are not a record body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// They end too early.
    #[error("it is cut short")]
    Truncated,
    /// They go on after the end.
    #[error("it has bytes after its end")]
    Trailing,
    /// A version this build does not know.
    #[error("it has version {0}, which a newer version of this library wrote")]
    Version(u8),
    /// A value of another type than must stand there.
    #[error("it holds a value of an unexpected type")]
    Type,
    /// A string that is not UTF-8.
    #[error("it holds a string that is not UTF-8")]
    Utf8,
    /// A map's key that JSON cannot express.
    #[error("it holds a map whose key is neither a string, an integer nor a boolean")]
    MapKey,
    /// More than [`MAX_DEPTH`] containers within each other.
    #[error("it nests values more than {MAX_DEPTH} levels deep")]
    TooDeep,
}

/// One step through a value. A container is its header only; what it holds follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    /// Its bytes: whoever passes it on as text checks it.
    Str(&'a [u8]),
    Bin(&'a [u8]),
    Array(u32),
    /// So many pairs.
    Map(u32),
    /// A value of an extension type: the type, and its content.
    Ext(i8, &'a [u8]),
}

/// A place in MessagePack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Begins at the start of `bytes`.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What was not read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads a scalar, or the header of a container.
    #[inline]
    pub(crate) fn token(&mut self) -> Result<Token<'a>, Malformed> {
        let [marker] = self.array()?;
        Ok(match Marker::from_u8(marker) {
            Marker::FixStr(len) => Token::Str(self.take(len.into())?),
            Marker::FixPos(value) => Token::Unsigned(value.into()),
            Marker::FixNeg(value) => Token::Signed(value.into()),
            Marker::FixMap(len) => Token::Map(len.into()),
            Marker::FixArray(len) => Token::Array(len.into()),
            Marker::Null => Token::Nil,
            Marker::True => Token::Bool(true),
            Marker::False => Token::Bool(false),
            other => return self.sized(other),
        })
    }

    /// Reads a string.
    pub(crate) fn string(&mut self) -> Result<&'a str, Malformed> {
        text(self.string_bytes()?)
    }

    /// Reads a string, and leaves it to the caller whether it is one.
    #[inline]
    pub(crate) fn string_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        match self.token()? {
            Token::Str(bytes) => Ok(bytes),
            _ => Err(Malformed::Type),
        }
    }

    /// Reads a map's header: how many pairs follow.
    pub(crate) fn map_header(&mut self) -> Result<u32, Malformed> {
        match self.token()? {
            Token::Map(len) => Ok(len),
            _ => Err(Malformed::Type),
        }
    }

    /// Reads a whole value, checked to the bottom, and gives its bytes.
    pub(crate) fn value(&mut self) -> Result<&'a [u8], Malformed> {
        let before = self.rest;
        self.skip(0)?;
        Ok(before.get(..before.len() - self.rest.len()).unwrap_or_default())
    }

    fn skip(&mut self, depth: u8) -> Result<(), Malformed> {
        match self.token()? {
            Token::Array(_) | Token::Map(_) if depth >= MAX_DEPTH => Err(Malformed::TooDeep),
            Token::Array(len) => (0..len).try_for_each(|_| self.skip(depth + 1)),
            Token::Str(bytes) => check_text(bytes),
            Token::Map(len) => (0..len).try_for_each(|_| {
                match self.token()? {
                    Token::Str(bytes) => check_text(bytes)?,
                    Token::Unsigned(_) | Token::Signed(_) | Token::Bool(_) => {}
                    _ => return Err(Malformed::MapKey),
                }
                self.skip(depth + 1)
            }),
            _ => Ok(()),
        }
    }

    /// The tokens whose marker is followed by a length or a fixed number of bytes.
    fn sized(&mut self, marker: Marker) -> Result<Token<'a>, Malformed> {
        Ok(match marker {
            Marker::U8 => Token::Unsigned(u8::from_be_bytes(self.array()?).into()),
            Marker::U16 => Token::Unsigned(u16::from_be_bytes(self.array()?).into()),
            Marker::U32 => Token::Unsigned(u32::from_be_bytes(self.array()?).into()),
            Marker::U64 => Token::Unsigned(u64::from_be_bytes(self.array()?)),
            Marker::I8 => Token::Signed(i8::from_be_bytes(self.array()?).into()),
            Marker::I16 => Token::Signed(i16::from_be_bytes(self.array()?).into()),
            Marker::I32 => Token::Signed(i32::from_be_bytes(self.array()?).into()),
            Marker::I64 => Token::Signed(i64::from_be_bytes(self.array()?)),
            Marker::F32 => Token::F32(f32::from_be_bytes(self.array()?)),
            Marker::F64 => Token::F64(f64::from_be_bytes(self.array()?)),
            Marker::Array16 => Token::Array(self.len16()?),
            Marker::Array32 => Token::Array(self.len32()?),
            Marker::Map16 => Token::Map(self.len16()?),
            Marker::Map32 => Token::Map(self.len32()?),
            _ => return self.text_or_bytes(marker),
        })
    }

    fn text_or_bytes(&mut self, marker: Marker) -> Result<Token<'a>, Malformed> {
        let len = match marker {
            Marker::Str8 | Marker::Bin8 | Marker::Ext8 => self.len8()?,
            Marker::Str16 | Marker::Bin16 | Marker::Ext16 => self.len16()?,
            Marker::Str32 | Marker::Bin32 | Marker::Ext32 => self.len32()?,
            Marker::FixExt1 => 1,
            Marker::FixExt2 => 2,
            Marker::FixExt4 => 4,
            Marker::FixExt8 => 8,
            Marker::FixExt16 => 16,
            _ => return Err(Malformed::Type),
        };
        match marker {
            Marker::Str8 | Marker::Str16 | Marker::Str32 => self.take(len).map(Token::Str),
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => self.take(len).map(Token::Bin),
            _ => {
                let [kind] = self.array()?;
                self.take(len).map(|content| Token::Ext(kind.cast_signed(), content))
            }
        }
    }

    fn len8(&mut self) -> Result<u32, Malformed> {
        self.array().map(|bytes| u8::from_be_bytes(bytes).into())
    }

    fn len16(&mut self) -> Result<u32, Malformed> {
        self.array().map(|bytes| u16::from_be_bytes(bytes).into())
    }

    fn len32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*bytes)
    }

    #[inline]
    fn take(&mut self, len: u32) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(len as usize).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }
}

/// Bytes as the string they should be.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed::Utf8)
}

/// [`text`] for whom the answer is enough: most strings are ASCII, and that is told much faster.
#[inline]
pub(crate) fn check_text(bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.is_ascii() { Ok(()) } else { text(bytes).map(drop) }
}

/// Whether `bytes` are exactly one value that may stand in a record.
pub(crate) fn check(bytes: &[u8]) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes);
    reader.value()?;
    if reader.rest().is_empty() { Ok(()) } else { Err(Malformed::Trailing) }
}

/// A value as the type the caller asks for, or `None` if it is not of that type.
pub(crate) fn value_as<T: DeserializeOwned>(raw: &[u8]) -> Option<T> {
    if holds_ext(raw) {
        // Only JSON has a form for it that a caller knows.
        let mut text = Vec::new();
        json::write_value(&mut Reader::new(raw), &NoSymbols, &mut text).ok()?;
        return serde_json::from_slice(&text).ok();
    }
    // Human readable, because that is how it was written: an address or a uuid is text.
    T::deserialize(&mut rmp_serde::Deserializer::new(raw).with_human_readable()).ok()
}

/// Whether a value, which has been checked, is or holds one of an extension type.
fn holds_ext(raw: &[u8]) -> bool {
    let mut reader = Reader::new(raw);
    // What a container holds follows its header, so that all tokens of a value stand in a row.
    std::iter::from_fn(|| reader.token().ok()).any(|token| matches!(token, Token::Ext(..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_marker_is_read_as_rmp_writes_it() {
        let mut out = Vec::new();
        rmp::encode::write_sint(&mut out, -40_000).unwrap();
        rmp::encode::write_uint(&mut out, u64::MAX).unwrap();
        rmp::encode::write_f32(&mut out, 0.5).unwrap();
        rmp::encode::write_str(&mut out, &"long ".repeat(20)).unwrap();
        rmp::encode::write_bin(&mut out, &[7; 300]).unwrap();
        rmp::encode::write_ext_meta(&mut out, 2, 5).unwrap();
        out.extend_from_slice(&[0xff, 0xff]);
        rmp::encode::write_array_len(&mut out, 70_000).unwrap();
        let mut reader = Reader::new(&out);
        let tokens: Vec<_> = std::iter::from_fn(|| reader.token().ok()).collect();
        let long = "long ".repeat(20);
        let expected = [
            Token::Signed(-40_000),
            Token::Unsigned(u64::MAX),
            Token::F32(0.5),
            Token::Str(long.as_bytes()),
            Token::Bin(&[7; 300]),
            Token::Ext(5, &[0xff, 0xff]),
            Token::Array(70_000),
        ];
        assert_eq!(tokens, expected);
    }

    #[test]
    fn a_reserved_marker_is_refused() {
        assert_eq!(check(&[0xc1]), Err(Malformed::Type));
    }

    #[test]
    fn nesting_is_followed_to_the_limit_and_no_further() {
        let nested = |levels: usize| [vec![0x91; levels], vec![0xc0]].concat();
        assert_eq!(check(&nested(MAX_DEPTH.into())), Ok(()));
        assert_eq!(check(&nested(usize::from(MAX_DEPTH) + 1)), Err(Malformed::TooDeep));
        assert_eq!(check(&vec![0x91; 1 << 20]), Err(Malformed::TooDeep));
    }

    #[test]
    fn a_container_that_claims_four_billion_elements_ends_where_the_bytes_end() {
        assert_eq!(check(&[0xdd, 0xff, 0xff, 0xff, 0xff, 0xc0]), Err(Malformed::Truncated));
    }

    #[test]
    fn keys_that_json_cannot_express_are_refused() {
        assert_eq!(check(&[0x81, 0xc0, 0xc0]), Err(Malformed::MapKey));
        assert_eq!(check(&[0x83, 0x01, 0xc0, 0xc2, 0xc0, 0xa1, b'k', 0xc0]), Ok(()));
    }
}
