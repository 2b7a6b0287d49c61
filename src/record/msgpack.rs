//! MessagePack: writing to a `Vec`, reading untrusted bytes, and the extension value for numbers beyond 64 bits.
//!
//! Each value is written in its shortest form. Appending to a `Vec` cannot fail, so the writers return nothing. Only
//! the marker bytes come from the `rmp` package: its writers return an I/O error from every call and take 15 % longer.
//!
//! The reader returns one token at a time, copies nothing, and descends at most [`MAX_DEPTH`] levels.
//!
//! Numbers that arrive as text (serde_json passes its own that way if any crate of the build enables
//! `arbitrary_precision`) are stored as an integer or float if 64 bits represent them exactly, otherwise as their text
//! in an extension value. PostHog receives every digit.

use rmp::Marker;

/// How many containers a property's value may nest, the outermost included.
pub(crate) const MAX_DEPTH: u8 = 64;

/// Bytes of a [`begin_map`] or [`begin_array`] header.
pub(crate) const OPEN_HEADER_LEN: usize = 5;
/// Bytes of a [`begin_ext`] header: the type follows the length.
const EXT_HEADER_LEN: usize = OPEN_HEADER_LEN + 1;

/// Appends a string. A string of 4 GiB or more gets a wrong length; it exceeds every limit on events, so it is in no
/// record.
#[inline]
pub(crate) fn append_str(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        len @ 0..32 => out.push(Marker::FixStr(len as u8).to_u8()),
        len => append_long_str_header(out, len),
    }
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn append_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    match saturate(bytes.len()) {
        len @ 0..=0xff => append(out, Marker::Bin8, [len as u8]),
        len @ 0x100..=0xffff => append(out, Marker::Bin16, (len as u16).to_be_bytes()),
        len => append(out, Marker::Bin32, len.to_be_bytes()),
    }
    out.extend_from_slice(bytes);
}

#[inline]
pub(crate) fn append_nil(out: &mut Vec<u8>) {
    out.push(Marker::Null.to_u8());
}

#[inline]
pub(crate) fn append_bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { Marker::True } else { Marker::False }.to_u8());
}

#[inline]
pub(crate) fn append_uint(out: &mut Vec<u8>, value: u64) {
    match value {
        0..=0x7f => out.push(Marker::FixPos(value as u8).to_u8()),
        0x80..=0xff => append(out, Marker::U8, [value as u8]),
        0x100..=0xffff => append(out, Marker::U16, (value as u16).to_be_bytes()),
        0x1_0000..=0xffff_ffff => append(out, Marker::U32, (value as u32).to_be_bytes()),
        _ => append(out, Marker::U64, value.to_be_bytes()),
    }
}

#[inline]
pub(crate) fn append_int(out: &mut Vec<u8>, value: i64) {
    match value {
        0.. => append_uint(out, value as u64),
        -0x20..0 => out.push(Marker::FixNeg(value as i8).to_u8()),
        -0x80..-0x20 => append(out, Marker::I8, (value as i8).to_be_bytes()),
        -0x8000..-0x80 => append(out, Marker::I16, (value as i16).to_be_bytes()),
        -0x8000_0000..-0x8000 => append(out, Marker::I32, (value as i32).to_be_bytes()),
        _ => append(out, Marker::I64, value.to_be_bytes()),
    }
}

/// Appends a 32-bit float. It is not widened to 64 bits, because its shortest decimal form would change.
#[inline]
pub(crate) fn append_f32(out: &mut Vec<u8>, value: f32) {
    append(out, Marker::F32, value.to_be_bytes());
}

#[inline]
pub(crate) fn append_f64(out: &mut Vec<u8>, value: f64) {
    append(out, Marker::F64, value.to_be_bytes());
}

/// Appends the header of a map of `len` entries, which the caller appends next.
#[inline]
pub(crate) fn append_map_header(out: &mut Vec<u8>, len: u32) {
    match len {
        0..=0xf => out.push(Marker::FixMap(len as u8).to_u8()),
        0x10..=0xffff => append(out, Marker::Map16, (len as u16).to_be_bytes()),
        _ => append(out, Marker::Map32, len.to_be_bytes()),
    }
}

