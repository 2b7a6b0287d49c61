//! Starting a lane: its own shard is found, claimed and opened, and given to the two threads.
//!
//! Opening happens on a thread of its own, so that a file system that hangs delays the caller by at most
//! `open_timeout`; for the first lane this thread becomes the committer. A shard of an earlier process that does not
//! open within a part of that time is left to its thread and delivered as an orphan later, and another shard is taken.
//! Where the directory cannot be used, the queue is in memory if the options allow that.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::admission::{Admission, memory_queue_bytes};
use super::advice::explain_queue;
use super::flags::{open_definitions, remote_flags};
use super::life::{Life, PreviousRun};
use super::mailbox::Mailbox;
use super::options::{Lane, PipelineOptions};
use super::orphans::{Orphans, avoided_at_start};
use super::outcomes::Outcomes;
use super::owner::write_note;
use super::shared::Pipeline;
use super::threads::{OpeningPermit, Threads};
use super::waiters::Receipts;
use super::{committer, symbols, threads};
use crate::crash;
use crate::delivery::{self, DeliveryHandle, EngineParts};
use crate::queue::{
    Leases, Opened, OrphanedQueue, Predecessor, Queue, QueueError, RunRecord, claim, has_orphan, orphaned, predecessor,
    shard_dir, shard_dirs,
};
use crate::report::{Diagnostic, QueueMedium};
use crate::sys::clock::WallNanos;
use crate::sys::disk::{FileSystem, exposed_above, fork};
use crate::sys::entropy::random_u64;
use crate::transport::{Http, Transport, TransportError};

/// Number of orphaned queues that are reported one by one.
const ORPHANED_REPORTED_MAX: usize = 16;

/// Why a lane could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The queue directory cannot be used.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The proxy or a certificate of the configuration cannot be used.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The system has no thread to give.
    #[error("no thread could be started")]
    Thread(#[source] io::Error),
    /// The queue directory did not answer in time.
    #[error("opening the queue took too long")]
    Timeout,
    /// Opening panicked.
    #[error("opening the queue panicked")]
    Panicked,
}

/// Opens the queue of the first lane and starts both threads. `parent` is the pipeline of the process that this one was
/// forked from: its network settings are used again, and none of its connections.
pub(crate) fn start(options: PipelineOptions, parent: Option<&Pipeline>) -> Result<Arc<Pipeline>, StartError> {
    let network = network(&options, parent)?;
    start_on(options, network, "posthog-commit", |_| Some((Arc::default(), None)))
}

/// Opens the queue of a further lane, to be served by the threads of `beside`. It is opened on a thread of its own, so
/// that the running lanes do not wait for its disk. While an earlier such opening has not returned, the result is
/// `Timeout` and no thread is started.
pub(crate) fn start_beside(options: PipelineOptions, beside: &Pipeline) -> Result<Arc<Pipeline>, StartError> {
    // It has connections of its own: on a shared one, an endpoint that stops reading would block the other lane's
    // requests.
    let network = network(&options, Some(beside))?;
    let threads = &beside.threads;
    start_on(options, network, "posthog-open", |is_disk_needed| {
        let permit = if is_disk_needed { Some(threads.permit_opening()?) } else { None };
        Some((Arc::clone(threads), permit))
    })
}

/// Opens a queue on a new thread, and falls back to memory on a timeout if the options allow that. `threads` returns
/// the threads that serve the lane; its argument says whether the opening needs the disk.
fn start_on(
    options: PipelineOptions,
    network: Network,
    name: &str,
    threads: impl Fn(bool) -> Option<(Arc<Threads>, Option<OpeningPermit>)>,
) -> Result<Arc<Pipeline>, StartError> {
    let orphans = Arc::new(Orphans::default());
    let opened = match threads(true) {
        Some((threads, permit)) => {
            let (its_options, its_network, its_orphans) = (options.clone(), network.clone(), Arc::clone(&orphans));
            let open = move |threads: &Arc<Threads>| {
                let _permit = permit;
                open(its_options, its_network, its_orphans, Arc::clone(threads))
            };
            wait_for(options.open_timeout, name, threads, open)
        }
        None => Err(StartError::Timeout),
    };
    let Err(StartError::Timeout) = opened else { return opened };
    // Nothing waits for this directory any more.
    orphans.end();
    let fallback = if options.memory_fallback { threads(false) } else { None };
    let Some((threads, _)) = fallback else { return opened };
    // The late opening may still begin to send before it ends, perhaps on another event loop.
    let network = network.apart()?;
    let (most, problem) = (options.open_timeout, StartError::Timeout.to_string());
    let open = move |threads: &Arc<Threads>| open_in_memory(options, network, problem, orphans, Arc::clone(threads));
    wait_for(most, name, threads, open)
}

