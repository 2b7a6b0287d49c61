//! A body as a request: where to, under which headers, in which protocol. Pure.

use rand::RngExt;
use rand::rngs::StdRng;
use uuid::{Builder, Uuid};

use super::body::{Body, Compression, Envelope, utc};
use super::{CaptureProtocol, DeliveryOptions};
use crate::record::{LIB_NAME, LIB_VERSION};
use crate::sys::clock::WallNanos;
use crate::transport::{MAX_RESPONSE_BYTES, Request};

/// So much of V1's answer is read: it has a verdict on each event, and a verdict may have details of some length. One event's may have
/// the whole of the first number; an answer that is longer than all is asked for again in smaller requests.
const V1_ANSWER_BYTES: usize = 256 * 1024;
const V1_ANSWER_BYTES_PER_EVENT: usize = 2048;
/// Requests of a hundred thousand events included, whose verdicts take some sixty bytes each where nothing is said beside.
const V1_ANSWER_BYTES_MOST: usize = 8 * 1024 * 1024;

/// One request through all its attempts, which V1 knows it by. Lost with the process: a request after a restart is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exchange {
    /// The same for every attempt, also for what remains of the events after some were answered.
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
    /// What the endpoint speaks.
    pub(super) fn protocol(&self) -> CaptureProtocol {
        self.protocol
    }

    /// How bodies are compressed: with V0 by nothing but gzip, which is all that every server of that age reads.
    pub(super) fn compression(&self) -> Compression {
        match (self.protocol, self.compression) {
            (CaptureProtocol::V0, Compression::None) => Compression::None,
            (CaptureProtocol::V0, gzip @ Compression::Gzip { .. }) => gzip,
            (CaptureProtocol::V0, _) => Compression::Gzip { level: 1 },
            (CaptureProtocol::V1, any) => any,
        }
    }

    /// What stands around the events of an attempt made `now`.
    pub(super) fn envelope(&self, exchange: &Exchange, now: WallNanos) -> Envelope<'_> {
        let historical_migration = self.historical_migration;
        match self.protocol {
            CaptureProtocol::V0 => Envelope::V0 { api_key: &self.api_key, historical_migration, sent_at: now },
            CaptureProtocol::V1 => Envelope::V1 { historical_migration, created_at: exchange.created_at },
        }
    }

    /// An attempt made `now`.
    pub(super) fn request(&self, exchange: &Exchange, now: WallNanos, body: Body) -> Request {
        let protocol = self.protocol;
        let encoding = self.compression().content_encoding();
        let mut url = self.urls.first().cloned().unwrap_or_default();
        let mut headers = vec![("content-type", "application/json".to_owned())];
        headers.extend(encoding.map(|encoding| ("content-encoding", encoding.to_owned())));
        let mut max_answer = MAX_RESPONSE_BYTES;
        match protocol {
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
                    // The server moves every event by what this differs from its own time.
                    ("posthog-request-timestamp", utc(now).to_string()),
                ]);
                let verdicts = body.events.saturating_mul(V1_ANSWER_BYTES_PER_EVENT);
                max_answer = V1_ANSWER_BYTES.saturating_add(verdicts).min(V1_ANSWER_BYTES_MOST);
            }
        }
        Request { url, headers, body: body.bytes, max_answer, ..Request::default() }
    }
}