/// Appends the header of an array of `len` elements, which the caller appends next.
#[inline]
pub(crate) fn append_array_header(out: &mut Vec<u8>, len: u32) {
    match len {
        0..=0xf => out.push(Marker::FixArray(len as u8).to_u8()),
        0x10..=0xffff => append(out, Marker::Array16, (len as u16).to_be_bytes()),
        _ => append(out, Marker::Array32, len.to_be_bytes()),
    }
}

/// Begins an extension value of type `kind`. The caller appends its content and then passes the returned position to
/// [`end_ext`].
pub(crate) fn begin_ext(out: &mut Vec<u8>, kind: i8) -> usize {
    append(out, Marker::Ext32, [0; 4]);
    out.push(kind.cast_unsigned());
    out.len() - EXT_HEADER_LEN
}

/// Ends the extension value that begins at `at`.
pub(crate) fn end_ext(out: &mut [u8], at: usize) {
    let len = saturate(out.len().saturating_sub(at + EXT_HEADER_LEN));
    patch_len(out, at, len);
}

/// Begins a map of unknown length and returns its position for [`patch_len`].
#[inline]
pub(crate) fn begin_map(out: &mut Vec<u8>) -> usize {
    append(out, Marker::Map32, [0; 4]);
    out.len() - OPEN_HEADER_LEN
}

/// Begins an array of unknown length and returns its position for [`patch_len`].
#[inline]
pub(crate) fn begin_array(out: &mut Vec<u8>) -> usize {
    append(out, Marker::Array32, [0; 4]);
    out.len() - OPEN_HEADER_LEN
}

/// Begins a string of unknown length and returns its position for [`patch_len`].
pub(crate) fn begin_str(out: &mut Vec<u8>) -> usize {
    append(out, Marker::Str32, [0; 4]);
    out.len() - OPEN_HEADER_LEN
}

/// Writes the length of the map, array or string that begins at `at`.
#[inline]
pub(crate) fn patch_len(out: &mut [u8], at: usize, len: u32) {
    if let Some(place) = out.get_mut(at + 1..at + OPEN_HEADER_LEN) {
        place.copy_from_slice(&len.to_be_bytes());
    }
}

/// A length as the 32 bits it is written with.
pub(crate) fn saturate(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn append_long_str_header(out: &mut Vec<u8>, len: usize) {
    match saturate(len) {
        len @ 0..=0xff => append(out, Marker::Str8, [len as u8]),
        len @ 0x100..=0xffff => append(out, Marker::Str16, (len as u16).to_be_bytes()),
        len => append(out, Marker::Str32, len.to_be_bytes()),
    }
}

#[inline]
fn append<const N: usize>(out: &mut Vec<u8>, marker: Marker, bytes: [u8; N]) {
    out.reserve(N + 1);
    out.push(marker.to_u8());
    out.extend_from_slice(&bytes);
}

/// Why bytes are not a valid record body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("it is cut short")]
    Truncated,
    #[error("it has bytes after its end")]
    Trailing,
    #[error("it has version {0}, which a newer version of this library wrote")]
    Version(u8),
    #[error("it holds a value of an unexpected type")]
    Type,
    #[error("it holds a string that is not UTF-8")]
    Utf8,
    #[error("it holds a map whose key is neither a string, an integer nor a boolean")]
    MapKey,
    #[error("it nests values more than {MAX_DEPTH} levels deep")]
    TooDeep,
}

/// One token. For a container this is its header only; the tokens of its content follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    /// Not checked to be UTF-8.
    Str(&'a [u8]),
    Bin(&'a [u8]),
    Array(u32),
    /// The number of pairs.
    Map(u32),
    /// An extension value: its type and its content.
    Ext(i8, &'a [u8]),
}

/// A position in MessagePack bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The bytes that were not read yet.
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

    /// Reads a string without checking that it is UTF-8.
    #[inline]
    pub(crate) fn string_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        match self.token()? {
            Token::Str(bytes) => Ok(bytes),
            _ => Err(Malformed::Type),
        }
    }

    /// Reads a whole value, checks all of its content, and returns its bytes.
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

    /// Reads a token whose marker is followed by a length or by a fixed number of bytes.
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

pub(crate) fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed::Utf8)
}

/// Checks that bytes are UTF-8. Tests for ASCII first, which is much faster and covers most strings.
#[inline]
pub(crate) fn check_text(bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.is_ascii() { Ok(()) } else { text(bytes).map(drop) }
}

