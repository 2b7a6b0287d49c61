//! A batch as the body of a request: records are transcoded to JSON and streamed into the compressor, one by one.

use std::io::{self, Write};

use flate2::write::{GzEncoder, ZlibEncoder};
use jiff::Timestamp;

use crate::record::{Malformed, Symbols, View, json};
use crate::sys::clock::WallNanos;

/// Quality of brotli, from 0 to 11: above it time grows faster than bodies shrink.
#[cfg(feature = "brotli")]
const BROTLI_QUALITY: u32 = 4;
/// A window of 1 MiB, as a power of two: larger ones cost memory for each request under way, and events repeat themselves close by.
#[cfg(feature = "brotli")]
const BROTLI_WINDOW: u32 = 20;
/// The compressor's own buffer.
#[cfg(feature = "brotli")]
const BROTLI_BUFFER: usize = 16 * 1024;
/// Level of zstd, from 1.
#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 1;

/// How bodies are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// As they are.
    None,
    /// gzip of a level from 1 (fast) to 9 (small).
    Gzip {
        /// The level.
        level: u32,
    },
    /// The same in zlib's frame, which is what HTTP means by `deflate`.
    Deflate {
        /// The level.
        level: u32,
    },
    /// Brotli.
    #[cfg(feature = "brotli")]
    Brotli,
    /// Zstandard.
    #[cfg(feature = "zstd")]
    Zstd,
}

impl Compression {
    /// Its name in HTTP.
    pub(super) fn content_encoding(self) -> Option<&'static str> {
        match self {
            Compression::None => None,
            Compression::Gzip { .. } => Some("gzip"),
            Compression::Deflate { .. } => Some("deflate"),
            #[cfg(feature = "brotli")]
            Compression::Brotli => Some("br"),
            #[cfg(feature = "zstd")]
            Compression::Zstd => Some("zstd"),
        }
    }
}

/// What stands around the events.
#[derive(Clone, Debug)]
pub(super) enum Envelope<'a> {
    /// Of a V0 batch.
    V0 {
        /// The project's token.
        api_key: &'a str,
        /// An import of old events.
        historical_migration: bool,
        /// The time of this attempt: the server moves every event by what this differs from its own time.
        sent_at: WallNanos,
    },
    /// Of a V1 batch, whose token and time of the attempt are headers.
    V1 {
        /// An import of old events.
        historical_migration: bool,
        /// When the batch was made.
        created_at: WallNanos,
    },
}

/// A body, ready to be sent.
#[derive(Debug)]
pub(super) struct Body {
    /// As they go over the wire.
    pub(super) bytes: Vec<u8>,
    /// Before compression; the server has a limit on this too.
    pub(super) json_bytes: usize,
    /// How many events are in it.
    pub(super) events: usize,
    /// Which of the records could not be read, by their place in the input.
    pub(super) malformed: Vec<(usize, Malformed)>,
}

/// Writes a body; the records are those of an iterator, in order. Addresses in them get the names that `symbols` knows.
pub(super) fn write<'r>(
    envelope: &Envelope<'_>,
    compression: Compression,
    symbols: &dyn Symbols,
    records: impl Iterator<Item = &'r [u8]>,
) -> io::Result<Body> {
    match compression {
        Compression::None => write_json(envelope, symbols, Vec::new(), records, Ok),
        Compression::Gzip { level } => {
            let gzip = GzEncoder::new(Vec::new(), flate2::Compression::new(level.clamp(1, 9)));
            write_json(envelope, symbols, gzip, records, GzEncoder::finish)
        }
        Compression::Deflate { level } => {
            let zlib = ZlibEncoder::new(Vec::new(), flate2::Compression::new(level.clamp(1, 9)));
            write_json(envelope, symbols, zlib, records, ZlibEncoder::finish)
        }
        #[cfg(feature = "brotli")]
        Compression::Brotli => {
            let brotli = brotli::CompressorWriter::new(Vec::new(), BROTLI_BUFFER, BROTLI_QUALITY, BROTLI_WINDOW);
            write_json(envelope, symbols, brotli, records, |brotli| Ok(brotli.into_inner()))
        }
        #[cfg(feature = "zstd")]
        Compression::Zstd => {
            let zstd = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
            write_json(envelope, symbols, zstd, records, zstd::stream::write::Encoder::finish)
        }
    }
}

