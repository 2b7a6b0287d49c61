//! Two lanes on the same two threads: neither keeps the other from its syncs, its commits or its deliveries.

use super::slow::Slow;
use super::*;
use crate::event::Event;
use crate::transport::{Http, Pending as Exchange, Request, Response};

const BROKEN: u32 = 5;
const LANES: [Lane; 2] = [Lane::Analytics, Lane::Ai];

/// Takes every event at once, except those of a lane that hangs.
#[derive(Default)]
struct Endpoint {
    hangs: Mutex<Option<Lane>>,
    requests: [AtomicU64; 2],
}

impl Endpoint {
    fn requests(&self, lane: Lane) -> u64 {
        self.requests[usize::from(lane == Lane::Ai)].load(Ordering::SeqCst)
    }
}

impl Http for Endpoint {
    fn send(&self, request: Request) -> Exchange {
        let lane = if request.url.contains("/ai/") { Lane::Ai } else { Lane::Analytics };
        self.requests[usize::from(lane == Lane::Ai)].fetch_add(1, Ordering::SeqCst);
        if *self.hangs.lock().unwrap() == Some(lane) {
            return Box::pin(std::future::pending());
        }
        Box::pin(async { Ok(Response { status: 200, body: br#"{"status":1}"#.to_vec(), ..Response::default() }) })
    }
}

/// Makes each sync of a store slow, in one lane.
#[derive(Debug)]
struct SlowCommits {
    lane: Lane,
    is_armed: AtomicBool,
    syncs: AtomicU64,
}

impl Gate for SlowCommits {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if call.op == Op::Sync && call.path.ends_with("queue.redb") && is_of(self.lane, call) {
            self.syncs.fetch_add(1, Ordering::SeqCst);
            if self.is_armed.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(30));
            }
        }
        Verdict::Go
    }
}

fn is_of(lane: Lane, call: &Call<'_>) -> bool {
    call.path.to_str().is_some_and(|path| path.contains("/ai/")) == (lane == Lane::Ai)
}

/// Applies a gate to one lane only.
#[derive(Debug)]
struct In<G>(Lane, Arc<G>);

impl<G: Gate> Gate for In<G> {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if is_of(self.0, call) { self.1.before(call) } else { Verdict::Go }
    }
}

/// Applies two gates: the second is asked only if the first lets the call pass.
#[derive(Debug)]
struct And<A, B>(A, B);

impl<A: Gate, B: Gate> Gate for And<A, B> {
    fn before(&self, call: &Call<'_>) -> Verdict {
        match self.0.before(call) {
            Verdict::Go => self.1.before(call),
            other => other,
        }
    }
}

/// The lanes of one client.
struct Lanes {
    analytics: Arc<Pipeline>,
    ai: Arc<Pipeline>,
    endpoint: Arc<Endpoint>,
    _root: Arc<tempfile::TempDir>,
}

impl Lanes {
    fn open(gate: Arc<dyn Gate>) -> Self {
        let (options, endpoint, root) = options_for_threads(gate);
        let analytics = start(options, None).unwrap();
        let ai = start_beside(ai_options(&analytics), &analytics).unwrap();
        Self { analytics, ai, endpoint, _root: root }
    }

    /// That lane, and the other one.
    fn pair(&self, lane: Lane) -> (&Arc<Pipeline>, &Arc<Pipeline>) {
        if lane == Lane::Ai { (&self.ai, &self.analytics) } else { (&self.analytics, &self.ai) }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        release([&*self.analytics, &*self.ai].into_iter());
    }
}

fn options_for_threads(gate: Arc<dyn Gate>) -> (PipelineOptions, Arc<Endpoint>, Arc<tempfile::TempDir>) {
    let first = fixture(|_| ());
    let endpoint = Arc::new(Endpoint::default());
    let mut options = first.pipeline.options.clone();
    options.queue.queue_dir = first.root.path().join("lanes");
    options.clock = Clock::System;
    options.disk = Disk::gated(gate);
    options.network = Some(Arc::clone(&endpoint) as Arc<dyn Http>);
    options.intervals.flush = Duration::from_millis(50);
    options.intervals.ack = Duration::from_millis(50);
    options.delivery.url = "https://eu.example/batch/".into();
    options.delivery.pace.first_send_jitter = Duration::ZERO;
    (options, endpoint, Arc::clone(&first.root))
}

fn ai_options(analytics: &Pipeline) -> PipelineOptions {
    let mut options = analytics.options().for_ai();
    options.queue.arena_bytes = 64 * 1024;
    options
}

fn capture(lane: &Pipeline) -> Option<u64> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let uuid = uuid::Uuid::from_u128(NUMBER.fetch_add(1, Ordering::SeqCst).into());
    let event = Event::new("tick", "user_1").prop("text", "x".repeat(500)).finish(uuid, 1, 4096);
    lane.append(event.unwrap().body(), 0).ok()
}

