//! A slow disk: a start waits for it for a bounded time, and the committer not at all.

use std::sync::Condvar;

use super::orphans::{leave_behind, look_for_orphans};
use super::*;
use crate::queue::{predecessor, shard_dir};

/// Blocks calls of one kind on a file of that name until it is released.
#[derive(Debug)]
pub(super) struct Slow {
    op: Op,
    name: &'static str,
    /// Whether it blocks, and how many calls wait.
    state: Mutex<(bool, u32)>,
    changed: Condvar,
}

impl Slow {
    pub(super) fn at(op: Op, name: &'static str) -> Arc<Self> {
        Arc::new(Self { op, name, state: Mutex::new((true, 0)), changed: Condvar::new() })
    }

    pub(super) fn disk(self: &Arc<Self>) -> Disk {
        Disk::gated(Arc::clone(self) as Arc<dyn Gate>)
    }

    pub(super) fn hold(&self, holds: bool) {
        self.state.lock().unwrap().0 = holds;
        self.changed.notify_all();
    }

    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting() > 0
    }

    /// Number of calls that wait.
    pub(super) fn waiting(&self) -> u32 {
        self.state.lock().unwrap().1
    }
}

impl Gate for Slow {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if call.op == self.op && call.path.ends_with(self.name) {
            let mut state = self.state.lock().unwrap();
            state.1 += 1;
            // A call that waits on the wrong thread shall fail its test, and not hang it.
            let most = Duration::from_secs(60);
            state = self.changed.wait_timeout_while(state, most, |state| state.0).unwrap().0;
            state.1 -= 1;
        }
        Verdict::Go
    }
}

/// A queue with 12 events that another process left, and its directory.
fn left_queue() -> (Arc<tempfile::TempDir>, PathBuf) {
    let first = fixture(|_| ());
    first.append(12);
    let (root, dir) = (Arc::clone(&first.root), first.pipeline.shard.dir().clone());
    drop(first);
    (root, dir)
}

fn counts(fixture: &Fixture) -> Vec<u32> {
    fixture.lease().iter().map(|lease| lease.chunk.count).collect()
}

#[test]
fn a_slow_queue_is_delivered_as_an_orphan_of_a_new_one() {
    let (root, dir) = left_queue();
    let slow = Slow::at(Op::Open, "shard-0/queue.redb");
    let mut fixture = fixture_in(Arc::clone(&root), |options| {
        options.disk = slow.disk();
        options.open_timeout = Duration::from_millis(600);
    });
    assert!(fixture.pipeline.shard.dir().ends_with("shard-1") && slow.is_waited_for());
    let last_run = fixture.pipeline.last_run().unwrap();
    assert_eq!((last_run.cause, last_run.pid), (crate::crash::exit::ExitCause::Killed, std::process::id()));
    fixture.append(30);
    fixture.settle_down();
    assert_eq!(counts(&fixture), [30]);
    assert!(fixture.lease().is_empty());
    fixture.settle_down();
    assert!(fixture.pipeline.adopted_shard().is_none());
    let reported: Vec<_> = fixture.diagnostics.lock().unwrap().drain(..).filter(is_skipped).collect();
    assert!(
        matches!(&reported[..], [Diagnostic::QueueSkipped { path, .. }] if *path == dir),
        "reported once: {reported:?}"
    );
    slow.hold(false);
    until("the slow one is open", || !fixture.pipeline.orphans.is_idle());
    fixture.settle_down();
    let rows = fixture.lease();
    assert_eq!(rows.iter().map(|lease| lease.chunk.count).collect::<Vec<_>>(), [12]);
    fixture.deliver(rows);
    fixture.advance(Duration::from_secs(1));
    assert!(fixture.pipeline.adopted_shard().is_none(), "it is drained");
    let page = predecessor(&Disk::default(), &dir);
    assert!(page.clean && page.ledger.unwrap().delivered == 12, "{page:?}");
    assert_eq!(page.run, None, "the run record of this process is in its own shard");
    assert_eq!(fixture.pipeline.shard.ledger().accepted, 30, "nothing was copied");
}