/// Opens a pipeline on a new thread and waits for it.
fn wait_for(
    most: Duration,
    name: &str,
    threads: Arc<Threads>,
    open: impl FnOnce(&Arc<Threads>) -> Result<Arc<Pipeline>, StartError> + Send + 'static,
) -> Result<Arc<Pipeline>, StartError> {
    let (result, opened) = mpsc::sync_channel(0);
    threads::spawn(name, move || opening_thread(&threads, open, &result)).map_err(StartError::Thread)?;
    match opened.recv_timeout(most) {
        Ok(started) => started,
        Err(RecvTimeoutError::Timeout) => Err(StartError::Timeout),
        // The thread ended without an answer.
        Err(RecvTimeoutError::Disconnected) => Err(StartError::Panicked),
    }
}

/// The network as a pipeline uses it.
#[derive(Clone)]
pub(super) enum Network {
    Real(Transport),
    /// Replaced by the options.
    Given(Arc<dyn Http>),
}

impl Network {
    /// The form in which requests are made.
    pub(super) fn http(&self) -> Arc<dyn Http> {
        match self {
            Network::Real(transport) => Arc::new(transport.clone()),
            Network::Given(given) => Arc::clone(given),
        }
    }

    /// The same settings with connections of their own.
    fn apart(&self) -> Result<Network, TransportError> {
        match self {
            Network::Real(transport) => transport.reconnect().map(Network::Real),
            Network::Given(given) => Ok(Network::Given(Arc::clone(given))),
        }
    }
}

fn network(options: &PipelineOptions, relative: Option<&Pipeline>) -> Result<Network, TransportError> {
    if let Some(given) = &options.network {
        return Ok(Network::Given(Arc::clone(given)));
    }
    if let Some(network @ Network::Real(_)) = relative.map(|relative| &relative.network) {
        return network.apart();
    }
    let (transport, warnings) = Transport::new(options.transport.clone())?;
    for warning in warnings {
        (options.report)(Diagnostic::NetworkConfig { what: warning });
    }
    Ok(Network::Real(transport))
}

fn opening_thread(
    threads: &Arc<Threads>,
    open: impl FnOnce(&Arc<Threads>) -> Result<Arc<Pipeline>, StartError>,
    result: &SyncSender<Result<Arc<Pipeline>, StartError>>,
) {
    let pipeline = match open(threads) {
        Ok(pipeline) => pipeline,
        Err(error) => {
            // If this fails the caller has given up waiting.
            let _ = result.send(Err(error));
            return;
        }
    };
    #[cfg(feature = "testing")]
    super::stats::testing::watch(&pipeline);
    if let Err(error) = start_delivery(&pipeline) {
        pipeline.shard.close();
        let _ = result.send(Err(error));
        return;
    }
    if result.send(Ok(Arc::clone(&pipeline))).is_err() {
        // The caller did not wait: the queue must not stay locked without an owner.
        drop(pipeline.shutdown(Duration::ZERO));
    }
    if threads.add(pipeline) {
        committer::run(threads);
    }
}

/// Opens the queue. It is not served by any thread yet.
pub(super) fn open(
    options: PipelineOptions,
    network: Network,
    orphans: Arc<Orphans>,
    threads: Arc<Threads>,
) -> Result<Arc<Pipeline>, StartError> {
    let now = options.clock.wall_nanos();
    let mut skipped = Vec::new();
    match open_shard(&options, &orphans, &mut skipped, now) {
        Ok(own) => Ok(assemble(options, network, own, None, (skipped, orphans), threads)),
        Err(StartError::Queue(error)) if options.memory_fallback => {
            let own = (in_memory(&options)?, None);
            let problem = explain_queue(&options.disk, &error);
            Ok(assemble(options, network, own, Some(problem), (skipped, orphans), threads))
        }
        Err(error) => {
            orphans.end();
            Err(error)
        }
    }
}

/// Opens a queue in memory without a look at the directory, which does not answer.
fn open_in_memory(
    options: PipelineOptions,
    network: Network,
    problem: String,
    orphans: Arc<Orphans>,
    threads: Arc<Threads>,
) -> Result<Arc<Pipeline>, StartError> {
    let own = (in_memory(&options)?, None);
    Ok(assemble(options, network, own, Some(problem), (Vec::new(), orphans), threads))
}

