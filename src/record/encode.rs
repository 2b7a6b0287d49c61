//! MessagePack appended to a `Vec`, each value in its shortest form. Appending to a `Vec` cannot fail, so nothing here does.
//!
//! Only the markers are rmp's. Its writers give back an I/O error from every call, which would have to be passed on by everybody up
//! to the caller of `prop`, and take a seventh longer.

use rmp::Marker;

/// Bytes of a [`begin_map`] or [`begin_array`] header.
pub(crate) const OPEN_HEADER_LEN: usize = 5;
/// Bytes of a [`begin_ext`] header: the type follows the length.
const EXT_HEADER_LEN: usize = OPEN_HEADER_LEN + 1;

/// Appends a string. One of 4 GiB or more gets a wrong length; no limit on events lets it get as far as a record.
#[inline]
pub(crate) fn append_str(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        len @ 0..32 => out.push(Marker::FixStr(len as u8).to_u8()),
        len => append_long_str_header(out, len),
    }
    out.extend_from_slice(text.as_bytes());
}

/// Appends bytes.
pub(crate) fn append_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    match saturate(bytes.len()) {
        len @ 0..=0xff => append(out, Marker::Bin8, [len as u8]),
        len @ 0x100..=0xffff => append(out, Marker::Bin16, (len as u16).to_be_bytes()),
        len => append(out, Marker::Bin32, len.to_be_bytes()),
    }
    out.extend_from_slice(bytes);
}

/// Appends nothing, the value.
#[inline]
pub(crate) fn append_nil(out: &mut Vec<u8>) {
    out.push(Marker::Null.to_u8());
}

/// Appends a truth value.
#[inline]
pub(crate) fn append_bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { Marker::True } else { Marker::False }.to_u8());
}

/// Appends an integer that is not negative.
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

/// Appends an integer.
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

/// Appends a float of 32 bits; kept apart from 64 because its shortest decimal form is another.
#[inline]
pub(crate) fn append_f32(out: &mut Vec<u8>, value: f32) {
    append(out, Marker::F32, value.to_be_bytes());
}

/// Appends a float of 64 bits.
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

/// Begins an extension value of that type, whose content the caller appends next, and gives the place for [`end_ext`].
pub(crate) fn begin_ext(out: &mut Vec<u8>, kind: i8) -> usize {
    append(out, Marker::Ext32, [0; 4]);
    out.push(kind.cast_unsigned());
    out.len() - EXT_HEADER_LEN
}

/// Ends what was begun at `at`.
pub(crate) fn end_ext(out: &mut [u8], at: usize) {
    let len = saturate(out.len().saturating_sub(at + EXT_HEADER_LEN));
    patch_len(out, at, len);
}

/// Begins a map whose length is not known yet, and gives the place for [`patch_len`].
#[inline]
pub(crate) fn begin_map(out: &mut Vec<u8>) -> usize {
    append(out, Marker::Map32, [0; 4]);
    out.len() - OPEN_HEADER_LEN
}

/// Begins an array whose length is not known yet, and gives the place for [`patch_len`].
#[inline]
pub(crate) fn begin_array(out: &mut Vec<u8>) -> usize {
    append(out, Marker::Array32, [0; 4]);
    out.len() - OPEN_HEADER_LEN
}

/// Begins a string whose length is not known yet, and gives the place for [`patch_len`].
pub(crate) fn begin_str(out: &mut Vec<u8>) -> usize {
    append(out, Marker::Str32, [0; 4]);
    out.len() - OPEN_HEADER_LEN
}

/// Writes the length of what was begun at `at`.
#[inline]
pub(crate) fn patch_len(out: &mut [u8], at: usize, len: u32) {
    if let Some(place) = out.get_mut(at + 1..at + OPEN_HEADER_LEN) {
        place.copy_from_slice(&len.to_be_bytes());
    }
}

/// The 32 bits a length is written with.
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

#[cfg(test)]
mod tests {
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
    fn strings_bytes_and_maps_are_written_as_rmp_writes_them_at_every_boundary() {
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
}
