//! Eviction by age, with clocks that are set and machines that sleep; and how much an eviction reads.

use super::*;

const DAY_NANOS: i64 = 86_400_000_000_000;

fn aging() -> Bench {
    let mut bench = bench(|options| options.limits.queue_age = Some(HOUR));
    bench.append(30);
    bench.settle_down();
    bench
}

/// Reports a request as made.
fn attempt(bench: &Bench) {
    bench.pipeline.pace(delivery::Phase::Sending, None);
}

fn is_aged(diagnostic: &Diagnostic) -> bool {
    matches!(diagnostic, Diagnostic::Evicted { events: 30, for_age: true })
}

#[test]
fn nothing_is_too_old_before_it_was_tried_once() {
    let mut bench = aging();
    bench.advance(24 * HOUR);
    assert_eq!((bench.ledger().evicted, bench.ledger().queued_events), (0, 30));
    attempt(&bench);
    bench.settle_down();
    assert_eq!((bench.ledger().evicted, bench.ledger().queued_events), (30, 0));
    assert!(bench.reports(is_aged));
}

#[test]
fn nothing_is_too_old_while_the_clocks_disagree() {
    for step in [DAY_NANOS, -DAY_NANOS] {
        let mut bench = aging();
        attempt(&bench);
        bench.clock.step_wall(step);
        bench.settle_down();
        bench.advance(2 * HOUR);
        assert_eq!((bench.ledger().evicted, bench.ledger().queued_events), (0, 30), "a step of {step}");
        bench.clock.step_wall(-step);
        bench.settle_down();
        assert_eq!(bench.ledger().evicted, 30, "when they agree again");
    }
}

#[test]
fn a_wall_clock_that_goes_backwards_stops_nothing() {
    let mut bench = aging();
    attempt(&bench);
    bench.clock.step_wall(-1_000 * DAY_NANOS);
    bench.append(30);
    let receipt = bench.pipeline.persisted(60);
    bench.advance(Duration::from_secs(6));
    assert_eq!(receipt.try_get(), Some(Ok(())));
    bench.deliver(bench.lease());
    bench.advance(Duration::from_secs(6));
    assert_eq!((bench.ledger().delivered, bench.ledger().evicted), (60, 0));
}

#[test]
fn what_is_with_the_delivery_is_not_too_old() {
    let mut bench = aging();
    attempt(&bench);
    let under_way = bench.lease();
    bench.advance(24 * HOUR);
    assert_eq!(bench.ledger().evicted, 0);
    bench.deliver(under_way);
    bench.advance(Duration::from_secs(1));
    assert_eq!((bench.ledger().delivered, bench.ledger().evicted), (30, 0));
}

#[test]
fn ages_count_again_some_hours_after_the_clock_was_set() {
    for step in [DAY_NANOS, -DAY_NANOS, 20_000 * DAY_NANOS] {
        let mut bench = bench(|options| options.limits.queue_age = Some(12 * HOUR));
        bench.append(30);
        bench.settle_down();
        attempt(&bench);
        bench.clock.step_wall(step);
        bench.settle_down();
        bench.append(30);
        for _ in 0..11 {
            bench.advance(HOUR);
        }
        assert_eq!((bench.ledger().evicted, bench.ledger().queued_events), (0, 60), "a step of {step}: none is so old");
        for _ in 0..40 {
            bench.advance(HOUR);
        }
        assert_eq!((bench.ledger().evicted, bench.ledger().queued_events), (60, 0), "a step of {step}");
    }
}

/// A machine with this uptime in seconds.
#[derive(Debug, Default)]
struct Up(AtomicU64);

impl Gate for Up {
    fn before(&self, _call: &Call<'_>) -> Verdict {
        Verdict::Go
    }

    fn uptime(&self) -> Option<Duration> {
        Some(Duration::from_secs(self.0.load(Ordering::SeqCst)))
    }
}

