//! The committer, turn by turn: no thread runs, the clock moves on command, and the test takes the part of delivery.
//! Each turn is what the committer thread would do at that moment. Tests with the real threads are in `lanes.rs` and
//! `slow.rs`.

mod ages;
mod bounds;
mod dead;
mod definitions;
#[cfg(feature = "inspect")]
mod description;
mod flushes;
mod health;
mod lanes;
mod life;
mod orphans;
mod partial;
mod races;
mod reach;
mod slow;
mod storage;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use super::committer::Committer;
use super::start::Network;
use super::*;
use crate::delivery::{self, DeliveryOptions, Source};
use crate::flags::RemoteOptions;
use crate::queue::store::Ledger;
use crate::queue::{Ack, ChunkRef, Lease, Project, Queue, QueueOptions};
use crate::report::{Diagnostic, DropReason, PersistError};
use crate::sys::clock::{Clock, ManualClock};
use crate::sys::disk::{Call, Disk, Gate, Op, Verdict};
use crate::transport::{Proxy, Transport, TransportOptions};

const HOUR: Duration = Duration::from_secs(3600);

/// Fails calls of one kind on files whose path contains a text, while it is armed.
#[derive(Debug)]
struct Fault {
    op: Op,
    path: &'static str,
    /// 0 while calls succeed.
    errno: AtomicU32,
    calls: AtomicU64,
}

impl Fault {
    fn of(op: Op, path: &'static str) -> Arc<Self> {
        Arc::new(Self { op, path, errno: AtomicU32::new(0), calls: AtomicU64::new(0) })
    }

    fn arm(&self, errno: u32) {
        self.errno.store(errno, Ordering::SeqCst);
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Gate for Fault {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if call.op != self.op || !call.path.to_str().is_some_and(|path| path.contains(self.path)) {
            return Verdict::Go;
        }
        self.calls.fetch_add(1, Ordering::SeqCst);
        match self.errno.load(Ordering::SeqCst) {
            0 => Verdict::Go,
            errno => Verdict::Fail(std::io::Error::from_raw_os_error(errno as i32)),
        }
    }
}

/// Appends a record during each sync of the journal, as a busy program does.
#[derive(Debug, Default)]
struct Stream {
    pipeline: OnceLock<Weak<Pipeline>>,
    syncs: AtomicU64,
}

impl Gate for Stream {
    fn before(&self, _call: &Call<'_>) -> Verdict {
        Verdict::Go
    }

    fn after(&self, call: &Call<'_>) {
        if call.op == Op::Sync && call.path.to_str().is_some_and(|path| path.contains("journal-")) {
            self.syncs.fetch_add(1, Ordering::SeqCst);
            let pipeline = self.pipeline.get().and_then(Weak::upgrade);
            assert!(pipeline.is_none_or(|pipeline| pipeline.append(&[7; 100], 0).is_ok()));
        }
    }
}

/// A pipeline without threads.
struct Fixture {
    committer: Committer,
    pipeline: Arc<Pipeline>,
    clock: Arc<ManualClock>,
    diagnostics: Arc<Mutex<Vec<Diagnostic>>>,
    root: Arc<tempfile::TempDir>,
}

fn fixture(edit: impl FnOnce(&mut PipelineOptions)) -> Fixture {
    let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    fixture_in(Arc::new(root), edit)
}

fn fixture_in(root: Arc<tempfile::TempDir>, edit: impl FnOnce(&mut PipelineOptions)) -> Fixture {
    let (clock, diagnostics) = (ManualClock::at(1_700_000_000_000_000_000), Arc::new(Mutex::new(Vec::new())));
    let reported = Arc::clone(&diagnostics);
    let mut options = PipelineOptions {
        queue: QueueOptions {
            project: Project { host: "https://eu.example".into(), api_key: "phc_key".into() },
            queue_dir: root.path().join("queue"),
            arena_bytes: 64 * 1024,
            lock_wait: Duration::from_secs(10),
            cache_bytes: 1 << 20,
            reserve_bytes: 16 * 1024,
            dead_bytes: (1 << 30) / 8,
            adopts: false,
        },
        lane: Lane::Analytics,
        also: Vec::new(),
        memory_fallback: false,
        max_event_bytes: 8 * 1024,
        open_timeout: Duration::from_secs(30),
        intervals: Intervals {
            flush_at: 20,
            flush: Duration::from_secs(5),
            sync: Duration::from_millis(100),
            ack: Duration::from_secs(1),
        },
        limits: Limits {
            queue_bytes: 1 << 30,
            queue_events: u64::MAX,
            queue_age: None,
            min_free_space: 0,
            overflow: OverflowPolicy::DropNewest,
        },
        held: false,
        delivery: DeliveryOptions::default(),
        flags: RemoteOptions::default(),
        flag_definitions: None,
        transport: TransportOptions {
            request_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            proxy: Proxy::None,
            ca_pem: Vec::new(),
            identity: None,
            user_agent: "tests".into(),
            headers: Vec::new(),
        },
        network: None,
        on_delivery: None,
        report: Arc::new(move |diagnostic| reported.lock().unwrap().push(diagnostic)),
        ended: Arc::new(|_, _| ()),
        disk: Disk::default(),
        clock: Clock::Manual(Arc::clone(&clock)),
    };
    edit(&mut options);
    options.queue.dead_bytes = options.limits.dead_bytes();
    let (transport, _) = Transport::new(options.transport.clone()).unwrap();
    let pipeline = start::open(options, Network::Real(transport), Arc::default(), Arc::default()).unwrap();
    Fixture { committer: Committer::new(Arc::clone(&pipeline)), pipeline, clock, diagnostics, root }
}

impl Fixture {
    fn append(&self, count: usize) {
        (0..count).for_each(|_| assert!(self.pipeline.append(&[7; 100], 0).is_ok()));
    }

