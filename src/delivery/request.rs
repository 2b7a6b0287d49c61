//! Builds requests: the body of a batch, its headers and its URL, in either protocol. Pure.
//!
//! Records are transcoded to JSON one by one and streamed into the compressor.

use std::io::{self, Write};
use std::sync::Arc;

use flate2::write::{GzEncoder, ZlibEncoder};
use jiff::Timestamp;
use rand::RngExt;
use rand::rngs::StdRng;
use uuid::{Builder, Uuid};

use super::DeliveryOptions;
use crate::record::{LIB_NAME, LIB_VERSION, Malformed, View, json};
use crate::sys::clock::WallNanos;
use crate::transport::{MAX_RESPONSE_BYTES, Request};

/// The protocol of the capture endpoint.
///
/// Both accept the same events, and the queue does not depend on it: events captured under one can be delivered under
/// the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CaptureProtocol {
    /// `POST /batch/`, supported by every PostHog server. One result for all events of a request. AI events:
    /// `POST /i/v0/ai/batch/`.
    #[default]
    V0,
    /// `POST /i/v1/analytics/events`: a result for each event, so that a rejected event is found at once and warnings
    /// are reported ([`Diagnostic::DeliveryWarning`](crate::diagnostics::Diagnostic::DeliveryWarning)). Properties that
    /// V1 expects elsewhere are moved there: `$cookieless_mode`, `$ignore_sent_at`, `$process_person_profile`,
    /// `$product_tour_id`, `$session_id`, `$window_id`. AI events: `POST /i/v1/ai/events`, with the same rules; PostHog
    /// drops an event there whose name is not that of an AI event. A server that has no such endpoint responds 404, and
    /// events stay queued.
    V1,
}

/// The fixed part of the size limit of a V1 response, which has a result with details for each event. Each event adds
/// [`V1_ANSWER_BYTES_PER_EVENT`]. After a longer response the events are sent again in smaller requests.
const V1_ANSWER_BYTES: usize = 256 * 1024;
const V1_ANSWER_BYTES_PER_EVENT: usize = 2048;
/// The limit for the largest requests: enough for a hundred thousand results of some sixty bytes, without details.
const V1_ANSWER_BYTES_MOST: usize = 8 * 1024 * 1024;

/// The identity of a V1 request through all its attempts. It is not stored: after a restart a request is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exchange {
    /// The same for every attempt, also after some of the events were decided.
    pub(super) id: Uuid,
    /// From 1.
    pub(super) attempt: u32,
    created_at: WallNanos,
}

impl Exchange {
    /// The first attempt.
    pub(super) fn new(now: WallNanos, rng: &mut StdRng) -> Self {
        Self { id: Builder::from_random_bytes(rng.random()).into_uuid(), attempt: 1, created_at: now }
    }

    /// The attempt after this one.
    pub(super) fn next(self) -> Self {
        Self { attempt: self.attempt.saturating_add(1), ..self }
    }
}

impl DeliveryOptions {
    /// The request of an attempt made at `now`.
    pub(super) fn request(&self, exchange: &Exchange, now: WallNanos, body: Body) -> Request {
        let encoding = self.compression.content_encoding();
        let mut url = Arc::clone(&self.url);
        let mut headers = vec![("content-type", "application/json".to_owned())];
        headers.extend(encoding.map(|encoding| ("content-encoding", encoding.to_owned())));
        let mut max_answer = MAX_RESPONSE_BYTES;
        match self.protocol {
            // Old servers read the query, not the header.
            CaptureProtocol::V0 if self.gzip_in_query && encoding.is_some() => {
                url = format!("{url}?compression=gzip").into()
            }
            CaptureProtocol::V0 => {}
            CaptureProtocol::V1 => {
                let [major, minor, patch] = LIB_VERSION;
                headers.extend([
                    ("authorization", format!("Bearer {}", self.api_key)),
                    ("posthog-sdk-info", format!("{LIB_NAME}/{major}.{minor}.{patch}")),
                    ("posthog-attempt", exchange.attempt.to_string()),
                    ("posthog-request-id", exchange.id.to_string()),
                    // The server corrects the times of all events by the difference from its own time.
                    ("posthog-request-timestamp", utc(now).to_string()),
                ]);
                let results = body.events.saturating_mul(V1_ANSWER_BYTES_PER_EVENT);
                max_answer = V1_ANSWER_BYTES.saturating_add(results).min(V1_ANSWER_BYTES_MOST);
            }
        }
        Request { url, headers, body: body.bytes, max_answer }
    }

