//! Starting: on the committer's own thread, so that a file system that hangs cannot hang the caller.

use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::admission::{Admission, memory_bound};
use super::adoption::avoided_at_start;
use super::advice::explain_queue;
use super::committer::Committer;
use super::flags::{open_definitions, remote_flags};
use super::lane::Lane;
use super::life::{LastRun, Life};
use super::mailbox::Mailbox;
use super::opening::Orphans;
use super::outcomes::{OutcomeObserver, Outcomes};
use super::own::{Own, in_memory, open_shard};
use super::receipts::Receipts;
use super::{Notice, Pipeline, WorkerOptions, symbols, threads};
use crate::crash;
use crate::delivery::{self, DeliveryHandle, EngineParts};
use crate::queue::{
    Leases, Opened, OrphanedQueue, Predecessor, QueueError, QueueOptions, RunRecord, has_orphan, orphaned,
};
use crate::sys::disk::{FileSystem, exposed_above, fork};
use crate::sys::reentry;
use crate::transport::{Http, Transport, TransportError};

/// OrphanedQueue queues that are told one by one.
const STRANDED_TOLD: usize = 16;

/// Why nothing could be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The queue directory cannot be used.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The proxy or a certificate of the configuration.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The system gave us no thread.
    #[error("no thread could be started")]
    Thread(#[source] io::Error),
    /// The queue directory did not answer in time.
    #[error("opening the queue took too long")]
    Timeout,
    /// Opening panicked.
    #[error("opening the queue panicked")]
    Panicked,
}

