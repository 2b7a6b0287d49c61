//! A queue and an endpoint for tests, both in memory, and the records to send.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Ack, ChunkRef, Compression, DeliveryNotice, DeliveryObserver, DeliveryOptions, EventId, Lease, Phase, Source,
    SourceError,
};
use crate::event::Event;
use crate::queue::frame;
use crate::queue::store::{Chunk, ChunkKey, DeadRecord};
use crate::sys::clock::WallNanos;
use crate::transport::{Http, Pending, Request, Response, RetryAfter, TransportError};

/// A record whose event is called `event <n>` and whose uuid is `n`.
pub(super) fn record(n: u64) -> Vec<u8> {
    let event = Event::new(format!("event {n}"), "somebody").uuid(Uuid::from_u128(n.into()));
    event.finish(Uuid::nil(), 0, 1 << 20).unwrap().body().to_vec()
}

/// A record that cannot be decoded.
pub(super) fn malformed_record() -> Vec<u8> {
    let mut body = record(0);
    body.pop();
    body
}

/// A chunk of `count` records with sequence numbers from `first_seq` on. The number in each event's name is its
/// record's sequence number.
pub(super) fn chunk(origin: u32, first_seq: u64, count: u64) -> Lease {
    chunk_of(origin, first_seq, &(first_seq..first_seq + count).map(record).collect::<Vec<_>>())
}

/// A chunk of these records.
pub(super) fn chunk_of(origin: u32, first_seq: u64, records: &[Vec<u8>]) -> Lease {
    let mut frames = Vec::new();
    for (seq, body) in (first_seq..).zip(records) {
        frame::append(&mut frames, body, 0, seq, 7);
    }
    let key = ChunkKey::new(first_seq);
    let count = u32::try_from(records.len()).unwrap();
    Lease { origin, chunk: Chunk { key, count, salt: 7, checkpointed_at: 0, frames: frames.into() } }
}

/// An observer that calls a function.
pub(super) struct FnObserver<F>(pub(super) F);

impl<F: Fn(&DeliveryNotice<'_>) + Send + Sync + 'static> DeliveryObserver for FnObserver<F> {
    fn is_listening(&self) -> bool {
        true
    }

    fn notify(&self, ids: &[EventId], delivery: &DeliveryNotice<'_>) {
        assert_eq!(ids.len(), delivery.uuids.len());
        self.0(delivery);
    }
}

/// The queued rows, what became of the other rows, and the faults that a test has set.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) rows: BTreeMap<ChunkRef, Chunk>,
    pub(super) newest: BTreeMap<u32, ChunkRef>,
    pub(super) delivered: u64,
    pub(super) dead_lettered: Vec<DeadRecord>,
    pub(super) acks: usize,
    /// The next attempts that were reported.
    pub(super) next_attempts: Vec<Option<WallNanos>>,
    /// The leased rows.
    pub(super) out: BTreeSet<ChunkRef>,
    pub(super) is_broken: bool,
    /// Sets `is_broken` with the next lease, which still succeeds.
    pub(super) is_broken_once_read: bool,
    /// The row lock is taken.
    pub(super) is_busy: bool,
    /// Sets `is_busy` with the next lease, which still succeeds.
    pub(super) is_busy_once_read: bool,
    pub(super) is_held: bool,
    /// The program opts out after the next lease.
    pub(super) is_held_once_read: bool,
    next_seq: u64,
}

/// A queue in memory. It checks that each ack accounts for every record once.
#[derive(Debug, Default)]
pub(super) struct FakeQueue(Mutex<Ledger>);

impl FakeQueue {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap()
    }

    /// Commits a chunk of `count` events; gives the first one's number.
    pub(super) fn commit(&self, count: u64) -> u64 {
        let first = self.ledger().next_seq.max(1);
        self.commit_chunk(chunk(0, first, count));
        first
    }

    pub(super) fn commit_chunk(&self, lease: Lease) {
        let (reference, chunk) = (lease.row(), lease.chunk);
        let mut ledger = self.ledger();
        ledger.next_seq = ledger.next_seq.max(reference.key.first_seq + u64::from(chunk.count));
        ledger.newest.insert(reference.origin, reference);
        ledger.rows.insert(reference, chunk);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ledger().rows.is_empty()
    }

    pub(super) fn delivered(&self) -> u64 {
        self.ledger().delivered
    }

    pub(super) fn acks(&self) -> usize {
        self.ledger().acks
    }

    /// The sequence numbers of what is queued.
    pub(super) fn queued(&self) -> Vec<u64> {
        let ledger = self.ledger();
        ledger
            .rows
            .values()
            .flat_map(|chunk| frame::frames(&chunk.frames, chunk.salt).map(|(head, _)| head.seq))
            .collect()
    }
}

