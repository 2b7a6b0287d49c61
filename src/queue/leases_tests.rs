//! Tests of the lease table: its states, and a model of random operations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use proptest::prelude::*;

use super::*;
use crate::queue::frame;

/// A row of records with consecutive sequence numbers.
fn row(first_seq: u64, count: u64) -> Chunk {
    let mut frames = Vec::new();
    (first_seq..first_seq + count).for_each(|seq| frame::append(&mut frames, &[7; 20], 0, seq, 1));
    let key = ChunkKey::new(first_seq);
    Chunk { key, count: count as u32, salt: 1, checkpointed_at: 1, frames: frames.into() }
}

fn seqs(chunk: &Chunk) -> Vec<u64> {
    frame::frames(&chunk.frames, chunk.salt).map(|(head, _)| head.seq).collect()
}

fn chunk_ref(origin: u32, first_seq: u64) -> ChunkRef {
    ChunkRef { origin, key: ChunkKey::new(first_seq) }
}

fn ack(lease: &Lease, keep: &[u64]) -> Ack {
    let keep = lease.chunk.retain(|seq| keep.contains(&seq));
    let delivered = u64::from(lease.chunk.count - keep.as_ref().map_or(0, |kept| kept.count));
    Ack { row: lease.row(), delivered, dead: Vec::new(), keep }
}

/// A store in memory that applies acks as the real one does.
#[derive(Clone, Debug, Default)]
struct Store {
    rows: BTreeMap<ChunkKey, Chunk>,
    ledger: Ledger,
}

impl Store {
    fn of(rows: impl IntoIterator<Item = Chunk>) -> Self {
        let mut store = Self::default();
        rows.into_iter().for_each(|row| store.insert(row));
        store
    }

    fn insert(&mut self, row: Chunk) {
        self.ledger.accepted += u64::from(row.count);
        self.ledger.queued_events += u64::from(row.count);
        self.rows.insert(row.key, row);
    }

    fn apply(&mut self, acks: &[Ack]) {
        for ack in acks {
            let kept = ack.keep.as_ref().map_or(0, |kept| u64::from(kept.count));
            if self.rows.get(&ack.row.key).is_none_or(|row| u64::from(row.count) < ack.delivered + kept) {
                continue;
            }
            self.rows.remove(&ack.row.key);
            self.ledger.queued_events -= ack.delivered;
            self.ledger.delivered += ack.delivered;
            self.rows.extend(ack.keep.iter().map(|kept| (kept.key, kept.clone())));
        }
    }
}

/// Leases rows as [`Rows::lease`] does, in reads of at most `most` rows.
fn lease_some(leases: &Leases, store: &Store, most: usize, wants: &dyn Fn(ChunkRef) -> bool) -> Vec<Lease> {
    let rows = leases.try_lock().expect("the row lock is free");
    loop {
        let after = rows.leases.table().resume(OWN, wants);
        let read: Vec<_> = store.rows.values().filter(|row| Some(row.key) > after).take(most).cloned().collect();
        let last = read.last().map(|row| row.key);
        let leased = rows.leases.table().lease(OWN, after, last, read, wants);
        if last.is_none() || !leased.is_empty() {
            return leased;
        }
    }
}

fn lease_all(leases: &Leases, store: &Store) -> Vec<Lease> {
    lease_some(leases, store, usize::MAX, &|_| true)
}

fn first_seqs(leases: &[Lease]) -> Vec<u64> {
    leases.iter().map(|lease| lease.chunk.key.first_seq).collect()
}

#[test]
fn a_row_that_is_acked_is_not_leased_before_or_after_its_commit() {
    let (leases, mut store) = (Leases::default(), Store::of([row(1, 10), row(11, 10)]));
    let [a, b] = lease_all(&leases, &store).try_into().unwrap();
    leases.release(a.row());
    leases.ack(ack(&b, &[]));
    assert_eq!(first_seqs(&lease_all(&leases, &store)), [1]);
    leases.release(a.row());
    let pending = leases.take_acks(OWN, &store.ledger);
    let before = store.clone();
    store.apply(&pending.acks);
    // A read that began before the commit finds the row.
    assert_eq!(first_seqs(&lease_all(&leases, &before)), [1]);
    leases.release(a.row());
    leases.lock().committed(pending);
    assert_eq!(first_seqs(&lease_all(&leases, &store)), [1]);
}

