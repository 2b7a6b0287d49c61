//! What a request carries, read as PostHog reads it.

use std::io::Read;

use flate2::read::{MultiGzDecoder, ZlibDecoder};
use serde_json::Value;

/// The body as JSON, null if there is none; or why it cannot be read.
pub(super) fn read(encoding: Option<&str>, body: &[u8]) -> Result<Value, String> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    let text = decode(encoding, body)?;
    serde_json::from_slice(&text).map_err(|error| format!("its body is no JSON: {error}"))
}

fn decode(encoding: Option<&str>, body: &[u8]) -> Result<Vec<u8>, String> {
    match encoding {
        None | Some("identity") => Ok(body.to_vec()),
        Some("gzip") => unpack("gzip", MultiGzDecoder::new(body)),
        Some("deflate") => unpack("deflate", ZlibDecoder::new(body)),
        #[cfg(feature = "brotli")]
        Some("br") => unpack("br", brotli::Decompressor::new(body, 4096)),
        #[cfg(feature = "zstd")]
        Some("zstd") => match zstd::stream::read::Decoder::new(body) {
            Ok(decoder) => unpack("zstd", decoder),
            Err(error) => Err(format!("no decoder for zstd: {error}")),
        },
        Some(other) => Err(format!("its body is in {other:?}, which this build does not decode")),
    }
}

fn unpack(encoding: &str, mut decoder: impl Read) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    decoder.read_to_end(&mut text).map_err(|error| format!("its body is not {encoding}: {error}"))?;
    Ok(text)
}