fn assemble(
    mut options: PipelineOptions,
    network: Network,
    (opened, slow): (Opened, Option<(PathBuf, Predecessor)>),
    problem: Option<String>,
    (skipped, orphans): (Vec<(u32, String)>, Arc<Orphans>),
    threads: Arc<Threads>,
) -> Arc<Pipeline> {
    let Opened { queue: shard, replayed, findings, before } = opened;
    let medium = medium(&options, &shard);
    if matches!(medium, QueueMedium::ProcessMemory | QueueMedium::MemoryFileSystem) {
        options.limits.queue_bytes = options.limits.queue_bytes.min(memory_queue_bytes());
        options.queue.dead_bytes = options.limits.dead_bytes();
        shard.bound_dead(options.queue.dead_bytes);
    }
    if !shard.is_volatile() {
        write_note(&options.disk, &options.queue.project, &options.queue.queue_dir, options.clock.wall_nanos());
    }
    let is_first = options.lane == Lane::Analytics && !shard.is_volatile();
    let orphaned = if is_first { find_orphaned(&options) } else { Vec::new() };
    let ai_left_behind = is_first && is_ai_left_behind(&options);
    // Before the first sign of this run, since the counts of the OOM killer are compared with the last sign.
    let last_run = match slow {
        // The previous run owned the shard that takes so long.
        Some((dir, before)) => last_run(&options, &dir, &before, before.queued_events()),
        None => last_run(&options, shard.dir(), &before, shard.ledger().queued_events),
    };
    let shard = Arc::new(shard);
    static IDS: AtomicU64 = AtomicU64::new(1);
    let pipeline = Arc::new(Pipeline {
        remote_flags: remote_flags(&options, network.http()),
        definitions: open_definitions(&options, &shard),
        id: IDS.fetch_add(1, Ordering::Relaxed),
        generation: fork::generation(),
        life: Life::begin(&options, &shard, last_run),
        shard,
        adopted: Mutex::new(None),
        avoided: avoided_at_start(skipped, options.clock.now()),
        orphans,
        admission: Admission::default(),
        receipts: Receipts::default(),
        mailbox: Mailbox::new(Arc::clone(threads.wake())),
        leases: Leases::default(),
        outcomes: Outcomes::default(),
        held: AtomicBool::new(options.held),
        delivery: OnceLock::new(),
        threads,
        network,
        was_failing: AtomicBool::new(false),
        has_pace_changed: AtomicBool::new(false),
        medium,
        in_memory: OnceLock::new(),
        problem: Mutex::new(None),
        out_of_reach: Mutex::new(None),
        unsynced_since: Mutex::new(None),
        sync_failure: Mutex::new(None),
        is_reopening: AtomicBool::new(false),
        is_catching_up: AtomicBool::new(false),
        replayed: AtomicU64::new(replayed),
        orphaned,
        ai_left_behind,
        before_stop: OnceLock::new(),
        finished: OnceLock::new(),
        drop_counts: OnceLock::new(),
        reports_adopted: OnceLock::new(),
        options,
    });
    pipeline.orphans.wake(Arc::downgrade(&pipeline));
    // Everything that was recovered is in the store, which is synced.
    pipeline.receipts.synced_up_to(pipeline.shard.ledger().accepted);
    if let Some(problem) = problem {
        pipeline.report_in_memory(pipeline.options.queue.queue_dir.clone(), problem);
    }
    // Before the first capture: events of an earlier process count.
    pipeline.admit(true);
    pipeline.report_findings(findings);
    pipeline.report_surroundings();
    pipeline
}

impl Pipeline {
    /// The directory of the lane's own shard; `None` for a queue in memory.
    pub(crate) fn dir(&self) -> Option<&PathBuf> {
        Some(self.shard.dir()).filter(|_| !self.shard.is_volatile())
    }

    /// The proxy of requests that deliver events, without its credentials.
    pub(crate) fn proxy(&self) -> Option<String> {
        match &self.network {
            Network::Real(transport) => transport.proxy_of(&self.options.delivery.url),
            Network::Given(_) => None,
        }
    }
}

fn last_run(options: &PipelineOptions, dir: &Path, before: &Predecessor, queued_events: u64) -> Option<PreviousRun> {
    let of_life =
        |life: RunRecord| crash::fatal_record_of(&options.disk, &dir.join(crash::DIR), life.pid, life.started_at);
    let left = |life: RunRecord| crash::breadcrumbs_left_in(&options.disk, dir, life.started_at);
    let breadcrumbs = before.run.map(left).unwrap_or_default();
    PreviousRun::of(options, before, before.run.and_then(of_life), queued_events, breadcrumbs)
}

