//! A batch as the body of a request: records are transcoded to JSON and streamed into the compressor, one by one.

use std::io::{self, Write};

use flate2::write::GzEncoder;
use jiff::Timestamp;

use crate::clock::WallNanos;
use crate::record::{Malformed, View, json};

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
}

/// What stands around the events.
#[derive(Clone, Debug)]
pub(super) struct Envelope<'a> {
    /// The project's token.
    pub(super) api_key: &'a str,
    /// An import of old events.
    pub(super) historical_migration: bool,
    /// The time of this attempt: the server moves every event by what this differs from its own time.
    pub(super) sent_at: WallNanos,
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

/// Writes a body; the records are those of an iterator, in order.
pub(super) fn write<'r>(
    envelope: &Envelope<'_>,
    compression: Compression,
    records: impl Iterator<Item = &'r [u8]>,
) -> io::Result<Body> {
    match compression {
        Compression::None => write_json(envelope, Vec::new(), records, Ok),
        Compression::Gzip { level } => {
            let gzip = GzEncoder::new(Vec::new(), flate2::Compression::new(level.clamp(1, 9)));
            write_json(envelope, gzip, records, GzEncoder::finish)
        }
    }
}

fn write_json<'r, W: Write>(
    envelope: &Envelope<'_>,
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
        match View::parse(record).and_then(|view| json::write_event(&view, &mut text)) {
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
    out.extend_from_slice(b"{\"api_key\":");
    serde_json::to_writer(&mut *out, envelope.api_key)?;
    // 64 bits of nanoseconds are within what a timestamp can be.
    let sent_at = Timestamp::from_nanosecond(i128::from(envelope.sent_at)).unwrap_or(Timestamp::UNIX_EPOCH);
    write!(out, ",\"historical_migration\":{},\"sent_at\":\"{sent_at}\",\"batch\":[", envelope.historical_migration)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use serde_json::Value;

    use super::super::fake::{malformed_record, record};
    use super::*;

    const ENVELOPE: Envelope<'_> = Envelope { api_key: "phc_\"x", historical_migration: true, sent_at: 1_500_000_000 };

    fn write_all(compression: Compression, records: &[Vec<u8>]) -> (Body, Value) {
        let body = write(&ENVELOPE, compression, records.iter().map(Vec::as_slice)).unwrap();
        let mut text = Vec::new();
        match compression {
            Compression::None => text.clone_from(&body.bytes),
            Compression::Gzip { .. } => {
                flate2::read::GzDecoder::new(body.bytes.as_slice()).read_to_end(&mut text).unwrap();
            }
        }
        assert_eq!(text.len(), body.json_bytes);
        let json = serde_json::from_slice(&text).unwrap();
        (body, json)
    }

    #[test]
    fn a_body_is_the_envelope_and_every_event_in_order() {
        for compression in [Compression::None, Compression::Gzip { level: 1 }, Compression::Gzip { level: 99 }] {
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