#[test]
fn delivery_leases_rows_while_a_commit_of_acks_syncs() {
    let slow = Slow::at(Op::Sync, "queue.redb");
    slow.hold(false);
    let mut fixture = fixture(|options| options.disk = slow.disk());
    for _ in 0..2 {
        fixture.append(30);
        fixture.advance(Duration::from_secs(2));
    }
    let mut rows = fixture.lease();
    let second = rows.pop().unwrap();
    fixture.pipeline.release(second.row());
    fixture.deliver(rows);
    slow.hold(true);
    let pipeline = Arc::clone(&fixture.pipeline);
    let leased = std::thread::scope(|scope| {
        scope.spawn(|| fixture.advance(Duration::from_secs(2)));
        until("the commit syncs", || slow.is_waited_for());
        let leased = pipeline.lease(usize::MAX, &|_| true);
        slow.hold(false);
        leased
    });
    let rows = leased.expect("the row lock is free");
    assert_eq!(rows.iter().map(Lease::row).collect::<Vec<_>>(), [second.row()], "and no acked row");
    assert_eq!(fixture.ledger().delivered, 30);
}

/// A full disk that hangs: the store's file takes nothing until the reserve is given up, and is then slow to open again.
#[derive(Debug)]
struct FullAndSlow {
    is_full: AtomicBool,
    opens: Arc<Slow>,
}

impl Gate for FullAndSlow {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if call.op == Op::Remove && call.path.ends_with("reserve") {
            self.is_full.store(false, Ordering::SeqCst);
        }
        let takes_space = matches!(call.op, Op::Write | Op::SetLen) && call.path.ends_with("queue.redb");
        if takes_space && self.is_full.load(Ordering::SeqCst) {
            return Verdict::Fail(std::io::Error::from_raw_os_error(28));
        }
        self.opens.before(call)
    }
}

#[test]
fn delivery_does_not_wait_for_a_full_disk_that_hangs() {
    let opens = Slow::at(Op::Open, "queue.redb");
    opens.hold(false);
    let gate = Arc::new(FullAndSlow { is_full: AtomicBool::new(false), opens: Arc::clone(&opens) });
    let mut fixture = fixture(|options| options.disk = Disk::gated(Arc::clone(&gate) as Arc<dyn Gate>));
    for _ in 0..2 {
        fixture.append(30);
        fixture.advance(Duration::from_secs(2));
    }
    let mut rows = fixture.lease();
    let second = rows.pop().unwrap();
    fixture.pipeline.release(second.row());
    fixture.deliver(rows);
    let wakes = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&wakes);
    fixture.pipeline.leases.wake_with(Box::new(move || _ = counted.fetch_add(1, Ordering::SeqCst)));
    gate.is_full.store(true, Ordering::SeqCst);
    opens.hold(true);
    let pipeline = Arc::clone(&fixture.pipeline);
    std::thread::scope(|scope| {
        scope.spawn(|| fixture.advance(Duration::from_secs(2)));
        until("the store is opened again in the reserve's space", || opens.is_waited_for());
        let (answer, answered) = std::sync::mpsc::channel();
        scope.spawn(move || {
            let (leased, newest) = (pipeline.lease(usize::MAX, &|_| true), pipeline.lease_newest(&|_| true));
            // Delivery that asks again and again must not wake itself.
            let again = pipeline.lease(usize::MAX, &|_| true);
            let _ = answer.send((leased, newest, again, pipeline.stats().oldest_age));
        });
        // Less than the gate holds a call.
        let found = answered.recv_timeout(Duration::from_secs(50));
        let woken = wakes.load(Ordering::SeqCst);
        opens.hold(false);
        let (leased, newest, again, oldest_age) = found.expect("none of these waits for the disk");
        assert!(matches!(leased, Err(delivery::SourceError::Busy)), "{leased:?}");
        assert!(matches!(newest, Err(delivery::SourceError::Busy)), "{newest:?}");
        assert!(matches!(again, Err(delivery::SourceError::Busy)), "{again:?}");
        assert!(oldest_age.is_some() && woken == 0, "{oldest_age:?}, woken {woken} times");
    });
    assert!(wakes.load(Ordering::SeqCst) > 0, "delivery tries again");
    assert_eq!(fixture.lease().iter().map(Lease::row).collect::<Vec<_>>(), [second.row()]);
    assert_eq!(fixture.ledger().delivered, 30);
}

