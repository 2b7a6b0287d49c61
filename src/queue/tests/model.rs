//! Random operations, clean ends and kills, compared after each with a list in memory. No call to the disk fails here, so
//! the list knows exactly what must be there. Rows leave as they do in the pipeline: leased, acked, and removed by the
//! commit that follows.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::queue::leases::{Lease, Leases};

#[derive(Clone, Debug)]
enum Step {
    /// Records of these classes.
    Append(Vec<u8>),
    Swap,
    Sync,
    /// Checkpoints everything that is sealed.
    Checkpoint,
    /// Leases rows of at most so many bytes.
    Lease(usize),
    /// Commits, and leases all that is free.
    LeaseAll,
    /// Which leased row, and in turn the fate of its records: delivered, dead-lettered or kept.
    Ack(usize, Vec<u8>),
    /// Which leased row.
    Release(usize),
    Commit,
    /// The same, in the transaction of a checkpoint if there is one.
    CommitAndCarry,
    /// A transaction that could not begin.
    CommitFails,
    /// Evicts until this many eighths are left.
    Evict(u64),
    ReopenStore,
    Close,
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => vec(0..4_u8, 1..60).prop_map(Step::Append),
        1 => vec(0..1_u8, 200..400).prop_map(Step::Append),
        3 => Just(Step::Swap),
        1 => Just(Step::Sync),
        3 => Just(Step::Checkpoint),
        3 => (1..8_000_usize).prop_map(Step::Lease),
        2 => Just(Step::LeaseAll),
        6 => (any::<usize>(), vec(0..3_u8, 1..7)).prop_map(|(row, fates)| Step::Ack(row, fates)),
        2 => any::<usize>().prop_map(Step::Release),
        3 => Just(Step::Commit),
        2 => Just(Step::CommitAndCarry),
        1 => Just(Step::CommitFails),
        3 => (0..8_u64).prop_map(Step::Evict),
        1 => Just(Step::ReopenStore),
        1 => Just(Step::Close),
        3 => Just(Step::Kill),
    ];
    vec(step, 1..40)
}

/// What must be there.
#[derive(Debug, Default)]
struct Model {
    /// Every record ever accepted: sequence number to body number and class.
    accepted: BTreeMap<u64, (u64, u8)>,
    /// Those that were neither delivered, dead-lettered nor evicted.
    left: BTreeMap<u64, u64>,
    delivered: u64,
    dead_lettered: BTreeMap<u64, u64>,
    evicted: u64,
    /// Decided in this process, and not committed yet.
    pending: Vec<Decision>,
}

/// What an ack decides: sequence numbers of delivered and kept records, and number and body number of dead letters.
#[derive(Debug, Default)]
struct Decision {
    delivered: Vec<u64>,
    dead: Vec<(u64, u64)>,
    kept: Vec<u64>,
}

impl Model {
    fn commit(&mut self) {
        for decision in std::mem::take(&mut self.pending) {
            self.delivered += decision.delivered.len() as u64;
            for seq in decision.delivered.iter().chain(decision.dead.iter().map(|(seq, _)| seq)) {
                assert!(self.left.remove(seq).is_some(), "record {seq} was decided twice");
            }
            self.dead_lettered.extend(decision.dead);
        }
    }

    fn is_pending(&self, seq: u64) -> bool {
        let mut pending = self.pending.iter();
        pending.any(|decision| decision.delivered.contains(&seq) || decision.dead.iter().any(|(dead, _)| *dead == seq))
    }
}

struct Subject {
    root: tempfile::TempDir,
    mapped: bool,
    /// `None` only while it is being reopened.
    queue: Option<Queue>,
    model: Model,
    leases: Leases,
    /// The rows that are with delivery.
    out: Vec<Lease>,
}

