//! Random operations, clean ends and kills, compared after each with a list in memory. No call fails here, so the list
//! knows exactly what must be there.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Records of these classes.
    Append(Vec<u8>),
    Swap,
    Sync,
    /// Checkpoints everything that is sealed.
    Checkpoint,
    /// Which row, and in turn the fate of its records: delivered, dead-lettered or kept.
    Settle(usize, Vec<u8>),
    /// The same, in the transaction of a checkpoint if there is one.
    SettleAndCarry(usize, Vec<u8>),
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
        3 => (any::<usize>(), vec(0..3_u8, 1..7)).prop_map(|(row, fates)| Step::Settle(row, fates)),
        2 => (any::<usize>(), vec(0..3_u8, 1..7)).prop_map(|(row, fates)| Step::SettleAndCarry(row, fates)),
        3 => (0..8_u64).prop_map(Step::Evict),
        1 => Just(Step::ReopenStore),
        1 => Just(Step::Close),
        3 => Just(Step::Kill),
    ];
    vec(step, 1..25)
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
}

struct Subject {
    root: tempfile::TempDir,
    mapped: bool,
    /// `None` only while it is being reopened.
    queue: Option<Queue>,
    model: Model,
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
            Step::Settle(row, fates) => {
                if let Some(acked) = self.ack(*row, fates) {
                    let applied = self.queue().ack(&[acked], None, NOW).unwrap();
                    assert_eq!((applied.stale_removals, applied.damaged_events), (0, 0));
                }
            }
            Step::SettleAndCarry(row, fates) => {
                let acked: Vec<_> = self.ack(*row, fates).into_iter().collect();
                if !self.checkpoint(&acked) {
                    self.queue().ack(&acked, None, NOW).unwrap();
                }
            }
            Step::Evict(eighths) => self.evict(*eighths),
            Step::ReopenStore => assert!(self.queue().reopen_store(NOW).unwrap().is_empty()),
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

    fn ack(&mut self, row: usize, fates: &[u8]) -> Option<Ack> {
        let chunks = self.queue().read(None, usize::MAX).unwrap().chunks;
        let chunk = chunks.get(row % chunks.len().max(1))?;
        let (mut delivered, mut dead_letters, mut keep) = (0, Vec::new(), Vec::new());
        for ((head, body), fate) in frame::frames(&chunk.frames, chunk.salt).zip(fates.iter().cycle()) {
            match fate {
                0 => delivered += 1,
                1 => dead_letters.push(dead(head.seq, id_of(body))),
                _ => {
                    keep.push(head.seq);
                    continue;
                }
            }
            self.model.left.remove(&head.seq);
        }
        self.model.delivered += delivered;
        self.model.dead_lettered.extend(dead_letters.iter().map(|dead| (dead.seq, id_of(&dead.body))));
        Some(ack_keeping(chunk, delivered, dead_letters, &keep))
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
        let evicted = self
            .queue()
            .evict(EvictUntil::Fits { bytes: u64::MAX, events: goal }, &mut EvictionCursor::default(), &|_| false, NOW)
            .unwrap();
        let after: BTreeMap<_, _> = queued(self.queue()).into_iter().collect();
        assert!(after.len() as u64 <= goal);
        let is_priority = |seq: &&u64| self.model.accepted[seq].1 != 0;
        let gone: Vec<_> = before.keys().filter(|seq| !after.contains_key(seq)).collect();
        assert_eq!(gone.len() as u64, evicted);
        let oldest_left = after.keys().find(|seq| !is_priority(seq)).copied().unwrap_or(u64::MAX);
        assert!(gone.iter().filter(|seq| !is_priority(seq)).all(|seq| **seq < oldest_left), "not the oldest");
        assert!(oldest_left == u64::MAX || !gone.iter().any(is_priority), "a priority one went before an ordinary one");
        for seq in gone {
            self.model.left.remove(seq);
        }
        self.model.evicted += evicted;
    }

    fn reopen(&mut self) {
        self.queue = None;
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
        assert_eq!((ledger.evicted, ledger.damaged, ledger.lost_unsynced), (model.evicted, 0, 0), "{ledger:?}");
    }
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
        let mut subject = Subject { root, mapped, queue: Some(queue), model: Model::default() };
        for step in &steps {
            subject.take(step);
        }
        subject.take(&Step::Kill);
    }
}