    /// The body of an attempt made `now`, with these records in order.
    pub(super) fn body<'r>(
        &self,
        compression: Compression,
        exchange: &Exchange,
        now: WallNanos,
        records: impl Iterator<Item = &'r [u8]>,
    ) -> io::Result<Body> {
        let head = self.head(exchange, now)?;
        match compression {
            Compression::None => self.write_json(head, Vec::new(), records, Ok),
            Compression::Gzip => {
                let gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                self.write_json(head, gzip, records, GzEncoder::finish)
            }
            Compression::Deflate => {
                let zlib = ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                self.write_json(head, zlib, records, ZlibEncoder::finish)
            }
            #[cfg(feature = "brotli")]
            Compression::Brotli => {
                let brotli = brotli::CompressorWriter::new(Vec::new(), BROTLI_BUFFER, BROTLI_QUALITY, BROTLI_WINDOW);
                self.write_json(head, brotli, records, |brotli| Ok(brotli.into_inner()))
            }
            #[cfg(feature = "zstd")]
            Compression::Zstd => {
                let zstd = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                self.write_json(head, zstd, records, zstd::stream::write::Encoder::finish)
            }
            // A configuration error: see `config/check.rs`.
            #[cfg(not(all(feature = "brotli", feature = "zstd")))]
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Writes the records behind `text`, the beginning of the body.
    fn write_json<'r, W: Write>(
        &self,
        mut text: Vec<u8>,
        mut out: W,
        records: impl Iterator<Item = &'r [u8]>,
        finish: impl FnOnce(W) -> io::Result<Vec<u8>>,
    ) -> io::Result<Body> {
        let mut body = Body { bytes: Vec::new(), json_bytes: 0, events: 0, malformed: Vec::new() };
        for (index, record) in records.enumerate() {
            if body.events > 0 {
                text.push(b',');
            }
            // An event goes to the compressor only when it is complete, so a malformed record leaves nothing behind.
            let before = text.len();
            let written = View::parse(record).and_then(|view| match self.protocol {
                CaptureProtocol::V0 => json::write_event(&view, &*self.symbols, &mut text),
                CaptureProtocol::V1 => json::write_event_v1(&view, &*self.symbols, &mut text),
            });
            match written {
                Ok(()) => body.events += 1,
                Err(malformed) => {
                    text.truncate(before.saturating_sub(usize::from(body.events > 0)));
                    body.malformed.push((index, malformed));
                }
            }
            // Each call of the compressor is expensive.
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

    /// The members of a body before the events. In V1, key and time of the attempt are headers.
    fn head(&self, exchange: &Exchange, now: WallNanos) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(4096);
        let historical_migration = self.historical_migration;
        match self.protocol {
            CaptureProtocol::V0 => {
                out.extend_from_slice(b"{\"api_key\":");
                serde_json::to_writer(&mut out, &self.api_key)?;
                // The server corrects the times of all events by the difference from its own time.
                let sent_at = utc(now);
                write!(out, ",\"historical_migration\":{historical_migration},\"sent_at\":\"{sent_at}\",")?;
            }
            CaptureProtocol::V1 => {
                write!(out, "{{\"created_at\":\"{}\",", utc(exchange.created_at))?;
                if historical_migration {
                    out.extend_from_slice(b"\"historical_migration\":true,");
                }
            }
        }
        out.extend_from_slice(b"\"batch\":[");
        Ok(out)
    }
}

/// Quality of brotli, from 0 to 11. Above this value, time grows faster than bodies shrink.
#[cfg(feature = "brotli")]
const BROTLI_QUALITY: u32 = 4;
/// A window of 1 MiB, as a power of two. A larger one costs memory for each request in flight and gains little, because
/// similar events are close to each other.
#[cfg(feature = "brotli")]
const BROTLI_WINDOW: u32 = 20;
/// The compressor's own buffer.
#[cfg(feature = "brotli")]
const BROTLI_BUFFER: usize = 16 * 1024;
/// Level of zstd, from 1.
#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 1;

/// How request bodies are compressed.
///
/// [`CaptureProtocol::V0`] servers accept gzip only; [`CaptureProtocol::V1`] servers accept all of these. A choice that
/// the protocol or this build does not support is an error when the client is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Compression {
    /// No compression.
    None,
    /// gzip at its fastest level. Measured: on links below about 20 MB/s the link is slower than the compression.
    #[default]
    Gzip,
    /// zlib at its fastest level (`deflate` in HTTP): gzip with another header. V1 only.
    Deflate,
    /// Brotli at quality 4: smaller than gzip, and slower. V1 only; needs the cargo feature `brotli`.
    Brotli,
    /// Zstandard at level 1: smaller than gzip, and a little slower. V1 only; needs the cargo feature `zstd`.
    Zstd,
}