    /// Takes the commands, and has one turn.
    fn turn(&mut self) {
        let commands = self.pipeline.mailbox.listen(Some(self.now()), || self.pipeline.options.clock.now());
        self.committer.receive(commands);
        assert!(self.committer.turn().is_continue());
    }

    /// Advances the clock, and has the turns that the committer thread would have had until nothing is due.
    fn advance(&mut self, by: Duration) {
        self.settle_down();
        self.clock.advance(by);
        self.settle_down();
    }

    fn settle_down(&mut self) {
        for _ in 0..20 {
            self.turn();
            while self.wait_for_orphans() {
                self.turn();
            }
            if self.committer.wake_at().is_none_or(|wake_at| wake_at > self.now()) {
                return;
            }
        }
        panic!("the committer has turn after turn and does not get done");
    }

    /// Waits for the thread of an orphan's step. Returns whether there was one whose result has not been taken.
    fn wait_for_orphans(&self) -> bool {
        let orphans = &self.pipeline.orphans;
        if orphans.is_idle() {
            return false;
        }
        until("a step with an orphan ends", || !orphans.is_at_work());
        // The result is in the mailbox a moment before the committer is woken.
        std::thread::sleep(Duration::from_millis(1));
        true
    }

    fn now(&self) -> Instant {
        self.pipeline.options.clock.now()
    }

    fn ledger(&self) -> Ledger {
        let ledger = self.pipeline.shard.ledger();
        assert_eq!(ledger.imbalance(), 0, "{ledger:?}");
        ledger
    }

    /// What delivery would read now.
    fn lease(&self) -> Vec<Lease> {
        self.pipeline.lease(usize::MAX, &|_| true).unwrap()
    }

    /// Acks whole rows as delivered.
    fn deliver(&self, leases: Vec<Lease>) {
        for lease in leases {
            let (row, delivered) = (lease.row(), u64::from(lease.chunk.count));
            self.pipeline.ack(Ack { row, delivered, dead: Vec::new(), keep: None });
        }
    }

    /// Whether one of the diagnostics since the last call is of that kind.
    fn reports(&self, is: impl Fn(&Diagnostic) -> bool) -> bool {
        self.diagnostics.lock().unwrap().drain(..).any(|diagnostic| is(&diagnostic))
    }
}

/// Waits for another thread.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "it should come true, and did not: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_problem(diagnostic: &Diagnostic) -> bool {
    matches!(diagnostic, Diagnostic::StorageFailing { .. })
}