#[test]
fn an_exit_during_a_slow_opening_is_not_a_death_of_it() {
    let (root, dir) = left_queue();
    let slow = Slow::at(Op::Open, "shard-0/queue.redb");
    for _ in 0..3 {
        slow.hold(true);
        let mut fixture = fixture_in(Arc::clone(&root), |options| {
            options.disk = slow.disk();
            // The shard that the first run created must open within a third of it.
            options.open_timeout = Duration::from_millis(4500);
        });
        assert_eq!(fixture.pipeline.shard.dir(), &shard_dir(dir.parent().unwrap(), 1), "no further one is made");
        until("it is being opened", || predecessor(&Disk::default(), &dir).deaths_opening == 1);
        let stopped = fixture.pipeline.shutdown(Duration::ZERO);
        let commands = fixture.pipeline.mailbox.listen(Some(fixture.now()), || fixture.pipeline.options.clock.now());
        fixture.committer.receive(commands);
        while fixture.committer.turn().is_continue() {
            fixture.clock.advance(Duration::from_secs(1));
        }
        assert!(stopped.wait(Duration::from_secs(10)).is_ok());
        assert_eq!(predecessor(&Disk::default(), &dir).deaths_opening, 0);
        slow.hold(false);
        until("it is released when it is open", || predecessor(&Disk::default(), &dir).clean);
    }
    let fixture = fixture_in(root, |_| ());
    until("it has no owner any more", || fixture.pipeline.shard.dir() == &dir);
    assert_eq!(counts(&fixture), [12]);
}

#[test]
fn an_orphan_that_opens_slowly_does_not_keep_a_receipt_waiting() {
    let slow = Slow::at(Op::Open, "shard-1/queue.redb");
    let mut fixture = fixture(|options| options.disk = slow.disk());
    leave_behind(&fixture, &[12, 5]);
    assert!(fixture.lease().is_empty());
    fixture.turn();
    until("it is being opened", || slow.is_waited_for());
    fixture.append(1);
    let persisted = fixture.pipeline.persisted(1);
    fixture.turn();
    assert!(slow.is_waited_for(), "it was not waited for");
    assert_eq!(persisted.wait(Duration::ZERO), Ok(()));
    slow.hold(false);
    fixture.settle_down();
    look_for_all(&mut fixture);
}

/// Delivers what is left in this and every other queue: 1, 12 and 5 events.
fn look_for_all(fixture: &mut Fixture) {
    let mut found = Vec::new();
    for _ in 0..4 {
        let rows = fixture.lease();
        found.extend(rows.iter().map(|lease| lease.chunk.count));
        fixture.deliver(rows);
        fixture.advance(Duration::from_secs(6));
        look_for_orphans_if_idle(fixture);
    }
    found.sort_unstable();
    assert_eq!(found, [1, 5, 12]);
}

fn look_for_orphans_if_idle(fixture: &mut Fixture) {
    if fixture.pipeline.adopted_shard().is_none() && fixture.pipeline.shard.ledger().queued_events == 0 {
        look_for_orphans(fixture);
    }
}

#[test]
fn a_hanging_directory_is_an_error_or_declared_memory_mode() {
    let first = fixture(|_| ());
    let slow = Slow::at(Op::MakeDir, "elsewhere");
    let mut options = first.pipeline.options.clone();
    options.queue.queue_dir = first.root.path().join("elsewhere");
    options.disk = slow.disk();
    options.clock = Clock::System;
    options.open_timeout = Duration::from_millis(300);
    assert!(matches!(start(options.clone(), None), Err(StartError::Timeout)));
    options.memory_fallback = true;
    options.open_timeout = Duration::from_secs(3);
    let pipeline = start(options, None).unwrap();
    assert!(pipeline.shard.is_volatile());
    let why = pipeline.in_memory.get().unwrap();
    assert!(why.contains("took too long"), "{why}");
    assert!(pipeline.append(&[7; 100], 0).is_ok());
    assert!(slow.is_waited_for(), "it does not answer yet");
    slow.hold(false);
    pipeline.shutdown(Duration::ZERO).wait(Duration::from_secs(30)).unwrap();
}

fn is_skipped(diagnostic: &Diagnostic) -> bool {
    matches!(diagnostic, Diagnostic::QueueSkipped { .. })
}
