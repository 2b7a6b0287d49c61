//! The machine stops, at every sync and at random moments in between. What a sync or a commit had confirmed is there
//! afterwards, once; what had been acked by a confirmed commit does not come back; the ledger balances and counts what
//! is missing.

use std::collections::BTreeMap;

use super::cut_disk::{Cut, CutDisk};
use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Delivered,
    DeadLettered,
    Evicted,
}

/// What is known at the moment of a cut.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Sequence number and body number of all records that may be found.
    pub(super) appended: Vec<(u64, u64)>,
    /// Records up to here survive.
    pub(super) confirmed: u64,
    /// Acked by a confirmed commit.
    pub(super) gone: BTreeMap<u64, Fate>,
    /// In a commit that is not confirmed.
    pub(super) leaving: BTreeMap<u64, Fate>,
    /// When this run began.
    before: Ledger,
}

impl Facts {
    fn count(of: &BTreeMap<u64, Fate>, fate: Fate) -> u64 {
        of.values().filter(|one| **one == fate).count() as u64
    }

    pub(super) fn commit(&mut self) {
        self.gone.append(&mut self.leaving);
    }
}

/// A run of the machine, from its start to the next power cut.
struct MachineRun {
    mapped: bool,
    disk: Arc<CutDisk<Facts>>,
    queue: Queue,
    random: u64,
    next_id: u64,
    /// The cut after which the next run goes on, and what is found there.
    heir: Option<(tempfile::TempDir, Facts)>,
    cuts: usize,
}

impl MachineRun {
    fn begin(root: &Path, facts: Facts, mapped: bool, seed: u64, next_id: u64) -> MachineRun {
        let queue_dir = root.join("queue");
        let disk = CutDisk::<Facts>::new(root, mapped, u128::from(seed), seed);
        disk.know(|known| *known = facts);
        let queue = open(&Disk::gated(Arc::clone(&disk) as Arc<dyn Gate>), &queue_dir).queue;
        MachineRun { mapped, disk, queue, random: seed, next_id, heir: None, cuts: 0 }
    }

    fn next(&mut self, below: u64) -> u64 {
        next(&mut self.random) % below
    }

    fn step(&mut self) {
        match self.next(10) {
            0..=3 => self.append(),
            4 => {
                let synced = self.queue.sync().unwrap();
                self.disk.know(|facts| facts.confirmed = facts.confirmed.max(synced));
            }
            5 => {
                self.queue.journal().swap().unwrap();
            }
            6 => {
                self.queue.journal().swap().unwrap();
                while self.checkpoint(&[]) {}
            }
            7 => {
                self.queue.journal().swap().unwrap();
                let acked = self.ack_some();
                if !self.checkpoint(&acked) {
                    self.queue.ack(&acked, None, NOW).unwrap();
                }
                self.disk.know(Facts::commit);
            }
            8 => {
                let acked = self.ack_some();
                self.queue.ack(&acked, Some(Some(NOW)), NOW).unwrap();
                self.disk.know(Facts::commit);
            }
            _ => self.evict(),
        }
    }

    fn append(&mut self) {
        for _ in 0..self.next(40) {
            let (id, class) = (self.next_id, self.next(3) as u8);
            // A full journal does not matter to this test.
            let Ok(appended) = append(&self.queue, id, class) else { return };
            self.next_id += 1;
            self.disk.know(|facts| facts.appended.push((appended.seq, id)));
            if self.next(20) == 0 {
                self.disk.cut(format!("after append of {}", appended.seq));
            }
        }
    }

    fn checkpoint(&mut self, acked: &[Ack]) -> bool {
        let Some(checkpointed) = self.queue.checkpoint(acked, None, NOW).unwrap() else { return false };
        assert_eq!(checkpointed.missing, 0);
        self.disk.know(|facts| facts.confirmed = facts.confirmed.max(checkpointed.up_to));
        true
    }

    /// Decides over the records of some rows.
    fn ack_some(&mut self) -> Vec<Ack> {
        let mut acked = Vec::new();
        for chunk in self.queue.read(None, usize::MAX).unwrap().chunks {
            if self.next(3) != 0 {
                continue;
            }
            let (mut delivered, mut dead_letters, mut keep) = (0, Vec::new(), Vec::new());
            for (head, body) in frame::frames(&chunk.frames, chunk.salt) {
                let fate = match self.next(8) {
                    0 => Fate::DeadLettered,
                    1..4 => {
                        keep.push(head.seq);
                        continue;
                    }
                    _ => Fate::Delivered,
                };
                match fate {
                    Fate::DeadLettered => dead_letters.push(dead(head.seq, id_of(body))),
                    _ => delivered += 1,
                }
                self.disk.know(|facts| _ = facts.leaving.insert(head.seq, fate));
            }
            acked.push(ack_keeping(&chunk, delivered, dead_letters, &keep));
        }
        acked
    }

