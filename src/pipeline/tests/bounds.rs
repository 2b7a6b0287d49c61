//! Bounds of size, number and age, and clocks that are set.

use super::*;
use crate::pipeline::bounds::COMPACT_SPACING;
use crate::queue::store::COMPACT_FROM;

/// Counts the bytes that are written to the store's file.
#[derive(Debug, Default)]
struct Written(AtomicU64);

impl Gate for Written {
    fn before(&self, call: &Call<'_>) -> Verdict {
        if call.op == Op::Write && call.path.ends_with("queue.redb") {
            self.0.fetch_add(call.len, Ordering::SeqCst);
        }
        Verdict::Go
    }
}

#[test]
fn a_caller_that_waits_for_space_in_a_full_queue_gets_it() {
    let mut bench = bench(|options| {
        options.limits.queue_events = 30;
        options.limits.overflow = OverflowPolicy::Block(Duration::from_secs(60));
    });
    bench.append(30);
    bench.settle_down();
    assert_eq!(bench.pipeline.stats().rejecting, Some(DropReason::QueueFull));
    let pipeline = Arc::clone(&bench.pipeline);
    let waiting = std::thread::spawn(move || pipeline.append(&[7; 100], 0));
    // It wakes the committer before it waits.
    let commands = bench.pipeline.mailbox.listen(None, Instant::now);
    assert!(commands.check_bounds);
    bench.committer.receive(commands);
    bench.deliver(bench.lease());
    bench.advance(Duration::from_secs(1));
    assert_eq!(waiting.join().unwrap(), Ok(31));
}

#[test]
fn refused_callers_ask_for_a_check_at_most_once_a_second() {
    let mut bench = bench(|options| options.limits.queue_events = 30);
    bench.append(30);
    bench.settle_down();
    let asks = |bench: &mut Bench| {
        assert_eq!(bench.pipeline.append(&[7; 100], 0), Err(DropReason::QueueFull));
        let now = bench.now();
        let commands = bench.pipeline.mailbox.listen(Some(now), || now);
        let asks = commands.check_bounds;
        bench.committer.receive(commands);
        bench.turn();
        asks
    };
    assert!(asks(&mut bench));
    assert!((0..100).all(|_| !asks(&mut bench)));
    bench.advance(Duration::from_secs(1));
    assert!(asks(&mut bench), "the file system may have free space again");
    assert!(!asks(&mut bench));
    assert!(bench.pipeline.append(&[7; 100], 1).is_ok());
    bench.advance(Duration::from_secs(6));
    assert!(asks(&mut bench));
}

#[test]
fn a_full_queue_still_accepts_a_few_priority_events() {
    let mut bench = bench(|options| options.limits.queue_events = 32);
    bench.append(32);
    bench.settle_down();
    assert_eq!(bench.pipeline.append(&[7; 100], 0), Err(DropReason::QueueFull));
    (0..4).for_each(|_| assert!(bench.pipeline.append(&[7; 100], 1).is_ok()));
    bench.advance(Duration::from_secs(6));
    assert_eq!(bench.pipeline.append(&[7; 100], 1), Err(DropReason::QueueFull));
    assert_eq!(bench.ledger().queued_events, 36);
}

#[test]
fn drop_oldest_evicts_the_oldest_but_no_leased_rows() {
    let mut bench = bench(|options| {
        options.limits.queue_events = 50;
        options.limits.overflow = OverflowPolicy::DropOldest;
    });
    bench.append(30);
    bench.settle_down();
    let under_way = bench.lease();
    bench.append(25);
    bench.advance(Duration::from_secs(6));
    assert_eq!((bench.ledger().evicted, bench.ledger().queued_events), (5, 50), "the older ones are under way");
    assert!(bench.reports(|diagnostic| matches!(diagnostic, Diagnostic::Evicted { events: 5, for_age: false })));
    let left: Vec<_> =
        bench.pipeline.shard.read(None, usize::MAX).unwrap().chunks.iter().map(|row| row.key.first_seq).collect();
    assert_eq!(left, [1, 36], "the row is cut, and its newest stay");
    bench.deliver(under_way);
    bench.advance(Duration::from_secs(6));
    assert_eq!((bench.ledger().delivered, bench.ledger().queued_events), (30, 20));
}

#[test]
fn a_burst_is_bounded_before_the_committer_checks() {
    let mut bench = bench(|options| options.limits.queue_events = 50);
    bench.append(50);
    assert_eq!(bench.pipeline.append(&[7; 100], 0), Err(DropReason::QueueFull));
    (0..6).for_each(|_| assert!(bench.pipeline.append(&[7; 100], 1).is_ok()));
    assert_eq!(bench.pipeline.append(&[7; 100], 1), Err(DropReason::QueueFull));
    bench.settle_down();
    bench.deliver(bench.lease());
    bench.advance(Duration::from_secs(1));
    bench.append(50);
    assert_eq!(bench.pipeline.append(&[7; 100], 0), Err(DropReason::QueueFull));
}

#[test]
fn what_an_earlier_process_left_counts_from_the_first_record_on() {
    let before = bench(|_| ());
    before.append(40);
    before.pipeline.shard.close();
    let bench = bench_in(Arc::clone(&before.root), |options| options.limits.queue_events = 50);
    bench.append(10);
    assert_eq!(bench.pipeline.append(&[7; 100], 0), Err(DropReason::QueueFull));
}

