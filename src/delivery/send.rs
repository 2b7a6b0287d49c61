//! A batch on its way out: made distinct, encoded, and handed to the network.

use std::time::{Duration, Instant};

use super::CaptureProtocol;
use super::batch::Batch;
use super::body::{self, Body};
use super::engine::Engine;
use super::loaded::Reason;
use super::pace::{Health, Ticket};
use super::request::Exchange;
use super::timers::sleep_until;
use crate::sys::clock::WallNanos;
use crate::transport::{Pending, Response, TransportError};

/// The server's limit on a decompressed body is 20 MiB; estimates may be wrong, and a little is left for what stands around.
const MOST_JSON_BYTES: usize = 20 * 1024 * 1024 - 64 * 1024;

/// The answer, or none in time.
async fn within(limit: Option<Duration>, now: Instant, request: Pending) -> Result<Response, TransportError> {
    let given_up =
        || format!("given up after {} ms, for others pass much faster", limit.unwrap_or_default().as_millis());
    tokio::select! {
        answer = request => answer,
        () = sleep_until(limit.map(|limit| now + limit)) => Err(TransportError::Timeout(given_up().into())),
    }
}

impl Engine {
    /// Sends a batch; what cannot go with the rest of it becomes a batch of its own.
    pub(super) fn send(&mut self, mut batch: Batch, ticket: Ticket, now: Instant) {
        // PostHog's V1 answers by uuid, and refuses a request that holds one twice.
        if self.options.protocol() == CaptureProtocol::V1
            && let Some(repetition) = batch.first_repetition(&self.intake.loaded)
        {
            let (first, second) = batch.cut(repetition, &mut self.intake.loaded);
            self.split.push([first, second]);
            return;
        }
        let wall = self.clock.wall_nanos();
        let exchange = batch.exchange.map_or_else(|| Exchange::new(wall, &mut self.rng), Exchange::next);
        let Some(body) = self.encode(&mut batch, &exchange, wall, now) else { return };
        if body.json_bytes > MOST_JSON_BYTES && batch.events > 1 {
            let (first, second) = batch.halves(&mut self.intake.loaded);
            self.split.push([first, second]);
            return;
        }
        if self.source.is_held() {
            // Compressing may have taken long enough for somebody to opt out.
            return self.intake.release(&batch, now);
        }
        batch.exchange = Some(exchange);
        let mut last = None;
        for chunk in batch.chunks().filter(|&chunk| last.replace(chunk) != Some(chunk)) {
            let tries = self.intake.loaded.tries(chunk);
            tries.attempts = tries.attempts.saturating_add(1);
            tries.first_attempt.get_or_insert(wall);
        }
        let request = self.options.request(&exchange, wall, body);
        self.sends += 1;
        batch.sent = Some((self.sends, now));
        let request = self.transport.send(request);
        let is_believed_up = self.pace.health() == Health::Up || self.doubted.is_some();
        let limit = self.patience.limit(now, batch.quarantined).filter(|_| is_believed_up);
        let last = self.is_last_slot(now).then(|| self.patience.limit_of_last_slot(batch.quarantined));
        let limit = limit.into_iter().chain(last).min();
        batch.given_up_after = limit.filter(|_| self.pace.health() == Health::Up);
        let task = self.requests.spawn(within(limit, now, request));
        self.under_way.insert(task.id(), (batch, ticket));
    }

    /// The batch as a body; records that cannot be read are dead_lettered. `None` if nothing is left.
    fn encode(&mut self, batch: &mut Batch, exchange: &Exchange, wall: WallNanos, now: Instant) -> Option<Body> {
        let envelope = self.options.envelope(exchange, wall);
        let compression = self.options.compression();
        let loaded = &self.intake.loaded;
        let records =
            || batch.slices.iter().flat_map(|slice| loaded.open(slice).map(move |found| (slice.chunk, found)));
        let bodies = records().map(|(_, (_, _, body))| body);
        // Writing to memory fails only where allocating does.
        let symbols = &*self.options.symbols;
        let written = body::write(&envelope, compression, symbols, bodies).ok();
        symbols.rest();
        let malformed: Vec<_> = written.iter().flat_map(|body| &body.malformed).collect();
        let culprits: Vec<_> = malformed
            .iter()
            .filter_map(|(index, error)| {
                let (chunk, (position, ..)) = records().nth(*index)?;
                Some((chunk, position, format!("its record is damaged: {error}")))
            })
            .collect();
        batch.events = batch.events.saturating_sub(culprits.len());
        for (chunk, position, reason) in culprits {
            self.dead_letter(chunk, position, 0, &reason);
        }
        if written.is_none() {
            // Read again at once it would fail again at once.
            batch.chunks().for_each(|chunk| self.intake.loaded.set_aside(chunk, Reason::Whole));
        }
        if batch.events == 0 || written.is_none() {
            self.intake.release(batch, now);
            return None;
        }
        written
    }
}
