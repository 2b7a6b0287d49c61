//! Encoding of the definitions that are kept in the store for the next process.
//!
//! ```text
//! version u8 | fetched_at i64 | length of the ETag u16 | ETag | length of the document u32 | the document, zlib
//! ```
//!
//! Integers are little-endian. The store adds a checksum. Bytes that cannot be decoded are ignored: definitions are
//! then loaded as if none had been kept.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use xxhash_rust::xxh3::xxh3_64;

use super::fetch::{MAX_RESPONSE_BYTES, usable};
use super::handle::LoadedFlags;
use crate::flags::LocalFlags;
use crate::sys::clock::WallNanos;
use crate::sys::reentry;

const VERSION: u8 = 1;

/// Encodes a document. `None` if the result is larger than `most`.
pub(super) fn encode(document: &[u8], etag: Option<&str>, fetched_at: WallNanos, most: usize) -> Option<Vec<u8>> {
    let etag = etag.unwrap_or_default();
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&fetched_at.to_le_bytes());
    bytes.extend_from_slice(&u16::try_from(etag.len()).ok()?.to_le_bytes());
    bytes.extend_from_slice(etag.as_bytes());
    bytes.extend_from_slice(&u32::try_from(document.len()).ok()?.to_le_bytes());
    // The fastest level, because this runs on the delivery thread.
    let mut encoder = ZlibEncoder::new(bytes, Compression::fast());
    encoder.write_all(document).ok()?;
    encoder.finish().ok().filter(|bytes| bytes.len() <= most)
}

/// Decodes what [`encode`] wrote. `None` if the bytes are damaged or of another version.
pub(crate) fn decode(bytes: &[u8]) -> Option<LoadedFlags> {
    let (&[version], rest) = bytes.split_first_chunk()?;
    let (fetched_at, rest) = rest.split_first_chunk()?;
    let (etag_len, rest) = rest.split_first_chunk()?;
    let (etag, rest) = rest.split_at_checked(u16::from_le_bytes(*etag_len).into())?;
    let (length, packed) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if version != VERSION || length > MAX_RESPONSE_BYTES {
        return None;
    }
    let mut document = Vec::new();
    // Reads one byte more than expected, to detect a longer document.
    ZlibDecoder::new(packed).take(length as u64 + 1).read_to_end(&mut document).ok()?;
    if document.len() != length {
        return None;
    }
    let flags = reentry::caught(|| LocalFlags::parse(&document))?.ok()?;
    let etag = std::str::from_utf8(etag).ok()?;
    Some(LoadedFlags {
        flags,
        fetched_at: WallNanos::from_le_bytes(*fetched_at),
        is_restored: true,
        etag: usable(Some(etag.to_owned())),
        hash: xxh3_64(&document),
    })
}

/// For the fuzz target: a document that is valid is kept and read as it was.
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) fn keep_any(document: &[u8]) {
    let Ok(flags) = LocalFlags::parse(document) else { return };
    let Some(bytes) = encode(document, Some("W/\"7\""), 42, 1 << 20) else { return };
    let restored = decode(&bytes).map(|restored| (restored.flags.len(), restored.hash, restored.fetched_at));
    assert_eq!(restored, Some((flags.len(), xxh3_64(document), 42)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &[u8] = br#"{"flags":[{"key":"new-ui","active":true,"filters":{"groups":[]}}]}"#;
    const MOST: usize = 1 << 20;

    #[test]
    fn what_was_kept_is_read_as_it_was() {
        let bytes = encode(DOCUMENT, Some("W/\"7\""), 42, MOST).unwrap();
        let restored = decode(&bytes).unwrap();
        assert_eq!((restored.fetched_at, restored.etag.as_deref()), (42, Some("W/\"7\"")));
        assert_eq!((restored.flags.len(), restored.hash), (1, xxh3_64(DOCUMENT)));
        assert_eq!(decode(&encode(DOCUMENT, None, 42, MOST).unwrap()).unwrap().etag, None);
    }

    #[test]
    fn damaged_bytes_are_ignored_and_never_panic() {
        let bytes = encode(DOCUMENT, Some("W/\"7\""), 42, MOST).unwrap();
        for end in 0..bytes.len() {
            // The end of a zlib stream is its checksum.
            assert!(decode(&bytes[..end]).is_none(), "{end}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut torn = bytes.clone();
                torn[at] ^= 1 << bit;
                let _ = decode(&torn);
            }
        }
    }

    #[test]
    fn another_version_and_a_wrong_length_are_ignored() {
        let bytes = encode(DOCUMENT, None, 42, MOST).unwrap();
        let mut foreign = bytes.clone();
        foreign[0] = 2;
        assert!(decode(&foreign).is_none());
        for length in [0, DOCUMENT.len() as u32 - 1, DOCUMENT.len() as u32 + 1, u32::MAX] {
            let mut lying = bytes.clone();
            lying[11..15].copy_from_slice(&length.to_le_bytes());
            assert!(decode(&lying).is_none(), "{length}");
        }
    }

    #[test]
    fn what_is_too_large_or_no_definitions_is_not_kept() {
        assert!(encode(DOCUMENT, None, 42, 20).is_none());
        let nonsense = encode(b"<html>", None, 42, MOST).unwrap();
        assert!(decode(&nonsense).is_none());
    }
}