#[test]
fn a_bound_in_bytes_is_used_fully_and_the_file_keeps_to_it() {
    const MIB: u64 = 1024 * 1024;
    for overflow in [OverflowPolicy::DropNewest, OverflowPolicy::DropOldest] {
        let mut bench = bench(|options| {
            options.limits.queue_bytes = MIB;
            options.limits.overflow = overflow;
            options.queue.arena_bytes = 4 << 20;
        });
        let mut taken = 0;
        for _ in 0..30 {
            while bench.pipeline.append(&[7; 1000], 0).is_ok() {
                taken += 1;
            }
            bench.settle_down();
            let file_bytes = bench.pipeline.shard.file_bytes();
            assert!(file_bytes <= 2 * MIB + MIB / 8, "{overflow:?}: the file takes {file_bytes} bytes");
        }
        let queued = bench.ledger().queued_events + bench.pipeline.shard.journal().journaled().1;
        assert!((850..=1040).contains(&queued), "{overflow:?}: {queued} events");
        assert_eq!(bench.ledger().evicted + queued, taken);
    }
}

#[test]
fn a_drained_queue_gives_its_room_back_once_a_minute_at_most() {
    let fill = |bench: &mut Bench| {
        while bench.pipeline.shard.file_bytes() < 2 * COMPACT_FROM {
            while bench.pipeline.append(&[7; 4000], 0).is_ok() {}
            bench.settle_down();
        }
    };
    let drain = |bench: &mut Bench| {
        loop {
            let rows = bench.lease();
            if rows.is_empty() {
                break;
            }
            bench.deliver(rows);
        }
        bench.advance(Duration::from_secs(2));
        assert_eq!(bench.ledger().queued_events, 0);
    };
    let mut bench = bench(|_| ());
    fill(&mut bench);
    drain(&mut bench);
    assert!(bench.pipeline.shard.file_bytes() < COMPACT_FROM, "{}", bench.pipeline.shard.file_bytes());
    fill(&mut bench);
    drain(&mut bench);
    assert!(bench.pipeline.shard.file_bytes() > COMPACT_FROM, "a second time within the minute");
    bench.advance(COMPACT_SPACING);
    bench.append(1);
    bench.advance(Duration::from_secs(6));
    drain(&mut bench);
    assert!(bench.pipeline.shard.file_bytes() < COMPACT_FROM);
}

#[test]
fn a_file_grown_by_a_backlog_shrinks_while_events_arrive() {
    const ROUNDS: u64 = 40;
    let written = Arc::new(Written::default());
    let mut bench = bench(|options| options.disk = Disk::gated(Arc::clone(&written) as Arc<dyn Gate>));
    let mut sent = Vec::new();
    // The rows of the last round are being sent when more arrive, so the queue never runs empty. Returns the bytes
    // written in a round.
    let mut steady = |bench: &mut Bench| {
        let before = written.0.load(Ordering::SeqCst);
        for _ in 0..ROUNDS {
            bench.append(20);
            bench.advance(Duration::from_secs(2));
            assert!(bench.ledger().queued_events > 0);
            let next = bench.lease();
            bench.deliver(std::mem::replace(&mut sent, next));
        }
        (written.0.load(Ordering::SeqCst) - before) / ROUNDS
    };
    let usual = steady(&mut bench);
    while bench.pipeline.shard.file_bytes() < 16 * COMPACT_FROM {
        while bench.pipeline.append(&[7; 4000], 0).is_ok() {}
        bench.settle_down();
    }
    steady(&mut bench);
    assert!(bench.pipeline.shard.file_bytes() < COMPACT_FROM, "{} bytes", bench.pipeline.shard.file_bytes());
    let now = steady(&mut bench);
    assert!(now < usual * 3 / 2, "{usual} bytes a round before the backlog, {now} after it");
}

#[test]
fn a_file_system_at_its_floor_is_reported_once_with_sizes() {
    let mut bench = bench(|options| options.limits.min_free_space = u64::MAX / 4);
    let floors_reported = |bench: &Bench| {
        let diagnostics = std::mem::take(&mut *bench.diagnostics.lock().unwrap());
        diagnostics.into_iter().filter(|diagnostic| matches!(diagnostic, Diagnostic::LowDiskSpace { .. }))
    };
    let floors: Vec<_> = floors_reported(&bench).collect();
    let [Diagnostic::LowDiskSpace { path, free_bytes, floor_bytes, volume_bytes }] = &floors[..] else {
        panic!("{floors:?}")
    };
    assert_eq!((path, *floor_bytes), (bench.pipeline.shard.dir(), u64::MAX / 4));
    assert!(*free_bytes > 0 && volume_bytes.is_some_and(|volume| volume >= *free_bytes));
    assert_eq!(bench.pipeline.append(&[7; 100], 0), Err(DropReason::DiskFull));
    let now = bench.pipeline.low_disk_space();
    assert!(matches!(now, Some(Diagnostic::LowDiskSpace { path: of, .. }) if of == *path));
    bench.advance(HOUR);
    assert_eq!(floors_reported(&bench).count(), 0, "not again and again");
}