/// Captures events without a pause until the closure has returned.
fn flooded<T>(lane: &Pipeline, run: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                if capture(lane).is_none() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        is_over.store(true, Ordering::SeqCst);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Captures some events; each is synced, and all are delivered.
fn works(lane: &Pipeline) {
    let before = lane.account().0.delivered;
    for _ in 0..5 {
        let seq = capture(lane).expect("the lane takes events");
        assert_eq!(lane.persisted(seq).wait(Duration::from_secs(30)), Ok(()));
    }
    until("the lane delivers", || lane.account().0.delivered >= before + 5);
    assert_eq!(lane.current_problem(), None);
}

#[test]
fn slow_commits_of_one_lane_delay_the_other_by_one_at_most() {
    for lane in LANES {
        let gate = Arc::new(SlowCommits { lane, is_armed: AtomicBool::new(false), syncs: AtomicU64::new(0) });
        let lanes = Lanes::open(Arc::clone(&gate) as Arc<dyn Gate>);
        let (slow, other) = lanes.pair(lane);
        gate.is_armed.store(true, Ordering::SeqCst);
        flooded(slow, || {
            until("the slow lane commits", || gate.syncs.load(Ordering::SeqCst) > 20);
            for _ in 0..10 {
                let before = gate.syncs.load(Ordering::SeqCst);
                let seq = capture(other).unwrap();
                assert_eq!(other.persisted(seq).wait(Duration::from_secs(30)), Ok(()));
                let meanwhile = gate.syncs.load(Ordering::SeqCst) - before;
                // A commit makes two syncs. Allowed are one commit under way at the capture, and one that follows it.
                assert!(meanwhile <= 4, "{meanwhile} syncs of the slow lane before one of the other");
            }
            works(other);
        });
        gate.is_armed.store(false, Ordering::SeqCst);
    }
}

#[test]
fn a_lane_whose_storage_fails_leaves_the_other_alone() {
    for lane in LANES {
        for (op, path) in [(Op::Sync, "queue.redb"), (Op::Write, "queue.redb")] {
            let fault = Fault::of(op, path);
            let lanes = Lanes::open(Arc::new(In(lane, Arc::clone(&fault))));
            let (failing, other) = lanes.pair(lane);
            fault.arm(BROKEN);
            let events = (0..3).filter_map(|_| capture(failing)).count() as u64;
            until("the fault is met", || failing.current_problem().is_some());
            works(other);
            assert!(failing.current_problem().is_some());
            fault.arm(0);
            until("the lane recovers", || failing.account().0.delivered == events);
        }
    }
}

#[test]
fn a_failed_sync_of_one_lane_fails_receipts_of_that_lane_only() {
    for lane in LANES {
        let fault = Fault::of(Op::Sync, "journal-");
        let lanes = Lanes::open(Arc::new(In(lane, Arc::clone(&fault))));
        let (failing, other) = lanes.pair(lane);
        fault.arm(BROKEN);
        let seq = capture(failing).unwrap();
        let persisted = failing.persisted(seq).wait(Duration::from_secs(30));
        assert!(matches!(&persisted, Err(PersistError::Sync(why)) if why.contains("os error 5")), "{persisted:?}");
        works(other);
        fault.arm(0);
        until("the lane delivers", || failing.account().0.delivered == 1);
    }
}

#[test]
fn a_slow_reopening_stops_only_deliveries_of_its_lane() {
    for lane in LANES {
        let (fault, slow) = (Fault::of(Op::Sync, "queue.redb"), Slow::at(Op::Open, "queue.redb"));
        slow.hold(false);
        let gates = And(In(lane, Arc::clone(&fault)), In(lane, Arc::clone(&slow)));
        let lanes = Lanes::open(Arc::new(gates));
        let (failing, other) = lanes.pair(lane);
        slow.hold(true);
        fault.arm(BROKEN);
        let seq = capture(failing).unwrap();
        until("it is being opened again", || slow.is_waited_for());
        fault.arm(0);
        works(other);
        let later = capture(failing).unwrap();
        assert_eq!(failing.persisted(later).wait(Duration::from_secs(30)), Ok(()), "the journal is synced");
        failing.stats();
        works(other);
        assert!(slow.is_waited_for());
        slow.hold(false);
        until("it is delivered", || failing.account().0.delivered == later);
        assert!(seq < later);
    }
}

/// A lane whose store is being opened again, which hangs, and the gate of that. Its only event is in the journal.
fn reopening(lane: Lane) -> (Lanes, Arc<Slow>) {
    let (fault, slow) = (Fault::of(Op::Sync, "queue.redb"), Slow::at(Op::Open, "queue.redb"));
    slow.hold(false);
    let lanes = Lanes::open(Arc::new(And(In(lane, Arc::clone(&fault)), In(lane, Arc::clone(&slow)))));
    slow.hold(true);
    fault.arm(BROKEN);
    capture(lanes.pair(lane).0).unwrap();
    until("it is being opened again", || slow.is_waited_for());
    fault.arm(0);
    (lanes, slow)
}

#[test]
fn a_shutdown_keeps_its_deadline_while_a_store_hangs() {
    for lane in LANES {
        let (lanes, slow) = reopening(lane);
        let (failing, other) = lanes.pair(lane);
        let report = failing.shutdown(Duration::from_millis(300)).wait(Duration::from_secs(10)).unwrap();
        assert_eq!((report.remaining, report.persisted), (1, true));
        assert!(slow.is_waited_for());
        failing.stats();
        works(other);
        slow.hold(false);
    }
}

#[test]
fn a_shutdown_delivers_what_a_store_opened_in_time_holds() {
    for lane in LANES {
        let (lanes, slow) = reopening(lane);
        let failing = lanes.pair(lane).0;
        let report = failing.shutdown(Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(300));
        slow.hold(false);
        let report = report.wait(Duration::from_secs(30)).unwrap();
        assert_eq!((report.delivered, report.remaining), (1, 0));
    }
}

#[test]
fn a_queue_that_is_being_reopened_is_busy_and_not_empty() {
    let (lanes, slow) = reopening(Lane::Analytics);
    let leased = lanes.analytics.lease(usize::MAX, &|_| true);
    assert!(matches!(leased, Err(delivery::SourceError::Busy)), "{leased:?}");
    slow.hold(false);
}

#[test]
fn an_opening_that_hangs_stops_no_lane_and_is_the_only_one() {
    let slow = Slow::at(Op::Create, "journal-0");
    let (options, _, _root) = options_for_threads(Arc::new(In(Lane::Ai, Arc::clone(&slow))));
    let analytics = start(options, None).unwrap();
    let late = PipelineOptions { open_timeout: Duration::from_millis(100), ..ai_options(&analytics) };
    for _ in 0..3 {
        assert!(matches!(start_beside(late.clone(), &analytics), Err(StartError::Timeout)));
        works(&analytics);
    }
    assert_eq!(slow.waiting(), 1);
    slow.hold(false);
    until("it can be opened again", || analytics.threads.permit_opening().is_some());
    let ai = start_beside(ai_options(&analytics), &analytics).unwrap();
    works(&ai);
    release([&*analytics, &*ai].into_iter());
}

#[test]
fn a_command_given_before_a_lane_is_served_is_carried_out() {
    let (options, _, _root) = options_for_threads(Arc::new(In(Lane::Ai, Fault::of(Op::Sync, "nothing"))));
    let analytics = start(options, None).unwrap();
    works(&analytics);
    let threads = Arc::clone(&analytics.threads);
    let ai = start::open(ai_options(&analytics), analytics.network.clone(), Arc::default(), threads).unwrap();
    let discarded = ask_all(std::slice::from_ref(&ai), sum, |lane, promise| {
        lane.command_dead_letters(DeadLetterAction::Discard, promise)
    });
    // The committer wakes for it and finds no lane that it belongs to.
    std::thread::sleep(Duration::from_millis(100));
    assert!(!analytics.threads.add(Arc::clone(&ai)), "the committer runs");
    assert_eq!(discarded.wait(Duration::from_secs(30)), Ok(0));
    release([&*analytics, &*ai].into_iter());
}

#[test]
fn a_lane_whose_endpoint_hangs_leaves_the_other_its_deliveries() {
    for lane in LANES {
        let lanes = Lanes::open(Arc::new(In(lane, Fault::of(Op::Sync, "nothing"))));
        let (hanging, other) = lanes.pair(lane);
        *lanes.endpoint.hangs.lock().unwrap() = Some(lane);
        flooded(hanging, || {
            until("requests hang", || lanes.endpoint.requests(lane) > 0);
            (0..3).for_each(|_| works(other));
        });
        assert_eq!(hanging.account().0.delivered, 0);
    }
}

#[test]
fn a_lane_that_is_flooded_leaves_the_other_its_deliveries() {
    for lane in LANES {
        let lanes = Lanes::open(Arc::new(In(lane, Fault::of(Op::Sync, "nothing"))));
        let (flood, other) = lanes.pair(lane);
        flooded(flood, || {
            until("it delivers without a pause", || lanes.endpoint.requests(lane) > 5);
            (0..3).for_each(|_| works(other));
        });
    }
}

#[test]
fn a_lane_outlives_the_other_and_the_threads_end_with_it() {
    let (options, _, _root) = options_for_threads(Arc::new(In(Lane::Ai, Fault::of(Op::Sync, "nothing"))));
    let analytics = start(options, None).unwrap();
    let ai = start_beside(ai_options(&analytics), &analytics).unwrap();
    works(&ai);
    drop(analytics.shutdown(Duration::ZERO).wait(Duration::from_secs(30)).unwrap());
    works(&ai);
    let report = ai.shutdown(Duration::ZERO).wait(Duration::from_secs(30)).unwrap();
    assert_eq!((report.remaining, report.persisted), (0, true));
    // Too late for the threads: an error, and nothing stays locked.
    assert!(start_beside(ai_options(&analytics), &analytics).is_err());
}