#[test]
fn a_released_row_that_is_skipped_is_leased_after_a_reopen() {
    let (leases, mut store) = (Leases::default(), Store::of([row(1, 10), row(11, 10)]));
    let [a, _b] = lease_all(&leases, &store).try_into().unwrap();
    leases.release(a.row());
    store.insert(row(21, 10));
    let skips_a = |row: ChunkRef| row != a.row();
    leases.lock().forget(OWN);
    assert_eq!(first_seqs(&lease_some(&leases, &store, 9, &skips_a)), [21]);
    assert_eq!(first_seqs(&lease_all(&leases, &store)), [1]);
}

#[test]
fn delivery_is_woken_once_if_it_found_the_row_lock_taken() {
    let (leases, wakes) = (Leases::default(), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&wakes);
    leases.wake_with(Box::new(move || _ = counted.fetch_add(1, Ordering::SeqCst)));
    drop(leases.lock());
    let rows = leases.lock();
    assert!(leases.try_lock().is_none() && leases.try_lock().is_none());
    assert_eq!(wakes.load(Ordering::SeqCst), 0);
    drop(rows);
    drop(leases.lock());
    assert_eq!(wakes.load(Ordering::SeqCst), 1);
}

#[test]
fn acks_releases_and_statistics_do_not_need_the_row_lock() {
    let (leases, store) = (Leases::default(), Store::of([row(1, 10), row(11, 10)]));
    let [a, b] = lease_all(&leases, &store).try_into().unwrap();
    let _rows = leases.lock();
    assert!(leases.ack(ack(&a, &[])));
    leases.release(b.row());
    assert_eq!((leases.totals().delivered, leases.leased().events), (10, 0));
    assert_eq!(leases.ledger(OWN, || store.ledger).queued_events, 10);
}

#[test]
fn events_of_a_transaction_count_once_before_and_after_it() {
    let (leases, store) = (Leases::default(), Store::of([row(1, 10), row(11, 10)]));
    let [a, b] = lease_all(&leases, &store).try_into().unwrap();
    let before = store.ledger;
    let after = Ledger { delivered: 10, queued_events: 10, ..before };
    let seen = |committed: Ledger| {
        let ledger = leases.ledger(OWN, || committed);
        assert_eq!(ledger.imbalance(), 0);
        (ledger.delivered, ledger.queued_events)
    };
    leases.ack(ack(&a, &[]));
    assert_eq!(seen(before), (10, 10));
    let pending = leases.take_acks(OWN, &before);
    assert_eq!((seen(before), seen(after)), ((10, 10), (10, 10)), "before and after the commit");
    leases.ack(ack(&b, &[]));
    assert_eq!((seen(before), seen(after)), ((20, 0), (20, 0)));
    leases.lock().committed(pending);
    assert_eq!(seen(after), (20, 0));
    let pending = leases.take_acks(OWN, &after);
    leases.put_back(pending);
    assert_eq!(seen(after), (20, 0), "the transaction failed");
}

#[test]
fn parts_of_a_row_acked_before_one_commit_leave_nothing() {
    for keep in [1, 2] {
        let (leases, mut store) = (Leases::default(), Store::of([row(1, 10)]));
        let [whole] = lease_all(&leases, &store).try_into().unwrap();
        let first = ack(&whole, &[keep, 9]);
        let kept = Lease { origin: OWN, chunk: first.keep.clone().unwrap() };
        leases.ack(first);
        assert!(!leases.is_acked(whole.row()));
        leases.ack(ack(&kept, &[]));
        assert!(leases.is_acked(whole.row()) && leases.pending_rows() == 2);
        commit(&leases, &mut store, Outcome::Committed);
        assert_eq!((store.rows.len(), store.ledger.delivered), (0, 10));
        assert!(leases.has_nothing_of(OWN) && lease_all(&leases, &store).is_empty());
    }
}