    fn evict(&mut self) {
        let before = queued(&self.queue);
        self.disk.know(|facts| facts.leaving.extend(before.iter().map(|(seq, _)| (*seq, Fate::Evicted))));
        let goal = EvictUntil::Fits { bytes: u64::MAX, events: before.len() as u64 * 3 / 4 };
        self.queue.evict(goal, &mut EvictionCursor::default(), &|_| false, NOW).unwrap();
        let after: BTreeMap<_, _> = queued(&self.queue).into_iter().collect();
        self.disk.know(|facts| {
            facts.leaving.retain(|seq, _| !after.contains_key(seq));
            facts.commit();
        });
    }

    /// Opens what each cut left.
    fn look_at_cuts(&mut self) {
        for cut in self.disk.take_cuts() {
            self.cuts += 1;
            let heir = (self.next(20) == 0 || self.heir.is_none()).then(|| copy_of(cut.dir.path()));
            let goes_on = self.next(4) == 0;
            let found = look_at(&cut, self.mapped, goes_on);
            if let Some(heir) = heir {
                self.heir = Some((heir, found));
            }
        }
    }
}

/// Opens what a cut left and compares it with what was known. Returns what the next run may expect to find.
pub(super) fn look_at(cut: &Cut<Facts>, mapped: bool, goes_on: bool) -> Facts {
    let Cut { dir, facts, at } = cut;
    let queue_dir = dir.path().join("queue");
    let disk = Machine::disk(u128::MAX, mapped);
    let Opened { queue, findings, .. } = open(&disk, &queue_dir);
    let aside = |finding: &Finding| matches!(finding, Finding::Salvaged { .. } | Finding::NotCheckpointed { .. });
    assert!(!findings.iter().any(aside), "{at}: {findings:?}");
    let (found, ledger) = (queued(&queue), queue.ledger());
    let appended: BTreeMap<_, _> = facts.appended.iter().copied().collect();
    assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "{at}: out of order or twice: {found:?}");
    for (seq, id) in &found {
        assert_eq!(appended.get(seq), Some(id), "{at}: {seq} was never that record");
        assert!(!facts.gone.contains_key(seq), "{at}: {seq} came back after it was {:?}", facts.gone[seq]);
    }
    let there: BTreeMap<_, _> = found.iter().copied().collect();
    for seq in appended.keys().filter(|seq| **seq <= facts.confirmed) {
        let acked = facts.gone.contains_key(seq) || facts.leaving.contains_key(seq);
        assert!(acked || there.contains_key(seq), "{at}: {seq} was confirmed and is gone; {ledger:?} {findings:?}");
    }
    look_at_ledger(at, facts, &ledger);
    let dead = queue.open_store().unwrap().dead(None, usize::MAX, usize::MAX).unwrap();
    assert_eq!((dead.records.len() as u64, dead.damaged), (ledger.dead_lettered, 0), "{at}");
    if goes_on {
        go_on(queue, &disk, &queue_dir, &found);
    }
    Facts { appended: found, confirmed: ledger.accepted, before: ledger, ..Facts::default() }
}

fn look_at_ledger(at: &str, facts: &Facts, ledger: &Ledger) {
    assert_eq!(ledger.imbalance(), 0, "{at}: {ledger:?}");
    assert_eq!(ledger.damaged, 0, "{at}: a power cut is no damage: {ledger:?}");
    let last = facts.appended.iter().map(|(seq, _)| *seq).max().unwrap_or(0).max(facts.before.accepted);
    assert!((facts.confirmed..=last).contains(&ledger.accepted), "{at}: {ledger:?}, up to {last} were accepted");
    let counted = [
        (ledger.delivered, facts.before.delivered, Fate::Delivered),
        (ledger.dead_lettered, facts.before.dead_lettered, Fate::DeadLettered),
        (ledger.evicted, facts.before.evicted, Fate::Evicted),
    ];
    for (count, before, fate) in counted {
        let least = before + Facts::count(&facts.gone, fate);
        let most = least + Facts::count(&facts.leaving, fate);
        assert!((least..=most).contains(&count), "{at}: {fate:?} of {least}..={most}: {ledger:?}");
    }
}