/// Checks that `bytes` are exactly one value that is allowed in a record.
pub(crate) fn check(bytes: &[u8]) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes);
    reader.value()?;
    if reader.rest().is_empty() { Ok(()) } else { Err(Malformed::Trailing) }
}

/// The extension type of a number that is stored as its JSON text.
pub(crate) const NUMBER_EXT: i8 = 3;

/// Appends the number that `text` denotes. Returns `false`, and appends nothing, if `text` is not a JSON number.
pub(super) fn append_number(out: &mut Vec<u8>, text: &str) -> bool {
    if !is_number(text.as_bytes()) {
        return false;
    }
    if text == "-0" {
        // Integers have no negative zero.
        append_f64(out, -0.0);
    } else if let Ok(integer) = text.parse() {
        append_uint(out, integer);
    } else if let Ok(integer) = text.parse() {
        append_int(out, integer);
    } else if let Some(float) = text.parse().ok().filter(|&float| is_exactly(text, float)) {
        append_f64(out, float);
    } else {
        append_exact(out, text);
    }
    true
}

pub(super) fn append_exact(out: &mut Vec<u8>, text: &str) {
    let at = begin_ext(out, NUMBER_EXT);
    out.extend_from_slice(text.as_bytes());
    end_ext(out, at);
}

/// Whether `text` is a number in JSON's syntax.
pub(super) fn is_number(text: &[u8]) -> bool {
    let rest = text.strip_prefix(b"-").unwrap_or(text);
    let (whole, rest) = digits(rest);
    let (fraction, rest) = match rest.strip_prefix(b".") {
        Some(rest) => {
            let (fraction, rest) = digits(rest);
            (!fraction.is_empty(), rest)
        }
        None => (true, rest),
    };
    let exponent = match rest {
        [] => true,
        [b'e' | b'E', b'+' | b'-', rest @ ..] | [b'e' | b'E', rest @ ..] => {
            let (exponent, rest) = digits(rest);
            !exponent.is_empty() && rest.is_empty()
        }
        _ => false,
    };
    !whole.is_empty() && (whole.len() == 1 || whole.first() != Some(&b'0')) && fraction && exponent
}

fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

/// Whether `float`, in its shortest decimal form, is the same number as `text`.
fn is_exactly(text: &str, float: f64) -> bool {
    float.is_finite()
        && matches!((decimal(text), decimal(&format!("{float:e}"))), (Some(one), Some(other)) if one == other)
}