#[test]
fn what_an_ack_keeps_is_open_while_it_is_committed() {
    for keep in [1, 5] {
        let (leases, mut store) = (Leases::default(), Store::of([row(1, 10)]));
        let [whole] = lease_all(&leases, &store).try_into().unwrap();
        let first = ack(&whole, &[keep, 9]);
        let kept = Lease { origin: OWN, chunk: first.keep.clone().unwrap() };
        leases.ack(first);
        let pending = leases.take_acks(OWN, &store.ledger);
        assert!(!leases.is_acked(whole.row()) && !leases.is_acked(kept.row()), "before the commit");
        store.apply(&pending.acks);
        assert!(!leases.is_acked(kept.row()), "the commit has taken effect, and is not noted");
        leases.ack(ack(&kept, &[]));
        assert!(leases.is_acked(whole.row()) && leases.is_acked(kept.row()), "nothing is left");
        leases.lock().committed(pending);
        assert!(leases.is_acked(kept.row()), "it is in the store until the next commit");
    }
}

#[test]
fn a_shard_that_was_let_go_takes_no_more_acks() {
    let (leases, other) = (Leases::default(), 3);
    let leased = leases.table().lease(other, None, None, vec![row(1, 10)], &|_| true);
    leases.lock().let_go(other);
    assert!(!leases.ack(ack(&leased[0], &[])) && leases.has_nothing_of(other));
    leases.release(chunk_ref(other, 1));
    assert_eq!(leases.totals(), Totals::default());
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Committed,
    /// The commit returned an error and had no effect.
    Failed,
    /// The commit returned an error and took effect all the same.
    FailedAndDone,
}

fn commit(leases: &Leases, store: &mut Store, outcome: Outcome) {
    let pending = leases.take_acks(OWN, &store.ledger);
    if !matches!(outcome, Outcome::Failed) {
        store.apply(&pending.acks);
    }
    end(leases, pending, outcome);
}

/// Notes how a transaction ended.
fn end(leases: &Leases, pending: PendingAcks, outcome: Outcome) {
    match outcome {
        Outcome::Committed => leases.lock().committed(pending),
        Outcome::Failed | Outcome::FailedAndDone => leases.put_back(pending),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Checkpoint(u64),
    /// With `from_before`, a read that began before the transaction that is under way.
    Lease {
        most: usize,
        skipped: u64,
        from_before: bool,
    },
    Ack {
        which: usize,
        kept: u64,
    },
    Release(usize),
    /// Carries out a transaction, which ends with this outcome. The table learns of it at the next step that is the
    /// committer's.
    Commit(Outcome),
    Evict,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..6_u64).prop_map(Step::Checkpoint),
        4 => (1..4_usize, 2..6_u64, any::<bool>())
            .prop_map(|(most, skipped, from_before)| Step::Lease { most, skipped, from_before }),
        4 => (any::<usize>(), 0..64_u64).prop_map(|(which, kept)| Step::Ack { which, kept }),
        2 => any::<usize>().prop_map(Step::Release),
        2 => Just(Step::Commit(Outcome::Committed)),
        1 => Just(Step::Commit(Outcome::Failed)),
        1 => Just(Step::Commit(Outcome::FailedAndDone)),
        1 => Just(Step::Evict),
        1 => Just(Step::Reopen),
    ]
}

/// The table, the store, and the leases that delivery holds.
#[derive(Default)]
struct World {
    leases: Leases,
    store: Store,
    held: Vec<Lease>,
    /// The transaction that is under way, how it ends, and the store before it.
    under_way: Option<(PendingAcks, Outcome, Store)>,
    accepted: u64,
    decided: HashSet<u64>,
    evicted: u64,
}