fn find_orphaned(options: &PipelineOptions) -> Vec<OrphanedQueue> {
    let found = orphaned(&options.disk, &options.queue.queue_dir, &options.queue.project.dir_name(), &[Lane::AI_DIR])
        .unwrap_or_default();
    let adopted: Vec<String> = options.also.iter().map(|project| project.dir_name()).collect();
    found.into_iter().filter(|queue| !adopted.contains(&queue.project)).collect()
}

/// Whether an earlier process left AI events. They are delivered even if this process captures none.
fn is_ai_left_behind(options: &PipelineOptions) -> bool {
    let mut projects = std::iter::once(&options.queue.project).chain(&options.also);
    projects.any(|project| has_orphan(&options.disk, &Lane::Ai.dir(project, &options.queue.queue_dir)))
}

fn medium(options: &PipelineOptions, shard: &Queue) -> QueueMedium {
    if shard.is_volatile() {
        return QueueMedium::ProcessMemory;
    }
    match options.disk.file_system(shard.dir()) {
        Ok(FileSystem::Memory) => QueueMedium::MemoryFileSystem,
        Ok(FileSystem::Overlay) => QueueMedium::ContainerLayer,
        Ok(FileSystem::Network) => QueueMedium::NetworkFileSystem,
        Ok(FileSystem::Ext | FileSystem::Other) | Err(_) => QueueMedium::Disk,
    }
}

fn start_delivery(pipeline: &Arc<Pipeline>) -> Result<(), StartError> {
    let options = &pipeline.options;
    let next_attempt = pipeline.shard.open_store().and_then(|store| store.next_attempt());
    pipeline.leases.remember_next_attempt(next_attempt);
    let woken = Arc::downgrade(pipeline);
    pipeline.leases.wake_with(Box::new(move || {
        if let Some(pipeline) = woken.upgrade() {
            pipeline.committed();
        }
    }));
    let mut delivery = options.delivery.clone();
    // Not stored in the options, which are passed on to other lanes and to forked children: the mark belongs to this
    // shard.
    delivery.symbols = symbols::guarded(&delivery.symbols, &pipeline.shard);
    let parts = EngineParts {
        options: delivery,
        source: Arc::clone(pipeline) as Arc<dyn delivery::Source>,
        transport: pipeline.network.http(),
        clock: options.clock.clone(),
        report: Arc::clone(&options.report),
        on_delivery: Some(Arc::clone(pipeline) as Arc<dyn delivery::DeliveryObserver>),
        next_attempt,
        seed: random_u64(),
    };
    let handle = DeliveryHandle::default();
    let _ = pipeline.delivery.set(handle.clone());
    pipeline.threads.deliver((parts, handle), pipeline.loading()).map_err(StartError::Thread)
}

impl Pipeline {
    /// Reports who may write above the queue. All lanes lie in the same directory, so the first reports it.
    fn report_exposure(&self) {
        if self.options.lane == Lane::Analytics
            && let Ok(Some((path, exposure))) = exposed_above(&self.options.queue.queue_dir)
        {
            (self.options.report)(Diagnostic::QueueDirExposed { path, why: exposure.to_string() });
        }
    }

    fn report_surroundings(&self) {
        let dir = self.shard.dir();
        if !self.shard.is_volatile() {
            let what = match self.medium {
                QueueMedium::MemoryFileSystem => {
                    Some("a file system in memory: events in it are lost when the machine restarts")
                }
                QueueMedium::ContainerLayer => {
                    Some("a container's own layer: events in it are lost with the container")
                }
                QueueMedium::NetworkFileSystem => {
                    Some("a network file system: locks and durability depend on its server")
                }
                QueueMedium::Disk | QueueMedium::ProcessMemory | QueueMedium::DeletedFiles => None,
            };
            if let Some(what) = what {
                (self.options.report)(Diagnostic::QueueDirEphemeral { path: dir.clone(), what });
            }
            self.report_exposure();
        }
        self.report_orphaned();
    }

