//! Decompressing bodies.

use std::io::{self, Read};

use brotli_decompressor::Decompressor;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use ruzstd::decoding::StreamingDecoder;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const BROTLI_BUFFER: usize = 16 * 1024;

/// Decodes a body by its `Content-Encoding`: `gzip`, `deflate`, `br` or `zstd`. Without one, gzip is recognized by its
/// magic number and any other body is returned unchanged. At most `limit + 1` bytes are decoded.
///
/// # Errors
/// If the body is not encoded that way, or if the encoding is unknown.
pub fn decode(encoding: Option<&str>, body: Vec<u8>, limit: usize) -> io::Result<Vec<u8>> {
    let text = Vec::with_capacity(body.len().saturating_mul(4).min(limit));
    match encoding {
        Some("gzip") => read(MultiGzDecoder::new(&body[..]), text, limit),
        Some("deflate") => read(ZlibDecoder::new(&body[..]), text, limit),
        Some("br") => read(Decompressor::new(&body[..], BROTLI_BUFFER), text, limit),
        Some("zstd") => read(StreamingDecoder::new(&body[..]).map_err(io::Error::other)?, text, limit),
        Some(other) => Err(io::Error::other(format!("unknown encoding {other}"))),
        None if body.starts_with(&GZIP_MAGIC) => read(MultiGzDecoder::new(&body[..]), text, limit),
        None => Ok(body),
    }
}

fn read(decoder: impl Read, mut text: Vec<u8>, limit: usize) -> io::Result<Vec<u8>> {
    let limit = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    decoder.take(limit).read_to_end(&mut text)?;
    Ok(text)
}