impl Subject {
    fn queue(&self) -> &Queue {
        self.queue.as_ref().unwrap()
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Append(classes) => classes.iter().for_each(|class| self.append(*class)),
            Step::Swap => _ = self.queue().journal().swap().unwrap(),
            Step::Sync => assert_eq!(self.queue().sync().unwrap(), self.last_seq()),
            Step::Checkpoint => while self.checkpoint(&[]) {},
            Step::Lease(bytes) => _ = self.lease(*bytes),
            Step::LeaseAll => self.lease_all(),
            Step::Ack(row, fates) => self.ack(*row, fates),
            Step::Release(row) => {
                if !self.out.is_empty() {
                    let lease = self.out.swap_remove(row % self.out.len());
                    self.leases.release(lease.row());
                }
            }
            Step::Commit => self.commit(false),
            Step::CommitAndCarry => self.commit(true),
            Step::CommitFails => {
                let pending = self.leases.take_acks(OWN, &self.queue().ledger());
                self.leases.put_back(pending);
            }
            Step::Evict(eighths) => self.evict(*eighths),
            Step::ReopenStore => {
                assert!(self.queue().reopen_store(NOW).unwrap().is_empty());
                self.leases.lock().forget(OWN);
            }
            Step::Close => {
                self.queue().close();
                self.reopen();
            }
            Step::Kill => {
                let left = copy_of(self.root.path());
                // A copy, so that nothing that a destructor writes reaches it.
                self.queue = None;
                self.root = left;
                self.reopen();
            }
        }
        self.compare();
    }

    fn last_seq(&self) -> u64 {
        self.model.accepted.keys().last().copied().unwrap_or(0)
    }

    fn append(&mut self, class: u8) {
        let id = self.model.accepted.len() as u64;
        match append(self.queue(), id, class) {
            Ok(appended) => {
                assert_eq!(appended.seq, self.last_seq() + 1, "a number is left out, or given twice");
                self.model.accepted.insert(appended.seq, (id, class));
                self.model.left.insert(appended.seq, id);
            }
            Err(refused) => assert!(matches!(refused, AppendError::Full), "{refused:?}"),
        }
    }

    fn checkpoint(&mut self, acked: &[Ack]) -> bool {
        let Some(checkpointed) = self.queue().checkpoint(acked, None, NOW).unwrap() else { return false };
        assert_eq!(checkpointed.missing, 0);
        true
    }

    /// Returns whether there was a free row.
    fn lease(&mut self, bytes: usize) -> bool {
        let mut damaged = 0;
        let rows = self.leases.try_lock().expect("nobody else has the row lock");
        let leased = rows.lease((OWN, self.queue()), bytes, &|_| true, NOW, &mut damaged).unwrap();
        drop(rows);
        assert_eq!(damaged, 0);
        let any = !leased.is_empty();
        for lease in leased {
            for (seq, id) in records(&lease) {
                assert_eq!(self.model.left.get(&seq), Some(&id), "a record that is gone was leased");
                assert!(!self.model.is_pending(seq), "record {seq} was decided, and leased again");
                assert!(!self.out_seqs().contains(&seq), "record {seq} was leased twice");
            }
            self.out.push(lease);
        }
        any
    }

    /// Each record that is checkpointed and not decided is leased now.
    fn lease_all(&mut self) {
        // What an ack keeps is a row, and can be leased once it has been released, only after the commit.
        self.commit(false);
        while self.lease(4_000) {}
        let open = self.model.left.range(..=self.queue().ledger().accepted).map(|(seq, _)| *seq);
        assert_eq!(self.out_seqs(), open.collect(), "a record that nobody delivers");
    }

    fn out_seqs(&self) -> BTreeSet<u64> {
        self.out.iter().flat_map(records).map(|(seq, _)| seq).collect()
    }

    fn ack(&mut self, row: usize, fates: &[u8]) {
        if self.out.is_empty() {
            return;
        }
        let lease = self.out.swap_remove(row % self.out.len());
        let mut decision = Decision::default();
        for ((seq, id), fate) in records(&lease).into_iter().zip(fates.iter().cycle()) {
            match fate {
                0 => decision.delivered.push(seq),
                1 => decision.dead.push((seq, id)),
                _ => decision.kept.push(seq),
            }
        }
        let dead_letters = decision.dead.iter().map(|(seq, id)| dead(*seq, *id)).collect();
        let ack = ack_keeping(&lease.chunk, decision.delivered.len() as u64, dead_letters, &decision.kept);
        // What is kept stays leased.
        self.out.extend(ack.keep.clone().map(|chunk| Lease { chunk, ..lease }));
        assert!(self.leases.ack(ack));
        self.model.pending.push(decision);
    }

    fn commit(&mut self, carries: bool) {
        let pending = self.leases.take_acks(OWN, &self.queue().ledger());
        if !carries || !self.checkpoint(&pending.acks) {
            let applied = self.queue().ack(&pending.acks, None, NOW).unwrap();
            assert_eq!((applied.stale_removals, applied.damaged_events), (0, 0));
        }
        self.leases.lock().committed(pending);
        self.model.commit();
    }

    /// Oldest first, and priority records only when no other is left.
    fn evict(&mut self, eighths: u64) {
        // At least two rows, with both kinds of records.
        for _ in 0..2 {
            (0..12).for_each(|n| self.append(n % 3));
            self.queue().journal().swap().unwrap();
            while self.checkpoint(&[]) {}
        }
        let before: BTreeMap<_, _> = queued(self.queue()).into_iter().collect();
        let goal = before.len() as u64 * eighths / 8;
        let rows = self.leases.lock();
        let is_busy = |key| rows.is_out(ChunkRef { origin: OWN, key });
        let fits = EvictUntil::Fits { bytes: u64::MAX, events: goal };
        let evicted = self.queue().evict(fits, &mut EvictionCursor::default(), &is_busy, NOW).unwrap();
        drop(rows);
        let after: BTreeMap<_, _> = queued(self.queue()).into_iter().collect();
        let mut out = self.out_seqs();
        // A row that is acked stays whole until the commit.
        out.extend(self.model.pending.iter().flat_map(|decision| &decision.kept));
        let is_busy = |seq: &u64| out.contains(seq) || self.model.is_pending(*seq);
        let is_priority = |seq: &&u64| self.model.accepted[seq].1 != 0;
        // Priority records stay while rows are leased, because ordinary ones may be among those.
        let stays = |seq: &u64| is_busy(seq) || (after.keys().any(is_busy) && is_priority(&seq));
        assert!(after.len() as u64 <= goal || after.keys().all(stays), "too much is left");
        let gone: Vec<_> = before.keys().filter(|seq| !after.contains_key(seq)).collect();
        assert!(!gone.iter().any(|seq| is_busy(seq)), "a leased record was evicted");
        assert_eq!(gone.len() as u64, evicted);
        let free = after.keys().filter(|seq| !is_busy(seq));
        let oldest_left = free.copied().find(|seq| !is_priority(&seq)).unwrap_or(u64::MAX);
        assert!(gone.iter().filter(|seq| !is_priority(seq)).all(|seq| **seq < oldest_left), "not the oldest");
        assert!(oldest_left == u64::MAX || !gone.iter().any(is_priority), "a priority one went before an ordinary one");
        for seq in gone {
            self.model.left.remove(seq);
        }
        self.model.evicted += evicted;
    }

    fn reopen(&mut self) {
        self.queue = None;
        // The process has ended, and what it had decided and not committed is open again.
        (self.leases, self.out, self.model.pending) = (Leases::default(), Vec::new(), Vec::new());
        self.mapped = !self.mapped;
        let journaled = self.model.left.len();
        let opened = open(&Machine::disk(7, self.mapped), &self.root.path().join("queue"));
        assert!(opened.findings.is_empty(), "{:?}", opened.findings);
        assert!(opened.replayed as usize <= journaled);
        self.queue = Some(opened.queue);
        let expected: Vec<_> = self.model.left.iter().map(|(seq, id)| (*seq, *id)).collect();
        assert_eq!(queued(self.queue()), expected, "after a reopen everything is in the store, once, in order");
        assert_eq!(self.queue().ledger().accepted, self.last_seq());
    }

    fn compare(&self) {
        let (queue, model) = (self.queue(), &self.model);
        let (found, ledger) = (queued(queue), queue.ledger());
        let checkpointed: Vec<_> = model.left.range(..=ledger.accepted).map(|(seq, id)| (*seq, *id)).collect();
        assert_eq!(found, checkpointed);
        assert_eq!(queue.journal().journaled().1, self.last_seq() - ledger.accepted);
        assert_eq!(queue.accepted(), self.last_seq());
        let dead_lettered: BTreeMap<_, _> = queue
            .open_store()
            .unwrap()
            .dead(None, usize::MAX, usize::MAX)
            .unwrap()
            .records
            .iter()
            .map(|dead| (dead.seq, id_of(&dead.body)))
            .collect();
        assert_eq!(dead_lettered, model.dead_lettered);
        assert_eq!(ledger.imbalance(), 0, "{ledger:?}");
        assert_eq!(
            (ledger.delivered, ledger.dead_lettered),
            (model.delivered, model.dead_lettered.len() as u64),
            "{ledger:?}"
        );
        let decided = self.leases.ledger(OWN, || ledger);
        let pending: usize = model.pending.iter().map(|decision| decision.delivered.len()).sum();
        assert_eq!((decided.imbalance(), decided.delivered), (0, model.delivered + pending as u64), "{decided:?}");
        assert_eq!((ledger.evicted, ledger.damaged, ledger.lost_unsynced), (model.evicted, 0, 0), "{ledger:?}");
    }
}

/// Sequence number and body number of each record of a lease.
fn records(lease: &Lease) -> Vec<(u64, u64)> {
    let frames = frame::frames(&lease.chunk.frames, lease.chunk.salt);
    frames.map(|(head, body)| (head.seq, id_of(body))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(debug_assertions) { 24 } else { 400 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn after_any_operations_each_record_is_where_the_ledger_says(steps in steps(), mapped: bool) {
        let root = scratch();
        let queue = open(&Machine::disk(7, mapped), &root.path().join("queue")).queue;
        let (leases, out) = (Leases::default(), Vec::new());
        let mut subject = Subject { root, mapped, queue: Some(queue), model: Model::default(), leases, out };
        for step in &steps {
            subject.take(step);
        }
        subject.take(&Step::LeaseAll);
        subject.take(&Step::Kill);
    }
}
