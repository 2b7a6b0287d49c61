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
    let mut fixture = fixture(|options| {
        options.limits.queue_events = 30;
        options.limits.overflow = OverflowPolicy::Block(Duration::from_secs(60));
    });
    fixture.append(30);
    fixture.settle_down();
    assert_eq!(fixture.pipeline.stats().rejecting, Some(DropReason::QueueFull));
    let pipeline = Arc::clone(&fixture.pipeline);
    let waiting = std::thread::spawn(move || pipeline.append(&[7; 100], 0));
    // It wakes the committer before it waits.
    let commands = fixture.pipeline.mailbox.listen(None, Instant::now);
    assert!(commands.check_bounds);
    fixture.committer.receive(commands);
    fixture.deliver(fixture.lease());
    fixture.advance(Duration::from_secs(1));
    assert_eq!(waiting.join().unwrap(), Ok(31));
}

#[test]
fn refused_callers_ask_for_a_check_at_most_once_a_second() {
    let mut fixture = fixture(|options| options.limits.queue_events = 30);
    fixture.append(30);
    fixture.settle_down();
    let asks = |fixture: &mut Fixture| {
        assert_eq!(fixture.pipeline.append(&[7; 100], 0), Err(DropReason::QueueFull));
        let now = fixture.now();
        let commands = fixture.pipeline.mailbox.listen(Some(now), || now);
        let asks = commands.check_bounds;
        fixture.committer.receive(commands);
        fixture.turn();
        asks
    };
    assert!(asks(&mut fixture));
    assert!((0..100).all(|_| !asks(&mut fixture)));
    fixture.advance(Duration::from_secs(1));
    assert!(asks(&mut fixture), "the file system may have free space again");
    assert!(!asks(&mut fixture));
    assert!(fixture.pipeline.append(&[7; 100], 1).is_ok());
    fixture.advance(Duration::from_secs(6));
    assert!(asks(&mut fixture));
}

#[test]
fn a_full_queue_still_accepts_a_few_priority_events() {
    let mut fixture = fixture(|options| options.limits.queue_events = 32);
    fixture.append(32);
    fixture.settle_down();
    assert_eq!(fixture.pipeline.append(&[7; 100], 0), Err(DropReason::QueueFull));
    (0..4).for_each(|_| assert!(fixture.pipeline.append(&[7; 100], 1).is_ok()));
    fixture.advance(Duration::from_secs(6));
    assert_eq!(fixture.pipeline.append(&[7; 100], 1), Err(DropReason::QueueFull));
    assert_eq!(fixture.ledger().queued_events, 36);
}

#[test]
fn drop_oldest_evicts_the_oldest_but_no_leased_rows() {
    let mut fixture = fixture(|options| {
        options.limits.queue_events = 50;
        options.limits.overflow = OverflowPolicy::DropOldest;
    });
    fixture.append(30);
    fixture.settle_down();
    let under_way = fixture.lease();
    fixture.append(25);
    fixture.advance(Duration::from_secs(6));
    assert_eq!((fixture.ledger().evicted, fixture.ledger().queued_events), (5, 50), "the older ones are under way");
    assert!(fixture.reports(|diagnostic| matches!(diagnostic, Diagnostic::Evicted { events: 5, for_age: false })));
    let left: Vec<_> =
        fixture.pipeline.shard.read(None, usize::MAX).unwrap().chunks.iter().map(|row| row.key.first_seq).collect();
    assert_eq!(left, [1, 36], "the row is cut, and its newest stay");
    fixture.deliver(under_way);
    fixture.advance(Duration::from_secs(6));
    assert_eq!((fixture.ledger().delivered, fixture.ledger().queued_events), (30, 20));
}

#[test]
fn a_burst_is_bounded_before_the_committer_checks() {
    let mut fixture = fixture(|options| options.limits.queue_events = 50);
    fixture.append(50);
    assert_eq!(fixture.pipeline.append(&[7; 100], 0), Err(DropReason::QueueFull));
    (0..6).for_each(|_| assert!(fixture.pipeline.append(&[7; 100], 1).is_ok()));
    assert_eq!(fixture.pipeline.append(&[7; 100], 1), Err(DropReason::QueueFull));
    fixture.settle_down();
    fixture.deliver(fixture.lease());
    fixture.advance(Duration::from_secs(1));
    fixture.append(50);
    assert_eq!(fixture.pipeline.append(&[7; 100], 0), Err(DropReason::QueueFull));
}

#[test]
fn what_an_earlier_process_left_counts_from_the_first_record_on() {
    let before = fixture(|_| ());
    before.append(40);
    before.pipeline.shard.close();
    let fixture = fixture_in(Arc::clone(&before.root), |options| options.limits.queue_events = 50);
    fixture.append(10);
    assert_eq!(fixture.pipeline.append(&[7; 100], 0), Err(DropReason::QueueFull));
}