fn write_json<'r, W: Write>(
    envelope: &Envelope<'_>,
    symbols: &dyn Symbols,
    mut out: W,
    records: impl Iterator<Item = &'r [u8]>,
    finish: impl FnOnce(W) -> io::Result<Vec<u8>>,
) -> io::Result<Body> {
    // An event goes to the compressor only when it is whole: a record that turns out to be malformed half way leaves no trace.
    let mut text = Vec::with_capacity(4096);
    write_head(envelope, &mut text)?;
    let mut body = Body { bytes: Vec::new(), json_bytes: 0, events: 0, malformed: Vec::new() };
    for (index, record) in records.enumerate() {
        if body.events > 0 {
            text.push(b',');
        }
        let before = text.len();
        let written = View::parse(record).and_then(|view| match envelope {
            Envelope::V0 { .. } => json::write_event(&view, symbols, &mut text),
            Envelope::V1 { .. } => json::write_event_v1(&view, symbols, &mut text),
        });
        match written {
            Ok(()) => body.events += 1,
            Err(malformed) => {
                text.truncate(before.saturating_sub(usize::from(body.events > 0)));
                body.malformed.push((index, malformed));
            }
        }
        // The compressor's cost per call is not small.
        if text.len() >= 16 * 1024 {
            body.json_bytes += text.len();
            out.write_all(&text)?;
            text.clear();
        }
    }
    text.extend_from_slice(b"]}");
    body.json_bytes += text.len();
    out.write_all(&text)?;
    body.bytes = finish(out)?;
    Ok(body)
}

fn write_head(envelope: &Envelope<'_>, out: &mut Vec<u8>) -> io::Result<()> {
    match *envelope {
        Envelope::V0 { api_key, historical_migration, sent_at } => {
            out.extend_from_slice(b"{\"api_key\":");
            serde_json::to_writer(&mut *out, api_key)?;
            let sent_at = utc(sent_at);
            write!(out, ",\"historical_migration\":{historical_migration},\"sent_at\":\"{sent_at}\",")?;
        }
        Envelope::V1 { historical_migration, created_at } => {
            write!(out, "{{\"created_at\":\"{}\",", utc(created_at))?;
            if historical_migration {
                out.extend_from_slice(b"\"historical_migration\":true,");
            }
        }
    }
    out.extend_from_slice(b"\"batch\":[");
    Ok(())
}

/// A time that is written as RFC 3339 in UTC. 64 bits of nanoseconds are within what a timestamp can be.
pub(super) fn utc(time: WallNanos) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(time)).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::fake::{malformed_record, record};
    use super::*;
    use crate::record::NoSymbols;

    const ENVELOPE: Envelope<'_> =
        Envelope::V0 { api_key: "phc_\"x", historical_migration: true, sent_at: 1_500_000_000 };

    /// Every codec that is compiled in.
    fn codecs() -> Vec<Compression> {
        vec![
            Compression::None,
            Compression::Gzip { level: 1 },
            Compression::Gzip { level: 99 },
            Compression::Deflate { level: 1 },
            #[cfg(feature = "brotli")]
            Compression::Brotli,
            #[cfg(feature = "zstd")]
            Compression::Zstd,
        ]
    }

    fn write_all(compression: Compression, records: &[Vec<u8>]) -> (Body, Value) {
        let body = write(&ENVELOPE, compression, &NoSymbols, records.iter().map(Vec::as_slice)).unwrap();
        // By decoders of other hands.
        let text = sink::decode(compression.content_encoding(), body.bytes.clone(), 1 << 24).unwrap();
        assert_eq!(text.len(), body.json_bytes);
        let json = serde_json::from_slice(&text).unwrap();
        (body, json)
    }

    #[test]
    fn a_body_is_the_envelope_and_every_event_in_order() {
        for compression in codecs() {
            let records: Vec<_> = (0..300).map(record).collect();
            let (body, json) = write_all(compression, &records);
            assert_eq!((body.events, body.malformed.len()), (300, 0));
            assert_eq!((&json["api_key"], &json["historical_migration"]), (&"phc_\"x".into(), &true.into()));
            assert_eq!(json["sent_at"], "1970-01-01T00:00:01.5Z");
            let names: Vec<_> = json["batch"].as_array().unwrap().iter().map(|event| event["event"].clone()).collect();
            assert_eq!(names, (0..300).map(|n| Value::from(format!("event {n}"))).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_v1_body_has_neither_key_nor_time_and_tells_of_an_import_only_if_it_is_one() {
        for (historical_migration, head) in [
            (false, r#"{"created_at":"1970-01-01T00:00:01.5Z","batch":[{"uuid":""#),
            (true, r#"{"created_at":"1970-01-01T00:00:01.5Z","historical_migration":true,"batch":[{"uuid":""#),
        ] {
            let envelope = Envelope::V1 { historical_migration, created_at: 1_500_000_000 };
            let body = write(&envelope, Compression::None, &NoSymbols, [record(1).as_slice()].into_iter()).unwrap();
            let text = String::from_utf8(body.bytes).unwrap();
            assert!(text.starts_with(head) && text.ends_with(r#""options":{}}]}"#), "{text}");
        }
    }

    #[test]
    fn a_malformed_record_is_left_out_wherever_it_stands() {
        for at in 0..3 {
            let mut records: Vec<_> = (0..2).map(record).collect();
            records.insert(at, malformed_record());
            let (body, json) = write_all(Compression::None, &records);
            assert_eq!((body.events, json["batch"].as_array().unwrap().len()), (2, 2));
            assert_eq!(body.malformed[0].0, at);
        }
        let (body, json) = write_all(Compression::None, &[malformed_record()]);
        assert_eq!((body.events, &json["batch"]), (0, &Value::Array(Vec::new())));
    }
}