#[test]
fn the_time_that_the_machine_has_slept_counts() {
    let up = Arc::new(Up::default());
    let mut bench = bench(|options| {
        options.limits.queue_age = Some(HOUR);
        options.disk = Disk::gated(Arc::clone(&up) as Arc<dyn Gate>);
    });
    bench.append(30);
    bench.settle_down();
    attempt(&bench);
    bench.clock.step_wall(DAY_NANOS);
    up.0.fetch_add(86_400, Ordering::SeqCst);
    bench.settle_down();
    assert_eq!((bench.ledger().evicted, bench.ledger().queued_events), (30, 0));
}

/// Counts reads of the store's file and their bytes.
#[derive(Debug, Default)]
struct Reads(AtomicU64, AtomicU64);

impl Gate for Reads {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if call.op == Op::Read && call.path.ends_with("queue.redb") {
            self.0.fetch_add(1, Ordering::SeqCst);
            self.1.fetch_add(call.len, Ordering::SeqCst);
        }
        Verdict::Go
    }
}

/// Bytes read from the store's file in a round in which some events arrive and as many are evicted, behind 2 MiB of
/// rows that may not be evicted: because of their class (`priority`), or because delivery has them.
fn read_a_round(priority: u8, are_under_way: bool) -> u64 {
    const MIB: u64 = 1024 * 1024;
    const ROUNDS: u64 = 10;
    let reads = Arc::new(Reads::default());
    let mut bench = bench(|options| {
        options.disk = Disk::gated(Arc::clone(&reads) as Arc<dyn Gate>);
        options.limits.overflow = OverflowPolicy::DropOldest;
        options.limits.queue_bytes = 4 * MIB;
        options.queue.cache_bytes = 0;
    });
    let fill = |bench: &mut Bench, class: u8, until: u64| {
        while bench.pipeline.shard.row_bytes() < until {
            (0..12).for_each(|_| assert!(bench.pipeline.append(&[7; 4000], class).is_ok()));
            bench.settle_down();
        }
    };
    fill(&mut bench, priority, 2 * MIB);
    let under_way = if are_under_way { bench.lease() } else { Vec::new() };
    fill(&mut bench, 0, 4 * MIB);
    let rounds = |bench: &mut Bench| {
        let before = (reads.1.load(Ordering::SeqCst), bench.ledger().evicted);
        for _ in 0..ROUNDS {
            (0..12).for_each(|_| assert!(bench.pipeline.append(&[7; 4000], 0).is_ok()));
            bench.advance(Duration::from_secs(1));
        }
        let evicted = bench.ledger().evicted - before.1;
        assert!(evicted >= 100, "{evicted} events were evicted");
        (reads.1.load(Ordering::SeqCst) - before.0) / ROUNDS
    };
    rounds(&mut bench);
    let read = rounds(&mut bench);
    // Released rows are the oldest, and evicted first.
    for lease in under_way {
        bench.pipeline.release(lease.row());
    }
    rounds(&mut bench);
    let first = bench.pipeline.shard.read(None, 1).unwrap().chunks[0].key.first_seq;
    assert_eq!(first == 1, priority > 0, "the first row begins with {first}");
    read
}

#[test]
fn rows_that_may_not_be_evicted_are_not_read_each_time() {
    let (usual, priority, under_way) = (read_a_round(0, false), read_a_round(1, false), read_a_round(0, true));
    // 2 MiB lie before the rows that may be evicted.
    assert!(
        priority.max(under_way) < usual + 512 * 1024,
        "{usual} bytes read a round, {priority} behind priority ones, {under_way} behind busy ones"
    );
}

#[test]
fn a_check_of_the_age_reads_one_event() {
    let reads = Arc::new(Reads::default());
    let mut bench = bench(|options| {
        options.disk = Disk::gated(Arc::clone(&reads) as Arc<dyn Gate>);
        options.limits.queue_age = Some(24 * HOUR);
        options.queue.cache_bytes = 0;
    });
    for _ in 0..60 {
        (0..12).for_each(|_| assert!(bench.pipeline.append(&[7; 4000], 0).is_ok()));
        bench.advance(Duration::from_secs(6));
    }
    attempt(&bench);
    let before = reads.0.load(Ordering::SeqCst);
    for _ in 0..100 {
        bench.committer.keep_bounds();
    }
    let read = (reads.0.load(Ordering::SeqCst) - before) / 100;
    assert!(read < 10, "{read} reads a look");
}
