//! Eviction by age, with clocks that are set and machines that sleep; and how much an eviction reads.

use super::*;

const DAY_NANOS: i64 = 86_400_000_000_000;

fn aging() -> Fixture {
    let mut fixture = fixture(|options| options.limits.queue_age = Some(HOUR));
    fixture.append(30);
    fixture.settle_down();
    fixture
}

/// Reports a request as made.
fn attempt(fixture: &Fixture) {
    fixture.pipeline.pace(delivery::Phase::Sending, None);
}

fn is_aged(diagnostic: &Diagnostic) -> bool {
    matches!(diagnostic, Diagnostic::Evicted { events: 30, for_age: true })
}

#[test]
fn nothing_is_too_old_before_it_was_tried_once() {
    let mut fixture = aging();
    fixture.advance(24 * HOUR);
    assert_eq!((fixture.ledger().evicted, fixture.ledger().queued_events), (0, 30));
    attempt(&fixture);
    fixture.settle_down();
    assert_eq!((fixture.ledger().evicted, fixture.ledger().queued_events), (30, 0));
    assert!(fixture.reports(is_aged));
}

#[test]
fn nothing_is_too_old_while_the_clocks_disagree() {
    for step in [DAY_NANOS, -DAY_NANOS] {
        let mut fixture = aging();
        attempt(&fixture);
        fixture.clock.step_wall(step);
        fixture.settle_down();
        fixture.advance(2 * HOUR);
        assert_eq!((fixture.ledger().evicted, fixture.ledger().queued_events), (0, 30), "a step of {step}");
        fixture.clock.step_wall(-step);
        fixture.settle_down();
        assert_eq!(fixture.ledger().evicted, 30, "when they agree again");
    }
}

#[test]
fn a_wall_clock_that_goes_backwards_stops_nothing() {
    let mut fixture = aging();
    attempt(&fixture);
    fixture.clock.step_wall(-1_000 * DAY_NANOS);
    fixture.append(30);
    let receipt = fixture.pipeline.persisted(60);
    fixture.advance(Duration::from_secs(6));
    assert_eq!(receipt.try_get(), Some(Ok(())));
    fixture.deliver(fixture.lease());
    fixture.advance(Duration::from_secs(6));
    assert_eq!((fixture.ledger().delivered, fixture.ledger().evicted), (60, 0));
}

#[test]
fn what_is_with_the_delivery_is_not_too_old() {
    let mut fixture = aging();
    attempt(&fixture);
    let under_way = fixture.lease();
    fixture.advance(24 * HOUR);
    assert_eq!(fixture.ledger().evicted, 0);
    fixture.deliver(under_way);
    fixture.advance(Duration::from_secs(1));
    assert_eq!((fixture.ledger().delivered, fixture.ledger().evicted), (30, 0));
}

#[test]
fn ages_count_again_some_hours_after_the_clock_was_set() {
    for step in [DAY_NANOS, -DAY_NANOS, 20_000 * DAY_NANOS] {
        let mut fixture = fixture(|options| options.limits.queue_age = Some(12 * HOUR));
        fixture.append(30);
        fixture.settle_down();
        attempt(&fixture);
        fixture.clock.step_wall(step);
        fixture.settle_down();
        fixture.append(30);
        for _ in 0..11 {
            fixture.advance(HOUR);
        }
        assert_eq!(
            (fixture.ledger().evicted, fixture.ledger().queued_events),
            (0, 60),
            "a step of {step}: none is so old"
        );
        for _ in 0..40 {
            fixture.advance(HOUR);
        }
        assert_eq!((fixture.ledger().evicted, fixture.ledger().queued_events), (60, 0), "a step of {step}");
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
    let mut fixture = fixture(|options| {
        options.limits.queue_age = Some(HOUR);
        options.disk = Disk::gated(Arc::clone(&up) as Arc<dyn Gate>);
    });
    fixture.append(30);
    fixture.settle_down();
    attempt(&fixture);
    fixture.clock.step_wall(DAY_NANOS);
    up.0.fetch_add(86_400, Ordering::SeqCst);
    fixture.settle_down();
    assert_eq!((fixture.ledger().evicted, fixture.ledger().queued_events), (30, 0));
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
    let mut fixture = fixture(|options| {
        options.disk = Disk::gated(Arc::clone(&reads) as Arc<dyn Gate>);
        options.limits.overflow = OverflowPolicy::DropOldest;
        options.limits.queue_bytes = 4 * MIB;
        options.queue.cache_bytes = 0;
    });
    let fill = |fixture: &mut Fixture, class: u8, until: u64| {
        while fixture.pipeline.shard.row_bytes() < until {
            (0..12).for_each(|_| assert!(fixture.pipeline.append(&[7; 4000], class).is_ok()));
            fixture.settle_down();
        }
    };
    fill(&mut fixture, priority, 2 * MIB);
    let under_way = if are_under_way { fixture.lease() } else { Vec::new() };
    fill(&mut fixture, 0, 4 * MIB);
    let rounds = |fixture: &mut Fixture| {
        let before = (reads.1.load(Ordering::SeqCst), fixture.ledger().evicted);
        for _ in 0..ROUNDS {
            (0..12).for_each(|_| assert!(fixture.pipeline.append(&[7; 4000], 0).is_ok()));
            fixture.advance(Duration::from_secs(1));
        }
        let evicted = fixture.ledger().evicted - before.1;
        assert!(evicted >= 100, "{evicted} events were evicted");
        (reads.1.load(Ordering::SeqCst) - before.0) / ROUNDS
    };
    rounds(&mut fixture);
    let read = rounds(&mut fixture);
    // Released rows are the oldest, and evicted first.
    for lease in under_way {
        fixture.pipeline.release(lease.row());
    }
    rounds(&mut fixture);
    let first = fixture.pipeline.shard.read(None, 1).unwrap().chunks[0].key.first_seq;
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
    let mut fixture = fixture(|options| {
        options.disk = Disk::gated(Arc::clone(&reads) as Arc<dyn Gate>);
        options.limits.queue_age = Some(24 * HOUR);
        options.queue.cache_bytes = 0;
    });
    for _ in 0..60 {
        (0..12).for_each(|_| assert!(fixture.pipeline.append(&[7; 4000], 0).is_ok()));
        fixture.advance(Duration::from_secs(6));
    }
    attempt(&fixture);
    let before = reads.0.load(Ordering::SeqCst);
    for _ in 0..100 {
        fixture.committer.keep_bounds();
    }
    let read = (reads.0.load(Ordering::SeqCst) - before) / 100;
    assert!(read < 10, "{read} reads a look");
}