impl World {
    fn lease(&mut self, most: usize, from_before: bool, wants: &dyn Fn(ChunkRef) -> bool) -> bool {
        let before = self.under_way.as_ref().filter(|_| from_before);
        let store = before.map_or(&self.store, |(.., before)| before);
        let leased = lease_some(&self.leases, store, most, wants);
        let is_new = !leased.is_empty();
        let in_hand: HashSet<u64> = self.held.iter().flat_map(|lease| seqs(&lease.chunk)).collect();
        for lease in leased {
            let again = seqs(&lease.chunk).into_iter().find(|seq| in_hand.contains(seq) || self.decided.contains(seq));
            assert_eq!(again, None, "leased twice, or after its decision");
            self.held.push(lease);
        }
        is_new
    }

    fn ack(&mut self, which: usize, kept: u64) {
        let lease = self.held.swap_remove(which);
        let all = seqs(&lease.chunk);
        let keep: Vec<_> = all.iter().copied().filter(|seq| kept >> (seq % 6) & 1 == 1).collect();
        if keep.len() == all.len() {
            return self.held.push(lease);
        }
        self.decided.extend(all.iter().filter(|seq| !keep.contains(seq)));
        let ack = ack(&lease, &keep);
        let kept = ack.keep.clone();
        assert!(self.leases.ack(ack));
        self.held.extend(kept.map(|chunk| Lease { origin: OWN, chunk }));
    }

    fn evict_oldest(&mut self) {
        let rows = self.leases.lock();
        let free = self.store.rows.keys().copied().find(|&key| !rows.is_out(ChunkRef { origin: OWN, key }));
        if let Some(row) = free.and_then(|key| self.store.rows.remove(&key)) {
            assert!(seqs(&row).iter().all(|seq| !self.decided.contains(seq)), "evicted after its decision");
            self.evicted += u64::from(row.count);
            self.store.ledger.queued_events -= u64::from(row.count);
            self.store.ledger.evicted += u64::from(row.count);
        }
    }

    fn end_transaction(&mut self) {
        if let Some((pending, outcome, _)) = self.under_way.take() {
            end(&self.leases, pending, outcome);
        }
    }

    fn take(&mut self, step: Step) {
        if matches!(step, Step::Checkpoint(_) | Step::Commit(_) | Step::Evict | Step::Reopen) {
            // The committer does one thing after another.
            self.end_transaction();
        }
        match step {
            Step::Checkpoint(count) => {
                self.store.insert(row(self.accepted + 1, count));
                self.accepted += count;
            }
            Step::Lease { most, skipped, from_before } => {
                self.lease(most, from_before, &|row| row.key.first_seq % skipped != 0);
            }
            Step::Ack { which, kept } if !self.held.is_empty() => self.ack(which % self.held.len(), kept),
            Step::Release(which) if !self.held.is_empty() => {
                let lease = self.held.swap_remove(which % self.held.len());
                self.leases.release(lease.row());
            }
            Step::Ack { .. } | Step::Release(_) => {}
            Step::Commit(outcome) => {
                let (before, pending) = (self.store.clone(), self.leases.take_acks(OWN, &self.store.ledger));
                if !matches!(outcome, Outcome::Failed) {
                    self.store.apply(&pending.acks);
                }
                self.under_way = Some((pending, outcome, before));
            }
            Step::Evict => self.evict_oldest(),
            Step::Reopen => self.leases.lock().forget(OWN),
        }
        assert_eq!(self.leases.totals().delivered, self.decided.len() as u64);
        assert_eq!(self.leases.ledger(OWN, || self.store.ledger).imbalance(), 0);
    }
}

proptest! {
    #[test]
    fn no_event_is_leased_twice_or_after_its_decision(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::default();
        steps.into_iter().for_each(|step| world.take(step));
        world.end_transaction();
        // All events that are left can be delivered.
        for _ in 0..3 {
            while !world.held.is_empty() {
                world.ack(0, 0);
            }
            commit(&world.leases, &mut world.store, Outcome::Committed);
            while world.lease(2, false, &|_| true) {}
        }
        assert!(world.held.is_empty() && world.store.rows.is_empty(), "{:?}", world.store.rows);
        assert_eq!(world.decided.len() as u64 + world.evicted, world.accepted);
        assert_eq!((world.store.ledger.delivered, world.store.ledger.imbalance()), (world.decided.len() as u64, 0));
        assert!(world.leases.has_nothing_of(OWN) && world.leases.is_committed());
    }
}