    /// Reports orphaned queues: the first by name, the others as a sum, since a directory may hold any number.
    fn report_orphaned(&self) {
        let (named, others) = self.orphaned.split_at(self.orphaned.len().min(ORPHANED_REPORTED_MAX));
        for queue in named {
            (self.options.report)(Diagnostic::OrphanedQueue {
                path: queue.path.clone(),
                owner: queue.owner.as_ref().map(|owner| (abbreviated(&owner.api_key), owner.host.clone())),
                events: queue.events,
                bytes: queue.bytes,
            });
        }
        if !others.is_empty() {
            let sum = |of: fn(&OrphanedQueue) -> u64| others.iter().map(of).fold(0, u64::saturating_add);
            (self.options.report)(Diagnostic::OrphanedQueues {
                path: self.options.queue.queue_dir.clone(),
                queues: others.len() as u64,
                events: sum(|queue| queue.events),
                bytes: sum(|queue| queue.bytes),
            });
        }
    }
}

/// A shard gets this part of `open_timeout` to open.
const IN_TIME: u32 = 3;
/// Number of shards that may fail to open before the disk is held responsible. Without it, each start on a failing disk
/// would create another shard.
const UNOPENED_MAX: u32 = 16;

/// Opens the first shard that can be claimed and opened in time. Others are reported and left as they are, whether they
/// have a newer format, are damaged or belong to another user: a process does not fail because of what another one
/// left. A shard that takes too long is left to its thread; of the first of these, its directory and what its last owner
/// left are returned too.
pub(super) fn open_shard(
    options: &PipelineOptions,
    orphans: &Arc<Orphans>,
    skipped: &mut Vec<(u32, String)>,
    now: WallNanos,
) -> Result<(Opened, Option<(PathBuf, Predecessor)>), StartError> {
    let disk = &options.disk;
    if options.queue.queue_dir.as_os_str().is_empty() {
        return Err(QueueError::NoDirectory.into());
    }
    disk.make_dir_durable(&options.queue.queue_dir)
        .map_err(|source| QueueError::Io { path: options.queue.queue_dir.clone(), source })?;
    let project_dir = options.lane.dir(&options.queue.project, &options.queue.queue_dir);
    let (mut unusable, mut unopened, mut slow) = (Vec::new(), 0, None);
    loop {
        let (number, error) = match claim(disk, &project_dir, &unusable) {
            Ok(claim) if claim.is_new() => {
                let opened = Queue::open(disk, &options.queue, claim, now)?;
                return Ok((opened, slow));
            }
            Ok(claim) => {
                let (number, dir) = (claim.number(), claim.dir().to_path_buf());
                let before = predecessor(disk, &dir);
                let most = options.open_timeout / IN_TIME;
                match orphans.open_in_time(disk, options.queue.clone(), claim, now, most) {
                    Err(error) => return Err(StartError::Thread(error)),
                    Ok(Some(Ok(Some(opened)))) => return Ok((opened, slow)),
                    Ok(Some(Err(error))) if unopened < UNOPENED_MAX => {
                        unopened += 1;
                        (number, error)
                    }
                    Ok(Some(Err(error))) => return Err(error.into()),
                    Ok(Some(Ok(None)) | None) => {
                        // Two slow shards mean a slow disk: then a new one is created, which has no content to check.
                        if slow.is_some() {
                            unusable.extend(shard_dirs(disk, &project_dir));
                        }
                        unusable.push(dir.clone());
                        let why = format!("it was not open after {most:?}; what is in it is sent as soon as it is");
                        (options.report)(Diagnostic::QueueSkipped { path: dir.clone(), why });
                        slow = slow.or(Some((dir, before)));
                        continue;
                    }
                }
            }
            Err(QueueError::Shard { number, source }) => (number, *source),
            Err(error) => return Err(error.into()),
        };
        if error.concerns_all_shards() {
            return Err(error.into());
        }
        let (path, why) = (shard_dir(&project_dir, number), explain_queue(disk, &error));
        unusable.push(path.clone());
        skipped.push((number, why.clone()));
        (options.report)(Diagnostic::QueueSkipped { path, why });
    }
}

/// The beginning of a key, enough to recognize it.
pub(crate) fn abbreviated(api_key: &str) -> String {
    const KEPT: usize = 8;
    let kept: String = api_key.chars().take(KEPT).collect();
    if kept.len() == api_key.len() { kept } else { kept + "..." }
}

/// Creates a shard in memory.
pub(super) fn in_memory(options: &PipelineOptions) -> Result<Opened, StartError> {
    let queue = Queue::volatile(&options.disk, &options.queue)?;
    Ok(Opened { queue, replayed: 0, findings: Vec::new(), before: Predecessor::default() })
}