#[test]
fn a_bound_in_bytes_is_used_fully_and_the_file_keeps_to_it() {
    const MIB: u64 = 1024 * 1024;
    for overflow in [OverflowPolicy::DropNewest, OverflowPolicy::DropOldest] {
        let mut fixture = fixture(|options| {
            options.limits.queue_bytes = MIB;
            options.limits.overflow = overflow;
            options.queue.arena_bytes = 4 << 20;
        });
        let mut taken = 0;
        for _ in 0..30 {
            while fixture.pipeline.append(&[7; 1000], 0).is_ok() {
                taken += 1;
            }
            fixture.settle_down();
            let file_bytes = fixture.pipeline.shard.file_bytes();
            assert!(file_bytes <= 2 * MIB + MIB / 8, "{overflow:?}: the file takes {file_bytes} bytes");
        }
        let queued = fixture.ledger().queued_events + fixture.pipeline.shard.journal().journaled().1;
        assert!((850..=1040).contains(&queued), "{overflow:?}: {queued} events");
        assert_eq!(fixture.ledger().evicted + queued, taken);
    }
}

#[test]
fn a_drained_queue_gives_its_room_back_once_a_minute_at_most() {
    let fill = |fixture: &mut Fixture| {
        while fixture.pipeline.shard.file_bytes() < 2 * COMPACT_FROM {
            while fixture.pipeline.append(&[7; 4000], 0).is_ok() {}
            fixture.settle_down();
        }
    };
    let drain = |fixture: &mut Fixture| {
        loop {
            let rows = fixture.lease();
            if rows.is_empty() {
                break;
            }
            fixture.deliver(rows);
        }
        fixture.advance(Duration::from_secs(2));
        assert_eq!(fixture.ledger().queued_events, 0);
    };
    let mut fixture = fixture(|_| ());
    fill(&mut fixture);
    drain(&mut fixture);
    assert!(fixture.pipeline.shard.file_bytes() < COMPACT_FROM, "{}", fixture.pipeline.shard.file_bytes());
    fill(&mut fixture);
    drain(&mut fixture);
    assert!(fixture.pipeline.shard.file_bytes() > COMPACT_FROM, "a second time within the minute");
    fixture.advance(COMPACT_SPACING);
    fixture.append(1);
    fixture.advance(Duration::from_secs(6));
    drain(&mut fixture);
    assert!(fixture.pipeline.shard.file_bytes() < COMPACT_FROM);
}

#[test]
fn a_file_grown_by_a_backlog_shrinks_while_events_arrive() {
    const ROUNDS: u64 = 40;
    let written = Arc::new(Written::default());
    let mut fixture = fixture(|options| options.disk = Disk::gated(Arc::clone(&written) as Arc<dyn Gate>));
    let mut sent = Vec::new();
    // The rows of the last round are being sent when more arrive, so the queue never runs empty. Returns the bytes
    // written in a round.
    let mut steady = |fixture: &mut Fixture| {
        let before = written.0.load(Ordering::SeqCst);
        for _ in 0..ROUNDS {
            fixture.append(20);
            fixture.advance(Duration::from_secs(2));
            assert!(fixture.ledger().queued_events > 0);
            let next = fixture.lease();
            fixture.deliver(std::mem::replace(&mut sent, next));
        }
        (written.0.load(Ordering::SeqCst) - before) / ROUNDS
    };
    let usual = steady(&mut fixture);
    while fixture.pipeline.shard.file_bytes() < 16 * COMPACT_FROM {
        while fixture.pipeline.append(&[7; 4000], 0).is_ok() {}
        fixture.settle_down();
    }
    steady(&mut fixture);
    assert!(fixture.pipeline.shard.file_bytes() < COMPACT_FROM, "{} bytes", fixture.pipeline.shard.file_bytes());
    let now = steady(&mut fixture);
    assert!(now < usual * 3 / 2, "{usual} bytes a round before the backlog, {now} after it");
}

#[test]
fn a_file_system_at_its_floor_is_reported_once_with_sizes() {
    let mut fixture = fixture(|options| options.limits.min_free_space = u64::MAX / 4);
    let floors_reported = |fixture: &Fixture| {
        let diagnostics = std::mem::take(&mut *fixture.diagnostics.lock().unwrap());
        diagnostics.into_iter().filter(|diagnostic| matches!(diagnostic, Diagnostic::LowDiskSpace { .. }))
    };
    let floors: Vec<_> = floors_reported(&fixture).collect();
    let [Diagnostic::LowDiskSpace { path, free_bytes, floor_bytes, volume_bytes }] = &floors[..] else {
        panic!("{floors:?}")
    };
    assert_eq!((path, *floor_bytes), (fixture.pipeline.shard.dir(), u64::MAX / 4));
    assert!(*free_bytes > 0 && volume_bytes.is_some_and(|volume| volume >= *free_bytes));
    assert_eq!(fixture.pipeline.append(&[7; 100], 0), Err(DropReason::DiskFull));
    let now = fixture.pipeline.low_disk_space();
    assert!(matches!(now, Some(Diagnostic::LowDiskSpace { path: of, .. }) if of == *path));
    fixture.advance(HOUR);
    assert_eq!(floors_reported(&fixture).count(), 0, "not again and again");
}