/// The queue works after the cut, and what was found stays.
fn go_on(queue: Queue, disk: &Disk, queue_dir: &Path, found: &[(u64, u64)]) {
    let accepted = queue.ledger().accepted;
    let seq = append(&queue, u64::MAX, 0).unwrap().seq;
    assert!(seq > accepted);
    queue.close();
    drop(queue);
    let queue = open(disk, queue_dir).queue;
    let expected: Vec<_> = found.iter().copied().chain([(seq, u64::MAX)]).collect();
    assert_eq!((queued(&queue), queue.ledger().imbalance()), (expected, 0));
}

/// Runs of the machine, one after the other, each ended by a power cut.
fn lives(mapped: bool, seed: u64) -> usize {
    let (mut root, mut facts) = (scratch(), Facts::default());
    std::fs::create_dir(root.path().join("queue")).unwrap();
    let mut cuts = 0;
    for run in 0..3 {
        let mut run = MachineRun::begin(root.path(), facts, mapped, seed + run, 1_000_000 * (run + 1));
        run.look_at_cuts();
        for _ in 0..12 {
            run.step();
            run.look_at_cuts();
        }
        run.disk.cut("at the end".into());
        run.look_at_cuts();
        cuts += run.cuts;
        let heir = run.heir.take().unwrap();
        // Before its directory: an owner that ends closes its files.
        drop(run);
        (root, facts) = heir;
    }
    cuts
}

/// The number of series; a debug build of the database is slower by an order of magnitude.
const SEEDS: u64 = if cfg!(debug_assertions) { 1 } else { 40 };

#[test]
fn a_power_cut_keeps_what_was_confirmed_in_mapped_arenas() {
    let cuts: usize = (0..SEEDS).map(|seed| lives(true, 0x9E37_79B9 + 1_000 * seed)).sum();
    assert!(cuts > 100, "{cuts} cuts only");
}

#[test]
fn a_power_cut_keeps_what_was_confirmed_in_written_arenas() {
    let cuts: usize = (0..SEEDS).map(|seed| lives(false, 0x5851_F42D + 1_000 * seed)).sum();
    assert!(cuts > 100, "{cuts} cuts only");
}

/// A queue of 300 events whose store another owner was about to replace, with the finished file beside it. One of the
/// two files is damaged.
fn about_to_be_replaced(damaged: &str) -> tempfile::TempDir {
    let root = scratch();
    let queue_dir = root.path().join("queue");
    std::fs::create_dir(&queue_dir).unwrap();
    let queue = open(&Machine::disk(7, true), &queue_dir).queue;
    for id in 0..300 {
        append(&queue, id, 0).unwrap();
        if id % 20 == 19 {
            queue.journal().swap().unwrap();
            while queue.checkpoint(&[], None, NOW).unwrap().is_some() {}
        }
    }
    queue.close();
    drop(queue);
    let shard = first_shard(&queue_dir);
    std::fs::copy(shard.join("queue.redb"), shard.join("queue.redb.ready")).unwrap();
    let mut bytes = std::fs::read(shard.join(damaged)).unwrap();
    bytes[..9].fill(0);
    std::fs::write(shard.join(damaged), bytes).unwrap();
    root
}

#[test]
fn a_power_cut_during_a_replacement_leaves_the_good_store() {
    for damaged in ["queue.redb", "queue.redb.ready"] {
        let root = about_to_be_replaced(damaged);
        let disk = CutDisk::<Facts>::new(root.path(), true, 8, 0x2545_F491);
        let gated = Disk::gated(Arc::clone(&disk) as Arc<dyn Gate>);
        let expected: Vec<_> = (1..=300).zip(0..300).collect();
        let opened = open(&gated, &root.path().join("queue"));
        assert_eq!(queued(&opened.queue), expected);
        let [Finding::Salvaged { path, lost: 0, .. }] = &opened.findings[..] else { panic!("{:?}", opened.findings) };
        assert!(path.ends_with(damaged), "{path:?}");
        disk.cut("at the end".into());
        let cuts = disk.take_cuts();
        assert!(cuts.len() > 3, "{}", cuts.len());
        for Cut { dir, at, .. } in cuts {
            let Opened { queue, findings, .. } = open(&Machine::disk(u128::MAX, true), &dir.path().join("queue"));
            assert_eq!(queued(&queue), expected, "{at}: {findings:?}");
            assert_eq!((queue.ledger().damaged, queue.ledger().imbalance()), (0, 0), "{at}");
        }
    }
}
