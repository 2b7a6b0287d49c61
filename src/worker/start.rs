//! Starting: on the committer's own thread, so that a file system that hangs cannot hang the caller.

use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, OnceLock};

use super::admission::{Admission, memory_bound};
use super::adoption::{Orphans, Skipped, reason};
use super::bell::Bell;
use super::committer::Committer;
use super::flag_definitions::Definitions;
use super::life::{LastRun, Life};
use super::outbox::Outbox;
use super::receipts::Receipts;
use super::verdicts::{Ear, Verdicts};
use super::{Notice, Pipeline, WorkerOptions, symbols, threads};
use crate::crash;
use crate::delivery::{self, DeliveryHandle, EngineParts};
use crate::disk::{FileSystem, fork};
use crate::shard::{
    ClaimError, Lane, Opened, Predecessor, Shard, ShardError, ShardOptions, Stranded, claim, concerns_all_shards,
    has_orphan, shard_dir, stranded,
};
use crate::transport::{Http, Transport, TransportError};

/// So many shards may fail to open before the disk is to blame for it: otherwise each start on a disk that fails would make one more.
const UNOPENED_MAX: u32 = 16;

/// Why nothing could be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The queue directory cannot be used.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The proxy or a certificate of the configuration.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The system gave us no thread.
    #[error("no thread could be started")]
    Thread(#[source] io::Error),
    /// The queue directory did not answer in time.
    #[error("the queue directory did not answer in time")]
    Timeout,
    /// Opening panicked.
    #[error("opening the queue failed in an unforeseen way")]
    Panicked,
}

impl WorkerOptions {
    pub(super) fn shard_options(&self) -> ShardOptions {
        ShardOptions {
            project: self.project.clone(),
            queue_dir: self.queue_dir.clone(),
            arena_bytes: self.arena_bytes,
            lock_wait: self.lock_wait,
            cache_bytes: self.cache_bytes,
            reserve_bytes: self.reserve_bytes,
            dead_bytes: self.limits.dead_bytes(),
            adopts: false,
        }
    }
}

/// Opens the queue and starts both threads. `relative` is the other lane's pipeline, or that of the process that this one was forked
/// from: what it read from the environment is used again, and none of its connections.
pub(crate) fn start(options: WorkerOptions, relative: Option<&Pipeline>) -> Result<Arc<Pipeline>, StartError> {
    let network = network(&options, relative)?;
    let most = options.open_timeout;
    let (tell, told) = mpsc::sync_channel(0);
    threads::spawn("posthog-commit", move || committer_thread(options, network, &tell)).map_err(StartError::Thread)?;
    match told.recv_timeout(most) {
        Ok(started) => started,
        Err(RecvTimeoutError::Timeout) => Err(StartError::Timeout),
        // The thread ended without a word.
        Err(RecvTimeoutError::Disconnected) => Err(StartError::Panicked),
    }
}

type Tell = SyncSender<Result<Arc<Pipeline>, StartError>>;

/// What a pipeline sends its requests through.
#[derive(Clone)]
pub(super) enum Network {
    Real(Transport),
    /// As the options say.
    Given(Arc<dyn Http>),
}

impl Network {
    /// As whoever sends wants it.
    pub(super) fn http(&self) -> Arc<dyn Http> {
        match self {
            Network::Real(transport) => Arc::new(transport.clone()),
            Network::Given(given) => Arc::clone(given),
        }
    }
}

fn network(options: &WorkerOptions, relative: Option<&Pipeline>) -> Result<Network, TransportError> {
    if let Some(given) = &options.network {
        return Ok(Network::Given(Arc::clone(given)));
    }
    if let Some(Network::Real(transport)) = relative.map(|relative| &relative.network) {
        return transport.reconnect().map(Network::Real);
    }
    let (transport, warnings) = Transport::new(options.transport.clone())?;
    for warning in warnings {
        (options.report)(Notice::Network(warning.to_string()));
    }
    Ok(Network::Real(transport))
}

fn committer_thread(options: WorkerOptions, network: Network, tell: &Tell) {
    let pipeline = match open(options, network) {
        Ok(pipeline) => pipeline,
        Err(error) => {
            // Nobody listening means that the caller has given up on us already.
            let _ = tell.send(Err(error));
            return;
        }
    };
    #[cfg(feature = "testing")]
    super::contents::watch(&pipeline);
    let committer = Committer::new(Arc::clone(&pipeline));
    if let Err(error) = start_delivery(&pipeline) {
        pipeline.shard.close();
        let _ = tell.send(Err(error));
        return;
    }
    if tell.send(Ok(Arc::clone(&pipeline))).is_err() {
        // The caller did not wait for us: the queue must not stay locked on behalf of nobody.
        drop(pipeline.shutdown(std::time::Duration::ZERO));
    }
    drop(pipeline);
    committer.run();
}

