//! Instances: one client with a queue of its own for each `test_id`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use posthog::reports::FlushReport;
use posthog::settings::Compression;
use posthog::{Client, Config};
use serde::Deserialize;

use crate::{CaptureProtocol, Encoding};

/// The most instances at a time. The harness never resets those of its last tests, and each has its threads.
const IDLE: Duration = Duration::from_secs(120);
/// Time for a discarded client to release its queue.
const LETTING_GO: Duration = Duration::from_secs(5);
/// Time for a flush whose server never responds.
const FLUSH: Duration = Duration::from_secs(60);

/// The settings of all instances of this process.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) protocol: CaptureProtocol,
    pub(crate) encoding: Encoding,
    pub(crate) folder: PathBuf,
}

/// The body of `POST /init`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Init {
    api_key: String,
    host: String,
    flush_at: Option<usize>,
    flush_interval_ms: Option<u64>,
    max_retries: Option<u32>,
    enable_compression: Option<bool>,
    disable_geoip: Option<bool>,
    historical_migration: Option<bool>,
}

/// All instances, by `test_id`; without one there is a single one.
#[derive(Debug)]
pub(crate) struct Instances {
    terms: Terms,
    made: AtomicU64,
    living: Mutex<HashMap<Option<String>, Arc<Instance>>>,
}

#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) client: Client,
    dir: PathBuf,
    used: Mutex<Instant>,
}

impl Instances {
    pub(crate) fn new(terms: Terms) -> Self {
        Self { terms, made: AtomicU64::new(0), living: Mutex::default() }
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Creates an instance and discards the one with that id, if there is one.
    pub(crate) async fn init(&self, id: Option<String>, init: Init) -> Result<(), posthog::Error> {
        self.reset(id.as_deref()).await;
        self.drop_idle().await;
        let dir = self.terms.folder.join(self.made.fetch_add(1, Ordering::Relaxed).to_string());
        let config = self.config(init, id.as_deref(), &dir);
        // On a blocking thread, because opening writes files.
        let client = tokio::task::spawn_blocking(|| Client::new(config))
            .await
            .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))?;
        self.living().insert(id, Arc::new(Instance { client, dir, used: Mutex::new(Instant::now()) }));
        Ok(())
    }

    /// The instance with that id.
    pub(crate) fn get(&self, id: Option<&str>) -> Option<Arc<Instance>> {
        let living = self.living();
        let instance = living.get(&id.map(str::to_owned))?;
        *instance.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Some(Arc::clone(instance))
    }

    /// Discards the instance and its events; sends nothing more.
    pub(crate) async fn reset(&self, id: Option<&str>) {
        let instance = self.living().remove(&id.map(str::to_owned));
        if let Some(instance) = instance {
            instance.discard().await;
        }
    }

    async fn drop_idle(&self) {
        let is_idle =
            |instance: &Arc<Instance>| instance.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > IDLE;
        let idle: Vec<_> = self.living().extract_if(|_, instance| is_idle(instance)).collect();
        for (_, instance) in idle {
            instance.discard().await;
        }
    }

    fn living(&self) -> MutexGuard<'_, HashMap<Option<String>, Arc<Instance>>> {
        self.living.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self, init: Init, id: Option<&str>, dir: &std::path::Path) -> Config {
        let mut config = Config::new(init.api_key)
            .host(init.host)
            .queue_dir(dir)
            .no_proxy()
            // Small, because a hundred instances may exist at a time.
            .journal_bytes(5 * 1024 * 1024)
            .compression(match init.enable_compression {
                Some(true) => compression(self.terms.encoding),
                _ => Compression::None,
            })
            .disable_geoip(init.disable_geoip.unwrap_or(false))
            .historical_migration(init.historical_migration.unwrap_or(false));
        if self.terms.protocol == CaptureProtocol::V1 {
            config = config.protocol(posthog::settings::CaptureProtocol::V1);
        }
        if let Some(events) = init.flush_at {
            config = config.flush_at(events);
        }
        if let Some(millis) = init.flush_interval_ms {
            config = config.flush_interval(Duration::from_millis(millis.max(10)));
        }
        if let Some(retries) = init.max_retries {
            config = config.max_retries(retries);
        }
        match id {
            Some(id) => config.header("X-Test-Id", id),
            None => config,
        }
    }
}

impl Instance {
    /// Flushes; resolves when every event was tried once.
    pub(crate) async fn flush(&self) -> Option<FlushReport> {
        tokio::time::timeout(FLUSH, self.client.flush()).await.ok()
    }

    async fn discard(&self) {
        // A deadline of zero also gives up requests in flight.
        let _ = tokio::time::timeout(LETTING_GO, self.client.shutdown(Duration::ZERO)).await;
        let dir = self.dir.clone();
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
        if let Ok(Err(error)) = removed {
            eprintln!("the queue of a discarded instance could not be removed: {error}");
        }
    }
}

fn compression(encoding: Encoding) -> Compression {
    match encoding {
        Encoding::Gzip => Compression::Gzip,
        Encoding::Deflate => Compression::Deflate,
        Encoding::Br => Compression::Brotli,
        Encoding::Zstd => Compression::Zstd,
    }
}