/// The table under every order of its threads that a scheduler of shuttle tries.
#[cfg(feature = "__models")]
mod models {
    use shuttle::sync::{Condvar, Mutex};
    use shuttle::{rand, thread};

    use super::*;
    use crate::sys::sync::alone;

    const ROWS: u64 = 3;
    const ROW_EVENTS: u64 = 2;

    /// Wakes a thread that waits, or the next time that it would.
    #[derive(Default)]
    struct Bell {
        is_rung: Mutex<bool>,
        rings: Condvar,
    }

    impl Bell {
        fn ring(&self) {
            *self.is_rung.lock().unwrap() = true;
            self.rings.notify_one();
        }

        /// Never returns if nobody rings, which shuttle reports as a deadlock.
        fn wait(&self) {
            let mut is_rung = self.is_rung.lock().unwrap();
            while !*is_rung {
                is_rung = self.rings.wait(is_rung).unwrap();
            }
            *is_rung = false;
        }
    }

    #[derive(Default)]
    struct Meeting {
        leases: Leases,
        store: Mutex<Store>,
        delivery: Bell,
        committer: Bell,
        /// Events that delivery has decided, and those that were evicted.
        decided: Mutex<Vec<u64>>,
        evicted: Mutex<u64>,
        is_over: Mutex<bool>,
    }

    impl Meeting {
        fn left(&self) -> u64 {
            ROWS * ROW_EVENTS - self.decided.lock().unwrap().len() as u64 - *self.evicted.lock().unwrap()
        }

        /// As [`Rows::lease`] does.
        fn lease(&self, rows: &Rows<'_>) -> Vec<Lease> {
            loop {
                let after = rows.leases.table().resume(OWN, &|_| true);
                let read: Vec<_> = {
                    let store = self.store.lock().unwrap();
                    store.rows.values().filter(|row| Some(row.key) > after).take(2).cloned().collect()
                };
                let last = read.last().map(|row| row.key);
                let leased = rows.leases.table().lease(OWN, after, last, read, &|_| true);
                if last.is_none() || !leased.is_empty() {
                    return leased;
                }
            }
        }

        /// Decides over a leased row, in part or as a whole, or gives it back. Returns what is still leased.
        fn decide(&self, lease: Lease, releases: &mut u32) -> Option<Lease> {
            use rand::Rng;
            match rand::thread_rng().gen_range(0..3) {
                0 if *releases > 0 => {
                    *releases -= 1;
                    self.leases.release(lease.row());
                    None
                }
                1 if lease.chunk.count > 1 => {
                    let kept: Vec<u64> = seqs(&lease.chunk).into_iter().skip(1).collect();
                    self.acked(&lease, &kept)
                }
                _ => self.acked(&lease, &[]),
            }
        }

        fn acked(&self, lease: &Lease, kept: &[u64]) -> Option<Lease> {
            let ack = ack(lease, kept);
            let rest = ack.keep.clone().map(|chunk| Lease { origin: OWN, chunk });
            // Noted first: another thread may see the ack before this one goes on.
            let mut decided = self.decided.lock().unwrap();
            decided.extend(seqs(&lease.chunk).into_iter().filter(|seq| !kept.contains(seq)));
            drop(decided);
            assert!(self.leases.ack(ack));
            self.committer.ring();
            rest
        }