/// Opens the queue; neither thread runs yet.
pub(super) fn open(mut options: WorkerOptions, network: Network) -> Result<Arc<Pipeline>, StartError> {
    let now = options.clock.wall_nanos();
    let mut skipped = Vec::new();
    let (Opened { shard, replayed, findings, before }, problem) = match open_shard(&options, now) {
        Ok((opened, passed)) => {
            skipped = passed;
            (opened, None)
        }
        Err(error) if options.memory_fallback => {
            let shard = Shard::volatile(&options.disk, &options.shard_options())?;
            let before = Predecessor::default();
            (Opened { shard, replayed: 0, findings: Vec::new(), before }, Some(error.to_string()))
        }
        Err(error) => return Err(error.into()),
    };
    let memory_backed = shard.is_volatile() || matches!(file_system(&options, shard.dir()), Some(FileSystem::Memory));
    if memory_backed {
        options.limits.queue_bytes = options.limits.queue_bytes.min(memory_bound());
    }
    let is_first = options.lane == Lane::Analytics && !shard.is_volatile();
    let stranded = if is_first { find_stranded(&options) } else { Vec::new() };
    let ai_left_behind = is_first && is_ai_left_behind(&options);
    // Before our own first sign: the OOM killer is compared with what it was.
    let fatal = before
        .life
        .and_then(|life| crash::fatal_left(&options.disk, &shard.dir().join(crash::DIR), life.pid, life.started_at));
    let last_run = LastRun::of(&options, &before, fatal, shard.ledger().queued_events);
    let shard = Arc::new(shard);
    let definitions = Definitions::open(&options, &shard);
    static IDS: AtomicU64 = AtomicU64::new(1);
    let pipeline = Arc::new(Pipeline {
        id: IDS.fetch_add(1, Ordering::Relaxed),
        generation: fork::generation(),
        life: Life::begin(&options, &shard, last_run),
        shard,
        orphans: Orphans::beside(skipped, options.clock.now()),
        admission: Admission::default(),
        receipts: Receipts::default(),
        bell: Bell::default(),
        outbox: Outbox::default(),
        verdicts: Verdicts::default(),
        held: AtomicBool::new(options.held),
        delivery: OnceLock::new(),
        runtime: OnceLock::new(),
        network,
        flag_requests: Arc::default(),
        definitions,
        in_memory: OnceLock::new(),
        problem: Mutex::new(None),
        unsynced_since: Mutex::new(None),
        replayed: AtomicU64::new(replayed),
        stranded,
        ai_left_behind,
        before_stop: OnceLock::new(),
        finished: OnceLock::new(),
        on_last_words: OnceLock::new(),
        options,
    });
    // Everything that was recovered is in the store by now, and that is synced.
    pipeline.receipts.synced_up_to(pipeline.shard.ledger().accepted);
    if let Some(problem) = problem {
        pipeline.is_in_memory(pipeline.options.queue_dir.clone(), problem);
    }
    // Before anybody captures: what an earlier process left counts.
    pipeline.admit(true);
    pipeline.report_findings(findings);
    pipeline.report_surroundings();
    Ok(pipeline)
}

/// Our own shard: the first that can be had and opened. One that cannot is reported and left as it is, for whoever can: a process does
/// not fail because of what another one left, be it of a newer format, damaged or another user's.
fn open_shard(options: &WorkerOptions, now: i64) -> Result<(Opened, Vec<Skipped>), ShardError> {
    let disk = &options.disk;
    disk.make_dir_durable(&options.queue_dir)
        .map_err(|source| ShardError::Io { path: options.queue_dir.clone(), source })?;
    let project_dir = options.project.lane_dir(&options.queue_dir, options.lane);
    let mut skipped: Vec<Skipped> = Vec::new();
    let mut unopened = 0;
    loop {
        let unusable: Vec<_> = skipped.iter().map(|shard| shard_dir(&project_dir, shard.number)).collect();
        let (number, error) = match claim(disk, &project_dir, &unusable) {
            Ok(claim) => {
                let (number, is_new) = (claim.number(), claim.is_new());
                match Shard::open(disk, &options.shard_options(), claim, now) {
                    Ok(opened) => return Ok((opened, skipped)),
                    Err(error) if is_new || unopened >= UNOPENED_MAX => return Err(error),
                    Err(error) => {
                        unopened += 1;
                        (number, error)
                    }
                }
            }
            Err(ClaimError::Shard { number, source }) => (number, (*source).into()),
            Err(error) => return Err(error.into()),
        };
        if concerns_all_shards(&error) {
            return Err(error);
        }
        let why = reason(&error);
        (options.report)(Notice::ShardSkipped { path: shard_dir(&project_dir, number), why: why.clone() });
        skipped.push(Skipped { number, why });
    }
}