impl Compression {
    /// The value of `Content-Encoding`.
    pub(super) fn content_encoding(self) -> Option<&'static str> {
        match self {
            Compression::None => None,
            Compression::Gzip => Some("gzip"),
            Compression::Deflate => Some("deflate"),
            Compression::Brotli => Some("br"),
            Compression::Zstd => Some("zstd"),
        }
    }
}

/// A body that is ready to be sent.
#[derive(Debug)]
pub(super) struct Body {
    /// The compressed bytes.
    pub(super) bytes: Vec<u8>,
    /// The size before compression, on which the server has a limit too.
    pub(super) json_bytes: usize,
    /// Number of events in it.
    pub(super) events: usize,
    /// The records that could not be read, by their position in the input.
    pub(super) malformed: Vec<(usize, Malformed)>,
}

/// A time that is formatted as RFC 3339 in UTC. Every 64-bit number of nanoseconds is a valid timestamp.
pub(super) fn utc(time: WallNanos) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(time)).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::fake::{malformed_record, record};
    use super::*;

    const NOW: WallNanos = 1_500_000_000;
    const EXCHANGE: Exchange = Exchange { id: Uuid::nil(), attempt: 1, created_at: NOW };

    /// Every codec that is compiled in.
    fn codecs() -> Vec<Compression> {
        vec![
            Compression::None,
            Compression::Gzip,
            Compression::Deflate,
            #[cfg(feature = "brotli")]
            Compression::Brotli,
            #[cfg(feature = "zstd")]
            Compression::Zstd,
        ]
    }

    fn write_all(compression: Compression, records: &[Vec<u8>]) -> (Body, Value) {
        let options =
            DeliveryOptions { api_key: "phc_\"x".to_owned(), historical_migration: true, ..DeliveryOptions::default() };
        let body = options.body(compression, &EXCHANGE, NOW, records.iter().map(Vec::as_slice)).unwrap();
        // By independent decoders.
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
    fn a_v1_body_has_neither_api_key_nor_sent_at() {
        for (historical_migration, head) in [
            (false, r#"{"created_at":"1970-01-01T00:00:01.5Z","batch":[{"uuid":""#),
            (true, r#"{"created_at":"1970-01-01T00:00:01.5Z","historical_migration":true,"batch":[{"uuid":""#),
        ] {
            let protocol = CaptureProtocol::V1;
            let options = DeliveryOptions { historical_migration, protocol, ..DeliveryOptions::default() };
            let body = options.body(Compression::None, &EXCHANGE, 0, [record(1).as_slice()].into_iter()).unwrap();
            let text = String::from_utf8(body.bytes).unwrap();
            assert!(text.starts_with(head) && text.ends_with(r#""options":{}}]}"#), "{text}");
        }
    }

    #[test]
    fn a_malformed_record_is_left_out_at_any_position() {
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