impl WorkerOptions {
    pub(super) fn shard_options(&self) -> QueueOptions {
        QueueOptions {
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
    let orphans = Arc::new(Orphans::default());
    let (its_options, its_network, its_orphans) = (options.clone(), network.clone(), Arc::clone(&orphans));
    match wait_for(options.open_timeout, move || open(its_options, its_network, its_orphans)) {
        Err(StartError::Timeout) => {
            // Whatever the directory does now, nobody waits for it.
            orphans.end();
            if !options.memory_fallback {
                return Err(StartError::Timeout);
            }
            // The other one may still begin to send, on another event loop, before it ends.
            let network = network.apart()?;
            let problem = StartError::Timeout.to_string();
            wait_for(options.open_timeout, move || open_in_memory(options, network, problem, orphans))
        }
        other => other,
    }
}

/// Has the committer's thread open a pipeline and start it.
fn wait_for(
    most: Duration,
    open: impl FnOnce() -> Result<Arc<Pipeline>, StartError> + Send + 'static,
) -> Result<Arc<Pipeline>, StartError> {
    let (tell, told) = mpsc::sync_channel(0);
    threads::spawn("posthog-commit", move || committer_thread(open, &tell)).map_err(StartError::Thread)?;
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

    /// The same, with connections of its own.
    fn apart(&self) -> Result<Network, TransportError> {
        match self {
            Network::Real(transport) => transport.reconnect().map(Network::Real),
            Network::Given(given) => Ok(Network::Given(Arc::clone(given))),
        }
    }
}

fn network(options: &WorkerOptions, relative: Option<&Pipeline>) -> Result<Network, TransportError> {
    if let Some(given) = &options.network {
        return Ok(Network::Given(Arc::clone(given)));
    }
    if let Some(network @ Network::Real(_)) = relative.map(|relative| &relative.network) {
        return network.apart();
    }
    let (transport, warnings) = Transport::new(options.transport.clone())?;
    for warning in warnings {
        (options.report)(Notice::Network(warning.to_string()));
    }
    Ok(Network::Real(transport))
}

fn committer_thread(open: impl FnOnce() -> Result<Arc<Pipeline>, StartError>, tell: &Tell) {
    let pipeline = match open() {
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
        drop(pipeline.shutdown(Duration::ZERO));
    }
    drop(pipeline);
    committer.run();
}

/// Opens the queue; neither thread runs yet.
pub(super) fn open(
    options: WorkerOptions,
    network: Network,
    orphans: Arc<Orphans>,
) -> Result<Arc<Pipeline>, StartError> {
    let now = options.clock.wall_nanos();
    let mut skipped = Vec::new();
    match open_shard(&options, &orphans, &mut skipped, now) {
        Ok(own) => Ok(assemble(options, network, own, None, (skipped, orphans))),
        Err(StartError::Queue(error)) if options.memory_fallback => {
            let own = in_memory(&options)?;
            let problem = explain_queue(&options.disk, &error);
            Ok(assemble(options, network, own, Some(problem), (skipped, orphans)))
        }
        Err(error) => {
            orphans.end();
            Err(error)
        }
    }
}

/// The same without a look at the directory, which does not answer.
fn open_in_memory(
    options: WorkerOptions,
    network: Network,
    problem: String,
    orphans: Arc<Orphans>,
) -> Result<Arc<Pipeline>, StartError> {
    let own = in_memory(&options)?;
    Ok(assemble(options, network, own, Some(problem), (Vec::new(), orphans)))
}

fn assemble(
    mut options: WorkerOptions,
    network: Network,
    own: Own,
    problem: Option<String>,
    (skipped, orphans): (Vec<(u32, String)>, Arc<Orphans>),
) -> Arc<Pipeline> {
    let Own { opened: Opened { shard, replayed, findings, before }, slow } = own;
    let memory_backed = shard.is_volatile() || matches!(file_system(&options, shard.dir()), Some(FileSystem::Memory));
    if memory_backed {
        options.limits.queue_bytes = options.limits.queue_bytes.min(memory_bound());
        shard.bound_dead(options.limits.dead_bytes());
    }
    let is_first = options.lane == Lane::Analytics && !shard.is_volatile();
    let orphaned = if is_first { find_orphaned(&options) } else { Vec::new() };
    let ai_left_behind = is_first && is_ai_left_behind(&options);
    // Before our own first sign: the OOM killer is compared with what it was.
    let last_run = match slow {
        // The run before this one had the shard that takes so long.
        Some((dir, before)) => last_run(&options, &dir, &before, before.queued_events()),
        None => last_run(&options, shard.dir(), &before, shard.ledger().queued_events),
    };
    let shard = Arc::new(shard);
    static IDS: AtomicU64 = AtomicU64::new(1);
    let pipeline = Arc::new(Pipeline {
        id: IDS.fetch_add(1, Ordering::Relaxed),
        generation: fork::generation(),
        life: Life::begin(&options, &shard, last_run),
        remote_flags: remote_flags(&options, network.http()),
        definitions: open_definitions(&options, &shard),
        shard,
        adopted: Mutex::new(None),
        avoided: avoided_at_start(skipped, options.clock.now()),
        orphans,
        admission: Admission::default(),
        receipts: Receipts::default(),
        mailbox: Mailbox::default(),
        leases: Leases::default(),
        outcomes: Outcomes::default(),
        held: AtomicBool::new(options.held),
        delivery: OnceLock::new(),
        runtime: OnceLock::new(),
        network,
        in_memory: OnceLock::new(),
        problem: Mutex::new(None),
        failing_since: Mutex::new(None),
        out_of_reach: Mutex::new(None),
        unsynced_since: Mutex::new(None),
        replayed: AtomicU64::new(replayed),
        orphaned,
        ai_left_behind,
        before_stop: OnceLock::new(),
        finished: OnceLock::new(),
        reports_adopted: OnceLock::new(),
        options,
    });
    pipeline.orphans.wake(Arc::downgrade(&pipeline));
    // Everything that was recovered is in the store by now, and that is synced.
    pipeline.receipts.synced_up_to(pipeline.shard.ledger().accepted);
    if let Some(problem) = problem {
        pipeline.is_in_memory(pipeline.options.queue_dir.clone(), problem);
    }
    // Before anybody captures: what an earlier process left counts.
    pipeline.admit(true);
    pipeline.report_findings(findings);
    pipeline.report_surroundings();
    pipeline
}

fn last_run(options: &WorkerOptions, dir: &Path, before: &Predecessor, queued_events: u64) -> Option<LastRun> {
    let of_life =
        |run: RunRecord| crash::fatal_record_of(&options.disk, &dir.join(crash::DIR), run.pid, run.started_at);
    LastRun::of(options, before, before.run.and_then(of_life), queued_events)
}

fn find_orphaned(options: &WorkerOptions) -> Vec<OrphanedQueue> {
    let found =
        orphaned(&options.disk, &options.queue_dir, &options.project.dir_name(), &[Lane::AI_DIR]).unwrap_or_default();
    let adopted: Vec<String> = options.also.iter().map(|project| project.dir_name()).collect();
    found.into_iter().filter(|queue| !adopted.contains(&queue.project)).collect()
}

/// Whether an earlier process left AI events: they are delivered whether or not this one ever captures any.
fn is_ai_left_behind(options: &WorkerOptions) -> bool {
    let mut projects = std::iter::once(&options.project).chain(&options.also);
    projects.any(|project| has_orphan(&options.disk, &Lane::Ai.dir(project, &options.queue_dir)))
}

fn file_system(options: &WorkerOptions, dir: &Path) -> Option<FileSystem> {
    options.disk.file_system(dir).ok()
}

fn start_delivery(pipeline: &Arc<Pipeline>) -> Result<(), StartError> {
    let options = &pipeline.options;
    let (reports, failing) = (Arc::clone(&options.report), Arc::downgrade(pipeline));
    let next_attempt = pipeline.shard.open_store().and_then(|store| store.next_attempt());
    pipeline.leases.remember_next_attempt(next_attempt);
    let woken = Arc::downgrade(pipeline);
    pipeline.leases.wake_with(Box::new(move || {
        if let Some(pipeline) = woken.upgrade() {
            pipeline.committed();
        }
    }));
    let mut delivery = options.delivery.clone();
    // Not in the options: those are given on, to lanes and to forked children, and the shard is ours.
    delivery.symbols = symbols::guarded(&delivery.symbols, &pipeline.shard);
    let parts = EngineParts {
        options: delivery,
        source: Arc::clone(pipeline) as Arc<dyn delivery::Source>,
        transport: pipeline.network.http(),
        clock: options.clock.clone(),
        report: Arc::new(move |notice| {
            if let Some(pipeline) = failing.upgrade() {
                pipeline.note_outage(&notice);
            }
            reports(Notice::Delivery(notice));
        }),
        on_delivery: Some(Arc::new(OutcomeObserver(Arc::clone(pipeline)))),
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
    // Names are looked up on threads that it makes.
    builder.on_thread_start(reentry::this_thread_runs_packages);
    catch_unwind(AssertUnwindSafe(|| builder.enable_all().build()))
        .unwrap_or_else(|_| Err(io::Error::other("tokio could not make a runtime")))
}

impl Pipeline {
    /// Both lanes lie in the same directory: it is said once.
    fn report_exposure(&self) {
        if self.options.lane == Lane::Analytics
            && let Ok(Some((path, exposure))) = exposed_above(&self.options.queue_dir)
        {
            (self.options.report)(Notice::Exposed { path, why: exposure.to_string() });
        }
    }

    fn report_surroundings(&self) {
        let dir = self.shard.dir();
        if !self.shard.is_volatile() {
            let what = match file_system(&self.options, dir) {
                Some(FileSystem::Memory) => {
                    Some("a file system in memory: events in it are lost when the machine restarts")
                }
                Some(FileSystem::Overlay) => Some("a container's own layer: events in it are lost with the container"),
                Some(FileSystem::Network) => Some("a network file system: locks and durability depend on its server"),
                _ => None,
            };
            if let Some(what) = what {
                (self.options.report)(Notice::Ephemeral { path: dir.clone(), what });
            }
            self.report_exposure();
        }
        self.report_orphaned();
    }

    /// Each by its name, and of very many the first: there is no end to what a directory may hold.
    fn report_orphaned(&self) {
        let (told, others) = self.orphaned.split_at(self.orphaned.len().min(STRANDED_TOLD));
        for queue in told {
            (self.options.report)(Notice::OrphanedQueue(queue.clone()));
        }
        if !others.is_empty() {
            let sum = |of: fn(&OrphanedQueue) -> u64| others.iter().map(of).fold(0, u64::saturating_add);
            (self.options.report)(Notice::MoreStranded {
                path: self.options.queue_dir.clone(),
                queues: others.len() as u64,
                events: sum(|queue| queue.events),
                bytes: sum(|queue| queue.bytes),
            });
        }
    }
}