/// A number's sign, its significant digits and the power of ten of the first digit: equal for equal numbers. `None` if
/// the power does not fit.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (is_negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole, fraction].concat();
    let significant = all.trim_start_matches('0');
    if significant.is_empty() {
        return Some((is_negative, String::new(), 0));
    }
    let zeros = i64::try_from(all.len() - significant.len()).ok()?;
    let power = exponent.parse::<i64>().ok()?.checked_add(i64::try_from(whole.len()).ok()?)?.checked_sub(zeros)?;
    Some((is_negative, significant.trim_end_matches('0').to_owned(), power))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn both(ours: impl FnOnce(&mut Vec<u8>), theirs: impl FnOnce(&mut Vec<u8>)) {
        let (mut written, mut expected) = (Vec::new(), Vec::new());
        ours(&mut written);
        theirs(&mut expected);
        assert_eq!(written, expected);
    }

    #[test]
    fn integers_are_written_as_rmp_writes_them_at_every_boundary() {
        for bits in 0..64 {
            let power = 1i64 << bits;
            for value in [power.wrapping_sub(1), power, power.wrapping_neg(), power.wrapping_neg().wrapping_sub(1)] {
                both(|out| append_int(out, value), |out| assert!(rmp::encode::write_sint(out, value).is_ok()));
                let value = value as u64;
                both(|out| append_uint(out, value), |out| assert!(rmp::encode::write_uint(out, value).is_ok()));
            }
        }
    }

    #[test]
    fn strings_bytes_and_maps_are_written_as_rmp_writes_them() {
        for len in [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536] {
            let text = "x".repeat(len);
            both(|out| append_str(out, &text), |out| rmp::encode::write_str(out, &text).unwrap());
            both(|out| append_bin(out, text.as_bytes()), |out| rmp::encode::write_bin(out, text.as_bytes()).unwrap());
            let len = len as u32;
            both(|out| append_map_header(out, len), |out| assert!(rmp::encode::write_map_len(out, len).is_ok()));
            both(|out| append_array_header(out, len), |out| assert!(rmp::encode::write_array_len(out, len).is_ok()));
        }
    }

    #[test]
    fn an_extension_value_reads_as_its_type_and_content() {
        let mut out = vec![0xc0];
        let at = begin_ext(&mut out, -3);
        out.extend_from_slice(&[7; 70_000]);
        end_ext(&mut out, at);
        both(
            |written| written.extend_from_slice(&out[1..]),
            |out| {
                assert!(rmp::encode::write_ext_meta(out, 70_000, -3).is_ok());
                out.extend_from_slice(&[7; 70_000]);
            },
        );
    }

    #[test]
    fn a_length_patched_later_reads_as_if_it_had_been_known() {
        let mut out = vec![0xc0];
        let at = begin_map(&mut out);
        patch_len(&mut out, at, 70_000);
        both(
            |written| written.extend_from_slice(&out[1..]),
            |out| assert!(rmp::encode::write_map_len(out, 70_000).is_ok()),
        );
    }

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
    fn a_container_ends_where_the_bytes_end() {
        assert_eq!(check(&[0xdd, 0xff, 0xff, 0xff, 0xff, 0xc0]), Err(Malformed::Truncated));
    }

    #[test]
    fn keys_that_json_cannot_express_are_refused() {
        assert_eq!(check(&[0x81, 0xc0, 0xc0]), Err(Malformed::MapKey));
        assert_eq!(check(&[0x83, 0x01, 0xc0, 0xc2, 0xc0, 0xa1, b'k', 0xc0]), Ok(()));
    }

    fn token(text: &str) -> Option<(u8, String)> {
        let mut out = Vec::new();
        if !append_number(&mut out, text) {
            assert!(out.is_empty());
            return None;
        }
        match Reader::new(&out).token().unwrap() {
            Token::Unsigned(integer) => Some((b'u', integer.to_string())),
            Token::Signed(integer) => Some((b'i', integer.to_string())),
            Token::F64(float) => Some((b'f', format!("{float:?}"))),
            Token::Ext(NUMBER_EXT, text) => Some((b'x', String::from_utf8(text.to_vec()).unwrap())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn numbers_beyond_64_bits_keep_their_digits() {
        for (text, kind, value) in [
            ("0", b'u', "0"),
            ("-0", b'f', "-0.0"),
            ("-0.0", b'f', "-0.0"),
            ("7", b'u', "7"),
            ("18446744073709551615", b'u', "18446744073709551615"),
            ("-9223372036854775808", b'i', "-9223372036854775808"),
            // A float has exactly this value, but its shortest decimal form is a different text.
            ("18446744073709551616", b'x', "18446744073709551616"),
            ("18446744073709551617", b'x', "18446744073709551617"),
            ("0.1", b'f', "0.1"),
            ("1.50", b'f', "1.5"),
            ("1E2", b'f', "100.0"),
            ("-12.5e-3", b'f', "-0.0125"),
            ("0.1000000000000000055511151231257827", b'x', "0.1000000000000000055511151231257827"),
            ("3.14159265358979323846", b'x', "3.14159265358979323846"),
            ("1e400", b'x', "1e400"),
            ("1e-400", b'x', "1e-400"),
            ("1e99999999999999999999", b'x', "1e99999999999999999999"),
        ] {
            assert_eq!(token(text), Some((kind, value.to_owned())), "{text}");
        }
        for none in ["", "-", "+1", "01", "1.", ".5", "1e", "1e+", "NaN", "Infinity", "1 ", "0x1", "1_000", "--1"] {
            assert_eq!(token(none), None, "{none:?}");
        }
    }

    proptest! {
        #[test]
        fn every_float_is_found_to_be_one(float in any::<f64>().prop_filter("finite", |float| float.is_finite())) {
            for text in [format!("{float:e}"), format!("{float:?}")] {
                let found = token(&text).unwrap();
                prop_assert!(found.0 != b'x', "{}", text);
                prop_assert_eq!(found.1.parse::<f64>().unwrap(), float);
            }
        }

        #[test]
        fn what_serde_json_reads_as_a_number_is_one(text in "-?[0-9]{1,3}(\\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?") {
            let number = serde_json::from_str::<serde_json::Number>(&text).is_ok();
            prop_assert_eq!(is_number(text.as_bytes()), number, "{}", text);
        }
    }
}