/// The sequence numbers of a chunk's records.
fn records_of(chunk: &Chunk) -> BTreeSet<u64> {
    frame::frames(&chunk.frames, chunk.salt).map(|(head, _)| head.seq).collect()
}

impl Source for FakeQueue {
    fn lease(&self, max_bytes: usize, wants: &dyn Fn(ChunkRef) -> bool) -> Result<Vec<Lease>, SourceError> {
        let mut ledger = self.ledger();
        if ledger.is_broken {
            return Err(SourceError::Unreadable("the disk is gone".into()));
        }
        if ledger.is_busy {
            return Err(SourceError::Busy);
        }
        if ledger.is_held {
            return Ok(Vec::new());
        }
        ledger.is_broken = std::mem::take(&mut ledger.is_broken_once_read);
        ledger.is_busy = std::mem::take(&mut ledger.is_busy_once_read);
        ledger.is_held = std::mem::take(&mut ledger.is_held_once_read);
        let (mut leases, mut bytes) = (Vec::<Lease>::new(), 0);
        let is_free = |row: ChunkRef| !ledger.out.contains(&row) && wants(row);
        for (row, chunk) in ledger.rows.iter().filter(|&(&row, _)| is_free(row)) {
            if !leases.is_empty() && bytes + chunk.frames.len() > max_bytes {
                break;
            }
            bytes += chunk.frames.len();
            leases.push(Lease { origin: row.origin, chunk: chunk.clone() });
        }
        ledger.out.extend(leases.iter().map(Lease::row));
        Ok(leases)
    }

    fn lease_newest(&self, wants: &dyn Fn(ChunkRef) -> bool) -> Result<Option<Lease>, SourceError> {
        let newest = self.newest();
        // A queue of a day has too many rows to look at each of them.
        if newest.is_none_or(|row| !wants(row)) {
            return Ok(None);
        }
        Ok(self.lease(usize::MAX, &|row| newest == Some(row))?.pop())
    }

    fn waiting(&self) -> u64 {
        self.queued().len() as u64
    }

    fn is_held(&self) -> bool {
        self.ledger().is_held
    }

    fn newest(&self) -> Option<ChunkRef> {
        self.ledger().newest.get(&0).copied()
    }

    fn ack(&self, ack: Ack) {
        let mut ledger = self.ledger();
        let row = ledger.rows.remove(&ack.row).expect("a row is acked while it is queued");
        let kept = ack.keep.as_ref().map_or(0, |kept| u64::from(kept.count));
        let accounted = ack.delivered + ack.dead.len() as u64 + kept;
        assert_eq!(accounted, u64::from(row.count), "{ack:?}");
        assert!(ledger.out.remove(&ack.row), "only a leased row is acked");
        ledger.delivered += ack.delivered;
        ledger.acks += 1;
        ledger.dead_lettered.extend(ack.dead);
        if let Some(kept) = ack.keep {
            assert_eq!(
                row.retain(|seq| records_of(&kept).contains(&seq)).as_ref(),
                Some(&kept),
                "the row's own records"
            );
            let rest = ChunkRef { key: kept.key, ..ack.row };
            ledger.out.insert(rest);
            ledger.rows.insert(rest, kept);
        }
    }

    fn stuck(&self, _origin: u32) -> bool {
        false
    }

    fn release(&self, row: ChunkRef) {
        self.ledger().out.remove(&row);
    }

    fn pace(&self, _phase: Phase, next_attempt: Option<WallNanos>) {
        self.ledger().next_attempts.push(next_attempt);
    }
}

/// A request as the endpoint sees it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Since the first request.
    pub(super) at: Duration,
    pub(super) url: Arc<str>,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Value,
    /// The numbers of its events.
    pub(super) events: Vec<u64>,
    /// Requests under way, this one included.
    pub(super) in_flight: usize,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(each, _)| *each == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }
}

/// A response of the endpoint, and the time it takes.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    /// The HTTP status. 0: the connection fails; 1: it breaks in the middle of the request.
    pub(super) status: u16,
    pub(super) body: String,
    pub(super) retry_after: Option<u64>,
    pub(super) takes: Duration,
}