fn find_stranded(options: &WorkerOptions) -> Vec<Stranded> {
    let found = stranded(&options.disk, &options.queue_dir, &options.project.dir_name()).unwrap_or_default();
    let adopted: Vec<String> = options.also.iter().map(|project| project.dir_name()).collect();
    found.into_iter().filter(|queue| !adopted.contains(&queue.project)).collect()
}

/// Whether an earlier process left AI events: they are delivered whether or not this one ever captures any.
fn is_ai_left_behind(options: &WorkerOptions) -> bool {
    let mut projects = std::iter::once(&options.project).chain(&options.also);
    projects.any(|project| has_orphan(&options.disk, &project.lane_dir(&options.queue_dir, Lane::Ai)))
}

fn file_system(options: &WorkerOptions, dir: &Path) -> Option<FileSystem> {
    options.disk.file_system(dir).ok()
}

fn start_delivery(pipeline: &Arc<Pipeline>) -> Result<(), StartError> {
    let options = &pipeline.options;
    let reports = Arc::clone(&options.report);
    let next_attempt = pipeline.shard.open_store().and_then(|store| store.next_attempt());
    pipeline.outbox.remember_next_attempt(next_attempt);
    let mut delivery = options.delivery.clone();
    // Not in the options: those are given on, to lanes and to forked children, and the shard is ours.
    delivery.symbols = symbols::guarded(&delivery.symbols, &pipeline.shard);
    let parts = EngineParts {
        options: delivery,
        source: Arc::clone(pipeline) as Arc<dyn delivery::Source>,
        transport: pipeline.network.http(),
        clock: options.clock.clone(),
        report: Arc::new(move |notice| reports(Notice::Delivery(notice))),
        on_delivery: Some(Arc::new(Ear(Arc::clone(pipeline)))),
        next_attempt,
    };
    let handle = DeliveryHandle::new();
    let _ = pipeline.delivery.set(handle.clone());
    let runtime = event_loop(&handle).map_err(StartError::Thread)?;
    let _ = pipeline.runtime.set(runtime.handle().clone());
    let loading = pipeline.loading();
    threads::spawn("posthog-deliver", move || {
        runtime.block_on(async {
            // As a task of its own: a panic in it is not the delivery's.
            let loading = loading.map(tokio::spawn);
            delivery::serve(parts, handle).await;
            if let Some(loading) = loading {
                let _ = loading.await;
            }
        });
        // A resolver that never answers may hold a thread of the runtime: it ends in the background.
        runtime.shutdown_background();
    })
    .map_err(StartError::Thread)
}

fn event_loop(handle: &DeliveryHandle) -> io::Result<tokio::runtime::Runtime> {
    // Where the program has tokio watch signals, each runtime has a part in that, whose making panics without a descriptor. So it is
    // seen first whether there are some; another thread may still take them in between.
    drop((UnixStream::pair()?, UnixStream::pair()?, UnixStream::pair()?));
    let mut builder = tokio::runtime::Builder::new_current_thread();
    #[cfg(feature = "testing")]
    {
        let (parks, unparks) = (handle.clone(), handle.clone());
        builder.on_thread_park(move || parks.parked(true)).on_thread_unpark(move || unparks.parked(false));
    }
    let _ = handle;
    catch_unwind(AssertUnwindSafe(|| builder.enable_all().build()))
        .unwrap_or_else(|_| Err(io::Error::other("tokio could not make a runtime")))
}

impl Pipeline {
    fn report_surroundings(&self) {
        let dir = self.shard.dir();
        if !self.shard.is_volatile() {
            let what = match file_system(&self.options, dir) {
                Some(FileSystem::Memory) => Some("memory: it does not outlive the machine"),
                Some(FileSystem::Overlay) => Some("a container's own layer: it does not outlive the container"),
                Some(FileSystem::Network) => Some("the network: locks and durability are the server's"),
                _ => None,
            };
            if let Some(what) = what {
                (self.options.report)(Notice::Ephemeral { path: dir.clone(), what });
            }
        }
        for queue in &self.stranded {
            (self.options.report)(Notice::Stranded(queue.clone()));
        }
    }
}