        fn deliver(&self) {
            let (mut held, mut releases) = (Vec::new(), 2);
            loop {
                if let Some(rows) = self.leases.try_lock() {
                    let leased = self.lease(&rows);
                    drop(rows);
                    held.extend(leased);
                }
                if let Some(lease) = held.pop() {
                    let rest = self.decide(lease, &mut releases);
                    held.extend(rest.filter(|rest| {
                        // Sometimes what is kept is given back before the commit.
                        let gives_back = releases > 0 && rest.chunk.key.first_seq % 4 == 0;
                        if gives_back {
                            releases -= 1;
                            self.leases.release(rest.row());
                        }
                        !gives_back
                    }));
                } else if self.left() == 0 {
                    break;
                } else {
                    self.delivery.wait();
                }
            }
            *self.is_over.lock().unwrap() = true;
            self.committer.ring();
        }

        /// One turn of the committer: a transaction, which may fail, or an eviction.
        fn commit(&self, turn: u32) {
            let ledger = self.store.lock().unwrap().ledger;
            let pending = self.leases.take_acks(OWN, &ledger);
            if turn == 1 {
                self.leases.put_back(pending);
            } else {
                self.store.lock().unwrap().apply(&pending.acks);
                self.leases.lock().committed(pending);
            }
            if turn == 0 {
                self.evict();
            }
            self.leases.wake_turned_away();
        }

        /// As the committer does: under the row lock, and no row that is out.
        fn evict(&self) {
            let rows = self.leases.lock();
            // The store's lock is never held where the table's is taken.
            let keys: Vec<_> = self.store.lock().unwrap().rows.keys().copied().collect();
            let free = keys.into_iter().find(|key| !rows.is_out(ChunkRef { origin: OWN, key: *key }));
            let mut store = self.store.lock().unwrap();
            if let Some(row) = free.and_then(|key| store.rows.remove(&key)) {
                store.ledger.queued_events -= u64::from(row.count);
                store.ledger.evicted += u64::from(row.count);
                *self.evicted.lock().unwrap() += u64::from(row.count);
                drop(store);
                // What delivery waited for may be gone.
                self.delivery.ring();
            }
        }
    }

    fn every_event_is_decided_once() {
        let rows = (0..ROWS).map(|number| row(number * ROW_EVENTS + 1, ROW_EVENTS));
        let meeting = Arc::new(Meeting { store: Mutex::new(Store::of(rows)), ..Meeting::default() });
        let wakes = Arc::downgrade(&meeting);
        meeting.leases.wake_with(Box::new(move || {
            if let Some(meeting) = wakes.upgrade() {
                meeting.delivery.ring();
            }
        }));
        let delivery = Arc::clone(&meeting);
        let delivery = thread::spawn(move || delivery.deliver());
        let reader = Arc::clone(&meeting);
        let reader = thread::spawn(move || {
            let mut before = 0;
            for _ in 0..4 {
                let ledger = reader.leases.ledger(OWN, || reader.store.lock().unwrap().ledger);
                assert_eq!(ledger.accepted, ledger.queued_events + ledger.delivered + ledger.evicted, "{ledger:?}");
                assert!(ledger.delivered >= before, "an event counts as delivered once and for all");
                before = ledger.delivered;
            }
        });
        for turn in 0.. {
            meeting.commit(turn);
            if *meeting.is_over.lock().unwrap() && meeting.leases.is_committed() {
                break;
            }
            if turn > 1 {
                meeting.committer.wait();
            }
        }
        delivery.join().unwrap();
        reader.join().unwrap();
        let mut decided = meeting.decided.lock().unwrap().clone();
        decided.sort_unstable();
        let count = decided.len();
        decided.dedup();
        assert_eq!(decided.len(), count, "no event is decided twice");
        let store = meeting.store.lock().unwrap();
        assert!(store.rows.is_empty(), "{:?}", store.rows);
        assert_eq!(store.ledger.delivered + store.ledger.evicted, ROWS * ROW_EVENTS);
        assert!(meeting.leases.has_nothing_of(OWN));
    }

    #[test]
    fn delivery_and_committer_decide_each_event_once_and_wake() {
        let _alone = alone();
        shuttle::check_random(every_event_is_decided_once, 5_000);
        shuttle::check_pct(every_event_is_decided_once, 5_000, 3);
    }
}