impl Reply {
    pub(super) fn new(status: u16, body: &str) -> Self {
        Self { status, body: body.to_owned(), retry_after: None, takes: Duration::from_millis(1) }
    }

    pub(super) fn ok() -> Self {
        Self::new(200, r#"{"status":1}"#)
    }

    /// A refusal in PostHog's words.
    pub(super) fn bad_event() -> Self {
        Self::new(400, "event submitted with an empty event name")
    }

    /// V1 results: a word for each event in turn, with details after a colon; the last word is used for all others.
    pub(super) fn results(seen: &Seen, words: &[&str]) -> Self {
        let said = |at: usize| {
            let word = words[at.min(words.len() - 1)];
            let (result, details) = word.split_once(':').unwrap_or((word, ""));
            if details.is_empty() { json!({"result": result}) } else { json!({"result": result, "details": details}) }
        };
        let uuid = |number: u64| Uuid::from_u128(number.into()).to_string();
        let results: serde_json::Map<_, _> =
            seen.events.iter().enumerate().map(|(at, &number)| (uuid(number), said(at))).collect();
        Self::new(200, &json!({"results": results}).to_string())
    }

    /// A connection that breaks in the middle of the request.
    pub(super) fn broken() -> Self {
        Self::new(1, "broken")
    }

    pub(super) fn after(self, takes: Duration) -> Self {
        Self { takes, ..self }
    }

    /// With this `Retry-After` in seconds.
    pub(super) fn retry_after(self, secs: u64) -> Self {
        Self { retry_after: Some(secs), ..self }
    }

    /// What the client gets, once the time has passed.
    pub(super) fn give(self, max_answer: usize) -> Result<Response, TransportError> {
        match self.status {
            0 => Err(TransportError::Connect(self.body.into())),
            1 => Err(TransportError::Other(self.body.into())),
            status => Ok(Response {
                status,
                retry_after: self.retry_after.map(|secs| RetryAfter::In(Duration::from_secs(secs))),
                is_cut: self.body.len() > max_answer,
                body: self.body.into_bytes().into_iter().take(max_answer).collect(),
                ..Response::default()
            }),
        }
    }
}

type Script = Box<dyn FnMut(&Seen) -> Reply + Send>;

struct Scripted {
    script: Script,
    seen: Vec<Seen>,
    in_flight: usize,
    begun: Option<tokio::time::Instant>,
}

/// A scripted endpoint in memory.
#[derive(Clone)]
pub(super) struct FakeEndpoint(Arc<Mutex<Scripted>>);

impl FakeEndpoint {
    pub(super) fn new(script: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Scripted { script: Box::new(script), seen: Vec::new(), in_flight: 0, begun: None })))
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.0.lock().unwrap().seen.clone()
    }

    pub(super) fn change(&self, script: impl FnMut(&Seen) -> Reply + Send + 'static) {
        self.0.lock().unwrap().script = Box::new(script);
    }
}

/// A request is under way until its future is done or dropped.
struct UnderWay(FakeEndpoint);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().in_flight -= 1;
    }
}

impl Http for FakeEndpoint {
    fn send(&self, request: Request) -> Pending {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let number = |event: &Value| event["event"].as_str().unwrap()["event ".len()..].parse().unwrap();
        let reply = {
            let mut scripted = self.0.lock().unwrap();
            let begun = *scripted.begun.get_or_insert_with(tokio::time::Instant::now);
            scripted.in_flight += 1;
            let seen = Seen {
                at: begun.elapsed(),
                url: request.url,
                headers: request.headers,
                events: body["batch"].as_array().unwrap().iter().map(number).collect(),
                body,
                in_flight: scripted.in_flight,
            };
            let reply = (scripted.script)(&seen);
            scripted.seen.push(seen);
            reply
        };
        let in_flight = UnderWay(self.clone());
        let max_answer = request.max_answer;
        Box::pin(async move {
            tokio::time::sleep(reply.takes).await;
            drop(in_flight);
            reply.give(max_answer)
        })
    }
}

/// Options without compression, so that the endpoint can read bodies, and without the jitter of the first send.
pub(super) fn options() -> DeliveryOptions {
    let mut options = DeliveryOptions {
        url: "http://fake/batch/".into(),
        api_key: "phc_test".to_owned(),
        compression: Compression::None,
        ..DeliveryOptions::default()
    };
    options.pace.first_send_jitter = Duration::ZERO;
    options
}
